"""Requests that never arrive, and those that arrive late, between a lane's store and its broker."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from penstock.connectors.base import OutRecord
from penstock.connectors.filestore.disk import Faults, no_faults
from penstock.connectors.kafka.client import ended
from penstock.connectors.kafka.group_mirror import GroupMirror
from penstock.connectors.kafka.place import KafkaPlace
from penstock.connectors.kafka.store import KafkaStore
from penstock.connectors.settings import Connection, KafkaSink
from penstock.engine.errors import Temporary
from penstock.engine.flow.progress import PROGRESS, Saved, SavedSplit, saved_in
from penstock.engine.plan import Plan, Split
from tests.crash.streams import kafka_lines
from tests.crash.streams.stage import Stage
from tests.crash.streams.stream_bench import StreamShape, stream_bench

pytestmark = pytest.mark.kafka

PRODUCE, OFFSET_COMMIT, ADD_PARTITIONS_TO_TXN, END_TXN = 0, 8, 24, 26
"""https://kafka.apache.org/protocol#protocol_api_keys"""


class OneRun:
    """A run whose source and results are topics of one cluster, reached by way of the proxy."""

    def __init__(self, servers: Stage) -> None:
        self.servers = servers
        self.id = f"run-{secrets.token_hex(6)}"
        self.topic = f"{self.id}-in"
        self.results = f"{self.id}-results"
        sinks = {"results": KafkaSink(self.results, servers.bootstrap, create=True, progress_topic="network-progress")}
        self.place = KafkaPlace(sinks, self.id)  # type: ignore[arg-type]
        self.stores: list[KafkaStore] = []

    def process(self, faults: Faults = no_faults, **changed: float) -> KafkaStore:
        self.stores.append(KafkaStore(msgspec.structs.replace(self.place.settings, **changed), faults))
        return self.stores[-1]

    async def planned(self, store: KafkaStore) -> None:
        await kafka_lines.make_topics(self.servers.kafka.bootstrap, {self.topic: 1})
        uri = f"kafka://{self.servers.bootstrap}/{self.topic}/0"
        split = Split(f"{self.topic}/0", self.topic, 0, 0, uri, 0, None, unit="rows")
        await store.write_plan(Plan(self.id, "n", {}, 1, (split,), {}, 0.0))

    def committed(self) -> list[bytes]:
        return [value for value in self.place.committed("results")]


@pytest.fixture
async def run(servers: Stage) -> AsyncIterator[OneRun]:
    one = OneRun(servers)
    yield one
    servers.network.heal()
    for store in one.stores:
        store.kill()
    await ended()


def chunks(watermark: int) -> dict[str, bytes]:
    saved = Saved(opened=1, splits=(SavedSplit(0, watermark, b"", watermark, False),), plan_version=1)
    return {PROGRESS: msgspec.msgpack.encode(saved)}


def record(n: int) -> OutRecord:
    return OutRecord(0, n, b'{"n":%d}' % n, item_id=f"item-{n}")


async def test_a_group_whose_coordinator_is_away_costs_no_lane_a_commit(
    servers: Stage, run: OneRun, caplog: pytest.LogCaptureFixture
) -> None:
    """The offsets are a mirror for lag tools: nothing of ours waits for them. (Seen, when they went with the
    transaction: the lane was taken anew every five seconds, and a run with an end failed after five times.)"""
    store = run.process()
    await run.planned(store)
    plan = await store.read_plan()
    assert plan is not None
    await store.take(0, (1, 1))
    servers.network.swallowed = {OFFSET_COMMIT}
    mirror, n = GroupMirror(Connection(servers.bootstrap), run.id, every_s=0.1), 0
    async with asyncio.timeout(60):
        while mirror.trouble is None:
            n += 1
            await store.commit(0, (1, 1), n, {"results": [record(n)]}, chunks(n))
            mirror.told(0, plan.splits, saved_in(chunks(n)))
    servers.network.heal()
    await mirror.close()
    assert mirror.trouble is None
    assert caplog.text.count(f"not shown in the group {run.id}") == 1
    assert sorted(await asyncio.to_thread(run.committed)) == sorted(b'{"n":%d}' % k for k in range(1, n + 1))


OFTEN = {(END_TXN, "take.fenced"), (ADD_PARTITIONS_TO_TXN, "commit.opened"), (PRODUCE, "commit.sent")}
"""Of the twelve cases, those that run each time; `make soak` runs all."""


@pytest.mark.parametrize(
    ("kind", "when"),
    [
        pytest.param(kind, when, marks=[] if (kind, when) in OFTEN else [pytest.mark.soak])
        for kind in (ADD_PARTITIONS_TO_TXN, PRODUCE, END_TXN)
        for when in ("take.fenced", "commit.opened", "commit.sent", "after")
    ],
)
async def test_what_a_given_up_commit_still_sends_is_never_part_of_the_next_owners(
    servers: Stage, run: OneRun, kind: int, when: str
) -> None:
    """A request that hangs in the network, or in a broker that is frozen, arrives after the lane was taken anew: while
    the next owner reads, in the midst of its transaction, or later. Both owners share a transactional id; what the old
    one wrote is committed with its own seq, which the new one has read, or not at all."""
    network = servers.network
    late: list[int] = []

    def hang(step: str) -> None:
        if step == "commit.begin":
            network.hold_back({kind})

    def arrive(step: str) -> None:
        if step == when:
            late.append(network.deliver())

    old, new = run.process(hang, commit_s=1.5), run.process(arrive)
    await old.take(0, (1, 1))
    with pytest.raises(Temporary):
        await old.commit(0, (1, 1), 1, {"results": [record(1)]}, {"a": b"1"})
    taken = await new.take(0, (1, 2), force=True)
    await new.commit(0, (1, 2), taken.seq + 1, {"results": [record(2)]}, {"a": b"2"})
    arrive("after")
    await new.commit(0, (1, 2), taken.seq + 2, {"results": [record(3)]}, {"a": b"3"})
    assert late[0] > 0, "nothing was late"
    read = await asyncio.to_thread(run.committed)
    assert sorted(read) == sorted(b'{"n":%d}' % n for n in ((1, 2, 3) if taken.seq else (2, 3)))
    assert (await new.peek(0)).chunks == {"a": b"3"}


@pytest.mark.long
@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.s3
def test_a_run_with_an_end_sits_out_a_broker_that_is_away_for_minutes(servers: Stage, tmp_path: Path) -> None:
    """Nobody has to run it again, and it says what it waits for. (Seen: it gave up after one minute.)"""
    with stream_bench(servers, tmp_path, StreamShape(items=600, model="sure")) as b:
        command = b.start()
        b.wait_served(100, command)
        servers.network.cut()
        b.kills.append("network cut")
        time.sleep(150)
        assert command.poll() is None, b.log(command)
        servers.network.mend()
        assert b.end(command) == 0, b.log(command)
        said = " ".join(b.log(command).split())
        assert "the run waits for up to 600 s (execution.outage_s)" in said
        assert "what was away is back" in said
        b.check(bound=2 * b.shape.lanes * 64 + b.shape.concurrency + round(b.fastest_rate() * 0.9))
