"""What a run would do, take and cost, before anything is paid for.

Rows are counted where the input is small, and estimated from bytes where it is large; a sample of them goes through the
same intake and the same router as the run's items. Nothing is called.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from penstock.connectors.base import Raw
from penstock.connectors.measured import Registry
from penstock.connectors.reading.intake import Intake, input_shape
from penstock.connectors.reading.replay import intake_for
from penstock.connectors.registry import open_source
from penstock.connectors.settings import KafkaSource, SourceSettings, is_endless
from penstock.connectors.state import open_state
from penstock.connectors.steering import SteeringFile
from penstock.engine.budget import Budget
from penstock.engine.catalog import Catalog, Price
from penstock.engine.errors import PenstockError
from penstock.engine.flow.pending import script
from penstock.engine.items import Item
from penstock.engine.policy import Task
from penstock.engine.pricing import DEFAULT_MAX_TOKENS, price_of
from penstock.engine.registry.standing import Standing
from penstock.engine.registry.standings import standings
from penstock.engine.results import DeadLetter
from penstock.engine.steering.document import Steering
from penstock.jobs.forecasting.forecast import (
    ZERO,
    Interval,
    Load,
    Measured,
    api_seconds,
    call_cost,
    exactly,
    mean_interval,
    measured_output,
    output_tokens,
    own_seconds,
    share_interval,
    token_interval,
    total,
)
from penstock.jobs.forecasting.plan_report import BudgetPlan, ModelPlan, PlanReport, TierPlan
from penstock.jobs.forecasting.planning_view import render as render
from penstock.jobs.forecasting.sampling import MakeIntake, Reading, read_sample
from penstock.jobs.forecasting.survey import Group, Survey
from penstock.jobs.spec.describe import moving_versions
from penstock.jobs.wording import dollars
from penstock.workers.runspec import RunSpec

History = Mapping[tuple[str, str, str], Measured]
"""(task, model, version) → what earlier runs measured, with the task's prompt."""
Plan = PlanReport

PER_ITEMS = 1_000
"""An input without an end is planned for so many of its items."""


def make_plan(spec: RunSpec, *, sample: int = 500) -> PlanReport:
    """Read a sample, route it, and add up. Raises `SpecError` where the input or the job can't be read."""
    measured = _standings(spec)
    survey = Survey(spec.catalog, spec.policy, measured, None if spec.pinned else _steering(spec))
    reading = look(spec, sample)
    for found in reading.found:
        survey.add(found)
    return report(spec, reading, survey, history_of(measured))


def look(spec: RunSpec, sample: int = 500) -> Reading:
    """A sample of the input. Raises `SpecError` where it can't be read."""
    return asyncio.run(_read(spec, sample))


def _standings(spec: RunSpec) -> tuple[Standing, ...]:
    """The run would go by what is measured. Where that can't be read, the plan goes by what is declared."""
    with contextlib.suppress(PenstockError):
        return standings(Registry(open_state(spec.state)).read(), spec.catalog, spec.policy)
    return ()


def history_of(measured: Iterable[Standing]) -> History:
    """Of those that answered. The times of items spread like log-normal ones: their mean lies above the median."""
    return {
        (at.task, at.model, at.version): Measured(
            at.items, at.output / at.items, math.exp(at.log_ms.mean + at.log_ms.variance / 2) / 1_000, at.engine_s
        )
        for at in measured
        if at.results
    }


def _steering(spec: RunSpec) -> Steering | None:
    """The run would ask the versions that are in use, and divide items among those of a rollout."""
    with contextlib.suppress(PenstockError):
        found = SteeringFile(spec.state).read()
        return found[0] if found is not None else None
    return None


async def _read(spec: RunSpec, sample: int) -> Reading:
    reading = await read_sample(open_source(bounded(spec.source)), _intake(spec), sample, spec.limit)
    if not is_endless(spec.source):
        return reading
    note = () if reading.found else ("the topic holds no records yet: there is nothing to sample",)
    rows = exactly(float(spec.limit or PER_ITEMS)) if reading.found else ZERO
    return msgspec.structs.replace(reading, rows=rows, whole=False, notes=note)


