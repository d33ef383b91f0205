"""Kafka to Kafka on three brokers: whoever leads what the job needs dies, and another takes its place."""

from __future__ import annotations

import asyncio
import random
import secrets
from pathlib import Path

import msgspec
import pytest

from penstock.connectors.kafka.client import new_admin, opened
from penstock.connectors.kafka.members import has_members
from penstock.connectors.kafka.source import KafkaTopics
from penstock.connectors.kafka.topics import look_up
from penstock.connectors.settings import Connection, KafkaSource
from tests.crash.streams import kafka_lines
from tests.crash.streams.stage import Stage
from tests.crash.streams.storms import LEADERS, Harm, endless_storm
from tests.crash.streams.stream_bench import StreamShape, stream_bench

pytestmark = [pytest.mark.ray, pytest.mark.kafka, pytest.mark.s3]


@pytest.mark.long
def test_a_command_starts_though_a_broker_has_just_died(cluster: Stage) -> None:
    """For some seconds the others still name it, and clients choose whom they ask at random. What a command asks
    first, many times at once; the broker that dies leads none of it."""
    brokers, topic = cluster.cluster, f"start-{secrets.token_hex(3)}"
    asyncio.run(kafka_lines.make_topics(brokers.bootstrap, {topic: 1}))
    needed = (brokers.group_coordinator(topic), brokers.leader(topic, random.Random(0)))
    dies = next(node for node in brokers.nodes if node not in needed)
    dies.kill()
    try:
        asyncio.run(at_once(20, Connection(brokers.bootstrap), topic))
    finally:
        cluster.heal()


async def at_once(times: int, connection: Connection, topic: str) -> None:
    await asyncio.gather(*(first_questions(connection, topic) for _ in range(times)))


async def first_questions(connection: Connection, topic: str) -> None:
    assert not await has_members(connection, topic)
    source = KafkaSource(connection=connection, topics=(topic,))
    assert len(await KafkaTopics(source).splits(1)) == 1
    async with opened(new_admin(connection), connection) as admin:
        assert [*await look_up(admin, connection, [topic])] == [topic]


SHAPE = StreamShape(items=200, until="forever", model="steady", window=512)


@pytest.mark.long
def test_one_job_survives_the_loss_of_every_leader(cluster: Stage, tmp_path: Path) -> None:
    """That of a source partition, of a sink partition, the coordinator of a lane's transactions and that of the group,
    one after another, while records come; the job goes on."""
    with stream_bench(cluster, tmp_path, msgspec.structs.replace(SHAPE, keys=300)) as b:
        endless_storm(b, LEADERS, seed=1)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", LEADERS)
def test_soak(kind: Harm, seed: int, cluster: Stage, tmp_path: Path) -> None:
    """Each kind three times in a job; every other job keeps the order of its keys."""
    ordered = msgspec.structs.replace(SHAPE, keys=200, order="key") if seed % 2 else SHAPE
    with stream_bench(cluster, tmp_path, msgspec.structs.replace(ordered, seed=seed)) as b:
        endless_storm(b, [kind] * 3, seed)
