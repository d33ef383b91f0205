"""The rows of an evaluation: labelled ones of the job's source, collected quality samples, or both, with what people
said.

They are written once, in an order that a hash gives: intervals that are looked at while it goes hold for rows drawn at
random, and the first hundred of a file are seldom like the rest. Each row stands there once for each variant.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec

from penstock.connectors.base import Raw
from penstock.connectors.filestore.disk import publish
from penstock.connectors.reading.intake import ENDPOINT, Intake, input_shape
from penstock.connectors.reading.records_from import records_from, to_the_end
from penstock.connectors.registry import open_source
from penstock.connectors.settings import FilesSource
from penstock.connectors.state import open_state
from penstock.engine.catalog import Catalog
from penstock.engine.errors import SpecError
from penstock.engine.fields import expected_json
from penstock.engine.fingerprints import short_hash
from penstock.engine.items import Item
from penstock.engine.policy import Task
from penstock.engine.results import DeadLetter
from penstock.engine.walls import WallUnknown, wall_of
from penstock.jobs.evals.asked import Asked, deciding
from penstock.jobs.history import open_history
from penstock.jobs.look.reading import Outputs
from penstock.jobs.people.labels import Labels, gold, gold_of_requests
from penstock.jobs.people.work import name_of_rows
from penstock.jobs.spec.tree import nearest
from penstock.workers.runspec import RunSpec

Fields = dict[str, Any]

ROW, VARIANT_MARK = "penstock_row", "~"
"""Column that carries the row's number; what parts task and variant, row and variant."""
EXPECTED, TASK = "penstock_expected", "penstock_task"
ASKS = ("min_quality", "max_cost_usd", "tier", "latency", "deadline", "priority")
"""Attributes that would choose among candidates, or hurry: an evaluation asks all of them, in peace."""
CARRIED = ("sensitivity", "tenant", "subject", "unit", "episode", "consent", "purpose")
"""Attributes that a row takes along as they were read, wherever they stood (a header, metadata, a column): walls and
tenants' budgets go by them."""
NONE = "(none)"
"""The slice of rows that lack the column."""
NEEDS_NONE = ("regex", "json_schema", "function", "judge")
"""Scorers that can do without an expected answer."""


class Labelled(msgspec.Struct, frozen=True):
    """One row before it is written. `line`: a row, or an openai-batch request."""

    key: str
    line: Fields
    is_request: bool
    expected: Any
    slices: dict[str, str]
    attributes: dict[str, str] = {}
    """Those of `CARRIED` that it has."""
    by_people: bool = False
    """What is expected is what people said."""
    request: str = ""
    """Hash of what the job asks about it; empty: not known."""
    body: Fields | None = None
    """What the job asks about it, where a row becomes a request: samples beside it are requests."""

    @property
    def as_request(self) -> Labelled:
        if self.body is None:
            return self
        return msgspec.structs.replace(self, line=_request(self.key, self.body), is_request=True, body=None)


class Indexed(msgspec.Struct, frozen=True):
    """What is known of a row beside what models see."""

    row: int
    expected: Any
    slices: dict[str, str] = {}


class Made(msgspec.Struct, frozen=True):
    """`left`: why → rows of the source that are not in it."""

    rows: int
    requests: bool
    labelled_by_people: int
    left: dict[str, int]
    digest: str = ""
    """Of the rows as they were read, and what is expected of them: scores by corrected labels are other scores."""
    parts: dict[str, str] = {}
    """What else answers and scores come from, as `derived.parts_of` tells it."""
    paid_nano: int = 0
    """What earlier evaluations of this name had spent when these rows were written."""
    replaces: float | None = None
    """When the run had started that is to begin anew with these rows; None: there was none."""


def _place(line: Fields) -> int:
    """By what the row says, not by where it lies: whoever evaluates the same rows elsewhere asks the same ones."""
    return int(short_hash(b"eval " + msgspec.json.encode(line, order="deterministic")), 16)


class _Keeper:
    """Takes rows as they are read, and keeps those that can be scored: of `most`, the first in the order by chance."""

    def __init__(self, task: Task, asked: Asked, people: _People) -> None:
        """What only another scorer than the one that decides could score would be paid for in vain."""
        kind = deciding(task, asked.scorer).type
        self._needs_expected, self._needs_fields = kind not in NEEDS_NONE, kind == "fields"
        self._people = people
        self._most = asked.rows
        self._beside = asked.beside
        self._heap: list[tuple[int, str, Labelled]] = []
        self._asked = set[str]()
        """Requests of rows, where samples may say the same."""
        self.left = Counter[str]()

    def add(self, row: Labelled) -> None:
        row = self._people.joined(row)
        if row.expected is None and self._needs_expected:
            self.left["without an expected answer"] += 1
            return
        if self._needs_fields and expected_json(row.expected) is None:
            self.left["whose expected answer is no JSON object or list"] += 1
            return
        row = row.as_request
        if self._beside:
            self._asked.add(_told(row))
        place = -_place(row.line)  # a heap has its smallest on top: the last in order
        if self._most is None or len(self._heap) < self._most:
            heapq.heappush(self._heap, (place, row.key, row))
        else:
            self.left["beyond --rows"] += 1
            heapq.heappushpop(self._heap, (place, row.key, row))

    def add_sample(self, row: Labelled) -> None:
        if self._beside and _told(row) in self._asked:
            self.left["that are samples of rows that are there"] += 1
        else:
            self.add(row)

    def rows(self) -> list[Labelled]:
        return [row for _, _, row in sorted(self._heap, key=lambda each: (-each[0], each[1]))]


