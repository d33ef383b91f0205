"""A job finds out by itself that a model is not as good as declared, and the next job knows from its first item on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from penstock.connectors.measured import Registry
from penstock.connectors.state import FolderState
from penstock.jobs.cli import call
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


def run(folder: Path, name: str, url: str, count: int, seed: int) -> list[dict[str, Any]]:
    """The job's results, in the order in which they finished."""
    rows, out = folder / f"{name}.rows.jsonl", folder / f"{name}.jsonl"
    assert call(["sandbox", "rows", str(count), "-o", str(rows), "--seed", str(seed)]) == 0
    job = folder / f"{name}.yaml"
    job.write_text(JOB.format(name=name, url=url, rows=rows, out=out, state=folder / "state"))
    assert call(["run", str(job)]) == 0
    results = [json.loads(line) for line in out.read_text().splitlines()]
    return sorted(results, key=lambda result: result["penstock"]["finished_at"])


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
