"""The schemas of our own records, for those who read them: JSON Schema (draft 2020-12) and Avro.

Both follow from the record structs, so neither can drift apart from what is written. In Avro money is decimal(18,9), a
time is timestamp-millis, and what is the user's own (a body, an input, a kept column) is its JSON text.

A result has one Avro schema, whatever its shape: `id`, `custom_id` and `response` are null in shape `rows`, `columns`
and `answer` in shape `openai-batch`. `answer` is the answer's text; where it was asked for as an object
(`answer_is_json`), the object's JSON text.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any, get_args, get_origin

import msgspec

from penstock.connectors.base import SinkName
from penstock.connectors.writing.record_structs import (
    BatchLine,
    CostRecord,
    DeadLetterRecord,
    Json,
    Provenance,
    QualityRecord,
    Response,
    ReviewRecord,
)
from penstock.connectors.writing.table_columns import RowLine, decode_line

_NAMESPACE = "penstock"
_MONEY = {"type": "bytes", "logicalType": "decimal", "precision": 18, "scale": 9}
"""As in Parquet: a thousand million dollars, to the nano-dollar."""
_TIME = {"type": "long", "logicalType": "timestamp-millis"}
_MONEY_NAMES = ("usd", "cost_usd")
_PLAIN: dict[object, str] = {int: "long", float: "double", bool: "boolean", str: "string"}

Pack = Callable[[Any], Any]
Struct = type[msgspec.Struct]


class _Result(msgspec.Struct, frozen=True):
    """Both shapes of a result in one record."""

    id: str | None
    custom_id: str | None
    response: Response | None
    columns: dict[str, Json] | None
    answer: str | None
    answer_is_json: bool
    """It was asked for as an object, and `answer` is that object's text."""
    penstock: Provenance


_RECORDS: dict[SinkName, Struct] = {
    "results": _Result,
    "costs": CostRecord,
    "quality": QualityRecord,
    "dead_letters": DeadLetterRecord,
    "review": ReviewRecord,
}
SINKS: tuple[SinkName, ...] = tuple(_RECORDS)


class _Kind(msgspec.Struct, frozen=True):
    """One field's type: its Avro schema, and the way from our value to Avro's and back to what JSON holds."""

    avro: Any
    pack: Pack
    unpack: Pack


def _same(value: Any) -> Any:
    return value


class _Walk:
    """From a record struct to its Avro record. A named record is written out once, and named from then on."""

    def __init__(self) -> None:
        self._named: dict[Struct, _Kind] = {}

    def record(self, struct: Struct) -> _Kind:
        if struct in self._named:
            known = self._named[struct]
            return _Kind(f"{_NAMESPACE}.{known.avro['name']}", known.pack, known.unpack)
        fields = {field.name: self.field(field.name, field.type) for field in msgspec.structs.fields(struct)}
        avro = {
            "type": "record",
            "name": struct.__name__.strip("_"),
            "namespace": _NAMESPACE,
            "fields": [_field(name, kind.avro) for name, kind in fields.items()],
        }

        def pack(value: Any) -> Any:
            return {name: kind.pack(getattr(value, name)) for name, kind in fields.items()}

        def unpack(value: Any) -> Any:
            return {name: kind.unpack(value[name]) for name, kind in fields.items()}

        made = self._named[struct] = _Kind(avro, pack, unpack)
        return made

    def field(self, name: str, kind: Any) -> _Kind:
        if type(None) in get_args(kind):
            (inner,) = (one for one in get_args(kind) if one is not types.NoneType)
            return _optional(self.field(name, inner))
        if get_origin(kind) in (list, tuple):
            return _array(self.field("", get_args(kind)[0]))
        if get_origin(kind) is dict:
            text = self.field("", get_args(kind)[1])
            return _Kind(
                {"type": "map", "values": text.avro},
                lambda value: {key: text.pack(one) for key, one in value.items()},
                lambda value: {key: text.unpack(one) for key, one in value.items()},
            )
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return self.record(kind)
        if kind is Json:
            return _Kind(_MONEY, _dollars, _number) if name in _MONEY_NAMES else _Kind("string", _text, _json)
        if kind is str and (name == "at" or name.endswith("_at")):
            return _Kind(_TIME, _milliseconds, _stamp)
        return _Kind(_PLAIN.get(kind, "string"), _same, _same)


