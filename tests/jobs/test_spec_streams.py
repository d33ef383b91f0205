"""Kafka and S3 in the job file: connections, URLs, what is checked, and what `validate` says of them."""
# ruff: noqa: E501 - the tables of mistakes read better with one mistake a line

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from penstock.connectors.kafka.place import KafkaPlace
from penstock.connectors.settings import (
    Connection,
    CreateTopic,
    FilesSource,
    KafkaSink,
    KafkaSource,
    S3Sink,
    S3Source,
    SinkSettings,
    SourceSettings,
)
from penstock.engine.errors import SpecError
from penstock.jobs import replay, spec
from penstock.workers.runspec import RunSpec

LOCAL = Connection("127.0.0.1:9092")
CATALOG = """\
connections:
  shop:
    bootstrap: "k1.test:9093, k2.test:9093"
    security_protocol: SASL_SSL
    sasl_mechanism: SCRAM-SHA-512
    sasl_username: penstock
    sasl_password: env:SHOP_KAFKA
    ssl_ca_location: /etc/kafka/ca.pem
    schema_registry: https://registry.test
    schema_registry_auth: env:SHOP_REGISTRY
"""
JOB = """\
catalog: catalog.yaml
prompt: "{{ text }}"
models: [sandbox/a]
source: {type: kafka, connection: shop, topics: [requests], until: end}
sinks: {results: {type: kafka, connection: shop, topic: results, create: {partitions: 3}}}
"""
SOURCE = "source: {type: kafka, connection: shop, topics: [requests], until: end}"
SINKS = "sinks: {results: {type: kafka, connection: shop, topic: results, create: {partitions: 3}}}"


def load(folder: Path, text: str) -> RunSpec:
    (folder / "catalog.yaml").write_text(CATALOG)
    (folder / "job.yaml").write_text(text)
    return spec.load(folder / "job.yaml")


def refused(folder: Path, text: str) -> str:
    with pytest.raises(SpecError) as caught:
        load(folder, text)
    return str(caught.value).removeprefix(f"{folder}/")


def with_source(source: str) -> str:
    return JOB.replace(SOURCE, f"source: {source}")


def with_sinks(sinks: str) -> str:
    return JOB.replace(SINKS, f"sinks: {sinks}")


def test_a_named_connection_reaches_source_and_sinks_whole(tmp_path: Path) -> None:
    """Workers get the connection itself: its brokers, its files absolute, its secrets as names."""
    made = load(tmp_path, JOB)
    connection = Connection(
        bootstrap="k1.test:9093,k2.test:9093",
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username="penstock",
        sasl_password="env:SHOP_KAFKA",
        ssl_ca_location="/etc/kafka/ca.pem",
        schema_registry="https://registry.test",
        schema_registry_auth="env:SHOP_REGISTRY",
    )
    assert made.source == KafkaSource(
        topics=("requests",), bootstrap=connection.bootstrap, connection=connection, until="end"
    )
    assert made.on_duplicate == "allow"
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=RunSpec) == made


def test_topics_for_replies_are_known_to_the_results_and_to_their_replay(tmp_path: Path) -> None:
    """Whoever reads the results must read them too, and a replay, whose source is a file, replies there."""
    made = load(tmp_path, with_source("{type: kafka, connection: shop, topics: [requests], reply_to: [a, b]}"))
    assert {sink: getattr(settings, "reply_to", ()) for sink, settings in made.sinks.items()} == {
        "results": ("a", "b"), "costs": (), "quality": (), "dead_letters": ()
    }  # fmt: skip
    again = replay.again(made, 1, FilesSource(str(tmp_path / "letters.jsonl"), replay=True), generation=1, batch=False)
    place = KafkaPlace({"results": again.sinks["results"]}, again.run_id)  # type: ignore[dict-item]
    assert place.settings.reply_to == ("a", "b")


