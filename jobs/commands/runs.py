"""Running: run, submit, status, list, cancel."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from penstock.engine.errors import SpecError
from penstock.jobs import exits
from penstock.jobs.commands import shared

if TYPE_CHECKING:
    from penstock.jobs.progress import Display
    from penstock.jobs.result import JobResult
    from penstock.workers.runspec import RunSpec
    from penstock.workers.status import RunStatus

ID_WIDTH = 40
"""Columns of a run id that `list` leaves whole at 80 columns."""
HINT = "ctrl-c: finish what is in flight, commit, stop; twice: stop now"


class RunCall(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `penstock run`, as click read them."""

    sets: tuple[str, ...] = ()
    state: str | None = None
    as_json: bool = False
    limit: int | None = None
    fresh: bool = False
    accept_changes: bool = False
    take_over: bool = False
    health_port: int | None = None
    health_host: str = "127.0.0.1"
    address: str | None = None
    prompt: str | None = None
    models: tuple[str, ...] = ()
    output: str | None = None
    choices: tuple[str, ...] = ()

    @property
    def is_inline(self) -> bool:
        return self.prompt is not None


@click.command()
@shared.job_argument()
@shared.sets_option
@shared.state_option
@shared.json_option
@click.option("--limit", type=click.IntRange(min=1), help="Try the first N rows; prints prompts and answers.")
@click.option("--fresh", is_flag=True, help="Start over; what was done before is forgotten (and was paid for).")
@click.option("--accept-changes", is_flag=True, help="Go on although the job changed in a way that changes answers.")
@click.option("--take-over", is_flag=True, help="Take the run from the process that holds it; it drains first.")
@click.option("--health-port", type=click.IntRange(1, 65535), help="Answer GET /healthz and /readyz at this port.")
@click.option("--health-host", help="Where those answer. [default: 127.0.0.1]", default="127.0.0.1")
@click.option("--address", envvar="RAY_ADDRESS", help="A Ray cluster. [default: a Ray of its own; env RAY_ADDRESS]")
@click.option("--prompt", help="Inline job: the prompt, a Jinja2 template over the columns of JOB.")
@click.option("--model", "models", multiple=True, help="Inline job: provider/model; further ones are fallbacks.")
@click.option("-o", "--output", help="Inline job: where results go (.jsonl, .parquet, .csv or a folder/).")
@click.option("--choice", "choices", multiple=True, help="Inline job: an allowed answer; repeat for each.")
def run(job: str, **given: object) -> int:
    """Run JOB to its end, or go on where it was cut off.

    JOB is a job file, the id of a run that --state knows, or, with --prompt and --model, a file of rows:

    \b
      penstock run messages.csv --prompt "Summarise: {{ text }}" \\
          --model anthropic/claude-haiku-4-5 -o summaries.parquet

    Exit code: 0 done, 1 a failure of Penstock's own, 2 a wrong command or job file, or a run that is refused, 3 stopped
    by a budget, 4 infrastructure failed, 5 more dead letters than allowed, 130 interrupted (run it again: it goes on,
    and what is committed is not paid for again).
    """
    import time

    asked_at = time.time()
    from penstock.jobs import preview
    from penstock.jobs.progress import display_for
    from penstock.jobs.run import Session, Stop, execute
    from penstock.workers.runspec import RunOptions

    call = msgspec.convert(given, RunCall, strict=False)
    spec = _spec(job, call)
    options = RunOptions(call.take_over, call.fresh, call.accept_changes, asked_at=asked_at)
    display = display_for(sys.stderr if call.as_json else sys.stdout, HINT)
    with _probed(display, call) as shown:
        result = execute(spec, Session(options, call.address), shown, Stop())
    if call.as_json:
        shared.print_json(batch(result.status))
    else:
        if call.limit is not None:
            preview.show(result, shared.console())
        _tell(result)
    return result.exit_code


def _probed(display: Display, call: RunCall) -> AbstractContextManager[Display]:
    if call.health_port is None:
        return nullcontext(display)
    from penstock.jobs.health import probed

    return probed(display, call.health_host, call.health_port)


def _spec(job: str, call: RunCall) -> RunSpec:
    from penstock.jobs import trial
    from penstock.jobs.history import open_history

    if call.is_inline:
        spec = _inline(job, call)
    elif Path(job).is_file() or call.sets:
        spec = shared.load_job(job, call.sets)
    elif call.state is not None or not _looks_like_a_file(job):
        history = open_history(shared.state_url(call.state))
        spec = history.spec(history.find(job))
    else:
        raise SpecError(f"there is no job file {job}; `penstock init` writes one, `penstock list` shows earlier runs")
    if call.state is not None:
        spec = msgspec.structs.replace(spec, state=shared.state_url(call.state))
    return spec if call.limit is None else trial.first(spec, call.limit)


def _looks_like_a_file(job: str) -> bool:
    return "/" in job or Path(job).suffix in (".yaml", ".yml", ".json")


def _inline(job: str, call: RunCall) -> RunSpec:
    from penstock.jobs import spec as job_spec

    if not call.models or call.output is None:
        missing = "--model" if not call.models else "-o"
        raise SpecError(f"an inline job needs --prompt, --model and -o; {missing} is missing")
    extra = {"output": {"choices": list(call.choices)}} if call.choices else None
    return job_spec.inline(job, call.prompt, call.models, call.output, extra=extra)


