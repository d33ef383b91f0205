"""What people and programs do to a job between topics: stop it, take it over, delete a topic, forget its group."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import msgspec
import pytest
from aiokafka.admin import AIOKafkaAdminClient

from tests.crash.bench import SINKS
from tests.crash.streams import kafka_lines
from tests.crash.streams.stage import Stage
from tests.crash.streams.storms import UNCOMMITTED_S
from tests.crash.streams.stream_bench import StreamBench, StreamShape, stopped_and_taken_over, stream_bench

pytestmark = [pytest.mark.ray, pytest.mark.kafka, pytest.mark.s3]


def everything(b: StreamBench) -> dict[str, list[kafka_lines.Seen]]:
    return {sink: b.rows(sink) for sink in SINKS}


def bound(b: StreamBench, owners: int = 1) -> int:
    return owners * round(b.shape.concurrency + b.fastest_rate() * UNCOMMITTED_S["kafka"])


def drained(b: StreamBench, calls: int) -> None:
    """Run until so many calls were served, then SIGINT: what is in flight ends and is committed."""
    command = b.start()
    b.wait_served(calls, command)
    command.send_signal(signal.SIGINT)
    assert b.end(command) == 130, b.log(command)


@pytest.mark.long
@pytest.mark.soak
def test_a_stopped_command_that_was_taken_over_pays_and_writes_nothing(servers: Stage, tmp_path: Path) -> None:
    """Not a record more."""
    with stream_bench(servers, tmp_path, StreamShape(items=1_500, model="sure")) as b:
        stopped_and_taken_over(b, 300, everything)
        b.check(bound=bound(b, owners=2))


@pytest.mark.long
@pytest.mark.soak
def test_a_second_instance_is_refused_or_takes_over(servers: Stage, tmp_path: Path) -> None:
    """While calls are slow: refused with exit code 2, told who holds the run, and the first goes on; with --take-over
    the first lets its calls end, hands over, and exits with 0."""
    with stream_bench(servers, tmp_path, StreamShape(items=150, model="slow", concurrency=8)) as b:
        first = b.start()
        b.wait_served(1, first)
        second = b.start()
        assert b.end(second, 60.0) == 2, b.log(second)
        assert "held by" in " ".join(b.log(second).split())
        b.write_job(concurrency=150)
        third = b.start("--take-over")
        assert b.end(first) == 0, b.log(first)
        assert "handed over" in b.log(first)
        assert b.end(third) == 0, b.log(third)
        b.kills.append("take-over")
        b.check(bound=bound(b))


@pytest.mark.long
def test_a_lane_actor_that_is_killed_while_it_opens_is_replaced_again(servers: Stage, tmp_path: Path) -> None:
    """The run goes on by itself. (Seen: it asked the dead actor again and again, until it gave up.)"""
    with stream_bench(servers, tmp_path, StreamShape(items=600, lane_actors=1)) as b:
        command = b.start()
        b.wait_served(100, command)
        (first,) = b.find("lane", command)
        first.kill()
        until = time.monotonic() + 60
        while not (fresh := [p for p in b.find("lane", command) if p.pid != first.pid]):
            assert time.monotonic() < until
            time.sleep(0.01)
        fresh[0].kill()
        b.kills += ["lane", "its successor"]
        assert b.end(command) == 0, b.log(command)
        b.check(bound=bound(b, owners=2))


@pytest.mark.long
@pytest.mark.soak
def test_group_offsets_that_vanish_change_nothing(servers: Stage, tmp_path: Path) -> None:
    """The source's group mirrors the progress for lag tools; a run whose group was deleted goes on where it was."""
    with stream_bench(servers, tmp_path, StreamShape(items=400, model="sure")) as b:
        drained(b, 100)
        assert asyncio.run(offsets_of(servers, b.group)), "the group mirrors the progress"
        asyncio.run(forget_group(servers, b.group))
        assert not asyncio.run(offsets_of(servers, b.group))
        paid = len(b.paid())
        b.run_until_done(tries=1)
        assert len(b.paid()) == b.shape.items > paid
        b.check(bound=0)


