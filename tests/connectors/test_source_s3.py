"""What a person may rely on when input comes from S3. What holds for every source is in `test_source_contract`."""

import asyncio
import gzip
import io
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from penstock.connectors.base import Raw, Reader
from penstock.connectors.objects import cutting
from penstock.connectors.s3 import client, ranges
from penstock.connectors.s3.objects import translate
from penstock.connectors.s3.source import S3Source
from penstock.connectors.settings import S3Source as Settings
from penstock.engine.errors import BadRecord, PenstockError, Refused, SpecError, Temporary
from penstock.engine.plan import Split

pytestmark = pytest.mark.s3


class Bucket:
    """One bucket of a real server."""

    def __init__(self, server: Any, name: str) -> None:
        self.endpoint = server.endpoint
        self.name = name
        self._client = server.client()

    def put(self, key: str, data: bytes = b'{"n":1}\n') -> None:
        self._client.put_object(Bucket=self.name, Key=key, Body=data)

    def delete(self, key: str) -> None:
        self._client.delete_object(Bucket=self.name, Key=key)

    def source(self, prefix: str = "", pattern: str | None = None, format: Any = None) -> S3Source:
        return S3Source(Settings(self.name, prefix, pattern, self.endpoint, format=format))


@pytest.fixture
def bucket(s3_server: Any, s3_keys: None, new_bucket: Callable[..., str]) -> Bucket:
    client.forget()
    return Bucket(s3_server, new_bucket("source"))


