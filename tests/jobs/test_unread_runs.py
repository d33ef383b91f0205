"""One run of a state that can't be read is told of, and holds up nothing that other runs know."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.engine.flow.cells import Cell
from penstock.jobs import rollouts
from penstock.jobs.cli import call
from penstock.jobs.history import open_history
from penstock.jobs.spec import load
from penstock.workers.status import RunStatus

JOB = """\
name: labels
source: in.csv
prompt: "{{ text }}"
accounts: {sand: {protocol: openai, base_url: "http://127.0.0.1:1", provider: sandbox}}
models: [{name: small, account: sand, price: free, live: v1, versions: [{id: v1, model: m1}, {id: v2, model: m2}]}]
sinks: out.jsonl
experiments:
  - {name: wording, arms: [{name: plain}, {name: kind, prompt: "Please: {{ text }}"}]}
"""


@pytest.fixture(params=["spec.json", "status.json"])
def state(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run of the job that measured something, and a later one that a newer Penstock wrote."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "in.csv").write_text("text\nhello\n")
    spec = load("job.yaml")
    history = open_history(spec.state)
    (key,) = (each.key for each in spec.policy.experiments)
    status = RunStatus(spec.run_id, spec.name, "done", started_at=1.0)
    status.cells = [Cell("default", "small", "v1", experiment=key, arm="plain", items=7, results=7)]
    history.save_spec(spec)
    history.save_status(status)
    there = tmp_path / ".penstock" / "runs" / "broken-1"
    there.mkdir()
    (there / "spec.json").write_bytes((there.parent / spec.run_id / "spec.json").read_bytes())
    (there / request.param).write_text('{"from": 2,')
    return spec.state


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["experiment", "list"], "labels/wording"),
        (["experiment", "show", "wording"], "7"),
        (["experiment", "stop", "wording"], "labels/wording: stopped"),
        (["rollout", "show", "small"], "v1 → v2"),
        (["list"], "labels"),
    ],
)
def test_what_other_runs_know_is_told_beside_one_that_cannot_be_read(
    state: str, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert call(["rollout", "start", "small", "v2", "--job", "job.yaml"]) == 0
    capsys.readouterr()
    assert call(words) == 0
    said = capsys.readouterr()
    assert told in said.out
    assert said.err.count("run broken-1 was left out: ") == 1


def test_a_run_that_cannot_be_read_is_named_where_its_numbers_are_missing(state: str) -> None:
    heard: list[str] = []
    assert sum(cell.items for cell in rollouts.measured(state, heard.append)) == 7
    assert [word.partition(": ")[0] for word in heard] == ["run broken-1 was left out"]
