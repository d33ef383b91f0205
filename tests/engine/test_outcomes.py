"""Outcomes: each counts once, for the results that they are about, whenever they come."""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.outcomes import CellOf, Finished, Items, Joined, Keys, Outcome, Outcomes, together, wrong
from penstock.jobs.feedback.told import table

DAY = "2026-11-24T{:02d}:00:00.000Z"


def said(item: str | None, value: float, hour: int = 1, **more: object) -> Outcome:
    return Outcome("ok", value, DAY.format(hour), item, received_at=DAY.format(hour), **more)  # pyright: ignore[reportArgumentType]


def results(*items: str, target: str = "small@v1", episode: str | None = None) -> list[Finished]:
    return [Finished(item, episode, "t", target) for item in items]


def join(outcomes: Iterable[Outcome], finished: list[Finished], ended_at: str | None = None, parts: int = 1) -> Joined:
    made = [Outcomes(part, parts) for part in range(parts)]
    for outcome in outcomes:
        for part in made:
            part.add(outcome)
    return together([part.join(finished, ended_at) for part in made])


def test_the_same_outcome_told_again_counts_once_and_another_value_changes_nothing() -> None:
    """By its time, or by its id; both are counted apart."""
    told = [said("a", 1), said("a", 1), said("a", 0), said("b", 1, id="x"), said("b", 1, hour=9, id="x")]
    known = Keys()
    assert [known.add(each) for each in told] == [None, 1, 1, None, 1]
    joined = join(told, results("a", "b"))
    cell = joined.cells[CellOf("ok", "t", "small@v1")]
    assert (cell.n, cell.mean) == (2, 1.0)
    assert (joined.repeated, joined.contradicted, joined.counted) == (2, 1, 2)


def test_of_several_about_one_item_the_latest_counts_whatever_the_order_they_come_in() -> None:
    """Somebody changed their mind."""
    for told in ([said("a", 1, 1), said("a", 0, 5)], [said("a", 0, 5), said("a", 1, 1)]):
        joined = join(told, results("a"))
        assert joined.cells[CellOf("ok", "t", "small@v1")].mean == 0.0
        assert (joined.superseded, joined.counted) == (1, 1)


def test_unknown_and_late_outcomes_are_counted_and_the_late_count_too() -> None:
    """Late: received after the run's end. Unknown: of no result."""
    told = [said("a", 1, 1), said("b", 0, 9), said("gone", 1, 9)]
    joined = join(told, results("a", "b", "c"), ended_at=DAY.format(5))
    assert (joined.late, joined.unknown, joined.counted) == (1, 1, 2)
    assert joined.items == {("t", "small@v1"): 3}
    assert join(told, results("a", "b", "gone")).unknown == 0


def test_an_episode_counts_once_for_each_model_that_answered_in_it() -> None:
    """Three answers of one model in a conversation are one outcome, not three."""
    finished = [*results("a", "b", "c", episode="e"), *results("d", target="opus", episode="e")]
    joined = join([Outcome("done", 1.0, DAY.format(1), episode="e")], finished)
    assert {of.target: cell.n for of, cell in joined.cells.items()} == {"small@v1": 1, "opus": 1}


