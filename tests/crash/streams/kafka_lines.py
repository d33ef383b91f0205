"""Records of a topic as a committed reader sees them, and records put there. Nothing of the product is used here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete

WAIT_S = 30.0
OPEN_S = 15.0
"""Transactions of killed producers end after their timeout of 10 s."""


class Seen(msgspec.Struct, frozen=True):
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]


class Offered(msgspec.Struct, frozen=True):
    """One record to be put into a topic. `partition` None: by its key."""

    value: bytes | None
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    partition: int | None = None


async def make_topics(bootstrap: str, topics: Mapping[str, int], config: Mapping[str, str] | None = None) -> None:
    """`topics`: name → partitions. As many copies as the brokers make by default."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        wanted = [NewTopic(name, count, 1, topic_configs=dict(config or {})) for name, count in topics.items()]
        for topic in wanted:
            topic.replication_factor = -1  # the constructor refuses it
        made = await admin.create_topics(wanted)
        assert all(error[1] == 0 for error in made.topic_errors), made
    finally:
        await admin.close()


async def delete_topics(bootstrap: str, *topics: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.delete_topics(list(topics))
    finally:
        await admin.close()


async def delete_records(bootstrap: str, topic: str, before: Mapping[int, int]) -> None:
    """As retention does. `before`: partition → the first offset that stays."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.delete_records({TopicPartition(topic, n): RecordsToDelete(at) for n, at in before.items()})
    finally:
        await admin.close()


async def publish(bootstrap: str, topic: str, records: Iterable[Offered]) -> None:
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, linger_ms=5, max_request_size=20_000_000, enable_idempotence=True
    )
    await producer.start()
    try:
        sent = [
            await producer.send(topic, one.value, key=one.key, partition=one.partition, headers=list(one.headers))
            for one in records
        ]
        await asyncio.gather(*sent)
    finally:
        await producer.stop()


async def read(bootstrap: str, topic: str) -> list[Seen]:
    """All committed records, partition by partition, in order of offsets."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, isolation_level="read_committed", enable_auto_commit=False,
        auto_offset_reset="earliest",
    )  # fmt: skip
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, number) for number in await _partitions(bootstrap, topic)]
        consumer.assign(partitions)
        return await _read(consumer, await _ends(bootstrap, partitions))
    finally:
        await consumer.stop()


async def _ends(bootstrap: str, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
    """Of all records, those of open transactions too: the reader waits until those have ended, so none stays hidden."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    await consumer.start()
    try:
        return await consumer.end_offsets(partitions)
    finally:
        await consumer.stop()


async def _partitions(bootstrap: str, topic: str) -> list[int]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        (found,) = await admin.describe_topics([topic])
        return sorted(one["partition"] for one in found["partitions"])
    finally:
        await admin.close()


async def _read(consumer: AIOKafkaConsumer, ends: Mapping[TopicPartition, int]) -> list[Seen]:
    await consumer.seek_to_beginning(*ends)
    records: list[Seen] = []
    until = time.monotonic() + WAIT_S + OPEN_S
    while behind := [tp for tp in ends if await consumer.position(tp) < ends[tp]]:
        assert time.monotonic() < until, f"a transaction stays open: {behind}"
        fetched = await consumer.getmany(*behind, timeout_ms=200)
        for tp, some in fetched.items():
            records += [Seen(tp.partition, r.offset, r.key, r.value, dict(r.headers)) for r in some]
    return sorted(records, key=lambda r: (r.partition, r.offset))
