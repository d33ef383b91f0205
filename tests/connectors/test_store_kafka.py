"""What only Kafka's store promises, or only Kafka can break: topics, sizes, frozen brokers, holders that fall silent.

What every store promises is in `test_store_contract.py`.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import ProducerFenced

from penstock.connectors.base import Holder, OutRecord
from penstock.connectors.kafka import place as kafka_place
from penstock.connectors.kafka.client import ended, new_admin, new_consumer, opened, start, translated
from penstock.connectors.kafka.place import KafkaPlace
from penstock.connectors.kafka.store import KafkaStore
from penstock.connectors.settings import Connection, CreateTopic, KafkaSink
from penstock.engine.errors import Away, Corrupt, Fenced, Held, Refused, SpecError, Temporary
from penstock.engine.plan import Plan, Split
from penstock.jobs.dev.kafka import CONSOLE_CONSUMER, KafkaServer

if TYPE_CHECKING:
    from conftest import KafkaAt

pytestmark = pytest.mark.kafka

WHO = Holder(host="here", pid=7, user="ada", since=0.0, command="penstock run job.yaml")
_numbers = itertools.count()


class Run:
    """One run in one cluster; `process` is one process that works on it."""

    def __init__(self, bootstrap: str, *, progress: str | None = None, **sink: object):
        self.bootstrap = bootstrap
        self.id = f"run-{secrets.token_hex(6)}"
        self.progress = progress or "store-progress"
        settings = {"create": True, "progress_topic": self.progress, **sink}
        self.sinks = {name: KafkaSink(f"{self.id}-{name}", bootstrap, **settings) for name in ("results", "costs")}  # type: ignore[arg-type]
        self.place = KafkaPlace(self.sinks, self.id)  # type: ignore[arg-type]
        self.stores: list[KafkaStore] = []

    def process(self, **changed: float) -> KafkaStore:
        settings = msgspec.structs.replace(self.place.settings, **{"beat_s": 0.1, **changed})
        self.stores.append(KafkaStore(settings))
        return self.stores[-1]

    def committed(self, sink: str = "results") -> list[bytes]:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(lambda: list(self.place.committed(sink))).result()  # type: ignore[arg-type]

    async def records(self, topic: str) -> list[tuple[bytes | None, bytes | None, dict[str, bytes]]]:
        """Key, value and headers of all that a committed reader of the topic sees."""
        connection = Connection(self.bootstrap)
        async with opened(new_consumer(connection), connection) as consumer:
            where = TopicPartition(topic, 0)
            consumer.assign([where])
            await consumer.seek_to_beginning(where)
            end = (await consumer.end_offsets([where]))[where]
            found = []
            while await consumer.position(where) < end:
                found += (await consumer.getmany(where, timeout_ms=50)).get(where, [])
            return [(r.key, r.value, dict(r.headers)) for r in found]


@pytest.fixture
async def run(kafka_server: KafkaServer | KafkaAt) -> AsyncIterator[Callable[..., Run]]:
    """`run(...)`: a run of its own in the shared cluster; its processes end with the test."""
    runs: list[Run] = []

    def make(on: KafkaServer | None = None, **settings: object) -> Run:
        runs.append(Run((on or kafka_server).bootstrap, **settings))  # type: ignore[arg-type]
        return runs[-1]

    yield make
    for store in (store for one in runs for store in one.stores):
        store.kill()
    await ended()


def record(n: int, size: int = 0, **more: object) -> OutRecord:
    return OutRecord(0, n, b'{"n":%d%s}' % (n, b" " * size), item_id=f"item-{n}", **more)  # type: ignore[arg-type]


# topics


async def test_a_missing_topic_stops_the_run_before_it_starts(run: Callable[..., Run]) -> None:
    """It is named, with what to do; with `create` it is made, as the job says."""
    strict = run(create=False)
    with pytest.raises(SpecError, match=f"no topic {strict.id}-results.*create"):
        await strict.process().hold(WHO)
    lenient = run(create=CreateTopic(partitions=3, config={"max.message.bytes": "2000"}))
    store = lenient.process()
    assert await store.hold(WHO) == 1
    assert await store.finish(Plan(lenient.id, "n", {}, 1, (), {}, 0.0)) == {
        sink: [f"kafka://{lenient.bootstrap}/{lenient.id}-{sink}"] for sink in ("results", "costs")
    }
    await store.let_go()


async def alter(run: Run, topic: str, **settings: str) -> None:
    connection = Connection(run.bootstrap)
    async with opened(new_admin(connection), connection) as admin:
        config = {name.replace("_", "."): value for name, value in settings.items()}
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, config)])


async def test_a_limit_that_is_lowered_in_mid_run_is_seen_by_all_lanes(run: Callable[..., Run]) -> None:
    """The commit that meets it fails once. Then what is too large is known to be, before it is asked for again; a lane
    that looked at its records before is taken anew as well, and does not end the run."""
    one = run(create=CreateTopic(config={"max.message.bytes": "9000"}))
    store = one.process()
    for lane in range(2):
        await store.take(lane, (1, 1))
    await alter(one, f"{one.id}-results", max_message_bytes="3000")
    assert store.refuses("results", record(1, 5000)) is None
    with pytest.raises(Temporary):
        await store.commit(0, (1, 1), 1, {"results": [record(1, 5000)]}, {})
    await store.take(0, (1, 2))
    assert "max.message.bytes=3,000" in (store.refuses("results", record(1, 5000)) or "")
    await store.commit(0, (1, 2), 1, {"results": [record(1)]}, {})
    with pytest.raises(Temporary, match="taken anew"):
        await store.commit(1, (1, 1), 1, {"results": [record(2, 5000)]}, {})
    await store.take(1, (1, 2))
    with pytest.raises(Refused, match=r"max\.message\.bytes=3,000"):
        await store.commit(1, (1, 2), 1, {"results": [record(2, 5000)]}, {})
    assert one.committed() == [record(1).value]


async def test_a_topic_that_is_made_anew_with_fewer_partitions_takes_the_next_commits(run: Callable[..., Run]) -> None:
    """Records went to partitions that are not there any more, for ever."""
    one = run(create=CreateTopic(partitions=8))
    store, topic = one.process(commit_s=2.0), f"{one.id}-results"
    for lane in range(2):
        await store.take(lane, (1, 1))
    connection = Connection(one.bootstrap)
    async with opened(new_admin(connection), connection) as admin:
        await admin.delete_topics([topic])
        await asyncio.sleep(0.5)
        await admin.create_topics([NewTopic(topic, 1, 1)])
    records = {"results": [record(n) for n in range(20)]}
    with pytest.raises((Temporary, SpecError)):
        await store.commit(0, (1, 1), 1, records, {})
    await store.take(0, (1, 2))
    await store.commit(0, (1, 2), 1, records, {})
    assert len(one.committed()) == 20


async def test_a_progress_topic_that_forgets_is_refused(
    run: Callable[..., Run], new_topic: Callable[..., Awaitable[str]]
) -> None:
    """With cleanup.policy=delete, progress would be gone after a week, and paid for again."""
    with pytest.raises(Refused, match=r"cleanup\.policy"):
        await run(progress=await new_topic("forgets")).process().hold(WHO)


async def test_partitions_added_to_the_progress_topic_move_no_progress(
    run: Callable[..., Run], new_topic: Callable[..., Awaitable[str]]
) -> None:
    """Where a lane's progress is was settled when the topic was first used."""
    topic = await new_topic("grows", partitions=2, config={"cleanup.policy": "compact"})
    one = run(progress=topic)
    store = one.process()
    for lane in range(3):
        await store.take(lane, (1, 1))
        await store.commit(lane, (1, 1), 1, {}, {"a": b"%d" % lane})
        await store.release(lane)
    admin = AIOKafkaAdminClient(bootstrap_servers=one.bootstrap)
    await admin.start()
    await admin.create_partitions({topic: NewPartitions(9)})
    await admin.close()
    other = one.process()
    assert [(await other.take(lane, (1, 2))).chunks for lane in range(3)] == [{"a": b"%d" % n} for n in range(3)]


