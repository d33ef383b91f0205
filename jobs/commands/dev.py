"""`penstock dev`: Kafka, S3 and the sandbox provider in the background of this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from penstock.jobs.commands import shared
from penstock.jobs.wording import relative

if TYPE_CHECKING:
    from penstock.jobs.dev.stand import Part, Stand, Standing

_PARTS = ("kafka", "s3", "sandbox")

folder_option = click.option(
    "--folder", default=".penstock/dev", show_default=True, type=click.Path(file_okay=False),
    help="Where data, logs and credentials lie.",
)  # fmt: skip


@click.group()
def dev() -> None:
    """Real servers to work against, on this machine: Apache Kafka, an S3 server, the sandbox provider.

    They run in the background, listen on 127.0.0.1 only, and keep their data until `down --wipe`. No containers are
    needed: Kafka needs Java 17 and, the first time, Maven; S3 needs Go the first time. With containers,
    infra/compose.yaml in the repository does the same.

    \b
    penstock dev up          start all; it says what to put in a job file
    penstock dev up s3       start one
    penstock dev status      what runs, where, and how much disk it takes
    penstock dev down        stop all
    """


@dev.command(short_help="Start what doesn't run yet")
@click.argument("parts", nargs=-1, type=click.Choice(_PARTS), metavar="[kafka|s3|sandbox]…")
@click.option("--kafka-port", type=click.IntRange(0, 65535), help="0 takes a free one. [default: 9092]")
@click.option("--s3-port", type=click.IntRange(0, 65535), help="0 takes a free one. [default: 7070]")
@click.option("--sandbox-port", type=click.IntRange(0, 65535), help="0 takes a free one. [default: 8899]")
@folder_option
def up(parts: tuple[Part, ...], folder: str, **ports: int | None) -> None:
    """Start what doesn't run yet (all, or the named ones), and say what to put in a job file.

    The first time fetches Kafka with Maven and builds the S3 server with Go: some minutes. Later a few seconds.
    A port that was given once is kept for the next time.
    """
    from penstock.jobs.dev.stand import Stand

    stand = Stand(Path(folder))
    wanted: dict[Part, int | None] = {part: ports[f"{part}_port"] for part in parts or _PARTS}
    standing: list[Standing] = []
    try:
        with _progress() as say:
            standing.extend(stand.up(wanted, say))
    finally:  # where one fails, the others are up and are told
        _tell(standing)
    for line in _advice(stand, standing):
        click.echo(line)


@dev.command()
@click.option("--wipe", is_flag=True, help="Remove data, logs and credentials too. This can't be undone.")
@folder_option
def down(folder: str, wipe: bool) -> None:
    """Stop what `up` started. Data stay, unless --wipe."""
    from penstock.jobs.dev.stand import Stand

    stopped = Stand(Path(folder)).down(wipe=wipe)
    if not stopped:
        click.echo(f"nothing was started in {folder}; `penstock dev up` starts it")
        return
    _tell(stopped)
    click.echo(f"{folder} is removed" if wipe else f"data stay in {folder}; `penstock dev down --wipe` removes them")


@dev.command()
@shared.json_option
@folder_option
def status(folder: str, as_json: bool) -> None:
    """What runs, where it listens, and the disk that its data take."""
    from penstock.jobs.dev.stand import Stand

    standing = Stand(Path(folder)).status()
    if as_json:
        shared.print_json(standing)
    elif standing:
        _tell(standing)
    else:
        click.echo(f"nothing was started in {folder}; `penstock dev up` starts it")


def _tell(standing: list[Standing]) -> None:
    for each in standing:
        pid = f"process {each.pid}" if each.pid else ""
        size = f"{_size(each.data_bytes)} of data" if each.data_bytes else ""
        rest = ", ".join(filter(None, [pid, size, f"log {relative(each.log)}"]))
        click.echo(f"{each.part:<8} {each.state:<9} {each.address:<22}  {rest}")


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.0f} kB"


def _advice(stand: Stand, standing: list[Standing]) -> list[str]:
    """Lines for a job file and for the shell, and what to try next; only about what runs."""
    lines: dict[Part, list[str]] = {
        "kafka": ['  source: {type: kafka, bootstrap: "%s", topics: [requests], until: end}'],
        "s3": ["  sinks:", '    results: {type: s3, bucket: outbox, prefix: results/, endpoint: "%s"}'],
        "sandbox": ["  models: [sandbox/fast]"],
    }
    job = [line.replace("%s", each.address) for each in standing for line in lines[each.part]]
    shell = f"  . {relative(str(stand.env))}    # AWS_ACCESS_KEY_ID and the others; for your eyes only (0600)"
    more = ["  penstock validate job.yaml && penstock run job.yaml", "  penstock dev status", "  penstock dev down"]
    return ["", "In a job file:", *job, "", "In the shell that runs it:", shell, "", "Next:", *more]


@contextlib.contextmanager
def _progress() -> Generator[Callable[[str], None]]:
    """What is under way, on stderr: a line that counts seconds on a terminal, plain lines elsewhere."""
    console = shared.console(stderr=True)
    if not console.is_terminal:
        yield lambda line: click.echo(f"{line} …", err=True)
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("looking at what runs", total=None)

        def say(line: str) -> None:
            progress.reset(task, description=line)

        yield say
