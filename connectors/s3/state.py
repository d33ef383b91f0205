"""The state on S3: each key an object, compare-and-swap by conditional puts."""

from __future__ import annotations

import functools
import secrets
from pathlib import Path
from typing import Literal

from penstock.connectors.documents import Absent, Conflict, Tag, check_key
from penstock.connectors.s3 import fence
from penstock.connectors.s3.client import S3, Stored, client
from penstock.connectors.s3.fence import Lost
from penstock.connectors.s3.store.upload import upload
from penstock.connectors.s3.urls import Where, parsed

_TOKEN_BYTES = 8
_HEAD = 2 * _TOKEN_BYTES + 1
"""Each object begins with a token of its own and a line break: so no two writes are alike, and one whose answer got
lost is told from another's (see `fence`)."""


class S3State:
    """Implements `state.State`. Raises `Refused` at the first conditional write where the store ignores conditions."""

    def __init__(self, where: Where) -> None:
        self._where = where
        self._root = root_of(where)

    @property
    def _s3(self) -> S3:
        return client(self._where.endpoint, self._where.region)

    def get(self, key: str) -> tuple[bytes, Tag] | None:
        found = fence.read(self._s3, self._where.bucket, self._root + check_key(key))
        return (found.data[_HEAD:], found.etag) if found is not None else None

    def put(self, key: str, value: bytes, expect: Tag | Literal[Absent.ABSENT] | None) -> Tag:
        name = self._root + check_key(key)
        data = secrets.token_hex(_TOKEN_BYTES).encode() + b"\n" + value
        if expect is None:
            return self._s3.put(self._where.bucket, name, data, stored=_stored(self._where))
        _prove(self._where, self._root)
        etag = expect if isinstance(expect, str) else None
        try:
            return fence.swap(self._s3, self._where.bucket, name, data, etag, _stored(self._where))
        except Lost as error:
            raise Conflict(
                f"state s3://{self._where.bucket}/{name} was written by another process. Read it and decide again."
            ) from error

    def list(self, prefix: str) -> list[str]:
        pages = self._s3.pages(self._where.bucket, self._root + prefix)
        keys = (one.key.removeprefix(self._root) for page in pages for one in page)
        return sorted(key for key in keys if not any(part.startswith(".") for part in key.split("/")))


def root_of(where: Where) -> str:
    """What the keys of everything in the state there begin with."""
    return f"{where.key.rstrip('/')}/" if where.key.strip("/") else ""


def put_file(url: str, key: str, path: Path) -> None:
    """Keep a large file as an object of the state at `url`, as it is, under a whole key that is new there."""
    where = parsed(url)
    upload(client(where.endpoint, where.region), where.bucket, key, path, _stored(where), None)


@functools.lru_cache(maxsize=64)
def _prove(where: Where, root: str) -> None:
    """Once a process and state."""
    fence.prove(client(where.endpoint, where.region), where.bucket, f"{root}.probe/", _stored(where))


def _stored(where: Where) -> Stored:
    return Stored(sse=where.sse, sse_kms_key_id=where.sse_kms_key_id)
