"""The bets and their intervals, against others' figures and against the formula, written down a second time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from penstock.engine.measure.allocated import Stratum, bound_between, log_evidence_between
from penstock.engine.measure.betting import Side, log_evidence
from penstock.engine.measure.intervals import anytime_interval
from penstock.engine.measure.moments import asymptotic_interval, asymptotic_margin, moments_of
from penstock.engine.measure.sample import DIFFERENCE, GUARDED, UNIT, Support, sample_of


def luck(n: int, seed: int) -> list[float]:
    """Numbers between 0 and 1 that any language gives: the linear congruence of C's `rand`."""
    found: list[float] = []
    for _ in range(n):
        seed = (1_103_515_245 * seed + 12_345) % 2**31
        found.append(seed / 2**31)
    return found


COINS = [float(u < 0.85) for u in luck(2_000, 1)]
GRADED = [round(u**0.25, 3) for u in luck(2_000, 1)]
WIDE = [round(10 * u, 3) for u in luck(2_000, 5)]
OTHER = [u < 0.3 for u in luck(4_000, 7)]
TRIED = [float(u < (0.75 if other else 0.85)) for u, other in zip(luck(4_000, 3), OTHER, strict=True)]

BETTING = [
    (COINS, 100, 0.7256, 0.9468),
    (COINS, 500, 0.8051, 0.9153),
    (COINS, 2_000, 0.8262, 0.8913),
    (GRADED, 100, 0.7517, 0.8540),
    (GRADED, 500, 0.7773, 0.8236),
    (GRADED, 2_000, 0.7892, 0.8153),
]
"""`ville` 0.1.0, `BettingCS(alpha=0.05, intersect=False)`: the hedged capital of Waudby-Smith & Ramdas with bets that
follow what was seen, where ours are a mixture that is fixed beforehand. `COINS` by `BernoulliCS`: 0.7099 … 0.9414,
0.8039 … 0.9120, 0.8279 … 0.8858."""


@pytest.mark.parametrize(("values", "n", "low", "high"), BETTING)
def test_intervals_are_about_as_wide_as_those_of_another_package(
    values: list[float], n: int, low: float, high: float
) -> None:
    ours = anytime_interval(sample_of(values[:n]))
    assert ours is not None
    assert ours.low == pytest.approx(low, abs=0.25 * (high - low))
    assert ours.high == pytest.approx(high, abs=0.25 * (high - low))
    assert ours.high - ours.low < 1.15 * (high - low)


@pytest.mark.parametrize(("n", "low", "high"), [(1_000, -0.1552, 0.0225), (4_000, -0.1282, -0.0322)])
def test_two_arms_are_told_apart_about_as_well_as_by_another_package(n: int, low: float, high: float) -> None:
    """`ville` 0.1.0, `BettingABTest(alpha=0.05, propensity=0.3)`: bets on each item's value over its arm's share."""
    arms = (
        sample_of(x for x, other in zip(TRIED[:n], OTHER[:n], strict=True) if other == arm) for arm in (False, True)
    )
    strata = [Stratum(*arms)]
    ours = bound_between(strata, 0.025, "up"), bound_between(strata, 0.025, "down")
    assert ours[1] - ours[0] < 1.05 * (high - low)
    assert low - 0.03 < ours[0] < ours[1] < high + 0.03


@pytest.mark.parametrize(
    ("n", "low", "high"), [(100, 3.921836, 5.871444), (500, 4.891761, 5.690999), (2_000, 4.807264, 5.214427)]
)
def test_means_without_an_end_have_the_interval_of_another_package(n: int, low: float, high: float) -> None:
    """`ville` 0.1.0, `AsymptoticCS(alpha=0.05, t_opt=500)`: the same boundary, narrowest at 500 items exactly; the
    variance over n − 1, where ours is over n."""
    ours = asymptotic_interval(moments_of(WIDE[:n]))
    assert ours is not None
    assert ours.high - ours.low == pytest.approx(high - low, rel=0.02)
    assert ours.mean == pytest.approx((low + high) / 2, abs=1e-6)


