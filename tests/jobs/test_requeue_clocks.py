"""What is sent again is told by time, and the clocks of nodes differ."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from penstock.jobs import requeue, rollouts
from penstock.jobs.history import open_history
from penstock.jobs.spec import load
from penstock.workers.status import RunStatus
from tests.jobs.test_unread_runs import JOB


@pytest.mark.parametrize(("behind_s", "found"), [(20, 1), (3_600, 0)])
def test_answers_of_a_lane_whose_clock_is_behind_are_sent_again_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind_s: int, found: int
) -> None:
    """By its clock it answered, and ended, before the rollout began."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(JOB)
    spec = load("job.yaml")
    rollouts.start(spec.state, rollouts.Ask("small", "v2", (0.5,), ("cost",)), rollouts.Job(spec.catalog, spec.policy))
    at = datetime.now(UTC) - timedelta(seconds=behind_s)
    told = {"item_id": "00" * 16, "model": "small", "model_version": "v2", "finished_at": at.isoformat()}
    (tmp_path / "out.jsonl").write_text(json.dumps({"answer": "a", "penstock": told}) + "\n")
    status = RunStatus(spec.run_id, spec.name, "done", started_at=1.0, ended_at=at.timestamp())
    status.outputs = {"results": [str(tmp_path / "out.jsonl")]}
    history = open_history(spec.state)
    history.save_spec(spec)
    history.save_status(status)
    back = rollouts.speak(spec.state, "small", "rollback").rollout
    assert len(requeue.touched(history, back)[0]) == found
