"""Results that are larger than their topic takes: the record goes to an object on S3, a pointer stands in its place.

The pointer keeps key, headers and the block `penstock`; `answer` (or `response`) becomes
`{"too_large": {"url", "bytes", "blake2b"}}`: of the object, which holds the record as it would have been.

An object is put before the transaction that carries its pointer, under a name that says item, generation and content.
So a redo puts the same object again, an answer that never was committed is nobody's, and no pointer waits for its
object. Objects of such answers stay: a lifecycle rule of the bucket takes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Sequence

import msgspec

from penstock.connectors.base import OutRecord
from penstock.connectors.s3.client import Stored, client, threads
from penstock.connectors.s3.errors import Missing, NotAsExpected
from penstock.connectors.s3.urls import Where, parsed
from penstock.connectors.writing.record_structs import BatchLine
from penstock.engine.errors import Corrupt, SpecError

_MARK = b'"too_large"'
_BATCH_LINE = frozenset(BatchLine.__struct_fields__)


class Large(msgspec.Struct, frozen=True):
    where: Where
    data: bytes


class _Told(msgspec.Struct, frozen=True):
    url: str
    bytes: int
    blake2b: str


class _Pointer(msgspec.Struct, frozen=True):
    too_large: _Told


class _Head(msgspec.Struct, frozen=True):
    item_id: str
    generation: int


_top = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_head = msgspec.json.Decoder(_Head).decode
_pointer = msgspec.json.Decoder(_Pointer).decode
_encode = msgspec.json.Encoder().encode


class LargeObjects:
    """url: `s3://bucket/prefix/`, below which a folder of the run is made. Raises `SpecError` where it is none."""

    def __init__(self, url: str, run_id: str) -> None:
        where = parsed(url)
        self._folder = where.at(f"{where.key}{run_id}/")

    def pointer(self, record: OutRecord) -> tuple[OutRecord, Large]:
        """A result, and what goes to S3 for it."""
        top = _top(record.value)
        head, digest = _head(top["penstock"]), _digest(record.value)
        where = self._named(head, digest)
        told = _Pointer(_Told(where.url, len(record.value), digest))
        short = _encode({**top, _answer_of(top): told})
        return msgspec.structs.replace(record, value=short), Large(where, record.value)

    def followed(self, value: bytes) -> bytes:
        """The record that a pointer of ours stands for; any other as it is: an answer may say what it likes. Blocking.
        Raises `SpecError` where the object is gone, `Corrupt` where it is another, `Temporary`."""
        if _MARK not in value:
            return value
        try:
            top = _top(value)
            told = _pointer(top[_answer_of(top)]).too_large
            where = self._named(_head(top["penstock"]), told.blake2b)
        except (msgspec.MsgspecError, KeyError):
            return value
        if where.url != told.url:
            return value
        try:
            data = client(where.endpoint, where.region).get(where.bucket, where.key).data
        except Missing as error:
            raise SpecError(
                f"{told.url}, which holds a result too large for its topic, is gone. Restore it."
            ) from error
        if _digest(data) != told.blake2b:
            raise Corrupt(f"{told.url} is not the result that was put there. Restore that version of the object.")
        return data

    def _named(self, head: _Head, digest: str) -> Where:
        return self._folder.at(f"{self._folder.key}{head.item_id}-{head.generation}-{digest}.json")

    async def put(self, objects: Sequence[Large]) -> None:
        """All are there when this returns. Raises `Temporary`, `Refused`, `SpecError`."""
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(threads(), _put, one) for one in objects))


def _put(one: Large) -> None:
    with contextlib.suppress(NotAsExpected):  # it is there, with this content: its name says so
        s3 = client(one.where.endpoint, one.where.region)
        stored = Stored("application/json", one.where.sse, one.where.sse_kms_key_id)
        s3.put(one.where.bucket, one.where.key, one.data, absent=True, stored=stored)


def _answer_of(top: dict[str, msgspec.Raw]) -> str:
    return "response" if top.keys() == _BATCH_LINE else "answer"


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
