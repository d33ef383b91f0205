"""`_manifest.json` below a prefix sink: exactly the objects that make it up. Who follows it never sees half a job.

It is a copy of what is told (see `told`). Several processes may publish: each reads the manifest, then adds to the
truth, then swaps the manifest; what is told only grows, so a later manifest never holds less than an earlier one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import msgspec

from penstock.connectors.filestore.disk import Faults
from penstock.connectors.s3 import fence
from penstock.connectors.s3.client import Stored
from penstock.connectors.s3.fence import Lost
from penstock.connectors.s3.store import told
from penstock.connectors.s3.store.parts import Made
from penstock.connectors.s3.store.run import Base, Life, refuse_another
from penstock.connectors.s3.store.told import LISTS, PUBLISH_STEPS, Entry, FileList, Told
from penstock.engine.errors import PenstockError

NAME = "_manifest.json"
STEPS = (*PUBLISH_STEPS, "publish.written")


class Manifest(msgspec.Struct, frozen=True):
    """life: of the run (`run.RunMark`). rows, bytes: of all files, those in lists too."""

    run_id: str
    life: str
    sink: str
    rows: int
    bytes: int
    files: list[Entry]
    lists: list[FileList] = []


def read(base: Base, key: str) -> tuple[Manifest | None, str | None]:
    """The manifest and its ETag. Something else that stands there is replaced."""
    found = fence.read(base.s3, base.bucket, key)
    if found is None:
        return None, None
    with contextlib.suppress(msgspec.MsgspecError):
        return msgspec.json.decode(found.data, type=Manifest), found.etag
    return None, found.etag


def publish(life: Life, sink: str, prefix: str, made: Mapping[int, Made], stored: Stored, faults: Faults) -> str:
    """Make the manifest tell of what these lanes have made; returns its key. Raises `Fenced` where the run was begun
    anew, `Refused` where another run's manifest stands there, and the prefix was not made ours (`--fresh`)."""
    base, key = life.base, f"{prefix}{NAME}"
    while True:
        old, etag = read(base, key)
        if old is not None and old.run_id != life.run_id and life.owner(prefix) != life.run_id:
            refuse_another(base, prefix, old.run_id, life.run_id)
        before = Told(lists=old.lists, files=old.files) if old is not None and old.life == life.name else Told()
        new = _manifest(life, sink, told.tell(life, sink, prefix, made, before, stored, faults))
        if new == old:
            return key
        life.check()
        data = msgspec.json.format(msgspec.json.encode(new), indent=1) + b"\n"
        try:
            fence.swap(base.s3, base.bucket, key, data, etag, stored)
        except Lost:
            continue
        faults("publish.written")
        if old is not None and old.life != new.life:
            _remove(base, prefix, old)
        return key


def _manifest(life: Life, sink: str, what: Told) -> Manifest:
    both = [*what.lists, *what.files]
    rows, size = sum(one.rows for one in both), sum(one.bytes for one in both)
    return Manifest(life.run_id, life.name, sink, rows, size, what.files, what.lists)


def keys(base: Base, of: Manifest) -> Iterator[str]:
    """Of all objects that it tells of. Raises `Missing` where a list is gone."""
    return told.keys(base.home(of.life), Told(lists=of.lists, files=of.files))


def _remove(base: Base, prefix: str, old: Manifest) -> None:
    """What an earlier life of this output left to readers goes when there is something new."""
    ours = f"part-{old.life}-"
    with contextlib.suppress(PenstockError):  # at worst they stay, and no manifest names them
        found = [key for key in keys(base, old) if key.rpartition("/")[2].startswith(ours)]
        lists = [one.key for one in old.lists if one.key.startswith(f"{prefix}{LISTS}")]
        base.s3.delete(base.bucket, [*(key for key in found if key.startswith(prefix)), *lists])
