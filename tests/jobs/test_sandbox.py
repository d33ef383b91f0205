"""The pretend provider: token-true answers, its own limits, and a right count of what was paid for twice."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.catalog import Account
from penstock.engine.errors import SpecError
from penstock.engine.items import Call, OutputSpec
from penstock.jobs.sandbox import Behaviour, Faults, Settings, parse_faults, read_settings, running_sandbox
from penstock.jobs.sandbox.answers import Ask, Message, answer, cut, split_choices, tokens
from penstock.jobs.sandbox.ledger import read_journal
from penstock.jobs.sandbox.limits import go_duration
from penstock.workers.checking import answers
from penstock.workers.wire import TABLE
from penstock.workers.wire.base import go_duration_s

ITEM = "0123456789abcdef0123456789abcdef"


def post(
    url: str, text: str = "hello there", headers: dict[str, str] | None = None, **body: Any
) -> tuple[int, Any, Any]:
    data = msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": text}], **body})
    request = urllib.request.Request(f"{url}/v1/chat/completions", data, headers or {})
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, json.load(response), response.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error), error.headers


def get(url: str, path: str, accept: str = "application/json") -> str:
    with urllib.request.urlopen(urllib.request.Request(url + path, headers={"Accept": accept})) as response:
        return response.read().decode()


def stats(url: str) -> dict[str, Any]:
    return json.loads(get(url, "/stats"))


def item(generation: int = 0, attempt: int = 1) -> dict[str, str]:
    return {"x-penstock-item": f"{ITEM}:{generation}", "x-penstock-attempt": str(attempt)}


def test_the_same_item_answered_twice_is_a_second_payment() -> None:
    """By the header where it is there: another attempt of the item counts, another generation doesn't."""
    with running_sandbox() as url:
        for headers in (item(), item(), item(attempt=2), item(generation=1)):
            assert post(url, headers=headers)[0] == 200
        told = stats(url)
        twice = [json.loads(line) for line in get(url, "/stats/items?more_than=1").splitlines()]
        every = get(url, "/stats/items").splitlines()
    assert (told["served"], told["items"], told["second_payments"]) == (4, 2, 2)
    assert told["second_payments_same_attempt"] == 1
    assert twice == [{"item": ITEM, "generation": 0, "paid": 3}]
    assert len(every) == 2


def test_without_the_header_equal_requests_are_one_identity_whatever_the_model() -> None:
    """The same question asked of two models was paid for twice; the order of keys does not matter."""
    with running_sandbox() as url:
        post(url, temperature=0, seed=1)
        post(url, seed=1, temperature=0, model="other")
        post(url, "another question")
        told = stats(url)
    assert (told["served"], told["items"], told["second_payments"]) == (3, 2, 1)
    assert set(told["models"]) == {"m", "other"}
    assert told["models"]["m"]["pretend_usd"] >= 0


def test_failures_and_spoiled_answers_are_no_second_payments() -> None:
    """Refused requests cost nothing; half a body is charged, but nobody got an answer for it."""
    spoil = Settings(
        models={"bad": Behaviour(faults=Faults(invalid_json=1.0)), "no": Behaviour(faults=Faults(server_error=1.0))}
    )
    with running_sandbox(spoil) as url:
        with pytest.raises(json.JSONDecodeError):
            post(url, headers=item(), model="bad")
        assert post(url, headers=item(attempt=2), model="no")[0] == 500
        assert post(url, headers=item(attempt=3))[0] == 200
        told = stats(url)
    assert (told["served"], told["second_payments"]) == (1, 0)
    assert told["failed"] == {"invalid_json": 1, "server_error": 1}
    assert told["models"]["bad"]["calls"] == 1
    assert "no" not in told["models"]


def test_the_journal_tells_every_charge_before_its_answer_leaves(tmp_path: Path) -> None:
    """Request id, item and tokens as the client saw them; a line cut short by a kill is left out."""
    journal = tmp_path / "journal.jsonl"
    with running_sandbox(Settings(journal=str(journal))) as url:
        _, body, headers = post(url, headers=item(attempt=2))
        lines = read_journal(journal)
    assert len(lines) == 1
    assert (lines[0].key, lines[0].attempt, lines[0].request_id) == (ITEM, 2, headers["x-request-id"])
    assert (lines[0].input, lines[0].output) == (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"])
    with journal.open("ab") as file:
        file.write(b'{"request_id":"half')
    assert read_journal(journal) == lines


def send_and_leave(url: str, body: bytes, length: int) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as line:
        line.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % length + body)
        time.sleep(0.05)  # so that the server has begun


