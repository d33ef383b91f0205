"""A run that is handed to a cluster: what history says of it before and after. No cluster answers here."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest
from ray.job_submission import JobSubmissionClient

from penstock.connectors.settings import FilesSink
from penstock.engine.errors import Held, SpecError, Temporary
from penstock.jobs.history import History, open_history
from penstock.jobs.submit import submit
from penstock.workers.runspec import RunSpec
from penstock.workers.status import RunState, RunStatus
from tests.jobs.test_cli_run import spec_in


def known(folder: Path, state: RunState) -> tuple[History, RunSpec]:
    """A run of generation 2, above its replays, that a command left in this state."""
    spec = msgspec.structs.replace(spec_in(folder), generation=2)
    history = open_history(spec.state)
    history.save_spec(spec)
    history.save_status(RunStatus("job-1", "job", state, updated_at=1.0))
    return history, spec


def test_a_submit_pays_for_no_run_again_whose_results_moved(tmp_path: Path) -> None:
    """The command on the cluster reads the spec that was saved for it: it can't tell that there was another."""
    history, spec = known(tmp_path, "interrupted")
    moved = msgspec.structs.replace(spec, sinks={**spec.sinks, "results": FilesSink(str(tmp_path / "new/r.jsonl"))})
    with pytest.raises(SpecError, match=r"results of run job-1 were at .* and would be at .*/new/r.jsonl"):
        submit(moved, "http://127.0.0.1:9")
    assert history.spec("job-1") == spec


def test_a_submitted_run_keeps_its_generation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job file says none; records of a lower one would rank below those that stand."""
    history, _ = known(tmp_path, "interrupted")
    monkeypatch.setattr(JobSubmissionClient, "__init__", lambda *_: None)
    monkeypatch.setattr(JobSubmissionClient, "submit_job", lambda *_, **__: "ray-1")
    submit(spec_in(tmp_path), "http://127.0.0.1:9")
    assert history.spec("job-1").generation == 2


def test_a_submit_that_the_cluster_does_not_take_leaves_history_as_it_was(tmp_path: Path) -> None:
    history, spec = known(tmp_path, "done")
    with pytest.raises(Temporary, match="did not take the job"):
        submit(spec, "http://127.0.0.1:9")
    assert history.status("job-1").state == "done"
    history.save_status(RunStatus("job-1", "job", "running", updated_at=time.time()))
    with pytest.raises(Held, match="is under way"):
        submit(spec, "http://127.0.0.1:9")
    assert history.status("job-1").state == "running"
