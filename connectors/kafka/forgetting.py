"""Deleting what a run left in the progress topic: a tombstone for each of its keys. Records in other topics can't be
deleted: a mark says from which run epoch on they count as this run's.

A process of the old life may only sleep. What it committed after its progress is gone would count as the new life's
progress: so first no owner of an old epoch can take a lane, then none that has one can commit, and then it goes.
"""

from __future__ import annotations

import asyncio

import msgspec
from aiokafka import AIOKafkaProducer

from penstock.connectors.kafka.client import abandon, new_producer, start, within
from penstock.connectors.kafka.control import CLAIM, FRESH, Claim, Control
from penstock.connectors.kafka.lane import Transactions
from penstock.connectors.kafka.opening import Cluster
from penstock.connectors.kafka.progress import read_rows
from penstock.connectors.settings import Connection
from penstock.engine.plan import MAX_LANES

FORGET_S = 60.0
LAST = 1 << 31
"""Above the lane epoch of any owner under one run epoch."""


async def forget(connection: Connection, cluster: Cluster, control: Control) -> None:
    """Epochs stay: what an old process still holds must never look new. Raises `Temporary`."""
    numbers = sorted({cluster.scope.data(lane) for lane in range(-1, MAX_LANES)})
    producer = new_producer(connection, None)
    await start(producer, connection)
    try:
        await _shut_out(connection, cluster, control, producer)
        for number in numbers:
            partition = cluster.partition(number)
            keys = await read_rows(connection, partition, await control.end(partition), cluster.scope)
            async with within(FORGET_S, connection, "deleting old progress"):
                sent = [await producer.send(partition.topic, None, key, number) for key in keys]
                await asyncio.gather(*sent)
        await control.refresh()
        epoch = msgspec.msgpack.encode(control.last_run_epoch)
        async with within(FORGET_S, connection, "deleting old progress"):
            await producer.send_and_wait(
                control.partition.topic, epoch, cluster.scope.key(FRESH), cluster.scope.control
            )
    finally:
        abandon(producer)


async def _shut_out(connection: Connection, cluster: Cluster, control: Control, producer: AIOKafkaProducer) -> None:
    await control.refresh()
    held, shut = list(control.claims), msgspec.msgpack.encode(Claim((control.last_run_epoch, LAST)))
    async with within(FORGET_S, connection, "shutting out old owners"):
        for lane in range(MAX_LANES):
            key = cluster.scope.key(CLAIM, str(lane))
            await producer.send_and_wait(control.partition.topic, shut, key, cluster.scope.control)
    for owner in (*held, "driver"):
        fence = Transactions(connection, cluster.scope.transactional_id(owner), batch_bytes=cluster.batch_bytes)
        await fence.start()
        fence.close()