def _tell(result: JobResult) -> None:
    from penstock.jobs.look import report

    out = shared.console()
    if result.nothing_to_do:
        out.print(f"nothing to do: {result.status.name} is finished ({result.status.tally.results:,} results)")
        return
    for part in report.summary(result.status, state=shared.state_to_name(result.spec.state)):
        out.print(part)
    if result.spec.limit is not None:
        out.print("a trial: its rows are done and paid for again when the whole job runs", style="yellow")
    for line in exits.explain(result.status, result.spec.max_dead_letters):
        out.print(line, style="yellow")


@click.command()
@shared.job_argument()
@shared.sets_option
@shared.json_option
@click.option("--address", envvar="RAY_DASHBOARD", default="http://127.0.0.1:8265", help="The cluster's dashboard.")
def submit(job: str, sets: tuple[str, ...], as_json: bool, address: str) -> int:
    """Hand JOB to a Ray cluster and come back at once; `penstock status` follows it.

    Needs a state URL that the cluster and this machine both reach.
    """
    from penstock.jobs.submit import submit as hand_over
    from penstock.jobs.wording import at_state

    handle = hand_over(shared.load_job(job, sets), address)
    if as_json:
        shared.print_json({"run_id": handle.run_id, "ray_job": handle.ray_job, "state": handle.state})
        return exits.DONE
    click.echo(f"submitted {handle.run_id} to {address} as {handle.ray_job}")
    click.echo(f"next: penstock status {handle.run_id} {at_state(handle.state)}")
    return exits.DONE


@click.command()
@shared.run_argument
@shared.state_option
@shared.json_option
def status(run: shared.Named, state: str | None, as_json: bool) -> int:
    """How RUN stands (the latest by default): a run id, the start of one, a job's name, or a job file.

    --json speaks OpenAI's batch states and request_counts.
    """
    import time

    from penstock.jobs.history import GONE, is_gone, is_over
    from penstock.jobs.progress import Meter, plain_line, state_told
    from penstock.jobs.wording import duration

    found = shared.locate(run, state)
    told = found.history.status(found.run_id)
    if as_json:
        shared.print_json(batch(told))
        return exits.DONE
    click.echo(f"{told.run_id}  {state_told(told)}")
    click.echo(plain_line(Meter().see(told, told.updated_at)).strip())
    for note in told.notes:
        click.echo(f"note: {note}")
    now = time.time()
    gone = is_gone(told, now)
    if told.updated_at and (gone or not is_over(told)):
        click.echo(f"as of {duration(now - told.updated_at)} ago" + (f": {GONE}" if gone else ""))
    return exits.DONE


@click.command(name="list")
@shared.state_option
@shared.json_option
def list_runs(state: str | None, as_json: bool) -> int:
    """The runs that a state folder knows, the latest first."""
    from penstock.jobs.history import left_out, open_history

    url, note = shared.state_url(state), shared.noting()
    runs = open_history(url).runs(lambda run_id, error: note(left_out(run_id, error)))
    if as_json:
        shared.print_json([batch(run) for run in runs])
        return exits.DONE
    if not runs:
        click.echo(f"no run is known in {url}; --state names another folder")
        return exits.DONE
    _table(runs)
    return exits.DONE


def _table(runs: list[RunStatus]) -> None:
    import time

    from rich.table import Table

    from penstock.jobs.history import is_gone
    from penstock.jobs.progress import done_items
    from penstock.jobs.wording import dollars, moment

    table, now = Table(box=None, pad_edge=False, header_style="bold"), time.time()
    widest = max(len(run.run_id) for run in runs)
    table.add_column("run", overflow="fold", min_width=min(widest, ID_WIDTH))  # it is there to be copied: whole
    for name in ("state", "started"):
        table.add_column(name, overflow="fold")
    for name in ("items", "dead", "$"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        dead = sum(run.tally.dead_letters.values())
        state = run.state.replace("_", " ") + (", command gone" if is_gone(run, now) else "")
        words = (run.run_id, state, moment(run.started_at))
        table.add_row(*words, f"{done_items(run):,}", f"{dead:,}", dollars(run.tally.cost_nano))
    shared.console().print(table)


@click.command()
@shared.run_argument
@shared.state_option
def cancel(run: shared.Named, state: str | None) -> int:
    """Ask RUN to drain, commit and stop. What is done stays done; running the job again goes on.

    A run that is over is asked as well: a command that has just begun on it tells nothing yet.
    """
    import time

    from penstock.jobs.audited import record_stop
    from penstock.jobs.history import GONE, goes_on, is_gone
    from penstock.jobs.run import command_line

    found = shared.locate(run, state)
    told = found.history.status(found.run_id)
    found.history.ask_cancel(found.run_id, command_line())
    if (missing := record_stop(found.history, "cancel", found.run_id, {})) is not None:
        click.echo(f"note: {missing}", err=True)
    if not goes_on(told):
        state = told.state.replace("_", " ")
        click.echo(f"{found.run_id} is over already: {state}; a command that has just begun on it is asked to stop")
        return exits.DONE
    gone = is_gone(told, time.time())
    look = f"penstock status {found.run_id}{shared.there(found.history.url)}"
    then = f"but {GONE}" if gone else f"it drains and commits first ({look})"
    click.echo(f"asked {found.run_id} to stop; {then}")
    return exits.DONE


def batch(status: RunStatus) -> dict[str, object]:
    """`RunStatus` as `jobs.batch_form` tells machines of it."""
    import time

    from penstock.jobs.look.batch_form import batch_of

    return msgspec.to_builtins(batch_of(status, time.time()))
