"""What the store on S3 promises beyond the contract: interleavings, lost answers, merged objects, what readers see."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from pyarrow import parquet

from penstock.connectors.memory import MemoryStore
from penstock.connectors.registry import Stores, iter_committed
from penstock.connectors.s3 import client as s3_client
from penstock.connectors.s3 import outputs
from penstock.connectors.s3.client import Got
from penstock.connectors.s3.store import merge as s3_merge
from penstock.connectors.s3.store import told
from penstock.connectors.s3.store.chunks import INLINE, LARGE
from penstock.connectors.s3.store.lane import COMMIT_STEPS, TAKE_STEPS
from penstock.connectors.s3.store.progress import SEAL
from penstock.connectors.s3.store.store import FINISH_STEPS, S3Store
from penstock.connectors.writing.tables import read_records
from penstock.engine.errors import Corrupt, Fenced, Held, Refused, SpecError, Temporary
from tests.connectors.s3_world import (
    PLAN,
    WHO,
    World,
    elsewhere,
    fill,
    numbers,
    once,
    result,
)

if TYPE_CHECKING:
    from conftest import S3At

    from penstock.jobs.dev.s3 import S3Server

pytestmark = pytest.mark.s3


@pytest.fixture
def world(s3_server: S3Server | S3At, s3_keys: None, new_bucket: Callable[..., str]) -> World:
    return World(s3_server.endpoint, new_bucket("store"))


# owners


@pytest.mark.parametrize("step", COMMIT_STEPS)
async def test_a_forced_take_at_any_step_of_a_commit_decides_once(world: World, step: str) -> None:
    """The new owner takes the lane while the old one stands between two steps of a commit. An acknowledged commit is
    among what the new owner read; another is there for readers and owner, or for neither, for ever."""
    new = world.store()
    read: list[int] = []

    async def take() -> None:
        other = world.store()
        read.append((await other.take(0, (1, 2), force=True)).seq)
        await other.beacon.stop()

    old = world.store(once(step, lambda: elsewhere(take)))
    await old.take(0, (1, 1))
    try:
        await old.commit(0, (1, 1), 1, {"results": [result(1)]}, {"a": b"1"})
        acknowledged = True
    except Fenced:
        acknowledged = False
    there = numbers(world.committed()) == [1]
    assert there == (read == [1])
    assert there or not acknowledged
    with pytest.raises(Fenced):
        await old.commit(0, (1, 1), 2, {"results": [result(2)]}, {})
    assert (await new.take(0, (1, 3), force=True)).seq == read[0]
    await new.commit(0, (1, 3), read[0] + 1, {"results": [result(3)]}, {})
    assert numbers(world.committed()) == ([1, 3] if there else [3])
    for store in (old, new):
        await store.release(0)


@pytest.mark.parametrize("step", [s for s in TAKE_STEPS if s not in ("take.begin",)])
async def test_two_takers_at_once_leave_one_owner(world: World, step: str) -> None:
    """A taker that stood still while a higher epoch came writes nothing more, whatever step it stood at."""
    fast: list[S3Store] = []

    async def overtake() -> None:
        other = world.store()
        await other.take(0, (1, 2), force=True)
        await other.beacon.stop()
        fast.append(other)

    slow = world.store(once(step, lambda: elsewhere(overtake)))

    async def take_and_commit() -> None:
        await slow.take(0, (1, 1))
        await slow.commit(0, (1, 1), 1, {"results": [result(1)]}, {})

    with pytest.raises(Fenced):
        await take_and_commit()
    await slow.release(0)
    await slow.beacon.put_out()
    assert await slow.owner(0) == (1, 2)
    assert world.committed() == []


async def test_a_take_that_is_slow_to_read_does_not_take_the_place_of_its_successor(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are of one process: its driver gave up the first one, which reads what the lane holds meanwhile."""
    store = world.store()
    await store.take(0, (1, 1))
    await store.commit(0, (1, 1), 1, {}, {"outbox": b"x" * (LARGE + 1)})
    read, reading, go_on = store.home.read, asyncio.Event(), asyncio.Event()

    async def slow(name: str, most_bytes: int = 0) -> Got | None:
        if name.endswith(".chunk") and not reading.is_set():
            reading.set()
            await go_on.wait()
        return await read(name, most_bytes)

    monkeypatch.setattr(store.home, "read", slow)
    late = asyncio.create_task(store.take(0, (1, 2)))
    await reading.wait()
    assert (await store.take(0, (1, 3))).seq == 1
    go_on.set()
    with pytest.raises(Fenced):
        await late
    await store.commit(0, (1, 3), 2, {"results": [result(1)]}, {})
    await store.release(0)
    assert numbers(world.committed()) == [1]


