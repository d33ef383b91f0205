"""How late commits are: a lane that can't be opened is late too, for as long as nobody hears of it."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from penstock.jobs.health import ready
from penstock.workers.lanes.report import LaneReport
from penstock.workers.lateness import QUIET_S, Lateness
from penstock.workers.ports import encode
from penstock.workers.status import RunStatus, Tally
from tests.workers.test_driver_ends import driver


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
    one._lateness._heard = {lane: (at - 3 * 3600, age_s) for lane, (at, age_s) in one._lateness._heard.items()}
    await one.report(encode(late(1)), 1)
    told = msgspec.msgpack.decode(await one.status(), type=RunStatus)
    assert told.commit_age_s == pytest.approx(3 * 3600 + 8, abs=60)
    told.updated_at = 5.0
    assert not ready(told, 5.0).ok
    one._status.commit_age_s = 0.0
    one._sum_up()
    assert one._status.commit_age_s > 3600, "for the metrics"
