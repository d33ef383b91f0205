"""Experiments and cascades: only where records tell of them."""

from __future__ import annotations

import msgspec

from penstock.jobs.look.page.groups import Groups, Sum, named, sums
from penstock.jobs.look.page.marks import Sampled, cost_interval
from penstock.jobs.look.page.parts import Section, Table, columns, milliseconds, percent, shown, spread
from penstock.jobs.look.page.sketch import Sketch
from penstock.jobs.look.report import interval
from penstock.jobs.look.told import SampleTold, Told, nano
from penstock.jobs.wording import dollars, share


class Arm(msgspec.Struct):
    cost: Sum = msgspec.field(default_factory=Sum)
    call: Sketch = msgspec.field(default_factory=Sketch)


class Trials:
    """`cascaded`: results with a call of a cascade, by (task, first model, model that answered)."""

    def __init__(self) -> None:
        self.arms: Groups[Arm] = Groups(Arm)
        self.scores: Groups[Sampled] = Groups(Sampled)
        self.cascaded: Groups[Sum] = sums()
        self.tasks: Groups[Sum] = sums()

    def result(self, block: Told) -> None:
        paid = nano(block.cost_usd)
        if block.experiment is not None or block.arm is not None:
            arm = self.arms.at(named(block.experiment), named(block.arm))
            arm.cost.add(paid)
            arm.call.add(block.call_ms or 0.0)
        self.tasks.at(named(block.task)).add(paid)
        if any(tried.role == "cascade" for tried in block.attempts):
            first = min(block.attempts, key=lambda tried: tried.n)
            self.cascaded.at(named(block.task), named(first.model), named(block.model)).add(paid)

    def sample(self, sample: SampleTold) -> None:
        if sample.arm is not None:
            self.scores.at(named(sample.task), named(sample.arm), named(sample.scorer)).add(sample)


def sections(trials: Trials) -> list[Section]:
    return [section for section in (_experiments(trials), _cascades(trials)) if section is not None]


def _experiments(trials: Trials) -> Section | None:
    if not trials.arms:
        return None
    costs = [
        (shown(experiment), shown(arm), f"{seen.cost.n:,}", *_cost(seen.cost), milliseconds(seen.call.quantile(0.5)))
        for (experiment, arm), seen in sorted(trials.arms.ranked(lambda seen: seen.cost.n))
    ]
    names = columns("experiment", "arm", "#results", "#$ per 1,000", "#95 % interval", "#called p50")
    tables = [Table("Cost and latency by arm", names, costs)]
    scores = [
        (*map(shown, key), f"{seen.tally.n:,}", percent(seen.mean), spread(interval(seen.tally)))
        for key, seen in sorted(trials.scores.ranked(lambda seen: seen.tally.n), key=lambda kv: kv[0])
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


def _cascades(trials: Trials) -> Section | None:
    if not trials.cascaded:
        return None
    tasks = {key[0]: seen for key, seen in trials.tasks.ranked(lambda seen: seen.n)}
    rows = [
        (*map(shown, key), f"{seen.n:,}", share(seen.n, tasks[key[0]].n), *_cost(seen))
        for key, seen in trials.cascaded.ranked(lambda seen: seen.n)
        if key[0] in tasks
    ]
    names = columns("task", "first asked", "answered by", "#results", "#of the task", "#$ per 1,000", "#95 % interval")
    intro = (
        "Rows whose first answer was not sure enough, so that a stronger model was asked. Their cost holds both calls."
    )
    return Section("cascades", "Cascades", intro, (Table("Sent on", names, rows),))
