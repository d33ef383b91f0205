"""Sending items again: the question before it, and the run of its own that does it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from penstock.engine.errors import SpecError
from penstock.jobs.commands import shared

if TYPE_CHECKING:
    from penstock.jobs.history import History
    from penstock.workers.runspec import RunSpec


def confirmed(yes: bool) -> bool:
    """Whether to send, now that the price is told. Raises `SpecError` where nobody can be asked."""
    try:
        return yes or click.confirm("Send them?", default=False)
    except click.Abort as error:
        if sys.stdin.isatty():
            raise
        raise SpecError("nothing was sent: there is nobody to ask here; --yes sends without asking") from error


def send(history: History, spec: RunSpec, of: str, facts: Mapping[str, object], address: str | None) -> int:
    """Begin and run it; the audit log of run `of` has it first. Returns its exit code."""
    from penstock.jobs import replay
    from penstock.jobs.audited import record
    from penstock.jobs.look import report
    from penstock.jobs.progress import display_for
    from penstock.jobs.run import Session, Stop, execute

    with replay.begun(history, spec):
        record(history, "replay", of, {"as": spec.run_id, **facts})
        result = execute(spec, Session(address=address), display_for(sys.stdout), Stop())
    out = shared.console()
    for part in report.summary(result.status, state=shared.state_to_name(history.url)):
        out.print(part)
    return result.exit_code
