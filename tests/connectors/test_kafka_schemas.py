"""Avro, JSON Schema and Protobuf records, with a registry that speaks Confluent's REST API over HTTP."""

from __future__ import annotations

import asyncio
import base64
import datetime
import decimal
import io
import json
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import fastavro
import msgspec
import pytest
from aiohttp import web
from aiokafka import AIOKafkaProducer
from aiokafka.structs import ConsumerRecord
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory, struct_pb2

from penstock.connectors.base import Raw
from penstock.connectors.kafka.oauth import NoToken, token_provider
from penstock.connectors.kafka.proto_files import files
from penstock.connectors.kafka.registry import Schema
from penstock.connectors.kafka.registry_formats import RegistryFormat, RegistryRecords
from penstock.connectors.kafka.schemas import Schemas
from penstock.connectors.kafka.source import KafkaTopics
from penstock.connectors.reading.intake import Intake
from penstock.connectors.settings import Connection, KafkaSource, Row
from penstock.engine.errors import Refused, SpecError, Temporary
from penstock.engine.items import Item
from penstock.engine.plan import Split
from penstock.engine.policy import Policy, Prompt, Task
from penstock.engine.results import DeadLetter
from penstock.jobs.dev.fetch import need_tool
from penstock.jobs.dev.kafka import KafkaServer
from tests.connectors.registry import Registry, running

SPLIT = Split("t@x/0#0-", "t@x/0", 0, 0, "kafka://h/t/0", 0, None)


@pytest.fixture
async def registry(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Registry]:
    monkeypatch.setenv("REGISTRY_AUTH", "me:secret")
    async with running() as found:
        yield found


def connection(registry: Registry, bootstrap: str = "nowhere:1") -> Connection:
    return Connection(bootstrap, schema_registry=registry.url, schema_registry_auth="env:REGISTRY_AUTH")


def framed(schema_id: int, payload: bytes) -> bytes:
    return b"\0" + schema_id.to_bytes(4) + payload


def record(value: bytes | None) -> ConsumerRecord[bytes, bytes]:
    return ConsumerRecord("t", 0, 5, 1_700_000_000_000, 0, b"k", value, None, 1, len(value or b""), [])


async def made(make: RegistryRecords, value: bytes | None) -> Raw:
    async with asyncio.timeout(10):
        while (found := make(SPLIT, record(value))) is None:
            if make.schemas.trouble is not None:
                raise make.schemas.trouble
            await asyncio.sleep(0.01)
    return found


async def row(registry: Registry, format: RegistryFormat, value: bytes) -> Any:
    make = RegistryRecords(format, connection(registry))
    found = await made(make, value)
    await make.schemas.close()
    assert found.error is None, found.error
    assert found.data == value
    return json.loads(found.row_json or b"")


async def error(registry: Registry, format: RegistryFormat, value: bytes | None) -> str:
    make = RegistryRecords(format, connection(registry))
    found = await made(make, value)
    await make.schemas.close()
    assert found.error is not None
    assert found.error[0] == "malformed"
    assert (found.data, found.key) == (value or b"", b"k")
    return found.error[1]


MONEY = {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}
DAY = {"type": "int", "logicalType": "date"}
ORDER = {
    "type": "record", "name": "Order",
    "fields": [{"name": "text", "type": "string"}, {"name": "usd", "type": MONEY}, {"name": "day", "type": DAY}],
}  # fmt: skip


def avro(schema: Any, value: object) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema, value)
    return out.getvalue()


ORDER_VALUE = {"text": "hi é", "usd": decimal.Decimal("1.50"), "day": datetime.date(2026, 11, 24)}


async def test_an_avro_record_is_a_row(registry: Registry) -> None:
    """Dates come as ISO 8601, decimals as text."""
    registry.schemas[7] = {"schema": json.dumps(ORDER)}
    found = await row(registry, "avro", framed(7, avro(ORDER, ORDER_VALUE)))
    assert found == {"text": "hi é", "usd": "1.50", "day": "2026-11-24"}


