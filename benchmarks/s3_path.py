"""S3 → instant answers → S3, exactly once, one lane, beside plain boto3 and a bare loop; and what memory does.

    python benchmarks/s3_path.py [--mb 200] [--record-bytes 500 4000 64000] [--pairs 3] [--lanes 2] [--memory]

A real S3 server of its own (versitygw, on this machine: there is no network between). The rival downloads the input
object to a file and uploads it again, with boto3's own threads, and looks at none of it. The bare loop is the floor of
whatever looks at rows: between the two it decodes each line, and writes a record of about our size for it; it routes,
prices and checks nothing, and loses all when it is killed. Ours is a lane as a run has it
(ranges, parsing, routing, accounting, records, costs, progress by compare-and-swap, merged parts and a manifest), whose
calls are answered at once in its own process: no Ray, no HTTP. It writes more than it reads: a result also says where
it came from and what it cost, and each call has a line of costs. Both are counted in megabytes of input a second; CPU
is that of this process, the server's apart.
With `--lanes 2`: two lanes, each in a process of its own, which read their parts of the object.
With `--memory`: peak resident memory of that process, a fresh one each, for numbers of small objects, and for sizes of
one object with small and with large rows (up to 5 GB: 10 GB of disk for a while).
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from kafka_path import SINKS, Driver, shell, work

from penstock.connectors.base import SinkName
from penstock.connectors.registry import open_source, open_stores
from penstock.connectors.settings import S3Sink, S3Source, SinkSettings
from penstock.engine.plan import Plan
from penstock.jobs.dev.s3 import REGION, Keys, S3Server, client
from penstock.workers.lanes.shell import LaneShell

Sinks = Mapping[SinkName, SinkSettings]
PROMISE = 0.7
COMMIT_S = S3Sink.commit_ms / 1000
BUCKET = "bench"
PAD = "y" * 1_700
"""A result and its line of costs have about so many bytes."""
SMALL_ROWS = 4
"""Rows of a small object."""
OBJECTS = (2_500, 5_000, 10_000)
"""The smallest fills two windows (4,096 items each); below one window memory grows with whatever there is."""
LARGE = ((50, 500), (200, 500), (1_000, 64_000), (5_000, 64_000))
"""MB of one object, bytes of a row."""


class Took(NamedTuple):
    seconds: float
    cpu_s: float


def now() -> Took:
    return Took(time.perf_counter(), time.process_time())


def since(start: Took) -> Took:
    return Took(time.perf_counter() - start.seconds, time.process_time() - start.cpu_s)


def rows(count: int, size: int) -> Iterator[bytes]:
    """openai-batch lines of about `size` bytes."""
    pad = "x" * max(1, size - 150)
    for number in range(count):
        body = {"model": "auto", "messages": [{"role": "user", "content": f"item {number:09} {pad}"}]}
        line = {"custom_id": f"r{number:09}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        yield msgspec.json.encode(line) + b"\n"


def put_large(s3: Any, folder: Path, prefix: str, mb: int, size: int) -> int:
    """One object; returns its rows."""
    path, count = folder / "large.jsonl", mb * 1_000_000 // size
    with path.open("wb") as file:
        file.writelines(rows(count, size))
    s3.upload_file(str(path), BUCKET, f"{prefix}large.jsonl")
    path.unlink()
    return count


def put_small(s3: Any, prefix: str, objects: int) -> int:
    data = b"".join(rows(SMALL_ROWS, 500))

    def put(number: int) -> None:
        s3.put_object(Bucket=BUCKET, Key=f"{prefix}{number:06}.jsonl", Body=data)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(objects)))
    return objects * SMALL_ROWS


# the rivals


def plain(s3: Any, folder: Path, key: str) -> Took:
    """To download the object and upload it again."""
    path = folder / "moved"
    started = now()
    s3.download_file(BUCKET, key, str(path))
    s3.upload_file(str(path), BUCKET, f"plain/{uuid.uuid4().hex[:6]}.jsonl")
    took = since(started)
    path.unlink()
    return took


def loop(s3: Any, folder: Path, key: str) -> Took:
    """To download the object, write a record for each line, and upload these."""
    path, made = folder / "moved", folder / "made"
    started = now()
    s3.download_file(BUCKET, key, str(path))
    with path.open("rb") as lines, made.open("wb") as out:
        for line in lines:
            label = msgspec.json.decode(line)["custom_id"]
            record = {"id": label, "custom_id": label, "response": {"answer": "yes"}, "error": None, "pad": PAD}
            out.write(msgspec.json.encode(record) + b"\n")
    s3.upload_file(str(made), BUCKET, f"loop/{uuid.uuid4().hex[:6]}.jsonl")
    took = since(started)
    path.unlink()
    made.unlink()
    return took


# ours


async def ours(endpoint: str, prefix: str, count: int, lanes: int = 1) -> Took:
    """From the lanes' start to the manifests. As in a run, the driver has opened its stores before the lanes theirs."""
    run = f"bench-{uuid.uuid4().hex[:6]}"
    source = S3Source(BUCKET, prefix, endpoint=endpoint, region=REGION)
    sinks: Sinks = {name: S3Sink(BUCKET, f"{run}/{name}/", endpoint, REGION, "jsonl") for name in SINKS}
    splits = await open_source(source).splits(lanes)
    placed = tuple(msgspec.structs.replace(split, ordinal=n, lane=n % lanes) for n, split in enumerate(splits))
    plan = Plan(run, run, {}, lanes, placed, {}, 0.0, bounded=True)
    store = open_stores(sinks, run).primary
    started, cpu_s = await (here if lanes == 1 else in_processes)(plan, source, sinks)
    ending = now()
    made = await store.finish(plan)
    took = Took(time.perf_counter() - started, cpu_s + since(ending).cpu_s)
    got = results(made["results"][0], endpoint)
    if got != count:
        raise SystemExit(f"{got} results of {count}")
    return took


