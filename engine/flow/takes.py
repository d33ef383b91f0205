"""The takes of each worker, by number: which calls it got under which, and which of them bring nothing any more.

A worker gives up a take that is not answered in time, and says so; or it dies. The take may be under way here all the
same, where the lane had to ask its store first whose it is, or come later than that word. What it gave out then would
be nobody's: the lane would wait for these calls until they time out.
"""

from __future__ import annotations

from penstock.engine.flow.slots import Slot


class Takes:
    def __init__(self) -> None:
        self._number: dict[Slot, int] = {}
        """Under which number its worker asked for it."""
        self._void: dict[str, int] = {}
        """Worker → up to which of its takes nothing is given out."""
        self._dead: set[str] = set()

    def is_void(self, worker: str, number: int) -> bool:
        """`number`: of the worker's takes, growing from 1; 0: it does not number them."""
        return number > 0 and (worker in self._dead or number <= self._void.get(worker, 0))

    def flies(self, slot: Slot, number: int) -> None:
        if number:
            self._number[slot] = number

    def landed(self, slot: Slot) -> None:
        self._number.pop(slot, None)

    def given_up(self, worker: str, upto: int) -> list[Slot]:
        """Its takes up to this one are over. What flies under them."""
        self._void[worker] = max(self._void.get(worker, 0), upto)
        return [slot for slot, number in self._number.items() if slot.worker == worker and number <= upto]

    def lost(self, worker: str) -> None:
        """It died, and with it whoever waited for its takes: also for those that come only now. Who takes its place
        has another name."""
        self._dead.add(worker)
