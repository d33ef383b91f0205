"""A run from the command's side: shown, saved, stopped without loss. The cluster is a scripted one."""

import asyncio
import errno
import io
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import msgspec
import pytest
from rich.console import Console

from penstock.connectors.settings import FilesSink, FilesSource, KafkaSink, KafkaSource, Row, with_replies
from penstock.connectors.state import open_state
from penstock.engine.catalog import Account, Catalog, Model, Price, Version
from penstock.engine.errors import Held, PenstockError, Refused, Temporary
from penstock.engine.policy import Policy
from penstock.jobs import exits, replay, trial
from penstock.jobs import run as running
from penstock.jobs.history import History, open_history
from penstock.jobs.progress import Meter, PlainDisplay, View, display_for
from penstock.jobs.result import JobResult
from penstock.jobs.run import Session, Stop
from penstock.workers.runspec import Execution, RunOptions, RunSpec
from penstock.workers.status import RunState, RunStatus, Tally


def spec_in(folder: Path) -> RunSpec:
    return RunSpec(
        run_id="job-1",
        name="job",
        vars={},
        source=FilesSource(str(folder / "rows.jsonl")),
        shape=None,
        row=Row(),
        catalog=Catalog(accounts={}, models={}, tiers={}),
        policy=Policy(tasks={}),
        sinks={name: FilesSink(str(folder / f"{name}.jsonl")) for name in ("results", "costs", "dead_letters")},
        state=str(folder / ".penstock"),
    )


Action = Callable[[], None]


class ScriptedRun:
    """Goes through states, one a look; an action may stand among them and happens at that look."""

    def __init__(self, script: Sequence[RunState | Action], tally: Tally) -> None:
        self._script = list(script)
        self._tally = tally
        self.asked: list[str] = []
        self._state: RunState = "starting"
        self.generation: int | None = None
        self.epoch, self.started_at = 0, 1.0

    def status(self) -> RunStatus:
        step = self._script.pop(0) if self._script else self._state
        if callable(step):
            step()
        else:
            self._state = step
        told = RunStatus("job-1", "job", self._state, started_at=self.started_at, updated_at=2.0, tally=self._tally)
        told.generation, told.epoch = self.generation, self.epoch
        return told

    def drain(self) -> None:
        self.asked.append("drain")

    def cancel(self) -> None:
        self.asked.append("cancel")

    def close(self) -> None:
        self.asked.append("close")


class ScriptedCluster:
    def __init__(self, run: ScriptedRun | PenstockError) -> None:
        self._run = run
        self.options: RunOptions | None = None
        self.generation: int | None = None

    def launch(self, spec: RunSpec, options: RunOptions, asked: Callable[[], int]) -> ScriptedRun:
        anew = options.generation_anew if options.fresh else None  # that of the plan which is made then
        self.options, self.generation = options, spec.generation if anew is None else anew
        if isinstance(self._run, PenstockError):
            raise self._run
        self._run.generation = self.generation
        return self._run

    @contextmanager
    def open(self, address: str | None) -> Generator["ScriptedCluster"]:
        yield self


