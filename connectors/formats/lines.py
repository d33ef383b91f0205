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
    carry: list[bytes] = []
    carried = 0
    long: Long | None = None
    at = offset  # of the first byte of the line being read
    stop = end if end is not None else 1 << 62
    current: bytes | None = block
    while current is not None:
        cut = current.find(b"\n")
        if cut < 0:
            if long is not None:
                long.add(current)
                if bare:
                    yield at, Part(current)
            else:
                carry.append(current)
                carried += len(current)
                if carried > limit + 2:
                    if bare:
                        yield at, Part(b"".join(carry))
                    long, carry = Long(carry), []
        else:
            begin = 0
            if long is not None:
                long.add(current[:cut])
                yield at, Part(current[:cut], ended=True) if bare else long.line()
                at += long.length + 1
                long, begin = None, cut + 1
                cut = current.find(b"\n", begin)
            if at >= stop:
                return
            while cut >= 0:
                piece = current[begin:cut]
                if carry:
                    piece = b"".join((*carry, piece))
                    carry = []
                text = piece[:-1] if not bare and piece.endswith(b"\r") else piece
                if bare or (text and not text.isspace()):
                    yield at, text if bare or len(text) <= limit else _long(piece)
                at += len(piece) + 1
                if at >= stop:
                    return
                begin = cut + 1
                cut = current.find(
                    b"\n", begin
                )  # not `split`, which looks at each byte by itself: with long lines slow
            rest = current[begin:]
            carry, carried = ([rest] if rest else []), len(rest)
        try:
            current = next(blocks, None)
        except Broken as error:
            yield at, Line(data=b"".join(carry)[:HEAD_BYTES], length=carried, broken=str(error))
            return
    yield from _last(at, b"".join(carry), long, limit, bare)


def _last(at: int, text: bytes, long: Long | None, limit: int, bare: bool) -> BareLines:
    """The line that the end of the object ends."""
    if long is not None:
        yield at, Part(b"", ended=True) if bare else long.line()
        return
    if bare:
        if text:
            yield at, text
    elif text and not text.isspace():
        line = text.removesuffix(b"\r")
        yield at, line if len(line) <= limit else _long(text)


def _long(text: bytes) -> Line:
    return Long([text]).line()
