"""One lane in a Kafka cluster: its transactional producer is the fence, and one transaction is one commit.

take      start the producer under the lane's transactional id: older ones can commit nothing from here on
          claim the lane (a record in the control partition), unless a higher epoch did
          read progress up to where its partition ends now
commit    open the transaction; send; wait for every record; commit
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka

from penstock.connectors.filestore.disk import Faults
from penstock.connectors.kafka.client import abandon, drop, new_producer, retrieve, start, within
from penstock.connectors.kafka.records import Row, batches
from penstock.connectors.settings import Connection
from penstock.engine.errors import PenstockError

COMMIT_S = 8.0
"""Less than the transaction's own timeout (10 s): who gave up knows it before the coordinator does."""
RELEASE_S = 2.0

TAKE_STEPS = ("take.begin", "take.fenced", "take.claimed")
COMMIT_STEPS = ("commit.begin", "commit.opened", "commit.sent", "commit.applied")


class Transactions:
    """A transactional producer, used for one transaction at a time; once one failed it is thrown away.

    Raises what `within` makes of Kafka's errors; `kafka.ProducerFenced` stays the cause (`fenced`).
    """

    def __init__(
        self, connection: Connection, transactional_id: str, *, batch_bytes: int, compression: str = "none"
    ) -> None:
        self._connection = connection
        self._producer = new_producer(connection, transactional_id, batch_bytes=batch_bytes, compression=compression)
        self.lost = False
        """A transaction broke: what became of it is unknown."""

    async def start(self) -> None:
        """Fence all older producers of this id; returns once their last transaction has ended."""
        await start(self._producer, self._connection)

    async def write(self, rows: Sequence[Row], faults: Faults, *, seconds: float = COMMIT_S) -> None:
        """One transaction. All of it is committed when this returns; where it raises, that is not known."""
        try:
            async with within(seconds, self._connection, "committing"):
                await self._write(rows, faults)
        except BaseException:
            self.lost = True
            drop(self._producer)
            raise

    async def _write(self, rows: Sequence[Row], faults: Faults) -> None:
        producer = self._producer
        await producer.begin_transaction()
        ended = self._listen(producer)
        faults("commit.opened")
        try:
            await _all(producer, rows)
        except kafka.IllegalOperation:  # there is no transaction any more; its end says why
            _check(ended)
            raise
        faults("commit.sent")
        _check(ended)
        await producer.commit_transaction()
        faults("commit.applied")

    def _listen(self, producer: AIOKafkaProducer) -> asyncio.Future[Any]:
        """The transaction's end. An error that comes while nobody waits for it is seen all the same."""
        waiter: asyncio.Future[Any] = producer._txn_manager.wait_for_transaction_end()  # pyright: ignore
        waiter.add_done_callback(retrieve)
        return waiter

    def close(self) -> None:
        """In peace, in the background."""
        if not self.lost:
            abandon(self._producer)

    def kill(self) -> None:
        """At once, as a killed process would."""
        self.lost = True
        drop(self._producer)


def _check(ended: asyncio.Future[Any]) -> None:
    """Raise what broke the transaction, if anything did."""
    if ended.done():
        ended.result()


async def _all(producer: AIOKafkaProducer, rows: Sequence[Row]) -> None:
    """Send, and wait for every record: a commit would go through without one that failed (seen)."""
    sent: list[asyncio.Future[Any]] = []
    for where, batch in batches(producer, rows):
        if where.partition not in await producer.partitions_for(where.topic):  # of which the client asserts
            raise kafka.StaleMetadata(f"{where.topic} has no partition {where.partition} any more")
        future = await producer.send_batch(batch, where.topic, partition=where.partition)
        future.add_done_callback(retrieve)
        sent.append(future)
    for future in sent:
        await asyncio.shield(future)


def fenced(error: PenstockError) -> bool:
    """Whether another producer of the same id was started, or our own transaction timed out: both look alike."""
    return isinstance(error.__cause__, (kafka.ProducerFenced, kafka.InvalidProducerEpoch))


async def farewell(transactions: Transactions, rows: Sequence[Row], faults: Faults) -> None:
    """A last transaction for those who come next; that it may fail is fine."""
    if not transactions.lost:
        with contextlib.suppress(PenstockError):
            await transactions.write(rows, faults, seconds=RELEASE_S)
    transactions.close()
