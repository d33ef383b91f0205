"""Objects (files, S3 objects) → splits: what each holds, by its name; whether they go together; where they are cut."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import BinaryIO

import msgspec

from penstock.connectors.base import Raw
from penstock.connectors.formats import csv_rows, json_lines, names, parquet_rows
from penstock.engine.errors import SpecError
from penstock.engine.plan import Split

MIN_PIECE_BYTES = 1_000_000
"""No split is cut smaller: opening one costs about as much as reading 0.2 MB (a guess)."""
PIECES_PER_LANE = 4
"""So that lanes of unequal speed can finish together."""

Records = Callable[[BinaryIO, Split, int, int], Iterator[Raw]]
READERS: dict[str, Records] = {
    "openai-batch": json_lines.records,
    "jsonl": json_lines.records,
    "csv": csv_rows.records,
    "parquet": parquet_rows.records,
}


class Found(msgspec.Struct, frozen=True):
    """One object of the input."""

    uri: str
    size: int
    object_id: str
    format: str
    """`blank` where a `.jsonl` object holds nothing but white space."""

    @property
    def compression(self) -> str | None:
        return None if self.format == "parquet" else names.compression_of(self.uri)


Open = Callable[[Found], AbstractContextManager[BinaryIO]]


def format_of(uri: str, size: int, look: Callable[[], str | None], setting: str) -> str | None:
    """What an object holds, by its name; `look` looks into one whose name says JSON. None: an empty object whose name
    says nothing (`_SUCCESS`). `setting` names what the user may narrow. Raises `SpecError`."""
    match names.kind_of(uri):
        case "json":
            return look() or "blank"
        case None if size == 0:
            return None
        case None:
            raise SpecError(
                f"{uri}: the name does not say what it holds (.jsonl, .csv, .parquet; .gz or .zst behind it): "
                f"set source.format, or narrow {setting}"
            )
        case kind:
            return kind


def settled(found: Sequence[Found]) -> list[Found]:
    """The same, blank ones counted to what the others hold. Raises `SpecError` for a mix of requests and rows."""
    requests = next((one for one in found if one.format == "openai-batch"), None)
    rows = next((one for one in found if one.format not in {"openai-batch", "blank"}), None)
    if requests and rows:
        raise SpecError(
            f"{requests.uri} holds openai-batch requests and {rows.uri} holds rows: "
            "give them to two jobs, or set source.format"
        )
    shared = "openai-batch" if requests else "jsonl"
    return [msgspec.structs.replace(one, format=shared) if one.format == "blank" else one for one in found]


def piece_bytes(found: Sequence[Found], lanes_hint: int) -> int:
    """About how large a split should be, so that `lanes_hint` lanes have work."""
    total = sum(one.size for one in found)
    return max(MIN_PIECE_BYTES, -(-total // (max(1, lanes_hint) * PIECES_PER_LANE)))


def cut(one: Found, piece: int, open: Open, rows_are_lines: Callable[[Found], bool]) -> list[Split]:
    """The splits of one object. `rows_are_lines`: whether a CSV object can be read from its middle.

    Raises `SpecError` where a Parquet footer or a CSV header can't be read, and what `open` raises.
    """
    if one.format == "parquet":
        with open(one) as file:
            spans = parquet_rows.spans(file, one.uri, piece)
        return [_split(one, start, end, size, "rows") for start, end, size in spans]
    if one.format == "csv":
        with open(one) as file:
            csv_rows.check_header(file, one.uri, one.compression)
    if one.compression or one.size < 2 * piece or (one.format == "csv" and not rows_are_lines(one)):
        return [whole(one)]
    count = one.size // piece
    cuts = [one.size * n // count for n in range(count + 1)]
    return [_split(one, start, end, end - start, "bytes") for start, end in itertools.pairwise(cuts)]


def cut_among_others(one: Found, piece: int, open: Open, rows_are_lines: Callable[[Found], bool]) -> list[Split]:
    """An object that can't be cut (a Parquet file cut short, a CSV header that can't be read) is one split, whose
    reader says so in one record: one damaged object among others stops nobody."""
    try:
        return cut(one, piece, open, rows_are_lines)
    except SpecError:
        return [_split(one, 0, 1, one.size, "rows") if one.format == "parquet" else whole(one)]


def whole(one: Found) -> Split:
    """An object of bytes as one split."""
    return _split(one, 0, None if one.compression else one.size, one.size, "bytes")


def _split(one: Found, start: int, end: int | None, size: int, unit: str) -> Split:
    return Split(
        id=f"{one.object_id}#{start}-{'' if end is None else end}",
        object_id=one.object_id,
        ordinal=0,
        lane=0,
        uri=one.uri,
        start=start,
        end=end,
        unit=unit,
        format=one.format,
        compression=one.compression,
        size_bytes=size,
    )
