"""Which lane moves where: away from who is slow while others are not, to who has room; one at a time, not for ever."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.engine import balance
from penstock.engine.balance import Balance, Move

ACTORS = st.integers(1, 4)
SHARES = st.integers(0, 100).map(lambda hundredths: hundredths / 100)


class Actors:
    """Lane actors that tell their paces every second, and a crew that looks every second and moves what it is told."""

    def __init__(self, actors: int, lanes: int) -> None:
        self.balance = Balance()
        self.tick = 1_000.0
        self.held = {actor: [lane for lane in range(lanes) if lane % actors == actor] for actor in range(actors)}
        self.at = dict.fromkeys(self.held, 0.0)
        self.lost = dict.fromkeys(self.held, 0.0)
        self.moves: list[tuple[float, Move]] = []
        self.move_s = 1.0
        """How long a move takes."""
        self._ends: float | None = None

    def second(self, runs: Mapping[int, float], mute: frozenset[int] = frozenset()) -> None:
        """One passes, in which each actor runs for this share of its time; those that are `mute` tell nothing."""
        self.tick += 1.0
        for actor, share in runs.items():
            self.at[actor] = self.at.get(actor, 0.0) + 1.0
            self.lost[actor] = self.lost.get(actor, 0.0) + 1.0 - share
            if actor not in mute:
                self.balance.heard(actor, self.at[actor], self.lost[actor], self.tick)
        if self._ends is not None and self.tick >= self._ends:
            self._ends = None
            self.balance.moved(self.tick)
        move = self.balance.next(self.held, self.tick)
        if move is None:
            return
        assert self._ends is None, "two moves at a time"
        assert move.source != move.target
        self.held[move.source].remove(move.lane)
        self.held[move.target].append(move.lane)
        self.moves.append((self.tick, move))
        self._ends = self.tick + self.move_s

    def seconds(self, n: int, runs: Mapping[int, float]) -> None:
        for _ in range(n):
            self.second(runs)

    @property
    def counts(self) -> list[int]:
        return [len(lanes) for lanes in self.held.values()]


def test_all_lanes_leave_an_actor_that_is_stopped_four_of_every_4_2_seconds() -> None:
    actors = Actors(2, 4)
    for second in range(60):
        actors.second({0: 0.2 / 4.2, 1: 0.95}, frozenset({0}) if second % 4 else frozenset())
    assert actors.counts == [0, 4]
    assert [move.why for _, move in actors.moves] == ["lane actor 0 is slow"] * 2


def test_lanes_come_back_when_it_has_been_well_for_a_minute_and_later_each_time() -> None:
    actors = Actors(2, 4)
    waited: list[float] = []
    for _ in range(3):
        actors.seconds(60, {0: 0.05, 1: 0.95})
        assert actors.counts == [0, 4]
        well_at = actors.tick
        actors.seconds(400, {0: 0.95, 1: 0.95})
        assert actors.counts == [2, 2]
        waited.append(actors.moves[-2][0] - well_at)
    assert 60 <= waited[0] < 90
    assert waited[1] > 1.7 * waited[0]
    assert waited[2] > 1.7 * waited[1]


def test_lanes_spread_over_an_actor_that_is_added() -> None:
    actors = Actors(2, 9)
    actors.seconds(20, {0: 0.9, 1: 0.9})
    actors.held[2] = []
    actors.seconds(60, {0: 0.9, 1: 0.9, 2: 0.9})
    assert sorted(actors.counts) == [3, 3, 3]


def test_lanes_that_have_ended_neither_move_nor_make_room() -> None:
    """Towards the end of a run one actor's lanes end before another's."""
    paced = Balance()
    for second in range(1, 30):
        for actor in range(3):
            paced.heard(actor, float(second), 0.0, 1_000.0 + second)
        assert paced.next({0: [0, 2], 1: [1, 3], 2: [4, 5, 6]}, 1_000.0 + second, {0, 2, 4}) is None
    assert paced.next({0: [0], 1: [1], 2: [2, 3, 4]}, 1_029.0, {0, 2, 3}) == Move(4, 2, 0, "lane actor 0 has room")


def test_who_stands_at_the_edge_of_slow_does_not_get_lanes_and_lose_them_again_and_again() -> None:
    """Seen at 2 % beside 6 %: rounding took it over the edge and back."""
    actors = Actors(2, 4)
    for second in range(1_500):
        actors.second({0: 0.3 if second // 100 % 2 else 0.32, 1: 0.93})
    assert actors.counts == [0, 4]
    assert len(actors.moves) == 2


def test_one_long_pause_moves_nothing() -> None:
    """Nine seconds: after ten it is silent, which is another's decision."""
    actors = Actors(2, 4)
    actors.seconds(30, {0: 0.98, 1: 0.98})
    actors.seconds(9, {0: 0.0, 1: 0.98})
    actors.seconds(60, {0: 0.98, 1: 0.98})
    assert actors.moves == []


