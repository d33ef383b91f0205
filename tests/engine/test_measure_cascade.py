"""A cascade accepts only what labels support, notices when that ends, and judges are checked against each other."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.engine.errors import SpecError
from penstock.engine.measure.agreement import agreement, tally_labels
from penstock.engine.measure.cascade import NoThreshold, Threshold, calibrate, worse_by_chance
from penstock.engine.measure.drift import Watch, watch


def labelled(seed: int, n: int) -> tuple[list[float], list[float]]:
    """The signal is the chance to be correct, from 0.7 to 1."""
    rng = np.random.default_rng(seed)
    signals = rng.uniform(0.7, 1.0, n)
    return signals.tolist(), (rng.random(n) < signals).astype(float).tolist()


def test_accepted_answers_are_good_enough_as_often_as_promised() -> None:
    """200 calibrations for 0.9 at 90 %: what a threshold t accepts has quality (t + 1) / 2, known here."""
    bad = 0
    for seed in range(200):
        found = calibrate(*labelled(seed, 1_000), 0.9, 0.9)
        bad += isinstance(found, Threshold) and (found.above + 1) / 2 < 0.9
    assert bad / 200 <= 0.1


def test_more_labels_accept_more() -> None:
    few, many = calibrate(*labelled(1, 500), 0.9), calibrate(*labelled(1, 20_000), 0.9)
    assert isinstance(few, Threshold)
    assert isinstance(many, Threshold)
    assert few.share < many.share < 0.7
    assert many.above == pytest.approx(0.8, abs=0.02)


def test_too_few_labels_are_refused_with_the_number_that_would_do() -> None:
    """86 of 86 correct are needed to show 0.95 with a quarter of 5 %: log(0.0125) / log(0.95) = 85.4."""
    found = calibrate([i / 50 for i in range(50)], [1.0] * 50, 0.95)
    assert isinstance(found, NoThreshold)
    assert found.labels_needed == 87
    enough = calibrate([i / 87 for i in range(87)], [1.0] * 87, 0.95)
    assert isinstance(enough, Threshold)
    assert enough.accepted == 86


def test_answers_that_look_good_but_are_few_name_a_number_that_then_suffices() -> None:
    signals = [float(i) for i in range(200)]
    correct = [float(i % 30 != 0) for i in range(200)]  # 96.5 %
    refused = calibrate(signals, correct, 0.95)
    assert isinstance(refused, NoThreshold)
    assert refused.labels_needed is not None
    times = math.ceil(refused.labels_needed / 200)
    more = [float(i) for i in range(200 * times)]
    assert isinstance(calibrate(more, [float(i % 30 != 0) for i in range(200 * times)], 0.95), Threshold)


def test_no_number_of_labels_helps_where_quality_is_not_there() -> None:
    found = calibrate([float(i) for i in range(1_000)], [float(i % 4 != 0) for i in range(1_000)], 0.95)
    assert isinstance(found, NoThreshold)
    assert found.labels_needed is None
    assert "0.95" in found.why


def test_equal_signals_are_accepted_together_or_not_at_all() -> None:
    found = calibrate([1.0] * 500 + [0.0] * 500, [1.0] * 500 + [0.0] * 500, 0.95)
    assert found == Threshold(0.0, 500, 1_000, 1.0, 0.95)
    assert isinstance(calibrate([1.0] * 500, [1.0] * 500, 0.95), NoThreshold)


def test_p_values_are_binomial_tails_and_graded_ones_are_more_careful() -> None:
    """58 or more of 60 with 0.9 each, summed by hand."""
    tail = sum(math.comb(60, k) * 0.9**k * 0.1 ** (60 - k) for k in range(58, 61))
    assert worse_by_chance(58, 60, 0.9) == pytest.approx(tail)
    assert tail < worse_by_chance(58, 60, 0.9, graded=True) < 1.0
    assert worse_by_chance(54, 60, 0.9) == 1.0
    assert worse_by_chance(0, 0, 0.9) == 1.0


def test_graded_labels_can_be_calibrated_on() -> None:
    signals, correct = labelled(3, 5_000)
    graded = [0.98 if each else 0.0 for each in correct]
    found = calibrate(signals, graded, 0.9)
    assert isinstance(found, Threshold)
    assert found.quality > 0.9


def test_labels_that_make_no_sense_are_refused() -> None:
    for signals, correct, quality in (
        ([1.0], [], 0.9),
        ([1.0], [1.0], 1.0),
        ([math.nan], [1.0], 0.9),
        ([1.0], [2.0], 0.9),
    ):
        with pytest.raises(SpecError):
            calibrate(signals, correct, quality)


# ---- drift


def test_a_fall_is_noticed_soon_also_after_a_long_calm() -> None:
    rng = np.random.default_rng(4)
    calm = watch(Watch(line=0.95), (rng.random(5_000) < 0.97).astype(float))
    assert not calm.alarm
    assert watch(calm, (rng.random(300) < 0.8).astype(float)).alarm


def test_a_share_that_grows_is_noticed_too() -> None:
    rng = np.random.default_rng(5)
    on = Watch(line=0.5, worse="higher")
    assert not watch(on, (rng.random(1_000) < 0.45).astype(float)).alarm
    assert watch(on, (rng.random(1_000) < 0.7).astype(float)).alarm


@settings(max_examples=30)
@given(st.lists(st.integers(0, 1).map(float), max_size=40), st.integers(0, 40))
def test_a_watch_goes_on_where_it_was_stored(values: list[float], at: int) -> None:
    whole = watch(Watch(line=0.9), values)
    stored = msgspec.json.encode(watch(Watch(line=0.9), values[:at]))
    assert watch(msgspec.json.decode(stored, type=Watch), values[at:]) == whole
    assert whole.items == len(values)


def test_a_watch_sums_the_evidence_of_all_places_where_a_change_may_have_begun() -> None:
    from penstock.engine.measure.betting import log_evidence
    from penstock.engine.measure.sample import UNIT, sample_of

    values = [1.0, 0.0, 0.0, 1.0, 0.0]
    parts = [math.exp(log_evidence(sample_of(values[i:]), 0.9, "down", UNIT)) for i in range(5)]
    assert watch(Watch(line=0.9), values).log_evidence == pytest.approx(math.log(sum(parts)))


# ---- agreement


def test_kappa_is_that_of_published_tables() -> None:
    """SAS/STAT, PROC FREQ, "Skin condition": 0.3449 (0.2030, 0.4868). And its 3 × 3 example with linear weights: 0.4842
    (0.2137, 0.7547), weighted 0.4701 (0.1845, 0.7558)."""
    skin = agreement([[10, 4, 1, 0], [5, 10, 12, 2], [2, 4, 12, 5], [0, 2, 6, 13]])
    assert skin is not None
    assert skin.kappa is not None
    assert (skin.kappa.mean, skin.kappa.low, skin.kappa.high) == pytest.approx((0.3449, 0.2030, 0.4868), abs=5e-5)
    small = [[0, 4, 1], [0, 8, 0], [0, 1, 5]]
    plain, weighted = agreement(small), agreement(small, "linear")
    assert plain is not None
    assert plain.kappa is not None
    assert weighted is not None
    assert weighted.kappa is not None
    assert (plain.kappa.mean, plain.kappa.low, plain.kappa.high) == pytest.approx((0.4842, 0.2137, 0.7547), abs=5e-5)
    found = (weighted.kappa.mean, weighted.kappa.low, weighted.kappa.high)
    assert found == pytest.approx((0.4701, 0.1845, 0.7558), abs=5e-5)


def test_agreement_by_chance_alone_is_none() -> None:
    by_chance, perfect, one_label = agreement([[81, 9], [9, 1]]), agreement([[5, 0], [0, 5]]), agreement([[9]])
    assert by_chance is not None
    assert by_chance.kappa is not None
    assert by_chance.rate.mean == 0.82
    assert by_chance.kappa.mean == pytest.approx(0.0, abs=1e-12)
    assert perfect is not None
    assert perfect.kappa is not None
    assert perfect.kappa.mean == 1.0
    assert one_label is not None
    assert one_label.kappa is None
    assert agreement([[0, 0], [0, 0]]) is None


def test_a_far_miss_weighs_more_than_a_near_one() -> None:
    near, far = [[10, 3, 0], [0, 10, 0], [0, 0, 10]], [[10, 0, 3], [0, 10, 0], [0, 0, 10]]
    for weights in ("linear", "quadratic"):
        a, b = agreement(near, weights), agreement(far, weights)
        assert a is not None
        assert a.kappa is not None
        assert b is not None
        assert b.kappa is not None
        assert a.kappa.mean > b.kappa.mean


def test_labels_are_counted_by_judge() -> None:
    assert tally_labels([("a", "b"), ("a", "a")], ["a", "b"]) == [[1, 1], [0, 0]]
    with pytest.raises(SpecError, match="not both among"):
        tally_labels([("a", "z")], ["a", "b"])
    with pytest.raises(SpecError, match="square"):
        agreement([[1, 2]])
