"""A machine's clock that jumps by an hour, back or forth: the right to send never grows, and a lane goes on."""

from __future__ import annotations

import asyncio
import time

import pytest

from penstock.connectors import memory
from penstock.connectors.base import Source
from penstock.engine.errors import Fenced
from penstock.engine.items import Call, CallChunk, Failure, Outcome
from penstock.workers.lanes.shell import RIGHT_S, LaneShell
from tests.workers import lane_rig as rig

HOUR_S = 3_600.0
ITEMS = 200


class Clock:
    """The machine's, and what a person or a time server does to it."""

    def __init__(self) -> None:
        self.off_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.off_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def jumping(name: str, clock: Clock) -> rig.Rig:
    lines: Source = memory.MemorySource(name, [rig.line(n) for n in range(ITEMS)])
    lane = rig.Rig(rig.MemoryPlace(name), lines)
    lane.now = clock
    lane.window = 64
    return lane


async def taken(shell: LaneShell) -> CallChunk:
    async with asyncio.timeout(10):
        while True:
            chunk, _ = await shell.take(rig.POOL, 4, 1 << 30, "w")
            if chunk is not None:
                return chunk
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("jump_s", [-HOUR_S, -RIGHT_S, HOUR_S])
async def test_an_owner_that_was_replaced_sends_nothing_whatever_the_clock_does(jump_s: float, clock: Clock) -> None:
    """Its right is not longer by a jump back: it asks who owns the lane, and hears that it is over."""
    lane = jumping("replaced", clock)
    old, heard = lane.shell(lane.place.open())
    await old.open(await lane.made_plan(), force=True)
    old.go()
    chunk = await taken(old)
    await lane.place.open().primary.take(0, (1, 99), force=True)
    clock.off_s += jump_s
    assert await old.right(old.epoch, "w") == 0.0
    assert await old.take(rig.POOL, 4, 1 << 30, "w") == (None, 0)
    with pytest.raises(Fenced):
        await old.done(old.epoch, [rig.answered(call) for call in chunk.calls])
    assert heard.failures[0][0], "it was told that it was fenced"
    await old.close()


async def test_a_right_is_never_longer_than_it_was_given(clock: Clock) -> None:
    """Whatever jumps, what workers are told lies within the next five seconds."""
    lane = jumping("rights", clock)
    shell, _ = lane.shell(lane.place.open())
    await shell.open(await lane.made_plan(), force=True)
    shell.go()
    for jump_s in (-HOUR_S, HOUR_S, HOUR_S, -HOUR_S, -2.0, 2.0):
        clock.off_s += jump_s
        until = await shell.right(shell.epoch, "w")
        assert 0.0 < until - clock() <= RIGHT_S
        chunk = await taken(shell)
        assert chunk.send_until - clock() <= RIGHT_S
        await shell.done(chunk.epoch, [rig.answered(call) for call in chunk.calls])
    await shell.close()


async def test_a_retry_waits_no_longer_where_the_clock_was_set_back(clock: Clock) -> None:
    """By an hour, while items wait for their second try."""
    lane = jumping("retries", clock)
    tries: dict[str, int] = {}

    def reply(call: Call) -> Outcome:
        tries[call.item_id] = tries.get(call.item_id, 0) + 1
        if tries[call.item_id] > 1 or len(tries) > 40:
            return rig.answered(call)
        if len(tries) == 40:
            clock.off_s -= HOUR_S
        failure = Failure("rate_limited", "429", status=429, retry_after_s=0.5)
        return Outcome(call.item_id, call.generation, call.attempt, clock(), 1.0, failure=failure)

    driver = await lane.life(lane.place.open(), reply)
    assert driver.settled
    assert await lane.told() == {f"r{n}": ["result"] for n in range(ITEMS)}


async def test_a_lane_ends_each_item_once_while_the_clock_jumps(clock: Clock) -> None:
    """Commits go on: none waits for the hour to pass again."""
    lane = jumping("going on", clock)
    served = 0

    def reply(call: object) -> object:
        nonlocal served
        served += 1
        if served % 20 == 0:
            clock.off_s += HOUR_S if served % 40 else -HOUR_S
        return rig.answered(call)  # pyright: ignore[reportArgumentType]

    driver = await lane.life(lane.place.open(), reply)  # pyright: ignore[reportArgumentType]
    assert driver.settled
    assert await lane.told() == {f"r{n}": ["result"] for n in range(ITEMS)}
