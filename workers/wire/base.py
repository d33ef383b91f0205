"""What every protocol's reading yields, and what they share: durations, waits, bounded messages."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache, partial
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

from penstock.engine.catalog import Account
from penstock.engine.items import Answer, Call, Failure, FailureKind, OutputSpec, Usage

MAX_BODY_BYTES = 32_000_000
"""Bound of one response: the longest answers (128k tokens with log-probabilities) stay under 20 MB."""

MAX_MESSAGE = 500
"""Characters of a provider's error text that are kept; some echo the prompt."""

FIRST = 200
"""Characters of a refusal that are looked at: some hosts repeat the request behind them, and what a user wrote closes
no account."""

NULL = msgspec.Raw(b"null")
"""Of a member that is read apart, where it is missing."""

Headers = Mapping[str, str]
T = TypeVar("T")


class Bucket(msgspec.Struct, frozen=True, gc=False):
    """One limit as the response's headers tell it. None: not told, or not positive (Azure sends -1 and 0)."""

    limit: int | None = None
    remaining: int | None = None
    reset_s: float | None = None
    """Seconds until it is full again."""
    window_s: float = 60.0
    """86,400 where the header speaks of a day (Groq's requests)."""


class LimitHeaders(msgspec.Struct, frozen=True, gc=False):
    """What one response says of the account's limits."""

    requests: Bucket | None = None
    tokens: Bucket | None = None
    input_tokens: Bucket | None = None
    output_tokens: Bucket | None = None


class Read(msgspec.Struct, frozen=True, gc=False):
    """One response, read. Exactly one of `answer` and `failure`; a failure may carry usage (it was billed)."""

    answer: Answer | None = None
    failure: Failure | None = None
    usage: Usage | None = None
    request_id: str | None = None
    limits: LimitHeaders | None = None
    cost_nano: int | None = None
    """What the provider says that it charges; None: the price decides."""
    surcharge_percent: int = 0
    """On the price, as the answer tells."""


class Wire(msgspec.Struct, frozen=True):
    """A protocol. `build(call, output, account) -> (path, body)`; `read(status, headers, body, now, account)`;
    `auth(key) -> headers`. `now` is Unix seconds: some providers tell absolute times."""

    build: Callable[[Call, OutputSpec | None, Account], tuple[str, bytes]]
    read: Callable[[int, Headers, bytes, float, Account], Read]
    auth: Callable[[str | None], dict[str, str]]


@lru_cache(256)
def host_of(base_url: str) -> str:
    return urlsplit(base_url).hostname or ""


def at_host(base_url: str, table: Mapping[str, T]) -> T | None:
    """What a table says of an address, by its host or the end of it behind a dot."""
    host = "." + host_of(base_url)
    return next((value for end, value in table.items() if host.endswith("." + end)), None)


GAVE_UP_WAITING = frozenset({408, 504, 520, 524})
"""A gateway says that its host did not answer in time (408: LiteLLM's), or with nothing that it understands (520, 524:
Cloudflare's). The host may have worked, and bills whom it answered. 502, 503 and 522 say that it was not reached."""


MOST_WAIT_S = 86_400.0
"""A day, the longest window of any limit. Who says more (a date in ten years) would hold a run for ever."""


def fail(kind: FailureKind, message: str, status: int | None = None, *, wait_s: float | None = None) -> Failure:
    """A typed failure. Billed only where the provider worked: an answer that can't be used, or a lost one. A wait of
    nothing, as a date that is past by our clock, says nothing: OpenAI's own client takes it so."""
    wait_s = min(wait_s, MOST_WAIT_S) if wait_s else None
    lost = kind in ("invalid_response", "invalid_output", "timeout") or status in GAVE_UP_WAITING
    billed = lost or (kind == "refused" and status == 200)
    return Failure(kind, message[:MAX_MESSAGE], status, wait_s, billed)


_BY_STATUS: dict[int, FailureKind] = {
    401: "auth",
    402: "spend_cap",
    403: "auth",
    404: "not_found",
    408: "server_error",
    409: "server_error",
    413: "too_long",
    429: "rate_limited",
    498: "overloaded",  # Groq flex: capacity_exceeded
    503: "overloaded",
    529: "overloaded",
}


def by_status(status: int) -> FailureKind:
    """What a status means where nothing else says more."""
    if (kind := _BY_STATUS.get(status)) is not None:
        return kind
    if status >= 500:
        return "server_error"
    if 300 <= status < 400:
        return "not_found"
    return "bad_request" if status >= 400 else "invalid_response"


