"""Messages: a chat body goes out in their form and comes back in ours."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from penstock.engine.catalog import Account, Model, Price, Version
from penstock.engine.flow.settle import attempt_of, priced_of
from penstock.engine.items import Call, Candidate, OutputSpec, Usage
from penstock.workers.engines.sending import outcome
from penstock.workers.wire import TABLE, Bucket

NOW = 1_795_000_000.0  # 2026-11-18T11:06:40Z
ACCOUNT = Account("anthropic", "anthropic", "https://api.anthropic.com")


def sent(
    body: dict[str, Any], output: OutputSpec | None = None, max_tokens: int = 64, lacks: tuple[str, ...] = ()
) -> Any:
    data = msgspec.json.encode(body)
    call = Call("0" * 32, 0, 1, "primary", "m", "v", "claude-x", data, "t", max_tokens, 10.0, 1, 1, lacks=lacks)
    path, data = TABLE["anthropic"].build(call, output, ACCOUNT)
    assert path == "/v1/messages"
    return msgspec.json.decode(data)


def got(status: int, body: Any, headers: dict[str, str] | None = None) -> Any:
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return TABLE["anthropic"].read(status, headers or {}, data, NOW, ACCOUNT)


def message(*content: dict[str, Any], stop: str = "end_turn", **usage: Any) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-x-2026",
        "content": list(content),
        "stop_reason": stop,
        "usage": {"input_tokens": 9, "output_tokens": 3, **usage},
    }


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


HI = [{"role": "user", "content": "hi"}]


def test_system_and_developer_messages_stand_apart() -> None:
    """Messages has no such roles in its list."""
    rows = [{"role": "system", "content": "a"}, *HI, {"role": "developer", "content": "b"}]
    body = sent({"messages": rows})
    assert body["system"] == [text("a"), text("b")]
    assert body["messages"] == [{"role": "user", "content": [text("hi")]}]


def test_a_ceiling_is_always_there_and_never_above_what_was_reserved() -> None:
    """`max_tokens` is required there."""
    assert sent({"messages": HI})["max_tokens"] == 64
    assert sent({"messages": HI, "max_completion_tokens": 9})["max_tokens"] == 9
    assert sent({"messages": HI, "max_tokens": 900})["max_tokens"] == 64


def test_sampling_is_translated() -> None:
    """Their temperature ends at 1, `stop` has another name, and what they don't know stays away."""
    body = sent({"messages": HI, "temperature": 0.7, "stop": "END", "seed": 1, "metadata": {"a": "b"}, "top_k": 9})
    assert (body["temperature"], body["stop_sequences"], body["top_k"]) == (0.7, ["END"], 9)
    assert not {"seed", "metadata", "stop"} & body.keys()


@pytest.mark.parametrize(
    ("asked", "lacks", "said"),
    [
        ({"temperature": 0, "top_p": 0.9}, (), {"temperature": 0, "top_p": 0.9}),
        ({"temperature": 1, "top_p": 1.0}, (), {}),
        ({"temperature": 1.7}, (), {}),
        ({"temperature": 0, "top_p": 0.9}, ("top_p",), {"temperature": 0}),
        ({"temperature": 0, "top_p": 0.9}, ("images", "temperature", "top_p"), {}),
    ],
)
def test_what_a_model_refuses_or_does_unsaid_is_left_out(
    asked: dict[str, Any], lacks: tuple[str, ...], said: dict[str, Any]
) -> None:
    """Both at once are a 400 on some models, and any on others; one that is a fallback could answer nothing."""
    body = sent({"messages": HI, **asked}, lacks=lacks)
    assert {name: body[name] for name in ("temperature", "top_p") if name in body} == said


