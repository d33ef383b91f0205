"""The user's patterns on models' answers, in a process of its own.

Nothing in Python ends a search that goes back over a text for ever: it holds the interpreter's lock, so the whole
process stands still, and with it the lane. A process can be ended.
"""

from __future__ import annotations

import contextlib
import json
import logging
import select
import subprocess
import sys
import weakref
from collections.abc import Callable

PATIENCE_S = 4.0
"""A search may take so long, and so may the process to come up: the lane waits, and one that is silent for 10 s is
replaced."""

_CHILD = """
import json, re, signal, sys
print("r", end="", flush=True)
for line in sys.stdin.buffer:
    patience, pattern, text = json.loads(line)
    signal.setitimer(signal.ITIMER_REAL, patience)
    found = re.search(pattern, text) is not None
    signal.setitimer(signal.ITIMER_REAL, 0)
    sys.stdout.write("1" if found else "0")
    sys.stdout.flush()
"""
"""Its own alarm ends it too: whoever started it may be gone."""


class Matcher:
    """Searches one text at a time. Made cheaply: the process starts with the first search, and ends with this one's."""

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._end: Callable[[], object] = _nothing
        self._given_up: set[str] = set()

    def found(self, pattern: str, text: str) -> bool | None:
        """Whether the pattern, which compiles, is anywhere in the text. None: it took too long, now or before, and is
        not tried again; or the process could not be had yet."""
        if pattern in self._given_up:
            return None
        try:
            process = self._started()
            if not self._ready:
                return None
            said = self._ask(process, json.dumps([2 * self._patience_s, pattern, text]).encode() + b"\n")
        except OSError as error:
            self.close()
            logging.getLogger(__name__).error("a regex scorer's pattern was not tried: %s", error)
            return None
        if said == b"":
            self.close()
            self._given_up.add(pattern)
            logging.getLogger(__name__).error(
                "the pattern %r took over %g s on an answer and is not tried again here",
                pattern[:200],
                self._patience_s,
            )
            return None
        return said == b"1"

    def _started(self) -> subprocess.Popen[bytes]:
        """Raises `OSError`."""
        process = self._process
        if process is None or process.poll() is not None:
            self.close()
            process = self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
            )
            self._end = weakref.finalize(self, _ended, process)
        self._ready = self._ready or self._heard(process) == b"r"
        return process

    def _ask(self, process: subprocess.Popen[bytes], line: bytes) -> bytes:
        """Its answer; nothing where none came in time. Raises `OSError`."""
        assert process.stdin is not None
        process.stdin.write(line)
        return self._heard(process)

    def _heard(self, process: subprocess.Popen[bytes]) -> bytes:
        assert process.stdout is not None
        waiting = select.poll()  # not `select`: descriptors may be over 1,023
        waiting.register(process.stdout, select.POLLIN)
        return process.stdout.read(1) if waiting.poll(self._patience_s * 1000) else b""

    def close(self) -> None:
        """End the process; the next search starts another."""
        self._process, self._ready = None, False
        self._end()


def _nothing() -> None:
    """No process was started."""


def _ended(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
