"""What killed and sleeping owners leave in a bucket, and who removes it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from penstock.connectors.s3.client import PLAIN
from penstock.connectors.s3.fence import Lost
from penstock.connectors.s3.store import lane as s3_lane
from penstock.connectors.s3.store import merge as s3_merge
from penstock.connectors.s3.store.chunks import LARGE
from penstock.connectors.s3.store.store import S3Store
from penstock.connectors.s3.store.upload import PART_BYTES
from penstock.connectors.s3.store.upload import upload as send
from penstock.connectors.writing.tables import read_records
from penstock.engine.errors import Fenced
from tests.connectors.s3_world import PLAN, World, elsewhere, fill, numbers, once, result

if TYPE_CHECKING:
    from penstock.jobs.dev.s3 import S3Server
    from tests.conftest import S3At

pytestmark = pytest.mark.s3


@pytest.fixture
def world(s3_server: S3Server | S3At, s3_keys: None, new_bucket: Callable[..., str]) -> World:
    return World(s3_server.endpoint, new_bucket("left"))


def uploads(world: World) -> list[str]:
    return [key for key, _ in world.s3.uploads(world.bucket, "")]


def upload(world: World, key: str) -> None:
    """Begun, and cut off by a kill."""
    name = world.s3.start_parts(world.bucket, key)
    world.s3.put_part(world.bucket, key, name, 1, b"x" * 1000)


async def test_what_a_killed_owner_dropped_and_did_not_delete_goes_with_the_next(world: World) -> None:
    """Its names stand in the progress, so they outlive it."""
    killed = world.store()
    await killed.take(0, (1, 1))
    for seq in range(1, 31):
        await killed.commit(0, (1, 1), seq, {}, {"outbox": b"x" * (LARGE + seq)})
    await killed.beacon.stop()
    assert len(world.keys(f"{killed.home.root}lane/")) == 30
    other = world.store()
    await other.take(0, (1, 2), force=True)
    assert len(world.keys(f"{killed.home.root}lane/")) == 1
    await other.commit(0, (1, 2), 31, {}, {"outbox": b"y" * (LARGE + 1)})
    await other.release(0)
    assert len(world.keys(f"{killed.home.root}lane/")) == 1
    assert len((await world.store().peek(0)).chunks["outbox"]) == LARGE + 1


def test_an_upload_whose_place_another_took_meanwhile_is_given_up(world: World, tmp_path: Path) -> None:
    """It would stay, hidden, and be paid for by the gigabyte."""
    (tmp_path / "new").write_bytes(b"n" * (PART_BYTES + 1))
    world.s3.put(world.bucket, "out/costs.jsonl", b"another's")
    with pytest.raises(Lost):
        send(world.s3, world.bucket, "out/costs.jsonl", tmp_path / "new", PLAIN, None)
    assert uploads(world) == []


async def test_uploads_of_dead_owners_are_given_up(world: World) -> None:
    """Those of a lane when it is taken, all of the run's and those of single objects at its end; nobody else's."""
    world.sinks["dead_letters"] = world.sink("out/dead.jsonl")
    store = world.store()
    life = store._life.name  # pyright: ignore[reportPrivateUsage]
    theirs = ["out/results/mine.bin", "out/dead.jsonl.bak", "out/results/part-00000000-0000-0000000001-00000000-0000"]
    await fill(store, 1)
    for key in [*(f"out/results/part-{life}-000{lane}-0000000001-abcdabcd-0000.jsonl" for lane in (0, 1)), *theirs]:
        upload(world, key)
    upload(world, "out/dead.jsonl")
    await store.take(0, (2, 1))
    left = uploads(world)
    assert not [key for key in left if f"{life}-0000" in key]
    assert [key for key in left if f"{life}-0001" in key]
    await store.commit(0, (2, 1), 2, {"dead_letters": [result(9)]}, {})
    await store.release(0)
    await store.finish(PLAN)
    assert sorted(uploads(world)) == sorted(theirs)


async def test_objects_that_a_fenced_owner_put_too_late_are_removed_at_the_end(world: World) -> None:
    """It slept when its merge had begun, wrote after the lane's new owner had swept, and was killed before it could
    take them back. What counts stays."""

    async def overtake() -> None:
        other = world.store(beat_s=3600.0)
        await other.take(0, (1, 2), force=True)
        await merged(other)
        await other.release(0)

    def die() -> None:
        raise RuntimeError("killed")

    def faults(step: str) -> None:
        sleep(step)
        killed(step)

    sleep, killed = once("merge.begun", lambda: elsewhere(overtake)), once("merge.written", die)
    old = world.store(faults, beat_s=30.0)
    await old.take(0, (1, 1))
    await old.commit(0, (1, 1), 1, {"results": [result(1)], "costs": [result(1)]}, {})
    with pytest.raises(RuntimeError):
        await s3_merge.merge(old._lanes[0], old.home, old._sinks, 0.0, threading.Event())  # pyright: ignore[reportPrivateUsage]
    await old.beacon.put_out()
    assert len(world.seen("out/results/")) == 2
    [url] = (await world.store().finish(PLAN))["results"]
    assert world.seen("out/results/") == world.seen_by(url)
    assert numbers(list(read_records(url))) == numbers(world.committed()) == [1]


async def test_an_owner_that_slept_looks_before_it_writes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaced meanwhile, it leaves not one object that nobody will ever name."""
    monkeypatch.setattr(s3_lane, "SILENT_S", 0.0)
    old, new = world.store(beat_s=30.0), world.store(beat_s=30.0)
    await old.take(0, (1, 1))
    await old.commit(0, (1, 1), 1, {"results": [result(1)]}, {})
    await new.take(0, (1, 2), force=True)
    before = world.keys()
    with pytest.raises(Fenced):
        await old.commit(0, (1, 1), 2, {"results": [result(2)]}, {})
    with pytest.raises(Fenced):
        await merged(old)
    assert world.keys() == before
    for store in (old, new):
        await store.release(0)


async def merged(store: S3Store) -> None:
    lane, sinks = store._lanes[0], store._sinks  # pyright: ignore[reportPrivateUsage]
    await s3_merge.merge(lane, store.home, sinks, 0.0, threading.Event())
