"""One lane's folder: who owns it, what is committed, and the act of committing.

In the folder:

    epoch-<run>.<lane>             one file an owner, created exclusively, locked while the owner lives
    progress-<run>.<lane>.<n>.log  the owner's log: its first frame is the whole state, each later frame one commit
    <sink>-<run>.<lane>.spool      records; written by that epoch alone
    started                        there since the first log was published: from then on a missing log is a loss

Why a stopped owner that wakes up can do no harm (no lock is needed for this; locks only spare a live owner the fence):

* Taking:     (T1) create the marker `epoch-E`, exclusively   (T2) read the highest older log
              (T3) publish one's own log, atomically          (T4) look for a higher marker: there is one → `Fenced`
* Committing: (C1) append to the spools, fsync                (C2) append a frame to one's own log, fsync
              (C3) look for a higher marker: there is one → `Fenced`, else the commit is acknowledged
* Reading:    the log of the highest epoch that has one.

A commit of the old owner is acknowledged only if C3 saw no marker, so C3 came before T1 of every later taker, so C2
came before its T2: the taker has read the frame, and its log (T3) carries it on. *What is acknowledged is never lost.*
A frame that is appended after T2 stands in a log that nobody follows once T3 is done, and its C3 comes after T1: it is
never acknowledged. *What is not acknowledged is there wholly or not at all*, since one frame is one commit, and the
spools' valid lengths stand in that same frame. Between T1 and T3 the last frame of the old log may be such an
unacknowledged one, so a mere reader (`peek`) waits until the taker's log is there. A taker that died between the two
has never returned, so it decided nothing, and the next taker reads the old log again.
`take` returns after T4, so after it no older commit takes effect.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path

import msgspec

from penstock.connectors.base import Records, Taken
from penstock.connectors.filestore.disk import (
    LOG_HEAD,
    Faults,
    frame,
    log_head,
    publish,
    publish_new,
    read_frames,
    sync_folder,
    write_all,
)
from penstock.connectors.filestore.spool import Spool, pack_batch
from penstock.engine.errors import Corrupt, Fenced, Temporary
from penstock.engine.plan import Epoch

NEVER: Epoch = (0, 0)
ROTATE_BYTES = 4 << 20
"""A log longer than this, and than eight times its first frame, is begun anew: replaying 4 MB takes about 10 ms."""
ROTATE_FACTOR = 8

TAKE_STEPS = ("take.begin", "take.marked", "take.read", "take.temp", "take.published", "take.checked")
COMMIT_STEPS = (
    "commit.begin",
    "commit.spool",
    "commit.spooled",
    "commit.frame",
    "commit.synced",
    "commit.checked",
)
ROTATE_STEPS = ("rotate.temp", "rotate.published")

_LISTINGS = 5
"""A listing taken while a log is replaced may show neither the old nor the new one: look again."""

_MARKER = re.compile(r"epoch-(\d{8})\.(\d{8})")
_LOG = re.compile(r"progress-(\d{8})\.(\d{8})\.(\d{6})\.log")


class Entry(msgspec.Struct, array_like=True):
    """One frame: the whole state (the log's first) or what one commit changed. `spools`: file name → valid length."""

    seq: int
    epoch: Epoch
    spools: dict[str, int]
    chunks: dict[str, bytes]

    def apply(self, later: Entry) -> None:
        self.seq, self.epoch = later.seq, later.epoch
        self.spools.update(later.spools)
        merge_chunks(self.chunks, later.chunks)


def merge_chunks(into: dict[str, bytes], changes: Mapping[str, bytes]) -> None:
    """An empty value deletes."""
    for name, value in changes.items():
        if value:
            into[name] = value
        else:
            into.pop(name, None)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Entry).decode


def _name(epoch: Epoch) -> str:
    return f"{epoch[0]:08d}.{epoch[1]:08d}"


def marker_path(folder: Path, epoch: Epoch) -> Path:
    return folder / f"epoch-{_name(epoch)}"


