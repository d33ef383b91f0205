"""A process tells the others that it lives: a counter in the control partition that moves every two seconds."""

from __future__ import annotations

import asyncio
import contextlib
import secrets

import msgspec
from aiokafka import AIOKafkaProducer, TopicPartition

from penstock.connectors.kafka.client import abandon, drop, new_producer, retrieve, start, within
from penstock.connectors.kafka.control import ALIVE, Beat
from penstock.connectors.kafka.keys import Scope
from penstock.connectors.settings import Connection
from penstock.engine.errors import PenstockError

BEAT_S = 2.0
SEND_S = 4.0
"""A beat that took longer than two is none."""
STOP_S = 2.0


class Heart:
    """`process`: names this process, new with each start. Beats without a transaction: nothing hides them.

    After a beat that failed the client is thrown away: it logs in with what was right when it was made, and a password
    or certificate may have been rotated since."""

    def __init__(self, connection: Connection, partition: TopicPartition, scope: Scope, beat_s: float = BEAT_S) -> None:
        self.process = secrets.token_hex(8)
        self._connection = connection
        self._partition = partition
        self._scope = scope
        self._key = scope.key(ALIVE, self.process)
        self._beat_s = beat_s
        self._count = 0
        self._producer: AIOKafkaProducer | None = None
        self._task: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()

    async def start(self) -> None:
        """The first beat is there when this returns. Raises `Temporary`, `Refused`. Called again, or by
        several lanes at once: one heart."""
        async with self._starting:
            if self._task is None:
                await self._start()

    async def _start(self) -> None:
        try:
            await self._beat(await self._connect())
        except BaseException:
            self.kill()
            raise
        self._task = asyncio.get_running_loop().create_task(self._go())

    async def _connect(self) -> AIOKafkaProducer:
        producer = new_producer(self._connection, None)
        await start(producer, self._connection)
        self._producer = producer
        return producer

    async def stop(self) -> None:
        """End in peace: nobody has to wait to see that we are gone."""
        producer, self._producer = self._producer, None
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if producer is not None:
            with contextlib.suppress(PenstockError):
                await self._send(producer, None, STOP_S)
            abandon(producer)

    async def bury(self, processes: list[str]) -> None:
        """Take away the signs of life of processes that are dead."""
        producer = self._producer
        if producer is None:
            return
        with contextlib.suppress(PenstockError):  # whoever comes next does it
            for process in processes:
                await self._send(producer, None, STOP_S, self._scope.key(ALIVE, process))

    def kill(self) -> None:
        """End as a killed process ends: the counter stands still, and nothing says why."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._disconnect()

    def _disconnect(self) -> None:
        if self._producer is not None:
            drop(self._producer)
            self._producer = None

    async def _go(self) -> None:
        while True:
            await asyncio.sleep(self._beat_s)
            try:
                await self._beat(self._producer or await self._connect())
            except Exception:  # noqa: BLE001 - others may think us gone meanwhile, epochs keep us apart: the next may do
                self._disconnect()

    async def _beat(self, producer: AIOKafkaProducer) -> None:
        self._count += 1
        await self._send(producer, msgspec.msgpack.encode(Beat(self.process, self._count)), SEND_S)

    async def _send(
        self, producer: AIOKafkaProducer, value: bytes | None, seconds: float, key: bytes | None = None
    ) -> None:
        topic, partition = self._partition
        async with within(seconds, self._connection, "telling that we live"):
            sent = await producer.send(topic, value, key or self._key, partition)
            sent.add_done_callback(retrieve)
            await asyncio.shield(sent)