def test_a_new_process_under_an_actors_number_begins_with_a_clean_sheet() -> None:
    actors = Actors(2, 4)
    actors.seconds(25, {0: 0.05, 1: 0.95})
    assert actors.moves
    actors.at[0] = actors.lost[0] = 0.0
    actors.seconds(1, {0: 0.95, 1: 0.95})
    assert actors.balance.runs(0) is None
    actors.seconds(45, {0: 0.95, 1: 0.95})
    assert actors.counts == [2, 2]


def test_nothing_goes_to_who_was_not_heard_for_a_while() -> None:
    actors = Actors(2, 4)
    for _ in range(60):
        actors.second({0: 0.05, 1: 0.95}, frozenset({1}) if actors.tick > 1_015 else frozenset())
    assert actors.moves == []


@given(actors=ACTORS, lanes=st.integers(1, 12), runs=SHARES)
def test_nothing_moves_where_all_run_alike(actors: int, lanes: int, runs: float) -> None:
    """A busy machine, or one that is stopped as a whole: a move would help nobody. Or there is only one."""
    made = Actors(actors, lanes)
    made.seconds(120, dict.fromkeys(range(actors), runs))
    assert made.moves == []


@given(lanes=st.integers(1, 12), runs=st.lists(SHARES, min_size=200, max_size=200))
def test_nothing_moves_where_there_is_one_actor(lanes: int, runs: list[float]) -> None:
    made = Actors(1, lanes)
    for share in runs:
        made.second({0: share})
    assert made.moves == []


@settings(max_examples=40)  # each is a quarter of an hour
@given(runs=st.lists(SHARES, min_size=2, max_size=4), lanes=st.integers(1, 12), move_s=st.floats(0.5, 20.0))
def test_moves_come_to_an_end_and_leave_the_slow_without_lanes_and_the_others_even(
    runs: list[float], lanes: int, move_s: float
) -> None:
    """At constant paces."""
    made = Actors(len(runs), lanes)
    made.move_s = move_s
    shares = dict(enumerate(runs))
    made.seconds(600, shares)
    before = len(made.moves)
    made.seconds(300, shares)
    assert len(made.moves) == before
    best = max(runs)
    slow = {a for a, share in shares.items() if share <= balance.SLOW_RUNS * 0.999 and share * 3.01 < best}
    surely_well = {a for a, share in shares.items() if share > balance.SLOW_RUNS * 1.001 or share * 2.99 >= best}
    assert all(not made.held[a] for a in slow)
    assert before <= 2 * lanes
    counts = [len(made.held[a]) for a in surely_well]
    if slow | surely_well == set(shares):
        assert max(counts) - min(counts) <= 1


@settings(max_examples=60)
@given(
    script=st.lists(st.tuples(st.integers(1, 40), st.lists(SHARES, min_size=3, max_size=3)), min_size=1, max_size=25),
    lanes=st.integers(1, 8),
    move_s=st.floats(0.5, 30.0),
)
def test_whatever_the_paces_moves_are_few_and_never_to_who_runs_less(
    script: list[tuple[int, list[float]]], lanes: int, move_s: float
) -> None:
    made = Actors(3, lanes)
    made.move_s = move_s
    for seconds, runs in script:
        for _ in range(seconds):
            moved = len(made.moves)
            made.second(dict(enumerate(runs)))
            for _, move in made.moves[moved:]:
                source, target = made.balance.runs(move.source), made.balance.runs(move.target)
                assert source is not None
                assert target is not None
                if "slow" in move.why:
                    assert source <= balance.SLOW_RUNS
                    assert source * balance.TIMES <= target
                else:
                    assert target > balance.SLOW_RUNS or target * balance.TIMES >= source
    assert sorted(lane for held in made.held.values() for lane in held) == list(range(lanes))
    times = [tick for tick, _ in made.moves]
    assert all(after - before >= move_s + balance.PAUSE_S - 1 for before, after in pairwise(times))
    last: dict[int, float] = {}
    for tick, move in made.moves:
        assert tick - last.get(move.lane, -math.inf) >= balance.STAYS_S
        last[move.lane] = tick
