"""One lane actor of a run, as its driver deals with it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable

from penstock.workers.cluster import kill
from penstock.workers.lanes.news import Handle, Listener
from penstock.workers.replies import Unanswered, answered

GO_S = 20.0
"""To begin, which an actor on a busy machine may do late."""
PART_S = 10.0
"""For a lane that moves: calls that last longer go on for its next owner. A guess: meanwhile it sends nothing new."""
PART_LATE_S = 10.0
"""Beyond that, for its last commit, by an actor that is slow."""
CLOSE_S = 10.0


class Member(Listener):
    def __init__(self, number: int, handle: Handle, plan_version: int, lanes: list[int]) -> None:
        super().__init__(number, handle, plan_version)
        self.lanes = lanes
        self.heard_at: float | None = None
        """When it told its pace last; None: not yet."""

    async def beat(self) -> None:
        """It is to tell its pace from now on."""
        with contextlib.suppress(Exception):  # one that is lost is replaced
            await self.handle.beat.remote(self.number)

    async def begin(self) -> None:
        """Told twice, lanes go once. An actor that was lost meanwhile is replaced; one that never answers is ended."""

        def ask() -> Awaitable[object]:
            return self.handle.go.remote(self.lanes)

        try:
            await answered(ask, GO_S)
        except Unanswered:
            kill(self.handle)
        except Exception:  # noqa: BLE001 - whoever watches it sees it too, and its lanes go from where they are reopened
            return

    async def part(self, lane: int) -> object:
        """Hand the lane over; returns what goes to its next owner (`inherit`). Raises `Unanswered`, or what Ray raises
        where it is lost."""

        def ask() -> Awaitable[object]:
            return self.handle.part.remote(lane, PART_S)

        return await answered(ask, PART_S + PART_LATE_S, times=1)

    async def close(self) -> None:
        """Let go of all lanes, and end."""
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self.handle.close.remote(self.lanes), CLOSE_S)
        kill(self.handle)
