"""Whose time an own engine's is: what runs at once shares each second equally."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from penstock.engine.items import Outcome
from penstock.workers.engines.base import Ticket


class EngineTime:
    """The parts of all calls, whatever their lane or job, add up to the time in which the engine had work. So do those
    of several runs and replicas: how long an item takes an engine that is kept full does not depend on how many wait
    beside it. `now`: seconds, monotonic."""

    def __init__(self) -> None:
        self._at = 0.0
        self._each = 0.0
        """Seconds that one which had been here from the beginning would have."""
        self._came: dict[Ticket, float] = {}

    def came(self, tickets: Iterable[Ticket], now: float) -> None:
        self._pass(now)
        self._came.update(dict.fromkeys(tickets, self._each))

    def left(self, batch: Sequence[tuple[Ticket, Outcome]], now: float) -> list[tuple[Ticket, Outcome]]:
        """The outcomes, each with its call's part."""
        self._pass(now)
        parts = [self._each - self._came.pop(ticket, self._each) for ticket, _ in batch]
        return [
            (ticket, msgspec.structs.replace(outcome, engine_ms=part * 1_000))
            for (ticket, outcome), part in zip(batch, parts, strict=True)
        ]

    def _pass(self, now: float) -> None:
        if self._came:
            self._each += (now - self._at) / len(self._came)
        self._at = now
