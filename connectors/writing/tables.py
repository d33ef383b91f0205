"""Records as tables: Parquet and CSV out, and any finished output back as JSON lines.

Both formats need to know all columns before the first row is written, so results are read twice: once to learn the
kept columns' types, once to write. A block of rows is held in memory, never the table.
"""

from __future__ import annotations

import csv
import datetime
import decimal
import io
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, TextIO

import msgspec

from penstock.connectors.base import gone
from penstock.connectors.writing.record_structs import BatchLine
from penstock.connectors.writing.records import usd
from penstock.connectors.writing.table_columns import (
    BATCH,
    FIXED,
    PENSTOCK,
    Column,
    Layout,
    Line,
    RowLine,
    as_row,
    columns_in,
    decode_line,
)
from penstock.engine.errors import SpecError, Temporary

Array = Any
"""A `pa.Array`, `pa.RecordBatch` or `pa.DataType`: pyarrow brings no types."""
Values = Callable[[], Iterator[bytes]]

ROW_GROUP_ROWS = 16_384
ROW_GROUP_BYTES = 32 << 20
"""Of JSON: a row group is written when either is reached. It bounds memory, and is large enough to compress well."""
READ_ROWS = 1024
LONGEST_FIRST = 16 << 20
"""Bytes of a first line that are looked at. Ours are shorter: a dead letter holds a megabyte of its original."""


# writing


def parquet_writer(sink: str, values: Values) -> Callable[[Path], ParquetWriter]:
    """Opens writers of one sink's parts. `values`: all records, for learning the columns."""
    layout = learn(sink, values)
    table = Table(sink, layout, layout.answer_type() if sink == "results" else None)
    return lambda path: ParquetWriter(path, table)


def csv_writer(sink: str, values: Values) -> Callable[[Path], CsvWriter]:
    table = Table(sink, learn(sink, values), None)
    return lambda path: CsvWriter(path, table)


def learn(sink: str, values: Values) -> Layout:
    layout = Layout()
    if sink == "results":
        for value in values():
            layout.learn(value)
    return layout


class Table:
    """One table's columns in order, and how a line fills them."""

    def __init__(self, sink: str, layout: Layout, answer: Array | None) -> None:
        self.sink = sink
        self.kept = layout.kept()
        self.answer = answer
        self.fixed = FIXED.get(sink) or (BATCH if layout.batch else PENSTOCK)
        self.has_answer = sink == "results" and not layout.batch
        self._getters = [c.get() for c in self.fixed]

    @property
    def names(self) -> list[str]:
        own = [c.name for c in self.kept.values()] + (["answer"] if self.has_answer else [])
        return own + [c.name for c in self.fixed]

    def columns(self, lines: Sequence[Line]) -> Iterator[tuple[Column, list[object]]]:
        """Each column with its values; the user's as JSON text, ours as the structs hold them."""
        if self.has_answer:
            rows = [as_row(line) for line in lines if isinstance(line, RowLine | BatchLine)]
            for name, column in self.kept.items():
                yield column, [row.kept.get(name) for row in rows]
            yield Column("answer", ("answer",), "text", ours=False), [row.answer for row in rows]
        for column, get in zip(self.fixed, self._getters, strict=True):
            yield column, list(map(get, lines))


class ParquetWriter:
    def __init__(self, path: Path, table: Table) -> None:
        import pyarrow.parquet as pq

        self._table = table
        self._lines: list[Line] = []
        self._size = 0
        self._writer = pq.ParquetWriter(path, self._batch().schema, compression="zstd")

    def write(self, values: list[bytes]) -> None:
        self._lines += [decode_line(self._table.sink, v) for v in values]
        self._size += sum(map(len, values))
        if len(self._lines) >= ROW_GROUP_ROWS or self._size >= ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._lines:
            self._writer.write_batch(self._batch())
            self._lines, self._size = [], 0

    def _batch(self) -> Array:
        import pyarrow as pa

        arrays, names = list[pa.Array](), list[str]()
        for column, values in self._table.columns(self._lines):
            names.append(column.name)
            if column.name == "answer" and self._table.answer is not None:
                arrays.append(pa.array([_loads(v) for v in values], self._table.answer))
            else:
                arrays.append(_array(column, values))
        return pa.RecordBatch.from_arrays(arrays, names=names)

    def close(self) -> None:
        self._flush()
        self._writer.close()


