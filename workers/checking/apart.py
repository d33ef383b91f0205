"""What a user's pattern, schema or function makes of a model's answer, asked of a process of its own.

It may take for ever, or all of the memory. Nothing in Python ends a search that goes back over a text again and again:
it holds the interpreter's lock, so the whole process stands still, and with it the lane or the worker. A process can be
ended. What it does is in `apart_child`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from typing import Literal

PATIENCE_S = 4.0
"""One question may take so long: the lane waits, and one that is silent for 10 s is replaced, which pays for its window
again."""

AGAIN_S = 2.0
"""More than its patience one question may take, where somebody else has ended the process that was asked and another
one starts: a lane may be silent for 10 s."""
KILLED = frozenset({-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP})
"""How a process ends that somebody else ends: its own alarms and the user's code do it otherwise. Ray ends those of a
lane, or of a worker, before it ends that one itself, which goes on for a moment."""
REAPED_S = 0.5

MEMORY_BYTES = 2 << 30
"""For all of its data, the user's libraries included. Over that, Python raises `MemoryError`. A guess."""

Question = Literal["search", "check", "score"]

_CHILD = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from penstock.workers.checking.apart_child import serve
serve(int(sys.argv[2]), json.loads(sys.argv[3]))
"""


class TooLong(Exception):
    """No answer in time, or the process broke over it. The next question is asked of another."""


class Apart:
    """Asks one question at a time. Made cheaply: the process starts with `up`, and ends with this one's."""

    def __init__(
        self, patience_s: float = PATIENCE_S, cpu_s: float = PATIENCE_S, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        self.loads: tuple[str, ...] = ()
        """Functions that the process loads before it is up: a library may take longer than one question has."""
        self._patience_s = patience_s
        self._cpu_s = cpu_s
        """Of the processor's time, which a busy machine does not stretch; not for functions, whose libraries may use
        all of its cores at once."""
        self._memory_bytes = memory_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._end: Callable[[], object] = _nothing
        self._told = ""

    def up(self, wait_s: float = 0.0) -> bool:
        """Can it be asked? Starts it where it isn't there."""
        try:
            process = self._started()
            self._ready = self._ready or self._heard(process, wait_s) == b"\n"
            if not self._ready and process.poll() is not None:
                self.loads = ()  # one of them may have ended it
        except OSError as error:
            self._failed(error)
        return self._ready

    def ask(self, question: Question, *about: object) -> object:
        """Its answer. None: it is not up. Raises `TooLong`. Where somebody else has ended the process, another one is
        asked: what is lost by that is not the answer's fault."""
        line = json.dumps([self._patience_s, self._cpu_s, question, *about]).encode() + b"\n"
        was_up, until = self._ready, time.monotonic() + self._patience_s
        said = self._asked(line, 0.0, until)
        if (said is None and was_up) or (said == b"" and self._was_killed()):
            until += AGAIN_S
            said = self._asked(line, until - time.monotonic(), until)
        if said == b"":
            self.close()
            raise TooLong
        return None if said is None else json.loads(said)

    def _asked(self, line: bytes, wait_s: float, until: float) -> bytes | None:
        """What it says: nothing where it took too long, or has ended. None: it is not up."""
        if not self.up(wait_s):
            return None
        try:
            assert self._process is not None
            return self._said(self._process, line, until)
        except BrokenPipeError:
            return b""
        except OSError as error:
            self._failed(error)
            return None

    def _was_killed(self) -> bool:
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(REAPED_S) in KILLED
        return False

    def _failed(self, error: OSError) -> None:
        self.close()
        if self._told != str(error):
            self._told = str(error)
            logging.getLogger(__name__).error("the process for patterns, schemas and functions failed: %s", error)

    def close(self) -> None:
        """End the process; the next question starts another."""
        self._process, self._ready = None, False
        self._end()

    def _started(self) -> subprocess.Popen[bytes]:
        """Raises `OSError`."""
        process = self._process
        if process is None or process.poll() is not None:
            self.close()
            command = [sys.executable, "-I", "-c", _CHILD, json.dumps(sys.path), str(self._memory_bytes)]
            command.append(json.dumps(self.loads))
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
            self._process, self._end = process, weakref.finalize(self, _ended, process)
        return process

    def _said(self, process: subprocess.Popen[bytes], line: bytes, until: float) -> bytes:
        """Its answer; nothing where none came in time. Raises `OSError`."""
        assert process.stdin is not None
        process.stdin.write(line)
        return self._heard(process, until - time.monotonic())

    def _heard(self, process: subprocess.Popen[bytes], wait_s: float) -> bytes:
        """A line of it; nothing where none came in time, or it has ended."""
        assert process.stdout is not None
        until = time.monotonic() + wait_s
        waiting = select.poll()  # not `select`: descriptors may be over 1,023
        waiting.register(process.stdout, select.POLLIN)
        heard = b""
        while not heard.endswith(b"\n"):
            if not waiting.poll(max(0.0, until - time.monotonic()) * 1000):
                return b""
            more = os.read(process.stdout.fileno(), 1 << 16)
            if not more:
                return b""
            heard += more
        return heard


def _nothing() -> None:
    """No process was started."""


def _ended(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
