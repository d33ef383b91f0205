"""The registry of quality at the state URL: `measured.json`, shared by all jobs, and `sums/<run>.json`, each run's own.

Written by compare-and-swap only; whoever loses a race reads again. All calls block: call them in a thread. Measuring
is no matter of money or of answers: a run goes on where the registry can't be reached, and tells it later.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

import msgspec

from penstock.connectors.documents import ABSENT, Conflict, State
from penstock.engine.errors import Corrupt, Fenced, Temporary
from penstock.engine.flow.cells import Cell
from penstock.engine.registry.document import MAX_RUNS, Measured, Numbered, Sums, closed, fold, opened

T = TypeVar("T")

DOCUMENT = "measured.json"
SUMS = "sums/"
TRIES = 100
"""Of one swap: tens of jobs that all write at once are served in turn."""
PAUSE_S = 0.05
"""The longest pause after the first lost race; it grows to ten times that. A swap on S3 takes about as long."""
DEAD_AFTER_S = 7 * 86_400.0
"""A run not heard of for so long is closed by others, where there are too many. One that comes back is opened again."""


class Registry:
    """One run's hand on the registry, for readers with `run=""`. `life`: when the run was begun, or begun anew
    by `--fresh`, as its plan says; `epoch`: of the command that holds it. A newer life is newer whatever its epoch.
    `data`: of an evaluation, which rows it asks."""

    def __init__(
        self,
        state: State,
        run: str = "",
        epoch: int = 0,
        life: float = 0.0,
        *,
        data: str = "",
        now: Callable[[], float] = time.time,
    ) -> None:
        self._state = state
        self._run = run
        self._me = (life, epoch)
        self._data = data
        self._now = now
        self.owns = False
        """The run's sums carry our name, or did until a newer command came."""

    def read(self) -> Measured:
        """What all runs measured. Raises `Corrupt`, `Temporary`."""
        return self._shared()[0]

    def tell(self, cells: list[Cell]) -> Measured:
        """The run's sums as they are now; returns what all runs measured, these included.

        Raises `Fenced` where the run's sums belong to a newer command, `Temporary` (tell them again), `Corrupt`.
        """
        for lost in range(TRIES):
            sums, tag = self._owned(cells)
            shared = self._fold(self._run, sums)
            if sums.latest.cells == cells:
                return shared
            sums = sums.then(cells)
            try:
                self._state.put(self._key(), _encode(sums), tag)
            except Conflict:
                _pause(lost)
                continue
            return self._fold(self._run, sums)
        raise Temporary(f"the sums of run {self._run} are written by others again and again; they are told later")

    def end(self, cells: list[Cell]) -> None:
        """The last word of this command: the run is closed, and may be forgotten. It may go on some day."""
        shared = self.tell(cells)
        self._close(self._run, mine=True)
        if len(shared.runs) > MAX_RUNS:
            old = [name for name, run in shared.runs.items() if not run.closed and run.at < self._now() - DEAD_AFTER_S]
            for name in old:
                self._close(name, mine=False)

    # -- the run's own document

    def _key(self, run: str | None = None) -> str:
        return f"{SUMS}{run or self._run}.json"

    def _owned(self, cells: list[Cell]) -> tuple[Sums, str]:
        """The run's sums, open, and ours. `cells`: what is had of them, where they were lost."""
        for lost in range(TRIES):
            found = self._state.get(self._key())
            sums = None if found is None else _decode(self._key(), found[0], Sums)
            if found is not None and sums is not None and self.owns and self._is_mine(sums) and not sums.closed:
                return sums, found[1]
            ours = self._claimed(sums, cells)
            try:
                tag = self._state.put(self._key(), _encode(ours), ABSENT if found is None else found[1])
            except Conflict:
                _pause(lost)
                continue
            self.owns = True
            return ours, tag
        raise Temporary(f"the sums of run {self._run} are written by others again and again; they are told later")

    def _claimed(self, sums: Sums | None, cells: list[Cell]) -> Sums:
        """The document with our name in it. The shared one is told first that the run goes on."""
        if sums is None:
            run = self._shared()[0].runs.get(self._run)
            if run is None:
                return Sums(*self._me, data=self._data)
            lost = Sums(*self._me, run.opening, states=(Numbered(run.number, cells),), data=self._data)
            self._swap(lambda shared: _reopen(shared, self._run, lost, self._now()))
            return msgspec.structs.replace(lost, opening=lost.opening + 1)
        if self._me < (sums.life, sums.epoch) or (self.owns and not self._is_mine(sums)):
            raise Fenced(f"run {self._run} was taken over by epoch {sums.epoch}, which tells what it measures")
        life, epoch = self._me
        if not sums.closed:
            return msgspec.structs.replace(sums, life=life, epoch=epoch)
        self._swap(lambda shared: _reopen(shared, self._run, sums, self._now()))
        return msgspec.structs.replace(sums, life=life, epoch=epoch, closed=False, opening=sums.opening + 1)

    def _is_mine(self, sums: Sums) -> bool:
        return self._me == (sums.life, sums.epoch)

    def _close(self, run: str, *, mine: bool) -> None:
        """`mine`: only where it is ours still. Its latest sums are in the shared document when this returns."""
        for lost in range(TRIES):
            found = self._state.get(self._key(run))
            if found is None:
                return
            sums = _decode(self._key(run), found[0], Sums)
            if mine and not self._is_mine(sums):
                return
            self._fold(run, sums)
            if not sums.closed:
                sums = msgspec.structs.replace(sums, closed=True, states=sums.states[-1:])
                try:
                    self._state.put(self._key(run), _encode(sums), found[1])
                except Conflict:
                    _pause(lost)
                    continue
            self._swap(lambda shared, opening=sums.opening: closed(shared, run, opening))
            return

    # -- the shared one

    def _fold(self, run: str, sums: Sums) -> Measured:
        def change(shared: Measured) -> bool:
            """A run that the document does not know was never in it, if it is open still; else it was forgotten."""
            return (run in shared.runs or self._still(run, sums)) and fold(shared, run, sums, self._now())

        return self._swap(change)

    def _still(self, run: str, sums: Sums) -> bool:
        found = self._state.get(self._key(run))
        return found is not None and _decode(self._key(run), found[0], Sums) == sums

    def _shared(self) -> tuple[Measured, str | None]:
        found = self._state.get(DOCUMENT)
        return (Measured(), None) if found is None else (_decode(DOCUMENT, found[0], Measured), found[1])

    def _swap(self, change: Callable[[Measured], bool]) -> Measured:
        """`change` alters the document; False: it has nothing to alter."""
        for lost in range(TRIES):
            shared, tag = self._shared()
            if not change(shared):
                return shared
            try:
                self._state.put(DOCUMENT, _encode(shared), ABSENT if tag is None else tag)
            except Conflict:
                _pause(lost)
            else:
                return shared
        raise Temporary(f"{DOCUMENT} is too busy: lost {TRIES} races in a row; what was measured is told later")


def _reopen(shared: Measured, run: str, sums: Sums, now: float) -> bool:
    known = shared.runs.get(run)
    if known is not None and known.opening > sums.opening:
        return False
    opened(shared, run, sums, now)
    return True


def _pause(lost: int) -> None:
    time.sleep(random.random() * PAUSE_S * min(lost + 1, 10))


def _encode(document: Measured | Sums) -> bytes:
    return msgspec.json.encode(document)


def _decode(key: str, data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise Corrupt(
            f"{key} at the state URL can't be read ({error}). Restore it, or delete it: then it is measured anew"
        ) from error
