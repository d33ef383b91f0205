"""A store that takes long to say who owns a lane: the lane is not taken for dead."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from penstock.connectors.memory import MemoryStore
from penstock.connectors.registry import Stores
from penstock.engine.errors import Away
from penstock.engine.plan import Epoch
from penstock.workers.lanes import shell as lane_shell
from penstock.workers.lanes import telling
from tests.workers import lane_rig as rig


class Slow(MemoryStore):
    """Says nothing of owners while it is asked to think."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.asked = asyncio.Event()
        self.answers = asyncio.Event()

    async def owner(self, lane: int) -> Epoch:
        self.asked.set()
        await self.answers.wait()
        return await super().owner(lane)


def settled(_: object, driver: Any) -> bool:
    return driver.settled


async def test_a_lane_whose_store_is_slow_goes_on_to_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its driver replaces lane actors that are silent for ten seconds, as long as a broker's failover takes."""
    monkeypatch.setattr(lane_shell, "VERIFY_EVERY_S", 0.01)
    monkeypatch.setattr(telling, "REPORT_EVERY_S", 0.01)
    lane = rig.Rig(rig.MemoryPlace("slow"), rig.source("slow", [rig.line(1)]))
    store = Slow("slow")
    stores = Stores(store, {}, dict.fromkeys(rig.SINKS, "primary"))  # type: ignore[arg-type]
    shell, driver = lane.shell(stores)
    await shell.open(await lane.made_plan(), force=True)
    shell.go()
    async with asyncio.timeout(20):
        await store.asked.wait()
        for _ in range(3):
            driver.reports, _ = [], driver.changed.clear()
            while not driver.reports:
                await driver.changed.wait()
                driver.changed.clear()
        assert not driver.failures
        store.answers.set()
        await lane.work(shell, driver, rig.answered, settled)
    await shell.close()
    assert await lane.told() == {"r1": ["result"]}


class Unreachable(MemoryStore):
    """Nobody can ask who owns a lane while it is away."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.away = False
        self.asked = 0

    async def owner(self, lane: int) -> Epoch:
        if self.away:
            self.asked += 1
            raise Away("the store does not answer")
        return await super().owner(lane)


async def test_a_store_that_is_away_for_a_moment_ends_no_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was answered since the last commit was paid for again (seen: 345 calls for a network that was cut for two
    seconds). Where it stays away, the lane gives up, and its driver waits for the store."""
    monkeypatch.setattr(lane_shell, "VERIFY_EVERY_S", 0.01)
    store, ahead_s, out = Unreachable("cut"), 0.0, []
    lane = rig.Rig(rig.MemoryPlace("cut"), rig.source("cut", [rig.line(1)]))
    lane.now = lambda: time.time() + ahead_s
    stores = Stores(store, {}, dict.fromkeys(rig.SINKS, "primary"))  # type: ignore[arg-type]
    shell, driver = lane.shell(stores)

    async def looked(times: int) -> None:
        until = store.asked + times
        while store.asked < until and not driver.failures:
            shell.wake()
            await asyncio.sleep(0.005)

    await shell.open(await lane.made_plan(), force=True)
    shell.go()
    async with asyncio.timeout(20):
        await lane.work(shell, driver, out.append, lambda *_: bool(out))
        store.away = True
        await looked(3)
        ahead_s += lane_shell.BLIND_S / 2
        await looked(3)
        assert not driver.failures
        store.away = False
        await shell.done(shell.epoch, [rig.answered(call) for call in out])
        await lane.work(shell, driver, rig.answered, settled)
        assert (shell.machine.tally.results, driver.failures) == (1, [])
        store.away = True
        await looked(1)
        ahead_s += lane_shell.BLIND_S
        while not driver.failures:
            await looked(1)
    assert driver.failures[0][0] is False
    await shell.close()


async def test_a_run_does_not_wait_an_interval_for_the_last_commit_of_its_lanes() -> None:
    """To S3 that is two seconds, and with the input at its end nothing more can join the commit. Nor do workers that
    have nothing to do wait longer the longer the interval is."""
    lane = rig.Rig(rig.MemoryPlace("last"), rig.source("last", [rig.line(n) for n in range(3)]))
    shell, driver = lane.shell(lane.place.open())
    shell._commit_s = 3600.0
    await shell.open(await lane.made_plan(), force=True)
    shell.go()
    async with asyncio.timeout(20):
        await lane.work(shell, driver, rig.answered, settled)
    await shell.close()
    assert shell.machine.tally.results == 3


class Stuck(MemoryStore):
    """Takes no commit while it is away."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.there = asyncio.Event()
        self.there.set()

    async def commit(self, *arguments: Any) -> None:
        await self.there.wait()
        await super().commit(*arguments)


async def test_only_what_waits_for_a_commit_is_late() -> None:
    """A call that takes minutes is not: there is nothing to commit until it is answered."""
    store, hour, out = Stuck("late"), 0.0, []
    lane = rig.Rig(rig.MemoryPlace("late"), rig.source("late", [rig.line(1)]))
    lane.now = lambda: time.time() + hour
    stores = Stores(store, {}, dict.fromkeys(rig.SINKS, "primary"))  # type: ignore[arg-type]
    shell, driver = lane.shell(stores)

    async def told_late_s() -> float:
        driver.reports, _ = [], driver.changed.clear()
        shell.wake()
        while not driver.reports:
            await driver.changed.wait()
            driver.changed.clear()
        return driver.reports[-1].commit_age_s

    await shell.open(await lane.made_plan(), force=True)
    shell.go()
    async with asyncio.timeout(20):
        await lane.work(shell, driver, out.append, lambda *_: bool(out))
        hour += 3600.0
        await shell.right(shell.epoch, "w")
        assert await told_late_s() < 60
        store.there.clear()
        await shell.done(shell.epoch, [rig.answered(call) for call in out])
        await told_late_s()
        hour += 3600.0
        assert await told_late_s() >= 3600
        store.there.set()
        await lane.work(shell, driver, rig.answered, settled)
        assert driver.reports[-1].commit_age_s < 60
    await shell.close()
