"""Kafka sources and sinks of the job file: `kafka://` URLs, names, times, and what must not meet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

from penstock.connectors.base import SinkName
from penstock.connectors.settings import Connection, CreateTopic, KafkaSink, KafkaSource, SinkSettings
from penstock.jobs.spec.places.connections import Connections, check_bootstrap, connect, is_one_cluster
from penstock.jobs.spec.places.s3 import check_folder_url
from penstock.jobs.spec.tree import Doc, Path

MAX_PATTERN = 1_000
"""Characters of a pattern: it is matched against every topic of the cluster."""
MAX_TOPICS = 1_000
MAX_GROUP = 249

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
"""https://kafka.apache.org/documentation/#topicconfigs: legal names, as the broker's `Topic.validate` has them."""
SCHEMA_FORMATS = ("avro", "json-schema", "protobuf")


def read_url(doc: Doc, path: Path, url: str) -> tuple[str, str]:
    """`kafka://host:port[,host:port]/topic` → (bootstrap, topic)."""
    brokers, _, topic = url.partition("://")[2].partition("/")
    if not topic:
        raise doc.error(path, "write kafka://host:port/topic")
    bootstrap = check_bootstrap(doc, path, brokers)
    return bootstrap, check_topic(doc, path, topic)


def check_topic(doc: Doc, path: Path, name: str) -> str:
    if not _TOPIC.fullmatch(name) or name in (".", ".."):
        raise doc.error(path, "a topic's name has 1 to 249 letters, digits and . _ -")
    return name


def source(doc: Doc, value: KafkaSource, known: Connections, base: str) -> KafkaSource:
    """The source with its connection in place, checked whole."""
    path: Path = ("source",)
    _check_topics(doc, path, value)
    made = connect(doc, path, value, known, base)
    if made.group is not None:
        _check_group(doc, (*path, "group"), made.group)
        _check_mirror(doc, (*path, "group"), made.group, made.start)
    for i, topic in enumerate(made.reply_to):
        check_topic(doc, (*path, "reply_to", i), topic)
    _check_registry(doc, path, made, made.format in SCHEMA_FORMATS)
    return msgspec.structs.replace(made, start=check_start(doc, (*path, "start"), made.start))


def _check_topics(doc: Doc, path: Path, value: KafkaSource) -> None:
    if (value.pattern is None) == (not value.topics):
        raise doc.error(path, "wants exactly one of `topics: [name, …]` and `pattern:` (a regular expression)")
    for i, topic in enumerate(value.topics):
        check_topic(doc, (*path, "topics", i), topic)
        if topic in value.topics[:i]:
            raise doc.error((*path, "topics", i), f"`{topic}` stands here twice")
    if len(value.topics) > MAX_TOPICS:
        raise doc.error((*path, "topics"), f"at most {MAX_TOPICS:,} topics; a `pattern:` says more")
    if value.pattern is not None:
        _check_pattern(doc, (*path, "pattern"), value.pattern)


def _check_pattern(doc: Doc, path: Path, pattern: str) -> None:
    if not pattern or len(pattern) > MAX_PATTERN:
        raise doc.error(path, f"a pattern has 1 to {MAX_PATTERN:,} characters")
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise doc.error(path, f"not a valid regular expression: {str(error)[:100]}") from None


def check_start(doc: Doc, path: Path, start: str) -> str:
    """A time becomes UTC with its offset said; one without an offset is UTC."""
    if start in ("earliest", "latest"):
        return start
    kind, colon, name = start.partition(":")
    if kind == "group" and colon:
        return f"group:{_check_group(doc, path, name)}"
    try:
        at = datetime.fromisoformat(start)
        return (at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)).isoformat()
    except (ValueError, OverflowError):
        told = "expected earliest, latest, a time like 2026-11-24T13:00:00Z, or group:NAME"
        raise doc.error(path, told) from None


def _check_group(doc: Doc, path: Path, name: str) -> str:
    if not name.strip() or len(name) > MAX_GROUP or not name.isprintable():
        raise doc.error(path, f"a group's name has 1 to {MAX_GROUP} printable characters")
    return name


def _check_mirror(doc: Doc, path: Path, group: str, start: str) -> None:
    """The run writes its own progress over what it would be begun from: `--fresh`, or a next run, would pass over all
    that this one has read."""
    if start.partition(":")[0] == "group" and start.partition(":")[2].strip() == group.strip():
        told = f"`start:` reads where `{group}` stands, and the run would write its own progress there"
        raise doc.error(path, f"{told}; name another group (left out, the run has one of its own)")


