"""Lanes leave an actor that lives but hardly runs: nothing of them is lost, or paid twice beyond the promise."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import threading
import time
from collections.abc import Generator
from pathlib import Path

import psutil
import pytest

from tests.crash.bench import START_S, Bench, Shape, bench, kill_now, moves_of
from tests.crash.shared_ray import SharedRay

pytestmark = [pytest.mark.ray, pytest.mark.long]

SHAPE = Shape(items=3_000, latency_ms=1_000, jitter_ms=300, padding=1_400)
"""Work for each of four lanes, for long enough: who is slow shows after twenty seconds."""
STOPPED_S, RUNS_S = 4.0, 0.2
UNCOMMITTED_S = 0.6


def test_lanes_of_an_actor_that_is_stopped_most_of_the_time_go_to_the_other(tmp_path: Path, ray: SharedRay) -> None:
    """It answers now and then, so it is neither lost nor silent: its lanes would crawl to the end of the run."""
    with bench(tmp_path, SHAPE, ray) as b:
        command = b.start()
        b.wait_served(200, command)
        slow = b.find("lane", command)[0]
        with stopped_most_of_the_time(slow):
            assert b.end(command) == 0, b.log(command)
        moves = moves_of(b)
        assert len({move.lane for move in moves}) == len(moves) == 2, b.log(command)
        assert len({(move.source, move.target) for move in moves}) == 1
        assert not replaced(b.log(command))
        b.check(bound=_bound(b, lanes=2))


@pytest.mark.parametrize("killed", ["source", "target"])
def test_a_lane_that_moves_survives_the_kill_of_either_actor(tmp_path: Path, ray: SharedRay, killed: str) -> None:
    with bench(tmp_path, SHAPE, ray) as b:
        command = b.start()
        b.wait_served(200, command)
        slow, other = b.find("lane", command)
        with stopped_most_of_the_time(slow):
            wait_for_a_move(b, command)
            time.sleep(1.0)
            kill_now(slow if killed == "source" else other)
            assert b.end(command) == 0, b.log(command)
        assert replaced(b.log(command))
        b.check(bound=_bound(b, lanes=3))


def replaced(log: str) -> bool:
    """An actor was: nothing may be said of lanes that merely moved."""
    return re.search(r"lane actor \d (was lost|is silent)", log) is not None


def _bound(b: Bench, lanes: int) -> int:
    """The promise for each lane that is lost, which one that is handed over in peace does not use."""
    return lanes * round(b.shape.concurrency + b.fastest_rate() * UNCOMMITTED_S)


def wait_for_a_move(b: Bench, command: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_S
    while not moves_of(b):
        assert command.poll() is None, b.log(command)
        assert time.monotonic() < until, "nothing moved"
        time.sleep(0.1)


@contextlib.contextmanager
def stopped_most_of_the_time(process: psutil.Process) -> Generator[None]:
    over = threading.Event()

    def stop_and_go() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            while not over.is_set():
                process.send_signal(signal.SIGSTOP)
                time.sleep(STOPPED_S)
                process.send_signal(signal.SIGCONT)
                time.sleep(RUNS_S)

    thread = threading.Thread(target=stop_and_go)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