@pytest.mark.parametrize(("n", "boundary"), [(100, 30.925416), (500, 61.845663), (2_000, 128.299280)])
def test_one_sided_margins_are_about_those_of_another_package(n: int, boundary: float) -> None:
    """`ville` 0.1.0, one-sided normal mixture at 5 %, narrowest at 500: the mixture's own boundary, found by halving.
    Ours is the closed one of the paper's appendix, narrowest at about as many."""
    values = [(-1.0) ** i for i in range(n)]
    ours = asymptotic_margin(moments_of(values), 0.05) * n
    assert ours == pytest.approx(boundary, rel=0.05)


def capital(values: list[float], mean: float, side: Side, support: Support) -> float:
    """The mixture over fixed bets, item by item: money grows by 1 + c · (x − mean) / (mean − end)."""
    sizes = [0.001 * (0.99 / 0.001) ** (i / 23) for i in range(24)]
    shares = [math.exp(-0.5 * (math.log(c / support.bet_middle) / support.bet_spread) ** 2) for c in sizes]
    money = [share / sum(shares) for share in shares]
    end = support.low if side == "up" else support.high
    for x in values:
        money = [m * (1 + c * (x - mean) / (mean - end)) for m, c in zip(money, sizes, strict=True)]
    return sum(money)


@pytest.mark.parametrize("support", [UNIT, DIFFERENCE, GUARDED])
@pytest.mark.parametrize("side", ["up", "down"])
def test_evidence_is_what_the_bets_win_item_by_item(support: Support, side: Side) -> None:
    values = GRADED[:300] if support is UNIT else [round(2 * u - 1, 3) for u in luck(300, 9)]
    for mean in (-0.3, 0.0, 0.2) if support.low < 0 else (0.7, 0.8, 0.9):
        won = math.log(capital(values, mean, side, support))
        assert log_evidence(sample_of(values), mean, side, support) == pytest.approx(won, abs=1e-9)


def test_the_interval_holds_every_mean_that_no_bet_has_been_lost_against() -> None:
    """Its ends, found by halving, are where either side's money grew to forty times."""
    ours = anytime_interval(sample_of(GRADED[:300]))
    assert ours is not None
    inside = [
        m
        for m in np.linspace(0.005, 0.995, 991).tolist()
        if max(capital(GRADED[:300], m, side, UNIT) for side in ("up", "down")) < 40
    ]
    assert ours.low == pytest.approx(inside[0], abs=0.0011)
    assert ours.high == pytest.approx(inside[-1], abs=0.0011)


def won_between(base: list[float], other: list[float], margin: float, side: Side) -> float:
    """Of the pairs (arm, value), one item after the other, as `allocated.py` says in words; "up" by mirror."""
    if side == "up":
        return won_between([1 - x for x in base], [1 - x for x in other], -margin, "down")
    share = len(other) / (len(base) + len(other))
    centre = (sum(base) + sum(other)) / (len(base) + len(other)) - share * margin
    gains = [(1 - share) * (centre + margin - x) for x in other] + [-share * (centre - x) for x in base]
    worst = -min(
        min((1 - share) * (centre + margin - x) for x in (0.0, 1.0)), min(-share * (centre - x) for x in (0.0, 1.0))
    )
    sizes = [0.002 * (0.99 / 0.002) ** (i / 23) for i in range(24)]
    shares = [math.exp(-0.5 * (math.log(c / 0.2) / 0.8) ** 2) for c in sizes]
    return sum(w * math.prod(1 + c / worst * g for g in gains) for w, c in zip(shares, sizes, strict=True)) / sum(
        shares
    )


@pytest.mark.parametrize("margin", [-0.05, 0.0, 0.1])
@pytest.mark.parametrize("side", ["up", "down"])
def test_evidence_between_two_arms_is_what_is_won_item_by_item(margin: float, side: Side) -> None:
    base, other = ([x for x, arm in zip(TRIED[:400], OTHER[:400], strict=True) if arm == at] for at in (False, True))
    ours = log_evidence_between([Stratum(sample_of(base), sample_of(other))], margin, side)
    assert ours == pytest.approx(math.log(won_between(base, other, margin, side)), abs=1e-9)
