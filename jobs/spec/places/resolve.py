"""A path, URL or mapping → settings of a source or sink, its connection in place; and where unnamed sinks stand.

A kind of source or sink is a row of `_URLS` and a case in `source`, `_sink`, `beside` and `check_not_input`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import msgspec

from penstock.connectors.base import SinkName
from penstock.connectors.registry import where
from penstock.connectors.settings import (
    FilesSink,
    FilesSource,
    KafkaSink,
    KafkaSource,
    MemorySink,
    MemorySource,
    S3Sink,
    S3Source,
    SinkSettings,
    SourceSettings,
)
from penstock.jobs.spec.fields import SinksFile
from penstock.jobs.spec.places import files, kafka, s3
from penstock.jobs.spec.places.connections import Connections
from penstock.jobs.spec.tree import Doc, Path, nearest

BESIDE: tuple[SinkName, ...] = ("costs", "quality", "dead_letters")
"""Stand beside the results unless they are named."""
ALL_SINKS: tuple[SinkName, ...] = ("results", *BESIDE, "review")


class Site(msgspec.Struct, frozen=True):
    """The file that is read, the folder that its paths start from, and the connections it may name."""

    doc: Doc
    base: str
    connections: Connections = {}


def _kafka_source(doc: Doc, path: Path, url: str) -> SourceSettings:
    bootstrap, topic = kafka.read_url(doc, path, url)
    return KafkaSource(topics=(topic,), bootstrap=bootstrap)


def _kafka_sink(doc: Doc, path: Path, url: str) -> SinkSettings:
    bootstrap, topic = kafka.read_url(doc, path, url)
    return KafkaSink(topic, bootstrap)


def _s3_source(doc: Doc, path: Path, url: str) -> SourceSettings:
    return s3.source_of(*s3.read_url(doc, path, url))


def _s3_sink(doc: Doc, path: Path, url: str) -> SinkSettings:
    return S3Sink(*s3.read_url(doc, path, url))


ReadSource = Callable[[Doc, Path, str], SourceSettings]
ReadSink = Callable[[Doc, Path, str], SinkSettings]
_URLS: dict[str, tuple[ReadSource, ReadSink]] = {
    "kafka": (_kafka_source, _kafka_sink),
    "s3": (_s3_source, _s3_sink),
}
"""URL scheme → how its URLs read as a source and as a sink."""


def _known(doc: Doc, path: Path, kind: str) -> tuple[ReadSource, ReadSink]:
    if kind in _URLS:
        return _URLS[kind]
    raise doc.error(path, f"no connector reads {kind}://{nearest(kind, _URLS)}")


def source(site: Site, value: str | SourceSettings) -> SourceSettings:
    path: Path = ("source",)
    if isinstance(value, str):
        kind = files.scheme(value)
        if kind is None:
            return files.source_at(site.doc, value, site.base)
        value = _known(site.doc, path, kind)[0](site.doc, path, value)
    match value:
        case FilesSource():
            return files.source(site.doc, value, site.base)
        case KafkaSource():
            return kafka.source(site.doc, value, site.connections, site.base)
        case S3Source():
            return s3.source(site.doc, value)
        case MemorySource():
            return value


def feedback(site: Site, value: str | SourceSettings) -> SourceSettings:
    """A source too; what is wrong with it is told at its own lines."""
    doc = site.doc
    lines = {path: n for path, n in doc.lines.items() if path[0] != "source"}
    lines |= {("source", *path[1:]): n for path, n in doc.lines.items() if path[0] == "feedback"}
    view = msgspec.structs.replace(doc, data={**doc.data, "source": doc.data["feedback"]}, lines=lines)
    return source(msgspec.structs.replace(site, doc=view), value)


def sinks(site: Site, value: str | SinksFile, keep: Collection[str] | None) -> dict[SinkName, SinkSettings]:
    """All sinks of the run; those of `BESIDE` that are not named stand beside the results. `keep`: the columns carried
    to the results."""
    named: dict[SinkName, SinkSettings]
    if isinstance(value, str):
        named = {"results": _sink(site, ("sinks",), value)}
    else:
        given: dict[SinkName, str | SinkSettings | None] = {name: getattr(value, name) for name in ALL_SINKS}
        named = {n: _sink(site, ("sinks", n), v) for n, v in given.items() if v is not None}
    for name, sink in named.items():
        if isinstance(sink, S3Sink):
            s3.check_partitions(site.doc, name, sink, keep)
    for name in BESIDE:
        named.setdefault(name, beside(named["results"], name))
    _check_apart(site.doc, named)
    return {name: named[name] for name in ALL_SINKS if name in named}


def _sink(site: Site, path: Path, value: str | SinkSettings) -> SinkSettings:
    if isinstance(value, str):
        kind = files.scheme(value)
        if kind is None:
            return files.sink_at(site.doc, path, value, site.base)
        value = _known(site.doc, path, kind)[1](site.doc, path, value)
    match value:
        case FilesSink():
            return files.sink(site.doc, path, value, site.base)
        case KafkaSink():
            return kafka.sink(site.doc, path, value, site.connections, site.base)
        case S3Sink():
            return s3.sink(site.doc, path, value)
        case MemorySink():
            return value


def beside(results: SinkSettings, name: str) -> SinkSettings:
    """`results.parquet` → `results.costs.parquet`; `out/` → `out.costs/`; topic `results` → `results.costs`. Dead
    letters are JSON in any case: they hold what could not be read."""
    match results:
        case MemorySink():
            return MemorySink(f"{results.name}.{name}")
        case KafkaSink():
            format = "json" if name == "dead_letters" else results.format
            return msgspec.structs.replace(results, topic=f"{results.topic}.{name}", format=format)
        case S3Sink():
            parquet = files.is_parquet(results.prefix, results.format)
            return s3.beside(results, *files.path_beside(results.prefix, name, parquet))
        case FilesSink():
            return FilesSink(*files.path_beside(results.path, name, files.is_parquet(results.path, results.format)))


def _check_apart(doc: Doc, named: Mapping[SinkName, SinkSettings]) -> None:
    """Two sinks in one place would write over each other."""
    seen: dict[str, str] = {}
    for name, sink in named.items():
        place = where(sink).rstrip("/")
        if place in seen:
            raise doc.error(("sinks", name), f"the same place as `{seen[place]}`; each sink needs its own")
        seen[place] = name
    kafka.check_progress(doc, named)
    s3.check_encrypted(doc, named)


def check_not_input(doc: Doc, source: SourceSettings, named: Mapping[SinkName, SinkSettings], state: str) -> None:
    """A sink inside the input would be read as input by the next run, or would write over it. So would the state."""
    match source:
        case FilesSource():
            files.check_apart(doc, source, named)
            files.check_state_apart(doc, source, state)
        case KafkaSource():
            kafka.check_apart(doc, source, named)
        case S3Source():
            s3.check_apart(doc, source, named)
            s3.check_state_apart(doc, source, state)
        case MemorySource():
            return


def check_one_shape(doc: Doc, source: SourceSettings, results: SinkSettings, shape: str | None) -> None:
    """A table has the columns of one shape; of a topic whose records are looked at one by one, each could have its own.
    Raises `SpecError`."""
    if shape is not None or not isinstance(source, KafkaSource) or source.format is not None:
        return
    match results:
        case FilesSink():
            table = files.is_table(results.path, results.format)
        case S3Sink():
            table = files.is_table(results.prefix, results.format)
        case KafkaSink() | MemorySink():
            table = False
    if table:
        path: Path = ("sinks", "results") if ("sinks", "results") in doc.lines else ("sinks",)
        raise doc.error(
            path,
            "a table has one shape, and a topic may hold requests and rows: say which in a job file, with `shape: "
            "rows` or `shape: openai-batch`, or what the topic holds with the source's `format:`",
        )


def is_table(source: SourceSettings) -> bool:
    """Whether the records are rows in any case, never requests."""
    match source:
        case FilesSource():
            return files.is_table(source.path, source.format)
        case S3Source():
            return files.is_table(source.pattern or source.prefix, source.format)
        case KafkaSource():
            return source.format in kafka.SCHEMA_FORMATS
        case MemorySource():
            return False


def state(doc: Doc, url: str, base: str) -> str:
    """A folder, absolute, or an `s3://` URL."""
    match files.scheme(url):
        case None:
            return files.absolute(base, url).rstrip("/") or "/"
        case "s3":
            return s3.check_state(doc, ("state",), url)
        case kind:
            raise doc.error(("state",), f"{kind}:// can't hold the state; name a folder, or s3://bucket/prefix")
