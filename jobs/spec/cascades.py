"""Cascades: from cheap to good, as far as an item needs."""

from __future__ import annotations

from penstock.engine.policy import Cascade
from penstock.jobs.spec.asked import Context
from penstock.jobs.spec.catalogue import refer
from penstock.jobs.spec.fields import CascadeFile, TaskFile
from penstock.jobs.spec.tree import Path

MAX_SAMPLES = 20


def cascade(at: Context, path: Path, task: TaskFile) -> Cascade | None:
    """Raises `SpecError`."""
    file = task.cascade
    if file is None:
        return None
    if task.models is not None:
        raise at.doc.error(path, "stands beside `models`; a cascade names its own")
    models = refer(at.doc, (*path, "models"), file.models, at.catalog.models)
    if len(models) < 2:
        raise at.doc.error((*path, "models"), "name at least two models, from cheap to good")
    threshold = _threshold(at, path, file)
    match file.signal:
        case "validity" if task.output is None:
            raise at.doc.error((*path, "signal"), "validity needs an `output:` that an answer can miss")
        case "agreement":
            _check_samples(at, path, file, task.params.get("temperature"))
        case _:
            pass
    return Cascade(models, file.signal, threshold, file.samples if file.signal == "agreement" else 1)


def _threshold(at: Context, path: Path, file: CascadeFile) -> float:
    if file.signal == "validity":
        if file.threshold is not None:
            raise at.doc.error((*path, "threshold"), "validity has none: an answer is valid or not")
        return 0.0
    if file.threshold is None:
        raise at.doc.error(path, f"say its `threshold:`; an answer whose {file.signal} is at least this is taken")
    if not -1 <= file.threshold <= 1:
        raise at.doc.error((*path, "threshold"), "a signal lies between 0 and 1 (a margin also below 0)")
    return float(file.threshold)


def _check_samples(at: Context, path: Path, file: CascadeFile, temperature: object) -> None:
    if not 2 <= file.samples <= MAX_SAMPLES:
        raise at.doc.error((*path, "samples"), f"expected 2 to {MAX_SAMPLES}")
    if temperature == 0:
        raise at.doc.error((*path, "signal"), "at temperature 0 answers always agree; set params.temperature above 0")
