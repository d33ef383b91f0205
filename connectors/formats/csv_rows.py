"""CSV → `Raw` records. The first row names the columns; values are strings; fields may hold line breaks in quotes."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import BinaryIO

import msgspec

from penstock.connectors.base import Raw
from penstock.connectors.formats.compression import blocks
from penstock.connectors.formats.json_lines import broken, invalid_utf8
from penstock.connectors.formats.lines import (
    BOM,
    MAX_RECORD_BYTES,
    BareLines,
    Line,
    Lines,
    Long,
    Part,
    bare_lines,
    lead,
)
from penstock.connectors.formats.names import delimiter_of
from penstock.engine.errors import SpecError
from penstock.engine.items import Position
from penstock.engine.plan import Split

_OLD_ENDS = "lines end in CR alone, as old Macs wrote them; save the file with LF or CRLF"


class Header(msgspec.Struct, frozen=True):
    columns: tuple[str, ...]
    at: int


def has_quotes(file: BinaryIO) -> bool:
    """Whether a quote character stands anywhere in the file: then only a reader from the start knows where rows end.

    One sequential pass. Raises `OSError`.
    """
    return any(b'"' in block for block in blocks(file, None))


def check_header(file: BinaryIO, path: str, compression: str | None) -> None:
    """Raises `SpecError` where the header can't be read or names a column twice."""
    header(file, path, compression, MAX_RECORD_BYTES)


def header(file: BinaryIO, path: str, compression: str | None, limit: int) -> Header | None:
    """The first row of the file; None: it has no row. Raises `SpecError`, `OSError`."""
    first = next(_framed(bare_lines(blocks(file, compression), 0, None, limit), delimiter_of(path), limit), None)
    if first is None:
        return None
    at, text = first
    if isinstance(text, Line):
        ends = b"\r" in text.data and b'"' not in text.data
        why = text.broken or (_OLD_ENDS if ends else "it is too long")
        raise SpecError(f"{path}: the header row cannot be read: {why}")
    text = text.removeprefix(BOM)
    if (error := invalid_utf8(text)) is not None:
        raise SpecError(f"{path}: the header row is {error}")
    columns = _values(text, delimiter_of(path))
    if b"\r" in text and (isinstance(columns, str) or b'"' not in text):
        raise SpecError(f"{path}: the header row cannot be read: {_OLD_ENDS}")
    if isinstance(columns, str):
        raise SpecError(f"{path}: the header row cannot be read: {columns}")
    twice = next((name for name in columns if columns.count(name) > 1), None)
    if twice is not None:
        raise SpecError(f"{path}: the header names the column {twice!r} twice: rename one")
    return Header(tuple(columns), at)


def records(file: BinaryIO, split: Split, start: int, limit: int) -> Iterator[Raw]:
    """The rows of `split` from position `start` on. Raises `OSError`.

    A split that begins inside the file is one that the plan cut: the file has no quotes, so lines are rows. Any other
    is read from its first byte, whatever `start` is.
    """
    csv.field_size_limit(max(limit, csv.field_size_limit()))
    delimiter = delimiter_of(split.uri)
    try:
        head = header(file, split.uri, split.compression, limit)
    except SpecError as error:
        if start == 0:
            yield Raw(Position(split.id, split.ordinal, 0), split.object_id, error=("source_lost", str(error)))
        return
    if head is None:
        return
    begin = start if split.start else 0
    bare = bare_lines(blocks(file, split.compression, lead(begin)), begin, split.end, limit)
    for at, text in _framed(bare, delimiter, limit):
        if at < start or at <= head.at:
            continue
        place = Position(split.id, split.ordinal, at)
        if isinstance(text, Line):
            yield broken(split, place, text, limit)
        else:
            yield _row(split, place, text, head.columns, delimiter)


