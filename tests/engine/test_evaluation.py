"""What an evaluation says of rows whose truth is known."""

from __future__ import annotations

import random

import pytest

from penstock.engine.measure.evaluation import OTHER, Answered, Row, compared, evaluate
from penstock.engine.measure.stopping import StopRule, look

RULE = StopRule()
CLASSES = ("a", "b", "c")


def rows(count: int, qualities: tuple[float, ...], seed: int = 1) -> list[Row]:
    """Half of a row's luck is common to all candidates."""
    chance = random.Random(seed)
    made: list[Row] = []
    for n in range(count):
        common = chance.random() if chance.random() < 0.5 else None
        truth = CLASSES[n % 3]
        answers: list[Answered] = []
        for i, quality in enumerate(qualities):
            right = (chance.random() if common is None else common) < quality
            said = truth if right else CLASSES[(n + 1) % 3]
            answers.append(Answered(float(right), False, said, cost_nano=1_000 * (i + 1), ms=100.0 * (i + 1)))
        made.append(Row(n, tuple(answers), truth, {"channel": "mail" if n % 2 else "chat"}))
    return made


def test_the_best_is_named_and_what_may_be_chance_is_not_called_real() -> None:
    """Ten points apart on 2,000 rows are real; equal candidates are not told apart."""
    found = evaluate(["good", "best", "same"], rows(2_000, (0.8, 0.9, 0.8)), RULE, CLASSES)
    assert (found.stop.reason, found.stop.leader) == ("winner", "best")
    real = {(d.first, d.second): d.real for d in found.differences}
    assert real == {("good", "best"): True, ("good", "same"): False, ("best", "same"): True}
    for line, truth in zip(found.lines, (0.8, 0.9, 0.8), strict=True):
        assert line.quality is not None
        assert line.quality.low < truth < line.quality.high


def test_what_is_looked_at_while_it_goes_is_what_is_told_at_the_end() -> None:
    """One reading of the same rows."""
    made = rows(300, (0.7, 0.9))
    assert look(compared(["x", "y"], made), RULE) == evaluate(["x", "y"], made, RULE).stop


def test_cost_of_an_accepted_answer_counts_what_was_paid_for_the_others() -> None:
    """A model that is right half of the time costs twice as much for each right answer; failures cost too."""
    made = [Row(n, (Answered(float(n % 2), failed=n % 4 == 0, cost_nano=100),)) for n in range(400)]
    line = evaluate(["x"], made, RULE).lines[0]
    assert (line.per_item_nano, line.per_accepted_nano, line.passed, line.failed) == (100, 200, 200, 100)
    assert line.per_accepted is not None
    assert line.per_accepted.low < 200 < line.per_accepted.high
    nobody = evaluate(["x"], [Row(0, (Answered(0.0, True, cost_nano=5),))], RULE).lines[0]
    assert (nobody.per_accepted_nano, nobody.per_accepted, nobody.median_ms) == (None, None, None)


def test_classes_add_up_to_the_confusion_table() -> None:
    """Precision, recall and F1 by hand; an answer that is no class is one of its own."""
    told = [("a", "a"), ("a", "b"), ("b", "b"), ("b", None), ("c", "c"), ("c", "rubbish"), (None, "a")]
    made = [Row(n, (Answered(said=said, failed=said is None),), expected) for n, (expected, said) in enumerate(told)]
    made.append(Row(7, (Answered(1.0),), "a"))  # what was said may not be told
    (classes,) = evaluate(["x"], made, RULE, CLASSES).classes
    a, b, c = classes.classes
    assert (a.precision, a.recall, a.f1) == (1.0, 0.5, pytest.approx(2 / 3))
    assert (b.precision, b.recall, b.f1) == (0.5, 0.5, 0.5)
    assert (c.expected, c.said, c.right) == (2, 1, 1)
    assert classes.confusion["b", OTHER] == classes.confusion["c", OTHER] == 1
    assert sum(classes.confusion.values()) == 6
    assert classes.macro_f1 == pytest.approx((2 / 3 + 0.5 + 2 / 3) / 3)


def test_a_class_is_compared_as_the_scorer_compares() -> None:
    """What `exact` calls right is right in the table too."""
    told = [("a", " A"), ("B", "b"), ("c", "Ｃ")]
    made = [Row(n, (Answered(1.0, said=said),), expected) for n, (expected, said) in enumerate(told)]
    (classes,) = evaluate(["x"], made, RULE, CLASSES).classes
    assert classes.confusion == {("a", "a"): 1, ("b", "b"): 1, ("c", "c"): 1}


def test_slices_hold_each_row_once_for_each_attribute() -> None:
    """With intervals of their own."""
    found = evaluate(["x", "y"], rows(500, (0.6, 0.9)), RULE)
    assert [(s.attribute, s.value, s.rows) for s in found.slices] == [
        ("channel", "chat", 250),
        ("channel", "mail", 250),
    ]
    assert all(interval is not None for s in found.slices for interval in s.quality)
