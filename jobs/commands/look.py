"""Looking at a run: explain, costs, report, logs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click
import msgspec

from penstock.engine.errors import PenstockError
from penstock.jobs import exits
from penstock.jobs.commands import shared
from penstock.jobs.look.bills import BYS
from penstock.jobs.look.log_lines import LEVELS

if TYPE_CHECKING:
    from penstock.connectors.base import SinkName
    from penstock.jobs.look.bills import By
    from penstock.jobs.look.explain import Ending, Line
    from penstock.jobs.look.reading import Outputs
    from penstock.jobs.look.told import CostTold, SampleTold

T = TypeVar("T")


def outputs_of(run: shared.Named, state: str | None) -> Outputs:
    return outputs_at(shared.locate(run, state))


def outputs_at(found: shared.Found) -> Outputs:
    from penstock.jobs.look.reading import Outputs

    return Outputs(found.history.spec(found.run_id), found.history.status(found.run_id))


@click.command()
@click.argument("item", metavar="ID")
@shared.run_option
@shared.state_option
@shared.json_option
def explain(item: str, run: shared.Named, state: str | None, as_json: bool) -> int:
    """One item's whole story: where it came from, why it went where it went, each attempt, its cost lines and scores.

    ID is an item_id, the first six or more digits of one, a custom_id, or the value of
    a kept column.
    """
    from penstock.jobs.look import explain as stories

    outputs = outputs_of(run, state)
    endings = stories.find(item, outputs.records("results"), outputs.records("dead_letters"))
    paid = _beside(outputs, "costs", endings, stories.bills)
    scored = _beside(outputs, "quality", endings, stories.scores)
    told = list(zip(endings, paid, scored, strict=True))
    if as_json:
        shared.print_json([_whole(*each) for each in told])
        return exits.DONE
    for number, (ending, costs, samples) in enumerate(told):
        if number:
            click.echo()
        _print(stories.story(ending, outputs.where(stories.sink_of(ending)), costs or (), samples or ()))
    return exits.DONE


def _beside(
    outputs: Outputs,
    sink: SinkName,
    endings: list[Ending],
    of: Callable[[list[Ending], Iterable[bytes]], list[list[T]]],
) -> list[list[T]] | list[None]:
    """What another sink says of each ending; None: it can't be read now, and the story is told without it."""
    try:
        return of(endings, outputs.records(sink) if sink in outputs.spec.sinks else ())
    except PenstockError as error:
        click.echo(f"note: {sink} can't be read: {error}", err=True)
        return [None] * len(endings)


def _whole(ending: Ending, paid: list[CostTold] | None, scored: list[SampleTold] | None) -> dict[str, object]:
    return {**msgspec.to_builtins(ending), "costs": msgspec.to_builtins(paid), "quality": msgspec.to_builtins(scored)}


def _print(lines: list[Line]) -> None:
    from rich.table import Table
    from rich.text import Text

    from penstock.jobs.wording import inert

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    before = ""
    for line in lines:
        table.add_row("" if line.label == before else line.label, Text(inert(line.text)))
        before = line.label
    shared.console().print(table)


@click.command()
@shared.run_argument
@shared.state_option
@shared.json_option
@click.option("--by", type=click.Choice(BYS), default="model", show_default=True, help="What to add up by.")
def costs(run: shared.Named, state: str | None, as_json: bool, by: By) -> int:
    """What RUN paid (the latest by default), from its cost lines: every settled call, retries and judges included."""
    from penstock.jobs.look import bills, told

    found = shared.locate(run, state)
    outputs = outputs_at(found)
    added = bills.add_up(told.costs(outputs.records("costs")), by)
    if as_json:
        shared.print_json(bills.told(added))
    elif added:
        shared.console().print(bills.table(added, by))
    else:
        click.echo("nothing was paid yet")
    paid = found.history.status_or_starting(found.run_id).tally.cost_nano
    if (words := bills.lacking(added, outputs.spec.sinks["costs"], paid)) is not None:
        click.echo(words, err=True)
    if not as_json and (replayed := _replayed(found)):
        click.echo(f"\nnot in it, what was sent again: {replayed}")
    return exits.DONE


def _replayed(found: shared.Found) -> str:
    """`job-1~replay-1 $0.0012`: runs of their own, with bills of their own."""
    from penstock.jobs import replay
    from penstock.jobs.wording import dollars

    costs = {run_id: found.history.status_or_starting(run_id).tally for run_id in replay.later(*found)}
    return ", ".join(f"{run_id} {dollars(tally.cost_nano)}" for run_id, tally in costs.items())


@click.command()
@shared.run_argument
@shared.state_option
@shared.json_option
@click.option(
    "--html", "-o", "html", metavar="FILE", help="Write one page about the run instead: no server, no network."
)
def report(run: shared.Named, state: str | None, as_json: bool, html: str | None) -> int:
    """The summary of RUN (the latest by default), as it stood at its end, or as it stands.

    With --html: a page of its own, with cost, quality and latency by task and model, routing
    over time, rollouts, evaluations, what cascades saved, refusals and dead letters. It holds
    labels, but no prompt and no answer.
    """
    if html is not None:
        return _page(run, state, as_json, html)
    from penstock.jobs.look import report as summaries

    found = shared.locate(run, state)
    status = found.history.status(found.run_id)
    if as_json:
        shared.print_json(msgspec.to_builtins(status, str_keys=True))
        return exits.DONE
    out = shared.console()
    for part in summaries.summary(status, state=shared.state_to_name(found.history.url)):
        out.print(part)
    return exits.DONE


def _page(run: shared.Named, state: str | None, as_json: bool, html: str) -> int:
    from penstock.jobs.look.page import render

    if as_json:
        raise click.UsageError("--json and --html are two forms of the report: give one")
    render.write(Path(html), render.page(outputs_of(run, state), time.time()))
    click.echo(f"report in {html}")
    return exits.DONE


@click.command()
@shared.run_argument
@shared.state_option
@shared.json_option
@click.option("--level", type=click.Choice(LEVELS, case_sensitive=False), help="This level and above.")
@click.option("--item", help="Lines about this item_id, or the start of one.")
def logs(run: shared.Named, state: str | None, as_json: bool, level: str | None, item: str | None) -> int:
    """What the processes of RUN logged, in the order of time. Never prompts, answers or keys.

    Logs lie in the state folder. Where the state is elsewhere (S3), each machine keeps those of its own processes, and
    only this one's are shown.
    """
    from penstock.jobs.look import log_lines
    from penstock.workers.here import logs_here

    found = shared.locate(run, state)
    lines = log_lines.read(logs_here(found.history.url, found.run_id), level=level, item=item)
    found_any = False
    for line in lines:
        found_any = True
        click.echo(line.raw if as_json else log_lines.told(line))
    if not found_any and not as_json:
        click.echo(f"no such log lines of {found.run_id}", err=True)
    if (words := log_lines.unseen(found.history.url, found.run_id)) is not None:
        click.echo(words, err=True)
    return exits.DONE
