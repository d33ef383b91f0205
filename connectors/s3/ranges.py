"""One pinned object as a file that formats can read: by ranged GETs, fetched ahead of the reader.

Two strategies: `StreamFile` for what is read from some place on (lines, compressed streams, and any small object),
`BlockFile` for what is read here and there (Parquet: its footer, then columns side by side).
"""

from __future__ import annotations

import io
import os
from collections import OrderedDict, deque
from concurrent.futures import Future
from typing import BinaryIO, cast

from penstock.connectors.s3.client import S3, threads
from penstock.connectors.s3.objects import Pinned, fetch

SMALL_BYTES = 1_000_000
"""An object up to this size is fetched by one GET."""
FIRST_BYTES = 256 * 1024
"""The first range after a seek: a CSV header or a look at the first line needs no more."""
RANGE_BYTES = 4 * 1024 * 1024
"""A range while reading on. A GET costs about 2 ms of CPU and 20–60 ms of waiting: at 4 MB neither shows."""
AHEAD = 2
"""Ranges under way beyond the one being read; with it 12 MB a lane."""
BLOCK_BYTES = 1024 * 1024
"""A block of a Parquet file: what its reader asks for at once (`parquet_rows.STREAM_BYTES`)."""
BLOCKS = 24
"""Blocks kept: columns read side by side, each in its own block."""

Bytes = Future[bytes]


def open_object(s3: S3, what: Pinned, format: str, end: int | None) -> RangeFile:
    """`end`: where the reader will probably stop (the split's end in bytes); nothing beyond it is fetched ahead."""
    if format == "parquet" and what.size > SMALL_BYTES:
        return BlockFile(s3, what)
    return StreamFile(s3, what, what.size if end is None or what.size <= SMALL_BYTES else min(end, what.size))


class Seekable(io.RawIOBase):
    """A place in an object of `size` bytes."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at


class RangeFile(Seekable):
    """What both ways of fetching share. Raises what `fetch` raises."""

    def __init__(self, s3: S3, what: Pinned) -> None:
        super().__init__(what.size)
        self.what = what
        self._s3 = s3

    @property
    def binary(self) -> BinaryIO:
        """This file, as formats know files."""
        return cast("BinaryIO", self)

    def _submit(self, start: int, end: int) -> Bytes:
        return threads().submit(fetch, self._s3, self.what, start, end)


class StreamFile(RangeFile):
    """Reads on from wherever it was sought to; ranges grow while it does."""

    def __init__(self, s3: S3, what: Pinned, until: int) -> None:
        super().__init__(s3, what)
        self._until = until
        """Of a small object its end: such a one is one range."""
        self._ranges: deque[tuple[int, int, Bytes]] = deque()
        """(start, end, bytes) in order, without gaps."""
        self._step = 0
        """Ranges begun since the last seek: the more, the longer they are."""
        self._reached = -1
        """Where the last range ends."""

    def begin(self, at: int) -> None:
        """Have the first range from `at` fetched."""
        if at < self.what.size:
            self._at = at
            self._reach()

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes: fewer at the end of a range, none at the end of the object."""
        if size < 0:
            return self.readall() or b""
        if self._at >= self.what.size:
            return b""
        self._reach()
        start, _, coming = self._ranges[0]
        piece = coming.result()[self._at - start : self._at - start + size]
        self._at += len(piece)
        return piece

    def close(self) -> None:
        self._drop()
        super().close()

    def _reach(self) -> None:
        """The first range holds the place; others behind it are under way."""
        while self._ranges and self._at >= self._ranges[0][1]:
            self._ranges.popleft()
        if self._ranges and self._at < self._ranges[0][0]:
            self._drop()
        if not self._ranges:
            self._more(0 if self.what.size <= SMALL_BYTES else self._at)
        while self._step > 1 and len(self._ranges) <= AHEAD and self._ranges[-1][1] < self._until:
            self._more(self._ranges[-1][1])

    def _more(self, start: int) -> None:
        if start in (self._until, 0) or start != self._reached:
            self._step = 0
        end = start + self._length(start)
        end = min(end, self._until) if start < self._until else min(end, self.what.size)
        self._ranges.append((start, end, self._submit(start, end)))
        self._step += 1
        self._reached = end

    def _length(self, start: int) -> int:
        if self._until - SMALL_BYTES <= start < self._until:
            return SMALL_BYTES
        return min(RANGE_BYTES, FIRST_BYTES << (2 * self._step))

    def _drop(self) -> None:
        for _, _, coming in self._ranges:
            coming.cancel()
        self._ranges.clear()


class BlockFile(RangeFile):
    """Blocks of one size, the latest kept; a block that follows one that is kept has the next fetched ahead."""

    def __init__(self, s3: S3, what: Pinned) -> None:
        super().__init__(s3, what)
        self._blocks: OrderedDict[int, Bytes] = OrderedDict()

    def read(self, size: int = -1, /) -> bytes:
        """All of `size` bytes, fewer at the end of the object only."""
        end = self.what.size if size < 0 else min(self.what.size, self._at + size)
        if self._at >= end:
            return b""
        numbers = range(self._at // BLOCK_BYTES, -(-end // BLOCK_BYTES))
        coming = [self._block(number) for number in numbers]
        data = b"".join(block.result() for block in coming)
        first = numbers.start * BLOCK_BYTES
        piece = data[self._at - first : end - first]
        self._at = end
        return piece

    def close(self) -> None:
        for block in self._blocks.values():
            block.cancel()
        self._blocks.clear()
        super().close()

    def _block(self, number: int) -> Bytes:
        reads_on = number not in self._blocks and number - 1 in self._blocks
        coming = self._ask(number)
        if reads_on and (number + 1) * BLOCK_BYTES < self.what.size:
            self._ask(number + 1)
        while len(self._blocks) > BLOCKS:
            self._blocks.popitem(last=False)
        return coming

    def _ask(self, number: int) -> Bytes:
        coming = self._blocks.get(number)
        if coming is None:
            start = number * BLOCK_BYTES
            coming = self._submit(start, min(self.what.size, start + BLOCK_BYTES))
            self._blocks[number] = coming
        self._blocks.move_to_end(number)
        return coming
