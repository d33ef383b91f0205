"""Where a command's words go while a run goes: the run must not end because nobody reads them any more."""

from __future__ import annotations

import contextlib
import os
from typing import TextIO, cast

from rich.console import Console


class Lasting:
    """A stream that can't fail: a pipe whose reader went (`| head`), a terminal that was closed, a disk that is full.
    What is written after that goes nowhere. Rich would end the process at the first."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            silence(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            silence(self._stream)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def lasting_console(stream: TextIO, *, plain: bool = False, width: int | None = None) -> Console:
    """`plain`: no colour, and nothing that only a terminal understands."""
    there = cast("TextIO", Lasting(stream))
    terminal = False if plain else None
    return Console(file=there, highlight=False, no_color=plain or None, force_terminal=terminal, width=width)


def silence(stream: TextIO) -> None:
    """Lead a stream's file nowhere: Python flushes what still waits in it at its exit, and would complain again."""
    with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:  # OSError: a notebook's streams have no file
        os.dup2(nowhere.fileno(), stream.fileno())
