"""Results as Arrow tables, each value as it was: columns whose values go together have their type, others are text.

JSON lines are read twice, since only all of them say what a column holds. What pyarrow would make of a few thousand at
a time differs from batch to batch: days that are text become times, long numbers are rounded, and where a text follows
a number it gives up.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import msgspec

from penstock.connectors.writing.table_answers import NoCommonType, Shape
from penstock.connectors.writing.table_columns import common_kind, kind_of_json

Arrow = Any
"""A `pyarrow` table, batch or type: pyarrow is untyped."""
Lines = Callable[[], Iterator[bytes]]

BATCH_BYTES = 64 << 20
"""Of JSON; pyarrow takes blocks of less than 2 GB."""
_OURS = "penstock"
"""Its types are known to go together, and times are times: pyarrow sees what it is."""

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder(enc_hook=str).encode


class _Column:
    """What one column held so far."""

    def __init__(self) -> None:
        self.kinds: set[str] = set()
        self._shape: Shape | None = Shape()

    def learn(self, raw: bytes) -> None:
        kind = kind_of_json(raw)
        if kind is None:
            return
        nested = raw[:1] in (b"{", b"[")
        self.kinds.add("nested" if nested else kind)
        if nested and self._shape is not None:
            try:
                self._shape.learn(json.loads(raw))
            except (NoCommonType, RecursionError, ValueError):
                self._shape = None

    def type(self) -> Arrow:
        """None: nothing but null was there."""
        import pyarrow as pa

        if not self.kinds:
            return None
        if self.kinds == {"nested"} and self._shape is not None:
            with contextlib.suppress(NoCommonType):
                return self._shape.arrow()
        kinds = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64()}
        return kinds.get(common_kind(self.kinds), pa.string())


def of_lines(lines: Lines, rows: int) -> Iterator[Arrow]:
    """Record batches of at most `rows` rows. `lines`: all of them, from the first, at each call."""
    import pyarrow as pa
    import pyarrow.json as pj

    columns, count = _learnt(lines())
    types = {name: kind for name, column in columns.items() if (kind := column.type()) is not None}
    texts = [name for name, kind in types.items() if kind == pa.string() and columns[name].kinds != {"text"}]
    parse = pj.ParseOptions(explicit_schema=pa.schema(list(types.items())))
    for data in _blocks((_with_texts(line, texts) for line in islice(lines(), count)), rows):
        read = pj.ReadOptions(block_size=len(data) + 1)
        table = pj.read_json(pa.BufferReader(data), read_options=read, parse_options=parse)
        yield from table.combine_chunks().to_batches()


def _learnt(lines: Iterator[bytes]) -> tuple[dict[str, _Column], int]:
    columns: dict[str, _Column] = {}
    count = 0
    for line in lines:
        count += 1
        for name, raw in _decode(line).items():
            if name != _OURS:
                columns.setdefault(name, _Column()).learn(bytes(raw))
    return columns, count


def _with_texts(line: bytes, names: Sequence[str]) -> bytes:
    """The line with any JSON in these columns as the text that it is written in."""
    if not names:
        return line
    row = _decode(line)
    for name in names:
        raw = bytes(row.get(name, b"null"))
        if not raw.startswith(b'"') and raw != b"null":
            row[name] = msgspec.Raw(_encode(raw.decode()))
    return _encode(row)


def _blocks(lines: Iterator[bytes], rows: int) -> Iterator[bytes]:
    block: list[bytes] = []
    size = 0
    for line in lines:
        block.append(line)
        size += len(line)
        if len(block) == rows or size >= BATCH_BYTES:
            yield b"\n".join(block)
            block, size = [], 0
    if block:
        yield b"\n".join(block)


def joined(parts: Sequence[Arrow]) -> Arrow:
    """One table. Objects of a prefix learnt their columns each from its own rows: what doesn't go together is text."""
    import pyarrow as pa

    names = dict.fromkeys(name for part in parts for name in part.schema.names)
    apart = [name for name in names if _are_apart([p.schema.field(name) for p in parts if name in p.schema.names])]
    return pa.concat_tables([_as_text(part, apart) for part in parts], promote_options="permissive")


def _are_apart(fields: Sequence[Arrow]) -> bool:
    import pyarrow as pa

    try:
        pa.unify_schemas([pa.schema([field]) for field in fields], promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return True
    return False


def _as_text(table: Arrow, names: Sequence[str]) -> Arrow:
    import pyarrow as pa

    for name in names:
        at = table.schema.get_field_index(name)
        if at >= 0 and table.schema.types[at] != pa.string():
            texts = [None if value is None else _encode(value).decode() for value in table.column(at).to_pylist()]
            table = table.set_column(at, name, pa.array(texts, pa.string()))
    return table
