"""JSON lines → `Raw` records. The JSON itself is not looked at here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from penstock.connectors.base import Raw
from penstock.connectors.formats.compression import blocks
from penstock.connectors.formats.lines import BOM, Line, lead, lines
from penstock.engine.items import Position
from penstock.engine.plan import Split


def records(file: BinaryIO, split: Split, start: int, limit: int) -> Iterator[Raw]:
    """The records of `split` from position `start` on. Raises `OSError`."""
    name, ordinal, obj = split.id, split.ordinal, split.object_id
    for at, text in lines(blocks(file, split.compression, lead(start)), start, split.end, limit):
        place = Position(name, ordinal, at)
        if at == 0 and isinstance(text, bytes):
            text = text.removeprefix(BOM)
            if not text or text.isspace():
                continue
        if not isinstance(text, bytes):
            yield broken(split, place, text, limit)
        elif text.isascii() or (error := invalid_utf8(text)) is None:
            yield Raw(place, obj, text)
        else:
            yield Raw(place, obj, text, error=("malformed", error))


def invalid_utf8(text: bytes) -> str | None:
    """Why `text` is no UTF-8; None: it is."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return f"not UTF-8: {error.reason} at byte {error.start} of the record; save the file as UTF-8"
    return None


def broken(split: Split, place: Position, line: Line, limit: int) -> Raw:
    """The dead letter's stuff of a line that is too long, or of the place where the stream broke."""
    if line.broken:
        error = ("source_lost", f"{split.uri}: {line.broken}; nothing after byte {place.position} can be read")
    else:
        error = ("too_large", f"the record has {line.length:,} bytes; the longest allowed has {limit:,}")
    return Raw(place, split.object_id, line.data, error=error, length=line.length, digest=line.digest)
