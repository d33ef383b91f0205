"""Key and headers of a topic's record as text, in its dead letter: they say who an item belongs to and where it may go,
so an item that is sent again must not lose them."""

from __future__ import annotations

import msgspec

Headers = tuple[tuple[str, bytes], ...]

NOT_KEPT = "penstock-record"
"""A whole earlier letter (`connectors.kafka.dead_letters`): kept, each death would hold all deaths before it."""


class _Envelope(msgspec.Struct, frozen=True):
    """Bytes are base64, as msgspec writes them."""

    key: bytes | None = None
    headers: Headers = ()


_decode = msgspec.json.Decoder(_Envelope).decode


def seal(key: bytes | None, headers: Headers) -> str | None:
    """None where there is neither."""
    kept = tuple(header for header in headers if header[0] != NOT_KEPT)
    return msgspec.json.encode(_Envelope(key, kept)).decode() if key is not None or kept else None


def unseal(text: str | None) -> tuple[bytes | None, Headers]:
    """Raises `msgspec.DecodeError` where the text is none of ours."""
    made = _decode(text) if text else _Envelope()
    return made.key, made.headers
