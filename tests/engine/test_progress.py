"""Watermark and finished set, whatever the order in which items end, whenever the owner dies."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.errors import Corrupt
from penstock.engine.flow.progress import Progress, Saved
from penstock.engine.plan import Split


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
    again.end(0)
    assert again.all_closed == (not undone)


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
