"""Finding the thresholds of a cascade from what a run's quality records say of its answers."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from penstock.connectors.calibrations import Calibrated, Calibration
from penstock.engine.errors import SpecError
from penstock.engine.measure.cascade import Threshold, calibrate
from penstock.engine.policy import Cascade, Task
from penstock.engine.signals import GRADED
from penstock.jobs.look.reading import Outputs
from penstock.jobs.look.told import SampleTold, samples

Pairs = dict[tuple[str, str, str], list[tuple[float, float]]]
"""(model, version, the judge's version) → (signal, score) of its answers, believed or not."""


def found(outputs: Outputs, task: str | None, scorer: str | None, min_quality: float, confidence: float) -> Calibration:
    """Raises `SpecError` where the run can't tell: no cascade, no signal of its own, no scored answers."""
    name, cascade, by = _asked(outputs, task, scorer)
    prompt = prompt_of(outputs.spec.policy.tasks[name])
    mine = (sample for sample in samples(outputs.records("quality")) if (sample.prompt_version or "") == prompt)
    pairs = _pairs(mine, name, by)
    if not pairs:
        raise SpecError(f"no answer of task {name} has a signal and a score by {by}; that needs `sample`, and labels")
    at = datetime.now(UTC).isoformat(timespec="seconds")
    run = outputs.spec.run_id
    models = tuple(made for model in cascade.models[:-1] for made in _calibrated(model, pairs, min_quality, confidence))
    return Calibration(name, cascade.signal, by, min_quality, confidence, run, at, models, prompt=prompt)


def prompt_of(task: Task) -> str:
    return task.prompt.version if task.prompt is not None else ""


def _asked(outputs: Outputs, task: str | None, scorer: str | None) -> tuple[str, Cascade, str]:
    tasks = {t.name: t for t in outputs.spec.policy.tasks.values() if t.cascade is not None}
    if task is None and len(tasks) == 1:
        task = next(iter(tasks))
    if task is None or task not in tasks:
        raise SpecError(f"say the task with a cascade: {', '.join(tasks) or 'this run has none'}")
    cascade = tasks[task].cascade
    assert cascade is not None
    if cascade.signal not in GRADED:
        raise SpecError(f"the signal {cascade.signal} has no threshold to be found; {', '.join(sorted(GRADED))} have")
    return task, cascade, _scorer(tasks[task], scorer)


def _scorer(task: Task, wanted: str | None) -> str:
    from penstock.engine.quality import scorer_name

    names = [scorer_name(scorer) for scorer in task.scorers if scorer.type != "judge"]
    if wanted is None and names:
        return names[0]
    if wanted is None or wanted not in names:
        raise SpecError(f"say who tells a right answer with --scorer: {', '.join(names) or 'the task has no scorer'}")
    return wanted


def _pairs(told: Iterable[SampleTold], task: str, scorer: str) -> Pairs:
    pairs: Pairs = {}
    for sample in told:
        of_cascade = sample.role in ("primary", "cascade") and sample.signal is not None
        if of_cascade and sample.signal is not None and (sample.task, sample.scorer) == (task, scorer):
            key = (sample.model or "", sample.model_version or "", sample.signal_by or "")
            pairs.setdefault(key, []).append((sample.signal, sample.score))
    return pairs


def _calibrated(model: str, pairs: Pairs, min_quality: float, confidence: float) -> list[Calibrated]:
    made: list[Calibrated] = []
    for (name, version, judge), rows in pairs.items():
        if name == model:
            signals, scores = zip(*rows, strict=True)
            answer = calibrate(signals, scores, min_quality, confidence)
            threshold = answer if isinstance(answer, Threshold) else None
            refused = None if isinstance(answer, Threshold) else answer
            made.append(Calibrated(model, version, threshold, refused, judge))
    return made
