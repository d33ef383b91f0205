"""Cascades: from cheap to good, as far as an item needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from penstock.engine.flow.climb import SURE
from penstock.engine.policy import NEVER, Cascade, Promise, Scorer, target_name
from penstock.engine.quality import scorer_name, scorer_version
from penstock.engine.signals import SEEDS
from penstock.jobs.spec.asked import Context
from penstock.jobs.spec.catalogue import refer
from penstock.jobs.spec.fields import CascadeFile, TaskFile
from penstock.jobs.spec.scoring import judge
from penstock.jobs.spec.tree import Path

if TYPE_CHECKING:
    from penstock.connectors.calibrations import Calibration

MAX_SAMPLES = 20


def cascade(
    at: Context, path: Path, name: str, task: TaskFile, scorers: Sequence[Scorer], prompt: str
) -> Cascade | None:
    """`scorers`, `prompt` (its version): of the task. Raises `SpecError`."""
    if task.cascade is None:
        return None
    if task.models is not None:
        raise at.doc.error(path, "stands beside `models`; a cascade names its own")
    named, file = _written_out(at, path, name, task.cascade)
    models = refer(at.doc, named, file.models, at.catalog.models)
    if len(models) < 2:
        raise at.doc.error(named, "name at least two models, from cheap to good")
    calibration = _calibration(at, path, name, file, prompt) if file.threshold == "calibrated" else None
    if calibration is None:
        threshold, thresholds = _threshold(at, path, file), dict[str, float]()
    else:  # versions without a threshold of their own are never believed: a rollout may bring one while the job runs
        threshold, thresholds = NEVER, _thresholds(calibration)
    if file.on_drift is not None and calibration is None:
        raise at.doc.error((*path, "on_drift"), "goes with `threshold: calibrated`: else nothing was promised")
    _check_quality(at, path[:-1], task.min_quality, threshold, calibration)
    match file.signal:
        case "validity" if task.output is None:
            raise at.doc.error((*path, "signal"), "validity needs an `output:` that an answer can miss")
        case "agreement":
            _check_samples(at, path, file, task.params)
        case _:
            pass
    samples = file.samples if file.signal == "agreement" else 1
    judged = _judge(at, (*path, "judge"), file)
    if judged is not None and threshold < NEVER:
        _check_judge(at, (*path, "threshold"), judged)
    promise = None if calibration is None else _promise(calibration, scorers, stops=file.on_drift != "tell")
    return Cascade(models, file.signal, threshold, samples, thresholds, judged, promise)


def _written_out(at: Context, path: Path, name: str, given: list[str] | CascadeFile) -> tuple[Path, CascadeFile]:
    """Where its models stand, and the whole of it. Models alone are a cascade with the signal and the thresholds that
    it was calibrated with: which signal tells right answers from wrong ones is nothing to guess."""
    if isinstance(given, CascadeFile):
        return (*path, "models"), given
    found = _read(at, name)
    if found is None:
        raise at.doc.error(
            path,
            f"models alone go by a calibration, and task {name} has none at {at.state}. Write it out once as "
            "`{models: […], signal: logprob, threshold: 2}`, run labelled rows with `sample: 1` and a scorer, and find "
            "the thresholds with penstock cascade calibrate; or say a `signal:` and a `threshold:` of your own",
        )
    if found.signal == "judge":
        whole = "`{models: […], signal: judge, judge: {…}, threshold: calibrated}`"
        raise at.doc.error(path, f"task {name} was calibrated with a judge as signal; say which: {whole}")
    return path, CascadeFile(given, found.signal, "calibrated")


def _check_quality(
    at: Context, path: Path, asked: int | float | None, threshold: float, found: Calibration | None
) -> None:
    """A quality that nobody vouches for is refused, never served in silence. `threshold`: of a cascade that was not
    calibrated; one that takes no answer but the last model's needs no voucher."""
    place = (*path, "min_quality")
    if not asked or (found is None and threshold >= NEVER):
        return
    if found is None:
        raise at.doc.error(
            place,
            "nobody promises that quality: the cascade was not calibrated. penstock cascade calibrate finds thresholds "
            "of logprob, margin and judge that do (`threshold: calibrated`); or leave `min_quality` out "
            "(a run that was begun with it goes on with --accept-changes)",
        )
    if asked > found.min_quality:
        raise at.doc.error(
            place,
            f"is {asked:g}, and calibration {found.version} promises {found.min_quality:g} of accepted answers: "
            f"penstock cascade calibrate {found.run_id} --min-quality {asked:g}",
        )


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


