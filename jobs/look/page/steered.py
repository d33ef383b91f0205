"""From one version to the next: what was decided meanwhile and by which numbers, and who answered at each stage."""

from __future__ import annotations

import math
from collections.abc import Iterator

from penstock.engine.flow.cells import Cell
from penstock.engine.measure.intervals import anytime_interval
from penstock.engine.measure.sample import merge
from penstock.engine.steering.rollout import Told, arm_of
from penstock.jobs.look.page.beside import Beside, Decision
from penstock.jobs.look.page.parts import Section, Table, columns, percent, shown, spread, when
from penstock.jobs.wording import dollars, share

WORDS = {
    "stage": "one stage further", "rolled_back": "taken back", "promoted": "live for all", "passed": "shadow passed",
    "watching": "live, and watched",
}  # fmt: skip
INTRO = (
    "Decisions stand in the audit log with the numbers that made them. Numbers are those of the marks in the figure "
    "under Routing. A guard that passed says that no harm beyond its bound was shown, not that there is none."
)


def section(beside: Beside, cells: list[Cell]) -> Section | None:
    """None: no rollout of the run's models went on while it did."""
    if not beside.decisions:
        return None
    decided = Table("Decisions", columns(*DECIDED), [_decided(n, d) for n, d in enumerate(beside.decisions, 1)])
    said = [(str(n), *_said(told)) for n, d in enumerate(beside.decisions, 1) for told in d.guards]
    parts = [decided]
    if said:
        note = "Candidate less baseline. Costs and latencies are factors. Of all runs of this state together."
        parts.append(Table("What the guards said", columns(*SAID), said, note=note))
    if rows := _answered(beside, cells):
        note = "Of this run alone, from its measured cells. Intervals may be looked at any time (95 %)."
        parts.append(Table("Who answered, by stage", columns(*ANSWERED), rows, note=note))
    return Section("rollouts", "Rollouts", INTRO, tuple(parts))


DECIDED = ("#no.", "#when (UTC)", "model", "from", "to", "decision", "#share from then", "by", "why")
SAID = ("#no.", "guard", "says", "#items", "#difference", "#may be as bad as")
ANSWERED = (
    "model", "stage", "version", "#items", "#results", "#of the run", "#$ per 1,000", "scorer", "#n", "#mean score",
    "#surely between",
)  # fmt: skip


def _decided(n: int, d: Decision) -> tuple[str, ...]:
    versions = shown(d.model), shown(d.baseline), shown(d.candidate)
    said = WORDS.get(d.what, d.what), f"{100 * d.share:g} %", shown(d.by), d.why or "–"
    return (str(n), when(d.at), *versions, *said)


def _said(told: Told) -> tuple[str, ...]:
    return shown(told.guard), told.decision, f"{told.items:,}", _number(told, told.mean), _number(told, told.worst)


def _number(told: Told, value: float | None) -> str:
    if value is None:
        return "–"
    return f"× {math.exp(value):.2f}" if told.guard in ("cost", "latency") else f"{100 * value:+.1f} points"


def _answered(beside: Beside, cells: list[Cell]) -> list[tuple[str, ...]]:
    """Prompts, prices and tasks together; scorers apart."""
    by_id = {each.rollout: each for each in beside.decisions}
    sides: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        if cell.experiment in by_id and arm_of(cell.arm) is not None and cell.role != "judge":
            sides.setdefault((cell.experiment, cell.arm), []).append(cell)
    total = sum(cell.results for cell in cells if not cell.role)
    rows = [
        (shown(by_id[rollout].model), _stage(arm), shown(of[0].version), *cells_told)
        for (rollout, arm), of in sides.items()
        for cells_told in _cells(of, total)
    ]
    return sorted(rows)


def _stage(arm: str) -> str:
    number = arm.rpartition("-")[2]
    return "shadow" if number == "0" else number


def _cells(of: list[Cell], total: int) -> Iterator[tuple[str, ...]]:
    """Answers of a shadow are no results of the run."""
    items, results, nano = (sum(getattr(cell, name) for cell in of) for name in ("items", "results", "cost_nano"))
    part = "–" if of[0].role else share(results, total)
    counts = f"{items:,}", f"{results:,}", part, dollars(nano * 1000 // items) if items else "–"
    scorers = sorted({name for cell in of for name in cell.scores})
    for name in scorers or [""]:
        sample = merge(*(cell.scores[name].sample() for cell in of if name in cell.scores))
        mean = "–" if sample.mean is None else percent(sample.mean)
        yield (*counts, shown(name.partition("@")[0]) or "–", f"{sample.n:,}", mean, spread(anytime_interval(sample)))