class Heard:
    """A display that remembers."""

    def __init__(self) -> None:
        self.states: list[str] = []
        self.said: list[str] = []
        self.closed = False

    def show(self, view: View) -> None:
        self.states.append(view.status.state)

    def say(self, text: str) -> None:
        self.said.append(text)

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripted run needs no time between looks."""
    monkeypatch.setattr(running, "POLL_S", 0.0)


def carry_out(
    folder: Path,
    script: Sequence[RunState | Action],
    tally: Tally | None = None,
    stop: Stop | None = None,
    drain_s: float = 25.0,
) -> tuple[JobResult, ScriptedRun, Heard]:
    run, heard = ScriptedRun(script, tally or Tally(results=3)), Heard()
    session = Session(open_cluster=ScriptedCluster(run).open)
    spec = msgspec.structs.replace(spec_in(folder), execution=Execution(drain_s=drain_s))
    return running.execute(spec, session, heard, stop or Stop()), run, heard


def history_of(folder: Path) -> History:
    return open_history(str(folder / ".penstock"))


def test_a_run_is_followed_to_its_end(tmp_path: Path) -> None:
    """Every state is shown; the result carries the last one; everything is given back."""
    result, run, heard = carry_out(tmp_path, ["starting", "running", "assembling", "done"])
    assert heard.states == ["starting", "starting", "running", "assembling", "done"], "at once: Ray takes seconds"
    assert (result.ok, result.exit_code) == (True, 0)
    assert heard.closed
    assert run.asked == ["close"]


def test_history_knows_a_run_after_it_is_over(tmp_path: Path) -> None:
    """Spec and last status can be read from any folder that names the state."""
    carry_out(tmp_path, ["running", "done"])
    history = history_of(tmp_path)
    assert history.status("job-1").state == "done"
    assert history.spec("job-1") == spec_in(tmp_path)


def test_the_first_interrupt_drains(tmp_path: Path) -> None:
    """SIGINT: nothing new is sent, what is in flight ends, the exit code is 130, and the person is told."""
    result, run, heard = carry_out(
        tmp_path, ["running", lambda: os.kill(os.getpid(), signal.SIGINT), "draining", "interrupted"]
    )
    assert run.asked == ["drain", "close"]
    assert result.exit_code == 130
    assert any("draining" in said for said in heard.said)


def test_a_drain_has_an_end(tmp_path: Path) -> None:
    """SIGTERM, and a call that takes longer than `execution.drain_s`: it is cut off, and the person is told why."""
    result, run, heard = carry_out(
        tmp_path, ["running", lambda: os.kill(os.getpid(), signal.SIGTERM), "draining", "interrupted"], drain_s=0.0
    )
    assert run.asked == ["drain", "cancel", "close"]
    assert result.exit_code == 130
    assert any("execution.drain_s" in said for said in heard.said)


@pytest.mark.usefixtures("terminal")
def test_a_closed_terminal_drains_and_nohup_goes_on(tmp_path: Path) -> None:
    """SIGHUP is an interrupt like any other; where it was ignored from the start, it stays so."""

    def hang_up() -> None:
        os.kill(os.getpid(), signal.SIGHUP)

    result, run, _ = carry_out(tmp_path, ["running", hang_up, "draining", "interrupted"])
    assert (run.asked, result.exit_code) == (["drain", "close"], 130)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        result, run, _ = carry_out(tmp_path, ["running", hang_up, "running", "done"])
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (run.asked, result.exit_code) == (["close"], 0)


class ClosedTerminal(io.StringIO):
    """Answers with EIO, as a terminal does that is gone."""

    def isatty(self) -> bool:
        return True

    def write(self, s: str) -> int:
        raise OSError(errno.EIO, "Input/output error")


def broken_pipe() -> TextIO:
    reads, writes = os.pipe()
    os.close(reads)
    return os.fdopen(writes, "w")


@pytest.mark.parametrize("stream", [broken_pipe, ClosedTerminal])
def test_a_run_goes_on_when_nobody_reads_what_it_says(tmp_path: Path, stream: Callable[[], TextIO]) -> None:
    """`penstock run job.yaml | head -5`, a log collector that dies, a closed terminal: the run has its own end."""
    run, there = ScriptedRun(["starting", "running", "running", "done"], Tally(results=3)), stream()
    session = Session(open_cluster=ScriptedCluster(run).open)
    result = running.execute(spec_in(tmp_path), session, display_for(there), Stop())
    assert (run.asked, result.exit_code) == (["close"], 0)
    there.close()  # what still waited in it troubles nobody


def test_a_run_that_was_handed_over_did_as_it_was_asked(tmp_path: Path) -> None:
    """Exit code 0: whoever started this command must not start it again beside its successor."""
    result, run, _ = carry_out(tmp_path, ["running", "draining", "handed_over"])
    assert run.asked == ["close"]
    assert result.exit_code == 0


def test_the_second_interrupt_stops_now(tmp_path: Path) -> None:
    """SIGINT twice: what is in flight is given up, what is finished is committed."""

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    result, run, _ = carry_out(
        tmp_path, ["running", interrupt, "draining", interrupt, "draining", "interrupted"], Tally()
    )
    assert run.asked == ["drain", "cancel", "close"]
    assert result.exit_code == 130


def test_a_run_that_does_not_stop_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hanging cluster can't hold a person's terminal: history says what happened."""
    monkeypatch.setattr(running, "STOP_GRACE_S", 0.0)
    stop = Stop()
    stop.ask()
    stop.ask()
    result, run, _ = carry_out(tmp_path, ["running", "draining"], stop=stop)
    assert run.asked == ["drain", "cancel", "close"]
    assert "left behind" in result.status.message
    assert history_of(tmp_path).status("job-1").state == "interrupted"


