"""A lane whose results go to Kafka: what becomes of those that their topic can't take."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import msgspec
import pytest
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from penstock.connectors.kafka.client import ended, new_admin, opened
from penstock.connectors.kafka.place import KafkaPlace
from penstock.connectors.kafka.store import KafkaStore
from penstock.connectors.reading.envelope import Envelope, unseal
from penstock.connectors.registry import Stores
from penstock.connectors.settings import Connection, CreateTopic, KafkaSink
from penstock.engine.items import Answer, Call, Outcome, Usage
from tests.workers import lane_rig as rig

if TYPE_CHECKING:
    from conftest import KafkaAt

    from penstock.jobs.dev.kafka import KafkaServer

pytestmark = pytest.mark.kafka

LIMIT = 4000


class Topics:
    """All sinks in topics of one run, which take `LIMIT` bytes a record."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        self.run = f"r-{secrets.token_hex(6)}"
        small = CreateTopic(config={"max.message.bytes": str(LIMIT)})
        sinks = {sink: KafkaSink(f"{self.run}-{sink}", bootstrap, create=small) for sink in rig.SINKS}
        self.place = KafkaPlace(sinks, self.run)
        self.opened: list[KafkaStore] = []

    def open(self) -> Stores:
        self.opened.append(self.place.open())
        return Stores(self.opened[-1], {}, dict.fromkeys(rig.SINKS, "primary"))

    async def raw(self, sink: str) -> list[bytes]:
        return await asyncio.to_thread(lambda: list(self.place.committed(sink)))

    async def read(self, sink: str) -> list[rig.Record]:
        return [msgspec.json.decode(value, type=rig.Record) for value in await self.raw(sink)]


@pytest.fixture
async def topics(kafka_server: KafkaServer | KafkaAt) -> AsyncIterator[Topics]:
    topics = Topics(kafka_server.bootstrap)
    yield topics
    for store in topics.opened:
        store.kill()
    await ended()


async def test_a_result_that_its_topic_does_not_take_ends_as_a_dead_letter(topics: Topics) -> None:
    """It says why, keeps its cost, and is counted as a dead letter; the others are results. An original that is too
    large as well is shortened, and its length tells of the whole."""
    long = rig.line(1).replace(b"item 1", b"item 1 " + b"x" * LIMIT)
    lane = rig.Rig(topics, rig.source(topics.run, [rig.line(0), long, rig.line(2)]))

    def reply(call: Call) -> Outcome:
        text = "yes" * (1 if b"item 0" in call.body_json else LIMIT)
        body = msgspec.json.encode({"choices": [{"message": {"content": text}}]})
        return Outcome(
            call.item_id, 0, call.attempt, time.time(), 1.0, Answer(text, "stop", body), None, Usage(9, output=5)
        )

    driver = await lane.life(topics.open(), reply)
    assert driver.failures == []
    assert await lane.told() == {"r0": ["result"], "r1": ["result_too_large"], "r2": ["result_too_large"]}
    assert (driver.reports[0].tally.results, driver.reports[0].tally.dead_letters) == (1, {"result_too_large": 2})
    letters = {letter["custom_id"]: letter for letter in map(msgspec.json.decode, await topics.raw("dead_letters"))}
    assert "max.message.bytes=4,000" in letters["r2"]["message"]
    assert letters["r2"]["cost_usd"] > 0
    assert (letters["r2"]["original"], letters["r2"]["original_length"]) == (rig.line(2).decode(), len(rig.line(2)))
    assert letters["r1"]["original_length"] == len(long)
    assert long.decode().startswith(letters["r1"]["original"])
    assert LIMIT / 8 < len(letters["r1"]["original"]) < LIMIT


async def test_records_whose_headers_fit_into_no_dead_letter_stop_no_lane(topics: Topics) -> None:
    """An unreadable one, and a result that its topic does not take: both end as letters without the largest header,
    which say so; the small header that says whose they are stays."""
    source = rig.source(topics.run, [b"{", rig.line(1), rig.line(2)])
    headers = (("penstock-tenant", b"acme"), ("blob", b"x" * 2 * LIMIT))
    for at in (0, 1):
        source._records[at] = msgspec.structs.replace(source._records[at], key=b"k", headers=headers)
    lane = rig.Rig(topics, source)
    driver = await lane.life(topics.open())
    assert driver.failures == []
    assert driver.reports[0].tally.dead_letters == {"malformed": 1, "result_too_large": 1}
    letters = [msgspec.json.decode(value) for value in await topics.raw("dead_letters")]
    assert sorted(letter["original"] for letter in letters) == sorted(["{", rig.line(1).decode()])
    for letter in letters:
        assert unseal(letter["envelope"]) == Envelope(b"k", headers[:1], "header blob")


async def test_a_limit_that_is_lowered_in_mid_run_is_paid_for_once(topics: Topics) -> None:
    """The broker refuses the commit of an answer that fitted. Asked again, it ends as a dead letter: an endless run
    would ask every ten seconds."""
    lane, stores = rig.Rig(topics, rig.source(topics.run, [rig.line(0)])), topics.open()
    await stores.primary.take(7, (1, 1))  # so that the process goes on knowing the topics
    connection = Connection(topics.bootstrap)
    async with opened(new_admin(connection), connection) as admin:
        config = {"max.message.bytes": str(LIMIT // 2)}
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, f"{topics.run}-results", config)])

    def reply(call: Call) -> Outcome:
        text = "yes" * (LIMIT // 5)
        body = msgspec.json.encode({"choices": [{"message": {"content": text}}]})
        return Outcome(
            call.item_id, 0, call.attempt, time.time(), 1.0, Answer(text, "stop", body), None, Usage(9, output=5)
        )

    assert len((await lane.life(stores, reply)).failures) == 1
    assert (await lane.life(stores, reply)).failures == []
    assert await lane.told() == {"r0": ["result_too_large"]}
    assert len(lane.sent) == 2
