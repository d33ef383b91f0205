"""Our records as Avro with a schema registry: a zero byte, the schema's id in four bytes, the record.

The schema of each sink is registered under `<topic>-value`, the name by which Kafka's own Avro tools look it up.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import msgspec

from penstock.connectors.base import SinkName
from penstock.connectors.kafka.registry import Registry, Schema
from penstock.connectors.kafka.schemas import Codec
from penstock.connectors.settings import Connection, KafkaSink
from penstock.connectors.writing.record_schemas import avro_schema, packed, unpacked
from penstock.engine.errors import Corrupt, SpecError


class AvroRecords:
    """`ids`: sink → the id of its schema; the sinks that are written as Avro."""

    def __init__(self, ids: Mapping[SinkName, int]) -> None:
        self._fastavro = needed()
        self._heads: dict[str, bytes] = {sink: b"\0" + number.to_bytes(4) for sink, number in ids.items()}
        self._schemas: dict[str, Any] = {sink: self._fastavro.parse_schema(avro_schema(sink)) for sink in ids}

    def framed(self, sink: str, line: bytes) -> bytes:
        """A record, as JSON, the way it goes to the sink's topic."""
        if sink not in self._heads:
            return line
        out = io.BytesIO()
        out.write(self._heads[sink])
        self._fastavro.schemaless_writer(out, self._schemas[sink], packed(sink, line))
        return out.getvalue()


async def registered(connection: Connection, sinks: Mapping[SinkName, KafkaSink]) -> AvroRecords | None:
    """None: no sink wants Avro. Raises `SpecError` where the package or the registry's name is missing, `Refused`,
    `Away`."""
    wanted: dict[SinkName, str] = {
        sink: settings.topic for sink, settings in sinks.items() if settings.format == "avro"
    }
    if not wanted:
        return None
    needed()
    registry = Registry(connection)
    try:
        texts = {sink: msgspec.json.encode(avro_schema(sink)).decode() for sink in wanted}
        return AvroRecords({sink: await registry.register(f"{wanted[sink]}-value", texts[sink]) for sink in wanted})
    finally:
        await registry.close()


def reading(sink: SinkName, schema: Schema) -> Codec:
    """What follows a record's schema id → the record as JSON. `schema`: the one that it was written with."""
    fastavro = needed()
    written = fastavro.parse_schema(msgspec.json.decode(schema.schema))
    ours = fastavro.parse_schema(avro_schema(sink))

    def read(payload: bytes) -> bytes:
        value: Any = fastavro.schemaless_reader(io.BytesIO(payload), written, ours)
        return unpacked(sink, value)

    return read


async def fetched(connection: Connection, sink: SinkName, number: int) -> Codec:
    """`reading` by the schema of that id. Raises `Corrupt` where the registry has lost it, `Away`, `Refused`."""
    registry = Registry(connection)
    try:
        schema = await registry.ask(f"/schemas/ids/{number}")
    finally:
        await registry.close()
    if schema is None:
        raise Corrupt(
            f"the schema registry does not know schema {number}, with which records were written. Restore it."
        )
    return reading(sink, schema)


def needed() -> Any:
    try:
        import fastavro
    except ImportError as error:
        raise SpecError("format: avro needs more packages: pip install 'penstock[kafka-schemas]'") from error
    return fastavro