def bounded(source: SourceSettings) -> SourceSettings:
    """What is there now, for a look: of a topic without an end, all that it holds, wherever the run will start."""
    if isinstance(source, KafkaSource) and source.until == "forever":
        return msgspec.structs.replace(source, start="earliest", until="end")
    return source


def _intake(spec: RunSpec) -> MakeIntake:
    def make(format: str) -> Callable[[Raw], Item | DeadLetter]:
        shape = input_shape(format)
        intake = Intake(spec.run_id, shape, spec.row, spec.policy, spec.catalog.models, spec.generation, spec.vars)
        reader = intake_for(spec.source, intake)
        return lambda raw: reader.item(raw, 0.0)

    return make


def report(spec: RunSpec, reading: Reading, survey: Survey, history: History) -> PlanReport:
    """The plan of a sample that was read and surveyed. Pure."""
    models = tuple(_model(spec.catalog, reading, survey, group, history) for group in survey.groups)
    seconds = _pool_seconds(spec.catalog, models, history)
    cost, worst = total(m.cost_nano for m in models), sum(m.worst_nano for m in models)
    per_items = PER_ITEMS if spec.endless else None
    check = _budget_a_thousand if spec.endless else _budget
    budgets = tuple(check(budget, cost, worst, survey) for budget in spec.budgets if budget.role is None)
    return PlanReport(
        run_id=spec.run_id,
        name=spec.name,
        rows=reading.rows,
        rows_exact=reading.rows.exact,
        input_bytes=reading.total_bytes,
        splits=reading.splits,
        sampled=survey.n,
        models=models,
        tiers=tuple(_tier(spec.catalog, tier, models, seconds) for tier in sorted({m.tier for m in models})),
        cost_nano=cost,
        worst_nano=worst,
        seconds=None if spec.endless else _longest(seconds.values()),
        dead_letters={reason: _rows(reading, n, survey.n) for reason, n in survey.dead.most_common()},
        examples=survey.examples,
        refused={model: dict(why) for model, why in survey.refused.items()},
        budgets=budgets,
        notes=tuple(_notes(spec, reading, survey, models)),
        fits=all(checked.holds for checked in budgets),
        per_items=per_items,
    )


def _rows(reading: Reading, hits: int, sampled: int) -> Interval:
    """How many of all rows are like `hits` of the sample. Exact where every row was looked at."""
    if reading.whole:
        return exactly(float(hits))
    return reading.rows.times(share_interval(hits, sampled))


def _model(catalog: Catalog, reading: Reading, survey: Survey, group: Group, history: History) -> ModelPlan:
    model = catalog.models[group.model]
    price = price_of(model, group.version) or Price(version="unknown")
    measured = history.get((group.task, group.model, group.version))
    rows = _rows(reading, group.n, survey.n)
    inputs = rows.times(token_interval(_mean(reading, group.input_tokens)))
    output = _output(group, measured, survey.longest_choice(group.task))
    each = [call_cost(token_interval(exactly(tokens)), output, price) for tokens in group.input_tokens]
    return ModelPlan(
        tier=group.tier,
        task=group.task,
        model=group.model,
        version=group.version,
        served_by=model.worker or model.account or "?",
        rows=rows,
        input_tokens=inputs,
        output_tokens=rows.times(output),
        cost_nano=rows.times(mean_of(reading, each)),
        worst_nano=rows.high * _mean(reading, group.worst_nano).high,
        price_version=price.version,
        measured=measured is not None,
    )


def _output(group: Group, measured: Measured | None, longest_choice: int | None) -> Interval:
    """Tokens of all answers to one item."""
    ceiling, answers = mean_interval(group.ceilings).likely, group.answers / group.n
    if measured is not None:
        return measured_output(measured, ceiling)
    return output_tokens(round(ceiling / answers), longest_choice=longest_choice).scaled(answers)


