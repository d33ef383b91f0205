"""What a Kafka topic promises as a source, beside the contract that all sources keep. Against a real broker."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from penstock.connectors.base import Later, Raw
from penstock.connectors.kafka import topic_ids
from penstock.connectors.kafka.reader import RETRY_S, KafkaReader
from penstock.connectors.kafka.source import NEAR, KafkaTopics
from penstock.connectors.kafka.starts import read_start
from penstock.connectors.kafka.verdict import CONFIRM_S
from penstock.connectors.settings import KafkaSource
from penstock.engine.errors import BadRecord, SpecError, Temporary
from penstock.engine.plan import Split
from penstock.jobs.dev.kafka import KafkaServer

pytestmark = pytest.mark.kafka

NewTopicOf = Callable[..., Awaitable[str]]


class Clock:
    """A reader's clock: it runs, and can be put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
async def admin(kafka_server: KafkaServer) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(bootstrap_servers=kafka_server.bootstrap)
    await client.start()
    yield client
    await client.close()


@pytest.fixture(scope="module")
def own_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """A broker that may be stopped, and that compacts at once."""
    server = KafkaServer(tmp_path_factory.mktemp("kafka"), properties={"log.cleaner.backoff.ms": "100"})
    server.start()
    yield server
    server.kill()


async def write(
    server: KafkaServer, topic: str, values: Sequence[bytes | None], partition: int = 0, **how: Any
) -> list[int]:
    """Returns the offsets."""
    producer = AIOKafkaProducer(bootstrap_servers=server.bootstrap, max_request_size=20_000_000)
    await producer.start()
    sent = [await producer.send(topic, value, partition=partition, **how) for value in values]
    done = await asyncio.gather(*sent)
    await producer.stop()
    return [one.offset for one in done]


async def abort(server: KafkaServer, topic: str, values: Sequence[bytes]) -> None:
    """A transaction that comes to nothing."""
    producer_id = f"{topic}-aborted"
    producer = AIOKafkaProducer(bootstrap_servers=server.bootstrap, transactional_id=producer_id)
    await producer.start()
    await producer.begin_transaction()
    await asyncio.gather(*[await producer.send(topic, value, partition=0) for value in values])
    await producer.abort_transaction()
    await producer.stop()
    await settled(server, producer_id)


async def settled(server: KafkaServer, transactional_id: str) -> None:
    """The next producer of the id starts when the last transaction is wholly over, its markers in the log."""
    producer = AIOKafkaProducer(bootstrap_servers=server.bootstrap, transactional_id=transactional_id)
    await producer.start()
    await producer.stop()


def source(server: KafkaServer, *topics: str, until: str = "end", **how: Any) -> KafkaTopics:
    return KafkaTopics(KafkaSource(topics=topics, bootstrap=server.bootstrap, until=until, **how))  # pyright: ignore[reportArgumentType]


async def opened(of: KafkaTopics, splits: Sequence[Split], clock: Clock | None = None) -> KafkaReader:
    reader = await of.open([(split, split.start) for split in splits])
    if clock is not None:
        reader._now = clock  # pyright: ignore[reportPrivateUsage] the source has no use for another clock
    return reader


async def some(
    reader: KafkaReader, count: int | None = None, until: Callable[[list[Raw], list[str]], bool] | None = None
) -> tuple[list[Raw], list[str]]:
    """Read until `count` records came, `until` is true, or the reader is done."""
    records: list[Raw] = []
    ended: list[str] = []
    async with asyncio.timeout(60):
        while True:
            batch = await reader.read(50 if count is None else count - len(records), 1 << 20)
            records += batch.records
            ended += batch.ended
            if batch.done:
                await reader.close()
            if batch.done or len(records) == count or (until is not None and until(records, ended)):
                return records, ended
            await asyncio.sleep(batch.again_after_s or 0)


async def read_all(of: KafkaTopics, splits: Sequence[Split] | None = None) -> list[bytes]:
    reader = await opened(of, await of.splits(1) if splits is None else splits)
    records, _ = await some(reader)
    await reader.close()
    assert not any(raw.error for raw in records)
    return [raw.data for raw in records]


