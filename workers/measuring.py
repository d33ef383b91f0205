"""What a run measured: its lanes' committed cells, added up."""

from __future__ import annotations

from penstock.engine.flow.cells import Cell, decoded, summed
from penstock.workers.lanes.report import LaneReport
from penstock.workers.status import RunStatus


class Measuring:
    """Nothing is said before each lane has spoken: a part would look like less."""

    def __init__(self) -> None:
        self._cells: dict[int, list[Cell]] = {}
        self._changed = False

    def heard(self, report: LaneReport) -> None:
        """A lane that changes hands says the same again, or more: what it told was committed."""
        if report.cells:
            self._cells[report.lane] = decoded(report.cells)
            self._changed = True

    def see(self, status: RunStatus) -> None:
        """Bring its cells up to date."""
        if self._changed and len(self._cells) == status.lanes:
            self._changed = False
            status.cells = summed(*self._cells.values())
