"""Labels out and in as JSON lines or CSV, so that another labelling tool can be used."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from penstock.engine.errors import SpecError
from penstock.jobs.people.labels import Label, Said
from penstock.jobs.people.review import Asked

COLUMNS = ("item_id", "task", "why", "input", "answer", "model", "choices", "label", "score", "note", "by", "at")


class Line(msgspec.Struct, frozen=True):
    """One label, or (with `by` empty) one item that nobody labelled yet. Lists stand in one text, parted by ` | `."""

    item_id: str
    task: str = ""
    why: str = ""
    input: str = ""
    answer: str = ""
    model: str = ""
    choices: str = ""
    label: str | None = None
    score: float | None = None
    note: str = ""
    by: str = ""
    at: str = ""


def lines(items: Sequence[Asked], said: Said) -> Iterator[Line]:
    """Every item, with each person's label, or open."""
    by_item: dict[str, list[Label]] = {}
    for (item, _), label in sorted(said.items()):
        by_item.setdefault(item, []).append(label)
    for item in items:
        shown = (item.item_id, item.task, " | ".join(item.why), item.input, item.answer, item.model)
        choices = " | ".join(item.choices)
        labels = by_item.pop(item.item_id, [])
        for label in labels:
            yield Line(*shown, choices, label.label, label.score, label.note, label.by, label.at)
        if not labels:
            yield Line(*shown, choices)
    for label in (label for labels in by_item.values() for label in labels):
        yield Line(label.item_id, label=label.label, score=label.score, note=label.note, by=label.by, at=label.at)


def write(path: Path, told: Iterable[Line]) -> int:
    """Returns how many. Raises `SpecError` for a file that is there already."""
    count = 0
    try:
        with path.open("x", encoding="utf-8", newline="") as file:
            out = csv.writer(file) if path.suffix == ".csv" else None
            if out is not None:
                out.writerow(COLUMNS)
            for line in told:
                count += 1
                if out is not None:
                    out.writerow("" if value is None else value for value in msgspec.structs.astuple(line))
                else:
                    file.write(msgspec.json.encode(line).decode() + "\n")
    except FileExistsError as error:
        raise SpecError(f"{path} is already there; give another name") from error
    return count


class Read(msgspec.Struct, frozen=True):
    """`open`: lines without a label. `wrong`: why → lines."""

    labels: tuple[Label, ...]
    open: int = 0
    wrong: tuple[str, ...] = ()


def read(path: Path, by: str, at: str) -> Read:
    """Labels of a file that another tool wrote. `by`, `at`: where a line says neither."""
    labels: list[Label] = []
    wrong: list[str] = []
    left = 0
    for number, row in enumerate(_rows(path), 1):
        line = _line(row)
        if isinstance(line, str):
            wrong.append(f"line {number}: {line}")
        elif line.label is None and line.score is None:
            left += 1
        else:
            labels.append(Label(line.item_id, line.by or by, line.at or at, line.label, line.score, line.note))
    return Read(tuple(labels), left, tuple(wrong))


def _rows(path: Path) -> Iterator[dict[str, Any] | str]:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".csv":
        yield from csv.DictReader(io.StringIO(text, newline=""))
        return
    for line in text.splitlines():
        if line.strip():
            try:
                yield msgspec.json.decode(line, type=dict[str, Any])
            except msgspec.DecodeError as error:
                yield str(error)


def _line(row: dict[str, Any] | str) -> Line | str:
    """The line, or why it is none."""
    if isinstance(row, str):
        return row
    filled = {name: value for name, value in row.items() if name in COLUMNS and value not in ("", None)}
    try:
        line = msgspec.convert(filled, Line, strict=False)
    except msgspec.ValidationError as error:
        return str(error)
    if line.score is not None and not 0.0 <= line.score <= 1.0:
        return f"a score lies between 0 and 1, not at {line.score:g}"
    return line


def new(read_: Read, history: Iterable[Label]) -> list[Label]:
    """Those that were not said before, word for word (the time does not count)."""
    known = {_content(label) for label in history if not label.withdrawn}
    fresh: list[Label] = []
    for label in read_.labels:
        if _content(label) not in known:
            known.add(_content(label))
            fresh.append(label)
    return fresh


def _content(label: Label) -> tuple[str, str, str | None, float | None, str]:
    return label.item_id, label.by, label.label, label.score, label.note