async def test_a_schema_that_comes_in_several_packets_is_read_whole(registry: Registry) -> None:
    """Of one beyond some ten kilobytes, or from a registry on another machine, the first packet holds a part only."""
    told = {**ORDER, "doc": "what an order is. " * 20_000}
    registry.schemas[7] = {"schema": json.dumps(told)}
    assert (await row(registry, "avro", framed(7, avro(told, ORDER_VALUE))))["text"] == "hi é"


async def test_an_avro_schema_may_refer_to_others(registry: Registry) -> None:
    inner = {"type": "record", "name": "shop.Inner", "fields": [{"name": "n", "type": "long"}]}
    outer = {"type": "record", "name": "shop.Outer", "fields": [{"name": "inner", "type": "shop.Inner"}]}
    references = [{"name": "shop.Inner", "subject": "inner/v", "version": 3}]
    registry.schemas[8] = {"schema": json.dumps(outer), "references": references}
    registry.subjects["inner/v", "3"] = {"schema": json.dumps(inner), "subject": "inner/v", "version": 3}
    whole = {**outer, "fields": [{"name": "inner", "type": inner}]}
    assert await row(registry, "avro", framed(8, avro(whole, {"inner": {"n": 4}}))) == {"inner": {"n": 4}}


async def test_a_json_schema_record_is_checked_against_its_schema(registry: Registry) -> None:
    schema = {"type": "object", "required": ["text"], "properties": {"n": {"type": "integer"}}}
    registry.schemas[9] = {"schema": json.dumps(schema), "schemaType": "JSON"}
    assert await row(registry, "json-schema", framed(9, b'{"text": "hi"}')) == {"text": "hi"}
    assert "'text' is a required property" in await error(registry, "json-schema", framed(9, b"{}"))
    assert "'x' is not of type 'integer'" in await error(registry, "json-schema", framed(9, b'{"text": "", "n": "x"}'))
    assert "nested deeper" in await error(registry, "json-schema", framed(9, b"[" * 300 + b"]" * 300))


async def test_a_json_schema_with_an_address_refers_to_others_by_name(registry: Registry) -> None:
    """`$ref: shop.json` is then an address beside its own. Confluent's clients find what the registry calls so there,
    and so on from that one."""
    outer = {"$id": "https://a.test/order.json", "properties": {"shop": {"$ref": "shop.json"}}}
    inner = {"required": ["town"], "properties": {"town": {"$ref": "town.json"}}}
    registry.schemas[9] = {"schema": json.dumps(outer), "schemaType": "JSON", "references": [reference("shop.json")]}
    registry.subjects["shop.json", "1"] = {"schema": json.dumps(inner), "references": [reference("town.json")]}
    registry.subjects["town.json", "1"] = {"schema": '{"type": "string"}', "references": []}
    assert await row(registry, "json-schema", framed(9, b'{"shop": {"town": "Ulm"}}')) == {"shop": {"town": "Ulm"}}
    assert "'town' is a required property" in await error(registry, "json-schema", framed(9, b'{"shop": {}}'))
    assert "7 is not of type 'string'" in await error(registry, "json-schema", framed(9, b'{"shop": {"town": 7}}'))


async def test_a_json_schema_that_names_no_draft_is_of_draft_7(registry: Registry) -> None:
    """As the registry and its clients take it: later drafts read a list of `items` in another way."""
    schema = {"properties": {"pair": {"items": [{"type": "string"}, {"type": "integer"}]}}}
    registry.schemas[9] = {"schema": json.dumps(schema), "schemaType": "JSON"}
    assert await row(registry, "json-schema", framed(9, b'{"pair": ["a", 1]}')) == {"pair": ["a", 1]}
    assert "'b' is not of type 'integer'" in await error(registry, "json-schema", framed(9, b'{"pair": ["a", "b"]}'))


def reference(name: str) -> dict[str, Any]:
    return {"name": name, "subject": name, "version": 1}


