"""What finished and killed runs leave in the progress topic goes away, and nothing else does."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
from aiokafka import TopicPartition
from aiokafka.structs import ConsumerRecord

from penstock.connectors.audit import open_audit
from penstock.connectors.base import Holder, OutRecord
from penstock.connectors.kafka import control, progress
from penstock.connectors.kafka.client import ended
from penstock.connectors.kafka.keys import Scope
from penstock.connectors.kafka.place import KafkaPlace
from penstock.connectors.kafka.pruning import Found, Progress
from penstock.connectors.kafka.store import KafkaStore
from penstock.connectors.settings import Connection, KafkaSink
from penstock.engine.errors import PenstockError, Temporary
from penstock.engine.flow.progress import PROGRESS, Saved, SavedSplit
from penstock.engine.plan import Plan, Split
from penstock.jobs import cli
from penstock.jobs.commands.prune import take_out
from penstock.jobs.dev.kafka import KafkaServer

WHO = Holder(host="here", pid=7, user="ada", since=0.0, command="penstock run job.yaml")
LANES = 2


class Runs:
    """Runs that share a progress topic and a results topic."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self.bootstrap, self.topic = bootstrap, topic
        self.stores: list[KafkaStore] = []

    def place(self, name: str) -> KafkaPlace:
        sink = KafkaSink(f"{self.topic}.results", self.bootstrap, create=True, progress_topic=self.topic)
        return KafkaPlace({"results": sink}, name)

    def open(self, name: str) -> KafkaStore:
        self.stores.append(KafkaStore(msgspec.structs.replace(self.place(name).settings, beat_s=0.1, alive_s=0.5)))
        return self.stores[-1]

    async def worked(self, name: str, *, done: bool = True, bounded: bool = True) -> None:
        """One record a lane; each lane has one split."""
        store = self.open(name)
        epoch = await store.hold(WHO)
        splits = tuple(Split(f"s{n}", f"o{n}", n, n, "kafka://h:1/in/0", 0, 10 if bounded else None, unit="rows")
                       for n in range(LANES))  # fmt: skip
        plan = Plan(name, name, {}, LANES, splits, {}, 0.0, started=True, bounded=bounded)
        await store.write_plan(plan)
        for lane in range(LANES):
            await store.take(lane, (epoch, 1))
            lane_done = done or lane > 0
            open_ones = () if lane_done else (SavedSplit(lane, 3, b"", 5, False),)
            saved = Saved(opened=1, splits=open_ones, done=lane_done, plan_version=1)
            record = OutRecord(lane, 1, b'{"run":"%s"}' % name.encode(), item_id=f"{name}-{lane}")
            await store.commit(lane, (epoch, 1), 1, {"results": [record]}, {PROGRESS: msgspec.msgpack.encode(saved)})
            await store.release(lane)
        await store.let_go()

    async def found(self) -> dict[str, Found]:
        return {run.name: run for run in await Progress(Connection(self.bootstrap), self.topic).read()}

    async def committed(self, name: str) -> int:
        return len(await asyncio.to_thread(lambda: list(self.place(name).committed("results"))))


@pytest.fixture
async def runs(kafka_server: KafkaServer, new_topic: Callable[..., Awaitable[str]]) -> AsyncIterator[Runs]:
    topic = await new_topic("pruned", partitions=8, config={"cleanup.policy": "compact"})
    made = Runs(kafka_server.bootstrap, topic)
    yield made
    for store in made.stores:
        store.kill()
    await ended()


