"""How good: samples by task and model, with 95 % intervals, and quality against cost."""

from __future__ import annotations

import msgspec

from penstock.engine.quality import Interval, mean_interval
from penstock.jobs.look.page.groups import Groups, Key, Sum, named, sums, versioned
from penstock.jobs.look.page.parts import Figure, Section, Table, columns, percent, shown, spread
from penstock.jobs.look.page.scatter import Point, scatter
from penstock.jobs.look.report import interval
from penstock.jobs.look.told import SampleTold, Told, nano
from penstock.jobs.wording import dollars
from penstock.workers.status import TaskTally

FEW = 30
"""Samples below which no model should be chosen by them: the interval of a share of 50 % is still 34 points wide."""
ROOM = 1000.0
"""The engine's interval is for scores, 0…1, and ends at 1: costs are scaled to lie far below."""


class Sampled(msgspec.Struct):
    tally: TaskTally = msgspec.field(default_factory=TaskTally)
    least_share: float = 1.0
    most_share: float = 0.0

    def add(self, sample: SampleTold) -> None:
        tally = self.tally
        tally.n += 1
        tally.score += sample.score
        tally.score2 += sample.score * sample.score
        tally.passed += sample.passed
        self.least_share = min(self.least_share, sample.sample_probability)
        self.most_share = max(self.most_share, sample.sample_probability)

    @property
    def mean(self) -> float:
        return self.tally.score / self.tally.n if self.tally.n else 0.0


class Marks:
    """`scores`: by (task, model@version, scorer). `costs`: of results by (task, model@version)."""

    def __init__(self) -> None:
        self.scores: Groups[Sampled] = Groups(Sampled)
        self.costs: Groups[Sum] = sums()

    def see(self, sample: SampleTold) -> None:
        self.scores.at(named(sample.task), versioned(sample.model, sample.model_version), named(sample.scorer)).add(
            sample
        )

    def result(self, block: Told) -> None:
        self.costs.at(named(block.task), versioned(block.model, block.model_version)).add(nano(block.cost_usd))


def cost_interval(cost: Sum) -> Interval | None:
    """Of the mean cost of a result, in nano-dollars (95 %). None: fewer than two results, or nothing was paid."""
    if not cost.most:
        return None
    scale = ROOM * cost.most
    around = mean_interval(cost.n, cost.nano / scale, cost.nano2 / scale / scale)
    return around and Interval(around.mean * scale, around.low * scale, around.high * scale)


def section(marks: Marks, measured: Table | None = None) -> Section:
    """`measured`: what all runs know of these models."""
    more = () if measured is None else (measured,)
    costs = Table("What a result costs, by task and model", columns(*COST_COLUMNS), _cost_rows(marks), note=COST_NOTE)
    if not marks.scores:
        mine = (costs,) if marks.costs else ()
        return Section("quality", "Quality", "No result was sampled for quality.", (*mine, *more))
    rows = _rows(marks)
    quality = _quality(marks, [cells for _, cells in rows])
    points = [point for point, _ in rows if point is not None]
    figures = (Figure("Quality against cost", scatter(points), PLOT_NOTE),) if points else ()
    return Section("quality", "Quality", INTRO, (*figures, quality, *more, costs))


COLUMNS = ("#no.", "task", "model", "scorer", "#n", "#sampled", "#mean score", "#95 % interval", "#passed", "note")
COST_COLUMNS = ("task", "model", "#results", "#$ per 1,000", "#95 % interval", "#$ in all")
COST_NOTE = (
    "All attempts of a result count, whichever model they went to; copies cost nothing. Closing lines of own engines "
    "(load, idle) stand in the bill alone."
)
INTRO = (
    "Means of the scores of sampled results. Where all scores are 0 or 1 the interval is Wilson's, else "
    "Student's: 95 % of such intervals hold the true mean of results like these."
)
PLOT_NOTE = (
    "Up and to the left is better. Bars are 95 % intervals, of the mean score and of the mean cost of a result. "
    "Numbers are those of the table below."
)


def _quality(marks: Marks, rows: list[tuple[str, ...]]) -> Table:
    """With a column of warnings only where there is one."""
    end = None if any(cells[-1] for cells in rows) else -1
    shorter = [cells[:end] for cells in rows]
    return Table("Quality by task and model", columns(*COLUMNS[:end]), shorter, note=_note(marks))


def _rows(marks: Marks) -> list[tuple[Point | None, tuple[str, ...]]]:
    costs = {key: cost for key, cost in marks.costs.ranked(lambda cost: cost.n)}
    groups = sorted(marks.scores.ranked(lambda sampled: sampled.tally.n), key=lambda kv: (kv[0][0], -kv[1].mean))
    return [(_point(i, key, s, costs.get(key[:2])), _cells(i, key, s)) for i, (key, s) in enumerate(groups, 1)]


def _cells(number: int, key: Key, sampled: Sampled) -> tuple[str, ...]:
    tally = sampled.tally
    few = "too few samples to choose by" if tally.n < FEW else ""
    task, model, scorer = map(shown, key)
    counts = (f"{tally.n:,}", _share(sampled), percent(sampled.mean), spread(interval(tally)), f"{tally.passed:,}")
    return (str(number), task, model, scorer, *counts, few)


def _share(sampled: Sampled) -> str:
    low, high = f"{100 * sampled.least_share:.3g}", f"{100 * sampled.most_share:.3g}"
    return f"{low} %" if low == high else f"{low}–{high} %"


def _note(marks: Marks) -> str:
    uneven = any(s.least_share < s.most_share for _, s in marks.scores.ranked(lambda s: s.tally.n))
    return "Where results were sampled with different chances, all samples still weigh the same." if uneven else ""


def _point(number: int, key: Key, sampled: Sampled, cost: Sum | None) -> Point | None:
    """None: no result of that task and model, so no cost."""
    if cost is None or not cost.n:
        return None
    paid = cost_interval(cost)
    mean = cost.nano / cost.n
    across = (mean, paid.low, paid.high) if paid else (mean, mean, mean)
    around = interval(sampled.tally)
    up = (sampled.mean, around.low, around.high) if around else (sampled.mean,) * 3
    return Point(number, key[0], shown(key[1]), tuple(1000 * nano / 1e9 for nano in across), up)


def _cost_rows(marks: Marks) -> list[tuple[str, ...]]:
    ranked = sorted(marks.costs.ranked(lambda cost: cost.nano), key=lambda kv: kv[0][0])
    return [(shown(task), shown(model), *_cost_cells(cost)) for (task, model), cost in ranked]


def _cost_cells(cost: Sum) -> tuple[str, ...]:
    around = cost_interval(cost)
    low_high = f"{dollars(round(around.low * 1000))}–{dollars(round(around.high * 1000))}" if around else "–"
    return (f"{cost.n:,}", dollars(cost.nano * 1000 // cost.n), low_high, dollars(cost.nano))
