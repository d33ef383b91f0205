"""A dead letter as a Kafka record: the untouched key, value and headers, and `penstock-…` headers that say why.

So whoever repaired the cause can send the records again with any tool. `penstock-record` is the letter, as JSON, but
for what the record itself holds: with value, key and headers it makes the letter again. Held twice, large headers would
fit into no record.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

import msgspec

from penstock.connectors.base import OutRecord
from penstock.connectors.reading.envelope import LEFT_OUT, OF_LETTERS, OURS, RECORD, TOLD, seal, unseal


class _Beside(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an envelope says and the record's own key and headers do not. keyless: the input had no key. headers: those
    of ours that it had, from an earlier run."""

    keyless: bool = False
    headers: tuple[tuple[str, bytes], ...] = ()
    cut: str = ""


class _Written(msgspec.Struct, frozen=True):
    """As much of `penstock-record` as is not simply the letter's."""

    beside: _Beside | None = None
    """None: an older letter, with all of its envelope."""


_beside = msgspec.json.Decoder(_Written).decode
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
    came = unseal(msgspec.json.decode(letter.pop("envelope"), type=str | None))
    kept = [header for header in record.headers if header[0] not in OF_LETTERS]
    told = [(header, _text(letter[name])) for name, header in TOLD.items()]
    told += [(LEFT_OUT, came.cut.encode())] if came.cut else []
    lost = tuple(header for header in came.headers if header[0] in OURS)  # ours stand in their place
    written = _encode({**letter, "beside": _Beside(came.key is None, lost, came.cut)})
    return msgspec.structs.replace(record, value=value, headers=(*kept, *told, (RECORD, written)))


def without_death(record: OutRecord) -> OutRecord:
    """A result whose input was a dead letter that somebody sent again: it died of nothing, and readers, `tail` among
    them, know a letter by these headers."""
    kept = tuple(header for header in record.headers if header[0] not in OF_LETTERS)
    return record if len(kept) == len(record.headers) else msgspec.structs.replace(record, headers=kept)


def incoming(value: bytes | None, key: bytes | None, headers: Sequence[tuple[str, bytes | None]]) -> bytes | None:
    """The dead letter as JSON again; None where the record is none of ours."""
    written = next((text for name, text in reversed(headers) if name == RECORD), None)
    if written is None:
        return None
    letter, beside = _decode(written), _beside(written).beside
    if beside is not None:
        del letter["beside"]
        letter["envelope"] = msgspec.Raw(_encode(_envelope(beside, key, headers)))
    if msgspec.json.decode(letter["original_encoding"], type=str) == "base64":
        original = base64.b64encode(value or b"").decode()
    else:
        original = (value or b"").decode("utf-8", "surrogatepass")
    return _encode({**letter, "original": original})


def _envelope(beside: _Beside, key: bytes | None, headers: Sequence[tuple[str, bytes | None]]) -> str | None:
    own = tuple((name, value or b"") for name, value in headers if name not in OURS)
    return seal(None if beside.keyless else key, (*own, *beside.headers), beside.cut)


def _text(value: msgspec.Raw) -> bytes:
    """A header's text: a JSON string without its quotes, anything else as it is written."""
    found = msgspec.json.decode(value)
    return found.encode() if isinstance(found, str) else bytes(value)
