"""Items that take minutes when nothing else is left in their lane."""

from __future__ import annotations

import asyncio
import time

from penstock.connectors import memory
from penstock.connectors.base import Source
from penstock.engine.flow.progress import SHELF, saved_in
from penstock.engine.items import Call, Outcome
from penstock.workers.lanes.shell import LaneShell
from tests.workers import lane_rig as rig

ITEMS, SLOW = 400, {"item 3", "item 200", "item 399"}


class Clock:
    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


def reply(call: Call) -> Outcome | None:
    return None if any(b'"%s"' % slow.encode() in call.body_json for slow in SLOW) else rig.answered(call)


async def committed(lane: rig.Rig) -> tuple[int, int]:
    """The lane's watermark, and how many items are on its shelf."""
    chunks = (await lane.place.open().primary.peek(0)).chunks
    (split,) = saved_in(chunks).splits
    return split.watermark, sum(name.startswith(SHELF) for name in chunks)


async def test_slow_items_that_alone_are_left_hold_up_no_watermark() -> None:
    """Nothing ends any more, so nothing would be committed: the lane commits for them once they have become old. What
    lag tools see goes on with it. Those behind which nothing has ended stay where they are."""
    clock = Clock()
    lines: Source = memory.MemorySource("slow", [rig.line(n) for n in range(ITEMS)])
    lane = rig.Rig(rig.MemoryPlace("slow"), lines)
    lane.now = clock

    def only_slow_ones_left(shell: LaneShell, driver: rig.Driver) -> bool:
        machine = shell.machine
        return len(machine.slots) == len(SLOW) and machine.idle is False and not machine.dirty and shell._commit is None

    shell, driver = lane.shell(lane.place.open())
    await shell.open(await lane.made_plan(), force=True)
    shell.go()
    async with asyncio.timeout(60):
        await lane.work(shell, driver, reply, only_slow_ones_left)
        assert await committed(lane) == (3, 0)
        clock.ahead_s = 11.0
        while (await committed(lane))[0] == 3:  # noqa: ASYNC110 - the store tells nobody
            await asyncio.sleep(0.005)
    assert await committed(lane) == (399, 2)
    await shell.close()
    driver = await lane.life(lane.place.open())
    assert driver.settled
    assert await lane.told() == {f"r{n}": ["result"] for n in range(ITEMS)}
