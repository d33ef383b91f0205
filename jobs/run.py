"""Running a job: from a job to a `JobResult`, with the run's history, its progress, and a stop that loses nothing.

The cluster is met through two small protocols (`Cluster`, `RunHandle`), so that all of this is tested with a scripted
run. The calls of a handle come from one thread and return at once.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec

from penstock.engine.errors import Held, PenstockError, SpecError
from penstock.jobs import trial
from penstock.jobs.before import Before
from penstock.jobs.feedback.following import Followed, following
from penstock.jobs.history import History, is_over, open_history
from penstock.jobs.progress import Display, Meter, Silent, View, done_items
from penstock.jobs.replay import generation_anew, generation_of
from penstock.jobs.result import JobResult
from penstock.jobs.wording import secret_told
from penstock.workers.clock import SYSTEM, Clock
from penstock.workers.runspec import RunOptions, RunSpec
from penstock.workers.status import RunState, RunStatus

if TYPE_CHECKING:
    from penstock.jobs.forecasting.planning import Plan

T = TypeVar("T")
Job = str | Path | Mapping[str, object] | RunSpec
"""A job file's path, a job as a mapping, or a spec that is already made."""

POLL_S = 0.25
"""How often the run is asked for its status: four redraws a second are smooth and cost nothing."""
SAVE_EVERY_S = 2.0
"""How often the status goes into history: a put to S3 costs half a cent per thousand."""
STOP_GRACE_S = 10.0
"""After the second interrupt: how long a run may take to say that it stopped before we leave it behind."""
COMMAND_SHOWN = 200
"""Characters of a command line that others are shown."""


class RunHandle(Protocol):
    """One run under way.

    * `status` never fails while the driver lives; where the driver is lost it says `failed` with a message.
    * `drain`: dispatch nothing new, let what is in flight finish, commit, end as `interrupted`. Returns at once.
    * `cancel`: stop now: abort what is in flight, commit what is finished, end as `interrupted`. Returns at once.
    * `close` frees what the command holds. May be called twice, and while the run still goes.
    """

    def status(self) -> RunStatus: ...
    def drain(self) -> None: ...
    def cancel(self) -> None: ...
    def close(self) -> None: ...


class Cluster(Protocol):
    """Where runs are launched. `launch` returns once the run is accepted, and raises what `engine.errors` says:
    `Held` where another process has the run, `SpecError` where the job changed, `Corrupt`, `Temporary`. Listing an
    input takes minutes: `asked` tells meanwhile how often somebody asked to stop; where that is so,
    `KeyboardInterrupt` is raised."""

    def launch(self, spec: RunSpec, options: RunOptions, asked: Callable[[], int]) -> RunHandle: ...


OpenCluster = Callable[[str | None], AbstractContextManager[Cluster]]
"""From an address (None: a Ray of our own) to a cluster, started on entry and given back on exit."""


class Stop:
    """How urgently a run shall stop: 0 not, 1 drain, 2 now. Asked for from signal handlers and other threads."""

    def __init__(self) -> None:
        self.level = 0
        self._asked = threading.Event()

    def ask(self) -> None:
        self.level += 1
        self._asked.set()

    def wait(self, seconds: float) -> None:
        """Sleep, but wake when somebody asks."""
        if self._asked.wait(seconds):
            self._asked.clear()


def follow(
    handle: RunHandle, spec: RunSpec, history: History, display: Display, stop: Stop, clock: Clock = SYSTEM
) -> RunStatus:
    """Watch a run to its end: show it, save it, and pass on what is asked of it. Returns the last status.

    One that was asked to stop may take `execution.drain_s` to drain before it is stopped like one asked twice.
    """
    meter, saved, told, drain_s = Meter(), _Saver(history, spec, display.say), 0, spec.execution.drain_s
    gave_up_at = drained_at = None
    while True:
        status, now = handle.status(), clock.tick()
        display.show(meter.see(status, clock.now()))
        if is_over(status):
            saved.last(status)
            return status
        saved.see(status, now)
        if stop.level >= 1 and told == 0:
            told, drained_at = 1, now + drain_s
            handle.drain()
            display.say("draining: what is in flight ends and is committed; once more stops now")
        if drained_at is not None and told == 1 and now >= drained_at:
            display.say(f"still draining after {drain_s:g} s (execution.drain_s): calls in flight are cut off now")
            stop.ask()
        if stop.level >= 2 and told == 1:
            told = 2
            handle.cancel()
            gave_up_at = now + STOP_GRACE_S
        if gave_up_at is not None and now >= gave_up_at:
            return _left_behind(status, saved)
        stop.wait(POLL_S)


def _left_behind(status: RunStatus, saved: _Saver) -> RunStatus:
    status.state, status.message = "interrupted", "left behind: it did not stop in time"
    saved.last(status)
    return status


