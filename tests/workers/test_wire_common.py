"""What the protocols share: waits, durations, answer checks, secrets."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.connectors import secrets
from penstock.engine.catalog import Account, Protocol
from penstock.engine.errors import SpecError
from penstock.engine.items import Failure, OutputSpec, Usage
from penstock.workers.checking import answers
from penstock.workers.engines.sending import read_hidden
from penstock.workers.wire import TABLE, Read
from penstock.workers.wire.base import go_duration_s, retry_after_s, rfc3339_s

NOW = 1_795_000_000.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "2.5"}, 2.5),
        ({"retry-after": "Wed, 18 Nov 2026 11:07:00 GMT"}, 20.0),
        ({"retry-after": "Wed, 18 Nov 2020 11:07:00 GMT"}, 0.0),
        ({"retry-after-ms": "soon", "retry-after": "4"}, 4.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    """Milliseconds first, then seconds with a fraction, then an HTTP date."""
    found = retry_after_s(headers, NOW)
    assert found == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
@pytest.mark.parametrize(
    ("told", "wait_s"),
    [
        ("0", None),
        ("Wed, 18 Nov 2020 11:07:00 GMT", None),
        ("1e300", 86_400.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 86_400.0),
    ],
)
def test_a_wait_that_says_nothing_or_holds_for_ever_is_not_obeyed(
    protocol: Protocol, told: str, wait_s: float | None
) -> None:
    """At once: the item would be sent in a loop, until its waits are used up. In ten years: the run would stand."""
    account = Account("a", protocol, "https://host.example/v1")
    for status in (429, 503):
        failure = TABLE[protocol].read(status, {"retry-after": told}, b"{}", NOW, account).failure
        assert failure is not None
        assert failure.retry_after_s == wait_s


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("12ms", 0.012), ("6m0s", 360.0), ("1h2m3.5s", 3723.5), ("7.66s", 7.66), ("3", 3.0), ("1x", None), ("", None)],
)
def test_go_durations_are_read(text: str, seconds: float | None) -> None:
    """OpenAI's reset headers."""
    assert go_duration_s(text) == (None if seconds is None else pytest.approx(seconds))


@given(st.text(max_size=60))
def test_no_header_breaks_a_reader(text: str) -> None:
    """Headers are the provider's, and may hold anything."""
    for value in (go_duration_s(text), rfc3339_s(text, NOW), retry_after_s({"retry-after": text}, NOW)):
        assert value is None or value >= 0.0


CHOICES = OutputSpec(choices=("delivery", "Billing", "Topic :: Internet"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("delivery", "delivery"),
        (' "Delivery." \n', "delivery"),
        ("**billing**", "Billing"),
        ("topic ::  internet!", "Topic :: Internet"),
        ("It is delivery", None),
        ("", None),
    ],
)
def test_choices_are_matched_without_dress(text: str, found: str | None) -> None:
    """Case, quotes, closing marks and spaces differ from model to model; words don't."""
    ok, canonical, why = answers.check(text, CHOICES)
    assert (ok, canonical) == ((True, found) if found else (False, text))
    assert bool(why) is not ok


@pytest.mark.parametrize("text", ["", " \n", '"!"', "...", "**"])
def test_an_answer_without_words_is_no_choice_of_marks(text: str) -> None:
    """A model that was cut off before it said anything has not answered `?`, nor has one that quotes its `!`."""
    spec = OutputSpec(choices=("?", "!", "ok"))
    assert answers.check(text, spec)[:2] == (False, text)
    assert [answers.check(each, spec)[1] for each in ("?", " ! ", "OK.")] == ["?", "!", "ok"]


@given(st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=6, unique=True))
def test_a_choice_is_always_itself(choices: list[str]) -> None:
    """Whatever characters a choice is made of, its exact text is that choice."""
    spec = OutputSpec(choices=tuple(choices))
    assert all(answers.check(choice, spec) == (True, choice, "") for choice in choices)


SCHEMA = OutputSpec(json_schema=b'{"type":"object","required":["a"],"properties":{"a":{"type":"integer"}}}')


@pytest.mark.parametrize(
    ("text", "ok"),
    [
        ('{"a":1}', True),
        ('Here:\n```json\n{"a": 1}\n```\nDone.', True),
        ('```\n{"a":1}\n```', True),
        ('{"a":1,"b":"```\\n2\\n```"}', True),
        ('{"a":"x"}', False),
        ("{}", False),
        ("no", False),
        ('{"a":NaN}', False),
        ("[" * 50_000, False),
        ("1" * 2_000_000, False),
    ],
)
def test_json_answers_are_checked_against_the_schema(text: str, ok: bool) -> None:
    """In a code fence or bare; never an exception."""
    good, canonical, why = answers.check(text, SCHEMA)
    assert good is ok
    assert bool(why) is not ok
    if ok:
        assert msgspec.json.decode(canonical)["a"] == 1


