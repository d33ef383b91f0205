"""The user's own scorers: whatever they do, a sample scores 0 and the lane goes on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from penstock.engine.items import Answer, Attributes, Item, Position, Request
from penstock.engine.policy import Scorer, Task
from penstock.workers import scoring
from penstock.workers.matching import Matcher
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


@pytest.mark.parametrize("pattern", ["a?" * 40 + "a" * 40 + "!", "(.*),(.*),(.*),(.*),(.*);"])
def test_a_pattern_that_goes_back_for_ever_is_given_up(pattern: str, caplog: pytest.LogCaptureFixture) -> None:
    """It would hold up its lane for hours, and each lane that takes over; other patterns are searched for still."""
    matcher = Matcher(0.5)
    try:
        while not matcher._started() or not matcher._ready:  # pyright: ignore[reportPrivateUsage]
            pass  # on a busy machine
        assert matcher.found("b+", "abc") is True
        assert matcher.found(pattern, "a" * 40 + "," * 2_000) is None
        assert "not tried again" in caplog.text
        assert matcher.found(pattern, ",,,,,;") is None
        assert [matcher.found(r"^\d+$", text) for text in ("12", "x", "\U0001f600" * 4096)] == [True, False, False]
    finally:
        matcher.close()


def test_a_search_goes_on_where_its_process_was_ended() -> None:
    """By whoever: another is started."""
    matcher = Matcher()
    try:
        assert matcher.found("a", "a") is True
        assert matcher._process is not None  # pyright: ignore[reportPrivateUsage]
        matcher._process.kill()  # pyright: ignore[reportPrivateUsage]
        matcher._process.wait()  # pyright: ignore[reportPrivateUsage]
        assert matcher.found("a", "b") is False
    finally:
        matcher.close()


def test_an_answer_is_scored_by_its_pattern() -> None:
    """As anywhere else, in its first part."""
    task = Task("t", scorers=(Scorer("regex", pattern=r"^\d+$"),))
    score = Scoring(None)
    scores = [score(ITEM, Answer(text, "stop", b"{}"), task) for text in ("12", "x")]
    assert [each.score for (each,) in scores] == [1.0, 0.0]
