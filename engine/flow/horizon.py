"""How far a lane may dispatch: items read beyond the committed horizon wait here until a commit moves it over them."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from penstock.engine.flow.progress import Progress
from penstock.engine.flow.slots import Slot, urgency

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
        self._urgent: dict[int, int] = {}
        """Split → place of the last urgent item that waits there."""
        self._moved: list[Slot] | None = None
        """What the commit in flight moves it over."""
        self.dispatched = 0
        """Calls handed out since the last commit."""

    def wait(self, slot: Slot) -> None:
        self._beyond.append(slot)
        if urgency(slot.item.attributes) > 0:
            place = slot.item.source
            self._urgent[place.ordinal] = place.position

    def drop(self, gone: Collection[Slot]) -> None:
        """They ended while they waited."""
        self._beyond = deque(slot for slot in self._beyond if slot not in gone)
        if self._moved is not None:
            self._moved = [slot for slot in self._moved if slot not in gone]

    @property
    def waiting(self) -> int:
        return len(self._beyond) + len(self._moved or ())

    @property
    def committing(self) -> bool:
        return self._moved is not None

    def thirsty(self, ready: int, *, behind: bool) -> bool:
        """Workers will soon have nothing to take, and a commit brings them something; or somebody is in a hurry.
        `behind`: it lets one go that is under the horizon, behind another of its key."""
        return bool(self._urgent) or ((behind or bool(self._beyond)) and ready < self._aim // 2)

    def advance(self, progress: Progress, ready: int, now: float) -> None:
        """Only as far as will be sent soon: a kill may repeat all that is under it. But over an urgent item at once,
        and so over all that stands before it in its split: that is in doubt after a kill, though it was not sent."""
        passed = now - self._at
        rate = self.dispatched / max(SHORTEST_S, passed) if passed >= 0 else 0.0  # the clock was set back
        self._rate = max(rate, 0.9 * self._rate)
        self._aim = max(self._floor, int(self._rate * AHEAD_S))
        self._at, self.dispatched = now, 0
        moved = self._pass_urgent()
        while self._beyond and len(moved) < self._aim - ready:
            moved.append(self._beyond.popleft())
        for slot in moved:
            place = slot.item.source
            progress.of(place.ordinal).horizon = place.position + 1
        self._moved = moved

    def _pass_urgent(self) -> list[Slot]:
        upto, self._urgent = self._urgent, {}
        if not upto:
            return []
        waiting, self._beyond = self._beyond, deque()
        moved: list[Slot] = []
        for slot in waiting:
            place = slot.item.source
            (moved if place.position <= upto.get(place.ordinal, -1) else self._beyond).append(slot)
        return moved

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
