"""What a run's status says of all its lanes together."""

from __future__ import annotations

from pathlib import Path

import msgspec

from penstock.connectors.ledger import LedgerClient
from penstock.connectors.settings import MemorySource, Row
from penstock.connectors.state import open_state
from penstock.engine.budget import Budget
from penstock.engine.catalog import Catalog
from penstock.engine.flow.tally import ModelTally, Tally
from penstock.engine.flow.till import Wish
from penstock.engine.policy import Policy, Task
from penstock.workers.books.spending import READ_EVERY_S, Spend, Spending
from penstock.workers.driving.sums import second_payments_bound, sum_up
from penstock.workers.lanes.report import LaneReport
from penstock.workers.runspec import Execution, RunSpec
from penstock.workers.status import RunStatus

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


def test_hours_of_own_engines_are_no_spent_budget() -> None:
    """It holds calls, and nothing stops for hours: a run of a later command looked as if it had overspent."""
    spec, status = msgspec.structs.replace(SPEC, budgets=(Budget(25),)), RunStatus("r", "n", "running")
    own = ModelTally("own", "v1", cost_nano=12, adjusted_nano=9)
    sum_up(status, spec, [LaneReport(0, Tally(cost_nano=29, forfeit_nano=2, models={"own@v1": own}))], lanes=1)
    assert (status.budget_limit_nano, status.budget_spent_nano) == (25, 22)


def test_what_is_spent_is_not_told_in_part() -> None:
    """Lanes speak one after the other when a run goes on: it would look as if it had got money back."""
    status = RunStatus("r", "n", "running", tally=Tally(cost_nano=9), budget_spent_nano=9)
    sum_up(status, SPEC, [LaneReport(0, Tally(cost_nano=5))], lanes=2)
    assert (status.tally.cost_nano, status.budget_spent_nano) == (9, 9)


def test_what_crashes_explain_is_a_window_for_each_lane_that_was_left_in_doubt() -> None:
    """A command that drained, and one that takes its lanes up, explain nothing."""
    spec = msgspec.structs.replace(SPEC, execution=Execution(window=100))
    assert [second_payments_bound(spec, 4, doubted) for doubted in (0, 3)] == [0, 300]


def test_the_money_of_a_day_is_what_all_its_jobs_spent(tmp_path: Path) -> None:
    """The run's own budget, a tenant's and a purpose's are not among it; a new day begins at nothing."""
    budgets = (
        Budget(9_000, per="day"),
        Budget(50_000, per="month"),
        Budget(7_000),
        Budget(5_000, per="day", tenant="*"),
        Budget(4_000, per="day", role="judge"),
    )
    spec = msgspec.structs.replace(SPEC, state=str(tmp_path), budgets=budgets)
    spending, noon = Spending(spec), 1.5 * 86_400
    assert spending.look(noon) == [Spend("day", 9_000, 0, 0), Spend("month", 50_000, 0, 0)]
    for run in ("r", "another"):
        client = LedgerClient(open_state(str(tmp_path)), run)
        client.leases(Wish("day/1970-01-02", 9_000, (2_000,)), ["0-1"], 0, (1, 1), noon)
        client.settle("day/1970-01-02", "0-1", 1_500)
    assert spending.look(noon + 1)[0].settled_nano == 0, "not read again at once"
    assert spending.look(noon + READ_EVERY_S)[0] == Spend("day", 9_000, 3_000, 0)
    assert spending.look(noon + 86_400)[0] == Spend("day", 9_000, 0, 0)
