"""Options and small helpers that several commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import click
import msgspec

from penstock.engine.errors import SpecError
from penstock.jobs.outlet import echo, lasting_console

if TYPE_CHECKING:
    from rich.console import Console

    from penstock.jobs.history import History
    from penstock.workers.runspec import RunSpec

F = TypeVar("F", bound=Callable[..., Any])

PLAIN_WIDTH = 80
"""Columns of piped output: what a log viewer and a mail show without wrapping."""

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document, for machines.")
sets_option = click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE", help="A value for one of the job's vars; may come repeatedly."
)
state_option = click.option(
    "--state",
    "state",
    metavar="URL",
    default=None,
    help="Where budgets, history and the audit log are kept. [default: the job file's, else .penstock here]",
)


def with_default(name: str) -> type[click.Group]:
    """A group of commands of which one, `name`, need not be named: `penstock feedback FILE`."""

    class Group(click.Group):
        def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
            if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
                args = [name, *args]
            return super().parse_args(ctx, args)

    return Group


def job_argument(required: bool = True) -> Callable[[F], F]:
    return click.argument("job", required=required, metavar="JOB" if required else "[JOB]")


def parse_sets(sets: tuple[str, ...]) -> dict[str, str]:
    """`("date=2026-11-24",)` → `{"date": "2026-11-24"}`. Raises `SpecError` where the `=` or the name is missing."""
    values: dict[str, str] = {}
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise SpecError(f"--set {text!r}: expected KEY=VALUE, for example --set date=2026-11-24")
        values[key.strip()] = value
    return values


def load_job(job: str, sets: tuple[str, ...] = ()) -> RunSpec:
    from penstock.jobs import spec

    return spec.load(Path(job), sets=parse_sets(sets))


def console(*, stderr: bool = False) -> Console:
    """A terminal gets colour and its own width; a pipe gets plain lines of 80 columns, and may break: the exit code
    stays what the command found."""
    stream = sys.stderr if stderr else sys.stdout
    return lasting_console(stream) if stream.isatty() else lasting_console(stream, plain=True, width=PLAIN_WIDTH)


def noting() -> Callable[[str], None]:
    """Says what a person has to know beside an answer, each word once."""
    said = set[str]()

    def note(word: str) -> None:
        if word not in said:
            said.add(word)
            echo(f"note: {word}", err=True)

    return note


def print_json(value: object) -> None:
    echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


class Named(NamedTuple):
    """The run that a person means: a run id, the start of one, a job's name, or a job file and its vars. `run` None:
    the latest."""

    run: str | None = None
    sets: tuple[str, ...] = ()

    def job(self) -> RunSpec | None:
        """The job, where a file is named. Raises `SpecError`, also where vars are set and no file is named."""
        if self.run is not None and Path(self.run).is_file():
            return load_job(self.run, self.sets)
        if self.sets:
            raise SpecError(f"--set goes with a job file, and {self.run or 'the latest run'} is none")
        return None


def run_argument(command: F) -> F:
    """RUN, also as `--run RUN`: summaries write it so, since `explain` has another argument."""

    @wraps(command)
    def with_run(run: str | None, named: str | None, sets: tuple[str, ...], **given: object) -> object:
        if run is not None and named is not None and run != named:
            raise click.UsageError(f"RUN is {run!r} and --run is {named!r}: give one")
        return command(run=Named(run or named, sets), **given)

    option = click.option("--run", "named", metavar="RUN", help="The same as RUN.")
    return cast("F", click.argument("run", required=False, metavar="[RUN]")(option(sets_option(with_run))))


def run_option(command: F) -> F:
    """`--run RUN` alone."""

    @wraps(command)
    def with_run(run: str | None, sets: tuple[str, ...], **given: object) -> object:
        return command(run=Named(run, sets), **given)

    words = "A run id, the start of one, a job's name or a job file."
    return cast("F", click.option("--run", "run", metavar="RUN", help=words)(sets_option(with_run)))


class Found(NamedTuple):
    history: History
    run_id: str


def locate(run: Named, state: str | None) -> Found:
    """A job file names its own state and run; else the state folder is searched."""
    from penstock.jobs.history import open_history

    spec = run.job()
    if spec is not None:
        found = Found(open_history(state_url(state) if state else spec.state), spec.run_id)
        if not found.history.has_told(spec.run_id):
            raise SpecError(
                f"{spec.run_id} has not run yet, as far as {found.history.url} knows: penstock run {run.run} begins "
                "it; --state names another place"
            )
        return found
    history = open_history(state_url(state))
    return Found(history, history.find(run.run))


def state_url(state: str | None) -> str:
    """A folder becomes absolute, so that it means the same to every process; None: `.penstock` here."""
    from penstock.workers.runspec import DEFAULT_STATE

    url = state or DEFAULT_STATE
    return url if "://" in url else str(Path(url).resolve())


def state_beside(state: str | None, job: str | None) -> str:
    """As `state_url`; None: that of a job file, where one is named beside it (a catalogue has none). Raises
    `SpecError`."""
    from penstock.jobs.spec import load_state

    return state_url(state or (load_state(job) if job is not None else None))


def state_to_name(url: str) -> str | None:
    """What a next command must say with `--state`; None where the default, from this folder, is the same."""
    from penstock.jobs.wording import relative

    return None if url == state_url(None) else relative(url)


def there(url: str) -> str:
    """` --state URL` behind a next command, where that must say it."""
    from penstock.jobs.wording import at_state

    named = state_to_name(url)
    return "" if named is None else f" {at_state(named)}"
