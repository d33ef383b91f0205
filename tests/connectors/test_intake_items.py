"""Every record becomes an item or a dead letter that says why; nothing raises."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.connectors.base import Raw
from penstock.connectors.reading import attributes, envelope
from penstock.connectors.reading.intake import Intake, input_shape
from penstock.connectors.settings import Row
from penstock.engine.items import Item, Position
from penstock.engine.policy import Output, Policy, Prompt, Scorer, Task
from penstock.engine.pricing import max_input_tokens
from penstock.engine.results import DeadLetter

ONE = Policy(tasks={"main": Task(name="main")}, default_task="main")
MESSAGES = [{"role": "user", "content": "hi é"}]


def raw(data: bytes | dict[str, object], position: int = 0, **fields: Any) -> Raw:
    text = data if isinstance(data, bytes) else json.dumps(data).encode()
    return Raw(Position("s", 0, position), "object", text, **fields)


def line(body: dict[str, object] | None = None, **fields: object) -> dict[str, object]:
    body = {"messages": MESSAGES, **(body or {})}
    return {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body, **fields}


def take(data: bytes | dict[str, object] | Raw, policy: Policy = ONE) -> Item | DeadLetter:
    record = data if isinstance(data, Raw) else raw(data)
    return Intake("run", "openai-batch", Row(), policy, ["opus", "small"]).item(record, 5.0)


def item(data: bytes | dict[str, object] | Raw, policy: Policy = ONE) -> Item:
    made = take(data, policy)
    assert isinstance(made, Item), made
    return made


def dead(data: bytes | dict[str, object] | Raw, policy: Policy = ONE) -> tuple[str, str]:
    made = take(data, policy)
    assert isinstance(made, DeadLetter), made
    assert made.item_id
    assert made.source == Position("s", 0, 0)
    return made.reason, made.message


def test_a_request_line_becomes_a_canonical_request() -> None:
    """`model`, `stream` and our metadata are gone; every other byte of the body is the user's own."""
    body = {
        "model": "opus",
        "messages": MESSAGES,
        "max_tokens": 7,
        "temperature": 0.5,
        "stream": True,
        "metadata": {"penstock-tier": "2", "shop": "x", "tier": "gold"},
        "top_p": 0.30,
    }
    made = item(line(body))
    assert msgspec.json.decode(made.request.body_json) == {
        "messages": MESSAGES,
        "max_tokens": 7,
        "temperature": 0.5,
        "metadata": {"shop": "x", "tier": "gold"},
        "top_p": 0.3,
    }
    assert (made.request.model, made.request.max_tokens, made.request.temperature) == ("opus", 7, 0.5)
    assert (made.custom_id, made.attributes.tier, made.attributes.task, made.enqueued_at) == ("a", 2, "main", 5.0)
    assert made.original == json.dumps(line(body)).encode()


def test_identity_is_run_object_and_position() -> None:
    """Not the split, not the label, not the content; 32 hex digits."""
    intake = Intake("run", "openai-batch", Row(), ONE, [])
    first = intake.item(raw(line()), 0)
    moved = Raw(Position("another split", 3, 0), "object", raw(line(custom_id="b")).data)
    assert intake.item(moved, 9).item_id == first.item_id
    others = [
        intake.item(raw(line(), 1), 0),
        Intake("run2", "openai-batch", Row(), ONE, []).item(raw(line()), 0),
        intake.item(msgspec.structs.replace(moved, object_id="object2"), 0),
        intake.item(raw(b"rubbish", 2), 0),
    ]
    assert len({first.item_id, *(other.item_id for other in others)}) == 5
    assert len(first.item_id) == 32


def test_equal_requests_have_equal_hashes() -> None:
    """The pin counts, the label and our attributes don't."""
    one = item(line({"metadata": {"penstock-tier": "1"}}, custom_id="x")).request.input_hash
    assert item(line()).request.input_hash == one
    assert item(line({"model": "auto"})).request.input_hash == one
    assert item(line({"model": "opus"})).request.input_hash != one
    assert item(line({"temperature": 0})).request.input_hash != one


