"""Anthropic Messages: a chat-completions body in, a chat-completions body out."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec

from penstock.engine.catalog import REFUSABLE, Account
from penstock.engine.items import Answer, Call, Failure, FailureKind, OutputSpec, Usage
from penstock.workers.checking import answers
from penstock.workers.wire import schemas
from penstock.workers.wire.base import (
    FIRST,
    NULL,
    Bucket,
    Headers,
    LimitHeaders,
    Read,
    Wire,
    answered,
    as_utf8,
    believed,
    bill,
    by_status,
    contains,
    count,
    fail,
    part,
    positive,
    retry_after_s,
    rfc3339_s,
    throttle,
    trim,
)
from penstock.workers.wire.convert import messages_request

VERSION = "2023-06-01"
"""Header `anthropic-version`; the only one that their clients send."""

_encode = msgspec.json.Encoder().encode
_body = msgspec.json.Decoder(dict[str, msgspec.Raw])


def build(call: Call, output: OutputSpec | None, account: Account) -> tuple[str, bytes]:
    """The Messages request for a chat body. Raises `ValueError` where the body can't be said in it."""
    body = _body.decode(call.body_json)
    for name in REFUSABLE.intersection(call.lacks):
        body.pop(name, None)
    schema = _schema(body, output)
    form = None if schema is None or "json_schema" in call.lacks else schemas.closed(schema)
    if output is not None and output.choices is not None:
        body["messages"] = answers.with_instruction(body["messages"], answers.choices_instruction(output.choices))
    if schema is not None and form is None:
        body["messages"] = answers.with_instruction(body["messages"], answers.schema_instruction(schema))
    request = messages_request(body, call.upstream, call.max_tokens)
    if form is not None:
        said = {"format": {"type": "json_schema", "schema": msgspec.Raw(form)}}
        request["output_config"] = {**_config(body), **said}  # `effort` may stand there
    return "/v1/messages", _encode(request)


def _schema(body: dict[str, msgspec.Raw], output: OutputSpec | None) -> bytes | None:
    """What the answer has to be valid against: as the request says by `response_format`, else as its task does.
    (`json_object` has no twin here, and is left to the words of the prompt.)"""
    if "response_format" in body:
        form = msgspec.json.decode(body["response_format"], type=_Form | None)
        if form is not None and form.json_schema is not None:
            return bytes(form.json_schema.schema)
    return None if output is None or "format" in _config(body) else output.json_schema


def _config(body: dict[str, msgspec.Raw]) -> dict[str, msgspec.Raw]:
    """What the request says itself in `output_config`."""
    return _body.decode(body["output_config"]) if bytes(body.get("output_config", b"null")) != b"null" else {}


class _Schema(msgspec.Struct):
    schema: msgspec.Raw


class _Form(msgspec.Struct):
    json_schema: _Schema | None = None


class _Block(msgspec.Struct):
    type: str
    text: str = ""
    id: str = ""
    name: str = ""
    input: msgspec.Raw = msgspec.Raw(b"{}")


class _CacheCreation(msgspec.Struct):
    ephemeral_5m_input_tokens: int | None = None
    ephemeral_1h_input_tokens: int | None = None


class _OutputDetails(msgspec.Struct):
    thinking_tokens: int | None = None


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation: msgspec.Raw = NULL
    output_tokens_details: msgspec.Raw = NULL
    inference_geo: Any = None


US_PERCENT = 10
"""platform.claude.com, data residency: inference in the US alone costs 1.1 times as much, all kinds of tokens. Models
from Opus 4.6 on have it; who asks for it is the workspace, by its default."""


class _Response(msgspec.Struct):
    content: list[_Block]
    id: str = ""
    model: str = ""
    stop_reason: str | None = None
    usage: msgspec.Raw = NULL


class _Details(msgspec.Struct):
    error_code: str | None = None


class _Error(msgspec.Struct):
    type: str = ""
    message: str = ""
    details: _Details | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error
    request_id: str | None = None


_response = msgspec.json.Decoder(_Response)
_error_body = msgspec.json.Decoder(_ErrorBody)


def read(status: int, headers: Headers, body: bytes, now: float, account: Account) -> Read:
    """Answer or typed failure of one response. Never raises."""
    request_id = headers.get("request-id")
    limits = _limits(headers, now)
    if status != 200:
        error = _parse_error(body)
        failure = _failure(status, headers, error, now)
        return Read(failure=failure, request_id=request_id or error.request_id, limits=limits)
    try:
        response = _response.decode(trim(body))
    except (ValueError, RecursionError) as problem:
        failure = fail("invalid_response", f"the answer is not a message: {problem}", status)
        return _billed(bill(body, _Usage))(failure=failure, request_id=request_id, limits=limits)
    told = part(response.usage, _Usage)
    billed = partial(_billed(told), request_id=request_id, limits=limits)
    text = "".join(block.text for block in response.content if block.type == "text")
    if response.stop_reason == "refusal" and not text:
        failure = fail("refused", "the model refused", status)
        return billed(failure=failure)
    reason = _FINISH.get(response.stop_reason or "end_turn", "stop")
    answer = Answer(text, reason, _chat_body(response, text, reason, _translate(told), now), response.model)
    return answered(billed, answer)


