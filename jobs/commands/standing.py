"""`penstock models --task T`: what was measured of each model, and where items would go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from penstock.engine.errors import SpecError
from penstock.jobs.commands import shared
from penstock.jobs.wording import relative

if TYPE_CHECKING:
    from rich.table import Table

    from penstock.engine.quality import Interval
    from penstock.jobs.look.standing import Known, Standings

COLUMNS = ("", "model", "n", "quality (95 %)", "$ per 1,000", "accepted (95 %)", "latency", "known")
WIDE = 105
"""Columns of a terminal that hold a line of usual names; on a narrower one intervals stand under their means."""


def tell(job: str, sets: tuple[str, ...], task: str, sensitivity: str | None, plot: str | None, as_json: bool) -> None:
    """Raises `SpecError`, `Corrupt`, `Temporary`."""
    from penstock.connectors.measured import Registry
    from penstock.connectors.state import open_state
    from penstock.connectors.steering import SteeringFile
    from penstock.jobs.look.standing import known
    from penstock.jobs.look.standing import plot as drawn

    if plot is not None and not plot.endswith((".svg", ".html")):
        raise SpecError(f"--plot {plot}: name a file that ends in .svg or .html")
    spec = shared.load_job(job, sets)
    measured, steered = Registry(open_state(spec.state)).read(), SteeringFile(spec.state).read()
    found = known(spec, measured, task, sensitivity, steered[0] if steered is not None else None)
    if plot is not None:
        Path(plot).write_text(drawn(found, page=plot.endswith(".html")), "utf-8")
    if as_json:
        shared.print_json(found)
        return
    out = shared.console()
    out.print(_table(found, narrow=out.width < WIDE))
    for line in _words(found, plot):
        out.print(line, style="dim", markup=False)


def _table(found: Standings, *, narrow: bool) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    for name in COLUMNS:
        right = name in ("n", "$ per 1,000", "latency")
        head = name.replace(" (", "\n(").replace("per ", "per\n") if narrow else name
        table.add_column(head, justify="right" if right else "left", overflow="fold", no_wrap=name != "model")
    for row in found.models:
        table.add_row(*(cell.replace(" (", "\n(") if narrow else cell for cell in _cells(row)))
    return table


def _cells(row: Known) -> tuple[str, ...]:
    place = "" if row.place is None else "→" if row.place == 0 else str(row.place + 1)
    cost = "–" if row.item_usd is None else f"${1000 * row.item_usd:.3g}"
    latency = "–" if row.latency_ms is None else f"{row.latency_ms:.0f} ms"
    quality = f"{row.declared:.3g}" if row.quality is None and row.declared is not None else _percent(row.quality)
    model = f"{row.model}@{row.version}"
    return place, model, f"{row.n:,}" if row.n else "–", quality, cost, _money(row.accepted_usd), latency, _source(row)


def _source(row: Known) -> str:
    if row.quality is not None:
        return "measured"
    return "declared" if row.declared is not None else "unknown"


def _percent(around: Interval | None) -> str:
    if around is None:
        return "–"
    return f"{100 * around.mean:.1f} % ({100 * around.low:.1f}–{100 * around.high:.1f})"


def _money(around: Interval | None) -> str:
    if around is None:
        return "–"
    mean, low, high = (1000 * each for each in (around.mean, around.low, around.high))
    return f"${mean:.3g} ({low:.3g}–{high:.3g})"


def _words(found: Standings, plot: str | None) -> list[str]:
    asked = f"min_quality {found.asked:g}" if found.asked is not None else "no min_quality: by preference"
    lines = [
        "",
        f"task {found.task}, {asked}; scorer: {found.scorer or 'none without a judge, so nothing is measured'}",
    ]
    lines += [f"→ {found.why}"]
    lines += [f"  {row.model}: {row.why}" for row in found.models if row.why]
    if found.others:
        lines.append(f"other prompts of this task were measured too, and don't count: {', '.join(found.others)}")
    if plot is not None:
        lines.append(f"plot in {relative(plot)}")
    return lines
