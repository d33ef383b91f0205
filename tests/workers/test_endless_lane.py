"""A lane whose input grows: read on and on, partitions join while it goes, and a kill anywhere loses nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Literal

import msgspec
import pytest

from penstock.connectors import memory
from penstock.connectors.base import Records
from penstock.connectors.memory import MemoryStore, crash_at
from penstock.connectors.memory_topic import MemoryTopic
from penstock.connectors.registry import Stores
from penstock.connectors.settings import MemorySink, MemorySource, Row
from penstock.engine.errors import Refused, SpecError, Temporary
from penstock.engine.plan import Epoch, Plan
from penstock.workers.driving.discovery import Discovery
from penstock.workers.driving.planner import all_ended, durable_plan, extended, first_plan
from penstock.workers.runspec import RunOptions, RunSpec
from tests.workers import lane_rig as rig


def run_spec(name: str, limit: int | None = None) -> RunSpec:
    source, sinks = MemorySource(name, until="forever"), {sink: MemorySink(name) for sink in rig.SINKS}
    return RunSpec("r", "n", {}, source, None, Row(), rig.CATALOG, rig.POLICY, sinks, limit=limit)


class Growing(rig.Rig):
    """One lane of an endless run, with the plan in its store, as the driver keeps it."""

    def __init__(self, name: str) -> None:
        self.topic = MemoryTopic(name, 2)
        super().__init__(rig.MemoryPlace(name), self.topic)
        self.topic = MemoryTopic(name, 2)  # the place forgot the source of its name
        self.source = self.topic
        self.spec = run_spec(name)
        self.count = 0

    def append(self, partition: int, n: int) -> None:
        for _ in range(n):
            self.topic.append(partition, rig.line(self.count))
            self.count += 1

    async def made_plan(self) -> Plan:
        """As whoever opens the lane finds it."""
        plan = await MemoryStore(self.place.name).read_plan()
        if plan is None:
            plan = msgspec.structs.replace(first_plan(self.spec, await self.topic.splits(1), 1, 0.0), lanes=1)
            plan = msgspec.structs.replace(plan, splits=tuple(msgspec.structs.replace(s, lane=0) for s in plan.splits))
            await MemoryStore(self.place.name).write_plan(plan)
        return plan

    async def results(self) -> int:
        return len(await self.place.read("results"))

    def discovery(self, plan: Plan, *shells: rig.LaneShell) -> Discovery:
        async def tell(longer: Plan) -> None:
            for shell in shells:
                shell.extend(longer)

        self.notes: list[str] = []
        return Discovery(self.spec, plan, MemoryStore(self.place.name), tell, self.notes.append)


async def until_all_are_done(lane: Growing, shell: rig.LaneShell, driver: rig.Driver) -> None:
    shell.go()
    async with asyncio.timeout(30):
        while await lane.results() < lane.count:
            have = await lane.results()
            await lane.work(shell, driver, rig.answered, lambda shell, driver: len(driver.reports) > 0)
            driver.reports.clear()
            assert not driver.failures, (driver.failures, have)


async def test_partitions_join_while_the_lane_goes() -> None:
    """It goes on with what it had, and reads the new one from its start; every record ends once."""
    lane = Growing("join")
    lane.append(0, 40)
    shell, driver = lane.shell(lane.place.open())
    plan = await lane.made_plan()
    discovery = lane.discovery(plan, shell)
    await shell.open(plan, force=True)
    await until_all_are_done(lane, shell, driver)
    await discovery.step([plan.version])
    assert lane.notes == []
    lane.topic.widen(4)
    for partition in (3, 2, 1, 0):
        lane.append(partition, 30)
    await discovery.step([plan.version])
    assert lane.notes == ["2 new pieces of input joined the run"]
    await until_all_are_done(lane, shell, driver)
    assert not driver.settled
    await shell.close()
    assert await lane.told() == {f"r{n}": ["result"] for n in range(lane.count)}


async def test_a_lane_that_missed_the_news_is_told_again() -> None:
    """The plan was written, and the word to the lane was lost."""
    lane = Growing("missed")
    plan = await lane.made_plan()
    lane.topic.widen(3)
    await lane.discovery(plan).step([plan.version])
    shell, _ = lane.shell(lane.place.open())
    await shell.open(plan, force=True)
    discovery = lane.discovery(plan, shell)
    await discovery.step([shell.machine.plan_version])
    assert shell.machine.plan_version == discovery.plan.version == plan.version + 1
    assert len(shell.machine.progress.splits) == 3
    await shell.close()


async def test_a_longer_plan_that_comes_while_the_lane_is_taken_is_not_forgotten() -> None:
    """The lane was given the old plan, and is still waiting for its store."""
    lane = Growing("taken")
    plan = await lane.made_plan()
    lane.topic.widen(3)
    longer = extended(plan, lane.spec, await lane.topic.splits(1))
    assert longer is not None
    shell, _ = lane.shell(lane.place.open())
    shell.extend(longer)
    await shell.open(plan, force=True)
    assert len(shell.machine.progress.splits) == 3
    await shell.close()


@pytest.mark.parametrize("step", ["take.applied", "commit.begin", "commit.applied"])
@pytest.mark.parametrize("nth", [1, 2, 5])
async def test_a_kill_while_the_input_grows_loses_and_doubles_nothing(step: str, nth: int) -> None:
    """Records and partitions come in each of its lives; the next owner reads the plan as it is by then."""
    lane = Growing(f"grow-kill-{step}-{nth}")
    for life in range(6):
        lane.topic.widen(2 + life)
        for partition in range(2 + life):
            lane.append(partition, 7)
        plan = await lane.made_plan()
        shell, driver = lane.shell(lane.place.open(crash_at(step, nth)))
        try:
            await shell.open(plan, force=True)
            await lane.discovery(plan, shell).step([plan.version])
            shell.go()
            for _ in range(2):
                await lane.work(shell, driver, rig.answered, lambda shell, driver: bool(driver.reports))
                driver.reports.clear()
        except memory.Crash:
            pass
        await shell.close()
    shell, driver = lane.shell(lane.place.open())
    plan = await lane.made_plan()
    await shell.open(plan, force=True)
    await lane.discovery(plan, shell).step([])
    await until_all_are_done(lane, shell, driver)
    await shell.close()
    assert await lane.told() == {f"r{n}": ["result"] for n in range(lane.count)}


async def test_an_endless_run_is_never_done_by_itself() -> None:
    """Nothing is left to do, and still it is not over: more may come. Its plan says so."""
    name = "never-done"
    memory.forget(name)
    MemoryTopic(name, 2)
    made = await durable_plan(run_spec(name), RunOptions(), MemoryStore(name), 2, 0.0)
    assert not made.plan.bounded
    assert made.plan.lanes == 4
    started = msgspec.structs.replace(made.plan, started=True)
    assert await all_ended(started, MemoryStore(name)) is None


@pytest.mark.parametrize(
    ("before", "after", "said"), [("end", "forever", "begun with an end"), ("forever", "end", "begun without an end")]
)
async def test_a_run_that_has_begun_keeps_its_end_or_has_none(
    before: Literal["end", "forever"], after: Literal["end", "forever"], said: str
) -> None:
    """Its plan says of each piece where it ends. With another `until:` it read nothing that came later, in silence, or
    never came to an end. The plan stays as it is."""
    name = f"{before}-{after}"
    memory.forget(name)
    MemoryTopic(name, 2)
    first = msgspec.structs.replace(run_spec(name), source=MemorySource(name, until=before))
    edited = msgspec.structs.replace(first, source=MemorySource(name, until=after))
    made = await durable_plan(first, RunOptions(), MemoryStore(name), 2, 0.0)
    with pytest.raises(SpecError, match=said):
        await durable_plan(edited, RunOptions(accept_changes=True), MemoryStore(name), 2, 0.0)
    assert (await durable_plan(first, RunOptions(), MemoryStore(name), 2, 0.0)).plan == made.plan


async def test_a_trial_of_an_endless_source_ends() -> None:
    """`--limit 5`: five records, and it is done."""
    lane = Growing("trial")
    lane.append(0, 30)
    lane.append(1, 30)
    lane.limit = 5
    assert not run_spec("trial", limit=5).endless
    driver = await lane.life(lane.place.open())
    assert driver.settled
    assert driver.reports[-1].done
    assert await lane.results() == 5


async def test_a_source_that_can_not_be_listed_now_is_told_once() -> None:
    """What runs goes on; the next look finds what is new."""
    lane = Growing("unlisted")
    plan = await lane.made_plan()
    discovery = lane.discovery(plan)
    listed = lane.topic.splits

    async def down(lanes_hint: int) -> list[rig.Split]:
        raise Temporary("the broker is away")

    lane.topic.splits = down  # type: ignore[method-assign]
    await discovery.step([plan.version])
    await discovery.step([plan.version])
    lane.topic.splits = listed  # type: ignore[method-assign]
    lane.topic.widen(3)
    await discovery.step([plan.version])
    assert lane.notes == ["new input can't be listed now: the broker is away", "1 new piece of input joined the run"]


class Shut(MemoryStore):
    """Takes the lane, and then refuses what it is told."""

    async def commit(self, lane: int, epoch: Epoch, seq: int, records: Records, chunks: Mapping[str, bytes]) -> None:
        if seq > 1:
            raise Refused("403 AccessDenied")
        await super().commit(lane, epoch, seq, records, chunks)


@pytest.mark.parametrize("bounded", [True, False])
async def test_a_store_that_refuses_ends_only_a_run_that_has_an_end(bounded: bool) -> None:
    """Nobody starts one without an end again: its lane is opened anew, until somebody gave the right back."""
    lane = Growing("shut")
    lane.append(0, 3)
    lane.plan = msgspec.structs.replace(await lane.made_plan(), bounded=bounded)
    shell, driver = lane.shell(Stores(Shut("shut"), {}, dict.fromkeys(rig.SINKS, "primary")))
    await shell.open(lane.plan, force=True)
    shell.go()
    async with asyncio.timeout(30):
        await lane.work(shell, driver, rig.answered, lambda *_: False)
    await shell.close()
    assert driver.failures == [(False, "403 AccessDenied", bounded)]
