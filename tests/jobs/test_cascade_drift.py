"""A cheap model degrades in silence: its cascade believes it no longer, in this job and the next, until somebody
calibrates it anew."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from penstock.connectors.audit import open_audit
from penstock.connectors.calibrations import write_judges
from penstock.connectors.drifts import Drifts
from penstock.connectors.state import open_state
from penstock.engine.judging import judge_version
from penstock.engine.measure.agreement import agreement
from penstock.engine.steering import judges
from penstock.jobs.cli import call
from penstock.jobs.history import open_history
from penstock.jobs.sandbox import Settings, running_sandbox
from penstock.jobs.sandbox.planted import Planted
from penstock.jobs.sandbox.settings import Behaviour
from penstock.jobs.spec import load

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]

JOB = """\
name: {name}
accounts:
  a: {{protocol: openai, base_url: "{url}/v1", limits: {{concurrency: 24}}}}
models:
  - {{name: cheap, account: a, model: cheap, price: {{input_per_million: 1, output_per_million: 1}}}}
  - {{name: top, account: a, model: top, price: {{input_per_million: 5, output_per_million: 5}}}}
tiers: {{1: [top]}}
source: {rows}
prompt: "{{{{ text }}}}"
params: {{max_tokens: 10}}
sample: 1
scorers: [{{type: exact, expected: "{{{{ number }}}}"}}]
cascade: {{models: [cheap, top], signal: logprob, threshold: {threshold}}}
sinks: {out}
state: {state}
execution: {{lanes: 1}}
"""


def run(folder: Path, name: str, url: str, count: int, threshold: str) -> list[str]:
    """Who answered, in the order in which items finished."""
    rows, out = folder / f"{name}.rows.jsonl", folder / f"{name}.jsonl"
    assert call(["sandbox", "rows", str(count), "-o", str(rows), "--seed", str(len(name))]) == 0
    job = folder / f"{name}.yaml"
    job.write_text(JOB.format(name=name, url=url, rows=rows, out=out, state=folder / "state", threshold=threshold))
    assert call(["run", str(job)]) == 0
    results: list[Any] = [json.loads(line)["penstock"] for line in out.read_text().splitlines()]
    return [each["model"] for each in sorted(results, key=lambda each: each["finished_at"])]


def calibrate(folder: Path) -> None:
    """From the labelled rows of the first run."""
    job = str(folder / "labels.yaml")
    assert call(["cascade", "calibrate", job, "--min-quality", "0.9"]) == 0


def held_against_labels(job: Path) -> None:
    """Its judge agrees with people, who labelled a hundred answers."""
    spec = load(job)
    cascade, agreed = spec.policy.tasks["default"].cascade, agreement([[60, 0], [0, 40]])
    assert cascade is not None
    assert cascade.judge is not None
    assert agreed is not None
    version = judge_version(cascade.judge, spec.catalog.models["top"].live)
    held = judges.Calibration(f"judge@{version}", "top", 60, 40, agreed, "run", "now", "ann")
    write_judges(open_state(spec.state), [held])


def degrade(url: str, quality: float) -> None:
    body = json.dumps({"planted": {"quality": quality}}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{url}/behaviour?model=cheap", body)) as reply:
        assert reply.status == 200


@pytest.mark.long
def test_a_cascade_whose_cheap_model_degrades_stops_to_believe_it(tmp_path: Path) -> None:
    behaviours = {
        "cheap": Behaviour(latency_ms=200, planted=Planted(0.93)),
        "top": Behaviour(latency_ms=50, planted=Planted(0.99)),
    }
    state = str(tmp_path / "state")
    with running_sandbox(Settings(models=behaviours), process=True) as url:
        run(tmp_path, "labels", url, 600, "0.5")
        calibrate(tmp_path)
        good = run(tmp_path, "good", url, 150, "calibrated")
        degrade(url, 0.4)
        falling = run(tmp_path, "falling", url, 1_800, "calibrated")
        after = run(tmp_path, "afterwards", url, 60, "calibrated")
        degrade(url, 0.93)
        calibrate(tmp_path)
        again = run(tmp_path, "recalibrated", url, 150, "calibrated")
    assert good.count("cheap") > 75
    assert "cheap" in falling[:200]
    assert set(falling[-200:]) == {"top"}
    assert set(after) == {"top"}, "the next job does not believe it either"
    assert again.count("cheap") > 75
    (entry,) = [each for each in open_audit(state).entries() if each.kind == "drift"]
    facts = json.loads(bytes(entry.facts))
    assert (facts["target"], facts["promised"]) == ("cheap@cheap", 0.9)
    assert facts["mean"] < 0.9
    history = open_history(state)
    stories = {each.name: each for each in history.runs()}
    assert "accepted answers of cheap@cheap" in stories["falling"].drifted["default"]
    assert any("until penstock cascade calibrate" in note for note in stories["afterwards"].notes)
    assert (stories["good"].drifted, stories["recalibrated"].drifted) == ({}, {})
    assert Drifts(state).read("default", 1) is not None
    assert Drifts(state).read("default", 2) is None


@pytest.mark.long
def test_a_judge_believes_or_sends_on_in_a_job_as_people_run_it(tmp_path: Path) -> None:
    """Each of its calls is on the bill; what it did not believe was answered by the last model. (The sandbox gives a
    row some grade of its own.)"""
    rows, out, job = tmp_path / "rows.jsonl", tmp_path / "out.jsonl", tmp_path / "job.yaml"
    assert call(["sandbox", "rows", "60", "-o", str(rows)]) == 0
    judge = "judge, judge: {model: top, rubric: Is it right?, scale: [1, 5]}"
    with running_sandbox(Settings(models={"top": Behaviour(planted=Planted(1.0))}), process=True) as url:
        text = JOB.format(name="judged", url=url, rows=rows, out=out, state=tmp_path / "state", threshold=2)
        job.write_text(text.replace("signal: logprob", f"signal: {judge}"))
        held_against_labels(job)
        job.write_text(job.read_text().replace("threshold: 2", "threshold: 0.5"))
        assert call(["run", str(job)]) == 0
    results: list[Any] = [json.loads(line)["penstock"] for line in out.read_text().splitlines()]
    assert len(results) == 60
    asked = [[each["role"] for each in result["attempts"]] for result in results]
    assert {result["model"]: roles for result, roles in zip(results, asked, strict=True)} == {
        "cheap": ["primary", "judge"],
        "top": ["primary", "judge", "cascade"],
    }
    assert all(roles[:2] == ["primary", "judge"] for roles in asked)
    costs: list[Any] = [json.loads(line) for line in (tmp_path / "out.costs.jsonl").read_text().splitlines()]
    judged = [line for line in costs if line["role"] == "judge"]
    assert (len(judged), {line["model"] for line in judged}) == (60, {"top"})
    assert sum(result["cost_usd"] for result in results) == pytest.approx(sum(line["usd"] for line in costs))
