"""Avro, JSON Schema and Protobuf records with a schema registry → rows.

In front of the payload stand a zero byte and the schema's id in four bytes, for Protobuf also which message of the
file it is: https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/index.html#wire-format
"""

from __future__ import annotations

import importlib
import io
from typing import Any, Literal
from urllib.parse import urljoin

import msgspec

from penstock.connectors.base import Raw
from penstock.connectors.formats.lines import MAX_RECORD_BYTES
from penstock.connectors.kafka.bombs import MOST_VALUES, Counted, many_in_json, many_values, refers_to_itself, too_many
from penstock.connectors.kafka.partition import Record, raw, too_large
from penstock.connectors.kafka.proto_files import MESSAGE, files
from penstock.connectors.kafka.registry import Schema
from penstock.connectors.kafka.schemas import Codec, Compile, Schemas
from penstock.connectors.reading.json_guard import decode, members
from penstock.connectors.settings import Connection
from penstock.engine.errors import BadRecord, SpecError
from penstock.engine.plan import Split

RegistryFormat = Literal["avro", "json-schema", "protobuf"]

_TYPES: dict[RegistryFormat, str] = {"avro": "AVRO", "json-schema": "JSON", "protobuf": "PROTOBUF"}


class RegistryRecords:
    """Makes `Raw` rows of records; `Make`. Raises `SpecError` where the packages or the registry's name are missing."""

    def __init__(self, format: RegistryFormat, connection: Connection) -> None:
        self._format: RegistryFormat = format
        self.schemas = Schemas(connection, self._compile, serialized=format == "protobuf")
        self._codec: Compile = _codec(format)

    def __call__(self, split: Split, record: Record) -> Raw | None:
        value = record.value
        if value is None:
            why = "the record has no value (a tombstone): there is nothing to work on"
            return raw(split, record, b"", error=("malformed", why))
        if len(value) > MAX_RECORD_BYTES:
            return too_large(split, record, value)
        try:
            row = self.row(value)
        except BadRecord as error:
            return raw(split, record, value, error=(error.reason, str(error)))
        return None if row is None else raw(split, record, value, row_json=row)

    def row(self, value: bytes) -> bytes | None:
        """What a value stands for. None: its schema is not there yet, ask again. Raises `BadRecord`."""
        if len(value) < 5 or value[0] != 0:
            why = f"the record does not begin with a schema's id, as {self._format} with a registry does"
            raise BadRecord("malformed", why)
        found = self.schemas.get(int.from_bytes(value[1:5]))
        if found is None:
            return None
        if isinstance(found, BadRecord):
            raise found
        try:
            row = found(value[5:])
        except BadRecord:
            raise
        except Exception as error:  # a payload from strangers that a decoder chokes on is data
            why = f"not {self._format} of schema {int.from_bytes(value[1:5])}: {type(error).__name__}: {error}"
            raise BadRecord("malformed", why[:500]) from error
        if len(row) > MAX_RECORD_BYTES:
            raise BadRecord(
                "too_large", f"the row has {len(row):,} bytes; the longest allowed has {MAX_RECORD_BYTES:,}"
            )
        return row

    def _compile(self, schema_id: int, schema: Schema, named: dict[str, Schema]) -> Codec:
        if schema.schemaType != _TYPES[self._format]:
            raise BadRecord(
                "malformed", f"the schema {schema_id} is {schema.schemaType}, but source.format is {self._format}"
            )
        return self._codec(schema_id, schema, named)


def _codec(format: RegistryFormat) -> Compile:
    """Raises `SpecError` where a package is missing: told when the source is opened, not with the first record."""
    match format:
        case "avro":
            _need("fastavro", format)
            return _avro
        case "protobuf":
            _need("google.protobuf", format)
            _need("grpc_tools", format)
            return _protobuf
        case "json-schema":
            return _json_schema


