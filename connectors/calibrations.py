"""Thresholds of cascades as they were calibrated: `cascades/<task>.json` at the state, for all jobs."""

from __future__ import annotations

from urllib.parse import quote

import msgspec

from penstock.connectors.state import ABSENT, State
from penstock.engine.errors import Corrupt
from penstock.engine.measure.cascade import NoThreshold, Threshold
from penstock.engine.policy import Signal


class Calibrated(msgspec.Struct, frozen=True):
    """One model's: `threshold`, or why there is none."""

    model: str
    version: str
    threshold: Threshold | None = None
    refused: NoThreshold | None = None


class Calibration(msgspec.Struct, frozen=True):
    task: str
    judge: str = ""
    """Of the signal `judge`: the judge's version."""
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


def read_calibration(state: State, task: str) -> Calibration | None:
    """None: never calibrated. Raises `Corrupt`, and what the state raises."""
    found = state.get(_key(task))
    if found is None:
        return None
    try:
        return msgspec.json.decode(found[0], type=Calibration)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"the calibration of task {task} can't be read ({error}); calibrate it again") from error


def write_calibration(state: State, calibration: Calibration) -> Calibration:
    """The newest holds. Returns it with its version. Raises `Conflict` where another was written meanwhile."""
    before, there = read_calibration(state, calibration.task), state.get(_key(calibration.task))
    numbered = msgspec.structs.replace(calibration, version=1 + (before.version if before is not None else 0))
    data = msgspec.json.format(msgspec.json.encode(numbered))
    state.put(_key(calibration.task), data, ABSENT if there is None else there[1])
    return numbered


def _key(task: str) -> str:
    return f"cascades/{quote(task, safe='')}.json"
