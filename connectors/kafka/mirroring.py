"""When a commit carries the source group's offsets too: once a second a lane, and with its last commit.

Not while consumers are in the group: the broker would let a transaction overwrite their offsets (tried).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping

from aiokafka import TopicPartition

from penstock.connectors.kafka.lane import Mirror
from penstock.connectors.kafka.mirror import offsets
from penstock.engine.errors import PenstockError
from penstock.engine.flow.progress import PROGRESS, saved_in
from penstock.engine.plan import Plan

EVERY_S = 1.0
"""Each time costs two more requests; lag tools look every few seconds."""
ASK_EVERY_S = 30.0
"""So often it is asked who is in the group: a connection and three requests. A guess."""
ASK_S = 3.0
"""A commit waits for the answer: milliseconds, unless the broker is stuck."""

_log = logging.getLogger(__name__)


class Mirroring:
    """group: None where the source is elsewhere. read_plan: asked again when a lane's progress is of a newer plan.
    has_members: whether consumers are in a group."""

    def __init__(
        self,
        group: str | None,
        read_plan: Callable[[], Awaitable[Plan | None]],
        has_members: Callable[[str], Awaitable[bool]],
    ) -> None:
        self._group = group
        self._read_plan = read_plan
        self._has_members = has_members
        self._ask_at = 0.0
        self._taken = False
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
        self._at[lane] = now
        if not await self._is_free(self._group, now):
            return None
        if self._plan is None or self._plan.version < saved.plan_version:
            self._plan = await self._read_plan()
        mine = [split for split in self._plan.splits if split.lane == lane] if self._plan else []
        found = {tp: offset for tp, offset in offsets(mine, saved).items() if tp not in self._gone}
        return Mirror(self._group, found) if found else None

    async def _is_free(self, group: str, now: float) -> bool:
        """Nobody's consumers are in it, as far as is known."""
        if now >= self._ask_at:
            self._ask_at = now + ASK_EVERY_S
            try:
                async with asyncio.timeout(ASK_S):
                    self._taken = await self._has_members(group)
            except (PenstockError, TimeoutError) as error:
                self._taken, self._ask_at = True, now + EVERY_S
                _log.warning("who is in the group %s can't be asked: its offsets wait (%s)", group, error)
            else:
                if self._taken:
                    _log.warning("consumers are in the group %s: this run's progress is not shown there", group)
        return not self._taken
