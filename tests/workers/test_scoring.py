"""The user's own scorers: whatever they do, a sample scores 0 and the lane goes on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from penstock.engine.items import Answer, Attributes, Item, Position, Request
from penstock.engine.policy import Scorer, Task
from penstock.workers import scoring
from penstock.workers.scoring import Scoring

ITEM = Item("i", Position("s", 0, 0), Attributes(), Request(b"{}"), b"o", 0.0)
CODE = """
import sys, threading

calls = []

def hangs(answer, expected):
    calls.append(answer)
    threading.Event().wait()

def leaves(answer, expected):
    sys.exit("bad answer")

def raises(answer, expected):
    raise ValueError(answer)

def strange(answer, expected):
    return float("nan")

def huge(answer, expected):
    return 1e300
"""


@pytest.mark.parametrize(("name", "score"), [("leaves", 0.0), ("raises", 0.0), ("strange", 0.0), ("huge", 1.0)])
def test_a_scorer_of_the_users_own_takes_no_lane_down(
    name: str, score: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that calls `sys.exit` would end the lane's process, and so again for the next owner, who pays again."""
    (tmp_path / "odd_scorers.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    task = Task("t", scorers=(Scorer("function", function=f"odd_scorers:{name}"),))
    assert [each.score for each in Scoring(None)(ITEM, Answer("yes", "stop", b"{}"), task)] == [score]


def test_a_scorer_that_hangs_is_left_behind_and_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lane that waited for it would be replaced, and its window paid for again. Its samples go unscored."""
    (tmp_path / "slow_scorers.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(scoring, "PATIENCE_S", 0.2)
    task = Task("t", scorers=(Scorer("function", function="slow_scorers:hangs"),))
    score = Scoring(None)
    assert [score(ITEM, Answer(text, "stop", b"{}"), task) for text in ("one", "two")] == [(), ()]
    assert sys.modules["slow_scorers"].calls == ["one"]