async def offsets_of(stage: Stage, group: str) -> dict[object, object]:
    admin = AIOKafkaAdminClient(bootstrap_servers=stage.kafka.bootstrap)
    await admin.start()
    try:
        return await admin.list_consumer_group_offsets(group)
    finally:
        await admin.close()


async def forget_group(stage: Stage, group: str) -> None:
    """As Kafka's own tool does it; the client can't."""
    from penstock.jobs.dev.kafka import CONSUMER_GROUPS

    await asyncio.to_thread(stage.kafka.tool, CONSUMER_GROUPS, "--delete", "--group", group)


@pytest.mark.long
@pytest.mark.soak
def test_a_topic_deleted_in_mid_run_is_told_and_what_was_read_stays(servers: Stage, tmp_path: Path) -> None:
    """Each partition that was not at its end becomes one dead letter that says from where on nothing was read; all
    that was read ends once."""
    with stream_bench(servers, tmp_path, StreamShape(items=4_000, concurrency=16, window=128)) as b:
        command = b.start()
        b.wait_served(300, command)
        asyncio.run(kafka_lines.delete_topics(servers.kafka.bootstrap, b.topic))
        assert b.end(command) in (0, 5), b.log(command)
        told = [msgspec.json.decode(value) for value in b.values("dead_letters")]
        lost = [letter for letter in told if letter["reason"] == "source_lost"]
        assert 1 <= len(lost) <= b.shape.partitions, told
        assert all("was deleted" in letter["message"] for letter in lost)
        results = b.read_back().results
        assert 0 < len(results) < b.shape.items
        assert len({one.item_id for one in results}) == len(results)


@pytest.mark.long
def test_a_topic_made_again_between_runs_is_a_new_input(servers: Stage, tmp_path: Path) -> None:
    """What the old one held beyond the progress is told as lost; the new one is read from its first record, though the
    old progress stood further on."""
    with stream_bench(servers, tmp_path, StreamShape(items=2_000, concurrency=16, window=128)) as b:
        drained(b, 300)
        before = {one.key for one in b.read_back().results}
        bootstrap = servers.kafka.bootstrap
        asyncio.run(made_again(bootstrap, b.topic, b.shape.partitions))
        fresh = [f"new-{n}" for n in range(60)]
        asyncio.run(b.offer(fresh))
        for _ in range(3):
            command = b.start()
            if b.end(command) in (0, 5):
                break
        else:
            raise AssertionError(b.log(command))
        found = b.read_back()
        labels = [one.key for one in found.results]
        assert len(set(labels)) == len(labels)
        assert before <= set(labels)
        assert set(fresh) <= set(labels) | {one.key for one in found.dead_letters}
        letters = [msgspec.json.decode(value) for value in b.values("dead_letters")]
        assert any(letter["reason"] == "source_lost" for letter in letters), letters


async def made_again(bootstrap: str, topic: str, partitions: int) -> None:
    await kafka_lines.delete_topics(bootstrap, topic)
    until = time.monotonic() + 30
    while True:
        try:
            await kafka_lines.make_topics(bootstrap, {topic: partitions})
        except AssertionError:  # the old one is not quite gone
            assert time.monotonic() < until
            await asyncio.sleep(0.1)
        else:
            return


def test_a_result_that_its_topic_refuses_is_a_dead_letter(servers: Stage, tmp_path: Path) -> None:
    """`max.message.bytes` of the results topic: what does not fit ends among the dead letters, billed once; the lane
    goes on."""
    with stream_bench(servers, tmp_path, StreamShape(items=300, model="sure")) as b:
        long = [f"long-{n}" for n in range(5)]
        asyncio.run(b.offer(long, (("carried", b"x" * 3_000),)))
        asyncio.run(limited(servers.kafka.bootstrap, b.out("results"), 3_000))
        b.run_until_done(tries=1)
        assert b.check(bound=0).dead_letters == len(long)
        assert {msgspec.json.decode(value)["reason"] for value in b.values("dead_letters")} == {"result_too_large"}


async def limited(bootstrap: str, topic: str, most: int) -> None:
    from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": str(most)})])
    finally:
        await admin.close()
