"""A lane's progress as records of a compacted topic: its head, and its chunks in pieces that the topic can take.

The head says epoch, seq, and a digest of all chunks: what is read is compared with it, so a record that was lost (a
topic that deletes, a wrong restore) is `Corrupt` and never a smaller finished set. The plan is kept the same way.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import AsyncIterator, Iterator, Mapping

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import ConsumerRecord

from penstock.connectors.kafka.client import new_consumer, opened, within
from penstock.connectors.kafka.keys import Scope
from penstock.connectors.settings import Connection
from penstock.engine.errors import Corrupt
from penstock.engine.plan import Epoch

READ_S = 40.0
"""Without a record. An open transaction of a process that died hides what is behind it until the coordinator ends it:
after its own 10 s, for which it looks every 10 s (`transaction.abort.timed.out.transaction.cleanup.interval.ms`). Twice
that."""
FETCH_BYTES = 8 << 20
POLL_MS = 20
"""A commit marker at the end moves the position but wakes nobody who waits for records."""
_PIECES = struct.Struct(">I")
"""In front of a chunk's first piece: how many there are. Later pieces of an older, longer value mean nothing."""


class Head(msgspec.Struct, frozen=True, array_like=True):
    epoch: Epoch = (0, 0)
    seq: int = 0
    chunks: int = 0
    digest: int = 0
    """The crc32 of every chunk's name and value, exclusive-or."""


class Stored(msgspec.Struct):
    """What is known of one lane's chunks without keeping them: name → (pieces, crc32)."""

    head: Head = Head()
    chunks: dict[str, tuple[int, int]] = {}


Rows = list[tuple[bytes, bytes | None]]
"""Key and value of records; None deletes."""


def rows_of(
    scope: Scope, lane: int, stored: Stored, epoch: Epoch, seq: int, chunks: Mapping[str, bytes], piece_bytes: int
) -> tuple[Rows, Stored]:
    """The records of one commit, and what is stored once it is through. `chunks`: those that changed; empty deletes."""
    rows: Rows = []
    known, digest = dict(stored.chunks), stored.head.digest
    for name, value in chunks.items():
        if name in known:
            digest ^= known.pop(name)[1]
        if not value:
            rows += [(scope.key(str(lane), name, str(n)), None) for n in range(stored.chunks.get(name, (0, 0))[0])]
            continue
        pieces = list(_pieces(value, piece_bytes))
        known[name] = (len(pieces), _crc(name, value))
        digest ^= known[name][1]
        rows += [(scope.key(str(lane), name, str(n)), piece) for n, piece in enumerate(pieces)]
    head = Head(epoch, seq, len(known), digest)
    rows.append((scope.key(str(lane)), msgspec.msgpack.encode(head)))
    return rows, Stored(head, known)


def _pieces(value: bytes, piece_bytes: int) -> Iterator[bytes]:
    data = memoryview(value)
    count = max(1, -(-len(value) // piece_bytes))
    for n in range(count):
        piece = bytes(data[n * piece_bytes : (n + 1) * piece_bytes])
        yield _PIECES.pack(count) + piece if n == 0 else piece


def _crc(name: str, value: bytes) -> int:
    return zlib.crc32(value, zlib.crc32(name.encode() + b"\0"))


def assemble(scope: Scope, lane: int, rows: Mapping[bytes, bytes]) -> tuple[Stored, dict[str, bytes]]:
    """What the latest records say. Raises `Corrupt`."""
    head = Head()
    pieces: dict[str, dict[int, bytes]] = {}
    for key, value in rows.items():
        match scope.parts(key):
            case [of] if of == str(lane):
                head = _head(value, lane)
            case [of, name, number] if of == str(lane):
                pieces.setdefault(name, {})[int(number)] = value
            case _:
                pass
    chunks = {name: joined(name, parts) for name, parts in pieces.items() if 0 in parts}
    known = {name: (_PIECES.unpack_from(pieces[name][0])[0], _crc(name, value)) for name, value in chunks.items()}
    digest = 0
    for _, crc in known.values():
        digest ^= crc
    if (head.chunks, head.digest) != (len(known), digest):
        raise Corrupt(_damaged(f"lane {lane}", f"{len(known)} of {head.chunks} chunks fit the last commit"))
    return Stored(head, known), chunks


def _head(value: bytes, lane: int) -> Head:
    try:
        return msgspec.msgpack.decode(value, type=Head)
    except msgspec.MsgspecError as error:
        raise Corrupt(_damaged(f"lane {lane}", str(error))) from error


def joined(name: str, parts: Mapping[int, bytes]) -> bytes:
    """A chunk of its pieces. Raises `Corrupt`."""
    (count,) = _PIECES.unpack_from(parts[0])
    if any(n not in parts for n in range(count)):
        raise Corrupt(_damaged(f"chunk {name}", f"not all of its {count} pieces are there"))
    return b"".join([parts[0][_PIECES.size :], *(parts[n] for n in range(1, count))])


def _damaged(what: str, why: str) -> str:
    return (
        f"the progress of {what} in the progress topic can't be read ({why}). Restore the topic, or start with --fresh."
    )


async def read_rows(connection: Connection, partition: TopicPartition, end: int, scope: Scope) -> dict[bytes, bytes]:
    """The latest committed record of each of this scope's keys below `end`. Raises `Temporary`."""
    rows: dict[bytes, bytes] = {}
    async with opened(new_consumer(connection, fetch_bytes=FETCH_BYTES), connection) as consumer:
        doing = f"reading progress in {partition.topic}/{partition.partition} up to {end}"
        async with within(READ_S, connection, doing) as limit:
            consumer.assign([partition])
            await consumer.seek_to_beginning(partition)
            async for record in records_below(consumer, partition, end, limit):
                key = record.key
                if key is None or scope.parts(key) is None:
                    continue
                if record.value is None:
                    rows.pop(key, None)
                else:
                    rows[key] = record.value
    return rows


async def records_below(
    consumer: AIOKafkaConsumer, partition: TopicPartition, end: int, limit: asyncio.Timeout | None = None
) -> AsyncIterator[ConsumerRecord[bytes, bytes]]:
    """Records from the consumer's position up to `end`. `limit`: starts anew with each batch, so that a long partition
    may take its time, and one that brings nothing may not."""
    while await consumer.position(partition) < end:
        found = (await consumer.getmany(partition, timeout_ms=POLL_MS)).get(partition, [])
        if found and limit is not None:
            limit.reschedule(asyncio.get_running_loop().time() + READ_S)
        for record in found:
            if record.offset < end:
                yield record
