"""Where an item can go now: breakers, pools that are down, retry budgets. What a person has to mend is told as such."""

from __future__ import annotations

from penstock.engine.catalog import Catalog
from penstock.engine.flow.slots import Slot
from penstock.engine.health import Health
from penstock.engine.items import Candidate
from penstock.engine.retry import RetryBudget, Target

SOON_S = 0.05
"""The least wait of one that finds nobody: no busy loop around a probe that is out."""


class Targets:
    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        versions = {f"{m.name}@{v.id}": m.account for m in catalog.models.values() for v in m.versions}
        self.health = Health({name: model.account for name, model in catalog.models.items()} | versions)
        self.down: dict[str, str] = {}
        """Pool → why nothing can be sent there."""
        self.budgets = {name: RetryBudget() for name in catalog.models}

    def blocked(self, slot: Slot, now: float) -> bool:
        """Can its candidate take it now? No breaker and no lost pool: one look at two empty dictionaries."""
        return slot.pool in self.down or self.health.is_open(slot.target, now)

    def other(self, slot: Slot) -> int | None:
        """The next candidate that is well, and was not given up for this item."""
        candidates = slot.route.candidates
        for step in range(1, len(candidates)):
            index = (slot.candidate + step) % len(candidates)
            if index not in slot.history.left and self._is_up(candidates[index]):
                return index
        return None

    def above(self, slot: Slot) -> int | None:
        """The next candidate of a cascade; None: it stands at the last that is of use."""
        left, here = slot.history.left, slot.candidate
        return next((i for i in range(here + 1, len(slot.route.candidates)) if i not in left), None)

    def usable_at(self, slot: Slot, now: float) -> float:
        """When to look again where no candidate is well."""
        return max(now + SOON_S, min(self._at(c, now) for c in self._of_use(slot)))

    def of(self, slot: Slot, now: float) -> list[Target]:
        """As `retry.after` wants to see them."""
        return [
            Target(
                self._catalog.models[c.model].context,
                self._is_up(c),
                self._at(c, now),
                self.budgets[c.model].has_room(now),
                self._catalog.models[c.model].account,
            )
            for c in slot.route.candidates
        ]

    def stuck(self, slot: Slot) -> str | None:
        """What a person has to mend before this item can go anywhere; None where waiting may help."""
        if not self.down and not self.health.mends:
            return None
        words: dict[str, None] = {}
        for candidate in self._of_use(slot):
            why = self.down.get(candidate.pool) or self.health.to_mend(candidate.target)
            if why is None:
                return None
            account = self._catalog.models[candidate.model].account
            words[f"account {account}: {why}" if account else f"{candidate.model}: {why}"] = None
        return "; ".join(words)

    def _of_use(self, slot: Slot) -> list[Candidate]:
        """Its candidates without those given up; the present one always counts."""
        left = slot.history.left
        return [c for i, c in enumerate(slot.route.candidates) if i not in left or i == slot.candidate]

    def _is_up(self, candidate: Candidate) -> bool:
        return candidate.pool not in self.down and self.health.is_up(candidate.target)

    def _at(self, candidate: Candidate, now: float) -> float:
        return float("inf") if candidate.pool in self.down else self.health.next_probe_at(candidate.target, now)
