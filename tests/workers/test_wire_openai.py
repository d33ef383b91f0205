"""Chat completions: what is sent, and what each response means."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from penstock.engine.catalog import Account, Model, Price, Version
from penstock.engine.flow.settle import attempt_of, priced_of
from penstock.engine.health import Health
from penstock.engine.items import Call, Candidate, OutputSpec, Usage
from penstock.workers.engines.sending import outcome
from penstock.workers.wire import TABLE, Bucket

NOW = 1_795_000_000.0
HOST = Account("host", "openai", "https://llm.example/v1")
OPENAI = Account("openai", "openai", "https://api.openai.com/v1", provider="openai")
DEEPSEEK = Account("corp", "openai", "https://api.deepseek.com/v1", provider="corp")
AZURE = Account("azure", "openai", "https://us1.openai.azure.com/openai/v1")
FOUNDRY = Account("foundry", "openai", "https://r.services.ai.azure.com/openai/v1")
XAI = Account("xai", "openai", "https://api.x.ai/v1", provider="xai")
GROQ = Account("groq", "openai", "https://api.groq.com/openai/v1")


def call(body: dict[str, Any], max_tokens: int = 64, **more: Any) -> Call:
    data = msgspec.json.encode(body)
    return Call("0" * 32, 0, 1, "primary", "m", "v", "upstream-1", data, "t", max_tokens, 10.0, 1, 1, **more)


def sent(body: dict[str, Any], account: Account = HOST, output: OutputSpec | None = None, **more: Any) -> Any:
    path, data = TABLE["openai"].build(call(body, **more), output, account)
    assert path == "/chat/completions"
    return msgspec.json.decode(data)


def got(status: int, body: Any, headers: dict[str, str] | None = None, account: Account = HOST) -> Any:
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return TABLE["openai"].read(status, headers or {}, data, NOW, account)


def completion(text: str | None = "hi", finish: str = "stop", **message: Any) -> dict[str, Any]:
    return {
        "model": "m-2026",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
        ],
        "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
    }


HI = [{"role": "user", "content": "hi"}]


def test_the_upstreams_model_and_a_ceiling_are_set_and_the_rest_is_copied() -> None:
    """Everything that the user asked for goes along, byte for byte in meaning."""
    body = {"messages": HI, "temperature": 0.5, "seed": 7, "logit_bias": {"1": -100}}
    assert sent(body) == {"model": "upstream-1", **body, "max_tokens": 64}


@pytest.mark.parametrize(
    ("asked", "account", "expected"),
    [
        ({"max_tokens": 9}, HOST, {"max_tokens": 9}),
        ({"max_tokens": 900}, HOST, {"max_tokens": 64}),
        ({"max_completion_tokens": 9}, HOST, {"max_tokens": 9}),
        ({"max_completion_tokens": 900}, DEEPSEEK, {"max_tokens": 64}),
        ({"max_completion_tokens": 9, "max_tokens": 7}, DEEPSEEK, {"max_tokens": 7}),
        ({"max_tokens": 9}, AZURE, {"max_completion_tokens": 9}),
        ({"max_tokens": 9}, FOUNDRY, {"max_completion_tokens": 9}),
        ({"max_tokens": 9}, msgspec.structs.replace(FOUNDRY, provider="azure-partner"), {"max_tokens": 9}),
        ({"max_tokens": 9}, XAI, {"max_completion_tokens": 9}),
        ({"max_completion_tokens": 9}, GROQ, {"max_completion_tokens": 9}),
        ({"max_tokens": None}, HOST, {"max_tokens": 64}),
        ({}, OPENAI, {"max_completion_tokens": 64}),
        ({"max_tokens": 9}, OPENAI, {"max_completion_tokens": 9}),
    ],
)
def test_the_ceiling_is_never_above_what_was_reserved(
    asked: dict[str, Any], account: Account, expected: dict[str, Any]
) -> None:
    """The budget reserved for `call.max_tokens`. OpenAI's reasoning models know only the new name of the key, DeepSeek
    ignores it: whichever the request says, a host gets its own."""
    assert sent({"messages": HI, **asked}, account) == {"model": "upstream-1", "messages": HI, **expected}


@pytest.mark.parametrize("account", [HOST, OPENAI, AZURE])
def test_metadata_stays_here(account: Account) -> None:
    """OpenAI answers 400 to it: it is "only allowed when 'store' is enabled", and no provider is to keep a request."""
    assert "metadata" not in sent({"messages": HI, "metadata": {"order": "1"}}, account)


def test_streams_are_not_asked_for_and_the_model_is_the_routers() -> None:
    """An answer is read whole, and a stray `model` in the body does not pass by the router."""
    body = sent({"messages": HI, "stream": True, "stream_options": {}, "model": "gpt-9"})
    assert body == {"model": "upstream-1", "messages": HI, "max_tokens": 64}


def test_choices_are_asked_for_at_the_end_of_the_last_user_message() -> None:
    """Few hosts take choices otherwise, and chat templates differ in what they take of system messages."""
    spec = OutputSpec(choices=("a", "b"))
    body = sent(
        {"messages": [{"role": "system", "content": "s"}, *HI, {"role": "assistant", "content": "x"}]}, output=spec
    )
    assert body["messages"][1]["content"] == "hi\n\nAnswer with exactly one of: a, b"
    parts = sent({"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}, output=spec)
    assert parts["messages"][0]["content"][1]["text"] == "Answer with exactly one of: a, b"
    alone = sent({"messages": [{"role": "system", "content": "s"}]}, output=spec)
    assert alone["messages"][1]["role"] == "user"


TEXT = {"type": "string"}


def record(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A closed object, all of whose properties are required."""
    closed = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return closed | more


