"""An input that can't be reached now holds up nothing but itself."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from penstock.connectors.base import Batch, Reader
from penstock.connectors.memory import MemorySource
from penstock.engine.errors import Temporary
from penstock.engine.plan import Split
from penstock.workers.lanes import input as lane_input
from tests.workers import lane_rig as rig


class Away:
    """A source that can't be reached for its first `times` reads after the first one."""

    def __init__(self, inner: MemorySource, times: int) -> None:
        self.inner, self.times, self.reads = inner, times, 0

    async def splits(self, lanes_hint: int) -> list[Split]:
        return await self.inner.splits(lanes_hint)

    async def open(self, starts: Sequence[tuple[Split, int]]) -> Reader:
        self._reader = await self.inner.open(starts)
        return self

    async def read(self, max_records: int, max_bytes: int) -> Batch:
        self.reads += 1
        if 1 < self.reads <= self.times + 1:
            raise Temporary("the broker is away", retry_after_s=0.001)
        return await self._reader.read(min(max_records, 5), max_bytes)

    async def close(self) -> None:
        await self._reader.close()


def lane(name: str, times: int) -> rig.Rig:  # type: ignore[name-defined]
    source = MemorySource(name, [rig.line(number) for number in range(20)])
    return rig.Rig(rig.MemoryPlace(name), Away(source, times))


async def test_an_input_that_comes_back_is_read_on_by_the_same_owner() -> None:
    """Nothing is lost, nothing comes twice, and the lane is not opened anew."""
    one = lane("away", 20)
    driver = await one.life(one.place.open())
    assert (driver.settled, driver.failures) == (True, [])
    assert await one.told() == {f"r{n}": ["result"] for n in range(20)}
    assert len(one.sent) == 20
    assert driver.reports[-1].input_read


async def test_an_input_that_stays_away_fails_the_lane_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is opened anew then, or the run ends and says why."""
    monkeypatch.setattr(lane_input, "PATIENCE_S", 0.05)
    one = lane("gone", 1 << 30)
    driver = await one.life(one.place.open())
    assert "the broker is away" in str(driver.failures)
    assert not driver.failures[0][2], "it is opened anew"
    one.source.reads = 1
    again = await one.life(one.place.open())
    assert [report.input_read for report in again.reports] == [False], "it can't say yet that its input is back"


async def test_a_run_with_an_end_says_what_it_waits_for_and_stops_after_the_time_it_was_given() -> None:
    """Opened anew it would wait once more, and once more."""
    one = lane("bounded", 1 << 30)
    one.outage_s, ahead_s = 600.0, 0.0
    one.now = lambda: time.time() + ahead_s
    told: list[str] = []

    def later(shell: object, driver: rig.Driver) -> bool:  # type: ignore[name-defined]
        nonlocal ahead_s
        ahead_s += 0.5
        told.extend(r.input_away for r in driver.reports if r.input_away)
        return False

    driver = await one.life(one.place.open(), until=later)
    (failure,) = driver.failures
    assert "execution.outage_s: 600" in failure[1]
    assert "the broker is away" in failure[1]
    assert failure[2], "it is not opened anew"
    assert set(told) == {"the broker is away"}
