"""Answers that came since the last commit that is known to be durable; and earlier ones of items that have not ended,
since they owe steps: their costs are committed, and they themselves stand nowhere yet.

Where a commit fails, nobody knows whether it was made: the lane is taken anew, and reads. Of what the store has not,
these answers are all that is left, and they were paid for.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from penstock.engine.flow.lane_types import Adopted
from penstock.engine.flow.slots import Slot
from penstock.engine.items import STEP_ROLES, Outcome


class Unsaved:
    def __init__(self) -> None:
        self._since: list[Adopted] = []
        self._committing: list[Adopted] = []
        self._stays: list[Adopted] = []
        """Of those that are being committed: what their items will need whatever becomes of the commit."""

    def add(self, slot: Slot, outcome: Outcome) -> None:
        """A call was answered, or paid for. (Of a step's, and of one in vain, the next owner has the bill alone.)"""
        item, asked = slot.item, slot.route.candidates[slot.candidate]
        source = None if slot.shelved else item.source
        self._since.append(
            Adopted(
                item.item_id, item.generation, outcome.attempt, asked.model, slot.worker, outcome, slot.role,
                asked.version, source,
            )
        )  # fmt: skip

    def keep(self, billed: Adopted) -> None:
        """An answer of the last owner's, of which nothing but the bill is of use."""
        self._since.append(billed)

    def harvest(self, unfinished: Mapping[tuple[str, int], Slot]) -> None:
        """A commit begins that holds what came until now, and the ends of all items but these."""
        before, self._committing, self._since, self._stays = self.answers, [], [], []
        for one in before:
            slot = unfinished.get((one.item_id, one.generation))
            if slot is not None and slot.shelved:  # its place in the input tells nothing of it any more
                one = msgspec.structs.replace(one, source=None)
            self._committing.append(one)
            if slot is not None and is_answer(one):
                self._stays.append(one)

    def committed(self) -> None:
        self._committing, self._since, self._stays = [], self._stays + self._since, []

    @property
    def answers(self) -> list[Adopted]:
        return self._committing + self._since


def is_answer(one: Adopted) -> bool:
    """An item can go on with it."""
    outcome = one.outcome
    answered = outcome is not None and outcome.failure is None and outcome.answer is not None
    return answered and one.role not in STEP_ROLES
