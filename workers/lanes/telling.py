"""What a lane tells its driver, and how often: what is ready for workers, and how it stands."""

from __future__ import annotations

from typing import Protocol

import msgspec

from penstock.engine.flow.lane import Lane
from penstock.workers.clock import since
from penstock.workers.lanes.commit import LaneCommit
from penstock.workers.lanes.input import LaneInput
from penstock.workers.lanes.report import LaneReport, report_of
from penstock.workers.ports import Post

POST_EVERY_S = 0.02
POST_AGAIN_S = 1.0
"""Unchanged counts are told again: the board counts what it granted as gone, and a grant may never be used."""
REPORT_EVERY_S = 0.25
CELLS_EVERY_S = 2.0
"""Some kilobytes; whoever reads them looks every few seconds."""


class DriverPort(Protocol):
    """What a lane asks of its driver."""

    def post(self, posts: list[Post]) -> None: ...
    def report(self, report: LaneReport) -> None: ...
    def failed(self, lane: int, fenced: bool, message: str, corrupt: bool) -> None: ...


class LaneTelling:
    """Times are Unix seconds, handed in."""

    def __init__(self, machine: Lane, driver: DriverPort, input: LaneInput, out: LaneCommit) -> None:
        self._machine = machine
        self._driver = driver
        self._input = input
        self._out = out
        self._posted: dict[str, tuple[int, int, int]] = {}
        self._granted_more = False
        """A grant was not used up: the board counts as gone what is still here, or soon comes back from the till."""
        self._posted_at = self._reported_at = self._measured_at = 0.0
        self._first_dispatch_at: float | None = None

    def granted(self, n: int, given: int, now: float) -> None:
        """A worker came with a grant of `n` calls, and got so many."""
        self._granted_more = self._granted_more or given < n
        if given:
            self._first_dispatch_at = self._first_dispatch_at or now

    def post(self, now: float) -> None:
        """Tell the board what is ready: at once where a pool was empty, else every 20 ms; again where nothing moves."""
        counts = {pool: (n, tokens, urgency) for pool, n, tokens, urgency in self._machine.ready.counts()}
        age = since(self._posted_at, now)
        again = self._granted_more or age > POST_AGAIN_S
        if counts == self._posted and not (again and any(n for n, _, _ in counts.values())):
            return
        urgent = any(n and not self._posted.get(pool, (0, 0, 0))[0] for pool, (n, _, _) in counts.items())
        if urgent or age > POST_EVERY_S:
            self._posted, self._posted_at, self._granted_more = counts, now, False
            lane = self._machine.settings.lane
            self._driver.post([Post(lane, pool, *count) for pool, count in counts.items()])

    def is_due(self, now: float) -> bool:
        """A report is."""
        return since(self._reported_at, now) > REPORT_EVERY_S

    def report(self, now: float, *, settled: bool, closed: bool) -> None:
        self._reported_at = now
        measured = settled or since(self._measured_at, now) > CELLS_EVERY_S
        if measured:
            self._measured_at = now
        self._driver.report(
            msgspec.structs.replace(
                report_of(self._machine, self._out.due_at, now),
                done=self._out.done,
                settled=settled,
                cells=self._out.cells if measured else b"",
                lag=self._input.lag(),
                input_away=self._input.away(now),
                input_read=self._input.was_read,
                first_dispatch_at=self._first_dispatch_at,
                closed=closed,
            )
        )
