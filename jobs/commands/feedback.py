"""Outcomes that come later: take them, show them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from penstock.engine.errors import SpecError
from penstock.jobs import exits
from penstock.jobs.commands import shared
from penstock.jobs.commands.look import outputs_of

if TYPE_CHECKING:
    from penstock.engine.outcomes import Outcome
    from penstock.jobs.feedback.taking import Kept, Took


@click.group(cls=shared.with_default("add"))
def feedback() -> None:
    """What was learned later of results: satisfaction, a task completed, an error reported.

    \b
      penstock feedback outcomes.jsonl   item_id (or episode), metric, value, at
      penstock feedback --item 3f9c… --metric satisfaction --value 1
      penstock feedback pull job.yaml    what the job's `feedback:` has by now
      penstock feedback show job.yaml    by metric, task and model
    """


@feedback.command(short_help="Take outcomes from a file, or one")
@click.argument("file", required=False, metavar="[FILE]")
@shared.state_option
@shared.json_option
@click.option("--item", help="The item's id, as results say it.")
@click.option("--episode", help="Instead of an item: all results of this episode.")
@click.option("--metric", help="What was measured, for example satisfaction.")
@click.option("--value", type=float, help="A number; 1 and 0 for yes and no.")
def add(
    file: str | None,
    state: str | None,
    as_json: bool,
    item: str | None,
    episode: str | None,
    metric: str | None,
    value: float | None,
) -> int:
    """Take outcomes from FILE (JSON lines, CSV or Parquet), or one from the options.

    An outcome is known by its item or episode, its metric, and its `id` or `at`: told again it counts once. Of several
    about one item the latest counts.
    """
    from penstock.connectors.settings import FilesSource

    kept, url = _kept(state)
    if file is not None:
        if not Path(file).exists():
            raise SpecError(f"there is no file {file}")
        took = kept.pull(FilesSource(str(Path(file).resolve())))
    else:
        took = kept.take([_one(item, episode, metric, value)])
    return _tell(took, url, Path(file).name if file else "command line", as_json)


def _one(item: str | None, episode: str | None, metric: str | None, value: float | None) -> Outcome:
    from penstock.jobs.feedback.reading import one

    if metric is None or value is None:
        raise click.UsageError("give a FILE, or --item (or --episode), --metric and --value")
    made = one(metric, value, item, episode)
    if isinstance(made, str):
        raise SpecError(f"this is no outcome: {made}")
    return made


@feedback.command(short_help="Read the job's feedback source now")
@shared.run_argument
@shared.state_option
@shared.json_option
def pull(run: shared.Named, state: str | None, as_json: bool) -> int:
    """Read what is new in the `feedback:` source of RUN's job (the latest run by default). A run that goes does so by
    itself, every ten seconds."""
    found = shared.locate(run, state)
    spec = run.job() or found.history.spec(found.run_id)
    if spec.feedback is None:
        raise SpecError(f"the job {spec.name} has no `feedback:`; `penstock feedback FILE` takes a file")
    kept, url = _kept(found.history.url)
    return _tell(kept.pull(spec.feedback), url, f"feedback of {spec.name}", as_json, found.run_id)


@feedback.command()
@shared.run_argument
@shared.state_option
@shared.json_option
def show(run: shared.Named, state: str | None, as_json: bool) -> int:
    """Outcomes of RUN (the latest by default), by metric, task and model.

    Means of values between 0 and 1 come with an interval that may be looked at at any time (95 %). Those who answer
    may not be like those who don't: nothing here corrects for that. Replays of RUN are part of it: of an item that was
    answered anew, an outcome is about the answer that stood when it came.
    """
    from penstock.connectors.state import open_state
    from penstock.jobs import replay
    from penstock.jobs.feedback import told
    from penstock.jobs.feedback.reading import stamp
    from penstock.jobs.feedback.taking import Kept
    from penstock.jobs.look.reading import Outputs

    found = shared.locate(run, state)
    history, outputs = found.history, outputs_of(run, state)
    again = replay.of_this_life(history, found.run_id)
    runs = [outputs, *(Outputs(history.spec(each), history.status_or_starting(each)) for each in again)]
    ended = outputs.status.ended_at
    joined = Kept(open_state(history.url)).joined(told.answers(runs), None if ended is None else stamp(ended))
    if as_json:
        shared.print_json(told.machine(joined))
        return exits.DONE
    if joined.cells:
        shared.console().print(told.table(joined))
    else:
        click.echo(f"no outcome of {found.run_id} yet; `penstock feedback --help` says how they come")
    for note in told.notes(joined):
        click.echo(note)
    return exits.DONE


def _kept(state: str | None) -> tuple[Kept, str]:
    from penstock.connectors.state import open_state
    from penstock.jobs.feedback.taking import Kept

    url = shared.state_url(state)
    kept = Kept(open_state(url))
    kept.load()
    return kept, url


def _tell(took: Took, url: str, source: str, as_json: bool, run_id: str = "") -> int:
    from penstock.jobs.feedback.taking import write_down

    write_down(took, url, source, run_id)
    if as_json:
        shared.print_json(took)
    else:
        for line in _words(took):
            click.echo(line)
    return exits.DEAD_LETTERS if took.malformed else exits.DONE


def _words(took: Took) -> list[str]:
    from penstock.jobs.wording import counted

    told = [f"{counted(took.new, 'new outcome')} taken"]
    if took.repeated:
        told.append(f"{took.repeated:,} known already: counted once")
    if took.contradicted:
        told.append(f"{took.contradicted:,} known with another value: the first one stands")
    if took.malformed:
        told.append(f"{took.malformed:,} can't be read, for example " + "; ".join(took.examples))
    return told