async def test_a_schema_never_makes_the_reader_fetch_what_it_points_to(registry: Registry) -> None:
    registry.schemas[9] = {"schema": json.dumps({"$ref": registry.url + "/elsewhere"}), "schemaType": "JSON"}
    assert "not json-schema of schema 9" in await error(registry, "json-schema", framed(9, b"{}"))
    assert registry.asked == ["/schemas/ids/9"]


def proto() -> tuple[descriptor_pb2.FileDescriptorProto, descriptor_pb2.FileDescriptorProto]:
    """`order.proto` with `Other` and `Order{text, count, at, money.Money usd, Inner{n}}`, and `money.proto`."""
    field = descriptor_pb2.FieldDescriptorProto
    money = descriptor_pb2.FileDescriptorProto(name="default", package="money", syntax="proto3")
    money.message_type.add(name="Money").field.add(name="cents", number=1, type=field.TYPE_INT64, label=1)
    order = descriptor_pb2.FileDescriptorProto(
        name="default", syntax="proto3", dependency=["money.proto", "google/protobuf/timestamp.proto"]
    )
    order.message_type.add(name="Other")
    message = order.message_type.add(name="Order")
    message.field.add(name="some_text", number=1, type=field.TYPE_STRING, label=1)
    message.field.add(name="count", number=2, type=field.TYPE_INT32, label=1)
    message.field.add(name="at", number=3, type=field.TYPE_MESSAGE, type_name=".google.protobuf.Timestamp", label=1)
    message.field.add(name="usd", number=4, type=field.TYPE_MESSAGE, type_name=".money.Money", label=1)
    message.nested_type.add(name="Inner").field.add(name="n", number=1, type=field.TYPE_INT32, label=1)
    return order, money


def message(name: str, **fields: Any) -> bytes:
    from google.protobuf import timestamp_pb2

    order, money = proto()
    order.name, money.name = "order.proto", "money.proto"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(money.SerializeToString())
    pool.AddSerializedFile(order.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))(**fields).SerializeToString()


def register_proto(registry: Registry) -> None:
    order, money = (base64.b64encode(one.SerializeToString()).decode() for one in proto())
    references = [{"name": "money.proto", "subject": "money", "version": 1}]
    registry.schemas[11] = {"schema": order, "schemaType": "PROTOBUF", "references": references}
    registry.subjects["money", "1"] = {"schema": money, "schemaType": "PROTOBUF", "subject": "money"}


async def test_a_protobuf_record_is_a_row_with_the_names_of_its_fields(registry: Registry) -> None:
    """Fields at zero are there, so that a template may speak of them."""
    register_proto(registry)
    found = await row(
        registry, "protobuf", framed(11, b"\x02\x02" + message("Order", some_text="hi", usd={"cents": 5}))
    )
    assert found == {"some_text": "hi", "count": 0, "usd": {"cents": "5"}}
    assert registry.asked[0] == "/schemas/ids/11?format=serialized"
    assert await row(registry, "protobuf", framed(11, b"\x04\x02\x00" + message("Order.Inner", n=3))) == {"n": 3}
    assert await row(registry, "protobuf", framed(11, b"\x00")) == {}


ORDER_PROTO = """
    syntax = "proto3";
    import "money.proto";
    import "google/protobuf/timestamp.proto";
    message Other {}
    message Order {
      message Inner { int32 n = 1; }
      string some_text = 1;
      int32 count = 2;
      google.protobuf.Timestamp at = 3;
      money.Money usd = 4;
    }"""
MONEY_PROTO = 'syntax = "proto3"; package money; message Money { int64 cents = 1; }'


