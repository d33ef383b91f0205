"""Intervals hold however often they are looked at, and lanes may count for themselves."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.engine.errors import SpecError
from penstock.engine.measure.betting import Side, bets, log_evidence
from penstock.engine.measure.intervals import anytime_interval, bound
from penstock.engine.measure.moments import (
    Moments,
    asymptotic_interval,
    asymptotic_margin,
    merge_moments,
    moments_of,
)
from penstock.engine.measure.sample import DIFFERENCE, STEPS, UNIT, Sample, add, capped, merge, sample_of
from penstock.engine.quality import proportion_interval

scores = st.integers(0, STEPS).map(lambda step: step / STEPS)
score_lists = st.lists(scores, max_size=60)


def share(k: int, n: int) -> Sample:
    return Sample(((0, n - k), (STEPS, k)))


@given(score_lists, score_lists, score_lists)
def test_lanes_that_count_for_themselves_know_what_one_process_would(a: list[float], b: list[float], c: list[float]):
    """Any order of adding and merging gives the same sample, bit for bit."""
    whole = sample_of(a + b + c)
    assert merge(sample_of(c), merge(sample_of(b), sample_of(a))) == whole
    assert add(add(sample_of(b), c), a) == whole
    assert whole.n == len(a) + len(b) + len(c)


@given(score_lists)
def test_a_sample_survives_being_stored(values: list[float]) -> None:
    sample = sample_of(values)
    assert msgspec.json.decode(msgspec.json.encode(sample), type=Sample) == sample


@given(st.lists(scores, min_size=1, max_size=60), st.floats(0.05, 0.95))
def test_an_interval_holds_the_mean_seen_and_stays_in_the_range(values: list[float], confidence: float) -> None:
    found = anytime_interval(sample_of(values), confidence)
    assert found is not None
    assert 0.0 <= found.low <= found.mean <= found.high <= 1.0


@settings(max_examples=30)
@given(st.integers(1, 60), st.integers(0, 60))
def test_intervals_shrink_with_items_and_grow_with_confidence(good: int, bad: int) -> None:
    def width(times: int, confidence: float) -> float:
        n = (good + bad) * times
        found = anytime_interval(share(good * times, n), confidence)
        assert found is not None
        return found.high - found.low

    assert width(4, 0.95) < width(1, 0.95) <= width(1, 0.99)


@settings(max_examples=30)
@given(st.lists(scores, min_size=1, max_size=40), st.floats(0.02, 0.98), st.sampled_from(["up", "down"]))
def test_evidence_is_the_winnings_of_many_fixed_bets(values: list[float], mean: float, side: Side) -> None:
    """Against the definition, product by product, in the order of the items."""
    sizes, log_weights = bets(UNIT)
    money = [math.exp(weight) for weight in log_weights]
    for value in values:
        gain = (value - mean) / mean if side == "up" else (mean - value) / (1 - mean)
        money = [m * (1 + size * gain) for m, size in zip(money, sizes, strict=True)]
    assert log_evidence(sample_of(values), mean, side, UNIT) == pytest.approx(math.log(sum(money)), abs=1e-9)


def test_a_bet_on_fair_coins_wins_nothing_on_average() -> None:
    """The mean of the winnings over all outcomes of 12 throws is 1: the e-process is a martingale."""
    for p, side in ((0.3, "up"), (0.3, "down"), (0.9, "up"), (0.9, "down")):
        chances = [math.comb(12, k) * p**k * (1 - p) ** (12 - k) for k in range(13)]
        money = [math.exp(log_evidence(share(k, 12), p, side, UNIT)) for k in range(13)]  # type: ignore[arg-type]
        assert sum(c * m for c, m in zip(chances, money, strict=True)) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("p", [0.5, 0.85, 0.97])
@pytest.mark.parametrize("n", [50, 100, 500, 1_000, 5_000])
def test_looking_all_the_time_costs_less_than_twice_the_width(n: int, p: float) -> None:
    """Wider than an interval for one look, by a factor under 1.85 (that is 1.66 where the normal curve rules)."""
    ours, fixed = anytime_interval(share(round(p * n), n)), proportion_interval(round(p * n), n)
    assert ours is not None
    assert fixed is not None
    assert 1.0 < (ours.high - ours.low) / (fixed.high - fixed.low) < 1.85


def test_scores_that_vary_little_have_narrow_intervals() -> None:
    """Four times as narrow as 0-and-1 scores of the same mean, whose spread is about three times as large or more."""
    values = np.random.default_rng(1).beta(8, 2, 1_000)
    narrow, wide = anytime_interval(sample_of(values)), anytime_interval(share(800, 1_000))
    assert narrow is not None
    assert wide is not None
    assert (narrow.high - narrow.low) < 0.4 * (wide.high - wide.low)


@pytest.mark.parametrize("p", [0.5, 0.9])
def test_peeking_after_every_item_does_not_spoil_the_promise(p: float) -> None:
    """300 runs of 400 items with a 90 % interval: the truth is outside at any look in far less than 10 % of them."""
    rng, missed = np.random.default_rng(7), 0
    needed = math.log(2 / 0.1)
    table: dict[tuple[int, int], bool] = {}
    for _ in range(300):
        good = (rng.random(400) < p).cumsum().tolist()
        for n, k in enumerate(good, start=1):
            if (n, k) not in table:
                table[n, k] = any(log_evidence(share(k, n), p, s, UNIT) >= needed for s in ("up", "down"))
            if table[n, k]:
                missed += 1
                break
    assert missed / 300 < 0.1


def test_the_bound_is_where_the_evidence_suffices() -> None:
    sample = share(85, 100)
    low = bound(sample, 0.025, "up")
    assert log_evidence(sample, low - 1e-6, "up", UNIT) >= math.log(40) > log_evidence(sample, low + 1e-6, "up", UNIT)


def test_values_outside_their_range_are_refused() -> None:
    with pytest.raises(SpecError, match="leave their range"):
        anytime_interval(sample_of([0.5, 1.2]))
    with pytest.raises(SpecError, match="finite"):
        sample_of([math.nan])
    with pytest.raises(SpecError, match="confidence"):
        anytime_interval(sample_of([0.5]), 95)
    assert anytime_interval(sample_of([-1.0, 1.0]), support=DIFFERENCE) is not None
    assert anytime_interval(Sample()) is None


def test_a_capped_cost_is_a_share_of_the_cap() -> None:
    assert [capped(v, 2.0) for v in (0.0, 1.0, 2.0, 50.0)] == [0.0, 0.5, 1.0, 1.0]
    with pytest.raises(SpecError, match="cap"):
        capped(1.0, 0.0)


@given(st.lists(st.floats(-1e3, 1e3), max_size=40), st.lists(st.floats(-1e3, 1e3), max_size=40))
def test_moments_of_lanes_add_up(a: list[float], b: list[float]) -> None:
    merged, whole = merge_moments(moments_of(a), moments_of(b)), moments_of(a + b)
    assert merged.n == whole.n
    assert merged.mean == pytest.approx(whole.mean, abs=1e-9)
    assert merged.squares == pytest.approx(whole.squares, rel=1e-9, abs=1e-6)


def test_the_asymptotic_interval_is_that_of_another_implementation() -> None:
    """Half-widths of the package ville 0.1.0 on the same values, tuned for 500 as well: it takes the best ρ where we
    take the paper's closed form, and n − 1 where we take n."""
    values = [((i * 37) % 101) / 10 for i in range(1_000)]
    for n, half in ((500, 0.396472), (1_000, 0.282869)):
        found = asymptotic_interval(moments_of(values[:n]))
        assert found is not None
        assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.003)


def test_few_values_have_no_asymptotic_interval() -> None:
    few = Moments(49, 1.0, 49.0)
    assert asymptotic_interval(few) is None
    assert asymptotic_margin(few, 0.05) == math.inf
    assert 0 < asymptotic_margin(Moments(50, 1.0, 50.0), 0.05) < math.inf
