"""Splits that join a lane while it goes: none is lost, none is read twice, whoever dies in between."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from penstock.engine.errors import Corrupt
from penstock.engine.flow.progress import Progress, Saved
from penstock.engine.plan import Split

SIZE = 5


def split(ordinal: int) -> Split:
    return Split(f"s{ordinal}", "o", ordinal, 0, "u", 0, SIZE, "rows")


def test_a_lane_that_was_done_comes_back_to_life() -> None:
    """All its splits were closed; a new one opens, and is all that is read."""
    progress = Progress([split(0)])
    progress.of(0).offer(4)
    progress.of(0).done(4)
    progress.end(0)
    progress.close_finished()
    assert progress.all_closed
    assert progress.add([split(0), split(3)])
    assert not progress.all_closed
    assert progress.starts() == [(split(3), 0)]


def test_what_is_known_joins_once() -> None:
    """Lanes are told of a plan late, or twice."""
    progress = Progress([split(0)])
    assert not progress.add([split(0)])
    assert progress.add([split(0), split(1)])
    assert not progress.add([split(1)])
    assert len(progress.splits) == 2


def test_a_split_that_would_count_as_opened_is_refused() -> None:
    """Its place is before splits that were opened: it would be passed over in silence."""
    progress = Progress([split(0), split(2)])
    with pytest.raises(Corrupt):
        progress.add([split(1)])


class Growing(RuleBasedStateMachine):
    """The plan grows on disk; the lane hears of it at once, late, or never; it commits and dies at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.plan = [split(0), split(1)]
        self.disk = Saved()
        self.committed: set[tuple[int, int]] = set()
        self.start()

    def start(self) -> None:
        self.progress = Progress(self.plan, self.disk)
        self.flying: set[tuple[int, int]] = set()
        self.ended: set[tuple[int, int]] = set()
        self.reopen()

    def reopen(self) -> None:
        """A reader of the lane's splits: (ordinal, next position) of each."""
        self.reader = {s.ordinal: at for s, at in self.progress.starts()}

    @rule(more=st.integers(1, 3), gap=st.integers(0, 2))
    def plan_grows(self, more: int, gap: int) -> None:
        first = self.plan[-1].ordinal + 1 + gap
        self.plan = [*self.plan, *(split(first + n) for n in range(more))]

    @rule()
    def lane_is_told(self) -> None:
        if self.progress.add(self.plan):
            self.reopen()

    @precondition(lambda self: self.reader)
    @rule(which=st.integers(0, 10), count=st.integers(1, 4))
    def read(self, which: int, count: int) -> None:
        ordinal = sorted(self.reader)[which % len(self.reader)]
        for _ in range(count):
            position = self.reader[ordinal]
            if position >= SIZE:
                del self.reader[ordinal]
                self.progress.end(ordinal)
                return
            self.reader[ordinal] += 1
            if self.progress.of(ordinal).offer(position):
                place = (ordinal, position)
                assert place not in self.flying | self.ended | self.committed, "offered twice"
                self.flying.add(place)

    @precondition(lambda self: self.flying)
    @rule(which=st.integers(0, 50))
    def end(self, which: int) -> None:
        place = sorted(self.flying)[which % len(self.flying)]
        self.flying.remove(place)
        self.ended.add(place)
        self.progress.of(place[0]).done(place[1])

    @rule()
    def commit(self) -> None:
        self.progress.close_finished()
        state = Saved(self.progress.opened, tuple(each.saved() for each in self.progress.open.values()))
        self.disk = msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=Saved)
        self.committed |= self.ended
        self.ended = set()

    @rule()
    def crash(self) -> None:
        """The next owner reads the plan as it is on disk, whatever the last one had heard of it."""
        self.start()

    @invariant()
    def sound(self) -> None:
        self.progress.check()

    def teardown(self) -> None:
        self.lane_is_told()
        while self.reader:
            self.read(0, SIZE)
        while self.flying:
            self.end(0)
        self.commit()
        assert self.progress.all_closed
        assert self.committed == {(s.ordinal, p) for s in self.plan for p in range(SIZE)}


TestGrowing = Growing.TestCase
TestGrowing.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
