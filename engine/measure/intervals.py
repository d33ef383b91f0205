"""Intervals that may be looked at after every item: with the stated confidence they hold at all times at once."""

from __future__ import annotations

import math

from penstock.engine.errors import SpecError
from penstock.engine.measure.betting import Side, log_evidence
from penstock.engine.measure.sample import UNIT, Sample, Support
from penstock.engine.quality import Interval

_HALVINGS = 30
"""Steps of the search for a bound: a billionth of the range."""


def anytime_interval(sample: Sample, confidence: float = 0.95, support: Support = UNIT) -> Interval | None:
    """Of the mean; see `betting.py` for the method and its assumption. None: no values. Raises `SpecError` for values
    outside the support, or a confidence that is not between 0 and 1."""
    mean = sample.mean
    if mean is None:
        return None
    chance = error_rate(confidence) / 2
    return Interval(mean, bound(sample, chance, "up", support), bound(sample, chance, "down", support))


def bound(sample: Sample, chance: float, side: Side, support: Support = UNIT) -> float:
    """The true mean's lower bound ("up": it lies above) or upper bound, wrong at any time with at most `chance`."""
    mean = sample.mean
    if mean is None:
        return support.low if side == "up" else support.high
    needed = math.log(1.0 / chance)
    outer, inner = (support.low, mean) if side == "up" else (support.high, mean)
    for _ in range(_HALVINGS):
        middle = (outer + inner) / 2
        if log_evidence(sample, middle, side, support) >= needed:
            outer = middle
        else:
            inner = middle
    return outer


def error_rate(confidence: float) -> float:
    """1 − confidence. Raises `SpecError` unless it lies between 0 and 1."""
    if not 0.0 < confidence < 1.0:
        raise SpecError(f"a confidence lies between 0 and 1, not at {confidence}")
    return 1.0 - confidence
