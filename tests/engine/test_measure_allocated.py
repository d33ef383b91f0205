"""Two arms of a rollout: what is worse is found, what is not is rarely accused, whatever the traffic does meanwhile."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.measure.allocated import Stratum, bound_between, difference_between, log_evidence_between
from penstock.engine.measure.betting import Side
from penstock.engine.measure.guards import Guard, judge_arms
from penstock.engine.measure.sample import STEPS, Sample, merge, sample_of

FOUND = math.log(100)
QUALITY = Guard(name="quality", pass_within=-0.05, max_items=500)


def coins(good: int, n: int) -> Sample:
    return Sample(((0, n - good), (STEPS, good)))


def test_ten_points_less_are_found_and_none_less_are_not() -> None:
    worse = [Stratum(coins(3_060, 3_600), coins(300, 400))]
    same = [Stratum(coins(3_060, 3_600), coins(340, 400))]
    assert log_evidence_between(worse, 0.0, "down") > FOUND
    assert log_evidence_between(same, 0.0, "down") < 0.0
    assert judge_arms(QUALITY, worse, worse).decision == "fail"
    assert judge_arms(QUALITY, same, same).decision == "go on"


def test_a_stage_passes_by_what_it_saw_itself_and_fails_by_all_that_was_seen() -> None:
    first = Stratum(coins(36_000, 40_000), coins(4_010, 4_400))
    fresh = Stratum(coins(9, 10), coins(9, 10))
    assert judge_arms(QUALITY, [first], [first]).decision == "pass"
    assert judge_arms(QUALITY, [first, fresh], [fresh]).decision == "go on"
    bad = Stratum(coins(3_600, 4_000), coins(300, 400))
    assert judge_arms(QUALITY, [bad, fresh], [fresh]).decision == "fail"


def test_a_bound_says_what_may_still_be_wrong() -> None:
    strata = [Stratum(coins(3_060, 3_600), coins(340, 400))]
    worst, best = bound_between(strata, 0.01, "up"), bound_between(strata, 0.01, "down")
    assert -0.12 < worst < 0.0 < best < 0.12
    assert abs(difference_between(strata) or 0.0) < 1e-9
    assert bound_between([], 0.01, "up") == -1.0
    assert difference_between([Stratum(Sample(), coins(1, 1))]) is None


def test_an_arm_whose_items_come_in_late_is_not_taken_for_a_worse_one() -> None:
    """A tenth was meant, half of that is there: as good as the others."""
    for base, other in ((3_240, 90), (3_240, 720)):
        strata = [Stratum(coins(base, base * 10 // 9), coins(other, other * 10 // 9))]
        assert log_evidence_between(strata, 0.0, "down") < 1.0


def test_with_all_in_one_arm_there_is_no_evidence() -> None:
    assert abs(log_evidence_between([Stratum(Sample(), coins(0, 900))], 0.0, "down")) < 1e-9


@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from([0.0, 0.25, 1.0])),
        min_size=1,
        max_size=30,
    )
)
def test_lanes_that_count_for_themselves_add_up_to_one(items: list[tuple[bool, float]]) -> None:
    def stratum(part: list[tuple[bool, float]]) -> Stratum:
        return Stratum(sample_of(x for arm, x in part if not arm), sample_of(x for arm, x in part if arm))

    whole, a, b = stratum(items), stratum(items[::2]), stratum(items[1::2])
    added = Stratum(merge(a.base, b.base), merge(a.other, b.other))
    assert log_evidence_between([whole], -0.01, "down") == log_evidence_between([added], -0.01, "down")


@pytest.mark.parametrize("margin", [0.0, -0.05])
@pytest.mark.parametrize("side", ["up", "down"])
@pytest.mark.parametrize("right", [1, 4, 6, 8])
def test_next_to_nothing_is_won_on_average_over_all_ways_to_divide_the_same_items(
    right: int, side: Side, margin: float
) -> None:
    """Eight items, three of them in the other arm: whichever three they are, each as likely as any other."""
    values = [1.0] * right + [0.0] * (8 - right)
    won: list[float] = []
    for chosen in itertools.combinations(range(8), 3):
        other = sample_of(values[i] for i in chosen)
        base = sample_of(values[i] for i in range(8) if i not in chosen)
        won.append(math.exp(log_evidence_between([Stratum(base, other)], margin if side == "down" else -margin, side)))
    assert sum(won) / len(won) < 1.15


def test_false_alarms_stay_rare_while_the_traffic_gets_harder() -> None:
    """Day and night differ by twenty points, and the share rises on the way: 300 runs, looked at 30 times each."""
    rng, alarms = np.random.default_rng(3), 0
    for _ in range(300):
        strata: list[Stratum] = []
        alarmed = False
        for share, quality in ((0.05, 0.9), (0.25, 0.7)):
            base, other = Sample(), Sample()
            for _ in range(15):
                n = int(rng.binomial(200, share))
                base = merge(base, coins(int(rng.binomial(200 - n, quality)), 200 - n))
                other = merge(other, coins(int(rng.binomial(n, quality)), n))
                looked = [*strata, Stratum(base, other)]
                alarmed = alarmed or log_evidence_between(looked, 0.0, "down") >= FOUND
            strata.append(Stratum(base, other))
        alarms += alarmed
    assert alarms <= 6  # at most 1 in 100 is promised: 3, and 2 standard deviations
