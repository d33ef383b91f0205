"""Settings of sources and sinks, as the job file says them (paths already absolute)."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

import msgspec

from penstock.connectors.base import SinkName

DEAD_LETTER = "dead_letter"
Format = Literal["openai-batch", "jsonl", "csv", "parquet"]


class FilesSource(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="files"):
    """`path`: a file, a folder or a glob. `format` None: found from each name (`.jsonl` is looked into: a first line
    with `custom_id` and `body` is openai-batch)."""

    path: str
    format: Format | None = None
    replay: bool = False
    """The lines are dead-letter records of Penstock: each stands for its `original`, which keeps its item_id and enters
    again as the next generation."""


class MemorySource(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="memory"):
    """The source that ships for tests and `ps.map`: see `connectors.memory`. `name` finds it in the process."""

    name: str
    until: Literal["end", "forever"] = "end"
    """`forever`: it is a `MemoryTopic`, which grows."""


class FilesSink(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="files"):
    """`path` ending in a file name: one file in input order; a folder (trailing slash or no suffix): part files and a
    manifest. `format` None: found from the name (`.jsonl`, `.parquet`, `.csv`), else JSONL."""

    commit_ms: ClassVar[int] = 200
    """Between commits of a lane whose results go there, unless the job says otherwise: what was answered since the last
    commit is paid for again after a kill."""
    path: str
    format: Literal["jsonl", "parquet", "csv"] | None = None


class MemorySink(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="memory"):
    commit_ms: ClassVar[int] = 200
    name: str


class Connection(msgspec.Struct, frozen=True, omit_defaults=True):
    """One Kafka cluster, shared by the topics that name it (`connections:` in the job file). Option names are those of
    the Java client and librdkafka, with underscores for dots.

    Secrets are named, never written: `env:NAME` or `file:/run/secrets/x`. `sasl_oauth_token`: a bearer token by
    such a name, read anew whenever the client asks; `sasl_oauth_…`: the client-credentials flow (RFC 6749, 4.4).
    """

    bootstrap: str
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = None
    sasl_username: str | None = None
    sasl_password: str | None = None
    sasl_oauth_token: str | None = None
    sasl_oauth_endpoint: str | None = None
    sasl_oauth_client_id: str | None = None
    sasl_oauth_client_secret: str | None = None
    sasl_oauth_scope: str | None = None
    ssl_ca_location: str | None = None
    ssl_certificate_location: str | None = None
    ssl_key_location: str | None = None
    ssl_key_password: str | None = None
    ssl_check_hostname: bool = True
    schema_registry: str | None = None
    """URL of a Confluent-compatible schema registry."""
    schema_registry_auth: str | None = None
    """A secret's name; its value is `user:password` (HTTP basic)."""


class KafkaSource(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="kafka"):
    """Topics by name, or all that match `pattern` (a regular expression for the whole name). Each partition is a split.

    `connection`: a name under `connections:`; the compiler puts the connection itself in its place. `bootstrap` alone
    is a connection without secrets. `start`: `earliest`, `latest`, a time (ISO 8601, the first record at or after it),
    or `group:NAME` (that group's committed offsets, read once); it counts where a partition has no progress yet, and a
    partition that appears later is read from its earliest record. `until: end`: the end offsets when the plan is made.
    """

    topics: tuple[str, ...] = ()
    pattern: str | None = None
    bootstrap: str | None = None
    connection: str | Connection | None = None
    group: str | None = None
    """The group whose offsets mirror the progress, for lag tools; the run's id unless named. Never read back."""
    start: str = "earliest"
    until: Literal["end", "forever"] = "forever"
    format: Literal["openai-batch", "jsonl", "avro", "json-schema", "protobuf"] | None = None
    """None: each record is looked at (an object with `custom_id` and `body` is an openai-batch line, others are rows).
    The last three are read with the schema registry; their records are rows."""
    order: Literal["none", "key"] = "none"
    """`key`: records of a partition with one key are sent one after another, in its order; each when the end of the one
    before it is committed. Those without a key have no order."""
    reply_to: tuple[str, ...] = ()
    """Topics that a record's `reply_to` header may name for its result; they must be topics of the results' cluster."""

    def reads(self, topic: str) -> bool:
        return topic in self.topics if self.pattern is None else re.fullmatch(self.pattern, topic) is not None