def test_signal_handlers_are_given_back(tmp_path: Path) -> None:
    """After a run, ctrl-c does what it did before."""
    before = signal.getsignal(signal.SIGINT)
    carry_out(tmp_path, ["done"])
    assert signal.getsignal(signal.SIGINT) is before


def test_a_finished_run_has_nothing_to_do(tmp_path: Path) -> None:
    """Running it again exits 0, whatever its dead letters were; the first time they count."""
    tally = Tally(results=3, dead_letters={"wall": 1})
    first, _, _ = carry_out(tmp_path, ["done"], tally)
    again, _, _ = carry_out(tmp_path, ["done"], tally)
    assert (first.nothing_to_do, first.exit_code) == (False, 5)
    assert (again.nothing_to_do, again.exit_code) == (True, 0)


def test_looking_at_a_finished_run_again_does_not_rewrite_its_story(tmp_path: Path) -> None:
    """`report` and `list` go on telling how the run went, not that somebody looked."""
    carry_out(tmp_path, ["done"])
    told = msgspec.structs.replace(history_of(tmp_path).status("job-1"), ended_at=99.0, first_dispatch_at=7.0)
    history_of(tmp_path).save_status(told)
    result, _, _ = carry_out(tmp_path, ["done"])
    assert result.nothing_to_do
    assert history_of(tmp_path).status("job-1") == told


def test_a_look_has_an_epoch_of_its_own_and_does_not_rewrite_the_story_either(tmp_path: Path) -> None:
    """Each command of a run takes the next epoch, also one that finds nothing to do."""
    told = RunStatus("job-1", "job", "done", started_at=1.0, ended_at=99.0, epoch=1, tally=Tally(results=3))
    history_of(tmp_path).save_spec(spec_in(tmp_path))
    history_of(tmp_path).save_status(told)
    look = ScriptedRun(["done"], Tally(results=3))
    look.epoch, look.started_at = 2, 500.0
    session = Session(open_cluster=ScriptedCluster(look).open)
    assert running.execute(spec_in(tmp_path), session, Heard(), Stop()).nothing_to_do
    assert history_of(tmp_path).status("job-1") == msgspec.structs.replace(told, epoch=2)


def test_new_input_under_a_finished_run_is_no_nothing(tmp_path: Path) -> None:
    """Where all that is new ends in dead letters nothing was sent, and still it must be told, and count."""
    carry_out(tmp_path, ["done"], Tally(results=3))
    result, _, _ = carry_out(tmp_path, ["done"], Tally(results=3, dead_letters={"malformed": 1}))
    assert (result.nothing_to_do, result.exit_code) == (False, 5)


def test_a_run_killed_before_its_end_is_judged_when_it_ends(tmp_path: Path) -> None:
    """Where only the assembly was left to do, its dead letters still count."""
    tally = Tally(results=3, dead_letters={"wall": 1})
    history_of(tmp_path).save_spec(spec_in(tmp_path))
    history_of(tmp_path).save_status(RunStatus("job-1", "job", "assembling", tally=tally))
    assert carry_out(tmp_path, ["done"], tally)[0].exit_code == 5


