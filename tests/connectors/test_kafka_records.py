"""What a Kafka record becomes: an item with its headers' attributes, or a dead letter that is the record untouched."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka
from aiokafka.structs import ConsumerRecord
from hypothesis import given
from hypothesis import strategies as st

from penstock.connectors.base import OutRecord, Raw
from penstock.connectors.kafka import partition, source
from penstock.connectors.kafka.dead_letters import incoming, outgoing
from penstock.connectors.kafka.keys import Scope
from penstock.connectors.kafka.opening import Cluster
from penstock.connectors.kafka.reader import KafkaReader
from penstock.connectors.kafka.records import EPOCH, RUN, row, run_epoch_of
from penstock.connectors.kafka.source import KafkaTopics
from penstock.connectors.kafka.store import KafkaStore, Settings
from penstock.connectors.kafka.topic_ids import Topic
from penstock.connectors.kafka.topics import TopicFacts
from penstock.connectors.reading.envelope import Envelope, unseal
from penstock.connectors.reading.intake import Intake
from penstock.connectors.settings import Connection, KafkaSink, KafkaSource, Row
from penstock.connectors.writing.records import Encoder
from penstock.engine.errors import Temporary
from penstock.engine.items import Item, Position
from penstock.engine.plan import Split
from penstock.engine.policy import Policy, Prompt, Task
from penstock.engine.results import DeadLetter
from penstock.jobs.dev.kafka import KafkaServer

POLICY = Policy(
    tasks={"main": Task(name="main", prompt=Prompt(user="say {{ text }}")), "other": Task(name="other")},
    default_task="main",
)
ROW = {"text": "hi"}
LINE = {"custom_id": "a", "body": {"messages": [{"role": "user", "content": "hi"}]}}


def intake(**row: Any) -> Intake:
    return Intake("run", "either", Row(**row), POLICY, ["m"])


def taken(value: object, *headers: tuple[str, bytes], **row: Any) -> Item | DeadLetter:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return intake(**row).item(Raw(Position("s", 0, 7), "o", data, key=b"k", headers=headers), 5.0)


def item(value: object, *headers: tuple[str, bytes], **row: Any) -> Item:
    made = taken(value, *headers, **row)
    assert isinstance(made, Item), made
    return made


def test_requests_and_rows_may_come_in_one_topic() -> None:
    """Each record is looked at: an object with `custom_id` and `body` is a request, others go through the template."""
    request, row = item(LINE), item(ROW)
    assert (request.is_request, request.custom_id) == (True, "a")
    assert (row.is_request, row.custom_id, row.keep_json) == (False, None, b'{"text": "hi"}')
    assert json.loads(row.request.body_json)["messages"][0]["content"] == "say hi"


def test_a_row_that_only_speaks_of_custom_id_and_body_is_a_row() -> None:
    assert not item({"text": 'the "custom_id" and the "body"'}).is_request
    assert not item({"text": "x", "inner": LINE}).is_request


def test_headers_give_a_row_its_attributes_and_the_job_says_more() -> None:
    made = item(ROW, ("penstock-tenant", b"acme"), ("penstock-tier", b"2"), ("other", b"x"), attributes={"tier": "3"})
    assert (made.attributes.tenant, made.attributes.tier) == ("acme", 3)


def test_a_header_that_contradicts_the_row_on_sensitivity_is_a_dead_letter() -> None:
    """A wall is never chosen by who speaks last."""
    made = taken(ROW, ("penstock-sensitivity", b"public"), attributes={"sensitivity": "health"})
    assert isinstance(made, DeadLetter)
    assert (made.reason, made.message) == ("bad_field", "header and row give two sensitivities")


def test_a_result_of_the_run_itself_is_never_answered() -> None:
    """A pattern may match the results' topic where the cluster goes by two names: each answer would be asked again, and
    paid for, without an end. Results of another run, and this run's dead letters sent again, are input."""
    made = taken(ROW, ("penstock-run", b"run"), ("penstock-epoch", b"1"))
    assert isinstance(made, DeadLetter)
    assert (made.reason, "a topic that it writes" in made.message) == ("unsupported", True)
    item(ROW, ("penstock-run", b"other"), ("penstock-epoch", b"1"))
    item(ROW, ("penstock-run", b"run"), ("penstock-record", b"{}"))


def test_a_header_that_cannot_be_read_is_a_dead_letter() -> None:
    assert isinstance(made := taken(ROW, ("penstock-tier", b"gold")), DeadLetter)
    assert made.reason == "bad_field"


