"""People say what is right: in a terminal, or by files of another tool."""

from __future__ import annotations

import getpass
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from penstock.engine.errors import SpecError
from penstock.jobs import exits
from penstock.jobs.commands import shared
from penstock.jobs.commands.look import outputs_of

if TYPE_CHECKING:
    from penstock.jobs.people.labels import Labels
    from penstock.jobs.people.review import Listed

by_option = click.option("--by", default=getpass.getuser, metavar="NAME", help="Whose labels. [default: your login]")
choices_option = click.option("--choices", metavar="A,B,…", help="For a file of rows: what may be said.")


class _Work(NamedTuple):
    name: str
    url: str
    listed: Listed
    labels: Labels
    run_id: str


def _work(run: shared.Named, state: str | None, choices: str | None) -> _Work:
    from penstock.connectors.state import open_state
    from penstock.jobs.people import review, work
    from penstock.jobs.people.labels import Labels
    from penstock.jobs.people.review import Listed

    if run.run is not None and work.is_rows(run.run):
        url, name = shared.state_url(state), work.name_of_rows(run.run)
        said = tuple(choice.strip() for choice in (choices or "").split(",") if choice.strip())
        return _Work(name, url, Listed(work.rows(run.run, said)), Labels(open_state(url), name), "")
    found = shared.locate(run, state)
    spec = run.job() or found.history.spec(found.run_id)
    url, run_id = found.history.url, found.run_id
    listed = review.listed(outputs_of(run, state), spec.review)
    return _Work(run_id, url, listed, Labels(open_state(url), run_id), run_id)


@click.group(cls=shared.with_default("sit"))
def label() -> None:
    """Look at answers and say what is right, one key each.

    \b
      penstock label job.yaml                 what the job's `review:` chose
      penstock label rows.jsonl --choices a,b rows, for a set of true answers
      penstock label show job.yaml            who said what; how far they agree
      penstock label calibrate job.yaml       which judges decide
      penstock label export job.yaml out.csv  for another labelling tool, and
      penstock label import job.yaml out.csv  back again
    """


@label.command()
@shared.run_argument
@shared.state_option
@by_option
@choices_option
@click.option("--blind", is_flag=True, help="Show neither the answer nor why it was chosen.")
def sit(run: shared.Named, state: str | None, by: str, choices: str | None, blind: bool) -> int:
    """Label in this terminal. Each label is kept before the next item is shown; quit, and go on later."""
    from penstock.jobs.feedback.reading import stamp
    from penstock.jobs.people.desk import Desk
    from penstock.jobs.people.terminal import sit as sit_down

    at = _work(run, state, choices)
    _tell_unshown(at)
    history = at.labels.history()
    desk = Desk(at.listed.items, history, by, lambda label: at.labels.add([label]), lambda: stamp(time.time()))
    before = len(history)
    try:
        sit_down(desk, shared.console(), blind=blind)
    finally:
        _record(at, by, len(at.labels.history()) - before, "terminal")
    return exits.DONE


@label.command(short_help="Who said what, and how far they agree")
@shared.run_argument
@shared.state_option
@shared.json_option
@choices_option
def show(run: shared.Named, state: str | None, as_json: bool, choices: str | None) -> int:
    """Who labelled what of RUN (the latest by default), how far people agree, and how often models and judges are
    right by them."""
    from penstock.jobs.people import told

    at = _work(run, state, choices)
    judged = told.verdicts(outputs_of(run, state)) if at.run_id else {}
    summary = told.summary(at.listed, at.labels.said(), judged)
    if as_json:
        shared.print_json(summary)
        return exits.DONE
    _tell_unshown(at)
    for part in told.parts(summary):
        shared.console().print(part)
    return exits.DONE


