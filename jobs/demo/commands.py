"""The demo runs the command line as a person would: as a process of its own, so that a kill is a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import msgspec

MAIN = "import sys; from penstock.jobs.cli import main; sys.argv[0] = 'penstock'; main()"
"""What the console script does; this also works where the script isn't on the path."""
POLL_S = 0.05
STATS_TIMEOUT_S = 2.0


class Stats(msgspec.Struct):
    """As much of the sandbox's `/stats` as the demo needs."""

    served: int = 0


def start(
    arguments: Sequence[str], folder: Path, env: Mapping[str, str] | None = None, out: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """`penstock …` in `folder`, on our screen or into a file."""
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, *arguments],
        cwd=folder,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=out,
    )


def run(arguments: Sequence[str], folder: Path, env: Mapping[str, str] | None = None) -> int:
    """The same, to its end; returns the exit code. Interrupted, it lets the command drain."""
    process = start(arguments, folder, env)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)


def served(url: str) -> int:
    """How many calls the sandbox has answered. 0 where it does not say."""
    try:
        with urllib.request.urlopen(f"{url}/stats", timeout=STATS_TIMEOUT_S) as reply:
            return msgspec.json.decode(reply.read(), type=Stats).served
    except (urllib.error.URLError, OSError, msgspec.DecodeError):
        return 0


def kill_when_served(process: subprocess.Popen[bytes], url: str, calls: int, within_s: float) -> int | None:
    """`kill -9` the command once the sandbox has answered so many calls; returns how many it had.

    None: the command ended by itself, or `within_s` seconds passed (then it is left running).
    """
    seen = wait_until_served(process, url, calls, within_s)
    if seen is not None:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    return seen


def wait_until_served(process: subprocess.Popen[bytes], url: str, calls: int, within_s: float) -> int | None:
    """Until the sandbox has answered so many calls; returns how many it had. None: as above."""
    until = time.monotonic() + within_s
    while process.poll() is None and time.monotonic() < until:
        seen = served(url)
        if seen >= calls:
            return seen
        time.sleep(POLL_S)
    return None
