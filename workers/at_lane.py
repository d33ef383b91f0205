"""What a worker knows and holds of one lane."""

from __future__ import annotations

from penstock.engine.flow.lane_types import Adopted
from penstock.engine.items import Outcome
from penstock.workers.engines.base import Right, Ticket
from penstock.workers.ports import CallName, Kept, LanePort

KEEP_MAX = 50_000
"""Answers nobody came for, of one lane."""

Landed = tuple[Ticket, Outcome]


class LaneAt:
    """What a worker knows of one lane. A call is in exactly one of `tickets`, `undelivered`, `delivering`."""

    def __init__(self, job: str) -> None:
        self.job = job
        self.owner = -1
        self.port: LanePort | None = None
        self.right: Right | None = None
        self.tickets: set[Ticket] = set()
        self.undelivered: list[Landed] = []
        self.delivering: list[Landed] = []
        """On their way to the owner, who may die before he says so."""
        self.handed: list[Landed] = []
        """What an owner was told when he asked, until he shows that he heard it."""
        self.busy: object | None = None
        """The delivery that goes on; a new owner's begins whatever becomes of the old one's."""
        self.lost_at: float | None = None
        self.taking: set[int] = set()
        """Numbers of takes under way."""
        self.given_up = 0
        """The last take whose answer never came, and of which the owner was not told."""

    @property
    def missed(self) -> int:
        """Up to which take the owner may be told that nothing more of it is accepted here; 0: there is nothing to say,
        or not yet."""
        return 0 if any(number <= self.given_up for number in self.taking) else self.given_up

    def hand_over(self, to: Right, port: LanePort) -> Kept:
        """A new owner's: calls of the last one that go on have his right from now on, and he is told what landed. What
        was not sent yet goes out for no other command than the one that made it: its job may have been edited, and send
        the item elsewhere, or nowhere."""
        old, self.right = self.right, to
        for ticket in self.tickets:
            if ticket.right is old:
                ticket.right = to
                ticket.left = ticket.left or (old is not None and old.epoch[0] != to.epoch[0])
            else:
                ticket.right.until = 0.0
        self.port, self.lost_at, self.busy = port, None, None
        # what is on its way to the old owner counts as well: he may be dead, and a committed item is not offered again
        told = (*self.handed, *self.delivering, *self.undelivered)
        kept = self.handed = [landed for landed in told if _worth_keeping(landed[1])]
        self.undelivered, self.delivering = [], []
        return Kept(
            [_adopted(ticket, outcome) for ticket, outcome in kept],
            [_adopted(ticket, None) for ticket in self.tickets if ticket.right is to],
        )

    def names(self) -> list[CallName]:
        """Of all calls that are here, answered or not."""
        landed = (ticket for ticket, _ in (*self.undelivered, *self.delivering))
        return [(t.call.item_id, t.call.generation, t.call.attempt) for t in (*self.tickets, *landed)]

    def due(self) -> list[Landed]:
        """Take out what its present owner is owed. What an owner left behind, whose successor did not ask us, stays."""
        right, waiting = self.right, self.undelivered
        if right is None or all(ticket.right is right for ticket, _ in waiting):
            self.undelivered = []
            return waiting
        self.undelivered = [landed for landed in waiting if landed[0].right is not right]
        return [landed for landed in waiting if landed[0].right is right]

    @property
    def stranded(self) -> bool:
        """What an owner left whose successor did not ask us, or what he could not be told, or may not have heard:
        nobody may ever come for it."""
        left = self.undelivered or self.handed or self.given_up
        return bool(left) and self.busy is None and self.lost_at is None and not self.tickets

    def keep(self, landed: list[Landed]) -> None:
        self.undelivered = (landed + self.undelivered)[-KEEP_MAX:]

    @property
    def empty(self) -> bool:
        """Nothing is here, and nothing is to be said."""
        return not (self.tickets or self.undelivered or self.delivering or self.handed or self.given_up)


def _adopted(ticket: Ticket, outcome: Outcome | None) -> Adopted:
    call = ticket.call
    return Adopted(
        call.item_id, call.generation, call.attempt, call.model, "", outcome, call.role, call.version, call.made_by,
        ticket.tariff,
    )  # fmt: skip


def _worth_keeping(outcome: Outcome) -> bool:
    return outcome.failure is None or outcome.failure.kind != "not_sent"
