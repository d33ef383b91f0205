"""An own engine in the middle of a job: killed while it answers. A tiny random Llama on a real vLLM."""

from __future__ import annotations

import importlib.util
import random
import time
from pathlib import Path

import pytest

from penstock.jobs.history import open_history
from tests.crash.bench import Bench, Shape, bench
from tests.workers.test_vllm_inproc import tiny_folder

pytestmark = [
    pytest.mark.ray,
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: uv sync --extra cpu"),
]

ENGINE = "{max_model_len: 512, max_num_seqs: 8, kv_cache_memory_bytes: 67108864}"


def results(b: Bench) -> int:
    """As the command last told history."""
    history = open_history(str(b.folder / ".penstock"))
    return sum(run.tally.results for run in history.runs())


@pytest.mark.long
def test_an_engine_that_is_killed_while_it_answers_is_replaced(tmp_path: Path, mark: str) -> None:
    """Another is loaded, what it had is asked again and marked, and each item ends exactly once."""
    model = f"{{name: own, worker: vllm, model: {tiny_folder()}, hour_usd: 3.6, engine: {ENGINE}}}"
    with bench(tmp_path, Shape(items=200, output_tokens=96, own_model=model, fallback=False)) as b:
        command = b.start()
        until = time.monotonic() + 120
        while not results(b):
            assert command.poll() is None, b.log(command)
            assert time.monotonic() < until, b.log(command)
            time.sleep(0.1)
        assert b.kill("dispatcher", command, random.Random(1))
        assert b.end(command) == 0, b.log(command)
        assert "was lost; another takes its place" in " ".join(b.log(command).split())
        report = b.check(bound=0)
        assert report.results == b.shape.items
        assert 0 < report.marked < b.shape.items
