"""Committed outputs read back from their files, as far as they are checked (SURFACES: results, dead letters, costs,
quality, review)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from penstock.engine.items import NANO_PER_USD


class Tried(msgspec.Struct, frozen=True):
    n: int
    role: str
    request_id: str | None
    cost_nano: int


class Finished(msgspec.Struct, frozen=True):
    """What a result or dead letter says, as far as it is checked."""

    item_id: str
    key: str
    generation: int = 0
    tried: tuple[Tried, ...] = ()
    cost_nano: int = 0
    maybe_paid: bool = False
    sampled: bool = False


class Line(msgspec.Struct, frozen=True):
    """One line of the costs sink."""

    entry_id: str
    item_id: str | None
    attempt: int
    role: str
    cost_nano: int
    basis: str
    input: int = 0
    output: int = 0
    model: str = ""
    generation: int = 0


class Sample(msgspec.Struct, frozen=True):
    item_id: str
    scorer: str
    passed: bool = False
    role: str = "primary"
    """`shadow`: of another model's answer."""
    model: str = ""
    """With its version."""


class Reviewed(msgspec.Struct, frozen=True):
    """A result in the sink for people."""

    item_id: str
    generation: int = 0


class Outputs(msgspec.Struct, frozen=True):
    """The committed outputs of one run."""

    results: tuple[Finished, ...]
    dead_letters: tuple[Finished, ...] = ()
    costs: tuple[Line, ...] = ()
    quality: tuple[Sample, ...] = ()
    review: tuple[Reviewed, ...] = ()

    @property
    def finished(self) -> tuple[Finished, ...]:
        return self.results + self.dead_letters


class _Attempt(msgspec.Struct, frozen=True):
    n: int
    role: str
    request_id: str | None = None
    cost_usd: float = 0.0


class _Source(msgspec.Struct, frozen=True):
    split: str = ""
    position: int = 0


class _Penstock(msgspec.Struct, frozen=True):
    item_id: str
    generation: int = 0
    attempts: list[_Attempt] = []
    cost_usd: float = 0.0
    maybe_paid: bool = False
    sampled: bool = False
    source: _Source = _Source()
    copied_from: str | None = None
    custom_id: str | None = None


class _Result(msgspec.Struct, frozen=True):
    penstock: _Penstock
    custom_id: str | None = None


class _Dead(msgspec.Struct, frozen=True):
    item_id: str
    custom_id: str | None = None
    generation: int = 0
    attempts: list[_Attempt] = []
    cost_usd: float = 0.0
    maybe_paid: bool = False
    source: _Source = _Source()


class _Tokens(msgspec.Struct, frozen=True):
    input: int = 0
    output: int = 0


class _Cost(msgspec.Struct, frozen=True):
    entry_id: str
    item_id: str | None = None
    attempt: int = 0
    role: str = "primary"
    usd: float = 0.0
    basis: str = "metered"
    tokens: _Tokens = _Tokens()
    model: str = ""


class _Quality(msgspec.Struct, frozen=True):
    item_id: str
    scorer: str = ""
    passed: bool = False
    role: str = "primary"
    model: str = ""
    model_version: str = ""


Key = Literal["custom_id", "position", "item_id"]


def read_outputs(paths: Mapping[str, Sequence[Path]], key: Key | str = "custom_id") -> Outputs:
    """Read committed JSONL files. `paths`: sink name → files, a missing name has none.

    key: what names an item: `custom_id`, `item_id`, `position` (`split@position`), or a kept column of plain rows.
    """
    return Outputs(
        results=tuple(_result(line, key) for line in _lines(paths, "results")),
        dead_letters=tuple(_dead(line, key) for line in _lines(paths, "dead_letters")),
        costs=tuple(_cost(line) for line in _lines(paths, "costs")),
        quality=tuple(
            Sample(q.item_id, q.scorer, q.passed, q.role, f"{q.model}@{q.model_version}")
            for q in (msgspec.json.decode(line, type=_Quality) for line in _lines(paths, "quality"))
        ),
        review=tuple(msgspec.json.decode(line, type=Reviewed) for line in _lines(paths, "review")),
    )


def _lines(paths: Mapping[str, Sequence[Path]], sink: str) -> Iterator[bytes]:
    for path in paths.get(sink, ()):
        with path.open("rb") as file:
            yield from (line for line in file if line.strip())


def _nano(usd: float) -> int:
    return round(usd * NANO_PER_USD)


def _result(line: bytes, key: str) -> Finished:
    record = msgspec.json.decode(line, type=_Result)
    p = record.penstock
    name = _name(line, key, record.custom_id or p.custom_id, p.item_id, p.source)
    return Finished(p.item_id, name, p.generation, _tried(p.attempts), _nano(p.cost_usd), p.maybe_paid, p.sampled)


def _dead(line: bytes, key: str) -> Finished:
    d = msgspec.json.decode(line, type=_Dead)
    name = _name(line, key, d.custom_id, d.item_id, d.source)
    return Finished(d.item_id, name, d.generation, _tried(d.attempts), _nano(d.cost_usd), d.maybe_paid)


def _tried(attempts: Sequence[_Attempt]) -> tuple[Tried, ...]:
    return tuple(Tried(a.n, a.role, a.request_id, _nano(a.cost_usd)) for a in attempts)


def _cost(line: bytes) -> Line:
    c = msgspec.json.decode(line, type=_Cost)
    return Line(
        entry_id=c.entry_id,
        item_id=c.item_id,
        attempt=c.attempt,
        role=c.role,
        cost_nano=_nano(c.usd),
        basis=c.basis,
        input=c.tokens.input,
        output=c.tokens.output,
        model=c.model,
        generation=_generation(c.entry_id),
    )


def _generation(entry_id: str) -> int:
    """Entry ids of calls are `item:generation:attempt`; others (closing adjustments) belong to none."""
    parts = entry_id.split(":")
    return int(parts[1]) if len(parts) == 3 and parts[1].isdigit() else 0


def _name(line: bytes, key: str, custom_id: str | None, item_id: str, source: _Source) -> str:
    match key:
        case "custom_id":
            return custom_id or item_id
        case "item_id":
            return item_id
        case "position":
            return f"{source.split}@{source.position}"
        case column:
            row = msgspec.json.decode(line, type=dict[str, object])
            return str(row.get(column, custom_id or item_id))
