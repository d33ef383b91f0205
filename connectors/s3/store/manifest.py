"""`_manifest.json` below a prefix sink: exactly the objects that make it up. Who follows it never sees half a job.

Several processes may publish: each reads the manifest, then what lanes have made, then swaps. What lanes have made only
grows, so a later manifest never holds less than an earlier one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import msgspec

from penstock.connectors.s3 import fence
from penstock.connectors.s3.client import Stored
from penstock.connectors.s3.fence import Lost
from penstock.connectors.s3.store.progress import Final
from penstock.connectors.s3.store.run import Base, Life
from penstock.connectors.settings import S3Sink
from penstock.engine.errors import PenstockError

NAME = "_manifest.json"


class Entry(msgspec.Struct, frozen=True):
    """key: of the whole bucket."""

    key: str
    rows: int
    bytes: int
    sink: str


class Manifest(msgspec.Struct, frozen=True):
    """life: of the run (`run.RunMark`)."""

    run_id: str
    life: str
    sink: str
    rows: int
    bytes: int
    files: list[Entry]


def read(base: Base, key: str) -> tuple[Manifest | None, str | None]:
    """The manifest and its ETag. Something else that stands there is replaced."""
    found = fence.read(base.s3, base.bucket, key)
    if found is None:
        return None, None
    with contextlib.suppress(msgspec.MsgspecError):
        return msgspec.json.decode(found.data, type=Manifest), found.etag
    return None, found.etag


def publish(life: Life, sink: str, output: S3Sink, finals: Callable[[], list[Final]], stored: Stored) -> str:
    """Make the manifest tell of all finals; returns its key. Raises `Fenced` where the run was begun anew."""
    base, key = life.base, f"{output.prefix}{NAME}"
    while True:
        old, etag = read(base, key)
        new = _manifest(life, sink, old, finals())
        if new == old:
            return key
        life.check()
        data = msgspec.json.format(msgspec.json.encode(new), indent=1) + b"\n"
        try:
            fence.swap(base.s3, base.bucket, key, data, etag, stored)
        except Lost:
            continue
        _remove_older(base, output, old, new)
        return key


def _manifest(life: Life, sink: str, old: Manifest | None, finals: list[Final]) -> Manifest:
    entries = {e.key: e for e in old.files} if old is not None and old.life == life.name else {}
    entries |= {f.key: Entry(f.key, f.rows, f.bytes, sink) for f in finals}
    files = list(entries.values())
    return Manifest(life.run_id, life.name, sink, sum(f.rows for f in files), sum(f.bytes for f in files), files)


def _remove_older(base: Base, output: S3Sink, old: Manifest | None, new: Manifest) -> None:
    """What an earlier life of this run left to readers goes when there is something new."""
    if old is None or old.life == new.life:
        return
    ours = f"part-{old.life}-"
    keys = [e.key for e in old.files if e.key.startswith(output.prefix) and e.key.rpartition("/")[2].startswith(ours)]
    with contextlib.suppress(PenstockError):  # at worst they stay, and no manifest names them
        base.s3.delete(base.bucket, keys)
