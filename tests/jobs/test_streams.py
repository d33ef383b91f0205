"""`penstock publish` and `penstock tail` against a real Kafka: what goes in comes out, once, in order, readable."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from penstock.connectors.kafka.client import new_producer, opened
from penstock.connectors.kafka.records import Row
from penstock.connectors.kafka.topics import TopicFacts
from penstock.connectors.settings import Connection
from penstock.connectors.writing.records import Encoder
from penstock.engine.errors import SpecError, Temporary
from penstock.engine.results import DeadLetter
from penstock.jobs import cli, preview, trial
from penstock.jobs import spec as job_spec
from penstock.jobs.commands import stream
from penstock.jobs.dev.kafka import KafkaServer
from penstock.jobs.forecasting.forecast import exactly
from penstock.jobs.forecasting.planning import make_plan
from penstock.jobs.result import JobResult
from penstock.jobs.streams import lines, publishing, tailing, where
from penstock.jobs.streams.tailing import Seen
from penstock.workers.status import RunStatus

NewTopic = Callable[..., Awaitable[str]]


def call(*words: str) -> Result:
    return CliRunner().invoke(cli.cli, list(words), standalone_mode=False)


def told(kafka: KafkaServer, topic: str, count: int, *words: str) -> list[dict[str, object]]:
    """What `tail --json` says of the first records, as JSON."""
    done = call("tail", topic, "--bootstrap", kafka.bootstrap, "--from-start", "-n", str(count), "--json", *words)
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
async def topic(new_topic: NewTopic) -> str:
    return await new_topic("rows")


def rows(path: Path, count: int) -> Path:
    path.write_text(
        "".join(json.dumps({"id": n, "shop": f"s{n % 3}", "text": f"row {n}"}) + "\n" for n in range(count))
    )
    return path


@pytest.mark.kafka
def test_rows_of_a_file_arrive_untouched_and_in_order(kafka_server: KafkaServer, topic: str, tmp_path: Path) -> None:
    """JSON lines go byte for byte; the summary says how many and how fast."""
    file = rows(tmp_path / "a.jsonl", 5_000)
    done = call("publish", str(file), "--topic", topic, "--bootstrap", kafka_server.bootstrap)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"5,000 records to {topic} in ")
    assert "MB/s" in done.stdout
    seen = told(kafka_server, topic, 5_000)
    assert [record["value"] for record in seen] == [json.loads(line) for line in file.read_text().splitlines()]
    assert [record["offset"] for record in seen] == list(range(5_000))


@pytest.mark.kafka
async def test_tables_become_objects_with_keys_and_headers(
    kafka_server: KafkaServer, new_topic: NewTopic, tmp_path: Path
) -> None:
    """One key, one partition; a number is a key as JSON writes it; headers stand on every record."""
    topic = await new_topic("keyed", partitions=3)
    (tmp_path / "a.csv").write_text("id,shop,text\n" + "".join(f"{n},s{n % 5},hello {n}\n" for n in range(50)))
    done = _in_process(
        "publish", str(tmp_path / "a.csv"), "--topic", topic, "--bootstrap", kafka_server.bootstrap, "--key", "shop",
        "--header", "penstock-tenant=acme", "--header", "note=a=b", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["records"] == 50
    read = _in_process("tail", f"kafka://{kafka_server.bootstrap}/{topic}", "--from-start", "-n", "50", "--json")
    seen = [json.loads(line) for line in read.stdout.splitlines()]
    assert {record["value"]["text"] for record in seen} == {f"hello {n}" for n in range(50)}
    assert all(record["key"] == record["value"]["shop"] for record in seen)
    assert all(record["headers"] == {"penstock-tenant": "acme", "note": "a=b"} for record in seen)
    partitions = {(record["key"], record["partition"]) for record in seen}
    assert len(partitions) == 5


def _in_process(*words: str) -> subprocess.CompletedProcess[str]:
    """As a person calls it."""
    command = [sys.executable, "-m", "penstock.jobs.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.kafka
def test_a_record_that_a_topic_cannot_take_is_told_and_the_others_go(
    kafka_server: KafkaServer, topic: str, tmp_path: Path
) -> None:
    """Nothing is lost without a word: exit code 5 and the record's place."""
    file = tmp_path / "a.jsonl"
    file.write_text(f'{{"n": 1}}\n{{"n": "{"x" * 2_000_000}"}}\n{{"n": 3}}\n')
    done = call("publish", str(file), "--topic", topic, "--bootstrap", kafka_server.bootstrap)
    assert done.return_value == 5
    assert "1 were not published" in done.stderr
    assert "max.message.bytes" in done.stderr
    assert [record["value"] for record in told(kafka_server, topic, 2)] == [{"n": 1}, {"n": 3}]