def _need(package: str, format: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise SpecError(f"format: {format} needs more packages: pip install 'penstock[kafka-schemas]'") from error


def _avro(schema_id: int, schema: Schema, named: dict[str, Schema]) -> Codec:
    import fastavro
    from fastavro import _read_py

    types: dict[str, Any] = {}
    for other in named.values():
        fastavro.parse_schema(msgspec.json.decode(other.schema), named_schemas=types)
    parsed = fastavro.parse_schema(msgspec.json.decode(schema.schema), named_schemas=types)
    # The compiled reader has no bound of depth: it would end the process.
    reader = _read_py if refers_to_itself(parsed, types) else fastavro

    def read(payload: bytes) -> bytes:
        stream = io.BytesIO(payload) if len(payload) <= MOST_VALUES else Counted(payload)
        try:
            row = reader.schemaless_reader(stream, parsed, None)
        except RecursionError as error:
            raise BadRecord("malformed", "the Avro record is nested deeper than can be read") from error
        if stream.tell() != len(payload):
            raise BadRecord("malformed", f"{len(payload) - stream.tell()} bytes are left behind the Avro record")
        return _row(row)

    return read


def _json_schema(schema_id: int, schema: Schema, named: dict[str, Schema]) -> Codec:
    from jsonschema import Draft7Validator
    from jsonschema.validators import validator_for
    from referencing import Registry, Resource
    from referencing.jsonschema import DRAFT7

    told = msgspec.json.decode(schema.schema)
    others = [
        (uri, Resource.from_contents(msgspec.json.decode(other.schema), default_specification=DRAFT7))
        for name, other in named.items()
        for uri in {name, _beside(told, name)}
    ]
    # A registry of our own also keeps the validator from fetching what a schema points to.
    draft = validator_for(told, default=Draft7Validator)  # where it names none, as Confluent's clients have it
    validator = draft(told, registry=Registry().with_resources(others))

    def read(payload: bytes) -> bytes:
        row: Any = decode(payload)
        if type(row) is dict:
            members(payload)
        if many_in_json(row):
            raise too_many()
        error = next(validator.iter_errors(row), None)
        if error is not None:
            raise BadRecord(
                "malformed", f"not valid against schema {schema_id}: {error.json_path}: {error.message}"[:500]
            )
        return _row(row)

    return read


def _beside(schema: Any, name: str) -> str:
    """Where a schema with an address of its own looks for what it calls by a bare name."""
    address = schema.get("$id") if isinstance(schema, dict) else None
    return urljoin(address, name) if isinstance(address, str) else name


def _protobuf(schema_id: int, schema: Schema, named: dict[str, Schema]) -> Codec:
    from google.protobuf import descriptor_pool, json_format, message_factory

    pool = descriptor_pool.DescriptorPool()
    for one in files(schema, named):
        pool.AddSerializedFile(one)
    file = pool.FindFileByName(MESSAGE)

    def read(payload: bytes) -> bytes:
        path, payload = _indexes(payload)
        found = list(file.message_types_by_name.values())[path[0]]
        for number in path[1:]:
            found = found.nested_types[number]
        message = message_factory.GetMessageClass(found)()
        message.ParseFromString(payload)
        if many_values(message, pool):
            raise too_many()
        text = json_format.MessageToJson(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, indent=None,
            ensure_ascii=False, descriptor_pool=pool,
        )  # fmt: skip
        return text.encode()

    return read


def _indexes(payload: bytes) -> tuple[list[int], bytes]:
    """The way to the message: how many steps, then each; a lone zero is the first message. Zigzag varints."""
    count, at = _varint(payload, 0)
    if count == 0:
        return [0], payload[at:]
    path: list[int] = []
    for _ in range(count):
        number, at = _varint(payload, at)
        path.append(number)
    if min(path) < 0:
        raise BadRecord("malformed", f"the record names the message {path}, which can't be")
    return path, payload[at:]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), at
        if shift > 28:
            raise BadRecord("malformed", "the way to the Protobuf message can't be read")


def _row(row: object) -> bytes:
    """Dates become ISO 8601, decimals and UUIDs text, bytes base64."""
    if not isinstance(row, dict):
        raise BadRecord("malformed", f"the record is {type(row).__name__}, not a row with columns")
    text = msgspec.json.encode(row)
    decode(text)  # nested too deep for what follows
    return text
