"""The pass that finds equal labels (`on_duplicate: dead_letter`): in input order, on disk, ahead of the lanes.

The first record that bears a label keeps it; the later ones are told as duplicates. Whether a record is one depends on
the input alone, so the pass is computed anew after a crash and says the same. A record whose label can't be read bears
none. Memory is flat: labels are 16-byte hashes in a throw-away SQLite file.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import msgspec

from penstock.connectors.base import Raw
from penstock.connectors.reading.intake import input_shape, is_request
from penstock.connectors.reading.rows import columns, label_of
from penstock.connectors.settings import Row
from penstock.connectors.templates.template import compile_template
from penstock.engine.errors import BadRecord, PenstockError
from penstock.engine.plan import Split

CACHE_KB = 4_000
"""SQLite's page cache. 32 MB made the driver grow by as much over a million records and were no faster: what misses it
comes from the system's own cache."""
BATCH = 16_384
"""Records looked up at once: one statement's cost is spread over them."""

Records = Callable[[Split, int], Iterator[Raw]]
"""(split, first position) → its records, in ascending position: `Rereadable.rereading`."""


class _OnlyLabel(msgspec.Struct):
    custom_id: object = None


_decode = msgspec.json.Decoder(_OnlyLabel).decode


class Duplicate(msgspec.Struct, frozen=True, gc=False):
    """A record whose label an earlier one bears."""

    ordinal: int
    position: int
    first_ordinal: int
    first_position: int

    def reason(self, label: str | None, first_uri: str) -> str:
        """The dead letter's message."""
        return f"the label {label!r} came first in {first_uri} at position {self.first_position}"


class Verdict(msgspec.Struct, frozen=True):
    """How far the pass is. Records before `upto` (ordinal, position) are judged: a lane may dispatch them, except the
    duplicates. `duplicates`: those found by this step. `seen`: records read so far."""

    upto: tuple[int, int]
    duplicates: list[Duplicate]
    seen: int
    done: bool


def labeller(format: str, row: Row, job_vars: Mapping[str, str] | None = None) -> Callable[[Raw], str | None] | None:
    """How a record's label is read; None: this job's records bear none, and no pass is needed."""
    of_row = None if row.id is None else _of_rows(row.id, job_vars or {})
    match input_shape(format):
        case "openai-batch":
            return _custom_id
        case "rows":
            return of_row
        case "either":
            return lambda raw: _custom_id(raw) if is_request(raw) else of_row(raw) if of_row is not None else None


def _of_rows(source: str, job_vars: Mapping[str, str]) -> Callable[[Raw], str | None]:
    template = compile_template(source)

    def label(raw: Raw) -> str | None:
        try:
            return None if raw.error is not None else label_of(template, columns(raw), job_vars)
        except BadRecord:
            return None

    return label


def _custom_id(raw: Raw) -> str | None:
    if raw.error is not None:
        return None
    try:
        label = _decode(raw.data).custom_id
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    return label if isinstance(label, str) and label else None