@pytest.mark.kafka
def test_a_line_that_has_no_columns_has_no_key_and_the_others_go(
    kafka_server: KafkaServer, topic: str, tmp_path: Path
) -> None:
    """A broken line in the middle of a file is told, as one that is too large is, and cuts off nothing."""
    file = tmp_path / "a.jsonl"
    file.write_text('{"n": 1, "shop": "a"}\nnot json\n{"n": 3, "shop": "b"}\n')
    done = call("publish", str(file), "--topic", topic, "--bootstrap", kafka_server.bootstrap, "--key", "shop")
    assert done.return_value == 5
    assert "--key shop: it is no JSON object" in done.stderr
    assert done.stdout.startswith(f"2 records to {topic} in ")
    assert "records/s" not in done.stdout
    assert [record["key"] for record in told(kafka_server, topic, 2)] == ["a", "b"]


async def test_a_row_of_a_table_that_cannot_be_read_is_told_and_the_others_go(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It has no columns to make an object of: its bare text would be a record that no reader of the topic knows."""
    sent = list[Row]()

    async def there(_: object) -> TopicFacts:
        return TopicFacts("rows", 1, 1_000_000, "delete")

    @asynccontextmanager
    async def as_it_is(producer: object, _: object) -> AsyncGenerator[object]:
        yield producer

    async def send(_: object, __: object, found: list[Row], ___: object) -> None:
        sent.extend(found)

    for name, stand_in in {"_topic": there, "opened": as_it_is, "_send": send}.items():
        monkeypatch.setattr(publishing, name, stand_in)
    monkeypatch.setattr(publishing, "new_producer", lambda *_, **__: None)
    file, done = tmp_path / "a.csv", publishing.Published()
    file.write_text('n,text\n1,hi\n2,one,too many\n3,"ho\n')
    await publishing.publish(publishing.Order(str(file), "rows", Connection("k:1")), done, lambda _: None)
    assert [row.value for row in sent] == [b'{"n":"1","text":"hi"}']
    assert (done.skipped, "the row has 3 columns, the header has 2" in done.why[0]) == (2, True)


def test_the_line_that_counts_is_wiped_before_an_error_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def publish(order: publishing.Order, done: publishing.Published, show: Callable[..., None]) -> None:
        done.records = 2_000
        show(done)
        raise SpecError("no such column")

    monkeypatch.setattr(publishing, "publish", publish)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert cli.call(["publish", str(tmp_path), "--topic", "t", "--bootstrap", "127.0.0.1:1"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        "\r2,000 records\r" + " " * stream.COUNT_WIDTH + "\r2,000 records were published before this\n"
    )


@pytest.mark.kafka
def test_a_missing_topic_is_told_with_the_nearest_and_made_on_request(
    kafka_server: KafkaServer, topic: str, tmp_path: Path
) -> None:
    """A slip of the pen makes no topic."""
    file = rows(tmp_path / "a.jsonl", 3)
    to = ("--bootstrap", kafka_server.bootstrap)
    done = call("publish", str(file), "--topic", f"{topic}x", *to)
    assert isinstance(done.exception, SpecError)
    assert f"has no topic '{topic}x' that we may see; did you mean '{topic}'? (--create makes it)" in str(
        done.exception
    )
    missing = call("tail", f"{topic}x", *to)
    assert f"has no topic '{topic}x'" in str(missing.exception)
    assert call("publish", str(file), "--topic", f"{topic}x", *to, "--create").exit_code == 0
    assert len(told(kafka_server, f"{topic}x", 3)) == 3


@pytest.mark.kafka
def test_a_rate_holds_records_back(kafka_server: KafkaServer, topic: str, tmp_path: Path) -> None:
    """Ten records at 20 a second are not done before the last one's turn."""
    file = rows(tmp_path / "a.jsonl", 10)
    done = call(
        "publish", str(file), "--topic", topic, "--bootstrap", kafka_server.bootstrap, "--rate", "20/s", "--json"
    )
    assert json.loads(done.stdout)["seconds"] >= 0.5
    assert [record["value"]["id"] for record in told(kafka_server, topic, 10)] == list(range(10))  # type: ignore[index]


@pytest.mark.kafka
async def test_records_whose_fate_is_unknown_are_told_apart(kafka_server: KafkaServer, topic: str) -> None:
    """The brokers went away in the midst of a chunk: a number that is too low would make duplicates of whoever goes
    on by hand."""
    connection = Connection(kafka_server.bootstrap)
    order, done = publishing.Order("a.jsonl", topic, connection), publishing.Published()
    facts = TopicFacts(topic, 1, 1 << 20, "delete")
    sent = [Row(facts, None, b"%d" % n) for n in range(30)]
    async with opened(new_producer(connection, None), connection) as producer:
        await publishing._send(producer, order, sent[:20], done)  # pyright: ignore[reportPrivateUsage]
        assert publishing.before(done) == "20 records were published before this"
        await producer.stop()
        with pytest.raises(Temporary):
            await publishing._send(producer, order, sent[20:], done)  # pyright: ignore[reportPrivateUsage]
    assert (
        publishing.before(done) == "20 records were published before this; of the next 10, some or all may be there too"
    )


@pytest.mark.kafka
def test_a_key_that_is_no_column_is_refused_with_the_columns(
    kafka_server: KafkaServer, topic: str, tmp_path: Path
) -> None:
    """Before anything is sent."""
    file = rows(tmp_path / "a.jsonl", 3)
    done = call("publish", str(file), "--topic", topic, "--bootstrap", kafka_server.bootstrap, "--key", "shopp")
    assert "--key shopp: no such column at 0; there are id, shop, text" in str(done.exception)


def test_tail_of_a_job_follows_the_topics_for_replies_with_its_results(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Results stand in both; its costs only in their own topic."""
    asked: list[tuple[str, ...]] = []

    async def follow(_connection: Connection, *topics: str, from_start: bool) -> AsyncGenerator[list[Seen]]:
        asked.append(topics)
        yield [Seen(b"{}", topic) for topic in topics if from_start]

    monkeypatch.setattr(tailing, "follow", follow)
    (tmp_path / "job.yaml").write_text(
        'prompt: "{{ text }}"\n'
        "models: [sandbox/a]\n"
        "source: {type: kafka, bootstrap: 'k:1', topics: [requests], reply_to: [inbox, desk]}\n"
        "sinks: {results: {type: kafka, bootstrap: 'k:1', topic: results}}\n"
    )
    for sink, count in (("results", "3"), ("costs", "1")):
        done = call("tail", str(tmp_path / "job.yaml"), "--sink", sink, "--from-start", "-n", count, "--json")
        assert done.exit_code == 0, done.output
    assert asked == [("results", "inbox", "desk"), ("results.costs",)]


@pytest.mark.kafka
@pytest.mark.usefixtures("terminal")
def test_tail_shows_what_comes_and_ends_with_a_count(kafka_server: KafkaServer, topic: str, tmp_path: Path) -> None:
    """From the end on, unless told otherwise; Ctrl-C is no error."""
    to = ("--bootstrap", kafka_server.bootstrap)
    old = rows(tmp_path / "old.jsonl", 4)
    assert call("publish", str(old), "--topic", topic, *to).exit_code == 0
    command = [sys.executable, "-m", "penstock.jobs.cli", "tail", topic, *to, "--from-start"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        shown = [process.stdout.readline() for _ in range(4)]
        assert call("publish", str(rows(tmp_path / "new.jsonl", 1)), "--topic", topic, *to).exit_code == 0
        shown.append(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(30) == 0
    assert ['"text": "row' in line for line in shown] == [True] * 5
    assert f"5 records of {topic} in " in said


@pytest.mark.kafka
def test_a_connection_is_named_with_its_file(kafka_server: KafkaServer, topic: str, tmp_path: Path) -> None:
    """The same name as in the job file."""
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(f"connections: {{here: {{bootstrap: '{kafka_server.bootstrap}'}}}}\n")
    file = rows(tmp_path / "a.jsonl", 2)
    done = call("publish", str(file), "--topic", topic, "--connection", "here", "--job", str(catalog))
    assert done.exit_code == 0, done.output
    wrong = call("publish", str(file), "--topic", topic, "--connection", "her", "--job", str(catalog))
    assert "no connection `her`; did you mean `here`?" in str(wrong.exception)


@pytest.mark.kafka
async def test_a_trial_of_a_topic_shows_the_prompt_of_each_of_its_records(
    kafka_server: KafkaServer, new_topic: NewTopic, tmp_path: Path
) -> None:
    """Partitions come in any order, so those that the run read are not those that come first when it is looked up."""
    topic = await new_topic("rows", partitions=3)
    to = ("--topic", topic, "--bootstrap", kafka_server.bootstrap)
    file = rows(tmp_path / "a.jsonl", 30)
    assert (await asyncio.to_thread(call, "publish", str(file), *to, "--key", "id")).exit_code == 0
    (tmp_path / "job.yaml").write_text(
        f"source: {{type: kafka, bootstrap: '{kafka_server.bootstrap}', topics: [{topic}], until: end}}\n"
        'prompt: "Which? {{ text }}"\nmodels: [sandbox/fast]\nsinks: out.jsonl\n'
    )
    spec = trial.first(job_spec.load(tmp_path / "job.yaml"), 3)
    read = await asyncio.to_thread(preview.items, spec, 30)
    latest = {one.source.split: one for one in sorted(read, key=lambda one: one.source.position)}
    taken = list(latest.values())
    assert len(taken) == 3
    encoder = Encoder(spec.run_id, "rows")
    letters = [DeadLetter(one.item_id, one.source, "invalid_output", "none", b"{}") for one in taken]
    (tmp_path / "r.jsonl").touch()
    (tmp_path / "d.jsonl").write_bytes(b"".join(encoder.dead_letter(one) + b"\n" for one in letters))
    outputs = {"results": [str(tmp_path / "r.jsonl")], "dead_letters": [str(tmp_path / "d.jsonl")]}
    tried = JobResult(spec, RunStatus(spec.run_id, "job", "done", outputs=outputs))
    shown = await asyncio.to_thread(preview.first_rows, tried, 3)
    assert [row.prompt[0][1].startswith("Which? row") for row in shown if row.prompt] == [True] * 3


@pytest.mark.kafka
@pytest.mark.parametrize("whole_bytes", [32_000_000, 0])
def test_a_plan_samples_a_topic(
    kafka_server: KafkaServer, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_bytes: int
) -> None:
    """A small topic is counted, a large one is estimated from its offsets; one without an end is planned per 1,000
    items, and nothing is told that nobody can know."""
    monkeypatch.setattr("penstock.jobs.forecasting.sampling.WHOLE_BYTES", whole_bytes)
    to = ("--bootstrap", kafka_server.bootstrap)
    assert call("publish", str(rows(tmp_path / "a.jsonl", 3_000)), "--topic", topic, *to).exit_code == 0
    source = {"type": "kafka", "bootstrap": kafka_server.bootstrap, "topics": [topic], "until": "end"}
    job = {"source": source, "prompt": "{{ text }}", "models": ["sandbox/a"], "sinks": "out/", "budgets": {"usd": 9}}
    plan = make_plan(job_spec.from_mapping(job, tmp_path), sample=160)
    assert plan.rows_exact == bool(whole_bytes)
    assert plan.rows.low <= 3_000 <= plan.rows.high
    assert plan.sampled == 160
    assert 3_000 * 25 < plan.input_bytes < 3_000 * 60
    assert plan.per_items is None
    endless = make_plan(job_spec.from_mapping({**job, "source": {**source, "until": "forever", "start": "latest"}}))
    assert (endless.per_items, endless.rows, endless.seconds) == (1_000, exactly(1_000.0), None)
    (budget,) = endless.budgets
    assert "items; then the run stops" in budget.message


def test_options_that_name_no_cluster_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And without options: the Kafka of `penstock dev`, else the usual port."""
    monkeypatch.chdir(tmp_path)
    assert where.cluster(None, None, None).bootstrap == "127.0.0.1:9092"
    (tmp_path / ".penstock/dev").mkdir(parents=True)
    (tmp_path / ".penstock/dev/servers.json").write_text('{"kafka": {"port": 15000, "running": null}}')
    assert where.cluster(None, None, None).bootstrap == "127.0.0.1:15000"
    for options, message in (
        (("b:1", "shop", None), "name two clusters"),
        ((None, "shop", None), "needs --job FILE"),
        ((None, None, "job.yaml"), "--job names the file of --connection"),
        (("broker", None, None), "expected host:port"),
    ):
        with pytest.raises(SpecError, match=message):
            where.cluster(*options)


def test_a_tail_that_waits_says_for_what(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal: a command that shows nothing, of a topic that holds thousands, looks as if it hung."""

    async def watch(*_: object) -> None:
        return

    monkeypatch.setattr(stream, "_watch", watch)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    waits = "waiting for what comes to results from now on; --from-start shows what is there"
    for words, told in (((), True), (("--from-start",), False), (("--json",), False)):
        assert cli.call(["tail", "results", "--bootstrap", "127.0.0.1:1", *words]) == 0
        assert (waits in capsys.readouterr().err) == told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("tail", "s3://outbox/labels/"), "tail follows a topic; what a job wrote elsewhere: penstock tail JOB"),
        (("publish", "s3://inbox/a.jsonl", "--topic", "t"), "publish reads files of this machine"),
    ],
)
def test_another_kind_of_place_is_told_as_one(words: tuple[str, ...], message: str) -> None:
    """Not as a topic's name with a slash in it, nor as a file `./s3:/inbox/a.jsonl`."""
    assert message in str(call(*words).exception)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--topic", "a b"), "a topic's name has 1 to 249"),
        (("--topic", "a", "--rate", "fast"), "expected a number of records a second"),
        (("--topic", "a", "--header", "x"), "expected NAME=VALUE"),
    ],
)
def test_what_was_typed_wrong_is_told_before_anything_is_sent(words: tuple[str, ...], message: str) -> None:
    """A usage error, no traceback."""
    assert message in str(call("publish", "a.jsonl", *words).exception)


GOLDEN = Path(__file__).parent.parent / "golden"


def test_records_of_each_kind_read_well() -> None:
    """Item, model, cost and answer of a result; what a cost line, a dead letter and a score are about."""
    for name, wanted in (
        ("results.rows.jsonl", "$"),
        ("costs.jsonl", "metered"),
        ("dead_letters.jsonl", "malformed"),
        ("quality.jsonl", "exact"),
    ):
        first = (GOLDEN / name).read_bytes().splitlines()[0]
        item = json.loads(first).get("item_id") or json.loads(first)["penstock"]["item_id"]
        line = lines.for_people(Seen(first, "t", 0, 0, 0.0, b"order-7"), 200)
        assert "order-7" in line
        assert item[:12] in line
        assert wanted in line


def test_a_record_moves_no_cursor_and_fits_the_width() -> None:
    """An answer may hold escape sequences; bytes that are no text are counted."""
    line = lines.for_people(Seen(b'{"text": "\x1b[2Jgone\n\r\x07"}'.replace(b"\x1b", b"\x1b")), 200)
    assert line.isprintable()
    assert len(lines.for_people(Seen(b"x" * 500), 80)) == 80
    assert lines.for_people(Seen(b"\xff\xfe"), 80) == "(2 bytes that are no text)"
    assert json.loads(lines.for_machines(Seen(b"\xff\xfe"))) == {"value": "//4="}
