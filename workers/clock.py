"""Real time, for the shells that await. Pure rooms get `now` as an argument and never import this."""

from __future__ import annotations

import time
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
