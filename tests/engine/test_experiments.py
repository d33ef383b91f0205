"""Experiments divide units as was meant, stick to them, and say what is real about their arms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.flow.cells import Cell, Scored
from penstock.engine.policy import Arm, Experiment, Prompt
from penstock.engine.steering.arms import Draw
from penstock.engine.steering.trials import broken, look

WORDING = Experiment(
    "job/wording",
    "t",
    (Arm("plain", 3.0), Arm("kind", 1.0, prompt=Prompt("Please: {{ text }}", version="kind"))),
    guardrails=("quality", "error_rate"),
)


@given(st.text(max_size=30), st.text(min_size=1, max_size=10))
def test_a_unit_is_drawn_into_the_same_arm_by_every_process_and_its_items_follow_it(unit: str, item: str) -> None:
    one, two = Draw(WORDING), Draw(WORDING)
    at, exposure = one.exposed(unit or None, item, stopped=False)
    assert (at, exposure) == two.exposed(unit or None, item if not unit else "another", stopped=False)
    assert exposure.arm == WORDING.arms[at].name
    assert exposure.propensity == (0.75, 0.25)[at]
    assert exposure.prompt_version == ("", "kind")[at]


def test_arms_get_their_weights_and_another_experiment_draws_anew() -> None:
    other = Experiment("job/other", "t", WORDING.arms)
    one, two = Draw(WORDING), Draw(other)
    drawn = [(one.place(f"u{i}"), two.place(f"u{i}")) for i in range(20_000)]
    assert 4_750 < sum(a for a, _ in drawn) < 5_250  # 4 standard deviations
    both = sum(a and b for a, b in drawn) / 20_000
    assert abs(both - 0.25 * 0.25) < 0.01  # independent of each other


def test_a_stopped_experiment_gives_all_the_first_arm_and_counts_nobody() -> None:
    draw = Draw(WORDING)
    for unit in ("a", "b", "c", "d", "e", "f"):
        at, exposure = draw.exposed(unit, "x", stopped=True)
        assert (at, exposure.experiment, exposure.arm, exposure.propensity) == (0, "", "", 1.0)


def arm(name: str, items: int, right: int, **fields: int) -> Cell:
    cell = Cell("t", "small", "v1", "", "", "", WORDING.id, name, items=items, results=items, calls=items)
    cell.scores["exact@1"] = Scored(counts={0: items - right, 1_000: right})
    for field, value in fields.items():
        setattr(cell, field, value)
    return cell


def test_arms_are_told_side_by_side_with_effects_and_intervals() -> None:
    seen = look(WORDING, [arm("plain", 3_000, 2_400), arm("kind", 1_000, 900)])
    plain, kind = seen.arms
    assert (plain.answers, kind.answers) == (3_000, 1_000)
    assert plain.scores[0].effect is None
    effect = kind.scores[0].effect
    assert effect is not None
    assert 0.0 < effect.low < effect.mean < effect.high < 0.2
    assert effect.mean == pytest.approx(0.1)
    assert seen.split is not None
    assert not seen.split.found


def test_shares_that_do_not_fit_are_found() -> None:
    seen = look(WORDING, [arm("plain", 3_000, 2_400), arm("kind", 800, 640)])
    assert seen.split is not None
    assert seen.split.found


def test_a_guardrail_speaks_for_the_arm_that_broke_it() -> None:
    cells = [arm("plain", 3_000, 2_700), arm("kind", 1_000, 700)]
    told = broken(WORDING, cells)
    assert [each.decision for each in told["kind"]] == ["fail", "pass"]
    assert {each.decision for each in broken(WORDING, [])["kind"]} == {"go on"}


def test_an_effect_holds_the_truth_however_often_it_is_looked_at() -> None:
    """200 experiments, each looked at 20 times: the interval may miss in 1 of 20, and misses in fewer."""
    rng, missed = np.random.default_rng(5), 0
    for _ in range(200):
        n, right = [0, 0], [0, 0]
        wrong = False
        for _ in range(20):
            for i, (items, quality) in enumerate(((90, 0.85), (30, 0.80))):
                n[i] += items
                right[i] += int(rng.binomial(items, quality))
            seen = look(WORDING, [arm("plain", n[0], right[0]), arm("kind", n[1], right[1])])
            effect = seen.arms[1].scores[0].effect
            assert effect is not None
            wrong = wrong or not effect.low <= -0.05 <= effect.high
        missed += wrong
    assert missed <= 16  # 10, and 2 standard deviations
