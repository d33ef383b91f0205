"""The threshold of a cascade: how sure must a cheap answer be to be accepted, so that accepted answers are good enough?

From labelled rows (signal, correct). Learn then Test (Angelopoulos, Bates, Candès, Jordan & Lei, Ann. Appl. Statist.
2025; arXiv 2110.01052): thresholds are tested from strict to loose, each for "what it accepts is worse than asked", and
the first that can't be shown stops its run (fixed sequence: Bauer, Statist. Med. 10, 1991). Runs start at several
places, each with its part of the error rate, so that one early mistake doesn't end it all.

Assumption: labelled rows are drawn like those to come. When that changes, `registry.promises` says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from penstock.engine.errors import SpecError
from penstock.engine.measure.sample import Floats

STARTS = 4
"""Places where runs of tests start: at the fewest rows that could pass at all, and evenly after that."""
STEPS = 100
"""Thresholds tried at most, evenly over the rows."""
MOST_LABELS = 1_000_000
"""Beyond this many, needed labels are called out of reach."""


class Threshold(msgspec.Struct, frozen=True):
    """Accept an answer whose signal is above `above`."""

    above: float
    accepted: int
    rows: int
    quality: float
    """Of the accepted labelled rows. (What is promised is `min_quality`, not this.)"""
    confidence: float

    @property
    def share(self) -> float:
        return self.accepted / self.rows


class NoThreshold(msgspec.Struct, frozen=True):
    """Nothing may be accepted yet."""

    why: str
    labels_needed: int | None
    """About how many labelled rows would be needed in all, if quality stays as it looks. None: no number would do."""


def calibrate(
    signals: Sequence[float], correct: Sequence[float], min_quality: float, confidence: float = 0.95
) -> Threshold | NoThreshold:
    """The loosest threshold shown to accept answers of at least `min_quality` on average, with this confidence.

    `correct` may be graded, 0…1. Raises `SpecError` where the rows or `min_quality` make no sense.
    """
    _check(signals, correct, min_quality, confidence)
    order = np.argsort(-np.array(signals, dtype=np.float64), kind="stable")
    ranked = np.array(signals, dtype=np.float64)[order]
    good = np.concatenate(([0.0], np.cumsum(np.array(correct, dtype=np.float64)[order])))
    graded = any(each not in (0, 1) for each in correct)
    chance = (1.0 - confidence) / STARTS
    ranks = _ranks(ranked, _fewest(min_quality, chance))
    passed = {rank for start in _starts(ranks) for rank in _run(ranks[start:], good, min_quality, chance, graded)}
    if not passed:
        return _refusal(len(signals), ranks, good, min_quality, chance)
    best = max(passed)
    return Threshold(float(ranked[best]), best, len(signals), float(good[best]) / best, confidence)


def worse_by_chance(good: float, n: int, min_quality: float, *, graded: bool = False) -> float:
    """The p-value of "the mean is below `min_quality`" from a sum of n scores: the binomial tail for 0 and 1, and
    Hoeffding and Bentkus' (Bates et al., J. ACM 68, 2021) for graded scores."""
    from scipy.special import bdtrc  # late: it takes a while to import

    if n == 0 or good / n <= min_quality:
        return 1.0
    if not graded:
        return float(bdtrc(round(good) - 1, n, min_quality))
    tail = math.e * float(bdtrc(math.floor(good) - 1, n, min_quality)) if good >= 1 else 1.0
    return min(1.0, tail, math.exp(-n * _divergence(good / n, min_quality)))


def _divergence(a: float, b: float) -> float:
    """Kullback and Leibler's, of two coins."""
    one = a * math.log(a / b) if a > 0 else 0.0
    other = (1.0 - a) * math.log((1.0 - a) / (1.0 - b)) if a < 1 else 0.0
    return one + other


def _fewest(min_quality: float, chance: float) -> int:
    """Rows that suffice if every one is correct."""
    return math.ceil(math.log(chance) / math.log(min_quality))


def _ranks(ranked: Floats, fewest: int) -> list[int]:
    """How many rows each threshold accepts, strict to loose. A threshold is the signal of the next row, which is not
    accepted itself: so the rows above it are a fair draw of all that the threshold accepts."""
    borders = np.flatnonzero(ranked[:-1] > ranked[1:]) + 1  # equal signals are accepted together
    borders = borders[borders >= fewest]
    picked = np.unique(np.linspace(0, len(borders) - 1, min(STEPS, len(borders))).round().astype(np.int64))
    return [int(border) for border in borders[picked]]


def _starts(ranks: list[int]) -> list[int]:
    return sorted({i * len(ranks) // STARTS for i in range(STARTS)}) if ranks else []


def _run(ranks: list[int], good: Floats, min_quality: float, chance: float, graded: bool) -> list[int]:
    passed: list[int] = []
    for rank in ranks:
        if worse_by_chance(float(good[rank]), rank, min_quality, graded=graded) > chance:
            break
        passed.append(rank)
    return passed


def _refusal(n: int, ranks: list[int], good: Floats, min_quality: float, chance: float) -> NoThreshold:
    if not ranks:
        fewest = _fewest(min_quality, chance)
        return NoThreshold(f"{n} labelled rows: not even {fewest} that are all correct lie above a signal", fewest + 1)
    # One answer counted as wrong on top: the best of many thresholds looks better than it is.
    looks = ((rank, _needed(float(good[rank]) / (rank + 1), min_quality, chance)) for rank in ranks)
    options = [(needed * n / rank, rank) for rank, needed in looks if needed is not None]
    if not options:
        return NoThreshold(f"no threshold accepts answers that look better than {min_quality:g}", None)
    rows, rank = min(options)
    why = f"the best threshold looks like {good[rank] / rank:.3f} on {rank} accepted rows: too few to show"
    return NoThreshold(f"{why} {min_quality:g}", math.ceil(rows))


def _needed(quality: float, min_quality: float, chance: float) -> int | None:
    """Accepted rows whose p-value would do if quality stays; None: it is not above what is asked, or beyond reach."""
    if quality <= min_quality:
        return None
    low, high = 0, 1
    while worse_by_chance(math.floor(quality * high), high, min_quality) > chance:
        low, high = high, high * 2
        if high > MOST_LABELS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        enough = worse_by_chance(math.floor(quality * middle), middle, min_quality) <= chance
        low, high = (low, middle) if enough else (middle, high)
    return high


def _check(signals: Sequence[float], correct: Sequence[float], min_quality: float, confidence: float) -> None:
    if len(signals) != len(correct):
        raise SpecError(f"{len(signals)} signals need as many labels, not {len(correct)}")
    if not (0.0 < min_quality < 1.0 and 0.0 < confidence < 1.0):
        raise SpecError(f"a quality and a confidence lie between 0 and 1, not at {min_quality} and {confidence}")
    if not all(map(math.isfinite, signals)) or not all(0.0 <= each <= 1.0 for each in correct):
        raise SpecError("signals must be finite, and labels between 0 and 1")
