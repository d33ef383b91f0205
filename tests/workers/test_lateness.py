"""How late commits are: a lane that can't be opened is late too, for as long as nobody hears of it."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from penstock.jobs.health import ready
from penstock.workers import driver as driver_module
from penstock.workers import metrics
from penstock.workers.driving.lateness import QUIET_S, Lateness
from penstock.workers.lanes.report import LaneReport
from penstock.workers.metrics import DriverMetrics
from penstock.workers.ports import encode
from penstock.workers.status import RunStatus, Tally
from tests.workers.test_driver_ends import Enough, driver, hear
from tests.workers.test_metrics_and_logs import Sheet


def late(lane: int, age_s: float = 0.0) -> LaneReport:
    return LaneReport(lane, Tally(), commit_age_s=age_s)


def test_the_latest_lane_counts_and_a_silent_one_grows_later() -> None:
    """What it said last is not true for ever; one that changes hands is not late."""
    told = Lateness()
    told.heard(late(0, 3.0), 0.0)
    told.heard(late(1), 0.0)
    assert told.most_s(2, 0.2) == 3.0
    assert told.most_s(2, QUIET_S) == 3.0
    assert told.most_s(2, 3 * 3600.0) == 3 * 3600.0 + 3.0
    told.heard(late(0), 3 * 3600.0)
    assert told.most_s(1, 3 * 3600.0 + 0.2) == 0.0
    assert Lateness().most_s(0, 5.0) == 0.0
    unheard = Lateness()
    assert unheard.most_s(1, 100.0) == 0.0
    assert unheard.most_s(1, 200.0) == 100.0


async def test_a_run_whose_store_is_away_for_hours_is_late_and_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lane gave up after seconds and can't be opened: the status and the probe say so all the same."""
    one = driver(tmp_path, endless=True)
    one._status.state = "running"
    for lane in range(2):
        one._crew._owners[lane] = lane
        await one.report(encode(late(lane, 8.0)), lane)

    async def failed(*_: object) -> None:
        """It is tried again and again."""

    monkeypatch.setattr(one._crew, "failed", failed)
    await one.lane_failed(0, 0, False, "the broker does not answer", False)
    one._reports.lateness._heard = {
        lane: (at - 3 * 3600, age_s) for lane, (at, age_s) in one._reports.lateness._heard.items()
    }
    await one.report(encode(late(1)), 1)
    told = msgspec.msgpack.decode(await one.status(), type=RunStatus)
    assert told.commit_age_s == pytest.approx(3 * 3600 + 8, abs=60)
    told.updated_at = 5.0
    assert not ready(told, 5.0).ok
    one._status.commit_age_s = 0.0
    one._sum_up()
    assert one._status.commit_age_s > 3600, "for the metrics"


async def test_commits_that_stopped_are_told_while_the_state_is_away_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where results and state are in one store, each look at the state waits for minutes: so long the metric stood as
    it was before, and nobody was alarmed."""
    monkeypatch.setattr(driver_module, "LOOK_EVERY_S", 0.0)
    one, sheet = driver(tmp_path, endless=True), Sheet()
    one._metrics = DriverMetrics("n", sheet.make)

    async def away(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(one._hearing, "look", away)
    for lane in range(2):
        hear(one, late(lane))
    one._reports.lateness._heard = dict.fromkeys(range(2), (-3_600.0, 0.0))
    going = asyncio.create_task(one._watch())
    async with asyncio.timeout(5):
        while sheet.of("commit_age_seconds") < 3_600:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
    going.cancel()
    await asyncio.gather(going, return_exceptions=True)


async def test_a_run_whose_lanes_can_not_be_opened_at_its_start_tells_how_late_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For an endless run that is as long as its store is away, and nobody was alarmed."""
    monkeypatch.setattr(metrics, "EXPORT_EVERY_S", 0.01)
    one, sheet, opened = driver(tmp_path, endless=True), Sheet(), asyncio.Event()
    one._metrics = DriverMetrics("n", sheet.make)

    async def start(*_: object, **__: object) -> None:
        one._reports.lateness._heard = dict.fromkeys(range(2), (-3_600.0, 0.0))
        await opened.wait()
        raise Enough

    async def nothing(*_: object) -> None:
        """What the driver does before."""

    monkeypatch.setattr(one._crew, "start", start)
    monkeypatch.setattr(one._steersman, "first", nothing)
    monkeypatch.setattr(one._measuring, "first", nothing)
    monkeypatch.setattr(one._fleet, "want", lambda _: None)
    monkeypatch.setattr(one._fleet, "reunite", nothing)
    begun = asyncio.create_task(one._begin())
    async with asyncio.timeout(5):
        while sheet.of("commit_age_seconds") < 3_600:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
        opened.set()
        with pytest.raises(Enough):
            await begun
