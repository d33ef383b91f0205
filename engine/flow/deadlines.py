"""Whose deadline has passed while it waits, wherever in the lane it waits."""

from __future__ import annotations

import heapq

from penstock.engine.flow.slots import Slot

LOOK_AGAIN_S = 1.0
"""For one whose call is out, or whose answer is being judged: it may come back, and then nobody may ever take it."""
LOOK_EVERY_S = 0.25
"""Those that expire are taken out of their queues together: one walk over the window, not one for each."""


class Deadlines:
    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Slot]] = []
        self._looked_at = 0.0
        self._live = 64
        """Entries of unfinished items at the last cleaning, and some: finished ones must not pile up."""

    def add(self, slot: Slot) -> None:
        deadline = slot.item.attributes.deadline
        if deadline is not None:
            heapq.heappush(self._heap, (deadline, slot.seq, slot))
            if len(self._heap) > 2 * self._live:
                self._clean()

    def _clean(self) -> None:
        self._heap = [entry for entry in self._heap if entry[-1].state != "finished"]
        heapq.heapify(self._heap)
        self._live = max(64, len(self._heap))

    def passed(self, now: float) -> list[Slot]:
        """Those that wait to be sent and must not be any more."""
        if not self._heap or self._heap[0][0] > now or 0 <= now - self._looked_at < LOOK_EVERY_S:
            return []
        self._looked_at = now
        passed: list[Slot] = []
        while self._heap and self._heap[0][0] <= now:
            _, seq, slot = heapq.heappop(self._heap)
            match slot.state:
                case "beyond" | "behind" | "ready" | "held":
                    passed.append(slot)
                case "following" if slot.key is not None:  # the one that it follows has no answer yet
                    passed.append(slot)
                case "flying" | "following":
                    heapq.heappush(self._heap, (now + LOOK_AGAIN_S, seq, slot))
                case "finished":
                    pass
        return passed

    def check(self, slots: int) -> None:
        assert len(self._heap) <= 2 * max(64, self._live), "finished items are kept for their deadlines"
        assert sum(slot.state != "finished" for _, _, slot in self._heap) <= slots, "an item is listed twice"
