"""CSV → `Raw` records. The first row names the columns; values are strings; fields may hold line breaks in quotes."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import BinaryIO

import msgspec

from penstock.connectors.base import Raw
from penstock.connectors.formats.compression import blocks
from penstock.connectors.formats.json_lines import broken, invalid_utf8
from penstock.connectors.formats.lines import BOM, MAX_RECORD_BYTES, Line, Lines, Long, lead, lines
from penstock.connectors.formats.names import delimiter_of
from penstock.engine.errors import SpecError
from penstock.engine.items import Position
from penstock.engine.plan import Split


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
    first = next(_framed(lines(blocks(file, compression), 0, None, limit, bare=True), delimiter_of(path), limit), None)
    if first is None:
        return None
    at, text = first
    if isinstance(text, Line):
        raise SpecError(f"{path}: the header row cannot be read: {text.broken or 'it is too long'}")
    text = text.removeprefix(BOM)
    if (error := invalid_utf8(text)) is not None:
        raise SpecError(f"{path}: the header row is {error}")
    columns = _values(text, delimiter_of(path))
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
    bare = lines(blocks(file, split.compression, lead(begin)), begin, split.end, limit, bare=True)
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
    if '"' not in row:
        return row.split(delimiter)
    try:
        return next(csv.reader([row], delimiter=delimiter, strict=True))
    except (csv.Error, StopIteration) as error:
        return f"the row's quotes cannot be read: {error}"


def _framed(physical: Lines, delimiter: str, limit: int) -> Lines:
    """Physical lines → rows: a line break inside quotes belongs to the row. Blank lines between rows are dropped."""
    mark = delimiter.encode()
    begun = -1  # where the row with an open quote began
    parts: list[bytes] = []
    size = 0
    long: Long | None = None
    for at, text in physical:
        if isinstance(text, Line):
            yield (begun if parts or long else at), text
            begun, parts, size, long = -1, [], 0, None
            continue
        inside = bool(parts) or long is not None
        if not inside and b'"' not in text:
            if text and not text.isspace():
                yield at, text.removesuffix(b"\r")
            continue
        begun = begun if inside else at
        if long is not None:
            long.add(b"\n" + text)
        else:
            parts.append(text)
            size += len(text) + 1
            if size > limit + 2:
                long, parts = Long([b"\n".join(parts)]), []
        if not _open_after(text, mark, inside):
            yield begun, long.line() if long else b"\n".join(parts).removesuffix(b"\r")
            parts, size, long = [], 0, None
    if long is not None:
        yield begun, long.line()
    elif parts:
        yield begun, b"\n".join(parts)


def _open_after(text: bytes, delimiter: bytes, inside: bool) -> bool:
    """Whether a quote is open at the end of `text`. A quote opens a field only as its first character; doubled inside
    quotes it is a character."""
    at = 0
    while True:
        quote = text.find(b'"', at)
        if quote < 0:
            return inside
        at = quote + 1
        if inside:
            if text.startswith(b'"', at):
                at += 1
            else:
                inside = False
        elif quote == 0 or text[quote - 1 : quote] == delimiter or text[:quote] == BOM:
            inside = True