@pytest.mark.parametrize(
    ("state", "dead", "allowed", "code"),
    [
        ("done", 0, None, 0),
        ("done", 1, None, 5),
        ("done", 1, 1, 0),
        ("done", 2, 1, 5),
        ("done", 1, 0.5, 0),
        ("done", 9, 0.5, 5),
        ("too_many_dead_letters", 1, 0, 5),
        ("stopped_by_budget", 0, None, 3),
        ("failed", 0, None, 4),
        ("cancelled", 0, None, 130),
    ],
)
def test_the_exit_code_says_how_it_ended(
    tmp_path: Path, state: RunState, dead: int, allowed: int | float | None, code: int
) -> None:
    """SURFACES §4. `max_dead_letters` unset: any dead letter is 5; a number: so many; a fraction: that share."""
    tally = Tally(results=3, dead_letters={"wall": dead} if dead else {})
    spec = msgspec.structs.replace(spec_in(tmp_path), max_dead_letters=allowed)
    assert JobResult(spec, RunStatus("job-1", "job", state, tally=tally)).exit_code == code


@pytest.mark.parametrize("told", [5.0, None])
def test_the_time_that_a_person_waits_begins_with_the_command(tmp_path: Path, told: float | None) -> None:
    """Not with the driver, which is there once Ray has started. The command line says when that was; else it is now."""
    cluster, before = ScriptedCluster(ScriptedRun(["done"], Tally())), time.time()
    running.execute(spec_in(tmp_path), Session(RunOptions(asked_at=told), open_cluster=cluster.open), Heard(), Stop())
    assert cluster.options is not None
    assert cluster.options.asked_at is not None
    assert cluster.options.asked_at == told or before <= cluster.options.asked_at <= time.time()
    status = RunStatus("r", "n", "running", started_at=8.0, asked_at=cluster.options.asked_at)
    assert Meter().see(status, status.since + 9.0).elapsed_s == 9.0


def test_a_held_run_is_refused_and_takes_nothing_down(tmp_path: Path) -> None:
    """Who holds it comes through as it was said."""
    session = Session(open_cluster=ScriptedCluster(Held("held by ann")).open)
    with pytest.raises(Held, match="held by ann"):
        running.execute(spec_in(tmp_path), session, heard := Heard(), Stop())
    assert heard.closed, "a terminal gets its cursor back"


def test_a_new_command_takes_an_old_request_to_cancel_back(tmp_path: Path) -> None:
    """Otherwise a cancelled run could never go on."""
    history = history_of(tmp_path)
    carry_out(tmp_path, ["cancelled"])
    history.ask_cancel("job-1", "somebody")
    carry_out(tmp_path, ["done"])
    assert not history.cancel_asked("job-1")


def test_a_refused_command_changes_nothing_that_history_says(tmp_path: Path) -> None:
    """The run that goes on keeps its spec, and the request to cancel it that somebody just made."""
    history, spec = history_of(tmp_path), spec_in(tmp_path)
    history.save_spec(spec)
    history.save_status(RunStatus("job-1", "job", "running", updated_at=time.time()))
    history.ask_cancel("job-1", "somebody")
    changed = msgspec.structs.replace(spec, name="changed")
    session = Session(open_cluster=ScriptedCluster(Held("held by ann")).open)
    with pytest.raises(Held):
        running.execute(changed, session, Heard(), Stop())
    assert history.spec("job-1") == spec
    assert history.cancel_asked("job-1")


def test_a_run_that_goes_on_at_other_prices_says_so(tmp_path: Path) -> None:
    """Of models that the job asks; another name of the same price is no change, and a new version is none."""

    def told(rate: int, name: str = "t", more: tuple[Version, ...] = ()) -> list[str]:
        accounts, versions = {"a": Account("a", "openai", "http://a")}, (Version("v1", "m"), *more)
        models = {
            each: Model(each, versions, "v1", account="a", price=Price(rate * times, 1, version=name))
            for each, times in (("asked", 1), ("steady", 0), ("other", 1))
        }
        spec = msgspec.structs.replace(spec_in(tmp_path), catalog=Catalog(accounts, models, {1: ("asked", "steady")}))
        heard = Heard()
        running.execute(spec, Session(open_cluster=ScriptedCluster(ScriptedRun(["done"], Tally())).open), heard, Stop())
        return [said for said in heard.said if "prices" in said]

    assert told(5) == []
    assert told(5, "renamed", (Version("v2", "m"),)) == []
    assert told(6) == ["the prices of asked have changed since the run's last command: what is left costs the new ones"]
    assert told(6) == []