@pytest.mark.parametrize(
    ("schema", "strict"),
    [
        (record({"a": TEXT}), True),
        (record({"properties": TEXT, "type": TEXT, "$ref": TEXT}), True),
        (record({"a": {"type": ["integer", "null"], "minimum": 1}, "b": {"type": "string", "format": "date"}}), True),
        (record({"a": {"$ref": "#/$defs/b"}}, **{"$defs": {"b": record({"c": TEXT})}}), True),
        (record({"a": {"anyOf": [TEXT, {"type": "array", "items": record({"b": TEXT})}]}}), True),
        (record({"a": record({"b": TEXT}, required=[])}), False),
        (record({"a": {"$ref": "#/$defs/b"}}, **{"$defs": {"b": {"type": "object"}}}), False),
        (record({"a": {"$ref": "#/$defs/b", "description": "b"}}, **{"$defs": {"b": TEXT}}), False),
        (record({"a": {"type": "array"}}), False),
        (record({"a": {"type": "array", "items": TEXT, "uniqueItems": True}}), False),
        (record({"a": {"oneOf": [TEXT, {"type": "null"}]}}), False),
        (record({"a": {"type": "string", "maxLength": 9}}), False),
        (record({"a": {"type": "string", "format": "iri"}}), False),
        (record({"a": {"type": "string", "pattern": "^(?!x)"}}), False),
        (record({"a": {}}), False),
        (record({"a": True}), False),
        ({"type": "object", "properties": {"a": TEXT}}, False),
        ({"type": "array", "items": TEXT}, False),
        ({"anyOf": [record({"a": TEXT})]}, False),
        ({}, False),
    ],
)
def test_a_schema_is_strict_only_where_strict_takes_it(schema: dict[str, Any], strict: bool) -> None:
    """OpenAI answers 400 to a strict schema that has more in it than its mode knows."""
    form = sent({"messages": HI}, output=OutputSpec(json_schema=msgspec.json.encode(schema)))["response_format"]
    assert form["json_schema"]["strict"] is strict
    assert form["json_schema"]["schema"] == schema


FIREWORKS = Account("fw", "openai", "https://api.fireworks.ai/inference/v1")


def test_a_long_answer_is_streamed_where_it_is_refused_otherwise() -> None:
    """Fireworks, over 4,096 tokens. No other host is asked for a stream, whatever the request says."""
    assert not {"stream", "stream_options"} & sent({"messages": HI}, FIREWORKS, max_tokens=4096).keys()
    assert not {"stream", "stream_options"} & sent({"messages": HI, "stream": True}, max_tokens=9000).keys()
    asked = {"messages": HI, "max_tokens": 8000, "stream": False}
    body = sent(asked, FIREWORKS, max_tokens=9000)
    assert (body["max_tokens"], body["stream"], body["stream_options"]) == (8000, True, {"include_usage": True})


