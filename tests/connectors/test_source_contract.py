"""The promises of `base.Source` and `base.Reader`, kept by every source that ships."""

import asyncio
import gzip
import itertools
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from aiokafka import AIOKafkaProducer

from penstock.connectors.base import Raw, Rereadable, Source
from penstock.connectors.files import FileSource
from penstock.connectors.kafka.source import KafkaTopics
from penstock.connectors.memory import MemorySource
from penstock.connectors.objects import cutting
from penstock.connectors.s3.source import S3Source
from penstock.connectors.settings import FilesSource, KafkaSource
from penstock.connectors.settings import S3Source as S3Settings
from penstock.engine.plan import Split

COUNT = 300
ROWS: list[dict[str, object]] = [{"id": str(n), "text": "x" * (n % 17)} for n in range(COUNT)]
LINES = [msgspec.json.encode(row) for row in ROWS]
TEXT = b"\xef\xbb\xbf\r\n" + b"".join(line + (b"\r\n\r\n" if n % 3 else b"\n") for n, line in enumerate(LINES))
CSV = "id,text\n" + "".join(f"{row['id']},{row['text']}\n" for row in ROWS)
QUOTED = "id,text\r\n" + "".join(f'"{row["id"]}","{row["text"]}\n"\r\n' for row in ROWS)


def from_file(name: str, content: bytes) -> Callable[[Path], Source]:
    def make(folder: Path) -> Source:
        (folder / name).write_bytes(content)
        return FileSource(FilesSource(str(folder)))

    return make


def parquet(folder: Path) -> Source:
    table = pa.table({"id": [row["id"] for row in ROWS], "text": [row["text"] for row in ROWS]})
    pq.write_table(table, folder / "a.parquet", row_group_size=70)
    return FileSource(FilesSource(str(folder)))


