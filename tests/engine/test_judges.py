"""A judge decides about a rollout only where it was held against people's labels, and agrees with them well enough."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.engine.fingerprints import short_hash
from penstock.engine.flow.cells import Cell, Scored
from penstock.engine.judging import judge_version
from penstock.engine.measure.agreement import agreement
from penstock.engine.policy import Arm, Experiment, Scorer
from penstock.engine.steering.evidence import guards, judged
from penstock.engine.steering.judges import Calibration, decides, informs, lacks, replaces, trusted
from penstock.engine.steering.rollout import Rollout, begin, see
from penstock.engine.steering.trials import broken

JUDGE, OTHER = "judge@1", "judge@2"


def beside(both_right: int, both_wrong: int, missed: int, harsh: int, scorer: str = JUDGE) -> Calibration:
    """`missed`: wrong answers that the judge passed; `harsh`: right ones that it did not."""
    agreed = agreement([[both_right, harsh], [missed, both_wrong]])
    assert agreed is not None
    return Calibration(scorer, "opus", both_right + harsh, both_wrong + missed, agreed, "run", "now", "ann")


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (beside(60, 40, 0, 0), None),
        (beside(52, 38, 5, 5), None),
        (beside(24, 24, 0, 0), "48 labelled answers are too few"),
        (beside(95, 5, 0, 0), "95 answers right and 5 wrong"),  # it agrees on all, and saw hardly a wrong one
        (beside(100, 0, 0, 0), "100 answers right and 0 wrong"),
        (beside(40, 30, 15, 15), "the lower end of its kappa is 0.2"),
        (beside(50, 0, 50, 0), "the lower end of its kappa is 0.00"),  # it says right, whatever it sees
    ],
)
def test_a_judge_may_decide_once_enough_labels_show_that_it_agrees_with_people(
    found: Calibration, why: str | None
) -> None:
    said = lacks(found)
    assert (said is None) == (why is None)
    assert why is None or (said is not None and why in said)
    assert trusted([found]) == (frozenset({JUDGE}) if why is None else frozenset())


@pytest.mark.parametrize(
    ("new", "old", "holds"),
    [
        (beside(3, 0, 0, 0), beside(60, 40, 0, 0), False),
        (beside(45, 0, 0, 0), beside(60, 40, 0, 0), False),
        (beside(40, 30, 15, 15), beside(60, 40, 0, 0), True),  # enough of them, and it agrees no more
        (beside(3, 0, 0, 0), beside(24, 24, 0, 0), True),
        (beside(3, 0, 0, 0), None, True),
    ],
)
def test_a_look_at_a_few_labels_takes_nothing_from_a_judge_that_was_held_against_enough(
    new: Calibration, old: Calibration | None, holds: bool
) -> None:
    """Rollouts under way would lose who decides about them."""
    assert replaces(new, old) == holds


@given(st.integers(0, 80), st.integers(0, 80), st.integers(0, 80), st.integers(0, 80))
def test_whoever_may_decide_was_right_on_most_of_each_kind(right: int, wrong: int, missed: int, harsh: int) -> None:
    if right + wrong + missed + harsh and lacks(found := beside(right, wrong, missed, harsh)) is None:
        assert right > harsh
        assert wrong > missed
        assert found.right + found.wrong >= 50


def test_a_change_of_rubric_or_model_is_another_judge_and_a_judge_of_pairs_never_decides() -> None:
    scorer = Scorer("judge", model="opus", rubric="Kind.", choices=("1", "2"))
    may = {f"judge@{judge_version(scorer, 'v1')}"}
    assert decides(scorer, "v1", may)
    assert not decides(scorer, "v2", may)
    assert not decides(Scorer("judge", model="opus", rubric="Correct.", choices=("1", "2")), "v1", may)
    assert not decides(Scorer("judge", model="opus", rubric="Kind.", pairwise=True), "v1", may)
    assert decides(Scorer("exact"), "", ())


def test_a_calibration_of_when_the_place_of_the_right_answer_made_another_judge_still_holds() -> None:
    """Its name has another hash; the judge is asked the same."""
    scorer = Scorer("judge", expected="{{ label }}", model="opus", rubric="Kind.", choices=("1", "2"))
    plain = msgspec.structs.replace(scorer, expected=None)
    old = f"judge@{short_hash(msgspec.json.encode([msgspec.json.encode(scorer).decode(), 'v1', '1']))}"
    assert decides(scorer, "v1", {old})
    assert informs(scorer, "v1", {old: beside(60, 40, 0, 0, old)}) is None
    assert not decides(scorer, "v2", {old})
    assert not decides(plain, "v1", {old})


# ---- what the guards make of it


def rolling() -> Rollout:
    return begin("small", ("v1", "v2"), (0.5,), guards(["quality"]), by="ann", now=0.0)


def cells(at: Rollout, *counts: tuple[str, int, int], n: int = 3_000) -> list[Cell]:
    """(scorer, right of the baseline's n, right of the candidate's n)."""
    made = [Cell("t", "small", v, "", "", "", at.id, at.arm(s)) for v, s in (("v1", "baseline"), ("v2", "candidate"))]
    for scorer, *right in counts:
        for cell, good in zip(made, right, strict=True):
            cell.items = cell.results = n
            cell.scores[scorer] = Scored(counts={0: n - good, 1_000: good})
    return made


@settings(max_examples=25)
@given(base=st.integers(0, 3_000), other=st.integers(0, 3_000))
def test_a_judge_that_is_not_calibrated_passes_and_fails_nothing_whatever_it_says(base: int, other: int) -> None:
    at = rolling()
    told = judged(at, cells(at, (JUDGE, base, other), n=3_000), bounds=False)
    assert see(at, told, 1.0) is None
    assert [each.informs for each in told] == [False, True]
    assert "penstock label calibrate" in told[0].why
    assert "informs only" in told[1].why


def test_a_calibrated_judge_takes_a_worse_version_back_and_another_scorer_decides_beside_an_uncalibrated_one() -> None:
    at = rolling()
    worse = cells(at, (JUDGE, 2_700, 2_000))
    after = see(at, judged(at, worse, {JUDGE}), 1.0)
    assert after is not None
    assert after.state == "rolled_back"
    both = cells(at, (JUDGE, 2_700, 2_000), ("exact@1", 2_700, 2_700))
    after = see(at, judged(at, both), 1.0)
    assert after is not None
    assert after.state == "promoted"
    assert [each.informs for each in after.decisions[-1].told] == [False, True]


def test_what_an_uncalibrated_judge_says_takes_nothing_from_the_scorer_that_decides() -> None:
    """The alarm rate is shared among those that may raise an alarm."""
    at = rolling()
    alone = judged(at, cells(at, ("exact@1", 300, 270), n=330))
    beside_judge = judged(at, cells(at, ("exact@1", 300, 270), (JUDGE, 300, 300), (OTHER, 300, 300), n=330))
    assert alone[0] == beside_judge[0]


def test_guardrails_of_an_experiment_are_broken_by_calibrated_judges_alone() -> None:
    trial = Experiment("job/x", "t", (Arm("plain"), Arm("kind")), guardrails=("quality",))
    made = [Cell("t", "small", "v1", "", "", "", "job/x", arm, items=3_000, results=3_000) for arm in ("plain", "kind")]
    for cell, good in zip(made, (2_700, 2_000), strict=True):
        cell.scores[JUDGE] = Scored(counts={0: 3_000 - good, 1_000: good})
    for may, failed in (((), False), ({JUDGE}, True)):
        told = broken(trial, made, may)["kind"]
        assert any(each.decision == "fail" and not each.informs for each in told) == failed