@pytest.mark.kafka
async def test_only_runs_that_are_over_are_pruned_and_begin_anew_under_their_name(runs: Runs, tmp_path: Path) -> None:
    """Those under way, and those without an end, stay as they are. A pruned one has a higher epoch when it is run
    again, and counts none of the old life's records as its own. The audit log is told first, or nothing is pruned."""
    over, begun, endless = (f"{name}-{secrets.token_hex(3)}" for name in ("over", "begun", "endless"))
    await runs.worked(over)
    await runs.worked(begun, done=False)
    await runs.worked(endless, bounded=False)
    found = await runs.found()
    assert {name for name, run in found.items() if run.over} == {over}
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "audit").write_bytes(b"")
    with pytest.raises(PenstockError):
        await take_out(Connection(runs.bootstrap), runs.topic, time.time() + 9, str(tmp_path / "broken"))
    assert await runs.found() == found
    gone, _ = await take_out(Connection(runs.bootstrap), runs.topic, time.time() + 9, str(tmp_path))
    (entry,) = open_audit(str(tmp_path)).entries()
    assert ([run.name for run in gone], entry.kind) == ([over], "deletion")
    assert msgspec.json.decode(entry.facts)["runs"] == [over]
    left = await runs.found()
    assert left[over].records == left[over].stays == 2
    assert [left[name].records for name in (begun, endless)] == [found[name].records for name in (begun, endless)]
    assert await runs.committed(over) == 0
    again = runs.open(over)
    assert await again.hold(WHO) == 2
    assert await again.read_plan() is None
    assert (await again.take(0, (2, 1))).chunks == {}
    other = runs.open(begun)
    assert await other.hold(WHO) == 2
    assert (await other.take(0, (2, 1))).seq == 1
    assert await runs.committed(begun) == LANES


@pytest.mark.kafka
@pytest.mark.parametrize("looks", [0, 1, 2])
async def test_a_run_that_is_begun_anew_while_runs_are_pruned_stays(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, looks: int
) -> None:
    """What was read of it is old by then. It begins behind so many looks whether it did: the second is the last."""
    await runs.worked("anew")
    progress = Progress(Connection(runs.bootstrap), runs.topic)
    (found,) = await progress.read()
    store, look, left = runs.open("anew"), progress._moved, [looks]  # pyright: ignore[reportPrivateUsage]

    async def then_hold(scope: Scope) -> bool:
        moved = await look(scope)
        left[0] -= 1
        if left[0] == 0:
            await store.hold(WHO)
        return moved

    monkeypatch.setattr(progress, "_moved", then_hold)
    if looks == 0:
        await store.hold(WHO)
    assert found.over
    assert not await progress.prune(found)
    plan = await store.read_plan()
    assert plan is not None
    plan = msgspec.structs.replace(plan, version=plan.version + 1)
    if looks == 1:  # its driver was fenced, and is told to try again
        with pytest.raises(Temporary):
            await store.write_plan(plan)
    await store.write_plan(plan)
    assert (await store.take(0, (2, 1))).seq == 1


@pytest.mark.kafka
async def test_the_command_says_what_it_would_delete_and_spares_the_young(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that ended today is never pruned: run again it says that there is nothing to do."""
    await runs.worked("young")
    where = ["--bootstrap", runs.bootstrap, "--topic", runs.topic]
    assert await asyncio.to_thread(cli.call, ["prune", *where, "--older-than", "1d", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["pruned"], [run["name"] for run in told["kept"]]) == ([], ["young"])
    assert await asyncio.to_thread(cli.call, ["prune", *where, "--older-than", "3h"]) == 2
    assert "at least one day" in capsys.readouterr().err


@pytest.mark.kafka
async def test_signs_of_life_of_killed_processes_are_taken_away_by_the_next(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each kill leaves one for ever."""
    killed = runs.open("killed")
    await killed.hold(WHO)
    process = killed.heart.process if killed.heart else ""
    killed.kill()
    monkeypatch.setattr(control, "DEAD_S", -60.0)
    following = runs.open("killed")
    assert await following.hold(WHO, take_over=True) == 2
    await following.let_go()
    last = runs.open("killed")
    here = await last._open()
    await here.control.refresh()
    assert process
    assert process not in here.control.beats


class Slow:
    """A partition of ten records, one every ten seconds."""

    def __init__(self) -> None:
        self.at = 0

    async def position(self, partition: TopicPartition) -> int:
        return self.at

    async def getmany(
        self, partition: TopicPartition, timeout_ms: int
    ) -> dict[TopicPartition, list[ConsumerRecord[bytes, bytes]]]:
        await asyncio.sleep(10.0)
        self.at += 1
        return {partition: [ConsumerRecord("t", 0, self.at - 1, 0, 0, b"k", b"v", None, 1, 1, [])]}


@pytest.mark.looptime
async def test_a_long_partition_may_take_its_time_as_long_as_it_brings_something() -> None:
    """A topic that many runs share may need more than the longest silence that is waited for."""
    async with asyncio.timeout(progress.READ_S) as limit:
        found = [r async for r in progress.records_below(Slow(), TopicPartition("t", 0), 10, limit)]  # type: ignore[arg-type]
    assert len(found) == 10
