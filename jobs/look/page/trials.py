"""Experiments, and cascades with what they saved: only where records tell of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import msgspec

from penstock.engine.catalog import Price
from penstock.engine.items import Usage
from penstock.engine.policy import Cascade
from penstock.engine.pricing import cost_nano, price_of
from penstock.engine.steering.rollout import arm_of
from penstock.jobs.look.page.groups import Groups, Sum, named, sums
from penstock.jobs.look.page.marks import Sampled, cost_interval
from penstock.jobs.look.page.parts import Section, Table, columns, milliseconds, percent, shown, spread
from penstock.jobs.look.page.sketch import Sketch
from penstock.jobs.look.report import interval
from penstock.jobs.look.told import SampleTold, TokensTold, Told, nano
from penstock.jobs.wording import dollars, share
from penstock.workers.runspec import RunSpec

if TYPE_CHECKING:
    from penstock.jobs.look.reading import Outputs


class Arm(msgspec.Struct):
    cost: Sum = msgspec.field(default_factory=Sum)
    call: Sketch = msgspec.field(default_factory=Sketch)


class Trials:
    """`cascaded`: results with a call of a cascade, by (task, first model, model that answered). `tops`: by task, the
    price of its cascade's top model; `alone`: what that model would have taken for the answers that were taken."""

    def __init__(self, tops: Mapping[str, Price] | None = None) -> None:
        self.arms: Groups[Arm] = Groups(Arm)
        self.scores: Groups[Sampled] = Groups(Sampled)
        self.cascaded: Groups[Sum] = sums()
        self.tasks: Groups[Sum] = sums()
        self.alone: Groups[Sum] = sums()
        self._tops = tops or {}

    def result(self, block: Told) -> None:
        paid = nano(block.cost_usd)
        tokens = block.answer_tokens or block.tokens
        top = self._tops.get(block.task or "")
        if top is not None and tokens is not None and block.copied_from is None:
            self.alone.at(named(block.task)).add(cost_nano(_usage(tokens), top))
        if block.experiment is not None or block.arm is not None:
            arm = self.arms.at(named(block.experiment), named(block.arm))
            arm.cost.add(paid)
            arm.call.add(block.call_ms or 0.0)
        self.tasks.at(named(block.task)).add(paid)
        if any(tried.role == "cascade" for tried in block.attempts):
            first = min(block.attempts, key=lambda tried: tried.n)
            self.cascaded.at(named(block.task), named(first.model), named(block.model)).add(paid)

    def sample(self, sample: SampleTold) -> None:
        if sample.arm is not None and sample.role == "primary":  # a task's own shadow stands in the same arm
            self.scores.at(named(sample.task), named(sample.arm), named(sample.scorer)).add(sample)


def _usage(tokens: TokensTold) -> Usage:
    return Usage(input=tokens.input, cached=tokens.cached, cache_write=tokens.cache_write, output=tokens.output)


def top_prices(spec: RunSpec) -> dict[str, Price]:
    """Task → price of its cascade's last model, as the catalogue says. Call by call: a long prompt has its own."""
    tops = {name: task.cascade.models[-1] for name, task in spec.policy.tasks.items() if task.cascade is not None}
    models = {name: spec.catalog.models[top] for name, top in tops.items() if top in spec.catalog.models}
    prices = {name: price_of(model, model.live) for name, model in models.items()}
    return {name: price for name, price in prices.items() if price is not None}


def sections(trials: Trials, outputs: Outputs, rollouts: frozenset[str]) -> list[Section]:
    """`rollouts`: ids of those that are told of elsewhere; their arms are no experiment's."""
    found = _experiments(trials, rollouts), _cascades(trials, outputs.spec, outputs.status.drifted.values())
    return [section for section in found if section is not None]


