"""The group's offsets follow the progress, for lag tools."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from penstock.connectors.kafka.group_mirror import GroupMirror
from penstock.connectors.settings import Connection
from penstock.engine.flow.progress import Saved, SavedSplit
from penstock.engine.plan import Split
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
