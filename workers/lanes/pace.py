"""How much of its time a process does not run: how late its own timer is, which nothing that holds it up can hide."""

from __future__ import annotations

BEAT_S = 0.1
TELL_EVERY_S = 1.0


class Pace:
    """Pure: `tick` is seconds of a clock that only grows, also while the process is stopped. `beat` is to be called
    every `BEAT_S`."""

    def __init__(self, tick: float) -> None:
        self._began = tick
        self._due = tick + BEAT_S
        self._lost_s = 0.0
        self._told_at = tick

    def beat(self, tick: float) -> bool:
        """True: it is time to tell."""
        self._lost_s += max(0.0, tick - self._due)
        self._due = tick + BEAT_S
        telling = tick - self._told_at >= TELL_EVERY_S
        self._told_at = tick if telling else self._told_at
        return telling

    def seen(self, tick: float) -> tuple[float, float]:
        """Seconds since it began, and those of them in which it did not run."""
        return tick - self._began, self._lost_s + max(0.0, tick - self._due)
