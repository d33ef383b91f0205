"""Calibrations of cascades that do not hold any more: `drifts/<task>.json` at the state, for all jobs and for good.

Which version of a calibration it was is part of the entry, so a new version is believed again. An entry holds with its
swap, before it is in the audit log: whoever dies in between leaves it `owed`, and the next one who looks writes it down
(then it may stand there twice, under one id). All calls block: call them in a thread.
"""

from __future__ import annotations

from urllib.parse import quote

import msgspec

from penstock.connectors.audit import open_audit
from penstock.connectors.documents import ABSENT, State, Tag, until_won
from penstock.connectors.state import open_state
from penstock.engine.audit import Draft
from penstock.engine.errors import Corrupt

OWED_S = 15.0
"""After so long whoever found it has died before it was in the audit log."""


class Drift(msgspec.Struct, frozen=True):
    """What showed that a calibration does not hold."""

    task: str
    calibration: int
    target: str
    """`model@version` whose accepted answers fell short."""
    scorer: str
    """`name@version`."""
    promised: float
    items: int
    """Scored answers since the likeliest place of a change."""
    mean: float
    at: float
    """Unix seconds."""
    job: str
    run: str
    owed: bool = True
    """It is not in the audit log yet."""

    @property
    def why(self) -> str:
        return (
            f"cascade of task {self.task}: {self.items:,} accepted answers of {self.target} are right (by "
            f"{self.scorer.partition('@')[0]}) in {self.mean:.3f}, and its calibration {self.calibration} promised "
            f"{self.promised:g}: it does not hold any more"
        )


class Drifts:
    """Of one state URL."""

    def __init__(self, url: str, state: State | None = None) -> None:
        self._url = url
        self._state = state or open_state(url)

    def read(self, task: str, calibration: int) -> Drift | None:
        """None: nothing shows that it does not hold. Raises `Corrupt`, `Temporary`."""
        return next((each for each in read_drifts(self._state, task)[0] if each.calibration == calibration), None)

    def add(self, drift: Drift) -> Drift:
        """The one that stands there then: whoever came first found it. Raises `Corrupt`, `Temporary`."""
        return until_won(lambda: self._add(drift), _key(drift.task))

    def _add(self, drift: Drift) -> Drift:
        there, tag = read_drifts(self._state, drift.task)
        for each in there:
            if each.calibration == drift.calibration:
                return each
        self._put(drift.task, (*there, drift), tag)
        return drift

    def pay(self, drift: Drift) -> None:
        """Put it into the audit log. Raises `Corrupt`, `Temporary`: it stays owed."""
        facts = {f: getattr(drift, f) for f in ("task", "calibration", "target", "scorer", "promised", "items", "mean")}
        named = {"id": f"{drift.task}:{drift.calibration}", **facts, "why": drift.why}
        open_audit(self._url).append(Draft(drift.at, "penstock", "drift", drift.job, drift.run, named))
        until_won(lambda: self._paid(drift), _key(drift.task))

    def _paid(self, drift: Drift) -> None:
        there, tag = read_drifts(self._state, drift.task)
        same = (msgspec.structs.replace(e, owed=False) if e.calibration == drift.calibration else e for e in there)
        self._put(drift.task, tuple(same), tag)

    def _put(self, task: str, drifts: tuple[Drift, ...], tag: Tag | None) -> None:
        self._state.put(_key(task), msgspec.json.encode(drifts), ABSENT if tag is None else tag)


def read_drifts(state: State, task: str) -> tuple[tuple[Drift, ...], Tag | None]:
    """All of a task, and the document's tag (None: there is none). Raises `Corrupt`, `Temporary`."""
    found = state.get(_key(task))
    if found is None:
        return (), None
    try:
        return msgspec.json.decode(found[0], type=tuple[Drift, ...]), found[1]
    except msgspec.MsgspecError as error:
        raise Corrupt(f"{_key(task)} at the state URL can't be read ({error}); restore it from a backup") from error


def _key(task: str) -> str:
    return f"drifts/{quote(task, safe='')}.json"
