"""The duplicate pass judges in input order, the same whatever its steps, and never ahead of what it has read."""

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.connectors.base import Raw
from penstock.connectors.files import FileSource
from penstock.connectors.reading.labels import Duplicate, LabelPass, Records, labeller
from penstock.connectors.settings import FilesSource, Row
from penstock.engine.errors import Temporary
from penstock.engine.items import Position
from penstock.engine.plan import Split

Table = list[list[str | None]]


def split(ordinal: int) -> Split:
    return Split(f"s{ordinal}", f"o{ordinal}", ordinal, 0, f"f{ordinal}", 0, None, format="openai-batch")


def records_of(table: Table) -> Records:
    def records(split: Split, start: int) -> Iterator[Raw]:
        for at, label in enumerate(table[split.ordinal]):
            if at >= start:
                data = b"rubbish" if label is None else json.dumps({"custom_id": label, "body": {}}).encode()
                yield Raw(Position(split.id, split.ordinal, at), split.object_id, data)

    return records


def naive(table: Table) -> list[Duplicate]:
    first: dict[str, tuple[int, int]] = {}
    found: list[Duplicate] = []
    for ordinal, labels in enumerate(table):
        for at, label in enumerate(labels):
            if label is not None and first.setdefault(label, (ordinal, at)) != (ordinal, at):
                found.append(Duplicate(ordinal, at, *first[label]))
    return found


def label_pass(table: Table, path: Path) -> LabelPass:
    label = labeller("openai-batch", Row())
    assert label is not None
    splits = [split(n) for n in range(len(table))]
    return LabelPass(splits[::-1], records_of(table), label, path)


TABLES = st.lists(st.lists(st.sampled_from(["a", "b", "c", "d", "é", None]), max_size=6), max_size=4)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TABLES, st.integers(1, 7))
def test_the_first_bearer_wins_whatever_the_steps(tmp_path: Path, table: Table, step: int) -> None:
    """What a plain dictionary finds, in the same order; `upto` never passes what was judged."""
    with label_pass(table, tmp_path / "labels.db") as labels:
        found: list[Duplicate] = []
        last = (0, 0)
        while True:
            verdict = labels.advance(step)
            assert verdict.upto >= last
            last = verdict.upto
            found += verdict.duplicates
            assert found == [one for one in naive(table) if (one.ordinal, one.position) < verdict.upto]
            if verdict.done:
                break
        assert found == naive(table)
        assert verdict.seen == sum(map(len, table))
        assert all(last > (ordinal, len(one)) for ordinal, one in enumerate(table))
        assert [one for n in range(len(table)) for one in labels.duplicates(n)] == found
        assert labels.duplicates(1, 2) == [one for one in found if one.ordinal == 1 and one.position >= 2]
    assert not (tmp_path / "labels.db").exists()


def test_an_old_database_is_no_evidence(tmp_path: Path) -> None:
    """After a crash the pass begins anew and finds the same; a file left behind, even a broken one, is replaced."""
    path = tmp_path / "labels.db"
    label_pass([["a", "a"]], path).advance()
    with label_pass([["a", "b"]], path) as labels:
        assert labels.advance().duplicates == []
    path.write_bytes(b"rubbish" * 1000)
    with label_pass([["a"], ["a"]], path) as labels:
        assert labels.advance().duplicates == [Duplicate(1, 0, 0, 0)]


def test_a_failing_source_is_told_and_the_pass_goes_on(tmp_path: Path) -> None:
    """What was read before counts; nothing is judged twice or left out."""
    table: Table = [["a", "b", "a", "c"]]
    broken = [True]

    def records(split: Split, start: int) -> Iterator[Raw]:
        for raw in records_of(table)(split, start):
            if raw.position.position == 2 and broken:
                raise Temporary("away")
            yield raw

    label = labeller("openai-batch", Row())
    assert label is not None
    with LabelPass([split(0)], records, label, tmp_path / "labels.db") as labels:
        assert labels.advance(2).upto == (0, 2)
        with pytest.raises(Temporary):
            labels.advance()
        broken.clear()
        verdict = labels.advance()
        assert (verdict.done, verdict.seen, verdict.duplicates) == (True, 4, [Duplicate(0, 2, 0, 0)])


async def test_rows_are_labelled_by_their_template(tmp_path: Path) -> None:
    """`row.id` is rendered; a row without one bears no label; a job without `row.id` needs no pass."""
    path = tmp_path / "a.csv"
    path.write_text("id,x\n1,a\n,b\n1,c\n,d\n2\n")
    source = FileSource(FilesSource(str(path)))
    splits = await source.splits(1)
    assert labeller("csv", Row()) is None
    label = labeller("csv", Row(id="{{ id }}"))
    assert label is not None
    with LabelPass(splits, source.records, label, tmp_path / "labels.db") as labels:
        (one,) = labels.advance().duplicates
        assert (one.position, one.first_position) == (12, 5)
        assert "position 5" in one.reason("1", "a.csv")


def test_memory_does_not_grow_with_the_input(tmp_path: Path) -> None:
    """Labels live on disk; Python holds one batch."""

    def records(split: Split, start: int) -> Iterator[Raw]:
        for at in range(start, 120_000):
            yield Raw(Position("s", 0, at), "o", b'{"custom_id":"%d"}' % (at % 100_000))

    label = labeller("openai-batch", Row())
    assert label is not None
    with LabelPass([split(0)], records, label, tmp_path / "labels.db") as labels:
        labels.advance(20_000)
        tracemalloc.start()
        found = 0
        while not (verdict := labels.advance(20_000)).done:
            found += len(verdict.duplicates)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert found + len(verdict.duplicates) == 20_000
    assert peak < 20_000_000


def test_odd_labels_bear_nothing() -> None:
    """Not text, empty, unreadable: such records are dead letters for another reason."""
    label = labeller("openai-batch", Row())
    assert label is not None
    place = Position("s", 0, 0)
    for data in (b'{"custom_id":7}', b'{"custom_id":""}', b"{}", b"[]", b"{", b"[" * 10_000, b'{"custom_id":"\xff"}'):
        assert label(Raw(place, "o", data)) is None
    assert label(Raw(place, "o", b'{"custom_id":"a"}', error=("malformed", "x"))) is None
    assert msgspec.json.decode(b'"a"') == label(Raw(place, "o", b'{"custom_id":"a"}'))
