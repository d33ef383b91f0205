"""Parquet → `Raw` records. Values keep their types as far as JSON has them: times become ISO 8601, decimals strings,
binary base64, NaN null."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import msgspec

from penstock.connectors.base import Raw
from penstock.engine.errors import SpecError
from penstock.engine.items import Position
from penstock.engine.plan import Split
from penstock.engine.results import DeadLetterReason

BATCH_ROWS = 512
"""Rows decoded at once: the call's cost vanishes (a guess)."""

BATCH_BYTES = 4 << 20
"""But no more than so many bytes, going by the row group's average: rows may hold images."""

STREAM_BYTES = 1 << 20
"""A column of a row group is read in such pieces; without it whole, however large its writer made the group."""


def spans(file: BinaryIO, path: str, piece: int) -> list[tuple[int, int, int]]:
    """(first row, behind the last row, bytes) of runs of row groups of about `piece` bytes. Reads the footer only.
    Raises `SpecError`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            meta = table.metadata
            sizes = [
                (meta.row_group(n).num_rows, meta.row_group(n).total_byte_size) for n in range(meta.num_row_groups)
            ]
            columns: list[str] = table.schema_arrow.names
    except (pa.ArrowException, OSError, ValueError) as error:
        raise SpecError(f"{path} cannot be read as Parquet (was it cut short?): {_first_line(error)}") from error
    if (twice := _twice(columns)) is not None:
        raise SpecError(f"{path}: {twice}")
    return _runs(sizes, piece) or [(0, 0, 0)]


def _twice(columns: list[str]) -> str | None:
    """Why a table's rows can't be told apart by its names; None: they can."""
    twice = next((name for name in columns if columns.count(name) > 1), None)
    return None if twice is None else f"two columns are named {twice!r}: rename one"


def _runs(sizes: list[tuple[int, int]], piece: int) -> list[tuple[int, int, int]]:
    found: list[tuple[int, int, int]] = []
    start = row = size = 0
    for rows, length in sizes:
        row += rows
        size += length
        if size >= piece:
            found.append((start, row, size))
            start, size = row, 0
    if row > start:
        found.append((start, row, size))
    return found


def records(file: BinaryIO, split: Split, start: int, limit: int) -> Iterator[Raw]:
    """The rows of `split` from row `start` on. A row group that can't be read gives one error for each of its rows; a
    file that can't be, or that names a column twice, one for the split.

    Raises `OSError` where the disk fails (not where the content is damaged).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    end = split.end if split.end is not None else 1 << 62
    try:
        table = pq.ParquetFile(file, pre_buffer=False, buffer_size=STREAM_BYTES)
        counts = [table.metadata.row_group(n).num_rows for n in range(table.metadata.num_row_groups)]
        lost = _twice(table.schema_arrow.names)
    except (pa.ArrowException, OSError, ValueError) as error:
        _raise_if_disk(error)
        table, counts = None, list[int]()
        lost = f"cannot be read as Parquet (was it cut short?): {_first_line(error)}"
    if lost is not None:
        if start < end:
            place = Position(split.id, split.ordinal, start)
            yield Raw(place, split.object_id, error=("source_lost", f"{split.uri}: {lost}"))
        return
    first = 0
    for group, count in enumerate(counts):
        if first + count > start and first < end:
            yield from _group(table, group, first, count, split, max(start, first), limit)
        first += count


def _group(table: Any, group: int, first: int, count: int, split: Split, start: int, limit: int) -> Iterator[Raw]:
    import pyarrow as pa

    row = first
    try:
        size = max(1, table.metadata.row_group(group).total_byte_size // max(1, count))
        rows = min(BATCH_ROWS, max(1, BATCH_BYTES // size))
        for batch in table.iter_batches(batch_size=rows, row_groups=[group], use_threads=False):
            if row + batch.num_rows > start:
                skip = max(0, start - row)
                yield from _rows(_plain(batch.slice(skip)), split, row + skip, limit)
            row += batch.num_rows
    except (pa.ArrowException, OSError, ValueError) as error:
        _raise_if_disk(error)
        for lost in range(max(row, start), first + count):
            yield _lost(split, lost, error)


def _rows(batch: Any, split: Split, first: int, limit: int) -> Iterator[Raw]:
    try:
        rows = [(row, None) for row in batch.to_pylist()]
    except (ValueError, OverflowError):  # one value that Python can't hold, or text that isn't UTF-8: find its row
        rows = [_one(batch.slice(n, 1)) for n in range(batch.num_rows)]
    for at, (row, error) in enumerate(rows, first):
        place = Position(split.id, split.ordinal, at)
        if error is None:
            yield _record(split, place, row, limit)
        else:
            yield Raw(place, split.object_id, error=("malformed", f"a value of row {at} cannot be read: {error}"))


def _one(batch: Any) -> tuple[Any, str | None]:
    try:
        return batch.to_pylist()[0], None
    except (ValueError, OverflowError) as error:
        return None, _first_line(error)


def _record(split: Split, place: Position, row: dict[str, Any], limit: int) -> Raw:
    try:
        text = msgspec.json.encode(row, enc_hook=str)
    except (TypeError, ValueError, RecursionError) as error:
        message = f"row {place.position} cannot be written as JSON: {error}"
        return Raw(place, split.object_id, error=("malformed", message))
    if len(text) > limit:
        message = f"the row has {len(text):,} bytes as JSON; the longest allowed has {limit:,}"
        reason: DeadLetterReason = "too_large"
        return Raw(place, split.object_id, text[:1_000_000], error=(reason, message), length=len(text))
    return Raw(place, split.object_id, row_json=text)


def _plain(batch: Any) -> Any:
    """Nanosecond times need pandas to become Python values: cut them to microseconds, wherever they stand."""
    import pyarrow as pa

    kinds = [(field, _coarse(field.type)) for field in batch.schema]
    if all(field.type == kind for field, kind in kinds):
        return batch
    columns = [column.cast(kind, safe=False) for column, (_, kind) in zip(batch.columns, kinds, strict=True)]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _coarse(kind: Any) -> Any:
    """The type without nanoseconds."""
    import pyarrow as pa
    from pyarrow import types

    if types.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    if types.is_duration(kind) and kind.unit == "ns":
        return pa.duration("us")
    if types.is_time64(kind) and kind.unit == "ns":
        return pa.time64("us")
    if types.is_struct(kind):
        return pa.struct([field.with_type(_coarse(field.type)) for field in kind])
    if types.is_map(kind):
        return pa.map_(_coarse(kind.key_type), kind.item_field.with_type(_coarse(kind.item_type)))
    if types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_coarse(kind.value_type)))
    if types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_coarse(kind.value_type)))
    if types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_coarse(kind.value_type)), kind.list_size)
    return kind


def _lost(split: Split, row: int, error: Exception) -> Raw:
    message = f"{split.uri}: row {row} cannot be read: {_first_line(error)}"
    return Raw(Position(split.id, split.ordinal, row), split.object_id, error=("source_lost", message))


def _raise_if_disk(error: Exception) -> None:
    """pyarrow says `OSError` for damaged content too; only a real one has a number."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
