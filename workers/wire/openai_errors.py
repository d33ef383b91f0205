"""What the failures of the hosts that speak chat completions mean: each has words of its own."""

from __future__ import annotations

import re

import msgspec

from penstock.engine.items import Failure, FailureKind
from penstock.workers.wire.base import (
    FIRST,
    Headers,
    LimitHeaders,
    by_status,
    contains,
    fail,
    go_duration_s,
    retry_after_s,
    throttle,
    trim,
)


class HostError(msgspec.Struct):
    message: str | None = None
    type: str | None = None
    code: str | int | None = None
    status: str | int | None = None
    """Google's name of the error."""
    details: msgspec.Raw = msgspec.Raw(b"")
    """Google's: which quota is spent, and for how long."""


class _ErrorBody(msgspec.Struct):
    error: HostError | str | None = None
    message: str | None = None
    type: str | None = None
    code: str | int | None = None
    """xAI, Mistral and Cerebras tell these here, beside the text."""
    detail: msgspec.Raw | None = None


_error_body = msgspec.json.Decoder(_ErrorBody | list[_ErrorBody])


def failed(status: int, headers: Headers, body: bytes, now: float, limits: LimitHeaders | None) -> Failure:
    """Of a response that is not 200."""
    return _failure(status, _parse_error(body), headers, now, limits)


def failed_inside(said: HostError | str | None, headers: Headers, now: float) -> Failure:
    """Some gateways (OpenRouter) send 200 and an error inside."""
    if said is None:
        return fail("invalid_response", "the answer holds no choice", 200)
    error = HostError(said) if isinstance(said, str) else said
    return _failure(error.code if isinstance(error.code, int) else 500, error, headers, now, None)


def _failure(status: int, error: HostError, headers: Headers, now: float, limits: LimitHeaders | None) -> Failure:
    kind = _kind(status, error)
    wait_s = retry_after_s(headers, now)
    if kind == "rate_limited":
        kind = "daily_limit" if _day_is_spent(limits) else kind
        wait_s = _told_wait_s(error) if wait_s is None else wait_s
    return fail(throttle(kind, wait_s), _say(status, error), status, wait_s=wait_s)


def _day_is_spent(limits: LimitHeaders | None) -> bool:
    requests = limits.requests if limits else None
    return requests is not None and requests.window_s > 3600.0 and requests.remaining == 0


def _parse_error(body: bytes) -> HostError:
    body = trim(body)
    try:
        parsed = _error_body.decode(body)
    except (ValueError, RecursionError):
        return HostError(message=body[:200].decode("utf-8", "replace"))
    if isinstance(parsed, list):  # Gemini
        parsed = parsed[0] if parsed else _ErrorBody()
    if isinstance(parsed.error, HostError):
        return parsed.error
    detail = bytes(parsed.detail)[:300].decode("utf-8", "replace") if parsed.detail is not None else None
    return HostError(parsed.error or parsed.message or detail, parsed.type, parsed.code)


def _say(status: int, error: HostError) -> str:
    name = next((f" {name}" for name in (error.code, error.status, error.type) if isinstance(name, str) and name), "")
    return f"{status}{name}: {error.message or 'no message'}"


_BY_CODE: dict[str, FailureKind] = {
    "insufficient_quota": "spend_cap",
    "billing_hard_limit_reached": "spend_cap",
    "billing_not_active": "spend_cap",
    "context_length_exceeded": "too_long",
    "string_above_max_length": "too_long",
    "request_too_large": "too_long",
    "content_policy_violation": "refused",
    "content_filter": "refused",
    "invalid_prompt": "refused",  # OpenAI's reasoning models: "flagged as potentially violating our usage policy"
    "model_not_found": "not_found",
    "model_decommissioned": "not_found",  # Groq
    "model_not_available": "not_found",  # Together
    "invalid_model": "not_found",  # Mistral
    "invalid_api_key": "auth",
    # Groq: the model's slip, told as if the request were wrong
    "json_validate_failed": "invalid_output",
    "tool_use_failed": "invalid_output",
    "capacity_exceeded": "overloaded",
    "resource_unavailable": "overloaded",
}
"""Error codes and types that say more than the status does."""

_TOO_LONG = (
    *("maximum context length", "context_length", "prompt is too long", "longer than the maximum model length"),
    "exceeds the maximum number of tokens",  # Gemini
    "maximum prompt length",  # xAI
    "`inputs` tokens + `max_new_tokens` must be",  # Together
    "longer than the model's context length",  # SGLang
)
_NO_MONEY = (
    "insufficient balance",
    "credit balance",
    "spend limit",
    "spending limit",
    "spending cap",
    "credits are depleted",
    "budget has been exceeded",  # LiteLLM, of the key's or the team's
)
_WRONG_KEY = ("api key not valid", "api key not found", "api key expired", "incorrect api key")
"""Gemini and xAI tell a wrong key as a wrong request; `_NO_MODEL`: so do DeepSeek and OpenRouter an unknown model."""
_NO_MODEL = ("model not exist", "is not a valid model id")
_FLAGGED = ("violates usage guidelines", "input was flagged", "requires moderation")
"""xAI and OpenRouter say this with the status of a refused key."""
_A_DAY = ("per day", "per_day", "perday", "(rpd)", "(tpd)", "daily")
_BY_WORDS: tuple[tuple[frozenset[int], tuple[str, ...], FailureKind], ...] = (
    # Above what the account may send in a minute: it never passes, and another account's target need not be larger.
    (frozenset({413, 429}), ("request too large for",), "bad_request"),
    (frozenset({400, 413, 422}), _TOO_LONG, "too_long"),
    (frozenset({400, 403, 412, 429}), _NO_MONEY, "spend_cap"),  # 412: Fireworks
    (frozenset({400}), _WRONG_KEY, "auth"),
    (frozenset({400}), _NO_MODEL, "not_found"),
    (frozenset({403}), _FLAGGED, "refused"),
    # OpenRouter, of a model that has no host for pictures or tools
    (frozenset({404}), ("no endpoints found that support",), "bad_request"),
    # Gemini, of a model that one's plan has none of
    (frozenset({429}), ("limit: 0,",), "not_found"),
    (frozenset({429}), _A_DAY, "daily_limit"),
    # Gemini says of a minute's limit, too, that one should look after plan and billing
    (frozenset({429}), ("resource_exhausted", "please retry in"), "rate_limited"),
    (frozenset({400, 403, 429}), ("exceeded your current quota",), "spend_cap"),
    # OpenAI flex without room
    (frozenset({429}), ("resource unavailable",), "overloaded"),
)
"""Statuses, words of the message (of a 429 also of Google's details), and what they mean. The first that fits."""


def _kind(status: int, error: HostError) -> FailureKind:
    for name in (error.code, error.type):
        if isinstance(name, str) and (kind := _BY_CODE.get(name.lower().replace(" ", "_"))) is not None:
            return kind
    said = _said(error) if status == 429 else (error.message or "")[:FIRST].lower()
    for statuses, words, kind in _BY_WORDS:
        if status in statuses and contains(said, words):
            return kind
    return by_status(status)


def _said(error: HostError) -> str:
    details = bytes(error.details).decode("utf-8", "replace")
    return f"{error.message or ''} {error.status or ''} {details}".lower()


_WAIT = re.compile(r'(?:retry in|try again in|"retrydelay"\s*:\s*") *((?:\d+(?:\.\d+)?(?:ms|[smhd]))+)')


def _told_wait_s(error: HostError) -> float | None:
    """Of hosts that tell it in words alone."""
    found = _WAIT.search(_said(error))
    return go_duration_s(found[1]) if found else None
