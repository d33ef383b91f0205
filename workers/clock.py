"""Real time, for the shells that await. Pure rooms get `now` as an argument and never import this."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Protocol


class Clock(Protocol):
    """`now` is Unix seconds (deadlines, rights, records); `tick` only grows (durations, rate limits)."""

    def now(self) -> float: ...
    def tick(self) -> float: ...


class SystemClock:
    """The machine's clocks."""

    def now(self) -> float:
        return time.time()

    def tick(self) -> float:
        return time.monotonic()


SYSTEM = SystemClock()


def since(at: float, now: float) -> float:
    """Seconds. Where the clock went back, all that was done before is long ago: what is due by time must not wait."""
    return now - at if now >= at else float("inf")


class Watched:
    """A clock whose listeners hear when it was set back, with the seconds."""

    def __init__(self, now: Callable[[], float], *set_back: Callable[[float], None]) -> None:
        self._now = now
        self._set_back = set_back
        self._last = now()

    def __call__(self) -> float:
        now, last = self._now(), self._last
        self._last = now
        if now < last:
            for hear in self._set_back:
                hear(last - now)
        return now


SKEW_S = 1.0
"""Clocks of nodes that are kept by a time server differ by milliseconds."""
ASKED_TIMES = 3


async def ahead_s(ask: Callable[[], Awaitable[float]], clock: Clock = SYSTEM) -> float:
    """How far another process's clock is ahead of ours; below 0: behind. Never more than it surely is: half of the
    quickest round trip is left out."""
    found: list[tuple[float, float]] = []
    for _ in range(ASKED_TIMES):
        asked, before = clock.now(), clock.tick()
        theirs = await ask()
        doubt = (clock.tick() - before) / 2
        found.append((doubt, theirs - asked - doubt))
    doubt, gap = min(found)
    return max(0.0, gap - doubt) if gap > 0 else min(0.0, gap + doubt)


async def tell_skew(who: str, ask: Callable[[], Awaitable[float]], note: Callable[[str], None]) -> None:
    """The right to send a call is a time, told by a lane and read by a worker (`lanes.shell.RIGHT_S`): so nodes whose
    clocks differ are told of. One that can't be asked is lost, and whoever watches it says so."""
    with contextlib.suppress(Exception):
        gap = await ahead_s(ask)
        if abs(gap) >= SKEW_S:
            note(
                f"the clock of {who} is {abs(gap):.1f} s {'ahead of' if gap > 0 else 'behind'} the driver's. Calls may "
                "be sent for 5 s after a lane's commit: between clocks that differ by more, workers send nothing, or "
                "go on for so much longer after a take-over. Set the clocks of the cluster's nodes by a time server."
            )
