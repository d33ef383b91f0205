"""A lane's till: money for one call is set aside before it is sent; who can't be paid for yet waits here.

The ledger is asked for what the waiting calls need together, in one write; so a small budget is not asked, and
refused, once for every item. What it answers goes to them as far as it reaches, the most urgent first, else in input
order. None passes another of the lane that comes first and waits for the same money: else a dear call, or a late step,
would wait until the budget is used up, and who reads results in input order would find a gap near their beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal

import msgspec

from penstock.engine.budget import EXPLORING, Budgets, Keys, Reservation
from penstock.engine.flow.queueing import Queue, Waiter, is_long
from penstock.engine.flow.slots import Slot
from penstock.engine.leases import covered

SCARCE_S = 10.0
"""After the ledger had nothing, whoever is told of a lease keeps its place. A guess: at a budget's end it is asked many
times a second. Where there is money for all, who passes takes nothing that the next lease does not bring."""
MOST_LEASES = 64
"""Leases asked for at once. Each is small, or one call; a crash gives up so many calls' worth at most."""
MOST_REFUSED = 1_000
"""Budgets that are known to be spent. One beyond them is asked for again: tenants are words of the input."""

DAY_S = 86_400.0


class Wish(msgspec.Struct, frozen=True):
    """What the ledger is to be asked for."""

    key: str
    limit_nano: int
    calls: tuple[int, ...]
    """What each of those that wait may cost at most, the next first: no lease may be smaller than the next's."""
    spare: bool = False
    """Nobody waits yet: a refusal ends nothing."""

    @property
    def floor_nano(self) -> int:
        return self.calls[0]


class NoMoney(msgspec.Struct, frozen=True):
    """The budget of this key can't hold the call."""

    key: str
    words: str

    @property
    def comes_back(self) -> bool:
        """A day's or a month's: there is money again when that is over. Not a tenant's own: others must not wait for
        it behind its items."""
        return self.key.startswith(("day/", "month/")) and "/tenant/" not in self.key

    @property
    def of_the_run(self) -> bool:
        return self.key.startswith("run/") and "/tenant/" not in self.key


