"""An engine's time is divided among the calls that it worked on: once, whatever comes and goes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.items import Call, Outcome
from penstock.workers.engine_time import EngineTime
from penstock.workers.engines.base import Right, Ticket


def ticket() -> Ticket:
    call = Call("i", 0, 1, "primary", "own", "v1", "x", b"{}", "t", 8, 60.0, 10, 10)
    return Ticket(call, Right("run", 0, (1, 1), 1e12), None)


def left(time: EngineTime, tickets: list[Ticket], now: float) -> list[float]:
    batch = time.left([(one, Outcome("i", 0, 1, 0.0, 0.0)) for one in tickets], now)
    assert [one for one, _ in batch] == tickets
    return [outcome.engine_ms / 1_000 for _, outcome in batch]


def test_who_was_there_at_the_same_time_shares_it() -> None:
    """One alone for 10 s, then with a second one for 4 s; the idle time before and after belongs to nobody."""
    time, (first, second) = EngineTime(), (ticket(), ticket())
    time.came([first], 100.0)
    time.came([second], 110.0)
    assert left(time, [first], 114.0) == pytest.approx([12.0])
    assert left(time, [second], 115.0) == pytest.approx([3.0])
    third = ticket()
    time.came([third], 500.0)
    assert left(time, [third], 501.0) == pytest.approx([1.0])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.floats(0, 9))))
def test_the_parts_add_up_to_the_time_with_work(events: list[tuple[int, int, float]]) -> None:
    """So many come, so many leave, and so many seconds pass."""
    time, here, now = EngineTime(), list[Ticket](), 7.0
    parts, worked = 0.0, 0.0
    for come, leave, seconds in [*events, (0, 10_000, 0.0)]:
        new = [ticket() for _ in range(come)]
        time.came(new, now)
        here += new
        gone, here = here[:leave], here[leave:]
        parts += sum(left(time, gone, now))
        worked += seconds if here else 0.0
        now += seconds
    assert parts == pytest.approx(worked)
