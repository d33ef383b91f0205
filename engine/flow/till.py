"""A lane's till: money for one call is set aside before it is sent; who can't be paid for yet waits here.

The ledger is asked for what the waiting calls need together, in one write. What it answers goes to them in the order
in which they came, as far as it reaches; so a small budget is not asked, and refused, once for every item.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

import msgspec

from penstock.engine.budget import Budgets, NeedLease, Reservation
from penstock.engine.flow.slots import Slot

IDLE_LEASE_S = 2.0
"""A lease nobody drew on for so long goes back: another lane may wait for it. A guess: far above a ledger write."""
MOST_LEASES = 64
"""Leases asked for at once. Each is small, or one call; a crash gives up so many calls' worth at most."""


DAY_S = 86_400.0


class Wish(msgspec.Struct, frozen=True):
    """What the ledger is to be asked for."""

    key: str
    limit_nano: int
    floor_nano: int
    """Worst case of the call that waits longest: no lease may be smaller."""
    want_nano: int
    """What all that wait need together."""
    count: int
    """Leases that make sense at most."""
    spare: bool = False
    """Nobody waits yet: a refusal ends nothing."""

    @property
    def need(self) -> NeedLease:
        return NeedLease(self.key, self.floor_nano, self.limit_nano)


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
        self._waiting: dict[str, deque[tuple[Slot, int]]] = {}
        self._limits: dict[str, int] = {}
        self._refused: dict[str, NoMoney] = {}
        self._refused_from: dict[str, int] = {}
        """Key → the cheapest call that the ledger refused."""
        self._drawn: dict[str, tuple[float, int]] = {}
        """Key → when it was last drawn on, and how much."""
        self._day = -1

    def reserve(self, slot: Slot, worst: int, now: float) -> NoMoney | bool:
        """True: it is set aside. False: the item waits here until a lease comes."""
        if now // DAY_S != self._day:  # asked anew each day: days and months have new keys, and old ones are forgotten
            self._day = now // DAY_S
            self._refused.clear()
            self._refused_from.clear()
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
        slot.state = "held"
        self._limits[key] = answer.limit_nano
        self._waiting.setdefault(key, deque()).append((slot, worst))
        if slot.pending is not None and slot.pending.unfunded_at is None and key in dict(slot.fund):
            slot.pending.unfunded_at = now
        return False

    def wishes(self) -> list[Wish]:
        """What items wait for, and what runs low."""
        wishes = {key: self._wish(key, queue) for key, queue in self._waiting.items()}
        for need in self.purse.low():
            floor = self._drawn.get(need.key, (0.0, need.nano))[1]
            if need.key not in wishes and need.key not in self._refused:
                wishes[need.key] = Wish(need.key, need.limit_nano, floor, need.nano, 1, spare=True)
        return list(wishes.values())

    def _wish(self, key: str, queue: deque[tuple[Slot, int]]) -> Wish:
        ahead = [worst for _, worst in list(queue)[:MOST_LEASES]]
        return Wish(key, self._limits[key], ahead[0], sum(ahead), len(ahead))

    def opened(self, key: str, leases: dict[str, int], now: float) -> list[Slot]:
        """Leases are there (or, with none, may have become free): who may try again now."""
        if leases:
            self._drawn[key] = (now, self._drawn.get(key, (0.0, min(leases.values())))[1])
        for lease_id, amount in leases.items():
            self.purse.add(key, lease_id, amount)
        queue, left, freed = self._waiting.get(key), sum(leases.values()), list[Slot]()
        while queue and (not freed or queue[0][1] <= left):
            slot, worst = queue.popleft()
            left -= worst
            freed.append(slot)
            if leases:
                self._keep_others(slot, now)
        if not queue:
            self._waiting.pop(key, None)
        return freed

    def _keep_others(self, slot: Slot, now: float) -> None:
        """A call under several budgets gets its leases one after another. Each that comes renews those before it:
        else the first would be idle, and go back, by the time that the last is there."""
        for key, _ in (*self._budgets.keys(slot.item.attributes.tenant, now, slot.purpose), *slot.fund):
            if key in self._drawn:
                self._drawn[key] = (now, self._drawn[key][1])

    def refused(self, wish: Wish, words: str) -> list[Slot]:
        """The ledger can't hold `wish.floor_nano`, now or later: who ends. Cheaper ones still wait."""
        key = wish.key
        self.purse.retire(key)
        self._refused[key] = NoMoney(key, words)
        self._refused_from[key] = min(wish.floor_nano, self._refused_from.get(key, wish.floor_nano))
        queue = self._waiting.pop(key, deque())
        stay = deque(pair for pair in queue if pair[1] < wish.floor_nano)
        if stay:
            self._waiting[key] = stay
        return [slot for slot, worst in queue if worst >= wish.floor_nano]

    def is_past(self, key: str, slot: Slot, now: float) -> bool:
        """Whether this item would by now ask another budget's money: the key's day or month is over."""
        keys = (*self._budgets.keys(slot.item.attributes.tenant, now, slot.purpose), *slot.fund)
        return all(key != name for name, _ in keys)

    def waiting_for(self, key: str) -> list[Slot]:
        """Those that wait for this key's money."""
        return [slot for slot, _ in self._waiting.get(key, ())]

    def why(self, key: str) -> NoMoney:
        return self._refused[key]

    def drop(self, gone: Collection[Slot]) -> None:
        """They end while they wait."""
        for key, queue in list(self._waiting.items()):
            kept = deque(pair for pair in queue if pair[0] not in gone)
            if kept:
                self._waiting[key] = kept
            else:
                del self._waiting[key]

    def let_go(self) -> list[Slot]:
        """Nothing is sent any more: nobody waits, and every lease goes back once its calls have landed."""
        waiting = [slot for queue in self._waiting.values() for slot, _ in queue]
        self._waiting.clear()
        self.purse.retire_all()
        return waiting

    def give_back_idle(self, now: float) -> None:
        """Leases that nobody drew on lately. So two lanes that both hold a remainder never wait for each other."""
        for key in [key for key, (at, _) in self._drawn.items() if not 0 <= now - at <= IDLE_LEASE_S]:
            if key not in self._waiting:
                del self._drawn[key]
                self.purse.retire(key)

    def give_back_small(self, wish: Wish, now: float) -> None:
        """The ledger has nothing for `wish` while others hold leases: what can't hold its call goes back. The rest is
        for calls that were told of it and are about to be taken; where nobody comes for it, it goes back as well."""
        if now - self._drawn.get(wish.key, (0.0, 0))[0] > IDLE_LEASE_S:
            self.purse.retire(wish.key)
        else:
            self.purse.retire_small(wish.key, wish.floor_nano)

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    def check(self) -> None:
        self.purse.check()
        for queue in self._waiting.values():
            assert queue, "a key without waiters is listed"
            assert all(slot.state == "held" for slot, _ in queue), "one that waits for money is elsewhere"
