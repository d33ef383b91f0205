"""The user's own scorers: whatever they do, a sample scores 0 or nothing, and the lane goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from penstock.engine.items import Answer, Attributes, Item, Position, Request
from penstock.engine.policy import Scorer, Task
from penstock.workers.apart import Apart, TooLong
from penstock.workers.scoring import Scoring

ITEM = Item("i", Position("s", 0, 0), Attributes(expected_json=b'{"a": 1}'), Request(b"{}"), b"o", 0.0)
CODE = """
import os, re, sys, threading

calls = []

def hangs(answer, expected):
    threading.Event().wait()

def holds_the_lock(answer, expected):
    return re.search("(a+)+$", "a" * 60 + "!")

def ends(answer, expected):
    os._exit(0)

def leaves(answer, expected):
    sys.exit("bad answer")

def raises(answer, expected):
    raise ValueError(answer)

def strange(answer, expected):
    return float("nan")

def huge(answer, expected):
    return 1e300

def eats_all_memory(answer, expected):
    kept = []
    while True:
        kept.append(bytearray(16 << 20))

def talks(answer, expected):
    calls.append(answer)
    print("1", flush=True)
    os.write(1, b"true")
    sys.stdin.read()
    return 0.25 * len(calls) + 0.5 * (expected == {"a": 1})
"""


@pytest.fixture
def score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scoring]:
    """Its process is up: on a busy machine that may take longer than a test has patience."""
    (tmp_path / "odd_scorers.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = Scoring(None)
    made._apart = Apart(1.0, 0.5, 256 << 20)  # pyright: ignore[reportPrivateUsage]
    up(made._apart)  # pyright: ignore[reportPrivateUsage]
    yield made
    made._apart.close()  # pyright: ignore[reportPrivateUsage]


def up(apart: Apart) -> None:
    while apart.ask("search", "a", "a") is None:
        pass


def scores(score: Scoring, scorer: Scorer, *texts: str) -> list[list[float]]:
    task = Task("t", scorers=(scorer,))
    return [[each.score for each in score(ITEM, Answer(text, "stop", b"{}"), task)] for text in texts]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("leaves", [0.0]),
        ("raises", [0.0]),
        ("strange", [0.0]),
        ("huge", [1.0]),
        ("eats_all_memory", [0.0]),
        ("nowhere", [0.0]),
        ("talks", [0.75]),
    ],
)
def test_a_scorer_of_the_users_own_takes_no_lane_down(name: str, found: list[float], score: Scoring) -> None:
    """It runs in another process: one that eats all memory fails there, and what it prints is no score."""
    assert scores(score, Scorer("function", function=f"odd_scorers:{name}"), "yes") == [found]


@pytest.mark.parametrize("name", ["hangs", "holds_the_lock", "ends"])
def test_a_scorer_that_hangs_is_ended_and_not_asked_again(
    name: str, score: Scoring, caplog: pytest.LogCaptureFixture
) -> None:
    """A lane that waited for it would be replaced, and its window paid for again. Its samples go unscored; others are
    scored still."""
    scorer = Scorer("function", function=f"odd_scorers:{name}")
    assert scores(score, scorer, "one", "two") == [[], []]
    assert caplog.text.count("not asked again") == 1
    up(score._apart)  # pyright: ignore[reportPrivateUsage]
    assert scores(score, Scorer("function", function="odd_scorers:talks"), "yes") == [[0.75]]


@pytest.mark.parametrize("pattern", ["a?" * 40 + "a" * 40 + "!", "(.*),(.*),(.*),(.*),(.*);"])
def test_a_pattern_that_goes_back_for_ever_is_given_up(pattern: str, score: Scoring) -> None:
    """It would hold up its lane for hours, and each lane that takes over; other patterns are searched for still."""
    assert scores(score, Scorer("regex", pattern=pattern), "a" * 40 + "," * 2_000, ",,,,,;") == [[], []]
    up(score._apart)  # pyright: ignore[reportPrivateUsage]
    texts = ("12", "x", "\U0001f600" * 4096)
    assert scores(score, Scorer("regex", pattern=r"^\d+$"), *texts) == [[1.0], [0.0], [0.0]]


def test_a_schema_that_goes_back_for_ever_is_given_up(score: Scoring) -> None:
    """Its pattern, as one of a `regex` scorer; honest schemas are held against answers still."""
    bad = Scorer("json_schema", json_schema=msgspec.json.encode({"pattern": "^(a+)+$"}))
    assert scores(score, bad, '"' + "a" * 40 + '!"', '"a"') == [[], []]
    up(score._apart)  # pyright: ignore[reportPrivateUsage]
    good = Scorer("json_schema", json_schema=msgspec.json.encode({"type": "string", "pattern": "^a+$"}))
    assert scores(score, good, '"aa"', '"b"', "no JSON", '"\ud83d\ude00"') == [[1.0], [0.0], [0.0], [0.0]]
    plain = Scorer("json_schema", json_schema=b'{"type": "string"}')
    assert scores(score, plain, '"aa"', "5") == [[1.0], [0.0]]


def test_a_question_is_answered_where_the_last_process_was_ended() -> None:
    """By whoever: another is started."""
    apart = Apart()
    try:
        up(apart)
        assert apart._process is not None  # pyright: ignore[reportPrivateUsage]
        apart._process.kill()  # pyright: ignore[reportPrivateUsage]
        apart._process.wait()  # pyright: ignore[reportPrivateUsage]
        up(apart)
        assert apart.ask("search", "a", "b") is False
    finally:
        apart.close()


def test_the_processors_time_is_what_counts() -> None:
    """A machine that is busy with other things makes no honest answer wait in vain."""
    apart = Apart(60.0, 0.5)
    try:
        up(apart)
        with pytest.raises(TooLong):
            apart.ask("search", "(a+)+$", "a" * 60 + "!")
    finally:
        apart.close()