def _field(name: str, avro: Any) -> dict[str, Any]:
    """What may be null is null by default: a reader of a later schema takes older records."""
    default = {"default": None} if isinstance(avro, list) else {}
    return {"name": name, "type": avro, **default}


def _optional(kind: _Kind) -> _Kind:
    return _Kind(
        ["null", kind.avro],
        lambda value: None if value is None else kind.pack(value),
        lambda value: None if value is None else kind.unpack(value),
    )


def _array(kind: _Kind) -> _Kind:
    return _Kind(
        {"type": "array", "items": kind.avro},
        lambda value: [kind.pack(one) for one in value],
        lambda value: [kind.unpack(one) for one in value],
    )


def _text(value: msgspec.Raw) -> str:
    return bytes(value).decode()


def _json(value: str) -> msgspec.Raw:
    return msgspec.Raw(value.encode())


def _dollars(value: msgspec.Raw) -> Decimal:
    return Decimal(_text(value))


def _number(value: Decimal) -> msgspec.Raw:
    text = f"{value:f}"
    return msgspec.Raw((text.rstrip("0").rstrip(".") if "." in text else text).encode())


def _milliseconds(value: str) -> int:
    return round(datetime.fromisoformat(value).timestamp() * 1000)


def _stamp(value: datetime) -> str:
    return f"{value:%Y-%m-%dT%H:%M:%S}.{value.microsecond // 1000:03d}Z"


_kinds: dict[str, _Kind] = {sink: _Walk().record(struct) for sink, struct in _RECORDS.items()}


def avro_schema(sink: SinkName) -> dict[str, Any]:
    """The Avro schema of a sink's records."""
    return _kinds[sink].avro


def packed(sink: str, line: bytes) -> dict[str, Any]:
    """A record, as JSON, in the form that Avro's writers take."""
    record = decode_line(sink, line)
    match record:
        case BatchLine():
            record = _Result(record.id, record.custom_id, record.response, None, None, False, record.penstock)
        case RowLine():
            text = _text(record.answer)
            plain = text.startswith('"')
            answer = msgspec.json.decode(text, type=str) if plain else text
            record = _Result(None, None, None, record.kept, answer, not plain, record.penstock)
        case _:
            pass
    return _kinds[sink].pack(record)


def unpacked(sink: SinkName, value: dict[str, Any]) -> bytes:
    """The record as JSON again."""
    record = _kinds[sink].unpack(value)
    if sink != "results":
        return msgspec.json.encode(record)
    if record["response"] is not None:
        names = ("id", "custom_id", "response")
        return msgspec.json.encode(
            {**{name: record[name] for name in names}, "error": None, "penstock": record["penstock"]}
        )
    answer = _json(record["answer"]) if record["answer_is_json"] else record["answer"]
    return msgspec.json.encode({**(record["columns"] or {}), "answer": answer, "penstock": record["penstock"]})


def json_schema(sink: SinkName) -> dict[str, Any]:
    """The JSON Schema of a sink's records. Results are of either shape; a row's kept columns are the user's own."""
    structs: list[Struct] = [BatchLine, Provenance] if sink == "results" else [_RECORDS[sink]]
    schemas, parts = msgspec.json.schema_components(structs, ref_template="#/$defs/{name}")
    for part in parts.values():
        _say_more(part)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"A record of {sink}"}
    if sink != "results":
        return {**head, **schemas[0], "$defs": parts}
    row = {"type": "object", "properties": {"answer": {}, "penstock": schemas[1]}, "required": ["answer", "penstock"]}
    return {**head, "anyOf": [schemas[0], row], "$defs": parts}


def _say_more(part: dict[str, Any]) -> None:
    """What a struct's types do not say: which JSON is money, and which text is a time."""
    for name, field in part.get("properties", {}).items():
        if name in _MONEY_NAMES:
            field |= {"type": "number", "description": "US dollars, at most nine decimals"}
        elif (name == "at" or name.endswith("_at")) and field.get("type") == "string":
            field["format"] = "date-time"
