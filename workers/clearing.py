"""Before a run is taken: what a fresh start sets aside, and proof that money can be accounted for."""

from __future__ import annotations

import asyncio
import time

from penstock.connectors.ledger import LedgerClient
from penstock.connectors.registry import discard_stores, refuse_held
from penstock.connectors.state import open_state
from penstock.workers.runspec import RunSpec
from penstock.workers.trail import Trail


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
