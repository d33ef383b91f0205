"""A run that is handed to a cluster: what history says of it before and after. No cluster answers here."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest
from ray.job_submission import JobSubmissionClient

from penstock.connectors.audit import open_audit
from penstock.connectors.settings import FilesSink
from penstock.engine.errors import Held, PenstockError, SpecError, Temporary
from penstock.jobs.history import History, open_history
from penstock.jobs.replay import is_finished
from penstock.jobs.run import Session, Stop, execute
from penstock.jobs.submit import JobHandle, submit
from penstock.workers.runspec import RunSpec
from penstock.workers.status import RunState, RunStatus, Tally
from tests.jobs.test_cli_run import Heard, ScriptedCluster, ScriptedRun, spec_in

CLUSTER = "http://127.0.0.1:9"


def _nothing(*_: object) -> None: ...


def _taken(*_: object, **__: object) -> str:
    return "ray-1"


def _away(*_: object, **__: object) -> str:
    raise ConnectionError("nobody is there")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> str:
    """One that takes every job."""
    monkeypatch.setattr(JobSubmissionClient, "__init__", _nothing)
    monkeypatch.setattr(JobSubmissionClient, "submit_job", _taken)
    return CLUSTER


def known(folder: Path, state: RunState) -> tuple[History, RunSpec]:
    """A run of generation 2, above its replays, that a command left in this state."""
    spec = msgspec.structs.replace(spec_in(folder), generation=2)
    history = open_history(spec.state)
    history.save_spec(spec)
    history.save_status(RunStatus("job-1", "job", state, updated_at=1.0))
    return history, spec


def test_a_run_that_was_handed_to_another_command_is_not_over(tmp_path: Path, cluster: str) -> None:
    """For some seconds of a rolling restart its old command has told its end, and the new one nothing yet: a program
    that waited for the run took its results so far for all of them, and a submit went behind the one that had it."""
    history, spec = known(tmp_path, "handed_over")
    now = time.time()
    handed_over = RunStatus("job-1", "job", "handed_over", started_at=now - 9, updated_at=now, ended_at=now, epoch=1)
    history.save_status(handed_over)
    handle = JobHandle("job-1", "ray-1", history)
    assert not handle.done()
    with pytest.raises(Held, match="is under way"):
        submit(spec, cluster)
    assert not is_finished(handed_over)
    history.save_status(msgspec.structs.replace(handed_over, updated_at=now - 61))
    assert handle.done(), "the one that it was handed to is gone"


def test_a_run_that_a_program_cancels_is_in_the_audit_log(tmp_path: Path, cluster: str) -> None:
    """As one that somebody cancels by the command."""
    handle = submit(spec_in(tmp_path), cluster)
    handle.cancel()
    assert [(entry.kind, entry.run) for entry in open_audit(handle.state).entries()] == [("cancel", "job-1")]


def test_a_submit_pays_for_no_run_again_whose_results_moved(tmp_path: Path, cluster: str) -> None:
    """The command on the cluster reads the spec that was saved for it: it can't tell that there was another."""
    history, spec = known(tmp_path, "interrupted")
    moved = msgspec.structs.replace(spec, sinks={**spec.sinks, "results": FilesSink(str(tmp_path / "new/r.jsonl"))})
    with pytest.raises(SpecError, match=r"results of run job-1 were at .* and would be at .*/new/r.jsonl"):
        submit(moved, cluster)
    assert history.spec("job-1") == spec


def test_a_submitted_run_keeps_its_generation(tmp_path: Path, cluster: str) -> None:
    """A job file says none; records of a lower one would rank below those that stand."""
    history, _ = known(tmp_path, "interrupted")
    submit(spec_in(tmp_path), cluster)
    assert history.spec("job-1").generation == 2


def test_a_submit_that_the_cluster_does_not_take_leaves_history_as_it_was(tmp_path: Path) -> None:
    history, spec = known(tmp_path, "done")
    with pytest.raises(Temporary, match="did not take the job"):
        submit(spec, CLUSTER)
    assert history.status("job-1").state == "done"


def test_a_run_that_is_under_way_is_not_submitted(tmp_path: Path, cluster: str) -> None:
    history, spec = known(tmp_path, "done")
    history.save_status(RunStatus("job-1", "job", "running", updated_at=time.time()))
    with pytest.raises(Held, match="is under way"):
        submit(spec, cluster)
    assert history.status("job-1").state == "running"