class Till:
    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets
        self.purse = budgets.purse
        self._queues: dict[str, Queue] = {}
        """Key → who waits for its money."""
        self._limits: dict[str, int] = {}
        self._refused: dict[str, NoMoney] = {}
        self._refused_from: dict[str, int] = {}
        """Key → the cheapest call that the ledger refused."""
        self._drawn: dict[str, tuple[float, int]] = {}
        """Key → when it was last drawn on, and how much."""
        self._scarce_at: dict[str, float] = {}
        """Key → when the ledger last had nothing for who waited."""
        self._day: float | None = None

    def reserve(self, slot: Slot, worst: int, now: float) -> NoMoney | bool:
        """True: it is set aside. False: the item waits here until a lease comes."""
        told = self._comes(slot)
        behind = self._behind(slot, told, now) if self._queues and worst else None
        if behind is not None:
            return self._wait(behind, slot, worst, now)
        answer = self._budgets.reserve(slot.item.attributes.tenant, worst, now, slot.purpose, slot.fund)
        if isinstance(answer, Reservation):
            slot.reservation = answer
            if slot.pending is not None:
                slot.pending.unfunded_at = None
            for held in answer.held:
                self._drawn[held.key] = (now, worst)
            return True
        self._limits[answer.key] = answer.limit_nano
        return self._wait(answer.key, slot, worst, now)

    def outsized(self, slot: Slot, worst: int, now: float) -> int | None:
        """The limit of a budget that could not hold so much for this item if nothing were spent of it; None: there is
        none. (Exploring ends with its own money, whatever that is.)"""
        return next((n for key, n in self._limited(slot, now) if n < worst and not key.endswith(EXPLORING)), None)

    def _comes(self, slot: Slot) -> str | None:
        """The key whose money it was told of. None: it was not, or so long ago that the money may be another's."""
        told, slot.told = slot.told, None
        queue = self._queues.get(told) if told is not None else None
        if told is None or queue is None or not queue.comes(slot):
            return None
        if not queue:
            del self._queues[told]
        return told

    def _behind(self, slot: Slot, told: str | None, now: float) -> str | None:
        """The key at which one waits that comes first. What it was `told` of is for it, whoever came meanwhile."""
        for key in self._keys(slot, now):
            queue = self._queues.get(key)
            if queue is None or key == told:
                continue
            scarce = 0 <= now - self._scarce_at.get(key, -SCARCE_S) < SCARCE_S
            if queue.stands_before(slot, now, scarce=scarce):
                return key
        return None

    def _wait(self, key: str, slot: Slot, worst: int, now: float) -> NoMoney | Literal[False]:
        """Unless it is known that the budget can't hold so much."""
        if worst >= self._refused_from.get(key, worst + 1):
            return self._refused[key]
        slot.state = "held"
        self._queues.setdefault(key, Queue()).add(slot, worst)
        if slot.pending is not None and slot.pending.unfunded_at is None and key in dict(slot.fund):
            slot.pending.unfunded_at = now
        return False

    def _keys(self, slot: Slot, now: float) -> list[str]:
        """Of the budgets that its call must fit into."""
        return [key for key, _ in self._limited(slot, now)]

    def _limited(self, slot: Slot, now: float) -> Keys:
        return (*self._budgets.keys(slot.item.attributes.tenant, now, slot.purpose), *slot.fund)

    def _leave(self, key: str, who: Callable[[Waiter], bool]) -> list[Slot]:
        queue = self._queues.get(key)
        if queue is None:
            return []
        gone = queue.leave(who)
        if not queue:
            del self._queues[key]
        return gone

    def turned_over(self, now: float) -> list[Slot]:
        """Where a UTC day is over: all who wait, since days and months have new keys. What was refused may be asked."""
        before, self._day = self._day, now // DAY_S
        if before in (None, self._day):
            return []
        for known in (self._refused, self._refused_from, self._limits, self._scarce_at):
            known.clear()
        return self.take_out(lambda _: True)

    def take_out(self, who: Callable[[Slot], bool]) -> list[Slot]:
        """These wait no more."""
        return [slot for key in list(self._queues) for slot in self._leave(key, lambda each: who(each.slot))]

    def wishes(self) -> list[Wish]:
        """What items wait for, and what runs low."""
        waiting = {key: queue.next(MOST_LEASES) for key, queue in self._queues.items()}
        wishes = {
            key: Wish(key, self._limits[key], tuple(each.worst for each in first))
            for key, first in waiting.items()
            if first
        }
        for need in self.purse.low():
            floor = self._drawn.get(need.key, (0.0, need.nano))[1]
            if need.key not in wishes and floor < self._refused_from.get(need.key, floor + 1):
                wishes[need.key] = Wish(need.key, need.limit_nano, (floor,), spare=True)
        return list(wishes.values())

    def opened(self, key: str, leases: dict[str, int], now: float) -> list[Slot]:
        """Leases are there: who may try again now. One for each that asked for it, and some more where they reach."""
        queue = self._queues.get(key)
        worsts, n = [each.worst for each in queue.waiting] if queue is not None else [], 0
        for lease_id, amount in leases.items():
            self.purse.add(key, lease_id, amount)
            n += covered(amount, worsts[n:])
        if leases:
            self._drawn[key] = (now, self._drawn.get(key, (0.0, min(leases.values())))[1])
        told = self._tell(key, n, now)
        for slot in told:
            self._keep_others(slot, now)
        return told

    def freed(self, settled: Reservation, now: float) -> list[Slot]:
        """A call was settled, and left something: who waits first, and fits into what is there now, may try again."""
        if not self._queues:
            return []
        keys = {held.key for held in settled.held} & self._queues.keys()
        return [slot for key in keys for slot in self.fitting(key, now)]

    def fitting(self, key: str, now: float) -> list[Slot]:
        """Who waits first there, if it fits into what is there, and nobody comes for that."""
        queue = self._queues.get(key)
        first = queue.first if queue is not None else None
        return self._tell(key, 1, now) if first is not None and self.purse.holds(key, first.worst) else []

    def _tell(self, key: str, n: int, now: float) -> list[Slot]:
        """The money is there for the first `n` that wait, whoever comes meanwhile."""
        queue = self._queues.get(key)
        told = queue.tell(n, now) if queue is not None else []
        for slot in told:
            slot.told = key
        return told

    def _keep_others(self, slot: Slot, now: float) -> None:
        """A call under several budgets gets its leases one after another. Each that comes renews those before it:
        else the first would be idle, and go back, by the time that the last is there."""
        for key in self._keys(slot, now):
            if key in self._drawn:
                self._drawn[key] = (now, self._drawn[key][1])

    def refused(self, wish: Wish, words: str, now: float) -> list[Slot]:
        """The ledger can't hold `wish.floor_nano`, now or later: who ends. Cheaper ones still wait."""
        key, floor = wish.key, wish.floor_nano
        self._scarce_at[key] = now
        self._refused[key] = NoMoney(key, words)
        self._refused_from[key] = min(floor, self._refused_from.get(key, floor))
        if len(self._refused) > MOST_REFUSED:
            self._forget(next(iter(self._refused)))
        return self._leave(key, lambda each: each.told_at is None and each.worst >= floor)

    def _forget(self, key: str) -> None:
        """That it is spent."""
        for known in (self._refused, self._refused_from, self._scarce_at):
            known.pop(key, None)
        self._forget_limit(key)

    def _forget_limit(self, key: str) -> None:
        """Where nobody waits: who asks next says it again."""
        if key not in self._queues:
            self._limits.pop(key, None)
            self.purse.unwanted(key)

    def is_past(self, key: str, slot: Slot, now: float) -> bool:
        """Whether this item would by now ask another budget's money: the key's day or month is over."""
        return key not in self._keys(slot, now)

    def waiting_for(self, key: str) -> list[Slot]:
        """Those that wait for this key's money."""
        return [each.slot for each in self._queues[key].waiting] if key in self._queues else []

    def why(self, key: str) -> NoMoney:
        return self._refused[key]

    def drop(self, gone: Collection[Slot]) -> None:
        """They end while they wait."""
        self.take_out(lambda slot: slot in gone)

    def let_go(self) -> list[Slot]:
        """Nothing is sent any more: nobody waits, and every lease goes back once its calls have landed."""
        self.purse.retire_all()
        return self.take_out(lambda _: True)

    def give_back_idle(self, now: float) -> None:
        """Leases that nobody drew on lately. So two lanes that both hold a remainder never wait for each other."""
        for key, queue in list(self._queues.items()):
            queue.forget_late(now)
            if not queue:
                del self._queues[key]
        for key in [key for key, (at, _) in self._drawn.items() if is_long(now - at)]:
            if key not in self._queues:
                del self._drawn[key]
                self.purse.retire(key)
                self._forget_limit(key)

    def give_back_small(self, wish: Wish, now: float) -> None:
        """The ledger has nothing for `wish` while others hold leases: what can't hold its call goes back. Not a lease
        that nobody drew on yet while somebody was told and is about to come: it may be for that."""
        self._scarce_at[wish.key] = now
        if is_long(now - self._drawn.get(wish.key, (0.0, 0))[0]):
            self.purse.retire(wish.key)
        else:
            self.purse.retire_small(wish.key, wish.floor_nano, untouched=not self.awaits(wish.key))

    def awaits(self, key: str) -> bool:
        """Somebody was told of this key's money, and is about to come for it."""
        return key in self._queues and self._queues[key].awaited

    @property
    def waiting(self) -> int:
        return sum(len(queue.waiting) for queue in self._queues.values())

    def check(self) -> None:
        self.purse.check()
        for queue in self._queues.values():
            queue.check()