async def test_a_registry_may_tell_protobuf_as_the_text_of_its_file(registry: Registry) -> None:
    """Apicurio does not know `format=serialized`."""
    references = [{"name": "money.proto", "subject": "money", "version": 1}]
    registry.schemas[11] = {"schema": ORDER_PROTO, "schemaType": "PROTOBUF", "references": references}
    registry.subjects["money", "1"] = {"schema": MONEY_PROTO, "schemaType": "PROTOBUF", "subject": "money"}
    value = framed(11, b"\x02\x02" + message("Order", some_text="hi", usd={"cents": 5}))
    assert await row(registry, "protobuf", value) == {"some_text": "hi", "count": 0, "usd": {"cents": "5"}}


CONNECT_PROTO = """
    syntax = "proto3";
    import "confluent/meta.proto";
    import "confluent/type/decimal.proto";
    import "google/type/date.proto";
    message Order {
      option (confluent.message_meta) = { doc: "an order" };
      string text = 1 [(confluent.field_meta) = { doc: "what was said" }];
      confluent.type.Decimal usd = 2 [(confluent.field_meta) = { params: [{ key: "scale", value: "2" }] }];
      google.type.Date day = 3;
    }"""


@pytest.mark.parametrize("serialized", [False, True])
async def test_what_confluents_tools_import_needs_no_reference(registry: Registry, serialized: bool) -> None:
    """Kafka Connect and ksqlDB write such schemas; all records of their topics died."""
    (*_, order) = files(Schema(CONNECT_PROTO), {})
    told = base64.b64encode(order).decode() if serialized else CONNECT_PROTO
    registry.schemas[11] = {"schema": told, "schemaType": "PROTOBUF"}
    value = b"\x0a\x02hi" + b"\x12\x07\x0a\x01\x96\x10\x09\x18\x02" + b"\x1a\x07\x08\xea\x0f\x10\x0b\x18\x18"
    found = await row(registry, "protobuf", framed(11, b"\0" + value))
    assert found == {
        "text": "hi",
        "usd": {"value": "lg==", "precision": 9, "scale": 2},
        "day": {"year": 2026, "month": 11, "day": 24},
    }


@pytest.mark.parametrize("name", ["../money.proto", "/tmp/money.proto", "a/../../money.proto"])
async def test_what_a_schema_imports_is_never_written_outside_its_folder(registry: Registry, name: str) -> None:
    references = [{"name": name, "subject": "money", "version": 1}]
    registry.schemas[11] = {"schema": ORDER_PROTO, "schemaType": "PROTOBUF", "references": references}
    registry.subjects["money", "1"] = {"schema": MONEY_PROTO, "schemaType": "PROTOBUF", "subject": "money"}
    assert "no name of a file" in await error(registry, "protobuf", framed(11, b"\0"))


async def test_a_text_that_is_no_protobuf_makes_dead_letters(registry: Registry) -> None:
    registry.schemas[11] = {"schema": "message {", "schemaType": "PROTOBUF"}
    assert "no Protobuf that protoc can read" in await error(registry, "protobuf", framed(11, b"\0"))


async def test_what_cannot_be_decoded_is_a_dead_letter(registry: Registry) -> None:
    registry.schemas[7] = {"schema": json.dumps(ORDER)}
    registry.schemas[8] = {"schema": '"string"'}
    registry.schemas[9] = {"schema": "{"}
    register_proto(registry)
    order = avro(ORDER, ORDER_VALUE)
    assert "tombstone" in await error(registry, "avro", None)
    assert "does not begin with a schema's id" in await error(registry, "avro", b'{"text": "hi"}')
    assert "does not begin with a schema's id" in await error(registry, "avro", b"\0\0\0")
    assert "knows no schema 99" in await error(registry, "avro", framed(99, order))
    assert "not avro of schema 7" in await error(registry, "avro", framed(7, order[:4]))
    assert "left behind" in await error(registry, "avro", framed(7, order + b"x"))
    assert "not a row with columns" in await error(registry, "avro", framed(8, avro("string", "hi")))
    assert "schema 9 can't be used" in await error(registry, "avro", framed(9, order))
    assert "is PROTOBUF, but source.format is avro" in await error(registry, "avro", framed(11, order))
    assert "not protobuf of schema 11" in await error(registry, "protobuf", framed(11, b"\x02\x02\xff\xff"))
    assert "not protobuf of schema 11" in await error(registry, "protobuf", framed(11, b"\x02\x22"))
    assert "which can't be" in await error(registry, "protobuf", framed(11, b"\x02\x01"))