DEEP = (
    b'{"custom_id":"a","body":{"messages":[{"role":"user","content":"x"}],"tools":'
    + b"[" * 10_000
    + b"]" * 10_000
    + b"}}"
)
LESS_DEEP = DEEP.replace(b"[" * 10_000 + b"]" * 10_000, b"[" * 300 + b"]" * 300)
GOOD = json.dumps(line()).encode()


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        (b'{"custom_id": "a"', "malformed", "not JSON"),
        (b"[1]", "malformed", "not a JSON object"),
        (b'"text"', "malformed", "not a JSON object"),
        (DEEP, "malformed", "nested deeper"),
        (LESS_DEEP, "malformed", "nested deeper"),
        (GOOD.replace(b'"method"', b'"x": NaN, "method"'), "malformed", "not JSON"),
        (GOOD.replace(b'"messages"', b'"temperature": NaN, "messages"'), "malformed", "not JSON"),
        (GOOD.replace(b'"messages"', b'"top_p": 1e999, "messages"'), "malformed", "range"),
        (GOOD.replace(b'"messages"', b'"seed": ' + b"9" * 5000 + b', "messages"'), "malformed", ""),
        (GOOD.replace(b"\\u00e9", b"\xff"), "malformed", "utf-8"),
        (GOOD.replace(b"\\u00e9", b"\\ud800"), "malformed", "not JSON"),
        (GOOD.replace(b'"method"', b'"custom_id": "b", "method"'), "malformed", "'custom_id' comes twice"),
        (GOOD.replace(b'"method"', b'"cust\\u006fm_id": "b", "method"'), "malformed", "'custom_id' comes twice"),
        (GOOD.replace(b'"messages"', b'"model":"opus","model":"small","messages"'), "malformed", "'model' comes twice"),
        (GOOD.replace(b'"role"', b'"role":"system", "role"'), "malformed", "'role' comes twice"),
        (
            GOOD.replace(b'"messages"', b'"metadata":{"sensitivity":"health","sensitivity":"public"},"messages"'),
            "malformed",
            "'sensitivity' comes twice",
        ),
    ],
)
def test_json_that_is_no_honest_json_is_malformed(data: bytes, reason: str, words: str) -> None:
    """Cut short, too deep, NaN, numbers too large, bad UTF-8, a key that comes twice."""
    found, message = dead(data)
    assert found == reason
    assert words in message


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        ({"body": {"messages": MESSAGES}}, "missing_field", "custom_id"),
        (line(custom_id=None), "missing_field", "custom_id"),
        (line(custom_id=""), "missing_field", "custom_id"),
        (line(custom_id=7), "bad_field", "custom_id"),
        (line(custom_id="x" * 513), "bad_field", "512"),
        ({"custom_id": "a"}, "missing_field", "body"),
        (line() | {"body": "x"}, "bad_field", "body"),
        (line(url="/v1/embeddings"), "unsupported", "/v1/chat/completions"),
        (line(method="GET"), "unsupported", "POST"),
        (line({"messages": None}), "missing_field", "messages"),
        (line({"messages": []}), "bad_field", "messages"),
        (line({"messages": "x"}), "bad_field", "messages"),
        (line({"messages": ["x"]}), "bad_field", "messages[0]"),
        (line({"messages": [{"role": "robot", "content": "x"}]}), "bad_field", "robot"),
        (line({"messages": [{"role": None, "content": "x"}]}), "bad_field", "role"),
        (line({"messages": [{"role": "user"}]}), "bad_field", "content"),
        (line({"messages": [{"role": "user", "content": 7}]}), "bad_field", "content"),
        (line({"messages": [{"role": "user", "content": [{"text": "x"}]}]}), "bad_field", "type"),
        (line({"max_tokens": "7"}), "bad_field", "max_tokens"),
        (line({"max_tokens": 0}), "bad_field", "max_tokens"),
        (line({"n": True}), "bad_field", "n is"),
        (line({"temperature": "hot"}), "bad_field", "temperature"),
        (line({"model": "gpt-9"}), "unknown_model", "opus, small"),
        (line({"model": 7}), "bad_field", "model"),
        (line({"metadata": "x"}), "bad_field", "metadata"),
        (line({"metadata": {"penstock-tier": "high"}}), "bad_field", "tier"),
        (line({"metadata": {"penstock-tier": "4"}}), "bad_field", "1 to 3"),
        (line({"metadata": {"penstock-teir": "1"}}), "bad_field", "penstock-tier"),
        (line({"metadata": {"penstock-deadline": "soon"}}), "bad_field", "ISO 8601"),
        (line({"metadata": {"penstock-max_cost_usd": "NaN"}}), "bad_field", "finite"),
        (line({"metadata": {"penstock-tenant": "x" * 513}}), "bad_field", "512"),
        (line({"metadata": {"penstock-tenant": "a\nb"}}), "bad_field", "control"),
        (line({"metadata": {"penstock-task": "cooking"}}), "unknown_task", "main"),
        (line({"metadata": {"sensitivity": ["health"]}}), "bad_field", "sensitivity"),
        (
            line({"metadata": {"penstock-sensitivity": "public", "sensitivity": "health"}}),
            "bad_field",
            "two sensitivities",
        ),
    ],
)
def test_a_field_that_is_missing_or_wrong_is_named(data: dict[str, object], reason: str, words: str) -> None:
    """Reason from the closed list, and a message that names field, value, and what there is instead."""
    found, message = dead(data)
    assert found == reason, message
    assert words in message