def _loads(value: object) -> object:
    return json.loads(bytes(value)) if isinstance(value, msgspec.Raw) else None


def _array(column: Column, values: Sequence[object]) -> Array:
    import pyarrow as pa

    match column.kind:
        case "text":
            return pa.array(values if column.ours else [_text(v) for v in values], pa.string())
        case "json":
            return pa.array([_json_text(v) for v in values], pa.string())
        case "int":
            return pa.array(values if column.ours else [_scalar(v) for v in values], pa.int64())
        case "float":
            return pa.array(values if column.ours else [_float(v) for v in values], pa.float64())
        case "bool":
            return pa.array(values if column.ours else [_scalar(v) for v in values], pa.bool_())
        case "money":
            return pa.array([_json_text(v) for v in values], pa.string()).cast(pa.decimal128(18, 9))
        case "time":
            return pa.array([_time(v) for v in values], pa.string()).cast(pa.timestamp("us", tz="UTC"))
        case "list":
            return _lists(column, values)


def _lists(column: Column, values: Sequence[object]) -> Array:
    import pyarrow as pa

    lists = [list(v) if isinstance(v, list | tuple) else [] for v in values]
    if not column.items:
        return pa.array(lists, pa.list_(pa.string()))
    ends = itertools.accumulate((len(v) for v in lists), initial=0)
    items = list(itertools.chain.from_iterable(lists))
    arrays = [_array(c, list(map(c.get(), items))) for c in column.items]
    structs = pa.StructArray.from_arrays(arrays, names=[c.name for c in column.items])
    return pa.ListArray.from_arrays(pa.array(list(ends), pa.int32()), structs)


def _scalar(value: object) -> object:
    return msgspec.json.decode(value) if isinstance(value, msgspec.Raw) else value


def _float(value: object) -> float | None:
    found = _scalar(value)
    return float(found) if isinstance(found, int | float) else None


def _text(value: object) -> str | None:
    """A JSON string's text; any other JSON as it is written."""
    if not isinstance(value, msgspec.Raw):
        return None if value is None else str(value)
    raw = bytes(value)
    return msgspec.json.decode(raw, type=str) if raw.startswith(b'"') else _json_text(value)


_LAST_TIME = "9999-12-31T23:59:59.999Z"


def _time(value: object) -> object:
    """One of a year with five digits, as records of older versions may hold, is the last there is: a run that was paid
    for is not lost to it."""
    return value if value is None or len(str(value)) == len(_LAST_TIME) else _LAST_TIME


def _json_text(value: object) -> str | None:
    if value is None:
        return None
    text = bytes(value).decode() if isinstance(value, msgspec.Raw) else str(value)
    return None if text == "null" else text


_CRLF = "\r\n"


class _Lines:
    """Rows that end in CRLF → rows that end in LF. Python's writer puts quotes around characters of the line end that
    it writes itself: told of LF alone, it would let a CR tear the row for its readers."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, row: str) -> int:
        return self._file.write(row.removesuffix(_CRLF) + "\n")


class CsvWriter:
    """Nested values stand as JSON text; null is an empty field."""

    def __init__(self, path: Path, table: Table) -> None:
        self._table = table
        self._file = path.open("w", encoding="utf-8", newline="")
        self._csv = csv.writer(_Lines(self._file), lineterminator=_CRLF)
        self._csv.writerow(table.names)

    def write(self, values: list[bytes]) -> None:
        lines = [decode_line(self._table.sink, v) for v in values]
        columns = [[_cell(column, v) for v in cells] for column, cells in self._table.columns(lines)]
        self._csv.writerows(zip(*columns, strict=True))

    def close(self) -> None:
        self._file.close()


def _cell(column: Column, value: object) -> str:
    if column.kind == "list":
        return msgspec.json.encode(value).decode()
    if isinstance(value, bool):
        return "true" if value else "false"
    return _text(value) or ""


# reading


def read_records(path: str) -> Iterator[bytes]:
    """One finished output as nested JSON lines. `path`: a file, or an `s3://` URL of an object or a manifest. Raises
    `SpecError` where it is gone."""
    for one in finished_files(path):
        with opened(one) as file:
            match _held(file):
                case "parquet":
                    yield from _read_parquet(file)
                case "csv":
                    yield from _read_csv(file)
                case "lines":
                    yield from (line.rstrip(b"\n") for line in file)


def _held(file: BinaryIO) -> Literal["parquet", "csv", "lines"]:
    """What one of our outputs holds: a sink's `format` may differ from what its name says."""
    head = file.read(4)
    file.seek(0)
    if head == b"PAR1":
        return "parquet"
    return "lines" if head[:1] in (b"{", b"") else "csv"