COMMENT = {
    "type": "record", "name": "Comment",
    "fields": [{"name": "text", "type": "string"}, {"name": "replies", "type": {"type": "array", "items": "Comment"}}],
}  # fmt: skip
EMPTY = {"type": "record", "name": "Empty", "fields": [{"name": "none", "type": "null"}]}
NONES = {"type": "record", "name": "Nones", "fields": [{"name": "all", "type": {"type": "array", "items": EMPTY}}]}

NAME = {"type": "record", "name": "Name", "fields": [{"name": "name", "type": ["null", "string"]}]}
NAMES = {"type": "record", "name": "Names", "fields": [{"name": "all", "type": {"type": "array", "items": NAME}}]}

TIMES = {"type": "record", "name": "Times", "fields": [{"name": "all", "type": {"type": "array", "items": "long"}}]}


def thread(deep: int) -> bytes:
    return b"\x02x\x02" * deep + b"\x02x\x00" + b"\x00" * deep


def times(many: int) -> bytes:
    return avro(TIMES, {"all": [1_700_000_000_000 + n for n in range(many)]})


def register_bombs(registry: Registry) -> None:
    registry.schemas[7] = {"schema": json.dumps(COMMENT)}
    registry.schemas[8] = {"schema": json.dumps(NONES)}
    registry.schemas[10] = {"schema": json.dumps(NAMES)}
    registry.schemas[12] = {"schema": json.dumps(TIMES)}
    numbers = {"properties": {"all": {"items": {"type": "integer"}}}}
    registry.schemas[9] = {"schema": json.dumps(numbers), "schemaType": "JSON"}
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="m", syntax="proto3", dependency=["google/protobuf/any.proto", "google/protobuf/struct.proto"]
    )
    top, item = file.message_type.add(name="Top"), file.message_type.add(name="Item")
    top.field.add(name="items", number=1, type=field.TYPE_MESSAGE, type_name=".Item", label=3)
    top.field.add(name="any", number=2, type=field.TYPE_MESSAGE, type_name=".google.protobuf.Any", label=1)
    top.field.add(name="free", number=3, type=field.TYPE_MESSAGE, type_name=".google.protobuf.Struct", label=1)
    for number in range(1, 101):
        item.field.add(name=f"f{number}_{'long' * 20}", number=number, type=field.TYPE_STRING, label=1)
    registry.schemas[11] = {"schema": base64.b64encode(file.SerializeToString()).decode(), "schemaType": "PROTOBUF"}


ITEM = b"\x0a\x00"
IN_ANY = any_pb2.Any(type_url="x/Top", value=ITEM * 2_500).SerializeToString()
FREE = struct_pb2.Struct(fields={"a": struct_pb2.Value(string_value="b")}).SerializeToString()


