"""Outcomes of a run, by metric, task and model: for people and machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from penstock.engine.outcomes import Cell, CellOf, Finished, Joined
from penstock.engine.quality import Interval
from penstock.jobs.feedback.reading import stamp
from penstock.jobs.look.reading import Outputs
from penstock.jobs.look.told import Told, blocks
from penstock.jobs.wording import counted, inert, share

if TYPE_CHECKING:
    from rich.table import Table


def answers(runs: Sequence[Outputs]) -> Callable[[], Iterator[Finished]]:
    """All results of a run and of its replays. Of an item that was answered more than once each stands until the next
    is there: an outcome is about the one that there was when it came."""
    sent: dict[str, list[str]] = {block.item_id: [] for run in runs[1:] for block in blocks(run.records("results"))}
    for run in runs if sent else ():
        for block in blocks(run.records("results")):
            if block.item_id in sent:
                sent[block.item_id].append(_at(block))

    def each() -> Iterator[Finished]:
        for run in runs:
            for block in blocks(run.records("results")):
                yield _finished(block, sorted(sent.get(block.item_id, ())))

    return each


def _finished(block: Told, answered: list[str]) -> Finished:
    """`answered`: when each of its item's answers was there, where there are several."""
    place = answered.index(_at(block)) if answered else 0
    until = answered[place + 1] if place + 1 < len(answered) else ""
    named = target(block.model, block.model_version, block.arm)
    return Finished(block.item_id, block.episode, block.task or "", named, answered[place] if place else "", until)


def _at(block: Told) -> str:
    return "" if block.finished_at is None else stamp(block.finished_at.timestamp())


def target(model: str | None, version: str | None, arm: str | None = None) -> str:
    """`small@v2`, with the arm of an experiment; a version that says no more than the model is left out."""
    named = f"{model}@{version}" if version and version != model else model or "–"
    return f"{named} ({arm})" if arm else named


def sure(mean: float, interval: Interval | None) -> str:
    """`0.82 (0.74 to 0.88)`."""
    return f"{mean:.3g}" + (f" ({interval.low:.3g} to {interval.high:.3g})" if interval is not None else "")


def table(joined: Joined) -> Table:
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("metric", "task", "model"):
        made.add_column(name, overflow="fold")
    for name in ("outcomes", "of results", "mean, surely between"):
        made.add_column(name, justify="right", no_wrap=True)
    for of, cell in joined.cells.items():
        names = (Text(inert(name)) for name in (of.metric, of.task, of.target))
        made.add_row(*names, f"{cell.n:,}", _covered(joined, of, cell), sure(cell.mean, cell.interval))
    return made


def _covered(joined: Joined, of: CellOf, cell: Cell) -> str:
    results = joined.items[of.task, of.target]
    return share(min(cell.results, results), results)


def notes(joined: Joined) -> list[str]:
    """What was done with outcomes that don't simply count."""
    told = (
        (joined.late, "came after the run's end, and count"),
        (joined.superseded, "superseded by a later one about the same item and metric"),
        (joined.repeated, "told more than once, counted once"),
        (joined.contradicted, "told again with another value: the first one stands"),
        (joined.unknown, "of no result of this run (not finished yet, died, or of another run)"),
    )
    return [f"{counted(number, 'outcome')} {words}" for number, words in told if number]


def machine(joined: Joined) -> dict[str, object]:
    cells = [
        {
            "metric": of.metric,
            "task": of.task,
            "model": of.target,
            "outcomes": cell.n,
            "about": cell.results,
            "results": joined.items[of.task, of.target],
            "mean": cell.mean,
            "interval": cell.interval,
        }
        for of, cell in joined.cells.items()
    ]
    names = ("counted", "unknown", "late", "repeated", "contradicted", "superseded")
    return {"cells": cells, **{name: getattr(joined, name) for name in names}}
