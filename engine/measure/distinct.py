"""How many different units there were, by a sample of them that takes bounded memory: adaptive sampling (Wegman's;
analysed by Flajolet, On adaptive sampling, Computing 43, 1990).

Each name has a place, drawn from it by a hash. Kept are the names that lie below 2^-level of all places; where they
become too many, the level rises by one and half of them go. Whoever saw which names in whatever order keeps the same
ones, so parts of many lanes and jobs are put together without a name that counts twice. What is kept at one level in
several groups is an honest sample: each of its names was drawn into its group as any other, so tests of shares need no
allowance for an estimate.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import msgspec

MOST = 1_024
"""Names that are kept: 9 kB with each commit of a lane, for each arm. Twice as many would find a mismatch of five
points for sure (`quality_sim.py units`)."""
_BITS = 53
"""Of a place: numbers that every reader of JSON takes exactly. Of a thousand names no two meet at one place."""


class Distinct(msgspec.Struct, omit_defaults=True):
    level: int = 0
    places: set[int] = msgspec.field(default_factory=set[int])

    def see(self, name: str) -> None:
        place = int.from_bytes(blake2b(name.encode(), digest_size=8, person=b"pst-distinct").digest()) >> 64 - _BITS
        if place < _end(self.level):
            self.places.add(place)
            self._thin()

    def join(self, other: Distinct) -> None:
        """See what the other saw. It stays as it is."""
        self.level = max(self.level, other.level)
        self.places = {each for each in (*self.places, *other.places) if each < _end(self.level)}
        self._thin()

    def _thin(self) -> None:
        while len(self.places) > MOST:
            self.level += 1
            self.places = {each for each in self.places if each < _end(self.level)}


def joined(parts: Iterable[Distinct]) -> Distinct:
    whole = Distinct()
    for part in parts:
        whole.join(part)
    return whole


def at_one_level(groups: Sequence[Distinct]) -> tuple[int, list[int]]:
    """(level, names of each group that lie below it): the highest level that any of them is at."""
    level = max((group.level for group in groups), default=0)
    return level, [sum(place < _end(level) for place in group.places) for group in groups]


def _end(level: int) -> int:
    return 1 << _BITS - level