async def test_progress_of_which_a_part_is_gone_is_corrupt(run: Callable[..., Run]) -> None:
    """A lost record never reads as a smaller finished set."""
    one = run()
    store = one.process()
    await store.take(0, (1, 1))
    await store.commit(0, (1, 1), 1, {}, {"progress": b"1" * 10, "shelf/1": b"2"})
    await store.release(0)
    scope = (await store._open()).cluster.scope
    async with AIOKafkaProducer(bootstrap_servers=one.bootstrap) as producer:
        await producer.send_and_wait(one.progress, None, scope.key("0", "shelf/1", "0"), scope.data(0))
    with pytest.raises(Corrupt, match="lane 0"):
        await one.process().take(0, (1, 2))


# records


async def test_records_carry_their_inputs_key_and_headers_and_where_they_come_from(run: Callable[..., Run]) -> None:
    """Without a key the item's id is it, so that one item's records meet."""
    one = run()
    store = one.process()
    await store.take(0, (3, 1))
    keyed = record(1, key=b"customer", headers=(("trace", b"t"), ("penstock-run", b"forged")))
    await store.commit(0, (3, 1), 1, {"results": [keyed, record(2)]}, {})
    ours = {"penstock-run": one.id.encode(), "penstock-epoch": b"3"}
    assert await one.records(f"{one.id}-results") == [
        (b"customer", b'{"n":1}', {"trace": b"t", **ours, "penstock-item": b"item-1"}),
        (b"item-2", b'{"n":2}', {**ours, "penstock-item": b"item-2"}),
    ]


