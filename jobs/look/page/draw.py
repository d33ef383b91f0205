"""SVG by hand: elements, whose text is escaped here, and scales with round ticks."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable

import msgspec
from markupsafe import Markup

WIDTH = 720
"""Of every figure, in its own units; on paper and screen it is as wide as the text."""
CHAR = 7.0
"""Mean width of a letter at the figures' 11.5 units (measured in DejaVu Sans, which is wide)."""
_SAME = 1e-9
"""Relative difference of numbers that are equal but for rounding."""
_LOG_MOST = 8.0
"""Decades of an axis at most: what is smaller stands at its end."""


def figure(height: float, title: str, parts: Iterable[Markup]) -> Markup:
    """`title` is what a screen reader says; the numbers stand in a table beside."""
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, _n(height), title)
    return Markup("\n").join([head, *parts, Markup("</svg>")])


def text(x: float, y: float, words: str, *, anchor: str = "start", style: str = "") -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}" class="{}">{}</text>').format(
        _n(x), _n(y), anchor, style, words
    )


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(_n(x1), _n(y1), _n(x2), _n(y2), style)


def rect(x: float, y: float, width: float, height: float, style: str, title: str = "") -> Markup:
    told = Markup("<title>{}</title>").format(title) if title else ""
    frame = '<rect x="{}" y="{}" width="{}" height="{}" class="{}">{}</rect>'
    return Markup(frame).format(_n(x), _n(y), _n(max(width, 0)), _n(max(height, 0)), style, told)


def mark(x: float, y: float, kind: int, style: str, title: str) -> Markup:
    """A sign of one of four shapes, so that colour is never all that tells them apart."""
    return Markup('<path d="{}" class="{}"><title>{}</title></path>').format(
        _SHAPES[kind % len(_SHAPES)](x, y), style, title
    )


def _circle(x: float, y: float) -> str:
    return f"M{_n(x - 4.5)} {_n(y)}a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z"


def _square(x: float, y: float) -> str:
    return f"M{_n(x - 4)} {_n(y - 4)}h8v8h-8z"


def _triangle(x: float, y: float) -> str:
    return f"M{_n(x)} {_n(y - 5)}l5 9h-10z"


def _diamond(x: float, y: float) -> str:
    return f"M{_n(x)} {_n(y - 5.5)}l5.5 5.5l-5.5 5.5l-5.5 -5.5z"


_SHAPES = (_circle, _square, _triangle, _diamond)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def width(words: str) -> float:
    """About how wide a text is drawn: wide characters count twice."""
    return CHAR * sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in words)


def fitted(words: str, room: float) -> str:
    """As much of a name as fits: its beginning and its end, for versions differ at the end."""
    kept = len(words)
    while kept > 1 and width(_middle_cut(words, kept)) > room:
        kept -= 1
    return _middle_cut(words, kept)


def _middle_cut(words: str, kept: int) -> str:
    if kept >= len(words):
        return words
    end = kept // 2
    return f"{words[: kept - end]}…{words[len(words) - end :]}"


class Scale(msgspec.Struct, frozen=True):
    """Values `low`…`high` to places `start`…`end`; by decades where `log`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        kept = min(max(value, self.low), self.high)
        part = math.log(kept / self.low) / math.log(self.high / self.low) if self.log else self._linear(kept)
        return self.start + part * (self.end - self.start)

    def _linear(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)

    def ticks(self, about: int = 5) -> list[float]:
        if not self.log:
            step = _round_up((self.high - self.low) / about)
            return [i * step for i in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1, 2, 5) if math.log10(self.high / self.low) < 2.5 else (1,)
        found = (m * 10.0**decade for decade in decades for m in steps)
        return [tick for tick in found if self.low * (1 - 1e-9) <= tick <= self.high * (1 + 1e-9)]


def scale_of(values: Iterable[float], start: float, end: float, *, log: bool = False) -> Scale:
    """A scale that holds the values, from zero unless by decades. A log scale ends at 1, 2 or 5 times a power of 10."""
    kept = list(values)
    if log:
        high = _round_up(max(kept))
        low = _round_down(max(min(kept), high / 10**_LOG_MOST))
        return Scale(low, high if high > 2 * low else _round_up(3 * low), start, end, log=True)
    high = max([*kept, 0.0]) or 1.0
    step = _round_up(high / 6)
    return Scale(0.0, math.ceil(high / step - 1e-9) * step, start, end)


def _round_up(value: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value) + _SAME)
    return next(m * power for m in (1, 2, 5, 10) if m * power >= value * (1 - _SAME))


def _round_down(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value) + _SAME)
    return next(m * power for m in (5, 2, 1) if m * power <= value * (1 + _SAME))
