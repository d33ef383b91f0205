"""What an evaluation leaves in the history of its state, and what people are told and do about its job's runs."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from penstock.jobs import requeue, rollouts, trial
from penstock.jobs.cli import call
from penstock.jobs.evals import running
from penstock.jobs.evals.asked import Asked, Variant, models_of
from penstock.jobs.history import open_history
from penstock.jobs.look.page import beside
from penstock.jobs.look.reading import Outputs
from penstock.jobs.spec import load
from penstock.workers.runspec import RunSpec
from penstock.workers.status import RunStatus

JOB = """\
name: labels
source: in.jsonl
prompt: "{{ text }}"
output: {choices: [a, b]}
scorers: [{type: exact, expected: "{{ label }}"}]
accounts: {sand: {protocol: openai, base_url: "http://127.0.0.1:1", provider: sandbox}}
models:
  - {name: small, account: sand, price: free, live: v1, versions: [{id: v1, model: m1}, {id: v2, model: m2}, {id: v3, model: m3}]}
sinks: out.jsonl
"""  # noqa: E501 - as people write it


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunSpec:
    """A job that ran, with v1, and then an evaluation of v2 and v3."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "in.jsonl").write_text("".join(f'{{"text": "t{n}", "label": "a"}}\n' for n in range(4)))
    spec = load("job.yaml")
    ended(spec, 1.0)
    ended(evaluation(spec), 2.0)
    return spec


def evaluation(base: RunSpec, name: str = "check") -> RunSpec:
    models = models_of(base.catalog, ("small@v2", "small@v3"))
    return running.prepare(name, base, Asked(base.name, "default", models, {"": Variant()}, "exact"), None).spec


def ended(spec: RunSpec, at: float, **outputs: list[str]) -> None:
    history = open_history(spec.state)
    history.save_spec(spec)
    status = RunStatus(spec.run_id, spec.name, "done", started_at=at, ended_at=9e9, outputs=outputs)
    history.save_status(status)


def test_the_first_version_that_was_evaluated_is_not_taken_for_the_live_one(base: RunSpec) -> None:
    """A rollout begins at the version that the job's runs have, and a person may go to one that was evaluated."""
    heard = rollouts.start(base.state, rollouts.Ask("small", "v3", (0.05,), ("quality",)))
    assert heard.rollout.baseline == "v1"
    assert rollouts.steering(base.state).live == {"small": "v1"}
    assert heard.undecided is not None  # that the evaluation scores all of its rows is no help to the guard
    assert call(["rollback", "small"]) == 0
    assert rollouts.put_back(base.state, "small", "v2").rollout.baseline == "v2"


def test_what_an_evaluation_or_a_trial_asked_a_bad_version_is_not_sent_again(base: RunSpec) -> None:
    rollouts.start(base.state, rollouts.Ask("small", "v2", (0.05,), ("quality",)))
    told = {"item_id": "00" * 16, "model": "small", "model_version": "v2", "finished_at": datetime.now(UTC).isoformat()}
    results = Path("answered.jsonl")
    results.write_text(json.dumps({"answer": "a", "penstock": told}) + "\n")
    for spec in (evaluation(base), trial.first(base, 5)):
        ended(spec, 2.0, results=[str(results)])
    at = rollouts.speak(base.state, "small", "rollback").rollout
    assert requeue.touched(open_history(base.state), at) == ([], [])
    ended(msgspec.structs.replace(base, run_id="labels-2"), 3.0, results=[str(results)])
    (one,), _ = requeue.touched(open_history(base.state), at)
    assert one.run_id == "labels-2"


def test_a_report_tells_the_latest_evaluations_of_its_own_job(base: RunSpec) -> None:
    """However many other jobs of the state were evaluated since; one that is to begin anew is left out."""
    for n in range(beside.EVALUATIONS):
        another = msgspec.structs.replace(base, name="another", run_id="another-1")
        ended(evaluation(another, f"another-{n}"), 5.0)
    outputs = Outputs(base, RunStatus(base.run_id, base.name, "done"))
    (told,) = beside.gather(outputs).evaluations
    assert told.prepared.name == "check"
    Path("in.jsonl").write_text('{"text": "another", "label": "b"}\n')
    running.prepare("check", base, told.prepared.asked, None, fresh=True)
    assert beside.gather(outputs).evaluations == ()