def test_attributes_come_from_metadata_under_both_names() -> None:
    """Strings and numbers; the prefixed name wins; none of those taken is forwarded."""
    metadata = {
        "penstock-tier": "1",
        "tier": 3,
        "latency": "realtime",
        "penstock-min_quality": 0.5,
        "max_cost_usd": "0.25",
        "penstock-deadline": "2026-11-24T00:00:00Z",
        "priority": "5",
        "tenant": "t",
        "subject": 12,
        "unit": "u",
        "episode": "e",
        "penstock-expected": {"label": "x"},
        "consent": "yes",
        "purpose": "p",
        "sensitivity": "health",
    }
    made = item(line({"metadata": metadata}))
    found = made.attributes
    assert (found.tier, found.latency, found.min_quality, found.max_cost_usd) == (1, "realtime", 0.5, 0.25)
    assert (found.deadline, found.priority, found.tenant, found.subject) == (1795478400.0, 5, "t", "12")
    assert (found.unit, found.episode, found.expected_json) == ("u", "e", b'{"label":"x"}')
    assert (found.consent, found.purpose, found.sensitivity) == ("yes", "p", "health")
    assert msgspec.json.decode(made.request.body_json) == {"messages": MESSAGES, "metadata": {"tier": 3}}


def test_a_bare_name_that_cannot_be_read_is_the_users_own() -> None:
    """It is ignored and goes on with the rest of the metadata; so does a task that a one-task job doesn't know."""
    metadata = {"tier": "gold", "deadline": "soon", "latency": "low", "task": "their-own", "x": None}
    made = item(line({"metadata": metadata}))
    assert (made.attributes.tier, made.attributes.deadline, made.attributes.task) == (None, None, "main")
    assert msgspec.json.decode(made.request.body_json)["metadata"] == metadata


def test_with_several_tasks_each_line_must_name_one() -> None:
    """Named and known, or a dead letter with the nearest name."""
    policy = Policy(tasks={"coding": Task(name="coding"), "labelling": Task(name="labelling")})
    assert item(line({"metadata": {"task": "coding"}}), policy).attributes.task == "coding"
    assert dead(line(), policy)[0] == "unknown_task"
    assert dead(line({"metadata": {"task": "codign"}}), policy) == (
        "unknown_task",
        "no task is named 'codign'; the nearest is 'coding'",
    )


def test_message_headers_are_attributes_too() -> None:
    """Other headers say nothing; a header and a body that disagree on the wall are a dead letter."""
    headers = (("penstock-tier", b"2"), ("penstock-reason", b"x"), ("traceparent", b"00-ab"), ("x", b"\xff"))
    made = item(raw(line(), headers=headers, timestamp=1.5, key=b"k"))
    assert (made.attributes.tier, made.traceparent, made.enqueued_at, made.key) == (2, "00-ab", 1.5, b"k")
    both = raw(line({"metadata": {"sensitivity": "public"}}), headers=(("penstock-sensitivity", b"health"),))
    assert dead(both)[0] == "bad_field"
    assert dead(raw(line(), headers=(("penstock-tier", b"\xff"),)))[0] == "bad_field"


