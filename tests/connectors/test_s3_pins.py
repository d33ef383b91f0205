"""Which objects are input: what stands beside the one that is meant is not, nor is what a plan knows by another pin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.connectors.files import FileSource
from penstock.connectors.s3 import source as s3_source
from penstock.connectors.s3.client import Got, Listed
from penstock.connectors.s3.objects import Pinned, naming
from penstock.connectors.s3.source import S3Source
from penstock.connectors.settings import FilesSource
from penstock.connectors.settings import S3Source as Settings
from penstock.engine.errors import Refused, SpecError
from penstock.engine.plan import Plan, Split
from penstock.workers.driving.planner import listed


class Bucket:
    """Of a client as much as a listing asks for. `kept`: versions are kept, and may be listed."""

    def __init__(self) -> None:
        self.kept = True
        self.objects: dict[str, Listed] = {}
        self.heads: list[str] = []
        self.readable: dict[str, bytes] = {}
        """All others are archived."""

    def put(self, key: str, content: str, version: str | None) -> None:
        self.objects[key] = Listed(key, 10, f'"{content}"', version)

    def versioned(self, bucket: str) -> bool:
        return self.kept

    def version_pages(self, bucket: str, prefix: str) -> Iterator[list[Listed]]:
        yield sorted((one for one in self.objects.values() if one.key.startswith(prefix)), key=lambda one: one.key)

    def pages(self, bucket: str, prefix: str) -> Iterator[list[Listed]]:
        yield [Listed(one.key, one.size, one.etag) for one in next(self.version_pages(bucket, prefix))]

    def get(self, bucket: str, key: str, start: int = 0, end: int | None = None, **_: object) -> Got:
        if key not in self.readable:
            raise Refused(f"{key} is archived")
        return Got(self.readable[key][start:end], self.objects[key].etag)

    def head(self, bucket: str, key: str) -> Listed | None:
        self.heads.append(key)
        return self.objects.get(key)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bucket:
    made = Bucket()

    def client(*_: object) -> Bucket:
        return made

    monkeypatch.setattr(s3_source, "client", client)
    return made


SOURCE = S3Source(Settings("inbox", "in/", format="jsonl"))


async def new_beside(known: list[Split], source: S3Source = SOURCE) -> list[str]:
    """What the next command of a run takes for new."""
    plan = Plan("run", "name", {}, 1, tuple(known), {}, 0.0)
    ids = {split.object_id for split in known}
    found = (await listed(source, plan)).splits
    return [split.uri.rpartition("/")[2] for split in found if split.object_id not in ids]


@pytest.mark.parametrize("kept_first", [True, False])
async def test_an_object_whose_versions_may_no_longer_be_listed_is_no_new_input(
    bucket: Bucket, kept_first: bool
) -> None:
    """The bucket stopped keeping versions, or the next command has fewer rights, or more: all would be paid again."""
    bucket.kept = kept_first
    for key in ("in/a.jsonl", "in/b.jsonl", "in/c.jsonl"):
        bucket.put(key, f"content of {key}", f"version of {key}")
    known = await SOURCE.splits(1)
    bucket.kept = not kept_first
    bucket.put("in/b.jsonl", "replaced", "version 2")
    bucket.put("in/d.jsonl", "new", "version 1")
    assert await new_beside(known) == ["b.jsonl", "d.jsonl"]
    assert bucket.heads == ["in/a.jsonl", "in/b.jsonl", "in/c.jsonl"], "only what may be known is asked about"


async def test_the_same_content_put_again_where_versions_are_kept_is_new_input(bucket: Bucket) -> None:
    """As the documentation says: an item is of an object's version."""
    bucket.put("in/a.jsonl", "same", "version 1")
    known = await SOURCE.splits(1)
    bucket.put("in/a.jsonl", "same", "version 2")
    assert await new_beside(known) == ["a.jsonl"]
    assert bucket.heads == []
    bucket.kept = False
    assert await new_beside(known) == ["a.jsonl"]


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize(
    ("prefix", "meant"),
    [
        ("in/day.json", ["day.json"]),
        ("in/day.csv", ["day.csv"]),
        ("in/day", ["day.csv", "day.csv.gz", "day.csv.old.csv", "day.json", "day.jsonl"]),
        ("in/day.csv.o", ["day.csv.old.csv"]),
    ],
)
async def test_the_key_of_an_object_means_that_object_alone(
    bucket: Bucket, kept: bool, prefix: str, meant: list[str]
) -> None:
    """Not a packed or older copy beside it, whose rows would be paid for as well. Any other prefix means all that go on
    with it."""
    bucket.kept = kept
    for name in ("day.csv", "day.csv.gz", "day.csv.old.csv", "day.json", "day.jsonl"):
        bucket.put(f"in/{name}", name, "1")
    splits = await S3Source(Settings("inbox", prefix, format="jsonl")).splits(1)
    assert [split.uri.rpartition("/")[2] for split in splits] == meant


