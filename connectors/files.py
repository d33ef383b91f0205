"""Files as a source: one file, a folder, or a glob, cut into splits that are named by content.

A split's name holds path, size and a hash of head and tail, never a time: a file copied back from a backup is the same
input, a changed one is not. The name is checked again whenever the file is opened.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from penstock.connectors.base import Batch, Later, Raw
from penstock.connectors.filestore.assembly import MANIFEST
from penstock.connectors.formats import csv_rows, names
from penstock.connectors.formats.lines import MAX_RECORD_BYTES
from penstock.connectors.objects.cursor import Cursors
from penstock.connectors.objects.cutting import READERS, Found, cut, cut_among_others, format_of, piece_bytes, settled
from penstock.connectors.settings import FilesSource
from penstock.engine.errors import BadRecord, NoInput, SpecError, Temporary
from penstock.engine.plan import Plan, Split

ENDS_BYTES = 64 * 1024
"""Head and tail that go into a file's hash."""


class FileSource:
    """Implements `base.Source`, `base.Revisited` and `base.Rereadable`. `max_record_bytes`: longer records become dead
    letters."""

    def __init__(self, settings: FilesSource, *, max_record_bytes: int = MAX_RECORD_BYTES) -> None:
        self._settings = settings
        self._limit = max_record_bytes

    async def splits(self, lanes_hint: int) -> list[Split]:
        """Raises `NoInput` where nothing matches, `SpecError` where a name can't be read, requests and rows are mixed,
        or the one file there is can't be read. One damaged file among others stops nobody: it becomes a dead letter."""
        files = self._files()
        return _cut(files, files, lanes_hint)

    async def beside(self, plan: Plan) -> Later:
        """As promised. Known under another id are files that are reached by another path, or were moved."""
        try:
            files = self._files()
        except NoInput as error:
            return Later([], str(error))
        known = {split.object_id for split in plan.splits}
        new = [file for file in files if file.object_id not in known]
        renamed = _renamed(new, plan)
        told = [why for why in renamed.values() if why]
        others = f" (and {len(told) - 1:,} others like it)" if len(told) > 1 else ""
        splits = _cut([file for file in new if file.object_id not in renamed], files, plan.lanes)
        return Later(splits, f"{told[0]}{others}" if told else None)

    async def open(self, starts: Sequence[tuple[Split, int]]) -> FilesReader:
        return FilesReader(starts, self._limit)

    def rereading(self, splits: Sequence[Split]) -> Callable[[Split, int], Iterator[Raw]]:
        """As promised; the order is all the same to a disk."""
        return self.records

    def records(self, split: Split, start: int) -> Iterator[Raw]:
        """The same records as a plain iterator, for passes over the input (duplicate labels, a sample for the plan).

        Raises as a reader does.
        """
        return read(split, start, self._limit)

    def _files(self) -> list[Found]:
        """Raises as `splits`."""
        files = settled([file for path in matches(self._settings.path) if (file := self._look(path)) is not None])
        if not files:
            raise NoInput(f"no file matches {self._settings.path}: check source.path")
        return files

    def _look(self, path: str) -> Found | None:
        """None: an empty file whose name says nothing (`_SUCCESS`)."""
        if (name := path.encode("utf-8", "replace").decode()) != path:
            raise SpecError(f"{name}: its name is not UTF-8: rename it")
        try:
            with Path(path).open("rb") as file:
                size, object_id = fingerprint(path, file)
                format = self._settings.format or _format(path, file, size)
        except OSError as error:
            raise SpecError(f"{path} cannot be read: {error.strerror or error}") from error
        if format is None:
            return None
        return Found(path, size, object_id, format)


def matches(pattern: str) -> list[str]:
    """The files that `pattern` (a file, a folder, a glob) means, sorted. Left out of folders and globs: hidden ones,
    and manifests of ours, which hold no rows."""
    path = os.path.abspath(os.path.expanduser(pattern))
    if os.path.isfile(path):
        return [path]
    found = _below(path) if os.path.isdir(path) else glob.glob(path, recursive=True)
    return sorted(os.path.abspath(one) for one in found if os.path.basename(one) != MANIFEST and os.path.isfile(one))


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


def _cut(files: Sequence[Found], among: Sequence[Found], lanes_hint: int) -> list[Split]:
    piece = piece_bytes(among, lanes_hint)
    cutting = cut if len(among) == 1 else cut_among_others
    return [split for file in files for split in cutting(file, piece, _open, _rows_are_lines)]


def _renamed(new: Sequence[Found], plan: Plan) -> dict[str, str]:
    """`object_id` → why it is known, in words ("": no need to tell). A file that is gone from where it was stands for
    one that has its content; empty ones have none. Moving keeps a file's time: one that was written since input joined
    the run last was handed in once more, whatever it holds."""
    paths: dict[str, list[str]] = {}
    for object_id, path in dict.fromkeys((split.object_id, split.uri) for split in plan.splits):
        paths.setdefault(object_id.removeprefix(path), []).append(path)
    found: dict[str, str] = {}
    looked: dict[str, _Before] = {}
    for file in new:
        content = file.object_id.removeprefix(file.uri)
        if content not in paths or file.size == 0:
            continue
        if content not in looked:
            looked[content] = _Before(paths[content], content)
        before, there = looked[content], _stat(file.uri)
        if there is None:
            continue
        if (there.st_dev, there.st_ino) in before.there:
            found[file.object_id] = ""
        elif before.gone and there.st_mtime <= max(plan.created_at, plan.joined_at):
            path = before.gone.pop(0)
            found[file.object_id] = f"{path} is not there any more: {file.uri}, which has its content, is taken for it"
    return found


class _Before:
    """Where one content was when a run was planned: `there` is it still (inodes), from `gone` it went."""

    def __init__(self, paths: Sequence[str], content: str) -> None:
        self.there: set[tuple[int, int]] = set()
        self.gone: list[str] = []
        for path in paths:
            told = _stat(path) if _holds(path, content) else None
            if told is not None:
                self.there.add((told.st_dev, told.st_ino))
            else:
                self.gone.append(path)


def _holds(path: str, content: str) -> bool:
    try:
        with open(path, "rb") as file:
            return fingerprint(path, file)[1] == f"{path}{content}"
    except OSError:
        return False


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None


def _format(path: str, file: BinaryIO, size: int) -> str | None:
    return format_of(path, size, lambda: names.look(file, names.compression_of(path)), "source.path")


def _open(found: Found) -> BinaryIO:
    return open(found.uri, "rb")


def _rows_are_lines(found: Found) -> bool:
    """One pass over the file at the disk's speed: where a quote stands, only a reader from the start knows rows."""
    with _open(found) as file:
        return not csv_rows.has_quotes(file)


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


class FilesReader:
    """Implements `base.Reader`. Reading a local file blocks the loop for some milliseconds a batch."""

    def __init__(self, starts: Sequence[tuple[Split, int]], limit: int) -> None:
        self._cursors = Cursors(starts, lambda split, start: read(split, start, limit))

    async def read(self, max_records: int, max_bytes: int) -> Batch:
        return self._cursors.take(max_records, max_bytes)

    async def close(self) -> None:
        self._cursors.close()
