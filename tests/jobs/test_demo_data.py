"""The demo's rows are real text with true labels, the same at every run."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.jobs import demo_data


def test_the_rows_are_the_same_at_every_run(tmp_path: Path) -> None:
    """Two runs write the same bytes: a resume finds its input unchanged."""
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    n = demo_data.write(first, demo_data.rows(demo_data.installed()))
    demo_data.write(second, demo_data.rows(demo_data.installed()))
    assert first.read_bytes() == second.read_bytes()
    assert n == len(first.read_bytes().splitlines())


def test_there_are_enough_rows_of_every_kind_and_ids_are_unique() -> None:
    """A few hundred rows; all tiers have work; every topic row has a true label."""
    rows = demo_data.rows(demo_data.installed())
    assert len(rows) > 150
    assert {row.kind for row in rows} == {"topic", "shorten", "rewrite"}
    assert len({row.id for row in rows}) == len(rows)
    assert all((row.label in demo_data.TOPICS) == (row.kind == "topic") for row in rows)
    assert all(row.text and len(row.text) <= 900 for row in rows)


def test_rows_are_read_back_as_json_lines(tmp_path: Path) -> None:
    """What is written is one JSON object a line."""
    path = tmp_path / "rows.jsonl"
    rows = demo_data.rows(demo_data.installed(), kinds=("topic",))
    demo_data.write(path, rows)
    assert [msgspec.json.decode(line, type=demo_data.Row) for line in path.read_bytes().splitlines()] == rows


@pytest.mark.parametrize(
    ("classifiers", "topic"),
    [
        (["Topic :: Internet :: WWW/HTTP"], "web"),
        (["Topic :: Software Development :: Libraries", "Topic :: Text Processing :: Markup"], "text"),
        (["Topic :: Software Development :: Libraries"], None),
        (["Topic :: Internet", "Topic :: System"], None),
        (["Topic :: Security :: Cryptography"], None),
        (["Topic :: Security", "Topic :: Internet"], None),
        (["Programming Language :: Python"], None),
    ],
)
def test_a_label_is_one_clear_topic_or_none(classifiers: list[str], topic: str | None) -> None:
    """Vague and double topics are no label: the score would be of our mapping, not of the model."""
    assert demo_data.topic_of(classifiers) == topic


@given(st.text(max_size=3000))
def test_any_description_gives_bounded_prose(description: str) -> None:
    """Whatever a package writes, passages are few, bounded and without newlines."""
    found = demo_data.passages_of(description)
    assert len(found) <= 4
    assert all(len(text) <= 900 and "\n" not in text for text in found)
