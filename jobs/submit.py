"""Handing a run to a Ray cluster: the spec goes into the shared state, and a Ray job runs it from there.

So nothing has to stay alive here, the run resumes like any other (`penstock run RUN_ID --state URL`), and the cluster
needs no copy of the job's folder: only the state, the source and the sinks must be reachable from it.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from penstock.connectors.registry import where
from penstock.engine.errors import Held, SpecError, Temporary
from penstock.jobs.before import Before
from penstock.jobs.history import SUBMITTED_S, History, goes_on, is_gone, open_history
from penstock.jobs.replay import generation_of
from penstock.workers.clock import SYSTEM
from penstock.workers.runspec import RunSpec
from penstock.workers.status import RunStatus, Tally

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

    from penstock.jobs.run import Job

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class JobHandle:
    """A run that goes on elsewhere."""

    def __init__(self, run_id: str, ray_job: str, history: History) -> None:
        self.run_id = run_id
        self.ray_job = ray_job
        """Ray's own id of it, for the Ray dashboard."""
        self._history = history

    @property
    def state(self) -> str:
        """The state URL, for `--state`."""
        return self._history.url

    def status(self) -> RunStatus:
        return self._history.status(self.run_id)

    def done(self) -> bool:
        """It is over, or its command is gone: nothing more happens by itself."""
        status = self.status()
        return not goes_on(status) or is_gone(status, SYSTEM.now())

    def cancel(self) -> None:
        """Ask it to drain, commit and stop. The audit log has it, as that of the command, where it can be written."""
        from penstock.jobs.audited import record_stop

        self._history.ask_cancel(self.run_id, "JobHandle.cancel")
        record_stop(self._history, "cancel", self.run_id, {})


def submit(job: Job, address: str, *, vars: Mapping[str, str] | None = None) -> JobHandle:
    """Start a run on the cluster whose dashboard is at `address` (`http://host:8265`) and return at once.

    Raises `SpecError` where the cluster could not reach the state, or the job has changed since items of the run ended,
    or its results are elsewhere now; `Held` where the run is under way; `Temporary` where the cluster does not answer.
    Then history says what it said before.
    """
    from penstock.jobs.run import resolve

    spec = resolve(job, vars)
    _check_reach(spec.state, address)
    cluster = _reached(address)  # first: a run that no cluster can have taken is not known, and it may take long
    history = open_history(spec.state)
    before, now = Before.of(history, spec.run_id), SYSTEM.now()
    if not before.is_quiet(now):
        raise Held(_under_way(before, spec.run_id))
    _refuse_moved(before.spec, spec)
    _refuse_changed(before, spec)
    spec = msgspec.structs.replace(spec, generation=generation_of(history, spec))
    history.save_spec(spec)  # the command there reads it
    history.forget_cancel(spec.run_id)
    history.save_status(_submitted(spec, before, now))
    command = shlex.join(["penstock", "run", spec.run_id, "--state", spec.state])
    try:
        return JobHandle(spec.run_id, _to_ray(cluster, address, command, spec.run_id), history)
    except Temporary as error:
        if before.spec is not None:
            history.save_spec(before.spec)
        failed = RunStatus(spec.run_id, spec.name, "failed", f"not submitted: {error}")
        history.save_status(before.status or failed)
        raise


def _submitted(spec: RunSpec, before: Before, now: float) -> RunStatus:
    """What was done before stays known."""
    tally = before.status.tally if before.status is not None else Tally()
    told = RunStatus(spec.run_id, spec.name, "starting", "submitted", started_at=now, updated_at=now, submitted=True)
    return msgspec.structs.replace(told, tally=tally)


def _under_way(before: Before, run_id: str) -> str:
    if before.is_submitted:
        return (
            f"{run_id} was submitted already, and its command has told nothing yet: penstock status {run_id}. "
            f"If it never does, the run can be submitted again {SUBMITTED_S / 60:g} minutes after that"
        )
    return f"{run_id} is under way: penstock status {run_id}, or penstock cancel {run_id} first"


def _refuse_changed(before: Before, spec: RunSpec) -> None:
    """The command there would refuse it, seen by nobody."""
    from penstock.jobs.spec import changed

    parts = changed(before.spec.fingerprint, spec.fingerprint) if before.spec is not None and before.items else []
    if parts:
        raise SpecError(
            f"run {spec.run_id} was begun with another job file; changed: {', '.join(parts)}. Finished items would "
            "keep their old answers: to go on so, `penstock run` it once with --accept-changes; or --fresh starts over"
        )


def _refuse_moved(former: RunSpec | None, spec: RunSpec) -> None:
    """The command there can't: all that it reads of the run is the spec that is saved here."""
    here = where(spec.sinks["results"])
    if former is not None and (known := where(former.sinks["results"])) != here:
        raise SpecError(
            f"the results of run {spec.run_id} were at {known}, and would be at {here}: all that is not there would be "
            "paid for again. Put the sink's path back; where its working folder moved along, or to start over (with "
            "--fresh), `penstock run` it once"
        )


def _check_reach(state: str, address: str) -> None:
    if "://" not in state and not any(host in address for host in LOOPBACK):
        raise SpecError(
            f"the state {state} is a folder of this machine, which the cluster at {address} can't reach: "
            "set `state:` to a URL that both reach"
        )


def _reached(address: str) -> JobSubmissionClient:
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except Exception as error:
        raise _not_taken(address, error) from error


def _to_ray(cluster: JobSubmissionClient, address: str, command: str, run_id: str) -> str:
    """Where this fails, the cluster may have taken the job all the same: its answer got lost."""
    try:
        return str(cluster.submit_job(entrypoint=command, metadata={"penstock_run": run_id}))
    except Exception as error:
        raise _not_taken(address, error) from error


def _not_taken(address: str, error: Exception) -> Temporary:
    return Temporary(f"the Ray cluster at {address} did not take the job: {error}; is that its dashboard?")
