"""Guards fail what is worse, pass what is not, and their false alarms are as rare as declared."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.engine.measure.betting import log_evidence
from penstock.engine.measure.guards import Guard, beyond, judge, judge_moments
from penstock.engine.measure.moments import moments_of
from penstock.engine.measure.sample import DIFFERENCE, STEPS, UNIT, Sample, sample_of
from penstock.engine.measure.split import mismatch


def rows(worse: int, same: int, better: int) -> Sample:
    return Sample(((-STEPS, worse), (0, same), (STEPS, better)))


QUALITY = Guard(name="quality", fail_beyond=-0.01, pass_within=-0.05)


def test_a_large_loss_fails_and_says_after_how_many_items() -> None:
    verdict = judge(QUALITY, rows(30, 165, 5))
    assert verdict.decision == "fail"
    assert verdict.why == "quality: worse than -0.01, shown after 200 items"


def test_no_loss_passes_once_the_margin_is_ruled_out() -> None:
    assert judge(QUALITY, rows(2, 46, 2)).decision == "go on"
    verdict = judge(QUALITY, rows(20, 960, 20))
    assert verdict.decision == "pass"
    assert -0.05 < verdict.worst < 0.0


@pytest.mark.parametrize("at_limit", ["pass", "fail"])
def test_a_stage_that_shows_nothing_ends_at_its_bound_and_says_what_may_be_wrong(at_limit: str) -> None:
    guard = Guard(name="q", max_items=100, at_limit=at_limit)  # type: ignore[arg-type]
    assert judge(guard, rows(5, 89, 5)).decision == "go on"
    verdict = judge(guard, rows(5, 90, 5))
    assert verdict.decision == at_limit
    assert "nothing shown" in verdict.why
    assert verdict.worst < -0.05


def test_a_rate_of_errors_is_guarded_from_above() -> None:
    guard = Guard(name="errors", worse="higher", fail_beyond=0.02, pass_within=0.03, support=UNIT)
    assert judge(guard, Sample(((0, 180), (STEPS, 20)))).decision == "fail"
    assert judge(guard, Sample(((0, 1_195), (STEPS, 5)))).decision == "pass"
    assert judge(guard, Sample(((0, 49), (STEPS, 1)))).decision == "go on"
    assert judge(guard, Sample()).decision == "go on"


def test_a_median_is_guarded_by_counting_what_lies_beyond_it() -> None:
    """Latencies with a wild tail: the median is what counts."""
    guard = Guard(name="latency", worse="higher", fail_beyond=0.5, support=UNIT)
    rng = np.random.default_rng(5)
    latencies = rng.lognormal(0.0, 2.0, 400)
    assert judge(guard, sample_of(beyond(v, 1.2) for v in latencies)).decision == "go on"
    assert judge(guard, sample_of(beyond(v * 3, 1.2) for v in latencies)).decision == "fail"
    assert [beyond(v, 1.0) for v in (0.5, 1.0, 1.5)] == [0.0, 0.0, 1.0]


def test_a_mean_of_log_ratios_is_guarded_once_enough_came() -> None:
    guard = Guard(name="cost", worse="higher", fail_beyond=math.log(1.05), pass_within=math.log(1.3))
    rng = np.random.default_rng(6)
    dearer, equal = rng.normal(math.log(1.5), 0.5, 400), rng.normal(0.0, 0.5, 400)
    assert judge_moments(guard, moments_of(dearer[:40])).decision == "go on"
    assert judge_moments(guard, moments_of(dearer)).decision == "fail"
    passed = judge_moments(guard, moments_of(equal))
    assert passed.decision == "pass"
    assert 0.0 < passed.worst < math.log(1.3)
    lower = Guard(name="cost", worse="lower", fail_beyond=-0.05)
    assert judge_moments(lower, moments_of(-dearer)).decision == "fail"


@settings(max_examples=50)
@given(st.integers(0, 60), st.integers(0, 300), st.integers(0, 60))
def test_a_guard_fails_only_what_its_own_bound_says_is_worse(worse: int, same: int, better: int) -> None:
    """Never a failure on a mean that looks no worse than the line, and never a pass of one that looks worse."""
    verdict = judge(QUALITY, rows(worse, same, better))
    if verdict.decision == "fail":
        assert verdict.mean is not None
        assert verdict.mean < -0.01
    if verdict.decision == "pass" and verdict.items < QUALITY.max_items:
        assert verdict.mean is not None
        assert verdict.mean > -0.05


def test_equal_candidates_are_rolled_back_as_rarely_as_declared() -> None:
    """500 A/A rollouts at 5 %, looked at after every 10 of 500 rows."""
    rng, alarms = np.random.default_rng(8), 0
    for _ in range(500):
        values = rng.choice([-1, 0, 1], p=[0.05, 0.9, 0.05], size=500)
        looks = [(int((values[:n] < 0).sum()), int((values[:n] > 0).sum()), n) for n in range(10, 501, 10)]
        alarms += any(log_evidence(rows(a, n - a - b, b), 0.0, "down", DIFFERENCE) >= math.log(20) for a, b, n in looks)
    assert alarms / 500 <= 0.05


def test_ten_points_worse_is_taken_back_within_four_hundred_items() -> None:
    """In about 95 % of 100 runs: 88 % at least."""
    rng, found = np.random.default_rng(9), 0
    for _ in range(100):
        values = rng.choice([-1.0, 0.0, 1.0], p=[0.12, 0.86, 0.02], size=400)
        looks = (sample_of(values[:n]) for n in range(20, 401, 20))
        found += any(judge(Guard(name="q"), sample).decision == "fail" for sample in looks)
    assert found / 100 >= 0.88


# ---- shares of traffic


def test_a_mismatch_of_shares_is_the_product_of_predictions() -> None:
    """Lindon & Malek's Bayes factor, item by item: prior counts 90 and 10 against the meant shares."""
    counts, log_e = [0, 0], 0.0
    for arm in [0, 1, 1, 0, 1, 1, 0]:
        log_e += math.log(((90, 10)[arm] + counts[arm]) / (100 + sum(counts)) / (0.9, 0.1)[arm])
        counts[arm] += 1
    assert mismatch(counts, (9, 1)).p_value == pytest.approx(min(1.0, math.exp(-log_e)))


def test_wrong_shares_are_found_and_right_ones_are_not() -> None:
    assert not mismatch((9_000, 1_000), (0.9, 0.1)).found
    assert mismatch((8_800, 1_200), (0.9, 0.1)).found
    assert mismatch((0, 0), (1, 1)).p_value == 1.0


def test_a_fair_split_raises_no_alarm_however_often_it_is_looked_at() -> None:
    rng = np.random.default_rng(10)
    alarms = 0
    for _ in range(200):
        ones = (rng.random(1_000) < 0.5).cumsum()
        alarms += any(
            mismatch((n - int(ones[n - 1]), int(ones[n - 1])), (1, 1), 0.05).found for n in range(10, 1_001, 10)
        )
    assert alarms / 200 <= 0.05
