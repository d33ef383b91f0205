"""The prefix sinks of a store, and `partition_by`: the folder below one that a record belongs in, in the form that Hive
and Spark read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from urllib.parse import quote

import msgspec

from penstock.connectors.base import OutRecord
from penstock.connectors.s3.client import Stored
from penstock.connectors.s3.store.parts import Divide
from penstock.connectors.settings import S3Sink

NOWHERE = "__HIVE_DEFAULT_PARTITION__"
"""Where Hive puts what has no value."""
_PLAIN = " -_.~+@,;!()$&"
"""Characters that stand in a folder's name as they are."""
MAX_VALUE = 120
"""Bytes of a value in a folder's name. S3 takes keys of 1,024 bytes: five such values leave 400 to the columns' names,
the prefix and the object's own name."""
_HASH_BYTES = 8


class Sinks(msgspec.Struct, frozen=True):
    """The prefix sinks of a store. life: stands in the names of their objects."""

    outputs: Mapping[str, S3Sink]
    life: str

    def stored(self, sink: str) -> Stored:
        output = self.outputs[sink]
        kind = "application/vnd.apache.parquet" if output.format == "parquet" else "application/x-ndjson"
        return Stored(kind, output.sse, output.sse_kms_key_id)


class _Ours(msgspec.Struct, frozen=True):
    """What all records tell of themselves: results below `penstock`, others at their top."""

    finished_at: str | None = None
    at: str | None = None
    tier: int | None = None
    task: str | None = None
    model: str | None = None

    def value(self, name: str) -> str | None:
        match name:
            case "date":
                return (self.finished_at or self.at or "")[:10] or None
            case "tier":
                return None if self.tier is None else str(self.tier)
            case "task":
                return self.task
            case _:
                return self.model


_NAMES = frozenset({"date", "tier", "task", "model"})


class _Result(msgspec.Struct, frozen=True):
    penstock: _Ours


_ours = msgspec.json.Decoder(_Ours).decode
_result = msgspec.json.Decoder(_Result).decode
_columns = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def divider(sinks: Mapping[str, S3Sink]) -> Divide:
    """Sink and record → folder below the sink's prefix (with its last slash), "" where it isn't partitioned."""

    def divide(sink: str, record: OutRecord) -> str:
        names = sinks[sink].partition_by
        return "".join(f"{name}={value}/" for name, value in _values(sink, record.value, names)) if names else ""

    return divide


def _values(sink: str, line: bytes, names: tuple[str, ...]) -> list[tuple[str, str]]:
    ours = _result(line).penstock if sink == "results" else _ours(line)
    columns = _columns(line) if not _NAMES.issuperset(names) else {}
    found = [(name, ours.value(name) if name in _NAMES else _text(columns.get(name))) for name in names]
    return [(quote(name, safe=_PLAIN), folder_name(value) if value else NOWHERE) for name, value in found]


@lru_cache(4096)
def folder_name(value: str) -> str:
    """A value as S3, Hive and Spark take it in a key. A long one is its beginning and a hash of the whole: one value,
    one folder."""
    name = quote(value, safe=_PLAIN)
    if len(name) <= MAX_VALUE:
        return name
    digest = "-" + blake2b(value.encode(), digest_size=_HASH_BYTES).hexdigest()
    head = value[: MAX_VALUE - len(digest)]
    while len(name := quote(head, safe=_PLAIN)) > MAX_VALUE - len(digest):
        head = head[:-1]
    return name + digest


def _text(raw: msgspec.Raw | None) -> str | None:
    """A JSON string's text; any other JSON as it is written."""
    text = bytes(raw) if raw is not None else b"null"
    if text == b"null":
        return None
    return msgspec.json.decode(text, type=str) if text.startswith(b'"') else text.decode()
