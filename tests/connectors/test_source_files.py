"""A file source cuts its input by content, in order, and notices when it changes."""

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
import pytest

from penstock.connectors.base import OutRecord, Raw, Reader
from penstock.connectors.files import FileSource
from penstock.connectors.filestore.store import FileStore
from penstock.connectors.formats import json_lines
from penstock.connectors.objects import cutting
from penstock.connectors.settings import FilesSink, FilesSource
from penstock.engine.errors import BadRecord, SpecError, Temporary
from penstock.engine.plan import Plan, Split

LINE = json.dumps({"custom_id": "a", "body": {"messages": []}}).encode() + b"\n"


def source(path: Path | str) -> FileSource:
    return FileSource(FilesSource(str(path)))


async def read_all(source: FileSource, starts: list[tuple[Split, int]], size: int = 7) -> tuple[list[Raw], list[str]]:
    reader = await source.open(starts)
    records: list[Raw] = []
    ended: list[str] = []
    while True:
        batch = await reader.read(size, 1 << 20)
        assert len(batch.records) <= size
        records += batch.records
        ended += batch.ended
        if batch.done:
            await reader.close()
            return records, ended


async def test_a_folder_is_read_below_in_order_without_hidden_files(tmp_path: Path) -> None:
    """Sorted paths; names with a dot in front and empty marker files are no input."""
    for name in ("b.jsonl", "a/z.jsonl", ".hidden.jsonl", ".git/x.jsonl", "a/_SUCCESS"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"" if "SUCCESS" in name else LINE)
    splits = await source(tmp_path).splits(1)
    assert [os.path.relpath(split.uri, tmp_path) for split in splits] == ["a/z.jsonl", "b.jsonl"]
    assert [split.uri for split in await source(tmp_path / "*.jsonl").splits(1)] == [str(tmp_path / "b.jsonl")]


async def test_a_folder_of_results_is_input_without_its_manifest(tmp_path: Path) -> None:
    """One job reads what another wrote: its manifest is JSON, but no row."""
    sink = FilesSink(f"{tmp_path / 'labels'}/")
    store = FileStore(tmp_path / ".labels.penstock", {"results": sink})
    await store.take(0, (1, 1))
    await store.commit(0, (1, 1), 1, {"results": [OutRecord(0, 0, b'{"text":"a"}')]}, {})
    await store.release(0)
    await store.finish(Plan("run-1", "n", {}, 1, (), {}, 0.0))
    for path in (tmp_path / "labels", tmp_path / "labels/*", tmp_path / "**"):
        splits = await source(path).splits(1)
        assert [os.path.relpath(split.uri, tmp_path) for split in splits] == ["labels/part-0000.jsonl"]
    assert len(await source(tmp_path / "labels/_manifest.json").splits(1)) == 1


@pytest.mark.parametrize(
    ("line", "format"),
    [
        ({"url": "https://x.example", "body": "<html>"}, "jsonl"),
        ({"url": "https://x.example", "body": None}, "jsonl"),
        ({"url": "/v1/chat/completions", "body": {"messages": []}}, "openai-batch"),
        ({"custom_id": "a", "body": None}, "openai-batch"),
        ({"custom_id": "a", "text": "x"}, "jsonl"),
    ],
)
async def test_pages_with_their_addresses_are_rows(tmp_path: Path, line: dict[str, object], format: str) -> None:
    """A `url` is no sign of a request by itself; one whose `custom_id` was forgotten in the first line still is one."""
    (tmp_path / "a.jsonl").write_text(json.dumps(line))
    assert [split.format for split in await source(tmp_path).splits(1)] == [format]


async def test_formats_are_found_from_names_and_lines_are_looked_into(tmp_path: Path) -> None:
    """`custom_id` and `body` in the first line make it openai-batch, compressed or not, BOM and blank lines apart."""
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf\n\n" + LINE)
    (tmp_path / "b.ndjson.gz").write_bytes(gzip.compress(LINE))
    (tmp_path / "c.jsonl").write_bytes(b"not json\n" + LINE)
    (tmp_path / "d.jsonl").write_bytes(b"\n \n")
    splits = await source(tmp_path).splits(1)
    assert [(split.format, split.compression) for split in splits] == [
        ("openai-batch", None), ("openai-batch", "gzip"), ("openai-batch", None),
        ("openai-batch", None),
    ]  # fmt: skip
    (tmp_path / "c.jsonl").write_bytes(b'{"text":"x"}\n')
    with pytest.raises(SpecError, match="two jobs"):
        await source(tmp_path).splits(1)


