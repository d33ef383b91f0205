"""`penstock`: the command line (SURFACES §4).

Every command lives in `jobs.commands` and is imported when it is called, so that `--help` and `validate` answer in
under half a second. An error is one red line on stderr that says what to do next; `PENSTOCK_DEBUG=1` adds the
traceback.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

import click

from penstock.engine.errors import PenstockError
from penstock.jobs import exits
from penstock.jobs.outlet import echo, silence


class Entry(NamedTuple):
    """Where a command stands in the help, and where its code is (`module:attribute` under `jobs.commands`)."""

    section: str
    place: str
    help: str


COMMANDS: dict[str, Entry] = {
    "demo": Entry("Start", "extras:demo", "See the whole thing run on this machine; no keys, nothing paid"),
    "init": Entry("Start", "author:init", "Write a first job into a folder: job, catalogue, rows"),
    "validate": Entry("Start", "author:validate", "Check a job file without running it"),
    "plan": Entry("Start", "author:plan", "Say what a run would do, take and cost, before it is paid for"),
    "run": Entry("Run", "runs:run", "Run a job; go on where it was if it was cut off"),
    "submit": Entry("Run", "runs:submit", "Hand a job to a Ray cluster and come back"),
    "status": Entry("Run", "runs:status", "How a run stands"),
    "list": Entry("Run", "runs:list_runs", "The runs that a state folder knows"),
    "cancel": Entry("Run", "runs:cancel", "Ask a run to drain and stop"),
    "pause": Entry("Run", "tiers:pause", "Hold back a tier of a run"),
    "resume": Entry("Run", "tiers:resume", "Let a paused tier go on"),
    "rollout": Entry("Run", "rollout:rollout", "Move a model to another version, share by share, by numbers"),
    "rollback": Entry("Run", "rollback:rollback", "Take a model's new version back; running jobs obey within 5 s"),
    "cascade": Entry("Run", "cascade:cascade", "How sure a cheap answer must be: find the thresholds, show them"),
    "experiment": Entry("Run", "experiment:experiment", "Arms of one task side by side; stop an experiment"),
    "logs": Entry("Look", "look:logs", "What the processes of a run logged"),
    "explain": Entry("Look", "look:explain", "One item's whole story"),
    "dead-letters": Entry(
        "Look", "letters:dead_letters", "Items that ended without a result: list them, send them again"
    ),
    "costs": Entry("Look", "look:costs", "What was paid, by model, tier, task, tenant or day"),
    "report": Entry("Look", "look:report", "The summary of a run, again"),
    "audit": Entry("Look", "audit:audit", "What was decided and by whom; that nobody changed the log of it"),
    "eval": Entry("Look", "evals:evaluate", "Ask candidates the same labelled rows; say which is better"),
    "feedback": Entry("Look", "feedback:feedback", "What was learned later: take outcomes, show them by model"),
    "label": Entry("Look", "label:label", "People say what is right, one key each; how far they agree"),
    "publish": Entry("Stream", "stream:publish", "Publish rows of a file to a Kafka topic"),
    "tail": Entry("Stream", "stream:tail", "Print committed records of a topic or a job as they come"),
    "prune": Entry("Stream", "prune:prune", "Delete the progress of finished runs from a Kafka cluster"),
    "models": Entry("Know", "author:models", "The catalogue: tiers, prices, walls; quality as declared or measured"),
    "schema": Entry("Know", "author:schema", "The schema of a job file, or of the records that a run writes"),
    "sandbox": Entry("Know", "extras:sandbox", "A provider to rehearse jobs against, without keys"),
    "dev": Entry("Know", "dev:dev", "Kafka, S3 and the sandbox provider in the background of this machine"),
}
"""In the order of the help. Commands of later work are not shown."""


class LazyGroup(click.Group):
    """Knows its commands by name and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.place.partition(":")
        command: click.Command = getattr(import_module(f"penstock.jobs.commands.{module}"), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            ctx.fail(f"there is no command {args[0]!r}{_nearest(args[0])}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section in dict.fromkeys(entry.section for entry in COMMANDS.values()):
            rows = [(name, entry.help) for name, entry in COMMANDS.items() if entry.section == section]
            with formatter.section(section):
                formatter.write_dl(rows, col_max=14)


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    return f"; did you mean {near[0]!r}?" if near else "; `penstock --help` lists them"


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"penstock {version('penstock')}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Say which it is.")
def cli() -> None:
    """Batch work for language models: the right model at the lowest cost that is good enough.

    \b
    First steps:   penstock demo
                   penstock init my-job && cd my-job && penstock plan job.yaml
    """


def main(argv: Sequence[str] | None = None) -> None:
    """The console script: run one command and end the process with its exit code."""
    sys.exit(call(argv))


def call(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Never raises for what a user can cause."""
    try:
        code = cli.main(list(argv) if argv is not None else None, prog_name="penstock", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        return exits.USAGE
    except click.UsageError as error:
        _tell(_with_hint(error, error.format_message().rstrip(".")))
        return exits.USAGE
    except click.ClickException as error:
        _tell(error.format_message().rstrip("."))
        return exits.USAGE
    except (click.Abort, KeyboardInterrupt) as error:
        echo(str(error.__cause__ or error) or "interrupted", err=True)  # click wraps an interrupt into its own
        return exits.INTERRUPTED
    except BrokenPipeError:
        silence(sys.stdout)  # its reader has gone (`| head`): that is its right
        return exits.DONE
    except PenstockError as error:
        _tell(str(error))
        return exits.of_error(error)
    except Exception as error:  # noqa: BLE001 - the last door: whatever it is, the user gets one line
        _tell(f"unexpected {type(error).__name__}: {error}; PENSTOCK_DEBUG=1 shows where it happened")
        return exits.UNEXPECTED
    return code if isinstance(code, int) else exits.DONE


def _with_hint(error: click.UsageError, message: str) -> str:
    if error.ctx is None or "--help" in message:
        return message
    see = f"`{error.ctx.command_path} --help`"
    return f"{message} See {see}" if message.endswith("?") else f"{message}; see {see}"


def _tell(message: str) -> None:
    if os.environ.get("PENSTOCK_DEBUG") == "1":
        import traceback

        traceback.print_exc()
    echo(click.style("error:", fg="red", bold=True) + " " + message, err=True)


if __name__ == "__main__":
    main()
