"""Who waits at a till for the money of one key: the most urgent first, then in input order."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from itertools import islice

from penstock.engine.flow.slots import Slot, urgency

IDLE_LEASE_S = 2.0
"""A lease nobody drew on for so long goes back: another lane may wait for it. So long, too, is it kept for a call that
was told of it. A guess: far above a ledger write, and above the time until a worker asks."""


class Waiter:
    __slots__ = ("rank", "slot", "told_at", "worst")

    def __init__(self, slot: Slot, worst: int) -> None:
        self.rank = rank(slot)
        self.slot = slot
        self.worst = worst
        """Nano-dollars that its call may cost at most."""
        self.told_at: float | None = None
        """Since when the money is there: it is ready, and comes for it when a worker asks. None: it waits."""


class Queue:
    """Those who were told stay in it until they come, or have not for long: where money is scarce, none of a later rank
    takes theirs."""

    def __init__(self) -> None:
        self._all: list[Waiter] = []

    def add(self, slot: Slot, worst: int) -> None:
        insort(self._all, Waiter(slot, worst), key=lambda each: each.rank)

    @property
    def waiting(self) -> list[Waiter]:
        return [each for each in self._all if each.told_at is None]

    def next(self, n: int) -> list[Waiter]:
        """The first `n` that wait."""
        return list(islice((each for each in self._all if each.told_at is None), n))

    @property
    def awaited(self) -> bool:
        """Somebody was told, and has not come yet."""
        return any(each.told_at is not None for each in self._all)

    @property
    def first(self) -> Waiter | None:
        """Who waits, if nobody was told before it."""
        return self._all[0] if self._all and self._all[0].told_at is None else None

    def stands_before(self, slot: Slot, now: float, *, scarce: bool) -> bool:
        """Somebody who comes first waits; where money is `scarce`: or was told, and is about to come."""
        mine = rank(slot)
        for each in self._all:
            if each.rank >= mine:
                return False
            if each.told_at is None or (scarce and not is_long(now - each.told_at)):
                return True
        return False

    def tell(self, n: int, now: float) -> list[Slot]:
        """The first `n` that wait need not any more."""
        told = self.next(n)
        for each in told:
            each.told_at = now
        return [each.slot for each in told]

    def comes(self, slot: Slot) -> bool:
        """Who was told leaves. False: it was forgotten meanwhile."""
        at = bisect_left(self._all, rank(slot), key=lambda each: each.rank)
        if at == len(self._all) or self._all[at].slot is not slot:
            return False
        del self._all[at]
        return True

    def leave(self, who: Callable[[Waiter], bool]) -> list[Slot]:
        """They are in it no more. Those of them that waited."""
        gone = [each for each in self._all if who(each)]
        self._all = [each for each in self._all if not who(each)]
        return [each.slot for each in gone if each.told_at is None]

    def forget_late(self, now: float) -> None:
        """Who was told and did not come: it went elsewhere, or its workers are busy."""
        self._all = [each for each in self._all if each.told_at is None or not is_long(now - each.told_at)]

    def __len__(self) -> int:
        return len(self._all)

    def check(self) -> None:
        assert self._all, "a key without waiters is listed"
        assert all(each.slot.state == "held" for each in self.waiting), "one that waits for money is elsewhere"
        assert self._all == sorted(self._all, key=lambda each: each.rank), "who waits is out of order"


def rank(slot: Slot) -> tuple[int, int]:
    """Who comes first has the lower one. Of an item that was read first a step goes before another's first call."""
    return -urgency(slot.item.attributes), slot.seq


def is_long(seconds: float) -> bool:
    """Also where the clock was set back."""
    return not 0 <= seconds <= IDLE_LEASE_S
