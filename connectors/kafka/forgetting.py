"""Deleting what a run left in the progress topic: a tombstone for each of its keys. Records in other topics can't be
deleted: a mark says from which run epoch on they count as this run's."""

from __future__ import annotations

import asyncio

import msgspec

from penstock.connectors.kafka.client import abandon, new_producer, start, within
from penstock.connectors.kafka.control import FRESH, Control
from penstock.connectors.kafka.opening import Cluster
from penstock.connectors.kafka.progress import read_rows
from penstock.connectors.settings import Connection
from penstock.engine.plan import MAX_LANES

FORGET_S = 60.0


async def forget(connection: Connection, cluster: Cluster, control: Control) -> None:
    """Epochs stay: what an old process still holds must never look new. Raises `Temporary`."""
    numbers = sorted({cluster.scope.data(lane) for lane in range(-1, MAX_LANES)})
    producer = new_producer(connection, None)
    await start(producer, connection)
    try:
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
