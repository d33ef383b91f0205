"""Files as a source: one file, a folder, or a glob, cut into splits that are named by content.

A split's name holds path, size and a hash of head and tail, never a time: a file copied back from a backup is the same
input, a changed one is not. The name is checked again whenever the file is opened.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from penstock.connectors.base import Batch, Raw
from penstock.connectors.formats import csv_rows, json_lines, names, parquet_rows
from penstock.connectors.formats.lines import MAX_RECORD_BYTES
from penstock.connectors.settings import FilesSource
from penstock.engine.errors import BadRecord, SpecError, Temporary
from penstock.engine.plan import Split

MIN_PIECE_BYTES = 1_000_000
"""No split is cut smaller: opening one costs about as much as reading 0.2 MB (a guess)."""
PIECES_PER_LANE = 4
"""So that lanes of unequal speed can finish together."""
ENDS_BYTES = 64 * 1024
"""Head and tail that go into a file's hash."""

Records = Callable[[BinaryIO, Split, int, int], Iterator[Raw]]
READERS: dict[str, Records] = {
    "openai-batch": json_lines.records,
    "jsonl": json_lines.records,
    "csv": csv_rows.records,
    "parquet": parquet_rows.records,
}


class _File(msgspec.Struct, frozen=True):
    path: str
    size: int
    object_id: str
    format: str
    """`blank` where a `.jsonl` file holds nothing but white space."""
    compression: str | None


