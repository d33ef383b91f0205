"""Processes that other processes may find again: who they are, whether they live, how they end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import msgspec

_POLL_S = 0.02


class Running(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The leader of a process group. `born`: when it began, since a number alone may be another's by now."""

    pid: int
    born: str

    @property
    def alive(self) -> bool:
        return born(self.pid) == self.born

    def signal(self, number: signal.Signals) -> None:
        """To the whole group; nothing where it has ended."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def end(self, grace_s: float) -> bool:
        """SIGTERM, and SIGKILL after `grace_s`; whether the first was enough. A frozen group is thawed."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)
        if self.gone(grace_s):
            return True
        self.signal(signal.SIGKILL)
        self.gone(grace_s)
        return False

    def gone(self, within_s: float) -> bool:
        """Wait for its end."""
        until = time.monotonic() + within_s
        while self.alive and time.monotonic() < until:
            time.sleep(_POLL_S)
        return not self.alive


def born(pid: int) -> str | None:
    """When a process began, as a text to compare. None: there is none, or it has ended and waits to be collected."""
    if not Path("/proc/self/stat").exists():
        return _born_by_ps(pid)
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]  # proc_pid_stat(5): state, and 19 fields on the start in ticks


def _born_by_ps(pid: int) -> str | None:
    """Where there is no /proc (macOS)."""
    told = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True).stdout.split()
    return " ".join(told[1:]) if told and not told[0].startswith("Z") else None
