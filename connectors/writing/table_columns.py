"""The flat form of our records: which columns a table has, and where each value stands in the nested record.

The columns follow from the record structs of `connectors.records`, so the two forms cannot drift apart. Results carry
`penstock_` in front of what is ours; nested objects join their names (`tokens.input` → `tokens_input`).
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from typing import Literal, Union, get_args, get_origin

import msgspec

from penstock.connectors.writing.record_structs import (
    BatchLine,
    CostRecord,
    DeadLetterRecord,
    Provenance,
    QualityRecord,
    ReviewRecord,
)
from penstock.connectors.writing.table_answers import EXACT_FLOAT, AnswerShape, ArrowType

Kind = Literal["text", "int", "float", "bool", "money", "time", "json", "list"]
"""money: decimal(18,9). time: timestamp(us, UTC). json: JSON text in a string column. list: list of structs, or
of texts."""


class Column(msgspec.Struct, frozen=True):
    name: str
    path: tuple[str, ...]
    kind: Kind
    items: tuple[Column, ...] = ()
    """Of a list: the fields of its structs; none: it holds texts."""
    optional: bool = True
    """It may be null. (CSV writes null and an empty text alike.)"""
    ours: bool = True
    """Values are what our structs hold; else JSON text of the user's."""

    def get(self) -> Callable[[object], object]:
        """What fetches its value from a record's struct; make it once, use it for every record."""
        return attrgetter(".".join(self.path))


class RowLine(msgspec.Struct, frozen=True):
    """A result in shape `rows`, half decoded: the user's part stays JSON text."""

    kept: dict[str, msgspec.Raw]
    answer: msgspec.Raw
    penstock: Provenance


Line = RowLine | BatchLine | CostRecord | QualityRecord | ReviewRecord | DeadLetterRecord

_BATCH_KEYS = frozenset(BatchLine.__struct_fields__)
_decode_top = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_batch = msgspec.json.Decoder(BatchLine).decode
_decode_provenance = msgspec.json.Decoder(Provenance).decode
_DECODERS: dict[str, Callable[[bytes], Line]] = {
    "costs": msgspec.json.Decoder(CostRecord).decode,
    "quality": msgspec.json.Decoder(QualityRecord).decode,
    "dead_letters": msgspec.json.Decoder(DeadLetterRecord).decode,
    "review": msgspec.json.Decoder(ReviewRecord).decode,
}


def decode_line(sink: str, line: bytes) -> Line:
    """A record as its struct."""
    decode = _DECODERS.get(sink)
    return decode(line) if decode else _decode_result(line)


def _decode_result(line: bytes) -> RowLine | BatchLine:
    top = _decode_top(line)
    if top.keys() == _BATCH_KEYS:
        return _decode_batch(line)
    return RowLine(top, top.pop("answer"), _decode_provenance(top.pop("penstock")))


