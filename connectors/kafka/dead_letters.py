"""A dead letter as a Kafka record: the untouched key, value and headers, and `penstock-…` headers that say why.

So whoever repaired the cause can send the records again with any tool. `penstock-record` is the whole letter, as JSON,
without the original: with the value it makes the letter again.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

import msgspec

from penstock.connectors.base import OutRecord

RECORD = "penstock-record"
_TOLD = ("reason", "message", "retryable", "generation")
"""Fields of the letter with a header of their own, for people and filters."""
_OURS = frozenset([RECORD, *(f"penstock-{name.replace('_', '-')}" for name in _TOLD)])

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def outgoing(record: OutRecord) -> OutRecord:
    """`record`: a dead letter as JSON, with its input's key and headers. Returns what goes to the topic.

    Of an original over 1 MB the value is the head; length and hash of the whole are in `penstock-record`.
    """
    letter = _decode(record.value)
    original = msgspec.json.decode(letter.pop("original"), type=str)
    encoding = msgspec.json.decode(letter["original_encoding"], type=str)
    value = base64.b64decode(original) if encoding == "base64" else original.encode("utf-8", "surrogatepass")
    kept = [header for header in record.headers if header[0] not in _OURS]
    told = [(f"penstock-{name.replace('_', '-')}", _text(letter[name])) for name in _TOLD]
    return msgspec.structs.replace(record, value=value, headers=(*kept, *told, (RECORD, _encode(letter))))


def incoming(value: bytes | None, headers: Sequence[tuple[str, bytes | None]]) -> bytes | None:
    """The dead letter as JSON again; None where the record is none of ours."""
    written = next((text for name, text in reversed(headers) if name == RECORD), None)
    if written is None:
        return None
    letter = _decode(written)
    if msgspec.json.decode(letter["original_encoding"], type=str) == "base64":
        original = base64.b64encode(value or b"").decode()
    else:
        original = (value or b"").decode("utf-8", "surrogatepass")
    return _encode({**letter, "original": original})


def _text(value: msgspec.Raw) -> bytes:
    """A header's text: a JSON string without its quotes, anything else as it is written."""
    found = msgspec.json.decode(value)
    return found.encode() if isinstance(found, str) else bytes(value)
