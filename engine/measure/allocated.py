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
the same (`benchmarks/rollout_sim.py`). Assumption: the arm is drawn for each item by itself. Items of one unit share
theirs: many from one unit count for less than they seem.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from penstock.engine.measure.betting import BETS, Side
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

    @property
    def share(self) -> float:
        """Of the other arm's items, as seen."""
        return self.other.n / max(1, self.base.n + self.other.n)


def log_evidence_between(strata: Sequence[Stratum], margin: float, side: Side) -> float:
    """That other's mean less base's lies on this side of `margin`: above log(1/a) by chance with at most a. Raises
    `SpecError` where a value leaves 0…1."""
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
    total, whole = 0.0, 0
    for stratum in strata:
        base, other = stratum.base.mean, stratum.other.mean
        if base is not None and other is not None:
            n = min(stratum.base.n, stratum.other.n)
            total, whole = total + n * (other - base), whole + n
    return total / whole if whole else None


def _log_capitals(stratum: Stratum, margin: float, side: Side) -> Floats:
    """Of each size."""
    sign, share = 1.0 if side == "up" else -1.0, stratum.share
    toward, away = sign * (1.0 - share), -sign * share
    mean = merge(stratum.base, stratum.other).mean or 0.0
    centre = min(1.0 - _EDGE, max(_EDGE, mean - share * margin))
    bets = _SIZES / max(1e-9, -min(_lowest(toward, centre + margin), _lowest(away, centre)))
    return _arm(stratum.other, bets, toward, centre + margin) + _arm(stratum.base, bets, away, centre)


def _lowest(slope: float, centre: float) -> float:
    """What a bet of size 1 loses at most, at either end of the range."""
    return min(-slope * centre, slope * (1.0 - centre))


def _arm(sample: Sample, bets: Floats, slope: float, centre: float) -> Floats:
    values, counts = columns(sample, UNIT)
    return np.log1p(np.outer(bets, slope * (values - centre))) @ counts
