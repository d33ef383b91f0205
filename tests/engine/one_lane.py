"""One lane on one split, and what tests do to it alike."""

from __future__ import annotations

from penstock.engine.budget import Budget, Budgets
from penstock.engine.catalog import Catalog
from penstock.engine.flow.lane import Lane
from penstock.engine.flow.lane_check import check
from penstock.engine.flow.lane_types import Adopted, CommitBatch, Hooks, LaneSettings
from penstock.engine.items import Call
from penstock.engine.plan import Split
from penstock.engine.policy import Policy
from penstock.engine.router import Router

PLAIN = LaneSettings(0, "r", horizon_floor=1000)


class OneLane:
    """`sent`: the calls that were taken. Begins with nothing committed."""

    def __init__(
        self,
        catalog: Catalog,
        policy: Policy,
        hooks: Hooks,
        budgets: tuple[Budget, ...] = (),
        settings: LaneSettings = PLAIN,
    ) -> None:
        self.lane = Lane(settings, Router(catalog, policy), catalog, policy, hooks, Budgets(budgets, "r"))
        self.sent: list[Call] = []
        self.now = 1000.0
        self.begin({}, 0)

    def begin(self, chunks: dict[str, bytes], seq: int, adopted: list[Adopted] | None = None) -> None:
        self.lane.begin([Split("s", "o", 0, 0, "u", 0, None, "rows")], chunks, seq)
        self.commit()
        self.lane.adopt(adopted or [])

    def commit(self) -> CommitBatch:
        batch = self.lane.commit(self.now)
        self.lane.committed(self.now)
        check(self.lane)
        return batch

    def roles(self) -> list[tuple[str, str]]:
        return [(call.role, call.model) for call in self.sent]
