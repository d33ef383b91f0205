"""A run that was stopped, and goes on with an edited job: what is sent from then on goes by the job as it is now."""

from __future__ import annotations

import asyncio
import time

import msgspec

from penstock.connectors import memory
from penstock.connectors.reading.intake import Intake
from penstock.connectors.settings import Row
from penstock.engine.catalog import Wall
from penstock.engine.flow.progress import SHELF
from penstock.engine.items import Call, Outcome
from penstock.engine.policy import Policy, Prompt, Task
from penstock.workers.lanes.shell import LaneShell
from tests.workers import lane_rig as rig

WALLED = msgspec.structs.replace(
    rig.CATALOG, walls={"public": Wall("public"), "patients": Wall("patients", self_hosted=True)}
)
POLICY = Policy({"t": Task("t", max_tokens=50, prompt=Prompt(user="{{ text }}"))}, default_task="t")
COUNT, SLOW = 400, 3


def read_by(**attributes: str) -> Intake:
    return Intake("r", "rows", Row(id="{{ text }}", attributes=attributes), POLICY, {"m"})


async def test_an_item_that_waits_long_goes_by_the_mended_job_not_by_the_one_that_read_it() -> None:
    """Its column was forgotten when the job was written, so all were taken for public. What is kept of it on the shelf
    says so too; the mended job's wall keeps it from the provider all the same."""
    rows = [{"text": f"item {n}", "about": "patients" if n == SLOW else "public"} for n in range(COUNT)]
    lane = rig.Rig(rig.MemoryPlace("mended"), memory.MemorySource("mended", [msgspec.json.encode(row) for row in rows]))
    lane.catalog, lane.intake, ahead = WALLED, read_by(sensitivity="public"), [0.0]
    lane.now = lambda: time.time() + ahead[0]

    def reply(call: Call) -> Outcome | None:
        return None if b'"item 3"' in call.body_json else rig.answered(call)

    def only_the_slow_one_is_left(shell: LaneShell, driver: rig.Driver) -> bool:
        return len(shell.machine.slots) == 1 and not shell.machine.dirty and shell._commit is None

    shell, driver = lane.shell(lane.place.open())
    await shell.open(await lane.made_plan(), force=True)
    shell.go()
    async with asyncio.timeout(60):
        await lane.work(shell, driver, reply, only_the_slow_one_is_left)
        ahead[0] = 11.0
        while not any(name.startswith(SHELF) for name in (await lane.place.open().primary.peek(0)).chunks):  # noqa: ASYNC110 - the store tells nobody
            await asyncio.sleep(0.005)
    await shell.close()
    lane.intake, lane.sent = read_by(sensitivity="{{ about }}"), []
    await lane.life(lane.place.open())
    assert lane.sent == []
    assert (await lane.told())[f"item {SLOW}"] == ["wall"]
