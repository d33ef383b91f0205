"""Encodings of a finished set: positions beyond the watermark that are done. Several are tried, the smallest wins.

The first byte names the encoding, so that later versions can add some. Positions grow and may have gaps (byte offsets,
compacted Kafka partitions), so nothing here counts them one by one.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from penstock.engine.errors import Corrupt

_EMPTY = b"\x00"
_DELTAS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_BITSET = 0x20
_MAX_BITS = 1 << 22
"""A bitset over a wider span is never the smallest, and must not be built (512 kB)."""


def encode(positions: Iterable[int], base: int) -> bytes:
    """`positions`: distinct, all >= `base` (the watermark). Order does not matter. Raises `Corrupt` where one is below:
    written down, it would stand for others, and items would be lost, or paid for twice."""
    ordered = np.fromiter(positions, dtype=np.int64)
    if ordered.size == 0:
        return _EMPTY
    ordered.sort()
    if ordered[0] < base:
        raise Corrupt(f"position {ordered[0]} is finished, but stands below the watermark, {base}")
    return min(_encodings(ordered - base), key=len)


def _encodings(offsets: npt.NDArray[np.int64]) -> list[bytes]:
    deltas = np.diff(offsets, prepend=0)
    largest = int(deltas.max())
    width = next(w for w in (1, 2, 4, 8) if largest < 1 << (8 * w))
    found = [bytes([width]) + deltas.astype(_DELTAS[width]).tobytes()]
    span = int(offsets[-1]) + 1
    if span <= _MAX_BITS and span // 8 < len(found[0]):
        bits = np.zeros(span, dtype=np.uint8)
        bits[offsets] = 1
        found.append(bytes([_BITSET]) + np.packbits(bits).tobytes())
    return found


def decode(data: bytes, base: int) -> list[int]:
    """The positions, ascending. Raises `Corrupt` for an unknown or damaged encoding."""
    if data in (b"", _EMPTY):
        return []
    kind, body = data[0], data[1:]
    if kind == _BITSET:
        return (np.flatnonzero(np.unpackbits(np.frombuffer(body, dtype=np.uint8))) + base).tolist()
    if kind not in _DELTAS or len(body) % kind:
        raise Corrupt(f"finished set: unknown encoding {kind} of {len(body)} bytes; written by a newer version?")
    deltas = np.frombuffer(body, dtype=_DELTAS[kind]).astype(np.int64)
    return (np.cumsum(deltas) + base).tolist()