def test_a_trial_of_an_edited_job_starts_over(tmp_path: Path) -> None:
    """Prompts are edited between two trials: nobody has to accept that. The whole run does ask."""
    for limit, fresh in ((5, True), (None, False)):
        spec = msgspec.structs.replace(spec_in(tmp_path), run_id=f"job-{limit}", limit=limit, fingerprint={"p": "1"})
        edited = msgspec.structs.replace(spec, fingerprint={"p": "2"})
        asked: list[bool] = []
        for each in (spec, spec, edited):
            cluster = ScriptedCluster(ScriptedRun(["done"], Tally()))
            running.execute(each, Session(open_cluster=cluster.open), Heard(), Stop())
            assert cluster.options is not None
            asked.append(cluster.options.fresh)
        assert asked == [False, False, fresh]


def test_a_run_is_told_where_history_knows_its_results(tmp_path: Path) -> None:
    """So that a path that moved is seen. A trial begins anew there; so does whoever says `--fresh`."""
    spec = spec_in(tmp_path)
    moved = msgspec.structs.replace(spec, sinks={**spec.sinks, "results": FilesSink(str(tmp_path / "new.jsonl"))})
    old = str(tmp_path / "results.jsonl")
    for name, limit, asked, known in (("a", None, False, old), ("b", 5, False, None), ("c", None, True, None)):
        for each in (spec, moved):
            cluster = ScriptedCluster(ScriptedRun(["done"], Tally()))
            this = msgspec.structs.replace(each, run_id=f"job-{name}", limit=limit)
            running.execute(this, Session(RunOptions(fresh=asked), open_cluster=cluster.open), Heard(), Stop())
            told = cluster.options
        assert told is not None
        assert (told.results_at, told.fresh) == (known, known is None)


@pytest.mark.parametrize(("limit", "fresh", "ended"), [(None, False, 4), (None, True, 0), (5, False, 0)])
def test_a_run_is_told_how_many_items_had_ended(tmp_path: Path, limit: int | None, fresh: bool, ended: int) -> None:
    """So that progress which is gone is missed. A trial is tried again, and costs little."""
    spec = msgspec.structs.replace(spec_in(tmp_path), limit=limit)
    history_of(tmp_path).save_spec(spec)
    history_of(tmp_path).save_status(
        RunStatus("job-1", "job", "done", tally=Tally(results=3, dead_letters={"wall": 1}))
    )
    cluster = ScriptedCluster(ScriptedRun(["done"], Tally()))
    running.execute(spec, Session(RunOptions(fresh=fresh), open_cluster=cluster.open), Heard(), Stop())
    assert cluster.options is not None
    assert cluster.options.ended == ended


def test_a_run_that_is_begun_anew_gets_a_generation_above_its_replays(tmp_path: Path) -> None:
    """And keeps it, whatever the job file says when it goes on."""
    spec, got = spec_in(tmp_path), list[int | None]()
    sent = FilesSource(str(tmp_path / "letters.jsonl"), replay=True)
    Path(sent.path).touch()
    for fresh in (False, True, True, False):
        cluster = ScriptedCluster(ScriptedRun(["done"], Tally()))
        running.execute(spec, Session(RunOptions(fresh=fresh), open_cluster=cluster.open), Heard(), Stop())
        got.append(cluster.generation)
        if not fresh:
            history_of(tmp_path).save_spec(replay.again(spec, 1, sent, generation=1, batch=False))
    assert got == [0, 2, 3, 3]


def test_history_waits_for_the_generation_that_the_plan_has(tmp_path: Path) -> None:
    """A first status may come from a driver that has not looked at the plan yet."""
    history, spec = history_of(tmp_path), spec_in(tmp_path)
    saver = running._Saver(history, spec, print)  # pyright: ignore[reportPrivateUsage]
    saver.see(RunStatus(spec.run_id, spec.name, "starting"), 0.0)
    saver.last(RunStatus(spec.run_id, spec.name, "done", generation=2))
    assert history.spec(spec.run_id).generation == 2


