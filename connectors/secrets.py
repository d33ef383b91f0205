"""Secrets are named, never written: `env:NAME` or `file:/path`. The process that sends resolves the name.

A resolved key is a `Secret`: it prints as `***`, can't be pickled, and its text never enters a message or a log.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

from penstock.engine.errors import SpecError

MAX_SECRET_BYTES = 16_384
"""A key is at most a few kB (a JSON web token); more means that the wrong file was named."""


PIECE = 8
"""Characters of a key that never stand in a text. Fewer tell nothing: `sk-proj` starts many keys."""


class Secret:
    """A key that does not show itself. `reveal()` is for the header that carries it."""

    __slots__ = ("_pieces", "_size", "_text")

    def __init__(self, text: str) -> None:
        self._text = text
        self._size = min(PIECE, len(text))
        self._pieces = frozenset(text[at : at + self._size] for at in range(len(text) - self._size + 1))

    def reveal(self) -> str:
        return self._text

    def hidden(self, text: str) -> str:
        """`text` without the key, or any piece of it of 8 characters: some hosts repeat it, whole, masked or cut, where
        they refuse it."""
        size, kept, done = self._size, list[str](), -1
        for at in range(len(text) - size + 1):
            if text[at : at + size] in self._pieces:
                if at > done:
                    kept.append(text[max(done, 0) : at] + "***")
                done = at + size
        return "".join([*kept, text[max(done, 0) :]])

    def cut_out(self, data: bytes) -> bytes:
        """`data` without the whole key, before anybody shortens it. Keys too short to be told from other words stay."""
        return data.replace(self._text.encode(), b"***") if len(self._text) >= PIECE else data

    def __repr__(self) -> str:
        return "***"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret does not leave the process that resolved it: send its reference instead")


def resolve(reference: str | None) -> Secret | None:
    """The secret that a reference names; None for None.

    Raises `SpecError` where the reference has another form, names nothing, or its value can't stand in a header.
    """
    if reference is None:
        return None
    kind, _, name = reference.partition(":")
    match kind:
        case "env" if name:
            text = os.environ.get(name)
            if text is None:
                raise SpecError(f"the environment variable {name} is not set: export it where the worker runs")
        case "file" if name:
            text = _read(name)
        case _:
            # The reference itself is not repeated: somebody may have written the key in its place.
            raise SpecError("a key is named as env:NAME or file:/path, never written itself")
    text = text.strip()
    if not text:
        raise SpecError(f"the key that {reference} names is empty")
    if not text.isascii() or not text.isprintable():
        raise SpecError(f"the key that {reference} names has characters that can't stand in a header")
    return Secret(text)


def _read(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise SpecError(f"the key file {path} can't be read: {error.strerror}") from error
    if len(data) > MAX_SECRET_BYTES:
        raise SpecError(f"the key file {path} is larger than {MAX_SECRET_BYTES} bytes: is it the right file?")
    return data.decode("utf-8", "replace")