@pytest.mark.parametrize(
    ("format", "schema_id", "bomb", "reason", "why", "good"),
    [
        ("avro", 7, thread(10_000), "malformed", "nested deeper", thread(30)),
        ("avro", 7, b"\x00\x80\x89\x7a" + b"\x00\x00" * 1_000_000 + b"\x00", "too_large", "200,000 values", thread(1)),
        ("avro", 8, b"\x80\x9b\xee\x02\x00", "malformed", "items take no bytes", None),
        ("avro", 10, b"\x80\x89\x7a" + b"\x00" * 1_000_001, "too_large", "200,000 values", b"\x02\x02\x02x\x00"),
        ("avro", 12, times(201_000), "too_large", "200,000 values", times(199_000)),
        ("avro", 12, b"\x02" + b"\xff" * 1_000_000, "too_large", "200,000 values", times(1)),
        ("json-schema", 9, b'{"all": [' + b"1, " * 300_000 + b"1]}", "too_large", "200,000 values", b'{"all": [1]}'),
        ("protobuf", 11, b"\x00" + ITEM * 20_000, "too_large", "200,000 values", b"\x00" + ITEM),
        ("protobuf", 11, b"\x00\x12\x92\x27" + IN_ANY, "too_large", "200,000 values", b"\x00\x12\x07\x0a\x05x/Top"),
        ("protobuf", 11, b"\x00" + ITEM * 1_500, "too_large", "the row has", b"\x00\x1a" + bytes([len(FREE)]) + FREE),
    ],
)  # fmt: skip
async def test_a_small_record_that_would_become_much_or_deep_is_a_dead_letter(
    registry: Registry, format: RegistryFormat, schema_id: int, bomb: bytes, reason: str, why: str, good: bytes | None
) -> None:
    """It neither ends nor holds up the process that reads it: the one behind it is read."""
    register_bombs(registry)
    make = RegistryRecords(format, connection(registry))
    found = await made(make, framed(schema_id, bomb))
    assert found.error is not None
    assert found.error[0] == reason
    assert why in found.error[1]
    if good is not None:
        assert (await made(make, framed(schema_id, good))).error is None
    await make.schemas.close()


async def test_a_schema_is_asked_for_once(registry: Registry) -> None:
    registry.schemas[7] = {"schema": json.dumps(ORDER)}
    make = RegistryRecords("avro", connection(registry))
    for _ in range(5):
        await made(make, framed(7, avro(ORDER, ORDER_VALUE)))
        await made(make, framed(99, b""))
    await make.schemas.close()
    assert registry.asked == ["/schemas/ids/7", "/schemas/ids/99"]


async def test_a_schema_that_the_registry_chokes_on_holds_up_no_other(registry: Registry) -> None:
    """It is asked for again and again; another partition's records are read meanwhile."""
    registry.broken, registry.schemas[7] = {1}, {"schema": json.dumps(ORDER)}
    clock = [0.0]
    schemas = Schemas(connection(registry), RegistryRecords("avro", connection(registry))._codec, now=lambda: clock[0])
    async with asyncio.timeout(10):
        while schemas.get(1) is None and schemas.get(7) is None:
            clock[0] += 0.1
            await asyncio.sleep(0.005)
    assert registry.asked == ["/schemas/ids/7"]
    await schemas.close()


async def test_a_registry_that_is_away_is_waited_for(registry: Registry) -> None:
    """Nothing dies of it; when it is back, the record is read. A wrong address is no unknown schema either."""
    registry.schemas[7] = {"schema": json.dumps(ORDER)}
    value = framed(7, avro(ORDER, ORDER_VALUE))
    make = RegistryRecords("avro", connection(registry))
    for status in (500, 404):
        registry.status = status
        with pytest.raises(Temporary, match=str(status)):
            await made(make, value)
        make.schemas.trouble = None
        make.schemas._not_before.clear()  # pyright: ignore[reportPrivateUsage]
    registry.status = None
    assert (await made(make, value)).error is None
    await make.schemas.close()


def own_certificate(folder: Path) -> ssl.SSLContext:
    """`cert`, for 127.0.0.1: its own authority."""
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=own -addext subjectAltName=IP:127.0.0.1"
    need_tool("openssl", "the test makes its certificate with it")
    subprocess.run([*command.split(), "-keyout", "key", "-out", "cert"], cwd=folder, check=True, capture_output=True)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(folder / "cert", folder / "key")
    return tls