async def test_what_a_dead_owner_put_and_never_committed_is_removed_by_the_next(world: World) -> None:
    """Parts without a progress that names them are not read, and do not stay."""

    def die() -> None:
        raise RuntimeError("killed")

    store = world.store(once("commit.put", die))
    await store.take(0, (1, 1))
    with pytest.raises(RuntimeError):
        await store.commit(0, (1, 1), 1, {"results": [result(1)]}, {"outbox": b"x" * (LARGE + 1)})
    await store.beacon.put_out()
    left = world.keys(f"{store.home.root}lane/")
    assert len(left) == 2
    next_one = world.store()
    await next_one.take(0, (1, 2))
    assert world.keys(f"{store.home.root}lane/") == []
    await next_one.commit(0, (1, 2), 1, {"results": [result(2)]}, {})
    await next_one.release(0)
    assert numbers(world.committed()) == [2]


async def test_a_resume_does_not_wait_for_a_command_that_let_go_and_a_dead_one_holds_nothing_for_long(
    world: World,
) -> None:
    """A live one is never pushed aside without --take-over; epochs grow by one with each command."""
    first, second = world.store(), world.store()
    assert await first.hold(WHO) == 1
    with pytest.raises(Held, match="--take-over"):
        await world.place().refuse_held()
    assert await second.holder() == WHO
    await first.beacon.stop()  # killed: no more signs of life
    assert await second.hold(WHO) == 2
    await second.let_go()
    assert await second.holder() is None
    await world.place().refuse_held()
    assert await first.hold(WHO) == 3
    await first.let_go()


async def test_starting_over_leaves_an_old_owner_nothing_to_write_to(world: World) -> None:
    """`--fresh` gives the run another life: a sleeping owner of the old one is fenced, and nothing of it is read."""
    old = world.store()
    await fill(old, 3)
    await old.finish(PLAN)
    told = world.seen("out/results/")
    sleeper = world.store()
    await sleeper.take(0, (1, 2))
    await world.place().discard()
    with pytest.raises(Fenced):
        await sleeper.commit(0, (1, 2), 4, {"results": [result(99)]}, {})
    with pytest.raises(Fenced):
        await sleeper.finish(PLAN)
    await sleeper.beacon.stop()
    assert world.committed() == []
    assert world.seen("out/results/") == told, "readers keep what they were given until it is replaced"
    new = world.store()
    await fill(new, 1)
    [url] = (await new.finish(PLAN))["results"]
    assert sorted(numbers(list(read_records(url)))) == [2, 3]
    assert len(world.seen("out/results/")) == 1


async def test_another_runs_output_is_refused(world: World) -> None:
    """Two runs never mix below one prefix."""
    world.place().open()
    with pytest.raises(Refused, match="another run"):
        world.place("other").open()
    world.sinks["results"] = world.sink("out/r.jsonl", partition_by=("date",))
    with pytest.raises(SpecError, match="partition_by"):
        world.place("other").open()


def day(world: World, name: str, costs: str = "out/costs/") -> None:
    """The results of each day below a prefix of their own, the costs of all days at one place."""
    world.sinks = {"results": world.sink(f"out/{name}/"), "costs": world.sink(costs)}


async def a_day(world: World, run_id: str) -> S3Store:
    life = world.place(run_id).open()._life  # pyright: ignore[reportPrivateUsage]
    outputs = {str(sink): output for sink, output in world.sinks.items()}
    store = S3Store(life, outputs, beat_s=0.05, owner_wait_s=0.0)
    await store.take(0, (1, 1))
    await store.commit(0, (1, 1), 1, {"results": [result(1)], "costs": [result(1)]}, {})
    await store.release(0)
    return store


