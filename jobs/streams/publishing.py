"""Rows of a file to a topic, in their order, each once: by an idempotent producer that waits for all in-sync replicas.

A repeat of the command publishes everything again: a topic has no memory of what a file was.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
from aiokafka import AIOKafkaProducer

from penstock.connectors.base import Raw, Reader
from penstock.connectors.files import FileSource
from penstock.connectors.kafka.client import new_admin, new_producer, opened, within
from penstock.connectors.kafka.records import Headers, Row, batches
from penstock.connectors.kafka.topics import TopicFacts, ensure
from penstock.connectors.settings import Connection, FilesSource, Format
from penstock.engine.errors import SpecError
from penstock.jobs.streams.where import find
from penstock.jobs.wording import counted

BATCH_BYTES = 1 << 18
"""Records of one partition in one request, where the topic takes so many. Larger gains nothing. A guess."""
CHUNK = 2_000
"""Records between two waits for the brokers."""
READ_BYTES = 4_000_000
SEND_S = 60.0
"""How long the brokers may take for one chunk."""
PACE_S = 0.1
"""With a rate, so often something is sent."""
SKIPPED_SHOWN = 3
_TABLES = ("csv", "parquet")
"""Their rows become objects; the lines of other formats go as they are, what can't be read of them too."""


class Order(msgspec.Struct, frozen=True):
    """What to publish, and how. `key`: the column that keys a record; records of one key keep their order.
    `rate_per_s` None: as fast as the brokers take them."""

    path: str
    topic: str
    connection: Connection
    format: Format | None = None
    key: str | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    rate_per_s: float | None = None
    create: bool = False


class Published(msgspec.Struct):
    """So far. `unsure`: those behind `records` that were sent, and may be there or not. `skipped`: how many could not
    be published; `why`: the first of them, in words."""

    records: int = 0
    unsure: int = 0
    size_bytes: int = 0
    skipped: int = 0
    why: list[str] = msgspec.field(default_factory=list[str])


async def publish(order: Order, done: Published, show: Callable[[Published], None]) -> None:
    """Publish the file; `done` grows as brokers acknowledge, also where this raises. Raises `SpecError` (no such file,
    topic or column), `Refused`, `Temporary`."""
    source = FileSource(FilesSource(str(Path(order.path).resolve()), order.format))
    splits = await source.splits(1)
    facts = await _topic(order)
    producer = new_producer(order.connection, None, batch_bytes=min(BATCH_BYTES, facts.max_message_bytes), once=True)
    pace = _Pace(order.rate_per_s)
    async with opened(producer, order.connection):
        for split in splits:  # one after another: the order of the file
            reader = await source.open([(split, split.start)])
            try:
                async for chunk in _chunks(reader, pace.chunk):
                    whole = _whole(chunk, done, table=split.format in _TABLES)
                    await _send(producer, order, list(_rows(order, facts, whole, done)), done)
                    show(done)
                    await pace.wait(done.records)
            finally:
                await reader.close()


def before(done: Published) -> str:
    """What is there of a file that was not published whole: whoever goes on by hand must know where."""
    told = f"{counted(done.records, 'record')} {'was' if done.records == 1 else 'were'} published before this"
    return f"{told}; of the next {done.unsure:,}, some or all may be there too" if done.unsure else told


async def _topic(order: Order) -> TopicFacts:
    if not order.create:
        return await find(order.connection, order.topic, " (--create makes it)")
    async with opened(new_admin(order.connection), order.connection) as admin:
        return await ensure(admin, order.connection, order.topic, create=True)


async def _chunks(reader: Reader, count: int) -> AsyncIterator[list[Raw]]:
    while True:
        batch = await reader.read(count, READ_BYTES)
        if batch.records:
            yield batch.records
        if batch.done:
            return


def _whole(chunk: list[Raw], done: Published, *, table: bool) -> Iterator[Raw]:
    for raw in chunk:
        cut = not (raw.row_json or raw.data) or len(raw.data) < (raw.length if raw.row_json is None else 0)
        if cut or (table and raw.error is not None):
            _skip(done, raw, raw.error[1] if raw.error else "it was not read whole")
        else:
            yield raw


def _rows(order: Order, facts: TopicFacts, whole: Iterator[Raw], done: Published) -> Iterator[Row]:
    headers: Headers = list(order.headers)
    for raw in whole:
        value = raw.row_json or raw.data
        try:
            key = _key(order, raw, value)
        except msgspec.DecodeError:
            _skip(done, raw, f"--key {order.key}: it is no JSON object")
            continue
        row = Row(facts, key, value, headers)
        if why := row.too_large:
            _skip(done, raw, why)
        else:
            yield row


def _skip(done: Published, raw: Raw, why: str) -> None:
    done.skipped += 1
    if len(done.why) < SKIPPED_SHOWN:
        done.why.append(f"the record at {raw.position.position:,} of {raw.position.split}: {why}")


_columns = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _key(order: Order, raw: Raw, value: bytes) -> bytes | None:
    """Text as it is, other values as JSON; null is no key. Raises `SpecError` where there is no such column, and
    `DecodeError` where there are no columns at all."""
    if order.key is None:
        return None
    columns = _columns.decode(value)
    if order.key not in columns:
        names = ", ".join(list(columns)[:20])
        raise SpecError(f"--key {order.key}: no such column at {raw.position.position:,}; there are {names}")
    found: object = msgspec.json.decode(columns[order.key])
    if found is None:
        return None
    return found.encode() if isinstance(found, str) else bytes(columns[order.key])


async def _send(producer: AIOKafkaProducer, order: Order, rows: list[Row], done: Published) -> None:
    """Send, and wait until all is acknowledged."""
    done.unsure = len(rows)
    async with within(SEND_S, order.connection, f"publishing to {order.topic}"):
        sent = [await producer.send_batch(b, tp.topic, partition=tp.partition) for tp, b in batches(producer, rows)]
        for future in sent:
            await future
    done.records, done.unsure = done.records + len(rows), 0
    done.size_bytes += sum(len(row.value or b"") + len(row.key or b"") for row in rows)


class _Pace:
    """Lets so many records a second through."""

    def __init__(self, rate_per_s: float | None) -> None:
        self._rate = rate_per_s
        self._began = time.monotonic()
        self.chunk = CHUNK if rate_per_s is None else max(1, min(CHUNK, round(rate_per_s * PACE_S)))

    async def wait(self, records: int) -> None:
        if self._rate is not None:
            await asyncio.sleep(max(0.0, self._began + records / self._rate - time.monotonic()))
