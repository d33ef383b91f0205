"""Whether a run's folders are the same folders on every node of a cluster, and their locks hold across them.

State, outputs and input may be folders, and each process of a run opens them by path, on its own node. Where a path
means another disk there, that node has a ledger of its own (so the budget counts once a node), and commits what nobody
looks for. So whoever starts a run marks each folder that is written with a file that it holds locked, and every other
process must find that file and be refused its lock. An input may be read-only: there the first file must be the same.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Generator, Mapping
from errno import ENOLCK, ENOSYS, ENOTSUP, EOPNOTSUPP
from pathlib import Path

from penstock.connectors.base import Mark, SinkName, this_process
from penstock.connectors.files import fingerprint, matches
from penstock.connectors.filestore.disk import publish_new, try_lock
from penstock.connectors.filestore.place import folder
from penstock.connectors.settings import FilesSink, FilesSource, SinkSettings, SourceSettings
from penstock.connectors.state import folder_of
from penstock.engine.errors import Refused, Temporary

NAME = ".penstock-mark-"
"""Hidden: sources that are folders or globs pass over it."""
LEFT_S = 86_400.0
"""A mark that is unlocked and this old was left by a killed command. A guess: no start takes as long."""
NO_LOCKS = (ENOLCK, ENOSYS, ENOTSUP, EOPNOTSUPP)
STATE, INPUT = "the state", "the input"


@contextlib.contextmanager
def marked(state: str, source: SourceSettings, sinks: Mapping[SinkName, SinkSettings]) -> Generator[tuple[Mark, ...]]:
    """The marks of a run's folders, held until the end. What is no folder has none. Raises `Refused` where a folder
    takes no locks, `Temporary` where it can't be written."""
    with contextlib.ExitStack() as held:
        marks = [held.enter_context(_mark(what, at)) for at, what in _written(state, sinks).items()]
        yield (*marks, *_first_file(source))


def _written(state: str, sinks: Mapping[SinkName, SinkSettings]) -> dict[Path, str]:
    """Each folder once, by the first thing that is there."""
    at = folder_of(state)
    found = {} if at is None else {at: STATE}
    for name, sink in sinks.items():
        if isinstance(sink, FilesSink):
            found.setdefault(folder(sink), f"the {name.replace('_', ' ')}")
    return found


def _first_file(source: SourceSettings) -> list[Mark]:
    if not isinstance(source, FilesSource):
        return []
    return [Mark(INPUT, path, said) for path in matches(source.path)[:1] if (said := _look(path)) is not None]


def _look(path: str) -> str | None:
    try:
        with Path(path).open("rb") as file:
            return fingerprint(path, file)[1]
    except OSError:
        return None


@contextlib.contextmanager
def _mark(what: str, at: Path) -> Generator[Mark]:
    path, content = at / f"{NAME}{secrets.token_hex(8)}", secrets.token_hex(16)
    try:
        at.mkdir(parents=True, exist_ok=True)
        _sweep(at)
        lock = publish_new(path, content.encode())
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise Refused(f"{what}: {at} takes no locks ({error}). {_remedy(what)}") from error
        raise Temporary(f"{what}: {at} cannot be written now ({error}). Free space or mend the disk.") from error
    try:
        yield Mark(what, str(path), content)
    finally:
        with contextlib.suppress(OSError):  # what the run has done stands, whatever becomes of its mark
            path.unlink()
        if lock is not None:
            os.close(lock)


def _sweep(at: Path) -> None:
    for old in at.glob(f"{NAME}*"):
        with contextlib.suppress(OSError):  # gone by now, or another user's
            if time.time() - old.stat().st_mtime > LEFT_S and (lock := try_lock(old)) is not None:
                old.unlink()
                os.close(lock)


def lasting(marks: tuple[Mark, ...]) -> tuple[Mark, ...]:
    """Those that hold as long as the run: its input may be moved away when it is read."""
    return tuple(mark for mark in marks if mark.what != INPUT)


def refuse_apart(marks: tuple[Mark, ...]) -> None:
    """Raises `Refused` where this process does not see what was marked, or could hold a lock that is held."""
    for mark in marks:
        why = _unlike(mark) if mark.what != INPUT else _changed(mark)
        if why is not None:
            at = Path(mark.path) if mark.what == INPUT else Path(mark.path).parent
            raise Refused(f"{mark.what}: on node {this_process().host} {at} {why}. {_remedy(mark.what)}")


def _unlike(mark: Mark) -> str | None:
    path = Path(mark.path)
    try:
        if path.read_text() != mark.content:
            return "is another folder"
        lock = try_lock(path, shared=True)  # any held lock refuses it, and it wants no right to write
    except (FileNotFoundError, NotADirectoryError):
        return "is another folder, or none"
    except OSError as error:
        return f"can't be used ({error.strerror or error})"
    if lock is None:
        return None
    os.close(lock)
    return "has locks that keep out no other node"


def _changed(mark: Mark) -> str | None:
    said = _look(mark.path)
    return None if said == mark.content else ("can't be read" if said is None else "is another file")


def _remedy(what: str) -> str:
    other = "name topics or s3://bucket/prefix" if what != STATE else "set `state:` to s3://bucket/prefix"
    return f"The nodes of a cluster must share it: {other}, or a folder that all nodes see and can lock"
