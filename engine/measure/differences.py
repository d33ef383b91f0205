"""How much one candidate differs from another.

On the same rows: take each row's difference as a value of the range `DIFFERENCE` and use `anytime_interval`. Two arms
with rows of their own: `arms_interval` from their samples.
"""

from __future__ import annotations

import math

import numpy as np

from penstock.engine.measure.betting import Side, log_factors, log_mixed
from penstock.engine.measure.intervals import error_rate
from penstock.engine.measure.sample import UNIT, Floats, Sample, Support, columns
from penstock.engine.quality import Interval

_CELLS = 1_000
"""Pieces of the range in which the baseline's unknown mean is looked for: bounds are rounded outward to one."""


def arms_interval(base: Sample, other: Sample, confidence: float = 0.95, support: Support = UNIT) -> Interval | None:
    """Of other's mean less base's. None: an arm has no values.

    The evidence that the difference lies above d is, for every mean m the baseline may have, that it lies below m times
    that the other lies above m + d; the least over m counts (a product of two e-processes of independent arms; the
    universal inference of Wasserman, Ramdas & Balakrishnan, PNAS 2020). Assumes that each arm's mean stays the same.
    """
    if base.mean is None or other.mean is None:
        return None
    chance = error_rate(confidence) / 2
    low = _difference_bound(base, other, chance, support)
    high = -_difference_bound(other, base, chance, support)
    return Interval(other.mean - base.mean, low, high)


def _difference_bound(base: Sample, other: Sample, chance: float, support: Support) -> float:
    """The lower bound of other − base: the largest number of cells that the evidence reaches."""
    below, above = _by_mean(base, "down", support), _by_mean(other, "up", support)
    needed = math.log(1.0 / chance)
    low, high = -_CELLS, _CELLS
    while high - low > 1:  # the evidence falls as the difference asked about grows
        middle = (low + high) // 2
        low, high = (middle, high) if _least(below, above, middle) >= needed else (low, middle)
    return low * (support.high - support.low) / _CELLS


def _by_mean(sample: Sample, side: Side, support: Support) -> Floats:
    """The log evidence on this side of every cell's border."""
    values, counts = columns(sample, support)
    borders = np.linspace(support.low, support.high, _CELLS + 1)
    return np.array([log_mixed(counts @ log_factors(values, m, side, support), support) for m in borders.tolist()])


def _least(below: Floats, above: Floats, cells: int) -> float:
    """The least evidence that the difference exceeds so many cells, over all means of the baseline.

    Within a cell of baseline means, "base lies below m" grows with m and "other lies above m + d" falls: the first at
    the cell's start and the second at its end are less than the truth, never more.
    """
    starts = np.arange(_CELLS)
    ends = starts + 1 + cells
    possible = ends > 0  # below that, other's mean would have to leave the range
    if not possible.any():
        return math.inf
    return float((below[starts[possible]] + above[np.clip(ends[possible], 0, _CELLS)]).min())
