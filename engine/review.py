"""Which results people shall look at, and why: a job's `review:` rules over a result and what was said of it."""

from __future__ import annotations

import msgspec

from penstock.engine.quality import sampled
from penstock.engine.results import Result
from penstock.engine.texts import normal


class Review(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which results people shall look at; nothing here changes an answer."""

    low_confidence: float | None = None
    """A score of the answer, by a judge or a scorer, lies below this."""
    disagreement: bool = False
    """A shadow answered something else, or judge and scorers see the answer differently."""
    invalid: bool = False
    """The answer was kept although it is not what `output` asks for."""
    share: float = 0.0
    """Of all results, chosen by a stable hash."""


class Seen(msgspec.Struct, frozen=True, gc=False):
    """What the rules look at. `others`: what other models answered to the same request."""

    item_id: str
    answer: str
    invalid: bool
    scores: tuple[float, ...]
    passed: frozenset[bool]
    """What those who scored the answer say of it."""
    signals: tuple[float, ...]
    """How sure its cascade was."""
    others: tuple[str, ...]


def reasons(rules: Review, seen: Seen) -> tuple[str, ...]:
    """The rules that choose it, in words; empty: none does. Depends on nothing else: whoever asks again gets the
    same."""
    found = (
        (rules.invalid and seen.invalid, "invalid output"),
        (rules.low_confidence is not None and _is_unsure(seen, rules.low_confidence), "low confidence"),
        (rules.disagreement and _disagree(seen), "disagreement"),
        (sampled(f"review {seen.item_id}", rules.share), "random share"),
    )
    return tuple(reason for holds, reason in found if holds)


def reasons_of(rules: Review, result: Result) -> tuple[str, ...]:
    """Of a result as it is committed."""
    others = (*result.shadows, *result.doubted)
    seen = Seen(
        result.item.item_id,
        result.answer.text,
        result.status == "invalid_output",
        tuple(score.score for score in result.scores),
        frozenset(score.passed for score in result.scores),
        () if result.signal is None else (result.signal,),
        tuple(other.text for other in others),
    )
    return reasons(rules, seen)


def _is_unsure(seen: Seen, bar: float) -> bool:
    """By a score of the answer, or by the signal that its cascade took it for."""
    return any(value < bar for value in (*seen.scores, *seen.signals))


def _disagree(seen: Seen) -> bool:
    """Another model answered something else, or a judge and the scorers, or two judges, see the answer differently."""
    return len(seen.passed) > 1 or any(normal(other) != normal(seen.answer) for other in seen.others)
