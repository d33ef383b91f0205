"""What was held against labels, for all jobs of a state: thresholds of cascades (`cascades/<task>.json`), and judges
(`judges.json`)."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from urllib.parse import quote

import msgspec

from penstock.connectors.documents import until_won
from penstock.connectors.drifts import read_drifts
from penstock.connectors.measured import Registry
from penstock.connectors.state import ABSENT, State
from penstock.engine.errors import Corrupt
from penstock.engine.measure.cascade import NoThreshold, Threshold
from penstock.engine.policy import Signal
from penstock.engine.steering import judges


class Calibrated(msgspec.Struct, frozen=True):
    """One model's: `threshold`, or why there is none."""

    model: str
    version: str
    threshold: Threshold | None = None
    refused: NoThreshold | None = None
    judge: str = ""
    """Of the signal `judge`: the judge's version."""


class Calibration(msgspec.Struct, frozen=True):
    task: str
    signal: Signal
    scorer: str
    """What said that an answer is right."""
    min_quality: float
    confidence: float
    run_id: str
    """Whose answers it was found on."""
    at: str
    models: tuple[Calibrated, ...]
    version: int = 1
    """Grows with each."""
    prompt: str = ""
    """Version of the prompt that was asked: another one is answered otherwise."""


def read_calibration(state: State, task: str) -> Calibration | None:
    """None: never calibrated. Raises `Corrupt`, and what the state raises."""
    found = state.get(_key(task))
    return None if found is None else _calibration(task, found[0])


def write_calibration(state: State, calibration: Calibration) -> Calibration:
    """The newest holds. Returns it with its version. Raises `Conflict` where another was written meanwhile, and what
    the state raises; `Corrupt` where the one before is gone or can't be read, and what speaks of it neither."""
    there = state.get(_key(calibration.task))
    numbered = msgspec.structs.replace(calibration, version=1 + _last(state, calibration.task, there and there[0]))
    data = msgspec.json.format(msgspec.json.encode(numbered))
    state.put(_key(calibration.task), data, ABSENT if there is None else there[1])
    return numbered


def _last(state: State, task: str, data: bytes | None) -> int:
    """Number of the calibration before; 0: there was none. Of one that was deleted, or can't be read, drifts and scores
    may still tell: a new one with its number would be taken for it."""
    if data is not None:
        with suppress(Corrupt):
            return _calibration(task, data).version
    drifted = (each.calibration for each in read_drifts(state, task)[0])
    scored = (each.accepted for each in Registry(state).read().recent if each.task == task)
    return max((*drifted, *scored), default=0)


def _calibration(task: str, data: bytes) -> Calibration:
    try:
        return msgspec.json.decode(data, type=Calibration)
    except msgspec.MsgspecError as error:
        again = "calibrate it again: penstock cascade calibrate RUN, with the id of the labelled run"
        raise Corrupt(f"the calibration of task {task} can't be read ({error}); {again}") from error


def _key(task: str) -> str:
    return f"cascades/{quote(task, safe='')}.json"


# ---- judges

JUDGES = "judges.json"


def read_judges(state: State) -> dict[str, judges.Calibration]:
    """By `judge@version`. Raises `Corrupt`, and what the state raises."""
    found = state.get(JUDGES)
    return {} if found is None else _judges(found[0])


def write_judges(state: State, found: Iterable[judges.Calibration]) -> dict[str, judges.Calibration]:
    """The newest of each judge holds, but one on too few labels where there is one on enough of them; the others stay.
    Returns all that hold. Raises `Corrupt`, `Temporary`."""
    given = list(found)

    def attempt() -> dict[str, judges.Calibration]:
        there = state.get(JUDGES)
        before = {} if there is None else _judges(there[0])
        new = {each.scorer: each for each in given if judges.replaces(each, before.get(each.scorer))}
        data = msgspec.json.format(msgspec.json.encode({**before, **new}))
        state.put(JUDGES, data, ABSENT if there is None else there[1])
        return {**before, **new}

    return until_won(attempt, JUDGES)


def _judges(data: bytes) -> dict[str, judges.Calibration]:
    try:
        return msgspec.json.decode(data, type=dict[str, judges.Calibration])
    except msgspec.MsgspecError as error:
        raise Corrupt(f"{JUDGES} can't be read ({error}); delete it, and calibrate the judges again") from error
