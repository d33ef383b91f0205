"""Counts over time in a bounded number of buckets, which grow wider as the span does."""

from __future__ import annotations

import msgspec

MOST_BUCKETS = 72
"""Bars that can be told apart across a page."""
WIDTHS_S = (1, 2, 10, 30, 60, 120, 600, 1800, 3600, 7200, 21_600, 43_200, 86_400)
"""Each divides the next, so that buckets merge whole; after a day they double."""


class Bucket(msgspec.Struct, frozen=True):
    """`start`: Unix seconds."""

    start: float
    counts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.counts.values())


class Timeline:
    """Key → counts, by time. The order in which they come doesn't matter: a file in input order is not in time's."""

    def __init__(self) -> None:
        self.width_s = WIDTHS_S[0]
        self._counts: dict[int, dict[str, int]] = {}

    def add(self, at: float, key: str) -> None:
        """`at`: Unix seconds."""
        place = int(at // self.width_s)
        bucket = self._counts.get(place)
        if bucket is None:
            bucket = self._counts[place] = {}
            self._fit()
            bucket = self._counts[int(at // self.width_s)]
        bucket[key] = bucket.get(key, 0) + 1

    def _fit(self) -> None:
        while max(self._counts) - min(self._counts) >= MOST_BUCKETS:
            self._widen()

    def _widen(self) -> None:
        wider = next((width for width in WIDTHS_S if width > self.width_s), 2 * self.width_s)
        times, merged = wider // self.width_s, dict[int, dict[str, int]]()
        for place, counts in self._counts.items():
            into = merged.setdefault(place // times, {})
            for key, count in counts.items():
                into[key] = into.get(key, 0) + count
        self.width_s, self._counts = wider, merged

    def buckets(self) -> list[Bucket]:
        """All of the span, empty ones too, in the order of time."""
        if not self._counts:
            return []
        places = range(min(self._counts), max(self._counts) + 1)
        return [Bucket(place * self.width_s, self._counts.get(place, {})) for place in places]