def test_an_answer_that_nobody_waits_for_is_still_charged() -> None:
    """As real providers do: whoever is killed in the middle of a call has paid for it."""
    body = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
    with running_sandbox(Settings(default=Behaviour(latency_ms=200.0))) as url:
        send_and_leave(url, body, len(body))
        until = time.monotonic() + 10
        while stats(url)["served"] == 0 and time.monotonic() < until:
            time.sleep(0.02)
        assert stats(url)["served"] == 1


def test_half_a_request_is_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """No charge, no traceback; the next one is served."""
    with running_sandbox() as url:
        send_and_leave(url, b'{"model":"m","mess', 100)
        assert post(url)[0] == 200
        assert stats(url)["served"] == 1
    assert not caplog.records


@pytest.mark.parametrize(
    "name", ["", ":", "x:99999999999999999999", f"{ITEM}:²".encode().decode("latin-1"), "zz" * 16 + ":0"]
)
def test_strange_item_headers_are_still_identities(name: str) -> None:
    """Whatever a client writes there, it is served, and the same again is a second payment."""
    with running_sandbox() as url:
        for _ in range(2):
            assert post(url, headers={"x-penstock-item": name, "x-penstock-attempt": "9" * 5000})[0] == 200
        assert stats(url)["second_payments"] == 1
        assert len(get(url, "/stats/items?more_than=x").splitlines()) == 1


def test_reset_forgets_and_the_page_is_for_people() -> None:
    """`POST /stats/reset` starts the counts anew; a browser gets a page."""
    with running_sandbox() as url:
        post(url, model="<b>m")
        assert "&lt;b&gt;m" in get(url, "/stats", "text/html")
        urllib.request.urlopen(urllib.request.Request(f"{url}/stats/reset", method="POST")).close()
        assert stats(url)["served"] == 0


def test_usage_is_true_to_the_text_and_the_ceiling_holds() -> None:
    """Output tokens are those of the text that came back."""
    with running_sandbox() as url:
        _, body, _ = post(url, "some words that go on and on", max_tokens=4)
        _, whole, _ = post(url, "some words that go on and on")
    choice = body["choices"][0]
    assert choice["finish_reason"] == "length"
    assert tokens(choice["message"]["content"]) == body["usage"]["completion_tokens"] == 4
    assert whole["choices"][0]["finish_reason"] == "stop"
    assert tokens(whole["choices"][0]["message"]["content"]) == whole["usage"]["completion_tokens"]


@given(st.text(max_size=200), st.integers(0, 30))
def test_a_cut_text_has_just_so_many_tokens(text: str, most: int) -> None:
    """Whatever the text."""
    kept, n, was_cut = cut(text, most)
    assert n == tokens(kept) <= most
    assert text.startswith(kept)
    assert was_cut is (tokens(text) > most)


def test_limits_are_kept_and_told_in_the_true_headers() -> None:
    """429 with Retry-After when the minute is used up; the headers count down."""
    with running_sandbox(Settings(default=Behaviour(rpm=2, tpm=10_000))) as url:
        told = [post(url) for _ in range(3)]
    assert [status for status, _, _ in told] == [200, 200, 429]
    assert [h["x-ratelimit-remaining-requests"] for _, _, h in told] == ["1", "0", "0"]
    assert told[0][2]["x-ratelimit-limit-requests"] == "2"
    assert 1 <= int(told[2][2]["retry-after"]) <= 31
    assert (go_duration_s(told[2][2]["x-ratelimit-reset-requests"]) or 0) > 20


@given(st.floats(0, 86_400))
def test_durations_are_written_as_they_are_read(seconds: float) -> None:
    """Our reader of OpenAI's reset headers reads the sandbox's."""
    read = go_duration_s(go_duration(seconds))
    assert read is not None
    assert read == pytest.approx(seconds, abs=0.002, rel=1e-4)


def test_faults_come_in_the_share_that_was_asked_for_and_the_same_for_a_seed() -> None:
    """A rehearsal can be repeated."""

    def run() -> list[int]:
        with running_sandbox(Settings(default=Behaviour(faults=Faults(server_error=0.3)), seed=7)) as url:
            return [post(url)[0] for _ in range(60)]

    first = run()
    assert first == run()
    assert 8 <= first.count(500) <= 28


def test_a_token_is_asked_for_where_one_is_set() -> None:
    """In either protocol's header."""
    with running_sandbox(Settings(token="t")) as url:
        assert post(url)[0] == 401
        assert post(url, headers={"Authorization": "Bearer t"})[0] == 200
        assert post(url, headers={"x-api-key": "t"})[0] == 200


@pytest.mark.parametrize("data", [b"", b"[]", b'{"messages": 5}', b"[" * 100_000, b"\xff"])
def test_nonsense_is_a_400(data: bytes) -> None:
    """In the provider's form, and the server lives on."""
    with running_sandbox() as url:
        request = urllib.request.Request(f"{url}/v1/chat/completions", data)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        with caught.value as error:
            assert error.code == 400
            assert json.load(error)["error"]["message"]
        assert post(url)[0] == 200