class LabelPass:
    """One pass over `splits`. `advance` may run in a thread beside readers of `duplicates`.

    records: how a split is read. label: from `labeller`. path: the throw-away database; an old one is replaced.
    Splits whose lanes read other records than the pass would see other duplicates: give both the same source.
    """

    def __init__(
        self, splits: Sequence[Split], records: Records, label: Callable[[Raw], str | None], path: str | Path
    ) -> None:
        self._splits = sorted(splits, key=lambda split: split.ordinal)
        self._records = records
        self._label = label
        self._lock = threading.Lock()
        self._at = 0
        self._next = self._splits[0].start if self._splits else 0
        self._reading: Iterator[Raw] | None = None
        self._seen = 0
        self._path = Path(path)
        self._base = _Labels(self._path)

    def advance(self, max_records: int = 100_000) -> Verdict:
        """Judge up to so many more records. Raises as the source's reader does; the next call goes on from there."""
        found: list[Duplicate] = []
        left = max_records
        while self._at < len(self._splits) and left > 0:
            try:
                read, batch = self._batch(min(BATCH, left))
            except PenstockError:
                if left == max_records:
                    raise
                break  # what was found first; the failure comes again with the next call, if it lasts
            with self._lock:
                found.extend(self._base.judge(batch))
            self._seen += read
            left -= max(1, read)
        return self._verdict(found)

    def _verdict(self, found: list[Duplicate]) -> Verdict:
        done = self._at >= len(self._splits)
        if done:
            upto = (self._splits[-1].ordinal + 1, 0) if self._splits else (0, 0)
        else:
            upto = (self._splits[self._at].ordinal, self._next)
        return Verdict(upto, found, self._seen, done)

    def _batch(self, size: int) -> tuple[int, list[_Entry]]:
        split = self._splits[self._at]
        if self._reading is None:
            self._reading = self._records(split, self._next)
        batch: list[_Entry] = []
        read = 0
        ordinal, label = split.ordinal, self._label
        try:
            for raw in self._reading:
                read += 1
                position = raw.position.position
                self._next = position + 1
                if (text := label(raw)) is not None:
                    batch.append((hashlib.blake2b(text.encode(), digest_size=16).digest(), ordinal, position))
                if read >= size:
                    return read, batch
        except PenstockError:
            self._reading = None
            if not batch:
                raise
            return read, batch  # the failure comes again with the next batch, if it lasts
        self.pass_over()
        return read, batch

    @property
    def reading(self) -> Split:
        """The split that `advance` goes on with, where it is not done."""
        return self._splits[self._at]

    def pass_over(self) -> None:
        """Go on with the next split, whatever is left of this one."""
        self._at += 1
        self._reading = None
        self._next = self._splits[self._at].start if self._at < len(self._splits) else 0

    def duplicates(self, ordinal: int, start: int = 0, limit: int = 100_000) -> list[Duplicate]:
        """Those known so far in one split, from position `start` on, at most `limit`."""
        with self._lock:
            return self._base.duplicates(ordinal, start, limit)

    def close(self) -> None:
        """Delete the database, and let go of what is being read. Blocking: not where a loop runs."""
        reading, self._reading = self._reading, None
        if isinstance(reading, Generator):
            reading.close()
        with self._lock:
            self._base.close()
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> LabelPass:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_Entry = tuple[bytes, int, int]
"""(hash of the label, ordinal, position)."""


class _Labels:
    """The database: first bearers by hash, and the duplicates by place."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self._sql = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._sql.executescript(
            f"""
            PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE;
            PRAGMA cache_size = -{CACHE_KB};
            CREATE TABLE first (label BLOB PRIMARY KEY, ordinal INTEGER, position INTEGER) WITHOUT ROWID;
            CREATE TABLE later (ordinal INTEGER, position INTEGER, first_ordinal INTEGER, first_position INTEGER,
                                PRIMARY KEY (ordinal, position)) WITHOUT ROWID;
            """
        )

    def judge(self, batch: list[_Entry]) -> list[Duplicate]:
        """Enter the batch; returns its duplicates. The rare case pays for looking: most batches have none."""
        if not batch:
            return []
        batch.sort()  # neighbours in the tree come together; of equal labels the first in input order stays first
        before = self._sql.total_changes
        self._sql.execute("BEGIN")
        self._sql.executemany("INSERT OR IGNORE INTO first VALUES (?, ?, ?)", batch)
        found = [] if self._sql.total_changes - before == len(batch) else self._later(batch)
        self._sql.execute("COMMIT")
        return found

    def _later(self, batch: list[_Entry]) -> list[Duplicate]:
        found: list[Duplicate] = []
        for label, ordinal, position in batch:
            first = self._sql.execute("SELECT ordinal, position FROM first WHERE label = ?", (label,)).fetchone()
            if first != (ordinal, position):
                found.append(Duplicate(ordinal, position, *first))
        found.sort(key=lambda one: (one.ordinal, one.position))
        self._sql.executemany(
            "INSERT OR REPLACE INTO later VALUES (?, ?, ?, ?)", [msgspec.structs.astuple(one) for one in found]
        )
        return found

    def duplicates(self, ordinal: int, start: int, limit: int) -> list[Duplicate]:
        rows = self._sql.execute(
            "SELECT * FROM later WHERE ordinal = ? AND position >= ? ORDER BY position LIMIT ?", (ordinal, start, limit)
        )
        return [Duplicate(*row) for row in rows]

    def close(self) -> None:
        self._sql.close()
