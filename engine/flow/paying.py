"""Who gets a call's money from the till, and what becomes of an item that can't be paid."""

from __future__ import annotations

from collections.abc import Callable

from penstock.engine.budget import EXPLORING
from penstock.engine.flow.flights import Flights
from penstock.engine.flow.places import Places
from penstock.engine.flow.slots import Slot
from penstock.engine.flow.steps import is_whole
from penstock.engine.flow.till import DAY_S, NoMoney, Till, Wish


class Paying:
    """`spent`: the lane sends nothing more, from the time (Unix seconds) on that it is told. `endless`: the run goes on
    tomorrow."""

    def __init__(
        self, till: Till, flights: Flights, places: Places, spent: Callable[[float], None], *, endless: bool
    ) -> None:
        self._till = till
        self._flights = flights
        self._places = places
        self._spent = spent
        self._endless = endless
        self.spent_out: str | None = None
        """Set when the run stops for want of money: the words for the person."""
        self.waits_until: tuple[float, str] | None = None
        """Until when (Unix seconds) items wait for the next day's money, and why."""

    def reserve(self, slot: Slot, worst_nano: int, now: float) -> bool:
        """Its worst case is set aside. Else it waits, or has ended."""
        answer = self._till.reserve(slot, worst_nano, now)
        if isinstance(answer, NoMoney):
            self._cannot_pay(slot, answer, now)
            return False
        return answer

    def leased(self, key: str, leases: dict[str, int], now: float) -> None:
        """The ledger's yes: lease id → nano-dollars."""
        for slot in self._till.opened(key, leases, now):
            self._flights.queue(slot, now)

    def refused(self, wish: Wish, words: str, now: float) -> None:
        """The ledger's no."""
        if wish.spare:
            return
        for slot in self._till.refused(wish, words, now):
            if slot.state == "finished":
                continue  # the one before it may have drained the lane, which ends steps
            if self._till.is_past(wish.key, slot, now):
                self._flights.queue(slot, now)  # its day ended while it waited: today's money is whole
            else:
                self._cannot_pay(slot, self._till.why(wish.key), now)
        for slot in self._till.fitting(wish.key, now):  # a cheaper one
            self._flights.queue(slot, now)

    def _cannot_pay(self, slot: Slot, no: NoMoney, now: float) -> None:
        """The run's own budget stops the run, its items stay undone; so does a day's or a month's, unless the run has
        no end: then it holds them until tomorrow. Any other ends the item; of one that has its answer, never more than
        a step. Exploring ends with its own money, and the item goes on without."""
        ends_early = slot.pending is not None and not is_whole(slot.pending.task)
        if slot.pending is not None and no.key in dict(slot.fund):
            slot.pending.unpaid = True
        if no.key.endswith(EXPLORING):
            self._places.move(slot, slot.candidate + 1)  # those that it would have tried anyway stand behind
            self._flights.queue(slot, now)
        elif not ends_early and (no.of_the_run or (no.comes_back and not self._endless)):
            later = "; when that day or month is over (UTC), the same command goes on" if no.comes_back else ""
            self.spent_out = no.words + later
            self._flights.queue(slot, now)
            self._spent(now)
        elif slot.pending is None and no.comes_back:
            tomorrow = (now // DAY_S + 1) * DAY_S
            self.waits_until = (tomorrow, f"budget {no.key}: {no.words}")
            self._places.hold(slot, tomorrow)
        else:
            self._flights.dead_letter(slot, "budget", f"budget {no.key}: {no.words}", now)
