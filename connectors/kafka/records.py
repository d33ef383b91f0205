"""Records on their way out: to which topic and partition, under which key and headers, and whether they fit there."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping

import msgspec
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from penstock.connectors.base import OutRecord
from penstock.connectors.kafka.topics import TopicFacts
from penstock.connectors.reading.envelope import EPOCH, ITEM, OF_RECORDS, RUN

REPLY_TO = "reply_to"
_partition_of = DefaultPartitioner()
"""murmur2 of the key, as the Java client does it: a key's records meet those that others write."""

Headers = list[tuple[str, bytes | None]]


class Row(msgspec.Struct, frozen=True, gc=False):
    topic: TopicFacts
    key: bytes | None
    value: bytes | None
    headers: Headers = []
    partition: int | None = None
    """None: by the key."""

    @property
    def size(self) -> int:
        """What the topic's `max.message.bytes` is compared with: a batch of this record alone, at most."""
        return DefaultRecordBatchBuilder.estimate_size_in_bytes(self.key, self.value, self.headers)

    @property
    def too_large(self) -> str | None:
        """Why its topic does not take it."""
        if self.size <= self.topic.max_message_bytes:
            return None
        return (
            f"a record of {self.size:,} bytes is more than the topic {self.topic.name} takes (max.message.bytes="
            f"{self.topic.max_message_bytes:,}). Raise it there, or keep fewer columns."
        )


def row(run_id: str, epoch: int, topic: TopicFacts, record: OutRecord, replies: Mapping[str, TopicFacts]) -> Row:
    """One record of a sink, written under a run epoch. `replies`: topics that a record's `reply_to` header may name
    instead of the sink's own."""
    item = record.item_id.encode()
    headers: Headers = [pair for pair in record.headers if pair[0] not in OF_RECORDS]
    reply = next(
        (replies.get(value.decode("utf-8", "replace")) for name, value in record.headers if name == REPLY_TO), None
    )
    headers += [(RUN, run_id.encode()), (EPOCH, str(epoch).encode())]
    if item:
        headers.append((ITEM, item))
    return Row(reply or topic, record.key if record.key is not None else item or None, record.value, headers)


def batches(producer: AIOKafkaProducer, rows: Iterable[Row]) -> list[tuple[TopicPartition, BatchBuilder]]:
    """The rows as record batches, those of one partition in their order."""
    done: list[tuple[TopicPartition, BatchBuilder]] = []
    filling: dict[TopicPartition, BatchBuilder] = {}
    keyless: dict[str, int] = {}
    for one in rows:
        where = TopicPartition(one.topic.name, _partition(one, keyless))
        builder = filling.get(where)
        if builder is not None and _append(builder, one):
            continue
        builder = filling[where] = producer.create_batch()
        done.append((where, builder))
        if not _append(builder, one):  # the first record of a batch always fits: its size was checked
            raise AssertionError(f"a record of {one.size} bytes does not fit into an empty batch for {where.topic}")
    for _, builder in done:
        builder.close()
    return done


def _append(builder: BatchBuilder, one: Row) -> bool:
    return builder.append(timestamp=None, key=one.key, value=one.value, headers=one.headers) is not None


def _partition(one: Row, keyless: dict[str, int]) -> int:
    count = one.topic.partitions
    if one.partition is not None:
        return one.partition
    if count == 1:
        return 0
    if one.key is None:  # one partition a commit: larger batches
        return keyless.setdefault(one.topic.name, random.randrange(count))
    return _partition_of(one.key, range(count), ())


def run_epoch_of(headers: Iterable[tuple[str, bytes | None]], run_id: str) -> int:
    """Under which run epoch a record of this run was written; 0: it is no record of this run."""
    found = dict(headers)
    try:
        return int(found.get(EPOCH) or 0) if found.get(RUN) == run_id.encode() else 0
    except ValueError:  # whoever may write to the topic may write any header
        return 0
