"""What a store must know of its cluster before it does anything: its topics' facts, and how progress is spread."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from aiokafka import TopicPartition

from penstock.connectors.base import SinkName
from penstock.connectors.kafka.avro_sink import AvroRecords, registered
from penstock.connectors.kafka.client import (
    Admin,
    abandon,
    describe,
    new_admin,
    new_consumer,
    new_producer,
    opened,
    start,
    within,
)
from penstock.connectors.kafka.keys import Scope
from penstock.connectors.kafka.progress import records_below
from penstock.connectors.kafka.topics import CALL_S, TopicFacts, begins, ends, ensure, look_up
from penstock.connectors.settings import Connection, CreateTopic, KafkaSink
from penstock.engine.errors import Away, Refused, SpecError

BATCH_BYTES = 512 * 1024
"""Larger record batches mean fewer requests; above this nothing was gained."""
KEY_BYTES = 2048
"""Room for a piece's key and a batch's own bytes beside a piece of progress."""

PROGRESS_TOPIC = CreateTopic(
    partitions=32,
    config={
        "cleanup.policy": "compact",
        # A lane writes its progress several times a second and only the last counts: roll and clean early, so that
        # reading a partition from its start stays a matter of milliseconds.
        "segment.bytes": str(16 << 20),
        "segment.ms": str(10 * 60 * 1000),
        "min.cleanable.dirty.ratio": "0.01",
        # How long deletions and commit markers stay: longer than any reader takes from start to end.
        "delete.retention.ms": str(10 * 60 * 1000),
    },
)
PLAIN_PROGRESS_TOPIC = CreateTopic(partitions=PROGRESS_TOPIC.partitions, config={"cleanup.policy": "compact"})
"""Where a cluster's policy takes no such segments: Confluent Cloud has 50 MB at least, and hours. Taking a lane reads
more there."""
PARTITIONS = b"penstock\0partitions"
"""Key of the record that freezes over how many partitions progress is spread: adding some must not move any."""


Sinks = Mapping[SinkName, KafkaSink]


class Cluster(msgspec.Struct, frozen=True):
    """sinks: sink name → its topic. replies: topic → the same, for those that records may name themselves."""

    scope: Scope
    sinks: dict[str, TopicFacts]
    replies: dict[str, TopicFacts]
    progress: TopicFacts
    avro: AvroRecords | None = None
    """How sinks are written that want Avro."""

    @property
    def batch_bytes(self) -> int:
        topics = (*self.sinks.values(), *self.replies.values(), self.progress)
        return min(BATCH_BYTES, *(topic.max_message_bytes for topic in topics))

    @property
    def piece_bytes(self) -> int:
        return max(1, min(BATCH_BYTES, self.progress.max_message_bytes) - KEY_BYTES)

    def partition(self, number: int) -> TopicPartition:
        return TopicPartition(self.progress.name, number)


async def open_cluster(connection: Connection, name: str, sinks: Sinks, reply_to: tuple[str, ...]) -> Cluster:
    """Look everything up; make what is missing and may be made. `name`: of the scope. Raises `SpecError` where a topic
    is missing, `Refused` where the progress topic would forget, `Temporary`."""
    topics, replies, progress = await _topics(connection, sinks, reply_to)
    partitions = await frozen_partitions(connection, progress)
    avro = await registered(connection, sinks)
    return Cluster(Scope(name, partitions), topics, replies, progress, avro)


async def looked_up_again(cluster: Cluster, connection: Connection) -> Cluster:
    """The same with its topics as they are now: somebody may have lowered a limit, or made a topic anew. None is made
    here: what was committed to a topic that was deleted is gone with it, and one that is only unknown for a moment, as
    after a broker's restart, comes back. Raises `Away` where one is missing, else what `open_cluster` raises."""
    names = {*(topic.name for topic in cluster.sinks.values()), *cluster.replies, cluster.progress.name}
    async with opened(new_admin(connection), connection) as admin:
        found = await look_up(admin, connection, names)
    if gone := sorted(names - found.keys()):
        raise Away(
            f"{describe(connection)}: the topic {gone[0]} is gone; if it was deleted, what was committed to it is gone "
            "too. Bring it back, or stop the run."
        )
    return msgspec.structs.replace(
        cluster,
        sinks={sink: found[topic.name] for sink, topic in cluster.sinks.items()},
        replies={name: found[name] for name in cluster.replies},
        progress=_lasting(connection, found[cluster.progress.name]),
    )


async def _topics(
    connection: Connection, sinks: Sinks, reply_to: tuple[str, ...]
) -> tuple[dict[str, TopicFacts], dict[str, TopicFacts], TopicFacts]:
    """Those of sinks, those for replies, and progress."""
    async with opened(new_admin(connection), connection) as admin:
        topics = {str(s): await ensure(admin, connection, sink.topic, sink.create) for s, sink in sinks.items()}
        replies = await look_up(admin, connection, reply_to) if reply_to else {}
        if missing := [topic for topic in reply_to if topic not in replies]:
            raise SpecError(f"{describe(connection)} has no topic {missing[0]}, which reply_to allows. Make it first.")
        return topics, replies, await _progress_topic(admin, connection, sinks)


async def _progress_topic(admin: Admin, connection: Connection, sinks: Sinks) -> TopicFacts:
    names = {sink.progress_topic for sink in sinks.values()}
    if len(names) > 1:
        raise SpecError(f"the sinks in one cluster share one progress topic: {', '.join(sorted(names))} are several.")
    name = names.pop()
    try:
        found = await ensure(admin, connection, name, PROGRESS_TOPIC)
    except Refused:  # whatever else than its settings is refused, is so again
        found = await ensure(admin, connection, name, PLAIN_PROGRESS_TOPIC)
    return _lasting(connection, found)


def _lasting(connection: Connection, found: TopicFacts) -> TopicFacts:
    """The progress topic, if it forgets nothing."""
    if found.cleanup != "compact":
        raise Refused(
            f"{describe(connection)}: the progress topic {found.name} has cleanup.policy={found.cleanup}, so progress "
            "would be deleted and paid for again. Set cleanup.policy=compact on it."
        )
    return found


async def frozen_partitions(connection: Connection, topic: TopicFacts) -> int:
    """Over how many partitions progress is spread there; settled with the first use."""
    first = TopicPartition(topic.name, 0)
    async with opened(new_consumer(connection, committed=False, fetch_bytes=1024), connection) as consumer:
        begin = (await begins(consumer, connection, [first]))[first]
        end = (await ends(consumer, connection, [first]))[first]
        async with within(CALL_S, connection, f"reading {topic.name}"):
            consumer.assign([first])
            consumer.seek(first, begin)
            async for record in records_below(consumer, first, end):
                if record.key == PARTITIONS and record.value is not None:
                    return _known(int(record.value), topic)
    await _freeze(connection, topic)
    return topic.partitions


def _known(partitions: int, topic: TopicFacts) -> int:
    if partitions > topic.partitions:
        raise Refused(
            f"the progress topic {topic.name} had {partitions} partitions and has {topic.partitions}: restore it."
        )
    return partitions


async def _freeze(connection: Connection, topic: TopicFacts) -> None:
    producer = new_producer(connection, None)
    await start(producer, connection)
    try:
        async with within(CALL_S, connection, f"writing to {topic.name}"):
            await producer.send_and_wait(topic.name, str(topic.partitions).encode(), PARTITIONS, 0)
    finally:
        abandon(producer)
