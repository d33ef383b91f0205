"""New input of an endless run: the source is listed again now and then, the plan grows, and the lanes are told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from penstock.connectors.base import Primary
from penstock.connectors.registry import open_source
from penstock.engine.errors import BadRecord, Fenced, Refused, SpecError, Temporary
from penstock.engine.plan import Plan
from penstock.workers.driving.planner import extended, listed
from penstock.workers.runspec import RunSpec


class Discovery:
    """`tell` hands a longer plan, which is durable by then, to every lane."""

    def __init__(
        self,
        spec: RunSpec,
        plan: Plan,
        primary: Primary,
        tell: Callable[[Plan], Awaitable[None]],
        note: Callable[[str], None],
    ) -> None:
        self.plan = plan
        self._spec = spec
        self._source = open_source(spec.source)
        self._primary = primary
        self._tell = tell
        self._note = note
        self._trouble = ""
        """What was told last, while it lasts."""
        self._missing = ""
        self._task: asyncio.Task[None] | None = None

    def start(self, lanes_at: Callable[[], Iterable[int]]) -> None:
        """Look every `discover_s` from now on."""
        self._task = asyncio.get_running_loop().create_task(self._run(lanes_at))

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, lanes_at: Callable[[], Iterable[int]]) -> None:
        while True:
            await asyncio.sleep(self._spec.execution.discover_s)
            try:
                await self.step(lanes_at())
            except Exception as error:  # noqa: BLE001 - told, and tried again at the next look: what runs goes on
                self._tell_once(f"unexpected, while new input was looked for: {type(error).__name__}: {error}"[:300])

    async def step(self, lanes_at: Iterable[int]) -> None:
        """One look. `lanes_at`: the plan versions that lanes read by; one that missed a longer plan is told again.

        An input that can't be listed now is told once, and listed again the next time: what runs goes on.
        """
        try:
            longer = await self._longer()
        except (SpecError, Refused, Temporary, BadRecord) as error:
            self._tell_once(f"new input can't be listed now: {error}")
            return
        except Fenced as error:  # another command wrote it: its plan is read at the next look
            self._tell_once(str(error))
            return
        self._tell_once(self._missing)
        if longer is not None:
            self.plan = longer
        if longer is not None or any(version < self.plan.version for version in lanes_at):
            await self._tell(self.plan)

    async def _longer(self) -> Plan | None:
        """The plan, where it is longer than ours: extended and written by us, or by a command before us."""
        stored = await self._primary.read_plan() or self.plan
        found = await listed(self._source, stored)
        self._missing = found.missing or ""
        longer = extended(stored, self._spec, found.splits)
        if longer is not None:
            await self._primary.write_plan(longer)
            new = len(longer.splits) - len(self.plan.splits)
            if new:
                self._note(f"{new} new piece{'s' if new > 1 else ''} of input joined the run")
            return longer
        return stored if stored.version > self.plan.version else None

    def _tell_once(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            self._note(trouble)
        self._trouble = trouble
