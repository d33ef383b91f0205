"""A topic that never rests and items that take a minute: does anything stall behind them, does lag go, does memory?

    python benchmarks/kafka_tail.py [--rate 2000] [--seconds 20] [--answer-s 0.2] [--slow-s 60] [--slow-of 100]

Another process publishes to four partitions of a real broker at the rate. One lane as an endless run has it reads them
and writes to Kafka; its calls are answered in its own process after 200 ms, every hundredth after a minute.
Printed each 5 s: what was published, answered and committed, the reader's lag, the group's lag (as lag tools see it:
up to the first unfinished record of each partition), memory. At the end: how long any partition that had records went
without a commit of one, and whether both lags and the memory came back.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import heapq
import multiprocessing
import os
import sys
import time

import kafka_path as path
import psutil

from penstock.connectors.kafka.mirror import offsets
from penstock.engine.flow.lane_types import CommitBatch
from penstock.engine.items import Outcome
from penstock.workers.lanes.report import LaneReport
from penstock.workers.lanes.shell import LaneShell

PARTITIONS = 4
EVERY_S = 5.0
PROMISE_STALL_S = 5.0
PROMISE_MB = 50.0


class Watching(path.Driver):
    lag = 0

    def report(self, report: LaneReport) -> None:
        super().report(report)
        self.lag = sum(report.lag.values())


class Seen:
    """What commits said: results by partition, and the offsets that a lag tool would see."""

    def __init__(self, lane: LaneShell) -> None:
        self._lane = lane
        self.results: collections.Counter[int] = collections.Counter()
        self.worst_gap_s = 0.0
        self.mirrored = 0
        self.shelved = 0
        self._last: dict[int, float] = {}

    def commit(self, batch: CommitBatch) -> None:
        now = time.monotonic()
        for result in batch.results:
            self.results[result.item.source.ordinal] += 1
            self._last[result.item.source.ordinal] = now
        self.mirrored = sum(o.offset for o in offsets(self._lane.machine.progress.splits, batch.saved).values())
        self.shelved = max(self.shelved, self._lane.machine.shelf.count)

    def look(self, published: int) -> None:
        """A partition that has fast records waiting must show a result every now and then."""
        if sum(self.results.values()) < published * 0.98:
            gaps = [time.monotonic() - at for at in self._last.values()]
            self.worst_gap_s = max(self.worst_gap_s, *gaps, 0.0)


def publisher(bootstrap: str, topic: str, n: int, rate: float) -> None:
    asyncio.run(path.publish(bootstrap, topic, n, rate))


async def answer(lane: LaneShell, driver: path.Driver, options: argparse.Namespace, stop: asyncio.Event) -> None:
    """A provider without limits: each call is answered when its time has come."""
    due: list[tuple[float, int, object, Outcome]] = []
    count = 0
    while not stop.is_set() and not driver.failures:
        chunk, _ = await lane.take(path.POOL, 256, 1 << 40, "w")
        now = time.monotonic()
        for call in chunk.calls if chunk is not None else ():
            count += 1
            slow = count % options.slow_of == 0
            takes_s = options.slow_s if slow else options.answer_s
            heapq.heappush(due, (now + takes_s, count, chunk.epoch, path.answered(call)))
        ready: list[Outcome] = []
        while due and due[0][0] <= now:
            ready.append(heapq.heappop(due)[3])
        if ready:
            await lane.done((1, 1), ready)
        if chunk is None:
            await asyncio.sleep(0.005)
    if driver.failures:
        raise SystemExit(f"the lane failed: {driver.failures}")


async def run(options: argparse.Namespace, bootstrap: str) -> bool:
    topic, n = "tail", round(options.rate * options.seconds)
    await path.make_topics(bootstrap, topic, partitions=PARTITIONS)
    lane, _ = await path.opened(bootstrap, topic, "forever", path.new_run(), driver=(driver := Watching()))
    seen, stop, began = Seen(lane), asyncio.Event(), time.monotonic()
    lane.watch(seen.commit)
    lane.go()
    sending = multiprocessing.get_context("spawn").Process(target=publisher, args=(bootstrap, topic, n, options.rate))
    sending.start()
    answering = asyncio.create_task(answer(lane, driver, options, stop))
    memory: list[float] = []
    shown = 0.0
    ends = began + options.seconds + options.slow_s + 60
    while sum(seen.results.values()) < n and time.monotonic() < ends and not answering.done():
        await asyncio.sleep(0.25)
        at = time.monotonic() - began
        seen.look(min(n, round(at * options.rate)))
        memory.append(psutil.Process().memory_info().rss / 1e6)
        if at >= shown:
            shown += EVERY_S
            done = sum(seen.results.values())
            print(
                f"{at:5.0f} s  committed {done:8,}  reader's lag {driver.lag:6,}  beyond the group's offset "
                f"{done - seen.mirrored:7,}  shelf {lane.machine.shelf.count:5,}  {memory[-1]:5.0f} MB",
                flush=True,
            )
    stop.set()
    await answering
    sending.join()
    done = sum(seen.results.values())
    await asyncio.sleep(1.0)
    await lane.close()
    warm = max(memory[: round(10 / 0.25)])
    print(
        f"{done:,} of {n:,} committed after {time.monotonic() - began:.0f} s; by partition "
        f"{sorted(seen.results.values())}; longest silence of a partition {seen.worst_gap_s:.1f} s (wanted: "
        f"{PROMISE_STALL_S:g} s); most on the shelf {seen.shelved:,}; reader's lag {driver.lag}, group's lag "
        f"{n - seen.mirrored}; memory {warm:.0f} MB in the first 10 s, {max(memory):.0f} MB at most "
        f"(wanted: + {PROMISE_MB:g} MB); load {os.getloadavg()[0]:.0f}"
    )
    flat = max(memory) - warm <= PROMISE_MB
    return done == n and seen.worst_gap_s <= PROMISE_STALL_S and seen.mirrored == n and not driver.lag and flat


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=2000.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--answer-s", type=float, default=0.2)
    parser.add_argument("--slow-s", type=float, default=60.0)
    parser.add_argument("--slow-of", type=int, default=100)
    options = parser.parse_args()
    return path.on_kafka(lambda bootstrap: run(options, bootstrap))


if __name__ == "__main__":
    sys.exit(main())
