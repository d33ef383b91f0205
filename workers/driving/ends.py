"""How a run ends before its input does: what of its lanes' reports says so, and who took it over."""

from __future__ import annotations

from collections.abc import Collection

from penstock.connectors.base import Primary
from penstock.engine.errors import PenstockError
from penstock.engine.flow.tally import Tally
from penstock.workers.driving.outages import Outages
from penstock.workers.lanes.report import LaneReport
from penstock.workers.status import RunState

FUSE_AFTER = 1_000
"""A share of dead letters counts as a fuse only after so many finished items (SURFACES §4)."""


def early_end(
    max_dead_letters: int | float | None, reports: Collection[LaneReport], tally: Tally, outages: Outages, tick: float
) -> tuple[RunState, str] | None:
    """The state to end in, and why; None: go on. `tick`: monotonic seconds."""
    spent_out = next((report.spent_out for report in reports if report.spent_out is not None), None)
    if spent_out is not None:
        return "stopped_by_budget", spent_out
    dead = sum(tally.dead_letters.values())
    finished = tally.results + dead
    why = outages.verdict(reports, finished, any(tally.in_flight.values()), tick)
    if why is not None:
        return "failed", why
    if _blown(max_dead_letters, dead, finished):
        return "too_many_dead_letters", f"{dead} dead letters of {finished} finished items pass max_dead_letters"
    return None


def _blown(allowed: int | float | None, dead: int, finished: int) -> bool:
    """Is the fuse `max_dead_letters` passed? An integer is a count, a fraction a share of finished items."""
    if allowed is None:
        return False
    if isinstance(allowed, float):
        return finished >= FUSE_AFTER and dead > allowed * finished
    return dead > allowed


async def taken_over(primary: Primary, epoch: int) -> str | None:
    """Who has the run of this epoch now, in words; None: nobody took it over, or that can't be read."""
    try:
        if await primary.run_epoch() <= epoch:
            return None
        who = await primary.holder()
    except PenstockError:
        return None
    by = f"{who.user}@{who.host}, process {who.pid} ({who.command})" if who else "a command that has ended"
    return f"taken over by {by}; this command wrote and sent nothing more"