def test_images_travel_as_data_or_as_addresses() -> None:
    """Both forms of a chat body's image part."""
    parts = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "image_url", "image_url": {"url": "https://x.example/a.jpg"}},
    ]
    blocks = sent({"messages": [{"role": "user", "content": parts}]})["messages"][0]["content"]
    assert blocks[0]["source"] == {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    assert blocks[1]["source"] == {"type": "url", "url": "https://x.example/a.jpg"}


def test_tools_their_calls_and_their_results_are_translated() -> None:
    """A whole round of a tool, with the results of one turn joined."""
    schema = {"type": "object", "properties": {"q": {"type": "string"}}}
    calls = [
        {"id": f"c{n}", "type": "function", "function": {"name": "find", "arguments": '{"q":"x"}'}} for n in (1, 2)
    ]
    rows = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
        {"role": "tool", "tool_call_id": "c2", "content": "two"},
    ]
    tool = {"type": "function", "function": {"name": "find", "description": "d", "parameters": schema}}
    body = sent({"messages": rows, "tools": [tool], "tool_choice": "required", "parallel_tool_calls": False})
    assert body["tools"] == [{"name": "find", "description": "d", "input_schema": schema}]
    assert body["tool_choice"] == {"type": "any", "disable_parallel_tool_use": True}
    assert body["messages"][1]["content"][0] == {"type": "tool_use", "id": "c1", "name": "find", "input": {"q": "x"}}
    assert [b["tool_use_id"] for b in body["messages"][2]["content"]] == ["c1", "c2"]
    named = sent({"messages": HI, "tools": [tool], "tool_choice": {"type": "function", "function": {"name": "find"}}})
    assert named["tool_choice"] == {"type": "tool", "name": "find"}


TEXT = {"type": "string"}


def record(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, **more}


def spec(schema: dict[str, Any]) -> OutputSpec:
    return OutputSpec(json_schema=msgspec.json.encode(schema))


SHUT = {"additionalProperties": False}
NODE = {"$ref": "#/$defs/node"}


@pytest.mark.parametrize(
    ("schema", "taken"),
    [
        (record({"a": TEXT}), record({"a": TEXT}, **SHUT)),
        (record({"a": record({"b": TEXT})}, **SHUT), record({"a": record({"b": TEXT}, **SHUT)}, **SHUT)),
        (record({"type": TEXT, "items": TEXT}), record({"type": TEXT, "items": TEXT}, **SHUT)),
        (
            {"$schema": "x", **record({"a": NODE, "b": {"enum": ["x", None]}}), "$defs": {"node": record({"c": TEXT})}},
            record({"a": NODE, "b": {"enum": ["x", None]}}, **{"$defs": {"node": record({"c": TEXT}, **SHUT)}}, **SHUT),
        ),
        (
            record({"a": {"oneOf": [TEXT, {"type": "null"}]}}),
            record({"a": {"anyOf": [TEXT, {"type": "null"}]}}, **SHUT),
        ),
        (
            record({"a": {"type": "integer", "description": "age", "minimum": 0}}),
            record({"a": {"type": "integer", "description": 'age\n\n{"minimum":0}'}}, **SHUT),
        ),
        (
            record({"a": {"type": "array", "items": TEXT, "minItems": 1, "maxItems": 3}}),
            record({"a": {"type": "array", "items": TEXT, "minItems": 1, "description": '{"maxItems":3}'}}, **SHUT),
        ),
        (
            record({"a": {**TEXT, "pattern": "^[a-z]+$"}, "b": {**TEXT, "format": "date", "pattern": "^(?!x)"}}),
            record(
                {
                    "a": {**TEXT, "pattern": "^[a-z]+$"},
                    "b": {**TEXT, "format": "date", "description": '{"pattern":"^(?!x)"}'},
                },
                **SHUT,
            ),
        ),
    ],
)
def test_a_schema_is_sent_as_messages_takes_it(schema: dict[str, Any], taken: dict[str, Any]) -> None:
    """400 to an object that is not closed, and to bounds. The answer is checked against the schema as it was."""
    assert sent({"messages": HI}, spec(schema))["output_config"] == {"format": {"type": "json_schema", "schema": taken}}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"type": "array", "items": TEXT},
        {"anyOf": [record({"a": TEXT})]},
        record({"a": TEXT}, additionalProperties=True),
        record({"a": TEXT}, additionalProperties=TEXT),
        record({"a": TEXT}, required=["b"]),
        record({"a": {"type": "object"}}),
        record({"a": {"type": "array"}}),
        record({"a": {}}),
        record({"a": True}),
        record({"a": {"enum": [[1]]}}),
        record({"a": {"allOf": [TEXT]}}),
        record({"a": TEXT}, oneOf=[record({"b": TEXT}), record({"c": TEXT})]),
        record({"a": NODE}, **{"$defs": {"node": record({"next": NODE})}}),
        record({"a": {"$ref": "#"}}),
        record({"a": {"$ref": "https://x.example/schema"}}),
        record({f"a{n}": TEXT for n in range(25)}),
        record({f"a{n}": {"type": ["string", "null"]} for n in range(17)}, required=[f"a{n}" for n in range(17)]),
    ],
)
def test_a_schema_that_messages_does_not_take_is_told_in_words(schema: dict[str, Any]) -> None:
    """Objects that are meant open, and what its grammars don't know."""
    body = sent({"messages": HI}, spec(schema))
    assert "output_config" not in body
    assert body["messages"][0]["content"][0]["text"].endswith(f"schema: {msgspec.json.encode(schema).decode()}")


