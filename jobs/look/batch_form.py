"""A run in the form of an OpenAI batch object: what machines that already watch batches understand."""

from __future__ import annotations

from typing import Literal

import msgspec

from penstock.engine.items import NANO_PER_USD
from penstock.jobs.history import GONE, is_gone
from penstock.jobs.progress import done_items, expected_items
from penstock.workers.status import RunState, RunStatus

BatchState = Literal["validating", "failed", "in_progress", "finalizing", "completed", "cancelling", "cancelled"]

STATES: dict[RunState, BatchState] = {
    "starting": "validating",
    "running": "in_progress",
    "draining": "cancelling",
    "assembling": "finalizing",
    "done": "completed",
    "stopped_by_budget": "failed",
    "too_many_dead_letters": "failed",
    "failed": "failed",
    "cancelled": "cancelled",
    "interrupted": "cancelled",
    "handed_over": "in_progress",
}
"""Ours says more, in `penstock.state`: a run stopped by its budget can go on, for which OpenAI has no word."""


class RequestCounts(msgspec.Struct, frozen=True):
    """`total`: as many as are known of; grows while the input's end isn't known."""

    total: int
    completed: int
    failed: int


class Ours(msgspec.Struct, frozen=True):
    state: RunState
    message: str
    gone: bool
    """Nobody is at it any more, though it is not over: `status` is `failed`, for nothing happens by itself."""
    updated_at: float
    cost_usd: float
    forfeit_usd: float
    maybe_paid: int
    late_payments: int
    in_flight: int
    dead_letters: dict[str, int]
    outputs: dict[str, list[str]]


class Batch(msgspec.Struct, frozen=True):
    id: str
    status: BatchState
    request_counts: RequestCounts
    created_at: int
    in_progress_at: int | None
    completed_at: int | None
    failed_at: int | None
    cancelled_at: int | None
    output_file_id: str | None
    """Path of the results."""
    error_file_id: str | None
    """Path of the dead letters."""
    metadata: dict[str, str]
    penstock: Ours
    object: Literal["batch"] = "batch"


def batch_of(status: RunStatus, now: float) -> Batch:
    """`now`: Unix seconds."""
    dead, gone = sum(status.tally.dead_letters.values()), is_gone(status, now)
    state = "failed" if gone else STATES[status.state]
    ended_at = status.updated_at if gone else status.ended_at
    ended = int(ended_at) if ended_at is not None else None
    return Batch(
        id=status.run_id,
        status=state,
        request_counts=RequestCounts(
            total=expected_items(status) or max(status.tally.read, done_items(status)),
            completed=status.tally.results,
            failed=dead,
        ),
        created_at=int(status.started_at),
        in_progress_at=int(status.first_dispatch_at) if status.first_dispatch_at is not None else None,
        completed_at=ended if state == "completed" else None,
        failed_at=ended if state == "failed" else None,
        cancelled_at=ended if state == "cancelled" else None,
        output_file_id=_first(status, "results"),
        error_file_id=_first(status, "dead_letters"),
        metadata={"name": status.name},
        penstock=_ours(status, gone=gone),
    )


def _ours(status: RunStatus, *, gone: bool) -> Ours:
    tally = status.tally
    return Ours(
        state=status.state,
        message=GONE if gone else status.message,
        gone=gone,
        updated_at=status.updated_at,
        cost_usd=tally.cost_nano / NANO_PER_USD,
        forfeit_usd=tally.forfeit_nano / NANO_PER_USD,
        maybe_paid=tally.maybe_paid,
        late_payments=tally.late_payments,
        in_flight=sum(tally.in_flight.values()),
        dead_letters=tally.dead_letters,
        outputs=status.outputs,
    )


def _first(status: RunStatus, sink: str) -> str | None:
    paths = status.outputs.get(sink)
    return paths[0] if paths else None
