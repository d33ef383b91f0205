"""Key and headers of a topic's record as text, in its dead letter: they say who an item belongs to and where it may go,
so an item that is sent again must not lose them. And the headers that Penstock itself writes."""

from __future__ import annotations

import msgspec

Headers = tuple[tuple[str, bytes], ...]

RUN, EPOCH, ITEM = "penstock-run", "penstock-epoch", "penstock-item"
OF_RECORDS = frozenset({RUN, EPOCH, ITEM})
"""Whose record it is; on all that is written to a topic."""
RECORD = "penstock-record"
"""A whole letter (`connectors.kafka.dead_letters`). Not kept in an envelope: each death would hold all before it."""
LEFT_OUT = "penstock-left-out"
"""What of key and headers a dead letters' topic does not take; not there as a rule."""
TOLD = {name: f"penstock-{name}" for name in ("reason", "message", "retryable", "generation")}
"""Fields of a letter with a header of their own, for people and filters."""
OF_LETTERS = frozenset({RECORD, LEFT_OUT, *TOLD.values()})
OURS = OF_RECORDS | OF_LETTERS
"""An input may have them: it was another job's output. They say nothing of the item."""


class Envelope(msgspec.Struct, frozen=True, omit_defaults=True):
    """Bytes are base64, as msgspec writes them. cut: what is left out of them, since the dead letters' place does not
    take it, in words."""

    key: bytes | None = None
    headers: Headers = ()
    cut: str = ""


_decode = msgspec.json.Decoder(Envelope).decode


def seal(key: bytes | None, headers: Headers, cut: str = "") -> str | None:
    """None where there is nothing of it."""
    kept = tuple(header for header in headers if header[0] != RECORD)
    return msgspec.json.encode(Envelope(key, kept, cut)).decode() if key is not None or kept or cut else None


def unseal(text: str | None) -> Envelope:
    """Raises `msgspec.DecodeError` where the text is none of ours."""
    return _decode(text) if text else Envelope()
