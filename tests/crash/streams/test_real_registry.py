"""Avro, JSON Schema and Protobuf with a real schema registry, whose schemas refer to each other, and our own Avro.

What producers do is done with the registry's own REST API and the formats' own libraries.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import fastavro
import pytest

from penstock.connectors.base import SinkName
from penstock.connectors.kafka.avro_sink import fetched, registered
from penstock.connectors.settings import Connection, KafkaSink
from penstock.engine.errors import Refused
from tests.crash.streams import kafka_lines
from tests.crash.streams.apicurio import Apicurio
from tests.crash.streams.kafka_lines import Offered
from tests.crash.streams.stage import Stage
from tests.crash.streams.stream_bench import StreamBench, StreamShape, stream_bench

pytestmark = [pytest.mark.long, pytest.mark.ray, pytest.mark.kafka, pytest.mark.s3]

MONEY = {"type": "record", "name": "Money", "namespace": "shop", "fields": [{"name": "cents", "type": "long"}]}
ORDER = {
    "type": "record", "name": "Order", "namespace": "shop",
    "fields": [{"name": "text", "type": "string"}, {"name": "price", "type": "shop.Money"}],
}  # fmt: skip
JSON_MONEY = {"type": "object", "properties": {"cents": {"type": "integer"}}, "required": ["cents"]}
JSON_ORDER = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "properties": {"text": {"type": "string"}, "price": {"$ref": "money.json"}},
    "required": ["text", "price"],
}
PROTO_MONEY = 'syntax = "proto3"; package shop; message Money { int64 cents = 1; }'
PROTO_ORDER = """syntax = "proto3"; package shop; import "money.proto"; import "google/protobuf/timestamp.proto";
    message Order { string text = 1; Money price = 2; google.protobuf.Timestamp at = 3; }"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, servers: Stage) -> Iterator[Apicurio]:
    with Apicurio(tmp_path_factory.mktemp("apicurio")) as server:
        yield server


async def put(url: str, subject: str, schema: str, kind: str, refers: Sequence[tuple[str, str]] = ()) -> int:
    """As a producer registers it. `refers`: name and subject of what it imports. Returns its id."""
    references = [{"name": name, "subject": of, "version": 1} for name, of in refers]
    told = {"schema": schema, "schemaType": kind, "references": references}
    async with aiohttp.ClientSession() as http, http.post(f"{url}/subjects/{subject}/versions", json=told) as answer:
        answer.raise_for_status()
        return (await answer.json())["id"]


def framed(number: int, payload: bytes) -> bytes:
    return b"\0" + number.to_bytes(4) + payload


async def avro(url: str, texts: Sequence[str]) -> list[bytes]:
    await put(url, "money-avro", json.dumps(MONEY), "AVRO")
    number = await put(url, "order-avro", json.dumps(ORDER), "AVRO", [("shop.Money", "money-avro")])
    named: dict[str, Any] = {}
    fastavro.parse_schema(MONEY, named_schemas=named)
    schema = fastavro.parse_schema(ORDER, named_schemas=named)

    def written(text: str) -> bytes:
        out = io.BytesIO()
        fastavro.schemaless_writer(out, schema, {"text": text, "price": {"cents": 5}})
        return framed(number, out.getvalue())

    return [written(text) for text in texts]


async def json_schema(url: str, texts: Sequence[str]) -> list[bytes]:
    await put(url, "money-json", json.dumps(JSON_MONEY), "JSON")
    number = await put(url, "order-json", json.dumps(JSON_ORDER), "JSON", [("money.json", "money-json")])
    return [framed(number, json.dumps({"text": text, "price": {"cents": 5}}).encode()) for text in texts]


async def protobuf(url: str, texts: Sequence[str]) -> list[bytes]:
    """Of strings under 100 bytes: a field's number and kind, its length, its bytes; a zero for the first message."""
    await put(url, "money-proto", PROTO_MONEY, "PROTOBUF")
    number = await put(url, "order-proto", PROTO_ORDER, "PROTOBUF", [("money.proto", "money-proto")])
    return [framed(number, b"\0\x0a" + bytes([len(text)]) + text.encode() + b"\x12\x02\x08\x05") for text in texts]