def _row(split: Split, place: Position, text: bytes, columns: tuple[str, ...], delimiter: str) -> Raw:
    if not text.isascii() and (error := invalid_utf8(text)) is not None:
        return Raw(place, split.object_id, text, error=("malformed", error))
    values = _values(text, delimiter)
    if isinstance(values, str):
        return Raw(place, split.object_id, text, error=("malformed", values))
    if len(values) != len(columns):
        message = f"the row has {len(values)} columns, the header has {len(columns)}"
        return Raw(place, split.object_id, text, error=("malformed", message))
    return Raw(place, split.object_id, row_json=msgspec.json.encode(dict(zip(columns, values, strict=True))))


def _values(text: bytes, delimiter: str) -> list[str] | str:
    """The fields of one row, or why they can't be told."""
    row = text.decode()
    if '"' not in row and "\r" not in row:
        return row.split(delimiter)
    try:
        return next(csv.reader([row], delimiter=delimiter, strict=True))
    except (csv.Error, StopIteration) as error:
        outside = str(error).startswith("new-line")  # LF is none: it ends the row
        return "a CR stands outside of quotes" if outside else f"the row's quotes cannot be read: {error}"


def _framed(physical: BareLines, delimiter: str, limit: int) -> Lines:
    """Physical lines → rows: a line break inside quotes belongs to the row. Blank lines between rows are dropped; tabs
    alone are no blank line where they part the fields."""
    divider = delimiter.encode()
    quotes = _Quotes(divider)
    row: _Row | None = None
    fresh = True  # what comes next begins a line
    for at, text in physical:
        if isinstance(text, Line):  # the stream broke here
            yield (at if row is None else row.at), text
            row = None
            continue
        if row is None and isinstance(text, bytes) and b'"' not in text:
            if text and (divider in text or not text.isspace()):
                yield at, _bounded(text, limit)
            continue
        if row is None:
            row = _Row(at, limit)
        elif fresh:
            row.add(b"\n")
        data, ended = (text.data, text.ended) if isinstance(text, Part) else (text, True)
        row.add(data)
        quotes.see(data, fresh=fresh)
        fresh = ended
        if ended and not quotes.open:
            yield row.at, row.whole()
            row = None
    if row is not None:
        yield row.at, row.whole()


def _bounded(text: bytes, limit: int) -> bytes | Line:
    """A row without the CR at its end, which the limit doesn't count."""
    row = text.removesuffix(b"\r")
    return row if len(row) <= limit else Long([text]).line()


class _Row:
    """A row that is being read. Where it grows over the limit, only what a `Long` keeps is held."""

    def __init__(self, at: int, limit: int) -> None:
        self.at = at
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0
        self._long: Long | None = None

    def add(self, data: bytes) -> None:
        if self._long is not None:
            self._long.add(data)
            return
        self._parts.append(data)
        self._size += len(data)
        if self._size > self._limit + 1:  # a CR at its end is no part of it
            self._long, self._parts = Long(self._parts), []

    def whole(self) -> bytes | Line:
        if self._long is not None:
            return self._long.line()
        return _bounded(b"".join(self._parts), self._limit)


class _Quotes:
    """Whether a quote is open behind what was seen. A quote opens a field only as its first character; doubled inside
    quotes it is a character."""

    def __init__(self, delimiter: bytes) -> None:
        self.open = False
        self._delimiter = delimiter
        self._before = b""
        """The last character of this line so far."""
        self._closed = -2
        """Where a quote was closed, from the beginning of what is seen next: one right behind it opens it again."""

    def see(self, data: bytes, *, fresh: bool) -> None:
        """`fresh`: `data` begins a line; else it goes on with one."""
        if fresh:
            self._before, self._closed = b"", -2
        at = 0
        while (quote := data.find(b'"', at)) >= 0:
            if self.open:
                self.open, self._closed = False, quote
            else:
                self.open = quote == self._closed + 1 or self._opens(data, quote, fresh)
            at = quote + 1
        self._before = data[-1:] or self._before
        self._closed -= len(data)

    def _opens(self, data: bytes, quote: int, fresh: bool) -> bool:
        before = data[quote - 1 : quote] if quote else self._before
        return before in (b"", self._delimiter) or (fresh and data[:quote] == BOM)
