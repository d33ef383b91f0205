"""From spools to what readers want: one file in input order, or part files and a manifest.

A file is written under the store's own `assembly/` folder first, parts in a hidden folder where they go (maybe a disk
of its own), then they are published by rename. A crash at any point leaves the last published state (or, for a folder,
one without a manifest: not finished), and the next call does all of it again from the spools, with the same bytes.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from penstock.connectors.filestore.disk import Faults, no_faults, publish, sync_folder
from penstock.connectors.filestore.sort import sorted_values
from penstock.connectors.filestore.spool import Spool
from penstock.connectors.settings import FilesSink

OutFormat = Literal["jsonl", "parquet", "csv"]
MANIFEST = "_manifest.json"
_STAGE = ".penstock-parts-"
PART_BYTES = 128 << 20
"""A part file is closed once this many bytes of JSON went into it: good to scan and to move."""
FINISH_STEPS = (
    "finish.begin",
    "finish.written",
    "finish.unlisted",
    "finish.renamed",
    "finish.published",
    "finish.removed",
)

_SUFFIXES: dict[str, OutFormat] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".csv": "csv"}


class Job(msgspec.Struct, frozen=True):
    """One output to assemble.

    temp: a folder of this command alone, on the file system of the output's folder; what must outlive it stands in its
    parent.
    check: raises `Fenced` where another command has taken the run over: nothing is published then.
    """

    sink: str
    output: FilesSink
    run_id: str
    temp: Path
    spools: list[Spool]
    check: Callable[[], None]


class File(msgspec.Struct, frozen=True):
    name: str
    rows: int
    bytes: int


class Manifest(msgspec.Struct, frozen=True):
    """`_manifest.json`: a folder is whole if it has one, and holds exactly these files."""

    run_id: str
    sink: str
    rows: int
    bytes: int
    files: list[File]


class Writer(Protocol):
    """One output file being written."""

    def write(self, values: list[bytes]) -> None: ...
    def close(self) -> None: ...


def is_single_file(output: FilesSink) -> bool:
    """A file name is one file; a trailing slash or a name without a suffix is a folder."""
    return not output.path.endswith("/") and bool(Path(output.path).suffix)


def format_of(output: FilesSink) -> OutFormat:
    return output.format or _SUFFIXES.get(Path(output.path).suffix.lower(), "jsonl")


def shown_by(output: FilesSink) -> str | None:
    """The run whose manifest stands in an output that is a folder; None: there is none that can be read."""
    if is_single_file(output):
        return None
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode((Path(output.path) / MANIFEST).read_bytes(), type=Manifest).run_id
    return None


def assemble(job: Job, faults: Faults = no_faults) -> list[str]:
    """Write one sink's output anew; returns the paths. Raises `OSError`, `Corrupt`, `Fenced`.

    A dead-letter file exists only where there are dead letters; every other output exists even when it is empty.
    """
    faults("finish.begin")
    folder = job.temp / job.sink
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        if is_single_file(job.output):
            return _assemble_file(job, folder, faults)
        return _assemble_folder(job, folder, faults)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _assemble_file(job: Job, folder: Path, faults: Faults) -> list[str]:
    target = Path(job.output.path)
    if job.sink == "dead_letters" and not any(s.length for s in job.spools):
        job.check()
        _remove_letters(target, job.run_id)
        faults("finish.removed")
        return []
    target.parent.mkdir(parents=True, exist_ok=True)
    new = folder / "new"
    _write_parts(job, folder, lambda _: new, None)
    faults("finish.written")
    job.check()
    new.rename(target)
    faults("finish.renamed")
    sync_folder(target.parent)
    faults("finish.published")
    return [str(target)]


def _remove_letters(target: Path, run_id: str) -> None:
    """Those of the run's earlier life; what else stands there is somebody's file."""
    from penstock.connectors.writing.tables import is_of

    if target.is_file() and is_of(str(target), run_id):
        target.unlink()


def _assemble_folder(job: Job, folder: Path, faults: Faults) -> list[str]:
    target = Path(job.output.path)
    target.mkdir(parents=True, exist_ok=True)
    with _staged(target) as stage:
        return _publish_parts(job, folder, stage, target, faults)


@contextlib.contextmanager
def _staged(target: Path) -> Generator[Path]:
    """A folder of this command in an output that is a folder; those of earlier commands go, as with `Job.temp`."""
    for old in target.glob(f"{_STAGE}*"):
        shutil.rmtree(old, ignore_errors=True)
    stage = Path(tempfile.mkdtemp(prefix=_STAGE, dir=target))
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _publish_parts(job: Job, folder: Path, stage: Path, target: Path, faults: Faults) -> list[str]:
    suffix = format_of(job.output)
    files = _write_parts(job, folder, lambda n: stage / f"part-{n:04d}.{suffix}", PART_BYTES)
    faults("finish.written")
    job.check()
    old = _unlist(job, target)
    faults("finish.unlisted")
    for file in files:
        (stage / file.name).rename(target / file.name)
        faults("finish.renamed")
    sync_folder(target)
    manifest = Manifest(job.run_id, job.sink, sum(f.rows for f in files), sum(f.bytes for f in files), files)
    publish(target / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    faults("finish.published")
    for name in old - {f.name for f in files}:
        (target / name).unlink(missing_ok=True)
    _previous(job).unlink(missing_ok=True)
    faults("finish.removed")
    return [str(target / f.name) for f in files]


def _previous(job: Job) -> Path:
    return job.temp.parent / f"{job.sink}.previous.json"


def _unlist(job: Job, target: Path) -> set[str]:
    """Take the old manifest away (the folder is unfinished from here on) and return the files that it named."""
    manifest, previous = target / MANIFEST, _previous(job)
    names = _names_in(previous) | _names_in(manifest)
    if names:
        publish(previous, msgspec.json.encode(sorted(names)))
    manifest.unlink(missing_ok=True)
    sync_folder(target)
    return names


def _names_in(path: Path) -> set[str]:
    """Our own part names in a manifest or in the list of previous parts; nothing else is ever removed."""
    if not path.exists():
        return set()
    return set(re.findall(r'"(part-\d{4,}\.(?:jsonl|parquet|csv))"', path.read_text("utf-8", "replace")))


class _NameOf(Protocol):
    def __call__(self, number: int, /) -> Path: ...


def _write_parts(job: Job, folder: Path, name_of: _NameOf, part_bytes: int | None) -> list[File]:
    """Write all values, durably, into as many files as `part_bytes` asks for (at least one)."""
    files: list[File] = []
    writer, rows, size = None, 0, 0
    open_writer = _opener(job)
    for values in sorted_values(job.spools, folder):
        writer = writer or open_writer(name_of(len(files)))
        writer.write(values)
        rows, size = rows + len(values), size + sum(map(len, values))
        if part_bytes is not None and size >= part_bytes:
            files.append(_close(writer, name_of(len(files)), rows))
            writer, rows, size = None, 0, 0
    if writer is not None or not files:
        writer = writer or open_writer(name_of(len(files)))
        files.append(_close(writer, name_of(len(files)), rows))
    return files


def _close(writer: Writer, path: Path, rows: int) -> File:
    writer.close()
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        return File(path.name, rows, os.fstat(fd).st_size)
    finally:
        os.close(fd)


class _Opener(Protocol):
    def __call__(self, path: Path, /) -> Writer: ...


def _opener(job: Job) -> _Opener:
    match format_of(job.output):
        case "jsonl":
            return _Lines
        case "parquet":
            from penstock.connectors.writing.tables import parquet_writer

            return parquet_writer(job.sink, lambda: _all_values(job))
        case "csv":
            from penstock.connectors.writing.tables import csv_writer

            return csv_writer(job.sink, lambda: _all_values(job))


def _all_values(job: Job) -> Iterator[bytes]:
    from penstock.connectors.filestore.spool import iter_values

    for spool in job.spools:
        yield from iter_values(spool)


class _Lines:
    """JSON lines: the values as they are."""

    def __init__(self, path: Path, /) -> None:
        self._file = path.open("wb")

    def write(self, values: list[bytes]) -> None:
        self._file.write(b"".join(values))

    def close(self) -> None:
        self._file.close()
