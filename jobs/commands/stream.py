"""Topics by hand: publish, tail."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, get_args

import click
import msgspec

from penstock.connectors.base import SinkName
from penstock.connectors.settings import Format
from penstock.engine.errors import SpecError
from penstock.jobs import exits
from penstock.jobs.commands import shared
from penstock.jobs.wording import counted, duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from penstock.connectors.settings import Connection
    from penstock.jobs.streams.publishing import Published
    from penstock.jobs.streams.tailing import Seen

F = TypeVar("F", bound=Callable[..., object])

_FORMATS: tuple[str, ...] = get_args(Format)
_SINKS: tuple[str, ...] = get_args(SinkName)
COUNT_WIDTH = 24
"""Columns of the line that counts what is published."""
RATED = 1_000
"""Records from which on it is worth a word how fast they went."""


def cluster_options(command: F) -> F:
    for option in (
        click.option("--job", "job_file", metavar="FILE", help="The job file or catalogue that defines --connection."),
        click.option("--connection", metavar="NAME", help="A cluster by its name under `connections:`."),
        click.option("--bootstrap", metavar="HOST:PORT", help="A cluster. [default: `penstock dev`'s, "
                                                              "else 127.0.0.1:9092]"),
    ):  # fmt: skip
        command = option(command)
    return command


class PublishCall(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `penstock publish`, as click read them."""

    topic: str
    bootstrap: str | None = None
    connection: str | None = None
    job_file: str | None = None
    key: str | None = None
    headers: tuple[str, ...] = ()
    rate: str | None = None
    format: Format | None = None
    create: bool = False
    as_json: bool = False


@click.command()
@click.argument("file", metavar="FILE")
@click.option("--topic", required=True, metavar="TOPIC", help="Where to.")
@cluster_options
@click.option("--key", metavar="COLUMN", help="The column whose value keys each record: one key, one partition.")
@click.option("--header", "headers", multiple=True, metavar="NAME=VALUE", help="On every record; repeatable.")
@click.option("--rate", metavar="N/s", help="So many records a second. [default: as fast as it goes]")
@click.option("--format", type=click.Choice(_FORMATS), help="Where the name of FILE doesn't tell it.")
@click.option("--create", is_flag=True, help="Make the topic where it is missing, with the broker's defaults.")
@shared.json_option
def publish(file: str, **given: object) -> int:
    """Publish the rows of FILE (a file, a folder or a glob) to a topic, in their order.

    JSON lines and openai-batch lines go as they are; CSV and Parquet rows become JSON objects. Each record is
    published once: the producer is idempotent, and waits for all in-sync replicas. Running it again publishes
    everything again.

    \b
      penstock publish messages.csv --topic requests --create --key shop
      penstock publish 'in/*.jsonl' --topic requests --rate 100/s \\
          --header penstock-tenant=acme
      penstock publish more.parquet --topic requests \\
          --job job.yaml --connection shop
    """
    from penstock.jobs.streams import publishing, where

    call = msgspec.convert(given, PublishCall, strict=False)
    if "://" in file:
        raise SpecError(f"{file}: publish reads files of this machine; a job reads other places: source: URL")
    order = publishing.Order(
        path=file,
        topic=where.check_topic(call.topic),
        connection=where.cluster(call.bootstrap, call.connection, call.job_file),
        format=call.format,
        key=call.key,
        headers=tuple(_header(text) for text in call.headers),
        rate_per_s=None if call.rate is None else _rate(call.rate),
        create=call.create,
    )
    done, began = publishing.Published(), time.monotonic()
    try:
        asyncio.run(publishing.publish(order, done, _progress()))
    except BaseException:
        _wipe()
        if done.records or done.unsure:
            click.echo(publishing.before(done), err=True)
        raise
    return _tell(done, order.topic, time.monotonic() - began, call.as_json)


def _header(text: str) -> tuple[str, bytes]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise SpecError(f"--header {text!r}: expected NAME=VALUE, for example --header penstock-tenant=acme")
    return name, value.encode()


def _rate(text: str) -> float:
    try:
        rate = float(text.removesuffix("/s"))
    except ValueError:
        rate = 0.0
    if not 0 < rate < 1e9:
        raise SpecError(f"--rate {text!r}: expected a number of records a second, for example 100/s")
    return rate


def _progress() -> Callable[[Published], None]:
    """A line that counts, on a terminal; nothing in a pipe."""
    if not sys.stderr.isatty():
        return lambda done: None
    return lambda done: click.echo(f"\r{_counted(done.records)}", nl=False, err=True)


def _wipe() -> None:
    """The line that counted."""
    if sys.stderr.isatty():
        click.echo(f"\r{' ' * COUNT_WIDTH}\r", nl=False, err=True)


def _tell(done: Published, topic: str, seconds: float, as_json: bool) -> int:
    _wipe()
    if as_json:
        shared.print_json({**msgspec.to_builtins(done), "topic": topic, "seconds": round(seconds, 3)})
        return exits.DONE if not done.skipped else exits.DEAD_LETTERS
    shared.echo(f"{_counted(done.records)} to {topic} in {duration(seconds)}{_rates(done, seconds)}")
    if not done.skipped:
        return exits.DONE
    shared.echo(f"{done.skipped:,} were not published:", err=True)
    for why in done.why:
        shared.echo(f"  {why}", err=True)
    return exits.DEAD_LETTERS


