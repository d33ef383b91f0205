"""A lane's chunks: how the progress object holds them without being large.

A chunk over 64 kB (a batch of the outbox) is an object of its own. Small ones stand in the progress object until they
are many; then all small ones go into one object, the base, and the progress object begins anew with what changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec

from penstock.connectors.s3.store.home import LARGE_BYTES, Home
from penstock.connectors.s3.store.progress import Progress, folder, object_name
from penstock.engine.errors import Corrupt
from penstock.engine.plan import Epoch

LARGE = 64 << 10
INLINE = 128 << 10
"""Bytes of small chunks in the progress object, unless the base is more than twice as large: it is written with every
commit, and S3 takes as long for 100 kB as for one."""

Objects = list[tuple[str, bytes]]
"""Name in the lane's folder → what must be there before the progress object names it."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(dict[str, bytes]).decode


async def read_chunks(home: Home, lane: int, progress: Progress) -> dict[str, bytes]:
    """All chunks that the progress tells of. Raises `Corrupt` where an object is gone."""
    names = [progress.base, *progress.refs.values()]
    base, *large = await asyncio.gather(*(_read(home, lane, name) for name in names))
    found = _decode(base) if progress.base else {}
    for name, value in progress.changes.items():
        if value:
            found[name] = value
        else:
            found.pop(name, None)
    return found | dict(zip(progress.refs, large, strict=True))


async def _read(home: Home, lane: int, name: str) -> bytes:
    if not name:
        return b""
    found = await home.read(folder(lane) + name, LARGE_BYTES)
    if found is None:
        raise Corrupt(f"{home}{folder(lane)}{name} is gone. Restore it, or start with --fresh.")
    return found.data


class Chunks:
    """The owner's copy. `garbage`: objects that no progress names once the next commit is there."""

    def __init__(self, values: dict[str, bytes], progress: Progress) -> None:
        self.values = values
        self.garbage: list[str] = []
        self._based = set(values) if progress.base else set[str]()
        """Names that may stand in the base: deleting one must be said."""

    def change(
        self, progress: Progress, seq: int, epoch: Epoch, chunks: Mapping[str, bytes]
    ) -> tuple[Progress, Objects]:
        """The progress with these chunks, an empty value deletes, and the objects that it then names."""
        changes, refs = dict(progress.changes), dict(progress.refs)
        objects: Objects = []
        for name, value in chunks.items():
            self._drop(refs.pop(name, ""))
            changes.pop(name, None)
            if value:
                self.values[name] = value
            else:
                self.values.pop(name, None)
            if len(value) > LARGE:
                refs[name] = object_name(seq, epoch, "chunk")
                objects.append((refs[name], value))
            elif value or name in self._based:
                changes[name] = value
        progress = msgspec.structs.replace(progress, changes=changes, refs=refs)
        if _size(changes) <= max(INLINE, progress.base_size // 2):
            return progress, objects
        return self._rebased(progress, seq, epoch, objects)

    def _rebased(self, progress: Progress, seq: int, epoch: Epoch, objects: Objects) -> tuple[Progress, Objects]:
        small = {name: value for name, value in self.values.items() if name not in progress.refs}
        self._drop(progress.base)
        self._based = set(small)
        name, data = object_name(seq, epoch, "base"), _encode(small)
        new = msgspec.structs.replace(progress, base=name, base_size=len(data), changes={})
        return new, [*objects, (name, data)]

    def _drop(self, name: str) -> None:
        if name:
            self.garbage.append(name)


def _size(changes: Mapping[str, bytes]) -> int:
    return sum(len(name) + len(value) for name, value in changes.items())
