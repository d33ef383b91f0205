"""Kafka → instant answers → Kafka, exactly once, one lane, beside a bare aiokafka loop with the same transactions.

    python benchmarks/kafka_path.py [--records 40000] [--pairs 3] [--lanes 1] [--latency-rate 500 --latency-s 20]

Both read 500-byte requests from one partition of a real broker of their own and write a result for each, in one
transaction every 200 ms that also commits how far they are. The rival decodes each request, writes a fixed answer of
about our size, and commits the group's offsets. Ours is a lane as a run has it (source, routing, accounting, records,
costs, progress in the compacted topic), whose calls are answered at once in its own process: no Ray, no HTTP.
With `--latency-rate`: records are published at that rate, and a committed reader notes how long after its request's
timestamp each result became visible.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import random
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from penstock.connectors.reading.intake import Intake
from penstock.connectors.registry import open_source, open_stores
from penstock.connectors.settings import Connection, KafkaSink, KafkaSource, Row
from penstock.connectors.writing.records import Encoder
from penstock.engine.budget import Budgets
from penstock.engine.catalog import Account, Catalog, Model, Price, Version
from penstock.engine.flow.lane import Lane
from penstock.engine.flow.lane_types import Hooks, LaneSettings
from penstock.engine.items import Answer, Call, Outcome, Usage
from penstock.engine.plan import Plan
from penstock.engine.policy import Policy, Task
from penstock.engine.router import Router
from penstock.jobs.dev.kafka import KafkaServer
from penstock.workers.lanes.shell import LaneReport, LaneShell
from penstock.workers.ports import Post

PROMISE = 0.5
PROMISE_P99_S = 0.5
COMMIT_S = 0.2
POOL = "api:a"
SINKS = ("results", "costs", "quality", "dead_letters")


def request(number: int) -> bytes:
    """An openai-batch line of about 500 bytes."""
    body = {"model": "auto", "messages": [{"role": "user", "content": f"item {number} " + "x" * 340}]}
    return msgspec.json.encode(
        {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    )


async def make_topics(bootstrap: str, *names: str, partitions: int = 1) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(name, partitions, 1) for name in names])
    await admin.close()


async def publish(bootstrap: str, topic: str, n: int, rate: float | None = None) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, linger_ms=0 if rate else 20)
    await producer.start()
    started = time.perf_counter()
    for number in range(n):
        await producer.send(topic, request(number), key=b"%d" % number)
        if rate is not None and (ahead := number / rate - (time.perf_counter() - started)) > 0.002:
            await asyncio.sleep(ahead)
    await producer.stop()


# the rival


async def bare(bootstrap: str, source: str, sink: str, n: int) -> float:
    """Items a second of consume, transform, produce, commit, with a transaction every 200 ms."""
    group = f"bare-{uuid.uuid4().hex[:6]}"
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False, isolation_level="read_committed"
    )
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, transactional_id=group)
    await consumer.start()
    await producer.start()
    partition = TopicPartition(source, 0)
    consumer.assign([partition])
    await consumer.seek_to_beginning(partition)
    done, started = 0, time.perf_counter()
    while done < n:
        ends = time.perf_counter() + COMMIT_S
        async with producer.transaction():
            sent, last = [], 0
            while time.perf_counter() < ends and done < n:
                batch = await consumer.getmany(timeout_ms=20, max_records=500)
                for record in batch.get(partition, ()):
                    value = msgspec.json.decode(record.value)
                    answer = {
                        "id": value["custom_id"],
                        "custom_id": value["custom_id"],
                        "answer": "yes",
                        "pad": "y" * 900,
                    }
                    sent.append(await producer.send(sink, msgspec.json.encode(answer), key=record.key))
                    done, last = done + 1, record.offset
            for future in sent:
                await future
            if sent:
                await producer.send_offsets_to_transaction({partition: last + 1}, group)
    took = time.perf_counter() - started
    await producer.stop()
    await consumer.stop()
    return n / took


# ours


class Driver:
    """Hears what a run's driver would hear."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.settled = False
        self.failures: list[str] = []

    def post(self, posts: list[Post]) -> None:
        self.changed.set()

    def report(self, report: LaneReport) -> None:
        self.settled = report.settled
        self.changed.set()

    def failed(self, lane: int, fenced: bool, message: str, corrupt: bool) -> None:
        self.failures.append(message)
        self.changed.set()


def answered(call: Call) -> Outcome:
    return Outcome(
        call.item_id,
        0,
        call.attempt,
        time.time(),
        1.0,
        Answer("yes", "stop", b'{"choices":[]}'),
        None,
        Usage(120, output=3),
    )


def shell(lane: int, plan: Plan, source: KafkaSource, sinks: dict[str, KafkaSink], driver: Driver) -> LaneShell:
    price = Price(input=10**9, output=4 * 10**9)
    catalog = Catalog(
        {"a": Account("a", "openai", "http://localhost")},
        {"m": Model("m", (Version("v1", "m"),), "v1", account="a", price=price, context=128_000)},
        {1: ("m",), 2: ("m",), 3: ("m",)},
    )
    policy = Policy({"t": Task("t", max_tokens=50)}, default_task="t")
    hooks = Hooks(random.Random(1).random, lambda item, answer, task: (), lambda body, answer, message: body)
    machine = Lane(
        LaneSettings(lane, plan.run_id), Router(catalog, policy), catalog, policy, hooks, Budgets((), plan.run_id)
    )
    return LaneShell(
        lane,
        (1, 1),
        machine,
        open_stores(sinks, plan.run_id),  # type: ignore[arg-type]
        open_source(source),
        Intake(plan.run_id, "openai-batch", Row(), policy, {"m"}),
        Encoder(plan.run_id, "openai-batch"),
        driver,
        None,
        time.time,
        commit_s=COMMIT_S,
    )


