"""Taking finished runs out of a progress topic."""

from __future__ import annotations

import asyncio
import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click
import msgspec

from penstock.engine.errors import SpecError
from penstock.jobs import exits
from penstock.jobs.commands import shared
from penstock.jobs.commands.stream import cluster_options

if TYPE_CHECKING:
    from penstock.connectors.kafka.pruning import Found
    from penstock.connectors.settings import Connection

LEAST_S = 86_400.0
"""A run that ended today may be run again today, and should then say that there is nothing to do."""
_UNITS = {"d": 86_400.0, "h": 3_600.0}


@click.command()
@cluster_options
@click.option("--topic", default="penstock-progress", show_default=True, help="Where progress is kept.")
@click.option("--older-than", default="30d", show_default=True, metavar="TIME", help="At least 1d; 30d, 72h.")
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@click.option(
    "--state", metavar="URL", help="Whose audit log tells what was deleted. [default: the job's, or .penstock here]"
)
@shared.json_option
def prune(
    job_file: str | None, connection: str | None, bootstrap: str | None, topic: str, older_than: str, dry_run: bool,
    state: str | None, as_json: bool,
) -> int:  # fmt: skip
    """Delete the progress of finished runs from a Kafka cluster.

    A run is finished when every item of its input has ended and is committed; nothing else is touched, nor any record
    of results. A pruned run is forgotten: run again under its name, it begins anew, and pays again; where the state
    still knows it, only with --fresh. Runs without an end are never pruned.

    \b
      penstock prune --older-than 90d --dry-run
      penstock prune --job job.yaml --connection shop
    """
    from penstock.jobs.streams import where

    before = time.time() - seconds(older_than)
    where_to = where.cluster(bootstrap, connection, job_file)
    log = None if dry_run else shared.state_beside(state, job_file)
    gone, kept = asyncio.run(take_out(where_to, where.check_topic(topic), before, log))
    if as_json:
        shared.print_json({"dry_run": dry_run, "pruned": msgspec.to_builtins(gone), "kept": msgspec.to_builtins(kept)})
        return exits.DONE
    for found in gone:
        at = datetime.fromtimestamp(found.last_at, UTC).strftime("%Y-%m-%d")
        count = found.records - found.stays
        click.echo(f"{found.name}  last written {at}, {count:,} records, {found.bytes:,} bytes")
    said = "would be pruned" if dry_run else "pruned"
    click.echo(f"{len(gone):,} runs {said}; {len(kept):,} are younger, unfinished or without an end, and stay")
    return exits.DONE


def seconds(text: str) -> float:
    """`30d`, `72h`. Raises `SpecError`."""
    match = re.fullmatch(r"(\d{1,5})([dh])", text.strip())
    found = float(match[1]) * _UNITS[match[2]] if match is not None else 0.0
    if found < LEAST_S:
        raise SpecError(f"--older-than {text!r}: expected days or hours, at least one day, for example 30d or 72h")
    return found


async def take_out(
    connection: Connection, topic: str, before: float, log: str | None
) -> tuple[list[Found], list[Found]]:
    """(what is gone, what stays). `log`: state whose audit log is told first: what it can't be told of is not deleted.
    None: nothing is deleted."""
    from penstock.connectors.kafka.client import ended
    from penstock.connectors.kafka.pruning import Progress

    progress = Progress(connection, topic)
    runs = [run for run in await progress.read() if run.records > run.stays]
    gone = [run for run in runs if run.over and run.last_at < before]
    if gone and log is not None:
        await asyncio.to_thread(_record, log, connection, topic, gone)
        gone = [run for run in gone if await progress.prune(run)]
    await ended()
    return gone, [run for run in runs if run not in gone]


def _record(log: str, connection: Connection, topic: str, gone: list[Found]) -> None:
    from penstock.jobs.audited import record
    from penstock.jobs.history import open_history

    what = f"the progress of finished runs in {topic} at {connection.bootstrap}: penstock prune"
    record(open_history(log), "deletion", "", {"what": what, "runs": [run.name for run in gone]})