@label.command(short_help="Which judges agree with people")
@shared.run_argument
@shared.state_option
@shared.json_option
@by_option
def calibrate(run: shared.Named, state: str | None, as_json: bool, by: str) -> int:
    """Hold the judges of RUN (the latest by default) against what people said of the same answers, and keep it.

    A judge that agrees with people decides about rollouts and experiments from then on, in running jobs too; any other
    informs only. The bar: at least 50 labelled answers, 10 right and 10 wrong ones among them, and kappa's lower end at
    0.6 or above. A new model, rubric or prompt of the judge needs a new calibration. One on too few labels replaces
    none that is on enough of them.
    """
    from penstock.connectors.calibrations import write_judges
    from penstock.connectors.state import open_state
    from penstock.engine.steering.judges import lacks
    from penstock.jobs.feedback.reading import stamp
    from penstock.jobs.people import calibrating, told
    from penstock.jobs.people.labels import current

    at = _work(run, state, None)
    if not at.run_id:
        raise SpecError(
            "a judge is held against labels of a run's answers: name the run or its job, not a file of rows"
        )
    every = at.labels.said()
    said = current(every, at.listed.answers)
    found = calibrating.calibrated(outputs_of(run, state), at.listed, said, by, stamp(time.time()))
    if not found:
        raise SpecError(f"{at.name}: no judge scored an answer that people labelled; `penstock label` labels them")
    stands = write_judges(open_state(at.url), found)
    kept = [stands[each.scorer] for each in found if stands[each.scorer] != each]
    facts = {each.scorer: lacks(each) or "may decide" for each in found}
    _record(at, by, len(said), "calibration", facts | {each.scorer: calibrating.kept(each) for each in kept})
    for each in kept:
        shared.echo(f"note: {each.model}: {calibrating.kept(each)}", err=True)
    if as_json:
        shared.print_json(found)
        return exits.DONE
    for part in (*calibrating.parts(found), *told.notes(told.grades(at.listed, every))):
        shared.console().print(part)
    return exits.DONE


@label.command(name="export", short_help="Items and what was said, for another tool")
@click.argument("run", metavar="RUN")
@click.argument("file", metavar="FILE.csv|FILE.jsonl")
@shared.sets_option
@shared.state_option
@choices_option
def export_labels(run: str, file: str, sets: tuple[str, ...], state: str | None, choices: str | None) -> int:
    """Write the items of RUN and what was said of them. An item without a label stands there once, open."""
    from penstock.jobs.people import exchange
    from penstock.jobs.people.labels import current

    at = _work(shared.Named(run, sets), state, choices)
    _tell_unshown(at)
    said = current(at.labels.said(), at.listed.answers)
    count = exchange.write(Path(file), exchange.lines(at.listed.items, said))
    click.echo(f"{count:,} lines in {file}; fill `label` or `score`, then penstock label import {run} {file}")
    return exits.DONE


@label.command(name="import", short_help="Labels from another tool's file")
@click.argument("run", metavar="RUN")
@click.argument("file", metavar="FILE.csv|FILE.jsonl", type=click.Path(exists=True, dir_okay=False))
@shared.sets_option
@shared.state_option
@choices_option
@by_option
def import_labels(run: str, file: str, sets: tuple[str, ...], state: str | None, choices: str | None, by: str) -> int:
    """Take labels from FILE: `item_id`, and `label` or `score` (0…1), with `by`, `at`, `note` and `output_hash` (of the
    answer that is graded) if known.

    A label of an item with choices has to be one of them. What stands already, and what was said before at that very
    time (an old export), changes nothing.
    """
    from penstock.jobs.feedback.reading import stamp
    from penstock.jobs.people import exchange

    at = _work(shared.Named(run, sets), state, choices)
    read = exchange.read(Path(file), by, stamp(time.time()), at.listed.items)
    known = {item.item_id for item in at.listed.items}
    new = exchange.new(read, at.labels.history())
    at.labels.add(new)
    _record(at, by, len(new), Path(file).name)
    strange = sum(label.item_id not in known for label in new)
    click.echo(
        f"{len(new):,} new labels; {len(read.labels) - len(new):,} known already; {read.open:,} lines without one"
    )
    if strange:
        click.echo(f"{strange:,} are of items that are not in the list of {at.name}: kept")
    if read.wrong:
        click.echo(f"{len(read.wrong):,} lines can't be taken, for example {read.wrong[0]}", err=True)
    return exits.DEAD_LETTERS if read.wrong else exits.DONE


def _tell_unshown(at: _Work) -> None:
    if not at.listed.items:
        raise SpecError(f"{at.name}: no result was chosen for people; see `review:` in docs/job-file.md")
    if at.listed.unshown:
        click.echo(
            f"{at.listed.unshown:,} more can't be shown: their wall forbids it, or no record holds their input (name "
            "`sinks.review`, or set `sample` or `row.keep`)",
            err=True,
        )
    if at.listed.more:
        click.echo(f"{at.listed.more:,} more were chosen than one list holds", err=True)


def _record(at: _Work, by: str, count: int, source: str, judges: dict[str, str] | None = None) -> None:
    """`judges`: `judge@version` → whether it may decide."""
    from penstock.jobs.audited import record
    from penstock.jobs.history import open_history

    if count:
        facts: dict[str, object] = {"of": at.name, "by": by, "labels": count, "all": len(at.labels.history())}
        facts |= {"source": source} | ({"judges": judges} if judges is not None else {})
        record(open_history(at.url), "label", at.run_id, facts)
