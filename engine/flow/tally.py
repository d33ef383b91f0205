"""Counters of a lane: mergeable sums, kept in its progress so that a resumed run tells the whole story."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, TypeVar

import msgspec

K = TypeVar("K", int, str)


class ModelTally(msgspec.Struct, omit_defaults=True):
    """Sums over the attempts sent to one model."""

    model: str = ""
    version: str = ""
    calls: int = 0
    items: int = 0
    """Results that carry this model's answer."""
    cost_nano: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    ms: float = 0.0
    failures: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    basis: str = "metered"
    answered_as: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    """Answers by what they called their model, where that is not what it was asked for as."""
    other_model: int = 0
    """Answers whose name is not even an expansion of the one that was asked for (`naming.named`), or whose fingerprint
    is not the pinned one."""
    fingerprints: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    """Answers by the provider's fingerprint of its configuration; of an own engine, by the commit that it loaded."""
    answered_before: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    """Of `answered_as`, what earlier commands of the run counted."""
    fingerprints_before: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    """Of `fingerprints`, likewise."""
    adjusted_nano: int = 0
    """Of `cost_nano`, closing lines of own engines: what no call was charged."""


class TaskTally(msgspec.Struct, omit_defaults=True):
    """Scores of one (task, model@version, scorer), as people are told them (`cells.quality_rows`)."""

    task: str = ""
    model: str = ""
    n: int = 0
    score: float = 0.0
    score2: float = 0.0
    passed: int = 0


class Slow(msgspec.Struct, frozen=True):
    item_id: str
    custom_id: str | None
    model: str
    seconds: float


class Tally(msgspec.Struct, omit_defaults=True):
    """Counters of one lane since it was taken, plus what its progress says of before (`committed_*`)."""

    read: int = 0
    """Items that have ended and those under way."""
    results: int = 0
    dead_letters: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    copied: int = 0
    maybe_paid: int = 0
    retries: int = 0
    fallbacks: int = 0
    cost_nano: int = 0
    forfeit_nano: int = 0
    """What may have been paid and can't be known (decision 6)."""
    unknown_nano: int = 0
    """Of it, the worst case of calls whose end nobody knows. The rest are leases of owners that died."""
    tier1_cost_nano: int = 0
    """What the same tokens would have cost at the first Tier 1 model: for "saved against all-Tier-1"."""
    second_payments: int = 0
    """Of the items that may have been paid for twice, those for which a crash is the reason."""
    late_payments: int = 0
    """Answers of calls that had been given up with their worker, or their lane's owner, and were paid for."""
    tiers: dict[int, int] = msgspec.field(default_factory=dict[int, int])
    in_flight: dict[int, int] = msgspec.field(default_factory=dict[int, int])
    """Tier → calls at workers now."""
    ready: int = 0
    shelved: int = 0
    models: dict[str, ModelTally] = msgspec.field(default_factory=dict[str, ModelTally])
    slowest: list[Slow] = msgspec.field(default_factory=list[Slow])
    position_bytes: int = 0
    """Input done so far, in bytes of the object (rows × mean size for tables): for progress and ETA."""
    refused: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    """Wall → refusals."""
    refused_models: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    """The same by `wall|model`."""
    retried: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    """What had failed → calls made again at the same model."""
    fallen: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    """`from|to`, models → items sent on."""
    flying: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    """Model → calls at workers when it was reported."""
    climbed: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    """`from|to`, models of a cascade → items whose answer was doubtful and that went on."""
    steps: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    """Judge or shadow → steps of items that were answered."""
    steps_failed: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    """`judge|why`, `shadow|why` → steps that were left out; a judge's `invalid_output` is nonsense, twice."""
    steps_nano: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    """Judge or shadow → what they cost; also in `cost_nano`."""

    def called_nano(self) -> int:
        """Of `cost_nano`, what calls were charged: that is what budgets hold."""
        return self.cost_nano - sum(row.adjusted_nano for row in self.models.values())

    def fell_back(self) -> list[tuple[tuple[str, str], int]]:
        return [((pair.partition("|")[0], pair.partition("|")[2]), n) for pair, n in self.fallen.items()]