class Gathered(NamedTuple):
    rows: list[Labelled]
    left: dict[str, int]

    @property
    def digest(self) -> str:
        told = ([row.line, row.expected] for row in self.rows)
        return short_hash(b"".join(msgspec.json.encode(each, order="deterministic") for each in told))


def gather(spec: RunSpec, asked: Asked, outputs: Outputs | None) -> Gathered:
    """The rows as they are now. Raises `SpecError` where none can be scored, and what reading the source raises."""
    keeper = _Keeper(spec.policy.tasks[asked.task], asked, _People(spec))
    if outputs is None or asked.beside:
        asyncio.run(_read(spec, asked, keeper))
    if outputs is not None:
        _samples(outputs, spec.catalog, asked, keeper)
    rows = keeper.rows()
    if not rows:
        why = ", ".join(f"{n:,} {reason}" for reason, n in keeper.left.items()) or "the source is empty"
        raise SpecError(f"no row of task {asked.task} can be scored ({why})")
    _check_slices(rows, asked.slices)
    return Gathered(rows, dict(keeper.left))


def _check_slices(rows: Iterable[Labelled], names: Iterable[str]) -> None:
    """A column that no row has is a slip, not a slice."""
    unseen = set(names)
    known = dict[str, None]()
    for row in rows:
        unseen -= {name for name, value in row.slices.items() if value != NONE}
        known |= dict.fromkeys((row.line["body"].get("metadata") or {}) if row.is_request else row.line)
    for name in sorted(unseen):
        raise SpecError(f"--slice {name}: no row has that column or attribute{nearest(name, known.keys() - {name})}")


