"""May this call go now? What stands between a queue of calls and an account's limits."""

from __future__ import annotations

from typing import Protocol

from penstock.engine.items import Call, FailureKind, Usage
from penstock.workers.wire import LimitHeaders


class Gate(Protocol):
    """`tick` is monotonic seconds. None of these waits: `admit` says how long to wait."""

    def admit(self, call: Call, tick: float) -> float:
        """0: the call is charged to the limits and may go. Else: seconds until it is worth asking again."""
        ...

    def settle(self, call: Call, usage: Usage | None, tick: float) -> None:
        """The call ended; what it really used (None: unknown, the estimate stands)."""
        ...

    def told(self, limits: LimitHeaders, tick: float) -> None:
        """A response's headers spoke of the account's limits."""
        ...

    def throttled(self, kind: FailureKind, wait_s: float | None, tick: float) -> None:
        """The provider refused for its limits or its load: nothing goes before `wait_s` has passed."""
        ...


BACK_OFF_S = 0.5
"""First pause after a refusal that says nothing of a wait; doubles up to `BACK_OFF_MAX_S` (OpenAI's client: 0.5, 8)."""
BACK_OFF_MAX_S = 8.0
LONGEST_PAUSE_S = 120.0
"""An account isn't paused longer for one header; OpenAI's own client obeys up to 120 s."""


class Pause:
    """When an account may send again after a refusal. Shared by every gate; counts no tokens itself."""

    __slots__ = ("_refusals", "until")

    def __init__(self) -> None:
        self.until = 0.0
        self._refusals = 0

    def refused(self, wait_s: float | None, tick: float) -> None:
        if wait_s is None:
            if tick < self.until:
                return  # one wave of calls in flight is one refusal
            wait_s = min(BACK_OFF_MAX_S, BACK_OFF_S * 2.0**self._refusals)
            self._refusals += 1
        self.until = max(self.until, tick + min(wait_s, LONGEST_PAUSE_S))

    def went_well(self) -> None:
        self._refusals = 0


class OpenGate:
    """An account without request or token limits of ours; the provider's refusals still pause it."""

    def __init__(self) -> None:
        self._pause = Pause()

    def admit(self, call: Call, tick: float) -> float:
        return self._pause.until - tick if tick < self._pause.until else 0.0

    def settle(self, call: Call, usage: Usage | None, tick: float) -> None:
        if usage is not None:
            self._pause.went_well()

    def told(self, limits: LimitHeaders, tick: float) -> None:
        buckets = (limits.requests, limits.tokens, limits.input_tokens, limits.output_tokens)
        for bucket in buckets:
            # An emptied bucket that fills within the minute: wait before the refusal, not after it.
            if bucket is not None and bucket.remaining == 0 and bucket.reset_s is not None and bucket.window_s <= 60.0:
                self._pause.refused(min(bucket.reset_s, bucket.window_s), tick)

    def throttled(self, kind: FailureKind, wait_s: float | None, tick: float) -> None:
        self._pause.refused(wait_s, tick)
