"""Kafka → instant answers → Kafka, exactly once, one lane, beside a bare aiokafka loop with the same transactions.

    python benchmarks/kafka_path.py [--records 40000] [--pairs 3] [--lanes 2] [--latency-rate 500 --latency-s 20]
    python benchmarks/kafka_path.py --pairs 0 --records 100        only the latency

Both read 500-byte requests from one partition of a real broker of their own and write a result for each, in one
transaction every 200 ms that also commits how far they are. The rival decodes each request, writes a fixed answer of
about our size, and commits the group's offsets. Ours is a lane as a run has it (source, routing, accounting, records,
costs, progress in the compacted topic), whose calls are answered at once in its own process: no Ray, no HTTP.
With `--latency-rate`: records are published at that rate, and a committed reader notes how long after its request's
timestamp each result became visible.
With `--lanes 2`: the same in four partitions, read by one lane in one process and by two lanes in two processes,
in pairs. The broker has the same cores: on two cores the ratio says little about more.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from multiprocessing.synchronize import Barrier
from pathlib import Path

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from penstock.connectors.base import SinkName
from penstock.connectors.reading.intake import Intake
from penstock.connectors.registry import open_source, open_stores
from penstock.connectors.settings import Connection, KafkaSink, KafkaSource, Row, SinkSettings, SourceSettings
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
from penstock.workers.lanes.report import LaneReport
from penstock.workers.lanes.shell import LaneShell
from penstock.workers.ports import Post

PROMISE = 0.5
PROMISE_P99_S = 0.5
COMMIT_S = 0.2
POOL = "api:a"
SINKS: tuple[SinkName, ...] = ("results", "costs", "quality", "dead_letters")


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


def shell(
    lane: int,
    plan: Plan,
    source: SourceSettings,
    sinks: Mapping[SinkName, SinkSettings],
    driver: Driver,
    commit_s: float = COMMIT_S,
) -> LaneShell:
    """A lane as a run has it, without Ray."""
    price = Price(input=10**9, output=4 * 10**9)
    catalog = Catalog(
        {"a": Account("a", "openai", "http://localhost")},
        {"m": Model("m", (Version("v1", "m"),), "v1", account="a", price=price, context=128_000)},
        {1: ("m",), 2: ("m",), 3: ("m",)},
    )
    policy = Policy({"t": Task("t", max_tokens=50)}, default_task="t")
    hooks = Hooks(random.Random(1).random, lambda item, answer, task: (), lambda body, answer, message: body)
    machine = Lane(
        LaneSettings(lane, plan.run_id, endless=not plan.bounded),
        Router(catalog, policy),
        catalog,
        policy,
        hooks,
        Budgets((), plan.run_id),
    )
    return LaneShell(
        lane,
        (1, 1),
        machine,
        open_stores(sinks, plan.run_id),
        open_source(source),
        Intake(plan.run_id, "openai-batch", Row(), policy, {"m"}),
        Encoder(plan.run_id, "openai-batch"),
        driver,
        None,
        time.time,
        commit_s=commit_s,
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


def new_run() -> str:
    return f"bench-{uuid.uuid4().hex[:6]}"


async def opened(
    bootstrap: str, topic: str, until: str, run: str, lane: int = 0, lanes: int = 1, driver: Driver | None = None
) -> tuple[LaneShell, Driver]:
    connection = Connection(bootstrap)
    source = KafkaSource((topic,), connection=connection, until=until)  # type: ignore[arg-type]
    sinks: dict[SinkName, SinkSettings] = {
        name: KafkaSink(f"{run}.{name}", connection=connection, create=True) for name in SINKS
    }
    splits = await open_source(source).splits(1)
    placed = tuple(msgspec.structs.replace(split, ordinal=n, lane=n % lanes) for n, split in enumerate(splits))
    plan = Plan(run, run, {}, lanes, placed, {}, 0.0, bounded=until == "end")
    driver = driver or Driver()
    opened = shell(lane, plan, source, sinks, driver)
    await opened.open(plan, force=True)
    return opened, driver


async def ours(bootstrap: str, topic: str, n: int) -> float:
    run = new_run()
    lane, driver = await opened(bootstrap, topic, "end", run)
    started = time.perf_counter()
    lane.go()
    await work(lane, driver)
    took = time.perf_counter() - started
    await lane.close()
    got = await count(bootstrap, f"{run}.results")
    if got != n:
        raise SystemExit(f"{got} results of {n}")
    return n / took


async def lanes_in_processes(bootstrap: str, topic: str, n: int, lanes: int) -> float:
    """Items a second of so many lanes, each in a process of its own, from their common start to the last commit."""
    run, context = new_run(), multiprocessing.get_context("spawn")
    await make_topics(bootstrap, *(f"{run}.{name}" for name in SINKS))
    ready = context.Barrier(lanes + 1)
    processes = [context.Process(target=one_lane, args=(bootstrap, topic, run, x, lanes, ready)) for x in range(lanes)]
    for process in processes:
        process.start()
    await asyncio.to_thread(ready.wait, 120)
    started = time.perf_counter()
    await asyncio.to_thread(lambda: [process.join() for process in processes])
    took = time.perf_counter() - started
    got = await count(bootstrap, f"{run}.results")
    if got != n or any(process.exitcode for process in processes):
        raise SystemExit(f"{got} results of {n}")
    return n / took


def one_lane(bootstrap: str, topic: str, run: str, lane: int, lanes: int, ready: Barrier) -> None:
    async def through() -> None:
        shell, driver = await opened(bootstrap, topic, "end", run, lane, lanes)
        await asyncio.to_thread(ready.wait, 120)
        shell.go()
        await work(shell, driver)
        await shell.close()

    asyncio.run(through())


async def scaling(options: argparse.Namespace, bootstrap: str) -> None:
    topic, ratios = "parted", list[float]()
    await make_topics(bootstrap, topic, partitions=4)
    await publish(bootstrap, topic, options.records)
    for _ in range(options.pairs):
        one = await lanes_in_processes(bootstrap, topic, options.records, 1)
        more = await lanes_in_processes(bootstrap, topic, options.records, options.lanes)
        ratios.append(more / one)
        print(f"1 lane {one:8,.0f}/s   {options.lanes} lanes {more:8,.0f}/s   ratio {ratios[-1]:.2f}", flush=True)
    print(f"median ratio of {options.lanes} lanes in {options.lanes} processes {statistics.median(ratios):.2f}")


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
    run = new_run()
    lane, driver = await opened(bootstrap, topic, "forever", run)
    lane.go()
    seen: dict[str, float] = {}
    ends = time.time() + seconds + 2
    watching = asyncio.create_task(watch(bootstrap, f"{run}.results", seen, ends))
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
    good = not ratios or statistics.median(ratios) >= PROMISE
    if ratios:
        print(f"median ratio {statistics.median(ratios):.2f} (promised: {PROMISE})")
    if options.lanes > 1:
        await scaling(options, bootstrap)
    if options.latency_rate:
        waits = await latency(bootstrap, options.latency_rate, options.latency_s)
        p50, p99 = waits[len(waits) // 2], waits[int(len(waits) * 0.99)]
        p999 = waits[int(len(waits) * 0.999)]
        print(
            f"publish → committed result visible, {len(waits):,} items at {options.latency_rate:g}/s: "
            f"p50 {p50 * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms, p99.9 {p999 * 1000:.0f} ms "
            f"(promised: p99 {PROMISE_P99_S * 1000:.0f} ms)"
        )
        good = good and p99 <= PROMISE_P99_S
    return good


def on_kafka(work: Callable[[str], Coroutine[None, None, bool]]) -> int:
    """Run `work` against a broker of its own; the exit code: 0 where it kept its promise."""
    with tempfile.TemporaryDirectory() as folder:
        server = KafkaServer(Path(folder))
        server.start()
        try:
            return 0 if asyncio.run(work(server.bootstrap)) else 1
        finally:
            server.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=40_000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--lanes", type=int, default=1)
    parser.add_argument("--latency-rate", type=float, default=500.0)
    parser.add_argument("--latency-s", type=float, default=20.0)
    options = parser.parse_args()
    return on_kafka(lambda bootstrap: run(options, bootstrap))


if __name__ == "__main__":
    sys.exit(main())
