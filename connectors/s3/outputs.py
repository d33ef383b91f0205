"""Finished outputs on S3, opened as files: by URL, a manifest as the objects that it names. Blocking."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO

import msgspec

from penstock.connectors.base import gone
from penstock.connectors.s3.client import S3, Listed, client
from penstock.connectors.s3.errors import Missing, NotAsExpected
from penstock.connectors.s3.ranges import Seekable
from penstock.connectors.s3.urls import Where, parsed
from penstock.engine.errors import Corrupt, Temporary

READ_BYTES = 4 << 20
"""Fetched at once: S3's first byte takes as long as 4 MB do on a link of some 100 MB/s."""
MANIFEST = "_manifest.json"


class _Entry(msgspec.Struct, frozen=True):
    key: str


class _Manifest(msgspec.Struct, frozen=True):
    """Or one of the lists that it names."""

    files: list[_Entry]
    lists: list[_Entry] = []


def objects(url: str) -> list[str]:
    """The URLs of the objects that hold an output's records: of a manifest those that it names. Raises `SpecError`."""
    where = parsed(url)
    if where.key.rpartition("/")[2] != MANIFEST:
        return [url]
    return [where.at(key).url for key in _files(where)]


def _files(where: Where) -> Iterator[str]:
    """What stands in its lists is older than what stands in itself."""
    try:
        data = client(where.endpoint, where.region).get(where.bucket, where.key).data
        found = msgspec.json.decode(data, type=_Manifest)
    except Missing as error:
        raise gone(where.url) from error
    except msgspec.MsgspecError as error:
        raise Corrupt(f"{where.url} cannot be read ({error}). Run the same command again.") from error
    for one in found.lists:
        yield from _files(where.at(one.key))
    yield from (one.key for one in found.files)


def suffix(url: str) -> str:
    """`.parquet`, `.csv`, … as the object's key ends."""
    name = parsed(url).key.rpartition("/")[2]
    return f".{name.rpartition('.')[2].lower()}" if "." in name else ""


def opened(url: str) -> BinaryIO:
    """The object as a seekable file of one content. Raises `SpecError` where it is gone."""
    where = parsed(url)
    s3 = client(where.endpoint, where.region)
    found = s3.head(where.bucket, where.key)
    if found is None:
        raise gone(url)
    return io.BufferedReader(_Ranges(s3, where.bucket, found), READ_BYTES)


class _Ranges(Seekable):
    """Reads by ranges, each only while the object is the one that was opened."""

    def __init__(self, s3: S3, bucket: str, found: Listed) -> None:
        super().__init__(found.size)
        self._s3 = s3
        self._bucket = bucket
        self._object = found

    def readinto(self, buffer: bytearray | memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        end = min(self._at + len(buffer), self._object.size)
        if end <= self._at:
            return 0
        try:
            data = self._s3.get(self._bucket, self._object.key, self._at, end, etag=self._object.etag).data
        except (Missing, NotAsExpected) as error:
            raise Temporary(f"s3://{self._bucket}/{self._object.key} changed while it was read. Try again.") from error
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
