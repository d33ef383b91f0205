"""The demo and the sandbox provider."""

from __future__ import annotations

import click


@click.command()
@click.option("--quick", is_flag=True, help="Stop after the sandbox part: no model is fetched, about a minute.")
def demo(quick: bool) -> int:
    """See the whole thing run on this machine: plan, tiers, a kill -9 and the resume, costs, quality.

    Needs no keys and pays nobody: prices that are pretended say so.
    """
    from penstock.jobs import demo as theatre

    return theatre.main(quick=quick)
