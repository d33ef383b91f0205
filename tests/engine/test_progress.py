"""Watermark and finished set, whatever the order in which items end, whenever the owner dies."""

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.errors import Corrupt
from penstock.engine.flow.progress import Progress, Saved
from penstock.engine.plan import Split

SHARES = st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0])


def splits(count: int) -> list[Split]:
    return [Split(f"s{n}", "o", n, 0, "u", 0, 1000, "rows", size_bytes=100) for n in range(count)]


def saved(progress: Progress) -> Saved:
    state = Saved(progress.opened, tuple(each.saved() for each in progress.open.values()))
    return msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=Saved)


@given(st.lists(st.integers(0, 999), unique=True, min_size=1, max_size=60), st.randoms(), st.integers(0, 60))
def test_after_a_restart_exactly_the_unfinished_come_again(positions: list[int], dice: object, ended: int) -> None:
    """Some end in any order, the owner dies, the split is read again from its watermark."""
    positions.sort()
    progress = Progress(splits(1))
    for position in positions:
        assert progress.of(0).offer(position)
    done = list(positions)
    dice.shuffle(done)  # type: ignore[attr-defined]
    done, undone = done[:ended], done[ended:]
    for position in done:
        progress.of(0).done(position)
        progress.check()
    again = Progress(splits(1), saved(progress))
    (_, start), *_ = again.starts() or [(None, 1000)]
    assert start <= min(undone, default=1000)
    assert sorted(undone) == [p for p in positions if p >= start and again.of(0).offer(p)]
    again.check()
    assert not again.all_read
    again.end(0)
    assert again.all_read
    assert again.all_closed == (not undone)


@given(
    st.lists(st.integers(0, 999), unique=True, min_size=10, max_size=60),
    st.lists(st.tuples(SHARES, SHARES, st.booleans()), min_size=2, max_size=5),
    st.integers(0, 1 << 30),
)
def test_records_that_vanish_between_owners_are_neither_unfinished_nor_in_the_way(
    positions: list[int], owners: list[tuple[float, float, bool]], seed: int
) -> None:
    """Each owner finds fewer records than the last (deleted, compacted away), finishes some, and dies; some don't come
    to the end of them. What is there and has not ended comes to every owner once; nothing that ended comes again."""
    dice, there, ended = random.Random(seed), sorted(positions), set[int]()
    progress = Progress(splits(1))
    for gone, done, halfway in owners:
        state = progress.of(0)
        ((_, start),) = progress.starts()
        found = [p for p in there if p >= start]
        offered = [p for p in found[: len(found) // 2 if halfway else None] if state.offer(p)]
        assert offered == [p for p in found[: len(found) // 2 if halfway else None] if p not in ended]
        assert not [p for p in there if p < start and p not in ended], "one that is there would never be read"
        progress.check()
        dice.shuffle(offered)
        for position in offered[: round(done * len(offered))]:
            state.done(position)
            ended.add(position)
            progress.check()
        progress = Progress(splits(1), saved(progress))
        assert progress.of(0).finished <= ended, "one is said to be finished that never was"
        there = [p for p in there if dice.random() >= gone]


def test_what_the_last_owner_finished_does_not_keep_this_one_from_reading() -> None:
    """However much is finished beyond the watermark: it waits for no item of this owner, who must read to go on."""
    progress = Progress(splits(1))
    for position in range(100):
        progress.of(0).offer(position)
    for position in range(1, 100):
        progress.of(0).done(position)
    again = Progress(splits(1), saved(progress))
    assert (progress.beyond, again.beyond) == (99, 0)
    assert again.of(0).offer(0)
    assert not again.of(0).offer(50)
    assert again.beyond == 50
    again.of(0).done(0)
    assert (again.beyond, again.of(0).watermark) == (0, 51)


def test_closed_splits_are_counted_not_listed() -> None:
    """A million closed splits cost nothing in the progress, and are not opened again."""
    progress = Progress(splits(3))
    for ordinal in (0, 1):
        progress.of(ordinal).offer(5)
        progress.of(ordinal).done(5)
        progress.end(ordinal)
    progress.close_finished()
    state = saved(progress)
    assert (state.opened, state.splits) == (2, ())
    assert [split.ordinal for split, _ in Progress(splits(3), state).starts()] == [2]
    assert not progress.all_closed


def test_a_lane_whose_last_split_ends_without_a_record_is_closed() -> None:
    """Nothing is left to commit it with: the end itself counts."""
    progress = Progress(splits(1))
    progress.end(0)
    assert progress.all_closed


def test_only_an_owner_that_did_not_end_in_peace_leaves_doubts() -> None:
    """It had sent up to the horizon; one that drained took it back before its last commit."""
    progress = Progress(splits(1))
    for position in range(3):
        progress.of(0).offer(position)
    progress.of(0).done(0)
    progress.of(0).horizon = 3
    assert Progress(splits(1), saved(progress)).doubted
    progress.of(0).retreat()
    assert not Progress(splits(1), saved(progress)).doubted
    assert not progress.doubted


def test_progress_of_another_plan_is_refused() -> None:
    """More splits than the plan has, or a record of a split that was closed: corrupt, not guessed."""
    with pytest.raises(Corrupt):
        Progress(splits(1), Saved(opened=2))
    progress = Progress(splits(1))
    progress.end(0)
    progress.close_finished()
    with pytest.raises(Corrupt):
        progress.of(0)


def test_one_slow_item_does_not_hide_what_is_done_behind_it() -> None:
    """Progress in bytes, which the ETA is made of, counts finished items beyond the watermark."""
    split = Split(id="a", object_id="a", ordinal=0, lane=0, uri="a", start=0, end=1000, unit="bytes", size_bytes=1000)
    progress = Progress([split])
    state = progress.of(0)
    for position in range(0, 1000, 100):
        assert state.offer(position)
    for position in range(100, 1000, 100):
        state.done(position)
    assert state.watermark == 0
    assert 700 <= progress.bytes_done() <= 1000