def test_a_header_of_ours_is_not_displaced_by_a_bare_name_in_the_request() -> None:
    """That may be the user's own, who is not asked whose budget pays, nor how urgent it is."""
    metadata = {"tenant": "somebody", "priority": 9, "penstock-unit": "inner"}
    headers = (("penstock-tenant", b"acme"), ("penstock-priority", b"1"), ("penstock-unit", b"outer"))
    made = item(raw(line({"metadata": metadata}), headers=headers))
    found = made.attributes
    assert (found.tenant, found.priority, found.unit) == ("acme", 1, "inner")
    assert msgspec.json.decode(made.request.body_json)["metadata"] == {"tenant": "somebody", "priority": 9}


@pytest.mark.parametrize(
    "name",
    [
        *("penstock-sensitvity", "Penstock-Sensitivity", "penstock-tenent", "penstock-"),
        *("penstock_sensitivity", "Penstock_Sensitivity", "penstock.sensitivity", "penstock_max-cost-usd"),
    ],
)
def test_a_header_that_looks_like_an_attribute_and_is_none_is_a_dead_letter(name: str) -> None:
    """Where all else is public, a misspelt sensitivity would leave as public."""
    reason, message = dead(raw(line(), headers=((name, b"health"),)))
    assert (reason, name in message) == ("bad_field", True)
    assert dead(line({"metadata": {name: "health"}}))[0] == "bad_field"


def test_columns_of_a_table_of_results_may_come_along_in_the_metadata() -> None:
    """They look like ours and say nothing of the item."""
    metadata = {"penstock_item_id": "a", "penstock_model": "m", "penstocks": 3, "penstock": "x"}
    made = item(line({"metadata": metadata}))
    assert msgspec.json.decode(made.request.body_json)["metadata"] == metadata


def test_headers_that_a_job_before_this_one_wrote_say_nothing() -> None:
    """Its results or dead letters are this one's input."""
    came = raw(line(), headers=(*((name, b"x") for name in sorted(envelope.OURS)), ("penstock-tenant", b"acme")))
    assert item(came).attributes.tenant == "acme"


def test_task_parameters_are_defaults_under_the_line() -> None:
    """What the line says stays; a ceiling under either name displaces the task's."""
    params = b'{"max_tokens": 8, "temperature": 0, "top_p": 0.5}'
    policy = Policy(
        tasks={"main": Task(name="main", params_json=params, max_tokens=8, temperature=0.0)}, default_task="main"
    )
    made = item(line(), policy).request
    assert (made.max_tokens, made.temperature) == (8, 0.0)
    assert msgspec.json.decode(made.body_json) == {
        "messages": MESSAGES,
        "max_tokens": 8,
        "temperature": 0,
        "top_p": 0.5,
    }
    made = item(line({"max_completion_tokens": 99, "temperature": 1}), policy).request
    assert (made.max_tokens, made.temperature) == (99, 1.0)
    assert msgspec.json.decode(made.body_json) == {
        "messages": MESSAGES,
        "max_completion_tokens": 99,
        "temperature": 1,
        "top_p": 0.5,
    }


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("service_tier", "priority"),
        ("service_tier", "flex"),
        ("web_search_options", {}),
        ("search_parameters", {"mode": "on"}),
        ("tools", [{"type": "web_search_20250305", "name": "web_search"}]),
        ("tools", [{"type": "function", "function": {"name": "f"}}, {"google_search": {}}]),
        ("tools", {}),
        ("modalities", ["text", "audio"]),
        ("models", ["deepseek/deepseek-chat"]),
        ("provider", {"order": ["x"]}),
        ("plugins", [{"id": "web"}]),
        ("route", "fallback"),
        ("transforms", ["middle-out"]),
        ("extra_body", {"models": ["x"]}),
        ("store", True),
        ("prompt_cache_retention", "24h"),
        ("chat_template", "{{ messages }}"),
        ("a_knob_of_tomorrow", 1),
    ],
)
def test_a_member_that_chooses_price_target_or_retention_is_refused(member: str, value: object) -> None:
    """The job chooses these, its budgets and walls rest on it. What nobody here knows could be one of them."""
    reason, message = dead(line({member: value}))
    assert reason == "unsupported"
    assert message.startswith(f"{member} ")
    assert "is not sent: " in message


