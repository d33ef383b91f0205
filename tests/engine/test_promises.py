"""Accepted answers are held against what their calibration promised, over all lanes and jobs of a state."""

from __future__ import annotations

import random

from penstock.engine.flow.cells import Cell, Scored
from penstock.engine.policy import Promise
from penstock.engine.registry.document import Measured, Numbered, Sums, fold
from penstock.engine.registry.promises import broken

PROMISE = Promise(2, "exact@1", 0.9)


def accepted(right: int, wrong: int, calibration: int = 2, model: str = "small") -> Cell:
    scored = Scored(right, {1000: right, 0: wrong})
    return Cell("t", model, "v1", items=right + wrong, results=right + wrong, accepted={calibration: scored})


class Jobs:
    """Two jobs that tell the registry how accepted answers were, in turn."""

    def __init__(self) -> None:
        self.shared = Measured()
        self.sums = [Sums(), Sums()]
        self.counts = [[0, 0], [0, 0]]

    def add(self, right: int, wrong: int) -> None:
        at = sum(map(sum, self.counts)) % 2
        self.counts[at][0] += right
        self.counts[at][1] += wrong
        self.sums[at] = self.sums[at].then([accepted(*self.counts[at])])
        fold(self.shared, f"job{at}", self.sums[at], 1.0)


def test_a_fall_below_what_was_promised_is_seen_whoever_counts_it() -> None:
    """After 5,000 good ones too; what is told is the quality since then, not of all times."""
    dice, jobs = random.Random(1), Jobs()
    for _ in range(5_000):
        right = dice.random() < 0.95
        jobs.add(right, not right)
    assert broken(jobs.shared, "t", PROMISE) is None
    fallen = 0
    while (short := broken(jobs.shared, "t", PROMISE)) is None:
        right = dice.random() < 0.75
        jobs.add(right, not right)
        fallen += 1
        assert fallen < 1_000
    assert short.target == "small@v1"
    assert short.mean < 0.85
    assert short.items < 1_000


def test_answers_as_good_as_promised_are_no_drift() -> None:
    """Exactly at the promise: cried out in 200 windows on average at most, so within 40 in a fifth of all runs at most
    (Doob's inequality; the sum of the bets grows by one a window)."""
    alarms = 0
    for seed in range(50):
        dice, jobs = random.Random(seed), Jobs()
        for _ in range(40):
            right = sum(dice.random() < 0.9 for _ in range(50))
            jobs.add(right, 50 - right)
            if broken(jobs.shared, "t", PROMISE) is not None:
                alarms += 1
                break
    assert alarms <= 10


def test_a_promise_is_of_one_task_and_one_version_of_its_calibration() -> None:
    shared = Measured()
    fold(shared, "r", Sums().then([accepted(10, 90)]), 1.0)
    assert broken(shared, "t", PROMISE) is not None
    assert broken(shared, "other", PROMISE) is None
    assert broken(shared, "t", Promise(3, "exact@1", 0.9)) is None
    assert broken(Measured(), "t", PROMISE) is None


def test_what_a_run_takes_back_is_forgotten() -> None:
    """`--fresh` does the same rows again."""
    shared, sums = Measured(), Sums().then([accepted(10, 90)])
    fold(shared, "r", sums, 1.0)
    again = Sums(life=2.0, states=(sums.latest, Numbered(2, [])))
    fold(shared, "r", again, 2.0)
    assert broken(shared, "t", PROMISE) is None
    assert shared.recent == []