def test_an_episodes_outcome_speaks_of_all_its_results() -> None:
    """A hundred of a hundred episodes of ten results are all results, and a hundred values. One whose item has an
    outcome too is one more value, and no further result."""
    told = [Outcome("ok", 1.0, DAY.format(1), episode=f"e{n}") for n in range(100)]
    made = [Finished(f"i{n}-{k}", f"e{n}", "t", "small@v1") for n in range(100) for k in range(10)]
    joined = join([*told, said("i0-0", 1.0)], made, parts=3)
    cell = joined.cells[CellOf("ok", "t", "small@v1")]
    assert (cell.n, cell.results) == (101, 1_000)
    assert [str(cell) for cell in table(joined).columns[4].cells] == ["100 %"]


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_a_result_that_its_item_and_its_episode_speak_of_counts_once(
    parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever part of a division each falls into; an outcome of another metric takes nothing away."""
    monkeypatch.setattr(Items, "NEWEST", 10)
    made = [Finished(f"i{n}-{k}", f"e{n}", "t", "small@v1") for n in range(40) for k in range(4)]
    told = [said(f"i{n}-{k}", 1.0) for n in range(40) for k in range(2)]
    told += [Outcome("ok", 0.0, DAY.format(1), episode=f"e{n}") for n in range(0, 40, 2)]
    told += [Outcome("minutes", 3.0, DAY.format(1), episode=f"e{n}") for n in range(40)]
    joined = join(told, made, parts=parts)
    ok, minutes = (joined.cells[CellOf(metric, "t", "small@v1")] for metric in ("ok", "minutes"))
    assert (ok.n, ok.results) == (80 + 20, 80 + 20 * 2)
    assert (minutes.n, minutes.results) == (40, 160)


def test_means_come_with_intervals_where_there_is_enough() -> None:
    """Shares at once; amounts without an upper end from fifty on."""
    told = [said(f"i{n}", float(n % 2)) for n in range(60)]
    told += [Outcome("minutes", 10.0 + n, DAY.format(1), f"i{n}") for n in range(60)]
    joined = join(told, results(*(f"i{n}" for n in range(60))))
    share, minutes = (joined.cells[CellOf(metric, "t", "small@v1")] for metric in ("ok", "minutes"))
    assert share.interval is not None
    assert 0.2 < share.interval.low < 0.5 < share.interval.high < 0.8
    assert minutes.interval is not None
    assert minutes.mean == pytest.approx(39.5)
    assert minutes.interval.low < minutes.mean < minutes.interval.high
    few = join([Outcome("minutes", 10.0, DAY.format(1), "a")], results("a"))
    assert few.cells[CellOf("minutes", "t", "small@v1")].interval is None


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([0.0, 1.0]), st.integers(0, 3)), max_size=12))
def test_no_order_of_arrival_changes_who_counts(told: list[tuple[str, float, int]]) -> None:
    """As long as nobody contradicts themselves at one and the same time."""
    first: dict[tuple[str, int], float] = {}
    outcomes = [said(item, first.setdefault((item, hour), value), hour) for item, value, hour in told]
    assert join(outcomes, results(*"abc")) == join(outcomes[::-1], results(*"abc"))


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcdef"),
            st.sampled_from([0.0, 1.0, 7.5]),
            st.integers(0, 3),
            st.sampled_from(["ok", "min"]),
        ),
        max_size=30,
    ),
    st.integers(2, 5),
)
def test_parts_of_a_division_say_together_what_the_whole_says(
    told: list[tuple[str, float, int, str]], parts: int
) -> None:
    """So a large number is joined in little memory; a part holds all about one item or episode."""
    outcomes = [
        Outcome(metric, value, DAY.format(hour), *((item, None) if item < "e" else (None, item)))
        for item, value, hour, metric in told
    ]
    finished = [*results(*"abx", episode="e"), *results("c", target="opus", episode="f")]
    whole, divided = (join(outcomes, finished, DAY.format(2), n) for n in (1, parts))
    assert msgspec.to_builtins(_rough(divided)) == msgspec.to_builtins(_rough(whole))


def _rough(joined: Joined) -> Joined:
    """Sums of parts differ in the last digits."""
    cells = {
        of: msgspec.structs.replace(cell, mean=round(cell.mean, 9), interval=None) for of, cell in joined.cells.items()
    }
    return msgspec.structs.replace(joined, cells=cells)


def test_what_was_taken_is_known_however_much_came_since(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first value stands, sorted in or not."""
    monkeypatch.setattr(Keys, "NEWEST", 10)
    known = Keys()
    for n in range(95):
        assert known.add(said(f"i{n}", float(n % 2))) is None
    assert [known.add(said(f"i{n}", 0.5)) for n in range(95)] == [float(n % 2) for n in range(95)]
    assert len(known) == 95


def test_what_is_no_outcome_is_said_in_words() -> None:
    """Neither or both of item and episode, no number, no name."""
    assert wrong(said("a", 1)) is None
    assert "one of them" in (wrong(said(None, 1)) or "")
    assert "one of them" in (wrong(said("a", 1, episode="e")) or "")
    assert "finite" in (wrong(said("a", math.nan)) or "")
    assert "names" in (wrong(said("x" * 300, 1)) or "")
