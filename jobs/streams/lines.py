"""One record as one line: for people, as much as fits the width; for machines, JSON.

What stands in a record was written by models and customers: nothing of it may move a terminal's cursor.
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime

import msgspec

from penstock.connectors.kafka.dead_letters import incoming
from penstock.engine.errors import Corrupt
from penstock.jobs.look import told
from penstock.jobs.streams.tailing import Seen
from penstock.jobs.wording import dollars

ID_WIDTH = 12
KEY_WIDTH = 24
_RESULT, _COST, _DEAD, _SCORE = "penstock", "entry_id", "reason", "scorer"


class _Kind(msgspec.Struct, frozen=True):
    """What tells the kinds of our records apart."""

    penstock: msgspec.Raw = msgspec.Raw()
    entry_id: msgspec.Raw = msgspec.Raw()
    reason: msgspec.Raw = msgspec.Raw()
    original: msgspec.Raw = msgspec.Raw()
    scorer: msgspec.Raw = msgspec.Raw()


class _Score(msgspec.Struct, frozen=True):
    item_id: str
    scorer: str
    score: float | None = None
    passed: bool | None = None
    model: str | None = None


_kind = msgspec.json.Decoder(_Kind)
_score = msgspec.json.Decoder(_Score)


def for_people(seen: Seen, width: int) -> str:
    """`13:05:07  order-7  8f14e45fceea  haiku  $0.000123  delivery`, cut to `width` columns."""
    at = datetime.fromtimestamp(seen.at).astimezone().strftime("%H:%M:%S") if seen.at is not None else ""
    key = seen.key.decode("utf-8", "replace") if seen.key is not None else ""
    item, rest = _told(_record(seen))
    shown_key = "" if item.startswith(key) or key == item else _cut(plain(key), KEY_WIDTH)
    parts = [at, shown_key, item[:ID_WIDTH], *rest]
    return _cut("  ".join(plain(part) for part in parts if part), width)


def _record(seen: Seen) -> bytes:
    """A dead letter's topic holds the untouched original, and the letter in a header: here they are one again."""
    try:
        return incoming(seen.value, seen.key, seen.headers) or seen.value
    except (msgspec.MsgspecError, KeyError, UnicodeError):  # the header is somebody else's
        return seen.value


def _told(value: bytes) -> tuple[str, list[str]]:
    """(item id, what else is worth a look), whatever kind of record it is."""
    try:
        kind = _kind.decode(value)
        if kind.penstock:
            return _result(value)
        if kind.entry_id:
            (cost,) = told.costs([value])
            return cost.item_id or "", [cost.role, cost.model, dollars(cost.nano), cost.basis]
        if kind.reason and kind.original:
            (letter,) = told.letters([value])
            return letter.item_id, [letter.reason, letter.message]
        if kind.scorer:
            score = _score.decode(value)
            verdict = "" if score.passed is None else "passed" if score.passed else "failed"
            return score.item_id, [score.scorer, f"{score.score}", verdict, score.model or ""]
    except (msgspec.DecodeError, Corrupt):
        pass
    return "", [_text(value)]


def _result(value: bytes) -> tuple[str, list[str]]:
    result = told.result(value)
    head = result.penstock
    label = result.custom_id or ""
    return head.item_id, [label, head.model or "", dollars(told.nano(head.cost_usd)), result.answer]


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return f"({len(value):,} bytes that are no text)"


def plain(text: str) -> str:
    """On one line, without anything that a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in text)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


class _Told(msgspec.Struct, frozen=True, omit_defaults=True):
    value: object
    topic: str = ""
    partition: int | None = None
    offset: int | None = None
    at: datetime | None = None
    key: str | None = None
    headers: dict[str, str] = {}


def for_machines(seen: Seen) -> bytes:
    """A JSON line. `value` is the record where it is JSON; else its text, or base64 where it is no text."""
    there = bool(seen.topic)
    return msgspec.json.encode(
        _Told(
            _value(_record(seen)),
            seen.topic,
            seen.partition if there else None,
            seen.offset if there else None,
            datetime.fromtimestamp(seen.at, UTC) if seen.at is not None else None,
            seen.key.decode("utf-8", "replace") if seen.key is not None else None,
            {name: value.decode("utf-8", "replace") for name, value in seen.headers},
        )
    )


def _value(value: bytes) -> object:
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        return value.decode()
    except UnicodeDecodeError:
        return base64.b64encode(value).decode()
