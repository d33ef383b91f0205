"""A lane's till: money for one call is set aside before it is sent; who can't be paid for yet waits here.

The ledger is asked for what the waiting calls need together, in one write; so a small budget is not asked, and
refused, once for every item. What it answers goes to them as far as it reaches, the most urgent first, else in input
order. Nobody is served before one that comes first and waits for the same money: else a dear call, or a late step,
would wait until the budget is used up, and who reads results in input order would find a gap near their beginning.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection
from typing import Literal, NamedTuple

import msgspec

from penstock.engine.budget import Budgets, Reservation
from penstock.engine.flow.slots import Slot, urgency
from penstock.engine.leases import covered

IDLE_LEASE_S = 2.0
"""A lease nobody drew on for so long goes back: another lane may wait for it. A guess: far above a ledger write."""
MOST_LEASES = 64
"""Leases asked for at once. Each is small, or one call; a crash gives up so many calls' worth at most."""

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


class _Waiter(NamedTuple):
    rank: tuple[int, int]
    worst: int
    """Nano-dollars that its call may cost at most."""
    slot: Slot


class Till:
    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets
        self.purse = budgets.purse
        self._waiting: dict[str, list[_Waiter]] = {}
        """Key → who waits for its money, by rank."""
        self._limits: dict[str, int] = {}
        self._refused: dict[str, NoMoney] = {}
        self._refused_from: dict[str, int] = {}
        """Key → the cheapest call that the ledger refused."""
        self._drawn: dict[str, tuple[float, int]] = {}
        """Key → when it was last drawn on, and how much."""
        self._opened_at: dict[str, float] = {}
        """Key → when the last lease came."""
        self._day: float | None = None

    def reserve(self, slot: Slot, worst: int, now: float) -> NoMoney | bool:
        """True: it is set aside. False: the item waits here until a lease comes."""
        if self._waiting and not slot.served and (key := self._behind(slot, now)) is not None:
            return self._wait(key, slot, worst, now)
        slot.served = False
        answer = self._budgets.reserve(slot.item.attributes.tenant, worst, now, slot.purpose, slot.fund)
        if isinstance(answer, Reservation):
            slot.reservation = answer
            if slot.pending is not None:
                slot.pending.unfunded_at = None
            for held in answer.held:
                self._drawn[held.key] = (now, worst)
            return True
        key = answer.key
        if worst >= self._refused_from.get(key, worst + 1):
            return self._refused[key]
        self._limits[key] = answer.limit_nano
        return self._wait(key, slot, worst, now)

    def _behind(self, slot: Slot, now: float) -> str | None:
        """The key at which one waits that comes first."""
        rank = _rank(slot)
        queues = ((key, self._waiting.get(key)) for key in self._keys(slot, now))
        return next((key for key, queue in queues if queue and queue[0].rank < rank), None)

    def _wait(self, key: str, slot: Slot, worst: int, now: float) -> Literal[False]:
        slot.state = "held"
        waiter = _Waiter(_rank(slot), worst, slot)
        insort(self._waiting.setdefault(key, []), waiter, key=lambda each: each.rank)
        if slot.pending is not None and slot.pending.unfunded_at is None and key in dict(slot.fund):
            slot.pending.unfunded_at = now
        return False

    def _keys(self, slot: Slot, now: float) -> list[str]:
        """Of the budgets that its call must fit into."""
        return [key for key, _ in (*self._budgets.keys(slot.item.attributes.tenant, now, slot.purpose), *slot.fund)]

    def turned_over(self, now: float) -> list[Slot]:
        """Where a UTC day is over: all who wait, since days and months have new keys. What was refused may be asked."""
        before, self._day = self._day, now // DAY_S
        if before in (None, self._day):
            return []
        self._refused.clear()
        self._refused_from.clear()
        return self._all()

    def _all(self) -> list[Slot]:
        """Nobody waits any more."""
        waiting = [each.slot for queue in self._waiting.values() for each in queue]
        self._waiting.clear()
        return waiting

    def wishes(self) -> list[Wish]:
        """What items wait for, and what runs low."""
        wishes = {key: self._wish(key, queue) for key, queue in self._waiting.items()}
        for need in self.purse.low():
            floor = self._drawn.get(need.key, (0.0, need.nano))[1]
            if need.key not in wishes and need.key not in self._refused:
                wishes[need.key] = Wish(need.key, need.limit_nano, (floor,), spare=True)
        return list(wishes.values())

    def _wish(self, key: str, queue: list[_Waiter]) -> Wish:
        return Wish(key, self._limits[key], tuple(each.worst for each in queue[:MOST_LEASES]))

    def opened(self, key: str, leases: dict[str, int], now: float) -> list[Slot]:
        """Leases are there: who may try again now. One for each that asked for it, and some more where they reach."""
        worsts, n = [each.worst for each in self._waiting.get(key, ())], 0
        for lease_id, amount in leases.items():
            self.purse.add(key, lease_id, amount)
            n += covered(amount, worsts[n:])
        if leases:
            self._opened_at[key] = now
            self._drawn[key] = (now, self._drawn.get(key, (0.0, min(leases.values())))[1])
        freed = self._serve(key, n)
        for slot in freed:
            self._keep_others(slot, now)
        return freed

    def freed(self) -> list[Slot]:
        """A call was settled, and left something: who waits first, and fits into what is there now, may try again."""
        fits = [key for key, queue in self._waiting.items() if self.purse.holds(key, queue[0].worst)]
        return [slot for key in fits for slot in self._serve(key, 1)]

    def _serve(self, key: str, n: int) -> list[Slot]:
        """The first `n` that wait there do so no longer: the money is there for them, whoever comes meanwhile."""
        queue = self._waiting.pop(key, [])
        if queue[n:]:
            self._waiting[key] = queue[n:]
        for each in queue[:n]:
            each.slot.served = True
        return [each.slot for each in queue[:n]]

    def _keep_others(self, slot: Slot, now: float) -> None:
        """A call under several budgets gets its leases one after another. Each that comes renews those before it:
        else the first would be idle, and go back, by the time that the last is there."""
        for key in self._keys(slot, now):
            if key in self._drawn:
                self._drawn[key] = (now, self._drawn[key][1])

    def refused(self, wish: Wish, words: str) -> list[Slot]:
        """The ledger can't hold `wish.floor_nano`, now or later: who ends. Cheaper ones still wait."""
        key = wish.key
        self.purse.retire(key)
        self._refused[key] = NoMoney(key, words)
        self._refused_from[key] = min(wish.floor_nano, self._refused_from.get(key, wish.floor_nano))
        queue = self._waiting.pop(key, [])
        stay = [each for each in queue if each.worst < wish.floor_nano]
        if stay:
            self._waiting[key] = stay
        return [each.slot for each in queue if each.worst >= wish.floor_nano]

    def is_past(self, key: str, slot: Slot, now: float) -> bool:
        """Whether this item would by now ask another budget's money: the key's day or month is over."""
        return key not in self._keys(slot, now)

    def waiting_for(self, key: str) -> list[Slot]:
        """Those that wait for this key's money."""
        return [each.slot for each in self._waiting.get(key, ())]

    def why(self, key: str) -> NoMoney:
        return self._refused[key]

    def drop(self, gone: Collection[Slot]) -> None:
        """They end while they wait."""
        for key, queue in list(self._waiting.items()):
            kept = [each for each in queue if each.slot not in gone]
            if kept:
                self._waiting[key] = kept
            else:
                del self._waiting[key]

    def let_go(self) -> list[Slot]:
        """Nothing is sent any more: nobody waits, and every lease goes back once its calls have landed."""
        self.purse.retire_all()
        return self._all()

    def give_back_idle(self, now: float) -> None:
        """Leases that nobody drew on lately. So two lanes that both hold a remainder never wait for each other."""
        for key in [key for key, (at, _) in self._drawn.items() if _is_long(now - at)]:
            if key not in self._waiting:
                del self._drawn[key]
                self.purse.retire(key)

    def give_back_small(self, wish: Wish, now: float) -> None:
        """The ledger has nothing for `wish` while others hold leases: what can't hold its call goes back. Not a lease
        that came just now: it is for calls that were told of it and are about to be taken. Where nobody comes for it,
        it goes back as well."""
        if _is_long(now - self._drawn.get(wish.key, (0.0, 0))[0]):
            self.purse.retire(wish.key)
        else:
            untouched = _is_long(now - self._opened_at.get(wish.key, 0.0))
            self.purse.retire_small(wish.key, wish.floor_nano, untouched=untouched)

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    def check(self) -> None:
        self.purse.check()
        for queue in self._waiting.values():
            assert queue, "a key without waiters is listed"
            assert all(each.slot.state == "held" for each in queue), "one that waits for money is elsewhere"
            assert queue == sorted(queue, key=lambda each: each.rank), "who waits is out of order"


def _rank(slot: Slot) -> tuple[int, int]:
    """Who comes first has the lower one. Of an item that was read first a step goes before another's first call."""
    return -urgency(slot.item.attributes), slot.seq


def _is_long(seconds: float) -> bool:
    """Also where the clock was set back."""
    return not 0 <= seconds <= IDLE_LEASE_S
