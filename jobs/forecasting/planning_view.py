"""A plan as people read it: what would be read, who would answer, what it costs and takes, what goes wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.engine.items import NANO_PER_USD
from penstock.jobs.forecasting.forecast import Interval
from penstock.jobs.forecasting.plan_report import BudgetPlan, ModelPlan, PlanReport
from penstock.jobs.wording import counted, dollars, duration, escaped

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

REASONS_SHOWN = 6
MESSAGE_WIDTH = 100


def render(plan: PlanReport) -> list[RenderableType]:
    """Parts to print one under another, on a terminal as in a pipe."""
    parts: list[RenderableType] = [_headline(plan)]
    if plan.models:
        parts += ["", _models(plan), "", _tiers(plan)]
    parts += ["", _sum(plan)]
    for lines in (_dead_letters(plan), _refused(plan), _budgets(plan), _notes(plan)):
        if lines:
            parts += ["", "\n".join(lines)]
    return parts


def _headline(plan: PlanReport) -> str:
    if plan.per_items is not None:
        seen = counted(plan.sampled, "record")
        return f"[bold]{escaped(plan.name)}[/]: an input without an end; {seen} looked at, nothing called or paid for"
    rows = counted(round(plan.rows.likely), "row") if plan.rows_exact else f"{_count(plan.rows)} rows (estimated)"
    looked = "all looked at" if plan.sampled >= plan.rows.high else f"{plan.sampled:,} looked at"
    return f"[bold]{escaped(plan.name)}[/]: {rows}, {_bytes(plan.input_bytes)}; {looked}, nothing called or paid for"


def _models(plan: PlanReport) -> Table:
    table = _table("tier", "task", "model", "rows", "tokens in", "tokens out", "cost")
    versions = {model: {m.version for m in plan.models if m.model == model} for model in {m.model for m in plan.models}}
    for m in plan.models:
        table.add_row(
            str(m.tier),
            escaped(m.task),
            escaped(m.model if len(versions[m.model]) == 1 else f"{m.model}@{m.version}"),
            _count(m.rows),
            _count(m.input_tokens),
            _count(m.output_tokens),
            _priced(m),
        )
    return table


def _priced(m: ModelPlan) -> str:
    if m.price_version == "unknown":
        return "unknown"
    return "free" if m.price_version == "free" else _money(m.cost_nano)


def _tiers(plan: PlanReport) -> Table:
    table = _table("tier", "rows", "cost", "at worst", "time")
    for t in plan.tiers:
        took = "unknown: not measured yet, and tokens_per_s is not declared" if t.seconds is None else _time(t.seconds)
        table.add_row(str(t.tier), _count(t.rows), _money(t.cost_nano), dollars(round(t.worst_nano)), took)
    return table


def _sum(plan: PlanReport) -> str:
    took = "time unknown" if plan.seconds is None else f"{_time(plan.seconds)}, once models are loaded"
    worst = dollars(round(plan.worst_nano))
    if plan.per_items is not None:
        return f"[bold]{_money(plan.cost_nano)} per {plan.per_items:,} items[/], at worst {worst}"
    dearest = "each row at the dearest model it may fall back to"
    return f"[bold]{_money(plan.cost_nano)}[/], at worst {worst} ({dearest}); {took}"


def _dead_letters(plan: PlanReport) -> list[str]:
    lines = ["[bold]dead letters foreseen[/]"] if plan.dead_letters else []
    for reason, many in list(plan.dead_letters.items())[:REASONS_SHOWN]:
        message = plan.examples.get(reason, "")[:MESSAGE_WIDTH]
        lines.append(f"  {_count(many)} {reason}: {escaped(message)}")
    return lines


def _refused(plan: PlanReport) -> list[str]:
    lines = ["[bold]models refused (rows looked at)[/]"] if plan.refused else []
    for model, why in plan.refused.items():
        said = "; ".join(f"{n:,} × {escaped(reason)}" for reason, n in sorted(why.items(), key=lambda kv: -kv[1])[:3])
        lines.append(f"  {escaped(model)}: {said}")
    return lines


def _budgets(plan: PlanReport) -> list[str]:
    return [
        f"[{_colour(b)}]{'✓' if b.holds_worst else '!' if b.holds else '✗'}[/] {escaped(b.message)}"
        for b in plan.budgets
    ]


def _colour(budget: BudgetPlan) -> str:
    return "green" if budget.holds_worst else "yellow" if budget.holds else "red"


def _notes(plan: PlanReport) -> list[str]:
    return [f"[dim]· {escaped(note)}[/]" for note in plan.notes]


def _count(value: Interval) -> str:
    low, high = round(value.low), round(value.high)
    return f"{low:,}" if low == high else f"{_short(low)}–{_short(high)}"


def _short(value: int) -> str:
    if value < 10_000:
        return f"{value:,}"
    return f"{value / 1000:,.0f}k" if value < 10_000_000 else f"{value / 1e6:,.1f}M"


def _money(value: Interval) -> str:
    low, high = round(value.low), round(value.high)
    return dollars(low) if low == high else f"{_near(low)}–{_near(high)}"


def _near(nano: int) -> str:
    """A forecast has two digits; more would be pretended."""
    usd = nano / NANO_PER_USD
    if usd >= 100:
        return f"${usd:,.0f}"
    if usd >= 1:
        return f"${usd:,.2f}"
    return f"${float(f'{usd:.2g}'):f}".rstrip("0").rstrip(".") if usd >= 1e-6 else "$0"


def _time(value: Interval) -> str:
    return duration(value.low) if value.exact else f"{duration(value.low)}–{duration(value.high)}"


def _bytes(size: int) -> str:
    for unit, by in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= by:
            return f"{size / by:.1f} {unit}"
    return f"{size} bytes"


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for n, name in enumerate(columns):
        table.add_column(
            name, justify="left" if n < 3 and name in {"tier", "task", "model"} else "right", overflow="fold"
        )
    return table
