"""A spool: the committed records of one sink, one lane and one epoch, as they were decided.

A spool is a chain of batches, one a commit: a head (magic, count, bytes of values), then `count` index rows
(ordinal, position, sub, length), then the values, each with its newline. So assembly reads the index without parsing
JSON, and neighbours in the spool are copied in one piece.
What lies beyond the length that the progress log recorded does not exist.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from penstock.connectors.base import OutRecord
from penstock.engine.errors import Corrupt

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Index = NDArray[np.void]

_MAGIC = b"PSB1"
_HEAD = struct.Struct("<4sIQ")
_ROW = struct.Struct("<IqII")
ROW_FIELDS = [("ordinal", "<u4"), ("position", "<i8"), ("sub", "<u4"), ("length", "<u4")]
"""The index row as numpy reads it. `length` counts the newline."""


class Spool(msgspec.Struct, frozen=True):
    path: Path
    length: int
    """Committed bytes."""


def pack_batch(records: Sequence[OutRecord]) -> bytes:
    """The bytes that one commit appends."""
    rows = [_ROW.pack(r.ordinal, r.position, r.sub, len(r.value) + 1) for r in records]
    values = b"\n".join([r.value for r in records]) + b"\n"
    return b"".join((_HEAD.pack(_MAGIC, len(records), len(values)), *rows, values))


def unpack_batch(data: bytes, name: str) -> Iterator[OutRecord]:
    """The records of one batch, without their keys and headers. `name`: where it stands. Raises `Corrupt`."""
    magic, count, size = _HEAD.unpack(data[: _HEAD.size].ljust(_HEAD.size, b"\0"))
    at = _HEAD.size + count * _ROW.size
    if magic != _MAGIC or at + size != len(data):
        raise Corrupt(f"{name} is damaged. Restore it from a backup, or start with --fresh.")
    for ordinal, position, sub, length in _ROW.iter_unpack(data[_HEAD.size : at]):
        yield OutRecord(ordinal, position, data[at : at + length - 1], sub)
        at += length


def iter_index(spool: Spool) -> Iterator[tuple[Index, int]]:
    """Each batch's index rows and the file offset of its first value. Raises `Corrupt` where the chain breaks."""
    import numpy as np

    dtype = np.dtype(ROW_FIELDS)
    fd = os.open(spool.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check_size(fd, spool)
        at = 0
        while at < spool.length:
            magic, count, size = _HEAD.unpack(os.pread(fd, _HEAD.size, at).ljust(_HEAD.size, b"\0"))
            values = at + _HEAD.size + count * _ROW.size
            if magic != _MAGIC or values + size > spool.length:
                raise Corrupt(f"{spool.path} is damaged at byte {at}. Restore it from a backup, or start with --fresh.")
            yield np.frombuffer(os.pread(fd, count * _ROW.size, at + _HEAD.size), dtype), values
            at = values + size
    finally:
        os.close(fd)


def iter_values(spool: Spool) -> Iterator[bytes]:
    """The committed values (without newline) in the order in which they were decided."""
    with spool.path.open("rb") as file:
        for rows, offset in iter_index(spool):
            file.seek(offset)
            for length in rows["length"].tolist():
                yield file.read(length)[:-1]


def _check_size(fd: int, spool: Spool) -> None:
    size = os.fstat(fd).st_size
    if size < spool.length:
        raise Corrupt(
            f"{spool.path} has {size} bytes where {spool.length} were committed. Restore it from a backup, "
            "or start with --fresh."
        )
