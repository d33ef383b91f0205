"""What a person's command puts into the audit log by itself: cancel, pause, resume, replay, feedback, labels. A run's
driver does the rest (`workers.books.trail`)."""

from __future__ import annotations

import time
from collections.abc import Mapping

from penstock.connectors.audit import actor_of, open_audit
from penstock.connectors.base import this_process
from penstock.engine.audit import Draft, Kind
from penstock.engine.errors import PenstockError
from penstock.jobs.history import History
from penstock.jobs.run import command_line


def record(history: History, kind: Kind, run_id: str, facts: Mapping[str, object]) -> None:
    """Durable when it returns. `run_id` empty: it is about no single run. Raises `Temporary`, `Corrupt`."""
    actor = actor_of(this_process(command_line()))
    name = history.status_or_starting(run_id).name if run_id else ""
    open_audit(history.url).append(Draft(time.time(), actor, kind, name, run_id, facts))


def record_stop(history: History, kind: Kind, run_id: str, facts: Mapping[str, object]) -> str | None:
    """As `record`, of what was done already: a log that can't be written stops no stop. Returns why it could not."""
    try:
        record(history, kind, run_id, facts)
    except PenstockError as error:
        return f"this is not in the audit log: {error}"
    return None
