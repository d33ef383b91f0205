"""The one struct type that fits every structured answer of a run, learnt from the answers themselves.

Types of a schema can't be relied on: answers that miss it may be kept (`on_invalid: keep`). Where values do not go
together, or there are more fields than a table should have, there is no type and the column is JSON text.
"""

from __future__ import annotations

import json
from typing import Any

ArrowType = Any
"""A `pa.DataType`: pyarrow brings no types."""
MAX_FIELDS = 500
"""Of one answer type, nested ones included. Models invent keys; a table of thousands of columns helps nobody."""
MAX_DEPTH = 16
EXACT_FLOAT = 1 << 53
"""Up to here every integer is exact as a float."""
_CHECK_EVERY = 1024


class NoCommonType(Exception):
    """Two values that no column type holds both."""


class Shape:
    """What values at one place looked like so far."""

    def __init__(self) -> None:
        self.kind = "null"
        self.fields: dict[str, Shape] = {}
        """Of a struct; of a list, its items under the name ""."""

    def learn(self, value: object, depth: int = 0) -> None:
        """Raises `NoCommonType`."""
        if value is None:
            return
        if depth > MAX_DEPTH:
            raise NoCommonType
        self._be(_kind(value))
        match value:
            case dict():
                for name, inner in value.items():
                    self._field(str(name)).learn(inner, depth + 1)
            case list():
                for inner in value:
                    self._field("").learn(inner, depth + 1)
            case _:
                pass

    def _be(self, kind: str) -> None:
        if self.kind == "null" or (self.kind == "int" and kind == "float"):
            self.kind = kind
        elif self.kind != kind and (self.kind, kind) != ("float", "int"):
            raise NoCommonType

    def _field(self, name: str) -> Shape:
        return self.fields.setdefault(name, Shape())

    def size(self) -> int:
        return 1 + sum(field.size() for field in self.fields.values())

    def arrow(self) -> ArrowType:
        """Raises `NoCommonType` for a struct without fields: Parquet has none."""
        import pyarrow as pa

        match self.kind:
            case "struct":
                if not self.fields:
                    raise NoCommonType
                return pa.struct([(name, field.arrow()) for name, field in self.fields.items()])
            case "list":
                return pa.list_(self._field("").arrow())
            case "null":
                return pa.string()  # never anything but null: any type holds it
            case kind:
                return {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "text": pa.string()}[kind]


def _kind(value: object) -> str:
    match value:
        case bool():
            return "bool"
        case int():
            if abs(value) > EXACT_FLOAT:  # a column may turn out to be floats; larger ones would change
                raise NoCommonType
            return "int"
        case float():
            return "float"
        case str():
            return "text"
        case list():
            return "list"
        case _:
            return "struct"


class AnswerShape:
    """The shape of all answers of a run."""

    def __init__(self) -> None:
        self._shape = Shape()
        self._seen = 0

    def learn(self, answer: bytes) -> bool:
        """False: nothing fits this answer and the earlier ones; learn no more."""
        if not answer.startswith(b"{"):
            return False
        try:
            self._shape.learn(json.loads(answer))
        except (NoCommonType, RecursionError, ValueError):  # of an integer with thousands of digits
            return False
        self._seen += 1
        return self._seen % _CHECK_EVERY != 0 or self._shape.size() <= MAX_FIELDS

    def arrow(self) -> ArrowType | None:
        try:
            return self._shape.arrow() if self._seen and self._shape.size() <= MAX_FIELDS else None
        except NoCommonType:
            return None