@given(st.text(alphabet="`` \n\r\x1fa-{", max_size=24))
def test_a_fence_is_what_a_plain_pattern_says_it_is(text: str) -> None:
    """The pattern is slow on long texts, and right on short ones."""
    plain = re.search(r"```[a-zA-Z0-9_-]*\s*\n(.*?)\n?\s*```", text, re.DOTALL)
    assert answers.fenced(text) == (None if plain is None else plain[1].strip())


@pytest.mark.parametrize(
    "text",
    ["```json" + "\n" * 500_000 + "{", "```json\n{" + "\n" * 500_000 + "x", "`" * 900_000, "```a\n```a " * 90_000],
    ids=["white space behind the fence", "in mid-answer", "backticks alone", "many fences"],
)
def test_a_long_answer_with_a_fence_is_looked_through_once(text: str) -> None:
    """A worker checks between its calls: minutes over one answer would end it, and everything it carries would be sent
    again. (Going back over white space, this takes hours.)"""
    assert answers.check(text, SCHEMA)[0] is False


def test_a_schema_reaches_for_no_other_document() -> None:
    """A reference to an address is not fetched."""
    spec = OutputSpec(json_schema=b'{"$ref":"http://127.0.0.1:1/x.json"}')
    ok, _, why = answers.check("{}", spec)
    assert (ok, "can't be applied" in why) == (False, True)


def test_asking_again_shows_the_answer_and_what_was_wrong() -> None:
    """The second request holds the first, the answer, and the complaint."""
    body = msgspec.json.encode({"messages": [{"role": "user", "content": "hi"}], "temperature": 0})
    again = msgspec.json.decode(answers.ask_again_body(body, "dunno", "it is none of: a, b"))
    assert again["temperature"] == 0
    assert [m["role"] for m in again["messages"]] == ["user", "assistant", "user"]
    assert "none of: a, b" in again["messages"][2]["content"]


@pytest.mark.parametrize("previous", ["", " \n\t"])
def test_an_answer_of_nothing_is_shown_as_such(previous: str) -> None:
    """A Messages API refuses a message of blanks, and with it the second question."""
    body = msgspec.json.encode({"messages": [{"role": "user", "content": "hi"}]})
    again = msgspec.json.decode(answers.ask_again_body(body, previous, "it is none of: a, b"))
    assert again["messages"][1]["content"] == "(empty)"


def test_a_key_is_named_and_does_not_show_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not when printed, not when pickled, not in an error."""
    monkeypatch.setenv("SOME_KEY", "sk-very-secret\n")
    (tmp_path / "key").write_text("sk-in-file\n")
    key = secrets.resolve("env:SOME_KEY")
    assert key is not None
    assert key.reveal() == "sk-very-secret"
    assert "secret" not in f"{key} {key!r}"
    with pytest.raises(TypeError):
        pickle.dumps(key)
    in_file = secrets.resolve(f"file:{tmp_path / 'key'}")
    assert in_file is not None
    assert in_file.reveal() == "sk-in-file"
    assert secrets.resolve(None) is None


def refused(protocol: Protocol, status: int, body: bytes, key: str) -> Failure:
    def read(data: bytes) -> Read:
        return TABLE[protocol].read(status, {}, data, NOW, Account("a", protocol, "https://llm.example"))

    failure = read_hidden(read, body, secrets.Secret(key)).failure
    assert failure is not None
    return failure


PROTOCOLS: tuple[Protocol, ...] = ("openai", "anthropic")
KEYS = st.text(st.sampled_from("abcXYZ019-_./+="), min_size=8, max_size=900)
AROUND = st.text(max_size=20) | st.integers(0, 520).map("m".__mul__)


@given(KEYS, AROUND, AROUND, st.sampled_from([401, 403, 500]), st.booleans())
@settings(max_examples=300)
def test_no_piece_of_a_key_that_a_host_repeats_is_told(
    text: str, before: str, after: str, status: int, as_json: bool
) -> None:
    """Wherever it stands, in whatever form the host answers, also where the text is cut within it."""
    said = f"{before}{text}{after}"
    bodies = [
        msgspec.json.encode(form) for form in ({"error": {"message": said}}, {"message": said}, {"detail": [said]})
    ]
    for protocol in PROTOCOLS:
        for body in bodies if as_json else [said.encode()]:
            message = refused(protocol, status, body, text).message
            assert not any(text[at : at + 8] in message for at in range(len(text) - 7))


@pytest.mark.parametrize("pad", [0, 100, 185, 195, 400, 485, 495])
def test_a_key_is_hidden_before_the_text_around_it_is_cut(pad: int) -> None:
    """Texts are kept to 200 or 500 characters: none of the key's is among them."""
    key = "sk-proj-" + "A1b2C3d4" * 12
    told = "m" * pad + key
    for body in (told.encode(), msgspec.json.encode({"error": {"message": told}})):
        failure = refused("openai", 403, body, key)
        assert failure.kind == "auth"
        assert "A1" not in failure.message
        assert "sk" not in failure.message