def mean_of(reading: Reading, each: Sequence[Interval]) -> Interval:
    """Of what the sample's items are expected to take."""
    low, likely, high = (_mean(reading, [getattr(i, end) for i in each]) for end in ("low", "likely", "high"))
    return Interval(low.low, likely.likely, high.high)


def _mean(reading: Reading, values: Sequence[float]) -> Interval:
    mean = mean_interval(values)
    return exactly(mean.likely) if reading.whole else mean


def _pool_seconds(catalog: Catalog, models: Iterable[ModelPlan], history: History) -> dict[str, Interval | None]:
    """Pool → how long it takes with all that it gets: an account's models share its limits."""
    pools: dict[str, list[ModelPlan]] = {}
    for made in models:
        pools.setdefault(_pool(catalog, made), []).append(made)
    return {pool: _one_pool(catalog, parts, history) for pool, parts in pools.items()}


def _pool(catalog: Catalog, made: ModelPlan) -> str:
    return catalog.models[made.model].pool_of(made.version)


def _one_pool(catalog: Catalog, parts: Sequence[ModelPlan], history: History) -> Interval | None:
    load = Load(
        total(p.rows for p in parts), total(p.input_tokens for p in parts), total(p.output_tokens for p in parts)
    )
    model = catalog.models[parts[0].model]
    item_s = _mean_seconds(parts, history, lambda at: at.seconds)
    if model.account is not None:
        return api_seconds(load, catalog.accounts[model.account], item_s)
    engine_s = _mean_seconds(parts, history, lambda at: at.engine_s)
    return own_seconds(load, model, (item_s, engine_s) if item_s and engine_s else None)


def _mean_seconds(parts: Sequence[ModelPlan], history: History, of: Callable[[Measured], float | None]) -> float | None:
    """Of one item of the pool; None: some are not measured."""
    known = [(p.rows.likely, history.get((p.task, p.model, p.version))) for p in parts]
    sums = [(rows, rows * one) for rows, at in known if at is not None and (one := of(at)) is not None]
    rows = sum(rows for rows, _ in sums)
    return sum(seconds for _, seconds in sums) / rows if len(sums) == len(parts) and rows else None


def _tier(catalog: Catalog, tier: int, models: Iterable[ModelPlan], seconds: Mapping[str, Interval | None]) -> TierPlan:
    mine = [m for m in models if m.tier == tier]
    return TierPlan(
        tier,
        total(m.rows for m in mine),
        total(m.cost_nano for m in mine),
        sum(m.worst_nano for m in mine),
        _longest(seconds[_pool(catalog, m)] for m in mine),
    )


def _longest(found: Iterable[Interval | None]) -> Interval | None:
    """Pools work at the same time: the slowest decides. One that is unknown makes all unknown."""
    parts = list(found)
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    if not known:
        return ZERO
    return Interval(max(p.low for p in known), max(p.likely for p in known), max(p.high for p in known))


def _budget(budget: Budget, cost: Interval, worst: float, survey: Survey) -> BudgetPlan:
    part = _tenant_share(budget, survey)
    low, high = round(cost.low * part), round(worst * part)
    name, then = _budget_name(budget), _when_spent(budget, endless=False)
    if budget.limit_nano < low:
        return BudgetPlan(budget, False, False, f"{name} can't hold the run: it takes at least {dollars(low)}; {then}")
    if budget.limit_nano < high:
        return BudgetPlan(budget, True, False, f"{name} may not hold the worst case of {dollars(high)}; {then}")
    return BudgetPlan(budget, True, True, f"{name} holds the worst case of {dollars(high)}")