def test_what_began_while_the_cluster_was_being_reached_is_seen(tmp_path: Path, cluster: str) -> None:
    """That may take long: another terminal's command, or submit, has the run meanwhile."""

    def begins(*_: object) -> None:
        history, _ = known(tmp_path, "done")
        history.save_status(RunStatus("job-1", "job", "running", updated_at=time.time()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JobSubmissionClient, "__init__", begins)
        with pytest.raises(Held, match="is under way"):
            submit(spec_in(tmp_path), cluster)
    assert open_history(spec_in(tmp_path).state).status("job-1").state == "running"


def test_a_run_that_no_cluster_was_reached_for_is_not_known(tmp_path: Path, cluster: str) -> None:
    """Nothing was begun: its results may be put elsewhere before it is submitted again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JobSubmissionClient, "__init__", _away)
        with pytest.raises(Temporary, match="did not take the job"):
            submit(spec_in(tmp_path), cluster)
    history = open_history(spec_in(tmp_path).state)
    assert not history.runs()
    moved = spec_in(tmp_path)
    moved = msgspec.structs.replace(moved, sinks={**moved.sinks, "results": FilesSink(str(tmp_path / "new/r.jsonl"))})
    assert submit(moved, cluster).status().submitted
    assert history.spec("job-1").sinks == moved.sinks


def test_results_of_a_run_that_a_cluster_may_have_taken_are_not_put_elsewhere(tmp_path: Path, cluster: str) -> None:
    """It was reached, and its answer got lost: its command may be about to begin there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JobSubmissionClient, "submit_job", _away)
        with pytest.raises(Temporary, match="did not take the job"):
            submit(spec_in(tmp_path), cluster)
    moved = spec_in(tmp_path)
    moved = msgspec.structs.replace(moved, sinks={**moved.sinks, "results": FilesSink(str(tmp_path / "new/r.jsonl"))})
    with pytest.raises(SpecError, match="results of run job-1 were at"):
        submit(moved, cluster)


def carried_out(spec: RunSpec, came: ScriptedRun | PenstockError, address: str | None = "10.0.0.1:6379") -> None:
    """The command there. `address` None: one here, with a Ray of its own."""
    execute(spec, Session(address=address, open_cluster=ScriptedCluster(came).open), Heard(), Stop())


def silent_for(history: History, seconds: float) -> None:
    told = history.status("job-1")
    history.save_status(msgspec.structs.replace(told, updated_at=told.updated_at - seconds))


@pytest.mark.parametrize("late_s", [0.0, 3_600.0])
def test_a_submitted_run_is_cancelled_before_its_command_starts(tmp_path: Path, cluster: str, late_s: float) -> None:
    """However late it starts: the request was made of this command, which took it for an old one and paid."""
    handle, history = submit(spec_in(tmp_path), cluster), open_history(spec_in(tmp_path).state)
    handle.cancel()
    silent_for(history, late_s)
    carried_out(history.spec("job-1"), ScriptedRun(["cancelled"], Tally()))
    assert history.cancel_asked("job-1")
    carried_out(history.spec("job-1"), ScriptedRun(["done"], Tally()))
    assert not history.cancel_asked("job-1")


def test_a_run_whose_submitted_command_never_came_goes_on_here(tmp_path: Path, cluster: str) -> None:
    """As `cancel` and `status` say of it: the request was made of the one that is gone. A refusal here is seen."""
    handle, history = submit(spec_in(tmp_path), cluster), open_history(spec_in(tmp_path).state)
    handle.cancel()
    silent_for(history, 700.0)
    with pytest.raises(SpecError):
        carried_out(history.spec("job-1"), SpecError("the topic is not there"), None)
    assert handle.status().state == "starting"
    carried_out(history.spec("job-1"), ScriptedRun(["done"], Tally()), None)
    assert not history.cancel_asked("job-1")


def test_a_run_is_submitted_again_only_where_nothing_came_of_it(tmp_path: Path, cluster: str) -> None:
    """Who waits for one that never starts waits ten minutes, not for ever."""
    handle, history = submit(spec_in(tmp_path), cluster), open_history(spec_in(tmp_path).state)
    silent_for(history, 590.0)
    assert not handle.done()
    with pytest.raises(Held, match="was submitted already, and its command has told nothing yet"):
        submit(spec_in(tmp_path), cluster)
    silent_for(history, 20.0)
    assert handle.done()
    submit(spec_in(tmp_path), cluster)
    assert not JobHandle("job-1", "", history).done()


def test_a_submit_of_a_changed_job_is_refused_here(tmp_path: Path, cluster: str) -> None:
    """Its command would be, there, where nobody sees it. Before its first item has ended, a job may be mended."""
    history, spec = known(tmp_path, "interrupted")
    changed = msgspec.structs.replace(spec, fingerprint={"row": "other"})
    submit(changed, cluster)
    history.save_status(RunStatus("job-1", "job", "interrupted", updated_at=1.0, tally=Tally(results=3)))
    submit(changed, cluster)
    silent_for(history, 700.0)
    with pytest.raises(SpecError, match="begun with another job file; changed: row"):
        submit(spec, cluster)
    assert history.spec("job-1") == changed


@pytest.mark.parametrize(
    ("error", "state"),
    [(SpecError("the topic is not there"), "failed"), (Held("held by ann"), "starting")],
)
def test_history_tells_why_a_submitted_run_was_refused(
    tmp_path: Path, cluster: str, error: PenstockError, state: RunState
) -> None:
    """Nobody sees what its command says. Another command that has the run tells of it itself."""
    handle = submit(spec_in(tmp_path), cluster)
    spec = open_history(spec_in(tmp_path).state).spec("job-1")
    with pytest.raises(type(error)):
        carried_out(msgspec.structs.replace(spec, name="edited"), error)
    assert handle.status().state == "starting", "that was another job"
    with pytest.raises(type(error)):
        carried_out(spec, error)
    told = handle.status()
    assert (told.state, handle.done()) == (state, state == "failed")
    assert told.message == (str(error) if state == "failed" else "submitted")
