"""How far a lane may dispatch: items read beyond the committed horizon wait here until a commit moves it over them."""

from __future__ import annotations

from collections import deque

from penstock.engine.flow.progress import Progress
from penstock.engine.flow.slots import Slot

AHEAD_S = 0.5
"""Work of so many seconds may be under the horizon: two commit intervals and some slack, so that workers never wait
for a commit. A kill marks at most so much (and what is in flight) as maybe paid."""
SHORTEST_S = 0.02


class Horizon:
    def __init__(self, floor: int) -> None:
        self._floor = floor
        self._aim = floor
        """Items wanted under the horizon."""
        self._rate = 0.0
        """Calls handed out a second; follows a rise at once and a fall slowly."""
        self._at = 0.0
        self._beyond: deque[Slot] = deque()
        self._moved: list[Slot] | None = None
        """What the commit in flight moves it over."""
        self.dispatched = 0
        """Calls handed out since the last commit."""

    def wait(self, slot: Slot) -> None:
        self._beyond.append(slot)

    @property
    def waiting(self) -> int:
        return len(self._beyond) + len(self._moved or ())

    @property
    def committing(self) -> bool:
        return self._moved is not None

    def thirsty(self, ready: int) -> bool:
        """Workers will soon have nothing under the horizon."""
        return bool(self._beyond) and ready < self._aim // 2

    def advance(self, progress: Progress, ready: int, now: float) -> None:
        """Only as far as will be sent soon: a kill may repeat all that is under it."""
        rate = self.dispatched / max(SHORTEST_S, now - self._at)
        self._rate = max(rate, 0.9 * self._rate)
        self._aim = max(self._floor, int(self._rate * AHEAD_S))
        self._at, self.dispatched = now, 0
        moved: list[Slot] = []
        while self._beyond and len(moved) < self._aim - ready:
            slot = self._beyond.popleft()
            place = slot.item.source
            progress.of(place.ordinal).horizon = place.position + 1
            moved.append(slot)
        self._moved = moved

    def stay(self) -> None:
        """A commit that moves it over nothing."""
        self._moved = []

    def retreat(self, progress: Progress) -> None:
        """With the commit of a drained lane that has nothing at a worker: what waited under it was not sent."""
        for split in progress.open.values():
            split.retreat()

    def committed(self) -> list[Slot]:
        """The commit is durable: these may be sent."""
        moved, self._moved = self._moved or [], None
        return moved
