"""What was scored, in a form that many processes may add up: how often each score came, in thousandths.

Adding and merging commute, so lanes may count for themselves and be summed in any order: the sum equals one process
that saw every item. What no sum can mend is a choice of items that depends on their scores (quick failures that arrive
before slow successes, say): look only at items up to a common position, or after a deadline that counts for all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import msgspec
import numpy as np
from numpy.typing import NDArray

from penstock.engine.errors import SpecError

STEPS = 1_000
"""Scores are kept in thousandths: a mean moves by 0.0005 at most, and a score of two or three decimals not at all."""

Floats = NDArray[np.float64]


class Support(msgspec.Struct, frozen=True):
    """The range that a value can't leave, and the bets that suit it (`betting.py`): their middle and their spread.

    The middle is the bet that fits a few hundred items; the spread is a standard deviation in natural logarithms. Both
    are from tables of widths and of times to alarm over n (`benchmarks/quality_sim.py`), not from theory.
    """

    low: float
    high: float
    bet_middle: float
    bet_spread: float


UNIT = Support(0.0, 1.0, 0.1, 1.5)
"""Scores and shares."""
DIFFERENCE = Support(-1.0, 1.0, 0.3, 1.3)
"""Score of one candidate less another's."""
GUARDED = Support(-1.0, 1.0, 0.4, 0.8)
"""The same with bets nearer to each other, for guards, which end after some 1,500 items: they alarm a little sooner."""


class Sample(msgspec.Struct, frozen=True):
    """How often each value came: ((value in thousandths, count), …), by value."""

    counts: tuple[tuple[int, int], ...] = ()

    @property
    def n(self) -> int:
        return sum(count for _, count in self.counts)

    @property
    def mean(self) -> float | None:
        n = self.n
        return sum(step * count for step, count in self.counts) / (STEPS * n) if n else None

    @property
    def variance(self) -> float | None:
        """Of the values seen, over n. None: no values."""
        n, mean = self.n, self.mean
        if mean is None:
            return None
        return sum(count * (step / STEPS - mean) ** 2 for step, count in self.counts) / n


def sample_of(values: Iterable[float]) -> Sample:
    """Raises `SpecError` where a value is no finite number."""
    return _sample(Counter(map(_step, values)))


def add(sample: Sample, values: Iterable[float]) -> Sample:
    """The sample with more values. Raises `SpecError` where one is no finite number."""
    return merge(sample, sample_of(values))


def merge(*samples: Sample) -> Sample:
    """The sum, the same in any order."""
    total: Counter[int] = Counter()
    for sample in samples:
        total.update(dict(sample.counts))
    return _sample(total)


def columns(sample: Sample, support: Support) -> tuple[Floats, Floats]:
    """(values, counts). Raises `SpecError` where a value lies outside the support."""
    steps, counts = zip(*sample.counts, strict=True) if sample.counts else ((), ())
    values = np.array(steps, dtype=np.float64) / STEPS
    if values.size and (values[0] < support.low or values[-1] > support.high):
        raise SpecError(f"values from {values[0]} to {values[-1]} leave their range {support.low}…{support.high}")
    return values, np.array(counts, dtype=np.float64)


def capped(value: float, cap: float) -> float:
    """A cost or latency as a share of `cap`, at most 1: what is measured is then the mean of the capped value, without
    an assumption about its tail. Raises `SpecError` for a cap that is not positive."""
    if not cap > 0:
        raise SpecError(f"a cap must be above 0, not {cap}")
    return min(1.0, max(0.0, value / cap))


def _sample(counts: Counter[int]) -> Sample:
    return Sample(tuple(sorted((step, count) for step, count in counts.items() if count)))


def _step(value: float) -> int:
    if not math.isfinite(value):
        raise SpecError(f"a score must be a finite number, not {value}")
    return round(value * STEPS)
