"""What the demo says on the screen: headings, sentences, tables. Piped output is plain lines."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

PLAIN_WIDTH = 100
"""Columns of piped output."""
SHOW_CURSOR = "\x1b[?25h"
"""A live display that was killed leaves the cursor hidden."""


class Stage:
    def __init__(self) -> None:
        from rich.console import Console

        self.live = sys.stdout.isatty()
        self.console = Console(highlight=False) if self.live else Console(highlight=False, width=PLAIN_WIDTH)

    def act(self, title: str) -> None:
        self.console.print()
        self.console.rule(f"[bold]{title}[/]", align="left")
        self.flush()

    def say(self, text: str) -> None:
        self.console.print(text)
        self.flush()

    def good(self, text: str) -> None:
        self.say(f"[green]✓[/] {text}")

    def bad(self, text: str) -> None:
        from rich.markup import escape

        self.say(f"[red]✗[/] {escape(text)}")

    def parts(self, parts: Iterable[RenderableType]) -> None:
        for part in parts:
            self.console.print(part)
        self.flush()

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """The first column is text, the others are numbers."""
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        for n, name in enumerate(columns):
            table.add_column(name, justify="right" if n else "left")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)
        self.flush()

    def json(self, data: bytes) -> None:
        import msgspec
        from rich.syntax import Syntax

        text = msgspec.json.format(data, indent=2).decode()
        shown = Syntax(text, "json", background_color="default", word_wrap=True) if self.live else text
        self.console.print(shown, markup=False) if isinstance(shown, str) else self.console.print(shown)
        self.flush()

    def restore(self) -> None:
        """After a child that drew on the terminal was killed."""
        if self.live:
            sys.stdout.write(SHOW_CURSOR + "\n")
        self.flush()

    def flush(self) -> None:
        """Children write to the same screen: what we said stands before what they say."""
        self.console.file.flush()
