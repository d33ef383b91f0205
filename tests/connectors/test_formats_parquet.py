"""Parquet rows keep their types as far as JSON has them, and a damaged file never ends in a traceback."""

import asyncio
import datetime as dt
import io
import random
import tracemalloc
from decimal import Decimal
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penstock.connectors.base import Raw
from penstock.connectors.files import FileSource
from penstock.connectors.formats import parquet_rows
from penstock.connectors.settings import FilesSource
from penstock.engine.errors import SpecError
from penstock.engine.plan import Split


def splits(path: Path, lanes: int = 4) -> list[Split]:
    return asyncio.run(FileSource(FilesSource(str(path))).splits(lanes))


def read(path: Path, start: int = 0) -> list[Raw]:
    source = FileSource(FilesSource(str(path)))
    return [raw for split in splits(path) for raw in source.records(split, max(start, split.start))]


def test_typed_values_become_json(tmp_path: Path) -> None:
    """Times are ISO 8601 (nanoseconds cut), decimals strings, binary base64, NaN null, structs and lists nest."""
    path = tmp_path / "a.parquet"
    at = dt.datetime(2026, 11, 24, 1, 2, 3, 456789, tzinfo=dt.UTC)
    columns = {
        "i": pa.array([7]),
        "f": pa.array([float("nan")]),
        "d": pa.array([Decimal("1.50")]),
        "b": pa.array([b"\xff\x00"]),
        "day": pa.array([at.date()]),
        "us": pa.array([at], pa.timestamp("us", "UTC")),
        "ns": pa.array([1_700_000_000_123_456_789], pa.int64()).cast(pa.timestamp("ns")),
        "t": pa.array([at.time()]),
        "null": pa.array([None]),
        "dict": pa.array(["x"]).dictionary_encode(),
        "s": pa.array([{"a": [1, None], "when": at.date()}]),
        "flag": pa.array([True]),
    }
    pq.write_table(pa.table(columns), path)
    (raw,) = read(path)
    assert raw.row_json is not None
    assert msgspec.json.decode(raw.row_json) == {
        "i": 7,
        "f": None,
        "d": "1.50",
        "b": "/wA=",
        "day": "2026-11-24",
        "us": "2026-11-24T01:02:03.456789Z",
        "ns": "2023-11-14T22:13:20.123456",
        "t": "01:02:03.456789",
        "null": None,
        "dict": "x",
        "s": {"a": [1, None], "when": "2026-11-24"},
        "flag": True,
    }


def test_nanoseconds_within_lists_and_structs_are_cut_as_well(tmp_path: Path) -> None:
    """Else such a row would be a dead letter where pandas is not installed, and another text where it is."""
    path, ns = tmp_path / "a.parquet", pa.timestamp("ns")
    at, said = 1_700_000_000_123_456_789, "2023-11-14T22:13:20.123456"
    kinds: dict[str, tuple[object, pa.DataType, object]] = {
        "struct": ({"at": at, "n": 1}, pa.struct([("at", ns), ("n", pa.int64())]), {"at": said, "n": 1}),
        "list": ([at, None], pa.list_(ns), [said, None]),
        "large": ([at], pa.large_list(ns), [said]),
        "fixed": ([at, at], pa.list_(ns, 2), [said, said]),
        "map": ([("a", at)], pa.map_(pa.string(), ns), [["a", said]]),
        "deep": ([{"turns": [{"at": at}]}], pa.list_(pa.struct([("turns", pa.list_(pa.struct([("at", ns)])))])),
                 [{"turns": [{"at": said}]}]),
        "time": ({"t": 3_600_000_000_001}, pa.struct([("t", pa.time64("ns"))]), {"t": "01:00:00"}),
    }  # fmt: skip
    pq.write_table(pa.table({name: pa.array([value], kind) for name, (value, kind, _) in kinds.items()}), path)
    (raw,) = read(path)
    assert raw.error is None
    assert msgspec.json.decode(raw.row_json or b"") == {name: wanted for name, (_, _, wanted) in kinds.items()}


