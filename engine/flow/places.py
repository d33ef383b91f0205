"""Where an item waits to be sent: ready at a pool, or held until a time. Moves it on where its candidate is down."""

from __future__ import annotations

import heapq
from collections.abc import Collection

from penstock.engine.flow.calls import Calls
from penstock.engine.flow.slots import Ready, Slot
from penstock.engine.flow.tally import Tally, count_fallback
from penstock.engine.flow.targets import Targets
from penstock.engine.retry import moved_to


class Places:
    def __init__(self, targets: Targets, calls: Calls) -> None:
        self.ready = Ready()
        self.targets = targets
        self._calls = calls
        self._held: list[tuple[float, int, Slot]] = []
        self.paused: frozenset[int] = frozenset()
        """Tiers whose items are not sent for now."""
        self._parked: list[Slot] = []

    def queue(self, slot: Slot, now: float, tally: Tally) -> None:
        """Ready at its candidate, or at the next one that is up; held where none is, or where its tier is paused."""
        if slot.route.tier in self.paused:
            slot.state = "held"
            self._parked.append(slot)
        elif self.targets.blocked(slot, now):
            self.divert(slot, now, tally)
        else:
            self.ready.push(slot)

    def divert(self, slot: Slot, now: float, tally: Tally) -> None:
        """Its candidate can't take it now: the next one that is up, else wait for the first probe of any."""
        index = self.targets.other(slot)
        if index is None:
            self.hold(slot, self.targets.usable_at(slot, now))
            return
        source = slot.model
        self.move(slot, index)
        count_fallback(tally, source, slot.model)
        slot.role = "fallback"
        self.ready.push(slot)

    def move(self, slot: Slot, candidate: int) -> None:
        if candidate != slot.candidate:
            self._calls.move(slot, candidate)
            slot.history = moved_to(slot.history, candidate)

    def hold(self, slot: Slot, at: float) -> None:
        """Until `at`, but not beyond its deadline."""
        deadline = slot.item.attributes.deadline
        slot.state = "held"
        heapq.heappush(self._held, (at if deadline is None else min(at, deadline), slot.seq, slot))

    def set_back(self, by_s: float) -> None:
        """The clock was: who waits for a time waits no longer for that."""
        self._held = [(at - by_s, seq, slot) for at, seq, slot in self._held]  # all alike: still a heap

    def pause(self, tiers: frozenset[int]) -> list[Slot]:
        """Hold back what is ready of these tiers, and no others. Who waited and may go on."""
        self.paused = tiers
        stopped = [slot for slot in self.ready.slots() if slot.route.tier in tiers]
        self.ready.drop(set(stopped))
        for slot in stopped:
            slot.state = "held"
        freed = [slot for slot in self._parked if slot.route.tier not in tiers]
        self._parked = [slot for slot in self._parked if slot.route.tier in tiers] + stopped
        return freed

    def drop(self, gone: Collection[Slot]) -> None:
        """They end where they wait."""
        self.ready.drop(gone)
        self._held = [entry for entry in self._held if entry[-1] not in gone]
        heapq.heapify(self._held)
        self._parked = [slot for slot in self._parked if slot not in gone]

    def pool_down(self, pool: str, why: str) -> list[Slot]:
        """Who was ready there and has to go elsewhere."""
        self.targets.down[pool] = why
        return self.ready.pop_all(pool)

    def pool_up(self, pool: str, now: float) -> list[Slot]:
        """Who waits at this pool, or for any that takes it and may go there. What went elsewhere stays there."""
        self.targets.down.pop(pool, None)
        held = [slot for _, _, slot in sorted(self._held) if any(c.pool == pool for c in slot.route.candidates)]
        freed = [slot for slot in held if slot.pool == pool or self.targets.blocked(slot, now)]
        self.drop(set(freed))
        return freed

    def due(self, now: float) -> list[Slot]:
        """Held ones whose time has come."""
        due: list[Slot] = []
        while self._held and self._held[0][0] <= now:
            due.append(heapq.heappop(self._held)[-1])
        return due

    def next_wake(self) -> float | None:
        return self._held[0][0] if self._held else None

    def stuck(self) -> str | None:
        """Why some item can go nowhere until a person acts, by account or model. None: there is none, or waiting may
        help."""
        for _, _, slot in self._held:
            why = self.targets.stuck(slot) if slot.pending is None else None
            if why is not None:
                return why
        return None

    @property
    def waiting(self) -> bool:
        """Some item goes on at a time, whatever a person does."""
        return any(slot.route.tier not in self.paused for _, _, slot in self._held)

    @property
    def held(self) -> int:
        return len(self._held) + len(self._parked)

    def check(self) -> None:
        assert all(slot.state == "held" for _, _, slot in self._held), "one that waits for a time is elsewhere"
        assert all(slot.state == "held" for slot in self._parked), "one that is paused is elsewhere"
        assert not any(slot.route.tier in self.paused for slot in self.ready.slots()), "a paused tier is sent"
