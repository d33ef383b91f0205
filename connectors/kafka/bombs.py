"""What keeps a record that is small on the wire from becoming much, or deep, once it is decoded: it would hold up all
lanes of its process, or end it, and whoever reads on meets it again."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from penstock.engine.errors import BadRecord

MOST_VALUES = 200_000
"""Of one record. Each takes one to fifteen millionths of a second (Protobuf → JSON, Avro that refers to itself, JSON
against its schema): three seconds at most, where a lane may be silent for ten. And each takes some 100 bytes of memory,
where it may have taken one on the wire, or in a compressed batch nearly none."""

LONGEST_NUMBER = 10
"""Bytes, seven bits each."""


class Counted(io.BytesIO):
    """What a decoder reads an Avro record from: a value takes a read, or more; and a byte, or more. Of a number each
    byte takes one: those that say that it goes on, nine at most, are not counted."""

    _reads = 0
    _goes_on = 0

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self._goes_on = self._goes_on + 1 if size == 1 and found >= b"\x80" else 0
        if not 0 < self._goes_on < LONGEST_NUMBER:
            self._reads += 1
            if self._reads > MOST_VALUES:
                raise too_many()
        return found


def too_many() -> BadRecord:
    return BadRecord("too_large", f"the record has more than {MOST_VALUES:,} values")


def refers_to_itself(schema: Any, named: Mapping[str, Any]) -> bool:
    """Whether a record of this parsed Avro schema may hold others of its kind, as deep as its writer likes. Raises
    `BadRecord` for arrays whose items take no bytes: five bytes would make millions of them."""
    found, empty = False, dict[str, bool | None]()
    """Name → whether a value of it takes no bytes; None: this is being found out."""

    def takes_none(one: Any) -> bool:
        nonlocal found
        one = named.get(one, one) if isinstance(one, str) else one
        if not isinstance(one, dict) or "name" not in one:
            return anonymous(one)
        name: str = one["name"]
        if name not in empty:
            empty[name] = None
            empty[name] = named_takes_none(one)
        found = found or empty[name] is None
        return bool(empty[name])

    def named_takes_none(one: dict[str, Any]) -> bool:
        if "fields" in one:
            return all([takes_none(field["type"]) for field in one["fields"]])
        return one.get("size") == 0

    def anonymous(one: Any) -> bool:
        match one:
            case list():
                for branch in one:
                    takes_none(branch)
                return False
            case {"type": "array", "items": items}:
                if takes_none(items):
                    raise BadRecord("malformed", "the schema has arrays whose items take no bytes")
                return False
            case {"type": "map", "values": values}:
                takes_none(values)
                return False
            case _:
                return one == "null" or (isinstance(one, dict) and one.get("type") == "null")

    takes_none(schema)
    return found


def many_in_json(row: object) -> bool:
    """Whether a row has more than `MOST_VALUES`, at any depth."""
    count, todo = 0, [row]
    while todo and count <= MOST_VALUES:
        one = todo.pop()
        if isinstance(one, dict | list):
            count += len(one)
            todo += one.values() if isinstance(one, dict) else one
    return count > MOST_VALUES


def many_values(message: Any, pool: Any) -> bool:
    """Whether a Protobuf message has more than `MOST_VALUES`, fields that are not set included."""
    from google.protobuf import message_factory

    count, todo = 0, [message]
    while todo and count <= MOST_VALUES:
        one = todo.pop()
        count += len(one.DESCRIPTOR.fields)
        if one.DESCRIPTOR.full_name == "google.protobuf.Any" and one.type_url:
            kind = message_factory.GetMessageClass(pool.FindMessageTypeByName(one.TypeName()))
            todo.append(kind.FromString(one.value))
        for _, value in one.ListFields():
            inside = _inside(value)
            count += len(inside)
            if count <= MOST_VALUES and inside and hasattr(inside[0], "ListFields"):
                todo += inside
    return count > MOST_VALUES


def _inside(value: Any) -> Sequence[Any]:
    """What a field holds: a message, the items of a repeated one, the values of a map."""
    if hasattr(value, "ListFields"):
        return [value]
    if isinstance(value, Mapping):
        return list(value.values())
    return value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else ()