async def test_a_result_goes_where_its_record_asks_if_the_job_allows_it(
    run: Callable[..., Run], new_topic: Callable[..., Awaitable[str]]
) -> None:
    """Any other name in `reply_to` is carried as a header and otherwise ignored. Whoever reads the run's results finds
    them all, and nothing that others wrote there."""
    inbox = await new_topic("inbox")
    one = run()
    one.sinks["results"] = msgspec.structs.replace(one.sinks["results"], reply_to=(inbox,))
    one.place = KafkaPlace(one.sinks, one.id)  # type: ignore[arg-type]
    store = one.process()
    await store.take(0, (1, 1))
    asked = record(1, headers=(("reply_to", inbox.encode()),))
    forbidden = record(2, headers=(("reply_to", b"__consumer_offsets"),))
    await store.commit(0, (1, 1), 1, {"results": [asked, forbidden], "costs": [asked]}, {})
    producer = AIOKafkaProducer(bootstrap_servers=one.bootstrap)
    await producer.start()
    await producer.send_and_wait(inbox, b"a stranger's")
    await producer.stop()
    assert [value for _, value, _ in await one.records(inbox)] == [b'{"n":1}', b"a stranger's"]
    assert (sorted(one.committed()), one.committed("costs")) == ([b'{"n":1}', b'{"n":2}'], [b'{"n":1}'])


CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}


@pytest.mark.parametrize("compression", CODECS)
async def test_a_record_that_its_topic_does_not_take_is_refused_before_anything_is_sent(
    run: Callable[..., Run], compression: str
) -> None:
    """The lane can ask first; what is committed all the same is `Refused`, and nothing of that commit is there. The
    largest that the store lets pass is one that the broker takes, compressed or not."""
    one = run(create=CreateTopic(config={"max.message.bytes": "2000"}), compression=compression)
    store = one.process()
    await store.take(0, (1, 1))
    sizes = [n for n in range(2000) if store.refuses("results", record(1, n)) is None]
    assert 1500 < len(sizes) < 2000
    assert "2,000" in str(store.refuses("results", record(1, len(sizes))))
    with pytest.raises(Refused, match=r"max\.message\.bytes"):
        await store.commit(0, (1, 1), 1, {"results": [record(2), record(1, len(sizes) + 20)]}, {})
    assert one.committed() == []
    await store.commit(0, (1, 1), 1, {"results": [record(1, len(sizes) - 1)] * 3}, {"a": b"1" * 3_000_000})
    assert len(one.committed()) == 3
    assert (await store.peek(0)).chunks == {"a": b"1" * 3_000_000}