class S3Source(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="s3"):
    """All objects whose key starts with `prefix`; with `pattern` (a glob, `**` crosses slashes) those whose key behind
    the prefix matches it. A prefix that is the whole key of an object, and named as one, means it alone. Hidden ones (a
    name in the key behind the prefix begins with `.` or `_`) are left out. Credentials come by the normal AWS chain
    (environment, profile, role)."""

    bucket: str
    prefix: str = ""
    pattern: str | None = None
    endpoint: str | None = None
    region: str | None = None
    format: Format | None = None
    replay: bool = False
    """As of `FilesSource`."""


class CreateTopic(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a topic is made that is not there."""

    partitions: int = 1
    replication: int = -1
    """-1: the broker's default (KIP-464)."""
    config: dict[str, str] = {}


class KafkaSink(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="kafka"):
    """One topic. Records are keyed by their input's key and carry its headers.

    `create`: make the topic where it is missing; else a missing topic stops the run before it starts.
    `progress_topic`: the compacted topic of the lanes' progress; made where it is missing.
    `too_large`: what becomes of a result over the topic's `max.message.bytes`: a dead letter, or an object below an
    `s3://bucket/prefix/` (`?endpoint=…` behind it) with a pointer in its place.
    `reply_to`: of results; what the source allows. It stands here too, since whoever reads the results must know it,
    and a replay has another source.
    """

    commit_ms: ClassVar[int] = 200
    topic: str
    bootstrap: str | None = None
    connection: str | Connection | None = None
    create: CreateTopic | bool = False
    progress_topic: str = "penstock-progress"
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "none"
    format: Literal["json", "avro"] = "json"
    too_large: str = DEAD_LETTER
    reply_to: tuple[str, ...] = ()


class S3Sink(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="s3"):
    """A prefix of parts and a manifest (it ends in `/`), or one object in input order (any other key).

    `partition_by`: folders in Hive form below the prefix: `date` (when the item finished, UTC), `tier`, `task`,
    `model`, or a kept column.
    """

    commit_ms: ClassVar[int] = 2000
    """A commit is two small puts, which S3's list price makes 0.001 cents."""
    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    format: Literal["jsonl", "parquet"] | None = None
    partition_by: tuple[str, ...] = ()
    sse: Literal["AES256", "aws:kms"] | None = None
    sse_kms_key_id: str | None = None


SourceSettings = FilesSource | KafkaSource | S3Source | MemorySource
SinkSettings = FilesSink | KafkaSink | S3Sink | MemorySink


def is_endless(source: SourceSettings) -> bool:
    """Its input grows for as long as anybody reads: a run of it ends only when it is told to."""
    match source:
        case KafkaSource() | MemorySource():
            return source.until == "forever"
        case FilesSource() | S3Source():
            return False


def with_replies(source: SourceSettings, sinks: dict[SinkName, SinkSettings]) -> dict[SinkName, SinkSettings]:
    """What the source allows for results, known to their sink: a replay of dead letters reads a file."""
    results = sinks.get("results")
    if not isinstance(source, KafkaSource) or not isinstance(results, KafkaSink):
        return sinks
    return {**sinks, "results": msgspec.structs.replace(results, reply_to=source.reply_to)}


class Row(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a plain row becomes an item. Values are Jinja2 templates."""

    id: str | None = None
    keep: tuple[str, ...] | None = None
    """Columns carried to the result; None: all that fit in 64 kB."""
    attributes: dict[str, str] = {}
