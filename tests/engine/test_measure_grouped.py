"""Where a unit brings many items, units are what counts: error rates hold, however alike its items are."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.measure.allocated import (
    Stratum,
    bound_between,
    difference_between,
    items_between,
    log_evidence_between,
)
from penstock.engine.measure.betting import Side
from penstock.engine.measure.grouped import (
    FULL,
    GROUPS,
    Groups,
    Tally,
    counted,
    crowded,
    crowding,
    group_of,
    joined,
    means,
    moments,
    moments_between,
    tally,
)
from penstock.engine.measure.moments import asymptotic_margin
from penstock.engine.measure.sample import STEPS, Floats, Sample

FOUND = math.log(1 / 0.01)
Rng = np.random.Generator


def seen(group: Floats, n: Floats, total: Floats) -> Tally:
    return Tally(*(np.bincount(group.astype(int), of, GROUPS).astype(float) for of in (n, total)))


def stratum(base: Tally, other: Tally) -> Stratum:
    """Of values that are 0 or 1."""
    coins = (Sample(((0, int((each.n - each.total).sum())), (STEPS, int(each.total.sum())))) for each in (base, other))
    return Stratum(*coins, base, other)


def by_items(stratum: Stratum) -> Stratum:
    """As if items were independent."""
    return Stratum(stratum.base, stratum.other)


@pytest.mark.parametrize(("each", "least", "most"), [(1, 1.0, 1.25), (2, 1.7, 2.3), (10, 9.0, 11.0), (100, 90, 110)])
@pytest.mark.parametrize("units", [60, 20_000])
def test_how_many_items_a_unit_brings_is_told_from_the_groups_sizes_alone(
    each: int, least: float, most: float, units: int
) -> None:
    n = np.bincount(np.random.default_rng(units).integers(0, GROUPS, units), minlength=GROUPS) * float(each)
    assert least <= crowding(n) <= most
    assert crowded(n) == (each > 1)


def test_one_customer_among_very_many_shows() -> None:
    n = np.bincount(np.random.default_rng(1).integers(0, GROUPS, 100_000), minlength=GROUPS) * 1.0
    assert not crowded(n)
    n[7] += 5_000
    assert crowding(n) > 100


def test_where_units_bring_one_item_each_everything_is_as_if_there_were_no_units() -> None:
    rng = np.random.default_rng(4)
    arms = [seen(rng.integers(0, GROUPS, 900), np.ones(900), (rng.random(900) < 0.9) * 1.0) for _ in range(2)]
    units = stratum(*arms)
    items = by_items(units)
    for margin in (-0.05, 0.0, 0.05):
        assert log_evidence_between([units], margin, "down") == log_evidence_between([items], margin, "down")
    assert bound_between([units], 0.01, "up") == bound_between([items], 0.01, "up")
    assert difference_between([units]) == difference_between([items])
    assert items_between([units]) == 900


@pytest.mark.parametrize("margin", [0.0, -0.05])
@pytest.mark.parametrize("side", ["up", "down"])
@pytest.mark.parametrize("heavy", [3, 40])
def test_next_to_nothing_is_won_on_average_over_all_ways_to_divide_the_same_units(
    heavy: int, side: Side, margin: float
) -> None:
    """Nine units, the last of which may bring more than all others; two share a group. Three are in the other arm."""
    n = np.array([3.0] * 8 + [heavy])
    total, group = n * np.array([1, 1, 0, 1, 1, 0, 1, 1, 0]), np.array([0, 0, *range(1, 8)])
    won: list[float] = []
    for chosen in itertools.combinations(range(9), 3):
        other = np.isin(np.arange(9), chosen)
        arms = [seen(group[inside], n[inside], total[inside]) for inside in (~other, other)]
        assert crowded(joined(arms).n)
        won.append(math.exp(log_evidence_between([stratum(*arms)], margin if side == "down" else -margin, side)))
    assert sum(won) / len(won) < 1.15


def divided(rng: Rng, units: int, share: float, mean: float, whole: float) -> tuple[Floats, Floats, Floats]:
    """(in the other arm?, its chance to be right, group) of each unit. `whole`: the smaller, the more units differ."""
    return (
        (rng.random(units) < share) * 1.0,
        rng.beta(mean * whole, (1 - mean) * whole, units),
        rng.integers(0, GROUPS, units),
    )


@pytest.mark.parametrize(("units", "share", "whole"), [(200, 0.5, 5.0), (400, 0.5, 0.2), (2_000, 0.05, 1.0)])
def test_equal_arms_are_rarely_taken_for_different_while_units_go_on_bringing_items(
    units: int, share: float, whole: float
) -> None:
    """150 runs, 10 looks each, 30 items a unit. Items taken for independent would accuse more often."""
    rng, alarms, missed, by_item = np.random.default_rng(6), 0, 0, 0
    for _ in range(150):
        other, quality, group = divided(rng, units, share, 0.8, whole)
        n, right = np.zeros(units), np.zeros(units)
        alarmed = wrong = accused = False
        for _ in range(10):
            more = rng.poisson(3, units)
            n, right = n + more, right + rng.binomial(more, quality)
            arms = (seen(group[other == arm], n[other == arm], right[other == arm]) for arm in (0.0, 1.0))
            look = stratum(*arms)
            down, up = (log_evidence_between([look], 0.0, side) for side in ("down", "up"))
            alarmed, wrong = alarmed or down >= FOUND, wrong or max(down, up) >= math.log(40)
            accused = accused or log_evidence_between([by_items(look)], 0.0, "down") >= FOUND
        alarms, missed, by_item = alarms + alarmed, missed + wrong, by_item + accused
    assert alarms <= 4  # at most 1 in 100 is promised: 1.5, and 2 standard deviations
    assert missed <= 12  # 1 in 20: 7.5, and 2 standard deviations
    assert by_item > 7


def test_a_size_that_tells_the_quality_accuses_nobody_though_one_arm_is_far_smaller() -> None:
    """Who brings many items gets harder ones. A mean of groups' means would find an arm of few units better."""
    rng, alarms = np.random.default_rng(7), 0
    for _ in range(100):
        n = np.minimum(500, rng.pareto(1.2, 3_000) + 1).astype(int)
        right, group = rng.binomial(n, np.where(n > 5, 0.6, 0.95)), rng.integers(0, GROUPS, 3_000)
        other = rng.random(3_000) < 0.02
        arms = (seen(group[inside], n[inside], right[inside]) for inside in (~other, other))
        look = stratum(*arms)
        alarms += max(log_evidence_between([look], 0.0, side) for side in ("down", "up")) >= math.log(40)
    assert alarms <= 9