TOPIC = TopicFacts("letters", 1, 1_048_588, "delete")
HEADERS = st.lists(st.tuples(st.text(max_size=20), st.binary(max_size=20)), max_size=5).map(tuple)


@given(value=st.binary(max_size=200), key=st.none() | st.binary(max_size=20), headers=HEADERS)
def test_a_dead_letter_is_the_record_untouched_and_makes_the_letter_again(
    value: bytes, key: bytes | None, headers: tuple[tuple[str, bytes], ...]
) -> None:
    letter = DeadLetter(
        "id", Position("s", 0, 7), "malformed", "müll", value, generation=2, key=key, headers=headers, cut="headers z"
    )
    written = Encoder("run", "rows").dead_letter(letter)
    sent = row("run", 1, TOPIC, outgoing(OutRecord(0, 7, written, key=key, headers=headers, item_id="id")), {})
    out, told = sent.value, sent.headers
    assert sent.key == (b"id" if key is None else key)
    assert out == value
    assert tuple(told[: len(headers)]) == headers
    assert dict(told[len(headers) :])["penstock-message"] == "müll".encode()
    assert dict(told[len(headers) :])["penstock-generation"] == b"2"
    assert dict(told[len(headers) :])["penstock-left-out"] == b"headers z"
    again = incoming(out, sent.key, told)
    assert again is not None
    assert json.loads(again) == json.loads(written)


def test_a_letter_keeps_what_an_earlier_run_wrote_into_its_records_headers() -> None:
    """Ours stand in their place on the record; the item that is sent again has them all the same."""
    headers = (("h", b"v"), ("penstock-run", b"earlier"), ("penstock-reason", b"refused"))
    letter = DeadLetter("id", Position("s", 0, 7), "budget", "x", b"{}", headers=headers)
    written = Encoder("run", "rows").dead_letter(letter)
    sent = row("run", 1, TOPIC, outgoing(OutRecord(0, 7, written, headers=headers, item_id="id")), {})
    assert [value for name, value in sent.headers if name in ("penstock-run", "penstock-reason")] == [b"budget", b"run"]
    again = incoming(sent.value, sent.key, sent.headers)
    assert again is not None
    assert unseal(json.loads(again)["envelope"]) == Envelope(None, headers)


def test_a_letter_with_an_envelope_of_its_own_is_read_as_it_is() -> None:
    """As letters were written before: key and headers twice."""
    record = b'{"item_id":"id","original_encoding":"utf-8","envelope":"{\\"key\\":\\"aw==\\"}"}'
    again = incoming(b"{}", b"k", (("h", b"v"), ("penstock-record", record)))
    assert again is not None
    assert json.loads(again) == json.loads(record) | {"original": "{}"}


def test_the_letter_of_a_record_with_large_headers_fits_where_the_record_did() -> None:
    """It holds them once: a lane could commit nothing any more after a letter that no topic takes."""
    headers = (("blob", b"x" * 460_000),)
    letter = DeadLetter("ab" * 16, Position("s", 0, 1), "malformed", "bad", b"{}", key=b"k", headers=headers)
    written = Encoder("run", "rows").dead_letter(letter)
    sent = outgoing(OutRecord(0, 1, written, key=b"k", headers=headers, item_id=letter.item_id))
    assert row("run", 1, TOPIC, sent, {}).size < 465_000


def test_a_letter_that_dies_again_tells_only_of_its_last_death() -> None:
    first = Encoder("run", "rows").dead_letter(DeadLetter("id", Position("s", 0, 7), "budget", "x", b"{}"))
    once = outgoing(OutRecord(0, 7, first, headers=(("h", b"v"),)))
    second = Encoder("run", "rows").dead_letter(DeadLetter("id", Position("s", 0, 9), "refused", "y", once.value))
    twice = outgoing(OutRecord(0, 9, second, headers=once.headers))
    assert [name for name, _ in twice.headers] == [name for name, _ in once.headers]
    assert dict(twice.headers)["penstock-reason"] == b"refused"


def test_the_result_of_a_dead_letter_that_was_sent_again_is_no_letter() -> None:
    """By whatever tool: the record still bears the headers that say what it died of. Readers of results would take its
    result for a letter; what is not ours is carried on, and so is who it belongs to."""
    letter = Encoder("run", "rows").dead_letter(DeadLetter("id", Position("s", 0, 7), "budget", "x", b"{}"))
    mine = (("penstock-tenant", b"acme"), ("h", b"v"))
    died = outgoing(OutRecord(0, 7, letter, key=b"k", headers=mine))
    store = KafkaStore(Settings(Connection("k:1"), "next", "next", {"results": KafkaSink("results")}))
    facts = TopicFacts("results", 1, 1_000_000, "delete")
    cluster = Cluster(Scope("next", 4), {"results": facts}, {}, facts)
    answered = OutRecord(0, 3, b'{"answer":"yes"}', key=b"k", headers=died.headers, item_id="id")
    sent, _ = store._row(cluster, 1, "results", answered)
    assert [name for name, _ in sent.headers] == [
        "penstock-tenant",
        "h",
        "penstock-run",
        "penstock-epoch",
        "penstock-item",
    ]
    assert incoming(sent.value, sent.key, sent.headers) is None


