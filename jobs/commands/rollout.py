"""From one model version to the next, by numbers: start, show, list, pause, resume, promote. (`rollback` beside it.)"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from penstock.engine.errors import SpecError
from penstock.jobs import exits
from penstock.jobs.commands import shared

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import RenderableType

    from penstock.engine.steering.rollout import Decision, Rollout, Shadowing, Told, Unit, Word
    from penstock.jobs.rollouts import Heard, Standing

ALL_GUARDS = "quality,error_rate,cost,latency,refusals"
why_option = click.option("--why", default="", metavar="TEXT", help="A reason, for the audit log.")


@click.group()
def rollout() -> None:
    """Move a model from one version to the next, a share of the traffic at a time.

    \b
      penstock rollout start small v2 --stages 1,5,25,100
      penstock rollout start small v2 --shadow   first beside v1, unseen
      penstock rollout show small     what the guards say, and every decision
      penstock rollback small         take it back: running jobs obey within 5 s

    Every job that uses this state obeys, endless and bounded ones. Units (a customer, say) keep their version while a
    stage lasts, and those of a smaller stage keep it in a larger one. A stage passes when every guard passes, and fails
    when one fails; then the rollout goes on or back by itself, or waits for you (--manual). Decisions and their numbers
    are in the audit log. docs/quality.md says how sure they are.
    """


@rollout.command()
@click.argument("model")
@click.argument("version")
@click.option(
    "--stages",
    default="1,5,25,100",
    show_default=True,
    metavar="PERCENT,…",
    help="Shares of the units, rising; `shadow` may stand in front, or alone.",
)
@click.option("--shadow", is_flag=True, help="Begin with a shadow stage, as `shadow` in front of --stages does.")
@click.option(
    "--shadow-share",
    default=10.0,
    show_default=True,
    metavar="PERCENT",
    help="Of the live version's items, that VERSION answers as well.",
)
@click.option(
    "--shadow-usd",
    default=5.0,
    show_default=True,
    metavar="USD",
    help="What the shadow stage may cost in all jobs together, never more.",
)
@click.option(
    "--watch",
    default=0.0,
    metavar="PERCENT",
    help="Of the units, that keep the old version after the last stage, for comparing. [default: none]",
)
@click.option(
    "--guard", default=ALL_GUARDS, show_default=True, metavar="NAME,…", help="What may get no worse; see above."
)
@click.option(
    "--items",
    type=click.IntRange(min=1),
    metavar="N",
    help="End a stage after N items of the smaller arm, if nothing was shown. [default: 750 scored, 1,000 others]",
)
@click.option("--manual", is_flag=True, help="A stage that passed or failed waits for you.")
@click.option("--unit", type=click.Choice(["unit", "item"]), default="unit", show_default=True, help="What sticks.")
@click.option("--job", metavar="FILE", help="A job or catalogue file that has MODEL. [default: the latest run's]")
@shared.state_option
def start(
    model: str,
    version: str,
    stages: str,
    shadow: bool,
    shadow_share: float,
    shadow_usd: float,
    watch: float,
    guard: str,
    items: int | None,
    manual: bool,
    unit: Unit,
    job: str | None,
    state: str | None,
) -> int:
    """Give VERSION of MODEL the first share of the traffic. It must stand under `versions:` in the catalogue.

    Guards: quality (scores of sampled items, so some task must have `sample:` and `scorers:`), error_rate (items that
    got no answer there), refusals, cost, latency. Each may wrongly accuse an equal version in 1 rollout of 100.

    100 at the end of --stages is the promotion: where all have the new version, nobody is left to compare it with.
    With --watch a few units keep the old one for ten rounds more, and a version that is shown worse in one of them is
    taken back then, too.

    In a shadow stage VERSION answers a share of the live version's items beside it; nothing of that is a result. The
    scores, costs and times of both are compared item by item. error_rate and refusals only inform there, since no item
    that the live version failed is asked; where they look worse, the rollout waits for you. With --stages shadow
    nothing follows: it has passed or failed, and the live version stays. Calls pass the item's wall and budgets, and
    the money of the stage. When that is spent, it waits for you.
    """
    from penstock.engine.steering.rollout import How
    from penstock.jobs import rollouts
    from penstock.jobs.spec import load_either

    names = tuple(name.strip() for name in guard.split(",") if name.strip())
    first, _, rest = stages.partition(",")
    in_front = first.strip() == "shadow"
    beside = _shadowing(shadow_share, shadow_usd, items) if shadow or in_front else None
    how = How(not manual, unit, beside, watch / 100)
    ask = rollouts.Ask(model, version, _shares(rest if in_front else stages), names, items, how)
    url = shared.state_beside(state, job)
    heard = rollouts.start(url, ask, None if job is None else rollouts.Job(*load_either(job)))
    return say(heard, url)


def _shadowing(percent: float, usd: float, items: int | None) -> Shadowing:
    from penstock.engine.pricing import usd_to_nano
    from penstock.engine.steering.rollout import Shadowing

    made = Shadowing(percent / 100, usd_to_nano(usd))
    return made if items is None else Shadowing(made.share, made.limit_nano, items)


def _shares(text: str) -> tuple[float, ...]:
    """None at all is what stands behind a lone `shadow`."""
    if not text:
        return ()
    try:
        return tuple(float(part.strip().rstrip("%")) / 100 for part in text.split(","))
    except ValueError as error:
        raise SpecError(f"--stages {text!r}: expected percentages, such as 1,5,25,100 or shadow,5,100") from error


@rollout.command()
@click.argument("model", required=False)
@shared.state_option
@shared.json_option
def show(model: str | None, state: str | None, as_json: bool) -> int:
    """What the guards of MODEL's rollout say now, and how it came here. Without MODEL: of all."""
    from penstock.jobs import rollouts

    url = shared.state_url(state)
    found = rollouts.standing(url, model, shared.noting())
    if as_json:
        shared.print_json(found)
        return exits.DONE
    if not found:
        click.echo(f"no rollout in {url}; penstock rollout start MODEL VERSION begins one")
    out = shared.console()
    for at in found:
        for part in _standing(at, url):
            out.print(part)
    return exits.DONE


