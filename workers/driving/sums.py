"""What a run's status says: the sum of its lanes' reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from penstock.engine.flow.tally import Tally, merge
from penstock.workers.lanes.report import LaneReport
from penstock.workers.runspec import RunSpec, window_of
from penstock.workers.status import RunStatus


def sum_up(status: RunStatus, spec: RunSpec, reports: Collection[LaneReport], lanes: int) -> None:
    """Into `status`. `reports`: what each lane said last, whether it changes hands just now or was given up. Its tally
    stays as it was until all have spoken."""
    total, lag = Tally(), Counter[str]()
    for report in reports:
        merge(total, report.tally)
        lag.update(report.lag)
    if len(reports) == lanes:
        status.tally = total
        status.budget_spent_nano = total.called_nano() + total.forfeit_nano
        status.lag = dict(lag)
        known = not status.endless and all(report.read_all for report in reports)
        status.total_items = total.read if known else None
    status.waits_for_money = next((r.waits_for_money for r in reports if r.waits_for_money is not None), None)
    status.lanes_ended = sum(1 for report in reports if report.done)
    run_budgets = [b.limit_nano for b in spec.budgets if b.per is None and b.tenant is None and b.role is None]
    status.budget_limit_nano = min(run_budgets, default=None)


def second_payments_bound(spec: RunSpec, lanes: int, doubted: int) -> int:
    """One window for every time that a lane was taken whose last owner did not end in peace: so many, `doubted`."""
    return doubted * window_of(spec.execution, lanes)
