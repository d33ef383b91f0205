"""Nodes whose clocks differ: the right to send is a time, so it is told, with how much."""

from __future__ import annotations

import time

import pytest

from penstock.workers.clock import ahead_s, tell_skew


class Here:
    """Our clock, on which only round trips take time."""

    def __init__(self) -> None:
        self.time = 1_700_000_000.0

    def now(self) -> float:
        return self.time

    def tick(self) -> float:
        return self.time


class There:
    """Another node. `trips`: what each way takes, of one question after the other."""

    def __init__(self, here: Here, ahead: float, trips: list[tuple[float, float]]) -> None:
        self.here, self.ahead, self.trips = here, ahead, list(trips)

    async def __call__(self) -> float:
        there, back = self.trips.pop(0)
        self.here.time += there
        answer = self.here.time + self.ahead
        self.here.time += back
        return answer


@pytest.mark.parametrize("ahead", [-3_600.0, -7.25, 0.0, 7.25, 3_600.0])
async def test_the_gap_is_found_to_within_the_quickest_round_trip(ahead: float) -> None:
    """However uneven the ways, and never more than it surely is."""
    here = Here()
    found = await ahead_s(There(here, ahead, [(3.0, 0.1), (0.0, 0.2), (0.0, 9.0)]), here)
    assert abs(found) <= abs(ahead) + 1e-6
    assert abs(ahead - found) <= 0.2 + 1e-6


@pytest.mark.parametrize(("ahead", "words"), [(7.5, "s ahead of the driver's"), (-7.5, "s behind the driver's")])
async def test_a_worker_whose_clock_is_off_is_named_when_it_begins_to_serve(ahead: float, words: str) -> None:
    """With the seconds: else it would send nothing, and say nothing."""
    told: list[str] = []

    async def clock() -> float:
        return time.time() + ahead

    await tell_skew("worker api a", clock, told.append)
    assert len(told) == 1
    assert told[0].startswith("the clock of worker api a is 7.")
    assert words in told[0]


async def test_clocks_that_agree_and_workers_that_are_lost_are_not_told_of() -> None:
    """What is lost is told of by whoever watches it."""
    told: list[str] = []

    async def agrees() -> float:
        return time.time() - 0.3

    async def lost() -> float:
        raise RuntimeError("its process died")

    await tell_skew("worker", agrees, told.append)
    await tell_skew("worker", lost, told.append)
    assert told == []
