"""Outputs on S3 are sorted on this machine's disk first. Where it is full, that is said, and nothing is lost."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from penstock.connectors.s3.store import merge as s3_merge
from penstock.connectors.s3.store import store as s3_store
from penstock.connectors.s3.store.store import S3Store
from penstock.connectors.writing.tables import read_records
from penstock.engine.errors import Temporary
from tests.connectors.s3_world import PLAN, World, numbers, result
from tests.small_disk import enlarge, small_disk

if TYPE_CHECKING:
    from penstock.jobs.dev.s3 import S3Server
    from tests.conftest import S3At

pytestmark = pytest.mark.s3

ROWS = 40
ROW_BYTES = 50_000


@pytest.fixture
def world(s3_server: S3Server | S3At, s3_keys: None, new_bucket: Callable[..., str]) -> World:
    return World(s3_server.endpoint, new_bucket("full"))


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files go: room for half of the rows."""
    folder = tmp_path / "small"
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with small_disk(folder, "1m"):
        yield folder


async def committed(world: World, prefix: str, **options: object) -> S3Store:
    world.sinks = {"results": world.sink(prefix, **options)}
    store = world.store()
    await store.take(0, (1, 1))
    rows = [result(n, pad="x" * ROW_BYTES) for n in range(ROWS)]
    await store.commit(0, (1, 1), 1, {"results": rows}, {})
    return store


@pytest.mark.parametrize(
    ("prefix", "options"),
    [("out/", {}), ("out/", {"partition_by": ("tier",)}), ("out.jsonl", {})],
    ids=["prefix", "partitions", "object"],
)
async def test_a_full_disk_at_the_end_is_told_and_the_same_command_ends_the_run_once_there_is_room(
    world: World, disk: Path, prefix: str, options: dict[str, object]
) -> None:
    """Readers are shown nothing meanwhile, and what was begun leaves nothing on the disk."""
    store = await committed(world, prefix, **options)
    await store.release(0)
    for _ in range(2):
        with pytest.raises(Temporary, match=r"no room .* set TMPDIR; nothing committed is lost"):
            await store.finish(PLAN)
        assert list(disk.iterdir()) == []
        assert world.seen("out") == []
    enlarge(disk, "16m")
    [url] = (await store.finish(PLAN))["results"]
    assert sorted(numbers(list(read_records(url)))) == list(range(ROWS))
    assert sorted(numbers(world.committed())) == list(range(ROWS))
    assert list(disk.iterdir()) == []


async def test_a_full_disk_while_a_run_without_an_end_merges_is_told_and_healed_by_room(
    world: World, disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The lane goes on committing; its readers wait, and get each record once."""
    monkeypatch.setattr(s3_merge, "MERGE_BYTES", 1)
    monkeypatch.setattr(s3_store, "MERGE_AGAIN_S", 0.2)
    world.sinks = {"results": world.sink("out/")}
    await world.store().write_plan(msgspec.structs.replace(PLAN, bounded=False))
    store = await committed(world, "out/")
    async with asyncio.timeout(60):
        while not any("no room" in message for message in caplog.messages):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await store.commit(0, (1, 1), 2, {"results": [result(ROWS)]}, {})
    assert world.seen("out/") == []
    enlarge(disk, "16m")
    url = store._urls("results", "out/_manifest.json")[0]  # pyright: ignore[reportPrivateUsage]
    async with asyncio.timeout(60):
        while not world.keys("out/_manifest.json") or len(list(read_records(url))) <= ROWS:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    await store.release(0)
    assert sorted(numbers(list(read_records(url)))) == list(range(ROWS + 1))
    assert len(world.seen("out/")) == len(world.seen_by(url))
