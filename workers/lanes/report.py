"""What a lane tells its driver."""

from __future__ import annotations

import msgspec

from penstock.engine.flow.lane import Lane
from penstock.engine.flow.tally import Tally


class LaneReport(msgspec.Struct, frozen=True):
    """Told a few times a second."""

    lane: int
    tally: Tally
    done: bool = False
    idle: bool = True
    waiting: bool = True
    """Some item is to be sent, or its call is out. Not where all are held back: by a person, or until tomorrow's money
    is there."""
    settled: bool = False
    """Nothing in flight, everything committed, leases settled, followers up to date."""
    stuck: str | None = None
    spent_out: str | None = None
    waits_for_money: str | None = None
    """Why items of an endless run wait for the next day."""
    open_breakers: list[tuple[str | None, str]] = []
    answering: list[tuple[str | None, str]] = []
    """Targets that have answered this owner, and are not among those: of others it can't say that they are back."""
    commit_age_s: float = 0.0
    """Since something waits for a commit. 0 where nothing does: an idle lane is not late, nor one whose calls are all
    out or whose items are all held back."""
    oldest_item_s: float = 0.0
    deadline_left_s: float | None = None
    input_away: str | None = None
    """Why nothing could be read for a while."""
    input_read: bool = False
    """This owner has read its input: before, it can't say whether that is away."""
    lag: dict[str, int] = {}
    """Topic → records that are there and not read yet."""
    first_dispatch_at: float | None = None
    plan_version: int = 0
    """Of the plan that this owner reads by."""
    cells: bytes = b""
    """The committed ones (`engine.flow.cells`), every few seconds; empty: they are not told this time."""
    read_all: bool = False
    """Its input was read to the end."""
    doubted: bool = False
    """Its last owner did not end in peace: what that one had sent may be paid for twice."""
    closed: bool = False
    """This owner was given the closing lines of own engines."""


def report_of(machine: Lane, due_at: float | None, now: float) -> LaneReport:
    """What the machine knows; its shell adds the rest. Brings the tally up to date. `due_at`: since when there is
    something to commit."""
    tally = machine.tally
    tally.ready = len(machine.ready)
    tally.shelved = machine.shelf.count
    tally.flying = machine.ends.flying()
    tally.position_bytes = machine.progress.bytes_done()
    waits = machine.paying.waits_until
    wait = waits[1] if waits is not None and waits[0] > now else None
    return LaneReport(
        machine.settings.lane,
        tally,
        idle=machine.idle,
        waiting=machine.waiting and wait is None,
        stuck=machine.places.stuck(),
        spent_out=machine.paying.spent_out,
        waits_for_money=wait,
        open_breakers=machine.targets.health.opened(now),
        answering=machine.targets.health.answering(),
        commit_age_s=max(0.0, now - due_at) if due_at is not None else 0.0,
        oldest_item_s=machine.ends.oldest_age(now),
        doubted=machine.doubted,
        read_all=machine.progress.all_read,
        deadline_left_s=machine.ends.deadline_left(now),
        plan_version=machine.plan_version,
    )