async def test_a_record_brings_its_key_headers_and_time(kafka_server: KafkaServer, new_topic: NewTopicOf) -> None:
    topic = await new_topic("requests")
    await write(
        kafka_server, topic, [b"{}"], key=b"k", headers=[("h", b"v"), ("h", b"w")], timestamp_ms=1_700_000_000_500
    )
    of = source(kafka_server, topic)
    (raw,), _ = await some(await opened(of, await of.splits(1)))
    assert (raw.data, raw.key, raw.headers, raw.timestamp) == (b"{}", b"k", (("h", b"v"), ("h", b"w")), 1_700_000_000.5)


async def test_a_range_whose_tail_was_aborted_ends(kafka_server: KafkaServer, new_topic: NewTopicOf) -> None:
    """Aborted records and transaction markers take offsets; nobody sees them."""
    topic = await new_topic("aborted")
    await write(kafka_server, topic, [b"1", b"2"])
    await abort(kafka_server, topic, [b"no"] * 5)
    of = source(kafka_server, topic)
    (split,) = await of.splits(1)
    assert (split.start, split.end) == (0, 8)
    assert await read_all(of, [split]) == [b"1", b"2"]


async def test_partitions_that_hold_nothing_end_and_hold_up_no_other(
    kafka_server: KafkaServer, new_topic: NewTopicOf
) -> None:
    """All records in one partition, the others empty: keyed records of a small topic."""
    topic = await new_topic("mostly-empty", partitions=6)
    await write(kafka_server, topic, [b"1", b"2"], partition=0)
    assert await read_all(source(kafka_server, topic)) == [b"1", b"2"]


async def test_a_compacted_topic_ends_and_brings_what_is_left(own_kafka: KafkaServer, new_topic: NewTopicOf) -> None:
    config = {
        "cleanup.policy": "compact",
        "segment.bytes": "1048576",
        "segment.ms": "100",
        "min.cleanable.dirty.ratio": "0.01",
    }
    topic = await new_topic("compacted", 1, config, own_kafka)
    of = source(own_kafka, topic)
    for round in range(100):
        await write(own_kafka, topic, [b"%d" % round] * 20, key=b"one")
        (split,) = await of.splits(1)
        left = await read_all(of, [split])
        assert left[-1] == b"%d" % round
        assert split.end == 20 * round + 20
        if len(left) < split.end - 20:  # compacted, the newest segment excepted
            return
        await asyncio.sleep(0.1)
    raise AssertionError("the broker never compacted")


async def test_one_partition_that_always_has_records_starves_no_other(
    kafka_server: KafkaServer, new_topic: NewTopicOf
) -> None:
    topic = await new_topic("fair", 2)
    await write(kafka_server, topic, [b"x" * 1000] * 5000, 0)
    await write(kafka_server, topic, [b"small"] * 20, 1)
    of = source(kafka_server, topic, until="forever")
    reader = await opened(of, await of.splits(1))
    records, ended = await some(reader, until=lambda got, _: sum(raw.data == b"small" for raw in got) == 20)
    assert len(records) < 3000
    assert ended == []
    assert reader.lag() == {topic: 5020 - len(records)}
    await reader.close()


async def test_a_read_stops_at_the_bytes_it_may_bring(kafka_server: KafkaServer, new_topic: NewTopicOf) -> None:
    topic = await new_topic("bytes")
    await write(kafka_server, topic, [b"x" * 1000] * 50)
    of = source(kafka_server, topic)
    reader = await opened(of, await of.splits(1))
    sizes: list[int] = []
    async with asyncio.timeout(60):
        while sum(sizes) < 50:
            sizes.append(len((batch := await reader.read(50, 3000)).records))
            await asyncio.sleep(batch.again_after_s or 0)
    assert max(sizes) == 3
    await reader.close()


# -- where reading starts


async def test_start_latest_brings_only_what_comes_later(kafka_server: KafkaServer, new_topic: NewTopicOf) -> None:
    topic = await new_topic("latest")
    await write(kafka_server, topic, [b"old"])
    of = source(kafka_server, topic, until="forever", start="latest")
    reader = await opened(of, await of.splits(1))
    await write(kafka_server, topic, [b"new"])
    records, _ = await some(reader, 1)
    assert [raw.data for raw in records] == [b"new"]
    await reader.close()


