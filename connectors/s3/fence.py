"""Conditional puts as a fence: one object that changes only by compare-and-swap, and objects that are made once.

What bites, and what is done here:

* A put whose answer got lost is sent again (by the client below us, or by us) and is then told 412, though it
  succeeded. So on 412 the object is read back: where it holds exactly our bytes, it was us. Callers put something
  unique into every body; so no two writers ever send the same bytes, and no ETag (a hash of the bytes, on some stores)
  ever returns.
* AWS may answer 409 (`ConditionalRequestConflict`) to two writers at once: neither is decided, so it is tried again.
* A store that ignores the conditions looks like one that keeps them. `prove` finds it out.
* ETags are compared, never computed: that of an object uploaded in parts is no MD5.

Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable

from penstock.connectors.s3.client import PLAIN, S3, Got, Stored
from penstock.connectors.s3.errors import Missing, NotAsExpected
from penstock.engine.errors import PenstockError, Refused, Temporary

TRY_S = 10.0
"""How long an undecided put (409, 5xx, a lost connection) is tried again, on top of the client's own tries. A guess."""
PAUSE_S = 0.05
MAX_PAUSE_S = 1.0


class Lost(PenstockError):
    """Somebody else wrote the object meanwhile. `found`: what is there now; None: it was deleted."""

    def __init__(self, message: str, found: Got | None) -> None:
        self.found = found
        super().__init__(message)


def swap(
    s3: S3, bucket: str, key: str, data: bytes, etag: str | None, stored: Stored = PLAIN, try_s: float = TRY_S
) -> str:
    """Write `data` in the place of the content with that ETag (None: where nothing is); returns the new ETag.

    `data` must be unique. Raises `Lost` where another content is there, `Temporary` where it stays uncertain, and what
    the client raises.
    """
    deadline = time.monotonic() + try_s
    pause = PAUSE_S
    while True:
        try:
            return s3.put(bucket, key, data, absent=etag is None, etag=etag, stored=stored)
        except (NotAsExpected, Missing) as error:
            found = read(s3, bucket, key)
            if found is not None and found.data == data:
                return found.etag
            raise Lost(
                f"s3://{bucket}/{key} was written by another process. Read it and decide again.", found
            ) from error
        except Temporary:
            if time.monotonic() >= deadline:
                raise
            time.sleep(pause)
            pause = min(2 * pause, MAX_PAUSE_S)


def read(s3: S3, bucket: str, key: str) -> Got | None:
    """The whole object; None: there is none."""
    try:
        return s3.get(bucket, key)
    except Missing:
        return None


def prove(s3: S3, bucket: str, prefix: str, stored: Stored = PLAIN, *, parts: bool = False) -> None:
    """Try on a probe object that the store keeps its word; `parts`: with an upload in parts too, which ends in another
    request. Raises `Refused` where it ignores a condition."""
    key = f"{prefix}probe-{secrets.token_hex(8)}"
    try:
        etag = swap(s3, bucket, key, b"probe 1", None, stored)
        _must_fail(s3, bucket, "If-None-Match", lambda: s3.put(bucket, key, b"probe 2", absent=True, stored=stored))
        wrong = f'"{secrets.token_hex(16)}"'
        _must_fail(s3, bucket, "If-Match", lambda: s3.put(bucket, key, b"probe 3", etag=wrong, stored=stored))
        swap(s3, bucket, key, b"probe 4", etag, stored)
        if parts:
            _must_fail(s3, bucket, "If-None-Match of an upload in parts", lambda: _in_parts(s3, bucket, key, stored))
    finally:
        with contextlib.suppress(PenstockError):  # at worst eight bytes stay
            s3.delete(bucket, [key])


def _in_parts(s3: S3, bucket: str, key: str, stored: Stored) -> None:
    number = s3.start_parts(bucket, key, stored)
    try:
        s3.end_parts(bucket, key, number, [s3.put_part(bucket, key, number, 1, b"probe 5")], absent=True)
    finally:
        with contextlib.suppress(PenstockError):  # it became the object, or the bucket's own rule removes it
            s3.drop_parts(bucket, key, number)


def _must_fail(s3: S3, bucket: str, condition: str, put: Callable[[], object]) -> None:
    try:
        put()
    except NotAsExpected:
        return
    raise Refused(
        f"the store at {s3.where} ignores conditional puts ({condition}, bucket {bucket}): two processes could "
        "overwrite each other's results there. Use a store that keeps them, such as AWS S3, MinIO or versitygw."
    )