async def test_who_gives_tokens_may_have_a_certificate_of_the_brokers_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the registry may."""
    monkeypatch.setenv("CLIENT_SECRET", "s")

    async def grant(_: web.Request) -> web.Response:
        return web.json_response({"access_token": "t", "expires_in": 600})

    app = web.Application()
    app.router.add_post("/token", grant)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=own_certificate(tmp_path)).start()
    asked = Connection(
        "k:1", sasl_mechanism="OAUTHBEARER", sasl_oauth_endpoint=f"https://127.0.0.1:{runner.addresses[0][1]}/token",
        sasl_oauth_client_id="c", sasl_oauth_client_secret="env:CLIENT_SECRET",
    )  # fmt: skip
    with pytest.raises(NoToken, match="certificate is not trusted"):
        await token_provider(asked).token()
    known = msgspec.structs.replace(asked, ssl_ca_location=str(tmp_path / "cert"))
    assert await token_provider(known).token() == "t"
    await runner.cleanup()


async def test_a_registry_whose_certificate_the_brokers_authority_signed_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A company's own, which the system does not know. Where nobody names it, waiting does not help, and it is said."""
    monkeypatch.setenv("REGISTRY_AUTH", "me:secret")
    async with running(own_certificate(tmp_path)) as registry:
        registry.schemas[7] = {"schema": json.dumps(ORDER)}
        known = msgspec.structs.replace(connection(registry), ssl_ca_location=str(tmp_path / "cert"))
        make = RegistryRecords("avro", known)
        assert (await made(make, framed(7, avro(ORDER, ORDER_VALUE)))).error is None
        await make.schemas.close()
        make = RegistryRecords("avro", connection(registry))
        with pytest.raises(Refused, match=r"certificate is not trusted .* Name the authority that signed it"):
            await made(make, framed(7, avro(ORDER, ORDER_VALUE)))
        await make.schemas.close()


async def test_a_registry_that_cannot_be_reached_is_told(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    make = RegistryRecords("avro", Connection("nowhere:1", schema_registry="http://127.0.0.1:9"))
    with pytest.raises(Temporary, match="can't be reached"):
        await made(make, framed(7, b""))
    await make.schemas.close()
    monkeypatch.setenv("REGISTRY_AUTH", "me:wrong")
    make = RegistryRecords("avro", connection(registry))
    with pytest.raises(Refused, match="schema_registry_auth"):
        await made(make, framed(7, b""))
    await make.schemas.close()
    with pytest.raises(SpecError, match="schema registry"):
        RegistryRecords("avro", Connection("nowhere:1"))


@pytest.mark.kafka
async def test_avro_records_of_a_topic_become_items(
    registry: Registry, kafka_server: KafkaServer, new_topic: Callable[..., Awaitable[str]]
) -> None:
    """A bad one among them becomes a dead letter that holds its bytes as they were."""
    registry.schemas[7] = {"schema": json.dumps(ORDER)}
    topic = await new_topic("avro")
    good, bad = framed(7, avro(ORDER, ORDER_VALUE)), framed(99, b"\xff")
    producer = AIOKafkaProducer(bootstrap_servers=kafka_server.bootstrap)
    await producer.start()
    for value in (good, bad, good):
        await producer.send_and_wait(topic, value)
    await producer.stop()
    settings = KafkaSource(
        (topic,), connection=connection(registry, kafka_server.bootstrap), until="end", format="avro"
    )
    policy = Policy(tasks={"main": Task(name="main", prompt=Prompt(user="say {{ text }}"))}, default_task="main")
    intake = Intake("run", "rows", Row(), policy, ["m"])
    source = KafkaTopics(settings)
    reader = await source.open([(split, split.start) for split in await source.splits(1)])
    made: list[Item | DeadLetter] = []
    async with asyncio.timeout(30):
        while True:
            batch = await reader.read(100, 1 << 20)
            made += [intake.item(raw, 5.0) for raw in batch.records]
            if batch.done:
                break
            await asyncio.sleep(batch.again_after_s or 0)
    await reader.close()
    one, letter, two = made
    assert isinstance(one, Item)
    assert isinstance(two, Item)
    assert "say hi é" in one.request.body_json.decode()
    assert isinstance(letter, DeadLetter)
    assert (letter.reason, letter.original) == ("malformed", bad)
