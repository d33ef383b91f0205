"""What a run's status says of all its lanes together."""

from __future__ import annotations

from penstock.connectors.settings import MemorySource, Row
from penstock.engine.catalog import Catalog
from penstock.engine.flow.tally import Tally
from penstock.engine.policy import Policy, Task
from penstock.workers.lanes.report import LaneReport
from penstock.workers.runspec import RunSpec
from penstock.workers.status import RunStatus
from penstock.workers.sums import sum_up

SPEC = RunSpec("r", "n", {}, MemorySource("in"), None, Row(), Catalog({}, {}, {}), Policy({"t": Task("t")}), {})


def test_the_number_of_items_is_known_once_every_lane_has_read_its_input() -> None:
    """Not while one reads on, nor while one has not spoken, nor where new input may come."""

    def known(*read_all: bool, endless: bool = False) -> int | None:
        status = RunStatus("r", "n", "running", endless=endless)
        reports = [LaneReport(n, Tally(read=50, results=3), read_all=all_read) for n, all_read in enumerate(read_all)]
        sum_up(status, SPEC, reports, lanes=2)
        return status.total_items

    assert known(True, False) is None
    assert known(True) is None
    assert known(True, True, endless=True) is None
    assert known(True, True) == 100
