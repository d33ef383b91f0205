"""A job finds out by itself that a model is not as good as declared, and the next job knows from its first item on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import ray

from penstock.connectors.measured import Registry
from penstock.connectors.state import FolderState
from penstock.jobs.cli import call
from penstock.jobs.demo.commands import MAIN
from penstock.jobs.sandbox import Settings, running_sandbox
from penstock.jobs.sandbox.planted import Planted
from penstock.jobs.sandbox.settings import Behaviour

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]

JOB = """\
name: {name}
accounts:
  a: {{protocol: openai, base_url: "{url}/v1", limits: {{concurrency: 24}}}}
models:
  - {{name: cheap, account: a, model: cheap, price: {{input_per_million: 1, output_per_million: 1}}, quality: {{default: 0.95}}}}
  - {{name: good, account: a, model: good, price: {{input_per_million: 5, output_per_million: 5}}, quality: {{default: 0.9}}}}
tiers: {{1: [cheap, good]}}
source: {rows}
tier: 1
min_quality: 0.8
prompt: "{{{{ text }}}}"
params: {{max_tokens: 10}}
sample: 1
scorers: [{{type: exact, expected: "{{{{ number }}}}"}}]
sinks: {out}
state: {state}
execution: {{lanes: 1}}
"""  # noqa: E501 - as people write it


MOVES_WITHIN_S = 15.0
"""The first job tells its sums every 5 s, the second looks every 5 s; the rest is for a loaded machine."""


def written(folder: Path, name: str, url: str, count: int, seed: int, sample: int = 1) -> Path:
    """A job file, with rows of its own."""
    rows, out = folder / f"{name}.rows.jsonl", folder / f"{name}.jsonl"
    assert call(["sandbox", "rows", str(count), "-o", str(rows), "--seed", str(seed)]) == 0
    job = folder / f"{name}.yaml"
    text = JOB.format(name=name, url=url, rows=rows, out=out, state=folder / "state")
    job.write_text(text.replace("sample: 1\n", f"sample: {sample}\n"))
    return job


def results_of(job: Path) -> list[dict[str, Any]]:
    """In the order in which they finished."""
    results = [json.loads(line) for line in job.with_suffix(".jsonl").read_text().splitlines()]
    return sorted(results, key=lambda result: result["penstock"]["finished_at"])


def run(folder: Path, name: str, url: str, count: int, seed: int) -> list[dict[str, Any]]:
    job = written(folder, name, url, count, seed)
    assert call(["run", str(job)]) == 0
    return results_of(job)


def models(results: list[dict[str, Any]]) -> list[str]:
    return [result["penstock"]["model"] for result in results]


@pytest.mark.long
def test_a_job_starts_on_what_is_declared_moves_by_what_it_measures_and_the_next_begins_there(tmp_path: Path) -> None:
    behaviours = {
        "cheap": Behaviour(latency_ms=250, planted=Planted(0.5)),
        "good": Behaviour(latency_ms=250, planted=Planted(0.97)),
    }
    with running_sandbox(Settings(models=behaviours), process=True) as url:
        first = models(run(tmp_path, "first", url, 1_500, 1))
        second = run(tmp_path, "second", url, 40, 2)
    assert first[0] == "cheap"
    assert first[-1] == "good"
    assert 20 < first.count("cheap") < 1_400
    assert set(models(second)) == {"good"}
    refused = second[0]["penstock"]["refused"]
    assert refused[0]["model"] == "cheap"
    assert "measured" in refused[0]["reason"]
    shared = Registry(FolderState(tmp_path / "state")).read()
    assert sum(cell.results for cell in shared.cells) == 1_540
    assert len(shared.runs) == 2


def sent(results: list[dict[str, Any]], model: str) -> list[float]:
    """When the first calls of its items were made, in order."""
    blocks = [each["penstock"] for each in results]
    return sorted(
        datetime.fromisoformat(b["attempts"][0]["started_at"]).timestamp() for b in blocks if b["model"] == model
    )


@pytest.mark.long
def test_a_job_that_runs_goes_by_what_another_one_measures_within_seconds(tmp_path: Path) -> None:
    """It samples nothing itself, and runs before and after."""
    behaviours = {
        "cheap": Behaviour(latency_ms=500, planted=Planted(0.5)),
        "good": Behaviour(latency_ms=500, planted=Planted(0.97)),
    }
    with running_sandbox(Settings(models=behaviours), process=True) as url:
        blind = written(tmp_path, "blind", url, 1_500, 3, sample=0)
        joined = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        with subprocess.Popen([sys.executable, "-c", MAIN, "run", str(blind)], env=joined) as beside:
            seeing = run(tmp_path, "seeing", url, 600, 1)
            assert beside.wait(120) == 0
    shown, cheap, good = sent(seeing, "good")[0], sent(results_of(blind), "cheap"), sent(results_of(blind), "good")
    assert cheap[0] < shown, "it began on what was declared"
    assert cheap[-1] < shown + MOVES_WITHIN_S
    assert sum(at > shown + MOVES_WITHIN_S for at in good) > 50, "it ran on long enough to tell"
