"""Where a command's words go: neither a run nor an exit code may change because nobody reads them any more."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, TextIO, cast

import click

from penstock.engine.errors import Temporary

if TYPE_CHECKING:  # every command imports this module
    from rich.console import Console

GONE = frozenset({errno.EPIPE, errno.EIO})
"""Of a pipe whose reader went (`| head`), and of a terminal that was closed: nobody misses what is not written."""


class Lasting:
    """A stream whose reader may go: what is written after that goes nowhere. (Rich would end the process.) What else
    fails raises `Temporary`: a report that a full disk cut off is no report. `whatever`: then that goes nowhere too."""

    def __init__(self, stream: TextIO, *, whatever: bool = False) -> None:
        self._stream = stream
        self._whatever = whatever

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._failed(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        silence(self._stream)
        if error.errno not in GONE and not self._whatever:
            raise Temporary(f"what this command says can't be written: {error.strerror}") from error

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def lasting_console(
    stream: TextIO, *, plain: bool = False, width: int | None = None, whatever: bool = False
) -> Console:
    """`plain`: no colour, and nothing that only a terminal understands. `whatever`: as `Lasting` has it."""
    from rich.console import Console

    there = cast("TextIO", Lasting(stream, whatever=whatever))
    terminal = False if plain else None
    return Console(file=there, highlight=False, no_color=plain or None, force_terminal=terminal, width=width)


def folded(line: str, indent: int, *, err: bool = False) -> str:
    """A line for people: on a terminal broken between words, what goes on `indent` columns in; elsewhere as it is."""
    if not (stream := sys.stderr if err else sys.stdout) or not stream.isatty():
        return line
    width = shutil.get_terminal_size().columns
    margin = " " * indent
    return textwrap.fill(line, width, subsequent_indent=margin, break_long_words=False, break_on_hyphens=False)


def echo(text: str, *, err: bool = False) -> None:
    """`click.echo` where the exit code says something: it stays what the command found, also when nobody reads."""
    stream = cast("TextIO | None", sys.stderr if err else sys.stdout)
    if stream is not None:  # it was closed before the command began
        click.echo(text, file=cast("TextIO", Lasting(stream)))


def silence(stream: TextIO) -> None:
    """Lead a stream's file nowhere: Python flushes what still waits in it at its exit, and would complain again."""
    with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:  # OSError: a notebook's streams have no file
        os.dup2(nowhere.fileno(), stream.fileno())
