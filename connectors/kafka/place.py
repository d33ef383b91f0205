"""One cluster's sinks of one run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import ConsumerRecord

from penstock.connectors.base import SinkName
from penstock.connectors.kafka.avro_sink import fetched
from penstock.connectors.kafka.client import cluster_key, ended, new_admin, new_consumer, opened, within
from penstock.connectors.kafka.dead_letters import incoming
from penstock.connectors.kafka.records import run_epoch_of
from penstock.connectors.kafka.schemas import Codec
from penstock.connectors.kafka.store import KafkaStore, Settings
from penstock.connectors.kafka.topics import ends, look_up
from penstock.connectors.settings import Connection, KafkaSink
from penstock.engine.errors import SpecError

READ_S = 40.0
"""Longest silence of a broker amid its records."""
POLL_MS = 20
FETCH_BYTES = 4 << 20


def connection_of(sink: KafkaSink) -> Connection:
    """Raises `SpecError` where the sink names no cluster."""
    if isinstance(sink.connection, Connection):
        return sink.connection
    if sink.bootstrap is None:
        raise SpecError(f"the sink for the topic {sink.topic} names no cluster: give bootstrap or connection.")
    return Connection(sink.bootstrap)


def store_key(sink: KafkaSink) -> str:
    """Names the store: sinks of one key commit in one transaction."""
    return cluster_key(connection_of(sink))


class KafkaPlace:
    """Implements `base.Place`. `sinks`: those of one cluster, not empty."""

    def __init__(self, sinks: Mapping[SinkName, KafkaSink], run_id: str) -> None:
        first = next(iter(sinks.values()))
        scope = run_id if "results" in sinks else f"{run_id}+{min(sinks)}"
        self._connection = connection_of(first)
        self._sinks = dict(sinks)
        self._run_id = run_id
        self.settings = Settings(
            connection=self._connection,
            run_id=run_id,
            scope=scope,
            sinks=self._sinks,
            reply_to=sinks["results"].reply_to if "results" in sinks else (),
        )
        self._large = self.settings.large
        self._codecs: dict[tuple[SinkName, int], Codec] = {}
        """Of the schemas met so far, by id."""

    def open(self) -> KafkaStore:
        return KafkaStore(self.settings)

    async def refuse_held(self) -> None:
        store = self.open()
        try:
            await store.refuse_held()
        finally:
            store.kill()
            await ended()

    async def discard(self) -> None:
        store = self.open()
        try:
            await store.forget()
        finally:
            store.kill()
            await ended()

    def committed(self, sink: SinkName) -> Iterator[bytes]:
        return drained(self._committed(sink))

    async def _committed(self, sink: SinkName) -> AsyncIterator[list[bytes]]:
        """The run's own records, up to where its topics end now: the sink's own, and those that hold replies."""
        names = [self._sinks[sink].topic, *(self.settings.reply_to if sink == "results" else ())]
        async with opened(new_admin(self._connection), self._connection) as admin:
            facts = await look_up(admin, self._connection, names)
        partitions = [tp for topic in facts.values() for tp in topic.all()]
        if not partitions:
            return
        fresh = await self._fresh_since()
        consumer = new_consumer(self._connection, fetch_bytes=FETCH_BYTES)
        async with opened(consumer, self._connection):
            # Committed ends: a record of a transaction that is still open is not committed.
            last = await ends(consumer, self._connection, partitions)
            consumer.assign(partitions)
            await consumer.seek_to_beginning(*partitions)
            while fetched := await self._fetched(consumer, last):
                for tp, records in fetched.items():
                    mine = [r for r in records if r.offset < last[tp] and run_epoch_of(r.headers, self._run_id) > fresh]
                    yield [self._line(sink, record, await self._json(sink, record.value or b"")) for record in mine]

    async def _fetched(
        self, consumer: AIOKafkaConsumer, last: Mapping[TopicPartition, int]
    ) -> Mapping[TopicPartition, list[ConsumerRecord[bytes, bytes]]]:
        """The next records; none: the ends are reached. Raises `Away` where a broker falls silent before."""
        topics = " and ".join(sorted({tp.topic for tp in last}))
        async with within(READ_S, self._connection, f"reading {topics}"):
            while behind := [tp for tp, end in last.items() if await consumer.position(tp) < end]:
                if fetched := await consumer.getmany(*behind, timeout_ms=POLL_MS):
                    return fetched
        return {}

    async def _json(self, sink: SinkName, value: bytes) -> bytes:
        """Of a sink that is written as Avro: by the schema that the record names."""
        if self._sinks[sink].format != "avro" or value[:1] != b"\0":
            return value
        number = int.from_bytes(value[1:5])
        if (sink, number) not in self._codecs:
            self._codecs[sink, number] = await fetched(self._connection, sink, number)
        return self._codecs[sink, number](value[5:])

    def _line(self, sink: SinkName, record: ConsumerRecord[bytes, bytes], value: bytes) -> bytes:
        """A dead letter is made whole again, and a result that was too large is fetched."""
        if sink == "dead_letters":
            return incoming(record.value, record.key, record.headers) or value
        return self._large.followed(value) if sink == "results" and self._large is not None else value

    async def _fresh_since(self) -> int:
        store = self.open()
        try:
            return await store.fresh_since()
        finally:
            store.kill()


def drained(batches: AsyncIterator[list[bytes]]) -> Iterator[bytes]:
    """An asynchronous stream read from ordinary code, in a loop of its own."""
    with asyncio.Runner() as runner:
        while True:
            batch = runner.run(_next(batches))
            if batch is None:
                return
            yield from batch


async def _next(batches: AsyncIterator[list[bytes]]) -> list[bytes] | None:
    return await anext(batches, None)