def highest_marker(folder: Path) -> Epoch:
    """The highest epoch that anybody has claimed; (0, 0) where nobody has. About 20 µs."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return NEVER
    found = [(int(m[1]), int(m[2])) for n in names if (m := _MARKER.fullmatch(n))]
    return max(found, default=NEVER)


def _logs(folder: Path) -> list[tuple[Epoch, int, Path]]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(((int(m[1]), int(m[2])), int(m[3]), folder / n) for n in names if (m := _LOG.fullmatch(n)))


def read_state(folder: Path) -> tuple[Entry, Epoch]:
    """What is committed, and the epoch whose log says so ((0, 0): no log yet). Raises `Corrupt`."""
    for _ in range(_LISTINGS):
        for epoch, _, path in _logs(folder)[-1:]:
            try:
                data = path.read_bytes()
            except FileNotFoundError:  # rotated away meanwhile: a newer one is there
                continue
            return _replay(data, str(path)), epoch
    if (folder / "started").exists() or any(folder.glob("*.spool")):
        raise Corrupt(
            f"{folder}: this lane has started, but its progress log is gone. Restore it, or start with --fresh."
        )
    return Entry(0, NEVER, {}, {}), NEVER


def _replay(data: bytes, name: str) -> Entry:
    try:
        first, *later = [_decode(payload) for payload in read_frames(data, name)]
    except msgspec.MsgspecError as error:
        raise Corrupt(f"{name} cannot be decoded ({error}). Restore it, or start with --fresh.") from error
    for entry in later:
        if entry.seq != first.seq + 1:
            raise Corrupt(f"{name} jumps from commit {first.seq} to {entry.seq}. Restore it, or start with --fresh.")
        first.apply(entry)
    return first


def taken(state: Entry) -> Taken:
    return Taken(seq=state.seq, epoch=state.epoch, chunks=dict(state.chunks))


def spools_of(folder: Path, state: Entry, sink: str) -> list[Spool]:
    """The committed spools of one sink in this lane, oldest epoch first."""
    pattern = re.compile(re.escape(sink) + r"-\d{8}\.\d{8}\.spool")
    found = sorted((n, length) for n, length in state.spools.items() if length and pattern.fullmatch(n))
    return [Spool(folder / n, length) for n, length in found]


class OwnedLane:
    """A lane as its owner holds it. `commit` is called from a thread; one at a time."""

    def __init__(self, folder: Path, epoch: Epoch, lock_fd: int, state: Entry, faults: Faults) -> None:
        self.folder = folder
        self.epoch = epoch
        self._lock_fd = lock_fd
        self._state = state
        self._faults = faults
        self._lost: Fenced | Temporary | None = None
        self._spool_fds: dict[str, int] = {}
        self._log_fd = -1
        self._log_head = b""
        self._log_length = 0
        self._log_base = 0
        self._generation = 0
        self._one_at_a_time = threading.Lock()

    @classmethod
    def take(cls, folder: Path, epoch: Epoch, claim: bytes, faults: Faults) -> OwnedLane:
        """T1 to T4. Raises `Fenced`, `Corrupt`, `OSError`."""
        faults("take.begin")
        lock_fd = publish_new(marker_path(folder, epoch), claim)
        if lock_fd is None:
            raise Fenced(f"{folder}: epoch {epoch} is taken already. Read who owns the lane and stop.")
        lane = cls(folder, epoch, lock_fd, Entry(0, NEVER, {}, {}), faults)
        try:
            lane._read_and_publish()
        except BaseException:
            lane.close()
            raise
        return lane

    def _read_and_publish(self) -> None:
        self._faults("take.marked")
        self._state, _ = read_state(self.folder)
        self._check_spools()
        self._faults("take.read")
        self._begin_log("take.temp")
        if not (self.folder / "started").exists():
            publish(self.folder / "started", b"")
        self._faults("take.published")
        self._check_owner()
        self._faults("take.checked")
        self._remove_older_logs()

    def _check_spools(self) -> None:
        for name, length in self._state.spools.items():
            path = self.folder / name
            size = path.stat().st_size if path.exists() else -1
            if size < length:
                raise Corrupt(
                    f"{path} has {max(size, 0)} bytes where {length} were committed. Restore it, or start with --fresh."
                )

    def taken(self) -> Taken:
        return taken(self._state)

    def commit(self, seq: int, records: Records, chunks: Mapping[str, bytes]) -> None:
        """C1 to C3; of a seq that is there already only C3. Raises `Fenced`, `Temporary`, `Corrupt` (a gap)."""
        with self._one_at_a_time:
            if self._lost is not None:
                raise self._lost
            if seq > self._state.seq + 1:
                last = self._state.seq
                raise Corrupt(f"{self.folder}: commit {seq} cannot follow commit {last}. Take the lane anew.")
            try:
                if seq <= self._state.seq:
                    self._check_owner()
                else:
                    self._commit(seq, records, chunks)
            except Fenced as error:
                self._lost = error
                raise
            except OSError as error:
                self._lost = Temporary(
                    f"{self.folder}: commit {seq} is uncertain ({error}). Free space or mend the disk, "
                    "then take the lane anew and read."
                )
                raise self._lost from error
            except BaseException:
                self._lost = Temporary(f"{self.folder}: commit {seq} was cut off. Take the lane anew and read.")
                raise

    def _commit(self, seq: int, records: Records, chunks: Mapping[str, bytes]) -> None:
        self._faults("commit.begin")
        self._check_owner()  # not needed for safety: a stopped owner that wakes up leaves no bytes behind
        self._rotate_if_long()
        spools = self._append_spools(records)
        self._faults("commit.spooled")
        entry = Entry(seq, self.epoch, spools, dict(chunks))
        data = frame(self._log_head, _encode(entry))
        write_all(self._log_fd, data, self._log_length)
        self._faults("commit.frame")
        os.fdatasync(self._log_fd)
        self._faults("commit.synced")
        self._check_owner()
        self._faults("commit.checked")
        self._log_length += len(data)
        self._state.apply(entry)

    def _append_spools(self, records: Records) -> dict[str, int]:
        lengths: dict[str, int] = {}
        for sink, rows in records.items():
            if rows:
                name = f"{sink}-{_name(self.epoch)}.spool"
                data = pack_batch(rows)
                offset = self._state.spools.get(name, 0)
                write_all(self._spool_fd(name), data, offset)
                self._faults("commit.spool")
                lengths[name] = offset + len(data)
        for name in lengths:
            os.fdatasync(self._spool_fds[name])
        return lengths

    def _spool_fd(self, name: str) -> int:
        fd = self._spool_fds.get(name)
        if fd is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            fd = self._spool_fds[name] = os.open(self.folder / name, flags, 0o644)
            sync_folder(self.folder)
        return fd

    def _rotate_if_long(self) -> None:
        if self._log_length > max(ROTATE_BYTES, ROTATE_FACTOR * self._log_base):
            old = self._log_path()
            self._generation += 1
            self._begin_log("rotate.temp")
            self._check_owner()
            self._faults("rotate.published")
            old.unlink(missing_ok=True)

    def _log_path(self) -> Path:
        return self.folder / f"progress-{_name(self.epoch)}.{self._generation:06d}.log"

    def _begin_log(self, step: str) -> None:
        """T3: publish a log whose first frame is the whole state, and write there from now on."""
        head = log_head()
        data = head + frame(head, _encode(self._state))
        publish(self._log_path(), data, self._faults, step)
        if self._log_fd >= 0:
            os.close(self._log_fd)
        self._log_fd = os.open(self._log_path(), os.O_WRONLY | os.O_CLOEXEC)
        self._log_head, self._log_length, self._log_base = head, len(data), len(data) - LOG_HEAD

    def _check_owner(self) -> None:
        """C3 and T4."""
        highest = highest_marker(self.folder)
        if highest > self.epoch:
            raise Fenced(
                f"{self.folder}: taken over by epoch {highest}; ours is {self.epoch}. Stop: write and send nothing."
            )

    def _remove_older_logs(self) -> None:
        for epoch, _, path in _logs(self.folder):
            if epoch < self.epoch:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Give the lane's lock back. Writes nothing."""
        with self._one_at_a_time:
            self._lost = self._lost or Temporary(f"{self.folder}: released. Take the lane anew.")
            for fd in (self._lock_fd, self._log_fd, *self._spool_fds.values()):
                if fd >= 0:
                    os.close(fd)
            self._lock_fd = self._log_fd = -1
            self._spool_fds.clear()
