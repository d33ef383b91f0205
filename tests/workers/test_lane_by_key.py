"""`order: key`: records of one key are sent one after another, whatever becomes of them and whoever is killed."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import msgspec
import pytest
from aiokafka import AIOKafkaProducer

from penstock.connectors import memory
from penstock.connectors.base import Raw
from penstock.connectors.kafka.client import ended
from penstock.connectors.kafka.place import KafkaPlace
from penstock.connectors.kafka.source import KafkaTopics
from penstock.connectors.memory import MemorySource, crash_at
from penstock.connectors.registry import Stores
from penstock.connectors.settings import CreateTopic, KafkaSink, KafkaSource
from penstock.engine.items import Answer, Call, Failure, FailureKind, Outcome, Usage
from penstock.engine.plan import Split
from tests.workers import lane_rig as rig

if TYPE_CHECKING:
    from conftest import KafkaAt

    from penstock.jobs.dev.kafka import KafkaServer

N = 60
FAILURES: tuple[FailureKind, ...] = ("not_sent", "invalid_output")
KEYS = (b"ann", b"bob", b"", None)


def key_of(number: int) -> bytes | None:
    return KEYS[number % 7 % 4]


class KeyedSource(MemorySource):
    """Records with keys, as a topic has them."""

    def record(self, number: int, split: Split) -> Raw:
        return msgspec.structs.replace(super().record(number, split), key=key_of(number))


class Worker:
    """Takes what it gets, answers in any order, and lets some calls fail. Knows what was in flight beside what."""

    def __init__(self, seed: int = 1) -> None:
        self.dice = random.Random(seed)
        self.sent: list[int] = []
        self.hand: list[Call] = []

    async def work(self, lane: rig.Rig, stores: Stores) -> None:
        """One owner of the lane, to its end or its death."""
        self.hand.clear()
        shell, driver = lane.shell(stores)
        try:
            await shell.open(await lane.made_plan(), force=True)
            shell.go()
            async with asyncio.timeout(60):
                while not driver.settled and not driver.failures:
                    chunk, _ = await shell.take(rig.POOL, 8, 1 << 30, "w")
                    self.take(chunk.calls if chunk is not None else [])
                    if self.hand:
                        call = self.hand.pop(self.dice.randrange(len(self.hand)))
                        await shell.done(shell.epoch, [self.outcome(call)])
                    await asyncio.sleep(0 if self.hand else 0.002)
        except memory.Crash:
            pass
        finally:
            await shell.close()

    def take(self, calls: list[Call]) -> None:
        for call in calls:
            key, others = key_of(number_of(call)), [key_of(number_of(other)) for other in self.hand]
            assert key is None or key not in others, "two records of one key in flight"
            self.sent.append(number_of(call))
            self.hand.append(call)

    def outcome(self, call: Call) -> Outcome:
        """The first attempt may fail; some records are refused for good."""
        number = number_of(call)
        kind: FailureKind | None = None
        if number % 9 == 4:
            kind = "refused"
        elif call.attempt == 1 and self.dice.random() < 0.4:
            kind = self.dice.choice(FAILURES)
        return outcome(call, kind)


def number_of(call: Call) -> int:
    return int(call.body_json.split(b"item ")[1].split(b'"')[0])


def outcome(call: Call, kind: FailureKind | None) -> Outcome:
    answer = Answer("yes", "stop", b"{}") if kind in (None, "invalid_output") else None
    failure = Failure(kind, "told so") if kind is not None else None
    usage = Usage(10, output=5) if answer is not None else None
    return Outcome(call.item_id, 0, call.attempt, time.time(), 1.0, answer, failure, usage)


def in_order(numbers: list[int]) -> None:
    """By key. A record may come again, but not once a later one of its key came."""
    for key in KEYS[:3]:
        own = [number for number in numbers if key_of(number) == key]
        assert own == sorted(own), f"key {key!r} out of order"


def keyed(name: str) -> rig.Rig:
    lane = rig.Rig(rig.MemoryPlace(name), KeyedSource(name, [rig.line(number) for number in range(N)]))
    lane.by_key = True
    return lane


async def test_records_of_one_key_go_one_after_another_while_others_overtake_them() -> None:
    lane, worker = keyed("by-key"), Worker()
    await worker.work(lane, lane.place.open())
    in_order(worker.sent)
    assert worker.sent != sorted(worker.sent), "records of other keys waited too"
    ends = await lane.told()
    assert ends == {f"r{n}": ["refused" if n % 9 == 4 else "result"] for n in range(N)}


@pytest.mark.parametrize("step", ["commit.begin", "commit.applied"])
@pytest.mark.parametrize("nth", [2, 3, 6])
async def test_a_kill_never_sends_a_record_again_after_a_later_one_of_its_key(step: str, nth: int) -> None:
    """What one owner sent and the next sends, taken together, is in order."""
    lane, worker = keyed(f"by-key-{step}-{nth}"), Worker(nth)
    for _ in range(3):
        await worker.work(lane, lane.place.open(crash_at(step, nth)))
    await worker.work(lane, lane.place.open())
    in_order(worker.sent)
    assert {label: len(ends) for label, ends in (await lane.told()).items()} == {f"r{n}": 1 for n in range(N)}


@pytest.mark.kafka
async def test_a_topics_results_stand_in_the_order_of_their_keys(
    kafka_server: KafkaServer | KafkaAt, new_topic: Callable[..., Awaitable[str]]
) -> None:
    """From a real topic to a real topic, with an owner that leaves its calls unanswered in between."""
    topic, run = await new_topic("by-key"), f"r-{secrets.token_hex(6)}"
    async with AIOKafkaProducer(bootstrap_servers=kafka_server.bootstrap) as producer:
        for number in range(N):
            await producer.send(topic, rig.line(number), key=key_of(number), partition=0)
    one = CreateTopic(partitions=1)
    sinks = {sink: KafkaSink(f"{run}-{sink}", kafka_server.bootstrap, create=one) for sink in rig.SINKS}
    place = KafkaPlace(sinks, run)
    settings = KafkaSource(topics=(topic,), bootstrap=kafka_server.bootstrap, until="end", order="key")
    lane, worker, opened = rig.Rig(place, KafkaTopics(settings)), Worker(), list[Stores]()
    lane.by_key = True

    def open_stores() -> Stores:
        opened.append(Stores(place.open(), {}, dict.fromkeys(rig.SINKS, "primary")))
        return opened[-1]

    def silent(call: Call) -> Outcome | None:
        worker.sent.append(number_of(call))
        return worker.outcome(call) if len(worker.sent) < 20 else None

    await lane.life(open_stores(), silent, until=lambda *_: len(worker.sent) > 20)
    await worker.work(lane, open_stores())
    for store in opened:
        store.primary.kill()  # type: ignore[attr-defined]
    await ended()
    in_order(worker.sent)
    values = await asyncio.to_thread(lambda: list(place.committed("results")))
    labels = [msgspec.json.decode(value, type=rig.Record).custom_id or "" for value in values]
    in_order([int(label[1:]) for label in labels])
    assert len(labels) == len(set(labels)) == sum(n % 9 != 4 for n in range(N))