async def test_start_at_a_time_brings_the_records_from_then_on(
    kafka_server: KafkaServer, new_topic: NewTopicOf
) -> None:
    topic = await new_topic("since")
    for n in range(4):
        await write(kafka_server, topic, [b"%d" % n], timestamp_ms=1_700_000_000_000 + 1000 * n)
    assert await read_all(source(kafka_server, topic, start="2023-11-14T22:13:22Z")) == [b"2", b"3"]
    assert await read_all(source(kafka_server, topic, start="2023-11-14T22:13:21.500")) == [b"2", b"3"]
    assert await read_all(source(kafka_server, topic, start="2030-01-01")) == []


async def test_start_where_a_group_stands(kafka_server: KafkaServer, new_topic: NewTopicOf) -> None:
    """A partition that the group never read is read whole; an unknown group is a mistake, not a start."""
    topic = await new_topic("group", 2)
    await write(kafka_server, topic, [b"a", b"b", b"c"], 0)
    await write(kafka_server, topic, [b"d"], 1)
    member = AIOKafkaConsumer(bootstrap_servers=kafka_server.bootstrap, group_id=f"{topic}-g", enable_auto_commit=False)
    await member.start()
    member.assign([TopicPartition(topic, 0)])
    await member.commit({TopicPartition(topic, 0): 2})
    await member.stop()
    assert sorted(await read_all(source(kafka_server, topic, start=f"group:{topic}-g"))) == [b"c", b"d"]
    with pytest.raises(SpecError, match="no committed offsets"):
        await source(kafka_server, topic, start="group:nobody").splits(1)


async def test_a_topic_that_is_not_there_is_told_with_the_nearest_name(
    kafka_server: KafkaServer, new_topic: NewTopicOf
) -> None:
    topic = await new_topic("requests")
    with pytest.raises(SpecError, match=f"did you mean '{topic}'"):
        await source(kafka_server, topic + "x").splits(1)
    with pytest.raises(SpecError, match="whole name"):
        await KafkaTopics(KafkaSource(pattern="no-such-.*", bootstrap=kafka_server.bootstrap)).splits(1)


async def test_where_no_topic_has_such_a_name_it_is_told_how_to_make_it(kafka_server: KafkaServer) -> None:
    """The first run of a newcomer: its own sinks are there already, and none of them was meant."""
    missing = KafkaTopics(KafkaSource(topics=("nobody.made.this",), bootstrap=kafka_server.bootstrap))
    with pytest.raises(SpecError, match="--create` makes it"):
        await missing.splits(1)
    assert not get_close_matches("requests", ["results"], cutoff=NEAR)


async def test_a_pattern_takes_the_topics_whose_whole_name_matches(
    kafka_server: KafkaServer, new_topic: NewTopicOf
) -> None:
    one, two = await new_topic("pattern-a"), await new_topic("pattern-b")
    await new_topic(one)
    of = KafkaTopics(KafkaSource(pattern=f"{one}|{two}", bootstrap=kafka_server.bootstrap))
    assert [split.object_id.split("@")[0] for split in await of.splits(1)] == sorted([one, two])


@pytest.mark.parametrize("text", ["earlyest", "group:", "latest:x", "24.11.2026", ""])
def test_a_start_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"source\.start"):
        read_start(text)


# -- what changes while a run lives


async def test_partitions_that_appear_later_are_read_from_their_earliest_record(
    kafka_server: KafkaServer, new_topic: NewTopicOf, admin: AIOKafkaAdminClient
) -> None:
    topic = await new_topic("growing")
    of = source(kafka_server, topic, start="latest")
    known = await of.splits(1)
    await admin.create_partitions({topic: NewPartitions(2)})
    await write(kafka_server, topic, [b"first"], 1)
    later = (await of.later({split.object_id for split in known})).splits
    assert [(split.object_id[-2:], split.start) for split in later] == [("/1", 0)]
    assert await read_all(of, later) == [b"first"]
    assert await of.later({split.object_id for split in [*known, *later]}) == Later([])


async def test_a_topic_that_is_made_later_and_matches_the_pattern_is_read_whole(
    kafka_server: KafkaServer, new_topic: NewTopicOf
) -> None:
    """From its earliest record, whatever `start` says of what was there at first; one that does not match never is."""
    name = await new_topic("pattern")
    of = KafkaTopics(
        KafkaSource(pattern=f"{name}(-later-.*)?", bootstrap=kafka_server.bootstrap, start="latest", until="forever")
    )
    known = {split.object_id for split in await of.splits(1)}
    assert await of.later(known) == Later([])
    made = await new_topic(f"{name}-later", 2)
    await new_topic(f"{name}-else")
    await write(kafka_server, made, [b"first", b"second"], 1)
    later = (await of.later(known)).splits
    assert [(one.object_id.split("@")[0], one.object_id[-2:], one.start, one.end) for one in later] == [
        (made, "/0", 0, None),
        (made, "/1", 0, None),
    ]
    reader = await opened(of, later)
    assert [raw.data for raw in (await some(reader, 2))[0]] == [b"first", b"second"]
    await reader.close()
    assert await of.later({*known, *(split.object_id for split in later)}) == Later([])


