"""What an evaluation will cost: each candidate planned by itself over the same rows, and what judges ask about their
answers."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from penstock.engine import judging
from penstock.engine.catalog import Catalog, Price
from penstock.engine.items import Item
from penstock.engine.judging import MAX_TOKENS, Judged
from penstock.engine.policy import Scorer
from penstock.engine.pricing import BYTES_PER_TOKEN, DEFAULT_MAX_TOKENS, estimate_input_tokens, price_of
from penstock.jobs.evals.asked import Asked
from penstock.jobs.evals.derived import alone
from penstock.jobs.forecasting.forecast import (
    ZERO,
    Interval,
    call_cost,
    exactly,
    output_tokens,
    token_interval,
    total,
)
from penstock.jobs.forecasting.plan_report import PlanReport
from penstock.jobs.forecasting.planning import look, make_plan, mean_of
from penstock.jobs.forecasting.survey import tokens_of_longest
from penstock.workers.runspec import RunSpec


class Priced(msgspec.Struct, frozen=True):
    """`each`: what a candidate's own answers cost. `judges`: what is said of all of them; part of `cost_nano`.
    `aside_nano`: what all calls together would have set aside before they were sent, each for its worst case."""

    cost_nano: Interval
    each: dict[str, Interval]
    judges: Interval
    aside_nano: float


def priced(spec: RunSpec, asked: Asked) -> Priced:
    """Nothing is called. Raises `SpecError`."""
    plans = {model: make_plan(alone(spec, model)) for model in asked.models}
    own = {model: plan.cost_nano for model, plan in plans.items()}
    judges = _judges(spec, asked, _longest(plans.values()))
    aside = sum(plan.worst_nano for plan in plans.values()) + judges.high * BYTES_PER_TOKEN  # a token a byte, at worst
    return Priced(total((*own.values(), judges)), own, judges, aside)


def _longest(plans: Iterable[PlanReport]) -> Interval:
    """Tokens of one answer: between the shortest that some candidate gives and the longest."""
    each = [(made.output_tokens, made.rows) for plan in plans for made in plan.models if made.rows.likely]
    per = [Interval(out.low / rows.high, out.likely / rows.likely, out.high / max(1.0, rows.low)) for out, rows in each]
    return Interval(min(p.low for p in per), max(p.likely for p in per), max(p.high for p in per)) if per else ZERO


def _judges(spec: RunSpec, asked: Asked, answer: Interval) -> Interval:
    """`answer`: tokens of one."""
    if not any(judging.judges(task) for task in spec.policy.tasks.values()):
        return ZERO
    reading = look(spec)
    each = [_of_item(spec, asked, found, answer) if isinstance(found, Item) else ZERO for found in reading.found]
    return reading.rows.times(mean_of(reading, each))


def _of_item(spec: RunSpec, asked: Asked, item: Item, answer: Interval) -> Interval:
    """In nano-dollars."""
    task = spec.policy.tasks[item.attributes.task or asked.task]
    return total(_of_judge(spec.catalog, scorer, item, len(asked.models), answer) for _, scorer in judging.judges(task))


def _of_judge(catalog: Catalog, scorer: Scorer, item: Item, candidates: int, answer: Interval) -> Interval:
    """What one judge says of all answers to one item."""
    model = catalog.models[scorer.model or ""]
    price = price_of(model, model.live) or Price(version="unknown")
    judged = Judged(item, "", "" if scorer.pairwise else None, item.attributes.expected_json)
    asked = judging.request(scorer, judged)
    shown = token_interval(exactly(float(estimate_input_tokens(asked)))) + answer.scaled(2 if scorer.pairwise else 1)
    return _calls(scorer, candidates).times(call_cost(shown, _word(scorer, asked.max_tokens), price))


def _calls(scorer: Scorer, candidates: int) -> Interval:
    """Answers that are alike are judged once."""
    if not scorer.pairwise:
        return Interval(1.0, candidates, candidates).scaled(scorer.samples)
    return Interval(0.0, max(1, candidates - 1), max(1, candidates - 1)).scaled(2 * scorer.samples)


def _word(scorer: Scorer, ceiling: int | None) -> Interval:
    """Tokens of a judge's word. One that may say more than its word thinks first."""
    most = ceiling or DEFAULT_MAX_TOKENS
    choices = judging.BETTER if scorer.pairwise else scorer.choices
    return output_tokens(most, longest_choice=tokens_of_longest(choices) if most <= MAX_TOKENS else None)