@pytest.mark.parametrize("costs", ["out/costs/", "out/costs.jsonl"])
async def test_the_costs_of_another_run_are_not_replaced(world: World, costs: str) -> None:
    """Told when it starts, before anything is paid; a run that was refused has taken nothing. With `--fresh` the place
    changes hands: the old objects stay until there are new ones, and the first run can't take it back unasked."""
    day(world, "monday", costs)
    monday = await a_day(world, "run-1")
    await monday.finish(PLAN)
    theirs = {key: world.s3.get(world.bucket, key).etag for key in world.seen("out/costs")}
    day(world, "tuesday", costs)
    with pytest.raises(Refused, match=r"out/costs.* holds the output of another run \(run-1\); this one is run-2"):
        world.place("run-2").open()
    assert world.keys("out/tuesday/") == []
    await world.place("run-2").discard()
    tuesday = await a_day(world, "run-2")
    assert {key: world.s3.get(world.bucket, key).etag for key in world.seen("out/costs")} == theirs
    await tuesday.finish(PLAN)
    ours = {key: world.s3.get(world.bucket, key).etag for key in world.seen("out/costs")}
    assert len(ours) == 1
    with pytest.raises(Refused, match=r"another run \(run-2\)"):
        await monday.finish(PLAN)
    assert {key: world.s3.get(world.bucket, key).etag for key in world.seen("out/costs")} == ours
    assert len(world.seen("out/monday/")) == 1


async def test_a_prefix_whose_manifest_names_another_run_is_refused(world: World) -> None:
    """Also where the working data, which say whose a prefix is, were deleted: at the start, and at the last moment."""
    day(world, "monday")
    await (await a_day(world, "run-1")).finish(PLAN)
    hidden = [key for key in world.keys("out/") if ".penstock/" in key]
    world.s3.delete(world.bucket, hidden)
    day(world, "tuesday")
    with pytest.raises(Refused, match="run-1"):
        world.place("run-2").open()
    (there,) = world.seen("out/costs/")
    day(world, "tuesday", "out/other/")
    tuesday = await a_day(world, "run-2")
    late = S3Store(tuesday._life, {"costs": world.sink("out/costs/")}, beat_s=0.05)  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(Refused, match="run-1"):
        await late.finish(PLAN)
    assert there in world.seen("out/costs/")
    assert json.loads(world.s3.get(world.bucket, "out/costs/_manifest.json").data)["run_id"] == "run-1"
    day(world, "tuesday")
    await world.place("run-2").discard()
    await (await a_day(world, "run-2")).finish(PLAN)
    (ours,) = world.seen("out/costs/")
    assert ours != there


async def test_what_another_runs_live_command_writes_is_not_discarded(world: World) -> None:
    """`--fresh` of a run that would take its results for costs."""
    day(world, "monday")
    monday = await a_day(world, "run-1")
    await monday.hold(WHO)
    day(world, "tuesday", "out/monday/")
    with pytest.raises(Held):
        await world.place("run-2").discard()
    await monday.let_go()


def test_a_trial_or_a_replay_stands_beside_the_run_that_it_belongs_to(world: World) -> None:
    """`results.first-5.jsonl` is not the place of `results.jsonl`."""
    for run, name in (("run", "out/results.jsonl"), ("run~first-5", "out/results.first-5.jsonl")):
        world.sinks = {"results": world.sink(name)}
        world.place(run).open()


# chunks and lists


async def test_chunks_of_any_size_and_number_come_back_and_the_progress_stays_small(world: World) -> None:
    """Large ones, many small ones, replaced and deleted ones; what nothing names any more is deleted."""
    store = world.store()
    await store.take(0, (1, 1))
    held: dict[str, bytes] = {}
    for seq in range(1, 41):
        chunks = {f"outbox/{seq:010d}": b"o" * (LARGE + seq), "progress": b"%d" % seq}
        chunks |= {f"shelf/{seq}/{n}": b"s" * 3000 for n in range(20)}
        if seq > 3:
            chunks[f"outbox/{seq - 3:010d}"] = b""
            chunks |= {f"shelf/{seq - 3}/{n}": b"" for n in range(19)}
        await store.commit(0, (1, 1), seq, {}, chunks)
        held = {name: value for name, value in (held | chunks).items() if value}
    found = world.s3.get(world.bucket, f"{store.home.root}progress/0000")
    assert len(found.data) < 2 * INLINE
    assert (await world.store().peek(0)).chunks == held
    await store.release(0)
    assert len(world.keys(f"{store.home.root}lane/")) == 4, "three large chunks and the base"
    other = world.store()
    assert (await other.take(0, (1, 2))).chunks == held
    await other.release(0)