def merge(into: Tally, other: Tally) -> None:
    """Add `other` to `into`. In-flight, ready and shelved counts add up too: they are gauges of disjoint lanes."""
    for name in _SUMS:
        setattr(into, name, getattr(into, name) + getattr(other, name))
    for mine, theirs in (
        (into.dead_letters, other.dead_letters),
        (into.refused, other.refused),
        (into.refused_models, other.refused_models),
        (into.tiers, other.tiers),
        (into.in_flight, other.in_flight),
        (into.retried, other.retried),
        (into.fallen, other.fallen),
        (into.flying, other.flying),
        (into.climbed, other.climbed),
        (into.steps, other.steps),
        (into.steps_failed, other.steps_failed),
        (into.steps_nano, other.steps_nano),
    ):
        add_counts(mine, theirs)  # pyright: ignore[reportArgumentType]
    for key, model in other.models.items():
        _merge_model(into.models.setdefault(key, ModelTally(model=model.model, version=model.version)), model)
    into.slowest = sorted([*into.slowest, *other.slowest], key=lambda slow: -slow.seconds)[:SLOWEST_KEPT]


def as_before(tally: Tally) -> None:
    """Another command goes on: whoever answered so far answered an earlier one."""
    for row in tally.models.values():
        row.answered_before, row.fingerprints_before = dict(row.answered_as), dict(row.fingerprints)


def count_refused(tally: Tally, wall: str, models: Iterable[str]) -> None:
    for model in models:
        _one_more(tally.refused, wall)
        _one_more(tally.refused_models, f"{wall}|{model}")


def count_name(names: dict[str, int], name: str) -> None:
    """A provider may say anything: a few names are kept, cut to a length, and the rest count together."""
    name = name[:MAX_NAME]
    _one_more(names, name if name in names or len(names) < MAX_NAMES else OTHERS)


def count_fallback(tally: Tally, source: str, to: str) -> None:
    tally.fallbacks += 1
    _one_more(tally.fallen, f"{source}|{to}")


def count_climb(tally: Tally, source: str, to: str) -> None:
    _one_more(tally.climbed, f"{source}|{to}")


def count_step(tally: Tally, kind: str) -> None:
    _one_more(tally.steps, kind)


def count_step_left_out(tally: Tally, kind: str, why: str) -> None:
    _one_more(tally.steps_failed, f"{kind}|{why}")


def _one_more(counts: dict[str, int], key: str) -> None:
    counts[key] = counts.get(key, 0) + 1


SLOWEST_KEPT = 5
MAX_NAMES = 4
"""Of a version's answers in one lane. An alias moves now and then; more are a provider that says what it likes."""
MAX_NAME = 100
OTHERS = "*"
UNSAID = "-"
"""An answer without the fingerprint that is pinned."""

_SUMS = (
    "read", "results", "copied", "maybe_paid", "retries", "fallbacks", "cost_nano", "forfeit_nano",
    "unknown_nano", "tier1_cost_nano", "second_payments", "late_payments", "ready", "shelved", "position_bytes",
)  # fmt: skip


_MODEL_SUMS = (
    "calls", "items", "cost_nano", "adjusted_nano", "input_tokens", "cached_tokens", "output_tokens", "ms",
    "other_model",
)  # fmt: skip


def add_counts(into: dict[K, int], counts: Mapping[K, int], sign: Literal[1, -1] = 1) -> None:
    """Add them to `into`, or (-1) take them out again."""
    for key, count in counts.items():
        into[key] = into.get(key, 0) + sign * count


def _merge_model(into: ModelTally, other: ModelTally) -> None:
    for name in _MODEL_SUMS:
        setattr(into, name, getattr(into, name) + getattr(other, name))
    into.basis = other.basis
    add_counts(into.failures, other.failures)
    add_counts(into.answered_as, other.answered_as)
    add_counts(into.fingerprints, other.fingerprints)
    add_counts(into.answered_before, other.answered_before)
    add_counts(into.fingerprints_before, other.fingerprints_before)