@pytest.mark.parametrize("compression", CODECS)
async def test_records_lie_in_their_topic_compressed_as_the_sink_says(
    run: Callable[..., Run], kafka_server: KafkaServer, compression: str
) -> None:
    """And read back as they were, incompressible ones too."""
    if not isinstance(kafka_server, KafkaServer):
        pytest.skip("the folder of a server that was there already is not at hand")
    one = run(compression=compression)
    store = one.process()
    await store.take(0, (1, 1))
    records = [record(n, 400) for n in range(100)]
    noise = [OutRecord(0, 100, b'"%s"' % secrets.token_hex(3000).encode(), item_id="noise")]
    await store.commit(0, (1, 1), 1, {"results": records + noise}, {})
    assert sorted(one.committed()) == sorted(each.value for each in records + noise)
    [log] = (kafka_server.folder / "data" / f"{one.id}-results-0").glob("*.log")
    assert codecs(log.read_bytes()) == {CODECS[compression]}


def codecs(log: bytes) -> set[int]:
    """Of the batches of records in a segment, the markers of transactions left out. Layout: the first 23 bytes of
    https://kafka.apache.org/documentation/#recordbatch; a segment is longer than what was written to it."""
    found: set[int] = set()
    while len(log) > 23 and (length := int.from_bytes(log[8:12])):
        attributes = int.from_bytes(log[21:23])
        found |= set[int]() if attributes & 0x20 else {attributes & 0x07}
        log = log[12 + length :]
    return found


async def test_only_this_runs_records_are_its_own(run: Callable[..., Run]) -> None:
    """Two runs may share a topic; what came before `--fresh` counts no more, and its progress is gone."""
    one, two = run(), run()
    two.sinks = {"results": one.sinks["results"]}
    two.place = KafkaPlace(two.sinks, two.id)  # type: ignore[arg-type]
    for each in (one, two):
        store = each.process()
        await store.hold(WHO)
        await store.take(0, (1, 1))
        await store.commit(0, (1, 1), 1, {"results": [record(1)]}, {"a": b"1"})
        await store.release(0)
        await store.let_go()
    assert (one.committed(), two.committed()) == ([b'{"n":1}'], [b'{"n":1}'])
    await one.place.discard()
    again = one.process()
    assert await again.hold(WHO) == 2
    assert (await again.take(0, (2, 1))).chunks == {}
    await again.commit(0, (2, 1), 1, {"results": [record(7)]}, {})
    assert (one.committed(), two.committed()) == ([b'{"n":7}'], [b'{"n":1}'])
    await again.let_go()


async def test_kafkas_own_consumer_counts_the_same(run: Callable[..., Run], kafka_server: KafkaServer) -> None:
    """`--isolation-level read_committed` sees each committed record once, and none of an aborted transaction."""
    if not isinstance(kafka_server, KafkaServer):
        pytest.skip("Kafka's tools are not at hand for a server that was there already")
    one = run()
    store = one.process()
    await store.take(0, (1, 1))
    await store.commit(0, (1, 1), 1, {"results": [record(n) for n in range(500)]}, {})
    store.kill()  # leaves nothing behind but what it committed
    other = one.process()
    await other.take(0, (1, 2), force=True)
    await other.commit(0, (1, 2), 2, {"results": [record(n) for n in range(500, 510)]}, {})
    seen = kafka_server.tool(
        CONSOLE_CONSUMER, "--topic", f"{one.id}-results", "--from-beginning", "--max-messages", "510",
        "--timeout-ms", "20000", "--isolation-level", "read_committed",
    )  # fmt: skip
    assert sorted(seen.split()) == sorted(value.decode() for value in one.committed())


# brokers that fail


