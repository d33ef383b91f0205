"""Answers that came since the last commit that is known to be durable; and earlier ones of items that have not ended,
since they owe steps: their costs are committed, and they themselves stand nowhere yet.

Where a commit fails, nobody knows whether it was made: the lane is taken anew, and reads. Of what the store has not,
these answers are all that is left, and they were paid for.
"""

from __future__ import annotations

from collections.abc import Collection

from penstock.engine.flow.lane_types import Adopted
from penstock.engine.flow.slots import Slot
from penstock.engine.items import STEP_ROLES, Outcome


class Unsaved:
    def __init__(self) -> None:
        self._since: list[Adopted] = []
        self._committing: list[Adopted] = []
        self._stays: list[Adopted] = []
        """Of those that are being committed: what their items will need whatever becomes of the commit."""

    def add(self, slot: Slot, outcome: Outcome, made_by: tuple[str, str], tariff: bytes) -> None:
        """A call was answered, or paid for. (Of a step's, and of one in vain, the next owner has the bill alone.)"""
        item, asked = slot.item, slot.route.candidates[slot.candidate]
        self._since.append(
            Adopted(
                item.item_id, item.generation, outcome.attempt, asked.model, slot.worker, outcome, slot.role,
                asked.version, made_by, tariff, item.source,
            )
        )  # fmt: skip

    def keep(self, billed: Adopted) -> None:
        """An answer of the last owner's, of which nothing but the bill is of use."""
        self._since.append(billed)

    def harvest(self, unfinished: Collection[tuple[str, int]]) -> None:
        """A commit begins that holds what came until now, and the ends of all items but these."""
        self._committing, self._since = self.answers, []
        self._stays = [
            one for one in self._committing if (one.item_id, one.generation) in unfinished and is_answer(one)
        ]

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
