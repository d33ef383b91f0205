"""What readers of S3 are told while a run without an end goes: each record once at every moment, at the same cost in
the last week as in the first."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from botocore.exceptions import ConnectionClosedError
from botocore.httpsession import URLLib3Session
from pyarrow.fs import S3FileSystem

from penstock.connectors.filestore.disk import no_faults
from penstock.connectors.s3 import outputs
from penstock.connectors.s3.client import PLAIN
from penstock.connectors.s3.store import manifest, told
from penstock.connectors.s3.store.merge import MERGE_STEPS
from penstock.connectors.s3.store.parts import Made
from penstock.connectors.s3.store.progress import Final
from penstock.connectors.s3.store.store import S3Store
from penstock.connectors.writing.tables import read_records
from tests.connectors.s3_world import PLAN, Requests, World, fill, numbers, once, result

if TYPE_CHECKING:
    from penstock.jobs.dev.s3 import S3Server
    from tests.conftest import S3At

pytestmark = pytest.mark.s3

ENDLESS = msgspec.structs.replace(PLAN, bounded=False)


@pytest.fixture
def world(s3_server: S3Server | S3At, s3_keys: None, new_bucket: Callable[..., str]) -> World:
    return World(s3_server.endpoint, new_bucket("manifest"))


@pytest.fixture
def short_lists(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(told, "LIST_FILES", 3)
    return 3


async def merged(store: S3Store) -> None:
    """What its sign of life does now and then, at once."""
    lane = store._lanes[0]  # pyright: ignore[reportPrivateUsage]
    task = asyncio.current_task()
    assert task is not None
    store._merges[0] = task, threading.Event()  # pyright: ignore[reportPrivateUsage]
    await store._merge(lane, threading.Event())  # pyright: ignore[reportPrivateUsage]


async def commit(store: S3Store, seq: int, epoch: tuple[int, int] = (1, 1)) -> None:
    await store.commit(0, epoch, seq, {"results": [result(seq)], "costs": [result(seq)]}, {})


def url_of(store: S3Store, sink: str) -> str:
    return store._urls(sink, f"out/{sink}/_manifest.json")[0]  # pyright: ignore[reportPrivateUsage]


def shown(store: S3Store, sink: str = "results") -> list[int]:
    return sorted(numbers(list(read_records(url_of(store, sink)))))


async def test_a_merge_costs_the_same_however_many_came_before(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests, the lane's progress and the manifest's own files do not grow with the run; readers who follow the
    manifest and its lists, and our own commands, see each record once."""
    monkeypatch.setattr(told, "LIST_FILES", 5)
    store = world.store(beat_s=3600.0)
    await store.write_plan(ENDLESS)
    await store.take(0, (1, 1))
    requests, costs, sizes = Requests(world), list[dict[str, int]](), list[int]()
    for seq in range(1, 26):
        await commit(store, seq)
        requests.took()
        await merged(store)
        costs.append(requests.took())
        sizes.append(len(world.s3.get(world.bucket, f"{store.home.root}progress/0000").data))
        assert len(outputs.objects(url_of(store, "results"))) == seq
    early, late = costs[1:5], costs[-4:]
    assert late == early, "but for the merges that make a list, every fifth"
    assert max(sizes[-5:]) <= max(sizes[:5]) + 20 * 60, "no more than what was retired within the grace period"
    head = json.loads(world.s3.get(world.bucket, "out/results/_manifest.json").data)
    assert (len(head["files"]), len(head["lists"])) == (5, 4)
    assert (head["rows"], {one["rows"] for one in head["lists"]}) == (25, {5})
    for sink in ("results", "costs"):
        assert shown(store, sink) == list(range(1, 26))
    assert sorted(numbers(world.committed())) == list(range(1, 26))
    await store.release(0)


STEPS = (*MERGE_STEPS, *manifest.STEPS, "merge.forgotten")


@pytest.mark.parametrize("step", STEPS)
async def test_a_crash_at_any_step_of_telling_readers_loses_and_doubles_nothing(
    world: World, short_lists: int, step: str
) -> None:
    """The manifest holds each record at most once at every moment, our own commands each exactly once; the lane's next
    owner, and the end of the run, bring all; lists that nothing names are gone."""

    def die() -> None:
        raise RuntimeError("killed")

    last = short_lists + 1
    dying = world.store(beat_s=3600.0)
    await dying.write_plan(ENDLESS)
    await dying.take(0, (1, 1))
    for seq in range(1, last):
        await commit(dying, seq)
        await merged(dying)
    deadly = once(step, die)
    dying._faults = dying._lanes[0]._faults = deadly  # pyright: ignore[reportPrivateUsage]
    await commit(dying, last)
    await merged(dying)  # it may make a list
    await dying.beacon.put_out()
    there = shown(dying)
    assert there in (list(range(1, last)), list(range(1, last + 1)))
    assert sorted(numbers(world.committed())) == list(range(1, last + 1))
    other = world.store(beat_s=3600.0)
    await other.take(0, (1, 2), force=True)
    await commit(other, last + 1, (1, 2))
    for _ in range(2):  # what the dead one began comes first
        await merged(other)
    assert shown(other) == shown(other, "costs") == sorted(numbers(world.committed())) == list(range(1, last + 2))
    await other.release(0)
    await other.finish(ENDLESS)
    assert shown(other) == list(range(1, last + 2))
    assert sorted(world.seen("out/results/")) == sorted(world.seen_by(url_of(other, "results")))
    lists = json.loads(world.s3.get(world.bucket, "out/results/_manifest.json").data)["lists"]
    assert world.keys("out/results/_manifest/") == sorted(one["key"] for one in lists)