@pytest.fixture
def own_server(start_s3: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server that the test may kill."""
    server = start_s3()
    for name, value in server.keys.environment.items():
        monkeypatch.setenv(name, value)
    client.forget()
    return server


def table(rows: int, group: int) -> bytes:
    made = io.BytesIO()
    noise = [random.Random(n).randbytes(60).hex() for n in range(rows)]
    pq.write_table(pa.table({"n": list(range(rows)), "a": noise, "b": noise[::-1]}), made, row_group_size=group)
    return made.getvalue()


def lines(count: int, seed: int = 0) -> bytes:
    chance = random.Random(seed)
    return b"".join(b'{"n":%d,"text":"%s"}\n' % (n, b"x" * chance.randrange(2000)) for n in range(count))


async def some(reader: Reader, count: int, at_once: int = 64) -> list[Raw]:
    """Records until there are `count` of them or no more."""
    found: list[Raw] = []
    while len(found) < count:
        batch = await reader.read(at_once, 1_000_000)
        found += batch.records
        if batch.done:
            break
    return found


async def until_it_fails(reader: Reader, found: list[Raw]) -> PenstockError:
    """Adds what comes to `found`, until reading fails."""
    while True:
        try:
            batch = await reader.read(64, 1_000_000)
        except PenstockError as error:
            return error
        found += batch.records
        assert not batch.done


async def read(source: S3Source, starts: Sequence[tuple[Split, int]]) -> list[Raw]:
    reader = await source.open(starts)
    try:
        return await some(reader, 1 << 40)
    finally:
        await reader.close()


async def read_all(source: S3Source, lanes: int = 1) -> list[Raw]:
    return await read(source, [(split, split.start) for split in await source.splits(lanes)])


def what(records: Sequence[Raw]) -> list[tuple[str, int, bytes]]:
    return [(raw.object_id, raw.position.position, raw.row_json or raw.data) for raw in records]


# -- which objects


async def test_prefix_and_pattern_choose_objects_hidden_ones_and_folder_marks_are_none(bucket: Bucket) -> None:
    """The pattern is for the key behind the prefix; `*` stays within a folder, `**` crosses them."""
    for key in ("in/a.jsonl", "in/b.jsonl", "in/x/c.jsonl", "in/x/y/d.jsonl", "in/x/notes.txt", "inbox/e.jsonl"):
        bucket.put(key)
    for key in ("in/", "in/x_$folder$", "in/_SUCCESS", "in/.hidden.jsonl", "in/_temporary/f.jsonl"):
        bucket.put(key, b"")

    async def keys(prefix: str, pattern: str | None) -> list[str]:
        return [split.uri.rpartition("/")[2] for split in await bucket.source(prefix, pattern).splits(1)]

    assert await keys("in/", "*.jsonl") == ["a.jsonl", "b.jsonl"]
    assert await keys("in/", "**/*.jsonl") == ["a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl"]
    assert await keys("in/", "x/**.jsonl") == ["c.jsonl", "d.jsonl"]
    assert await keys("in/", "x/?.json[lm]") == ["c.jsonl"]
    assert await keys("in/x/y/", None) == ["d.jsonl"]
    assert await keys("in/a.jsonl", None) == ["a.jsonl"]
    with pytest.raises(SpecError, match=r"in/x/notes\.txt: the name does not say"):
        await keys("in/", None)
    with pytest.raises(SpecError, match="no object matches"):
        await keys("out/", None)


async def test_a_prefix_that_ends_amid_a_name_means_all_that_go_on_with_it(bucket: Bucket) -> None:
    """`_2.jsonl` behind the prefix is no hidden name."""
    for key in ("in/batch.jsonl", "in/batch_2.jsonl", "in/batch/3.jsonl", "in/batch/_4.jsonl", "in/other.jsonl"):
        bucket.put(key)
    found = [split.uri.partition("/in/")[2] for split in await bucket.source("in/batch").splits(1)]
    assert found == ["batch.jsonl", "batch/3.jsonl", "batch_2.jsonl"]


@pytest.mark.parametrize(
    ("glob", "matching", "others"),
    [
        ("*.csv", "a.csv", "x/a.csv"),
        ("**/a", "a", "xa"),
        ("**/a", "x/y/a", "x/a/b"),
        ("x/**", "x/y/z", "y/x/z"),
        ("[!a]?", "bc", "ac"),
        ("a[*]b.+", "a*b.+", "acb.+"),
        ("[]]", "]", "["),
        ("[a", "[a", "a"),
        ("[!x]", "y", "/"),
    ],
)
def test_a_glob_means_what_it_means_for_files(glob: str, matching: str, others: str) -> None:
    """Brackets, stars between slashes and across them."""
    import re

    assert re.fullmatch(translate(glob), matching)
    assert not re.fullmatch(translate(glob), others)


async def test_requests_and_rows_are_not_mixed(bucket: Bucket) -> None:
    """The message names one of each."""
    bucket.put("in/a.jsonl", b'{"custom_id": "1", "url": "/v1/chat/completions", "body": {}}\n')
    bucket.put("in/blank.jsonl", b"\n")
    assert {split.format for split in await bucket.source("in/").splits(1)} == {"openai-batch"}
    bucket.put("in/b.csv", b"a,b\n1,2\n")
    with pytest.raises(SpecError, match=r"in/a\.jsonl holds openai-batch requests and .*in/b\.csv holds rows"):
        await bucket.source("in/").splits(1)


# -- cutting


@pytest.mark.parametrize("seed", range(4))
async def test_pieces_by_range_hold_exactly_the_records_of_the_whole(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Whatever the sizes of records, pieces and ranges: each record once, in order, at its place in the object."""
    chance = random.Random(seed)
    monkeypatch.setattr(ranges, "SMALL_BYTES", chance.randrange(1000, 50_000))
    monkeypatch.setattr(ranges, "FIRST_BYTES", chance.randrange(500, 30_000))
    monkeypatch.setattr(ranges, "RANGE_BYTES", chance.randrange(20_000, 90_000))
    content = lines(400, seed)
    bucket.put("a.jsonl", content)
    places = [0]
    for line in content.split(b"\n")[:-2]:
        places.append(places[-1] + len(line) + 1)
    for piece in (3_000, 40_000, 1 << 30):
        monkeypatch.setattr(cutting, "MIN_PIECE_BYTES", piece)
        splits = await bucket.source().splits(64)
        assert (len(splits) > 1) == (piece < len(content) // 2)
        found = await read(bucket.source(), [(split, split.start) for split in splits])
        assert b"".join(raw.data + b"\n" for raw in found) == content
        assert [raw.position.position for raw in found] == places


async def test_parquet_is_read_by_footer_and_row_groups(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups are splits; any row opens the suffix; a split does not read the whole object."""
    monkeypatch.setattr(cutting, "MIN_PIECE_BYTES", 1)
    monkeypatch.setattr(ranges, "SMALL_BYTES", 1000)
    monkeypatch.setattr(ranges, "BLOCK_BYTES", 64 * 1024)
    content = table(12_000, 1_000)
    bucket.put("a.parquet", content)
    source = bucket.source()
    splits = await source.splits(64)
    assert [split.start for split in splits] == list(range(0, 12_000, 1000))
    got: list[int] = []
    get = client.S3.get

    def counted(*args: Any, **named: Any) -> client.Got:
        found = get(*args, **named)
        got.append(len(found.data))
        return found

    monkeypatch.setattr(client.S3, "get", counted)
    rows = [msgspec.json.decode(raw.row_json or b"") for raw in await read(source, [(splits[5], 5_500)])]
    assert [row["n"] for row in rows] == list(range(5_500, 6_000))
    assert sum(got) < len(content) / 3


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.csv", "a.csv.gz"])
async def test_large_packed_objects_and_tables_are_streamed(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """One split each, read by ranges; opened at any record it gives the suffix."""
    monkeypatch.setattr(ranges, "SMALL_BYTES", 1000)
    monkeypatch.setattr(ranges, "FIRST_BYTES", 2000)
    monkeypatch.setattr(ranges, "RANGE_BYTES", 9000)
    rows = [random.Random(n).randbytes(50).hex() for n in range(1500)]
    text = ("text\n" + "".join(f'"{row}\n"\n' for row in rows)).encode()
    if "jsonl" in name:
        text = b"".join(b'{"text":"%s"}\n' % row.encode() for row in rows)
    pack = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}.get(name.rpartition(".")[2], bytes)
    bucket.put(name, pack(text))
    (split,) = await bucket.source().splits(64)
    whole = await read(bucket.source(), [(split, 0)])
    assert [msgspec.json.decode(raw.row_json or raw.data)["text"].strip() for raw in whole] == rows
    at = whole[700].position.position
    assert what(await read(bucket.source(), [(split, at)])) == what(whole[700:])
    assert what(list(bucket.source().records(split, at))) == what(whole[700:])


async def test_a_damaged_object_among_others_is_one_dead_letter(bucket: Bucket) -> None:
    """Its record says what is wrong; the others are read."""
    bucket.put("a.parquet", b"PAR1 cut short")
    bucket.put("b.parquet", table(3, 3))
    bad, *good = await read_all(bucket.source())
    assert bad.error is not None
    assert bad.error[0] == "source_lost"
    assert "a.parquet" in bad.error[1]
    assert len(good) == 3


# -- content pinned


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.jsonl.gz"])
async def test_an_object_that_changed_or_vanished_is_told_and_never_mixed(bucket: Bucket, name: str) -> None:
    """Even where the new content has the same length."""
    contents = {
        "a.jsonl": (b'{"n":1}\n', b'{"n":2}\n'),
        "a.csv": (b"n\n1\n", b"n\n2\n"),
        "a.parquet": (table(3, 3), table(2, 2)),
        "a.jsonl.gz": (gzip.compress(b"{}"), gzip.compress(b"[]")),
    }
    before, after = contents[name]
    bucket.put(name, before)
    source = bucket.source()
    (split,) = await source.splits(1)
    bucket.put(name, after)
    with pytest.raises(BadRecord, match=f"{name} is not the object this run planned") as caught:
        await read(source, [(split, 0)])
    assert caught.value.reason == "source_lost"
    bucket.delete(name)
    with pytest.raises(BadRecord, match=f"{name} is gone"):
        await read(source, [(split, 0)])
    bucket.put(name, before)
    assert await read(source, [(split, 0)])


async def test_an_object_that_changes_half_way_stops_there(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that was handed out is of the old content."""
    monkeypatch.setattr(ranges, "SMALL_BYTES", 1000)
    monkeypatch.setattr(ranges, "FIRST_BYTES", 2000)
    monkeypatch.setattr(ranges, "RANGE_BYTES", 4000)
    monkeypatch.setattr(cutting, "MIN_PIECE_BYTES", 1 << 30)
    old = lines(2000)
    bucket.put("a.jsonl", old)
    source = bucket.source()
    (split,) = await source.splits(1)
    reader = await source.open([(split, 0)])
    found = await some(reader, 1)
    bucket.put("a.jsonl", lines(2000, seed=1))
    failed = await until_it_fails(reader, found)
    await reader.close()
    assert isinstance(failed, BadRecord)
    assert "was replaced" in str(failed)
    assert len(found) < 2000
    assert old.startswith(b"".join(raw.data + b"\n" for raw in found))


# -- faults


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
async def test_a_server_killed_while_it_is_read_loses_and_doubles_nothing(
    own_server: Any, new_bucket: Callable[..., str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """`Temporary`, with a time to wait, while it is away; then the same reader goes on behind its last record."""
    monkeypatch.setattr(client, "ATTEMPTS", 2)
    monkeypatch.setattr(cutting, "MIN_PIECE_BYTES", 1 << 30)
    for setting, value in (("SMALL_BYTES", 1000), ("FIRST_BYTES", 5000), ("RANGE_BYTES", 9000), ("BLOCK_BYTES", 9000)):
        monkeypatch.setattr(ranges, setting, value)
    bucket = Bucket(own_server, new_bucket("faults", own_server))
    plain = b"".join(b'{"n":%d,"x":"%s"}\n' % (n, random.Random(n).randbytes(60).hex().encode()) for n in range(8000))
    bucket.put(name, {"a.jsonl": plain, "a.jsonl.gz": gzip.compress(plain), "a.parquet": table(8000, 1000)}[name])
    source = bucket.source()
    (split,) = await source.splits(1)
    reader = await source.open([(split, 0)])
    found = await some(reader, 1500)
    own_server.kill()
    failed = await until_it_fails(reader, found)
    assert isinstance(failed, Temporary)
    assert failed.retry_after_s
    assert 1500 <= len(found) < 8000
    own_server.start()
    done = False
    while not done:
        try:
            batch = await reader.read(100, 1_000_000)
        except Temporary:
            continue
        found += batch.records
        done = batch.done
    await reader.close()
    assert [msgspec.json.decode(raw.row_json or raw.data)["n"] for raw in found] == list(range(8000))
    assert what(found) == what(await read(source, [(split, 0)]))


async def test_a_silent_server_does_not_hold_up_the_lane(
    own_server: Any, new_bucket: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While S3 is silent a read comes back empty, soon; a reader that is closed does not wait for it."""
    bucket = Bucket(own_server, new_bucket("silent", own_server))
    bucket.put("a.jsonl", lines(10))
    source = bucket.source()
    (split,) = await source.splits(1)
    own_server.freeze()
    reader = await source.open([(split, 0)])
    for _ in range(5):
        batch = await reader.read(10, 1000)
        assert not batch.records
        assert batch.again_after_s
    second = await source.open([(split, 0)])
    await second.read(10, 1000)
    await second.close()
    own_server.thaw()
    assert len(await some(reader, 10)) == 10
    await reader.close()


async def _words(source: S3Source, kind: type[PenstockError]) -> str:
    with pytest.raises(kind) as caught:
        await source.splits(1)
    return str(caught.value)


async def test_what_is_wrong_is_said_in_words_without_keys(
    bucket: Bucket, s3_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What happened, to what, what to do."""
    nowhere = S3Source(Settings("no-such-bucket", endpoint=bucket.endpoint))
    assert "there is no such bucket" in await _words(nowhere, SpecError)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    client.forget()
    said = await _words(bucket.source(), Refused)
    assert "refused the credentials" in said
    assert "wrong-secret" not in said
    assert s3_server.keys.access_key not in said
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody-at-all")
    client.forget()
    said = await _words(bucket.source(), Refused)
    assert "does not know the access key" in said
    assert "nobody-at-all" not in said
    for name, value in {"AWS_EC2_METADATA_DISABLED": "true", "AWS_SHARED_CREDENTIALS_FILE": "/none"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    client.forget()
    assert "no AWS credentials were found" in await _words(bucket.source(), SpecError)
    client.forget()


async def test_an_endpoint_that_is_not_there_is_told(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may come back: `Temporary`."""
    monkeypatch.setattr(client, "ATTEMPTS", 1)
    client.forget()
    away = S3Source(Settings("abc", endpoint="http://127.0.0.1:9"))
    assert "does not answer" in await _words(away, Temporary)
    client.forget()


# -- many


async def test_many_small_objects_are_read_in_order_and_named_apart(bucket: Bucket, tmp_path: Path) -> None:
    """Two pages of a listing; each object is a split; nothing is lost among them."""
    await asyncio.to_thread(_fill, bucket, 1_200)
    splits = await bucket.source("many/").splits(8)
    assert len(splits) == len({split.id for split in splits}) == 1_200
    found = await read(bucket.source("many/"), [(split, split.start) for split in splits])
    assert [msgspec.json.decode(raw.data)["n"] for raw in found] == list(range(2_400))


@pytest.mark.soak
async def test_ten_thousand_objects_are_read_in_flat_memory(bucket: Bucket) -> None:
    """What is fetched ahead is bounded; what was read is let go."""
    await asyncio.to_thread(_fill, bucket, 10_000)
    splits = await bucket.source("many/").splits(8)
    process = psutil.Process()
    reader = await bucket.source("many/").open([(split, split.start) for split in splits])
    seen = len(await some(reader, 2_000))
    before = process.memory_info().rss
    while True:
        batch = await reader.read(256, 1_000_000)
        seen += len(batch.records)
        if batch.done:
            break
    assert seen == 20_000
    assert process.memory_info().rss - before < 30_000_000


def _fill(bucket: Bucket, count: int) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(
            lambda n: bucket.put(f"many/{n // 100:04}/{n:06}.jsonl", b'{"n":%d}\n{"n":%d}\n' % (2 * n, 2 * n + 1)),
            range(count),
        ):
            pass