def test_output_constraints_are_translated() -> None:
    """A schema by `output_config`, unless the model lacks that; choices in words; what a request says itself stands."""
    schema = record({"a": TEXT}, **SHUT)
    form = {"format": {"type": "json_schema", "schema": schema}}
    asked = {"type": "json_schema", "json_schema": {"name": "a", "schema": record({"a": TEXT})}}
    assert sent({"messages": HI, "response_format": asked})["output_config"] == form
    effort = {"messages": HI, "output_config": {"effort": "low"}}
    for asked_for in (
        sent(effort, spec(schema)),
        sent({**effort, "response_format": {"type": "json_object"}}, spec(schema)),
        sent({**effort, "response_format": asked}),
        sent({**effort, "response_format": asked}, spec(record({"b": TEXT}))),
        sent({"messages": HI, "output_config": {"effort": "low", **form}}, spec(record({"b": TEXT}))),
    ):
        assert asked_for["output_config"] == {"effort": "low", **form}
    assert sent({"messages": HI, "response_format": {"type": "text"}}, spec(schema))["output_config"] == form
    lacking = sent(effort, spec(schema), lacks=("json_schema",))
    assert lacking["output_config"] == {"effort": "low"}
    assert lacking["messages"][0]["content"][0]["text"].endswith(msgspec.json.encode(schema).decode())
    chosen = sent({"messages": HI}, OutputSpec(choices=("a", "b")))
    assert chosen["messages"][0]["content"][0]["text"].endswith("Answer with exactly one of: a, b")


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"role": "wizard", "content": "x"}],
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png,AAAA"}}]}],
        [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "[1]"}}]}],
    ],
)
def test_what_messages_cannot_say_is_refused_here(rows: list[dict[str, Any]]) -> None:
    """An item's error, found without a paid call."""
    with pytest.raises(ValueError):  # noqa: PT011 - the type is the promise
        sent({"messages": rows})


@pytest.mark.parametrize("more", [{"n": 2}, {"functions": [{"name": "f"}]}])
def test_a_request_is_not_sent_without_what_it_asks_for(more: dict[str, Any]) -> None:
    """One answer in place of two, or one that never calls: another target may do what it says."""
    with pytest.raises(ValueError, match="a Messages API"):
        sent({"messages": HI, **more})
    sent({"messages": HI, "n": 1, "functions": []})