@pytest.mark.parametrize(("name", "match"), [("none.jsonl", "no file matches"), ("notes.txt", "does not say")])
async def test_what_cannot_be_input_is_a_spec_error(tmp_path: Path, name: str, match: str) -> None:
    """Nothing matches, or a name says nothing: the message names it and says what to do."""
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(SpecError, match=match):
        await source(tmp_path / name).splits(1)


async def test_a_name_that_is_not_utf_8_is_a_spec_error(tmp_path: Path) -> None:
    """As old archives have them: records and the plan could not hold it."""
    (tmp_path / os.fsdecode(b"caf\xe9.jsonl")).write_bytes(LINE)
    with pytest.raises(SpecError, match=r"caf\?\.jsonl: its name is not UTF-8"):
        await source(tmp_path).splits(1)


async def test_one_big_file_is_cut_for_all_lanes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At least as many pieces as lanes, none under the least size; together they hold every record once."""
    monkeypatch.setattr(cutting, "MIN_PIECE_BYTES", 1000)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"".join(b'{"n":%d}\r\n' % n for n in range(5000)))
    for lanes in (1, 3, 8, 64):
        splits = await source(path).splits(lanes)
        assert len(splits) >= min(lanes, path.stat().st_size // 2000)
        assert all(split.size_bytes >= 1000 for split in splits)
        assert len({split.id for split in splits}) == len(splits)
        records, ended = await read_all(source(path), [(split, split.start) for split in splits], 500)
        assert [msgspec.json.decode(raw.data)["n"] for raw in records] == list(range(5000))
        assert ended == [split.id for split in splits]


async def test_a_csv_is_cut_only_where_no_quotes_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quotes may hide line breaks: then one split. Pieces know the header all the same."""
    monkeypatch.setattr(cutting, "MIN_PIECE_BYTES", 100)
    plain, quoted = tmp_path / "plain.csv", tmp_path / "quoted.csv"
    plain.write_text("n,t\n" + "".join(f"{n},x\n" for n in range(500)))
    quoted.write_text("n,t\n" + "".join(f'{n},"x\ny"\n' for n in range(500)))
    for path, many in ((plain, True), (quoted, False)):
        splits = await source(path).splits(4)
        assert (len(splits) > 1) == many
        records, _ = await read_all(source(path), [(split, split.start) for split in splits])
        assert [msgspec.json.decode(raw.row_json or b"")["n"] for raw in records] == [str(n) for n in range(500)]
        for raw in records[::50]:
            split = next(one for one in splits if one.id == raw.position.split)
            again, _ = await read_all(source(path), [(split, raw.position.position)])
            assert again == [
                one
                for one in records
                if one.position.split == split.id and one.position.position >= raw.position.position
            ]


async def test_a_header_that_names_a_column_twice_is_a_spec_error(tmp_path: Path) -> None:
    """A row couldn't hold both."""
    (tmp_path / "a.csv").write_text("a,a\n1,2\n")
    with pytest.raises(SpecError, match="twice"):
        await source(tmp_path / "a.csv").splits(1)


async def test_an_empty_file_is_input_without_records(tmp_path: Path) -> None:
    """JSON lines and CSV alike."""
    for name in ("a.jsonl", "b.csv", "c.jsonl.gz"):
        (tmp_path / name).write_bytes(b"")
    splits = await source(tmp_path).splits(4)
    records, ended = await read_all(source(tmp_path), [(split, split.start) for split in splits])
    assert (records, len(ended)) == ([], 3)


async def test_compressed_files_are_one_split_each(tmp_path: Path) -> None:
    """Opened at any position, the rest comes."""
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(LINE * 10))
    (split,) = await source(path).splits(8)
    assert (split.start, split.end, split.compression) == (0, None, "gzip")
    records, _ = await read_all(source(path), [(split, 0)])
    assert len(records) == 10
    assert await read_all(source(path), [(split, records[6].position.position)]) == (records[6:], [split.id])


