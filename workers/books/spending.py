"""What days' and months' budgets have left, for whoever watches the job: other jobs may draw on them too."""

from __future__ import annotations

import contextlib

import msgspec

from penstock.connectors.ledger import LedgerClient
from penstock.connectors.state import open_state
from penstock.engine.budget import budget_keys
from penstock.engine.errors import PenstockError
from penstock.workers.runspec import RunSpec

READ_EVERY_S = 15.0
"""Metrics are exported every ten seconds or so; on S3 each read of a budget is a request."""


class Spend(msgspec.Struct, frozen=True):
    """Of one day or month. What is out in leases (a hundredth each, at most) is not spent yet."""

    per: str
    limit_nano: int
    settled_nano: int
    forfeit_nano: int


class Spending:
    """Blocks while it reads: call `look` in a thread."""

    def __init__(self, spec: RunSpec) -> None:
        self._budgets = tuple(b for b in spec.budgets if b.per is not None and b.tenant is None and b.role is None)
        self._state, self._run = spec.state, spec.run_id
        self._read_at = 0.0
        self._last: list[Spend] = []

    def look(self, now: float) -> list[Spend]:
        """As of a few seconds ago; of earlier, where the state can't be read."""
        if self._budgets and not 0 <= now - self._read_at < READ_EVERY_S:
            self._read_at = now
            with contextlib.suppress(PenstockError):
                self._last = self._read(now)
        return self._last

    def _read(self, now: float) -> list[Spend]:
        client, found = LedgerClient(open_state(self._state), self._run), list[Spend]()
        for key, limit in budget_keys(self._budgets, self._run, None, now):
            ledger = client.read(key)
            spent = (ledger.settled_nano, ledger.forfeit_nano) if ledger is not None else (0, 0)
            found.append(Spend(key.partition("/")[0], limit, *spent))
        return found
