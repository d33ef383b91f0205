"""All that a run's lanes have reported: what holds of them now, and what each said last."""

from __future__ import annotations

from collections.abc import Collection

from penstock.workers.driving.lateness import Lateness
from penstock.workers.lanes.report import LaneReport


class Reports:
    """Pure: `tick` is seconds of a clock that only grows."""

    def __init__(self) -> None:
        self.now: dict[int, LaneReport] = {}
        """Of lanes that somebody holds, and was heard of."""
        self.last: dict[int, LaneReport] = {}
        """What each lane said last, whoever holds it now."""
        self.owners: dict[int, int] = {}
        """Who said that."""
        self.doubted: set[tuple[int, int]] = set()
        """(lane, owner) that had to doubt what the last owner left."""
        self.lateness = Lateness()

    def heard(self, report: LaneReport, owner: int, tick: float) -> None:
        """Of the lane's present owner."""
        self.now[report.lane] = self.last[report.lane] = report
        self.owners[report.lane] = owner
        self.lateness.heard(report, tick)
        if report.doubted:
            self.doubted.add((report.lane, owner))

    def void(self, lane: int) -> None:
        """Its owner is none any more."""
        self.now.pop(lane, None)

    def settled(self, lanes: int, gone: Collection[int]) -> bool:
        """No lane leaves anything open, but those that are `gone`."""
        return all(lane in gone or ((it := self.now.get(lane)) is not None and it.settled) for lane in range(lanes))
