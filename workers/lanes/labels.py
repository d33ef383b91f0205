"""Runs the duplicate-label pass in a thread of the driver's process, and passes its verdicts on to the lanes.

The pass reads labels in input order, ahead of the lanes; they dispatch only behind it, so the first of equal labels
wins whatever lane it is in. It knows labels only by their hashes, on disk; the driver still sees no item.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from penstock.connectors.base import Rereadable
from penstock.connectors.reading.labels import Duplicate, LabelPass, labeller
from penstock.connectors.registry import open_source
from penstock.engine.errors import PenstockError, Temporary
from penstock.engine.plan import Plan
from penstock.workers.lanes.input import PATIENCE_S, RETRY_S
from penstock.workers.runspec import RunSpec

STEP = 5_000
"""Records judged between two verdicts: about 25 ms of work."""

Tell = Callable[[bool, tuple[int, int], list[tuple[int, int, str]]], Awaitable[None]]


class LabelWatch:
    def __init__(self, spec: RunSpec, plan: Plan, on_error: Callable[[str], None]) -> None:
        self._plan = plan
        self._on_error = on_error
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._uris = {split.ordinal: split.uri for split in plan.splits}
        source = open_source(spec.source)
        label = labeller(plan.splits[0].format, spec.row, spec.vars) if plan.splits else None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._pass: LabelPass | None = None
        if spec.on_duplicate == "dead_letter" and label is not None and isinstance(source, Rereadable):
            self._folder = tempfile.TemporaryDirectory(prefix="penstock-labels-")
            read = source.rereading(plan.splits)
            self._pass = LabelPass(plan.splits, read, label, Path(self._folder.name) / "labels.db")

    @property
    def complete(self) -> bool:
        """There is nothing to wait for."""
        return self._pass is None

    def start(self, tell: Tell) -> None:
        if self._pass is not None:
            self._task = asyncio.get_running_loop().create_task(self._run(self._pass, tell))

    async def _run(self, labels: LabelPass, tell: Tell) -> None:
        away_s = 0.0
        while not self._stopping:
            try:
                verdict = await asyncio.to_thread(labels.advance, STEP)
                away_s = 0.0
            except Temporary as error:
                wait_s = error.retry_after_s or RETRY_S
                away_s += wait_s
                if away_s > PATIENCE_S:
                    self._on_error(str(error))
                    return
                await asyncio.sleep(wait_s)
                continue
            except PenstockError as error:
                self._on_error(str(error))
                return
            except Exception as error:  # noqa: BLE001 - lanes wait for the pass: its end must end the run
                self._on_error(f"the search for equal labels failed ({type(error).__name__}: {error})")
                return
            await tell(verdict.done, verdict.upto, [self._words(duplicate) for duplicate in verdict.duplicates])
            if verdict.done:
                return

    def _words(self, found: Duplicate) -> tuple[int, int, str]:
        uri = self._uris.get(found.first_ordinal, "")
        return found.ordinal, found.position, f"{uri} at position {found.first_position}"

    async def close(self) -> None:
        self._stopping = True
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
        if self._pass is not None:
            self._pass.close()
        if self._folder is not None:
            self._folder.cleanup()
