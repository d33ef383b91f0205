"""What the failures of the hosts that speak chat completions mean: each has words of its own."""

from __future__ import annotations

import msgspec

from penstock.engine.items import Failure, FailureKind
from penstock.workers.wire.base import Headers, LimitHeaders, by_status, contains, fail, retry_after_s, throttle, trim


class HostError(msgspec.Struct):
    message: str | None = None
    type: str | None = None
    code: str | int | None = None


class _ErrorBody(msgspec.Struct):
    error: HostError | str | None = None
    message: str | None = None
    detail: msgspec.Raw | None = None


_error_body = msgspec.json.Decoder(_ErrorBody)


def failed(status: int, headers: Headers, body: bytes, now: float, limits: LimitHeaders | None) -> Failure:
    """Of a response that is not 200."""
    error = _parse_error(body)
    kind = _kind(status, error)
    if kind == "rate_limited" and _day_is_spent(limits):
        kind = "daily_limit"
    wait_s = retry_after_s(headers, now)
    return fail(throttle(kind, wait_s), _say(status, error), status, wait_s=wait_s)


def failed_inside(said: HostError | str | None, headers: Headers, now: float) -> Failure:
    """Some gateways (OpenRouter) send 200 and an error inside."""
    if said is None:
        return fail("invalid_response", "the answer holds no choice", 200)
    error = _as_error(said)
    inner = error.code if isinstance(error.code, int) else 500
    return fail(_kind(inner, error), _say(inner, error), inner, wait_s=retry_after_s(headers, now))


def _day_is_spent(limits: LimitHeaders | None) -> bool:
    requests = limits.requests if limits else None
    return requests is not None and requests.window_s > 3600.0 and requests.remaining == 0


def _parse_error(body: bytes) -> HostError:
    body = trim(body)
    try:
        parsed = _error_body.decode(body)
    except (ValueError, RecursionError):
        return HostError(message=body[:200].decode("utf-8", "replace"))
    if parsed.error is not None:
        return _as_error(parsed.error)
    detail = bytes(parsed.detail)[:300].decode("utf-8", "replace") if parsed.detail is not None else None
    return HostError(message=parsed.message or detail)


def _as_error(error: HostError | str) -> HostError:
    return HostError(message=error) if isinstance(error, str) else error


def _say(status: int, error: HostError) -> str:
    name = error.code or error.type
    return f"{status}{f' {name}' if name else ''}: {error.message or 'no message'}"


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
    "invalid_api_key": "auth",
    "capacity_exceeded": "overloaded",
    "resource_unavailable": "overloaded",
}
"""Error codes and types that say more than the status does."""

_TOO_LONG = ("maximum context length", "context_length", "prompt is too long", "longer than the maximum model length")
_A_DAY = ("per day", "(rpd)", "(tpd)", "daily")
_NO_MONEY = ("insufficient balance", "credit balance", "exceeded your current quota", "spend limit", "spending limit")


def _kind(status: int, error: HostError) -> FailureKind:
    for name in (error.code, error.type):
        if isinstance(name, str) and (kind := _BY_CODE.get(name.lower().replace(" ", "_"))) is not None:
            return kind
    said = (error.message or "").lower()
    if status == 429:
        return _kind_429(said)
    if status in (400, 413, 422) and contains(said, _TOO_LONG):
        return "too_long"
    if status in (400, 403) and contains(said, _NO_MONEY):
        return "spend_cap"
    return by_status(status)


def _kind_429(said: str) -> FailureKind:
    if contains(said, _NO_MONEY):
        return "spend_cap"
    if contains(said, _A_DAY):
        return "daily_limit"
    return "overloaded" if "resource unavailable" in said else "rate_limited"  # OpenAI flex without room