def two_files(folder: Path) -> Source:
    (folder / "a.jsonl").write_bytes(b"\n".join(LINES[:100]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(b"\n".join(LINES[100:])))
    return FileSource(FilesSource(str(folder / "*")))


def memory(folder: Path) -> Source:
    return MemorySource(str(folder), LINES)


SOURCES: dict[str, Callable[[Path], Source]] = {
    "jsonl": from_file("a.jsonl", TEXT),
    "gzip": from_file("a.jsonl.gz", gzip.compress(TEXT)),
    "zstd": from_file("a.jsonl.zst", zstandard.ZstdCompressor().compress(TEXT)),
    "csv": from_file("a.csv", CSV.encode()),
    "csv-quoted": from_file("a.csv", QUOTED.encode()),
    "csv-gzip": from_file("a.csv.gz", gzip.compress(QUOTED.encode())),
    "parquet": parquet,
    "two-files": two_files,
    "memory": memory,
}


async def kafka(request: pytest.FixtureRequest) -> Source:
    """Three partitions, written in transactions, one in three of which is aborted: offsets have gaps everywhere."""
    server = request.getfixturevalue("kafka_server")
    topic = await request.getfixturevalue("new_topic")("contract", 3)
    producer = AIOKafkaProducer(bootstrap_servers=server.bootstrap, transactional_id=topic)
    await producer.start()
    for start in range(0, COUNT, 20):
        two = (LINES[start : start + 10], False), (LINES[start + 10 : start + 20], False)
        for part, abort in (two[0], ([b"{}"], True), two[1]):
            await producer.begin_transaction()
            for line in part:
                await (await producer.send(topic, line, partition=start * 3 // COUNT))
            await (producer.abort_transaction() if abort else producer.commit_transaction())
    await producer.stop()
    # The next producer of the id starts when the last transaction is wholly over, its markers in the log.
    producer = AIOKafkaProducer(bootstrap_servers=server.bootstrap, transactional_id=topic)
    await producer.start()
    await producer.stop()
    return KafkaTopics(KafkaSource(topics=(topic,), bootstrap=server.bootstrap, until="end"))


def s3(request: pytest.FixtureRequest, folder: Path, name: str) -> Source:
    """What a source of files made, as the objects of a bucket."""
    SOURCES[name](folder)
    request.getfixturevalue("s3_keys")
    server, bucket = request.getfixturevalue("s3_server"), request.getfixturevalue("new_bucket")("contract")
    for path in folder.iterdir():
        server.client().put_object(Bucket=bucket, Key=f"in/{path.name}", Body=path.read_bytes())
    return S3Source(S3Settings(bucket, "in/", endpoint=server.endpoint))


ON_S3 = [pytest.param(f"s3-{name}", marks=pytest.mark.s3) for name in SOURCES if name != "memory"]


KAFKA = pytest.param("kafka", marks=pytest.mark.kafka)
REREADABLE = [*(name for name in SOURCES if name != "memory"), *ON_S3, KAFKA]


@pytest.fixture(params=["memory", *REREADABLE])
async def source(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    monkeypatch.setattr(cutting, "MIN_PIECE_BYTES", 200)
    name = str(request.param)
    if name.startswith("s3-"):
        return s3(request, tmp_path, name.removeprefix("s3-"))
    return await kafka(request) if name == "kafka" else SOURCES[name](tmp_path)


async def read(source: Source, starts: Sequence[tuple[Split, int]], size: int = 11) -> tuple[list[Raw], list[str]]:
    reader = await source.open(starts)
    records: list[Raw] = []
    ended: list[str] = []
    for _ in range(10 * COUNT):
        batch = await reader.read(size, 1 << 20)
        assert len(batch.records) <= size
        records += batch.records
        ended += batch.ended
        if batch.done:
            await reader.close()
            return records, ended
        await asyncio.sleep(batch.again_after_s or 0)
    raise AssertionError("the reader never ends")


async def test_every_record_comes_once_in_input_order(source: Source) -> None:
    """Over all splits, read one after another; and every split is said to have ended, once."""
    splits = await source.splits(4)
    records: list[Raw] = []
    ended: list[str] = []
    for split in splits:
        some, over = await read(source, [(split, split.start)])
        records, ended = records + some, ended + over
    rows = [msgspec.json.decode(raw.row_json or raw.data) for raw in records]
    assert [row["id"] for row in rows] == [str(n) for n in range(COUNT)]
    assert sorted(ended) == sorted(split.id for split in splits)
    assert not any(raw.error for raw in records)


async def test_one_reader_of_all_splits_brings_every_record_once(source: Source) -> None:
    """However the source mixes them; and every split is said to have ended, once."""
    splits = await source.splits(4)
    records, ended = await read(source, [(split, split.start) for split in splits])
    rows = [msgspec.json.decode(raw.row_json or raw.data) for raw in records]
    assert sorted(int(row["id"]) for row in rows) == list(range(COUNT))
    assert sorted(ended) == sorted(split.id for split in splits)


@pytest.mark.parametrize("source", REREADABLE, indirect=True)
async def test_read_beside_its_lanes_it_is_the_same(source: Source) -> None:
    """By plain iterators, in a thread: from the start, and from amid a split; one that is given up is let go of."""
    assert isinstance(source, Rereadable)
    splits = await source.splits(3)
    again = source.rereading(splits)
    for split in splits:
        records, _ = await read(source, [(split, split.start)])
        amid = records[len(records) // 2].position.position
        assert await asyncio.to_thread(lambda: list(again(split, split.start))) == records  # noqa: B023
        assert await asyncio.to_thread(lambda: list(again(split, amid))) == records[len(records) // 2 :]  # noqa: B023
    one = again(splits[0], splits[0].start)
    await asyncio.to_thread(next, one)
    if isinstance(one, Generator):
        await asyncio.to_thread(one.close)


async def test_positions_grow_strictly_and_lie_in_their_split(source: Source) -> None:
    """`start <= position < end`."""
    for split in await source.splits(4):
        records, _ = await read(source, [(split, split.start)])
        places = [raw.position.position for raw in records]
        assert all(one < two for one, two in itertools.pairwise(places))
        assert all(split.start <= place and (split.end is None or place < split.end) for place in places)


async def test_identity_does_not_depend_on_the_cut(source: Source) -> None:
    """Object, position and content are the same, however many lanes the splits are cut for."""
    found = set()
    for lanes in (1, 2, 3, 8, 64):
        records, _ = await read(source, [(split, split.start) for split in await source.splits(lanes)])
        found.add(tuple((raw.object_id, raw.position.position, raw.data, raw.row_json) for raw in records))
    assert len(found) == 1


async def test_opened_anywhere_it_gives_the_suffix(source: Source) -> None:
    """Exactly the records with position >= p, the same ones: at records, between them, behind the last."""
    for split in (await source.splits(3))[:3]:
        whole, _ = await read(source, [(split, split.start)])
        places = [raw.position.position for raw in whole]
        wanted = {split.start, *places[::13], *(place + 1 for place in places[::17]), places[-1], places[-1] + 1}
        for start in wanted:
            rest, ended = await read(source, [(split, start)])
            assert rest == [raw for raw in whole if raw.position.position >= start]
            assert ended == [split.id]


async def test_a_reader_that_is_replaced_gives_each_record_once(source: Source) -> None:
    """As a lane does where input is new: closed after a part, and opened behind it, with a split that is new."""
    *known, new = [msgspec.structs.replace(s, ordinal=n) for n, s in enumerate(await source.splits(4))]
    reader = await source.open([(split, split.start) for split in known])
    first = await reader.read(40, 1 << 20)
    await reader.close()
    ends = {raw.position.ordinal: raw.position.position + 1 for raw in first.records}
    starts = [(s, ends.get(s.ordinal, s.start)) for s in (*known, new) if s.id not in first.ended]
    rest, ended = await read(source, starts)
    ids = sorted(int(msgspec.json.decode(raw.row_json or raw.data)["id"]) for raw in (*first.records, *rest))
    assert ids == list(range(COUNT))
    assert sorted([*first.ended, *ended]) == sorted(split.id for split in (*known, new))


async def test_splits_are_named_the_same_every_time(source: Source) -> None:
    """A plan made again names the same input by the same ids; ids are unique."""
    splits = await source.splits(4)
    assert await source.splits(4) == splits
    assert len({split.id for split in splits}) == len(splits)
