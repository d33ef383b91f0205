"""Before a run sends anything: what a fresh start sets aside, and that its money can be accounted for."""

from __future__ import annotations

import asyncio
import time

from penstock.connectors.base import Primary
from penstock.connectors.ledger import LedgerClient
from penstock.connectors.registry import discard_stores, refuse_held
from penstock.connectors.state import open_state
from penstock.engine.budget import Budget, Purpose, budget_keys
from penstock.engine.flow.progress import saved_in
from penstock.engine.flow.tally import Tally, merge
from penstock.engine.plan import Plan
from penstock.workers.books.trail import Trail
from penstock.workers.runspec import RunSpec


async def make_way(spec: RunSpec, trail: Trail, *, fresh: bool) -> None:
    """Raises `Held`, `Corrupt`, `Temporary`."""
    if fresh:
        await refuse_held(spec.sinks, spec.run_id)
        await trail.deletes(time.time())
        # what the thrown-away progress could have proved unspent counts as spent
        await asyncio.to_thread(LedgerClient(open_state(spec.state), spec.run_id).forfeit_run, time.time())
        await discard_stores(spec.sinks, spec.run_id)
    elif spec.budgets:
        await asyncio.to_thread(LedgerClient(open_state(spec.state), spec.run_id).check, time.time())


async def count_paid(spec: RunSpec, plan: Plan, primary: Primary) -> None:
    """What a run that goes on has paid is spent of its budget, whatever became of the state, and though the budget is
    newer than the run. Its lanes were taken, and none has asked for money yet. Raises `Corrupt`, `Temporary`."""
    budgets = [b for b in spec.budgets if b.per is None and b.tenant is None]  # nobody sums up a tenant's costs
    if not budgets:
        return
    total = Tally()
    for lane in range(plan.lanes):
        merge(total, saved_in((await primary.peek(lane)).chunks).tally)
    await asyncio.to_thread(_count, spec, budgets, total)


def _count(spec: RunSpec, budgets: list[Budget], total: Tally) -> None:
    ledger = LedgerClient(open_state(spec.state), spec.run_id)
    roles: set[Purpose | None] = {b.role for b in budgets}
    for role in roles:
        called = total.called_nano() if role is None else total.steps_nano.get(role, 0)
        forfeit = total.forfeit_nano if role is None else 0
        for key, limit in budget_keys(tuple(b for b in budgets if b.role == role), spec.run_id, None, 0.0, role):
            ledger.at_least(key, limit, called, forfeit)