GOLDEN = Path(__file__).parents[2] / "golden"
PRODUCERS = {"avro": avro, "json-schema": json_schema, "protobuf": protobuf}


@pytest.mark.parametrize("format", PRODUCERS)
def test_a_job_reads_each_format_and_answers_in_avro(
    format: str, registry: Apicurio, servers: Stage, tmp_path: Path
) -> None:
    """A record whose schema the registry does not know is a dead letter; the rest go on."""
    url = registry.address
    with stream_bench(servers, tmp_path, StreamShape(items=0, model="sure")) as b:
        texts = [f"row-{n}" for n in range(30)]
        good = asyncio.run(PRODUCERS[format](url, texts))
        records = [Offered(value, b"good") for value in [*good, framed(90_000, b"?")]]
        asyncio.run(kafka_lines.publish(servers.kafka.bootstrap, b.topic, records))
        write_job(b, format, url)
        command = b.start()
        assert b.end(command) == 0, b.log(command)
        assert [row.value for row in b.rows("dead_letters")] == [framed(90_000, b"?")]
        answers = asyncio.run(read_by_schema(url, [row.value or b"" for row in b.rows("results")]))
        rows = [{name: json.loads(text) for name, text in answer["columns"].items()} for answer in answers]
        assert sorted(row["text"] for row in rows) == sorted(texts)
        assert all(int(row["price"]["cents"]) == 5 for row in rows)  # a long of Protobuf is text in its JSON


def write_job(b: StreamBench, format: str, url: str) -> None:
    here = f'type: kafka, bootstrap: "{b.stage.bootstrap}"'
    source, results = f"{here}, topics", f"{here}, topic: {b.out('results')}"
    job = b.job_text()
    assert source in job
    assert results in job
    job = job.replace(source, f"type: kafka, connection: c, format: {format}, topics")
    job = job.replace(results, f"type: kafka, connection: c, format: avro, topic: {b.out('results')}")
    job = job.replace(here, "type: kafka, connection: c")
    job += f'connections: {{c: {{bootstrap: "{b.stage.bootstrap}", schema_registry: "{url}"}}}}\n'
    (b.folder / "job.yaml").write_text(job + 'prompt: "{{ text }} {{ price.cents }}"\n')


async def read_by_schema(url: str, values: Sequence[bytes]) -> list[Mapping[str, Any]]:
    """As somebody else's consumer reads them: by the id in front, and an Avro library."""
    found: list[Mapping[str, Any]] = []
    async with aiohttp.ClientSession() as http:
        for value in values:
            async with http.get(f"{url}/schemas/ids/{int.from_bytes(value[1:5])}") as answer:
                schema = fastavro.parse_schema(json.loads((await answer.json())["schema"]))
            found.append(fastavro.schemaless_reader(io.BytesIO(value[5:]), schema, None))  # type: ignore[arg-type]
    return found


async def test_our_schemas_keep_their_ids_and_one_that_does_not_go_with_earlier_ones_is_refused(
    registry: Apicurio, servers: Stage
) -> None:
    connection = Connection(servers.bootstrap, schema_registry=registry.address)
    sinks: dict[SinkName, KafkaSink] = {"costs": KafkaSink("bills", connection=connection, format="avro")}
    first = await registered(connection, sinks)
    again = await registered(connection, sinks)
    assert first is not None
    assert again is not None
    line = (GOLDEN / "costs.jsonl").read_bytes().splitlines()[0]
    record = first.framed("costs", line)
    assert again.framed("costs", line) == record
    codec = await fetched(connection, "costs", int.from_bytes(record[1:5]))
    assert json.loads(codec(record[5:])) == json.loads(line)
    await put(registry.address, "taken-value", json.dumps(MONEY), "AVRO")
    async with aiohttp.ClientSession() as http:
        url = f"{registry.address}/config/taken-value"
        async with http.put(url, json={"compatibility": "BACKWARD"}) as answer:
            answer.raise_for_status()
    taken: dict[SinkName, KafkaSink] = {"costs": KafkaSink("taken", connection=connection, format="avro")}
    with pytest.raises(Refused, match="does not take our schema under the subject taken-value"):
        await registered(connection, taken)
