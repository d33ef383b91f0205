"""Launching a run's driver, and the handle by which a command follows it. Synchronous: called from the main thread."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from penstock.engine.errors import Away, Held, PenstockError, Refused, Taken, Temporary
from penstock.workers.cluster import cores
from penstock.workers.runspec import RunOptions, RunSpec
from penstock.workers.status import RunState, RunStatus

ACCEPT_S = 600.0
"""Listing the input and taking the lock: minutes of listing belong to S3."""
NOT_BEGUN = "interrupted before the run began; the same command begins it"
LISTEN_S = 0.5
"""While a run is being accepted: how often to ask whether it is still wanted, and to tell that its command lives."""
FORGO_S = 5.0
"""Then a driver may take to let go of a run that nobody wants any more; else it is ended as a crash would."""
STATUS_S = 5.0
SILENT_S = 30.0
"""A driver that answers nothing for so long is stopped or frozen: it is replaced."""
FIRST, AGAIN = 1, 2
"""How often somebody must ask before a driver is not waited for: the first has nothing to end in order; another one, of
a run that goes, drains it and puts its outputs together."""
MAX_DRIVERS, WITHIN_S = 10, 3600.0
"""Drivers of one command in an hour: one that dies is replaced, and goes on where it was. In weeks some are lost; where
one is every few minutes, it is the run that ends them. A guess."""
AWAY_PAUSE_S = 5.0
"""Between tries to start one while a server is away: each is a process."""


class Losses:
    """Whether a driver that was lost is followed by another, and when. Pure: times are monotonic seconds, handed in.
    `outage_s`: how long servers may be away meanwhile; None: as long as it takes."""

    def __init__(self, outage_s: float | None) -> None:
        self._outage_s = outage_s
        self._started: list[float] = []
        self._away_since: float | None = None
        self._next_at = 0.0

    def may_start(self, now: float) -> bool:
        self._started = [at for at in self._started if now - at < WITHIN_S]
        return len(self._started) < MAX_DRIVERS

    def starts(self, now: float) -> None:
        self._started.append(now)

    def away(self, now: float) -> bool:
        """The one that was started found a server away, which is not its fault. May another be tried, later?"""
        self._started.pop()
        self._away_since = now if self._away_since is None else self._away_since
        self._next_at = now + AWAY_PAUSE_S
        return self._outage_s is None or now - self._away_since < self._outage_s

    def runs(self) -> None:
        self._away_since = None

    @property
    def waits(self) -> bool:
        """No driver is there, since a server is away."""
        return self._away_since is not None

    def due(self, now: float) -> bool:
        return now >= self._next_at


class _Start(NamedTuple):
    """Of a driver that has not accepted the run yet."""

    reply: object
    urgent: int
    """How often somebody must ask to stop before it is not waited for."""
    until: float
    """Monotonic seconds."""


class RunHandle:
    def __init__(
        self, spec: RunSpec, options: RunOptions, cores: int, asked: Callable[[], int], sent: Callable[[], None]
    ) -> None:
        self._spec = spec
        self._options = options
        self._cores = cores
        self._asked = asked
        self._sent = sent
        self._losses = Losses(None if spec.endless else spec.execution.outage_s)
        self._driver: object | None = None
        self._following: _Start | None = None
        """The driver that is to follow a lost one, and has not accepted the run yet."""
        self._last = RunStatus(run_id=spec.run_id, name=spec.name, state="starting", started_at=time.time())
        self._last.asked_at = options.asked_at
        self._drained = self._cancelled = False
        self._notes: list[str] = []
        self._noted = 0
        """Notes of former drivers, and ours of them."""
        self._silent_since: float | None = None

    def begin(self) -> None:
        """The first driver. Raises as `_heard` does, but for `KeyboardInterrupt` where the run is not wanted any more;
        a driver that dies meanwhile is replaced."""
        while True:
            start = self._start(FIRST)
            try:
                while not self._heard(start):
                    pass
            except _DriverLost:
                if not self._losses.may_start(time.monotonic()):
                    raise
            except _Unwanted:
                raise KeyboardInterrupt(NOT_BEGUN) from None
            else:
                return

    def _start(self, urgent: int) -> _Start:
        import ray

        from penstock.workers.driver import Driver

        self._losses.starts(time.monotonic())
        driver = ray.remote(Driver)
        options = driver.options(
            max_concurrency=1000, max_restarts=0, max_task_retries=0, enable_task_events=False, num_cpus=0
        )
        encoded = msgspec.msgpack.encode(self._spec), msgspec.msgpack.encode(self._options)
        self._driver = options.remote(*encoded, self._cores)  # pyright: ignore[reportCallIssue]
        return _Start(self._driver.accept.remote(), urgent, time.monotonic() + ACCEPT_S)  # pyright: ignore

    def _heard(self, start: _Start) -> bool:
        """Wait a moment for the driver's word; False: there is none yet. Raises `Held`, `SpecError`, `Corrupt`,
        `Temporary`; `_DriverLost`; `_Unwanted` where somebody asked so often to stop before it had accepted the run."""
        import ray
        from ray.exceptions import GetTimeoutError, RayError, RayTaskError

        try:
            ray.get(start.reply, timeout=LISTEN_S)  # pyright: ignore[reportCallIssue, reportArgumentType]
        except GetTimeoutError as error:
            if self._asked() >= start.urgent:
                self._forgo()
                raise _Unwanted from None
            if time.monotonic() >= start.until:
                self.close()
                why = f"the driver of {self._spec.name} did not accept the run in {ACCEPT_S:g} s"
                raise Temporary(why) from error
            return False
        except RayTaskError as error:
            raise _our_own(error) from error
        except RayError as error:
            raise _DriverLost(f"the driver of {self._spec.name} did not start: {_brief(error)}") from error
        return True

    def _forgo(self) -> None:
        import ray

        with contextlib.suppress(Exception):
            ray.get(self._driver.forgo.remote(), timeout=FORGO_S)  # pyright: ignore
        self.close()

    def status(self) -> RunStatus:
        """Never fails, nor waits for long: where the driver is lost another goes on, or it says `failed` and why.
        Until that one has accepted the run, which may take minutes, it says `starting`."""
        import ray
        from ray.exceptions import GetTimeoutError, RayError

        if self._following is not None:
            self._listen(self._following)
            return self._told()
        if self._losses.waits:
            if self._drained or self._losses.due(time.monotonic()):
                self._follow("it was lost")
            return self._told()
        try:
            data: bytes = ray.get(self._driver.status.remote(), timeout=STATUS_S)  # pyright: ignore
            sent_at = self._last.first_dispatch_at
            self._last = msgspec.msgpack.decode(data, type=RunStatus)
            self._last.first_dispatch_at = sent_at or self._last.first_dispatch_at  # a former driver's comes first
            self._told()
            self._last.notes = [*self._notes, *self._last.notes]
            self._last.noted += self._noted
            self._silent_since = None
            if self._last.first_dispatch_at is not None:
                self._sent()
        except GetTimeoutError:
            self._silent_since = self._silent_since or time.monotonic()
            self._last.message = "the driver does not answer"
            if time.monotonic() - self._silent_since > SILENT_S:
                self.close()
                self._replace("it did not answer")
        except RayError as error:
            self._replace(_brief(error))
        return self._last

    def _told(self) -> RunStatus:
        """Just now, by this clock: the driver's may be another machine's, and an old word is taken for none."""
        self._last.updated_at = time.time()
        return self._last

    def _replace(self, why: str) -> None:
        """Start another driver: never by force, since another command may have taken the run over meanwhile."""
        self._options = msgspec.structs.replace(self._options, fresh=False, take_over=False)
        self._silent_since = None
        self._follow(why)

    def _follow(self, why: str) -> None:
        if self._losses.may_start(time.monotonic()):
            self._listen(self._start(FIRST if self._losses.waits else AGAIN))
        else:
            self._give_up(f"the driver was lost {MAX_DRIVERS} times within an hour: {why}")

    def _listen(self, start: _Start) -> None:
        """To the driver that is to follow, for a moment: whoever asks for the status must be told that we live."""
        note, self._following = "the driver was lost; another goes on where it was", None
        try:
            if not self._heard(start):
                self._following = start
                self._starting("the driver was lost; another is about to go on where it was")
                return
        except _DriverLost as problem:
            self._follow(str(problem))
        except Held as problem:
            self._give_up(f"the driver was lost, and the run is not ours any more: {problem}")
        except PenstockError as problem:
            if self._is_waited_for(problem):
                self._wait(problem)
            else:
                self._give_up(f"{note}, but: {problem}")
        except _Unwanted:
            self._give_up("the driver was lost, and no other was started: it was asked to stop", "interrupted")
        else:
            self._losses.runs()
            self._notes.append(note)
            self._noted = self._last.noted + 1
            if self._cancelled:
                self.cancel()
            elif self._drained:
                self.drain()

    def _is_waited_for(self, problem: PenstockError) -> bool:
        """A store that refuses what it took before is mended by a person; nobody would start an endless run again."""
        refuses = isinstance(problem, Refused) and not isinstance(problem, Taken)
        return isinstance(problem, Away) or (self._spec.endless and refuses)

    def _starting(self, message: str) -> None:
        if not self._losses.waits:  # else it says already for what
            self._last.message = message
        self._last.state = "starting"

    def _wait(self, problem: PenstockError) -> None:
        """For what is away: nothing goes meanwhile, and nothing is lost."""
        self.close()
        waited = self._losses.waits
        if self._drained:
            self._give_up(f"the driver was lost, and no other was started: {problem}", "interrupted")
        elif self._losses.away(time.monotonic()):
            self._last.message = f"the driver was lost; another starts when this is over: {problem}"
            self._last.state = "starting"
            if not waited:
                self._last.notes, self._last.noted = [*self._last.notes, self._last.message], self._last.noted + 1
        else:
            self._give_up(f"the driver was lost, and could not be replaced within execution.outage_s: {problem}")

    def _give_up(self, message: str, state: RunState = "failed") -> None:
        self._losses.runs()
        self._last.state, self._last.message, self._last.ended_at = state, message, time.time()

    def drain(self) -> None:
        self._drained = True
        self._tell("drain")

    def cancel(self) -> None:
        self._drained = self._cancelled = True
        self._tell("cancel")

    def close(self) -> None:
        """End the driver's process. Its lanes end with it."""
        import ray

        if self._driver is not None:
            with contextlib.suppress(Exception):
                ray.kill(self._driver, no_restart=True)  # pyright: ignore[reportArgumentType]
            self._driver = None

    def _tell(self, method: str) -> None:
        with contextlib.suppress(Exception):
            getattr(self._driver, method).remote()


class _DriverLost(Temporary):
    """Its process died before it had accepted the run: worth another try."""


class _Unwanted(Exception):
    """Somebody asked to stop while a driver was about to accept the run. Its process was ended."""


def _brief(error: Exception) -> str:
    """Ray's words go on for many lines; the first says what happened."""
    return str(error).strip().splitlines()[0][:300]


def launch(spec: RunSpec, options: RunOptions, asked: Callable[[], int], sent: Callable[[], None]) -> RunHandle:
    """`asked`: how often somebody asked to stop; then a run that was not accepted yet raises `KeyboardInterrupt`.
    `sent` hears, again and again, that something was."""
    handle = RunHandle(spec, options, cores(), asked, sent)
    handle.begin()
    return handle


def _our_own(error: Exception) -> PenstockError:
    cause = getattr(error, "cause", None)
    if isinstance(cause, PenstockError):
        return cause
    return Temporary(f"the driver failed: {cause or error}")
