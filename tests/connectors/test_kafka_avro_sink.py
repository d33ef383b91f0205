"""Results, costs and quality samples as Avro with a schema registry, written to and read from a real Kafka."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import secrets
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import fastavro
import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from penstock.connectors.base import Holder, OutRecord, SinkName
from penstock.connectors.kafka.client import ended
from penstock.connectors.kafka.place import KafkaPlace
from penstock.connectors.settings import Connection, KafkaSink
from penstock.engine.errors import Away, Refused
from penstock.jobs.dev.kafka import KafkaServer
from tests.connectors.registry import Registry, running

pytestmark = pytest.mark.kafka

GOLDEN = Path(__file__).parent.parent / "golden"
WHO = Holder(host="here", pid=7, user="ada", since=0.0, command="penstock run job.yaml")


def lines(name: str) -> list[bytes]:
    return (GOLDEN / f"{name}.jsonl").read_bytes().splitlines()


@pytest.fixture
async def registry(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Registry]:
    monkeypatch.setenv("REGISTRY_AUTH", "me:secret")
    async with running() as found:
        yield found


class Run:
    def __init__(self, server: KafkaServer, registry: Registry) -> None:
        self.id = f"avro-{secrets.token_hex(4)}"
        self.bootstrap = server.bootstrap
        connection = Connection(
            server.bootstrap, schema_registry=registry.url, schema_registry_auth="env:REGISTRY_AUTH"
        )
        sinks = {
            name: KafkaSink(
                f"{self.id}.{name}", connection=connection, create=True, progress_topic="avro-progress",
                format="json" if name == "dead_letters" else "avro",
            )
            for name in get_args(SinkName)
        }  # fmt: skip
        self.place = KafkaPlace(sinks, self.id)  # type: ignore[arg-type]

    async def consumed(self, sink: str) -> list[bytes]:
        """As somebody else's consumer reads them."""
        where = TopicPartition(f"{self.id}.{sink}", 0)
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.bootstrap, isolation_level="read_committed", auto_offset_reset="earliest"
        )
        await consumer.start()
        try:
            consumer.assign([where])
            await consumer.seek_to_beginning(where)
            end = (await consumer.end_offsets([where]))[where]
            found: list[bytes] = []
            while await consumer.position(where) < end:
                found += [r.value or b"" for r in (await consumer.getmany(where, timeout_ms=50)).get(where, [])]
            return found
        finally:
            await consumer.stop()


async def test_a_consumer_reads_our_avro_by_the_registry_and_we_read_it_as_json(
    kafka_server: KafkaServer, registry: Registry
) -> None:
    """With nothing of ours: a schema's id, the schema of that id, and any Avro library. Both shapes of results fit one
    schema; a dead letter stays its input's own bytes; what was decided is read back to the last field."""
    run = Run(kafka_server, registry)
    store = run.place.open()
    await store.hold(WHO)
    await store.take(0, (1, 1))
    written = {
        "results": lines("results.rows") + lines("results.openai-batch"),
        "costs": lines("costs"),
        "quality": lines("quality"),
        "dead_letters": lines("dead_letters"),
        "review": lines("review"),
    }
    records = {
        sink: [OutRecord(0, n, line, item_id=f"i{n}") for n, line in enumerate(them)] for sink, them in written.items()
    }
    await store.commit(0, (1, 1), 1, records, {})  # type: ignore[arg-type]
    await store.release(0)
    await store.let_go()
    subjects = {subject for subject, _ in registry.subjects}
    assert subjects == {f"{run.id}.{sink}-value" for sink in ("results", "costs", "quality", "review")}
    for sink in ("results", "costs", "quality", "review"):
        values = await run.consumed(sink)
        assert len(values) == len(written[sink])
        told = [decoded(registry, value) for value in values]
        if sink == "costs":
            assert [one["usd"] for one in told] == [Decimal(str(exact(line)["usd"])) for line in written[sink]]
        back = await asyncio.to_thread(lambda sink=sink: list(run.place.committed(sink)))
        assert [exact(line) for line in back] == [exact(line) for line in written[sink]]
    letters = [json.loads(line) for line in written["dead_letters"]]
    assert sorted(await run.consumed("dead_letters")) == sorted(original(letter) for letter in letters)
    await ended()


def original(letter: dict[str, str]) -> bytes:
    text = letter["original"]
    return base64.b64decode(text) if letter["original_encoding"] == "base64" else text.encode()


def decoded(registry: Registry, value: bytes) -> Any:
    assert value[:1] == b"\0"
    schema = json.loads(registry.schemas[int.from_bytes(value[1:5])]["schema"])
    return fastavro.schemaless_reader(io.BytesIO(value[5:]), fastavro.parse_schema(schema), None)


def exact(line: bytes) -> Any:
    return json.loads(line, parse_float=Decimal)


async def test_a_record_that_is_too_large_as_avro_is_refused_before_it_is_sent(
    kafka_server: KafkaServer, registry: Registry
) -> None:
    """It is measured as it would be sent."""
    run = Run(kafka_server, registry)
    store = run.place.open()
    await store.hold(WHO)
    line = lines("results.rows")[0]
    whole = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    big = msgspec.json.encode({**whole, "answer": "x" * 1_100_000})
    assert store.refuses("results", OutRecord(0, 1, line)) is None
    assert "max.message.bytes" in str(store.refuses("results", OutRecord(0, 1, big)))
    store.kill()
    await ended()


async def test_a_registry_that_is_away_or_refuses_our_schema_stops_the_run_before_it_starts(
    kafka_server: KafkaServer, registry: Registry
) -> None:
    """With what to do."""
    registry.incompatible = True
    with pytest.raises(Refused, match=r"does not take our schema under the subject .*results-value.*compatibility"):
        await Run(kafka_server, registry).place.open().hold(WHO)
    registry.incompatible, registry.status = False, 503
    with pytest.raises(Away, match="answers 503"):
        await Run(kafka_server, registry).place.open().hold(WHO)
    await ended()