async def test_identity_is_content_and_not_time(tmp_path: Path) -> None:
    """The same bytes with another time are the same input; other bytes of the same size are not."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINE * 3)
    (first,) = await source(path).splits(1)
    os.utime(path, (1, 1))
    assert await source(path).splits(1) == [first]
    path.write_bytes(LINE * 2 + LINE.replace(b'"a"', b'"b"'))
    (changed,) = await source(path).splits(1)
    assert changed.object_id != first.object_id
    with pytest.raises(BadRecord, match="changed") as caught:
        await read_all(source(path), [(first, 0)])
    assert caught.value.reason == "source_lost"
    path.unlink()
    with pytest.raises(BadRecord, match="gone"):
        await read_all(source(path), [(first, 0)])


async def test_a_disk_that_fails_half_way_is_told_after_what_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records read before come first; then `Temporary`; when the disk is back, reading goes on with the next one."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(b'{"n":%d}\n' % n for n in range(10)))
    (split,) = await source(path).splits(1)
    failures = iter((6, 2))

    def failing(file: BinaryIO, split: Split, start: int, limit: int) -> Iterator[Raw]:
        good = next(failures, 100)
        for n, raw in enumerate(json_lines.records(file, split, start, limit)):
            if n == good:
                raise OSError(5, "Input/output error")
            yield raw

    monkeypatch.setitem(cutting.READERS, "jsonl", failing)
    reader = await source(path).open([(split, 0)])
    counts: list[int] = []
    found: list[int] = []
    for _ in range(4):
        batch = await reader.read(4, 1 << 20)
        counts.append(len(batch.records))
        found += [msgspec.json.decode(raw.data)["n"] for raw in batch.records]
    assert (counts, found, batch.done) == ([4, 2, 2, 2], list(range(10)), True)
    failures = iter((0,))
    reader = await source(path).open([(split, 0)])
    with pytest.raises(Temporary, match="Input/output error"):
        await reader.read(4, 1 << 20)
    assert len((await reader.read(40, 1 << 20)).records) == 10


async def _read_or_lost(reader: Reader) -> list[Raw] | None:
    """None: the source says that it was lost. A reader that ended quietly is caught here."""
    try:
        batch = await reader.read(1_000, 1 << 20)
    except BadRecord:
        return None
    assert not batch.done
    return batch.records


async def test_a_file_cut_short_while_it_is_read_leaves_no_stump_of_a_line(tmp_path: Path) -> None:
    """The cut goes through a line: what is left of it is no record (seen: it ended as a dead letter, and the whole line
    was lost when the file was back)."""
    path = tmp_path / "a.jsonl"
    whole = b"".join(b'{"n":%06d,"text":"%s"}\n' % (n, b"x" * 100) for n in range(10_000))
    path.write_bytes(whole)
    (split,) = await source(path).splits(1)
    reader = await source(path).open([(split, 0)])
    found = (await reader.read(10, 1 << 20)).records
    path.write_bytes(whole[: len(whole) // 2 + 7])
    while (more := await _read_or_lost(reader)) is not None:
        found += more
    assert all(raw.data.endswith(b'"}') for raw in found)
    path.write_bytes(whole)
    again = await source(path).open([(split, found[-1].position.position + 1)])
    rest = (await again.read(20_000, 1 << 30)).records
    assert len(found) + len(rest) == 10_000


async def test_a_reader_keeps_to_its_limits(tmp_path: Path) -> None:
    """At most so many records; bytes are exceeded by one record at most; one record always comes."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINE * 100)
    (split,) = await source(path).splits(1)
    reader = await source(path).open([(split, 0)])
    assert len((await reader.read(3, 1 << 20)).records) == 3
    assert len((await reader.read(100, 2 * len(LINE))).records) == 3
    assert len((await reader.read(100, 1)).records) == 1


async def test_one_damaged_table_among_others_is_one_record_that_says_so(tmp_path: Path) -> None:
    """A Parquet file cut short, an empty one, a CSV whose header names a column twice: each is a `source_lost` with
    its place, once; the good file beside them is read."""
    (tmp_path / "a.csv").write_bytes(b"id,text\n1,x\n")
    (tmp_path / "twice.csv").write_bytes(b"id,id\n1,2\n3,4\n")
    (tmp_path / "short.parquet").write_bytes(b"PAR1 and then nothing")
    (tmp_path / "empty.parquet").write_bytes(b"")
    folder = source(tmp_path)
    splits = await folder.splits(1)
    records, ended = await read_all(folder, [(split, split.start) for split in splits])
    told = {os.path.basename(raw.object_id).split("@")[0]: raw.error for raw in records}
    assert [name for name, error in told.items() if error is None] == ["a.csv"]
    assert {error[0] for error in told.values() if error is not None} == {"source_lost"}
    assert (len(records), len(ended)) == (4, 4)
    again, _ = await read_all(folder, [(split, split.start + 1) for split in splits])
    assert [raw.error for raw in again] == [None], "what was told once is not told again"