def test_an_answer_comes_back_as_a_chat_completion() -> None:
    """Tools that read chat completions read this."""
    use = {"type": "tool_use", "id": "t1", "name": "find", "input": {"q": 1}}
    read = got(200, message({"type": "thinking", "thinking": "…"}, text("o"), text("k"), use, stop="tool_use"))
    body = msgspec.json.decode(read.answer.body_json)
    assert (read.answer.text, read.answer.finish_reason, read.answer.model) == ("ok", "tool_calls", "claude-x-2026")
    assert body["choices"][0]["message"]["tool_calls"][0]["function"] == {"name": "find", "arguments": '{"q":1}'}
    assert body["usage"]["prompt_tokens"] == 9


def test_a_tools_arguments_are_text_whatever_their_bytes() -> None:
    """They are passed on unread, and reading an answer never raises."""
    call = {"type": "tool_use", "id": "t", "name": "look", "input": {"at": "caf?"}}
    answer = got(200, msgspec.json.encode(message(call)).replace(b"caf?", b"caf\xc3")).answer
    (called,) = msgspec.json.decode(answer.body_json)["choices"][0]["message"]["tool_calls"]
    assert msgspec.json.decode(called["function"]["arguments"]) == {"at": "caf\ufffd"}


@pytest.mark.parametrize(
    ("stop", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("pause_turn", "stop"),
        ("refusal", "content_filter"),
    ],
)
def test_stop_reasons_are_translated(stop: str, finish: str) -> None:
    """The closed list of providers.md."""
    assert got(200, message(text("x"), stop=stop)).answer.finish_reason == finish


def test_total_input_is_the_sum_of_three() -> None:
    """Unlike OpenAI's, their `input_tokens` leaves out what was read from or written to the cache."""
    usage = {
        "cache_creation_input_tokens": 100,
        "cache_read_input_tokens": 1000,
        "cache_creation": {"ephemeral_5m_input_tokens": 40, "ephemeral_1h_input_tokens": 60},
        "output_tokens_details": {"thinking_tokens": 2},
    }
    read = got(200, message(text("x"), **usage))
    assert read.usage == Usage(input=1109, cached=1000, cache_write=40, cache_write_1h=60, output=3, reasoning=2)


def test_what_was_written_to_the_cache_counts_also_where_only_its_parts_are_told() -> None:
    """The sum beside them is missing: nothing is given away."""
    usage = {
        "input_tokens": 10,
        "output_tokens": 5,
        "cache_creation": {"ephemeral_5m_input_tokens": 1000, "ephemeral_1h_input_tokens": 500},
    }
    read = got(200, {"content": [{"type": "text", "text": "x"}], "usage": usage})
    assert read.usage == Usage(input=1510, cache_write=1000, cache_write_1h=500, output=5)


@pytest.mark.parametrize(
    ("geo", "nano"), [("us", 13_202), ("global", 12_001), ("not_available", 12_001), (None, 12_001)]
)
def test_inference_in_the_us_alone_costs_a_tenth_more(geo: str | None, nano: int) -> None:
    """A workspace may have it by default: the request says nothing of it, the answer does."""
    price = Price(input=10**9, output=10**9, per_request=1)
    at = priced_of(Model("m", (Version("v", "m"),), "v", account="a", price=price), "v", ACCOUNT)
    call = Call("0" * 32, 0, 1, "primary", "m", "v", "claude-x", b"{}", "t", 64, 10.0, 1, 1)
    for stop in ("end_turn", "refusal"):
        said = () if stop == "refusal" else (text("x"),)
        read = got(200, message(*said, stop=stop, **{"inference_geo": geo}))
        paid = attempt_of(outcome(call, read, NOW, 1.0, "w"), at, Candidate("m", "v", "p"), "primary")
        assert (read.usage, paid.cost_nano) == (Usage(input=9, output=3), nano)


@pytest.mark.parametrize("lacking", ["input_tokens", "output_tokens"])
def test_half_a_bill_is_none(lacking: str) -> None:
    """As at a gateway that tells the input only: what was produced is not free."""
    assert got(200, message(text("x"), **{lacking: None})).usage is None


