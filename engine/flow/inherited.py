"""What the lane's last owner left: calls that go on at workers, and answers that wait for whoever comes. And calls that
nobody waits for any more, his or this owner's: their answers may still come."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from penstock.engine.flow.lane_types import Adopted
from penstock.engine.flow.slots import Slot
from penstock.engine.items import STEP_ROLES, Candidate, Outcome

STRAYS_KEPT = 4096
"""A window of calls, all at one worker that was given up."""


class Inherited:
    def __init__(self) -> None:
        self._calls: dict[tuple[str, int], Adopted] = {}
        self.strays = Strays()

    def add(self, adopted: Sequence[Adopted]) -> None:
        """Of two calls of one item the later one: the other was given up before it was made."""
        for one in adopted:
            known = self._calls.setdefault((one.item_id, one.generation), one)
            if known.attempt < one.attempt:
                self._calls[one.item_id, one.generation] = one
                self._give_up(known)
            elif one.attempt < known.attempt:
                self._give_up(one)

    def landed(self, outcome: Outcome) -> bool:
        """Is it of a call whose item was not read again yet? Then its answer waits for the item."""
        key = outcome.item_id, outcome.generation
        adopted = self._calls.get(key)
        if adopted is None or adopted.outcome is not None or adopted.attempt != outcome.attempt:
            return False
        self._calls[key] = msgspec.structs.replace(adopted, outcome=outcome)
        return True

    @property
    def answers(self) -> list[Adopted]:
        """Of items that did not come again yet."""
        return [adopted for adopted in self._calls.values() if adopted.outcome is not None]

    @property
    def has_answers(self) -> bool:
        """Their workers have let go of them, and only this owner knows them."""
        return bool(self.answers)

    def worker_lost(self, worker: str) -> None:
        """Its answers are here already; its calls are gone."""
        for key, adopted in list(self._calls.items()):
            if adopted.worker == worker and adopted.outcome is None:
                del self._calls[key]
                self._give_up(adopted)

    def claim(self, slot: Slot) -> tuple[Adopted, int | None] | None:
        """The call of this item that a worker has, and its candidate. That is None where nobody waits for the answer:
        the item may not go to its target any more, or it was a step, and what it is about died with the last owner.
        Its attempt number is used up either way. What the last owner kept of the item may name this very attempt, as
        one under way; one that is among those told was settled by him."""
        adopted = self._calls.pop((slot.item.item_id, slot.item.generation), None) if self._calls else None
        if adopted is None:
            return None
        if adopted.attempt < slot.attempt or adopted.attempt in {attempt.n for attempt in slot.attempts}:
            self._give_up(adopted)
            return None
        slot.attempt = adopted.attempt
        names = [candidate.model for candidate in slot.route.candidates]
        if adopted.role not in STEP_ROLES and adopted.model in names:
            return adopted, names.index(adopted.model)
        self._give_up(adopted)
        return adopted, None

    def _give_up(self, adopted: Adopted) -> None:
        if adopted.outcome is None:
            self.strays.add(adopted)


class Strays:
    def __init__(self) -> None:
        self._names: dict[tuple[str, int, int], None] = {}

    def add(self, call: Adopted | Outcome) -> None:
        self._names[call.item_id, call.generation, call.attempt] = None
        if len(self._names) > STRAYS_KEPT:
            del self._names[next(iter(self._names))]

    def paid(self, outcome: Outcome) -> bool:
        """Is it of such a call, and was paid for? Said once: workers deliver again what they have no reply to."""
        name = outcome.item_id, outcome.generation, outcome.attempt
        if name not in self._names:
            return False
        del self._names[name]
        return outcome.usage is not None


def as_asked(slot: Slot, place: int, version: str) -> None:
    """The last owner may have sent it to another version than it would get now: then that one answers for it, outside
    any comparison; what comes after goes by the versions of now."""
    candidates = slot.route.candidates
    asked = candidates[place]
    if version and version != asked.version:
        changed = Candidate(asked.model, version, asked.pool, asked.reason)
        both = (*candidates[:place], changed, *candidates[place + 1 :])
        slot.route, slot.turn = msgspec.structs.replace(slot.route, candidates=both), None
