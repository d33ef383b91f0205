"""Limits of one account: token buckets, concurrency, and what the provider says. A state machine; `now` is handed in.

A bucket with limit L a minute holds `cap` and refills `(L − cap) / 60` a second, so that in any 60 seconds at most L
go out (and one call more, where that call is larger than the bucket). `cap` is one second's worth: short bursts.
"""

from __future__ import annotations

import msgspec

from penstock.engine.catalog import Limits
from penstock.engine.items import FailureKind

MINUTE_S = 60.0
BURST_S = 1.0
"""A lease of rights lasts at most so long; providers check rates over less than a minute, so bursts stay short."""
PAUSE_S = 1.0
"""First pause after a 429 without Retry-After; doubles while they go on. A guess."""
MAX_PAUSE_S = 60.0
"""Also of an overload, whatever it asks for: one model's is not all of its account's, and breakers see to outages."""
SLOWER = 0.5
"""Concurrency after an overload, as a share of what it was (multiplicative decrease)."""
SLOWER_LIMITED = 0.8
"""The same after a rate limit: the buckets do most of the work there."""
SLOW_EVERY_S = 1.0
"""At most one decrease in so long: the calls of one burst fail together and are one event."""


class Ask(msgspec.Struct, frozen=True, gc=False):
    """Rights wanted: so many calls with so many tokens in all (estimates)."""

    calls: int
    input_tokens: int = 0
    output_tokens: int = 0


class Grant(msgspec.Struct, frozen=True, gc=False):
    """Rights given. `calls` 0: none now, ask again in `wait_s`. They lapse after `BURST_S`: give back what is unused
    by `settle(granted, Ask(0))`."""

    calls: int
    input_tokens: int = 0
    output_tokens: int = 0
    wait_s: float = 0.0


class Remaining(msgspec.Struct, frozen=True, gc=False):
    """What a provider's headers say is left, and in how many seconds it is full again. None: not said. Limits that
    read as zero or less are left out by the wire (some gateways send them always)."""

    requests: int | None = None
    requests_reset_s: float | None = None
    input_tokens: int | None = None
    input_tokens_reset_s: float | None = None
    output_tokens: int | None = None
    output_tokens_reset_s: float | None = None
    tokens: int | None = None
    tokens_reset_s: float | None = None


class _Bucket:
    """Units a minute. Without a limit it is open, until the provider's headers say how much is left."""

    __slots__ = ("at", "cap", "level", "limit", "open_at", "rate")

    def __init__(self, limit: int | None) -> None:
        self._size(limit)
        self.level = self.cap
        self.at: float | None = None
        self.open_at = 0.0
        """Without a limit of ours: the provider's own count holds until then."""

    def _size(self, limit: int | None) -> None:
        self.limit = limit
        self.cap = max(1.0, limit * BURST_S / (MINUTE_S + BURST_S)) if limit is not None else float("inf")
        self.rate = max(limit - self.cap, limit / 2) / MINUTE_S if limit is not None else 0.0

    def refill(self, now: float) -> None:
        if self.limit is None:
            if now >= self.open_at:
                self.level = float("inf")
        elif self.at is None:
            self.at = now
        elif now > self.at:
            self.level = min(self.cap, self.level + self.rate * (now - self.at))
            self.at = now

    def wait(self, units: float, now: float) -> float:
        """Seconds until a call of so many units may go. A call larger than the bucket goes when the bucket is full."""
        if now < self.open_at and self.level < units:
            return self.open_at - now
        short = min(units, self.cap) - self.level
        if short <= 1e-9:
            return 0.0
        return short / self.rate if self.rate > 0 else max(self.open_at - now, 0.0)

    def take(self, units: float) -> None:
        self.level -= units

    def become(self, limit: int | None, now: float) -> None:
        """Another limit from now on; None: nothing new. What was used stays used: it gets no fuller by it."""
        if limit is not None and limit != self.limit:
            self.refill(now)
            self._size(limit)
            self.level, self.at = min(self.level, self.cap), now

    def says(self, left: int, reset_s: float, now: float) -> None:
        """The provider's count. It only ever lowers ours; what it lowered comes back at our rate, since `reset` tells
        when all of it is back, not the next call's share. Without a limit of ours it holds until that reset."""
        if left < self.level:
            self.level = float(left)
            if self.limit is None:
                self.open_at = max(self.open_at, now + min(reset_s, MINUTE_S))

    @property
    def used(self) -> float:
        if self.limit is None:
            return 0.0
        return min(1.0, max(0.0, 1.0 - self.level / self.cap))


