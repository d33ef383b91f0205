"""How much of its time a process does not run shows in its own timer."""

from __future__ import annotations

import pytest

from penstock.workers.lanes.pace import BEAT_S, Pace


def test_what_it_was_stopped_for_is_lost_and_a_beat_in_time_loses_nothing() -> None:
    pace, tick = Pace(100.0), 100.0
    for _ in range(20):
        tick += BEAT_S
        pace.beat(tick)
    assert pace.seen(tick) == pytest.approx((2.0, 0.0))
    tick += 4.0
    pace.beat(tick)
    assert pace.seen(tick) == pytest.approx((6.0, 4.0 - BEAT_S))
    assert pace.seen(tick + BEAT_S) == pytest.approx((6.0 + BEAT_S, 4.0 - BEAT_S))


def test_it_tells_once_a_second_and_at_once_when_it_wakes_up() -> None:
    pace = Pace(0.0)
    told = [beat for beat in range(1, 31) if pace.beat(beat * 0.1 + 0.001)]
    assert len(told) == 3
    assert pace.beat(9.0)
