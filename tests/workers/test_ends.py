"""When a run ends before its input does: the fuse `max_dead_letters`."""

from __future__ import annotations

import pytest

from penstock.engine.flow.tally import Tally
from penstock.workers.driving.ends import FUSE_AFTER, early_end
from penstock.workers.driving.outages import Outages


@pytest.mark.parametrize(
    ("allowed", "dead", "results", "stops"),
    [
        (None, 5_000, 0, False),
        (0, 0, 10, False),
        (0, 1, 10, True),
        (3, 3, 0, False),
        (3, 4, 100_000, True),
        (0.01, FUSE_AFTER - 1, 0, False),
        (0.01, FUSE_AFTER, 0, True),
        (0.01, 10, 990, False),
        (0.01, 11, 989, True),
        (0.01, 11, 988, False),
    ],
)
def test_a_run_stops_where_its_fuse_is_passed(allowed: float | None, dead: int, results: int, stops: bool) -> None:
    """Unset: never, it goes to its end. A count: above it. A share: above it, after a thousand finished items."""
    tally = Tally(results=results, dead_letters={"attempts_exhausted": dead - dead // 2, "refused": dead // 2})
    found = early_end(allowed, [], tally, Outages(0.0), 0.0)
    assert (found is not None) == stops
    if found is not None:
        told = f"{dead} dead letters of {dead + results} finished items pass max_dead_letters"
        assert found == ("too_many_dead_letters", told)
