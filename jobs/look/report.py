"""The summary at the end of a run: what came of it, what it cost, how good it is, where it is, what to do next.

`summary` makes rich renderables from a `RunStatus` alone, so it is the same right after the run, from history a week
later, on a terminal and in a pipe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.engine.flow.cells import Cell, quality_rows
from penstock.engine.quality import Interval, mean_interval, proportion_interval
from penstock.jobs.history import is_over
from penstock.jobs.progress import done_items, expected_items
from penstock.jobs.wording import at_state, counted, dollars, duration, escaped, relative, share, tallied
from penstock.workers.status import ModelTally, RunStatus, Slow, Tally, TaskTally

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

FILES_SHOWN = 3
ID_WIDTH = 24
KEPT = "what is committed is not paid for again"


def summary(status: RunStatus, *, state: str | None = None) -> list[RenderableType]:
    """`state`: the state URL, where it is not the default and the next command must name it."""
    run = status.run_id + (f" {at_state(state)}" if state else "")
    parts: list[RenderableType] = ["", _headline(status)]
    told = status.message.removeprefix(f"{status.state}: ").removeprefix(f"{status.state}; ")
    if told:
        parts.append(f"  {escaped(told)}")
    parts += ["", _facts(status)]
    if status.tally.models:
        parts += ["", _models(status.tally)]
    parts += ["", _lines(status, run)]
    return parts


def _headline(status: RunStatus) -> str:
    colour = {"done": "green", "failed": "red", "too_many_dead_letters": "red"}.get(status.state, "yellow")
    took = duration(max(0.0, (status.ended_at or status.updated_at) - status.since))
    first = ""
    if status.first_dispatch_at is not None:
        first = f", first call after {duration(status.first_dispatch_at - status.since)}"
    again = ", resumed" if status.resumed else ""
    how = f"[{colour}]{status.state.replace('_', ' ')}[/] {'in' if is_over(status) else 'for'} {took}"
    return f"[bold]{escaped(status.name)}[/]  {how}{first}{again}"


def _facts(status: RunStatus) -> Table:
    """Items and tiers."""
    table = _grid()
    tally = status.tally
    done, total = done_items(status), expected_items(status)
    of = f" of {total:,}" if total is not None and total != done else ""
    parts = [f"{done:,}{of}: {counted(tally.results, 'result')}"]
    if tally.dead_letters:
        parts.append(counted(sum(tally.dead_letters.values()), "dead letter"))
    table.add_row("items", ", ".join(parts))
    for tier, count in sorted(tally.tiers.items()):
        table.add_row(f"tier {tier}", f"{count:,} ({share(count, sum(tally.tiers.values()))})")
    extras = _extras(tally)
    if extras:
        table.add_row("", ", ".join(extras))
    return table


def _extras(tally: Tally) -> list[str]:
    kinds = ((tally.copied, "answered by a copy"), (tally.retries, "retries"), (tally.fallbacks, "fallbacks"))
    return [f"{count:,} {word}" for count, word in kinds if count]


def _models(tally: Tally) -> Table:
    """$ by model. A model that answered nothing is listed too: its calls may have cost."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    table.add_column("model", overflow="fold")
    cached = any(model.cached_tokens for model in tally.models.values())
    for name in ("calls", "items", "tokens in", *(["cached"] if cached else []), "out", "$"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("basis", no_wrap=True)
    rows = sorted(tally.models.items(), key=lambda kv: -kv[1].cost_nano)
    for key, model in rows:
        table.add_row(model.model or key, *_model_cells(model, cached), model.basis)
    if len(rows) > 1:
        table.add_row("[bold]all[/]", *_model_cells(_total(tally), cached), "", style="bold")
    return table


def _model_cells(model: ModelTally, cached: bool) -> tuple[str, ...]:
    """`cached`: whether that column is shown; room is short at 80 columns."""
    hit = (model.cached_tokens,) if cached else ()
    counts = (model.calls, model.items, model.input_tokens, *hit, model.output_tokens)
    return (*(f"{count:,}" for count in counts), dollars(model.cost_nano))


def _total(tally: Tally) -> ModelTally:
    total = ModelTally(cost_nano=tally.cost_nano)
    for model in tally.models.values():
        total.calls += model.calls
        total.items += model.items
        total.input_tokens += model.input_tokens
        total.cached_tokens += model.cached_tokens
        total.output_tokens += model.output_tokens
    return total


def _lines(status: RunStatus, run: str) -> Table:
    """Everything that is one labelled line, left out where there is nothing to say. `run`: as commands name it."""
    table = _grid()
    tally = status.tally
    for label, text in (
        ("cost", cost_line(status)),
        ("saved", saved_line(tally)),
        *(("quality", line) for line in _quality(status.cells)),
        *(("slowest", _slow(slow)) for slow in tally.slowest[:3]),
        ("dead letters", _dead(tally, f"--run {run}")),
        *(("steps", line) for line in _steps(tally)),
        ("walls", f"targets refused: {tallied(tally.refused)}" if tally.refused else ""),
        ("ledger", ledger_line(status)),
        *_files(status),
        *(("note", escaped(note)) for note in status.notes),
        ("next", _next(status, run)),
    ):
        if text:
            table.add_row(label, text)
    _blank_repeats(table)
    return table


def _blank_repeats(table: Table) -> None:
    """A label that stands right above needs no second mention."""
    cells = list(table.columns[0].cells)
    table.columns[0]._cells = [  # pyright: ignore[reportPrivateUsage] # rich has no public way to change a cell
        "" if i and cell == cells[i - 1] else cell for i, cell in enumerate(cells)
    ]


def cost_line(status: RunStatus) -> str:
    text = dollars(status.tally.cost_nano)
    if status.tally.results:
        text += f", {dollars(status.tally.cost_nano * 1000 // status.tally.results)} per 1,000 results"
    if status.budget_limit_nano is not None:
        text += f"; budget {dollars(status.budget_spent_nano)} of {dollars(status.budget_limit_nano)}"
    return text


def saved_line(tally: Tally) -> str:
    """Against the same tokens at the first Tier 1 model. Says so, too, where it cost more."""
    difference = tally.tier1_cost_nano - tally.cost_nano
    if not tally.tier1_cost_nano or not difference:
        return ""
    if difference < 0:
        return f"nothing: all at Tier 1 would have cost {dollars(tally.tier1_cost_nano)}"
    return (
        f"{dollars(difference)} ({share(difference, tally.tier1_cost_nano)}): "
        f"all at Tier 1 would have cost {dollars(tally.tier1_cost_nano)}"
    )


def _quality(cells: list[Cell]) -> list[str]:
    return [quality_line(row) for row in quality_rows(cells) if row.n]


def quality_line(task: TaskTally) -> str:
    """`classification, small: 82.1 % (79.3–84.6 %, n = 412)`."""
    mean = task.score / task.n
    around = interval(task)
    spread = f"{100 * around.low:.1f}–{100 * around.high:.1f} %, " if around else ""
    return f"{escaped(task.task)}, {escaped(task.model)}: {100 * mean:.1f} % ({spread}n = {task.n:,})"


def interval(task: TaskTally) -> Interval | None:
    """Where the true mean lies (95 %). Scores that are all 0 or 1 are a proportion; others a mean."""
    if task.score == task.score2 == task.passed:
        return proportion_interval(task.passed, task.n)
    return mean_interval(task.n, task.score, task.score2)


def _steps(tally: Tally) -> list[str]:
    """Judges, shadows, and cascades: what they did and cost, and what was left out."""
    kinds = [kind for kind in ("shadow", "judge") if kind in tally.steps_nano or _left_out(tally, kind)]
    lines = [f"{kind}s: {counted(tally.steps.get(kind, 0), 'answer')}, {_cost(tally, kind)}" for kind in kinds]
    climbs = ", ".join(f"{pair.replace('|', ' to ')} {n:,}" for pair, n in sorted(tally.climbed.items()))
    return [*lines, *([f"doubtful answers sent up: {climbs}"] if climbs else [])]


def _cost(tally: Tally, kind: str) -> str:
    return dollars(tally.steps_nano.get(kind, 0)) + _left_out(tally, kind)


def _left_out(tally: Tally, kind: str) -> str:
    whys = {pair.partition("|")[2]: n for pair, n in tally.steps_failed.items() if pair.startswith(kind + "|")}
    return f"; left out: {tallied(whys)}" if whys else ""


def _slow(slow: Slow) -> str:
    name = slow.custom_id or slow.item_id
    short = name if len(name) <= ID_WIDTH else name[: ID_WIDTH - 1] + "…"
    return f"{duration(slow.seconds):>9}  {escaped(short)}  {escaped(slow.model)}"


def _dead(tally: Tally, named: str) -> str:
    if not tally.dead_letters:
        return ""
    return f"{tallied(tally.dead_letters)}\n→ penstock dead-letters list {named}"


def ledger_line(status: RunStatus) -> str:
    tally = status.tally
    parts: list[str] = []
    if tally.maybe_paid:
        parts.append(f"{counted(tally.maybe_paid, 'item')} may have been paid for twice (marked maybe_paid)")
    if tally.late_payments:
        parts.append(f"{counted(tally.late_payments, 'late payment')}")
    if tally.unknown_nano:
        counts = "" if status.budget_limit_nano is None else ", counted as spent"
        parts.append(f"up to {dollars(tally.unknown_nano)} more may be billed for calls whose end is not known{counts}")
    if leases := tally.forfeit_nano - tally.unknown_nano:
        parts.append(f"{dollars(leases)} forfeit (leases lost in a crash, counted as spent)")
    return "; ".join(parts)


def _files(status: RunStatus) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for sink, paths in status.outputs.items():
        if sink == "dead_letters" and not status.tally.dead_letters:
            continue
        shown = [escaped(relative(path)) for path in paths[:FILES_SHOWN]]
        if len(paths) > FILES_SHOWN:
            shown.append(f"… {len(paths) - FILES_SHOWN} more")
        if shown:
            rows.append((sink.replace("_", " ") + " in", "\n".join(shown)))
    return rows


def _next(status: RunStatus, run: str) -> str:
    match status.state:
        case "done" if not done_items(status):
            return ""
        case "done":
            example = status.tally.slowest[0].item_id[:12] if status.tally.slowest else "ID"
            return f"penstock explain {example} --run {run}"
        case "starting" | "running" | "draining" | "assembling":
            return f"penstock status {run}"
        case "stopped_by_budget":
            return "raise `budgets` in the job file and run it again: it goes on where it was"
        case "too_many_dead_letters":
            return "mend what the dead letters say, then run again, or raise max_dead_letters"
        case "failed":  # by the job file: it may have to be mended, and `run ID` reads the spec of before
            return f"mend what it says and run the job file again: it goes on where it was; {KEPT}"
        case "handed_over":
            return f"penstock status {run}: it goes on in the command that took it over"
        case "cancelled" | "interrupted":
            return f"penstock run {run} goes on where it was; {KEPT}"


def _grid() -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table
