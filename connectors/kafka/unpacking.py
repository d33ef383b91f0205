"""A bound for what a compressed batch of records may become. The client unpacks it whole, whatever it says of itself: a
million bytes of zstd may hold thirty thousand million. Its process would end, and the next one read the same batch.

The client has no setting for it, so its own functions are replaced, in all its readers of batches. Snappy is left: it
makes a byte 21 at most.
"""

from __future__ import annotations

import gzip
import io
import mmap
import threading
from collections.abc import Callable
from typing import Any

import cramjam
from aiokafka import codec
from aiokafka.record import default_records, legacy_records

from penstock.engine.errors import Corrupt

MOST_BYTES = 64 << 20
"""Producers bound a batch before it is packed: at 1 MB unless told otherwise."""

Unpack = Callable[[Any], bytes]


def bound() -> None:
    """Again is no more than once."""
    for module in _readers():
        for name, unpack in _UNPACK.items():
            if hasattr(module, name):  # old batches know no zstd
                setattr(module, name, unpack)


def _readers() -> list[Any]:
    found: list[Any] = [default_records, legacy_records]
    try:
        from aiokafka.record._crecords import default_records as compiled
        from aiokafka.record._crecords import legacy_records as compiled_legacy
    except ImportError:  # a platform without the compiled ones
        return found
    return [*found, compiled, compiled_legacy]


def _bounded(plain: Unpack, most_times: int, bounded: Unpack) -> Unpack:
    """`most_times`: the format makes of a byte so many at most."""

    def unpack(payload: Any) -> bytes:
        return plain(payload) if len(payload) * most_times <= MOST_BYTES else bounded(payload)

    return unpack


def _gzip(payload: Any) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(payload)) as file:
        found = file.read(MOST_BYTES + 1)
    if len(found) > MOST_BYTES:
        raise _too_much()
    return found


def _into(unpack_into: Callable[[Any, Any], int]) -> Unpack:
    def unpack(payload: Any) -> bytes:
        room = _room()
        try:
            return room[: unpack_into(payload, room)]
        except cramjam.DecompressionError as error:
            if "whole buffer" in str(error):
                raise _too_much() from error
            raise

    return unpack


_rooms = threading.local()


def _room() -> mmap.mmap:
    """This thread's. It takes memory as far as something was ever written to it; a new one each time would take twice
    as long to fill (measured)."""
    if not hasattr(_rooms, "room"):
        _rooms.room = mmap.mmap(-1, MOST_BYTES)
    return _rooms.room


def _too_much() -> Corrupt:
    return Corrupt(f"a batch of records becomes more than {MOST_BYTES:,} bytes when it is unpacked")


_UNPACK = {
    "gzip_decode": _bounded(codec.gzip_decode, 1_032, _gzip),
    "lz4_decode": _bounded(codec.lz4_decode, 255, _into(cramjam.lz4.decompress_into)),
    "zstd_decode": _bounded(codec.zstd_decode, 32_768, _into(cramjam.zstd.decompress_into)),
}