class _Saver:
    """Writes the spec, and a status where it says something new, no more often than a store likes. In a thread of its
    own: a store that is slow or away holds up neither the run nor whoever wants to stop it. History is for people and
    tools.
    """

    def __init__(self, history: History, spec: RunSpec, say: Callable[[str], None]) -> None:
        self._history = history
        self._unsaved: RunSpec | None = spec
        self._say = say
        self._state: RunState | None = None
        self._next_at = float("-inf")
        self._thread = ThreadPoolExecutor(1, "penstock-history")
        self._going: Future[None] | None = None
        self._failed = False

    def see(self, status: RunStatus, now: float) -> None:
        """`now`: of a clock that only grows."""
        if status.state == self._state and now < self._next_at:
            return
        if self._going is not None:
            if not self._going.done():
                return
            self._heard(self._going)
        self._state, self._next_at = status.state, now + SAVE_EVERY_S
        self._going = self._thread.submit(self._save, status)

    def last(self, status: RunStatus) -> None:
        """Behind all others. Returns when it is written, or can't be."""
        going = self._thread.submit(self._save, status)
        self._thread.shutdown()
        self._heard(going)

    def _save(self, status: RunStatus) -> None:
        if self._unsaved is not None:
            born = self._unsaved.generation if status.generation is None else status.generation
            self._history.save_spec(msgspec.structs.replace(self._unsaved, generation=born))
            if status.generation is not None:  # else the plan is still to say which one it is
                self._unsaved = None
        self._history.save_status(status)

    def _heard(self, going: Future[None]) -> None:
        """What is wrong is said once, until it is well again. It ends no run: who is refused today (credentials that
        ran out) may write again tomorrow."""
        try:
            going.result()
        except Exception as error:  # noqa: BLE001 - a client's own mistake must not cut off calls that are paid for
            if not self._failed:
                what = "" if isinstance(error, PenstockError) else f"unexpected {type(error).__name__}: "
                self._say(f"the run's history can't be written now: {what}{error}")
            self._failed = True
        else:
            self._failed = False


@contextmanager
def interrupts(stop: Stop) -> Generator[None]:
    """SIGINT, SIGTERM and SIGHUP (the terminal was closed) ask the run to stop, while this lasts. Only a process's main
    thread may do that; elsewhere whoever started the thread passes the interrupt on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    if before[signal.SIGHUP] == signal.SIG_IGN:
        del before[signal.SIGHUP]  # `nohup`: it shall go on when the terminal is closed

    def asked(_number: int, _frame: FrameType | None) -> None:
        stop.ask()

    for number in before:
        signal.signal(number, asked)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Session(msgspec.Struct, frozen=True):
    """All that one command brings along. `open_cluster` and `open_history` are arguments so that tests bring their
    own."""

    options: RunOptions = RunOptions()
    address: str | None = None
    open_cluster: OpenCluster | None = None
    open_history: Callable[[str], History] | None = None


def execute(spec: RunSpec, session: Session, display: Display, stop: Stop) -> JobResult:
    """Launch a run and follow it to its end. Raises the errors of `engine.errors`; a run that ended badly is no error
    but a `JobResult` that says so."""
    asked_at = session.options.asked_at or SYSTEM.now()
    here = session.address is None and "RAY_ADDRESS" not in os.environ
    if here:
        require_secrets(spec)
    history = (session.open_history or open_history)(spec.state)
    before = Before.of(history, spec.run_id)
    submitted = before.is_submitted and not here
    if before.is_quiet(SYSTEM.now()) and not submitted:  # else whoever asked meant this command
        history.forget_cancel(spec.run_id)
    given = msgspec.structs.replace(
        session.options,
        command=command_line(),
        generation_anew=generation_anew(history, spec.run_id),
        asked_at=asked_at,
    )
    options = before.options(spec, given)
    spec = msgspec.structs.replace(spec, generation=generation_of(history, spec))
    display.show(_before_ray(spec, session.address, asked_at))
    if not options.fresh and (models := before.repriced(spec)):
        names = ", ".join(models)
        display.say(f"the prices of {names} have changed since the run's last command: what is left costs the new ones")
    start = session.open_cluster or _real_cluster
    # Twice: Ray puts its own handler of SIGTERM in place when it starts, which ends the process without a word.
    feedback = following(Followed(spec.feedback, spec.state, spec.run_id), display.say)
    with closing(display), interrupts(stop), start(session.address) as cluster, interrupts(stop), feedback:
        with _refusal_told(history, before, spec) if submitted else nullcontext():
            handle = cluster.launch(spec, options, lambda: stop.level)
        try:
            # What history says of the run changes only now: a refused command must not change it.
            status = follow(handle, spec, history, display, stop)
        finally:
            display.close()
            handle.close()
    result = JobResult(spec, status, was_done=before.state == "done" and before.items == done_items(status))
    if result.nothing_to_do and before.status is not None:
        # How the run went stays what history tells, not how this look at it went; the look's own epoch goes with it, or
        # history would take it for the word of a command that was replaced.
        with suppress(PenstockError):
            history.save_status(msgspec.structs.replace(before.status, epoch=status.epoch))
    return result


@contextmanager
def _refusal_told(history: History, before: Before, spec: RunSpec) -> Generator[None]:
    """The command of a run that was submitted is seen by nobody: history says why it was refused. (Where another has
    the run, that one tells of it.)"""
    try:
        yield
    except PenstockError as error:
        told, now = before.status, SYSTEM.now()
        if told is not None and before.spec == spec and not isinstance(error, Held):
            failed = msgspec.structs.replace(
                told, state="failed", message=str(error), submitted=False, updated_at=now, ended_at=now
            )
            with suppress(PenstockError):
                history.save_status(failed)
        raise


def _before_ray(spec: RunSpec, address: str | None, asked_at: float) -> View:
    """To be seen while Ray starts: seconds, and many on a busy machine."""
    now = SYSTEM.now()
    where = f"joining the Ray cluster at {address}" if address else "Ray starts"
    return Meter().see(RunStatus(spec.run_id, spec.name, "starting", where, started_at=asked_at, updated_at=now), now)


def require_secrets(spec: RunSpec) -> None:
    """Before anything starts here: raises `SpecError` that says what isn't there. (A cluster has its own secrets.)"""
    from penstock.jobs.spec import missing_secrets

    missing = missing_secrets(spec)
    if missing:
        raise SpecError("; ".join(map(secret_told, missing)) + "; set it and run again")