async def test_a_commit_to_a_frozen_broker_is_uncertain_and_the_next_take_reads_the_truth(
    run: Callable[..., Run], start_kafka: Callable[..., KafkaServer]
) -> None:
    """`Temporary` in less time than the transaction has; after the thaw, what the commit wrote is there with its seq or
    not at all."""
    server = start_kafka()
    one = run(on=server)
    store = one.process(commit_s=2.0)
    await store.take(0, (1, 1))
    await store.commit(0, (1, 1), 1, {"results": [record(1)]}, {"a": b"1"})
    _frozen(server)
    with pytest.raises(Temporary, match="did not answer"):
        await store.commit(0, (1, 1), 2, {"results": [record(2)]}, {"a": b"2"})
    with pytest.raises(Temporary, match="uncertain"):
        await store.commit(0, (1, 1), 2, {"results": [record(2)]}, {"a": b"2"})
    server.thaw()
    taken = await store.take(0, (1, 2))
    assert taken.chunks == {"a": b"%d" % taken.seq}
    await store.commit(0, (1, 2), taken.seq + 1, {"results": [record(3)]}, {"a": b"3"})
    expected = [1, 2, 3] if taken.seq == 2 else [1, 3]
    assert sorted(one.committed()) == [b'{"n":%d}' % n for n in expected]


def _frozen(server: KafkaServer) -> None:
    """Frozen, all its threads: on a busy machine the signal takes its time."""
    server.freeze()
    assert server.running is not None
    tasks = Path(f"/proc/{server.running.pid}/task")
    while any(task.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "T" for task in tasks.iterdir()):
        pass