def test_what_is_no_part_of_the_key_is_told_as_it_was() -> None:
    """A masked key keeps its mask; words around it stay; a short key is hidden as a whole."""
    key = secrets.Secret("sk-proj-abcdefgh12345678")
    assert key.hidden("wrong key sk-proj-abcde****5678.") == "wrong key *******5678."
    assert key.hidden("sk-proj is how keys start") == "sk-proj is how keys start"
    assert key.hidden("x sk-proj-abcdefgh12345678 sk-proj-abcdefgh12345678 y") == "x *** *** y"
    assert secrets.Secret("abc").hidden("the key abc, abd") == "the key ***, abd"


@pytest.mark.parametrize("reference", ["sk-oops-the-key-itself", "env:", "env:NOT_SET_ANYWHERE", "file:/no/such/file"])
def test_a_reference_that_names_nothing_is_refused_without_repeating_keys(reference: str) -> None:
    """Somebody may have written the key where its name belongs."""
    with pytest.raises(SpecError) as caught:
        secrets.resolve(reference)
    assert "oops" not in str(caught.value)


def test_a_key_that_would_break_a_header_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line break inside would let it write headers of its own."""
    monkeypatch.setenv("BROKEN_KEY", "sk-a\r\nx-evil: 1")
    with pytest.raises(SpecError) as caught:
        secrets.resolve("env:BROKEN_KEY")
    assert "evil" not in str(caught.value)


@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
@pytest.mark.parametrize(("tokens", "believed"), [(7, True), (10**9, True), (10**30, False)])
def test_a_count_of_tokens_that_cannot_be_is_no_usage(protocol: Protocol, tokens: int, believed: bool) -> None:
    """It would be a bill, and a message, that nobody can write. The answer stands; its cost is estimated."""
    body = (
        b'{"choices":[{"message":{"content":"yes"}}],"usage":{"prompt_tokens":%d,"completion_tokens":1}}'
        if protocol == "openai"
        else b'{"content":[{"type":"text","text":"yes"}],"usage":{"input_tokens":%d,"output_tokens":1}}'
    )
    account = Account("a", protocol, "https://host.example/v1")
    read = TABLE[protocol].read(200, {}, body % tokens, NOW, account)
    assert read.answer is not None
    assert (read.answer.text, read.usage is not None) == ("yes", believed)


@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
@pytest.mark.parametrize(
    ("told", "usage"),
    [
        (b'{"%s":"7","%s":1.0}', Usage(7, output=1)),
        (
            b'{"%s":7,"%s":1,"prompt_tokens_details":[],"output_tokens_details":[],"cache_creation":""}',
            Usage(7, output=1),
        ),
        (b'{"%s":7.5,"%s":1}', None),
        (b'{"%s":-7,"%s":1}', None),
        (b'{"%s":0,"%s":0,"total_tokens":0}', None),
        (b'{"%s":0,"%s":1}', Usage(0, output=1)),
        (b"[]%.0s%.0s", None),
        (b'""%.0s%.0s', None),
    ],
)
def test_an_answer_stands_whatever_its_usage_looks_like(protocol: Protocol, told: bytes, usage: Usage | None) -> None:
    """Gateways write counts as texts, or an empty list for no details. Thrown away, the answer would be paid for twice;
    at nothing or less, it would be free."""
    names = (b"prompt_tokens", b"completion_tokens") if protocol == "openai" else (b"input_tokens", b"output_tokens")
    body = (
        b'{"choices":[{"message":{"content":"yes"}}],"usage":%s}'
        if protocol == "openai"
        else b'{"content":[{"type":"text","text":"yes"}],"usage":%s}'
    )
    account = Account("a", protocol, "https://host.example/v1")
    read = TABLE[protocol].read(200, {}, body % (told % names), NOW, account)
    assert read.answer is not None
    assert (read.answer.text, read.usage) == ("yes", usage)


@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
def test_what_an_answer_cost_that_cannot_be_read_is_on_the_bill(protocol: Protocol) -> None:
    """It was paid for as any other; its call is made again."""
    usage = b'{"prompt_tokens":9,"input_tokens":9,"completion_tokens":3,"output_tokens":3}'
    body = b'{"choices":7,"content":7,"usage":%s}' % usage
    read = TABLE[protocol].read(200, {}, body, NOW, Account("a", protocol, "https://host.example/v1"))
    assert read.failure is not None
    assert (read.failure.kind, read.usage) == ("invalid_response", Usage(9, output=3))