def test_a_member_that_asks_for_nothing_is_harmless() -> None:
    """Clients write every field that they know, as null or false; a tier by its plain name costs the plain price."""
    nothing: dict[str, object] = {
        "store": False,
        "web_search_options": None,
        "service_tier": "default",
        "modalities": ["text"],
        "knob": None,
    }
    assert msgspec.json.decode(item(line(nothing)).request.body_json) == {"messages": MESSAGES, **nothing}


def test_what_other_engines_take_goes_along() -> None:
    """The sampling members of vLLM and its kin change an answer, and its price by nothing but its tokens."""
    extras: dict[str, object] = {
        "guided_json": {"type": "object"},
        "top_k": 20,
        "min_p": 0.1,
        "chat_template_kwargs": {"enable_thinking": False},
        "reasoning_effort": "low",
        "tools": [{"name": "f", "input_schema": {}}, {"type": "custom", "name": "g"}],
    }
    assert msgspec.json.decode(item(line(extras)).request.body_json) == {"messages": MESSAGES, **extras}


def test_a_line_may_have_an_unknown_member_that_the_job_vouches_for() -> None:
    """Who pays names it among the task's params; the line's own value stands. A forbidden one stays forbidden."""
    params = b'{"knob":1,"store":true}'
    policy = Policy(tasks={"main": Task(name="main", params_json=params)}, default_task="main")
    made = item(line({"knob": 2, "store": False}), policy)
    assert msgspec.json.decode(made.request.body_json)["knob"] == 2
    assert dead(line({"other": 2, "store": False}), policy)[0] == "unsupported"
    assert dead(line({"store": True}), policy)[0] == "unsupported"


def asked(*parts: object, **body: object) -> dict[str, object]:
    return line({"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, *parts]}], **body})


INLINE = "data:image/png;base64," + "A" * 50_000


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": INLINE}},
        {"type": "image_url", "image_url": INLINE},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 50_000}},
    ],
)
def test_a_picture_counts_as_one_in_whatever_form_it_is_written(part: dict[str, object]) -> None:
    """OpenAI's form and Anthropic's own: one picture, and its letters are no text."""
    made = item(asked(part)).request
    assert (made.images, made.needs) == (1, ("images",))
    assert 20_000 < max_input_tokens(made) < 21_000


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "https://x.example/a.png"}},
        {"type": "image", "source": {"type": "url", "url": "https://x.example/a.png"}},
        {"type": "image", "source": {"type": "file", "file_id": "f1"}},
    ],
)
def test_a_picture_at_an_address_is_reckoned_like_any_other(part: dict[str, object]) -> None:
    """A tool's schema, or a text, that looks like a written picture is text all the same."""
    looks_like = {"type": "function", "function": {"name": "f", "parameters": {"default": {"url": INLINE}}}}
    made = item(asked(part, tools=[looks_like])).request
    assert made.images == 1
    assert max_input_tokens(made) > 70_000
    written = item(asked(part, {"type": "text", "text": json.dumps({"url": INLINE})})).request
    assert max_input_tokens(written) > 70_000


@pytest.mark.parametrize(
    "part",
    [
        {"type": "document", "source": {"type": "url", "url": "https://x.example/600pages.pdf"}},
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0"}},
        {"type": "file", "file": {"file_id": "file-abc"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERi0", "filename": "a.pdf"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}},
        {"type": "image_url", "image_url": {"url": "data:application/pdf;base64,JVBERi0"}},
        {"type": "image_url", "image_url": {"url": "gs://bucket/film.mp4"}},
        {"type": "search_result", "source": "https://x.example"},
    ],
)
def test_content_that_nobody_can_bound_is_refused(part: dict[str, object]) -> None:
    """Pages, seconds and what stands at an address or behind an id cost tokens that a request doesn't tell."""
    assert dead(asked(part))[0] == "unsupported"


def test_a_message_that_stands_for_content_elsewhere_is_refused() -> None:
    """OpenAI's earlier audio answers come back by their id. Clients write the field as null, which says nothing."""
    earlier: dict[str, object] = {"role": "assistant", "content": "x", "audio": {"id": "audio_1"}}
    assert dead(line({"messages": [*MESSAGES, earlier]}))[0] == "unsupported"
    assert item(line({"messages": [*MESSAGES, {**earlier, "audio": None}]}))


def test_a_text_with_a_title_is_a_text() -> None:
    """Anthropic's document of plain text holds all that it costs."""
    text = {"type": "document", "title": "t", "source": {"type": "text", "media_type": "text/plain", "data": "b" * 999}}
    made = item(asked(text)).request
    assert made.images == 0
    assert max_input_tokens(made) > 999


def test_needs_tell_what_a_target_must_be_able_to_do() -> None:
    """Tools, images, a JSON schema, log probabilities; an output of the task's own is not put into the body."""
    image = {"type": "image_url", "image_url": {"url": "https://x/y.png"}}
    body = {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, image, image]}],
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "response_format": {"type": "json_schema", "json_schema": {}},
        "logprobs": True,
        "n": 2,
    }
    made = item(line(body)).request
    assert (made.needs, made.images, made.n) == (("tools", "images", "json_schema", "logprobs"), 2, 2)
    policy = Policy(tasks={"main": Task(name="main", output=Output(json_schema=b"{}"))}, default_task="main")
    assert item(line(), policy).request.needs == ()


