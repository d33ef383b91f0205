"""A sample of different units: the same whoever took it, bounded, and honest enough for a test of shares."""

from __future__ import annotations

import copy
from itertools import chain

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.engine.measure.distinct import MOST, Distinct, at_one_level, joined
from penstock.engine.measure.split import sampled_mismatch
from penstock.engine.policy import Arm, Experiment
from penstock.engine.steering.arms import Draw


def seen(*names: str) -> Distinct:
    made = Distinct()
    for name in names:
        made.see(name)
    return made


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 2_000), st.integers(0, 3_000)), max_size=4))
def test_parts_put_together_are_what_one_would_have_seen(parts: list[tuple[int, int]]) -> None:
    """In any order, with names that several saw; and they stay as they were."""
    names = [[f"{n}" for n in range(start, start + count)] for start, count in parts]
    made = [seen(*each) for each in names]
    before = copy.deepcopy(made)
    assert joined(made) == joined(reversed(made)) == seen(*chain(*names))
    assert made == before


def test_it_stays_small_and_tells_about_how_many_there_were() -> None:
    names = [f"customer {n}" for n in range(60_000)]
    made = seen(*names, *names[:9_000])
    assert MOST / 3 < len(made.places) <= MOST
    assert 0.85 < len(made.places) * 2**made.level / len(names) < 1.15
    assert len(msgspec.json.encode(made)) < 20_000


def test_groups_are_compared_at_one_level() -> None:
    large, small = seen(*map(str, range(4_000))), seen(*map(str, range(9_000, 9_400)))
    level, counts = at_one_level([large, small])
    assert (level, counts[0]) == (large.level, len(large.places))
    assert 0.6 < counts[1] * 2**level / 400 < 1.5


def test_equal_shares_keep_to_the_alarm_rate_however_often_and_at_whatever_level_they_are_looked_at() -> None:
    """40 experiments, 1:3, to 3,200 units each. One alarm in ten would be as promised."""
    alarms = 0
    for n in range(40):
        draw = Draw(Experiment(f"job/{n}", "t", (Arm("a", 1.0), Arm("b", 3.0))))
        arms = Distinct(), Distinct()
        found = False
        for count, unit in enumerate((f"{n} {each}" for each in range(3_200)), 1):
            arms[draw.place(unit)].see(unit)
            found |= count % 100 == 0 and sampled_mismatch(*at_one_level(arms), (1.0, 3.0), 0.1).found
        alarms += found
    assert alarms <= 4
