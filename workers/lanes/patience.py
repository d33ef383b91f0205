"""Whether a lane that failed is opened once more, and after what pause; what is told of it.

A lane that fails while it works may repeat calls that were paid, so it may do that only so often. One that can't be
opened since a server is away costs nothing but time: it is tried until the server is back, or the run has waited long
enough. Pure: times are Unix seconds, handed in.
"""

from __future__ import annotations

from collections.abc import Callable

from penstock.engine.errors import Away

MAX_REOPENINGS = 5
"""Times one lane is reopened within `WINDOW_S` before the run gives up: a full disk doesn't heal by trying. An endless
run has nobody who runs it again: it goes on trying, ever more slowly."""
WINDOW_S = 300.0
MAX_PAUSE_S = 10.0
AWAY_PAUSE_S = 2.0
"""Between tries while a server is away: a restart takes some seconds."""
CALM_S = 120.0
"""Tries of one outage are not further apart: a pause, and what opening may take before it fails. A guess."""


class Patience:
    """`outage_s`: how long servers may be away before the run ends; None: the run has no end, and waits as long as
    it takes. `note`: tells the person."""

    def __init__(self, outage_s: float | None, note: Callable[[str], None]) -> None:
        self._outage_s = outage_s
        self._note = note
        self._failures: dict[int, list[float]] = {}
        self._since: dict[int, tuple[float, float]] = {}
        """Lane → when servers went away, and when that was last seen."""
        self._waiting: set[int] = set()

    def may_reopen(self, lane: int, error: Exception | None, why: str, now: float) -> bool:
        """`error`: what kept it from being opened; None: it failed while it worked. `why`: in words."""
        if isinstance(error, TimeoutError):  # something that it needs hardly answers
            return self._may_wait(lane, f"lane {lane} did not open in time", now)
        if isinstance(error, Away):
            return self._may_wait(lane, why, now)
        times = self._failures.setdefault(lane, [])
        times[:] = [at for at in times if 0 <= now - at < WINDOW_S] + [now]
        if self._outage_s is not None and len(times) > MAX_REOPENINGS:
            return False
        if len(times) == MAX_REOPENINGS + 1:
            self._note(f"lane {lane} can't go on, and is tried again and again: {why}")
        return True

    def _may_wait(self, lane: int, why: str, now: float) -> bool:
        since, last = self._since.get(lane, (now, now))
        if not 0 <= now - last < CALM_S:
            since = now
        self._since[lane] = (since, now)
        if self._outage_s is not None and now - since > self._outage_s:
            return False
        if not self._waiting:
            bound = "" if self._outage_s is None else f" for up to {self._outage_s:g} s (execution.outage_s)"
            self._note(f"the run waits{bound}, and goes on by itself, since {why}")
        self._waiting.add(lane)
        return True

    def hurry(self, outage_s: float) -> None:
        """The run is to stop: from now on it waits no longer than this."""
        self._outage_s = outage_s if self._outage_s is None else min(self._outage_s, outage_s)

    def opened(self, lane: int) -> None:
        """It is open again."""
        if lane in self._waiting:
            self._since.pop(lane, None)
            self._waiting.discard(lane)
            if not self._waiting:
                self._note("the run goes on: what was away is back")

    def pause_s(self, lane: int) -> float:
        """Before it is opened once more: none the first time."""
        if lane in self._waiting:
            return AWAY_PAUSE_S
        tries = len(self._failures.get(lane, ()))
        return 0.0 if tries < 2 else min(MAX_PAUSE_S, 0.1 * 2.0 ** min(tries, 10))