def test_a_certificates_path_starts_from_the_file_that_names_it(tmp_path: Path) -> None:
    """As every path of a job file or catalogue does."""
    given = "{bootstrap: 'b:9092', security_protocol: SSL, ssl_ca_location: certs/ca.pem}"
    source = load(tmp_path, with_source(f"{{type: kafka, connection: {given}, topics: [a]}}")).source
    assert isinstance(source, KafkaSource)
    assert isinstance(source.connection, Connection)
    assert source.connection.ssl_ca_location == f"{tmp_path}/certs/ca.pem"


def test_unnamed_topics_stand_beside_the_results_on_their_cluster(tmp_path: Path) -> None:
    """`results` → `results.costs`: the same connection, made in the same way."""
    sinks = load(tmp_path, JOB).sinks
    results = sinks["results"]
    assert isinstance(results, KafkaSink)
    assert results.create == CreateTopic(partitions=3)
    for name in ("costs", "quality", "dead_letters"):
        assert sinks[name] == msgspec.structs.replace(results, topic=f"results.{name}")


def test_large_results_go_to_a_folder_of_any_s3(tmp_path: Path) -> None:
    url = "s3://bucket/large/?endpoint=http://127.0.0.1:7070"
    made = load(tmp_path, with_sinks(f"{{results: {{type: kafka, connection: shop, topic: r, too_large: '{url}'}}}}"))
    results = made.sinks["results"]
    assert isinstance(results, KafkaSink)
    assert results.too_large == url


def test_kafka_urls_read_as_source_and_sink(tmp_path: Path) -> None:
    """The short form: brokers, a slash, a topic."""
    made = load(
        tmp_path,
        with_source("kafka://localhost:9092,[::1]:9093/in").replace(SINKS, "sinks: kafka://127.0.0.1:9092/out"),
    )
    assert made.source == KafkaSource(
        topics=("in",), bootstrap="localhost:9092,[::1]:9093", connection=Connection("localhost:9092,[::1]:9093")
    )
    assert made.sinks["results"] == KafkaSink("out", "127.0.0.1:9092", LOCAL)
    assert made.sinks["costs"] == KafkaSink("out.costs", "127.0.0.1:9092", LOCAL)


@pytest.mark.parametrize(
    ("url", "read"),
    [
        ("s3://inbox", S3Source("inbox")),
        ("s3://inbox/2026/11/", S3Source("inbox", "2026/11/")),
        ("s3://inbox/a.jsonl.gz", S3Source("inbox", "a.jsonl.gz")),
        ("s3://inbox/in/2026-*/x/*.jsonl", S3Source("inbox", "in/", "2026-*/x/*.jsonl")),
        ("s3://inbox/*.csv", S3Source("inbox", "", "*.csv")),
        ("s3://inbox/in/[ab]?/**", S3Source("inbox", "in/", "[ab]?/**")),
    ],
)
def test_s3_urls_read_as_a_prefix_and_a_pattern(tmp_path: Path, url: str, read: S3Source) -> None:
    """A glob is listed from the last slash in front of its first wildcard."""
    assert load(tmp_path, with_source(f'"{url}"').replace(SINKS, "sinks: out/")).source == read


def test_unnamed_objects_stand_beside_the_results(tmp_path: Path) -> None:
    """A prefix has prefixes beside it, an object objects; partitions are the results' own."""
    made = load(
        tmp_path,
        with_sinks(
            "{results: {type: s3, bucket: outbox, prefix: labels/, format: parquet, endpoint: 'http://127.0.0.1:7070', partition_by: [date, shop]}}\nshape: rows"
        ),
    )
    at = {"endpoint": "http://127.0.0.1:7070"}
    assert made.sinks["costs"] == S3Sink("outbox", "labels.costs/", format="parquet", **at)
    assert made.sinks["dead_letters"] == S3Sink("outbox", "labels.dead_letters/", **at)
    made = load(tmp_path, with_sinks("s3://outbox/labels.parquet\nshape: rows"))
    assert made.sinks["results"] == S3Sink("outbox", "labels.parquet")
    assert made.sinks["costs"] == S3Sink("outbox", "labels.costs.parquet")
    assert made.sinks["dead_letters"] == S3Sink("outbox", "labels.dead_letters.jsonl")