def _experiments(trials: Trials, rollouts: frozenset[str]) -> Section | None:
    seen_arms = sorted(trials.arms.ranked(lambda seen: seen.cost.n), key=lambda kv: kv[0])
    arms = [(key, seen) for key, seen in seen_arms if key[0] not in rollouts]
    if not arms:
        return None
    costs = [
        (shown(experiment), shown(arm), f"{seen.cost.n:,}", *_cost(seen.cost), milliseconds(seen.call.quantile(0.5)))
        for (experiment, arm), seen in arms
    ]
    names = columns("experiment", "arm", "#results", "#$ per 1,000", "#95 % interval", "#called p50")
    tables = [Table("Cost and latency by arm", names, costs)]
    scores = [
        (*map(shown, key), f"{seen.tally.n:,}", percent(seen.mean), spread(interval(seen.tally)))
        for key, seen in sorted(trials.scores.ranked(lambda seen: seen.tally.n), key=lambda kv: kv[0])
        if not (rollouts and arm_of(key[1]))
    ]
    if scores:
        named_so = columns("task", "arm", "scorer", "#n", "#mean score", "#95 % interval")
        tables.append(Table("Quality by arm", named_so, scores))
    intro = "How the versions took over from each other is drawn under Routing."
    return Section("experiments", "Experiments", intro, tuple(tables))


def _cost(cost: Sum) -> tuple[str, str]:
    around = cost_interval(cost)
    low_high = f"{dollars(round(around.low * 1000))}–{dollars(round(around.high * 1000))}" if around else "–"
    return dollars(cost.nano * 1000 // cost.n), low_high


def _cascades(trials: Trials, spec: RunSpec, drifted: Iterable[str]) -> Section | None:
    """`drifted`: why calibrations don't hold any more."""
    tasks = {key[0]: seen for key, seen in trials.tasks.ranked(lambda seen: seen.n)}
    prices = top_prices(spec)
    saved = [
        _saved(name, cascade.models[-1], tasks[name], trials.alone.at(name) if name in prices else None)
        for name, cascade in _declared(spec, tasks)
    ]
    parts = [Table("Against its top model", columns(*SAVED), saved, note=SAVED_NOTE)] if saved else []
    rows = [
        (*map(shown, key), f"{seen.n:,}", share(seen.n, tasks[key[0]].n), *_cost(seen))
        for key, seen in trials.cascaded.ranked(lambda seen: seen.n)
        if key[0] in tasks
    ]
    if rows:
        parts.append(Table("Sent on", columns(*SENT_ON), rows))
    if not parts:
        return None
    intro = (
        "Rows whose first answer was not sure enough, so that a stronger model was asked. Their cost holds both calls."
    )
    return Section("cascades", "Cascades", " ".join((intro, *(f"Note: {why}." for why in drifted))), tuple(parts))


SENT_ON = ("task", "first asked", "answered by", "#results", "#of the task", "#$ per 1,000", "#95 % interval")
SAVED = ("task", "top model", "#results", "#paid", "#top model alone, about", "#saved")
SAVED_NOTE = (
    "“Paid” is all calls of these results, judges included. The top model alone is an estimate: its price for the "
    "tokens of the answers that were taken; it might have said more, or less, and counts tokens in its own way."
)


def _declared(spec: RunSpec, seen: Mapping[str, Sum]) -> list[tuple[str, Cascade]]:
    tasks = spec.policy.tasks.items()
    return [(name, task.cascade) for name, task in tasks if task.cascade is not None and name in seen]


def _saved(name: str, top: str, paid: Sum, alone: Sum | None) -> tuple[str, ...]:
    """Says so where it cost more. `alone` None: the top model's price is not known."""
    known = shown(name), shown(top), f"{paid.n:,}", dollars(paid.nano)
    if alone is None:
        return (*known, "–", "–")
    saved = alone.nano - paid.nano
    told = f"{dollars(saved)} ({share(saved, alone.nano)})" if saved > 0 else f"nothing: {dollars(-saved)} more"
    return (*known, dollars(alone.nano), told)
