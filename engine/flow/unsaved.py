"""Answers that came since the last commit that is known to be durable.

Where a commit fails, nobody knows whether it was made: the lane is taken anew, and reads. Of what the store has not,
these answers are all that is left, and they were paid for.
"""

from __future__ import annotations

from penstock.engine.flow.lane_types import Adopted
from penstock.engine.flow.slots import Slot
from penstock.engine.items import Outcome


class Unsaved:
    def __init__(self) -> None:
        self._since: list[Adopted] = []
        self._committing: list[Adopted] = []

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

    def harvest(self) -> None:
        """A commit begins that holds what came until now."""
        self._committing, self._since = self._committing + self._since, []

    def committed(self) -> None:
        self._committing = []

    @property
    def answers(self) -> list[Adopted]:
        return self._committing + self._since
