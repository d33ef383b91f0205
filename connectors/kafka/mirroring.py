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
ASK_AGAIN_S = 5.0
REST_S = 60.0
MAX_REST_S = 600.0
"""After a silence of the group's coordinator; twice as long after each further one. One that met a commit cost a lane
that commit, and five of those in five minutes would end a run. Guesses."""

_log = logging.getLogger(__name__)


class Mirroring:
    """group: None where the source is elsewhere. read_plan: asked again when a lane's progress is of a newer plan.
    has_members: whether consumers are in a group."""

    def __init__(
        self,
        group: str | None,
        read_plan: Callable[[], Awaitable[Plan | None]],
        has_members: Callable[[str], Awaitable[bool]],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._group = group
        self._read_plan = read_plan
        self._has_members = has_members
        self._now = now
        self._ask_at = 0.0
        self._taken = False
        self._rest_s = 0.0
        self._rests_until = 0.0
        self._told = False
        self._plan: Plan | None = None
        self._at: dict[int, float] = {}
        self._gone: set[TopicPartition] = set()

    def off(self) -> None:
        self._group = None

    def leave_out(self, gone: Collection[TopicPartition]) -> None:
        """Partitions that were deleted: a broker takes no offsets of them, nor any that stand beside them."""
        self._gone.update(gone)

    def rest(self, why: str, least_s: float = REST_S) -> None:
        """Nothing goes to the group for a while. Lanes whose commits met one silence say it each; it counts once."""
        now = self._now()
        if now >= self._rests_until:
            self._rest_s = min(MAX_REST_S, max(least_s, 2 * self._rest_s))
            self._rests_until = self._ask_at = now + self._rest_s
            self._taken = True  # until the group was asked again, outside a commit
            self._tell(why)

    def shown(self) -> None:
        """A commit took the offsets."""
        self._rest_s, self._told = 0.0, False

    async def due(self, lane: int, chunks: Mapping[str, bytes]) -> Mirror | None:
        if self._group is None or PROGRESS not in chunks:
            return None
        saved, now = saved_in(chunks), self._now()
        if now < self._rests_until or (now - self._at.get(lane, 0.0) < EVERY_S and not saved.done):
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
                self.rest(f"it can't be asked who is in it ({error or 'no answer'})", ASK_AGAIN_S)
                return False
            if self._taken:
                self._tell("consumers are in the group, and its offsets are theirs")
        return not self._taken

    def _tell(self, why: str) -> None:
        """Once, until a commit carries the offsets again."""
        if not self._told:
            self._told = True
            _log.warning("this run's progress is not shown in the group %s for now: %s", self._group, why)
