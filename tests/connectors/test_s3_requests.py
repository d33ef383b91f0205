"""How many requests a run's beginning and end take, and which go side by side: each is a round trip of 20–60 ms."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from penstock.connectors.s3.store import store as s3_store
from penstock.engine.errors import Corrupt
from tests.connectors.s3_world import PLAN, Requests, World, fill, once

if TYPE_CHECKING:
    from penstock.jobs.dev.s3 import S3Server
    from tests.conftest import S3At

pytestmark = pytest.mark.s3


@pytest.fixture
def world(s3_server: S3Server | S3At, s3_keys: None, new_bucket: Callable[..., str]) -> World:
    """With two sinks."""
    return World(s3_server.endpoint, new_bucket("requests"))


@contextlib.contextmanager
def meeting(world: World, count: int, kind: Callable[[str, str], bool]) -> Generator[None]:
    """So many requests of a kind wait for each other before they go out; what goes alone fails."""
    together, seen = threading.Barrier(count), list[str]()

    def wait(request: Any, **_: object) -> None:
        if kind(request.method, request.url):
            together.wait(20)
            seen.append(request.url)

    events: Any = world.s3._client.meta.events  # pyright: ignore[reportPrivateUsage]
    events.register("before-send.s3", wait)
    try:
        yield
    finally:
        events.unregister("before-send.s3", wait)
    assert len(seen) == count


def test_who_opens_a_store_tries_its_conditions_and_reads_each_mark_once(world: World) -> None:
    """The first time also what readers are shown, and the marks are put."""
    requests = Requests(world)
    world.store()
    assert requests.took() == {"PUT": 4 + 2, "POST": 1, "GET": 2 * 2}
    world.store()
    assert requests.took() == {"PUT": 4, "POST": 1, "GET": 2}


def test_marks_are_read_and_put_side_by_side(world: World) -> None:
    with (
        meeting(world, 2, lambda method, url: method == "GET" and url.endswith("run.json")),
        meeting(world, 2, lambda method, url: method == "PUT" and url.endswith("run.json")),
    ):
        world.store()


async def test_nothing_is_looked_for_in_a_lane_that_nobody_had_before(world: World) -> None:
    """A sign of life, a look and a swap. Its next owner looks for objects and, in each sink, for uploads."""
    store, requests = world.store(beat_s=3600.0), Requests(world)
    await store.take(0, (1, 1))
    assert requests.took() == {"PUT": 2, "GET": 1}
    other = world.store(beat_s=3600.0)
    requests.took()
    with meeting(world, 2, lambda _, url: "?uploads" in url):
        await other.take(0, (1, 2), force=True)
    assert requests.took() == {"PUT": 2, "GET": 1 + 1 + 2}
    await other.release(0)
    await store.release(0)


@pytest.mark.parametrize("lanes", [1, 3])
async def test_the_end_of_a_small_run_takes_so_many_requests(world: World, lanes: int) -> None:
    """Of each lane: its progress, the list of its parts as it is put, merged and retired, and its three parts; of each
    sink: two finals a lane, what is told and shown, and a sweep."""
    plan = msgspec.structs.replace(PLAN, lanes=lanes)
    for lane in range(lanes):
        await fill(world.store(), 3, lane)
    store, requests = world.store(), Requests(world)
    await store.finish(plan)
    begin_anew = 2
    assert requests.took() == {
        "GET": begin_anew + lanes * (1 + 2 + 3) + 2 * (3 + 3),
        "PUT": lanes * (1 + 3 + 2) + 2 * 2,
        "POST": lanes,
    }


async def test_sinks_are_swept_and_lanes_merged_side_by_side(world: World) -> None:
    for lane in range(2):
        await fill(world.store(), 1, lane)
    store = world.store()
    with (
        meeting(world, 2, lambda method, url: method == "PUT" and url.endswith(".list")),
        meeting(world, 2, lambda _, url: "?uploads" in url),
    ):
        await store.finish(msgspec.structs.replace(PLAN, lanes=2))


async def test_no_more_lanes_are_merged_at_once_than_there_is_memory_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_store, "MERGES", 2)
    going, most, seen = 0, 0, Counter[str]()

    def faults(step: str) -> None:
        nonlocal going, most
        seen[step] += 1
        going += (step == "merge.begun") - (step == "merge.ended")
        most = max(most, going)

    for lane in range(5):
        await fill(world.store(), 1, lane)
    await world.store(faults).finish(msgspec.structs.replace(PLAN, lanes=5))
    assert (most, seen["merge.ended"]) == (2, 5)


async def test_after_a_merge_that_failed_no_other_lane_is_begun(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_store, "MERGES", 1)
    seen = Counter[str]()

    def die() -> None:
        raise RuntimeError("killed")

    deadly = once("merge.written", die)

    def faults(step: str) -> None:
        seen[step] += 1
        deadly(step)

    for lane in range(3):
        await fill(world.store(), 1, lane)
    with pytest.raises(RuntimeError):
        await world.store(faults).finish(PLAN)
    assert seen["merge.begun"] == 1


async def test_a_run_whose_lane_lost_its_progress_does_not_end(world: World) -> None:
    """It had started, so it has results that readers would miss."""
    for lane in range(3):
        await fill(world.store(), 1, lane)
    store = world.store()
    world.s3.delete(world.bucket, [store.home.key("progress/0001")])
    with pytest.raises(Corrupt, match="progress/0001 is gone"):
        await store.finish(msgspec.structs.replace(PLAN, started=True))
    assert world.keys("out/results/_manifest.json") == []
