"""Cascades: find the thresholds, show them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from penstock.jobs import exits
from penstock.jobs.commands import shared

if TYPE_CHECKING:
    from penstock.connectors.calibrations import Calibrated, Calibration


@click.group()
def cascade() -> None:
    """Thresholds of a cascade: how sure a cheap answer must be to be taken."""


@cascade.command(short_help="Find thresholds on labelled rows")
@shared.run_argument
@shared.state_option
@click.option("--task", help="Which task, where several have a cascade.")
@click.option("--scorer", help="Who says that an answer is right; the task's first scorer unless said.")
@click.option(
    "--min-quality",
    type=click.FloatRange(0, 1, True, True),
    help="Of accepted answers. [default: the task's `min_quality`]",
)
@click.option("--confidence", type=click.FloatRange(0, 1, True, True), default=0.95, show_default=True)
@shared.json_option
def calibrate(
    run: shared.Named,
    state: str | None,
    task: str | None,
    scorer: str | None,
    min_quality: float | None,
    confidence: float,
    as_json: bool,
) -> int:
    """Find the loosest thresholds that keep accepted answers at --min-quality, from RUN's quality samples.

    RUN is a finished run of the task with its cascade, over labelled rows, with `sample: 1` and any threshold, or with
    `threshold: 2` where the cascade has more than two models: answers that were not believed are scored as well. The
    result stands at the state for jobs that say `threshold: calibrated`, or `cascade: [small, opus]` alone. Where too
    few labels support a threshold, the model gets none, and it is told how many are needed.
    """
    from penstock.connectors.calibrations import write_calibration
    from penstock.connectors.state import open_state
    from penstock.jobs import cascades
    from penstock.jobs.audited import record
    from penstock.jobs.look.reading import Outputs

    found = shared.locate(run, state)
    outputs = Outputs(found.history.spec(found.run_id), found.history.status(found.run_id))
    made = cascades.found(outputs, task, scorer, min_quality, confidence)
    made = write_calibration(open_state(found.history.url), made)
    record(found.history, "calibration", found.run_id, _facts(made))
    _tell(made, as_json=as_json)
    return exits.DONE


@cascade.command(short_help="The calibration in use; whether it holds")
@click.argument("task")
@shared.state_option
@shared.json_option
def show(task: str, state: str | None, as_json: bool) -> int:
    """The calibration of TASK that jobs use now, and whether it still holds."""
    from penstock.connectors.calibrations import read_calibration
    from penstock.connectors.drifts import Drifts
    from penstock.connectors.state import open_state
    from penstock.jobs.wording import moment

    url = shared.state_url(state)
    found = read_calibration(open_state(url), task)
    if found is None:
        click.echo(f"task {task} was never calibrated at {url}: penstock cascade calibrate RUN", err=True)
        return exits.USAGE
    _tell(found, as_json=as_json)
    drift = Drifts(url).read(task, found.version)
    if drift is not None and not as_json:
        click.echo(f"  since {moment(drift.at)}: {drift.why}")
    return exits.DONE


def _facts(made: Calibration) -> dict[str, object]:
    """For the audit log."""
    told = {"task": made.task, "version": made.version, "signal": made.signal, "scorer": made.scorer}
    models = {f"{each.model}@{each.version}": _words(each) for each in made.models}
    return {**told, "min_quality": made.min_quality, "confidence": made.confidence, "models": models}


def _tell(made: Calibration, *, as_json: bool) -> None:
    if as_json:
        shared.print_json(made)
        return
    click.echo(
        f"task {made.task}, calibration {made.version}: {made.signal}, accepted answers are right (by {made.scorer}) "
        f"in {made.min_quality:g} or more, with confidence {made.confidence:g}; from run {made.run_id}, {made.at}"
    )
    for each in made.models:
        judged = f", judged by version {each.judge}" if each.judge else ""
        click.echo(f"  {each.model}@{each.version}{judged}: {_words(each)}")


def _words(each: Calibrated) -> str:
    if each.threshold is not None:
        found = each.threshold
        share = f"{found.accepted:,} of {found.rows:,} labelled answers ({found.share:.0%})"
        return f"taken above {found.above:.4g}: {share}, {found.quality:.3g} right"
    if each.refused is None:
        return "no scored answers"
    needed = each.refused.labels_needed
    more = f"; about {needed:,} labelled rows would do" if needed is not None else ""
    return f"never taken: {each.refused.why}{more}"
