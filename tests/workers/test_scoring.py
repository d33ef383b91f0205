"""The user's own scorers: whatever they do, a sample scores 0 or nothing, and the lane goes on."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from penstock.engine.items import Answer, Attributes, Item, Position, Request
from penstock.engine.policy import Scorer, Task
from penstock.workers.checking import scoring
from penstock.workers.checking.apart import Apart, TooLong
from penstock.workers.checking.scoring import Scoring

ITEM = Item("i", Position("s", 0, 0), Attributes(expected_json=b'{"a": 1}'), Request(b"{}"), b"o", 0.0)
CODE = """
import os, re, signal, sys, threading, time

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

def lacks_a_library(answer, expected):
    import no_such_library

def uses_all_cores(answer, expected):
    wall, used = time.monotonic() + 0.7, time.process_time()
    signal.setitimer(signal.ITIMER_PROF, min(signal.getitimer(signal.ITIMER_PROF)[0], 0.1))  # as of many cores
    while time.monotonic() < wall or time.process_time() - used < 0.2:
        pass
    return 1

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
    made._apart = Apart(2.0, 0.5, 256 << 20)  # pyright: ignore[reportPrivateUsage]
    up(made._apart)  # pyright: ignore[reportPrivateUsage]
    yield made
    made._apart.close()  # pyright: ignore[reportPrivateUsage]


def up(apart: Apart) -> None:
    assert apart.up(60.0)


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
        ("eats_all_memory", []),
        ("lacks_a_library", []),
        ("nowhere", []),
        ("uses_all_cores", [1.0]),
        ("talks", [0.75]),
    ],
)
def test_a_scorer_of_the_users_own_takes_no_lane_down(
    name: str, found: list[float], score: Scoring, caplog: pytest.LogCaptureFixture
) -> None:
    """It runs in another process: one that eats all memory fails there, and what it prints is no score. Where the
    machine can't run it, that says nothing of the answer: it goes unscored, and that is told once."""
    assert scores(score, Scorer("function", function=f"odd_scorers:{name}"), "yes", "yes")[0] == found
    assert caplog.text.count("go unscored") == (not found)


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


def test_an_answer_is_not_blamed_for_a_process_that_somebody_else_ended() -> None:
    """Ray does, of a lane that ends: it took its last results without their scores, and committed them."""
    apart = Apart()
    try:
        up(apart)
        _kill(apart)
        assert apart.ask("search", "a", "a") is True, "ended between two questions"
        process = apart._process  # pyright: ignore[reportPrivateUsage]
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        killing = threading.Timer(0.3, process.kill)
        killing.start()
        assert apart.ask("search", "a", "b") is False, "ended over one"
    finally:
        apart.close()


def test_an_answer_over_which_process_after_process_is_ended_is_given_up() -> None:
    """By a machine that has no memory for it, say."""
    apart = Apart(patience_s=5.0)
    try:
        up(apart)
        ends = threading.Event()
        killing = threading.Thread(target=_killing, args=(apart, ends))
        killing.start()
        try:
            with pytest.raises(TooLong):
                apart.ask("search", "(a+)+$", "a" * 60 + "!")
        finally:
            ends.set()
            killing.join()
    finally:
        apart.close()


def _kill(apart: Apart) -> None:
    assert apart._process is not None  # pyright: ignore[reportPrivateUsage]
    apart._process.kill()  # pyright: ignore[reportPrivateUsage]
    apart._process.wait()  # pyright: ignore[reportPrivateUsage]


def _killing(apart: Apart, ends: threading.Event) -> None:
    """Each process, a while after it is up."""
    while not ends.wait(0.3):
        process = apart._process  # pyright: ignore[reportPrivateUsage]
        if process is not None and apart._ready:  # pyright: ignore[reportPrivateUsage]
            process.kill()


def test_the_processors_time_is_what_counts() -> None:
    """A machine that is busy with other things makes no honest answer wait in vain."""
    apart = Apart(60.0, 0.5)
    try:
        up(apart)
        with pytest.raises(TooLong):
            apart.ask("search", "(a+)+$", "a" * 60 + "!")
    finally:
        apart.close()


SLOW_TO_LOAD = """
import time

time.sleep(1.5)

def yes(answer, expected):
    return 1
"""


@pytest.fixture
def slow_to_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scorer:
    (tmp_path / "slow_to_load.py").write_text(SLOW_TO_LOAD)
    monkeypatch.syspath_prepend(str(tmp_path))
    return Scorer("function", function="slow_to_load:yes")


async def test_results_wait_for_a_process_that_comes_up_slowly_and_the_lane_goes_on(slow_to_load: Scorer) -> None:
    """No sample loses its score, however long its libraries take to load; the loop turns meanwhile."""
    made = Scoring(None, [slow_to_load])
    made._apart._patience_s = 1.0  # pyright: ignore[reportPrivateUsage]
    turns = 0
    waiting = asyncio.ensure_future(made.turn())
    try:
        while not waiting.done():
            await asyncio.sleep(0.01)
            turns += 1
        assert scores(made, slow_to_load, "a") == [[1.0]]
        assert turns >= 10
    finally:
        made._apart.close()  # pyright: ignore[reportPrivateUsage]


async def test_a_function_that_never_ends_its_loading_holds_up_no_other(
    slow_to_load: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process comes up without it."""
    monkeypatch.setattr(scoring, "START_S", 0.05)
    made = Scoring(None, [slow_to_load])
    try:
        await made.turn()
        assert made._apart.loads == ()  # pyright: ignore[reportPrivateUsage]
        up(made._apart)  # pyright: ignore[reportPrivateUsage]
    finally:
        made._apart.close()  # pyright: ignore[reportPrivateUsage]


async def test_scorers_that_are_slow_one_after_another_leave_turns_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lane that scores a whole batch without a pause would be taken for frozen."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    made = Scoring(None)

    class Slow:
        def ask(self, *_: object) -> float:
            now[0] += 0.3
            return 1.0

    made._apart = Slow()  # type: ignore[assignment]
    turns, alone, worst = [0], 0.0, 0.0
    asyncio.get_running_loop().call_soon(lambda: _count_turns(turns))
    seen = 0
    for _ in range(20):
        await made.turn()
        if turns[0] != seen:
            seen, alone = turns[0], 0.0
        assert scores(made, Scorer("function", function="m:f"), "a") == [[1.0]]
        alone += 0.3
        worst = max(worst, alone)
    turns[0] = sys.maxsize
    assert worst < 1.0
    three = Task("t", scorers=tuple(Scorer("function", function=f"m:{n}") for n in range(20)))
    before = now[0]
    made(ITEM, Answer("a", "stop", b"{}"), three)
    assert now[0] - before < 3.0


def _count_turns(turns: list[int]) -> None:
    if turns[0] < sys.maxsize:
        turns[0] += 1
        asyncio.get_running_loop().call_soon(lambda: _count_turns(turns))