def test_a_record_that_could_not_be_read_stays_what_the_reader_said() -> None:
    """Reason, message, head, full length and hash."""
    record = raw(b"xx", error=("too_large", "100 MB"), length=100_000_000, digest="ab")
    made = take(record)
    assert isinstance(made, DeadLetter)
    assert (made.reason, made.message, made.original) == ("too_large", "100 MB", b"xx")
    assert (made.original_length, made.original_hash) == (100_000_000, "ab")


def test_over_1_mb_only_the_head_is_kept_for_later() -> None:
    """The request is whole; the original is head, length and hash, for items and dead letters."""
    big = line({"messages": [{"role": "user", "content": "x" * 2_000_000}]})
    made = item(big)
    assert len(made.request.body_json) > 2_000_000
    gone = take(big | {"url": "/x"})
    assert isinstance(gone, DeadLetter)
    for one in (made, gone):
        assert (len(one.original), len(one.original_hash)) == (1_000_000, 32)
        assert one.original_length > 2_000_000


JSONS = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "x", "tier"]), inner, max_size=3)
    ),
    max_leaves=10,
)
NAMES = st.sampled_from(
    ["messages", "model", "metadata", "max_tokens", "temperature", "n", "tools", "response_format", "x"]
)


METADATA = st.sampled_from([*sorted(attributes.NAMES), *(f"penstock-{name}" for name in sorted(attributes.NAMES)), "x"])


@given(st.dictionaries(METADATA, JSONS, max_size=4), st.booleans())
def test_no_metadata_raises(metadata: dict[str, object], several: bool) -> None:
    """Whatever is said of an item: attributes that can be written, or a dead letter; ours are never forwarded."""
    policy = Policy(tasks={"a": Task(name="a"), "b": Task(name="b")}) if several else ONE
    made = take(line({"metadata": metadata}), policy)
    if isinstance(made, Item):
        msgspec.json.encode(made.attributes)
        left = msgspec.json.decode(made.request.body_json).get("metadata", {})
        assert not [key for key in left if key.startswith("penstock-") or key == "sensitivity"]


@given(st.dictionaries(NAMES, JSONS), st.dictionaries(st.sampled_from(["custom_id", "url", "method", "x"]), JSONS))
def test_no_line_raises(body: dict[str, object], outer: dict[str, object]) -> None:
    """Whatever the types: an item whose body is JSON without model, or a dead letter."""
    for data in ({**line(), **outer, "body": body}, line(body), line({"metadata": body})):
        made = take(json.dumps(data).encode())
        if isinstance(made, Item):
            assert "model" not in msgspec.json.decode(made.request.body_json)


@given(st.binary(max_size=60))
def test_no_bytes_raise(data: bytes) -> None:
    """Rubbish is a dead letter."""
    assert isinstance(take(data), DeadLetter)


# Rows

