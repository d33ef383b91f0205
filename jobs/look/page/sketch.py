"""Quantiles of any number of durations, from counts in bins that grow by 2 %."""

from __future__ import annotations

import math

GROWTH = 1.02
"""A bin's upper end by its lower: a quantile is right to within 1 %, less than anybody reads off."""
LEAST, MOST = 1e-3, 1e10
"""Milliseconds that are told apart: from a microsecond to four months. So there are at most 1,512 bins."""
_LOG = math.log(GROWTH)


class Sketch:
    """Counts by size. The order in which values come doesn't matter. (The bins of Masson, Rim & Lee, DDSketch, VLDB
    2019.)"""

    def __init__(self) -> None:
        self.n = 0
        self._bins: dict[int, int] = {}

    def add(self, value: float) -> None:
        at = math.ceil(math.log(min(max(value, LEAST), MOST)) / _LOG)
        self._bins[at] = self._bins.get(at, 0) + 1
        self.n += 1

    def quantile(self, share: float) -> float | None:
        """The smallest value that `share` of all don't exceed. None: nothing was added."""
        left = max(1, math.ceil(share * self.n))
        for at, count in sorted(self._bins.items()):
            left -= count
            if left <= 0:
                return 2 * GROWTH**at / (1 + GROWTH)
        return None