class AccountLimits:
    """Who may send how much to one account. `holder` names a dispatcher: a lost one's calls can be forgotten."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._requests = _Bucket(limits.rpm)
        self._input = _Bucket(limits.input_tpm)
        self._output = _Bucket(limits.output_tpm)
        self._tokens = _Bucket(limits.tpm)
        self._flying: dict[str, int] = {}
        self._window = float(max(1, limits.concurrency))
        self.paused_until = 0.0
        """A refusal asked everybody to wait until then."""
        self._pause_s = PAUSE_S
        self._slowed_at = float("-inf")
        self._peak = 0
        """Most calls in flight since concurrency was last taken away: that many were too many."""

    @property
    def in_flight(self) -> int:
        return sum(self._flying.values())

    @property
    def window(self) -> int:
        """Calls that may be in flight now: the account's concurrency, less while the provider is overloaded."""
        return max(1, int(self._window))

    def admit(self, input_tokens: int, output_tokens: int, now: float, holder: str = "") -> float:
        """One call: 0.0 means go (and it is counted), else the seconds to wait."""
        grant = self.grant(Ask(1, input_tokens, output_tokens), now, holder)
        return 0.0 if grant.calls else grant.wait_s

    def grant(self, ask: Ask, now: float, holder: str = "") -> Grant:
        """As many of the calls as fit now, each taken for the average of the ask. Never more than was asked for."""
        if ask.calls <= 0:
            return Grant(0)
        if now < self.paused_until:
            return Grant(0, wait_s=self.paused_until - now)
        room = self.window - self.in_flight
        if room <= 0:
            return Grant(0, wait_s=0.01)  # a guess: some call ends; the dispatcher asks when one of its own does
        calls, wait = self._fit(ask, min(ask.calls, room), now)
        if calls == 0:
            return Grant(0, wait_s=wait)
        granted = Grant(calls, _share(ask.input_tokens, calls, ask.calls), _share(ask.output_tokens, calls, ask.calls))
        self._take(granted.calls, granted.input_tokens, granted.output_tokens)
        self.flies(self._flying.get(holder, 0) + calls, holder)
        return granted

    def settle(self, est: Grant | Ask, actual: Ask, now: float, holder: str = "") -> None:
        """Calls of a grant are over: `est.calls` leave the air, and the buckets learn what was really used.

        `actual.calls`: those that were sent (unsent ones give their rights back). Sent and answered calls slowly give
        back concurrency that an overload took."""
        self._refill(now)
        inputs = actual.input_tokens - est.input_tokens
        self._take(actual.calls - est.calls, inputs, actual.output_tokens - est.output_tokens)
        self._clip()
        self._flying[holder] = max(0, self._flying.get(holder, 0) - est.calls)
        self._recover(actual.calls, now)

    def flies(self, calls: int, holder: str = "") -> None:
        """The holder's own count of its calls in the air: it is right where calls went without a grant of ours."""
        self._flying[holder] = calls
        self._peak = max(self._peak, self.in_flight)

    def learn(self, limits: Limits, now: float) -> None:
        """Limits that the provider told of. A pause, the calls in flight and a window that an overload made smaller
        are not forgotten for it."""
        self._limits = limits
        for bucket, limit in (
            (self._requests, limits.rpm),
            (self._input, limits.input_tpm),
            (self._output, limits.output_tpm),
            (self._tokens, limits.tpm),
        ):
            bucket.become(limit, now)
        self._window = min(self._window, float(max(1, limits.concurrency)))

    def forget(self, holder: str) -> None:
        """A dispatcher is gone: its calls are no longer in flight here. Their tokens stay counted."""
        self._flying.pop(holder, None)

    def observe(self, left: Remaining, now: float) -> None:
        """The provider's headers: where they say that less remains than we think, they are right."""
        self._refill(now)
        for bucket, units, reset_s in (
            (self._requests, left.requests, left.requests_reset_s),
            (self._input, left.input_tokens, left.input_tokens_reset_s),
            (self._output, left.output_tokens, left.output_tokens_reset_s),
            (self._tokens, left.tokens, left.tokens_reset_s),
        ):
            if units is not None:
                bucket.says(units, BURST_S if reset_s is None else reset_s, now)

    def throttled(self, kind: FailureKind, retry_after_s: float | None, now: float) -> None:
        """A 429 or an overload came back: everybody waits as told, and fewer fly."""
        match kind:
            case "rate_limited":
                self._pause(retry_after_s, now)
                self._slow(SLOWER_LIMITED, now)
            case "overloaded":
                if retry_after_s is not None:
                    self._pause(min(retry_after_s, MAX_PAUSE_S), now)
                self._slow(SLOWER, now)
            case _:
                pass

    def used(self, now: float) -> dict[str, float]:
        """Bucket → 0…1, for metrics; 1: at its limit."""
        self._refill(now)
        return {
            "requests": self._requests.used,
            "input_tokens": self._input.used,
            "output_tokens": self._output.used,
            "tokens": self._tokens.used,
            "concurrency": min(1.0, self.in_flight / self.window),
        }

    # ---- inside

    def _fit(self, ask: Ask, most: int, now: float) -> tuple[int, float]:
        """(calls that fit, seconds until one does)."""
        self._refill(now)
        calls, wait = most, 0.0
        for bucket, units in self._units(1, ask.input_tokens / ask.calls, ask.output_tokens / ask.calls):
            wait = max(wait, bucket.wait(units, now))
            if units > 0 and bucket.level < most * units:
                calls = min(calls, max(1, int(bucket.level / units + 1e-9)))
        return (calls, 0.0) if wait == 0.0 else (0, wait)

    def _units(self, calls: float, inputs: float, outputs: float) -> tuple[tuple[_Bucket, float], ...]:
        return (
            (self._requests, calls),
            (self._input, inputs),
            (self._output, outputs),
            (self._tokens, inputs + outputs),
        )

    def _take(self, calls: int, inputs: int, outputs: int) -> None:
        for bucket, units in self._units(calls, inputs, outputs):
            bucket.take(units)

    def _refill(self, now: float) -> None:
        for bucket in (self._requests, self._input, self._output, self._tokens):
            bucket.refill(now)

    def _clip(self) -> None:
        for bucket in (self._requests, self._input, self._output, self._tokens):
            bucket.level = min(bucket.cap, bucket.level)

    def _pause(self, retry_after_s: float | None, now: float) -> None:
        if retry_after_s is None:
            if now < self.paused_until:
                return  # calls that flew together fail together: one event
            retry_after_s = self._pause_s
            self._pause_s = min(MAX_PAUSE_S, 2 * self._pause_s)
        self.paused_until = max(self.paused_until, now + retry_after_s)

    def _slow(self, share: float, now: float) -> None:
        if now - self._slowed_at >= SLOW_EVERY_S:
            self._slowed_at = now
            self._window = max(1.0, min(self._window, float(max(1, self._peak))) * share)
            self._peak = self.in_flight

    def _recover(self, calls: int, now: float) -> None:
        """One call more for each full window that was answered (additive increase), not amid a storm of refusals."""
        if calls > 0 and now >= self.paused_until and now - self._slowed_at >= SLOW_EVERY_S:
            self._window = min(float(max(1, self._limits.concurrency)), self._window + calls / self._window)
            if now - self._slowed_at > MAX_PAUSE_S:
                self._pause_s = PAUSE_S


def _share(total: int, part: int, whole: int) -> int:
    return -(-total * part // whole)