async def test_a_topic_that_an_edited_job_adds_is_begun_where_the_job_says(
    kafka_server: KafkaServer, new_topic: NewTopicOf
) -> None:
    """`start: latest`, and weeks of records in the topic that was added: all of them were sent, and paid for."""
    first, added = await new_topic("first"), await new_topic("added")
    for topic in (first, added):
        await write(kafka_server, topic, [b"old"] * 3)
    known = {one.object_id for one in await source(kafka_server, first, until="forever", start="latest").splits(1)}
    for start, at in (("latest", 3), ("earliest", 0)):
        later = await source(kafka_server, first, added, until="forever", start=start).later(known)
        assert [(one.object_id.split("@")[0], one.start) for one in later.splits] == [(added, at)]


async def test_a_deleted_topic_stays_deleted_whatever_its_broker_makes(tmp_path: Path) -> None:
    """With Kafka's default, `auto.create.topics.enable`, a client that asks for a topic makes it: a reader did, every
    time it looked, and took the empty one for new input."""
    server = KafkaServer(tmp_path, properties={"auto.create.topics.enable": "true"})
    server.start()
    client = AIOKafkaAdminClient(bootstrap_servers=server.bootstrap)
    await client.start()
    try:
        await client.create_topics([NewTopic("t", 1, 1), NewTopic("other", 1, 1)])
        await write(server, "t", [b"1"])
        of, clock = source(server, "t", until="forever"), Clock()
        reader = await opened(of, await of.splits(1), clock)
        assert [raw.data for raw in (await some(reader, 1))[0]] == [b"1"]
        await client.delete_topics(["t"])
        lost = None
        async with asyncio.timeout(60):
            while lost is None:
                clock.ahead += RETRY_S
                with contextlib.suppress(Temporary):
                    batch = await reader.read(10, 1 << 20)
                    lost = next((raw.error[1] for raw in batch.records if raw.error), None)
                await asyncio.sleep(0.05)
        assert lost.startswith("the topic t was deleted: ")
        await reader.close()
        assert await topic_ids.topics(client._client, ["t"]) == {}  # pyright: ignore[reportPrivateUsage]
    finally:
        await client.close()
        server.kill()


async def test_a_topic_that_is_gone_keeps_no_other_of_an_endless_run_from_growing(
    kafka_server: KafkaServer, new_topic: NewTopicOf, admin: AIOKafkaAdminClient
) -> None:
    """It is told; a run with an end, or one that has not begun, is refused as ever."""
    stays, gone = await new_topic("stays"), await new_topic("gone")
    endless = source(kafka_server, stays, gone, until="forever")
    known = await endless.splits(1)
    await admin.delete_topics([gone])
    await admin.create_partitions({stays: NewPartitions(2)})
    later = Later([])
    async with asyncio.timeout(30):
        while later.missing is None or not later.splits:  # the broker tells nobody, and one after the other
            await asyncio.sleep(0.1)
            later = await endless.later({split.object_id for split in known})
    assert [split.object_id[-2:] for split in later.splits] == ["/1"]
    assert f"has no topic '{gone}'" in str(later.missing)
    with pytest.raises(SpecError, match=gone):
        await source(kafka_server, stays, gone).later(())
    with pytest.raises(SpecError, match=gone):
        await endless.splits(1)
    with pytest.raises(SpecError, match=gone):
        await source(kafka_server, gone, until="forever").later(())


