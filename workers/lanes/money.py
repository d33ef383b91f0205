"""A lane's way to the budget ledger: leases asked for, leases given back. The ledger blocks, so threads wait for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol

from penstock.engine.errors import PenstockError
from penstock.engine.flow.lane import Lane
from penstock.engine.flow.till import Wish
from penstock.engine.plan import Epoch

LEASE_RETRY_S = 0.5
"""Before the ledger is asked again for what others hold."""


class LedgerPort(Protocol):
    """The budget ledger on the state URL (`connectors.ledger`). Blocking: called in a thread."""

    def leases(
        self, wish: Wish, lease_ids: Sequence[str], lane: int, epoch: Epoch, now: float
    ) -> dict[str, int] | str | None:
        """Lease id → nano-dollars leased, durable; or why never; None: not while others hold what may come back."""
        ...

    def settle(self, key: str, lease_id: str, spent_nano: int) -> None: ...
    def forfeit(self, lane: int, before: Epoch, proven: dict[str, int], now: float, told: Epoch) -> int: ...


class LaneMoney:
    """`failed` hears of a ledger that can't be reached; `wake` when the machine has something new."""

    def __init__(
        self,
        lane: int,
        epoch: Epoch,
        machine: Lane,
        ledger: LedgerPort,
        now: Callable[[], float],
        failed: Callable[[PenstockError], None],
        wake: Callable[[], None],
    ) -> None:
        self._lane = lane
        self._epoch = epoch
        self._machine = machine
        self._ledger = ledger
        self._now = now
        self._failed = failed
        self._wake = wake
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._settling: asyncio.Task[None] | None = None
        self._number = 0
        self._freed = asyncio.Event()
        """A lease of ours was settled: what it did not spend is there again."""

    async def forfeit(self, told: Epoch) -> None:
        """Close what dead owners left open; what can't be proven unspent is spent. `told`: the last commit's epoch."""
        proven = dict(self._machine.last_spent)
        lost = await asyncio.to_thread(self._ledger.forfeit, self._lane, self._epoch, proven, self._now(), told)
        self._machine.tally.forfeit_nano += lost

    def step(self, now: float) -> None:
        machine, loop = self._machine, asyncio.get_running_loop()
        machine.till.give_back_idle(now)
        for wish in machine.wishes():
            if wish.key not in self._asking:
                self._asking[wish.key] = loop.create_task(self._guard(partial(self._ask, wish), wish.key))
        if self._settling is None and machine.till.purse.closable():
            self._settling = loop.create_task(self._guard(self._settle, None))

    @property
    def open(self) -> bool:
        """Some lease of ours is not settled yet. Call it when the lane is over: gives back all that is idle."""
        purse = self._machine.till.purse
        purse.retire_all()
        return bool(purse.spent()) or bool(self._asking) or self._settling is not None

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        return [*self._asking.values(), *([self._settling] if self._settling is not None else [])]

    async def _guard(self, work: Callable[[], Awaitable[None]], key: str | None) -> None:
        """`work` is called only once its task runs: one that is cancelled before that leaves nothing behind."""
        try:
            await work()
        except PenstockError as error:
            self._failed(error)
        finally:
            if key is None:
                self._settling = None
            else:
                del self._asking[key]
            self._wake()

    async def _ask(self, wish: Wish) -> None:
        names = [self._name() for _ in wish.calls]
        answer = await asyncio.to_thread(self._ledger.leases, wish, names, self._lane, self._epoch, self._now())
        match answer:
            case dict():
                self._machine.leased(wish.key, answer, self._now())
            case str() if not wish.spare and not self._machine.till.awaits(wish.key):  # a no may end the run
                self._machine.refused(wish, answer, self._now())
            case _:
                await self._later(wish)

    async def _later(self, wish: Wish) -> None:
        """Others hold the rest, and may wait for what we hold: give back what is of no use here, and ask again."""
        if not wish.spare:
            self._machine.till.give_back_small(wish, self._now())
        if not self._machine.draining:
            self._freed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._freed.wait(), LEASE_RETRY_S)

    def _name(self) -> str:
        self._number += 1
        return f"{self._lane}-{self._epoch[0]}.{self._epoch[1]}-{self._number}"

    async def _settle(self) -> None:
        purse = self._machine.till.purse
        for lease in purse.closable():
            await asyncio.to_thread(self._ledger.settle, lease.key, lease.lease_id, lease.spent_nano)
            purse.closed(lease.lease_id)
        self._freed.set()
