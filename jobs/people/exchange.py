"""Labels out and in as JSON lines or CSV, so that another labelling tool can be used."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from penstock.engine.errors import SpecError
from penstock.engine.texts import normal
from penstock.jobs.people.labels import Label, Said, standing
from penstock.jobs.people.review import Asked


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
    output_hash: str = ""
    """Of the answer that stands here, or that the label speaks of."""


COLUMNS = Line.__struct_fields__
SAID = ("item_id", "label", "score", "note", "by", "at", "output_hash")
"""What is read of a line. The rest shows the item, in any form: a record of the review sink is such a line too."""


def lines(items: Sequence[Asked], said: Said) -> Iterator[Line]:
    """Every item, with each person's label, or open. `said`: of the answers that the items have."""
    by_item: dict[str, list[Label]] = {}
    for (item, _), label in sorted(said.items()):
        by_item.setdefault(item, []).append(label)
    for item in items:
        shown = (item.item_id, item.task, " | ".join(item.why), item.input, item.answer, item.model)
        choices = " | ".join(item.choices)
        labels = by_item.pop(item.item_id, [])
        for label in labels:
            yield Line(*shown, choices, label.label, label.score, label.note, label.by, label.at, item.output_hash)
        if not labels:
            yield Line(*shown, choices, output_hash=item.output_hash)
    for label in (label for labels in by_item.values() for label in labels):
        of = {"by": label.by, "at": label.at, "output_hash": label.output_hash}
        yield Line(label.item_id, label=label.label, score=label.score, note=label.note, **of)


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


def read(path: Path, by: str, at: str, items: Sequence[Asked] = ()) -> Read:
    """Labels of a file that another tool wrote. `by`, `at`: where a line says neither. `items`: what may be said of
    each, which a label has to be, however it is spelled."""
    known = {item.item_id: item for item in items}
    labels: list[Label] = []
    wrong: list[str] = []
    left = 0
    for number, row in enumerate(_rows(path), 1):
        line = _line(row, known)
        if isinstance(line, str):
            wrong.append(f"line {number}: {line}")
        elif line.label is None and line.score is None:
            left += 1
        else:
            labels.append(_label(line, known.get(line.item_id), by, at))
    return Read(tuple(labels), left, tuple(wrong))


def _label(line: Line, item: Asked | None, by: str, at: str) -> Label:
    request, of = item.request if item is not None else "", line.output_hash if line.score is not None else ""
    who, when = line.by or by, line.at or at
    return Label(line.item_id, who, when, line.label, line.score, line.note, request=request, output_hash=of)


def _rows(path: Path) -> Iterator[dict[str, Any] | str]:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".csv":
        yield from csv.DictReader(io.StringIO(text, newline=""))
        return
    for line in text.split("\n"):  # no other cut: a string of JSON may hold any other character that ends lines
        if line.strip():
            try:
                yield msgspec.json.decode(line, type=dict[str, Any])
            except msgspec.DecodeError as error:
                yield str(error)


def _line(row: dict[str, Any] | str, known: Mapping[str, Asked]) -> Line | str:
    """The line, or why it is none."""
    if isinstance(row, str):
        return row
    filled = {name: value for name, value in row.items() if name in SAID and value not in ("", None)}
    try:
        line = msgspec.convert(filled, Line, strict=False)
    except msgspec.ValidationError as error:
        return str(error)
    if line.score is not None and not 0.0 <= line.score <= 1.0:
        return f"a score lies between 0 and 1, not at {line.score:g}"
    item = known.get(line.item_id)
    return line if item is None or not item.choices else _chosen(line, item.choices)


def _chosen(line: Line, choices: tuple[str, ...]) -> Line | str:
    """As the choice is spelled."""
    if line.label is None:
        return line
    meant = next((choice for choice in choices if normal(choice) == normal(line.label)), None)
    if meant is None:
        return f"the label {line.label!r} is none of the choices: {', '.join(choices)}"
    return msgspec.structs.replace(line, label=meant)


def new(read_: Read, history: Sequence[Label]) -> list[Label]:
    """Those that change what stands. An old export, brought in again, changes nothing: what it says was said at the
    very same time. Of several of one person about one item the file's last counts."""
    stands = standing(history)
    said = {(_content(label), label.at) for label in history if not label.withdrawn}
    last = {(label.item_id, label.by): label for label in read_.labels}
    return [
        label
        for place, label in last.items()
        if not _is_said(label, stands.get(place)) and (_content(label), label.at) not in said
    ]


def _is_said(label: Label, before: Label | None) -> bool:
    """The same stands already, of the same answer."""
    return before is not None and _content(before) == _content(label) and before.counts_for(label.output_hash)


def _content(label: Label) -> tuple[str, str, str | None, float | None, str]:
    return label.item_id, label.by, label.label, label.score, label.note
