"""Cascades: from cheap to good, as far as an item needs."""

from __future__ import annotations

import math

from penstock.engine.policy import Cascade, Scorer, target_name
from penstock.jobs.spec.asked import Context
from penstock.jobs.spec.catalogue import refer
from penstock.jobs.spec.fields import CascadeFile, TaskFile
from penstock.jobs.spec.scoring import judge
from penstock.jobs.spec.tree import Path

MAX_SAMPLES = 20
NEVER = 2.0
"""Above every signal."""


def cascade(at: Context, path: Path, name: str, task: TaskFile) -> Cascade | None:
    """Raises `SpecError`."""
    file = task.cascade
    if file is None:
        return None
    if task.models is not None:
        raise at.doc.error(path, "stands beside `models`; a cascade names its own")
    models = refer(at.doc, (*path, "models"), file.models, at.catalog.models)
    if len(models) < 2:
        raise at.doc.error((*path, "models"), "name at least two models, from cheap to good")
    threshold, thresholds = _threshold(at, path, name, file)
    match file.signal:
        case "validity" if task.output is None:
            raise at.doc.error((*path, "signal"), "validity needs an `output:` that an answer can miss")
        case "agreement":
            _check_samples(at, path, file, task.params.get("temperature"))
        case _:
            pass
    samples = file.samples if file.signal == "agreement" else 1
    return Cascade(models, file.signal, threshold, samples, thresholds, _judge(at, (*path, "judge"), file))


def _judge(at: Context, path: Path, file: CascadeFile) -> Scorer | None:
    if (file.signal == "judge") != (file.judge is not None):
        raise at.doc.error(path, "says who judges where `signal: judge` stands, and only there")
    if file.judge is None:
        return None
    if file.judge.type not in (None, "judge"):
        raise at.doc.error((*path, "type"), f"is judge here, not {file.judge.type}")
    if file.judge.pairwise:
        raise at.doc.error((*path, "pairwise"), "there is no other answer yet: a judge of a cascade gives grades")
    return judge(at, path, file.judge)


def _threshold(at: Context, path: Path, name: str, file: CascadeFile) -> tuple[float, dict[str, float]]:
    """For all, and for some models."""
    if file.signal == "validity":
        if file.threshold is not None:
            raise at.doc.error((*path, "threshold"), "validity has none: an answer is valid or not")
        return 0.0, {}
    if file.threshold == "calibrated":
        return NEVER, _calibrated(at, (*path, "threshold"), name, file)
    if file.threshold is None:
        raise at.doc.error(path, f"say its `threshold:`; an answer whose {file.signal} is at least this is taken")
    if not -1 <= file.threshold <= 1:
        raise at.doc.error((*path, "threshold"), "a signal lies between 0 and 1 (a margin also below 0)")
    return float(file.threshold), {}


def _calibrated(at: Context, path: Path, name: str, file: CascadeFile) -> dict[str, float]:
    """Versions without a threshold of their own are never believed: a rollout may bring one while the job runs."""
    from penstock.connectors.calibrations import read_calibration
    from penstock.connectors.state import open_state

    found = read_calibration(open_state(at.state), name)
    if found is None:
        raise at.doc.error(path, f"task {name} was never calibrated at {at.state}: penstock cascade calibrate")
    if found.signal != file.signal:
        raise at.doc.error(path, f"the calibration is of the signal {found.signal}; calibrate it again")
    return {
        target_name(f"{each.model}@{each.version}", each.judge): math.nextafter(each.threshold.above, math.inf)
        for each in found.models
        if each.threshold is not None
    }


def _check_samples(at: Context, path: Path, file: CascadeFile, temperature: object) -> None:
    if not 2 <= file.samples <= MAX_SAMPLES:
        raise at.doc.error((*path, "samples"), f"expected 2 to {MAX_SAMPLES}")
    if temperature == 0:
        raise at.doc.error((*path, "signal"), "at temperature 0 answers always agree; set params.temperature above 0")
