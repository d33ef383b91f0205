"""Programs that are fetched once: into the user's cache folder, by one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path

from penstock.engine.errors import SpecError, Temporary

Say = Callable[[str], None]
"""Told what is under way, in a line for a person."""

FETCH_S = 900
"""A guess: Maven took 15 s and Go 60 s on two cores and a fast line."""
_TAIL_LINES = 15


class MissingTool(SpecError):
    """A program that must be installed first isn't there. The message says which, and the other way."""


def quiet(line: str) -> None:
    """For those who want to hear nothing."""


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/penstock`, by default `~/.cache/penstock`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock"


def need_tool(name: str, install: str) -> str:
    """The path of a program. Raises `MissingTool`."""
    found = shutil.which(name)
    if found is None:
        raise MissingTool(f"`{name}` is not installed: {install}. With containers, infra/compose.yaml does without it")
    return found


def fetched(name: str, fill: Callable[[Path], None]) -> Path:
    """The cache's folder `name`; `fill` is given an empty folder to put it together, once. Two processes at once:
    the second waits. What was cut short leaves nothing behind that looks whole."""
    target = cache_folder() / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.with_name(f"{name}.lock")):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(prefix=f"{name}.", dir=target.parent) as folder:
                fill(Path(folder))
                os.rename(folder, target)
                Path(folder).mkdir()  # the temporary folder's end removes this one
    return target


@contextlib.contextmanager
def locked(path: Path) -> Generator[None]:
    """One process at a time; freed when the holder ends, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run_tool(what: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Run a fetching program to its end. Raises `Temporary` with the end of what it said."""
    try:
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=FETCH_S
        )
    except subprocess.TimeoutExpired as error:
        raise Temporary(f"{what}: `{command[0]}` has not ended after {FETCH_S} s; is the network slow?") from error
    if done.returncode != 0:
        end = "\n".join(done.stdout.splitlines()[-_TAIL_LINES:])
        raise Temporary(f"{what}: `{command[0]}` failed (exit code {done.returncode}). The end of what it said:\n{end}")
