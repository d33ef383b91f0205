"""Two arms of a rollout: what is worse is found, what is not is rarely accused, whatever the traffic does meanwhile."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.measure.allocated import Stratum, bound_between, difference_between, log_evidence_between
from penstock.engine.measure.guards import Guard, judge_arms
from penstock.engine.measure.sample import STEPS, Sample, merge, sample_of

FOUND = math.log(100)
QUALITY = Guard(name="quality", pass_within=-0.05, max_items=500)


def coins(good: int, n: int) -> Sample:
    return Sample(((0, n - good), (STEPS, good)))


def test_ten_points_less_are_found_and_none_less_are_not() -> None:
    worse = [Stratum(0.1, coins(3_060, 3_600), coins(300, 400))]
    same = [Stratum(0.1, coins(3_060, 3_600), coins(340, 400))]
    assert log_evidence_between(worse, 0.0, "down") > FOUND
    assert log_evidence_between(same, 0.0, "down") < 0.0
    assert judge_arms(QUALITY, worse, worse).decision == "fail"
    assert judge_arms(QUALITY, same, same).decision == "go on"


def test_a_stage_passes_by_what_it_saw_itself_and_fails_by_all_that_was_seen() -> None:
    first = Stratum(0.1, coins(36_000, 40_000), coins(4_010, 4_400))
    fresh = Stratum(0.5, coins(9, 10), coins(9, 10))
    assert judge_arms(QUALITY, [first], [first]).decision == "pass"
    assert judge_arms(QUALITY, [first, fresh], [fresh]).decision == "go on"
    bad = Stratum(0.1, coins(3_600, 4_000), coins(300, 400))
    assert judge_arms(QUALITY, [bad, fresh], [fresh]).decision == "fail"


def test_a_bound_says_what_may_still_be_wrong() -> None:
    strata = [Stratum(0.1, coins(3_060, 3_600), coins(340, 400))]
    worst, best = bound_between(strata, 0.01, "up"), bound_between(strata, 0.01, "down")
    assert -0.12 < worst < 0.0 < best < 0.12
    assert abs(difference_between(strata) or 0.0) < 1e-9
    assert bound_between([], 0.01, "up") == -1.0
    assert difference_between([Stratum(0.1, Sample(), coins(1, 1))]) is None


def test_with_all_in_one_arm_there_is_no_evidence() -> None:
    assert abs(log_evidence_between([Stratum(1.0, Sample(), coins(0, 900))], 0.0, "down")) < 1e-9


@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from([0.0, 0.25, 1.0])),
        min_size=1,
        max_size=30,
    )
)
def test_lanes_that_count_for_themselves_add_up_to_one(items: list[tuple[bool, float]]) -> None:
    def stratum(part: list[tuple[bool, float]]) -> Stratum:
        return Stratum(0.3, sample_of(x for arm, x in part if not arm), sample_of(x for arm, x in part if arm))

    whole, a, b = stratum(items), stratum(items[::2]), stratum(items[1::2])
    added = Stratum(0.3, merge(a.base, b.base), merge(a.other, b.other))
    assert log_evidence_between([whole], -0.01, "down") == log_evidence_between([added], -0.01, "down")


@given(
    mean=st.floats(0.05, 0.95),
    share=st.sampled_from([0.01, 0.1, 0.5, 0.9]),
    margin=st.sampled_from([-0.05, 0.0, 0.03]),
    side=st.sampled_from(["up", "down"]),
)
def test_nothing_is_won_on_average_at_the_margin_whatever_the_mean(
    mean: float, share: float, margin: float, side: str
) -> None:
    """The first item's expected capital is 1, exactly: averaged over arm and value."""
    other = min(1.0, max(0.0, mean + margin))
    mean = other - margin
    expected = 0.0
    for in_other, chance in ((True, share), (False, 1 - share)):
        p = other if in_other else mean
        for value, how_often in ((1.0, p), (0.0, 1 - p)):
            one = sample_of([value])
            stratum = Stratum(share, Sample(), one) if in_other else Stratum(share, one, Sample())
            expected += chance * how_often * math.exp(log_evidence_between([stratum], margin, side))  # type: ignore[arg-type]
    assert abs(expected - 1.0) < 1e-9


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
                looked = [*strata, Stratum(share, base, other)]
                alarmed = alarmed or log_evidence_between(looked, 0.0, "down") >= FOUND
            strata.append(Stratum(share, base, other))
        alarms += alarmed
    assert alarms <= 6  # at most 1 in 100 is promised: 3, and 2 standard deviations