def write(place: Path, gathered: Gathered, asked: Asked) -> Made:
    """`rows.jsonl` and `index.jsonl`."""
    rows = gathered.rows
    place.mkdir(parents=True, exist_ok=True)
    place.chmod(0o700)  # texts of rows stand there, and answers
    lines = (line_of(row, n, asked.task, variant) for n, row in enumerate(rows) for variant in asked.variants)
    index = (Indexed(n, row.expected, row.slices) for n, row in enumerate(rows))
    publish(place / "index.jsonl", b"".join(msgspec.json.encode(each) + b"\n" for each in index))
    publish(place / "rows.jsonl", b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    by_people = sum(row.by_people for row in rows)
    return Made(len(rows), rows[0].is_request, by_people, gathered.left, gathered.digest)


def line_of(row: Labelled, number: int, task: str, variant: str) -> Fields:
    name = f"{number}{VARIANT_MARK}{variant}"
    if not row.is_request:
        told = {column_of(attribute): row.attributes.get(attribute) for attribute in CARRIED}
        return {**row.line, ROW: name, TASK: task_name(task, variant), EXPECTED: row.expected, **told}
    body: Fields = dict(row.line["body"])
    metadata: Fields = {k: v for k, v in (body.get("metadata") or {}).items() if not _is_asking(k)}
    metadata |= {f"penstock-{attribute}": value for attribute, value in row.attributes.items()}
    metadata["penstock-task"] = task_name(task, variant)
    if row.expected is not None:
        metadata["penstock-expected"] = row.expected
    return {**row.line, "custom_id": name, "body": {**body, "model": "auto", "metadata": metadata}}


def column_of(attribute: str) -> str:
    return f"penstock_{attribute}"


def _is_asking(key: str) -> bool:
    name = key.removeprefix("penstock-").replace("-", "_")
    return name in (*ASKS, "expected", "task")


def task_name(task: str, variant: str) -> str:
    return f"{task}{VARIANT_MARK}{variant}" if variant else task


def index_of(place: Path) -> list[Indexed]:
    decoder = msgspec.json.Decoder(Indexed)
    with (place / "index.jsonl").open("rb") as file:
        return [decoder.decode(line) for line in file]


# ---- where rows come from


async def _read(spec: RunSpec, asked: Asked, keeper: _Keeper) -> None:
    """The job's source, row by row, as its own intake reads it."""
    source = open_source(to_the_end(spec.source))
    intakes: dict[str, Intake] = {}
    async for split, records in records_from(source, await source.splits(1), {}):
        shape = input_shape(split.format)
        if shape not in intakes:
            intakes[shape] = Intake(spec.run_id, shape, spec.row, spec.policy, spec.catalog.models, 0, spec.vars)
        for raw in records:
            item = intakes[shape].item(raw, 0.0)
            if isinstance(item, DeadLetter):
                keeper.left[f"malformed ({item.reason})"] += 1
            elif (item.attributes.task or spec.policy.default_task) != asked.task:
                keeper.left["of another task"] += 1
            elif (why := _hidden(spec.catalog, item.attributes.sensitivity)) is not None:
                keeper.left[why] += 1
            else:
                keeper.add(labelled(item, raw, asked))


def _hidden(catalog: Catalog, sensitivity: str | None) -> str | None:
    """Why no copy of its text may stand in the state, as those of an evaluation do: its rows, and what was answered.
    None: they may."""
    wall = wall_of(catalog, sensitivity)
    if isinstance(wall, WallUnknown):
        return "whose sensitivity names no wall"
    return f"behind a wall that says sample: {wall.sample}" if wall is not None and wall.sample != "keep" else None


def labelled(item: Item, raw: Raw, asked: Asked) -> Labelled:
    line = msgspec.json.decode(raw.row_json or raw.data, type=Fields)
    expected_json = item.attributes.expected_json
    expected: Any = None if expected_json is None else msgspec.json.decode(expected_json)
    carried = {name: value for name in CARRIED if (value := getattr(item.attributes, name)) is not None}
    slices, request = _slices(line, item, asked.slices), item.request.input_hash
    beside = asked.beside and not item.is_request
    body = msgspec.json.decode(item.request.body_json, type=Fields) if beside else None
    return Labelled(item.item_id, line, item.is_request, expected, slices, carried, request=request, body=body)


def _slices(line: Fields, item: Item, names: Iterable[str]) -> dict[str, str]:
    """By a column of the row, a key of the request's metadata, or an attribute of the item."""
    body: Any = line.get("body")
    metadata: Any = body.get("metadata") if item.is_request and isinstance(body, dict) else None
    places: tuple[Mapping[str, Any], ...] = (line, cast("Fields", metadata) if isinstance(metadata, dict) else {})
    found: dict[str, str] = {}
    for name in names:
        value = next((place[name] for place in places if name in place), getattr(item.attributes, name, None))
        found[name] = (
            NONE if value is None else value if isinstance(value, str) else msgspec.json.encode(value).decode()
        )
    return found


class _SampleTold(msgspec.Struct, frozen=True):
    item_id: str
    task: str | None = None
    input: Any = None
    expected: Any = None
    sensitivity: str | None = None
    wall: str | None = None


_sample = msgspec.json.Decoder(_SampleTold)


def _samples(outputs: Outputs, catalog: Catalog, asked: Asked, keeper: _Keeper) -> None:
    """Quality samples of the job's run, each once, as requests, behind the walls that the job has now."""
    taken: set[str] = set()
    left: dict[str, str] = {}
    for line in outputs.records("quality"):
        sample = _sample.decode(line)
        if sample.item_id in taken:
            continue
        why = "of another task" if sample.task != asked.task else _unusable(sample, catalog)
        if why is not None:
            left[sample.item_id] = why
        else:
            taken.add(sample.item_id)
            left.pop(sample.item_id, None)  # another record of it was too large for its sink, and came without
            keeper.add_sample(_of_sample(sample, asked))
    keeper.left.update(left.values())


def _unusable(sample: _SampleTold, catalog: Catalog) -> str | None:
    if sample.input is None:
        return "redacted by their wall"
    if sample.sensitivity is None and sample.wall is None and catalog.walls:
        return "that don't say their sensitivity (an older release, or a job without walls, wrote them)"
    return _hidden(catalog, sample.sensitivity)


def _of_sample(sample: _SampleTold, asked: Asked) -> Labelled:
    carried = {} if sample.sensitivity is None else {"sensitivity": sample.sensitivity}
    request, slices = _request(sample.item_id, sample.input), dict.fromkeys(asked.slices, NONE)
    return Labelled(sample.item_id, request, True, sample.expected, slices, carried)


def _request(key: str, body: Any) -> Fields:
    return {"custom_id": key, "method": "POST", "url": ENDPOINT, "body": body}


def _told(row: Labelled) -> str:
    """Equal for a request and the sample of it, which keeps nothing but what was asked."""
    body = {name: value for name, value in row.line["body"].items() if name not in ("model", "metadata")}
    return short_hash(msgspec.json.encode(body, order="deterministic"))


class _People:
    """What people said: of the run's items, of the rows of its one file, and of the same questions in other runs of the
    job (yesterday's, of another file). It beats what the row says."""

    def __init__(self, spec: RunSpec) -> None:
        state = open_state(spec.state)
        self._items = gold(Labels(state, spec.run_id).said())
        path = spec.source.path if isinstance(spec.source, FilesSource) else None
        self._rows = gold(Labels(state, name_of_rows(path)).said()) if path is not None else {}
        runs = [run.run_id for run in open_history(spec.state).runs() if run.name == spec.name]
        self._requests = gold_of_requests(Labels(state, run_id).said() for run_id in runs)

    def joined(self, row: Labelled) -> Labelled:
        said = self._items.get(row.key)
        if said is None and self._rows and not row.is_request:
            said = self._rows.get(f"row-{short_hash(msgspec.json.encode(row.line, order='deterministic'))}")
        if said is None and row.request:
            said = self._requests.get(row.request)
        return row if said is None else msgspec.structs.replace(row, expected=said, by_people=True)