class _Message(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    message: _Message = _Message()


class _Completion(msgspec.Struct, frozen=True):
    choices: tuple[_Choice, ...] = ()


_decode_completion = msgspec.json.Decoder(_Completion).decode


def as_row(line: RowLine | BatchLine) -> RowLine:
    """A result as shape `rows` has it: of a completion, its first choice's text; else the body."""
    if isinstance(line, RowLine):
        return line
    body = line.response.body
    try:
        choices = _decode_completion(body).choices
    except (msgspec.MsgspecError, RecursionError):
        return RowLine({}, body, line.penstock)
    text = (choices[0].message.content or "") if choices else ""
    return RowLine({}, msgspec.Raw(msgspec.json.encode(text)), line.penstock)


def columns_of(struct: type[msgspec.Struct], prefix: str = "", path: tuple[str, ...] = ()) -> Iterator[Column]:
    """The flat columns of a record struct, in its order."""
    for field in msgspec.structs.fields(struct):
        name, here = prefix + field.name, (*path, field.name)
        inner = _without_none(field.type)
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            yield from columns_of(inner, f"{name}_", here)
        elif get_origin(inner) in (list, tuple):
            of = get_args(inner)[0]
            yield Column(name, here, "list", () if of is str else tuple(columns_of(of)))
        else:
            yield Column(name, here, _kind(field.name, inner), optional=inner is not field.type or inner is not str)


def _without_none(kind: object) -> object:
    if get_origin(kind) in (Union, types.UnionType):
        return next(a for a in get_args(kind) if a is not types.NoneType)
    return kind


_KINDS: dict[object, Kind] = {int: "int", float: "float", bool: "bool", str: "text"}


def _kind(name: str, kind: object) -> Kind:
    if kind is msgspec.Raw or kind is types.NoneType or kind is None:
        return "money" if name in ("usd", "cost_usd") else "json"
    if name == "at" or name.endswith("_at"):
        return "time"
    return _KINDS.get(kind, "text")


PENSTOCK = tuple(columns_of(Provenance, "penstock_", ("penstock",)))
BATCH = tuple(columns_of(BatchLine))
_STRUCTS: dict[str, type[msgspec.Struct]] = {
    "costs": CostRecord,
    "quality": QualityRecord,
    "dead_letters": DeadLetterRecord,
    "review": ReviewRecord,
}
FIXED = {sink: tuple(columns_of(struct)) for sink, struct in _STRUCTS.items()}
RESERVED = frozenset({"answer", *(c.name for c in PENSTOCK)})


def columns_in(names: Iterable[str]) -> tuple[Column, ...] | None:
    """Ours among the columns of a table; None: Penstock did not write it. What joined a record later has a default, and
    tables of before lack it. Results are known first: they carry the user's columns too, whatever these are named (of a
    second job over a first one's samples, or its batch results, as ours are)."""
    found = set(names)
    if "penstock_item_id" in found:
        return PENSTOCK if "answer" in found else BATCH
    for sink, struct in _STRUCTS.items():
        first = {field.name for field in msgspec.structs.fields(struct) if field.required}
        if {column.name for column in FIXED[sink] if column.path[0] in first} <= found:
            return FIXED[sink]
    return None


# what the user's own columns hold

_FIRST: dict[int, str] = {ord('"'): "text", ord("t"): "bool", ord("f"): "bool", ord("{"): "json", ord("["): "json"}
_INT64_DIGITS = 18
"""Integers with more digits may not fit in 64 bits: such a column is text."""
_FLOAT_DIGITS = 15
"""Integers with so few digits are exact as floats; one with more is looked at."""


def kind_of_json(raw: bytes) -> str | None:
    """`text`, `bool`, `json`, `int`, `wide` (an integer that a float would round), `float`, or None for null."""
    if raw[:1] == b"n":
        return None
    known = _FIRST.get(raw[0])
    if known is not None:
        return known
    if raw.lstrip(b"-").isdigit():
        if len(raw) > _INT64_DIGITS:
            return "json"
        return "int" if len(raw) <= _FLOAT_DIGITS or abs(int(raw)) <= EXACT_FLOAT else "wide"
    return "float"


def common_kind(kinds: Iterable[str]) -> Kind:
    """One kind for a whole column; what does not go together is text."""
    found = set(kinds)
    match sorted(found):
        case ["bool"]:
            return "bool"
        case ["int"] | ["wide"] | ["int", "wide"]:
            return "int"
        case ["float"] | ["float", "int"]:
            return "float"
        case _:
            return "text"


class Layout:
    """What a results table looks like: learnt from all its records before the first is written.

    A job whose `shape` was changed while it ran has records of both: they make a table of rows."""

    def __init__(self) -> None:
        self._requests = self._rows = False
        self._kinds: dict[str, set[str]] = {}
        self._answers: AnswerShape | None = AnswerShape()

    def learn(self, line: bytes) -> None:
        top = _decode_top(line)
        if top.keys() == _BATCH_KEYS:
            self._requests, self._answers = True, None
            return
        self._rows = True
        del top["penstock"]
        answer = bytes(top.pop("answer"))
        if self._answers is not None and not self._answers.learn(answer):
            self._answers = None
        for name, raw in top.items():
            kinds = self._kinds.setdefault(name, set())
            if (kind := kind_of_json(bytes(raw))) is not None:
                kinds.add(kind)

    @property
    def batch(self) -> bool:
        """Whether all records are in shape `openai-batch`."""
        return self._requests and not self._rows

    def answer_type(self) -> ArrowType | None:
        """The struct type that fits every answer; None: the column is text."""
        return None if self._answers is None else self._answers.arrow()

    def kept(self) -> dict[str, Column]:
        """Column of the input → column of the table; a name of ours gets `input_` in front."""
        columns: dict[str, Column] = {}
        for name, kinds in self._kinds.items():
            flat = name
            while flat in RESERVED or (flat != name and flat in self._kinds):
                flat = "input_" + flat
            columns[name] = Column(flat, (name,), common_kind(kinds), ours=False)
        return columns
