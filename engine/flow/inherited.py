"""What the lane's last owner left at workers: calls that go on, and answers that wait for whoever comes."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from penstock.engine.flow.lane_types import Adopted
from penstock.engine.flow.slots import Slot
from penstock.engine.items import STEP_ROLES, Candidate, Outcome


class Inherited:
    def __init__(self) -> None:
        self._calls: dict[tuple[str, int], Adopted] = {}

    def add(self, adopted: Sequence[Adopted]) -> None:
        """Of two calls of one item the later one: the other was given up before it was made."""
        for one in adopted:
            known = self._calls.get((one.item_id, one.generation))
            if known is None or known.attempt < one.attempt:
                self._calls[one.item_id, one.generation] = one

    def landed(self, outcome: Outcome) -> bool:
        """Is it of a call whose item was not read again yet? Then its answer waits for the item."""
        key = outcome.item_id, outcome.generation
        adopted = self._calls.get(key)
        if adopted is None or adopted.outcome is not None or adopted.attempt != outcome.attempt:
            return False
        self._calls[key] = msgspec.structs.replace(adopted, outcome=outcome)
        return True

    def worker_lost(self, worker: str) -> None:
        """Its answers are here already; its calls are gone."""
        self._calls = {key: a for key, a in self._calls.items() if a.worker != worker or a.outcome is not None}

    def claim(self, slot: Slot) -> tuple[Adopted, int | None] | None:
        """The call of this item that a worker has, and its candidate. That is None where nobody waits for the answer:
        the item may not go to its target any more, or it was a step, and what it is about died with the last owner.
        Its attempt number is used up either way. What the last owner kept of the item may name this very attempt, as
        one under way; one that is among those told was settled by him."""
        adopted = self._calls.pop((slot.item.item_id, slot.item.generation), None) if self._calls else None
        told = {attempt.n for attempt in slot.attempts}
        if adopted is None or adopted.attempt < slot.attempt or adopted.attempt in told:
            return None
        slot.attempt = adopted.attempt
        names = [candidate.model for candidate in slot.route.candidates]
        waited_for = adopted.role not in STEP_ROLES and adopted.model in names
        return adopted, names.index(adopted.model) if waited_for else None


def as_asked(slot: Slot, place: int, version: str) -> None:
    """The last owner may have sent it to another version than it would get now: then that one answers for it, outside
    any comparison; what comes after goes by the versions of now."""
    candidates = slot.route.candidates
    asked = candidates[place]
    if version and version != asked.version:
        changed = Candidate(asked.model, version, asked.pool, asked.reason)
        both = (*candidates[:place], changed, *candidates[place + 1 :])
        slot.route, slot.turn = msgspec.structs.replace(slot.route, candidates=both), None