def are_parquet(paths: Sequence[str]) -> bool:
    """Whether all of an output's files are Parquet: by their names, and the first by what it holds."""
    if not paths or any(suffix(path) != ".parquet" for path in paths):
        return False
    with opened(paths[0]) as file:
        return _held(file) == "parquet"


class _Of(msgspec.Struct, frozen=True):
    run_id: str


def is_of(path: str, run_id: str) -> bool:
    """Whether the first record of a file or object names that run. Any file may be asked about; memory stays flat.
    Raises `Temporary`."""
    try:
        if suffix(path) in (".parquet", ".csv"):
            first = next(read_records(path), b"")
        else:
            with opened(path) as file:
                first = file.readline(LONGEST_FIRST)
        return msgspec.json.decode(first, type=_Of).run_id == run_id
    except Temporary:  # S3 is away, and says nothing about the object
        raise
    except Exception:  # noqa: BLE001 - what can't be read, for rights or for its bytes, is somebody else's
        return False


def finished_files(path: str) -> list[str]:
    """What holds an output's records: the path itself, or the objects that a manifest on S3 names."""
    if not path.startswith("s3://"):
        return [path]
    from penstock.connectors.s3.outputs import objects

    return objects(path)


def suffix(path: str) -> str:
    """`.parquet`, `.csv`, …"""
    if not path.startswith("s3://"):
        return Path(path).suffix.lower()
    from penstock.connectors.s3 import outputs

    return outputs.suffix(path)


def opened(path: str) -> BinaryIO:
    """Raises `SpecError` where it was moved or deleted since it was finished."""
    if path.startswith("s3://"):
        from penstock.connectors.s3 import outputs

        return outputs.opened(path)
    try:
        return Path(path).open("rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise gone(path) from error


_encode = msgspec.json.Encoder().encode


def _columns_in(names: Sequence[str]) -> dict[str, Column]:
    """Flat name → column of ours. Raises `SpecError` where a table is none of ours."""
    ours = columns_in(names)
    if ours is None:
        raise SpecError(f"this table has no column penstock_item_id: Penstock did not write it. Columns: {names[:8]}…")
    return {c.name: c for c in ours}


def _read_parquet(source: BinaryIO) -> Iterator[bytes]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(source) as file:
        ours = _columns_in(file.schema_arrow.names)
        for batch in file.iter_batches(READ_ROWS):
            for row in batch.to_pylist():
                yield _nested({name: _jsonable(ours.get(name), value) for name, value in row.items()}, ours)


def _jsonable(column: Column | None, value: object) -> object:
    match value:
        case decimal.Decimal():
            return msgspec.Raw(usd(int(value.scaleb(9))))
        case datetime.datetime():
            return value.strftime("%Y-%m-%dT%H:%M:%S.") + f"{value.microsecond // 1000:03d}Z"
        case str() if column is not None and column.kind == "json":
            return msgspec.Raw(value.encode())
        case list() if column is not None and column.items:
            fields = {c.name: c for c in column.items}
            return [{k: _jsonable(fields.get(k), v) for k, v in item.items()} for item in value]
        case _:
            return value


def _read_csv(source: BinaryIO) -> Iterator[bytes]:
    csv.field_size_limit(1 << 30)
    with io.TextIOWrapper(source, encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        names = next(rows, [])
        ours = _columns_in(names)
        for row in rows:
            cells = zip(names, row, strict=True)
            yield _nested({name: _from_cell(ours.get(name), cell) for name, cell in cells}, ours)


def _from_cell(column: Column | None, cell: str) -> object:
    if not cell:
        return None if column is not None and column.optional else ""
    if column is None or column.kind in ("text", "time"):
        return cell
    return msgspec.Raw(cell.encode())


def _nested(row: dict[str, object], ours: dict[str, Column]) -> bytes:
    nested: dict[str, object] = {}
    for name, value in row.items():
        *parents, last = ours[name].path if name in ours else (name,)
        here = nested
        for parent in parents:
            inner = here.setdefault(parent, {})
            assert isinstance(inner, dict)
            here = inner
        here[last] = value
    return _encode(nested)
