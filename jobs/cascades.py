"""Finding the thresholds of a cascade from what a run's quality records say of its answers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from penstock.connectors.calibrations import Calibrated, Calibration
from penstock.engine.errors import SpecError
from penstock.engine.measure.cascade import NoThreshold, Threshold, calibrate
from penstock.engine.policy import NEVER, Cascade, Task
from penstock.engine.signals import GRADED
from penstock.jobs.look.reading import Outputs
from penstock.jobs.look.told import SampleTold, samples


class Seen(NamedTuple):
    """One model's answer to a row. `judge`: the judge's version, where a judge is the signal. `taken`: by the run."""

    version: str
    judge: str
    signal: float
    score: float
    taken: bool


Way = dict[str, Seen]
"""A row's way up: model → its answer."""


def found(
    outputs: Outputs, task: str | None, scorer: str | None, min_quality: float | None, confidence: float
) -> Calibration:
    """`min_quality`: the task's unless said. Raises `SpecError` where the run can't tell: no cascade, no signal of its
    own, no scored answers; or where rows are open: those that end first are not like the others, and the promise is of
    rows drawn at random."""
    state, run = outputs.status.state, outputs.spec.run_id
    if state != "done":
        raise SpecError(
            f"run {run} has not ended all of its rows ({state}), and those that end first are no fair draw of all: "
            "thresholds are found on a finished run of labelled rows"
        )
    name, cascade, by = _asked(outputs, task, scorer)
    min_quality = min_quality or outputs.spec.policy.tasks[name].min_quality
    if not min_quality:
        raise SpecError(
            f"say how good accepted answers have to be, with --min-quality: task {name} has no `min_quality`"
        )
    prompt = prompt_of(outputs.spec.policy.tasks[name])
    mine = (sample for sample in samples(outputs.records("quality")) if (sample.prompt_version or "") == prompt)
    ways = _ways(mine, name, by)
    if not ways:
        raise SpecError(f"no answer of task {name} has a signal and a score by {by}; that needs `sample`, and labels")
    at = datetime.now(UTC).isoformat(timespec="seconds")
    models = _in_order(cascade.models[:-1], ways, min_quality, confidence)
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


def _ways(told: Iterable[SampleTold], task: str, scorer: str) -> list[Way]:
    ways: dict[str, Way] = {}
    for sample in told:
        of_cascade = sample.role in ("primary", "cascade") and sample.signal is not None
        if of_cascade and sample.signal is not None and (sample.task, sample.scorer) == (task, scorer):
            version, judge, taken = sample.model_version or "", sample.signal_by or "", sample.role == "primary"
            seen = Seen(version, judge, sample.signal, sample.score, taken)
            ways.setdefault(sample.item_id, {})[sample.model or ""] = seen
    return list(ways.values())


def _in_order(
    models: Sequence[str], ways: Sequence[Way], min_quality: float, confidence: float
) -> tuple[Calibrated, ...]:
    """Each model's, from the rows that the thresholds just found for the models before it pass on: those rows it will
    see, and they are harder than all. Each model has its part of the chance to err, so that `confidence` is of all."""
    made: list[Calibrated] = []
    each = 1.0 - (1.0 - confidence) / len(models)
    reach = ways
    for i, model in enumerate(models):
        unasked = sum(model not in way and any(m in way and way[m].taken for m in models[:i]) for way in reach)
        found: dict[tuple[str, str], Threshold | NoThreshold] = {}
        for kind in dict.fromkeys((way[model].version, way[model].judge) for way in ways if model in way):
            rows = [way[model] for way in reach if model in way and (way[model].version, way[model].judge) == kind]
            found[kind] = _unasked(unasked, len(reach)) if unasked else _of(rows, len(ways), min_quality, each)
        made += [_calibrated(model, *kind, answer) for kind, answer in found.items()]
        reach = [way for way in reach if model not in way or not _accepts(found, way[model])]
    return tuple(made)


def _unasked(rows: int, of: int) -> NoThreshold:
    return NoThreshold(
        f"{rows:,} of {of:,} labelled rows that would reach it were not asked of it, as that run took the answer of a "
        f"model before it; run them with `threshold: {NEVER:g}`, which takes none",
        None,
    )


def _of(rows: Sequence[Seen], labelled: int, min_quality: float, confidence: float) -> Threshold | NoThreshold:
    """What a refusal needs is told in labelled rows of all, of which only some reach this model."""
    signals, scores = [row.signal for row in rows], [row.score for row in rows]
    answer = calibrate(signals, scores, min_quality, confidence)
    if isinstance(answer, Threshold) or answer.labels_needed is None:
        return answer
    needed = math.ceil(answer.labels_needed * labelled / max(1, len(rows)))
    return msgspec.structs.replace(answer, labels_needed=needed)


def _accepts(found: dict[tuple[str, str], Threshold | NoThreshold], seen: Seen) -> bool:
    threshold = found[seen.version, seen.judge]
    return isinstance(threshold, Threshold) and seen.signal > threshold.above


def _calibrated(model: str, version: str, judge: str, answer: Threshold | NoThreshold) -> Calibrated:
    if isinstance(answer, Threshold):
        return Calibrated(model, version, answer, judge=judge)
    return Calibrated(model, version, refused=answer, judge=judge)
