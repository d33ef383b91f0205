"""What a disk can be trusted with: exclusive creation, durable publication, locks, and frames that show a torn write.

Everything here is plain, synchronous and short. `OSError` leaves untouched; the store turns it into `Temporary`.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import struct
import zlib
from collections.abc import Callable
from errno import EACCES, EAGAIN, EEXIST, ENOTSUP, EPERM
from pathlib import Path

from penstock.engine.errors import Corrupt

Faults = Callable[[str], None]
"""Called with the name of each step between two disk operations; tests raise or pause there."""


def no_faults(_step: str) -> None:
    """The `Faults` of every run that is not a test."""


def write_all(fd: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset`; a short write (a full disk writes what fits) goes on until it fails."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


def sync_folder(folder: Path) -> None:
    """Make names in `folder` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_temp(path: Path, data: bytes) -> tuple[Path, int]:
    temp = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        write_all(fd, data, 0)
        os.fsync(fd)
    except BaseException:
        os.close(fd)
        temp.unlink(missing_ok=True)
        raise
    return temp, fd


def publish(path: Path, data: bytes, faults: Faults = no_faults, step: str = "publish.temp") -> None:
    """Put `data` at `path`, all or nothing, replacing what was there; durable when it returns."""
    temp, fd = _write_temp(path, data)
    os.close(fd)
    faults(step)
    temp.rename(path)
    sync_folder(path.parent)


def publish_new(path: Path, data: bytes) -> int | None:
    """As `publish`, but only where nothing is at `path` yet. Returns a *locked* descriptor of the new file, or None
    where the name was taken.

    The lock is held before the name appears, so nobody ever sees an owner's file unlocked while the owner lives.
    Where the file system has no hard links, the name is created first and locked after; callers look again anyway.
    """
    temp, fd = _write_temp(path, data)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.link(temp, path)
    except OSError as error:
        os.close(fd)
        if error.errno == EEXIST:
            return None
        if error.errno not in (EPERM, ENOTSUP, EACCES):
            raise
        return _create_new(path, data)
    finally:
        temp.unlink(missing_ok=True)
    sync_folder(path.parent)
    return fd


def _create_new(path: Path, data: bytes) -> int | None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        write_all(fd, data, 0)
        os.fsync(fd)
        sync_folder(path.parent)
    except BaseException:
        os.close(fd)
        raise
    return fd


def try_lock(path: Path, *, shared: bool = False) -> int | None:
    """A descriptor that holds the exclusive lock of an existing file, or None while somebody else holds it. `shared`:
    a lock that only an exclusive one refuses.

    Locks are `flock`: they belong to the open descriptor and fall when its process ends, however it ends.
    """
    fd = os.open(path, (os.O_RDONLY if shared else os.O_RDWR) | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if error.errno in (EAGAIN, EACCES):
            return None
        raise
    return fd


# A log: 4 bytes of magic, 4 of salt, then frames of (magic, length, crc32 seeded with the salt, payload).
# The salt is random, so that no text of a user can look like a frame of ours.

_LOG_MAGIC = b"PSL1"
_FRAME_MAGIC = b"PSFR"
_FRAME = struct.Struct("<4sII")
LOG_HEAD = 8


def log_head() -> bytes:
    return _LOG_MAGIC + secrets.token_bytes(4)


def frame(head: bytes, payload: bytes) -> bytes:
    """One framed record for the log that starts with `head`."""
    return _FRAME.pack(_FRAME_MAGIC, len(payload), zlib.crc32(payload, _salt(head))) + payload


def _salt(head: bytes) -> int:
    return int.from_bytes(head[4:LOG_HEAD], "little")


def read_frames(data: bytes, name: str) -> list[bytes]:
    """The payloads of a log, up to a torn tail. Raises `Corrupt` where the head is unreadable, or where whole frames
    stand *behind* a broken one: a torn append is always the last thing in its file."""
    if len(data) < LOG_HEAD or not data.startswith(_LOG_MAGIC):
        raise Corrupt(f"{name} does not start as a progress log does. Restore it from a backup, or start with --fresh.")
    salt, at, payloads = _salt(data), LOG_HEAD, list[bytes]()
    while (payload := _frame_at(data, at, salt)) is not None:
        payloads.append(payload)
        at += _FRAME.size + len(payload)
    if not payloads or _frame_behind(data, at + 1, salt):
        raise Corrupt(f"{name} is damaged at byte {at}. Restore it from a backup, or start with --fresh.")
    return payloads


def _frame_at(data: bytes, at: int, salt: int) -> bytes | None:
    if len(data) - at < _FRAME.size:
        return None
    magic, length, crc = _FRAME.unpack_from(data, at)
    payload = data[at + _FRAME.size : at + _FRAME.size + length]
    whole = magic == _FRAME_MAGIC and len(payload) == length and zlib.crc32(payload, salt) == crc
    return payload if whole else None


def _frame_behind(data: bytes, start: int, salt: int) -> bool:
    at = data.find(_FRAME_MAGIC, start)
    while at >= 0:
        if _frame_at(data, at, salt) is not None:
            return True
        at = data.find(_FRAME_MAGIC, at + 1)
    return False
