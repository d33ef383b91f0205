"""The desk in a terminal: one item on the screen, one key for each act."""

from __future__ import annotations

import os
import re
import sys
import termios
import textwrap
import tty
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from penstock.engine.errors import SpecError
from penstock.jobs.people.desk import BACK, NEXT, NOTE, QUIT, UNDO, Desk
from penstock.jobs.wording import inert

_ARROWS = {"\x1b[C": NEXT, "\x1b[B": NEXT, "\x1b[D": BACK, "\x1b[A": BACK, " ": NEXT, "\x03": QUIT, "\x04": QUIT}
_HELP = f"{NEXT} next  {BACK} back  {UNDO} undo  {NOTE} note  {QUIT} quit (go on later)"
_KEY = re.compile(rb"\x1b\[[0-9;]*[A-Za-z~]|[\x00-\x7f]|[\xc0-\xf7][\x80-\xbf]{1,3}|[\x80-\xbf\xf8-\xff]")
_FRAME_LINES = 14
"""Lines that are not the input's."""
_LEAST_LINES = 6


def sit(desk: Desk, console: Console, *, blind: bool) -> None:
    """Until the person leaves. Raises `SpecError` where there is no terminal."""
    if not (sys.stdin.isatty() and console.is_terminal):
        raise SpecError("labelling needs a terminal; `penstock label export` and `import` serve other tools")
    with _keys() as keys:
        going = True
        while going:
            console.clear()
            console.print(screen(desk, console, blind=blind))
            key = keys.next()
            if key == NOTE:
                if (text := keys.line(console)) is not None:
                    desk.note(text)
            else:
                going = desk.press(_ARROWS.get(key, key))
    console.print(f"{desk.done:,} of {len(desk.items):,} labelled by {desk.by}; the same command goes on")


def screen(desk: Desk, console: Console, *, blind: bool) -> Group:
    item = desk.item
    head = Text.assemble((f"{desk.at + 1:,} of {len(desk.items):,}", "bold"), f"  {desk.done:,} labelled by {desk.by}")
    head.append(f"  because of {', '.join(item.why)}" if item.why and not blind else "", "dim")
    lines = max(_LEAST_LINES, console.height - _FRAME_LINES)
    parts = [
        head,
        Panel(_cut(inert(item.input), lines, console.width - 4), title=item.task or None, title_align="left"),
    ]
    if item.answer and not blind:
        by = f"  ({item.model})" if item.model else ""
        parts.append(Text.assemble("answer  ", (inert(item.answer), "bold"), (by, "dim")))
        parts += [Text(inert(f"        {other.answer}  ({other.model})"), "dim") for other in item.others]
    return Group(*parts, _keys_told(desk), _said_told(desk), Text(_HELP, "dim"))


def _keys_told(desk: Desk) -> Table:
    table = Table.grid(padding=(0, 2))
    label = desk.said
    cells = [
        Text.assemble((key, "bold cyan"), " ", (word, "reverse" if label is not None and label.label == word else ""))
        for key, word in desk.keys().items()
    ]
    for start in range(0, len(cells), 6):
        table.add_row(*cells[start : start + 6])
    return table


def _said_told(desk: Desk) -> Text:
    label, note = desk.said, desk.note_of()
    said = f"you said: {label.says}" if label is not None else ""
    return Text("   ".join(part for part in (said, f"note: {note}" if note else "") if part), "green")


def _cut(text: str, lines: int, width: int) -> Text:
    """As much as the screen shows, and how much it leaves out."""
    wrapped: list[str] = []
    for line in text.splitlines() or [""]:
        wrapped += textwrap.wrap(line, max(1, width), replace_whitespace=False) or [""]
    left = len(wrapped) - lines
    return Text("\n".join(wrapped if left <= 0 else [*wrapped[: lines - 1], f"… {left + 1:,} lines more"]))


class _Keys:
    """Keys one by one, however many come at once. A terminal that is gone reads as `q`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._waiting = b""

    def next(self) -> str:
        """A character, or an arrow as `ESC [ A`."""
        while True:
            if found := _KEY.match(self._waiting):
                self._waiting = self._waiting[found.end() :]
                return found[0].decode(errors="replace")
            try:
                more = os.read(self._fd, 256)
            except OSError:
                more = b""
            if not more:
                return QUIT
            self._waiting += more

    def line(self, console: Console) -> str | None:
        """A line of text with backspace. None: Escape or ctrl-c, and what stood stands."""
        text = ""
        while True:
            console.print(f"\rnote: {text}\x1b[K", end="", markup=False, highlight=False, soft_wrap=True)
            match self.next():
                case "\r" | "\n":
                    return text.strip()
                case "\x1b" | "\x03":
                    return None
                case "\x7f" | "\b":
                    text = text[:-1]
                case key:
                    text += key if key.isprintable() else ""


@contextmanager
def _keys() -> Generator[_Keys]:
    """The keys, unseen; the terminal is given back as it was."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        mode = termios.tcgetattr(fd)
        mode[3] &= ~termios.ISIG  # ctrl-c leaves as `q` does
        termios.tcsetattr(fd, termios.TCSANOW, mode)
        yield _Keys(fd)
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