async def test_a_list_that_was_told_stays_where_the_answer_got_lost_and_another_told_on_top_of_it(
    world: World, short_lists: int
) -> None:
    """The put that is sent again is told that it lost, though its first sending counted."""
    life = world.store()._life  # pyright: ignore[reportPrivateUsage]

    def tell(lane: int, count: int) -> told.Told:
        finals = [Final("results", f"out/results/{lane}-{n}", 1, 1) for n in range(count)]
        return told.tell(life, "results", "out/results/", {lane: Made(0, finals)}, told.Told(), PLAIN, no_faults)

    def lose_the_answer(request: Any, **_: object) -> None:
        if request.method == "PUT" and request.url.endswith("told/results") and left:
            left.pop()
            assert URLLib3Session().send(request).status_code == 200
            tell(1, 1)
            raise ConnectionClosedError(endpoint_url=request.url)

    left = [None]
    life.home.s3._client.meta.events.register("before-send.s3.PutObject", lose_the_answer)  # pyright: ignore[reportPrivateUsage]
    tell(0, short_lists + 1)
    now = told.read(life.home, "results")[0]
    assert not left
    assert (len(now.lists), len(list(told.keys(life.home, now)))) == (1, short_lists + 2)


async def test_a_reader_beside_a_lane_that_merges_sees_every_record_once(world: World, short_lists: int) -> None:
    """Our own commands read what is told and what lanes hold as of one moment, while objects move from one to the
    other."""
    store = world.store(beat_s=3600.0)
    await store.write_plan(ENDLESS)
    await store.take(0, (1, 1))
    for seq in range(1, 13):
        await commit(store, seq)
        reading = asyncio.create_task(asyncio.to_thread(world.committed))
        await merged(store)
        assert sorted(numbers(await reading)) == list(range(1, seq + 1))
    await store.release(0)


async def test_what_is_told_comes_back_where_somebody_deleted_it(world: World, short_lists: int) -> None:
    """The truth from the manifest, and the manifest from the truth: no record is missed, none is told twice."""
    store = world.store(beat_s=3600.0)
    await store.write_plan(ENDLESS)
    await store.take(0, (1, 1))
    for seq in range(1, 9):
        gone = store.home.key("told/results") if seq == 5 else "out/results/_manifest.json" if seq == 7 else ""
        world.s3.delete(world.bucket, [gone] if gone else [])
        await commit(store, seq)
        await merged(store)
        assert shown(store) == list(range(1, seq + 1))
    await store.release(0)


async def test_starting_over_takes_the_lists_of_the_old_run_too(world: World, short_lists: int) -> None:
    """Readers keep what they were given until there is something new; then all of the old goes."""
    old = world.store(beat_s=3600.0)
    await old.write_plan(ENDLESS)
    await old.take(0, (1, 1))
    for seq in range(1, 9):
        await commit(old, seq)
        await merged(old)
    await old.release(0)
    await world.place().discard()
    assert shown(old) == list(range(1, 9))
    new = world.store()
    await fill(new, 1)
    await new.finish(PLAN)
    assert shown(new) == [2, 3]
    assert len(world.seen("out/results/")) == 1
    assert world.keys("out/results/_manifest/") == []


async def test_pyarrow_reads_as_the_documentation_says(
    world: World, short_lists: int, s3_server: S3Server | S3At
) -> None:
    """The lines of docs/delivery.md are run, on a manifest that has lists."""
    world.sinks = {"results": world.sink("labels/")}
    store = world.store(beat_s=3600.0)
    await store.write_plan(ENDLESS)
    await store.take(0, (1, 1))
    for seq in range(1, 9):
        await store.commit(0, (1, 1), seq, {"results": [result(seq)]}, {})
        await merged(store)
    await store.release(0)
    files = S3FileSystem(
        access_key=s3_server.keys.access_key, secret_key=s3_server.keys.secret_key, region="us-east-1", scheme="http",
        endpoint_override=world.endpoint.removeprefix("http://"),
    )  # fmt: skip
    text = Path("docs/delivery.md").read_text()
    names: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0], names)
    assert sorted(names["labels"](files, world.bucket).to_table().column("n").to_pylist()) == list(range(1, 9))