async def test_a_long_list_of_parts_is_sealed_and_never_written_again(world: World) -> None:
    """The progress object stays small however many commits there were."""
    store = world.store()
    await fill(store, 2 * SEAL + 3, each=1)
    found = world.s3.get(world.bucket, f"{store.home.root}progress/0000")
    assert len(found.data) < 3000
    assert len([k for k in world.keys(f"{store.home.root}lane/") if k.endswith(".list")]) == 2
    assert numbers(world.committed()) == list(range(1, 2 * SEAL + 4))


# what readers see


async def test_who_reads_while_records_are_put_together_is_told_to_try_again(world: World) -> None:
    """Not that something is lost, and to start anew. What is lost is told as ever."""
    store = world.store()
    await fill(store, 2)
    await fill(store, 2, lane=1)
    reading = world.place().committed("results")
    next(reading)
    await store.finish(PLAN)
    with pytest.raises(Temporary, match="put its records together"):
        list(reading)
    assert len(world.committed()) == 8
    await fill(store, 2, lane=2)
    [part, *_] = [key for key in world.keys(store.home.root) if key.endswith(".part")]
    world.s3.delete(world.bucket, [part])
    with pytest.raises(Corrupt, match="is gone"):
        world.committed()


async def test_merged_parts_and_a_manifest_are_all_that_readers_see(world: World) -> None:
    """Nothing before the end; then few objects, each record once; the manifest names them all; a second command adds
    to it; and what was merged is deleted."""
    store = world.store()
    await fill(store, 5)
    await fill(store, 5, lane=1)
    assert world.seen() == []
    [url] = (await store.finish(PLAN))["results"]
    assert len(world.seen("out/results/")) == 2
    assert sorted(numbers(list(read_records(url)))) == sorted([*range(2, 12), *range(1002, 1012)])
    assert outputs.objects(url) == [store._urls("results", key)[0] for key in world.seen("out/results/")]  # pyright: ignore[reportPrivateUsage]
    assert [k for k in world.keys(store.home.root) if k.endswith(".part")] == []
    before = world.keys()
    assert (await store.finish(PLAN))["results"] == [url]
    assert world.keys() == before, "nothing new: nothing is written"
    again = world.store()
    await again.take(0, (2, 1))
    await again.commit(0, (2, 1), 6, {"results": [result(500)]}, {})
    await again.release(0)
    assert numbers(world.committed())[-1] == 500
    await again.finish(PLAN)
    assert len(list(read_records(url))) == 21
    assert len(world.committed()) == 21
    manifest = json.loads(world.s3.get(world.bucket, "out/results/_manifest.json").data)
    assert (manifest["rows"], len(manifest["files"])) == (21, 3)
    assert {entry["sink"] for entry in manifest["files"]} == {"results"}


@contextlib.contextmanager
def not_deleting(world: World, code: str, times: int) -> Iterator[list[list[str]]]:
    """So many answers to calls that delete say this of their first key, within a 200. Yields the keys of all calls."""
    asked: list[list[str]] = []
    events: Any = world.s3._client.meta.events  # pyright: ignore[reportPrivateUsage]

    def note(params: Any, **_: object) -> None:
        asked.append([one["Key"] for one in params["Delete"]["Objects"]])

    def spoil(parsed: Any, **_: object) -> None:
        if len(asked) <= times:
            parsed["Errors"] = [{"Key": asked[-1][0], "Code": code, "Message": "no"}]

    events.register("provide-client-params.s3.DeleteObjects", note)
    events.register("after-call.s3.DeleteObjects", spoil)
    yield asked
    events.unregister("provide-client-params.s3.DeleteObjects", note)
    events.unregister("after-call.s3.DeleteObjects", spoil)


@pytest.mark.parametrize(("code", "times"), [("SlowDown", 1), ("InternalError", 99), ("AccessDenied", 99)])
async def test_a_run_ends_where_the_store_does_not_delete_what_was_merged(
    world: World, monkeypatch: pytest.MonkeyPatch, code: str, times: int
) -> None:
    """What the store had no time for is tried again, those keys alone; what it keeps stays at worst."""
    monkeypatch.setattr(s3_client, "PAUSES_S", (0.0, 0.0))
    store = world.store()
    await fill(store, 3)
    with not_deleting(world, code, times) as asked:
        [url] = (await store.finish(PLAN))["results"]
    assert sorted(numbers(list(read_records(url)))) == [*range(2, 8)]
    again = [len(keys) for keys in asked if asked[0][0] in keys]
    assert again[0] > 1
    assert again[1:] == {"SlowDown": [1], "InternalError": [1, 1], "AccessDenied": []}[code]