async def here(plan: Plan, source: S3Source, sinks: Sinks) -> tuple[float, float]:
    """One lane; when it started, and the CPU that it took."""
    driver = Driver()
    lane = shell(0, plan, source, sinks, driver, COMMIT_S)
    started = now()
    await through(lane, plan, driver)
    return started.seconds, since(started).cpu_s


async def through(lane: LaneShell, plan: Plan, driver: Driver) -> None:
    await lane.open(plan, force=True)
    lane.go()
    await work(lane, driver)
    await lane.close()


async def in_processes(plan: Plan, source: S3Source, sinks: Sinks) -> tuple[float, float]:
    """Each lane in a process of its own; when they started together, and the CPU that all took."""
    context = multiprocessing.get_context("spawn")
    ready, told = context.Barrier(plan.lanes + 1), context.SimpleQueue()
    processes = [
        context.Process(target=one_lane, args=(n, plan, source, sinks, ready, told)) for n in range(plan.lanes)
    ]
    for process in processes:
        process.start()
    await asyncio.to_thread(ready.wait, 120)
    started = time.perf_counter()
    await asyncio.to_thread(lambda: [process.join() for process in processes])
    if any(process.exitcode for process in processes):
        raise SystemExit("a lane failed")
    return started, sum(told.get() for _ in processes)


def one_lane(number: int, plan: Plan, source: S3Source, sinks: Sinks, ready: Barrier, told: SimpleQueue[float]) -> None:
    driver = Driver()
    lane = shell(number, plan, source, sinks, driver, COMMIT_S)
    ready.wait(120)
    started = now()
    asyncio.run(through(lane, plan, driver))
    told.put(since(started).cpu_s)


def results(manifest: str, endpoint: str) -> int:
    """Rows that the manifest tells of."""
    key = manifest.partition("?")[0].removeprefix(f"s3://{BUCKET}/")
    keys = Keys(os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
    data = client(endpoint, keys).get_object(Bucket=BUCKET, Key=key)["Body"].read()  # type: ignore[attr-defined]
    return int(msgspec.json.decode(data)["rows"])


def speed(endpoint: str, s3: Any, folder: Path, options: argparse.Namespace) -> bool:
    good = True
    for size in options.record_bytes:
        prefix = f"in-{size}/"
        count = put_large(s3, folder, prefix, options.mb, size)
        ratios: list[float] = []
        for _ in range(options.pairs):
            theirs = plain(s3, folder, f"{prefix}large.jsonl")
            floor = loop(s3, folder, f"{prefix}large.jsonl")
            mine = asyncio.run(ours(endpoint, prefix, count, options.lanes))
            ratios.append(theirs.seconds / mine.seconds)
            print(
                f"{options.mb} MB in {count:,} rows: boto3 {told_speed(options.mb, theirs)}   bare loop "
                f"{told_speed(options.mb, floor)}, {a_row(floor, count)}   penstock {told_speed(options.mb, mine)}, "
                f"{a_row(mine, count)}   ratio to boto3 {ratios[-1]:.3f} (the loop's "
                f"{theirs.seconds / floor.seconds:.3f}), to the loop {floor.seconds / mine.seconds:.3f}",
                flush=True,
            )
        median = statistics.median(ratios)
        print(f"rows of {size:,} bytes: median ratio {median:.3f} (promised: {PROMISE})")
        good = good and median >= PROMISE
    return good


def a_row(took: Took, count: int) -> str:
    return f"{took.cpu_s / count * 1e6:,.0f} µs of CPU a row"


def told_speed(mb: int, took: Took) -> str:
    return f"{mb / took.seconds:,.1f} MB/s ({took.cpu_s:.1f} s of CPU)"


# memory


def memory(endpoint: str, s3: Any, folder: Path) -> None:
    for objects in OBJECTS:
        prefix = f"small-{objects}/"
        told(f"{objects:,} small objects", endpoint, prefix, put_small(s3, prefix, objects))
    for mb, size in LARGE:
        prefix = f"large-{mb}-{size}/"
        count = put_large(s3, folder, prefix, mb, size)
        told(f"one object of {mb:,} MB in rows of {size:,} bytes", endpoint, prefix, count)


def told(what: str, endpoint: str, prefix: str, count: int) -> None:
    """In a process of its own, whose peak nothing came before."""
    command = [sys.executable, __file__, "--alone", endpoint, prefix, str(count)]
    environment = {**os.environ, "MALLOC_ARENA_MAX": "2"}  # as the processes of a local Ray have it
    said = subprocess.check_output(command, text=True, env=environment).strip()
    print(f"{what} ({count:,} rows): {said}", flush=True)


def alone(endpoint: str, prefix: str, count: int) -> None:
    took = asyncio.run(ours(endpoint, prefix, count))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(f"peak {peak:.0f} MB, {took.seconds:.1f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=200)
    parser.add_argument("--record-bytes", type=int, nargs="+", default=[500, 4_000, 64_000])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--lanes", type=int, default=1)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        endpoint, prefix, count = options.alone
        alone(endpoint, prefix, int(count))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = S3Server(folder / "s3")
        server.start()
        os.environ |= server.keys.environment
        try:
            s3: Any = server.client()
            s3.create_bucket(Bucket=BUCKET)
            if options.memory:
                memory(server.endpoint, s3, folder)
                return 0
            return 0 if speed(server.endpoint, s3, folder, options) else 1
        finally:
            server.stop()


if __name__ == "__main__":
    sys.exit(main())
