"""What the lane's last owner left: calls that go on at workers, and answers that wait for whoever comes. And calls that
nobody waits for any more, his or this owner's: their answers may still come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from penstock.engine.flow.lane_types import Adopted
from penstock.engine.flow.slots import Slot
from penstock.engine.flow.unsaved import is_answer
from penstock.engine.items import STEP_ROLES, Candidate, Outcome
from penstock.engine.results import Attempt

STRAYS_KEPT = 4096
"""A window of calls, all at one worker that was given up."""


class Claimed(NamedTuple):
    """Of one item. `call`: the one that it goes on with, at this `candidate`. None: it is asked anew. `paid`: answers
    that are on its bill. `beside`: the other calls. `attempt`: the last number that is used up."""

    call: Adopted | None
    candidate: int
    paid: list[Adopted]
    beside: list[Adopted]
    attempt: int


class Inherited:
    def __init__(self) -> None:
        self._calls: dict[tuple[str, int], dict[int, Adopted]] = {}
        """Item → its calls by attempt."""
        self.strays = Strays()

    def add(self, adopted: Sequence[Adopted]) -> None:
        """Of two calls of one item that go on, the later one: the other was given up before it was made. One that was
        answered is kept beside it: a cascade asks on, and so do an item's steps."""
        for one in adopted:
            calls = self._calls.setdefault((one.item_id, one.generation), {})
            self._put(calls, one)
            for number in [n for n, each in calls.items() if n < max(calls) and each.outcome is None]:
                self._give_up(calls.pop(number))

    def _put(self, calls: dict[int, Adopted], one: Adopted) -> None:
        """Two of one number are of two owners, the later of whom did not hear of the first one's: the answered one
        counts."""
        known = calls.setdefault(one.attempt, one)
        if known.outcome is None and one.outcome is not None:
            calls[one.attempt] = one
        if known.worker != one.worker:
            self._give_up(known if calls[one.attempt] is one else one)

    def landed(self, outcome: Outcome) -> bool:
        """Is it of a call whose item was not read again yet? Then its answer waits for the item."""
        calls = self._calls.get((outcome.item_id, outcome.generation), {})
        adopted = calls.get(outcome.attempt)
        if adopted is None or adopted.outcome is not None:
            return False
        calls[outcome.attempt] = msgspec.structs.replace(adopted, outcome=outcome)
        return True

    @property
    def answers(self) -> list[Adopted]:
        """Of items that did not come again yet."""
        return [one for calls in self._calls.values() for one in calls.values() if one.outcome is not None]

    @property
    def has_answers(self) -> bool:
        """Their workers have let go of them, and only this owner knows them."""
        return bool(self.answers)

    def worker_lost(self, worker: str) -> None:
        """Its answers are here already; its calls are gone."""
        for key, calls in list(self._calls.items()):
            for number in [n for n, one in calls.items() if one.worker == worker and one.outcome is None]:
                self._give_up(calls.pop(number))
            if not calls:
                del self._calls[key]

    def claim(self, slot: Slot) -> Claimed | None:
        """The last owner's calls of this item. It goes on with the last one that it may still be sent to; with none
        where that was a step, and what it is about died with the last owner. Attempt numbers are used up either way.
        What the last owner kept of the item may name these very attempts, as ones under way; one that is among those
        told was settled by him: then its answer alone is of use."""
        found = self._calls.pop((slot.item.item_id, slot.item.generation), None) if self._calls else None
        if found is None:
            return None
        settled = {attempt.n: attempt for attempt in slot.attempts}
        calls, paid = list[Adopted](), list[Adopted]()
        for number, one in sorted(found.items()):
            if number in settled and _is_paid(one, settled[number]):
                paid.append(one)
            elif number < slot.attempt or number in settled:
                self._give_up(one)
            else:
                calls.append(one)
        if not calls and not paid:
            return None
        names = [candidate.model for candidate in slot.route.candidates]
        fits = [one for one in (*paid, *calls) if one.role not in STEP_ROLES and one.model in names]
        call = fits[-1] if fits else None
        beside = [one for one in calls if one is not call]
        for one in beside:
            self._give_up(one)
        last = calls[-1].attempt if calls else slot.attempt
        return Claimed(call, names.index(call.model) if call else 0, paid, beside, last)

    def forget(self, item_id: str, generation: int, attempts: Sequence[Attempt]) -> int:
        """No item comes of its record any more. How many of its calls were paid for and are not among these, which are
        on its bill."""
        settled = {attempt.n: attempt for attempt in attempts}
        calls = self._calls.pop((item_id, generation), {}).values()
        for one in calls:
            self._give_up(one)
        paid = [one for one in calls if one.outcome is not None and one.outcome.usage is not None]
        return sum(one.attempt not in settled or not _is_same(one, settled[one.attempt]) for one in paid)

    def _give_up(self, adopted: Adopted) -> None:
        if adopted.outcome is None:
            self.strays.add(adopted)


def _is_paid(one: Adopted, settled: Attempt) -> bool:
    return _is_same(one, settled) and settled.outcome == "ok" and is_answer(one)


def _is_same(one: Adopted, settled: Attempt) -> bool:
    """That very call: an owner in between may have made another under its number."""
    told = (one.model, one.outcome.started_at, one.outcome.request_id) if one.outcome is not None else ()
    return told == (settled.model, settled.started_at, settled.request_id)


class Strays:
    """Calls that nobody waits for: this owner's, of which an outcome says that they were lost, and the last one's."""

    def __init__(self) -> None:
        self._calls: dict[tuple[str, int, int], Adopted | Outcome] = {}

    def add(self, call: Adopted | Outcome) -> None:
        self._calls[call.item_id, call.generation, call.attempt] = call
        if len(self._calls) > STRAYS_KEPT:
            del self._calls[next(iter(self._calls))]

    def paid(self, outcome: Outcome) -> Adopted | Outcome | None:
        """The one that it is of, where that was paid for. Said once: workers deliver again what they have no reply
        to."""
        stray = self._calls.pop((outcome.item_id, outcome.generation, outcome.attempt), None)
        return stray if outcome.usage is not None else None


def as_asked(slot: Slot, place: int, adopted: Adopted, made_by: tuple[str, str]) -> None:
    """The last owner may have sent it to another version than it would get now, or asked what the job asked before it
    was edited: then its answer is told as that, outside any comparison; what comes after goes by the versions of now,
    `made_by` among them."""
    candidates = slot.route.candidates
    asked, version = candidates[place], adopted.version or candidates[place].version
    _, prompt = slot.made_by = adopted.made_by if any(adopted.made_by) else made_by
    if version != asked.version or prompt != made_by[1]:
        changed = Candidate(asked.model, version, asked.pool, asked.reason)
        both = (*candidates[:place], changed, *candidates[place + 1 :])
        slot.route, slot.turn = msgspec.structs.replace(slot.route, candidates=both), None