def _budget_a_thousand(budget: Budget, cost: Interval, worst: float, survey: Survey) -> BudgetPlan:
    """Of an input without an end: how far the money goes."""
    part = _tenant_share(budget, survey) / PER_ITEMS
    few, many = worst * part, cost.low * part
    if not few or not many:
        return BudgetPlan(budget, True, True, f"{_budget_name(budget)}: these items cost nothing")
    reach = f"holds {round(budget.limit_nano / few):,} to {round(budget.limit_nano / many):,} items"
    return BudgetPlan(budget, True, False, f"{_budget_name(budget)} {reach}; {_when_spent(budget, endless=True)}")


def _when_spent(budget: Budget, *, endless: bool) -> str:
    """As lanes have it (`Lane._cannot_pay`)."""
    if budget.tenant is not None:
        return "what is more ends in dead letters"
    if budget.per is None:
        return "then the run stops"
    if endless:
        return f"then items wait for the next {budget.per}"
    return f"then the run stops, and goes on with the same command the next {budget.per}"


def _budget_name(budget: Budget) -> str:
    whose = " of each tenant" if budget.tenant == "*" else f" of tenant {budget.tenant}" if budget.tenant else ""
    return f"the budget of {dollars(budget.limit_nano)}{f' a {budget.per}' if budget.per else ''}{whose}"


def _tenant_share(budget: Budget, survey: Survey) -> float:
    """The share of the cost that this budget must bear; for `*`, the largest tenant's. Rows without a tenant are one
    tenant's too (`engine.budget.budget_keys`)."""
    if budget.tenant is None:
        return 1.0
    spent: dict[str, int] = {}
    for group in survey.groups:
        for tenant, nano in group.tenants.items():
            spent[tenant] = spent.get(tenant, 0) + nano
    whole = sum(spent.values())
    mine = max(spent.values(), default=0) if budget.tenant == "*" else spent.get(budget.tenant, 0)
    return mine / whole if whole else 0.0


def _notes(spec: RunSpec, reading: Reading, survey: Survey, models: Iterable[ModelPlan]) -> Iterable[str]:
    yield from reading.notes
    if spec.endless:
        yield (
            f"the input has no end: rows, tokens, cost and time are those of {PER_ITEMS:,} items; what a day takes "
            "depends on how many come"
        )
    capped = sum(group.default_ceiling for group in survey.groups)
    if capped:
        share = "every row" if capped == survey.n else f"{capped:,} of {survey.n:,} sampled rows"
        yield f"{share} set no max_tokens: answers end at {DEFAULT_MAX_TOKENS:,} tokens"
    unmeasured = sorted({m.task for m in models if not m.measured})
    if unmeasured:
        yield f"how long answers get is not known before a run ({', '.join(unmeasured)}): the interval is wide"
    for name in dict.fromkeys(made.model for made in models):
        if spec.catalog.models[name].hour_usd is not None:
            yield f"{name}: its hours are spread over the tokens it serves; loading and idling come on top"
    for task in spec.policy.tasks.values():
        yield from _on_top(task)
    yield from moving_versions(spec)
    if spec.budgets:
        yield "what earlier runs have already spent of a budget is not counted here"


def _on_top(task: Task) -> Iterable[str]:
    """What a task costs beyond its items' first answers."""
    shadowed = task.shadow.share if task.shadow is not None else 0.0
    steps = script(task)
    of_shadows = [step for step in steps if step.kind == "shadow" or step.about]
    calls = 1_000 * (shadowed * len(of_shadows) + task.sample_share * (len(steps) - len(of_shadows)))
    if calls:
        told = f"about {calls:,.0f} calls for 1,000 rows; they are not counted"
        yield f"{task.name}: judges and shadows come on top, {told}"
    if task.cascade is not None:
        first, judge = task.cascade.models[0], task.cascade.judge
        if judge is not None:
            told = f"{1_000 * judge.samples:,} calls or more for 1,000 rows; they are not counted"
            yield f"{task.name}: {judge.model} judges each answer of {first} before it is taken: {told}"
        yield f"{task.name}: counted as if each answer of {first} were taken; doubtful ones are asked again, for more"
