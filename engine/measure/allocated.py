"""Two arms between which chance divides the items: is one's mean worse? From the arms' sums alone.

A gambler who knows how many items are in each arm, but not which, bets on the pair (arm, value):

    other arm:  1 + b·(1 − share)·(c + margin − x)        base arm:  1 − b·share·(c − x)         betting "down"

While the other's mean is the base's plus `margin` or more, the arms even each other out, whatever the mean of the
moment is. So, unlike a comparison of two means, it stays right while the traffic itself gets harder or easier (by day
and night, say). Many sizes b are bet at once (`betting.py`), around the mean c of both arms together. The order of
items does not matter, so lanes count for themselves and their sums are added.

It is a randomization test in the form of a bet (Ville 1939; for coins, the likelihood ratio of Turner, Ly & Grünwald,
Generic E-variables for exact sequential k-sample tests, J. Stat. Plan. Inference 230, 2024). With the share that was
meant it would be exact, and would take an arm whose items come in late, or not at all, for a worse one. With the share
and the mean that were seen the gambler wins a few per cent on average; false alarms stay under the declared rate all
the same (`benchmarks/rollout_sim.py`). Assumption: the arm is drawn for each item by itself.

Where it is drawn for a unit, and units bring several items (`grouped.crowding`), one bet is made on each group of
units, for all strata together, since a unit keeps its arm in them. Items weigh one over all items of their group, so
the bet's mean is nothing for any values, sizes and centres, while chance gives a unit the other arm with this share:

    1 + b · weight · Σ_strata [ (1 − share)·Σ_other (c + margin − x) − share·Σ_base (c − x) ]            betting "down"
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from penstock.engine.measure import grouped
from penstock.engine.measure.betting import BETS, Side
from penstock.engine.measure.grouped import NOTHING, Tally
from penstock.engine.measure.sample import UNIT, Floats, Sample, columns, merge

_EDGE = 0.005
"""A centre nearer to an end of the range is taken as this near: the bets stay bounded."""
_SIZES = np.exp(np.linspace(np.log(0.002), np.log(0.99), BETS))
"""As a share of the largest possible bet."""
_SIZE_LOGS = -0.5 * (np.log(_SIZES / 0.2) / 0.8) ** 2
"""Bets that suit a few hundred items of the smaller arm."""
_LOG_WEIGHTS = _SIZE_LOGS - np.logaddexp.reduce(_SIZE_LOGS)
_HALVINGS = 12
"""Steps of the search for a bound: a twentieth of a point."""


class Stratum(msgspec.Struct, frozen=True):
    """Items that came into the other arm with one chance: of one stage, task and scorer. Values lie in 0…1."""

    base: Sample
    other: Sample
    base_units: Tally = NOTHING
    """By groups of units; nothing, where items are what is divided."""
    other_units: Tally = NOTHING

    @property
    def share(self) -> float:
        """Of the other arm's items, as seen."""
        return self.other.n / max(1, self.base.n + self.other.n)


def sizes(strata: Sequence[Stratum]) -> Floats:
    """Items of each group of units, in both arms and all strata."""
    return grouped.joined(each for stratum in strata for each in (stratum.base_units, stratum.other_units)).n


def items_between(strata: Sequence[Stratum]) -> int:
    """Of the smaller arms, or what they count for where units bring several."""
    items = sum(min(stratum.base.n, stratum.other.n) for stratum in strata)
    return grouped.counted(items, sizes(strata))


def log_evidence_between(strata: Sequence[Stratum], margin: float, side: Side) -> float:
    """That other's mean less base's lies on this side of `margin`: above log(1/a) by chance with at most a. Raises
    `SpecError` where a value leaves 0…1."""
    n = sizes(strata)
    if grouped.crowded(n):
        return _log_evidence_of_units(strata, grouped.weights(n), margin, side)
    capitals = np.zeros(BETS)
    for stratum in strata:
        if stratum.base.n and stratum.other.n:  # else there is nothing to compare
            capitals += _log_capitals(stratum, margin, side)
    return float(np.logaddexp.reduce(capitals + _LOG_WEIGHTS))


def bound_between(strata: Sequence[Stratum], chance: float, side: Side) -> float:
    """The lower bound of the difference ("up": it lies above) or its upper bound, wrong at any time with at most
    `chance`. ±1 where nothing is known."""
    needed = float(np.log(1.0 / chance))
    outer, inner = (-1.0, 1.0) if side == "up" else (1.0, -1.0)
    for _ in range(_HALVINGS):
        middle = (outer + inner) / 2
        if log_evidence_between(strata, middle, side) >= needed:
            outer = middle
        else:
            inner = middle
    return outer


def difference_between(strata: Sequence[Stratum]) -> float | None:
    """Other's mean less base's as seen, each stratum by its smaller arm. None: no stratum has both."""
    n = sizes(strata)
    weights = grouped.weights(n) if grouped.crowded(n) else None
    total, whole = 0.0, 0.0
    for stratum in strata:
        if weights is None:
            (n_base, base), (n_other, other) = ((each.n, each.mean or 0.0) for each in (stratum.base, stratum.other))
        else:
            (n_base, base), (n_other, other) = (
                grouped.weighed(each, weights) for each in (stratum.base_units, stratum.other_units)
            )
        least = min(n_base, n_other)
        total, whole = total + least * (other - base), whole + least
    return total / whole if whole else None


# ---- units


def _log_evidence_of_units(strata: Sequence[Stratum], weights: Floats, margin: float, side: Side) -> float:
    won, lost = np.zeros(len(weights)), np.zeros(len(weights))  # per unit of the bet's size; at most, with these items
    sign = 1.0 if side == "up" else -1.0
    for stratum in strata:
        (n_base, base), (n_other, other) = (
            grouped.weighed(each, weights) for each in (stratum.base_units, stratum.other_units)
        )
        if not n_base or not n_other:
            continue
        share = n_other / (n_base + n_other)
        toward, away = sign * (1.0 - share), -sign * share
        centre = _centre(base + share * (other - base), share, margin)
        for seen, slope, at in ((stratum.other_units, toward, centre + margin), (stratum.base_units, away, centre)):
            won += weights * slope * (seen.total - seen.n * at)
            lost -= weights * seen.n * _lowest(slope, at)
    bets = _SIZES / max(1e-9, float(lost.max()))
    return float(np.logaddexp.reduce(np.log1p(np.outer(bets, won)).sum(axis=1) + _LOG_WEIGHTS))


# ---- items


def _log_capitals(stratum: Stratum, margin: float, side: Side) -> Floats:
    """Of each size."""
    sign, share = 1.0 if side == "up" else -1.0, stratum.share
    toward, away = sign * (1.0 - share), -sign * share
    mean = merge(stratum.base, stratum.other).mean or 0.0
    centre = _centre(mean, share, margin)
    bets = _SIZES / max(1e-9, -min(_lowest(toward, centre + margin), _lowest(away, centre)))
    return _arm(stratum.other, bets, toward, centre + margin) + _arm(stratum.base, bets, away, centre)


def _centre(mean: float, share: float, margin: float) -> float:
    """The base's mean, where `mean` is that of both arms."""
    return min(1.0 - _EDGE, max(_EDGE, mean - share * margin))


def _lowest(slope: float, centre: float) -> float:
    """What a bet of size 1 loses at most, at either end of the range."""
    return min(-slope * centre, slope * (1.0 - centre))


def _arm(sample: Sample, bets: Floats, slope: float, centre: float) -> Floats:
    values, counts = columns(sample, UNIT)
    return np.log1p(np.outer(bets, slope * (values - centre))) @ counts