SHOP = Policy(
    tasks={
        "classification": Task(
            name="classification",
            prompt=Prompt(system="Label messages for {{ vars.shop }}.", user="{{ text }}"),
            params_json=b'{"max_tokens":8}',
            max_tokens=8,
            scorers=(Scorer(type="exact", expected="{{ label }}"),),
        ),
        "chat": Task(name="chat", prompt=Prompt(messages="{{ turns }}", images=("{{ photo }}",))),
        "bare": Task(name="bare"),
    }
)
ROW = Row(
    id="{{ id }}",
    keep=("id", "shop"),
    attributes={"task": "{{ kind }}", "sensitivity": "{{ class }}", "tier": "{{ tier }}"},
)
ORDER: dict[str, object] = {
    "id": 17,
    "shop": "é",
    "kind": "classification",
    "class": None,
    "tier": "",
    "text": "Where is it?",
    "label": "delivery",
    "turns": MESSAGES,
    "photo": "https://x/y.png",
}


def row(changes: dict[str, object] | None = None, *, drop: str = "", settings: Row = ROW) -> Item | DeadLetter:
    order = {name: one for name, one in {**ORDER, **(changes or {})}.items() if name != drop}
    return Intake("run", "rows", settings, SHOP, ["opus"], job_vars={"shop": "S"}).item(raw(order), 5.0)


def test_a_row_becomes_an_item_by_its_templates() -> None:
    """Prompt, parameters, label, attributes, expected answer, kept columns; null and empty attributes are unset."""
    made = row()
    assert isinstance(made, Item)
    assert msgspec.json.decode(made.request.body_json) == {
        "messages": [
            {"role": "system", "content": "Label messages for S."},
            {"role": "user", "content": "Where is it?"},
        ],
        "max_tokens": 8,
    }
    assert (made.custom_id, made.request.max_tokens, made.keep_json) == ("17", 8, '{"id":17,"shop":"é"}'.encode())
    assert (made.attributes.task, made.attributes.sensitivity, made.attributes.tier) == ("classification", None, None)
    assert made.attributes.expected_json == b'"delivery"'


def test_messages_and_images_come_from_columns() -> None:
    """A list of messages (or its JSON text, from CSV) and image URLs behind the user's text."""
    for turns in (MESSAGES, json.dumps(MESSAGES)):
        made = row({"kind": "chat", "turns": turns})
        assert isinstance(made, Item)
        parts = [{"type": "text", "text": "hi é"}, {"type": "image_url", "image_url": {"url": "https://x/y.png"}}]
        assert msgspec.json.decode(made.request.body_json) == {"messages": [{"role": "user", "content": parts}]}
        assert (made.request.images, made.request.needs) == (1, ("images",))


@pytest.mark.parametrize(
    ("changes", "drop", "reason", "words"),
    [
        ({}, "text", "missing_field", "'text'"),
        ({"text": None}, "", "bad_field", "null"),
        ({}, "label", "missing_field", "'label'"),
        ({}, "shop", "missing_field", "'shop'"),
        ({}, "class", "missing_field", "'class'"),
        ({"id": None}, "", "missing_field", "row.id"),
        ({"id": [1]}, "", "bad_field", "row.id"),
        ({"id": "x" * 600}, "", "bad_field", "512"),
        ({"kind": "clasification"}, "", "unknown_task", "'classification'"),
        ({"kind": None}, "", "unknown_task", "names no task"),
        ({"kind": {"a": 1}}, "", "bad_field", "task"),
        ({"kind": "bare"}, "", "template", "no prompt"),
        ({"tier": 9}, "", "bad_field", "tier"),
        ({"kind": "chat", "turns": "x"}, "", "bad_field", "messages"),
        ({"kind": "chat", "turns": []}, "", "bad_field", "messages"),
        ({"kind": "chat", "turns": None}, "", "bad_field", "messages"),
        ({"kind": "chat", "turns": [{"role": "robot", "content": "x"}]}, "", "bad_field", "robot"),
        ({"kind": "chat", "turns": [{"role": "system", "content": "x"}]}, "", "bad_field", "no user message"),
        ({"kind": "chat", "photo": "/etc/passwd"}, "", "bad_field", "image"),
        ({"kind": "chat", "photo": "file:///etc/passwd"}, "", "bad_field", "image"),
        ({"kind": "chat", "photo": None}, "", "bad_field", "image"),
    ],
)
def test_a_row_that_cannot_be_an_item_is_told_why(
    changes: dict[str, object], drop: str, reason: str, words: str
) -> None:
    """Missing, null and wrong-typed columns, unknown tasks, bad images: reason and the name of what is wrong."""
    made = row(changes, drop=drop)
    assert isinstance(made, DeadLetter)
    assert made.reason == reason, made.message
    assert words in made.message
    assert made.custom_id == (None if "id" in changes else "17")  # people know it by its label


