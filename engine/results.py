"""How items end, and what the records tell of it: `Result` or `DeadLetter`, `Attempt`s, `Score`s, `CostLine`s.

Units are those of `engine.items`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from penstock.engine.items import STEP_ROLES, Answer, Item, Position, Role, Route, Usage

CostBasis = Literal["metered", "estimated", "amortised"]
Mode = Literal["now", "flex", "batch", "own"]
DeadLetterReason = Literal[
    "malformed",  # not JSON, not UTF-8, nested too deep, NaN, a ragged row
    "too_large",  # a record over the size limit
    "missing_field",  # no custom_id, no messages, a template names a column that the row lacks
    "bad_field",  # a field of the wrong type, an attribute that cannot be read
    "duplicate",  # an equal label came earlier in the input
    "template",  # the prompt template failed on this row
    "unknown_model",  # body.model is not in the catalogue
    "unknown_task",
    "unknown_sensitivity",
    "unsupported",  # an endpoint or feature that no candidate serves
    "wall",  # every candidate is forbidden by the item's wall
    "no_candidate",  # nothing left that meets tier, quality, cost
    "too_long",  # prompt longer than every candidate's context
    "over_max_cost",
    "budget",  # the budget cannot hold it
    "deadline",
    "refused",  # the provider's policy refused
    "bad_request",  # the provider rejected the request
    "invalid_output",  # the answer does not meet choices or schema
    "attempts_exhausted",
    "result_too_large",
    "source_lost",  # the input became unreadable
    "cancelled",
]
"""The closed list of reasons."""


RETRYABLE_REASONS: frozenset[str] = frozenset(
    {"budget", "attempts_exhausted", "no_candidate", "deadline", "cancelled", "source_lost", "over_max_cost"}
)
"""Reasons where sending the same item again later may work (`retryable` in the record)."""


class Attempt(msgspec.Struct, frozen=True, gc=False):
    """One try as the record tells it."""

    n: int
    role: Role
    model: str
    started_at: float
    ms: float
    outcome: str
    """`ok` or a `FailureKind`."""
    request_id: str | None
    cost_nano: int
    model_version: str = ""
    account: str | None = None
    usage: Usage | None = None
    basis: CostBasis = "metered"
    experiment: str = ""
    arm: str = ""
    engine_ms: float = 0.0
    """See `items.Outcome`."""


class Score(msgspec.Struct, frozen=True, gc=False):
    """One quality sample of a result."""

    scorer: str
    scorer_version: str
    score: float
    passed: bool
    judge_model: str | None = None


class ShadowAnswer(msgspec.Struct, frozen=True, gc=False):
    """What another model answered to the same request, a shadow or one of a cascade that was not believed: quality
    samples come of it, never a result."""

    model: str
    model_version: str
    text: str
    scores: tuple[Score, ...]
    usage: Usage
    cost_nano: int
    ms: float
    share: float
    """Of the items of which such an answer is told."""
    role: Literal["shadow", "cascade"] = "shadow"
    signal: float | None = None
    """Of a cascade: how sure it was."""
    signal_by: str = ""
    """Of a judge that was its signal: the judge's version."""
    experiment: str = ""
    """The rollout in whose shadow stage it was asked; empty: none."""
    arm: str = ""


def last_asked(attempts: Sequence[Attempt]) -> Attempt | None:
    """The item's own last call: no judge's, no shadow's."""
    return next((attempt for attempt in reversed(attempts) if attempt.role not in STEP_ROLES), None)


class Result(msgspec.Struct, frozen=True, gc=False):
    """A finished item. Everything the records say of it comes from here."""

    item: Item
    route: Route
    answer: Answer
    model: str
    model_version: str
    provider: str
    account: str | None
    region: str | None
    mode: Mode
    usage: Usage
    """All attempts of this item together."""
    cost_nano: int
    """All attempts of this item together, its steps included."""
    cost_basis: CostBasis
    price_version: str
    policy_version: str
    prompt_version: str
    attempts: tuple[Attempt, ...]
    finished_at: float
    queue_ms: float
    call_ms: float
    output_hash: str
    answer_usage: Usage = Usage()
    """Of the one call that gave the answer: what any model would be asked for it. Nothing in a copy."""
    status: Literal["ok", "invalid_output"] = "ok"
    """`invalid_output` only where the task says `on_invalid: keep`."""
    sampled: bool = False
    sample_probability: float = 0.0
    scores: tuple[Score, ...] = ()
    copied_from: str | None = None
    maybe_paid: bool = False
    experiment: str = ""
    """Of the candidate that answered, as its arm and propensity are."""
    arm: str = ""
    propensity: float = 1.0
    shadows: tuple[ShadowAnswer, ...] = ()
    doubted: tuple[ShadowAnswer, ...] = ()
    """Of a sampled item: answers of its cascade that were not believed."""
    signal: float | None = None
    """Of a cascade, how sure the answer was; None also of its last model's."""
    signal_by: str = ""
    """Of a judge that was its signal: the judge's version."""
    unpaid: bool = False
    """A rollout's candidate was to answer as well, and the money of that shadow stage was spent."""
    unheard: bool = False
    """The candidate was to answer as well, and was given up for what says nothing of it: a limit, an outage."""


class DeadLetter(msgspec.Struct, frozen=True, gc=False):
    """An item that ends without a result. `item` is None where the record could not even be read."""

    item_id: str
    source: Position
    reason: DeadLetterReason
    message: str
    original: bytes
    item: Item | None = None
    route: Route | None = None
    custom_id: str | None = None
    generation: int = 0
    attempts: tuple[Attempt, ...] = ()
    cost_nano: int = 0
    maybe_paid: bool = False
    finished_at: float = 0.0
    original_length: int = 0
    """Full length in bytes when `original` holds only the head."""
    original_hash: str = ""
    price_version: str = ""
    policy_version: str = ""
    prompt_version: str = ""
    """Of what its calls asked; empty: there were none."""
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    """Of the record, as the item's own are."""
    cut: str = ""
    """What of key and headers is left out, since the dead letters' place does not take it, in words."""

    @property
    def retryable(self) -> bool:
        return self.reason in RETRYABLE_REASONS


class CostLine(msgspec.Struct, frozen=True, gc=False):
    """One settled call, as the costs sink tells it. `role` also takes `adjustment` for closing lines of own GPUs."""

    entry_id: str
    item_id: str | None
    attempt: int
    role: Role | Literal["adjustment"]
    account: str | None
    model: str
    model_version: str
    usage: Usage
    cost_nano: int
    basis: CostBasis
    price_version: str
    tenant: str | None
    task: str | None
    tier: int | None
    at: float