def test_an_authority_may_be_a_registrys_alone(tmp_path: Path) -> None:
    """Brokers without TLS, and a registry with a company's own certificate."""
    given = "{bootstrap: 'b:1', schema_registry: 'https://registry.test', ssl_ca_location: ca.pem}"
    source = with_source(f"{{type: kafka, connection: {given}, topics: [a], format: avro}}")
    made = load(tmp_path, source).source
    assert isinstance(made, KafkaSource)
    assert isinstance(made.connection, Connection)
    assert made.connection.ssl_ca_location == str(tmp_path / "ca.pem")
    assert "says nothing without `security_protocol: SSL`" in refused(tmp_path, source.replace("https", "http"))


@pytest.mark.parametrize(
    ("start", "read"),
    [
        ("latest", "latest"),
        ("group:old-consumer", "group:old-consumer"),
        ("2026-11-24", "2026-11-24T00:00:00+00:00"),
        ("2026-11-24T13:00:00Z", "2026-11-24T13:00:00+00:00"),
        ("2026-11-24T13:00:00+01:00", "2026-11-24T12:00:00+00:00"),
    ],
)
def test_a_start_is_a_word_a_group_or_a_time(tmp_path: Path, start: str, read: str) -> None:
    """Times are told in UTC: the same record for everybody."""
    source = load(tmp_path, with_source(f"{{type: kafka, connection: shop, topics: [a], start: '{start}'}}")).source
    assert isinstance(source, KafkaSource)
    assert source.start == read
    assert source.until == "forever"