@pytest.mark.parametrize(
    "source", ["{{ turns | map('upper') }}", "{{ range }}", "{{ [range] }}", "{{ namespace(a=1) }}"]
)
def test_what_is_no_json_is_told_wherever_a_template_makes_it(source: str) -> None:
    """In labels, attributes, messages, images and expected answers: a dead letter, not a traceback."""
    task = Task(name="t", prompt=Prompt(user="x"), scorers=(Scorer(type="exact", expected=source),))
    prompts = [Prompt(messages=source), Prompt(user="x", images=(source,))]
    tasks = [task, *(Task(name="t", prompt=prompt) for prompt in prompts)]
    shapes = [(one, Row()) for one in tasks] + [
        (Task(name="t", prompt=Prompt(user="x")), settings)
        for settings in (Row(id=source), Row(attributes={"tenant": source}), Row(attributes={"expected": source}))
    ]
    for one, settings in shapes:
        intake = Intake("run", "rows", settings, Policy(tasks={"t": one}, default_task="t"), [])
        assert isinstance(intake.item(raw(ORDER), 0), DeadLetter)


def test_all_columns_are_kept_that_fit() -> None:
    """Where the job names none: all up to 64 kB, the large ones left out."""
    settings = Row(attributes={"task": "{{ kind }}"})
    whole = row(settings=settings)
    large = row({"text": "x" * 70_000}, settings=settings)
    assert isinstance(whole, Item)
    assert isinstance(large, Item)
    assert msgspec.json.decode(whole.keep_json) == ORDER
    assert msgspec.json.decode(large.keep_json) == {name: one for name, one in ORDER.items() if name != "text"}


def test_table_rows_go_the_same_way_as_json_lines() -> None:
    """CSV and Parquet rows come as `row_json`, and stay the dead letter's original."""
    text = json.dumps(ORDER).encode()
    intake = Intake("run", "rows", ROW, SHOP, [], job_vars={"shop": "S"})
    made = intake.item(Raw(Position("s", 0, 3), "o", row_json=text), 0)
    assert isinstance(made, Item)
    assert (made.original, made.custom_id) == (text, "17")
    gone = intake.item(Raw(Position("s", 0, 4), "o", row_json=b"{}"), 0)
    assert isinstance(gone, DeadLetter)
    assert gone.original == b"{}"
    assert [input_shape(name) for name in ("openai-batch", "jsonl", "csv", "parquet")] == [
        "openai-batch",
        *["rows"] * 3,
    ]


def test_what_is_kept_of_an_item_is_read_again_as_its_record_was() -> None:
    """By the same job it is the same item, headers, key, time and generation included. What is not there whole, or is
    no JSON (a registry's bytes, whose row the source made), stays as it was read."""
    headers = (("penstock-sensitivity", b"eu"),)
    batch = Intake("run", "openai-batch", Row(), ONE, ["opus"])
    rows = Intake("run", "rows", ROW, SHOP, [], 2, {"shop": "S"})
    records = [
        (batch, raw(line({"model": "opus", "metadata": {"tenant": "t"}}), headers=headers, key=b"k", timestamp=7.0)),
        (rows, raw(ORDER, headers=headers)),
        (rows, Raw(Position("s", 0, 3), "o", row_json=json.dumps(ORDER).encode())),
        (rows, Raw(Position("s", 0, 4), "o", b"\0\0\0\0\1avro", json.dumps(ORDER).encode())),
        (rows, raw({**ORDER, "more": "x" * 1_100_000})),
    ]
    for intake, record in records:
        made = intake.item(record, 5.0)
        assert isinstance(made, Item), made
        assert intake.again(made) == made
    edited = Intake("run", "rows", msgspec.structs.replace(ROW, id="{{ gone }}"), SHOP, [], 2, {"shop": "S"})
    made = rows.item(records[1][1], 5.0)
    assert isinstance(made, Item)
    refused = edited.again(made)
    assert isinstance(refused, DeadLetter)
    assert (refused.reason, refused.item_id, refused.generation) == ("missing_field", made.item_id, 2)