def ask(text: str, **more: Any) -> Ask:
    return Ask([Message("user", text)], **more)


@pytest.mark.parametrize(
    "choices", [("red", "green", "blue"), ("a, b", "c, d"), ("Topic :: Internet", "Topic :: Games")]
)
def test_choices_are_answered_with_one_of_them(choices: tuple[str, ...]) -> None:
    """The instruction that our wire appends is understood, and the same text gets the same choice."""
    prompt = "What is it?\n\n" + answers.choices_instruction(choices)
    assert split_choices(prompt)[1] == list(choices)
    said = answer(ask(prompt))
    assert answers.check(said, OutputSpec(choices=choices)) == (True, said, "")
    assert answer(ask(prompt)) == said
    named = "It is " + choices[1] + "\n\n" + answers.choices_instruction(choices)
    assert answer(ask(named)) == choices[1]


@pytest.mark.parametrize(
    "schema",
    [
        {
            "type": "object",
            "properties": {"a": {"type": "string"}, "n": {"type": "integer", "minimum": 3, "maximum": 5}},
            "required": ["a", "n"],
        },
        {"type": "array", "items": {"enum": ["x", "y"]}, "minItems": 2},
        {
            "$ref": "#/$defs/p",
            "$defs": {"p": {"type": "object", "properties": {"q": {"type": ["null", "string"]}}, "required": ["q"]}},
        },
        {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
        {"type": "string", "minLength": 30, "maxLength": 31},
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 2},
        {"const": {"k": 1}},
    ],
)
def test_schemas_are_answered_with_an_instance(schema: dict[str, Any]) -> None:
    """Valid, by the same check that answers of real providers meet."""
    said = answer(ask("Tell me of it.", response_format={"type": "json_schema", "json_schema": {"schema": schema}}))
    whole = OutputSpec(json_schema=msgspec.json.encode(schema))
    assert answers.check(said, whole)[0], said


@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
@pytest.mark.parametrize("lacks", [(), ("json_schema",)])
@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": "string"}, "more": {"type": "object"}}},
        {
            "type": "object",
            "properties": {"n": {"type": "integer", "minimum": 7, "maximum": 8}},
            "required": ["n"],
        },
    ],
)
def test_a_schema_is_answered_however_it_is_asked_for(
    schema: dict[str, Any], lacks: tuple[str, ...], protocol: str
) -> None:
    """As a format, in words, or with bounds in descriptions: what the wire makes of it, a rehearsal has to read."""
    whole = OutputSpec(json_schema=msgspec.json.encode(schema))
    body = msgspec.json.encode({"messages": [{"role": "user", "content": "Tell me of it."}]})
    call = Call("0" * 32, 0, 1, "primary", "m", "v", "m", body, "t", 64, 10.0, 1, 1, lacks=lacks)
    _, sent = TABLE[protocol].build(call, whole, Account("a", protocol, "http://127.0.0.1"))
    said = answer(msgspec.json.decode(sent, type=Ask))
    assert answers.check(said, whole)[0], said


def test_a_schema_that_calls_itself_comes_to_an_end() -> None:
    """A user's schema can't hang the sandbox."""
    loop = {"$ref": "#"}
    assert answer(ask("x", output_config={"format": {"schema": loop}})) == "null"


def test_faults_and_settings_are_read_or_refused_by_name(tmp_path: Path) -> None:
    """A misspelt fault is an error, with the names that exist."""
    assert parse_faults("429=0.1, hang=0.01") == Faults(rate_limit=0.1, hang=0.01)
    assert parse_faults("rate-limit=0.1") == Faults(rate_limit=0.1)
    for wrong in ("rate=0.1", "hang=2", "hang", "hang=x"):
        with pytest.raises(SpecError):
            parse_faults(wrong)
    (tmp_path / "s.yaml").write_text("default: {latency_ms: 5}\nmodels: {opus: {rpm: 60, faults: {refuse: 0.5}}}\n")
    assert read_settings(tmp_path / "s.yaml").of("opus").faults.refuse == 0.5
    (tmp_path / "s.yaml").write_text("models: {opus: {rpms: 60}}\n")
    with pytest.raises(SpecError):
        read_settings(tmp_path / "s.yaml")


def test_it_runs_in_a_process_of_its_own() -> None:
    """For tests that count its memory or kill it."""
    with running_sandbox(process=True) as url:
        assert post(url)[0] == 200
        assert json.loads(get(url, "/v1/models"))["object"] == "list"


def test_a_taken_port_is_said() -> None:
    """Not a traceback."""
    with running_sandbox() as url, pytest.raises(SpecError), running_sandbox(port=int(url.rsplit(":", 1)[1])):
        pass
