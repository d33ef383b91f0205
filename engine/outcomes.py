"""What was learned later: satisfaction, task completion, errors that were reported, joined to results.

An outcome belongs to an item or to an episode (several items of one conversation, say). It is known by
(whose, metric, its `id` or `at`), so the same one told again counts once. Of several about the same item and metric the
latest counts: somebody changed their mind.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import NamedTuple

import msgspec

from penstock.engine.measure.intervals import anytime_interval
from penstock.engine.measure.moments import asymptotic_interval, moments_of
from penstock.engine.measure.sample import sample_of
from penstock.engine.quality import Interval

MAX_NAME = 200
"""Characters of an id or a metric's name."""


class Outcome(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """`at`, `received_at`: ISO 8601 in UTC with milliseconds, so that text order is time order."""

    metric: str
    value: float
    at: str
    item_id: str | None = None
    episode: str | None = None
    id: str | None = None
    said_at: bool = True
    """False: nobody said when, and `at` is when it was received; the value then tells it from others."""
    received_at: str = ""

    @property
    def whose(self) -> tuple[str, str]:
        return ("item", self.item_id) if self.item_id is not None else ("episode", self.episode or "")

    @property
    def key(self) -> bytes:
        """The same for the same outcome told again."""
        named = f"id {self.id}" if self.id is not None else f"at {self.at}" if self.said_at else f"value {self.value!r}"
        return blake2b("\0".join((*self.whose, self.metric, named)).encode(), digest_size=16).digest()


def wrong(outcome: Outcome) -> str | None:
    """Why an outcome can't be taken; None: it can."""
    if (outcome.item_id is None) == (outcome.episode is None):
        return "it needs `item_id` or `episode`, one of them"
    if not math.isfinite(outcome.value):
        return "`value` is not a finite number"
    names = (*outcome.whose, outcome.metric, outcome.id or "-")
    if not all(0 < len(name) <= MAX_NAME for name in names):
        return f"its names have 1 to {MAX_NAME} characters"
    return None


class Finished(NamedTuple):
    """A result that outcomes are joined to. `target`: model and version, with the arm of an experiment."""

    item_id: str
    episode: str | None
    task: str
    target: str


class CellOf(NamedTuple):
    metric: str
    task: str
    target: str


class Cell(msgspec.Struct, frozen=True):
    """`n` items, or episodes, with an outcome. `interval`: valid whenever it is looked at where all values lie between
    0 and 1, else approximate and from 50 on; None: too few."""

    n: int
    mean: float
    interval: Interval | None


class Joined(msgspec.Struct, frozen=True):
    """Counts are outcomes. `late`: they came after the run's end (and count)."""

    cells: dict[CellOf, Cell]
    items: dict[tuple[str, str], int]
    """(task, target) → results."""
    counted: int = 0
    unknown: int = 0
    """Of no result of this run: it has not finished yet, died, or belongs to another run."""
    late: int = 0
    repeated: int = 0
    contradicted: int = 0
    """The same outcome with another value: the first one stands."""
    superseded: int = 0
    """A later one about the same item and metric counts."""


class Outcomes:
    """Takes outcomes in any order, then joins them. Memory: some 300 bytes an outcome."""

    def __init__(self) -> None:
        self._first: dict[bytes, float] = {}
        self._latest: dict[tuple[str, str], dict[str, Outcome]] = {}
        self.repeated = self.contradicted = self.superseded = 0

    def add(self, outcome: Outcome) -> bool:
        """Whether it was new."""
        key = outcome.key
        if key in self._first:
            same = self._first[key] == outcome.value
            self.repeated += same
            self.contradicted += not same
            return False
        self._first[key] = outcome.value
        of = self._latest.setdefault(outcome.whose, {})
        before = of.get(outcome.metric)
        self.superseded += before is not None
        if before is None or outcome.at >= before.at:
            of[outcome.metric] = outcome
        return True

    def join(self, results: Iterable[Finished], ended_at: str | None = None) -> Joined:
        """`ended_at`: when the run ended; None: it goes on."""
        values: dict[CellOf, list[float]] = {}
        items: dict[tuple[str, str], int] = {}
        seen: set[tuple[tuple[str, str], str, str]] = set()
        found: set[tuple[str, str]] = set()
        for result in results:
            items[result.task, result.target] = items.get((result.task, result.target), 0) + 1
            for whose, outcomes in self._of(result):
                found.add(whose)
                if (whose, result.task, result.target) in seen:
                    continue
                seen.add((whose, result.task, result.target))
                for outcome in outcomes:
                    cell = CellOf(outcome.metric, result.task, result.target)
                    values.setdefault(cell, []).append(outcome.value)
        joined = [outcome for whose in found for outcome in self._latest[whose].values()]
        every = sum(map(len, self._latest.values()))
        late = sum(ended_at is not None and outcome.received_at > ended_at for outcome in joined)
        cells = {cell: _cell(each) for cell, each in sorted(values.items())}
        counts = (len(joined), every - len(joined), late, self.repeated, self.contradicted, self.superseded)
        return Joined(cells, items, *counts)

    def _of(self, result: Finished) -> Iterator[tuple[tuple[str, str], Iterable[Outcome]]]:
        for whose in (("item", result.item_id), ("episode", result.episode or "")):
            if whose in self._latest:
                yield whose, self._latest[whose].values()


def _cell(values: list[float]) -> Cell:
    seen = moments_of(values)
    unit = all(0.0 <= value <= 1.0 for value in values)
    return Cell(seen.n, seen.mean, anytime_interval(sample_of(values)) if unit else asymptotic_interval(seen))
