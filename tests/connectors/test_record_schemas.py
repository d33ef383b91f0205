"""The published schemas fit what is written, to the last field, and Avro loses nothing of it."""

from __future__ import annotations

import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import fastavro
import jsonschema
import pytest

from penstock.connectors.base import SinkName
from penstock.connectors.writing.record_schemas import SINKS, avro_schema, json_schema, packed, unpacked

GOLDEN = Path(__file__).parent.parent / "golden"
FILES: dict[str, SinkName] = {
    "results.rows": "results",
    "results.openai-batch": "results",
    "costs": "costs",
    "quality": "quality",
    "dead_letters": "dead_letters",
    "review": "review",
}


def lines(name: str) -> list[bytes]:
    return (GOLDEN / f"{name}.jsonl").read_bytes().splitlines()


def exact(line: bytes) -> Any:
    return json.loads(line, parse_float=Decimal)


@pytest.mark.parametrize(("name", "sink"), FILES.items())
def test_every_record_is_valid_by_its_json_schema(name: str, sink: SinkName) -> None:
    schema = json_schema(sink)
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    for line in lines(name):
        validator.validate(json.loads(line))


def test_a_record_of_which_a_field_is_missing_or_of_another_type_is_not_valid() -> None:
    """Else the schema would say nothing."""
    validator = jsonschema.Draft202012Validator(json_schema("costs"))
    whole = json.loads(lines("costs")[0])
    assert validator.is_valid(whole)
    assert not validator.is_valid({**whole, "usd": "0.01"})
    assert not validator.is_valid({k: v for k, v in whole.items() if k != "price_version"})
    results = jsonschema.Draft202012Validator(json_schema("results"))
    row = json.loads(lines("results.rows")[0])
    assert results.is_valid({**row, "any column": [1]})
    assert not results.is_valid({**row, "penstock": {**row["penstock"], "tier": "3"}})


@pytest.mark.parametrize(("name", "sink"), FILES.items())
def test_a_record_comes_back_from_avro_as_it_was(name: str, sink: SinkName) -> None:
    """Money to the nano-dollar, times to the millisecond, the user's own JSON as it stood."""
    schema = fastavro.parse_schema(avro_schema(sink))
    for line in lines(name):
        stream = io.BytesIO()
        fastavro.schemaless_writer(stream, schema, packed(sink, line))
        stream.seek(0)
        read: Any = fastavro.schemaless_reader(stream, schema, schema)
        assert exact(unpacked(sink, read)) == exact(line)


def test_avro_holds_money_as_decimals_and_times_as_times() -> None:
    """So that a table engine sums and sorts them without a cast."""
    line = lines("costs")[0]
    schema = fastavro.parse_schema(avro_schema("costs"))
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, schema, packed("costs", line))
    stream.seek(0)
    read: Any = fastavro.schemaless_reader(stream, schema, schema)
    assert read["usd"] == exact(line)["usd"]
    assert isinstance(read["usd"], Decimal)
    assert read["at"].tzinfo is not None


@pytest.mark.parametrize(("name", "sink"), FILES.items())
def test_a_record_of_an_earlier_schema_is_read_with_ours(name: str, sink: SinkName) -> None:
    """Else a registry at BACKWARD refuses the schema, and a topic in Avro ends at an upgrade."""
    earlier: Any = json.loads((GOLDEN / "avro_schemas.earlier.json").read_bytes())
    written, schema = fastavro.parse_schema(earlier[sink]), fastavro.parse_schema(avro_schema(sink))
    for line in lines(name):
        stream = io.BytesIO()
        fastavro.schemaless_writer(stream, written, packed(sink, line))
        stream.seek(0)
        read: Any = fastavro.schemaless_reader(stream, written, schema)
        assert exact(unpacked(sink, read)).keys() == exact(line).keys()


@pytest.mark.parametrize("sink", SINKS)
def test_a_field_that_may_be_null_has_a_default(sink: SinkName) -> None:
    """A reader of a later schema takes older records: registries call that backward compatible."""

    def check(schema: Any) -> None:
        if isinstance(schema, dict) and schema.get("type") == "record":
            for field in schema["fields"]:
                assert not isinstance(field["type"], list) or field["default"] is None
                check(field["type"])

    check(avro_schema(sink))
