"""Evaluations of the job, and what all runs of the state measured of its models: with intervals that may be looked at
any time."""

from __future__ import annotations

from penstock.engine.measure.evaluation import Line
from penstock.engine.policy import Policy
from penstock.engine.quality import Interval
from penstock.engine.registry.standing import Reading, Standing, cost_per_accepted, read
from penstock.jobs.evals import view
from penstock.jobs.evals.running import Found
from penstock.jobs.look.page.beside import Beside
from penstock.jobs.look.page.parts import Section, Table, columns, milliseconds, percent, shown, spread
from penstock.jobs.wording import counted, dollars, share

MEASURED_NOTE = (
    "By all runs of this state, with the job's own prompt and its first scorer that is no judge; of a model that fell "
    "below the quality that its task asks for, by what was scored since. Intervals may be looked at any time (95 %); "
    "that of the cost is rough. Failures, judges and idle hours are in its cost."
)
INTRO = (
    "Candidates answered the same rows, and an answer that failed scores 0. Quality intervals may be looked at any "
    "time; those of costs are approximate. No winner does not mean that candidates are equal."
)


def measured(standings: tuple[Standing, ...], policy: Policy) -> Table | None:
    """For the section of quality: as items are routed by it. None: nothing was scored yet."""
    asked = {name: task.min_quality or 0.0 for name, task in policy.tasks.items()}
    rows = [_standing(at, read(at, asked[at.task])) for at in standings if at.sample.n]
    names = columns("task", "model", "#n", "#mean score", "#surely between", "#$ per 1,000 accepted", "#95 % interval")
    return Table("Quality and cost as all runs measured it", names, rows, note=MEASURED_NOTE) if rows else None


def _standing(at: Standing, found: Reading) -> tuple[str, ...]:
    mean, cost = found.now.sample.mean or 0.0, cost_per_accepted(found.now)
    paid = ("–", "–") if cost is None else (_thousand(cost.mean), _money(cost))
    model = f"{shown(at.model)}@{shown(at.version)}"
    return (shown(at.task), model, f"{found.n:,}", percent(mean), spread(found.interval), *paid)


def _money(around: Interval | None) -> str:
    return "–" if around is None else f"{_thousand(max(0.0, around.low))}–{_thousand(around.high)}"


def _thousand(nano: float) -> str:
    return dollars(round(1000 * nano))


def evaluations(beside: Beside) -> Section | None:
    tables = [_table(found) for found in beside.evaluations if found.evaluation is not None]
    return Section("evaluations", "Evaluations", INTRO, tuple(tables)) if tables else None


def _table(found: Found) -> Table:
    assert found.evaluation is not None
    words = view.Words(found.prepared)
    rows = [_line(line, words) for line in found.evaluation.lines]
    name, asked = found.prepared.name, found.prepared.asked
    caption = f"{shown(name)}: {counted(len(found.seen.rows), 'row')}, scored by {shown(asked.scorer)}"
    return Table(caption, columns(*NAMES), rows, note=view.verdict(found))


NAMES = (
    "candidate", "#quality", "#surely between", "#failed", "#$ per 1,000", "#per 1,000 accepted", "#95 % interval",
    "#called p50", "#p95",
)  # fmt: skip


def _line(line: Line, words: view.Words) -> tuple[str, ...]:
    quality = ("–", "–") if line.quality is None else (percent(line.quality.mean), spread(line.quality))
    failed = share(line.failed, line.rows) if line.failed else "none"
    accepted = "–" if line.per_accepted_nano is None else _thousand(line.per_accepted_nano)
    costs = _thousand(line.per_item_nano), accepted, _money(line.per_accepted)
    return (shown(words[line.name]), *quality, failed, *costs, milliseconds(line.median_ms), milliseconds(line.p95_ms))