def stream(*pieces: Any) -> bytes:
    lines = [b"data: " + msgspec.json.encode(piece) for piece in pieces]
    return b"\r\n\r\n".join([b": fine", *lines, b"data: [DONE]", b""])


def delta(finish: str | None = None, index: int = 0, logprobs: Any = None, **said: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": said, "finish_reason": finish, "logprobs": logprobs}
    return {"id": "c1", "object": "chat.completion.chunk", "model": "m-2026", "choices": [choice], "usage": None}


def test_a_streamed_answer_is_read_as_a_whole_one() -> None:
    """Texts, arguments of tools and token probabilities come in pieces, the usage last."""
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    read = got(
        200,
        stream(
            delta(role="assistant", content=None, reasoning_content="Well"),
            delta(reasoning_content="…", logprobs={"content": None}),
            delta(content="h", logprobs={"content": [{"token": "h"}]}),
            delta(content="i", logprobs={"content": [{"token": "i"}]}),
            delta(
                tool_calls=[{"index": 0, "id": "t", "type": "function", "function": {"name": "f", "arguments": "{"}}]
            ),
            delta(tool_calls=[{"index": 0, "function": {"arguments": "}"}}]),
            delta(index=1, content="ho", finish="length"),
            delta(finish="stop"),
            {"choices": [], "usage": usage},
        ),
    )
    assert (read.answer.text, read.answer.finish_reason, read.answer.model) == ("hi", "stop", "m-2026")
    assert read.usage == Usage(input=9, output=3)
    body = msgspec.json.decode(read.answer.body_json)
    first, second = body["choices"]
    called = [{"id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    said = {"role": "assistant", "content": "hi", "reasoning_content": "Well…", "tool_calls": called}
    assert (first["message"], first["logprobs"]["content"]) == (said, [{"token": "h"}, {"token": "i"}])
    assert (second["message"]["content"], second["finish_reason"]) == ("ho", "length")
    assert (body["object"], body["usage"]) == ("chat.completion", usage)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (stream(delta(content="h")), "invalid_response"),
        (stream(delta(content="h"), {"error": {"message": "upstream is gone", "code": 502}}), "server_error"),
        (stream(), "invalid_response"),
        (stream(delta(tool_calls=[{"index": 10**12, "id": "t"}])), "invalid_response"),
        (stream([1]), "invalid_response"),
        (stream({"choices": 5}), "invalid_response"),
        (stream({"choices": [{"delta": {"content": 5}}]}), "invalid_response"),
        (b"data: {", "invalid_response"),
    ],
)
def test_a_stream_that_broke_off_is_no_answer(body: bytes, kind: str) -> None:
    """Half an answer would look like a whole one."""
    read = got(200, body)
    assert (read.answer, read.failure.kind, read.failure.may_be_billed) == (None, kind, True)


def test_a_parameter_that_a_model_refuses_is_left_out() -> None:
    """Reasoning models answer 400 to any temperature but their own."""
    body = {"messages": HI, "temperature": 0, "top_p": 0.9, "tools": [{"type": "function"}]}
    assert not {"temperature"} & sent(body, lacks=("temperature", "tools")).keys()
    assert {"top_p", "tools"} <= sent(body, lacks=("temperature", "tools")).keys()
    assert "temperature" in sent(body)


def test_what_a_request_says_of_its_form_stands() -> None:
    """The task's schema is a default, like its parameters."""
    own = {"type": "json_object"}
    spec = OutputSpec(json_schema=b'{"type":"object"}')
    assert sent({"messages": HI, "response_format": own}, output=spec)["response_format"] == own


def test_a_host_or_model_without_schemas_is_told_in_words() -> None:
    """DeepSeek knows `json_object` only; of a model the catalogue says that it `lacks` them."""
    spec = OutputSpec(json_schema=b'{"type":"object"}')
    body = sent({"messages": HI}, Account("ds", "openai", "https://api.deepseek.com/v1"), spec)
    assert body["response_format"] == {"type": "json_object"}
    assert body["messages"][0]["content"].endswith('{"type":"object"}')
    lacking = sent({"messages": HI}, output=spec, lacks=("json_schema",))
    assert "response_format" not in lacking
    assert lacking["messages"][0]["content"].endswith('{"type":"object"}')


def test_an_answer_is_read_with_its_usage() -> None:
    """Cached tokens are inside `prompt_tokens` and reasoning inside `completion_tokens`, as `Usage` counts them."""
    body = completion()
    body["usage"] |= {
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    read = got(200, body, {"x-request-id": "req_1"})
    assert read.answer.text == "hi"
    assert (read.answer.finish_reason, read.answer.model, read.request_id) == ("stop", "m-2026", "req_1")
    assert read.usage == Usage(input=9, cached=4, output=3, reasoning=2)
    assert msgspec.json.decode(read.answer.body_json) == body


@pytest.mark.parametrize("name", ["cached_tokens", "prompt_cache_hit_tokens"])
def test_cached_tokens_are_found_where_a_host_tells_them(name: str) -> None:
    """Moonshot and DeepSeek name them beside `prompt_tokens`, and charge less for them."""
    body = completion()
    body["usage"] |= {name: 4}
    assert got(200, body).usage == Usage(input=9, cached=4, output=3)
    body["usage"] |= {"prompt_tokens_details": {"cached_tokens": 5}}
    assert got(200, body).usage == Usage(input=9, cached=5, output=3)


@pytest.mark.parametrize(
    ("completion", "total", "reasoning", "output"),
    [
        (300, 308, 290, 300),  # OpenAI: inside
        (9, 317, 300, 309),  # xAI: beside
        (9, 1239, None, 1231),  # Gemini: beside, and not told
        (500, 508, 200, 500),  # a part of it is reasoning
        (300, None, 290, 300),  # no total: inside, as most have it
        (9, None, 300, 309),  # no total: it can't be inside
        (9, 0, None, 9),  # a total that means nothing
        (0, 308, 300, 300),  # all of it was reasoning
    ],
)
def test_reasoning_is_paid_for_whether_it_stands_inside_the_completion_or_beside_it(
    completion: int, total: int | None, reasoning: int | None, output: int
) -> None:
    """xAI's total is prompt, completion and reasoning; OpenAI's completion holds the reasoning already."""
    body = {
        "choices": [{"message": {"content": "hi"}}],
        "usage": {
            "prompt_tokens": 8,
            "completion_tokens": completion,
            "total_tokens": total,
            "completion_tokens_details": {"reasoning_tokens": reasoning},
        },
    }
    assert got(200, body).usage == Usage(input=8, output=output, reasoning=reasoning or 0)


ROUTER = Account("router", "openai", "https://openrouter.ai/api/v1")
US_XAI = Account("grok", "openai", "https://us.api.x.ai/v1", provider="corp")


@pytest.mark.parametrize(
    ("account", "told", "nano"),
    [
        (
            ROUTER,
            {"cost": 0.0360795, "is_byok": False, "cost_details": {"upstream_inference_cost": 0.0360795}},
            36_079_500,
        ),
        (ROUTER, {"cost": 0}, 0),
        (ROUTER, {"cost": 0.001, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.02}}, 21_000_000),
        (ROUTER, {"cost": 0.001, "is_byok": True, "cost_details": {"upstream_inference_cost": None}}, None),
        (ROUTER, {"cost": 0, "is_byok": True, "cost_details": {"upstream_inference_cost": 0}}, None),
        (ROUTER, {"cost": 0, "is_byok": True}, None),
        *((ROUTER, {"cost": odd}, None) for odd in (-1, 1e300, "0.1", {"total_cost": 1}, None)),
        (XAI, {"cost_in_usd_ticks": 37_756_001}, 3_775_601),
        (US_XAI, {"cost_in_usd_ticks": 10**10}, 10**9),
        *((XAI, {"cost_in_usd_ticks": odd}, None) for odd in (-1, 10**300, 1.5, "9", None)),
        (HOST, {"cost": 0.1, "cost_in_usd_ticks": 9}, None),
        (Account("xai", "openai", "http://gateway.example/v1", provider="xai"), {"cost_in_usd_ticks": 9}, None),
    ],
)
def test_what_a_host_says_that_it_charges_is_the_bill(account: Account, told: dict[str, Any], nano: int | None) -> None:
    """OpenRouter and xAI tell it, discounts, surcharges and fees included; at another address nobody is believed."""
    at = priced_of(
        Model("m", (Version("v", "m"),), "v", account="a", price=Price(input=10**9, output=10**9)), "v", account
    )
    body = completion()
    body["usage"] |= told
    for read in (got(200, body, account=account), got(200, body | {"choices": []}, account=account)):
        paid = attempt_of(outcome(call({}), read, NOW, 1.0, "w"), at, Candidate("m", "v", "p"), "primary")
        assert (read.usage, read.cost_nano) == (Usage(input=9, output=3), nano)
        assert paid.cost_nano == (12_000 if nano is None else nano)


@pytest.mark.parametrize("told", [{"prompt_tokens": 8}, {"completion_tokens": 8}, {"total_tokens": 8}, {}])
def test_half_a_bill_is_none(told: dict[str, int]) -> None:
    """It would be charged as if nothing was produced; without usage the call is charged by what it may have cost."""
    body = {"choices": [{"message": {"content": "hi"}}], "usage": told}
    assert got(200, body).usage is None
    assert got(200, {**body, "usage": {"prompt_tokens": 8, "completion_tokens": 0}}).usage == Usage(input=8)


def test_blank_lines_before_the_answer_are_normal() -> None:
    """DeepSeek keeps a waiting connection open with them, or with comments."""
    data = msgspec.json.encode(completion())
    for lead in (b"\n\n  \n", b": keep-alive\n\n: keep-alive\n\n"):
        assert got(200, lead + data).answer.text == "hi"


def test_a_body_is_kept_as_utf8_whatever_its_host_sent() -> None:
    """Members that are not read may hold half a character (a token's own bytes); a record must be text all the same."""
    body = msgspec.json.encode(completion("hi", reasoning="caf?")).replace(b"caf?", b"caf\xc3")
    answer = got(200, body).answer
    assert answer.text == "hi"
    assert msgspec.json.decode(answer.body_json)["choices"][0]["message"]["reasoning"] == "caf\ufffd"


def test_text_in_parts_is_joined_and_tools_leave_it_empty() -> None:
    """Mistral's thinking models answer in parts."""
    parts: Any = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    assert got(200, completion(parts)).answer.text == "hi"
    tools = got(200, completion(None, "tool_calls", tool_calls=[{"id": "1"}]))
    assert (tools.answer.text, tools.answer.finish_reason) == ("", "tool_calls")


def gemini(status: int, name: str, message: str, *details: dict[str, Any]) -> dict[str, Any]:
    return {"error": {"code": status, "message": message, "status": name, "details": list(details)}}


def gemini_limit(said: str, quota: str = "GenerateContentInputTokensPerModelPerMinute") -> dict[str, Any]:
    message = (
        "You exceeded your current quota, please check your plan and billing details. For more information on this "
        f"error, head to: https://ai.google.dev/gemini-api/docs/rate-limits.\n* Quota exceeded for metric: {said}"
    )
    violations = {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": quota}]}
    retry = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "33s"}
    return gemini(429, "RESOURCE_EXHAUSTED", message, violations, retry)


A_MINUTE = gemini_limit("input_token_count, limit: 1000000, model: gemini-x\nPlease retry in 33.8s.")
A_DAY = gemini_limit("requests, limit: 20\nPlease retry in 33.8s.", "GenerateRequestsPerDayPerProjectPerModel")
NONE = gemini_limit("free_tier_requests, limit: 0, model: gemini-x\nPlease retry in 33.8s.")
DEPLETED = gemini(429, "RESOURCE_EXHAUSTED", "Your prepayment credits are depleted. Please go to AI Studio")
TOO_LARGE = {
    "error": {
        "message": "Request too large for gpt-x on tokens per min (TPM): Limit 30000, Requested 61337.",
        "type": "tokens",
        "code": "rate_limit_exceeded",
    }
}
FLAGGED = "Content violates usage guidelines. Team: t, Model: grok-x, Failed check: SAFETY_CHECK_TYPE_BIO"
MODERATED = (
    'openai/gpt-x requires moderation on OpenAI. Your input was flagged for "violence". No credits were charged.'
)
OVER_BUDGET = "Budget has been exceeded! Current cost: 14.2, Max budget: 10.0"
ERRORS: list[tuple[int, Any, dict[str, str], str]] = [
    (
        429,
        {"error": {"message": "Rate limit reached", "code": "rate_limit_exceeded"}},
        {"retry-after": "2"},
        "rate_limited",
    ),
    (429, {"error": {"message": "x", "type": "insufficient_quota", "code": "insufficient_quota"}}, {}, "spend_cap"),
    (429, {"error": {"message": "You exceeded your current quota, please check your plan"}}, {}, "spend_cap"),
    (429, A_MINUTE, {}, "rate_limited"),
    (429, [A_MINUTE], {}, "rate_limited"),
    (429, {"error": {"message": msgspec.json.encode(A_MINUTE).decode(), "code": 429}}, {}, "rate_limited"),
    (429, A_DAY, {}, "daily_limit"),
    (429, [A_DAY], {}, "daily_limit"),
    (429, [NONE], {}, "not_found"),
    (429, [DEPLETED], {}, "spend_cap"),
    (429, [], {}, "rate_limited"),
    (429, {"error": {"message": "Limit 1000 requests per day (RPD)"}}, {}, "daily_limit"),
    (429, {"error": {"message": "Rate limit reached. Please try again in 7m12s."}}, {}, "daily_limit"),
    (429, {"error": {"message": "x"}}, {"retry-after": "7200"}, "daily_limit"),
    (429, {"error": {"message": "Resource Unavailable"}}, {}, "overloaded"),
    (402, {"error": {"message": "Insufficient Balance"}}, {}, "spend_cap"),
    (498, {"error": {"message": "flex", "code": "capacity_exceeded"}}, {}, "overloaded"),
    (503, {"error": {"message": "busy"}}, {}, "overloaded"),
    (529, {"error": {"message": "busy"}}, {}, "overloaded"),
    (500, {"error": {"message": "x"}}, {}, "server_error"),
    (502, b"<html>bad gateway</html>", {}, "server_error"),
    (408, {"error": {"message": "litellm.Timeout: Connection timed out after 600 seconds."}}, {}, "server_error"),
    (504, b"", {}, "server_error"),
    (524, b"<html>a timeout occurred</html>", {}, "server_error"),
    (401, {"error": {"message": "no key", "code": "invalid_api_key"}}, {}, "auth"),
    (403, {"error": {"message": "no"}}, {}, "auth"),
    (403, {"code": "permission-denied", "error": FLAGGED}, {}, "refused"),
    (403, {"code": "permission-denied", "error": "Access to the chat endpoint is denied"}, {}, "auth"),
    (403, {"error": {"code": 403, "message": MODERATED, "metadata": {"flagged_input": "…"}}}, {}, "refused"),
    (404, {"error": {"message": "No endpoints found that support tool use.", "code": 404}}, {}, "bad_request"),
    (404, {"error": {"message": "No endpoints found for a/b.", "code": 404}}, {}, "not_found"),
    (404, {"error": {"message": "no such model", "code": "model_not_found"}}, {}, "not_found"),
    (404, {"detail": "Not Found"}, {}, "not_found"),
    (400, [gemini(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.")], {}, "auth"),
    (400, {"code": "invalid-argument", "error": "Incorrect API key provided: xx***AB."}, {}, "auth"),
    (400, {"error": {"message": "…", "code": "model_decommissioned"}}, {}, "not_found"),
    (400, {"error": {"message": "…", "code": "model_not_available"}}, {}, "not_found"),
    (400, {"message": "Invalid model: m", "type": "invalid_model", "code": "1500"}, {}, "not_found"),
    (400, {"error": {"message": "Model Not Exist", "type": "invalid_request_error"}}, {}, "not_found"),
    (400, {"error": {"message": "a/b is not a valid model ID", "code": 400}}, {}, "not_found"),
    (
        412,
        {"error": {"message": "Account a is suspended, possibly due to reaching the monthly spending limit"}},
        {},
        "spend_cap",
    ),
    (412, {"error": {"message": "x"}}, {}, "bad_request"),
    (400, {"error": {"message": OVER_BUDGET, "type": "budget_exceeded", "code": "400"}}, {}, "spend_cap"),
    (429, {"error": {"message": OVER_BUDGET, "type": "budget_exceeded", "code": "429"}}, {}, "spend_cap"),
    (400, {"error": {"message": "x", "code": "context_length_exceeded"}}, {}, "too_long"),
    (400, {"message": "x", "type": "invalid_request_error", "code": "context_length_exceeded"}, {}, "too_long"),
    (400, {"message": "This model's maximum context length is 1024 tokens."}, {}, "too_long"),
    (
        400,
        [
            gemini(
                400, "INVALID_ARGUMENT", "The input token count (3475108) exceeds the maximum number of tokens allowed"
            )
        ],
        {},
        "too_long",
    ),
    (400, {"error": "This model's maximum prompt length is 131072 but the request has 136973."}, {}, "too_long"),
    (422, {"error": {"message": "`inputs` tokens + `max_new_tokens` must be <= 4097."}}, {}, "too_long"),
    (400, {"message": "The input (9 tokens) is longer than the model's context length (8 tokens)."}, {}, "too_long"),
    (413, {"error": {"message": "too large"}}, {}, "too_long"),
    (413, TOO_LARGE, {}, "bad_request"),
    (429, TOO_LARGE, {"retry-after": "60"}, "bad_request"),
    (400, {"error": {"message": "x", "code": "content_policy_violation"}}, {}, "refused"),
    (400, {"error": {"message": "x", "code": "content_filter"}}, {}, "refused"),
    (400, {"error": {"message": "Failed to generate JSON.", "code": "json_validate_failed"}}, {}, "invalid_output"),
    (400, {"error": {"message": "did not match schema", "code": "tool_use_failed"}}, {}, "invalid_output"),
    (400, {"error": {"message": "temperature must be below 2", "code": None}}, {}, "bad_request"),
    (422, {"detail": [{"msg": "field required"}]}, {}, "bad_request"),
    (301, b"", {}, "not_found"),
    (200, b"{", {}, "invalid_response"),
    (200, b"[]", {}, "invalid_response"),
    (200, {"choices": []}, {}, "invalid_response"),
    (200, b"[" * 100_000, {}, "invalid_response"),
    (200, {"error": {"message": "upstream", "code": 502}}, {}, "server_error"),
    (200, {"error": {"message": "upstream timed out", "code": 504}}, {}, "server_error"),
    (200, {"error": {"message": "slow down", "code": 429}}, {}, "rate_limited"),
]


@pytest.mark.parametrize(("status", "body", "headers", "kind"), ERRORS)
def test_every_failure_says_what_kind_it_is(status: int, body: Any, headers: dict[str, str], kind: str) -> None:
    """A 429 may mean: wait, come back tomorrow, or never. Whom a gateway did not wait for may have worked all the
    same, as after a timeout of our own."""
    read = got(status, body, headers)
    assert read.answer is None
    assert read.failure.kind == kind
    waited = read.failure.status in (408, 504, 524)
    assert read.failure.may_be_billed is (waited or kind in ("invalid_response", "invalid_output"))
    assert read.failure.message


@pytest.mark.parametrize(
    ("status", "body", "open_to_others"),
    [
        (403, {"code": "permission-denied", "error": FLAGGED}, True),
        (403, {"error": {"code": 403, "message": MODERATED}}, True),
        (404, {"error": {"message": "No endpoints found that support image input", "code": 404}}, True),
        (400, {"error": {"message": f"wrong: {'…' * 200} 'input': 'Incorrect API key provided'"}}, True),
        (400, {"error": "Incorrect API key provided"}, False),
        (403, {"error": {"message": "no"}}, False),
        (404, {"error": {"message": "no such model"}}, False),
    ],
)
def test_what_is_wrong_with_one_request_closes_no_account(status: int, body: Any, open_to_others: bool) -> None:
    """xAI and OpenRouter refuse one prompt with the status of a wrong key, or one request with an unknown model's."""
    health = Health({"m": "host"})
    health.record("m", got(status, body).failure, NOW)
    assert health.is_up("m") is open_to_others
    assert health.mends is not open_to_others


@pytest.mark.parametrize(
    ("body", "headers", "wait_s"),
    [
        ([A_MINUTE], {}, 33.8),
        (gemini(429, "RESOURCE_EXHAUSTED", "Resource has been exhausted", {"retryDelay": "33s"}), {}, 33.0),
        ({"error": {"message": "Rate limit reached for m. Please try again in 812.5ms. Visit us."}}, {}, 0.8125),
        ({"error": {"message": "Please try again in 1m6s."}}, {}, 66.0),
        ([A_MINUTE], {"retry-after": "2"}, 2.0),
        ([A_DAY], {}, None),  # 33 s would not bring the day back
        ({"error": {"message": "Please try again in a while."}}, {}, None),
    ],
)
def test_how_long_to_wait_is_also_read_from_words(body: Any, headers: dict[str, str], wait_s: float | None) -> None:
    """Gemini sends no header; others' gateways lose it."""
    assert got(429, body, headers).failure.retry_after_s == (None if wait_s is None else pytest.approx(wait_s))


def test_a_spent_day_is_seen_in_groqs_headers() -> None:
    """Groq's `limit-requests` is a day's; its tokens are a minute's."""
    headers = {
        "x-ratelimit-limit-requests": "14400",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "2h0m0s",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "5",
        "x-ratelimit-reset-tokens": "7.66s",
    }
    read = got(429, {"error": {"message": "limit"}}, headers, GROQ)
    assert read.failure.kind == "daily_limit"
    assert read.limits.requests == Bucket(14400, 0, 7200.0, 86_400.0)
    assert read.limits.tokens == Bucket(6000, 5, 7.66)


def test_limits_that_are_not_positive_are_unknown() -> None:
    """Azure sends -1 and 0; taken at their word they would stop everything."""
    headers = {
        "x-ratelimit-limit-requests": "-1",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-limit-tokens": "0",
    }
    assert got(200, completion(), headers).limits.requests is None


def test_a_limit_that_means_none_fits_between_processes() -> None:
    """Leases of rights travel as msgpack, which has 64 bits."""
    everything = str(2**64 - 1)
    names = ("limit-requests", "remaining-requests", "limit-tokens", "remaining-tokens")
    limits = got(200, completion(), {f"x-ratelimit-{name}": everything for name in names}).limits
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(limits), type=type(limits)) == limits
    assert limits.tokens.remaining > 10**12


def test_a_refusal_that_was_answered_is_billed() -> None:
    """200 with a refusal: no result, but tokens."""
    read = got(200, completion(None, refusal="I can't"))
    assert (read.failure.kind, read.failure.may_be_billed) == ("refused", True)
    assert read.usage == Usage(input=9, output=3)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("content_filter", "refused"),
        ("content_filter: PROHIBITED_CONTENT", "refused"),
        ("SAFETY", "refused"),
        ("RECITATION", "refused"),
        ("function_call_filter: MALFORMED_FUNCTION_CALL", "invalid_output"),
        ("stop", None),
        ("length", None),
        ("MAX_TOKENS", None),
    ],
)
def test_an_answer_that_was_withheld_is_no_empty_result(reason: str, kind: str | None) -> None:
    """Gemini says why in words of its own, and may leave out the message."""
    bare = completion(None, reason)
    del bare["choices"][0]["message"]
    for body in (completion(None, reason), completion("", reason), bare):
        read = got(200, body)
        assert read.usage == Usage(input=9, output=3)
        if kind is None and body is not bare:
            assert read.answer.text == ""
        else:
            assert (read.failure.kind, read.failure.may_be_billed) == (kind or "invalid_response", True)
    called = got(200, completion(None, "SAFETY", tool_calls=[{"id": "1"}]))
    assert called.answer.finish_reason == "SAFETY"


@pytest.mark.parametrize(
    ("reason", "error", "kind"),
    [
        ("error", {"code": 429, "message": "upstream is busy"}, "rate_limited"),
        ("error", {"code": 502, "message": "upstream is gone"}, "server_error"),
        ("error", None, "server_error"),
        ("insufficient_system_resource", None, "server_error"),
        ("abort", None, "server_error"),
    ],
)
def test_an_answer_that_its_host_broke_off_is_none(reason: str, error: Any, kind: str) -> None:
    """200 with a part of an answer: it is paid for as the host says, and asked for again."""
    body = completion("In sho", reason)
    body["choices"][0]["error"] = error
    read = got(200, body)
    assert (read.answer, read.failure.kind, read.failure.may_be_billed) == (None, kind, True)
    assert read.usage == Usage(input=9, output=3)


def test_a_cut_answer_stays_an_answer() -> None:
    """What came before a filter or ceiling struck is the user's to judge."""
    assert got(200, completion("half", "content_filter")).answer.finish_reason == "content_filter"
    assert got(200, completion("half", "length")).answer.finish_reason == "length"