async def test_work_goes_on_beside_a_running_loop() -> None:
    """In a notebook the work gets a thread of its own, and a loop of its own in it."""

    async def inner() -> str:
        await asyncio.sleep(0)
        return threading.current_thread().name

    name = running.off_loop(lambda _: asyncio.run(inner()))
    assert name.startswith("penstock-run")


def test_without_a_loop_work_is_done_right_here() -> None:
    """No thread where none is needed: signals reach it."""
    assert running.off_loop(lambda _: threading.current_thread()) is threading.main_thread()


@pytest.mark.parametrize(
    ("path", "marked"),
    [
        ("/a/labels.parquet", "/a/labels.first-5.parquet"),
        ("/a/labels.dead_letters.jsonl", "/a/labels.first-5.dead_letters.jsonl"),
        ("/a/v1.2.jsonl.gz", "/a/v1.2.first-5.jsonl.gz"),
        ("/a/LABELS.CSV", "/a/LABELS.first-5.CSV"),
        ("/a/parts/", "/a/parts.first-5/"),
        ("s3://bucket/prefix/", "s3://bucket/prefix.first-5/"),
    ],
)
def test_a_trial_writes_beside_the_real_outputs(path: str, marked: str) -> None:
    """`--limit 5` never touches the files of the whole run."""
    assert trial.marked(path, "first-5") == marked


def test_a_trial_is_a_run_of_its_own(tmp_path: Path) -> None:
    """Own id, own outputs, same job."""
    spec = spec_in(tmp_path)
    tried = trial.first(spec, 5)
    assert (tried.run_id, tried.limit, tried.source) == ("job-1~first-5", 5, spec.source)
    assert not set(map(str, tried.sinks.values())) & set(map(str, spec.sinks.values()))


def test_a_trial_answers_nobody_and_leaves_the_group_to_the_whole_run(tmp_path: Path) -> None:
    """Who waits at a topic for a reply would get one more; and a group that stands at the fifth record again, where it
    had stood at the end, tells lag tools what is not so."""
    source = KafkaSource(("in",), bootstrap="b:1", group="labels", reply_to=("replies",))
    sinks = with_replies(source, {"results": KafkaSink("out", "b:1")})
    tried = trial.first(msgspec.structs.replace(spec_in(tmp_path), source=source, sinks=sinks), 5)
    assert tried.source == msgspec.structs.replace(source, group=None)
    assert tried.sinks["results"] == KafkaSink("out.first-5", "b:1", create=True)


def test_a_folder_stays_a_folder_beside_the_real_one() -> None:
    """However its path was written: `out.first-5` alone would be a file, and its rows no table."""
    for path in ("/a/out", "/a/out/"):
        assert trial.beside(FilesSink(path, "parquet"), "first-5") == FilesSink("/a/out.first-5/", "parquet")


class Away(History):
    """A state that can't be written for a while."""

    writes = 0
    spec_writes = 0

    def save_spec(self, spec: RunSpec) -> None:
        self.spec_writes += 1
        if self.spec_writes == 1:
            raise Temporary("the bucket is away")
        super().save_spec(spec)

    def save_status(self, status: RunStatus) -> None:
        self.writes += 1
        if status.state != "done":
            raise Temporary("the bucket is away")
        super().save_status(status)


def test_a_history_that_cannot_be_written_is_told_once_and_stops_nothing(tmp_path: Path) -> None:
    away = Away(open_state(str(tmp_path / ".penstock")), str(tmp_path / ".penstock"))
    run, heard = ScriptedRun(["starting", "running", "draining", "running", "done"], Tally(results=3)), Heard()
    session = Session(open_cluster=ScriptedCluster(run).open, open_history=lambda _: away)
    status = running.execute(spec_in(tmp_path), session, heard, Stop()).status
    assert (status.state, away.status("job-1").state) == ("done", "done")
    assert away.spec("job-1") == spec_in(tmp_path)
    assert heard.said == ["the run's history can't be written now: the bucket is away"]
    assert away.writes > 1


