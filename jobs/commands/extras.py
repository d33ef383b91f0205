"""The demo and the sandbox provider."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

if TYPE_CHECKING:
    from penstock.jobs.sandbox.settings import Settings


FAULTS_HELP = (
    "Shares of requests that go wrong, such as 429=0.02,hang=0.001: rate_limit (429), server_error (500), overloaded "
    "(529 or 503), spend_cap, hang, cut (the connection), invalid_json, refuse."
)


@click.command()
@click.option("--quick", is_flag=True, help="Stop after the sandbox part: no model is fetched, about a minute.")
def demo(quick: bool) -> int:
    """See the whole thing run on this machine: plan, tiers, a kill -9 and the resume, costs, quality.

    Then an evaluation of models of planted quality, and a rollout of a worse version that is taken back by itself.

    Needs no keys and pays nobody: prices that are pretended say so.
    """
    from penstock.jobs import demo as theatre

    return theatre.main(quick)


@click.group(invoke_without_command=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", type=click.IntRange(0, 65535), default=8899, show_default=True, help="0 takes a free one.")
@click.option("--latency-ms", type=click.FloatRange(min=0), help="How long each answer takes.")
@click.option("--jitter-ms", type=click.FloatRange(min=0), help="Latency is spread evenly over ± this.")
@click.option("--rpm", type=click.IntRange(min=1), help="Requests a minute, with the true headers and 429s.")
@click.option("--tpm", type=click.IntRange(min=1), help="Tokens a minute.")
@click.option("--faults", metavar="NAME=SHARE,…", help=FAULTS_HELP)
@click.option("--seed", type=int, help="Of faults, latencies and planted luck.")
@click.option("--journal", type=click.Path(dir_okay=False), help="Gains a line for every charged request.")
@click.option("--settings", "file", type=click.Path(dir_okay=False), help="All of this and more, from YAML.")
@click.pass_context
def sandbox(ctx: click.Context, host: str, port: int, file: str | None, **given: object) -> int:
    """A provider to rehearse jobs against, without keys: OpenAI and Anthropic formats, limits, faults.

    In a job: `models: [sandbox/fast]`. GET /stats shows what was served, and what was paid for twice.
    A model named planted:0.85 is right on 85 % of the rows that `penstock sandbox rows` makes.
    """
    if ctx.invoked_subcommand is not None:
        return 0
    from penstock.jobs.sandbox.run import serve
    from penstock.jobs.sandbox.settings import Settings, read_settings

    serve(
        host, port, _settings(read_settings(file) if file else Settings(), given), lambda url: click.echo(_ready(url))
    )
    return 0


@sandbox.command(name="rows", short_help="Write rows with their true answers")
@click.argument("count", type=click.IntRange(min=1))
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="A file. [default: standard output]")
@click.option("--task", default="messages", show_default=True, help="Stands in each row; quality is planted by it.")
@click.option("--choices", metavar="A,B,…", default="billing,delivery,other,product", show_default=True)
@click.option(
    "--schema", type=click.Path(exists=True, dir_okay=False), help="Also the true object of this JSON schema."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed makes other rows.")
def make_rows(count: int, output: str | None, task: str, choices: str, schema: str | None, seed: int) -> int:
    """Write rows with true answers, as JSON lines, that models with planted quality know.

    `label` is the true one of the choices, `number` what a prompt without choices is to be answered with, `record`
    the object of --schema. The job shows `text` alone to the model.
    """
    from penstock.jobs.sandbox import cases

    listed = tuple(choice.strip() for choice in choices.split(",") if choice.strip())
    with click.open_file(output or "-", "wb") as file:
        for row in cases.rows(count, task, listed, seed):
            file.write(msgspec.json.encode(row | _record(row, schema)) + b"\n")
    if output:
        click.echo(f"{count:,} rows with true answers in {output}")
    return 0


def _record(row: dict[str, str], schema: str | None) -> dict[str, object]:
    if schema is None:
        return {}
    from pathlib import Path

    from penstock.jobs.sandbox.planted import schema_of, true_record

    return {"record": true_record(row["text"], schema_of(Path(schema).read_bytes(), schema))}


def _settings(base: Settings, given: dict[str, object]) -> Settings:
    """What the options say, over what the file says."""
    from penstock.jobs.sandbox.settings import parse_faults

    said = {name: value for name, value in given.items() if value is not None}
    faults = said.pop("faults", None)
    if isinstance(faults, str):
        said["faults"] = parse_faults(faults)
    whole = {name: said.pop(name) for name in ("seed", "journal") if name in said}
    default = msgspec.structs.replace(base.default, **said)
    return msgspec.structs.replace(base, default=default, **whole)


def _ready(url: str) -> str:
    return f"sandbox at {url}; stats at {url}/stats; ctrl-c stops it"