@pytest.mark.parametrize(("each", "units"), [(2, 400), (10, 250), (100, 250)])
def test_ten_points_are_found_in_some_hundred_units(each: int, units: int) -> None:
    rng, found = np.random.default_rng(8), 0
    for _ in range(20):
        arms: list[Tally] = []
        for mean, many in ((0.9, 9 * units), (0.8, units)):
            _, quality, group = divided(rng, many, 0.0, mean, 5.0)
            arms.append(seen(group, np.full(many, float(each)), rng.binomial(each, quality) * 1.0))
        found += log_evidence_between([stratum(*arms)], 0.0, "down") >= FOUND
    assert found >= 18


def test_latencies_of_units_that_are_slow_by_themselves_accuse_nobody() -> None:
    rng, by_unit, by_item = np.random.default_rng(9), 0, 0
    for _ in range(200):
        other, slow, group = rng.random(300) < 0.5, rng.standard_normal(300), rng.integers(0, GROUPS, 300)
        n = np.full(300, 40.0)
        total = n * slow + math.sqrt(40) * rng.standard_normal(300)
        base, cand = (seen(group[inside], n[inside], total[inside]) for inside in (~other, other))
        whole = moments_between([(base, cand)])
        assert 100 < whole.n < 180
        by_unit += abs(whole.mean) > asymptotic_margin(whole, 0.01)
        apart = cand.total.sum() / cand.n.sum() - base.total.sum() / base.n.sum()
        by_item += abs(apart) > 5 * math.sqrt(2.0 * 4 / (40 * 300))  # what 12,000 independent items would show
    assert by_unit <= 6  # both sides: at most 1 in 50
    assert by_item > 40


def test_one_number_a_unit_is_what_pairs_are_reckoned_from() -> None:
    units = Tally(*(np.concatenate([np.array(x, dtype=float), np.zeros(GROUPS - 3)]) for x in ([4, 0, 2], [-2, 0, 2])))
    assert means(units) == Sample(((-500, 1), (1_000, 1)))
    rng = np.random.default_rng(2)
    group = rng.integers(0, GROUPS, 200)
    whole = moments(seen(group, np.full(200, 10.0), 10 * rng.standard_normal(200)))
    assert 170 < whole.n < 230
    assert whole.variance == pytest.approx(1.0, rel=0.35)


def test_a_stage_waits_for_units_but_not_for_ever() -> None:
    rng = np.random.default_rng(5)
    for each, counts in ((1, 3_000), (4, 750), (100, 3_000 / FULL)):
        n = np.bincount(rng.integers(0, GROUPS, 3_000 // each), minlength=GROUPS) * float(each)
        assert counted(3_000, n) == pytest.approx(counts, rel=0.15)


@given(st.lists(st.tuples(st.text(max_size=5), st.integers(-1_000, 1_000)), max_size=30))
def test_sums_of_lanes_are_what_one_lane_would_have_seen_and_can_be_taken_out_again(
    items: list[tuple[str, int]],
) -> None:
    lanes, one = (Groups(), Groups(), Groups()), Groups()
    for number, (unit, value) in enumerate(items):
        for each in (lanes[number % 3], one):
            each.see(group_of(unit), value)
    whole = Groups()
    for lane in lanes:
        whole.join(lane)
    assert whole == one
    assert tally([*lanes, None]).n.sum() == len(items)
    for lane in lanes:
        whole.join(lane, -1)
    assert whole == Groups()