def _rates(done: Published, seconds: float) -> str:
    """Those of a few records are the connection's, and say nothing."""
    if done.records < RATED:
        return ""
    return f" ({done.size_bytes / 1e6 / seconds:.1f} MB/s, {done.records / seconds:,.0f} records/s)"


class TailCall(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `penstock tail`, as click read them."""

    bootstrap: str | None = None
    connection: str | None = None
    job_file: str | None = None
    sets: tuple[str, ...] = ()
    sink: SinkName = "results"
    from_start: bool = False
    count: int | None = None
    as_json: bool = False


@click.command()
@click.argument("what", metavar="TOPIC|URL|JOB")
@click.option("--sink", type=click.Choice(_SINKS), default="results", show_default=True, help="Of JOB: which output.")
@cluster_options
@click.option("--from-start", is_flag=True, help="All that the topic holds first; else only what comes from now on.")
@click.option("-n", "count", type=click.IntRange(min=1), help="Stop after so many records.")
@shared.sets_option
@click.option("--json", "as_json", is_flag=True, help="A JSON document a line, for machines.")
def tail(what: str, **given: object) -> int:
    """Print committed records as they come, a line each: time, key, item, model, cost, answer. Ctrl-C ends it.

    Only what is committed is shown (isolation.level=read_committed), so each result of a run once. The results of
    a JOB are those of their topic and of the topics that `reply_to` allows. Of a JOB whose outputs are files or
    objects, what is committed so far is printed, and that is all.

    \b
      penstock tail results
      penstock tail kafka://127.0.0.1:9092/results --from-start -n 10
      penstock tail job.yaml --sink dead_letters --from-start
      penstock tail job.yaml --from-start --json | jq .value.answer
    """
    call = msgspec.convert(given, TailCall, strict=False)
    show = _shown(call.as_json)
    if Path(what).is_file():
        return _tail_job(what, call, show)
    from penstock.jobs.streams import where

    if "://" in what and not what.startswith("kafka://"):
        raise SpecError(f"{what}: tail follows a topic; what a job wrote elsewhere: penstock tail JOB")
    if what.startswith("kafka://"):
        if call.bootstrap or call.connection:
            raise SpecError("a kafka:// URL names its cluster: leave --bootstrap and --connection out")
        connection, topic = where.read_url(what)
        return _follow(connection, (topic,), call, show)
    connection = where.cluster(call.bootstrap, call.connection, call.job_file)
    return _follow(connection, (where.check_topic(what),), call, show)


def _shown(as_json: bool) -> Callable[[Seen], None]:
    from penstock.jobs.streams import lines

    if as_json:
        return lambda seen: click.echo(lines.for_machines(seen))
    width = shared.console().width
    return lambda seen: click.echo(lines.for_people(seen, width))


def _tail_job(job: str, call: TailCall, show: Callable[[Seen], None]) -> int:
    from penstock.connectors.settings import Connection, KafkaSink

    spec = shared.load_job(job, call.sets)
    sink = spec.sinks.get(call.sink)
    if isinstance(sink, KafkaSink) and isinstance(sink.connection, Connection):
        return _follow(sink.connection, (sink.topic, *sink.reply_to), call, show)
    from penstock.jobs.history import open_history
    from penstock.jobs.look.reading import Outputs
    from penstock.jobs.streams.tailing import Seen

    history = open_history(spec.state)
    if not history.knows(spec.run_id):
        raise SpecError(f"{spec.run_id} has not run yet: penstock run {job}")
    outputs = Outputs(history.spec(spec.run_id), history.status_or_starting(spec.run_id))
    if call.sink not in outputs.spec.sinks:
        raise SpecError(f"{spec.run_id} has no sink {call.sink}; it has {', '.join(outputs.spec.sinks)}")
    found: Iterator[bytes] = outputs.records(call.sink)
    count = 0
    for value in found:
        show(Seen(value))
        count += 1
        if count == call.count:
            break
    click.echo(f"{_counted(count)} in {outputs.where(call.sink)}", err=True)
    return exits.DONE


def _follow(connection: Connection, topics: tuple[str, ...], call: TailCall, show: Callable[[Seen], None]) -> int:
    began, counts = time.monotonic(), [0]
    if not call.from_start and not call.as_json and sys.stderr.isatty():
        waits = f"waiting for what comes to {' and '.join(topics)} from now on; --from-start shows what is there"
        click.echo(waits, err=True)
    try:
        asyncio.run(_watch(connection, topics, call, show, counts))
    except KeyboardInterrupt:
        click.echo(err=True)
    click.echo(f"{_counted(counts[0])} of {' and '.join(topics)} in {time.monotonic() - began:.0f} s", err=True)
    return exits.DONE


async def _watch(
    connection: Connection, topics: tuple[str, ...], call: TailCall, show: Callable[[Seen], None], counts: list[int]
) -> None:
    from contextlib import aclosing

    from penstock.jobs.streams.tailing import follow

    async with aclosing(follow(connection, *topics, from_start=call.from_start)) as batches:
        async for batch in batches:
            for seen in batch:
                show(seen)
                counts[0] += 1
                if counts[0] == call.count:
                    return


def _counted(count: int) -> str:
    return counted(count, "record")