def _real_cluster(address: str | None) -> AbstractContextManager[Cluster]:
    from penstock.workers.cluster import open_cluster

    return open_cluster(address)


def command_line() -> str:
    """What was typed, for whoever finds the run held or cancelled."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:COMMAND_SHOWN]


def resolve(job: Job, variables: Mapping[str, str] | None = None, limit: int | None = None) -> RunSpec:
    """A job in any of its forms → a spec. `limit`: a trial of the first so many rows (see `jobs.trial`)."""
    from penstock.jobs import spec as job_spec

    sets = dict(variables or {})
    match job:
        case RunSpec():
            if sets:
                raise SpecError("vars can't be set on a RunSpec that is already made: give them when it is loaded")
            made = job
        case str() | Path():
            made = job_spec.load(Path(job), sets=sets)
        case _:
            made = job_spec.from_mapping(job, sets=sets)
    return made if limit is None else trial.first(made, limit)


def run(
    job: Job,
    *,
    vars: Mapping[str, str] | None = None,
    limit: int | None = None,
    address: str | None = None,
    options: RunOptions | None = None,
    progress: bool = True,
) -> JobResult:
    """Run a job to its end and return what came of it. A run that was cut off goes on where it was.

    `job`: path of a job file, a mapping of the same form, or a `RunSpec`. `limit`: try the first rows only.
    Works under a notebook's running loop. An interrupt drains the run; a second one stops it now.
    Raises the errors of `penstock.engine.errors`; dead letters are no error: look at `JobResult.ok`.
    """
    session = Session(options or RunOptions(), address)
    return off_loop(lambda stop: execute(resolve(job, vars, limit), session, _display(progress), stop))


async def arun(
    job: Job,
    *,
    vars: Mapping[str, str] | None = None,
    limit: int | None = None,
    address: str | None = None,
    options: RunOptions | None = None,
    progress: bool = True,
) -> JobResult:
    """`run`, awaitable. Cancelling the await drains the run in the background."""
    session, stop = Session(options or RunOptions(), address), Stop()
    try:
        return await asyncio.to_thread(
            lambda: execute(resolve(job, vars, limit), session, _display(progress), stop),
        )
    except asyncio.CancelledError:
        stop.ask()
        raise


def plan(job: Job, *, vars: Mapping[str, str] | None = None, limit: int | None = None) -> Plan:
    """What a run would do, take and cost, from a sample of its rows. Nothing is called or paid for."""
    from penstock.jobs.forecasting.planning import make_plan

    return off_loop(lambda _: make_plan(resolve(job, vars, limit)))


def off_loop(work: Callable[[Stop], T]) -> T:
    """Do `work` here, or in a thread of its own where this thread runs an event loop (a notebook).

    An interrupt of the waiting thread is passed on as a request to stop, as often as it comes.
    """
    stop = Stop()
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work(stop)
    with ThreadPoolExecutor(1, thread_name_prefix="penstock-run") as pool:
        future = pool.submit(work, stop)
        while not future.done():
            try:
                wait([future], POLL_S)
            except KeyboardInterrupt:
                stop.ask()
        return future.result()


def _display(progress: bool) -> Display:
    if not progress:
        return Silent()
    from penstock.jobs.progress import display_for

    return display_for(sys.stderr)