async def test_a_broker_that_falls_silent_amid_what_is_read_is_told(
    run: Callable[..., Run], start_kafka: Callable[..., KafkaServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Costs, reports and dead letters are read so: `Away`, and no wait without end."""
    server = start_kafka()
    one = run(on=server)
    store = one.process()
    await store.take(0, (1, 1))
    for seq in range(1, 9):
        await store.commit(0, (1, 1), seq, {"results": [record(seq, size=200_000)]}, {})
    monkeypatch.setattr(kafka_place, "READ_S", 0.5)
    monkeypatch.setattr(kafka_place, "FETCH_BYTES", 300_000)

    def read() -> None:
        values = one.place.committed("results")
        next(values)
        _frozen(server)
        with pytest.raises(Away, match=f"reading {one.id}-results"):
            list(values)

    with ThreadPoolExecutor(1) as thread:
        await asyncio.get_running_loop().run_in_executor(thread, read)
    server.thaw()


async def test_a_broker_that_is_not_there_is_temporary() -> None:
    """The message says what to look at, and not how a library writes an address down."""
    store = Run("127.0.0.1:1").process()
    with pytest.raises(Temporary, match="can't be reached while connecting: Connection refused"):
        await store.hold(WHO)


async def test_a_host_that_nobody_knows_is_told_as_one() -> None:
    with pytest.raises(Temporary, match=r"nosuch.invalid:9092 can't be reached .*: .*(not known|resolution)"):
        await Run("nosuch.invalid:9092").process().hold(WHO)


async def test_why_a_name_with_several_addresses_can_not_be_reached() -> None:
    both = OSError("Multiple exceptions: [Errno 111] Connect call failed ('::1', 1), [Errno 111] Connect call failed")
    told = str(translated(both, Connection("localhost:1"), "reading"))
    assert told.startswith("Kafka at localhost:1 can't be reached while reading (Connection refused). ")


async def test_why_a_port_without_tls_can_not_be_reached_by_tls(kafka_server: KafkaServer | KafkaAt) -> None:
    plain = Connection(kafka_server.bootstrap, security_protocol="SSL")
    with pytest.raises(Temporary, match=r"connection was closed.*another security_protocol than SSL"):
        await start(new_consumer(plain), plain)


# owners


async def test_a_lane_that_only_lost_its_producer_is_told_to_start_anew(run: Callable[..., Run]) -> None:
    """Fenced by somebody who then gave up: the epoch in the store is still ours, so it is `Temporary`, not `Fenced`."""
    one = run()
    store, rival = one.process(), one.process()
    await store.take(0, (1, 1))
    here = await rival._open()
    await rival._producer(here, 0).start()
    with pytest.raises(Temporary, match="Take the lane anew"):
        await store.commit(0, (1, 1), 1, {"results": [record(1)]}, {})
    await store.take(0, (1, 2))
    await store.commit(0, (1, 2), 1, {"results": [record(1)]}, {})
    assert one.committed() == [b'{"n":1}']


@pytest.mark.parametrize("at", ["commit.opened", "commit.sent"])
async def test_who_hears_between_two_steps_of_a_commit_that_it_was_fenced_says_so(
    run: Callable[..., Run], at: str
) -> None:
    """The client only says that there is no transaction: nobody must try that again as if Kafka had been away."""
    one = run()
    store, rival = one.process(), one.process()
    await store.take(0, (1, 1))
    await rival.take(0, (1, 2), force=True)
    transactions = store._lanes[0].producer._producer._txn_manager

    def hears(step: str) -> None:
        if step == at:
            transactions.fatal_error(ProducerFenced())

    store._faults = hears
    with pytest.raises(Fenced, match="taken over"):
        await store.commit(0, (1, 1), 1, {"results": [record(1)]}, {})
    assert one.committed() == []


async def test_two_that_take_one_lane_at_once_commit_one_after_the_other_or_not_at_all(run: Callable[..., Run]) -> None:
    """However they interleave: no commit is there twice, and whoever comes with a higher epoch next has the lane."""
    one = run()
    low, high = one.process(), one.process()

    async def work(store: KafkaStore, lane_epoch: int) -> str:
        try:
            taken = await store.take(0, (1, lane_epoch), force=True)
            await store.commit(0, (1, lane_epoch), taken.seq + 1, {"results": [record(lane_epoch)]}, {})
        except (Fenced, Temporary) as error:
            return type(error).__name__
        return "committed"

    ended = await asyncio.gather(work(low, 1), work(high, 2))
    assert len(one.committed()) == ended.count("committed") == (await high.peek(0)).seq
    assert await work(high, 3) == "committed"
    assert await low.owner(0) == await high.owner(0) == (1, 3)
    assert await work(low, 2) == "Fenced"


async def test_a_holder_that_falls_silent_is_replaced_and_one_that_beats_is_not(run: Callable[..., Run]) -> None:
    """A killed command leaves no mark: the next one waits until its counter has stood still long enough."""
    one = run()
    first = one.process()
    assert await first.hold(WHO) == 1
    second = one.process()
    with pytest.raises(Held, match="ada@here"):
        await second.hold(WHO)
    with pytest.raises(Held):
        await one.place.refuse_held()
    assert await second.holder() == WHO
    first.kill()
    third = one.process(alive_s=0.5)
    assert await third.holder() is None
    assert await third.hold(WHO) == 2
    await third.let_go()
    assert await one.process().hold(WHO) == 3


async def test_a_holder_that_was_replaced_writes_no_plan(run: Callable[..., Run]) -> None:
    """It is `Fenced` and says so; the new holder's plan stands. A plan may be larger than a record."""
    one = run()
    old, new = one.process(), one.process()
    await old.hold(WHO)
    split = Split("s", "s", 0, 0, "kafka://b/t/0", 0, 10)
    plan = Plan(one.id, "n", {}, 1, (split,) * 30_000, {}, 0.0)
    await old.write_plan(plan)
    assert await new.hold(WHO, take_over=True) == 2
    with pytest.raises(Fenced):
        await old.write_plan(msgspec.structs.replace(plan, version=2))
    assert await new.read_plan() == plan
    await new.write_plan(msgspec.structs.replace(plan, version=2, started=True))
    assert (await one.process().read_plan()) == msgspec.structs.replace(plan, version=2, started=True)


async def test_a_holder_that_only_lost_its_producer_writes_its_plan_the_next_time(run: Callable[..., Run]) -> None:
    """It slept amid a transaction, say, and nobody has taken the run: else a run without an end would never see new
    input again."""
    one = run()
    store, rival = one.process(), one.process()
    await store.hold(WHO)
    plan = Plan(one.id, "n", {}, 1, (), {}, 0.0)
    await store.write_plan(plan)
    await (await rival._open()).run._start_driver()
    longer = msgspec.structs.replace(plan, version=2)
    with pytest.raises(Temporary):
        await store.write_plan(longer)
    await store.write_plan(longer)
    assert await store.read_plan() == longer
    await store.finish(longer)
    await store.let_go()