def test_a_record_that_is_no_dead_letter_of_ours_is_told_from_one() -> None:
    assert incoming(b"{}", b"k", (("h", b"v"),)) is None


DEEP = b"[" * 100_000 + b"]" * 100_000
POISON: list[tuple[bytes | None, str, str]] = [
    (None, "malformed", "tombstone"),
    (b"", "malformed", "not JSON"),
    (b"\xff\xfe{}", "malformed", "not UTF-8"),
    (b"hello", "malformed", "not JSON"),
    (b'{"text": NaN}', "malformed", "not JSON"),
    (DEEP, "malformed", "nested deeper"),
    (b"[1]", "malformed", "not a JSON object"),
    (b'{"text": 1, "text": 2}', "malformed", "comes twice"),
    (b'{"other": 1}', "missing_field", "text"),
    (b'{"custom_id": "a", "body": 7}', "bad_field", "body is not an object"),
    (b'{"text": "' + b"x" * 9_000_000 + b'"}', "too_large", "9,000,012 bytes"),
]


@pytest.mark.kafka
async def test_poison_ends_as_dead_letters_and_harms_nobody(
    kafka_server: KafkaServer, new_topic: Callable[..., Awaitable[str]]
) -> None:
    """Key, value and headers of each are in its letter; the records behind are read."""
    topic = await new_topic("poison", 1, {"max.message.bytes": "20000000"})
    producer = AIOKafkaProducer(bootstrap_servers=kafka_server.bootstrap, max_request_size=20_000_000)
    await producer.start()
    for value, _, _ in [*POISON, (b'{"text": "fine"}', "", "")]:
        await producer.send_and_wait(topic, value, b"key", headers=[("h", b"\xff")])
    await producer.stop()

    made = await through_intake(KafkaTopics(KafkaSource((topic,), bootstrap=kafka_server.bootstrap, until="end")))
    assert len(made) == len(POISON) + 1
    encoder = Encoder("run", None)
    for letter, (value, reason, message) in zip(made, POISON, strict=False):
        assert isinstance(letter, DeadLetter), letter
        assert letter.reason == reason, letter.message
        assert message in letter.message
        assert (letter.key, letter.headers) == (b"key", (("h", b"\xff"),))
        out = outgoing(OutRecord(0, 0, encoder.dead_letter(letter), key=letter.key, headers=letter.headers))
        assert out.value == (value or b"")[:1_000_000]
        assert letter.original_length in {0, len(value or b"")}
    assert isinstance(made[-1], Item)
    assert len({one.item_id for one in made}) == len(made)


async def through_intake(source: KafkaTopics) -> list[Item | DeadLetter]:
    reader = await source.open([(split, split.start) for split in await source.splits(1)])
    made: list[Item | DeadLetter] = []
    while True:
        batch = await reader.read(100, 1 << 20)
        made += [intake().item(raw, 5.0) for raw in batch.records]
        if batch.done:
            await reader.close()
            return made
        await asyncio.sleep(batch.again_after_s or 0)


@pytest.mark.parametrize(
    ("unix_ms", "enqueued_at"),
    [
        (1_764_150_000_123, 1_764_150_000.123),
        (1_764_150_000_000_000, 5.0),
        (1_764_150_000_000_000_000, 5.0),
        (1_764_150_000, 5.0),
        (0, 5.0),
        (-1, 5.0),
    ],
    ids=["milliseconds", "microseconds", "nanoseconds", "seconds", "zero", "none"],
)
def test_a_timestamp_that_is_no_time_counts_as_none(unix_ms: int, enqueued_at: float) -> None:
    """Of a producer that writes another unit, records would be of the year 57873, which no table holds: the item counts
    from when it was read."""
    value = json.dumps(LINE).encode()
    split = Split("p", "topic", 0, 0, "kafka://t", 0, 10, "offsets", "jsonl", None, 0)
    came = ConsumerRecord("t", 0, 3, unix_ms, 0, None, value, None, 0, len(value), ())
    made = intake().item(partition.raw(split, came, value), 5.0)
    assert isinstance(made, Item)
    assert made.enqueued_at == enqueued_at


