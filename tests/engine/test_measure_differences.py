"""Candidates are told apart only where they differ, in pairs, in arms and among many."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.engine.errors import SpecError
from penstock.engine.measure.comparison import add_rows, comparison, differences, log_better
from penstock.engine.measure.differences import arms_interval
from penstock.engine.measure.intervals import anytime_interval
from penstock.engine.measure.sample import STEPS, Sample, sample_of
from penstock.engine.measure.several import log_two_sided, p_value, real_by_holm
from penstock.engine.measure.stopping import StopRule, look

row = st.lists(st.integers(0, STEPS).map(lambda s: s / STEPS), min_size=3, max_size=3)


def share(k: int, n: int) -> Sample:
    return Sample(((0, n - k), (STEPS, k)))


# ---- two arms


@settings(max_examples=8)
@given(st.integers(0, 200), st.integers(0, 50))
def test_an_interval_of_arms_holds_what_was_seen_and_turns_with_the_arms(a: int, b: int) -> None:
    there, back = arms_interval(share(a, 200), share(b, 50)), arms_interval(share(b, 50), share(a, 200))
    assert there is not None
    assert back is not None
    assert -1.0 <= there.low <= there.mean <= there.high <= 1.0
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))


def test_the_direct_interval_is_narrower_than_two_intervals_put_together() -> None:
    """Two 97.5 % intervals would be right as well, and wider."""
    base, other = share(3_400, 4_000), share(320, 400)
    direct = arms_interval(base, other)
    a, b = anytime_interval(base, 0.975), anytime_interval(other, 0.975)
    assert direct is not None
    assert a is not None
    assert b is not None
    assert direct.high - direct.low < (a.high - a.low) + (b.high - b.low)


def test_arms_that_differ_much_are_told_apart_and_equal_ones_are_not() -> None:
    apart, equal = arms_interval(share(450, 500), share(375, 500)), arms_interval(share(450, 500), share(449, 500))
    assert apart is not None
    assert equal is not None
    assert apart.high < 0 < equal.high
    assert equal.low < 0
    assert arms_interval(Sample(), share(1, 2)) is None


# ---- many


def test_holm_keeps_what_the_textbook_keeps() -> None:
    """Four tests at 0.05: 0.005 ≤ 0.05/4 and 0.01 ≤ 0.05/3, but 0.03 > 0.05/2, and so 0.04 goes with it."""
    assert real_by_holm([0.01, 0.04, 0.03, 0.005]) == {0, 3}
    assert real_by_holm([]) == frozenset()


def test_evidence_of_two_sides_is_a_p_value_at_any_time() -> None:
    """400 runs without a difference, looked at after every 20 of 200 rows: p under 0.05 in at most 5 % of them."""
    rng, under = np.random.default_rng(3), 0
    for _ in range(400):
        rows = rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.8, 0.1], size=200)
        under += any(p_value(log_two_sided(sample_of(rows[:n]))) < 0.05 for n in range(20, 201, 20))
    assert under / 400 <= 0.05


# ---- several candidates over the same rows


@settings(max_examples=40)
@given(st.lists(row, max_size=20), st.lists(row, max_size=20))
def test_rows_may_come_in_parts_and_candidates_in_any_order(a: list[list[float]], b: list[list[float]]) -> None:
    empty = comparison(["x", "y", "z"])
    whole = add_rows(empty, a + b)
    assert add_rows(add_rows(empty, b), a) == whole
    assert whole.rows == len(a) + len(b)
    if whole.rows:
        turned = add_rows(comparison(["z", "x"]), [(r[2], r[0]) for r in a + b])
        assert log_better(whole, 0, 2, 0.1) == pytest.approx(log_better(turned, 1, 0, 0.1))


def rows_of(seed: int, n: int, *qualities: float) -> list[list[float]]:
    """The same luck for all candidates in half of the rows."""
    rng = np.random.default_rng(seed)
    common, own, both = rng.random((n, 1)), rng.random((n, len(qualities))), rng.random((n, 1)) < 0.5
    return (np.where(both, common, own) < np.array(qualities)).astype(float).tolist()


def test_only_real_differences_are_called_real() -> None:
    found = differences(add_rows(comparison(["a", "b", "c"]), rows_of(1, 2_000, 0.9, 0.8, 0.8)))
    assert {(each.first, each.second): each.real for each in found} == {
        ("a", "b"): True,
        ("a", "c"): True,
        ("b", "c"): False,
    }
    assert all(each.interval.low > 0 for each in found if each.real)


@pytest.mark.parametrize(
    ("qualities", "rule", "reason"),
    [
        ((0.9, 0.7), StopRule(), "winner"),
        ((0.8, 0.8), StopRule(), "go on"),
        ((0.8, 0.8), StopRule(max_rows=2_000), "rows used up"),
        ((0.8, 0.8), StopRule(same_within=0.1), "same"),
        ((0.8, 0.8, 0.8), StopRule(half_width=0.05), "narrow"),
        ((0.8,), StopRule(half_width=0.05), "narrow"),
        ((0.8,), StopRule(half_width=0.01), "go on"),
    ],
)
def test_an_evaluation_stops_for_the_reason_that_holds(
    qualities: tuple[float, ...], rule: StopRule, reason: str
) -> None:
    names = [f"m{i}" for i in range(len(qualities))]
    stop = look(add_rows(comparison(names), rows_of(4, 2_000, *qualities)), rule)
    assert stop.reason == reason
    assert stop.rows == 2_000
    if reason == "winner":
        assert stop.leader == "m0"


def test_a_winner_and_no_difference_share_the_chance_to_be_wrong() -> None:
    """Who asks for either waits somewhat longer for each."""

    def rows_until_a_winner(rule: StopRule) -> int:
        at = comparison(["a", "b"])
        while look(at, rule).reason != "winner":
            at = add_rows(at, [[1.0, 0.0]])
        return at.rows

    assert rows_until_a_winner(StopRule()) < rows_until_a_winner(StopRule(same_within=0.01))


def test_an_evaluation_may_be_looked_at_before_the_first_row() -> None:
    rule = StopRule(same_within=0.1, half_width=0.1, max_rows=10)
    assert look(comparison(["a", "b"]), rule).reason == "go on"


def test_wrong_comparisons_are_refused() -> None:
    with pytest.raises(SpecError, match="different names"):
        comparison(["a", "a"])
    with pytest.raises(SpecError, match="score of each"):
        add_rows(comparison(["a", "b"]), [[1.0]])
