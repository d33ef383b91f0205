"""What was learned later: satisfaction, task completion, errors that were reported, joined to results.

An outcome belongs to an item or to an episode (several items of one conversation, say). It is known by
(whose, metric, its `id` or `at`), so the same one told again counts once. Of several about the same item and metric the
latest counts: somebody changed their mind.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

import msgspec
import numpy as np

from penstock.engine.measure.intervals import anytime_interval
from penstock.engine.measure.moments import Moments, asymptotic_interval, merge_moments, moments_of
from penstock.engine.measure.sample import Sample, merge, sample_of
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
    """A result that outcomes are joined to. `target`: model and version, with the arm of an experiment. `since`,
    `until`: of an item that was answered anew, when this answer stood, as outcomes write the time; empty: always
    before, always after."""

    item_id: str
    episode: str | None
    task: str
    target: str
    since: str = ""
    until: str = ""

    def stood(self, at: str) -> bool:
        return self.since <= at and (not self.until or at < self.until)


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
    results: int = 0
    """That they speak of, each once; those of an episode all."""


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


class Sums(NamedTuple):
    """Of one cell. `sample` None: some value lies outside 0…1."""

    moments: Moments
    sample: Sample | None
    results: int


class Part(NamedTuple):
    """What `Outcomes` joined to results; parts of one division are added up by `together`."""

    cells: dict[CellOf, Sums]
    items: dict[tuple[str, str], int]
    counts: tuple[int, ...]
    """As `Joined` has them, in its order."""


class Outcomes:
    """Takes outcomes in any order, then joins them. Memory: some 300 bytes an outcome; of a large number, one part of
    `parts` at a time: all about one item or episode are in one part. Of those in other parts each item and metric is
    known, in 8 bytes: so a result whose item and episode both have an outcome is counted for its item alone."""

    def __init__(self, part: int = 0, parts: int = 1) -> None:
        self._part, self._parts = part, parts
        self._first: dict[bytes, float] = {}
        self._latest: dict[tuple[str, str], dict[str, Outcome]] = {}
        self._elsewhere = Items()
        self._repeated = self._contradicted = self._superseded = 0

    def add(self, outcome: Outcome) -> None:
        """Of another part: it is left out, and what it is about is remembered."""
        whose = outcome.whose
        if self._parts > 1 and zlib.crc32("\0".join(whose).encode()) % self._parts != self._part:
            if outcome.item_id is not None:
                self._elsewhere.add(outcome.item_id, outcome.metric)
            return
        key = outcome.key
        if key in self._first:
            same = self._first[key] == outcome.value
            self._repeated += same
            self._contradicted += not same
            return
        self._first[key] = outcome.value
        of = self._latest.setdefault(whose, {})
        before = of.get(outcome.metric)
        self._superseded += before is not None
        if before is None or outcome.at >= before.at:
            of[outcome.metric] = outcome

    def join(self, results: Iterable[Finished], ended_at: str | None = None) -> Part:
        """`ended_at`: when the run ended; None: it goes on."""
        values: dict[CellOf, list[float]] = {}
        spoken: Counter[CellOf] = Counter()
        items: dict[tuple[str, str], int] = {}
        seen: set[tuple[tuple[str, str], CellOf]] = set()
        found: set[tuple[str, str]] = set()
        for result in results:
            items[result.task, result.target] = items.get((result.task, result.target), 0) + 1
            for whose, outcomes in self._of(result):
                found.add(whose)
                for outcome in outcomes:
                    if not result.stood(outcome.at):
                        continue
                    cell = CellOf(outcome.metric, result.task, result.target)
                    spoken[cell] += whose[0] == "item" or not self._has(result.item_id, outcome.metric)
                    if (whose, cell) not in seen:
                        seen.add((whose, cell))
                        values.setdefault(cell, []).append(outcome.value)
        joined = [outcome for whose in found for outcome in self._latest[whose].values()]
        every = sum(map(len, self._latest.values()))
        late = sum(ended_at is not None and outcome.received_at > ended_at for outcome in joined)
        counts = (len(joined), every - len(joined), late, self._repeated, self._contradicted, self._superseded)
        return Part({cell: _sums(each, spoken[cell]) for cell, each in values.items()}, items, counts)

    def _has(self, item_id: str, metric: str) -> bool:
        """Some outcome, in whatever part."""
        return metric in self._latest.get(("item", item_id), {}) or self._elsewhere.has(item_id, metric)

    def _of(self, result: Finished) -> Iterator[tuple[tuple[str, str], Iterable[Outcome]]]:
        for whose in (("item", result.item_id), ("episode", result.episode or "")):
            if whose in self._latest:
                yield whose, self._latest[whose].values()


class Items:
    """Items that have an outcome of a metric: a hash of 8 bytes each, sorted, and the newest apart."""

    NEWEST = 65_536
    """Then they are sorted in."""

    def __init__(self) -> None:
        self._hashes = np.empty(0, dtype=np.uint64)
        self._new: set[int] = set()

    def add(self, item_id: str, metric: str) -> None:
        self._new.add(_hash(item_id, metric))
        if len(self._new) >= self.NEWEST:
            self._hashes = np.union1d(self._hashes, np.array(list(self._new), dtype=np.uint64))
            self._new = set()

    def has(self, item_id: str, metric: str) -> bool:
        wanted = _hash(item_id, metric)
        at = int(np.searchsorted(self._hashes, np.uint64(wanted)))
        return wanted in self._new or (at < len(self._hashes) and int(self._hashes[at]) == wanted)


def _hash(item_id: str, metric: str) -> int:
    return int.from_bytes(blake2b(f"{item_id}\0{metric}".encode(), digest_size=8).digest(), "big")


def together(parts: Sequence[Part]) -> Joined:
    """Of all parts of one division, each joined to the same results."""
    cells: dict[CellOf, Sums] = {}
    for part in parts:
        for cell, sums in part.cells.items():
            before = cells.get(cell)
            cells[cell] = sums if before is None else _added(before, sums)
    counts = (sum(each) for each in zip(*(part.counts for part in parts), strict=True))
    return Joined({cell: _cell(cells[cell]) for cell in sorted(cells)}, parts[0].items, *counts)


def _sums(values: list[float], results: int) -> Sums:
    unit = all(0.0 <= value <= 1.0 for value in values)
    return Sums(moments_of(values), sample_of(values) if unit else None, results)


def _added(a: Sums, b: Sums) -> Sums:
    sample = None if a.sample is None or b.sample is None else merge(a.sample, b.sample)
    return Sums(merge_moments(a.moments, b.moments), sample, a.results + b.results)


def _cell(sums: Sums) -> Cell:
    seen, sample, results = sums
    around = anytime_interval(sample) if sample is not None else asymptotic_interval(seen)
    return Cell(seen.n, seen.mean, around, results)


# ---- which are known


class Keys:
    """Which outcomes were taken, and with what value first: 24 bytes each, sorted, and the newest apart."""

    NEWEST = 65_536
    """Then they are sorted in: that moves all of the others."""

    def __init__(self) -> None:
        self._keys = np.empty(0, dtype="S16")
        self._values = np.empty(0, dtype=np.float64)
        self._new: dict[bytes, float] = {}

    def add(self, outcome: Outcome) -> float | None:
        """None: it was new, and is known from now on; else the value that it had first."""
        key = outcome.key
        first = self._new[key] if key in self._new else self._among(key)
        if first is None:
            self._new[key] = outcome.value
            if len(self._new) >= self.NEWEST:
                self._sort_in()
        return first

    def _among(self, key: bytes) -> float | None:
        bare = key.rstrip(b"\0")  # as numpy reads and compares them
        at = int(np.searchsorted(self._keys, np.bytes_(bare)))
        return float(self._values[at]) if at < len(self._keys) and self._keys[at] == bare else None

    def _sort_in(self) -> None:
        order = sorted(self._new)
        keys = np.array(order, dtype="S16")
        at = np.searchsorted(self._keys, keys)
        self._keys = np.insert(self._keys, at, keys)
        self._values = np.insert(self._values, at, np.array([self._new[key] for key in order]))
        self._new = {}

    def __len__(self) -> int:
        return len(self._keys) + len(self._new)
