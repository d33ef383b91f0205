"""What a run tells of itself: counters that lanes add up, and what the driver makes of them."""

from __future__ import annotations

from typing import Literal

import msgspec

RunState = Literal[
    "starting",
    "running",
    "draining",
    "assembling",
    "done",
    "stopped_by_budget",
    "too_many_dead_letters",
    "failed",
    "cancelled",
    "interrupted",
]


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


class TaskTally(msgspec.Struct, omit_defaults=True):
    """Quality samples of one (task, model): n, Σscore, Σscore², passed."""

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
    results: int = 0
    dead_letters: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    copied: int = 0
    maybe_paid: int = 0
    retries: int = 0
    fallbacks: int = 0
    cost_nano: int = 0
    forfeit_nano: int = 0
    tier1_cost_nano: int = 0
    """What the same tokens would have cost at the first Tier 1 model: for "saved against all-Tier-1"."""
    late_payments: int = 0
    """Outcomes of calls whose item was already finished."""
    tiers: dict[int, int] = msgspec.field(default_factory=dict[int, int])
    in_flight: dict[int, int] = msgspec.field(default_factory=dict[int, int])
    """Tier → calls at workers now."""
    ready: int = 0
    shelved: int = 0
    models: dict[str, ModelTally] = msgspec.field(default_factory=dict[str, ModelTally])
    quality: dict[str, TaskTally] = msgspec.field(default_factory=dict[str, TaskTally])
    slowest: list[Slow] = msgspec.field(default_factory=list[Slow])
    position_bytes: int = 0
    """Input done so far, in bytes of the object (rows × mean size for tables): for progress and ETA."""
    refused: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    """Wall → refusals."""


class RunStatus(msgspec.Struct, omit_defaults=True):
    run_id: str
    name: str
    state: RunState
    message: str = ""
    started_at: float = 0.0
    updated_at: float = 0.0
    first_dispatch_at: float | None = None
    ended_at: float | None = None
    lanes: int = 0
    lanes_ended: int = 0
    total_bytes: int = 0
    total_items: int | None = None
    tally: Tally = msgspec.field(default_factory=Tally)
    budget_limit_nano: int | None = None
    budget_spent_nano: int = 0
    outputs: dict[str, list[str]] = msgspec.field(default_factory=dict[str, list[str]])
    resumed: bool = False
    notes: list[str] = msgspec.field(default_factory=list[str])
    """Things worth telling: a lane moved, an engine restarted, a budget nearly used."""
