"""Where the records stand that a replay sends: a file in the state folder, or an object of a state on S3.

Both are a source like any other, so the replay reads its own wherever its lanes are. A name is taken once: no two
commands write the same one, also where both began before either told its run.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

from penstock.connectors.filestore.disk import sync_folder
from penstock.connectors.settings import FilesSource, S3Source, SourceSettings
from penstock.connectors.state import folder_of
from penstock.engine.errors import SpecError, Temporary

LetterFile = FilesSource | S3Source


def new(state: str, base: str, number: int) -> LetterFile:
    """Of replay `number` of run `base`, in the state at that URL."""
    name = f"replays/{base}/{number}-{secrets.token_hex(4)}.jsonl"
    if (folder := folder_of(state)) is not None:
        return FilesSource(str(folder / name), "jsonl", replay=True)
    from penstock.connectors.s3.state import root_of
    from penstock.connectors.s3.urls import parsed

    at = parsed(state)
    return S3Source(at.bucket, root_of(at) + name, endpoint=at.endpoint, region=at.region, format="jsonl", replay=True)


def of(source: SourceSettings) -> LetterFile:
    """The one that a replay reads. Raises `SpecError` where the run is none."""
    if isinstance(source, FilesSource | S3Source) and source.replay:
        return source
    raise SpecError("this run sends no letters again: its source is its own")


def write(file: LetterFile, lines: Iterable[bytes], state: str) -> None:
    """`state`: whose the file is; it says how objects are encrypted. Raises `Temporary`."""
    match file:
        case FilesSource(path=path):
            _write(Path(path), lines)
        case S3Source():
            from penstock.connectors.s3.state import put_file

            with tempfile.TemporaryDirectory(prefix="penstock-", ignore_cleanup_errors=True) as folder:
                made = Path(folder) / "letters.jsonl"
                _write(made, lines)
                put_file(state, file.prefix, made)


def read(file: LetterFile) -> Iterator[bytes]:
    """Its lines. Raises `SpecError` where it is gone."""
    from penstock.connectors.writing.tables import opened

    with closing(opened(where(file))) as lines:
        yield from lines


def is_there(file: LetterFile) -> bool:
    match file:
        case FilesSource(path=path):
            return Path(path).exists()
        case S3Source():
            from penstock.connectors.s3.client import client

            return client(file.endpoint, file.region).head(file.bucket, file.prefix) is not None


def remove(file: LetterFile) -> None:
    """Where it is still there."""
    match file:
        case FilesSource(path=path):
            Path(path).unlink(missing_ok=True)
        case S3Source():
            from penstock.connectors.s3.client import client

            client(file.endpoint, file.region).delete(file.bucket, [file.prefix])


def where(file: LetterFile) -> str:
    """Its path or URL."""
    match file:
        case FilesSource(path=path):
            return path
        case S3Source():
            from penstock.connectors.s3.urls import Where

            return Where(file.bucket, file.prefix, file.endpoint, file.region).url


def _write(path: Path, lines: Iterable[bytes]) -> None:
    """It is durable before history names it: a machine that goes down between would leave a replay without letters."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as out:
            out.writelines(line + b"\n" for line in lines)
            out.flush()
            os.fsync(out.fileno())
        sync_folder(path.parent)
    except OSError as error:
        raise Temporary(f"can't write {path}: {error.strerror}") from error
