"""What an evaluation found: each candidate's quality, cost and latency over the same rows, and which differences are
real.

A row counts where every candidate was asked. One that was asked and gave nothing failed, which scores 0: leaving such
rows out would flatter whoever fails on hard ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from penstock.engine import fields
from penstock.engine.measure.comparison import Comparison, Difference, add_rows, comparison, differences
from penstock.engine.measure.intervals import anytime_interval
from penstock.engine.measure.moments import asymptotic_interval, moments_of
from penstock.engine.measure.stopping import Stop, StopRule, look
from penstock.engine.quality import PASS_MARK, Interval
from penstock.engine.texts import normal

OTHER = "(something else)"
"""What stands in a confusion table for an answer that is no class, or none at all."""


class Answered(msgspec.Struct, frozen=True, gc=False):
    """What came of one candidate on one row. `said`: its answer; None: it failed, or what was said may not be told."""

    score: float = 0.0
    failed: bool = False
    said: str | None = None
    cost_nano: int = 0
    ms: float | None = None
    judged_nano: int = 0
    """Of the cost: what judging the answer took."""


class Row(msgspec.Struct, frozen=True, gc=False):
    """`answers`: by candidate, all of them. `expected`: as a text."""

    number: int
    answers: tuple[Answered, ...]
    expected: str | None = None
    slices: Mapping[str, str] = {}


class Line(msgspec.Struct, frozen=True):
    """One candidate. `per_accepted_nano`: cost of all its answers over those that passed; None: none did."""

    name: str
    rows: int
    quality: Interval | None
    passed: int
    failed: int
    cost_nano: int
    judged_nano: int
    """Of the cost: what judges took."""
    per_item_nano: float
    per_item: Interval | None
    """In nano-dollars, approximate; None: fewer than 50 rows."""
    per_accepted_nano: float | None
    per_accepted: Interval | None
    median_ms: float | None
    p95_ms: float | None


class ClassLine(msgspec.Struct, frozen=True):
    """One class of one candidate. Precision: right of those it called so. Recall: found of those that are so."""

    name: str
    expected: int
    said: int
    right: int

    @property
    def precision(self) -> float | None:
        return self.right / self.said if self.said else None

    @property
    def recall(self) -> float | None:
        return self.right / self.expected if self.expected else None

    @property
    def f1(self) -> float | None:
        return 2 * self.right / (self.said + self.expected) if self.said + self.expected else None


class Classes(msgspec.Struct, frozen=True):
    """`confusion`: (expected, said) → rows."""

    candidate: str
    classes: tuple[ClassLine, ...]
    confusion: dict[tuple[str, str], int]

    @property
    def macro_f1(self) -> float | None:
        """The mean over the classes that rows have."""
        found = [each.f1 for each in self.classes if each.expected and each.f1 is not None]
        return sum(found) / len(found) if found else None


class FieldLine(msgspec.Struct, frozen=True):
    """One field of the expected JSON. `quality`: by candidate, the share of it that matches (in a list: of its
    elements) in the rows that expect it."""

    name: str
    rows: int
    quality: tuple[Interval | None, ...]


class SliceLine(msgspec.Struct, frozen=True):
    """The rows that have one value of an attribute. `quality`: by candidate."""

    attribute: str
    value: str
    rows: int
    quality: tuple[Interval | None, ...]


class Evaluation(msgspec.Struct, frozen=True):
    names: tuple[str, ...]
    stop: Stop
    lines: tuple[Line, ...]
    differences: tuple[Difference, ...]
    classes: tuple[Classes, ...]
    slices: tuple[SliceLine, ...]
    fields: tuple[FieldLine, ...] = ()
    """Of a scorer that compares field by field."""


def compared(names: Sequence[str], rows: Sequence[Row]) -> Comparison:
    """The scores alone: what stopping looks at."""
    return add_rows(comparison(names), ([answer.score for answer in row.answers] for row in rows))


def evaluate(
    names: Sequence[str],
    rows: Sequence[Row],
    rule: StopRule,
    classes: Sequence[str] = (),
    tolerance: float | None = None,
) -> Evaluation:
    """`classes`: what may be said, where it is one of a few words. `tolerance`: of numbers, where answers are compared
    field by field."""
    scores = compared(names, rows)
    return Evaluation(
        names=tuple(names),
        stop=look(scores, rule),
        lines=tuple(_line(name, [row.answers[i] for row in rows], rule.confidence) for i, name in enumerate(names)),
        differences=differences(scores, rule.confidence) if len(names) > 1 else (),
        classes=tuple(_classes(name, i, rows, classes) for i, name in enumerate(names)) if classes else (),
        slices=tuple(_slices(len(names), rows, rule.confidence)),
        fields=() if tolerance is None else tuple(_fields(len(names), rows, tolerance, rule.confidence)),
    )


def _line(name: str, answers: Sequence[Answered], confidence: float) -> Line:
    n = len(answers)
    cost = sum(answer.cost_nano for answer in answers)
    passed = sum(answer.score >= PASS_MARK for answer in answers)
    took = sorted(answer.ms for answer in answers if answer.ms is not None)
    return Line(
        name=name,
        rows=n,
        quality=_mean([answer.score for answer in answers], confidence),
        passed=passed,
        failed=sum(answer.failed for answer in answers),
        cost_nano=cost,
        judged_nano=sum(answer.judged_nano for answer in answers),
        per_item_nano=cost / n if n else 0.0,
        per_item=asymptotic_interval(moments_of(answer.cost_nano for answer in answers), confidence),
        per_accepted_nano=cost / passed if passed else None,
        per_accepted=_per_accepted(answers, 1 - (1 - confidence) / 2),
        median_ms=_quantile(took, 0.5),
        p95_ms=_quantile(took, 0.95),
    )


def _per_accepted(answers: Sequence[Answered], each: float) -> Interval | None:
    """Mean cost over share accepted. Each bound is taken at half the chance of error, so that both hold together."""
    cost = asymptotic_interval(moments_of(answer.cost_nano for answer in answers), each)
    share = _mean([float(answer.score >= PASS_MARK) for answer in answers], each)
    if cost is None or share is None or share.low <= 0:
        return None
    return Interval(cost.mean / share.mean, max(0.0, cost.low) / share.high, cost.high / share.low)


def _mean(scores: Sequence[float], confidence: float) -> Interval | None:
    return anytime_interval(add_rows(comparison(["x"]), ([score] for score in scores)).scores[0], confidence)


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def _classes(name: str, i: int, rows: Sequence[Row], classes: Sequence[str]) -> Classes:
    known = {normal(each): each for each in classes}  # as `exact` compares: what is right there is so here
    confusion: Counter[tuple[str, str]] = Counter()
    for row in rows:
        answer = row.answers[i]
        expected = None if row.expected is None else known.get(normal(row.expected))
        if expected is not None and (answer.failed or answer.said is not None):
            confusion[expected, known.get(normal(answer.said or ""), OTHER)] += 1
    lines = tuple(
        ClassLine(
            each,
            sum(n for (expected, _), n in confusion.items() if expected == each),
            sum(n for (_, said), n in confusion.items() if said == each),
            confusion[each, each],
        )
        for each in classes
    )
    return Classes(name, lines, dict(confusion))


def _fields(candidates: int, rows: Sequence[Row], tolerance: float, confidence: float) -> Iterator[FieldLine]:
    """In the order in which rows name them. Like slices, each is looked at alone."""
    scores: dict[str, list[list[float]]] = {}
    expecting: Counter[str] = Counter()
    for row in rows:
        found = [_of_fields(answer, row.expected, tolerance) for answer in row.answers]
        for i, shares in enumerate(found):
            for name, share in shares.items():
                scores.setdefault(name, [[] for _ in range(candidates)])[i].append(share)
        expecting.update({name for shares in found for name in shares})
    for name, each in scores.items():
        yield FieldLine(name, expecting[name], tuple(_mean(scored, confidence) if scored else None for scored in each))


def _of_fields(answer: Answered, expected: str | None, tolerance: float) -> dict[str, float]:
    """Field → the share of it that matches. Empty where what was said may not be told."""
    if answer.said is None and not answer.failed:
        return {}
    told: dict[str, list[bool]] = {}
    for name, right in fields.matches(answer.said, expected, tolerance) or ():
        told.setdefault(name, []).append(right)
    return {name: sum(right) / len(right) for name, right in told.items()}


def _slices(candidates: int, rows: Sequence[Row], confidence: float) -> list[SliceLine]:
    """Intervals are of each slice alone: among twenty slices one looks special by chance."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        for slice_ in row.slices.items():
            groups.setdefault(slice_, []).append(row)
    return [
        SliceLine(
            attribute,
            value,
            len(group),
            tuple(_mean([row.answers[i].score for row in group], confidence) for i in range(candidates)),
        )
        for (attribute, value), group in sorted(groups.items())
    ]
