"""Several candidates over the same rows: their scores, and how each two differ row by row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

import msgspec

from penstock.engine.errors import SpecError
from penstock.engine.measure.betting import log_evidence
from penstock.engine.measure.intervals import anytime_interval
from penstock.engine.measure.sample import DIFFERENCE, Sample, add
from penstock.engine.measure.several import log_two_sided, p_value, real_by_holm
from penstock.engine.quality import Interval


class Comparison(msgspec.Struct, frozen=True):
    """`differences` holds first less second for each two names, in the order of `itertools.combinations`."""

    names: tuple[str, ...]
    scores: tuple[Sample, ...]
    differences: tuple[Sample, ...]

    @property
    def rows(self) -> int:
        return self.scores[0].n

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        return tuple(combinations(range(len(self.names)), 2))


class Difference(msgspec.Struct, frozen=True):
    """`first`'s mean score less `second`'s, over the same rows."""

    first: str
    second: str
    interval: Interval
    """Of this difference alone, at the confidence asked for."""
    p_value: float
    real: bool
    """After the correction for all pairs."""


def comparison(names: Sequence[str]) -> Comparison:
    """An empty one. Raises `SpecError` for no names, or one name twice."""
    if not names or len(set(names)) != len(names):
        raise SpecError(f"a comparison needs different names, not {list(names)}")
    pairs = len(names) * (len(names) - 1) // 2
    return Comparison(tuple(names), (Sample(),) * len(names), (Sample(),) * pairs)


def add_rows(to: Comparison, rows: Iterable[Sequence[float]]) -> Comparison:
    """A row holds each candidate's score, in the order of names. Raises `SpecError` for a row of another length."""
    rows = list(rows)
    if any(len(row) != len(to.names) for row in rows):
        raise SpecError(f"every row needs a score of each of {', '.join(to.names)}")
    scores = tuple(add(sample, (row[i] for row in rows)) for i, sample in enumerate(to.scores))
    pairs = zip(to.pairs, to.differences, strict=True)
    return Comparison(to.names, scores, tuple(add(s, (row[i] - row[j] for row in rows)) for (i, j), s in pairs))


def differences(of: Comparison, confidence: float = 0.95) -> tuple[Difference, ...]:
    """All pairs, and which are real: with this confidence none of those called real is false."""
    chances = [p_value(log_two_sided(sample)) for sample in of.differences]
    real = real_by_holm(chances, 1.0 - confidence)
    return tuple(
        Difference(of.names[i], of.names[j], interval, chances[at], at in real)
        for at, ((i, j), sample) in enumerate(zip(of.pairs, of.differences, strict=True))
        if (interval := anytime_interval(sample, confidence, DIFFERENCE)) is not None
    )


def log_better(of: Comparison, i: int, j: int, by: float = 0.0) -> float:
    """Log evidence that candidate i's mean exceeds j's by more than `by`; where that is negative, that i is not worse
    than j by as much."""
    if i < j:
        return log_evidence(of.differences[of.pairs.index((i, j))], by, "up", DIFFERENCE)
    return log_evidence(of.differences[of.pairs.index((j, i))], -by, "down", DIFFERENCE)
