"""What a plan says: rows, tokens, cost and time, each with its interval. `jobs.planning` makes it."""

from __future__ import annotations

import msgspec

from penstock.engine.budget import Budget
from penstock.jobs.forecasting.forecast import Interval


class ModelPlan(msgspec.Struct, frozen=True):
    """What one version of a model would be asked first, for one task. Money in nano-dollars."""

    tier: int
    task: str
    model: str
    version: str
    served_by: str
    rows: Interval
    input_tokens: Interval
    output_tokens: Interval
    cost_nano: Interval
    worst_nano: float
    price_version: str
    measured: bool
    """Whether output tokens come from history."""


class TierPlan(msgspec.Struct, frozen=True):
    tier: int
    rows: Interval
    cost_nano: Interval
    worst_nano: float
    seconds: Interval | None
    """None: an own worker's speed is unknown."""


class BudgetPlan(msgspec.Struct, frozen=True):
    budget: Budget
    holds: bool
    """False: it can't hold even the low end of the forecast."""
    holds_worst: bool
    message: str


class PlanReport(msgspec.Struct, frozen=True):
    """`fits`: every budget holds at least the low end of the forecast."""

    run_id: str
    name: str
    rows: Interval
    rows_exact: bool
    input_bytes: int
    splits: int
    sampled: int
    models: tuple[ModelPlan, ...]
    tiers: tuple[TierPlan, ...]
    cost_nano: Interval
    worst_nano: float
    seconds: Interval | None
    dead_letters: dict[str, Interval]
    """Reason → how many are foreseen."""
    examples: dict[str, str]
    """Reason → the first message."""
    refused: dict[str, dict[str, int]]
    """Model → why it was refused → items of the sample."""
    budgets: tuple[BudgetPlan, ...]
    notes: tuple[str, ...]
    fits: bool
    per_items: int | None = None
    """The input has no end: rows, tokens and money are those of so many items. None: of the whole input."""
