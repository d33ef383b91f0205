"""A record of a file or topic → an outcome, or why it is none."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import msgspec

from penstock.connectors.base import Raw
from penstock.engine.outcomes import Outcome, wrong


class _Told(msgspec.Struct, frozen=True):
    """As people and tools write it. `at`: ISO 8601, or Unix seconds."""

    metric: str
    value: float | bool
    item_id: str | None = None
    episode: str | None = None
    at: str | float | None = None
    id: str | None = None


_told = msgspec.json.Decoder(_Told, strict=False)


def read(raw: Raw, now: float) -> Outcome | str:
    """The outcome, or in words why it can't be taken."""
    if raw.error is not None:
        return raw.error[1]
    try:
        told = _told.decode(raw.row_json or raw.data)
        return outcome(told.metric, float(told.value), told, now)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, OverflowError) as error:
        return str(error)


def outcome(metric: str, value: float, told: _Told, now: float) -> Outcome | str:
    made = Outcome(
        metric=metric,
        value=value,
        at=stamp(now) if told.at is None else _stamp_of(told.at),
        item_id=told.item_id or None,
        episode=told.episode or None,
        id=told.id or None,
        said_at=told.at is not None,
        received_at=stamp(now),
    )
    return wrong(made) or made


def one(metric: str, value: float, item_id: str | None, episode: str | None) -> Outcome | str:
    """What somebody says on the command line, now."""
    now = time.time()
    return outcome(metric, value, _Told(metric, value, item_id, episode, at=now), now)


def stamp(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _stamp_of(at: str | float) -> str:
    """Raises `ValueError` for what is no time."""
    if isinstance(at, float | int):
        return stamp(float(at))
    try:
        read = datetime.fromisoformat(at)
    except ValueError:
        return stamp(float(at))  # a table's number
    return stamp((read.replace(tzinfo=UTC) if read.tzinfo is None else read).timestamp())
