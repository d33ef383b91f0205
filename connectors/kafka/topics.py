"""Topics: whether they are there, what they take, how far they reach; and how one is made that is missing.

Nothing here makes a topic by asking for it: a broker with `auto.create.topics.enable` makes whatever a client's
metadata request names, so a topic is looked up by its configuration first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import TopicAlreadyExistsError, UnknownTopicOrPartitionError, for_code

from penstock.connectors.kafka.client import Admin, describe, translated, within
from penstock.connectors.settings import Connection, CreateTopic
from penstock.engine.errors import SpecError, Temporary

CALL_S = 10.0
_LIMIT = "max.message.bytes"
MADE_WAIT_S = 10.0
"""A new topic is known to all brokers, with a leader for each partition, in well under a second."""
POLL_S = 0.05


class TopicFacts(msgspec.Struct, frozen=True):
    name: str
    partitions: int
    max_message_bytes: int
    """The largest record batch that the topic takes: one record with its key, headers and 61 bytes around it."""
    cleanup: str
    """`delete`, `compact`, or both."""

    def all(self) -> list[TopicPartition]:
        return [TopicPartition(self.name, number) for number in range(self.partitions)]


async def look_up(admin: Admin, connection: Connection, names: Collection[str]) -> dict[str, TopicFacts]:
    """Name → facts of those topics that are there. Raises `Refused`, `Temporary`."""
    doing = f"looking up {', '.join(sorted(names))}"
    async with within(CALL_S, connection, doing):
        settings = await _settings(admin, connection, names, doing)
        described = await admin.describe_topics(sorted(settings)) if settings else []
    return {
        topic["topic"]: TopicFacts(
            topic["topic"], len(topic["partitions"]), int(mine[_LIMIT]), mine.get("cleanup.policy", "delete")
        )
        for topic in described
        if topic["partitions"] and (mine := settings[topic["topic"]])
    }


async def _settings(
    admin: Admin, connection: Connection, names: Collection[str], doing: str
) -> dict[str, dict[str, str]]:
    asked = [ConfigResource(ConfigResourceType.TOPIC, n, {_LIMIT: "", "cleanup.policy": ""}) for n in sorted(names)]
    found: dict[str, dict[str, str]] = {}
    for answer in await admin.describe_configs(asked):
        for code, message, _kind, name, entries in answer.resources:  # pyright: ignore[reportAttributeAccessIssue]
            error = for_code(code)
            if error is UnknownTopicOrPartitionError:
                continue
            if code:
                raise translated(error(f"{name}: {message}"), connection, doing)
            found[name] = {entry[0]: entry[1] for entry in entries}
    return found


async def ensure(admin: Admin, connection: Connection, name: str, create: CreateTopic | bool) -> TopicFacts:
    """The topic's facts; it is made where it is missing and `create` says so. Raises `SpecError`, `Refused`."""
    found = (await look_up(admin, connection, [name])).get(name)
    if found is not None:
        return found
    if create is False:
        raise SpecError(
            f"{describe(connection)} has no topic {name}. Make it, or set create: true on the sink to have it made "
            "with the broker's own defaults."
        )
    # KIP-464: -1 partitions are the broker's `num.partitions`.
    await make(admin, connection, name, CreateTopic(partitions=-1) if create is True else create)
    return await _appeared(admin, connection, name)


async def make(admin: Admin, connection: Connection, name: str, how: CreateTopic) -> None:
    """Make a topic; one that somebody else made in the meantime will do."""
    doing = f"making the topic {name}"
    topic = NewTopic(name, 1, 1, topic_configs=dict(how.config))
    topic.num_partitions, topic.replication_factor = how.partitions, how.replication  # the constructor refuses -1
    async with within(CALL_S, connection, doing):
        answer = await admin.create_topics([topic], timeout_ms=round(CALL_S * 1000))
    for _, code, message in answer.topic_errors:  # pyright: ignore[reportAttributeAccessIssue]
        if code and for_code(code) is not TopicAlreadyExistsError:
            raise translated(for_code(code)(message), connection, doing)


async def _appeared(admin: Admin, connection: Connection, name: str) -> TopicFacts:
    for _ in range(round(MADE_WAIT_S / POLL_S)):
        if found := (await look_up(admin, connection, [name])).get(name):
            return found
        await asyncio.sleep(POLL_S)
    raise Temporary(f"{describe(connection)}: the topic {name} was made, but is not there after {MADE_WAIT_S:g} s.")


async def ends(
    consumer: AIOKafkaConsumer, connection: Connection, partitions: Sequence[TopicPartition]
) -> dict[TopicPartition, int]:
    """The offset behind the last record of each partition, as this consumer sees it: one that reads committed records
    only stops in front of the oldest open transaction, one that reads all does not."""
    async with within(CALL_S, connection, "reading end offsets"):
        return await consumer.end_offsets(list(partitions))


async def begins(
    consumer: AIOKafkaConsumer, connection: Connection, partitions: Sequence[TopicPartition]
) -> dict[TopicPartition, int]:
    """The offset of the oldest record that is still there."""
    async with within(CALL_S, connection, "reading the earliest offsets"):
        return await consumer.beginning_offsets(list(partitions))
