"""The driver's ear: what is asked of the run at the state URL becomes an end, a pause, a hand-over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from penstock.engine.errors import PenstockError
from penstock.workers.driving.asked import heard, read_asked
from penstock.workers.runspec import RunSpec
from penstock.workers.status import RunState, RunStatus

LOOK_EVERY_S = 1.0

Pause = Callable[[tuple[int, ...]], Awaitable[None]]


class Hearing:
    """`pause` tells the lanes which tiers to hold back; `end` stops the run, the first reason stays."""

    def __init__(
        self,
        spec: RunSpec,
        status: RunStatus,
        end: Callable[[RunState, str], None],
        note: Callable[[str], None],
    ) -> None:
        self._spec = spec
        self._status = status
        self._end = end
        self._note = note
        self._trouble = ""

    async def meanwhile(self, opening: Awaitable[None]) -> None:
        """Hear what stops the run while its lanes are opened: a store that is away may keep them from it for long.
        Which tiers wait is heard when they are open."""
        work = asyncio.ensure_future(opening)
        try:
            while not (await asyncio.wait([work], timeout=LOOK_EVERY_S))[0]:
                await self.look(None)
            work.result()
        finally:
            work.cancel()

    async def look(self, pause: Pause | None) -> None:
        """One look. A state that can't be read now is told once: what runs goes on."""
        try:
            await self._look(pause)
            self._trouble = ""
        except PenstockError as error:
            if str(error) != self._trouble:
                self._note(f"requests to pause, cancel or hand over can't be read now: {error}")
            self._trouble = str(error)

    async def _look(self, pause: Pause | None) -> None:
        url, run_id = self._spec.state, self._spec.run_id
        asked = await asyncio.to_thread(read_asked, url, run_id)
        if asked.cancel:
            self._end("cancelled", "cancelled; the same command goes on where it was")
        if asked.handover is not None and not asked.handover.heard:
            await asyncio.to_thread(heard, url, run_id, asked.handover)
            self._end("handed_over", f"handed over to {asked.handover.by}")
        if pause is not None and asked.paused != tuple(self._status.paused):
            self._status.paused = list(asked.paused)
            tiers = ", ".join(f"tier {tier}" for tier in asked.paused)
            self._note(f"paused: {tiers}; its items wait" if tiers else "no tier is paused any more")
            await pause(asked.paused)
