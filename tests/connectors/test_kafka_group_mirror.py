"""The group's offsets follow the progress, for lag tools."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import NewTopic

from penstock.connectors.kafka.client import new_admin, opened
from penstock.connectors.kafka.group_mirror import ALIVE_S, GroupMirror
from penstock.connectors.kafka.members import has_members
from penstock.connectors.kafka.source import KafkaTopics
from penstock.connectors.settings import Connection, KafkaSource
from penstock.engine.errors import Refused
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
        mirror.told(0, splits, saved(first, 7))
        async with asyncio.timeout(60):
            while await committed(kafka_server, topic, topic, 2) != [first, 7]:  # noqa: ASYNC110 - the broker's news
                await asyncio.sleep(0.05)
    mirror.told(0, splits, saved(5, 7))
    await mirror.close()
    assert await committed(kafka_server, topic, topic, 2) == [5, 7]
    assert mirror.trouble is None


async def test_a_mirror_that_cannot_be_written_harms_nobody() -> None:
    mirror = GroupMirror(Connection("127.0.0.1:9"), "g", every_s=0.01)
    mirror.told(0, [split("t", 0)], saved(3))
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
    """The broker refuses ours, and the log says why; once they have left, it takes them."""
    topic = await new_topic("shared")
    connection = Connection(kafka_server.bootstrap)
    mirror = GroupMirror(connection, topic, every_s=0.01)
    async with member(kafka_server, topic, topic):
        mirror.told(0, [split(topic, 0)], saved(7))
        async with asyncio.timeout(60):
            while mirror.trouble is None:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.01)
        assert "its offsets are theirs" in mirror.trouble
        assert await committed(kafka_server, topic, topic, 1) == [1]
    assert f"not shown in the group {topic}: " in caplog.text
    await shown(kafka_server, topic, [7])
    await mirror.close()


async def shown(server: KafkaServer, topic: str, offsets: list[int | None]) -> None:
    """Returns once the group of the topic's name stands there."""
    async with asyncio.timeout(60):
        while await committed(server, topic, topic, len(offsets)) != offsets:  # noqa: ASYNC110 - the broker's news
            await asyncio.sleep(0.05)


async def test_a_partition_that_nobody_wrote_to_is_shown_at_its_start(
    kafka_server: KafkaServer, new_topic: Callable[..., Awaitable[str]]
) -> None:
    """Also one that its lane has not opened yet: for lag tools it would not be there."""
    topic = await new_topic("quiet", 3)
    mirror = GroupMirror(Connection(kafka_server.bootstrap), topic, every_s=0.01)
    mirror.told(0, [split(topic, number) for number in range(3)], saved(4))
    await shown(kafka_server, topic, [4, 0, 0])
    await mirror.close()


async def test_a_topic_that_is_gone_keeps_no_other_from_being_shown(
    kafka_server: KafkaServer, new_topic: Callable[..., Awaitable[str]]
) -> None:
    """And once it is made again it is shown as well."""
    topic, gone = await new_topic("stays"), f"gone-{secrets.token_hex(4)}"
    mirror = GroupMirror(Connection(kafka_server.bootstrap), topic, every_s=0.01)
    mirror.told(0, [split(gone, 0)], saved(3))
    mirror.told(1, [split(topic, 0)], saved(5))
    await shown(kafka_server, topic, [5])
    assert mirror.trouble is None
    connection = Connection(kafka_server.bootstrap)
    async with opened(new_admin(connection), connection) as admin:
        await admin.create_topics([NewTopic(gone, 1, 1)])
    async with asyncio.timeout(60):
        while await committed(kafka_server, topic, gone, 1) != [3]:
            mirror.told(1, [split(topic, 0)], saved(5))
            await asyncio.sleep(0.05)
    await mirror.close()


