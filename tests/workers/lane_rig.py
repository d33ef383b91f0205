"""A lane without a cluster: shell, stores, source and workers of one process. Killing it leaves what a disk would."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from penstock.connectors import memory
from penstock.connectors.base import Batch, Raw, Source
from penstock.connectors.filestore.disk import Faults, no_faults
from penstock.connectors.filestore.store import FileStore
from penstock.connectors.ledger import LedgerClient
from penstock.connectors.memory import MemorySource, MemoryStore
from penstock.connectors.reading.intake import Intake
from penstock.connectors.registry import Stores
from penstock.connectors.settings import FilesSink, Row
from penstock.connectors.writing.records import Encoder
from penstock.engine.budget import Budget, Budgets
from penstock.engine.catalog import Account, Catalog, Model, Price, Version
from penstock.engine.flow.lane import Lane
from penstock.engine.flow.lane_types import Adopted, Hooks, LaneSettings
from penstock.engine.items import Answer, Call, Outcome, Position, Usage
from penstock.engine.plan import Epoch, Plan, Split
from penstock.engine.policy import Policy, Task
from penstock.engine.review import Review
from penstock.engine.router import Router
from penstock.workers.lanes.input import Verdicts
from penstock.workers.lanes.report import LaneReport
from penstock.workers.lanes.shell import LaneShell
from penstock.workers.ports import Post

POOL = "api:a"
SINKS = ("results", "costs", "quality", "dead_letters", "review")
FOLLOWING = ("costs", "review")
PRICE = Price(input=10**9, output=10**9)
CATALOG = Catalog(
    {"a": Account("a", "openai", "http://localhost")},
    {"m": Model("m", (Version("v1", "m"),), "v1", account="a", price=PRICE, context=100_000)},
    {1: ("m",), 2: ("m",), 3: ("m",)},
)
POLICY = Policy({"t": Task("t", max_tokens=50)}, default_task="t")
Reply = Callable[[Call], Outcome | None]
"""What becomes of a call; None: it goes on for ever."""


class Record(msgspec.Struct):
    """Of a result, dead letter, cost line or result for people, what the tests look at."""

    custom_id: str | None = None
    reason: str | None = None
    entry_id: str | None = None
    usd: float = 0.0
    item_id: str | None = None
    generation: int = 0
    penstock: dict[str, object] = {}


def line(number: int, label: str | None = None, **metadata: str) -> bytes:
    body: dict[str, object] = {"model": "auto", "messages": [{"role": "user", "content": f"item {number}"}]}
    body |= {"metadata": metadata} if metadata else {}
    record = {"custom_id": label or f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return msgspec.json.encode(record)


def answered(call: Call) -> Outcome:
    return Outcome(
        call.item_id, 0, call.attempt, time.time(), 1.0, Answer("yes", "stop", b"{}"), None, Usage(10, output=5)
    )


def left(call: Call, outcome: Outcome | None) -> Adopted:
    """As its worker tells the lane's next owner of it."""
    return Adopted(call.item_id, 0, call.attempt, call.model, "", outcome, call.role, call.version, call.made_by)


class Driver:
    """Hears what a driver would hear."""

    def __init__(self) -> None:
        self.posts: list[Post] = []
        self.reports: list[LaneReport] = []
        self.failures: list[tuple[bool, str, bool]] = []
        self.changed = asyncio.Event()

    def post(self, posts: list[Post]) -> None:
        self.posts += posts
        self.changed.set()

    def report(self, report: LaneReport) -> None:
        self.reports = [report]
        self.changed.set()

    def failed(self, lane: int, fenced: bool, message: str, corrupt: bool) -> None:
        self.failures.append((fenced, message, corrupt))
        self.changed.set()

    @property
    def settled(self) -> bool:
        return bool(self.reports) and self.reports[-1].settled


class MemoryPlace:
    """All sinks in one memory store."""

    def __init__(self, name: str) -> None:
        self.name = name
        memory.forget(name)

    def open(self, faults: Faults = no_faults, _: Faults = no_faults) -> Stores:
        placement = dict.fromkeys(SINKS, "primary")
        return Stores(MemoryStore(self.name, faults), {}, placement)  # type: ignore[arg-type]

    async def read(self, sink: str) -> list[Record]:
        return [msgspec.json.decode(value, type=Record) for value in MemoryStore(self.name).values(sink)]


