"""Where items end: results, dead letters and cost lines since the last commit, and the lane's unfinished items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from math import inf

from penstock.engine.catalog import Price
from penstock.engine.flow.booking import Cells
from penstock.engine.flow.chains import Chains
from penstock.engine.flow.progress import Progress
from penstock.engine.flow.settle import count_dead, count_result, too_large_of
from penstock.engine.flow.shelf import Shelf
from penstock.engine.flow.slots import Slot
from penstock.engine.flow.tally import ModelTally, Tally, count_refused
from penstock.engine.flow.unsaved import Unsaved
from penstock.engine.items import Item
from penstock.engine.pricing import cost_nano
from penstock.engine.results import CostLine, DeadLetter, Result

Costs = list[tuple[CostLine, Item | None]]


class Ends:
    """Every item passes `result` or `dead` exactly once. What is here counts against the window until its commit."""

    def __init__(
        self,
        progress: Progress,
        shelf: Shelf,
        tally: Tally,
        cells: Cells,
        tier1: Callable[[], Price | None],
        chains: Chains | None = None,
    ) -> None:
        self.slots: dict[tuple[str, int], Slot] = {}
        """Unfinished items by (item_id, generation), in reading order."""
        self.results: list[Result] = []
        self.dead_letters: list[DeadLetter] = []
        self.costs: Costs = []
        self.bytes = 0
        """Of records that are unfinished, or finished and not committed."""
        self.uncommitted = 0
        self._uncommitted_bytes = 0
        self._committing = (0, 0)
        self._progress = progress
        self._shelf = shelf
        self.tally = tally
        self._cells = cells
        self._tier1 = tier1
        """The price of its first model now, for "saved against all-Tier-1"."""
        self._chains = chains
        self.unsaved = Unsaved()
        self.unfit: Callable[[Result], str | None] = _takes_all
        """Why the results' store can't take this one; None: it can. Asked once a result, before it counts as one."""

    def begin(self, slot: Slot) -> None:
        item = slot.item
        self.slots[item.item_id, item.generation] = slot
        self.bytes += len(item.original)
        if self._chains is not None:
            self._chains.join(slot)

    def result(self, result: Result, slot: Slot) -> None:
        message = self.unfit(result)
        if message is not None:
            self.dead(too_large_of(result, message), slot)
            return
        self.results.append(result)
        count_result(self.tally, result)
        self._cells.result(result)
        tier1 = self._tier1()
        if tier1 is not None:
            self.tally.tier1_cost_nano += cost_nano(result.answer_usage, tier1)
        self._forget(slot)

    def dead(self, dead: DeadLetter, slot: Slot | None) -> None:
        """`slot`: None where the record never became an item."""
        self.dead_letters.append(dead)
        count_dead(self.tally, dead)
        self._cells.dead(dead)
        if slot is not None:
            self._forget(slot)
        else:
            self.tally.second_payments += dead.maybe_paid
            self.bytes += len(dead.original)
            self._count(len(dead.original))
            self._progress.of(dead.source.ordinal).done(dead.source.position)

    def adjust(self, lines: Sequence[CostLine]) -> None:
        """Costs that belong to no item."""
        self.costs += [(line, None) for line in lines]
        for line in lines:
            self._cells.adjust(line)
            self.tally.cost_nano += line.cost_nano
            key = f"{line.model}@{line.model_version}"
            row = self.tally.models.setdefault(key, ModelTally(line.model, line.model_version, basis=line.basis))
            row.cost_nano += line.cost_nano
            row.adjusted_nano += line.cost_nano

    def _forget(self, slot: Slot) -> None:
        item, route = slot.item, slot.route
        slot.state = "finished"
        self.tally.second_payments += slot.orphaned
        del self.slots[item.item_id, item.generation]
        self._count(len(item.original))
        if route.walled and route.wall is not None:
            count_refused(self.tally, route.wall, (refusal.model for refusal in route.refused[: route.walled]))
        if slot.shelved or slot.tried:
            self._shelf.forget(slot)
        if self._chains is not None:
            self._chains.ended(slot)
        if not slot.shelved:
            self._progress.of(item.source.ordinal).done(item.source.position)

    def _count(self, size: int) -> None:
        self.uncommitted += 1
        self._uncommitted_bytes += size

    @property
    def dirty(self) -> bool:
        return bool(self.results or self.dead_letters or self.costs)

    def harvest(self) -> tuple[list[Result], list[DeadLetter], Costs]:
        """For a commit. They count against the window until `committed`."""
        taken = self.results, self.dead_letters, self.costs
        self.results, self.dead_letters, self.costs = [], [], []
        self._committing = self.uncommitted, self._uncommitted_bytes
        self.unsaved.harvest(self.slots)
        if self._chains is not None:
            self._chains.harvest()
        for _, item in taken[2]:
            slot = self.slots.get((item.item_id, item.generation)) if item is not None else None
            if slot is not None:
                self._shelf.note_tries(slot)
        return taken

    def committed(self) -> None:
        count, size = self._committing
        self._committing = (0, 0)
        self.uncommitted -= count
        self._uncommitted_bytes -= size
        self.bytes -= size
        self.unsaved.committed()

    def flying(self) -> dict[str, int]:
        """Calls at workers, for those who watch: a walk over the window a few times a second, not a count a call."""
        return dict(Counter(slot.model for slot in self.slots.values() if slot.state == "flying"))

    def oldest_age(self, now: float) -> float:
        """Seconds since the oldest unfinished item was read. Slots stand in reading order. (Since it was published says
        how far behind its topic the run is: that is the lag.)"""
        first = next(iter(self.slots.values()), None)
        return max(0.0, now - first.offered_at) if first is not None else 0.0

    def deadline_left(self, now: float) -> float | None:
        """Seconds that the most pressing unfinished item has left, of those that have waited here for longer than that:
        where items come with half a minute each, one always has less than a minute left, and all is well. Infinite:
        there is none of those. None: no item has a deadline."""
        timed = [(d, slot) for slot in self.slots.values() if (d := slot.item.attributes.deadline) is not None]
        pressing = (d - now for d, slot in timed if d - now < now - slot.offered_at)
        return min(pressing, default=inf) if timed else None

    def check(self) -> None:
        slots = self.slots.values()
        assert self.uncommitted == len(self.results) + len(self.dead_letters) + self._committing[0], "miscounted"
        assert self.bytes == sum(len(s.item.original) for s in slots) + self._uncommitted_bytes, "bytes miscounted"
        assert all(slot.state != "finished" for slot in slots), "a finished item is listed"
        assert self._shelf.count == sum(slot.shelved for slot in slots), "the shelf is miscounted"


def _takes_all(result: Result) -> None:
    """A store without limits."""
