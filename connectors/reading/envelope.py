"""Key and headers of a topic's record as text, in its dead letter: they say who an item belongs to and where it may go,
so an item that is sent again must not lose them."""

from __future__ import annotations

import msgspec

Headers = tuple[tuple[str, bytes], ...]

NOT_KEPT = "penstock-record"
"""A whole earlier letter (`connectors.kafka.dead_letters`): kept, each death would hold all deaths before it."""


class Envelope(msgspec.Struct, frozen=True, omit_defaults=True):
    """Bytes are base64, as msgspec writes them. cut: what is left out of them, since the dead letters' place does not
    take it, in words."""

    key: bytes | None = None
    headers: Headers = ()
    cut: str = ""


_decode = msgspec.json.Decoder(Envelope).decode


def seal(key: bytes | None, headers: Headers, cut: str = "") -> str | None:
    """None where there is nothing of it."""
    kept = tuple(header for header in headers if header[0] != NOT_KEPT)
    return msgspec.json.encode(Envelope(key, kept, cut)).decode() if key is not None or kept or cut else None


def unseal(text: str | None) -> Envelope:
    """Raises `msgspec.DecodeError` where the text is none of ours."""
    return _decode(text) if text else Envelope()
