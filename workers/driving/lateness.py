"""How late a run's commits are, those of lanes that tell nothing among them.

A lane whose store is away is over within seconds, and nobody reports for it until it can be opened again: what it said
last must not stand for the hours between.
"""

from __future__ import annotations

from penstock.workers.lanes.report import LaneReport

QUIET_S = 10.0
"""A lane reports four times a second; one that changes hands is quiet for some seconds, and that is not late."""


class Lateness:
    """Pure: `tick` is seconds of a clock that only grows."""

    def __init__(self) -> None:
        self._heard: dict[int, tuple[float, float]] = {}
        """Lane → when it was heard last, and how late it was then."""

    def heard(self, report: LaneReport, tick: float) -> None:
        self._heard[report.lane] = tick, report.commit_age_s

    def most_s(self, lanes: int, tick: float) -> float:
        """Of the lane that is latest, in seconds; one that was never heard counts from the first time this is asked."""
        return max((self._late_s(lane, tick) for lane in range(lanes)), default=0.0)

    def _late_s(self, lane: int, tick: float) -> float:
        heard_at, late_s = self._heard.setdefault(lane, (tick, 0.0))
        silent_s = tick - heard_at
        return late_s + silent_s if silent_s > QUIET_S else late_s
