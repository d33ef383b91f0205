"""A server as a process: started, waited for, stopped; killed, frozen and started again where a test wants a fault."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

from penstock.engine.errors import Temporary
from penstock.jobs.dev.ports import need_free
from penstock.jobs.dev.process import Running, born

_ANSWER_POLL_S = 0.1
_TAIL_LINES = 15
_KILLED_S = 10.0
"""How long a process that got SIGKILL may take to be gone: one that waits for a disk does not go at once."""


class Server(ABC):
    """One server in a process group of its own. The same object starts it again on the same port and data.

    `bound`: it ends with the process that started it, even where that is killed; else it outlives it.
    """

    title: ClassVar[str]
    start_s: ClassVar[float] = 60.0
    """How long until it must answer. A guess: on a busy machine of two cores Kafka took 10 s."""
    stop_s: ClassVar[float] = 20.0
    """How long it may take to stop cleanly. A guess."""

    def __init__(self, folder: Path, ports: Sequence[int], *, bound: bool = True) -> None:
        self.folder = folder.resolve()
        self.log = self.folder / "log.txt"
        self._ports = ports
        self._bound = bound
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._running: Running | None = None
        self._log_start = 0

    @abstractmethod
    def command(self) -> Sequence[str]:
        """What to run; fetches and prepares what that needs. Called at each start."""

    @abstractmethod
    def answers(self) -> bool:
        """One real request, bounded in time. Raises nothing: what can't be asked does not answer."""

    def environment(self) -> Mapping[str, str]:
        return os.environ

    @property
    def running(self) -> Running | None:
        """The process, while it lives (frozen too)."""
        return self._running if self._running is not None and self._running.alive else None

    def adopt(self, running: Running | None) -> None:
        """Take over a process that another command started; `stop()` and the rest are then about that one."""
        self._running = running

    @property
    @abstractmethod
    def address(self) -> str:
        """Where clients find it."""

    @property
    def pids(self) -> list[int]:
        """Of the process and of its guard: what a reaper must leave alone."""
        return [*([self.running.pid] if self.running else []), *([self._guard.pid] if self._guard else [])]

    def start(self) -> None:
        """Start it and wait until it answers; nothing where it runs already.

        Raises `MissingTool`, `SpecError` where a port is in use, and `Temporary` with the end of the server's log
        where it does not come up.
        """
        if self.running:
            return
        need_free(self.title, self._ports)
        self.folder.mkdir(parents=True, exist_ok=True)
        command = self.command()
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        self._launch(command)
        try:
            self._await_answer()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Cleanly where it can: SIGTERM, and SIGKILL after `stop_s`. Nothing where it has ended."""
        if self._running is not None:
            self._running.end(self.stop_s)
        self._collect()

    def kill(self) -> None:
        """`kill -9`: no goodbye, no flush. Its data stay; `start()` finds them again."""
        if self._running is not None:
            self._running.signal(signal.SIGKILL)
            self._running.gone(_KILLED_S)
        self._collect()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing answers, until `thaw()`."""
        if self._running is not None:
            self._running.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        if self._running is not None:
            self._running.signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _launch(self, command: Sequence[str]) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=self.environment(), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self._running = Running(self._process.pid, born(self._process.pid) or "")
        if self._bound:
            self._guard = _guard(self._process.pid)

    def _await_answer(self) -> None:
        until = time.monotonic() + self.start_s
        while not self.answers():
            if not self.running:
                raise Temporary(f"{self.title} ended while it started. {self.log_end()}")
            if time.monotonic() > until:
                raise Temporary(f"{self.title} does not answer after {self.start_s:.0f} s. {self.log_end()}")
            time.sleep(_ANSWER_POLL_S)

    def log_end(self) -> str:
        """The end of what it said since its last start, for an error message."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]
        return "\n".join([f"The end of {self.log}:", *(lines or ["(nothing)"])])

    def _collect(self) -> None:
        """No zombies, and no guard that could shoot at whoever gets the number next."""
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
        if self._process is not None and not self.running:
            self._process.wait()
        self._guard = self._process = self._running = None


def _guard(pid: int) -> subprocess.Popen[bytes]:
    """A small process that reads from us: when we end, in whatever way, it reads the end and kills the group."""
    return subprocess.Popen(
        ["sh", "-c", 'read line; kill -s KILL -- "-$0"', str(pid)],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