async def test_a_topic_made_anew_is_new_input_and_the_old_one_is_told_as_lost(
    kafka_server: KafkaServer, new_topic: NewTopicOf, admin: AIOKafkaAdminClient
) -> None:
    """Nothing of the new topic is taken for the old one's, although it reaches beyond our position."""
    topic = await new_topic("anew")
    await write(kafka_server, topic, [b"old"] * 3)
    clock = Clock()
    of = source(kafka_server, topic, until="forever")
    (old,) = await of.splits(1)
    reader = await opened(of, [old], clock)
    assert len((await some(reader, 3))[0]) == 3
    await admin.delete_topics([topic])
    await made_anew(admin, topic)
    await write(kafka_server, topic, [b"new"] * 9)
    clock.ahead = 100.0
    await some(reader, until=lambda _, __: reader._turn[0].doubted is not None)  # pyright: ignore[reportPrivateUsage]
    clock.ahead += CONFIRM_S
    (lost,), ended = await some(reader)
    assert lost.error is not None
    assert lost.error[0] == "source_lost"
    assert "another made under its name: what was not done yet of offset 3 and all that follow is lost" in lost.error[1]
    assert (lost.lost, ended) == ((3, None), [old.id])
    (new,) = (await of.later({old.object_id})).splits
    assert (new.start, new.object_id != old.object_id) == (0, True)
    await reader.close()


async def test_both_lives_of_a_partition_in_one_lane_leave_each_other_alone(
    kafka_server: KafkaServer, new_topic: NewTopicOf, admin: AIOKafkaAdminClient
) -> None:
    """The topic was made anew while the run was down: the plan has the old partition, read up to 40, and the new one.
    That the old one ends neither stops the client at the new one nor moves it to where the old one stood."""
    topic = await new_topic("anew")
    await write(kafka_server, topic, [b"old"] * 50)
    clock = Clock()
    of = source(kafka_server, topic, until="forever")
    (old,) = await of.splits(1)
    await admin.delete_topics([topic])
    await made_anew(admin, topic)
    await write(kafka_server, topic, [b"%d" % n for n in range(9)])
    (new,) = (await of.later({old.object_id})).splits
    reader = await of.open([(old, 40), (new, new.start)])
    reader._now = clock  # pyright: ignore[reportPrivateUsage]
    first, _ = await some(reader, 9)
    clock.ahead += CONFIRM_S + RETRY_S
    (lost,), ended = await some(reader, until=lambda _, ended: bool(ended))
    assert (lost.error or ("",))[0] == "source_lost"
    assert (lost.lost, ended) == ((40, None), [old.id])
    await write(kafka_server, topic, [b"%d" % n for n in range(9, 60)])
    rest, _ = await some(reader, 51)
    assert [(raw.object_id, raw.data) for raw in [*first, *rest]] == [(new.object_id, b"%d" % n) for n in range(60)]
    await reader.close()


async def made_anew(admin: AIOKafkaAdminClient, topic: str) -> None:
    async with asyncio.timeout(30):
        while True:
            answer = await admin.create_topics([NewTopic(topic, 1, 1)])
            if answer.topic_errors[0][1] == 0:
                return
            await asyncio.sleep(0.05)


async def test_records_that_retention_deleted_unread_are_told_once(
    kafka_server: KafkaServer, new_topic: NewTopicOf, admin: AIOKafkaAdminClient
) -> None:
    topic = await new_topic("retention")
    await write(kafka_server, topic, [b"%d" % n for n in range(10)])
    of = source(kafka_server, topic)
    (split,) = await of.splits(1)
    await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=6)})
    (lost, *rest), ended = await some(await opened(of, [split]))
    assert lost.error == (
        "source_lost",
        f"offsets 0..5 of {topic}/0 were deleted (by retention, or by hand): "
        "those among them that were not done yet are lost",
    )
    assert (lost.position.position, lost.lost) == (0, (0, 6))
    assert [raw.data for raw in rest] == [b"6", b"7", b"8", b"9"]
    assert ended == [split.id]
    again, _ = await some(await of.open([(split, 6)]))
    assert again == rest


async def test_a_range_that_retention_deleted_whole_ends(
    kafka_server: KafkaServer, new_topic: NewTopicOf, admin: AIOKafkaAdminClient
) -> None:
    topic = await new_topic("retention")
    await write(kafka_server, topic, [b"x"] * 5)
    of = source(kafka_server, topic)
    (split,) = await of.splits(1)
    await write(kafka_server, topic, [b"x"] * 5)
    await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=8)})
    (lost,), ended = await some(await opened(of, [split]))
    assert lost.error is not None
    assert "offsets 0..4" in lost.error[1]
    assert (lost.lost, ended) == ((0, 5), [split.id])


