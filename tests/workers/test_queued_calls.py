"""Calls that wait at a worker for their account's limits, when their run goes on under another command."""

from __future__ import annotations

import time

import pytest

from penstock.engine.plan import Epoch
from penstock.jobs.sandbox import Behaviour, Settings, running_sandbox
from penstock.workers.puller import Puller
from tests.workers.test_api_engine import engine, stats, ticket, until
from tests.workers.test_puller import FIRST, BoardStub, LaneStub


@pytest.mark.parametrize(("heir", "sent"), [((2, 1), 1), ((1, 2), 3)])
async def test_what_waits_to_be_sent_goes_out_for_no_other_command_than_the_one_that_made_it(
    heir: Epoch, sent: int
) -> None:
    """A job is mended because its items go to the wrong provider, and taken over: the hundreds that wait there behind a
    limit were made by the old one, and would still be sent under the new one's right. What is sent already is answered
    for the next owner; a lane that only moves keeps what waits, too."""
    with running_sandbox(Settings(default=Behaviour(latency_ms=1000.0))) as url:
        async with engine(url, limits={"concurrency": 1}) as one:
            lane = LaneStub((1, 1), [ticket(n).call for n in range(3)], time.time)  # pyright: ignore[reportArgumentType]
            puller = Puller("w", "api:a", one, lambda _, outcome: outcome)
            puller.start()
            puller.serve("job", BoardStub(lane), FIRST)
            await until(lambda: one.gauges()["waiting"] == 2 and one._slots[0].sent)
            next_owner = LaneStub(heir, [], time.time)  # pyright: ignore[reportArgumentType]
            assert len(puller.adopt("job", 0, heir, next_owner, time.time() + 60).flying) == 3
            await until(lambda: sum(len(names) for _, names in next_owner.got) == 3)
            kinds = [failure.kind for failure in next_owner.failures if failure is not None]
            assert kinds == ["not_sent"] * (3 - sent)
            assert stats(url)["served"] == sent
            for task in list(puller._tasks):
                task.cancel()
