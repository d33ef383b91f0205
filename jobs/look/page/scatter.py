"""Quality against cost: a point for each task and model, with its intervals as bars and a name beside it."""

from __future__ import annotations

import msgspec
from markupsafe import Markup

from penstock.jobs.look.page.draw import WIDTH, Scale, figure, fitted, line, mark, scale_of, text, width
from penstock.jobs.look.page.parts import percent, shown

LEFT, RIGHT, TOP, BOTTOM = 52.0, WIDTH - 28.0, 34.0, 330.0
HEIGHT = 372.0
NAMED = 160.0
"""Room for a name in the figure; the table has the whole."""
CROWD = 20
"""Points from which only their numbers stand beside them, and their bars are faint."""
APART = 10.0
"""Dearest by cheapest from which costs are drawn by decades."""
COLOURS = 6
"""Tasks that have a colour of their own."""

Bar = tuple[float, ...]
"""mean, low, high."""


class Point(msgspec.Struct, frozen=True):
    """`cost`: dollars per 1,000 results. `score`: 0…1."""

    number: int
    task: str
    model: str
    cost: Bar
    score: Bar

    @property
    def label(self) -> str:
        return f"{self.number} {fitted(self.model, NAMED)}"


class Box(msgspec.Struct, frozen=True):
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        beside = self.right <= other.left or other.right <= self.left
        return not (beside or self.bottom <= other.top or other.bottom <= self.top)

    @property
    def inside(self) -> bool:
        return self.left >= LEFT and self.right <= RIGHT and self.top >= TOP - 8 and self.bottom <= BOTTOM


def scatter(points: list[Point], of: str = "results, all attempts") -> Markup:
    """`points`: at least one. `of`: what costs are told of, by the thousand."""
    means = [point.cost[0] for point in points]
    log = min(means) > 0 and max(means) / min(means) > APART
    across = scale_of((cost for point in points for cost in _drawn(point, log)), LEFT, RIGHT, log=log)
    up = Scale(0.0, 1.0, BOTTOM, TOP)
    tasks = list(dict.fromkeys(point.task for point in points))
    places = [(across.at(point.cost[0]), up.at(point.score[0])) for point in points]
    parts = [*_axes(across, up, of, log=log), *_legend(tasks)]
    faint = " faint" if len(points) >= CROWD else ""
    for point, place in zip(points, places, strict=True):
        parts += _bars(point, place, across, up, f"bar b{min(tasks.index(point.task), COLOURS)}{faint}")
    for point, place in zip(points, places, strict=True):
        parts.append(_sign(point, place, tasks.index(point.task)))
    return figure(
        HEIGHT, "Mean score against mean cost of a result, by task and model", parts + _labels(points, places)
    )


def _drawn(point: Point, log: bool) -> list[float]:
    """By decades a lower bound near nothing would push all points to one side: it is cut at a tenth of the mean."""
    mean, low, high = point.cost
    return [mean, max(low, mean / 10) if log else low, high]


def _axes(across: Scale, up: Scale, of: str, *, log: bool) -> list[Markup]:
    parts: list[Markup] = []
    for tick in up.ticks():
        y = up.at(tick)
        parts += [line(LEFT, y, RIGHT, y, "grid"), text(LEFT - 6, y + 4, f"{100 * tick:.0f} %", anchor="end")]
    for tick in across.ticks(6):
        x = across.at(tick)
        parts += [line(x, TOP, x, BOTTOM, "grid"), text(x, BOTTOM + 15, _usd(tick), anchor="middle")]
    axis = f"US$ per 1,000 {of}" + (" (logarithmic)" if log else "")
    parts += [line(LEFT, BOTTOM, RIGHT, BOTTOM, "axis"), text((LEFT + RIGHT) / 2, BOTTOM + 34, axis, anchor="middle")]
    return [*parts, text(4, 12, "mean score")]


def _usd(value: float) -> str:
    return "$" + (f"{value:,.9f}".rstrip("0").rstrip(".") or "0")


def _legend(tasks: list[str]) -> list[Markup]:
    """The first tasks by name: more don't fit, and are told apart in the table."""
    parts, x = list[Markup](), LEFT + 50
    for kind, task in enumerate(tasks):
        word = fitted(shown(task), NAMED)
        if x + width(word) + 30 > RIGHT:
            return [*parts, text(x, 12, "…")]
        parts += [mark(x, 8, kind, _style(kind), ""), text(x + 9, 12, word)]
        x += width(word) + 30
    return parts


def _style(kind: int) -> str:
    return f"s{min(kind, COLOURS)}"


def _bars(point: Point, place: tuple[float, float], across: Scale, up: Scale, style: str) -> list[Markup]:
    x, y = place
    return [
        line(across.at(point.cost[1]), y, across.at(point.cost[2]), y, style),
        line(x, up.at(point.score[1]), x, up.at(point.score[2]), style),
    ]


def _sign(point: Point, place: tuple[float, float], kind: int) -> Markup:
    title = f"{point.number}. {point.model}, {shown(point.task)}: {percent(point.score[0])} at {_usd(point.cost[0])}"
    return mark(*place, kind, _style(kind), title)


def _labels(points: list[Point], places: list[tuple[float, float]]) -> list[Markup]:
    """Beside each point where there is room: its name, else its number, else nothing (it still has its title)."""
    taken = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    parts: list[Markup] = []
    for point, (x, y) in zip(points, places, strict=True):
        words = (point.label, str(point.number)) if len(points) < CROWD else (str(point.number),)
        choices = ((word, box) for word in words for box in _around(x, y, width(word)))
        free = next(((w, b) for w, b in choices if b.inside and not any(b.meets(other) for other in taken)), None)
        if free is not None:
            taken.append(free[1])
            parts.append(_label(free[0], free[1], x))
    return parts


def _label(words: str, box: Box, x: float) -> Markup:
    """Set against the side that faces its point, so that a letter's real width does not matter."""
    before = box.left < x
    place, anchor = (box.right, "end") if before else (box.left, "start")
    return text(place, box.bottom - 3, words, anchor=anchor, style="label")


def _around(x: float, y: float, wide: float) -> list[Box]:
    """Places for a text of that width, the best first: clear of the bars, which cross at the point."""
    left, right = (x - 8 - wide, x - 8), (x + 8, x + 8 + wide)
    above, below = (y - 18, y - 4), (y + 4, y + 18)
    near = [(h, v) for v in (above, below) for h in (right, left)]
    far = [
        (h, (v[0] + by, v[1] + by)) for by in (-14, 14) for h in (right, left) for v in ((above if by < 0 else below),)
    ]
    return [Box(h[0], v[0], h[1], v[1]) for h, v in near + far]