async def work(lane: LaneShell, driver: Driver, until: float | None = None) -> None:
    """Answer every call at once until all is committed, or a time has come."""
    while not driver.settled and not driver.failures and (until is None or time.time() < until):
        chunk, _ = await lane.take(POOL, 256, 1 << 40, "w")
        if chunk is None:
            driver.changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(driver.changed.wait(), 0.005)
            continue
        await lane.done(chunk.epoch, [answered(call) for call in chunk.calls])
    if driver.failures:
        raise SystemExit(f"the lane failed: {driver.failures}")


async def opened(bootstrap: str, topic: str, until: str) -> tuple[LaneShell, Driver, str]:
    run = f"bench-{uuid.uuid4().hex[:6]}"
    connection = Connection(bootstrap)
    source = KafkaSource((topic,), connection=connection, until=until)  # type: ignore[arg-type]
    sinks = {name: KafkaSink(f"{run}.{name}", connection=connection, create=True) for name in SINKS}
    splits = await open_source(source).splits(1)
    placed = tuple(msgspec.structs.replace(split, ordinal=n, lane=0) for n, split in enumerate(splits))
    plan = Plan(run, run, {}, 1, placed, {}, 0.0, bounded=until == "end")
    driver = Driver()
    lane = shell(0, plan, source, sinks, driver)
    await lane.open(plan, force=True)
    lane.go()
    return lane, driver, f"{run}.results"


async def ours(bootstrap: str, topic: str, n: int) -> float:
    lane, driver, results = await opened(bootstrap, topic, "end")
    started = time.perf_counter()
    await work(lane, driver)
    took = time.perf_counter() - started
    await lane.close()
    got = await count(bootstrap, results)
    if got != n:
        raise SystemExit(f"{got} results of {n}")
    return n / took


async def count(bootstrap: str, topic: str) -> int:
    """Results that a committed reader sees."""
    async with reader(bootstrap, topic) as (consumer, partition):
        end = (await consumer.end_offsets([partition]))[partition]
        found = 0
        while await consumer.position(partition) < end:
            found += len((await consumer.getmany(timeout_ms=200)).get(partition, ()))
    return found


@contextlib.asynccontextmanager
async def reader(bootstrap: str, topic: str) -> AsyncIterator[tuple[AIOKafkaConsumer, TopicPartition]]:
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, isolation_level="read_committed", enable_auto_commit=False)
    await consumer.start()
    partition = TopicPartition(topic, 0)
    consumer.assign([partition])
    await consumer.seek_to_beginning(partition)
    yield consumer, partition
    await consumer.stop()


async def latency(bootstrap: str, rate: float, seconds: float) -> list[float]:
    """Sorted seconds from a request's timestamp to the moment at which a committed reader has its result."""
    topic = f"paced-{uuid.uuid4().hex[:6]}"
    await make_topics(bootstrap, topic)
    lane, driver, results = await opened(bootstrap, topic, "forever")
    seen: dict[str, float] = {}
    ends = time.time() + seconds + 2
    watching = asyncio.create_task(watch(bootstrap, results, seen, ends))
    sending = asyncio.create_task(publish(bootstrap, topic, round(rate * seconds), rate))
    await work(lane, driver, ends)
    await asyncio.gather(sending, watching)
    await lane.close()
    return sorted(seen.values())


async def watch(bootstrap: str, topic: str, seen: dict[str, float], ends: float) -> None:
    """A reader of committed results: when each becomes visible, against its request's timestamp."""
    async with reader(bootstrap, topic) as (consumer, partition):
        while time.time() < ends:
            for record in (await consumer.getmany(timeout_ms=20)).get(partition, ()):
                value = msgspec.json.decode(record.value)
                asked = msgspec.convert(value["penstock"]["enqueued_at"], float | str)
                seen[value["custom_id"]] = time.time() - seconds_of(asked)


def seconds_of(at: float | str) -> float:
    return at if isinstance(at, float) else datetime.datetime.fromisoformat(at).timestamp()


async def run(options: argparse.Namespace, bootstrap: str) -> bool:
    source = "requests"
    await make_topics(bootstrap, source, "bare")
    await publish(bootstrap, source, options.records)
    ratios: list[float] = []
    for _ in range(options.pairs):
        theirs = await bare(bootstrap, source, "bare", options.records)
        mine = await ours(bootstrap, source, options.records)
        ratios.append(mine / theirs)
        print(f"bare aiokafka {theirs:8,.0f}/s   penstock {mine:8,.0f}/s   ratio {ratios[-1]:.2f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.2f} (promised: {PROMISE})")
    good = statistics.median(ratios) >= PROMISE
    if options.latency_rate:
        waits = await latency(bootstrap, options.latency_rate, options.latency_s)
        p50, p99 = waits[len(waits) // 2], waits[int(len(waits) * 0.99)]
        print(
            f"publish → committed result visible, {len(waits):,} items at {options.latency_rate:g}/s: "
            f"p50 {p50 * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms (promised: {PROMISE_P99_S * 1000:.0f} ms)"
        )
        good = good and p99 <= PROMISE_P99_S
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=40_000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--latency-rate", type=float, default=500.0)
    parser.add_argument("--latency-s", type=float, default=20.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = KafkaServer(Path(folder))
        server.start()
        try:
            return 0 if asyncio.run(run(options, server.bootstrap)) else 1
        finally:
            server.stop()


if __name__ == "__main__":
    sys.exit(main())
