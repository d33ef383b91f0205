"""Compressed batches that would become too much are told, not unpacked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.record import default_records, legacy_records
from aiokafka.record.memory_records import MemoryRecords

from penstock.connectors.base import Raw
from penstock.connectors.kafka import unpacking
from penstock.connectors.kafka.source import KafkaTopics
from penstock.connectors.settings import KafkaSource
from penstock.engine.errors import Corrupt
from penstock.jobs.dev.kafka import KafkaServer

GZIP, SNAPPY, LZ4, ZSTD = 1, 2, 3, 4


def batch(magic: Any, codec: int, value: bytes) -> bytes:
    if magic < 2:
        old: Any = legacy_records.LegacyRecordBatchBuilder(magic, codec, 1 << 30)
        old.append(0, timestamp=0, key=None, value=value)
        return bytes(old.build())
    made: Any = default_records.DefaultRecordBatchBuilder(
        magic, codec, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=0, batch_size=1 << 30
    )
    made.append(0, timestamp=0, key=None, value=value, headers=[])
    return bytes(made.build())


def read(data: bytes) -> list[bytes]:
    records: Any = MemoryRecords(data)
    return [record.value for record in records.next_batch()]


@pytest.mark.parametrize(("magic", "codec"), [(2, GZIP), (2, SNAPPY), (2, LZ4), (2, ZSTD), (1, GZIP), (1, LZ4)])
def test_a_batch_is_unpacked_up_to_a_bound(magic: int, codec: int) -> None:
    assert read(batch(magic, codec, b"hello" * 1000)) == [b"hello" * 1000]
    if codec != SNAPPY:
        with pytest.raises(Corrupt, match="67,108,864 bytes"):
            read(batch(magic, codec, b" " * (unpacking.MOST_BYTES + 1)))


def test_a_batch_that_is_damaged_is_told_as_before() -> None:
    for unpack in ("zstd_decode", "lz4_decode", "gzip_decode"):
        with pytest.raises(Exception, match=r".") as caught:
            getattr(default_records, unpack)(b"no such thing")
        assert not isinstance(caught.value, Corrupt)


@pytest.mark.kafka
async def test_a_record_that_becomes_too_much_is_a_dead_letter_and_the_next_is_read(
    kafka_server: KafkaServer, new_topic: Callable[..., Awaitable[str]]
) -> None:
    topic = await new_topic("bomb", 1)
    size = unpacking.MOST_BYTES + 1
    producer = AIOKafkaProducer(
        bootstrap_servers=kafka_server.bootstrap, compression_type="zstd", max_request_size=2 * size
    )
    await producer.start()
    for value in (b'{"text": "one"}', b" " * size, b'{"text": "two"}'):
        await producer.send_and_wait(topic, value)
    await producer.stop()
    source = KafkaTopics(KafkaSource((topic,), bootstrap=kafka_server.bootstrap, until="end"))
    reader = await source.open([(split, split.start) for split in await source.splits(1)])
    found: list[Raw] = []
    while not (batch := await reader.read(100, 1 << 20)).done:
        found += batch.records
        await asyncio.sleep(batch.again_after_s or 0)
    found += batch.records
    await reader.close()
    assert [raw.data for raw in found] == [b'{"text": "one"}', b"", b'{"text": "two"}']
    assert [raw.error[0] if raw.error else None for raw in found] == [None, "malformed", None]
    assert "67,108,864 bytes" in str(found[1].error)
