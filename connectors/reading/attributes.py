"""What a submitter says of one item, from metadata, headers or a row's templates, to `Attributes`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime

import msgspec

from penstock.connectors.reading.envelope import OURS
from penstock.connectors.templates.template import nearest
from penstock.engine.errors import BadRecord
from penstock.engine.items import Attributes

MAX_TEXT = 512
"""Characters of one text attribute: they become labels of records and keys of budgets."""
PREFIX = "penstock-"

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

Value = str | int | float | bytes
Values = dict[str, Value]


class Unreadable(ValueError):
    """The value doesn't say what the attribute needs."""


def _text(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise Unreadable("is not text")
    text = str(value)
    if len(text) > MAX_TEXT:
        raise Unreadable(f"has {len(text):,} characters; the most allowed is {MAX_TEXT}")
    if not text.isprintable() and _CONTROL.search(text):
        raise Unreadable("has control characters")
    return text


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise Unreadable("is not a number")
    try:
        number = float(value)
    except (ValueError, OverflowError) as error:
        raise Unreadable("is not a number") from error
    if not math.isfinite(number):
        raise Unreadable("is not a finite number")
    return number


def _whole(value: object, low: int, high: int) -> int:
    number = _number(value)
    if number != int(number) or not low <= number <= high:
        raise Unreadable(f"is not a whole number from {low} to {high}")
    return int(number)


def _within(value: object, low: float, high: float) -> float:
    number = _number(value)
    if not low <= number <= high:
        raise Unreadable(f"is not between {low:g} and {high:g}")
    return number


def _latency(value: object) -> str:
    if value != "realtime" and value != "batch":
        raise Unreadable("is neither realtime nor batch")
    return str(value)


def _deadline(value: object) -> float:
    """Unix seconds, or ISO 8601 (without a zone: UTC)."""
    if isinstance(value, str) and not value.replace(".", "", 1).isdigit():
        try:
            moment = datetime.fromisoformat(value)
        except ValueError as error:
            raise Unreadable("is neither ISO 8601 nor Unix seconds") from error
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return _within(value, 0, 1e11)


def _json(value: object) -> bytes:
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise Unreadable("is not JSON") from error


READ: dict[str, Callable[[object], Value]] = {
    "tier": lambda value: _whole(value, 1, 3),
    "task": _text,
    "sensitivity": _text,
    "latency": _latency,
    "min_quality": lambda value: _within(value, 0, 1),
    "max_cost_usd": lambda value: _within(value, 0, 1e9),
    "deadline": _deadline,
    "priority": lambda value: _whole(value, -1_000_000, 1_000_000),
    "tenant": _text,
    "subject": _text,
    "unit": _text,
    "episode": _text,
    "expected": _json,
    "consent": _text,
    "purpose": _text,
}
"""Attribute → how it is read."""

NAMES = frozenset(READ)
_PREFIXED = {PREFIX + name: name for name in READ} | {PREFIX + name.replace("_", "-"): name for name in READ}


def build(values: Values) -> Attributes:
    """`values` as `read` made them."""
    if "expected" in values:
        values = {("expected_json" if name == "expected" else name): value for name, value in values.items()}
    return Attributes(**values)  # pyright: ignore[reportArgumentType] each was read by its own reader


def read(name: str, value: object) -> Value:
    """Raises `BadRecord("bad_field")`."""
    try:
        return READ[name](value)
    except Unreadable as error:
        raise BadRecord("bad_field", f"the attribute {name!r} {error}: {str(value)[:100]!r}") from error


def from_metadata(
    metadata: Mapping[str, object], tasks: Collection[str] | None, headers: Values | None = None
) -> tuple[Values, set[str]]:
    """The attributes in a request's `metadata`, over those of its `headers`; and the keys that they took.

    Names with `penstock-` must be readable, and win, wherever they stand. Bare ones that can't be read are the user's
    own, `sensitivity` excepted. `tasks`: where given, a bare `task` that isn't among them is the user's own as well.
    Two sensitivities are never weighed.
    """
    values: Values = dict(headers or {})
    taken: set[str] = set()
    for key, value in metadata.items():
        if not _is_prefixed(key):
            continue
        name = _PREFIXED.get(key)
        if name is None:
            raise _no_attribute("metadata has", key)
        taken.add(key)
        if value is not None:
            _set(values, name, read(name, value))
    for key, value in metadata.items():
        if key not in NAMES or (key in values and key != "sensitivity"):
            continue
        if key == "sensitivity":
            taken.add(key)
            if value is not None:
                _set(values, key, read(key, value))
        elif (bare := _bare(key, value, tasks)) is not None:
            taken.add(key)
            values[key] = bare
    return values, taken


def _bare(name: str, value: object, tasks: Collection[str] | None) -> Value | None:
    if value is None or (name == "task" and tasks is not None and not (isinstance(value, str) and value in tasks)):
        return None
    try:
        return READ[name](value)
    except Unreadable:
        return None


def _set(values: Values, name: str, value: Value) -> None:
    if name == "sensitivity" and values.get(name, value) != value:
        raise BadRecord("bad_field", f"two sensitivities are given: {values[name]!r} and {value!r}")
    values[name] = value


def from_headers(headers: Iterable[tuple[str, bytes]]) -> Values:
    """The attributes in a message's headers; other headers, and those that Penstock wrote, say nothing of the item.
    Raises `BadRecord` where one looks like an attribute and is none: a misspelt wall must not fall away."""
    values: Values = {}
    for key, value in headers:
        name = _PREFIXED.get(key)
        if name is not None:
            try:
                text = value.decode()
            except UnicodeDecodeError as error:
                raise BadRecord("bad_field", f"the header {key} is not UTF-8") from error
            _set(values, name, read(name, text))
        elif _is_prefixed(key) and key not in OURS:
            raise _no_attribute("the record has the header", key)
    return values


def _is_prefixed(key: str) -> bool:
    """However it is written: only one way of writing it is read. `penstock_sensitivity` is what records in tables call
    it, and meant; other names of theirs, `penstock_item_id`, are the user's to carry along."""
    start = key[: len(PREFIX)].lower()
    if start == PREFIX:
        return True
    return start[:-1] == PREFIX[:-1] and key[len(PREFIX) :].lower().replace("-", "_") in NAMES


def _no_attribute(where: str, key: str) -> BadRecord:
    return BadRecord("bad_field", f"{where} {key[:100]!r}, which is no attribute{nearest(key.lower(), _PREFIXED)}")