@pytest.mark.parametrize("step", FINISH_STEPS)
async def test_a_crash_at_any_step_of_finishing_loses_and_doubles_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The next command finishes, and readers see each record once, whether they follow the manifest or the names."""
    monkeypatch.setattr(told, "LIST_FILES", 1)
    all_of_it = [*range(2, 8), *range(1002, 1008)]
    world.sinks["dead_letters"] = world.sink("out/dead.jsonl")

    def die() -> None:
        raise RuntimeError("killed")

    store = world.store(once(step, die))
    await fill(store, 3)
    await fill(store, 3, lane=1)
    with pytest.raises(RuntimeError):
        await store.finish(PLAN)
    assert sorted(numbers(world.committed())) == all_of_it
    other = world.store()
    [url] = (await other.finish(PLAN))["results"]
    assert sorted(numbers(list(read_records(url)))) == all_of_it
    data = [world.s3.get(world.bucket, key).data for key in world.seen("out/results/")]
    assert sorted(numbers(b"".join(data).splitlines())) == all_of_it


async def test_a_lane_merges_while_it_goes_and_its_next_owner_ends_what_a_dead_one_began(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a job without an end records reach readers while it runs; after a kill amid a merge each is there once."""
    endless = msgspec.structs.replace(PLAN, bounded=False)

    def die() -> None:
        raise RuntimeError("killed")

    dying = world.store(once("merge.written", die), beat_s=30.0)
    await dying.write_plan(endless)
    await dying.take(0, (1, 1))
    await dying.commit(0, (1, 1), 1, {"results": [result(1)], "costs": [result(1)]}, {})
    lane = dying._lanes[0]  # pyright: ignore[reportPrivateUsage]
    sinks = dying._sinks  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(RuntimeError):
        await s3_merge.merge(lane, dying.home, sinks, 0.0, threading.Event())
    await dying.beacon.put_out()
    assert len(world.seen("out/results/")) == 1, "left by the dead one"
    monkeypatch.setattr(s3_merge, "MERGE_BYTES", 1)
    store = world.store()
    await store.take(0, (1, 2))
    await store.commit(0, (1, 2), 2, {"results": [result(2)]}, {})
    url = store._urls("results", "out/results/_manifest.json")[0]  # pyright: ignore[reportPrivateUsage]
    async with asyncio.timeout(30):
        while not world.keys("out/results/_manifest.json") or len(list(read_records(url))) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # its signs of life, and merges with them, come every 50 ms
    assert sorted(numbers(list(read_records(url)))) == [1, 2]
    assert len(world.seen("out/results/")) == len(outputs.objects(url))
    await store.commit(0, (1, 2), 3, {"results": [result(3)]}, {})
    await store.release(0)
    assert sorted(numbers(world.committed())) == [1, 2, 3]