def test_an_empty_refusal_is_a_billed_failure() -> None:
    """Tokens were spent; there is no answer."""
    read = got(200, message(stop="refusal"))
    assert (read.failure.kind, read.failure.may_be_billed) == ("refused", True)
    assert read.usage == Usage(input=9, output=3)


def error(kind: str, said: str = "x", **more: Any) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": said, **more}, "request_id": "req_b"}


CAP = {"details": {"error_code": "enforced_spend_limit_reached"}}
ERRORS: list[tuple[int, Any, dict[str, str], str]] = [
    (429, error("rate_limit_error"), {"retry-after": "3"}, "rate_limited"),
    (429, error("rate_limit_error", **CAP), {}, "spend_cap"),
    (429, error("rate_limit_error"), {"retry-after": "4000"}, "daily_limit"),
    (529, error("overloaded_error"), {}, "overloaded"),
    (503, b"<html>", {}, "overloaded"),
    (500, error("api_error"), {}, "server_error"),
    (504, error("timeout_error"), {}, "server_error"),
    (401, error("authentication_error"), {}, "auth"),
    (403, error("permission_error"), {}, "auth"),
    (400, error("invalid_request_error", "This organization has been disabled."), {}, "auth"),
    (402, error("billing_error"), {}, "spend_cap"),
    (400, error("invalid_request_error", "Your credit balance is too low"), {}, "spend_cap"),
    (400, error("invalid_request_error", "You have reached your specified API usage limits."), {}, "spend_cap"),
    (400, error("invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum"), {}, "too_long"),
    (400, error("invalid_request_error", "Output blocked by content filtering policy"), {}, "refused"),
    (400, error("invalid_request_error", "messages: at least one is required"), {}, "bad_request"),
    (404, error("not_found_error"), {}, "not_found"),
    (413, error("request_too_large"), {}, "too_long"),
    (418, b"teapot", {}, "bad_request"),
    (200, b'{"content": 5}', {}, "invalid_response"),
    (200, b"", {}, "invalid_response"),
]


@pytest.mark.parametrize(("status", "body", "headers", "kind"), ERRORS)
def test_every_failure_says_what_kind_it_is(status: int, body: Any, headers: dict[str, str], kind: str) -> None:
    """The spend cap is a 429 that no waiting mends."""
    read = got(status, body, headers)
    assert read.answer is None
    assert read.failure.kind == kind
    assert read.failure.may_be_billed is (status == 504 or kind == "invalid_response")


def test_what_a_user_wrote_closes_no_account() -> None:
    """Some gateways that speak this protocol repeat the request behind their reason."""
    echoed = (
        "messages: Input should be a valid list " + " " * 200 + "My credit balance is wrong, and my spend limit too."
    )
    assert got(400, error("invalid_request_error", echoed)).failure.kind == "bad_request"


def test_limit_headers_are_read_with_their_absolute_times() -> None:
    """RFC 3339 times become seconds from now; the four limits are told apart."""
    headers = {"request-id": "req_h", "retry-after": "1"}
    for name, left in (("requests", 10), ("tokens", 20), ("input-tokens", 30), ("output-tokens", 40)):
        headers[f"anthropic-ratelimit-{name}-limit"] = "100"
        headers[f"anthropic-ratelimit-{name}-remaining"] = str(left)
        headers[f"anthropic-ratelimit-{name}-reset"] = "2026-11-18T11:07:00Z"
    read = got(429, error("rate_limit_error"), headers)
    reset_s = read.limits.requests.reset_s
    assert read.limits.requests == Bucket(100, 10, reset_s)
    assert read.limits.input_tokens.remaining == 30
    assert read.limits.output_tokens.remaining == 40
    assert reset_s == pytest.approx(20.0)
    assert (read.request_id, read.failure.retry_after_s) == ("req_h", 1.0)
