"""Batches on their way to follower stores: written with the primary's commit, applied in order, then trimmed.

The numbers run without gaps per lane, so a follower's last applied number says exactly what is still to be applied.
"""

from __future__ import annotations

from typing import Literal

from penstock.engine.flow.progress import OUTBOX

MAX_BATCHES = 64
MAX_BYTES = 16_000_000
"""When either is reached the lane pauses: a follower that is down must not fill the primary. A guess."""


class Outbox:
    def __init__(self, chunks: dict[str, bytes], next_number: int) -> None:
        self._batches = {
            int(name.removeprefix(OUTBOX)): data for name, data in chunks.items() if name.startswith(OUTBOX)
        }
        self._next = max([next_number, *(number + 1 for number in self._batches)])
        self._applied: list[int] = []

    @property
    def next_number(self) -> int:
        return self._next

    @property
    def full(self) -> bool:
        return len(self._batches) >= MAX_BATCHES or sum(map(len, self._batches.values())) >= MAX_BYTES

    @property
    def empty(self) -> bool:
        return not self._batches

    @property
    def trimmable(self) -> bool:
        return bool(self._applied)

    def lacks(self, applied: int) -> Literal["ahead", "behind"] | None:
        """What is wrong with a follower whose last batch has this number. Ahead: it has batches of another life of the
        lane, and would take new ones for old. Behind: it lacks batches that are here no more."""
        if applied >= self._next:
            return "ahead"
        return "behind" if applied < min(self._batches, default=self._next) - 1 else None

    def add(self, data: bytes) -> tuple[str, bytes]:
        """The chunk to commit with the primary."""
        number = self._next
        self._next += 1
        self._batches[number] = data
        return _name(number), data

    def waiting(self) -> list[tuple[int, bytes]]:
        return sorted(self._batches.items())

    def applied(self, number: int) -> None:
        """All followers have it: its chunk may go with the next commit."""
        if self._batches.pop(number, None) is not None:
            self._applied.append(number)

    def trim(self) -> dict[str, bytes]:
        """Deletions for the next commit."""
        gone, self._applied = self._applied, []
        return {_name(number): b"" for number in gone}


def _name(number: int) -> str:
    return f"{OUTBOX}{number:010d}"