def sink(doc: Doc, path: Path, value: KafkaSink, known: Connections, base: str) -> KafkaSink:
    """The sink with its connection in place, checked whole."""
    check_topic(doc, (*path, "topic"), value.topic)
    check_topic(doc, (*path, "progress_topic"), value.progress_topic)
    if value.reply_to:
        raise doc.error((*path, "reply_to"), "which topics a record may name is said at the source: `source.reply_to`")
    if value.topic == value.progress_topic:
        raise doc.error((*path, "topic"), f"`{value.topic}` is the topic of the progress; give the records their own")
    if isinstance(value.create, CreateTopic):
        _check_create(doc, (*path, "create"), value.create)
    if value.too_large != "dead_letter":
        check_folder_url(doc, (*path, "too_large"), value.too_large, "`dead_letter` or s3://bucket/prefix/")
    made = connect(doc, path, value, known, base)
    if made.format == "avro":
        _check_avro(doc, path, made)
    return made


def _check_avro(doc: Doc, path: Path, made: KafkaSink) -> None:
    if path[-1] == "dead_letters":
        raise doc.error((*path, "format"), "a dead letter is its input's own bytes; leave `format:` out")
    if made.too_large != "dead_letter":
        raise doc.error((*path, "too_large"), "only JSON records can point to an object; leave `format:` out")
    _check_registry(doc, path, made, True)


def _check_create(doc: Doc, path: Path, create: CreateTopic) -> None:
    if not 1 <= create.partitions <= 100_000:
        raise doc.error((*path, "partitions"), "expected 1 or more partitions")
    if create.replication != -1 and not 1 <= create.replication <= 100:
        raise doc.error((*path, "replication"), "expected 1 or more copies; leave it out for the broker's default")


def _check_registry(doc: Doc, path: Path, made: KafkaSource | KafkaSink, wanted: bool) -> None:
    if wanted and not (isinstance(made.connection, Connection) and made.connection.schema_registry):
        raise doc.error(
            (*path, "format"),
            f"`{made.format}` goes with a schema registry: name a `connection:` that has `schema_registry:`",
        )


def check_progress(doc: Doc, sinks: Mapping[SinkName, SinkSettings]) -> None:
    """One cluster holds a run's progress in one topic, which is no sink's; each sink has a topic of its own, however
    the cluster is written."""
    topics = [(name, sink) for name, sink in sinks.items() if isinstance(sink, KafkaSink)]
    for at, (name, one) in enumerate(topics):
        for number, (before, other) in enumerate(topics):
            if not is_one_cluster(one.connection, other.connection):
                continue
            if number < at and one.topic == other.topic:
                raise doc.error(("sinks", name), f"the same topic as `{before}`; each sink needs its own")
            if one.progress_topic != other.progress_topic:
                raise doc.error(("sinks", name), "sinks of one cluster share their `progress_topic:`; name one")
            if one.topic == other.progress_topic:
                raise doc.error(("sinks", name), f"`{one.topic}` is the topic of the progress")
            if one.compression != other.compression and ("sinks", name, "compression") in doc.lines:
                told = "sinks of one cluster are written together and compressed alike: name it at the results"
                raise doc.error(("sinks", name, "compression"), told)


def check_apart(doc: Doc, source: KafkaSource, sinks: Mapping[SinkName, SinkSettings]) -> None:
    """A run that reads what it writes never ends, and pays for each round."""
    topics: dict[SinkName, KafkaSink] = {n: sink for n, sink in sinks.items() if isinstance(sink, KafkaSink)}
    for name, sink in topics.items():
        if not is_one_cluster(source.connection, sink.connection):
            continue
        path: Path = ("sinks", name) if ("sinks", name) in doc.lines else ("sinks",)
        for topic, what in ((sink.topic, f"{name} would be written to"), (sink.progress_topic, "progress is kept in")):
            if source.reads(topic):
                raise doc.error(path, f"{what} the topic `{topic}`, which the source reads; give it another")
    _check_replies(doc, source, topics)


def _check_replies(doc: Doc, source: KafkaSource, topics: Mapping[SinkName, KafkaSink]) -> None:
    """Whoever reads results reads the topics for replies too: they hold nothing else of the run's."""
    if not source.reply_to:
        return
    if (results := topics.get("results")) is None:
        raise doc.error(("source", "reply_to"), "replies go to topics of the results' cluster: results must be Kafka")
    near = {name: sink for name, sink in topics.items() if is_one_cluster(results.connection, sink.connection)}
    taken = {sink.topic: f"the topic of the {name}" for name, sink in near.items() if name != "results"}
    taken[results.progress_topic] = "the topic of the progress"
    for i, topic in enumerate(source.reply_to):
        path: Path = ("source", "reply_to", i)
        if source.reads(topic):
            raise doc.error(path, f"`{topic}` is a topic that the source reads")
        if topic in taken:
            raise doc.error(path, f"`{topic}` is {taken[topic]}; replies need one of their own")