async def test_a_position_beyond_the_end_stops_the_run(kafka_server: KafkaServer, new_topic: NewTopicOf) -> None:
    """The broker lost records: what is written now takes their offsets, and would be skipped as done."""
    topic = await new_topic("truncated")
    await write(kafka_server, topic, [b"x"] * 5)
    of = source(kafka_server, topic, until="forever")
    (split,) = await of.splits(1)
    clock = Clock()
    reader = await of.open([(split, 50)])
    reader._now = clock  # pyright: ignore[reportPrivateUsage]
    await some(reader, until=lambda _, __: reader._turn[0].strayed is not None)  # pyright: ignore[reportPrivateUsage]
    clock.ahead = CONFIRM_S + 1
    with pytest.raises(BadRecord, match="ends at offset 5, and we had come to 50"):
        await some(reader)
    await reader.close()


async def test_a_broker_that_goes_and_comes_back_loses_nothing(own_kafka: KafkaServer, new_topic: NewTopicOf) -> None:
    topic = await new_topic("restart", 1, None, own_kafka)
    await write(own_kafka, topic, [b"1", b"2", b"3"])
    of = source(own_kafka, topic, until="forever")
    clock = Clock()
    reader = await opened(of, await of.splits(1), clock)
    assert [raw.data for raw in (await some(reader, 2))[0]] == [b"1", b"2"]
    own_kafka.kill()
    clock.ahead += 100.0
    rest: list[Raw] = []
    with pytest.raises(Temporary):
        await some(reader, until=lambda got, _: bool(rest.extend(got[len(rest) :])))
    own_kafka.start()
    await write(own_kafka, topic, [b"4"])
    async with asyncio.timeout(60):
        while len(rest) < 2:
            try:
                rest += (await some(reader, 1))[0]
            except Temporary:
                await asyncio.sleep(0.05)
    assert [raw.data for raw in rest] == [b"3", b"4"]
    await reader.close()


async def test_a_source_without_its_broker_says_so_and_reads_when_it_is_there(
    own_kafka: KafkaServer, new_topic: NewTopicOf
) -> None:
    topic = await new_topic("absent", 1, None, own_kafka)
    await write(own_kafka, topic, [b"1"])
    of = source(own_kafka, topic)
    splits = await of.splits(1)
    own_kafka.kill()
    with pytest.raises(Temporary):
        await of.splits(1)
    reader = await opened(of, splits)
    with pytest.raises(Temporary):
        await some(reader)
    own_kafka.start()
    async with asyncio.timeout(60):
        while True:
            try:
                records, _ = await some(reader)
                break
            except Temporary:
                await asyncio.sleep(0.05)
    assert [raw.data for raw in records] == [b"1"]


async def test_a_record_that_the_client_cannot_take_apart_is_told_and_the_next_are_read(
    kafka_server: KafkaServer, new_topic: NewTopicOf
) -> None:
    """A header's name that is no UTF-8: other clients write such."""
    topic = await new_topic("header")
    await write(kafka_server, topic, [b"before"] * 3)
    await write_batch(kafka_server, topic, broken_header())
    await write(kafka_server, topic, [b"after"] * 3)
    of = source(kafka_server, topic)
    records, _ = await some(await opened(of, await of.splits(1)))
    assert [raw.data for raw in records if not raw.error] == [b"before"] * 3 + [b"after"] * 3
    (bad,) = [raw for raw in records if raw.error]
    assert bad.position.position == 3
    assert bad.error is not None
    assert bad.error[0] == "malformed"
    assert "can't be taken apart" in bad.error[1]


def broken_header() -> bytes:
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=9999,
    )
    builder.append(0, timestamp=int(time.time() * 1000), key=None, value=b"x", headers=[("name", b"v")])
    batch = bytearray(builder.build()).replace(b"name", b"\xff\xfe\xfd\xfc")
    struct.pack_into(">I", batch, 17, calc_crc32c(bytes(batch[21:])))  # the checksum covers what follows it
    return bytes(batch)


async def write_batch(server: KafkaServer, topic: str, batch: bytes) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=server.bootstrap)
    await producer.start()
    await producer.partitions_for(topic)
    node = producer.client.cluster.leader_for_partition(TopicPartition(topic, 0))
    answer = await producer.client.send(node, ProduceRequest(None, 1, 5000, [(topic, [(0, batch)])]))
    assert answer.topics[0][1][0][1] == 0, answer
    await producer.stop()
