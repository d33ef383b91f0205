"""The group's offsets follow the progress, for lag tools."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from penstock.connectors.kafka.group_mirror import GroupMirror
from penstock.connectors.kafka.members import has_members
from penstock.connectors.kafka.mirroring import Mirroring
from penstock.connectors.kafka.source import KafkaTopics
from penstock.connectors.settings import Connection, KafkaSource
from penstock.engine.errors import Refused
from penstock.engine.flow.progress import PROGRESS, Saved, SavedSplit
from penstock.engine.plan import Plan, Split
from penstock.jobs.dev.kafka import KafkaServer

pytestmark = pytest.mark.kafka


def split(topic: str, partition: int) -> Split:
    return Split(f"{partition}", f"{partition}", partition, 0, f"kafka://h:1/{topic}/{partition}", 0, None)


def saved(*watermarks: int) -> Saved:
    return Saved(len(watermarks), tuple(SavedSplit(n, at, b"", at, False) for n, at in enumerate(watermarks)))


async def committed(server: KafkaServer, group: str, topic: str, partitions: int) -> list[int | None]:
    member = AIOKafkaConsumer(bootstrap_servers=server.bootstrap, group_id=group, enable_auto_commit=False)
    await member.start()
    found = [await member.committed(TopicPartition(topic, number)) for number in range(partitions)]
    await member.stop()
    return found


async def test_the_group_stands_where_the_lanes_have_come_to(
    kafka_server: KafkaServer, new_topic: Callable[..., Awaitable[str]]
) -> None:
    """While it goes on, and when it ends; partitions that do not move are written with the others."""
    topic = await new_topic("mirrored", 2)
    mirror = GroupMirror(Connection(kafka_server.bootstrap), topic, every_s=0.01)
    splits = [split(topic, 0), split(topic, 1)]
    for first in (3, 4):
        mirror.told(splits, saved(first, 7))
        async with asyncio.timeout(60):
            while await committed(kafka_server, topic, topic, 2) != [first, 7]:  # noqa: ASYNC110 - the broker's news
                await asyncio.sleep(0.05)
    mirror.told(splits, saved(5, 7))
    await mirror.close()
    assert await committed(kafka_server, topic, topic, 2) == [5, 7]
    assert mirror.trouble is None


async def test_a_mirror_that_cannot_be_written_harms_nobody() -> None:
    mirror = GroupMirror(Connection("127.0.0.1:9"), "g", every_s=0.01)
    mirror.told([split("t", 0)], saved(3))
    async with asyncio.timeout(60):
        while mirror.trouble is None:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
    assert "can't be reached" in mirror.trouble
    await mirror.close()


@contextlib.asynccontextmanager
async def member(server: KafkaServer, group: str, topic: str) -> AsyncGenerator[AIOKafkaConsumer]:
    """Somebody's consumer, in the group and given its partitions; it stands at offset 1."""
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=server.bootstrap,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    try:
        async with asyncio.timeout(60):
            while not consumer.assignment():
                await consumer.getmany(timeout_ms=50)
        await consumer.commit({TopicPartition(topic, 0): 1})
        yield consumer
    finally:
        await consumer.stop()


async def test_a_group_in_which_consumers_run_is_refused_at_the_start(
    kafka_server: KafkaServer, new_topic: Callable[..., Awaitable[str]]
) -> None:
    """Their offsets are theirs. Once they have left, the group may be named."""
    topic = await new_topic("shared")
    source = KafkaTopics(KafkaSource((topic,), bootstrap=kafka_server.bootstrap, group=topic))
    async with member(kafka_server, topic, topic):
        with pytest.raises(Refused, match=f"consumers are running in the group {topic}.*source.group"):
            await source.splits(1)
    assert len(await source.splits(1)) == 1


async def test_consumers_who_come_later_keep_their_offsets(
    kafka_server: KafkaServer, new_topic: Callable[..., Awaitable[str]], caplog: pytest.LogCaptureFixture
) -> None:
    """Whether the offsets would go with a commit or beside it; each way says why they do not."""
    topic = await new_topic("shared")
    connection = Connection(kafka_server.bootstrap)
    plan = Plan("r", "r", {}, 1, (split(topic, 0),), {}, 0.0)

    async def read_plan() -> Plan:
        return plan

    async def asked(group: str) -> bool:
        return await has_members(connection, group)

    chunks = {PROGRESS: msgspec.msgpack.encode(saved(7))}
    async with member(kafka_server, topic, topic):
        assert await Mirroring(topic, read_plan, asked).due(0, chunks) is None
        beside = GroupMirror(connection, topic, every_s=0.01)
        beside.told([split(topic, 0)], saved(7))
        async with asyncio.timeout(60):
            while beside.trouble is None:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.01)
        assert "its offsets are theirs" in beside.trouble
        await beside.close()
    assert f"in the group {topic} for now: consumers are in the group" in caplog.text
    assert await committed(kafka_server, topic, topic, 1) == [1]
    free = await Mirroring(topic, read_plan, asked).due(0, chunks)
    assert free is not None
    assert free.offsets[TopicPartition(topic, 0)].offset == 7


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


async def test_a_silent_coordinator_is_left_alone_for_a_while_and_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each try costs a lane its commit: so they become rare, and the group is asked before the next. Two lanes that met
    one silence count once."""
    clock, asked = Clock(), 0
    plan = Plan("r", "r", {}, 1, (split("t", 0),), {}, 0.0)

    async def read_plan() -> Plan:
        return plan

    async def nobody(group: str) -> bool:
        nonlocal asked
        asked += 1
        return False

    mirroring = Mirroring("g", read_plan, nobody, clock)
    chunks = {PROGRESS: msgspec.msgpack.encode(saved(7))}
    tries: list[float] = []
    for _ in range(36_000):  # an hour of commits
        if await mirroring.due(0, chunks) is not None:
            tries.append(clock.now)
            mirroring.rest("silent")
            mirroring.rest("silent")
        clock.now += 0.1
    waits = [round(b - a) for a, b in itertools.pairwise(tries)]
    assert waits == [60, 120, 240, 480, 600, 600, 600, 600]
    assert asked == len(tries)
    assert caplog.text.count("not shown in the group g for now: silent") == 1
    mirroring.shown()
    clock.now += 600
    assert await mirroring.due(0, chunks) is not None
    mirroring.rest("silent")
    clock.now += 61
    assert await mirroring.due(0, chunks) is not None, "after a commit that carried them the first rest is short again"
    assert caplog.text.count("not shown in the group g for now: silent") == 2


async def test_a_group_that_nobody_ever_used_has_no_members(kafka_server: KafkaServer) -> None:
    assert not await has_members(Connection(kafka_server.bootstrap), f"never-{secrets.token_hex(4)}")
