"""How much one candidate differs from another.

On the same rows: take each row's difference as a value of the range `DIFFERENCE` and use `anytime_interval`. Two arms
with rows of their own: `arms_interval` from their samples alone, or `Pairing`, which compares each item of the small
arm with the baseline's items of the same time, and so stays right when the traffic itself changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from penstock.engine.errors import SpecError
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


class Pairing(msgspec.Struct, frozen=True):
    """Turns two arms' scores, as they come, into differences: a candidate's less the mean of `ratio` of the baseline's.

    Each score is used once, and which are paired depends on their order alone. Lanes pair for themselves; the samples
    of their differences may be merged, and their waiting scores are left.
    """

    ratio: int = 1
    """Baseline items to one of the candidate: the baseline's traffic over the candidate's, rounded down. Larger than
    the traffic gives wastes candidate scores; smaller wastes baseline scores. Neither spoils an error rate."""
    candidate: tuple[float, ...] = ()
    base: tuple[float, ...] = ()


KEPT_BLOCKS = 50
"""Blocks' worth of scores of one arm that wait for the other; older ones are dropped: they are of another time."""


def pair(pairing: Pairing, candidate: Sequence[float], base: Sequence[float]) -> tuple[Pairing, tuple[float, ...]]:
    """(what goes on waiting, differences that are complete). Raises `SpecError` for a ratio below 1."""
    ratio = pairing.ratio
    if ratio < 1:
        raise SpecError(f"a pairing needs a ratio of at least 1, not {ratio}")
    ours, theirs = (*pairing.candidate, *candidate), (*pairing.base, *base)
    done = min(len(ours), len(theirs) // ratio)
    found = tuple(ours[i] - sum(theirs[i * ratio : (i + 1) * ratio]) / ratio for i in range(done))
    return Pairing(ratio, ours[done:][-KEPT_BLOCKS:], theirs[done * ratio :][-KEPT_BLOCKS * ratio :]), found