@rollout.command(name="list")
@shared.state_option
@shared.json_option
def list_rollouts(state: str | None, as_json: bool) -> int:
    """The latest rollout of each model."""
    from rich.table import Table

    from penstock.jobs import rollouts
    from penstock.jobs.wording import moment

    url = shared.state_url(state)
    steering = rollouts.steering(url)
    if as_json:
        shared.print_json({"live": steering.live, "rollouts": steering.rollouts})
        return exits.DONE
    if not steering.rollouts:
        click.echo(f"no rollout in {url}; penstock rollout start MODEL VERSION begins one")
        return exits.DONE
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("model", "live", "rollout", "state", "stage", "since"):
        table.add_column(name)
    for name, at in sorted(steering.rollouts.items()):
        live = steering.live.get(name, at.baseline)
        since = moment(at.decisions[-1].at)
        table.add_row(name, live, f"{at.baseline} → {at.candidate}", at.state.replace("_", " "), _stage(at), since)
    shared.console().print(table)
    return exits.DONE


def _stage(at: Rollout) -> str:
    from penstock.engine.steering.rollout import SHADOW

    if not at.active:
        return "–"
    if at.round:
        return f"watch, round {at.round}"
    return "shadow" if at.stage == SHADOW else f"{at.stage + 1} of {len(at.stages)}, {_percent(at.share)}"


@rollout.command()
@click.argument("model")
@why_option
@shared.state_option
def pause(model: str, why: str, state: str | None) -> int:
    """Decide nothing for now. Units keep their versions; what is measured counts."""
    return speak(model, "pause", why, state)


@rollout.command()
@click.argument("model")
@why_option
@shared.state_option
def resume(model: str, why: str, state: str | None) -> int:
    """Let the guards decide again."""
    return speak(model, "resume", why, state)


@rollout.command()
@click.argument("model")
@click.option(
    "--from",
    "percent",
    type=click.FloatRange(0, 100),
    metavar="PERCENT",
    help="Only where so many of the units have the version now, as `show` says.",
)
@why_option
@shared.state_option
def promote(model: str, percent: float | None, why: str, state: str | None) -> int:
    """Go one stage further now, whatever the guards say.

    After the last stage, the version is live for all. With --from, nothing happens where the guards went a stage
    further since you looked.
    """
    return speak(model, "promote", why, state, None if percent is None else percent / 100)


