"""One item inside a lane (`Slot`), and the queues of those that are ready (`Ready`)."""

from __future__ import annotations

import heapq
from typing import Literal

from penstock.engine.budget import Reservation
from penstock.engine.items import Attempt, Item, Role, Route, Usage
from penstock.engine.retry import History
from penstock.engine.router import Rejection

State = Literal["beyond", "ready", "held", "flying", "following", "finished"]
"""beyond: not under the committed horizon yet. held: waits for a time (retry) or a lease. following: an identical
request is being answered. finished: waits for its commit."""

FIRST = History()


class Slot:
    """Mutable: the lane's own memory of one item. Never leaves the lane."""

    __slots__ = (
        "ask_again_body",
        "attempt",
        "attempts",
        "call_ms",
        "candidate",
        "cost_nano",
        "est_input",
        "first_sent_at",
        "followers",
        "history",
        "item",
        "key",
        "max_input",
        "max_output",
        "maybe_paid",
        "rejection",
        "reservation",
        "role",
        "route",
        "sent_at",
        "seq",
        "shelved",
        "state",
        "timeout_s",
        "tried",
        "usage",
        "worker",
    )

    def __init__(self, item: Item, route: Route, seq: int) -> None:
        self.item = item
        self.route = route
        self.seq = seq
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
        self.shelved = False
        self.tried = False
        """Its tries are in the progress."""
        self.timeout_s = 0.0
        self.key: tuple[object, ...] | None = None
        self.followers: list[Slot] | None = None
        self.ask_again_body: bytes | None = None

    @property
    def pool(self) -> str:
        return self.route.candidates[self.candidate].pool

    @property
    def model(self) -> str:
        return self.route.candidates[self.candidate].model

    @property
    def tokens(self) -> int:
        return self.est_input + self.max_output


class Ready:
    """Items that may be taken now, a queue a pool. Realtime first, then by priority, then the longest first where the
    pool is an engine of our own (short ones fill the gaps at the end), else in input order."""

    def __init__(self) -> None:
        self._heaps: dict[str, list[tuple[int, int, int, int, Slot]]] = {}
        self._tokens: dict[str, int] = {}

    def push(self, slot: Slot) -> None:
        slot.state = "ready"
        pool = slot.pool
        attributes = slot.item.attributes
        realtime = 0 if attributes.latency == "realtime" else 1
        length = -slot.tokens if pool.startswith("vllm:") else 0
        entry = (realtime, -(attributes.priority or 0), length, slot.seq, slot)
        heapq.heappush(self._heaps.setdefault(pool, []), entry)
        self._tokens[pool] = self._tokens.get(pool, 0) + slot.tokens

    def pop(self, pool: str) -> Slot | None:
        heap = self._heaps.get(pool)
        if not heap:
            return None
        slot = heapq.heappop(heap)[-1]
        self._tokens[pool] -= slot.tokens
        return slot

    def pop_all(self, pool: str) -> list[Slot]:
        slots: list[Slot] = []
        while (slot := self.pop(pool)) is not None:
            slots.append(slot)
        return slots

    def count(self, pool: str) -> int:
        return len(self._heaps.get(pool, ()))

    def counts(self) -> list[tuple[str, int, int, bool]]:
        """(pool, items, estimated tokens, a realtime item first?) of every pool that was ever used."""
        return [
            (pool, len(heap), self._tokens[pool], bool(heap) and heap[0][0] == 0) for pool, heap in self._heaps.items()
        ]

    def __len__(self) -> int:
        return sum(map(len, self._heaps.values()))