SOURCES = {
    "no cluster": ("{type: kafka, topics: [a]}", "source: which cluster? Say `bootstrap:"),
    "two clusters": ("{type: kafka, bootstrap: 'b:1', connection: shop, topics: [a]}", "source.bootstrap: stands beside `connection:`"),
    "unknown connection": ("{type: kafka, connection: shp, topics: [a]}", "source.connection: no connection `shp`; did you mean `shop`?"),
    "no topics": ("{type: kafka, connection: shop}", "source: wants exactly one of `topics:"),
    "topics and pattern": ("{type: kafka, connection: shop, topics: [a], pattern: b}", "source: wants exactly one of `topics:"),
    "bad topic": ("{type: kafka, connection: shop, topics: ['a b']}", "source.topics[0]: a topic's name has 1 to 249"),
    "topic twice": ("{type: kafka, connection: shop, topics: [a, b, a]}", "source.topics[2]: `a` stands here twice"),
    "topics as text": ("{type: kafka, connection: shop, topics: a}", "source.topics: expected a list, found text"),
    "bad pattern": ("{type: kafka, connection: shop, pattern: 'a('}", "source.pattern: not a valid regular expression"),
    "long pattern": (f"{{type: kafka, connection: shop, pattern: '{'a' * 1001}'}}", "source.pattern: a pattern has 1 to 1,000"),
    "bad start": ("{type: kafka, connection: shop, topics: [a], start: erliest}", "source.start: expected earliest, latest, a time"),
    "no group": ("{type: kafka, connection: shop, topics: [a], start: 'group:'}", "source.start: a group's name has 1 to 249"),
    "begun from its own progress": ("{type: kafka, connection: shop, topics: [a], group: old, start: 'group:old'}", "source.group: `start:` reads where `old` stands, and the run would write its own progress there"),
    "bad until": ("{type: kafka, connection: shop, topics: [a], until: ends}", "source.until: `ends` is not known here; did you mean `end`?"),
    "no port": ("{type: kafka, bootstrap: broker, topics: [a]}", "source.bootstrap: expected host:port"),
    "password in an address": ("kafka://user:hunter2@broker:9092/a", "source: expected host:port"),
    "no topic in the URL": ("kafka://broker:9092", "source: write kafka://host:port/topic"),
    "registry": ("{type: kafka, bootstrap: 'b:1', topics: [a], format: avro}", "source.format: `avro` goes with a schema registry"),
    "reads its results": ("{type: kafka, connection: shop, topics: [results]}", "sinks.results: results would be written to the topic `results`, which the source reads"),
    "reads its costs": ("{type: kafka, connection: shop, pattern: 'res.*costs'}", "sinks: costs would be written to the topic `results.costs`, which the source reads"),
    "reads its progress": ("{type: kafka, connection: shop, topics: [penstock-progress]}", "progress is kept in the topic `penstock-progress`, which the source reads"),
    "the same cluster by address": ("{type: kafka, bootstrap: 'k2.test:9093', topics: [results]}", "which the source reads"),
    "replies into the source": ("{type: kafka, connection: shop, topics: [a], reply_to: [a]}", "source.reply_to[0]: `a` is a topic that the source reads"),
    "replies into the costs": ("{type: kafka, connection: shop, topics: [a], reply_to: [b, results.costs]}", "source.reply_to[1]: `results.costs` is the topic of the costs; replies need one of their own"),
    "replies into the letters": ("{type: kafka, connection: shop, topics: [a], reply_to: [results.dead_letters]}", "source.reply_to[0]: `results.dead_letters` is the topic of the dead_letters"),
    "replies into the progress": ("{type: kafka, connection: shop, topics: [a], reply_to: [penstock-progress]}", "source.reply_to[0]: `penstock-progress` is the topic of the progress"),
    "bucket": ("s3://in/x", "source: a bucket's name has 3 or more letters"),
    "key": ("s3://inbox//x", "source: a key has at most 1,024 printable bytes, no / in front"),
    "password in an endpoint": ("{type: s3, bucket: inbox, endpoint: 'http://a:hunter2@x.test'}", "source.endpoint: holds a user name or password"),
    "no range": ("s3://inbox/[z-a]*", "source.pattern: the pattern '[z-a]*' is no glob"),
    "empty brackets": ("{type: s3, bucket: inbox, pattern: 'a[!]x'}", "source.pattern: the pattern 'a[!]x' is no glob"),
    "empty pattern": ("{type: s3, bucket: inbox, pattern: ''}", "source.pattern: expected a glob"),
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_that_cannot_be_read_is_refused_at_its_line(name: str, tmp_path: Path) -> None:
    """One mistake each, on line 4."""
    source, message = SOURCES[name]
    told = refused(tmp_path, with_source(source))
    assert message in told
    assert told.startswith("job.yaml:5:" if "which the source reads" in message else "job.yaml:4:")
    assert "hunter2" not in told


SINK = "results: {type: kafka, connection: shop, topic: results"
OBJECT = "results: {type: s3, bucket: outbox, "
WRITTEN = {
    "bad topic": ("kafka://b:9092/a/b", "sinks: a topic's name has 1 to 249"),
    "topic of the progress": ("{results: {type: kafka, bootstrap: 'b:1', topic: penstock-progress}}", "sinks.results.topic: `penstock-progress` is the topic of the progress"),
    "progress twice": (f"{{{SINK}}}, costs: {{type: kafka, connection: shop, topic: c, progress_topic: p}}}}", "share their `progress_topic:`"),
    "into the progress": (f"{{{SINK}}}, costs: {{type: kafka, connection: shop, topic: penstock-progress, progress_topic: p}}}}", "`progress_topic:`"),
    "no partitions": (f"{{{SINK}, create: {{partitions: 0}}}}}}", "sinks.results.create.partitions: expected 1 or more"),
    "unknown field": (f"{{{SINK}, create: {{partition: 1}}}}}}", "sinks.results.create.partition: unknown field; did you mean `partitions`?"),
    "elsewhere": (f"{{{SINK}, too_large: 's3://bucket/x'}}}}", "sinks.results.too_large: expected `dead_letter` or s3://bucket/prefix/"),
    "the same topic": (f"{{{SINK}}}, costs: {{type: kafka, connection: shop, topic: results}}}}", "sinks.costs: the same place as `results`"),
    "the same topic by address": ("{results: {type: kafka, bootstrap: 'localhost:9092', topic: out}, costs: {type: kafka, bootstrap: '127.0.0.1:9092,b:9092', topic: out}}", "sinks.costs: the same topic as `results`"),
    "replies at the sink": (f"{{{SINK}, reply_to: [a]}}}}", "sinks.results.reply_to: which topics a record may name is said at the source"),
    "avro": ("{results: {type: kafka, bootstrap: 'b:1', topic: a, format: avro}}", "sinks.results.format: `avro` goes with a schema registry"),
    "avro letters": ("{results: {type: kafka, bootstrap: 'b:1', topic: a}, dead_letters: {type: kafka, bootstrap: 'b:1', topic: d, format: avro}}", "a dead letter is its input's own bytes"),
    "avro and objects": ("{results: {type: kafka, bootstrap: 'b:1', topic: a, format: avro, too_large: 's3://big/large/'}}", "only JSON records can point to an object"),
    "whole bucket": ("s3://outbox", "sinks: name a prefix (`labels/`) or an object"),
    "no suffix": ("s3://outbox/labels", "sinks: an object's name says its format (.jsonl, .parquet); a prefix of parts ends in `/`"),
    "packed": ("s3://outbox/labels.jsonl.gz", "sinks are written uncompressed"),
    "wild": ("s3://outbox/*.jsonl", "no wildcards in the name of what is written"),
    "parts of one object": (f"{{{OBJECT}prefix: a.parquet, partition_by: [date]}}}}", "sinks.results.partition_by: parts a prefix"),
    "unknown part": (f"{{{OBJECT}prefix: a/, partition_by: [dat]}}}}\nrow: {{keep: [shop]}}", "sinks.results.partition_by[0]: can't part by `dat` (or a column of `row.keep`); did you mean `date`?"),
    "a column of the costs": ("{results: out/, costs: {type: s3, bucket: outbox, prefix: c/, partition_by: [shop]}}", "sinks.costs.partition_by[0]: can't part by `shop`"),
    "part twice": (f"{{{OBJECT}prefix: a/, partition_by: [date, date]}}}}", "sinks.results.partition_by[1]: `date` stands here twice"),
    "compressed differently": (f"{{{SINK}}}, costs: {{type: kafka, connection: shop, topic: c, compression: gzip}}}}", "sinks.costs.compression: sinks of one cluster are written together"),
    "encrypted differently": (f"{{{OBJECT}prefix: a/, sse: AES256}}, costs: {{type: s3, bucket: outbox, prefix: c/}}}}", "sinks.costs: sinks of one bucket are encrypted alike"),
    "unknown option of a URL": (f"{{{SINK}, too_large: 's3://bucket/x/?ssee=AES256'}}}}", "`?ssee=` is not known here; did you mean `sse`?"),
    "unknown encryption": (f"{{{SINK}, too_large: 's3://bucket/x/?sse=AES128'}}}}", "`?sse=` is one of AES256, aws:kms"),
    "key of a URL without kms": (f"{{{SINK}, too_large: 's3://bucket/x/?sse=AES256&sse_kms_key_id=k'}}}}", "belongs to `?sse=aws:kms`"),
    "key without kms": (f"{{{OBJECT}prefix: a/, sse_kms_key_id: x}}}}", "sinks.results.sse_kms_key_id: belongs to `sse: aws:kms`"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_a_sink_that_cannot_be_written_is_refused_at_its_line(name: str, tmp_path: Path) -> None:
    """One mistake each, on line 5."""
    sinks, message = WRITTEN[name]
    told = refused(tmp_path, with_sinks(sinks))
    assert message in told
    assert told.startswith("job.yaml:5:")


@pytest.mark.parametrize(
    "sinks", ["out/labels.parquet", "out/labels.CSV", "s3://outbox/a.parquet", "{results: {type: files, path: out/, format: csv}}",
              "{results: {type: s3, bucket: outbox, prefix: a/, format: parquet}}"],
)  # fmt: skip
def test_a_table_of_a_topic_wants_to_know_its_shape(tmp_path: Path, sinks: str) -> None:
    """One request among a million rows would have no columns in their table."""
    told = refused(tmp_path, with_sinks(sinks))
    assert told.startswith("job.yaml:5:")
    assert "say which in a job file, with `shape: rows` or `shape: openai-batch`" in told
    load(tmp_path, with_sinks(sinks) + "shape: rows\n")
    load(tmp_path, with_sinks(sinks).replace("until: end", "until: end, format: jsonl"))


def test_a_command_that_has_no_word_for_the_shape_is_told_of_the_job_file() -> None:
    """`penstock run kafka://… -o labels.parquet`"""
    with pytest.raises(SpecError, match="say which in a job file, with `shape: rows`"):
        spec.inline("kafka://127.0.0.1:9092/in", "{{ text }}", ["sandbox/a"], "labels.parquet")


def test_lines_hold_either_shape(tmp_path: Path) -> None:
    """Only tables want one."""
    for sinks in ("out/", "out.jsonl", "s3://outbox/a/", "{results: out/, costs: costs.parquet}"):
        load(tmp_path, with_sinks(sinks))


@pytest.mark.parametrize(
    ("source", "sinks", "meet"),
    [
        ("s3://box/data/", "s3://box/data/out/", True),
        ("s3://box/data/", "s3://box/data/r.jsonl", True),
        ("s3://box", "s3://box/out/", True),
        ("s3://box/data/*.jsonl", "s3://box/data/r.jsonl", True),
        ("s3://box/data/**/*.jsonl", "s3://box/data/out/", True),
        ("s3://box/data/*/*.jsonl", "s3://box/data/out/", True),
        ("s3://box/data/*.jsonl", "s3://box/data/out/", False),
        ("s3://box/data/", "s3://box/data.out/", False),
        ("s3://box/data/", "s3://other/data/out/", False),
        ("s3://box/*.csv", "s3://box/r.jsonl", False),
    ],
)
def test_a_sink_inside_the_source_is_refused(tmp_path: Path, source: str, sinks: str, meet: bool) -> None:
    """The next run would read its own results."""
    text = with_source(f'"{source}"').replace(SINKS, f"sinks: {sinks}")
    if meet:
        assert "results would stand inside the source (s3://box/" in refused(tmp_path, text)
    else:
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("source", "state", "meet"),
    [
        ("s3://box", "s3://box/penstock", True),
        ("s3://box", "s3://box", True),
        ("s3://box/data/", "s3://box/data/state/", True),
        ("s3://box/data/**/*.json", "s3://box/data/state/", True),
        ("s3://box/data/**/*.csv", "s3://box/data/state/", False),
        ("s3://box", "s3://box/.penstock/", False),
        ("s3://box/data/", "s3://box/state/", False),
        ("s3://box/data/", "s3://other/data/state/", False),
        ("s3://box/data/", "s3://box/data/state/?endpoint=http://minio:9000", False),
    ],
)
def test_a_state_inside_the_source_is_refused(tmp_path: Path, source: str, state: str, meet: bool) -> None:
    """Its documents would be read as rows, and change while they are: the run would stop, or pay for them."""
    text = with_source(f'"{source}"').replace(SINKS, f"sinks: out.jsonl\nstate: {state}")
    if meet:
        assert "would stand inside the source (s3://box/" in refused(tmp_path, text)
    else:
        load(tmp_path, text)


CONNECTIONS = {
    "a written password": ("sasl_password: hunter2", "connections.c.sasl_password: name the key, never write it"),
    "a written token": ("sasl_oauth_token: hunter2", "connections.c.sasl_oauth_token: name the key"),
    "login on an open port": ("sasl_username: me", "connections.c.sasl_username: says nothing to a broker without `security_protocol: SASL_SSL`"),
    "no mechanism": ("security_protocol: SASL_SSL", "connections.c: `SASL_SSL` wants a `sasl_mechanism:`"),
    "no user": ("security_protocol: SASL_SSL, sasl_mechanism: PLAIN", "`sasl_mechanism: PLAIN` wants a `sasl_username:`"),
    "half a flow": ("security_protocol: SASL_SSL, sasl_mechanism: OAUTHBEARER, sasl_oauth_client_id: me", "wants a `sasl_oauth_token:`, or an endpoint with client id and secret; `sasl_oauth_endpoint` is missing"),
    "certificate on an open port": ("ssl_ca_location: ca.pem", "connections.c.ssl_ca_location: says nothing without"),
    "key without a certificate": ("security_protocol: SSL, ssl_key_location: k.pem", "a key without its `ssl_certificate_location:`"),
    "registry's key alone": ("schema_registry_auth: env:X", "stands without `schema_registry:`"),
    "password in the registry": ("schema_registry: 'https://me:hunter2@r.test'", "holds a user name or password"),
    "unknown protocol": ("security_protocol: SASL_TLS", "`SASL_TLS` is not known here; did you mean"),
    "unknown field": ("sasl_pasword: env:X", "unknown field; did you mean `sasl_password`?"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONNECTIONS)
def test_a_connection_that_cannot_connect_is_refused_at_its_line(name: str, tmp_path: Path) -> None:
    """In the job file, line 6; nothing that was written in a secret's place is repeated."""
    given, message = CONNECTIONS[name]
    told = refused(tmp_path, JOB + f"connections: {{c: {{bootstrap: 'b:9092', {given}}}}}\n")
    assert message in told
    assert told.startswith("job.yaml:6:")
    assert "hunter2" not in told


def test_a_mistake_in_the_catalogues_connections_names_the_catalogue(tmp_path: Path) -> None:
    """File and line are those of the file that is wrong; a job can't bend the company's cluster."""
    bad = CATALOG.replace("env:SHOP_KAFKA", "hunter2")
    (tmp_path / "bad.yaml").write_text(bad)
    told = refused(tmp_path, JOB.replace("catalog.yaml", "bad.yaml"))
    assert told.startswith("bad.yaml:7: connections.shop.sasl_password: name the key")
    with pytest.raises(SpecError, match="name the key"):
        spec.load_catalog(tmp_path / "bad.yaml")
    told = refused(tmp_path, JOB + "connections: {shop: {bootstrap: 'evil.test:9092'}}\n")
    assert "job.yaml:6: connections.shop: this connection is defined twice" in told


def test_missing_secrets_count_a_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the job uses, each once."""
    monkeypatch.delenv("SHOP_KAFKA", raising=False)
    monkeypatch.setenv("SHOP_REGISTRY", "x")
    made = load(
        tmp_path, JOB + "connections: {unused: {bootstrap: 'b:1', security_protocol: SSL, ssl_key_password: env:NO}}\n"
    )
    assert spec.missing_secrets(made) == ["env:SHOP_KAFKA"]


def test_a_password_on_an_open_line_is_warned_of(tmp_path: Path) -> None:
    """Not where it stays on this machine."""
    login = "security_protocol: SASL_PLAINTEXT, sasl_mechanism: PLAIN, sasl_username: me, sasl_password: env:X"
    text = "source: {{type: kafka, connection: {{bootstrap: '{}', " + login + "}}, topics: [a]}}"
    far = load(tmp_path, JOB.replace(SOURCE, text.format("k.test:9092")))
    near = load(tmp_path, JOB.replace(SOURCE, text.format("127.0.0.1:9092")))
    assert any("Kafka at k.test:9092: the password would travel unencrypted" in told for told in spec.warnings(far))
    assert not any("unencrypted" in told for told in spec.warnings(near))
    assert any("state is a folder of this machine: fine for one machine" in told for told in spec.warnings(near))
    shared = load(tmp_path, JOB + "state: 's3://box/state?endpoint=http://127.0.0.1:7070&region=eu-central-1'\n")
    assert shared.state == "s3://box/state?endpoint=http://127.0.0.1:7070&region=eu-central-1"
    assert not any("state is a folder" in told for told in spec.warnings(shared))


def test_files_of_an_input_without_an_end_are_told_to_come_late(tmp_path: Path) -> None:
    source = "source: {type: kafka, bootstrap: 'k.test:9092', topics: [a]%s}"
    filed = JOB[: JOB.index("sinks:")] + "sinks: out.jsonl\n"
    for until, told in (("", True), (", until: end", False)):
        made = load(tmp_path, filed.replace(SOURCE, source % until))
        assert any("files are written when the run is stopped" in note for note in spec.warnings(made)) == told


def test_validate_says_what_is_read_and_where_it_goes(tmp_path: Path) -> None:
    """Cluster, topic, from where to where; bucket, prefix, endpoint, partitions."""
    lines = dict(spec.describe(load(tmp_path, JOB)))
    assert lines["source"] == "kafka://k1.test:9093,k2.test:9093/requests"
    assert lines["reads"] == "from earliest, to what is there when the run is planned"
    assert lines["sink results"] == "kafka://k1.test:9093,k2.test:9093/results (made where it is missing)"
    assert "env:" not in str(lines)
    text = with_source("{type: s3, bucket: inbox, prefix: in/, pattern: '*.jsonl', endpoint: 'http://127.0.0.1:7070'}")
    text = text.replace(SINKS, "sinks: {results: {type: s3, bucket: outbox, prefix: out/, partition_by: [date]}}")
    lines = dict(spec.describe(load(tmp_path, text)))
    assert lines["source"] == "s3://inbox/in/*.jsonl at http://127.0.0.1:7070"
    assert lines["sink results"] == "s3://outbox/out/ (parted by date)"
    forever = load(
        tmp_path, with_source("{type: kafka, connection: shop, pattern: 'orders-.*', start: 'group:old', order: key}")
    )
    lines = dict(spec.describe(forever))
    assert lines["source"] == "kafka://k1.test:9093,k2.test:9093/topics like orders-.*"
    assert lines["reads"] == "from where group old is, and goes on for ever; records of one key one after another"


@pytest.mark.parametrize("source", ["s3://inbox/a.csv", "'s3://inbox/in/*.parquet'", "{type: s3, bucket: inbox, format: csv}",
                                    "{type: kafka, connection: shop, topics: [a], format: avro}"])  # fmt: skip
def test_rows_of_a_table_need_a_prompt_wherever_they_are(tmp_path: Path, source: str) -> None:
    """A CSV row in a bucket is no request either, nor is an Avro record."""
    text = with_source(source).replace('prompt: "{{ text }}"', "sample: 0")
    assert "rows of a table need a `prompt:`" in refused(tmp_path, text)


def test_labels_of_an_endless_topic_are_not_looked_through(tmp_path: Path) -> None:
    """The first of equal labels is known only where there is a last record."""
    endless = with_source("kafka://b:9092/a") + "on_duplicate: dead_letter\n"
    assert "job.yaml:6: on_duplicate: labels of a stream without an end" in refused(tmp_path, endless)
    assert load(tmp_path, JOB + "on_duplicate: dead_letter\n").on_duplicate == "dead_letter"


def test_streams_are_in_the_schema() -> None:
    """An editor completes them."""
    defs = spec.schema()["$defs"]
    assert {"KafkaSource", "KafkaSink", "S3Source", "S3Sink", "Connection", "CreateTopic"} <= set(defs)
    assert "connections" in defs["JobFile"]["properties"]


GOLDEN = Path(__file__).parents[1] / "golden" / "spec_streams.json"


class _Kept(msgspec.Struct):
    run_id: str
    fingerprint: dict[str, str]
    source: SourceSettings
    sinks: dict[str, SinkSettings]


def test_an_upgrade_changes_no_run_over_streams(tmp_path: Path) -> None:
    """What history keeps of a run is read by a newer Penstock, and means the same. (Penned once; where this fails, mend
    the code, not the file.)"""
    sinks = SINKS.replace("}}}", "}}, dead_letters: 's3://outbox/dead/'}")
    made = load(tmp_path, "name: label-stream\n" + JOB.replace(SINKS, sinks))
    kept = _Kept(made.run_id, made.fingerprint, made.source, dict(made.sinks))
    assert kept == msgspec.json.decode(GOLDEN.read_bytes(), type=_Kept)
