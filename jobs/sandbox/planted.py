"""Models that are right as often as was planted: rehearsals of evaluations and rollouts against a known truth.

Whether an answer is right depends on a stable hash of seed, model and request, so runs repeat, and the same request
gets the same answer. A row's luck is in part common to all models (`common`), as hard rows are hard for everybody.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from penstock.engine.errors import SpecError
from penstock.jobs.sandbox.answers import Ask, instance, last_prompt, plain, split_choices
from penstock.jobs.sandbox.cases import Book, Known, number, true_choice, true_number

_NAME = re.compile(r"planted:(1(?:\.0+)?|0?\.\d{1,6})(?::.*)?")
_TRIES = 20
"""Instances of a schema that are looked at for one that is not the true one."""


class Drift(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A change by so many points after so many of the model's answers (since the start, or `/stats/reset`)."""

    after: int
    by: float
    over: int = 0
    """Answers that it takes, in a straight line; 0: at once."""


class Planted(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The chance that an answer is right, where the truth is known (`cases.py`)."""

    quality: float = 1.0
    tasks: dict[str, float] = {}
    """By the row's task, instead of `quality`."""
    words: dict[str, float] = {}
    """What a text in the request adds to the chance: a better prompt, a kind of row that is harder."""
    common: float = 0.5
    """Share of rows whose luck is the same for all models; paired comparisons profit from it."""
    drift: tuple[Drift, ...] = ()

    def __post_init__(self) -> None:
        if not all(0.0 <= share <= 1.0 for share in (self.quality, self.common, *self.tasks.values())):
            raise ValueError("planted quality and `common` lie between 0 and 1")

    def chance(self, task: str, request: str, served: int) -> float:
        """Of a right answer, after so many answers of this model."""
        moved = sum(step.by * _done(step, served) for step in self.drift)
        added = sum(by for word, by in self.words.items() if word in request)
        return min(1.0, max(0.0, self.tasks.get(task, self.quality) + moved + added))


def _done(step: Drift, served: int) -> float:
    since = served - step.after
    return 0.0 if since < 0 else min(1.0, (since + 1) / step.over) if step.over else 1.0


def by_name(model: str) -> Planted | None:
    """`planted:0.85`, or `planted:0.85:any-name`: the quality stands in the name."""
    found = _NAME.fullmatch(model)
    return None if found is None else Planted(float(found[1]))


def is_right(ask: Ask, known: Known, planted: Planted, served: int, seed: int) -> bool:
    request = "\0".join([plain(ask.system), *(plain(m.content) for m in ask.messages), str(ask.seed or 0)])
    return _luck(str(seed), known.key, ask.model, request, planted.common) < planted.chance(known.task, request, served)


def _luck(seed: str, row: str, model: str, request: str, common: float) -> float:
    if _unit(seed, row, "which") < common:
        return _unit(seed, row, "common")
    return _unit(seed, row, model, request)


def _unit(*parts: str) -> float:
    return number(*parts) / 2**64


def sureness(ask: Ask, key: str, right: bool | None, seed: int) -> float:
    """How sure the model is of this answer, in 0…1. It knows something of itself, and not all: of two chances the
    higher one where it is right, the lower one where it is wrong. `right` None: the truth is not known."""
    one, other = (_unit(str(seed), key, ask.model, f"sure {n}") for n in (1, 2))
    return one if right is None else max(one, other) if right else min(one, other)


def planted_answer(ask: Ask, known: Known, right: bool) -> str:
    """The true answer, or a wrong one of the same form (the same wrong one of every model)."""
    _, choices = split_choices(last_prompt(ask))
    if choices:
        return _choice(known, choices, right)
    if (schema := ask.schema) is not None:
        return msgspec.json.encode(_instance(known, schema, right)).decode()
    if isinstance(known.label, str):
        return known.label if right else "I can't tell."
    value = true_number(known)
    return str(value if right else (value + 1 + number(known.key, "wrong") % 998) % 1_000)


def _choice(known: Known, choices: list[str], right: bool) -> str:
    truth = true_choice(known, choices)
    others = sorted(set(choices) - {truth})
    return truth if right or not others else others[number(known.key, "wrong") % len(others)]


def _instance(known: Known, schema: dict[str, Any], right: bool) -> Any:
    truth = true_instance(known, schema)
    if right:
        return truth
    others = (instance(schema, f"{known.key} wrong {n}", schema) for n in range(_TRIES))
    return next((other for other in others if other != truth), truth)


def true_instance(known: Known, schema: dict[str, Any]) -> Any:
    """The label where there is one, else the instance that the case makes."""
    return instance(schema, known.key, schema) if known.label is msgspec.UNSET else known.label


def true_record(text: str, schema: dict[str, Any]) -> Any:
    """The instance that is right for a made row's text."""
    known = Book().find(text)
    return None if known is None else true_instance(known, schema)


def schema_of(text: bytes, path: str) -> dict[str, Any]:
    """A JSON schema from a file. Raises `SpecError`."""
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise SpecError(f"no JSON schema: {error}", path=path) from error
