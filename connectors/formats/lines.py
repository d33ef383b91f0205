"""Blocks of bytes → lines with the offset of their first byte, fast and in flat memory.

The edges, said once: the first line's first byte is byte 0 even after a BOM; a range [start, end) holds the lines whose
first byte lies in it, so the line that crosses `end` belongs to it whole and the one that crosses `start` does not.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import cast

import msgspec

from penstock.connectors.formats.compression import Broken

BOM = b"\xef\xbb\xbf"
MAX_RECORD_BYTES = 8_000_000
"""Longest record that becomes an item: the largest request body that providers' batch files take is near it."""
HEAD_BYTES = 1_000_000
"""How much of a longer record a dead letter keeps."""


class Line(msgspec.Struct, frozen=True, gc=False):
    """A line that isn't simply text: too long (`data` holds the head, `length` and `digest` are of all before its LF),
    or where a stream broke (`broken` says how)."""

    data: bytes
    length: int
    digest: str = ""
    broken: str = ""


class Part(msgspec.Struct, frozen=True, gc=False):
    """A part of a bare line that grew over the limit, from its beginning on. ended: the line ends behind it."""

    data: bytes
    ended: bool = False


Lines = Iterator[tuple[int, "bytes | Line"]]
BareLines = Iterator[tuple[int, "bytes | Part | Line"]]


class Long:
    """A line that grew over the limit: only its head, length and hash are kept."""

    def __init__(self, parts: list[bytes]) -> None:
        self.head = b""
        self.length = 0
        self._hash = hashlib.blake2b(digest_size=16)
        for part in parts:
            self.add(part)

    def add(self, part: bytes) -> None:
        if len(self.head) < HEAD_BYTES:
            self.head += part[: HEAD_BYTES - len(self.head)]
        self.length += len(part)
        self._hash.update(part)

    def line(self) -> Line:
        return Line(data=self.head, length=self.length, digest=self._hash.hexdigest())


def lead(start: int) -> int:
    """Where the blocks for a range that begins at `start` must begin: one byte earlier, to see whether a line ends."""
    return max(0, start - 1)


def lines(blocks: Iterator[bytes], start: int, end: int | None, limit: int = MAX_RECORD_BYTES) -> Lines:
    """The non-blank lines of [start, end), without their ends (LF or CRLF). `blocks` begin at offset `lead(start)`.

    A line longer than `limit` bytes comes as `Line`; so does the place where `blocks` raises `Broken`. `OSError` passes
    through, after all whole lines.
    """
    found = _lines(blocks, start, end, limit, bare=False)
    return cast("Lines", found)  # parts come of bare lines only


def bare_lines(blocks: Iterator[bytes], start: int, end: int | None, limit: int) -> BareLines:
    """As `lines`, but blank ones come too and a CR at the end stays (CSV fields may hold both), and whoever reads says
    what is too long: a line comes whole, or in parts where it grows over the limit."""
    return _lines(blocks, start, end, limit, bare=True)


def _lines(blocks: Iterator[bytes], start: int, end: int | None, limit: int, *, bare: bool) -> BareLines:
    if end is not None and start >= end:
        return
    if start == 0:
        yield from _from_line_start(b"", blocks, 0, end, limit, bare)
        return
    with contextlib.suppress(Broken):  # broken before `start`: told there, not here
        yield from _from_middle(blocks, start, end, limit, bare)


def _from_middle(blocks: Iterator[bytes], start: int, end: int | None, limit: int, bare: bool) -> BareLines:
    offset = lead(start)
    for block in blocks:
        cut = block.find(b"\n") + 1
        if cut:
            rest = block[cut:]
            if end is None or offset + cut < end:
                yield from _from_line_start(rest, blocks, offset + cut, end, limit, bare)
            return
        offset += len(block)
        if end is not None and offset >= end:
            return


def _from_line_start(
    block: bytes, blocks: Iterator[bytes], offset: int, end: int | None, limit: int, bare: bool
) -> BareLines:
    """offset: of the first byte of `block`, with which a line begins."""
    stop = end if end is not None else 1 << 62
    at, line = offset, _Open(limit)
    current: bytes | None = block
    while current is not None:
        begin, cut = 0, current.find(b"\n")
        if cut >= 0 and line.long is not None:
            part = current[:cut]
            line.long.add(part)
            yield at, Part(part, ended=True) if bare else line.long.line()
            at += line.long.length + 1
            line, begin = _Open(limit), cut + 1
            cut = current.find(b"\n", begin) if at < stop else -1
        while cut >= 0 and at < stop:
            piece = line.ended(current[begin:cut])
            text = piece[:-1] if not bare and piece.endswith(b"\r") else piece
            if bare or (text and not text.isspace()):
                yield at, text if bare or len(text) <= limit else _long(piece)
            at += len(piece) + 1
            begin = cut + 1
            cut = current.find(b"\n", begin)  # not `split`, which looks at each byte by itself: with long lines slow
        if at >= stop:
            return
        grown = line.grow(current[begin:])
        if bare and grown is not None:
            yield at, Part(grown)
        try:
            current = next(blocks, None)
        except Broken as error:
            yield at, line.broken(error)
            return
    yield from _last(at, line, limit, bare)


class _Open:
    """A line that no block has ended yet. `long`: once it has grown over the limit."""

    def __init__(self, limit: int) -> None:
        self.long: Long | None = None
        self._limit = limit
        self._parts: list[bytes] = []
        self._length = 0

    def grow(self, piece: bytes) -> bytes | None:
        """By the rest of a block. Returns what a long line has grown by since it was last told; None: not long."""
        if self.long is not None:
            self.long.add(piece)
            return piece
        if piece:
            self._parts.append(piece)
            self._length += len(piece)
        if self._length <= self._limit + 2:  # its CRLF isn't counted
            return None
        whole = b"".join(self._parts)
        self._parts, self.long = [], Long([whole])
        return whole

    def ended(self, piece: bytes) -> bytes:
        """The whole of one that isn't long. The next line begins."""
        if not self._parts:
            return piece
        whole = b"".join((*self._parts, piece))
        self._parts, self._length = [], 0
        return whole

    def broken(self, error: Broken) -> Line:
        if self.long is not None:
            return Line(data=self.long.head, length=self.long.length, broken=str(error))
        return Line(data=b"".join(self._parts)[:HEAD_BYTES], length=self._length, broken=str(error))


def _last(at: int, line: _Open, limit: int, bare: bool) -> BareLines:
    """The line that the end of the object ends."""
    if line.long is not None:
        yield at, Part(b"", ended=True) if bare else line.long.line()
        return
    text = line.ended(b"")
    if bare:
        if text:
            yield at, text
    elif text and not text.isspace():
        bare_text = text.removesuffix(b"\r")
        yield at, bare_text if len(bare_text) <= limit else _long(text)


def _long(text: bytes) -> Line:
    return Long([text]).line()
