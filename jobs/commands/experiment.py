"""Experiments: list them, show their arms side by side, stop one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import click

from penstock.jobs import exits
from penstock.jobs.commands import shared

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

    from penstock.engine.quality import Interval
    from penstock.engine.steering.trials import ArmSeen, Seen
    from penstock.jobs.experiments import Told


@click.group()
def experiment() -> None:
    """One task done in several ways, compared on live traffic: prompts, parameters, models, versions.

    \b
      experiments:                    in the job file
        - name: wording
          arms:
            - {name: plain, weight: 9}
            - {name: kind, weight: 1, prompt: "Please … {{ text }}"}

    Units (a customer, say) stick to their arm. Look as often as you like: the intervals allow it, so a difference that
    is shown may be acted upon at once.
    """


@experiment.command(name="list")
@shared.state_option
@shared.json_option
def list_experiments(state: str | None, as_json: bool) -> int:
    """The experiments of this state's jobs."""
    from penstock.jobs import experiments

    url, note = shared.state_url(state), shared.noting()
    found = experiments.told(url, list(experiments.known(url, note).values()), note)
    if as_json:
        shared.print_json(found)
        return exits.DONE
    if not found:
        click.echo(f"no experiment in {url}: a job file has them under `experiments:`")
        return exits.DONE
    shared.console().print(_list(found))
    return exits.DONE


def _list(found: list[Told]) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("experiment", "task", "arms", "answers", "state"):
        table.add_column(name)
    for each in found:
        answers = sum(arm.answers for arm in each.seen.arms)
        arms = ", ".join(arm.name for arm in each.seen.arms)
        table.add_row(each.experiment.key, each.experiment.task, arms, f"{answers:,}", _state(each))
    return table


def _state(told: Told) -> str:
    return "takes units" if told.stopped is None else "stopped"


@experiment.command(short_help="The arms side by side, with effects")
@click.argument("name")
@shared.state_option
@shared.json_option
def show(name: str, state: str | None, as_json: bool) -> int:
    """The arms of NAME (or JOB/NAME) side by side, with the first as the measure.

    Effects hold with 95 %, each by itself, however often you look. Cost and latency are compared by their geometric
    means, from 50 items an arm on. A mismatch of shares (of units, where units are divided) says that the split is
    broken: then trust no comparison.
    """
    from penstock.jobs import experiments

    url, note = shared.state_url(state), shared.noting()
    (found,) = experiments.told(url, [experiments.find(url, name, note)], note)
    if as_json:
        shared.print_json(found)
        return exits.DONE
    out = shared.console()
    for part in _story(found):
        out.print(part)
    return exits.DONE


def _story(told: Told) -> Iterable[RenderableType]:
    from rich.text import Text

    from penstock.jobs.wording import moment

    at = told.experiment
    yield Text(f"{at.key}  task {at.task}  by {at.unit}  {_state(told)}", style="bold")
    if (stopped := told.stopped) is not None:
        yield Text(f"stopped {moment(stopped.at)} by {stopped.by.partition('/')[0]}: {stopped.why or '–'}", style="dim")
    yield _arms(told.seen)
    yield Text(_split(told.seen), style="dim")
    if told.seen.earlier:
        yield Text(f"{told.seen.earlier:,} answers of before its arms or shares were changed are left out", style="dim")
    for arm in told.seen.arms:
        for said in arm.told:
            yield Text(f"guardrail, {arm.name}: {said.why}", style="dim")


def _arms(seen: Seen) -> RenderableType:
    from rich.table import Table

    scorers = list(dict.fromkeys(each.scorer for arm in seen.arms for each in arm.scores))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("arm", "share", "answers", "cost", *(_name(s) for s in scorers), "cost ×", "latency ×"):
        table.add_column(name, overflow="fold")
    for arm in seen.arms:
        table.add_row(*_row(arm, scorers))
    return table


def _row(arm: ArmSeen, scorers: list[str]) -> list[str]:
    from penstock.jobs.wording import dollars

    by_name = {each.scorer: each for each in arm.scores}
    scores: list[str] = []
    for scorer in scorers:
        each = by_name.get(scorer)
        text = "–" if each is None or each.mean is None else f"{each.mean.mean:.3f}"
        if each is not None and each.effect is not None:
            text += f" ({_points(each.effect)})"
        scores.append(text)
    share = f"{arm.share * 100:.3g} %"
    return [
        arm.name,
        share,
        f"{arm.answers:,}",
        dollars(arm.cost_nano),
        *scores,
        _factor(arm.cost),
        _factor(arm.latency),
    ]


def _name(scorer: str) -> str:
    return scorer.partition("@")[0]


def _points(effect: Interval) -> str:
    return f"{effect.mean * 100:+.1f} points, {effect.low * 100:+.1f} to {effect.high * 100:+.1f}"


def _factor(ratio: Interval | None) -> str:
    if ratio is None:
        return "–"
    return f"{math.exp(ratio.mean):.2f} ({math.exp(ratio.low):.2f} to {math.exp(ratio.high):.2f})"


def _split(seen: Seen) -> str:
    if not seen.united:
        return _fits(seen, "answers")
    return (
        f"{_fits(seen, f'units ({seen.units:,} looked at)')}. {seen.united:,} items have a unit: where "
        "units bring several, they are what effects and guardrails count (docs/quality.md)"
    )


def _fits(seen: Seen, what: str) -> str:
    if seen.split is None:
        return "no answers yet" if not seen.united else "of which units these items are is not known"
    if seen.split.found:
        return (
            f"SHARES DON'T FIT (p {seen.split.p_value:.2g}): the arms got other shares of the {what} than was meant. "
            "An arm loses items, or counts them twice; trust no comparison before that is found"
        )
    return f"the arms got the shares of the {what} that were meant, as far as can be told"


@experiment.command(short_help="Take no more units in")
@click.argument("name")
@click.option("--why", default="", metavar="TEXT", help="A reason, for the audit log.")
@shared.state_option
def stop(name: str, why: str, state: str | None) -> int:
    """Take no more units into NAME: from now on all are done as its first arm is, in running jobs too.

    Items that were read already keep their arm. To make another arm the rule, write it into the job file.
    """
    from penstock.jobs import experiments

    full, untold = experiments.stop(shared.state_url(state), name, why, shared.noting())
    click.echo(f"{full}: stopped; all units get its first arm")
    if untold is not None:
        click.echo(f"note: this is not in the audit log yet; the next run writes it: {untold}", err=True)
    return exits.DONE