class FileSource:
    """Implements `base.Source`. `max_record_bytes`: longer records become dead letters."""

    def __init__(self, settings: FilesSource, *, max_record_bytes: int = MAX_RECORD_BYTES) -> None:
        self._settings = settings
        self._limit = max_record_bytes

    async def splits(self, lanes_hint: int) -> list[Split]:
        """Raises `SpecError` where nothing matches, a name can't be read, requests and rows are mixed, or the one
        file there is can't be read. One damaged file among others stops nobody: it becomes a dead letter."""
        files = [file for path in matches(self._settings.path) if (file := self._look(path)) is not None]
        if not files:
            raise SpecError(f"no file matches {self._settings.path}: check source.path")
        _refuse_mix(files)
        shared = "openai-batch" if any(file.format == "openai-batch" for file in files) else "jsonl"
        files = [msgspec.structs.replace(file, format=shared) if file.format == "blank" else file for file in files]
        total = sum(file.size for file in files)
        piece = max(MIN_PIECE_BYTES, -(-total // (max(1, lanes_hint) * PIECES_PER_LANE)))
        cut = _cut if len(files) == 1 else _cut_among_others
        return [split for file in files for split in cut(file, piece)]

    async def open(self, starts: Sequence[tuple[Split, int]]) -> FilesReader:
        return FilesReader(starts, self._limit)

    def records(self, split: Split, start: int) -> Iterator[Raw]:
        """The same records as a plain iterator, for passes over the input (duplicate labels, a sample for the plan).

        Raises as a reader does.
        """
        return read(split, start, self._limit)

    def _look(self, path: str) -> _File | None:
        """None: an empty file whose name says nothing (`_SUCCESS`)."""
        try:
            with Path(path).open("rb") as file:
                size, object_id = fingerprint(path, file)
                format = self._settings.format or _format(path, file, size)
        except OSError as error:
            raise SpecError(f"{path} cannot be read: {error.strerror or error}") from error
        if format is None:
            return None
        return _File(path, size, object_id, format, None if format == "parquet" else names.compression_of(path))


def matches(pattern: str) -> list[str]:
    """The files that `pattern` (a file, a folder, a glob) means, sorted; hidden ones left out of folders and globs."""
    path = os.path.abspath(os.path.expanduser(pattern))
    if os.path.isfile(path):
        return [path]
    found = _below(path) if os.path.isdir(path) else glob.glob(path, recursive=True)
    return sorted(os.path.abspath(one) for one in found if os.path.isfile(one))


def _below(folder: str) -> Iterator[str]:
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(here, name) for name in files if not name.startswith("."))


def fingerprint(path: str, file: BinaryIO) -> tuple[int, str]:
    """Size and object id: path, size, and hash of size, first and last 64 kB. Raises `OSError`."""
    size = file.seek(0, os.SEEK_END)
    digest = hashlib.blake2b(str(size).encode(), digest_size=8)
    file.seek(0)
    digest.update(file.read(ENDS_BYTES))
    file.seek(max(0, size - ENDS_BYTES))
    digest.update(file.read(ENDS_BYTES))
    return size, f"{path}@{size}-{digest.hexdigest()}"


def _format(path: str, file: BinaryIO, size: int) -> str | None:
    match names.kind_of(path):
        case "json":
            return names.look(file, names.compression_of(path)) or "blank"
        case None if size == 0:
            return None
        case None:
            raise SpecError(
                f"{path}: the name does not say what the file holds (.jsonl, .csv, .parquet; .gz or .zst behind it): "
                "set source.format, or narrow source.path"
            )
        case kind:
            return kind


def _refuse_mix(files: Sequence[_File]) -> None:
    requests = next((file for file in files if file.format == "openai-batch"), None)
    rows = next((file for file in files if file.format not in {"openai-batch", "blank"}), None)
    if requests and rows:
        raise SpecError(
            f"{requests.path} holds openai-batch requests and {rows.path} holds rows: "
            "give them to two jobs, or set source.format"
        )


def _cut(file: _File, piece: int) -> list[Split]:
    if file.format == "parquet":
        spans = parquet_rows.spans(file.path, piece)
        return [_split(file, start, end, size, "rows") for start, end, size in spans]
    if file.compression or file.size < 2 * piece or (file.format == "csv" and csv_rows.has_quotes(file.path)):
        end = None if file.compression else file.size
        spans = [(0, end, file.size)]
    else:
        count = file.size // piece
        cuts = [file.size * n // count for n in range(count + 1)]
        spans = [(start, end, end - start) for start, end in itertools.pairwise(cuts)]
    if file.format == "csv":
        csv_rows.check_header(file.path, file.compression)
    return [_split(file, start, end, size, "bytes") for start, end, size in spans]


def _cut_among_others(file: _File, piece: int) -> list[Split]:
    """A file that can't be cut (a Parquet file cut short, a CSV header that can't be read) is one split, whose reader
    says so in one record."""
    try:
        return _cut(file, piece)
    except SpecError:
        end, unit = (1, "rows") if file.format == "parquet" else (None if file.compression else file.size, "bytes")
        return [_split(file, 0, end, file.size, unit)]


def _split(file: _File, start: int, end: int | None, size: int, unit: str) -> Split:
    return Split(
        id=f"{file.object_id}#{start}-{'' if end is None else end}",
        object_id=file.object_id,
        ordinal=0,
        lane=0,
        uri=file.path,
        start=start,
        end=end,
        unit=unit,
        format=file.format,
        compression=file.compression,
        size_bytes=size,
    )


def read(split: Split, start: int, limit: int = MAX_RECORD_BYTES) -> Iterator[Raw]:
    """The records of `split` with position >= `start`.

    Raises `BadRecord("source_lost")` where the file changed or vanished, `Temporary` where it can't be read now.
    """
    try:
        with open(split.uri, "rb") as file:
            if fingerprint(split.uri, file)[1] != split.object_id:
                raise BadRecord("source_lost", f"{split.uri} is not the file this run planned: its content changed")
            records = READERS[split.format](file, split, max(start, split.start), limit)
            held: Raw | None = None
            try:
                for record in records:
                    if held is not None:
                        yield held
                    held = record
            except OSError:
                if held is not None:
                    yield held
                raise
            if os.fstat(file.fileno()).st_size < (split.end or 0) and split.unit == "bytes":
                # The last record may be the stump of a line: it must not end as a dead letter of its own.
                raise BadRecord("source_lost", f"{split.uri} was cut short while it was read")
            if held is not None:
                yield held
    except FileNotFoundError as error:
        raise BadRecord("source_lost", f"{split.uri} is gone") from error
    except OSError as error:
        raise Temporary(f"{split.uri} cannot be read now: {error.strerror or error}", retry_after_s=1.0) from error


class _Cursor:
    """One split being read; after a failure it begins again behind the last record handed out."""

    def __init__(self, split: Split, start: int, limit: int) -> None:
        self.split = split
        self._next = start
        self._limit = limit
        self._records: Iterator[Raw] | None = None

    def take(self, records: list[Raw], room: int, room_bytes: int) -> bool:
        """Append until a limit is met (then True) or the split has ended."""
        if self._records is None:
            self._records = read(self.split, self._next, self._limit)
        have = len(records)
        full = have + room
        try:
            for raw in self._records:
                records.append(raw)
                room_bytes -= len(raw.row_json or raw.data)
                if room_bytes <= 0 or len(records) >= full:
                    return True
        except (BadRecord, Temporary):
            self._records = None
            if len(records) == have:
                raise
            return True  # what was read first; the failure comes again with the next call if it lasts
        finally:
            if len(records) > have:
                self._next = records[-1].position.position + 1
        return False


class FilesReader:
    """Implements `base.Reader`: the splits one after another, in the order given."""

    def __init__(self, starts: Sequence[tuple[Split, int]], limit: int) -> None:
        self._cursors = [_Cursor(split, start, limit) for split, start in reversed(starts)]

    async def read(self, max_records: int, max_bytes: int) -> Batch:
        records: list[Raw] = []
        ended: list[str] = []
        size = 0
        while self._cursors and len(records) < max_records and size < max_bytes:
            before = len(records)
            try:
                more = self._cursors[-1].take(records, max_records - before, max_bytes - size)
            except (BadRecord, Temporary):
                if records or ended:
                    break
                raise
            if more:
                break
            ended.append(self._cursors.pop().split.id)
            size += sum(len(raw.row_json or raw.data) for raw in records[before:])
        return Batch(records, tuple(ended), done=not self._cursors)

    async def close(self) -> None:
        self._cursors.clear()
