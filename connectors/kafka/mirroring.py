"""When a commit carries the source group's offsets too: once a second a lane, and with its last commit."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Mapping

from aiokafka import TopicPartition

from penstock.connectors.kafka.lane import Mirror
from penstock.connectors.kafka.mirror import offsets
from penstock.engine.flow.progress import PROGRESS, saved_in
from penstock.engine.plan import Plan

EVERY_S = 1.0
"""Each time costs two more requests; lag tools look every few seconds."""


class Mirroring:
    """group: None where the source is elsewhere. read_plan: asked again when a lane's progress is of a newer plan."""

    def __init__(self, group: str | None, read_plan: Callable[[], Awaitable[Plan | None]]) -> None:
        self._group = group
        self._read_plan = read_plan
        self._plan: Plan | None = None
        self._at: dict[int, float] = {}
        self._gone: set[TopicPartition] = set()

    def off(self) -> None:
        self._group = None

    def leave_out(self, gone: Collection[TopicPartition]) -> None:
        """Partitions that were deleted: a broker takes no offsets of them, nor any that stand beside them."""
        self._gone.update(gone)

    async def due(self, lane: int, chunks: Mapping[str, bytes]) -> Mirror | None:
        if self._group is None or PROGRESS not in chunks:
            return None
        saved, now = saved_in(chunks), time.monotonic()
        if now - self._at.get(lane, 0.0) < EVERY_S and not saved.done:
            return None
        if self._plan is None or self._plan.version < saved.plan_version:
            self._plan = await self._read_plan()
        mine = [split for split in self._plan.splits if split.lane == lane] if self._plan else []
        found = {tp: offset for tp, offset in offsets(mine, saved).items() if tp not in self._gone}
        self._at[lane] = now
        return Mirror(self._group, found) if found else None
