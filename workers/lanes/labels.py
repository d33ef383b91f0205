"""Runs the duplicate-label pass in a thread of the driver's process, and passes its verdicts on to the lanes.

The pass reads labels in input order, ahead of the lanes; they dispatch only behind it, so the first of equal labels
wins whatever lane it is in. It knows labels only by their hashes, on disk; the driver still sees no item.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from penstock.connectors.base import Primary, Rereadable
from penstock.connectors.reading.intake import shared_format
from penstock.connectors.reading.labels import Duplicate, LabelPass, Verdict, labeller
from penstock.connectors.registry import open_source
from penstock.engine.errors import BadRecord, PenstockError, Temporary
from penstock.engine.flow.progress import saved_in
from penstock.engine.plan import Plan, Split
from penstock.workers.lanes.input import PATIENCE_S, RETRY_S
from penstock.workers.runspec import RunSpec

STEP = 5_000
"""Records judged between two verdicts: about 25 ms of work."""

Tell = Callable[[bool, tuple[int, int], list[tuple[int, int, str]]], Awaitable[None]]


class LabelWatch:
    def __init__(
        self, spec: RunSpec, plan: Plan, primary: Primary, on_error: Callable[[str], None], note: Callable[[str], None]
    ) -> None:
        self._primary = primary
        self._on_error = on_error
        self._note = note
        self._forgotten: dict[str, str] = {}
        """File → why it can't be read again."""
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._ordinals: dict[int, list[int]] = {}
        """Lane → those of its splits, in its order."""
        for ordinal, lane in sorted((split.ordinal, split.lane) for split in plan.splits):
            self._ordinals.setdefault(lane, []).append(ordinal)
        self._closed: dict[int, set[int]] = {}
        """Lane → its splits that were closed when its progress was read last. Closed ones stay so."""
        self._uris = {split.ordinal: split.uri for split in plan.splits}
        source = open_source(spec.source)
        label = labeller(shared_format(split.format for split in plan.splits), spec.row, spec.vars)
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._pass: LabelPass | None = None
        wanted = spec.on_duplicate == "dead_letter" and plan.bounded
        if wanted and label is not None and isinstance(source, Rereadable):
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
                verdict = await self._advance(labels)
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
                self._tell_forgotten()
                return

    async def _advance(self, labels: LabelPass) -> Verdict:
        """Past what can't be read again and need not: the inbox was cleared, or a file grew, after all of it had ended.
        What its items were called is forgotten with it."""
        while True:
            try:
                return await asyncio.to_thread(labels.advance, STEP)
            except BadRecord as error:
                split = labels.reading
                if error.reason != "source_lost" or not await self._is_closed(split):
                    raise
                self._forgotten.setdefault(split.uri, str(error))
                labels.pass_over()

    def _tell_forgotten(self) -> None:
        """One note for all: an inbox may have been cleared of thousands."""
        for why in list(self._forgotten.values())[:1]:
            others = f" (and {len(self._forgotten) - 1:,} others like it)" if len(self._forgotten) > 1 else ""
            self._note(
                f"{why}{others}. All of its items have ended; labels that they bear count as new in what is left"
            )

    async def _is_closed(self, split: Split) -> bool:
        """All of its items have ended and are committed."""
        if split.ordinal not in self._closed.get(split.lane, ()):
            saved = saved_in((await self._primary.peek(split.lane)).chunks)
            opened = self._ordinals[split.lane][: saved.opened]
            self._closed[split.lane] = set(opened).difference(each.ordinal for each in saved.splits)
        return split.ordinal in self._closed[split.lane]

    def _words(self, found: Duplicate) -> tuple[int, int, str]:
        uri = self._uris.get(found.first_ordinal, "")
        return found.ordinal, found.position, f"{uri} at position {found.first_position}"

    async def close(self) -> None:
        self._stopping = True
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
        if self._pass is not None:
            await asyncio.to_thread(self._pass.close)
        if self._folder is not None:
            self._folder.cleanup()
