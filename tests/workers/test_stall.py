"""An engine whose step never returns: its worker gives it up after long, with what was in flight, and ends."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec
import pytest

from penstock.engine.items import Failure
from penstock.workers import stall, worker_actor
from penstock.workers.puller import Puller
from penstock.workers.stall import STALLED_S, Stall
from penstock.workers.worker_actor import WorkerActor, WorkerSettings
from tests.workers.test_puller import BoardStub, Clock, LaneStub, Script, call, until


def test_only_work_without_any_step_is_a_hang() -> None:
    """Not an engine without work, not one that steps, and not one of a provider, which keeps its timeouts itself."""
    one, late = Stall(), STALLED_S + 1
    assert not one.see({"progress": 5.0}, True, 0.0)
    assert not one.see({"progress": 5.0}, True, STALLED_S - 1)
    assert one.see({"progress": 5.0}, True, late)
    assert not one.see({"progress": 6.0}, True, late)
    assert not one.see({"progress": 6.0}, False, 2 * late), "it may have nothing to do for hours"
    assert not one.see({"progress": 6.0}, True, 2 * late + 1), "its time begins with its work"
    assert not Stall().see({"running": 3.0}, True, 0.0)
    provider = Stall()
    assert not any(provider.see({"running": 3.0}, True, tick) for tick in (0.0, late))


class Ended(Exception):
    """Instead of the end of this process."""


class Mute(Script):
    """It has stepped three times, and hangs in the fourth."""

    def gauges(self) -> dict[str, float]:
        return {"running": float(len(self.tickets)), "progress": 3.0}


async def test_a_worker_whose_engine_hangs_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lanes hear of every call at once and send it elsewhere; its driver starts another as for a lost one."""
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        raise Ended

    monkeypatch.setattr(worker_actor.os, "_exit", leave)
    monkeypatch.setattr(worker_actor, "GRACE_S", 0.05)
    monkeypatch.setattr(stall, "STALLED_S", 0.7)
    clock = Clock()
    lane = LaneStub((1, 1), [call("a"), call("b")], clock)
    puller = Puller("w", "vllm:own@v1", Mute(), lambda ticket, outcome: outcome, clock)
    puller.start()
    puller.serve("job", BoardStub(lane), 1)
    await until(lambda: puller.busy)
    actor = WorkerActor(msgspec.msgpack.encode(WorkerSettings("w", "engine own", "vllm:own@v1", "vllm")))
    with pytest.raises(Ended):
        async with asyncio.timeout(20):
            await actor._watch(puller)
    assert codes == [1]
    assert sorted(name for _, names in lane.got for name in names) == ["a", "b"]
    assert [(f.kind, f.may_be_billed) for f in lane.failures if isinstance(f, Failure)] == [("engine_died", False)] * 2
    await puller.close()


async def test_a_worker_without_a_job_ends_no_call_that_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its version is in use no more, or its command was killed: a call that lasts longer than it was to stay was cut
    off, and paid for again. What it answers is kept for as long as it stays."""

    def leave(code: int) -> None:
        assert code == 0
        raise Ended

    monkeypatch.setattr(worker_actor.os, "_exit", leave)
    engine, lane = Script(), LaneStub((1, 1), [call("a")], time.time)  # pyright: ignore[reportArgumentType]
    puller = Puller("w", "vllm:own@v1", engine, lambda ticket, outcome: outcome)
    puller.start()
    puller.serve("job", BoardStub(lane), 1)
    await until(lambda: puller.busy)
    puller.leave("job", 1)
    actor = WorkerActor(msgspec.msgpack.encode(WorkerSettings("w", "engine own", "vllm:own@v1", "vllm")))
    actor._keep_s = 0.6
    watching = asyncio.ensure_future(actor._watch(puller))
    await asyncio.sleep(1.7)
    assert not watching.done()
    engine.land("a")
    landed = time.monotonic()
    with pytest.raises(Ended):
        async with asyncio.timeout(20):
            await watching
    assert time.monotonic() - landed > 0.6
    assert [names for _, names in lane.got] == [["a"]]
    await puller.close()


async def test_the_log_of_a_job_whose_driver_was_killed_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says no good-bye: a worker that serves for weeks would hold one file open for each."""
    clock = Clock()
    puller = Puller("w", "vllm:own@v1", Mute(), lambda ticket, outcome: outcome, clock)
    puller.start()
    actor = WorkerActor(msgspec.msgpack.encode(WorkerSettings("w", "engine own", "vllm:own@v1", "vllm")))
    actor._puller = puller
    monkeypatch.setattr(worker_actor, "RemoteBoard", lambda driver: driver)
    await actor.serve("killed", 1, BoardStub(LaneStub((1, 1), [], clock)), logs=(str(tmp_path), "killed"))
    await actor.serve("lives", 1, BoardStub(LaneStub((1, 1), [], clock)), logs=(str(tmp_path), "lives"))
    watching = asyncio.ensure_future(actor._watch(puller))
    puller.leave("killed", 1)  # as it does with a driver that is mute for long
    async with asyncio.timeout(20):
        await until(lambda: "killed" not in actor._logs)
    assert list(actor._logs) == ["lives"]
    watching.cancel()
    await puller.close()
