"""Dead letters as input: a line is a dead-letter record and stands for the record that died (`replay` of a source).

The item keeps its `item_id` and enters as the next generation; its position is the letter's place in the replay's own
file, because that is where this run's progress is counted.
"""

from __future__ import annotations

import base64
from typing import Literal, Protocol

import msgspec

from penstock.connectors.base import Raw
from penstock.connectors.reading.envelope import unseal
from penstock.connectors.settings import FilesSource, S3Source, SourceSettings
from penstock.engine.items import Item
from penstock.engine.results import DeadLetter


class _Letter(msgspec.Struct, frozen=True):
    """As much of a dead-letter record as a replay needs."""

    item_id: str
    original: str
    generation: int = 0
    original_encoding: Literal["utf-8", "base64"] = "utf-8"
    envelope: str | None = None


_decode = msgspec.json.Decoder(_Letter).decode


class Intake(Protocol):
    def item(self, raw: Raw, now: float, item_id: str | None = None) -> Item | DeadLetter:
        """`item_id`: of the record that died, where the raw one stands for it."""
        ...

    def again(self, item: Item) -> Item | DeadLetter:
        """An item that was read before, as it is read now."""
        ...


class ReplayIntake:
    """An intake before an intake. A line that is no dead-letter record goes on as it is, and dies of what it is."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    def item(self, raw: Raw, now: float, item_id: str | None = None) -> Item | DeadLetter:
        """`item_id` is the letter's own."""
        if raw.error is not None:
            return self._intake.item(raw, now)
        try:
            letter = _decode(raw.data)
            original = (
                base64.b64decode(letter.original)
                if letter.original_encoding == "base64"
                else letter.original.encode("utf-8", "surrogatepass")
            )
            came = unseal(letter.envelope)
        except (msgspec.DecodeError, ValueError):
            return self._intake.item(raw, now)
        inner = msgspec.structs.replace(raw, data=original, length=0, key=came.key, headers=came.headers)
        made = self._intake.item(inner, now, item_id or letter.item_id)
        return msgspec.structs.replace(made, generation=letter.generation + 1)

    def again(self, item: Item) -> Item | DeadLetter:
        """Its original is the record that died."""
        return self._intake.again(item)


def intake_for(source: SourceSettings, intake: Intake) -> Intake:
    """The intake for what this source brings: rows or requests, or dead letters that stand for them."""
    return ReplayIntake(intake) if isinstance(source, FilesSource | S3Source) and source.replay else intake
