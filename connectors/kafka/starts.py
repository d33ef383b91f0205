"""Where a partition is begun that has no progress yet: `earliest`, `latest`, a time, or a group's offsets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from penstock.connectors.kafka.client import new_consumer, opened, within
from penstock.connectors.kafka.topics import CALL_S, begins
from penstock.connectors.settings import Connection
from penstock.engine.errors import SpecError

Offsets = dict[TopicPartition, int]


class Earliest(msgspec.Struct, frozen=True):
    pass


class Latest(msgspec.Struct, frozen=True):
    pass


class Since(msgspec.Struct, frozen=True):
    unix_ms: int


class Group(msgspec.Struct, frozen=True):
    name: str


Start = Earliest | Latest | Since | Group


def read_start(text: str) -> Start:
    """Raises `SpecError`."""
    match text.partition(":"):
        case ("earliest", "", _):
            return Earliest()
        case ("latest", "", _):
            return Latest()
        case ("group", ":", name) if name.strip():
            return Group(name.strip())
        case _:
            return Since(_unix_ms(text))


def _unix_ms(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise SpecError(
            f"source.start is {text!r}: it is earliest, latest, a time (2026-11-24T08:00:00Z) or group:NAME"
        ) from error
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


async def starts(
    start: Start,
    consumer: AIOKafkaConsumer,
    connection: Connection,
    partitions: Sequence[TopicPartition],
    last: Mapping[TopicPartition, int],
) -> Offsets:
    """`last`: the end offsets. Raises `SpecError` where the group says nothing, or what can't be."""
    match start:
        case Latest():
            return dict(last)
        case Earliest():
            return await begins(consumer, connection, partitions)
        case Since(unix_ms):
            async with within(CALL_S, connection, "looking up offsets by time"):
                found = await consumer.offsets_for_times(dict.fromkeys(partitions, unix_ms))
            return {tp: last[tp] if (at := found.get(tp)) is None else at.offset for tp in partitions}
        case Group(name):
            return await _of_group(name, consumer, connection, partitions, last)


async def _of_group(
    name: str,
    consumer: AIOKafkaConsumer,
    connection: Connection,
    partitions: Sequence[TopicPartition],
    last: Mapping[TopicPartition, int],
) -> Offsets:
    """A partition that the group never read is wanted whole."""
    found: Offsets = {}
    async with opened(new_consumer(connection, group=name), connection) as member:
        for tp in partitions:
            async with within(CALL_S, connection, f"reading the offsets of the group {name}"):
                offset = await member.committed(tp)
            if offset is not None:
                found[tp] = offset
    if not found:
        raise SpecError(f"the group {name!r} has no committed offsets here: check the name, or start: earliest")
    for tp, offset in found.items():
        if offset > last[tp]:
            raise SpecError(
                f"the group {name!r} stands at offset {offset} of {tp.topic}/{tp.partition}, which ends at {last[tp]}: "
                "was the topic made anew? (or a transaction is open there: then try again)"
            )
    return await begins(consumer, connection, partitions) | found