@pytest.mark.parametrize(
    ("run_id", "epoch", "found"),
    [(b"run", b"3", 3), (b"other", b"3", 0), (b"run", b"x", 0), (b"run", b"\xff", 0), (b"run", None, 0)],
)
def test_a_record_with_a_run_epoch_that_is_no_number_is_none_of_the_runs(
    run_id: bytes, epoch: bytes | None, found: int
) -> None:
    """Another producer's: it must not end the commands that read the topic."""
    assert run_epoch_of([(RUN, run_id), (EPOCH, epoch)], "run") == found


class Told(KafkaTopics):
    """Looks at a cluster that knows one topic, under this id."""

    def __init__(self, topic_id: str) -> None:
        super().__init__(KafkaSource(("t",), bootstrap="h:1"))
        self._id = topic_id

    @contextlib.asynccontextmanager
    async def _looking(self) -> AsyncGenerator[Any]:
        yield None

    async def _topics(self, consumer: object) -> tuple[dict[str, Topic], None]:
        return {"t": Topic("t", self._id, (0, 1, 12))}, None


@pytest.mark.parametrize(
    ("planned", "seen", "new"),
    [
        ("t@/0 t@/1 t@/12", "", ""),
        ("t@/0 t@/1 t@/12", "aaa", ""),
        ("t@aaa/0 t@aaa/1 t@aaa/12", "", ""),
        ("t@aaa/0 t@aaa/1 t@aaa/12", "aaa", ""),
        ("t@aaa/0 t@aaa/1 t@aaa/12", "bbb", "t@bbb/0 t@bbb/1 t@bbb/12"),
        ("t@/0 t@/12 u@/1", "aaa", "t@aaa/1"),
        ("t@aaa/0 t@aaa/12 u@/1", "", "t@/1"),
    ],
)
async def test_a_topic_is_not_new_for_an_id_that_its_broker_begins_to_tell(
    monkeypatch: pytest.MonkeyPatch, planned: str, seen: str, new: str
) -> None:
    """Brokers before Kafka 2.8 tell none, and amid an upgrade some do: all would be read, and paid for, once more."""

    async def nowhere(_: object, __: object, partitions: list[Any]) -> dict[Any, int]:
        return dict.fromkeys(partitions, 0)

    monkeypatch.setattr(source, "begins", nowhere)
    monkeypatch.setattr(source, "ends", nowhere)
    found = await Told(seen).later(set(planned.split()))
    assert [split.object_id for split in found.splits] == new.split()


class Choking:
    """A session with six records, whose client can't take that at offset 3 apart."""

    refreshed = False

    def __init__(self, why: str) -> None:
        self._why = why
        self._at = 0

    def has(self, _: object) -> bool:
        return True

    def seek(self, _: object, offset: int) -> None:
        self._at = offset

    def pause(self, _: object) -> None:
        pass

    def end_seen(self, _: object) -> int:
        return 6

    def close(self) -> None:
        pass

    async def fetch(self, _: object, count: int) -> tuple[list[Any], int]:
        upto = min(6, self._at + count)
        if self._at <= 3 < upto:
            raise kafka.CorruptRecordException(self._why)
        made = [ConsumerRecord("t", 0, n, 0, 0, None, b"{}", None, 0, 2, ()) for n in range(self._at, upto)]
        self._at = upto
        return made, upto


def choking(why: str) -> KafkaReader:
    split = Split("t@x/0#0-6", "t@x/0", 0, 0, "kafka://k:1/t/0", 0, 6)
    reader = KafkaReader(Connection("k:1"), [(split, 0)], partition.text_record)
    reader._session, reader._unsure, reader._due = Choking(why), False, float("inf")  # type: ignore[assignment]
    return reader


async def test_a_record_that_was_written_broken_is_data_and_the_next_are_read() -> None:
    """Brokers that look into no batch take what a faulty client writes: asked for again it is as it was."""
    reader, records = choking("Invalid record size: expected to read 9 bytes"), list[Raw]()
    for _ in range(10):
        batch = await reader.read(100, 1 << 20)
        records += batch.records
    assert batch.done
    assert [raw.position.position for raw in records] == [0, 1, 2, 3, 4, 5]
    assert [raw.error is not None for raw in records] == [n == 3 for n in range(6)]


async def test_a_batch_whose_checksum_is_wrong_is_waited_for() -> None:
    """Another replica may have it whole, and what is passed over never comes again."""
    reader = choking("Invalid CRC - t/0")
    for _ in range(3):
        with pytest.raises(Temporary, match="Invalid CRC"):
            await reader.read(100, 1 << 20)
