"""Where it stands what `penstock prune` deleted."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.engine.errors import SpecError
from penstock.jobs.commands.shared import state_beside


def test_deletions_are_told_where_the_job_keeps_its_audit_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever audits the job looks there. `--state` goes before; a catalogue has none."""
    monkeypatch.chdir(tmp_path)
    job, shared = tmp_path / "there" / "job.yaml", tmp_path / "catalogue.yaml"
    job.parent.mkdir()
    job.write_text("source: rows.jsonl\nstate: audited\n")
    shared.write_text("connections: {}\n")
    assert state_beside(None, str(job)) == f"{tmp_path}/there/audited"
    assert state_beside("mine", str(job)) == f"{tmp_path}/mine"
    assert state_beside(None, str(shared)) == state_beside(None, None) == f"{tmp_path}/.penstock"
    job.write_text("source: rows.jsonl\n")
    assert state_beside(None, str(job)) == f"{tmp_path}/there/.penstock"
    job.write_text("source: rows.jsonl\nstate: 's3://b/{{ vars.day }}'\n")
    with pytest.raises(SpecError, match="depends on vars: say which one by --state"):
        state_beside(None, str(job))