def speak(model: str, word: Word, why: str, state: str | None, share: float | None = None) -> int:
    from penstock.jobs import rollouts

    url = shared.state_url(state)
    return say(rollouts.speak(url, model, word, why, share), url)


_WORDS = {"stage": "one stage further", "rolled_back": "rolled back", "watching": "live, and watched"}


def say(heard: Heard, url: str) -> int:
    at = heard.rollout
    last = at.decisions[-1]
    match at.state:
        case "promoted":
            now = f"{at.candidate} is live for all"
        case "rolled_back":
            now = f"{at.baseline} is live for all"
        case "passed":
            now = f"{at.candidate} passed its shadow stage; {at.baseline} stays live for all"
        case _ if at.round:
            now = f"{at.candidate} is live; {at.where}"
        case _ if at.share:
            now = f"stage {at.stage + 1} of {len(at.stages)}: {_percent(at.share)} of the units get {at.candidate}"
        case _:
            now = at.where
    click.echo(f"{at.model} {at.baseline} → {at.candidate}: {_WORDS.get(last.what, last.what)}; {now}")
    if heard.untold is not None:
        click.echo(f"note: this is not in the audit log yet; the next run writes it: {heard.untold}", err=True)
    if heard.undecided is not None:
        click.echo(f"note: the guard of quality can pass or fail no stage: {heard.undecided}", err=True)
    for word in heard.notes:
        click.echo(f"note: {word}", err=True)
    if at.active:
        there = shared.there(url)
        click.echo(f"next: penstock rollout show {at.model}{there}, penstock rollback {at.model}{there}")
    return exits.DONE


# ---- how it stands


def _standing(at: Standing, url: str) -> Iterable[RenderableType]:
    from rich.text import Text

    r = at.rollout
    stage = r.where if r.active else ""
    words = [f"{r.model}: {r.baseline} → {r.candidate}", r.state.replace("_", " "), stage, f"id {r.id}"]
    yield Text("  ".join(filter(None, words)), style="bold")
    for line in _exposure(at):
        yield Text(line, style="dim")
    if r.active:
        yield _guards(at.guards)
        there = shared.there(url)
        further = f"penstock rollout promote {r.model} --from {r.share * 100:g}{there}"
        yield Text(f"on: {further}; back: penstock rollback {r.model}{there}", style="dim")
    yield _decisions(r.decisions)


def _exposure(at: Standing) -> Iterator[str]:
    """Who answered, and who stood beside."""
    from penstock.engine.steering.rollout import SHADOW
    from penstock.jobs.wording import dollars

    r, stages = at.rollout, [pair for stage, pair in at.items.items() if stage != SHADOW]
    if r.shadow is not None:
        base, other = at.items.get(SHADOW, (0, 0))
        beside = f"{other:,} of them answered by {r.candidate} as well"
        money = f"for {dollars(at.shadow_nano)} of {dollars(r.shadow.limit_nano)}"
        yield f"shadow stage: {base:,} items by {r.baseline}, {beside}, {money}"
    if stages:
        base, other = (sum(pair[side] for pair in stages) for side in (0, 1))
        yield f"items so far: {base:,} by {r.baseline}, {other:,} by {r.candidate}"


def _guards(told: Iterable[Told]) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("guard", "says", "items", "difference", "may be as bad as"):
        table.add_column(name, justify="right" if name == "items" else "left")
    for each in told:
        says = f"{each.decision} (informs only)" if each.informs else each.decision
        table.add_row(each.guard, says, f"{each.items:,}", *_numbers(each))
    return table


def _numbers(told: Told) -> tuple[str, str]:
    """Costs and latencies as factors, shares and scores in points."""
    return _number(told.guard, told.mean), _number(told.guard, told.worst)


def _number(guard: str, value: float | None) -> str:
    import math

    if value is None:
        return "–"
    return f"× {math.exp(value):.2f}" if guard in ("cost", "latency") else f"{value * 100:+.1f} points"


def _decisions(decisions: Iterable[Decision]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    from penstock.jobs.wording import moment

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("when", "decision", "share", "by", "why"):
        table.add_column(name, overflow="fold")
    for each in decisions:
        by = each.by.partition("/")[0]
        table.add_row(
            moment(each.at), _WORDS.get(each.what, each.what), _percent(each.share), by, Text(each.why or "–")
        )
    return table


def _percent(share: float) -> str:
    return f"{share * 100:g} %"