class Shut(History):
    """A state whose credentials ran out after the first write, or whose client is broken."""

    writes = 0
    error: Exception = Refused("the session token has expired")

    def save_status(self, status: RunStatus) -> None:
        self.writes += 1
        if self.writes > 1:
            raise self.error
        super().save_status(status)


@pytest.mark.parametrize("error", [Shut.error, KeyError("LastModified")])
def test_a_history_that_refuses_a_write_ends_no_run(tmp_path: Path, error: Exception) -> None:
    """It ended the command, which killed the driver at once: calls in flight were paid for again."""
    shut = Shut(open_state(str(tmp_path / ".penstock")), str(tmp_path / ".penstock"))
    shut.error, known = error, isinstance(error, Refused)
    run, heard = ScriptedRun(["starting", "running", "draining", "running", "done"], Tally(results=3)), Heard()
    session = Session(open_cluster=ScriptedCluster(run).open, open_history=lambda _: shut)
    assert running.execute(spec_in(tmp_path), session, heard, Stop()).status.state == "done"
    why = "the session token has expired" if known else "unexpected KeyError: 'LastModified'"
    assert heard.said == [f"the run's history can't be written now: {why}"]


class SetBack:
    """A clock that is set back by an hour at its second reading; its other one only grows."""

    def __init__(self) -> None:
        self._ticks = 0

    def now(self) -> float:
        return 1_700_000_000.0 - (3_600.0 if self._ticks > 1 else 0.0) + self._ticks

    def tick(self) -> float:
        self._ticks += 1
        return float(self._ticks)


def test_a_clock_that_is_set_back_keeps_no_drain_waiting(tmp_path: Path) -> None:
    """The time to drain passes all the same, and then calls in flight are cut off."""
    spec, stop = spec_in(tmp_path), Stop()
    spec = msgspec.structs.replace(spec, execution=msgspec.structs.replace(spec.execution, drain_s=3.0))
    stop.ask()
    run = ScriptedRun(["running", *["draining"] * 8, "interrupted"], Tally())
    running.follow(run, spec, history_of(tmp_path), Heard(), stop, SetBack())
    assert run.asked == ["drain", "cancel"]


class Gone(History):
    def save_status(self, status: RunStatus) -> None:
        raise Temporary("the bucket is away")


def test_a_look_at_a_finished_run_needs_no_history(tmp_path: Path) -> None:
    carry_out(tmp_path, ["done"])
    run, gone = ScriptedRun(["done"], Tally(results=3)), Gone(open_state(str(tmp_path / ".penstock")), "here")
    session = Session(open_cluster=ScriptedCluster(run).open, open_history=lambda _: gone)
    result = running.execute(spec_in(tmp_path), session, Heard(), Stop())
    assert (result.nothing_to_do, result.exit_code) == (True, 0)


def test_every_note_is_said_once_also_behind_the_fiftieth() -> None:
    """A status keeps the latest notes only; another driver counts on from the last one's."""
    console = Console(file=io.StringIO(), width=200)
    display, meter = PlainDisplay(console), Meter()
    for total in (1, 30, 52, 53, 120):
        notes = [f"note {n}." for n in range(total)][-50:]
        status = RunStatus("job-1", "job", "running", started_at=1.0, updated_at=2.0, notes=notes, noted=total)
        display.show(meter.see(status, 2.0))
    said = [line for line in console.file.getvalue().splitlines() if line.startswith("note: ")]  # type: ignore[attr-defined]
    assert said == [f"note: note {n}." for n in (*range(53), *range(70, 120))]


@pytest.mark.parametrize(("unexpected", "code"), [(True, 1), (False, 4)])
def test_an_error_of_ours_is_another_exit_code_than_lost_machines(unexpected: bool, code: int) -> None:
    status = RunStatus("job-1", "job", "failed", "unexpected: KeyError: 'x'", unexpected=unexpected)
    assert exits.of_status(status, None) == code
