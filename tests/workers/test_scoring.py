"""The user's own scorers: whatever they do, a sample scores 0 and the lane goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.engine.items import Answer, Attributes, Item, Position, Request
from penstock.engine.policy import Scorer, Task
from penstock.workers.scoring import Scoring

ITEM = Item("i", Position("s", 0, 0), Attributes(), Request(b"{}"), b"o", 0.0)
CODE = """
import sys

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