async def test_a_merge_that_fails_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Readers of a run without an end would wait for nothing, and nobody know why."""

    def die() -> None:
        raise RuntimeError("no such column")

    monkeypatch.setattr(s3_merge, "MERGE_BYTES", 1)
    store = world.store(once("merge.written", die))
    await store.write_plan(msgspec.structs.replace(PLAN, bounded=False))
    await store.take(0, (1, 1))
    await store.commit(0, (1, 1), 1, {"results": [result(1)]}, {})
    async with asyncio.timeout(30):
        while not caplog.messages:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await store.release(0)
    assert "merging lane 0 failed, its readers wait: RuntimeError('no such column')" in caplog.messages[0]


async def test_a_follower_shows_records_while_a_run_without_an_end_goes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told of the plan that the primary holds; where the run has an end, its manifest comes with the end."""
    monkeypatch.setattr(s3_merge, "MERGE_BYTES", 1)
    for bounded in (True, False):
        prefix = f"follow/{bounded}/"
        world.sinks = {"costs": world.sink(prefix)}
        follower = world.store()
        await Stores(MemoryStore("none"), {"s3": follower}, {}).tell(msgspec.structs.replace(PLAN, bounded=bounded))
        await follower.take(0, (1, 1))
        await follower.commit(0, (1, 1), 1, {"costs": [result(1)]}, {})
        async with asyncio.timeout(30):
            while not world.seen(prefix):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            while not bounded and not world.keys(f"{prefix}_manifest.json"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await follower.release(0)
        assert len(world.keys(f"{prefix}_manifest.json")) == (0 if bounded else 1)


async def test_an_owner_that_was_fenced_amid_a_merge_leaves_nothing_to_readers(world: World) -> None:
    """It takes its objects back; the lane's new owner makes them."""

    async def take() -> None:
        other = world.store()
        await other.take(0, (1, 2), force=True)
        await other.release(0)

    old = world.store(once("merge.written", lambda: elsewhere(take)), beat_s=30.0)
    await old.take(0, (1, 1))
    await old.commit(0, (1, 1), 1, {"results": [result(1)]}, {})
    with pytest.raises(Fenced):
        await s3_merge.merge(old._lanes[0], old.home, old._sinks, 0.0, threading.Event())  # pyright: ignore[reportPrivateUsage]
    assert world.seen() == []
    await old.release(0)
    [url] = (await world.store().finish(PLAN))["results"]
    assert numbers(list(read_records(url))) == [1]


async def test_parquet_in_hive_folders_is_what_pyarrow_reads(world: World) -> None:
    """`partition_by` makes folders; the manifest's objects hold the rows, and read_records gives them back."""
    world.sinks["results"] = world.sink("out/results/", format="parquet", partition_by=("date", "tier", "shop"))
    store = world.store()
    await store.take(0, (1, 1))
    rows = [msgspec.structs.replace(result(n), value=_full_result(n)) for n in range(20)]
    await store.commit(0, (1, 1), 1, {"results": rows}, {})
    await store.release(0)
    [url] = (await store.finish(PLAN))["results"]
    folders = sorted(key.removeprefix("out/results/").rpartition("/")[0] for key in world.seen("out/results/"))
    assert folders == [
        "date=2026-11-24/tier=1/shop=a%2Fb",
        "date=2026-11-24/tier=2/shop=__HIVE_DEFAULT_PARTITION__",
    ]
    found: list[int] = []
    for one in outputs.objects(url):
        with outputs.opened(one) as file:
            found += parquet.read_table(file).column("n").to_pylist()
    assert sorted(found) == list(range(20))
    assert sorted(numbers(list(read_records(url)))) == list(range(20))


def _full_result(n: int) -> bytes:
    """A whole result line, as the golden record has it."""
    line = json.loads(Path("tests/golden/results.rows.jsonl").read_bytes().splitlines()[0])
    line["penstock"] |= {"finished_at": "2026-11-24T10:00:00.000Z", "tier": n % 2 + 1}
    return json.dumps(line | {"n": n, "shop": "a/b" if n % 2 == 0 else None}).encode()


async def test_a_single_object_is_all_records_in_input_order(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made of all lanes, uploaded in parts where it is large, replaced by the next command; without dead letters there
    is none of them."""
    from penstock.connectors.s3.store import upload

    monkeypatch.setattr(upload, "PART_BYTES", 5 << 20)
    world.sinks = {"results": world.sink("out/all.jsonl"), "dead_letters": world.sink("out/dead.jsonl")}
    store = world.store()
    for lane in (0, 1):
        await store.take(lane, (1, 1))
        rows = [msgspec.structs.replace(result(n, pad="x" * 300_000), sub=0) for n in range(19 + lane, 0, -2)]
        await store.commit(lane, (1, 1), 1, {"results": rows}, {})
        await store.release(lane)
    assert world.seen() == []
    done = await store.finish(PLAN)
    assert done["dead_letters"] == []
    assert world.seen() == ["out/all.jsonl"]
    assert numbers(list(read_records(done["results"][0]))) == list(range(1, 21))
    await store.take(0, (2, 1))
    await store.commit(0, (2, 1), 2, {"results": [result(0)], "dead_letters": [result(7)]}, {})
    await store.release(0)
    done = await store.finish(PLAN)
    assert numbers(list(read_records(done["results"][0]))) == list(range(21))
    assert sorted(numbers(list(iter_committed(world.sinks, "run", "results")))) == list(range(21))
    assert len(list(read_records(done["dead_letters"][0]))) == 1


async def test_without_dead_letters_a_strangers_object_stays_and_one_of_an_earlier_life_goes(world: World) -> None:
    """Nothing would be written in its place."""
    world.sinks = {"results": world.sink("out/all.jsonl"), "dead_letters": world.sink("out/dead.jsonl")}
    for data, stays in ((b"my notes", True), (b'{"run_id":"run"}\n', False)):
        world.s3.put(world.bucket, "out/dead.jsonl", data)
        assert (await world.store().finish(PLAN))["dead_letters"] == []
        assert ("out/dead.jsonl" in world.seen()) == stays


async def test_an_object_that_somebody_else_wrote_meanwhile_is_not_replaced(world: World) -> None:
    """The put that ends the assembly names what was there when it began."""
    world.sinks = {"results": world.sink("out/all.jsonl")}
    store = world.store()
    await fill(store, 1)
    from penstock.connectors.s3.store import assembly

    real = assembly.upload

    def late(*args: object) -> str:
        world.s3.put(world.bucket, "out/all.jsonl", b"theirs")
        return real(*args)  # pyright: ignore[reportArgumentType]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "upload", late)
        with pytest.raises(Temporary, match="run the same command again"):
            await store.finish(PLAN)
    assert world.s3.get(world.bucket, "out/all.jsonl").data == b"theirs"
    await store.finish(PLAN)
    assert numbers(world.s3.get(world.bucket, "out/all.jsonl").data.splitlines()) == [2, 3]


OWNER = """
import asyncio, sys
from penstock.connectors.base import OutRecord
from penstock.connectors.s3.store.place import S3Place
from penstock.connectors.settings import S3Sink
from penstock.engine.errors import Fenced

async def main(bucket, endpoint, run):
    sinks = {s: S3Sink(bucket, f"out/{s}/", endpoint, "us-east-1") for s in ("results", "costs")}
    store = S3Place(sinks, "run").open()
    taken = await store.take(0, (run, 1))
    n, seq = int(taken.chunks.get("next", b"0")), taken.seq
    print("taken", seq, n, flush=True)
    while True:
        seq += 1
        rows = [OutRecord(0, n + i, b'{"n":%d}' % (n + i)) for i in range(5)]
        try:
            await store.commit(0, (run, 1), seq, {"results": rows, "costs": rows}, {"next": b"%d" % (n + 5)})
        except Fenced as error:
            print("fenced", error, flush=True)
            return
        n += 5
        print("acked", seq, n, flush=True)

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


def owner_process(world: World, run: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", OWNER, world.bucket, world.endpoint, str(run)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


async def test_kill_nine_at_random_moments_loses_and_doubles_nothing(world: World) -> None:
    """Owners one after the other, each a real process killed amid its commits: every acknowledged record is there,
    once, and results and costs agree."""
    chance, acknowledged = random.Random(7), 0
    for run in range(1, 6):
        process = owner_process(world, run)
        try:
            assert said(process)[0] == "taken"
            for _ in range(chance.randrange(1, 20)):
                acknowledged = int(said(process)[2])
            await asyncio.sleep(chance.random() * 0.02)
        finally:
            process.kill()
            out, _ = process.communicate()
        whole = [line for line in out.splitlines(keepends=True) if line.endswith("\n")]
        acknowledged = max([acknowledged, *(int(line.split()[2]) for line in whole)])
        there = numbers(world.committed())
        assert there == list(range(len(there)))
        assert acknowledged <= len(there) <= acknowledged + 5
        assert numbers(world.committed("costs")) == there


async def test_a_stopped_owner_that_wakes_up_writes_nothing_that_counts(world: World) -> None:
    """A real process is SIGSTOPped amid its commits; the next command takes the lane; after SIGCONT it is fenced."""
    process = owner_process(world, 1)
    try:
        for _ in range(5):
            said(process)
        process.send_signal(signal.SIGSTOP)
        new = world.store()
        taken = await new.take(0, (2, 1))
        seen = numbers(world.committed())
        await new.commit(0, (2, 1), taken.seq + 1, {"results": [result(-1)]}, {})
        process.send_signal(signal.SIGCONT)
        out, _ = await asyncio.to_thread(process.communicate, timeout=60)
    finally:
        process.kill()
    lines = [line.split() for line in out.splitlines()]
    assert lines[-1][0] == "fenced"
    assert all(int(line[1]) <= taken.seq for line in lines if line[0] == "acked")
    assert numbers(world.committed()) == [*seen, -1]
    assert seen == list(range(int(taken.chunks["next"])))
    await new.release(0)
