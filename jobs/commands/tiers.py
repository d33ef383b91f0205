"""Holding tiers of a run back, and letting them go: pause, resume."""

from __future__ import annotations

from collections.abc import Callable

import click

from penstock.jobs import exits
from penstock.jobs.commands import shared

_tiers = click.option("--tier", "tiers", type=click.IntRange(min=1), multiple=True, help="Which tier; may be repeated.")


@click.command()
@shared.run_argument
@shared.state_option
@_tiers
def pause(run: shared.Named, state: str | None, tiers: tuple[int, ...]) -> int:
    """Hold back the items of a tier: RUN sends none of them until `penstock resume`, whatever is restarted meanwhile.

    What is in flight ends. Items that wait end only where their deadline passes.
    """
    if not tiers:
        raise click.UsageError("say which with --tier N")
    found = shared.locate(run, state)
    _hold(found, lambda paused: paused | set(tiers))
    return exits.DONE


@click.command()
@shared.run_argument
@shared.state_option
@_tiers
def resume(run: shared.Named, state: str | None, tiers: tuple[int, ...]) -> int:
    """Let the items of a paused tier go on; without --tier: of all."""
    found = shared.locate(run, state)
    _hold(found, lambda paused: paused - set(tiers) if tiers else set[int]())
    return exits.DONE


def _notes(found: shared.Found, tiers: tuple[int, ...]) -> list[str]:
    """What a person who meant another tier, or another run, has to know."""
    from penstock.jobs.history import goes_on

    if not tiers:
        return []
    known = found.history.spec(found.run_id).catalog.tiers
    told = found.history.status(found.run_id)
    over = [] if goes_on(told) else [f"the run is over ({told.state.replace('_', ' ')}): this holds when it goes on"]
    has = ", ".join(map(str, known))
    return [f"the job has no tier {tier}; it has {has}" for tier in tiers if known and tier not in known] + over


def _hold(found: shared.Found, change: Callable[[set[int]], set[int]]) -> None:
    from penstock.jobs.audited import record_stop

    tiers = found.history.pause(found.run_id, change)
    if (missing := record_stop(found.history, "pause", found.run_id, {"tiers": tiers})) is not None:
        click.echo(f"note: {missing}", err=True)
    for note in _notes(found, tiers):
        click.echo(f"note: {note}", err=True)
    held = ", ".join(f"tier {tier}" for tier in tiers)
    click.echo(f"{found.run_id}: paused: {held}" if held else f"{found.run_id}: no tier is paused")