def test_rows_that_hold_images_are_decoded_a_few_at_a_time(tmp_path: Path) -> None:
    """However many lanes read: 512 such rows at once were half a gigabyte for each."""
    path, count, noise = tmp_path / "a.parquet", 400, random.Random(1)
    table = pa.table({"n": range(count), "photo": [noise.randbytes(200_000) for _ in range(count)]})
    pq.write_table(table, path, write_batch_size=4, use_dictionary=False)
    source, (split,) = FileSource(FilesSource(str(path))), splits(path, 1)
    tracemalloc.start()
    numbers = [msgspec.json.decode(raw.row_json or b"")["n"] for raw in source.records(split, 3)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert numbers == list(range(3, count))
    assert peak < 20_000_000


def test_row_groups_are_splits_and_any_row_opens_the_suffix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions are row numbers of the file, whatever the split; opened at row p: the rows from p on."""
    monkeypatch.setattr("penstock.connectors.objects.cutting.MIN_PIECE_BYTES", 1)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": list(range(2500))}), path, row_group_size=600)
    assert [(split.start, split.end, split.unit) for split in splits(path, 64)] == [
        (0, 600, "rows"), (600, 1200, "rows"), (1200, 1800, "rows"), (1800, 2400, "rows"), (2400, 2500, "rows"),
    ]  # fmt: skip
    whole = read(path)
    assert [raw.position.position for raw in whole] == list(range(2500))
    source = FileSource(FilesSource(str(path)))
    second = splits(path, 64)[1]
    for start in (600, 601, 1111, 1199):
        assert [raw.position.position for raw in source.records(second, start)] == list(range(start, 1200))


def test_a_file_cut_short_is_named_before_anything_runs(tmp_path: Path) -> None:
    """Without its footer a Parquet file can't be read at all: a spec error, with the file's name."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": list(range(1000))}), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SpecError, match=r"a\.parquet.*cut short"):
        splits(path)


def test_a_damaged_row_group_is_an_error_for_each_of_its_rows(tmp_path: Path) -> None:
    """Nothing is lost in silence: every row of the damaged group is told, the other groups are read."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"t": [f"text {n}" for n in range(300)]}), path, row_group_size=100, use_dictionary=False)
    meta = pq.read_metadata(path)
    chunk = meta.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    at = chunk.data_page_offset
    content[at : at + chunk.total_compressed_size] = b"\xee" * chunk.total_compressed_size
    path.write_bytes(content)
    records = read(path)
    assert [raw.position.position for raw in records] == list(range(300))
    lost = [raw for raw in records if raw.error]
    assert [raw.position.position for raw in lost] == list(range(100, 200))
    assert {raw.error[0] for raw in lost if raw.error} == {"source_lost"}
    assert [raw.position.position for raw in read(path, 150)] == list(range(150, 300))


def test_a_value_that_python_cannot_hold_costs_its_own_row_only(tmp_path: Path) -> None:
    """A time in the year 300,000 or text that isn't UTF-8 is one dead letter."""
    path = tmp_path / "a.parquet"
    times = pa.array([0, 10**19 // 2, 1], pa.int64()).cast(pa.timestamp("us"))
    pq.write_table(pa.table({"at": times}), path)
    first, bad, last = read(path)
    assert (first.error, last.error) == (None, None)
    assert bad.error is not None
    assert bad.error[0] == "malformed"


def test_an_empty_table_has_no_records(tmp_path: Path) -> None:
    """One split, no rows, no error."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": pa.array([], pa.int64())}), path)
    assert len(splits(path)) == 1
    assert read(path) == []


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    """A row couldn't hold both."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), path)
    with pytest.raises(SpecError, match="'a'"):
        parquet_rows.spans(io.BytesIO(path.read_bytes()), str(path), 100)


def test_two_columns_of_one_name_beside_other_files_are_one_dead_letter(tmp_path: Path) -> None:
    """Not rows that lack the first of the two, and not silence about those that come after them."""
    twice = pa.Table.from_arrays([pa.array(["a"] * 10), pa.array(["b"] * 10)], names=["text", "text"])
    pq.write_table(twice, tmp_path / "twice.parquet", row_group_size=4)
    pq.write_table(pa.table({"text": ["ok"]}), tmp_path / "whole.parquet")
    records = read(tmp_path)
    told = ("source_lost", f"{tmp_path}/twice.parquet: two columns are named 'text': rename one")
    assert [(raw.row_json, raw.error) for raw in records] == [(None, told), (b'{"text":"ok"}', None)]
