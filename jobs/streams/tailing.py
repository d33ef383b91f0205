"""Committed records of a topic, as they come: from its end on, or from its start."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from penstock.connectors.kafka.client import new_consumer, opened, within
from penstock.connectors.kafka.partition import record_time
from penstock.connectors.kafka.topics import begins, ends
from penstock.connectors.settings import Connection
from penstock.jobs.streams.where import find

ConsumerRecord = Any
"""aiokafka's is half typed."""

POLL_MS = 250
READ_S = 30.0


class Seen(msgspec.Struct, frozen=True):
    """One record. `at`: Unix seconds, None where it has no time."""

    value: bytes
    topic: str = ""
    partition: int = 0
    offset: int = 0
    at: float | None = None
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()


async def follow(connection: Connection, *topics: str, from_start: bool) -> AsyncGenerator[list[Seen]]:
    """For ever, batch by batch, those of one partition in their order; an empty batch: nothing came for a moment.

    Raises `SpecError` where a topic is not there, `Refused`, `Temporary`.
    """
    partitions = [tp for topic in topics for tp in (await find(connection, topic)).all()]
    async with opened(new_consumer(connection), connection) as consumer:
        first = await (begins if from_start else ends)(consumer, connection, partitions)
        consumer.assign(partitions)
        for tp, offset in first.items():
            consumer.seek(tp, offset)
        while True:
            async with within(READ_S, connection, f"reading {' and '.join(topics)}"):
                found = await consumer.getmany(timeout_ms=POLL_MS)
            records = (record for batch in found.values() for record in batch)
            yield sorted(map(_seen, records), key=lambda r: (r.at or 0.0, r.topic, r.partition, r.offset))


def _seen(r: ConsumerRecord) -> Seen:
    at = record_time(r.timestamp)
    return Seen(
        r.value or b"", r.topic, r.partition, r.offset, at, r.key, tuple((name, v or b"") for name, v in r.headers)
    )
