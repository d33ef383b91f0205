"""Who holds the run and which epoch owns a lane: the tail of one small partition, as of now.

It is read *uncommitted*, on purpose. A claim is written by a producer that has fenced all older ones by its very start,
so it is true whether its transaction ends well or not; and no other lane's open transaction can hide it.

Who is alive is found by watching, never by clocks: a process's counter moves, or it has not moved for `ALIVE_S`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from penstock.connectors.base import Holder
from penstock.connectors.kafka.client import abandon, new_consumer, start, within
from penstock.connectors.kafka.keys import Scope
from penstock.connectors.kafka.progress import records_below
from penstock.connectors.kafka.topics import CALL_S, ends
from penstock.connectors.settings import Connection
from penstock.engine.errors import PenstockError
from penstock.engine.plan import Epoch

ALIVE_S = 6.0
"""Three beats: a process that has not moved its counter for so long is not alive."""
DEAD_S = 3_600.0
"""The last sign of life of a process that was killed is taken away after so long: far more than clocks differ."""
POLL_S = 0.1

HOLD, ALIVE, CLAIM, FRESH = "hold", "alive", "claim", "fresh"


class Claim(msgspec.Struct, frozen=True, array_like=True):
    """A lane's owner. `process` empties when it lets go."""

    epoch: Epoch
    process: str = ""


class Hold(msgspec.Struct, frozen=True):
    """The run's command. `process` empties when it lets go."""

    epoch: int
    holder: Holder
    process: str = ""


class Beat(msgspec.Struct, frozen=True, array_like=True):
    process: str
    count: int


class Control:
    """What the control partition says of one run. Reads are shared: one consumer, one after another.

    A client that failed is thrown away, and the same is tried at once with a new one: it logs in with what was right
    when it was made, and a password or certificate may have been rotated since."""

    def __init__(self, connection: Connection, topic: str, scope: Scope) -> None:
        self.hold: Hold | None = None
        self.fresh = 0
        """Records of run epochs up to here were disowned."""
        self.claims: dict[int, Claim] = {}
        self.beats: dict[str, int] = {}
        """Process → its counter; one that ended in peace has none."""
        self._beat_at: dict[str, float] = {}
        """When it last moved, by its own clock (Unix seconds)."""
        self.partition = TopicPartition(topic, scope.control)
        self._connection = connection
        self._scope = scope
        self._tail: AIOKafkaConsumer | None = None
        self._ends: AIOKafkaConsumer | None = None
        """A connection of its own: a broker answers one connection's requests in order, and the tail's fetch waits."""
        self._lock = asyncio.Lock()
        self._ending = asyncio.Lock()

    async def refresh(self) -> None:
        """Read up to where the partition ends now. Raises `Temporary`."""
        async with self._lock:
            end, known = await self.end(self.partition), self._tail is not None
            await _twice(lambda: self._read(end), known, self._drop_tail)

    async def _read(self, end: int) -> None:
        tail = self._tail or await self._open_tail()
        # Long where its topic is compacted late, as by a broker's defaults: it may take its time while it brings some.
        async with within(CALL_S, self._connection, "reading who owns what") as limit:
            async for record in records_below(tail, self.partition, end, limit):
                self._see(record.key, record.value, record.timestamp / 1000)

    async def end(self, partition: TopicPartition) -> int:
        """The offset behind the partition's last record, open transactions included. Raises `Temporary`."""
        known = self._ends
        return await _twice(lambda: self._end(partition), known is not None, lambda: self._drop_ends(known))

    async def _end(self, partition: TopicPartition) -> int:
        async with self._ending:
            if self._ends is None:
                consumer = new_consumer(self._connection, committed=False)
                await start(consumer, self._connection)
                self._ends = consumer
            consumer = self._ends
        return (await ends(consumer, self._connection, [partition]))[partition]

    def close(self) -> None:
        self._drop_tail()
        self._drop_ends(self._ends)

    def _drop_tail(self) -> None:
        if self._tail is not None:
            abandon(self._tail)
        self._tail = None

    def _drop_ends(self, known: AIOKafkaConsumer | None) -> None:
        """Unless another call has put a new one into its place."""
        if known is not None and self._ends is known:
            abandon(known)
            self._ends = None

    async def alive(self, process: str, window_s: float) -> bool:
        """Whether the process's counter moves within `window_s`. Waits that long only where it does not."""
        await self.refresh()
        before = self.beats.get(process)
        deadline = asyncio.get_running_loop().time() + window_s
        while before is not None:
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(min(POLL_S, window_s / 5))
            await self.refresh()
            if process not in self.beats:
                return False
            if self.beats[process] != before:
                return True
        return False

    def dead(self, now: float) -> list[str]:
        """Processes that were killed long ago. One that lives all the same, with a wrong clock, beats again at once."""
        return [process for process, at in self._beat_at.items() if now - at > DEAD_S]

    async def _open_tail(self) -> AIOKafkaConsumer:
        consumer = new_consumer(self._connection, committed=False)
        await start(consumer, self._connection)
        try:
            async with within(CALL_S, self._connection, "reading who owns what"):
                consumer.assign([self.partition])
                await consumer.seek_to_beginning(self.partition)
        except BaseException:
            abandon(consumer)
            raise
        self._tail = consumer
        return consumer

    def _see(self, key: bytes | None, value: bytes | None, at: float) -> None:
        match self._scope.parts(key):
            case ["hold"]:
                self.hold = _decoded(value, Hold)
            case ["fresh"]:
                self.fresh = _decoded(value, int) or 0
            case ["claim", lane]:
                claim = _decoded(value, Claim)
                if claim is None:
                    self.claims.pop(int(lane), None)
                elif claim.epoch >= self.owner(int(lane)):
                    self.claims[int(lane)] = claim
            case ["alive", process]:
                beat = _decoded(value, Beat)
                if beat is None:
                    self.beats.pop(process, None)
                    self._beat_at.pop(process, None)
                else:
                    self.beats[process], self._beat_at[process] = beat.count, at
            case _:
                pass

    @property
    def last_run_epoch(self) -> int:
        """The highest that ever wrote; a follower learns it from its lanes' owners only."""
        return max([self.hold.epoch if self.hold else 0, *(claim.epoch[0] for claim in self.claims.values())])

    def owner(self, lane: int) -> Epoch:
        claim = self.claims.get(lane)
        return claim.epoch if claim else (0, 0)


T = TypeVar("T")


async def _twice(work: Callable[[], Awaitable[T]], known: bool, drop: Callable[[], None]) -> T:
    """`known`: its client was there before. The first error counts: why a new one fails says no more."""
    try:
        return await work()
    except PenstockError:
        drop()
        if known:
            with contextlib.suppress(PenstockError):
                return await work()
        raise


def _decoded(value: bytes | None, kind: type[T]) -> T | None:
    return None if value is None else msgspec.msgpack.decode(value, type=kind)
