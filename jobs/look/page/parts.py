"""What a page is made of: sections of figures and tables, as text. The template escapes all of it."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
from markupsafe import Markup

from penstock.engine.quality import Interval

LONGEST = 60
"""Characters of a name that are shown: the beginning and the end tell names apart."""
JOINER = "\u200d"
"""Holds the parts of one emoji together; no other invisible character is let through."""


class Column(msgspec.Struct, frozen=True):
    name: str
    number: bool = False


class Table(msgspec.Struct, frozen=True):
    """`folded`: closed on the screen until asked for, open on paper."""

    caption: str
    columns: tuple[Column, ...]
    rows: list[tuple[str, ...]]
    total: tuple[str, ...] = ()
    note: str = ""
    folded: bool = False


class Figure(msgspec.Struct, frozen=True):
    caption: str
    svg: Markup
    note: str = ""


class Section(msgspec.Struct, frozen=True):
    """`anchor`: its id in the page."""

    anchor: str
    title: str
    intro: str = ""
    parts: tuple[Figure | Table, ...] = ()


def columns(*names: str) -> tuple[Column, ...]:
    """`#calls` is a column of numbers, `model` one of words."""
    return tuple(Column(name.removeprefix("#"), name.startswith("#")) for name in names)


def shown(name: str) -> str:
    """A name from a record, as it may stand on a page: short, and nothing in it that can't be seen."""
    head = name if len(name) <= LONGEST else f"{name[: LONGEST - 20]}…{name[-19:]}"
    return "".join(char if char.isprintable() or char == JOINER else "\N{REPLACEMENT CHARACTER}" for char in head)


def milliseconds(ms: float | None) -> str:
    """`820 ms`, `4.2 s`, `3 min 20 s`: three digits at most, as quantiles are no better."""
    if ms is None:
        return "–"
    if ms < 10:
        return f"{ms:.1f} ms"
    if ms < 1000:
        return f"{ms:.0f} ms"
    if ms < 100_000:
        return f"{ms / 1000:.3g} s"
    minutes = round(ms / 60_000)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def spread(around: Interval | None) -> str:
    """`79.3–84.6 %`; `–` where there is none."""
    return f"{100 * around.low:.1f}–{100 * around.high:.1f} %" if around else "–"


def when(at: float | datetime | None) -> str:
    """`2026-11-24 13:05:07`, in UTC: the page is read elsewhere too."""
    if not at:
        return "–"
    moment = at if isinstance(at, datetime) else datetime.fromtimestamp(at, UTC)
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