def contains(text: str, words: tuple[str, ...]) -> bool:
    """Whether one of the words stands in the text."""
    return any(word in text for word in words)


MOST_TOKENS = 1_000_000_000
"""Of one call; a thousand times the longest context there is."""


def believed(usage: Usage) -> Usage | None:
    """None where a count can't be true: the call is then billed as one that told no usage, and no number is too large
    for the messages between processes."""
    counted = usage.input >= 0 and usage.output >= 0
    return usage if counted and all(abs(count) <= MOST_TOKENS for count in msgspec.structs.astuple(usage)) else None


def answered(billed: partial[Read], answer: Answer) -> Read:
    """A host that counts nothing at all for an answer tells nothing (gateways fill in zeros): the call is billed as one
    that told no usage, unless what it was charged is told."""
    read = billed(answer=answer)
    silent = read.usage == Usage() and read.cost_nano is None
    return msgspec.structs.replace(read, usage=None) if silent else read


def part(said: msgspec.Raw, kind: type[T]) -> T | None:
    """What a member says that only the bill hangs on; None where it is missing or can't be read. An answer that was
    paid for stands, whatever gateways write there: texts for counts, an empty list for no details."""
    try:
        return msgspec.json.decode(said, type=kind, strict=False)
    except (ValueError, RecursionError):
        return None


class _Billed(msgspec.Struct):
    usage: msgspec.Raw = NULL


def bill(body: bytes, kind: type[T]) -> T | None:
    """The `usage` of a response that can't be read otherwise: it was paid for all the same."""
    told = part(msgspec.Raw(body), _Billed)
    return None if told is None else part(told.usage, kind)


LONG_WAIT_S = 120.0
"""A wait longer than this is no minute's limit; OpenAI's own client gives up above it."""


def throttle(kind: FailureKind, wait_s: float | None) -> FailureKind:
    """A rate limit that asks for a long wait is a long window: another target should be tried."""
    return "daily_limit" if kind == "rate_limited" and wait_s is not None and wait_s > LONG_WAIT_S else kind


def trim(body: bytes) -> bytes:
    """Without the blank lines and comments that keep a slow connection open (DeepSeek)."""
    body = body.strip()
    while body.startswith(b":"):
        _, _, body = body.partition(b"\n")
        body = body.lstrip()
    return body


def as_utf8(body: bytes) -> bytes:
    """What is no UTF-8 as U+FFFD: members that nobody reads are not looked at when the body is, and records hold it
    whole."""
    try:
        body.decode()
    except UnicodeDecodeError:
        return body.decode("utf-8", "replace").encode()
    return body


_GO = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|h|m|s|d)")
_GO_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


def go_duration_s(text: str) -> float | None:
    """`12ms`, `6m0s`, `1h2m3.5s`, or plain seconds; None where it is neither."""
    text = text.strip()
    plain = number(text)
    if plain is not None:
        return plain
    parts = _GO.findall(text)
    if not parts or "".join(n + unit for n, unit in parts) != text:
        return None
    return sum(float(n) * _GO_UNITS[unit] for n, unit in parts)


def rfc3339_s(text: str, now: float) -> float | None:
    """Seconds from now until a time such as `2026-11-24T10:00:00Z`; None where it can't be read."""
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return max(0.0, (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now)


def number(text: str) -> float | None:
    """A finite, non-negative number; None for all else."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0.0 <= value < float("inf") else None


MOST_COUNTED = 10**15
"""Some gateways write 2⁶⁴ − 1 for no limit, which messages between processes don't hold."""


def positive(text: str | None) -> int | None:
    """A positive count; None for what is missing, unreadable, zero or negative."""
    return count(text) or None


def count(text: str | None) -> int | None:
    """A count that may be zero (`remaining`); None for what is missing, unreadable or negative."""
    value = number(text) if text is not None else None
    return int(min(value, MOST_COUNTED)) if value is not None else None


def retry_after_s(headers: Headers, now: float) -> float | None:
    """`retry-after-ms`, then `retry-after` in seconds (a fraction is allowed), then as an HTTP date."""
    millis = headers.get("retry-after-ms")
    if millis is not None and (value := number(millis)) is not None:
        return value / 1000.0
    text = headers.get("retry-after")
    if text is None:
        return None
    value = number(text)
    return value if value is not None else _http_date_s(text, now)


def _http_date_s(text: str, now: float) -> float | None:
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now)
