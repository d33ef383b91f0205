"""The state URL: small documents with compare-and-swap, for what must be decided once among many processes.

Three calls, all blocking (call them in a thread). A value is replaced whole or not at all, and is durable when `put`
returns. The budget ledger lives here (`connectors.ledger`), and so does what several processes agree upon.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from penstock.connectors.documents import ABSENT, Absent, Conflict, State, Tag, check_key
from penstock.connectors.filestore.disk import publish
from penstock.engine.errors import SpecError, Temporary

__all__ = ["ABSENT", "Absent", "Conflict", "FolderState", "State", "Tag", "check_key", "folder_of", "open_state"]


def open_state(url: str) -> State:
    """The state at a folder (or `file://` URL), or at `s3://bucket/prefix?endpoint=…&region=…`. Raises `SpecError`."""
    if url.startswith("s3://"):
        from penstock.connectors.s3.state import S3State
        from penstock.connectors.s3.urls import parsed

        return S3State(parsed(url))
    folder = folder_of(url)
    if folder is None:
        raise SpecError(
            f"state {url}: no such kind of state. Give a folder, such as .penstock/, or s3://bucket/prefix."
        )
    return FolderState(folder)


def folder_of(url: str) -> Path | None:
    """Where the state is a folder of this machine: a path, or `file://`. None: it is elsewhere."""
    if "://" in url and not url.startswith("file://"):
        return None
    return Path(url.removeprefix("file://"))


class FolderState:
    """Keys are files below a folder. Writers of a key take a lock (`flock`, one of 64 shared by all keys), compare,
    write beside, fsync, rename. Readers take none: a rename is one act. For processes of one machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: str) -> tuple[bytes, Tag] | None:
        path = self._folder / check_key(key)
        try:
            value = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise Temporary(f"state {path} cannot be read now ({error}). Try again.") from error
        return value, _tag(value)

    def put(self, key: str, value: bytes, expect: Tag | Literal[Absent.ABSENT] | None) -> Tag:
        path = self._folder / check_key(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked(key):
                self._compare(key, expect)
                publish(path, value)
        except OSError as error:
            raise Temporary(f"state {path} cannot be written now ({error}). Free space or mend the disk.") from error
        return _tag(value)

    def _compare(self, key: str, expect: Tag | Literal[Absent.ABSENT] | None) -> None:
        if expect is None:
            return
        found = self.get(key)
        if (ABSENT if found is None else found[1]) != expect:
            raise Conflict(f"state {self._folder / key} was written by another process. Read it and decide again.")

    def list(self, prefix: str) -> list[str]:
        start = self._folder / prefix.rpartition("/")[0]
        files = (p for p in start.rglob("*") if p.is_file()) if start.is_dir() else ()
        keys = (p.relative_to(self._folder) for p in files)
        return sorted(
            k.as_posix() for k in keys if k.as_posix().startswith(prefix) and not any(p[0] == "." for p in k.parts)
        )

    @contextmanager
    def _locked(self, key: str) -> Generator[None]:
        folder = self._folder / ".locks"
        folder.mkdir(exist_ok=True)
        stripe = hashlib.blake2b(key.encode(), digest_size=1).digest()[0] % 64
        fd = os.open(folder / f"{stripe:02d}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _tag(value: bytes) -> Tag:
    return hashlib.blake2b(value, digest_size=16).hexdigest()
