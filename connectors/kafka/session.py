"""A connected consumer that is given its partitions, and a look at what has become of their topics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from penstock.connectors.kafka import topic_ids
from penstock.connectors.kafka.client import abandon, new_consumer, start, within
from penstock.connectors.kafka.partition import Record
from penstock.connectors.kafka.topic_ids import Topic
from penstock.connectors.kafka.topics import begins, ends
from penstock.connectors.settings import Connection

FETCHED_BYTES = 4_000_000
"""What a reader's client holds at most, all partitions together: one fetch of each (a larger record still comes)."""
PARTITION_BYTES = (65_536, 1 << 20)
"""Least and most of one fetch of one partition; the most is Kafka's default."""
LOOK_S = 10.0


class Sight(msgspec.Struct, frozen=True):
    """What a look found. `begins` and `ends` only of partitions that are there."""

    topics: dict[str, Topic]
    begins: dict[TopicPartition, int]
    ends: dict[TopicPartition, int]


class Session:
    """Reads committed records only. Raises our errors; what they cost in time is the caller's to bound."""

    def __init__(self, consumer: AIOKafkaConsumer, connection: Connection) -> None:
        self.refreshed = False
        """The client learned anew who leads the partitions: something has happened to a broker or a topic."""
        self._consumer = consumer
        self._connection = connection
        topic_ids.client_of(consumer).cluster.add_listener(self._on_metadata)

    @classmethod
    async def connect(cls, connection: Connection, positions: dict[TopicPartition, int]) -> Session:
        consumer = new_consumer(connection, fetch_bytes=_fetch_bytes(len(positions)))
        await start(consumer, connection)
        consumer.assign(list(positions))
        for tp, offset in positions.items():
            consumer.seek(tp, offset)
        return cls(consumer, connection)

    def _on_metadata(self, _: object) -> None:
        self.refreshed = True

    async def fetch(self, tp: TopicPartition, count: int, wait_ms: int = 0) -> tuple[Sequence[Record], int]:
        """Up to `count` records that are here already, and the position behind them and the gaps that follow.

        Where this raises, records may be lost between the client's hands and ours: `seek` before the next fetch.
        """
        records = await self._consumer.getmany(tp, timeout_ms=wait_ms, max_records=count)
        return records.get(tp, ()), await self._consumer.position(tp)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        """Drops what was fetched ahead."""
        self._consumer.seek(tp, offset)

    def has(self, tp: TopicPartition) -> bool:
        """What was over or fetched whole when it connected, it was never given."""
        return tp in self._consumer.assignment()

    def pause(self, tp: TopicPartition) -> None:
        self._consumer.pause(tp)

    def end_seen(self, tp: TopicPartition) -> int | None:
        """The end of the committed records, as the last fetch told it."""
        return self._consumer.last_stable_offset(tp)

    async def look(self, partitions: Iterable[TopicPartition], strayed: Iterable[TopicPartition]) -> Sight:
        """`strayed`: those whose log's begin is wanted as well."""
        wanted = list(partitions)
        async with within(LOOK_S, self._connection, "looking after topics"):
            found = await topic_ids.topics(topic_ids.client_of(self._consumer), {tp.topic for tp in wanted})
        there = [tp for tp in wanted if tp.topic in found and tp.partition in found[tp.topic].partitions]
        lost = [tp for tp in strayed if tp in there]
        first = await begins(self._consumer, self._connection, lost) if lost else {}
        last = await ends(self._consumer, self._connection, there) if there else {}
        return Sight(found, first, last)

    def close(self) -> None:
        abandon(self._consumer)


def _fetch_bytes(partitions: int) -> int:
    least, most = PARTITION_BYTES
    return max(least, min(most, FETCHED_BYTES // max(1, partitions)))