class TwoFolders:
    """Results, quality and dead letters in one folder; costs, and what people shall see, follow in another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, faults: Faults = no_faults, follower_faults: Faults = no_faults) -> Stores:
        here = {sink: FilesSink(str(self.folder / "a" / f"{sink}.jsonl")) for sink in SINKS if sink not in FOLLOWING}
        there = {sink: FilesSink(str(self.folder / "b" / f"{sink}.jsonl")) for sink in FOLLOWING}
        primary = FileStore(self.folder / "a" / ".home", here, 0.0, faults=faults)
        follower = FileStore(self.folder / "b" / ".home", there, 0.0, faults=follower_faults)
        placement = {sink: "b" if sink in FOLLOWING else "primary" for sink in SINKS}
        return Stores(primary, {"b": follower}, placement)  # type: ignore[arg-type]

    async def read(self, sink: str) -> list[Record]:
        stores = self.open()
        store = stores.followers["b"] if sink in FOLLOWING else stores.primary
        paths = await store.finish(Plan("r", "n", {}, 1, (), {}, 0.0))  # type: ignore[attr-defined]
        lines = [row for path in paths.get(sink, []) for row in Path(path).read_bytes().splitlines()]
        return [msgspec.json.decode(row, type=Record) for row in lines]


Place = MemoryPlace | TwoFolders


class Rig:
    """One lane of one run. `life` is one owner from open to its end, or to its death."""

    def __init__(self, place: Place, source: Source, lanes: int = 1) -> None:
        self.place = place
        self.source = source
        self.lanes = lanes
        self.plan: Plan | None = None
        self.epoch = 0
        self.window = 1000
        self.limit: int | None = None
        self.outage_s: float | None = None
        self.by_key = False
        self.budgets: tuple[Budget, ...] = ()
        self.ledger: LedgerClient | None = None
        self.verdicts: Verdicts | None = None
        self.catalog = CATALOG
        self.review: Review | None = None
        self.intake = Intake("r", "openai-batch", Row(), POLICY, {"m"})
        self.sent: list[str] = []
        self.now: Callable[[], float] = time.time

    async def made_plan(self) -> Plan:
        if self.plan is None:
            splits = await self.source.splits(self.lanes)
            named = [msgspec.structs.replace(s, ordinal=n, lane=n % self.lanes) for n, s in enumerate(splits)]
            self.plan = Plan("r", "n", {}, self.lanes, tuple(named), {}, 0.0)
        return self.plan

    def shell(self, stores: Stores, lane: int = 0, epoch: Epoch | None = None) -> tuple[LaneShell, Driver]:
        if epoch is None:
            self.epoch += 1
            epoch = (1, self.epoch)
        settings = LaneSettings(lane, "r", self.window, horizon_floor=32, by_key=self.by_key)
        hooks = Hooks(random.Random(1).random, lambda item, answer, task: (), lambda body, answer, message: body)
        router = Router(self.catalog, POLICY)
        machine = Lane(settings, router, self.catalog, POLICY, hooks, Budgets(self.budgets, "r"))
        driver = Driver()
        shell = LaneShell(
            lane,
            epoch,
            machine,
            stores,
            self.source,
            self.intake,
            Encoder("r", "openai-batch", review=self.review),
            driver,
            self.ledger,
            self.now,
            commit_s=0.001,
            limit=self.limit,
            outage_s=self.outage_s,
            verdicts=self.verdicts,
        )
        return shell, driver

    async def life(
        self,
        stores: Stores,
        reply: Reply = answered,
        *,
        lane: int = 0,
        until: Callable[[LaneShell, Driver], bool] = lambda shell, driver: driver.settled,
    ) -> Driver:
        """Open, work, and close: at the end, at a failure, or where `until` says so. A crash inside leaves it dead."""
        shell, driver = self.shell(stores, lane)
        with contextlib.suppress(memory.Crash):
            try:
                await shell.open(await self.made_plan(), force=True)
                shell.go()
                async with asyncio.timeout(30):
                    await self.work(shell, driver, reply, until)
            finally:
                await shell.close()
        return driver

    async def work(
        self, shell: LaneShell, driver: Driver, reply: Reply, until: Callable[[LaneShell, Driver], bool]
    ) -> None:
        while not until(shell, driver) and not driver.failures:
            chunk, _ = await shell.take(POOL, 16, 1 << 30, "w")
            if chunk is None:
                driver.changed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(driver.changed.wait(), 0.01)
                continue
            self.sent += [call.item_id for call in chunk.calls]
            outcomes = [outcome for call in chunk.calls if (outcome := reply(call)) is not None]
            with contextlib.suppress(Exception):
                await shell.done(chunk.epoch, outcomes)

    async def told(self) -> dict[str, list[str]]:
        """Label → where it ended, as committed readers see it. Checks what must always hold."""
        ends: dict[str, list[str]] = {}
        for sink in ("results", "dead_letters"):
            for record in await self.place.read(sink):
                ends.setdefault(str(record.custom_id), []).append(record.reason or "result")
        costs = [str(record.entry_id) for record in await self.place.read("costs")]
        assert len(costs) == len(set(costs)), "a cost line twice"
        return ends


__all__ = ["Batch", "LaneShell", "MemoryStore", "Position", "Raw", "Split", "Verdicts"]


def source(name: str, lines: list[bytes]) -> MemorySource:
    return MemorySource(name, lines)
