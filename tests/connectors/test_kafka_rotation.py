"""A password that is rotated while a process lives: the clients that tell and hear who lives are made anew."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError

from penstock.connectors.kafka import control as control_module
from penstock.connectors.kafka import heart as heart_module
from penstock.connectors.kafka.control import CLAIM, Beat, Claim, Control
from penstock.connectors.kafka.heart import Heart
from penstock.connectors.kafka.keys import Scope
from penstock.connectors.settings import Connection
from penstock.engine.errors import Away

SCOPE = Scope("x", 1)
WHERE = Connection("127.0.0.1:1")


class Cluster:
    """One partition, and the password of today. Clients log in with each call by the one they were made with."""

    def __init__(self) -> None:
        self.password, self.known = "old", "old"
        self.log: list[tuple[bytes, bytes | None]] = []
        self.strange = 0
        self.made = self.refused = 0
        self.changed = asyncio.Event()

    async def until(self, seen: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not seen():
                self.changed.clear()
                await self.changed.wait()

    async def beats(self, n: int) -> None:
        wanted = len(self.log) + n
        await self.until(lambda: len(self.log) >= wanted)

    def check(self, password: str) -> None:
        if password != self.password:
            self.refused += 1
            self.changed.set()
            raise KafkaConnectionError("the broker closed the connection")


class Client:
    """What the heart and the control partition ask of aiokafka."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self._password, self._at = cluster, cluster.known, 0
        cluster.made += 1

    async def start(self) -> None:
        self._cluster.check(self._password)

    async def stop(self) -> None:
        pass

    async def send(self, _topic: str, value: bytes | None, key: bytes, _partition: int) -> asyncio.Future[None]:
        self._cluster.check(self._password)
        if self._cluster.strange:
            self._cluster.strange -= 1
            raise KeyError("a library's own mistake")
        self._cluster.log.append((key, value))
        self._cluster.changed.set()
        sent = asyncio.get_running_loop().create_future()
        sent.set_result(None)
        return sent

    async def end_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        self._cluster.check(self._password)
        return dict.fromkeys(partitions, len(self._cluster.log))

    def assign(self, _partitions: list[TopicPartition]) -> None:
        pass

    async def seek_to_beginning(self, _partition: TopicPartition) -> None:
        self._at = 0

    async def position(self, _partition: TopicPartition) -> int:
        return self._at

    async def getmany(self, partition: TopicPartition, **_: Any) -> dict[TopicPartition, list[Any]]:
        self._cluster.check(self._password)
        found = list(enumerate(self._cluster.log))[self._at :]
        self._at = len(self._cluster.log)
        return {partition: [SimpleNamespace(key=k, value=v, offset=at, timestamp=0) for at, (k, v) in found]}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    one = Cluster()
    monkeypatch.setattr(control_module, "new_consumer", lambda *_, **__: Client(one))
    monkeypatch.setattr(heart_module, "new_producer", lambda *_: Client(one))
    monkeypatch.setattr(heart_module, "drop", lambda _: None)
    return one


async def test_a_heart_goes_on_after_the_password_was_rotated(cluster: Cluster) -> None:
    """Its client kept the old one: it was silent for good, and the next command took the run from one that lived."""
    heart = Heart(WHERE, TopicPartition("t", 0), SCOPE, beat_s=0.001)
    await heart.start()
    await cluster.beats(2)
    cluster.password = "new"
    await cluster.until(lambda: cluster.refused > 2)  # the broker has it first, and then those who connect
    cluster.known = "new"
    await cluster.beats(2)
    await heart.stop()
    assert cluster.log[-1] == (heart._key, None)


async def test_a_heart_outlives_an_error_that_is_not_ours(cluster: Cluster) -> None:
    heart = Heart(WHERE, TopicPartition("t", 0), SCOPE, beat_s=0.001)
    await heart.start()
    cluster.strange = 3
    await cluster.beats(2)
    assert cluster.strange == 0
    await heart.stop()


async def test_who_owns_what_is_read_after_the_password_was_rotated(cluster: Cluster) -> None:
    """By clients that were made before: the run ended as failed when it was asked to stop."""
    control = Control(WHERE, "t", SCOPE)
    await control.refresh()
    cluster.log.append((SCOPE.key(CLAIM, "0"), msgspec.msgpack.encode(Claim((1, 2), "p"))))
    cluster.password = "new"
    for _ in range(2):
        with pytest.raises(Away):
            await control.refresh()
    cluster.known = "new"
    await control.refresh()
    assert control.owner(0) == (1, 2)
    cluster.password = cluster.known = "newest"
    cluster.log.append((SCOPE.key(CLAIM, "0"), msgspec.msgpack.encode(Claim((1, 3), "p"))))
    await control.refresh()  # at once
    assert control.owner(0) == (1, 3)
    control.close()


async def test_a_long_control_partition_is_read_as_long_as_it_brings_something(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A topic with the broker's own settings is compacted after a week or two: by then it holds some 40,000 signs of
    life a day and process, and no run could be begun any more."""
    monkeypatch.setattr(control_module, "CALL_S", 0.05)
    one, tail = Control(Connection("k:1"), "progress", Scope("r", 8)), Long(batches=5, seconds=0.03)
    one._tail = tail  # type: ignore[assignment]
    await one._read(5)
    assert one.beats == {"p": 4}


class Long:
    """A consumer that brings a record at a time."""

    def __init__(self, batches: int, seconds: float) -> None:
        self._at, self._batches, self._seconds = 0, batches, seconds

    async def position(self, _: object) -> int:
        return self._at

    async def getmany(self, where: TopicPartition, **_: object) -> dict[TopicPartition, list[Any]]:
        await asyncio.sleep(self._seconds)
        at, self._at = self._at, self._at + 1
        beat = msgspec.msgpack.encode(Beat("p", at))
        return {where: [SimpleNamespace(offset=at, key=Scope("r", 8).key("alive", "p"), value=beat, timestamp=0)]}