def _billed(usage: _Usage | None) -> partial[Read]:
    in_us = usage is not None and usage.inference_geo == "us"
    return partial(Read, usage=_translate(usage), surcharge_percent=US_PERCENT if in_us else 0)


_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


def _translate(usage: _Usage | None) -> Usage | None:
    """`input_tokens` leaves out what was read from and written to the cache; `Usage.input` is all of it.

    `cache_write` (5 minutes) and `cache_write_1h` are disjoint, as `pricing` wants them.
    """
    if usage is None or usage.input_tokens is None or usage.output_tokens is None:
        return None
    parts = part(usage.cache_creation, _CacheCreation) or _CacheCreation()
    details = part(usage.output_tokens_details, _OutputDetails)
    hour = parts.ephemeral_1h_input_tokens or 0
    written = max(usage.cache_creation_input_tokens or 0, (parts.ephemeral_5m_input_tokens or 0) + hour)
    cached = usage.cache_read_input_tokens or 0
    return believed(
        Usage(
            input=usage.input_tokens + written + cached,
            cached=cached,
            cache_write=written - hour,
            cache_write_1h=hour,
            output=usage.output_tokens,
            reasoning=(details.thinking_tokens if details else None) or 0,
        )
    )


def _chat_body(response: _Response, text: str, reason: str, usage: Usage | None, now: float) -> bytes:
    calls = [_tool_call(block) for block in response.content if block.type == "tool_use"]
    message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None}
    if calls:
        message["tool_calls"] = calls
    body: dict[str, Any] = {
        "id": response.id,
        "object": "chat.completion",
        "created": int(now),
        "model": response.model,
        "choices": [{"index": 0, "message": message, "finish_reason": reason, "logprobs": None}],
    }
    if usage is not None:
        body["usage"] = _chat_usage(usage)
    return _encode(body)


def _tool_call(block: _Block) -> dict[str, Any]:
    arguments = as_utf8(bytes(block.input)).decode()
    return {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": arguments}}


def _chat_usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached,
            "cache_write_tokens": usage.cache_write + usage.cache_write_1h,
        },
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


class _Said(msgspec.Struct, frozen=True):
    type: str
    message: str
    code: str | None
    request_id: str | None


def _parse_error(body: bytes) -> _Said:
    try:
        parsed = _error_body.decode(trim(body))
    except (ValueError, RecursionError):
        return _Said("", body[:200].decode("utf-8", "replace"), None, None)
    error = parsed.error
    return _Said(error.type, error.message, error.details.error_code if error.details else None, parsed.request_id)


_BY_TYPE: dict[str, FailureKind] = {
    "authentication_error": "auth",
    "permission_error": "auth",
    "billing_error": "spend_cap",
    "not_found_error": "not_found",
    "request_too_large": "too_long",
    "rate_limit_error": "rate_limited",
    "overloaded_error": "overloaded",
    "api_error": "server_error",
    "timeout_error": "server_error",
    "conflict_error": "server_error",
}

_NO_MONEY = ("credit balance", "usage limits", "spend limit", "spending limit")
"""400 invalid_request_error carries these where one's own spend limit is reached or the balance is gone."""
_DISABLED = ("organization has been disabled",)
_TOO_LONG = ("prompt is too long", "exceed context limit", "context window")
_POLICY = ("content filtering policy", "usage policy", "output blocked")
_A_DAY = ("per day", "daily")


def _failure(status: int, headers: Headers, error: _Said, now: float) -> Failure:
    said = f"{status}{f' {error.type}' if error.type else ''}: {error.message or 'no message'}"
    wait_s = retry_after_s(headers, now)
    return fail(throttle(_kind(status, error), wait_s), said, status, wait_s=wait_s)


def _kind(status: int, error: _Said) -> FailureKind:
    said = error.message[:FIRST].lower()
    if error.code == "enforced_spend_limit_reached" or (status in (400, 403, 429) and contains(said, _NO_MONEY)):
        return "spend_cap"
    if status in (400, 403) and contains(said, _DISABLED):
        return "auth"
    if status in (400, 413) and contains(said, _TOO_LONG):
        return "too_long"
    if status in (400, 403) and contains(said, _POLICY):
        return "refused"
    if status == 429 and contains(said, _A_DAY):
        return "daily_limit"
    return _BY_TYPE.get(error.type) or by_status(status)


def _limits(headers: Headers, now: float) -> LimitHeaders | None:
    found = {what: _bucket(headers, what, now) for what in ("requests", "tokens", "input-tokens", "output-tokens")}
    if not any(found.values()):
        return None
    return LimitHeaders(found["requests"], found["tokens"], found["input-tokens"], found["output-tokens"])


def _bucket(headers: Headers, what: str, now: float) -> Bucket | None:
    limit = positive(headers.get(f"anthropic-ratelimit-{what}-limit"))
    if limit is None:
        return None
    reset = headers.get(f"anthropic-ratelimit-{what}-reset")
    remaining = count(headers.get(f"anthropic-ratelimit-{what}-remaining"))
    return Bucket(limit, remaining, rfc3339_s(reset, now) if reset else None)


def auth(key: str | None) -> dict[str, str]:
    base = {"anthropic-version": VERSION}
    return {**base, "x-api-key": key} if key else base


WIRE = Wire(build, read, auth)