def _check_judge(at: Context, path: Path, judged: Scorer) -> None:
    """Of a threshold that was set by hand: who was not held against people's labels informs, and lets nothing out."""
    from penstock.connectors.calibrations import read_judges
    from penstock.connectors.state import open_state
    from penstock.engine.steering.judges import informs

    live = at.catalog.models[judged.model or ""].live
    if (why := informs(judged, live, read_judges(open_state(at.state)))) is not None:
        raise at.doc.error(
            path,
            f"this judge may not let answers out yet: {why}. Say `threshold: 2` (none is let out), run labelled rows "
            "with `sample: 1` and a scorer, then penstock cascade calibrate, and `threshold: calibrated`",
        )


def _threshold(at: Context, path: Path, file: CascadeFile) -> float:
    """For all models."""
    if file.signal == "validity":
        if file.threshold is not None:
            raise at.doc.error((*path, "threshold"), "validity has none: an answer is valid or not")
        return 0.0
    if not isinstance(file.threshold, int | float):
        raise at.doc.error(path, f"say its `threshold:`; an answer whose {file.signal} is at least this is taken")
    if not -1 <= file.threshold <= NEVER:
        why = f"a signal lies between 0 and 1 (a margin also below 0); {NEVER:g} takes no answer but the last model's"
        raise at.doc.error((*path, "threshold"), why)
    return float(file.threshold)


def _calibration(at: Context, path: Path, name: str, file: CascadeFile, prompt: str) -> Calibration:
    path = (*path, "threshold")
    if file.signal == "validity":
        raise at.doc.error(path, "validity has none: an answer is valid or not")
    found = _read(at, name)
    if found is None:
        raise at.doc.error(path, f"task {name} was never calibrated at {at.state}: penstock cascade calibrate")
    if found.signal != file.signal:
        raise at.doc.error(path, f"the calibration is of the signal {found.signal}; calibrate it again")
    if found.prompt != prompt:
        raise at.doc.error(path, f"task {name} was calibrated with another prompt; calibrate it again")
    return found


def _read(at: Context, name: str) -> Calibration | None:
    from penstock.connectors.calibrations import read_calibration
    from penstock.connectors.state import open_state

    return read_calibration(open_state(at.state), name)


def _thresholds(calibration: Calibration) -> dict[str, float]:
    """So far above the signal that is not accepted any more, such as a judge's next grade, that it is told apart."""
    return {
        target_name(f"{each.model}@{each.version}", each.judge): each.threshold.above + 2 * SURE
        for each in calibration.models
        if each.threshold is not None
    }


def _promise(calibration: Calibration, scorers: Sequence[Scorer], *, stops: bool) -> Promise:
    """Where no scorer of the task is the one that it was calibrated by, nobody sees whether it holds."""
    mine = (scorer for scorer in scorers if scorer_name(scorer) == calibration.scorer)
    named = next((f"{scorer_name(scorer)}@{scorer_version(scorer)}" for scorer in mine), "")
    return Promise(calibration.version, named, calibration.min_quality, stops)


def _check_samples(at: Context, path: Path, file: CascadeFile, params: Mapping[str, object]) -> None:
    if not 2 <= file.samples <= MAX_SAMPLES:
        raise at.doc.error((*path, "samples"), f"expected 2 to {MAX_SAMPLES}")
    for name in SEEDS:
        if params.get(name) is not None:
            raise at.doc.error((*path, "signal"), f"with a seed answers always agree; leave params.{name} out")
    if params.get("temperature") == 0:
        raise at.doc.error((*path, "signal"), "at temperature 0 answers always agree; set params.temperature above 0")
