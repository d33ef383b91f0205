"""An own engine in the middle of a job: killed while it loads and while it answers. A tiny random Llama on a real
vLLM."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import time
from pathlib import Path

import pytest

from penstock.jobs.history import open_history
from penstock.workers.books.gpu_bill import clocks_in
from tests.crash.bench import POLL_S, START_S, Bench, Shape, bench, kill_now, title
from tests.crash.checker import read_outputs
from tests.workers.test_vllm_inproc import tiny_folder

pytestmark = [
    pytest.mark.ray,
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: uv sync --extra cpu"),
]

SEATS = 8
LOADS_S = 8.0
"""About what one needs to load here: some kills hit the one that takes the last one's place."""
KILLS = 3
"""So many deaths end an item that was there at each of them, and are fewer than starts may fail in a row
(`retry.RetrySettings.max_deaths`, `fleet.MAX_STARTS`)."""


@pytest.mark.long
def test_an_engine_that_is_killed_again_and_again_is_replaced(tmp_path: Path, mark: str) -> None:
    """Another is loaded, what it had is asked again and marked, each item ends exactly once, and the bill is that of
    the hours of all of them."""
    kill_engines(tmp_path, seed=1)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
def test_soak_engines(seed: int, tmp_path: Path, mark: str) -> None:
    """As above, at other moments."""
    kill_engines(tmp_path, seed)


def kill_engines(folder: Path, seed: int) -> None:
    """What the seed decides: how much is committed at each kill, or how long after the last one
    it comes, while another loads."""
    chance = random.Random(f"engines-{seed}")
    settings = f"max_model_len: 512, max_num_seqs: {SEATS}, kv_cache_memory_bytes: 67108864"
    model = f"{{name: own, worker: vllm, model: {tiny_folder()}, hour_usd: 3.6, engine: {{{settings}}}}}"
    with bench(folder, Shape(items=300, output_tokens=96, own_model=model, fallback=False)) as b:
        command = b.start()
        for share in sorted(chance.uniform(0.02, 0.7) for _ in range(KILLS)):
            if b.kills and chance.random() < 0.5:
                time.sleep(chance.uniform(0, LOADS_S))
            else:
                wait_results(b, command, max(results(b) + 1, round(share * b.shape.items)))
            b.kills.append(kill_one(b, command, chance))
        assert b.end(command) == 0, b.log(command)
        assert "was lost; another takes its place" in " ".join(b.log(command).split())
        report = b.check(bound=0)
        assert report.results + report.dead_letters == b.shape.items
        assert report.dead_letters <= SEATS * 2, "they were there at each kill"
        assert 0 < report.marked < b.shape.items
        assert hours_nano(b) == sum(line.cost_nano for line in read_outputs(b.outputs()).costs)


def kill_one(b: Bench, command: subprocess.Popen[bytes], chance: random.Random) -> str:
    """`kill -9` of the engine's process; what it was at."""
    until = time.monotonic() + START_S
    while not (found := b.find("dispatcher", command)):
        assert command.poll() is None, b.log(command)
        assert time.monotonic() < until, "no engine"
        time.sleep(POLL_S)
    process = chance.choice(found)
    name = title(process).partition(" ")[0]
    kill_now(process)
    return name


def results(b: Bench) -> int:
    """As the command last told history."""
    history = open_history(str(b.folder / ".penstock"))
    return sum(run.tally.results for run in history.runs())


def wait_results(b: Bench, command: subprocess.Popen[bytes], wanted: int) -> None:
    until = time.monotonic() + START_S
    while results(b) < wanted:
        assert command.poll() is None, b.log(command)
        assert time.monotonic() < until, b.log(command)
        time.sleep(0.1)


def hours_nano(b: Bench) -> int:
    """What the clocks say that all engines cost."""
    (path,) = b.folder.glob(".penstock/runs/*/gpu")
    (clock,) = clocks_in(path.read_bytes()).values()
    return clock.total_nano(0.0)
