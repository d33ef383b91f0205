"""What the demo shows at the end of an act, measured from the files: the check, one record, the bill, the accuracy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from penstock.engine.catalog import Catalog
from penstock.engine.items import Usage
from penstock.engine.pricing import cost_nano, price_of
from penstock.jobs.demo.stage import Stage
from penstock.jobs.forecasting.forecast import Interval, share_interval
from penstock.jobs.look.committed import Line, Outputs
from penstock.jobs.look.verify import Report
from penstock.jobs.wording import counted, dollars, share

SHOWN = (
    "item_id",
    "task",
    "tier",
    "status",
    "model",
    "route_reason",
    "attempts",
    "tokens",
    "cost_usd",
    "price_version",
    "maybe_paid",
    "source",
)
"""What is shown of a record's `penstock`: what differs from row to row. The file has more."""


class Bill(msgspec.Struct, frozen=True):
    """One model's part."""

    model: str
    calls: int
    usage: Usage
    nano: int
    as_tier1_nano: int
    """The same tokens at Tier 1's price."""


def check(stage: Stage, report: Report, *, killed_after: int | None) -> bool:
    """The sentence of the demo: nothing lost, nothing twice. True where that is so."""
    results, dead = counted(report.results, "result"), counted(report.dead_letters, "dead letter")
    rows = f"{counted(report.offered, 'row')} in, {results} and {dead} out"
    said = f"[bold]{report.lost} lost, {report.twice} twice, {report.repeated} repeated[/]"
    if not report.clean:
        stage.bad(f"{rows}: {report}")
        return False
    stage.good(f"{rows}: {said}")
    stage.say("  compared: the input, the sandbox's journal of every answer it charged for, and the committed files")
    if killed_after is not None:
        stage.say(
            "  repeated: served, and the answer died with the process; each of these rows is among the "
            f"{report.marked:,} marked maybe_paid (all that could have been under way)"
        )
    return True


def one_record(stage: Stage, results: Path, kind: str) -> None:
    """The first result of one task, shortened."""
    with results.open("rb") as file:
        for line in file:
            record = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
            told = msgspec.json.decode(record["penstock"], type=dict[str, msgspec.Raw])
            if msgspec.json.decode(told["task"]) == kind:
                shown = {**record, "penstock": {name: told[name] for name in SHOWN if name in told}}
                return stage.json(msgspec.json.encode(shown))
    return None


def bills(costs: Sequence[Line], catalog: Catalog, tier1: str) -> list[Bill]:
    """Money and tokens by model, the dearest first."""
    first = catalog.models[tier1]
    top = price_of(first, first.live)
    by_model: dict[str, list[Line]] = {}
    for line in costs:
        by_model.setdefault(line.model, []).append(line)
    made: list[Bill] = []
    for model, lines in by_model.items():
        usage = Usage(input=sum(line.input for line in lines), output=sum(line.output for line in lines))
        calls = sum(line.role != "adjustment" for line in lines)
        nano = sum(line.cost_nano for line in lines)
        made.append(Bill(model, calls, usage, nano, cost_nano(usage, top, calls) if top is not None else 0))
    return sorted(made, key=lambda bill: (-bill.nano, bill.model))


def cost_table(stage: Stage, found: Sequence[Bill], tiers: Mapping[str, int], note: str) -> None:
    rows = [
        (f"{b.model} (tier {tiers[b.model]})" if b.model in tiers else b.model, f"{b.calls:,}", f"{b.usage.input:,}",
         f"{b.usage.output:,}", dollars(b.nano), dollars(b.as_tier1_nano))
        for b in found
    ]  # fmt: skip
    paid, instead = sum(b.nano for b in found), sum(b.as_tier1_nano for b in found)
    rows.append(("together", "", "", "", dollars(paid), dollars(instead)))
    stage.table(("model", "calls", "tokens in", "tokens out", "cost", "all at tier 1"), rows)
    if paid < instead:
        stage.say(
            f"saved against all-Tier-1: [bold]{dollars(instead - paid)}[/] ({share(instead - paid, instead)}); {note}"
        )
    else:
        stage.say(note)


def tiers_of(catalog: Catalog) -> dict[str, int]:
    """Model → the first tier that prefers it."""
    found: dict[str, int] = {}
    for tier in sorted(catalog.tiers):
        found.setdefault(catalog.tiers[tier][0], tier)
    return found


def accuracy(stage: Stage, outputs: Outputs, labels: Sequence[str]) -> None:
    """How often the label was the package's own, with its interval, beside what needs no model at all.

    labels: the true ones. Topics are uneven, so always saying the commonest is a harder bar than guessing evenly.
    """
    n, right = len(outputs.quality), sum(sample.passed for sample in outputs.quality)
    if not n or not labels:
        stage.say("no labels were scored")
        return
    between = share_interval(right, n)
    stage.say(
        f"right topics: [bold]{right} of {n}[/], {_percent(between.likely)} "
        f"(95 % interval {_percent(between.low)}–{_percent(between.high)})"
    )
    commonest, times = Counter(labels).most_common(1)[0]
    bar = times / len(labels)
    stage.say(f"always saying {commonest!r} would be right in {_percent(bar)}, {_against(between, bar)}")


def _against(between: Interval, bar: float) -> str:
    if between.low > bar:
        return "and the model is better than that"
    if between.high < bar:
        return (
            "and the model is worse than that: too small for this task; a larger one takes its place in the catalogue"
        )
    return "and the model is not shown to be better: too small for this task, or too few rows to tell"


def _percent(part: float) -> str:
    return f"{100 * part:.0f} %"


def where(stage: Stage, files: Mapping[str, Sequence[Path]], here: Path) -> None:
    """Where everything is, as a person would type it."""
    for sink, paths in files.items():
        for path in paths:
            with path.open("rb") as file:
                lines = sum(1 for _ in file)
            shown = path.relative_to(here) if path.is_relative_to(here) else path
            stage.say(f"  {sink:<13}{shown}  ({lines:,} lines)")