async def test_an_object_that_the_plan_knows_is_not_opened_again(bucket: Bucket) -> None:
    """A rule of the bucket may have archived it since: all of it has ended, and what is new is wanted."""
    source = S3Source(Settings("inbox", "in/"))
    old = Pinned("inbox", "in/a.jsonl", '"a"', 10_000_000)
    known = [
        Split("a", old.object_id, 0, 0, old.uri, 0, None, format="jsonl"),
        Split("b", "s3://inbox/in/b.parquet@v:9", 1, 0, "s3://inbox/in/b.parquet", 0, 9, "rows", "parquet"),
        Split("c", 's3://inbox/in/c.jsonl@"c":10', 2, 0, "s3://inbox/in/c.jsonl", 0, 10, format="jsonl"),
    ]
    bucket.objects["in/a.jsonl"] = Listed("in/a.jsonl", 10_000_000, '"a"')
    bucket.objects["in/b.parquet"] = Listed("in/b.parquet", 9, '"b"', "v")
    bucket.put("in/c.jsonl", "c", None)
    bucket.objects["in/d.csv"] = Listed("in/d.csv", 10, '"d"', "1")
    assert await new_beside(known, source) == ["d.csv"]
    bucket.readable["in/e.jsonl"] = b'{"custom_id":"a","body":{}}\n'
    bucket.objects["in/e.jsonl"] = Listed("in/e.jsonl", 28, '"e"', "1")
    with pytest.raises(SpecError, match=r"e\.jsonl holds openai-batch requests and .*a\.jsonl holds rows"):
        await new_beside(known, source)
    for key in ("in/a.jsonl", "in/b.parquet", "in/d.csv"):
        del bucket.objects[key]
    assert await new_beside(known, source) == ["e.jsonl"], "c.jsonl may be blank"


async def test_input_of_a_job_that_read_files_before_is_new(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n")
    files = FileSource(FilesSource(str(tmp_path)))
    bucket.put("in/a.jsonl", "a", "1")
    assert await new_beside(await files.splits(1)) == ["a.jsonl"]
    plan = Plan("run", "name", {}, 1, tuple(await SOURCE.splits(1)), {}, 0.0)
    assert [split.uri for split in (await listed(files, plan)).splits] == [str(tmp_path / "a.jsonl")]


@pytest.mark.parametrize(
    ("prefix", "pattern", "named"),
    [
        ("in/", None, True),
        ("in/", "m*.jsonl", True),
        ("in/", "t*.jsonl", False),
        ("new/", None, False),
        ("", "**", True),
    ],
)
def test_an_object_that_is_not_listed_may_be_gone_or_where_the_source_does_not_look(
    prefix: str, pattern: str | None, named: bool
) -> None:
    assert naming(Settings("b", prefix, pattern=pattern))("s3://b/in/monday.jsonl") == named
    assert not naming(Settings("c", prefix, pattern=pattern))("s3://b/in/monday.jsonl")