async def test_a_lane_that_left_is_shown_once_more_and_then_by_its_next_owner(
    kafka_server: KafkaServer, new_topic: Callable[..., Awaitable[str]]
) -> None:
    """Else the process that had it would set its offsets back, again and again."""
    topic = await new_topic("moves", 2)
    before = GroupMirror(Connection(kafka_server.bootstrap), topic, every_s=0.01)
    before.told(0, [split(topic, 0)], saved(3))
    before.leaves(0)
    await shown(kafka_server, topic, [3, None])
    after = GroupMirror(Connection(kafka_server.bootstrap), topic, every_s=0.01)
    after.told(0, [split(topic, 0)], saved(8))
    await shown(kafka_server, topic, [8, None])
    before.told(1, [msgspec.structs.replace(split(topic, 1), lane=1)], Saved())
    await shown(kafka_server, topic, [8, 0])
    for mirror in (before, after):
        await mirror.close()


async def test_a_group_that_nobody_ever_used_has_no_members(kafka_server: KafkaServer) -> None:
    assert not await has_members(Connection(kafka_server.bootstrap), f"never-{secrets.token_hex(4)}")


class Scripted(GroupMirror):
    """`written`: the topics and offsets of each write; `lets`: a write waits for it."""

    def __init__(self, alive_s: float = ALIVE_S) -> None:
        super().__init__(Connection("127.0.0.1:9"), "g", every_s=0.01, alive_s=alive_s)
        self.written: list[dict[str, int]] = []
        self.lets = asyncio.Event()
        self.begun = asyncio.Event()

    async def _commit(self, topics: list[tuple[str, list[tuple[int, int, str]]]]) -> None:
        self.begun.set()
        await self.lets.wait()
        self.written.append({topic: offset for topic, [(_, offset, _)] in topics})

    async def writes(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.written) < count:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.001)


async def test_the_offsets_of_an_idle_run_are_kept_alive() -> None:
    """Its lanes tell of nothing new; a group without members loses what is not written again."""
    mirror = Scripted(alive_s=0.05)
    mirror.lets.set()
    mirror.told(0, [split("a", 0)], saved(3))
    await mirror.writes(3)
    assert mirror.written[:3] == [{"a": 3}] * 3
    await mirror.close()


async def test_offsets_that_do_not_move_are_not_written_all_the_time() -> None:
    mirror = Scripted()
    mirror.lets.set()
    mirror.told(0, [split("a", 0)], saved(3))
    await mirror.writes(1)
    await asyncio.sleep(0.1)
    assert mirror.written == [{"a": 3}]
    await mirror.close()


async def test_what_a_lane_that_left_had_is_written_once_at_most() -> None:
    """Later its next owner's offsets stand there."""
    mirror = Scripted()
    mirror.lets.set()
    mirror.told(0, [split("a", 0)], saved(3))
    await mirror.writes(1)
    mirror.leaves(0)
    mirror.told(1, [split("b", 0)], saved(5))
    await mirror.writes(2)
    assert mirror.written == [{"a": 3}, {"b": 5}]
    await mirror.close()


async def test_a_mirror_that_was_closed_has_forgotten_its_lanes() -> None:
    """An actor that gets a lane anew tells of that one alone."""
    mirror = Scripted()
    mirror.lets.set()
    mirror.told(0, [split("a", 0)], saved(3))
    await mirror.writes(1)
    await mirror.close()
    mirror.told(1, [split("b", 0)], saved(5))
    await mirror.writes(2)
    assert mirror.written == [{"a": 3}, {"b": 5}]
    await mirror.close()


async def test_a_write_that_the_end_cuts_off_is_made_again() -> None:
    """The last offsets are shown."""
    mirror = Scripted()
    mirror.told(0, [split("a", 0)], saved(3))
    await mirror.begun.wait()
    mirror.leaves(0)
    asyncio.get_running_loop().call_later(0.05, mirror.lets.set)
    await mirror.close()
    assert mirror.written == [{"a": 3}]
