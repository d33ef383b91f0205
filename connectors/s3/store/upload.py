"""A file to an object, in parts where it is large, under a condition. Blocking; memory stays flat."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from penstock.connectors.s3 import fence
from penstock.connectors.s3.client import S3, Stored
from penstock.connectors.s3.errors import Missing, NotAsExpected
from penstock.connectors.s3.fence import Lost
from penstock.engine.errors import PenstockError

PART_BYTES = 16 << 20
"""S3 wants 5 MiB at least; larger ones go faster and are held in memory."""
MAX_PARTS = 9_000
"""S3 takes 10,000."""
BLOCK_BYTES = 1 << 20


def upload(s3: S3, bucket: str, key: str, path: Path, stored: Stored, etag: str | None) -> str:
    """Put the file there in the place of the content with that ETag (None: where nothing is); returns the new ETag.
    Raises `Lost` where another content is there; one that is the file's own, since an answer got lost, is none."""
    size = path.stat().st_size
    if size <= PART_BYTES:
        return fence.swap(s3, bucket, key, path.read_bytes(), etag, stored)
    number = s3.start_parts(bucket, key, stored)
    try:
        etags = _put_parts(s3, bucket, key, number, path, max(PART_BYTES, -(-size // MAX_PARTS)))
        return s3.end_parts(bucket, key, number, etags, absent=etag is None, etag=etag)
    except (NotAsExpected, Missing) as error:
        found = s3.head(bucket, key)
        if found is not None and found.size == size and _same(s3, bucket, key, found.etag, path):
            return found.etag
        _drop(s3, bucket, key, number)
        message = f"s3://{bucket}/{key} was written by another process. Run the same command again."
        raise Lost(message, None) from error
    except BaseException:
        _drop(s3, bucket, key, number)
        raise


def _drop(s3: S3, bucket: str, key: str, number: str) -> None:
    with contextlib.suppress(PenstockError):  # what stays of an upload is removed by the bucket's own rule
        s3.drop_parts(bucket, key, number)


def _put_parts(s3: S3, bucket: str, key: str, upload: str, path: Path, size: int) -> list[str]:
    with path.open("rb") as file:
        return [s3.put_part(bucket, key, upload, n, data) for n, data in enumerate(_blocks(file, size), 1)]


def _blocks(file: BinaryIO, size: int) -> Iterator[bytes]:
    while data := file.read(size):
        yield data


def _same(s3: S3, bucket: str, key: str, etag: str, path: Path) -> bool:
    at = 0
    with path.open("rb") as file:
        for data in _blocks(file, BLOCK_BYTES):
            if s3.get(bucket, key, at, at + len(data), etag=etag).data != data:
                return False
            at += len(data)
    return True
