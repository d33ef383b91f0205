"""What a run measured, added up and told to the registry; and what the registry says, told to the lanes.

Measuring is no matter of money or of answers: where the state can't be reached, the run goes on by what it knew last,
and says so once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import msgspec

from penstock.connectors.measured import Registry
from penstock.connectors.state import open_state
from penstock.engine.errors import Fenced
from penstock.engine.flow.cells import Cell, decoded, summed
from penstock.engine.registry.standing import Known
from penstock.engine.registry.standings import standings
from penstock.workers.books.promises import Promises
from penstock.workers.cluster import words
from penstock.workers.lanes.report import LaneReport
from penstock.workers.runspec import RunSpec
from penstock.workers.status import RunStatus

LOOK_EVERY_S = 5.0
"""Some requests to the state; a model is judged by hundreds of samples, which take longer to come."""
LAST_WORD_S = 30.0
"""For the last sums of a run that is over. What is not told then is told when it goes on."""

Tell = Callable[[bytes], Awaitable[None]]


class Measuring:
    """Nothing of the run is told before each of its lanes has spoken: a part would look like less."""

    def __init__(self, spec: RunSpec, note: Callable[[str], None]) -> None:
        self._spec = spec
        self._note = note
        self._cells: dict[int, list[Cell]] = {}
        self._own: list[Cell] | None = None
        """The run's sums; None: not all of its lanes have spoken."""
        self._changed = False
        self._registry: Registry | None = None
        self._promises = Promises(spec)
        self._said: set[str] = set()
        """Tasks of which it was told that their calibration does not hold."""
        self._looked_at = 0.0
        self._looking: asyncio.Task[None] | None = None
        self._told = b""
        self._trouble = ""

    # -- of this run

    def heard(self, report: LaneReport) -> None:
        """A lane that changes hands says the same again, or more: what it told was committed."""
        if report.cells:
            self._cells[report.lane] = decoded(report.cells)
            self._changed = True

    def see(self, status: RunStatus) -> None:
        """Bring its cells up to date, and whose calibration does not hold."""
        status.drifted = {task: drift.why for task, drift in self._promises.broken.items()}
        if self._changed and len(self._cells) == status.lanes:
            self._changed = False
            status.cells = self._own = summed(*self._cells.values())

    def ended(self, status: RunStatus, cells: list[Cell]) -> None:
        """There was nothing left to do: all lanes' cells as their progress holds them."""
        status.cells = self._own = cells

    # -- of all

    def hold(self, epoch: int, life: float) -> None:
        """The run is ours. `life`: when it was begun, as its plan says."""
        state, data = open_state(self._spec.state), self._spec.data
        self._registry = Registry(state, self._spec.run_id, epoch, life, data=data)

    async def first(self, tell: Tell) -> None:
        """What others measured decides from the first item on. Raises `Corrupt`, `Temporary` where a cascade's
        calibration may not hold, and that can't be read."""
        await asyncio.to_thread(self._promises.read)
        if self._promises.broken:
            await self._pass_on(msgspec.msgpack.encode(Known((), self._promises.stopped)), tell)
        await self._look(tell)

    def look(self, tell: Tell, now: float) -> None:
        """Every few seconds, in the background."""
        due = not 0 <= now - self._looked_at < LOOK_EVERY_S
        if due and (self._looking is None or self._looking.done()):
            self._looked_at = now
            self._looking = asyncio.ensure_future(self._look(tell))

    async def end(self, *, over: bool) -> None:
        """The last word. `over`: every item of the run has ended."""
        if self._registry is None or self._own is None:
            return
        last = self._registry.end if over else self._registry.tell
        try:
            async with asyncio.timeout(LAST_WORD_S):
                if self._looking is not None:  # two that tell at once could tell in the wrong order
                    await asyncio.wait({self._looking})
                await asyncio.to_thread(last, self._own)
        except Fenced:  # another command goes on, and tells all of it
            return
        except TimeoutError:
            self._note("what this run measured last is not in the registry: the state is too slow")
        except Exception as error:  # noqa: BLE001 - told; a run ends whatever becomes of its statistics
            self._note(f"what this run measured last is not in the registry: {words(error)}")

    async def _look(self, tell: Tell) -> None:
        if self._registry is None:
            return
        try:
            found = await asyncio.to_thread(self._exchange, self._registry)
        except Exception as error:  # noqa: BLE001 - told once; the run goes on
            if (told := words(error)) != self._trouble:
                self._note(f"what was measured can't be shared now; routes go by what was known last: {told}")
            self._trouble = told
            return
        self._trouble = ""
        await self._pass_on(found, tell)

    async def _pass_on(self, found: bytes, tell: Tell) -> None:
        for task, drift in self._promises.broken.items():
            if task not in self._said:
                self._said.add(task)
                self._note(self._promises.told(drift))
        if found != self._told:
            await tell(found)
            self._told = found

    def _exchange(self, registry: Registry) -> bytes:
        """`Known`, for the lanes. In a thread: standings take milliseconds of the driver's loop."""
        shared = registry.read() if self._own is None else registry.tell(self._own)
        self._promises.look(shared, time.time())
        known = Known(standings(shared, self._spec.catalog, self._spec.policy), self._promises.stopped)
        return msgspec.msgpack.encode(known)
