"""One item inside a lane (`Slot`), and the queues of those that are ready (`Ready`)."""

from __future__ import annotations

import heapq
from collections.abc import Collection
from typing import Literal

from penstock.engine.budget import Keys, Purpose, Reservation
from penstock.engine.catalog import is_own
from penstock.engine.flow.climb import Climb
from penstock.engine.flow.pending import Pending
from penstock.engine.items import Attributes, Item, Role, Route, StepKind, Usage
from penstock.engine.registry.choice import EXPLORE
from penstock.engine.results import Attempt
from penstock.engine.retry import History
from penstock.engine.router import Rejection
from penstock.engine.steering.turn import Turn

State = Literal["beyond", "behind", "ready", "held", "flying", "following", "finished"]
"""beyond: not under the committed horizon yet. behind: another of its key comes first. held: waits for a time (retry)
or a lease. following: an identical request is being answered. finished: waits for its commit."""

FIRST = History()
REALTIME = 1 << 20
"""Above every priority."""


class Slot:
    """Mutable: the lane's own memory of one item. Never leaves the lane."""

    __slots__ = (
        "ask_again_body",
        "attempt",
        "attempts",
        "call_ms",
        "candidate",
        "climb",
        "cost_nano",
        "est_input",
        "first_sent_at",
        "followers",
        "history",
        "item",
        "key",
        "made_by",
        "max_input",
        "max_output",
        "maybe_paid",
        "offered_at",
        "orphaned",
        "pending",
        "rejection",
        "request",
        "reservation",
        "role",
        "route",
        "sent_at",
        "seq",
        "shelved",
        "state",
        "timeout_s",
        "told",
        "tried",
        "turn",
        "usage",
        "worker",
    )

    def __init__(self, item: Item, route: Route, seq: int) -> None:
        self.item = item
        self.route = route
        self.request = item.request
        self.pending: Pending | None = None
        """Its answer is there, and it owes steps: then route, request, candidate and role are those of a step."""
        self.seq = seq
        self.offered_at = 0.0
        """When this owner read it."""
        self.state: State = "beyond"
        self.candidate = 0
        self.attempt = 0
        """Number of the current attempt; 0 before the first."""
        self.role: Role = "primary"
        self.attempts: list[Attempt] = []
        self.history = FIRST
        self.cost_nano = 0
        self.call_ms = 0.0
        self.usage = Usage()
        self.reservation: Reservation | None = None
        self.est_input = 0
        self.max_input = 0
        self.max_output = 0
        self.first_sent_at = 0.0
        self.sent_at = 0.0
        self.worker = ""
        self.rejection: Rejection | None = None
        self.maybe_paid = False
        self.orphaned = False
        """Since a call may have been under way when its lane, its worker or the command died: no mere timeout."""
        self.told: str | None = None
        """The budget key whose money it waited for, and which is there now."""
        self.shelved = False
        self.tried = False
        """Its tries are in the progress."""
        self.made_by: tuple[str, str] | None = None
        """The versions of policy and prompt by which an earlier owner made its present call; None: those of now."""
        self.timeout_s = 0.0
        self.turn: Turn | None = None
        """Whose versions its route has."""
        self.key: tuple[object, ...] | None = None
        """What an equal one shares with it, while it leads such or follows, and there is no answer yet."""
        self.followers: list[Slot] | None = None
        """Who waits for its answer; of one that owes steps, also for what judges say of it."""
        self.ask_again_body: bytes | None = None
        self.climb: Climb | None = None
        """Where its route is a cascade: what became of it so far."""

    def is_late(self, now: float) -> bool:
        """Its deadline has passed."""
        deadline = self.item.attributes.deadline
        return deadline is not None and deadline <= now

    @property
    def step(self) -> StepKind | None:
        """The kind of step that it owes now; None: it waits for the answer that counts."""
        return None if self.pending is None else self.pending.step.kind

    @property
    def purpose(self) -> Purpose | None:
        """Whose budget it must fit into besides the general ones."""
        if self.pending is not None:
            return self.pending.step.kind
        return "explore" if self.route.candidates[self.candidate].experiment == EXPLORE else None

    @property
    def fund(self) -> Keys:
        """Budgets of its own that it must fit into as well: (key, limit)."""
        return () if self.pending is None else self.pending.fund

    @property
    def pool(self) -> str:
        return self.route.candidates[self.candidate].pool

    @property
    def is_at_last(self) -> bool:
        """Its candidate is the last of its route."""
        return self.candidate == len(self.route.candidates) - 1

    @property
    def own(self) -> bool:
        """Served by an engine of our own: nobody bills its calls one by one."""
        return is_own(self.pool)

    @property
    def model(self) -> str:
        return self.route.candidates[self.candidate].model

    @property
    def target(self) -> str:
        return self.route.candidates[self.candidate].target

    @property
    def tokens(self) -> int:
        return self.est_input + self.max_output


def urgency(attributes: Attributes) -> int:
    """Higher goes first: realtime before all, then by `priority`. Bulk is 0, or below it where it says so."""
    priority = max(-REALTIME // 2, min(REALTIME // 2, attributes.priority or 0))
    return priority + REALTIME if attributes.latency == "realtime" else priority


class Ready:
    """Items that may be taken now, a queue a pool. The most urgent first, then the longest where the pool is an engine
    of our own (short ones fill the gaps at the end), else in input order."""

    def __init__(self) -> None:
        self._heaps: dict[str, list[tuple[int, int, int, Slot]]] = {}
        self._tokens: dict[str, int] = {}
        self.steps = 0
        """How many of them have their answer, and owe a step."""

    def push(self, slot: Slot) -> None:
        slot.state = "ready"
        if slot.pending is not None:
            self.steps += 1
        pool = slot.pool
        length = -slot.tokens if is_own(pool) else 0
        entry = (-urgency(slot.item.attributes), length, slot.seq, slot)
        heapq.heappush(self._heaps.setdefault(pool, []), entry)
        self._tokens[pool] = self._tokens.get(pool, 0) + slot.tokens

    def pop(self, pool: str) -> Slot | None:
        heap = self._heaps.get(pool)
        if not heap:
            return None
        slot = heapq.heappop(heap)[-1]
        self._tokens[pool] -= slot.tokens
        if slot.pending is not None:
            self.steps -= 1
        return slot

    def pop_all(self, pool: str) -> list[Slot]:
        slots: list[Slot] = []
        while (slot := self.pop(pool)) is not None:
            slots.append(slot)
        return slots

    def drop(self, gone: Collection[Slot]) -> None:
        """They end, or wait elsewhere."""
        for pool, heap in self._heaps.items():
            kept = [entry for entry in heap if entry[-1] not in gone]
            if len(kept) < len(heap):
                heapq.heapify(kept)
                self._heaps[pool] = kept
                self._tokens[pool] = sum(entry[-1].tokens for entry in kept)
        self.steps = sum(slot.pending is not None for slot in self.slots())

    def slots(self) -> list[Slot]:
        return [entry[-1] for heap in self._heaps.values() for entry in heap]

    def count(self, pool: str) -> int:
        return len(self._heaps.get(pool, ()))

    def counts(self) -> list[tuple[str, int, int, int]]:
        """(pool, items, estimated tokens, urgency of the first) of every pool that was ever used."""
        return [(pool, len(heap), self._tokens[pool], -heap[0][0] if heap else 0) for pool, heap in self._heaps.items()]

    @property
    def items(self) -> int:
        """Those that wait for the answer that counts."""
        return len(self) - self.steps

    def __len__(self) -> int:
        return sum(map(len, self._heaps.values()))
