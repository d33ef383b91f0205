"""What an evaluation will cost: each candidate planned by itself over the same rows."""

from __future__ import annotations

import msgspec

from penstock.jobs.evals.asked import Asked
from penstock.jobs.evals.derived import alone
from penstock.jobs.forecasting.forecast import Interval, total
from penstock.jobs.forecasting.planning import make_plan
from penstock.workers.runspec import RunSpec


class Priced(msgspec.Struct, frozen=True):
    """`worst_nano`: where every answer is as long as it may be."""

    cost_nano: Interval
    worst_nano: float
    each: dict[str, Interval]
    judged: bool
    """Judges are asked as well; what they cost is not in it."""


def priced(spec: RunSpec, asked: Asked) -> Priced:
    """Nothing is called. Raises `SpecError`."""
    plans = {model: make_plan(alone(spec, model)) for model in asked.models}
    judged = any(scorer.type == "judge" for task in spec.policy.tasks.values() for scorer in task.scorers)
    return Priced(
        total(plan.cost_nano for plan in plans.values()),
        sum(plan.worst_nano for plan in plans.values()),
        {model: plan.cost_nano for model, plan in plans.items()},
        judged,
    )
