"""How long: waiting and calls by model, and the slowest rows."""

from __future__ import annotations

import heapq

import msgspec
from markupsafe import Markup

from penstock.jobs.look.page.draw import WIDTH, Scale, figure, fitted, line, mark, scale_of, text
from penstock.jobs.look.page.groups import Groups, named
from penstock.jobs.look.page.parts import Figure, Section, Table, columns, milliseconds, shown
from penstock.jobs.look.page.sketch import Sketch
from penstock.jobs.look.told import Told, nano
from penstock.jobs.wording import dollars

SLOWEST = 20
"""Rows that are listed: enough to see whether one model, task or size is behind it."""
DRAWN = 20
"""Models in the figure, those with the most calls."""
SHARES = (0.5, 0.9, 0.99)
LEFT, RIGHT, ROW, TOP = 200.0, WIDTH - 20.0, 20.0, 8.0


class Times(msgspec.Struct):
    queue: Sketch = msgspec.field(default_factory=Sketch)
    call: Sketch = msgspec.field(default_factory=Sketch)


class Speed:
    """`models`: of results that were called for; a copy waits for another row's call. `slowest`: a heap."""

    def __init__(self) -> None:
        self.models: Groups[Times] = Groups(Times)
        self._slowest: list[tuple[float, str, int, tuple[str, ...]]] = []

    def see(self, block: Told) -> None:
        if block.copied_from is not None or block.call_ms is None:
            return
        times = self.models.at(named(block.model))
        times.call.add(block.call_ms)
        times.queue.add(block.queue_ms or 0.0)
        self._slow(block, block.call_ms)

    def _slow(self, block: Told, ms: float) -> None:
        if len(self._slowest) == SLOWEST and ms <= self._slowest[0][0]:
            return
        entry = (ms, block.item_id, block.generation, _slow_cells(block))
        push = heapq.heappush if len(self._slowest) < SLOWEST else heapq.heappushpop
        push(self._slowest, entry)

    def slowest(self) -> list[tuple[str, ...]]:
        return [cells for *_, cells in sorted(self._slowest, key=lambda slow: (-slow[0], slow[1], slow[2]))]


def _slow_cells(block: Told) -> tuple[str, ...]:
    tokens = block.tokens
    counts = (f"{tokens.input:,}", f"{tokens.output:,}") if tokens else ("–", "–")
    label = block.custom_id or "–"
    tries = str(len(block.attempts))
    times = (milliseconds(block.queue_ms), milliseconds(block.call_ms))
    names = (shown(block.item_id)[:12], shown(label), shown(named(block.task)), shown(named(block.model)))
    return (*names, *times, tries, *counts, dollars(nano(block.cost_usd)))


INTRO = (
    "“Waited” is from reading a row to its first call: behind limits, budget and other rows. “Called” is the time of "
    "its calls, failed ones included. Quantiles are right to within 1 %. Rows answered by a copy are left out."
)
SLOW_COLUMNS = (
    "item", "label", "task", "model", "#waited", "#called", "#attempts", "#tokens in", "#out", "#$",
)  # fmt: skip


def section(speed: Speed) -> Section:
    if not speed.models:
        return Section("latency", "Latency", "No call was made.")
    ranked = speed.models.ranked(lambda times: times.call.n)
    names = columns("model", "#results", *(f"#{what} p{100 * s:.0f}" for what in ("waited", "called") for s in SHARES))
    rows = [(shown(key[0]), f"{times.call.n:,}", *_quantiles(times)) for key, times in ranked]
    drawn = [(shown(key[0]), times.call) for key, times in ranked[:DRAWN]]
    more = f" The {DRAWN} models with the most results." if len(ranked) > DRAWN else ""
    note = "The dot is the median, the thick line reaches to the 90th percentile, the thin one to the 99th." + more
    figures = (Figure("Time of calls by model", _ranges(drawn), note),)
    slow = Table(f"The slowest rows, by time of calls (at most {SLOWEST})", columns(*SLOW_COLUMNS), speed.slowest())
    return Section("latency", "Latency", INTRO, (*figures, Table("Waiting and calls by model", names, rows), slow))


def _quantiles(times: Times) -> list[str]:
    return [milliseconds(sketch.quantile(s)) for sketch in (times.queue, times.call) for s in SHARES]


def _ranges(drawn: list[tuple[str, Sketch]]) -> Markup:
    found = [(name, [sketch.quantile(s) or 0.0 for s in SHARES]) for name, sketch in drawn]
    across = scale_of((value for _, values in found for value in values), LEFT, RIGHT, log=True)
    bottom = TOP + ROW * len(found) + 4
    parts = _axis(across, bottom)
    for i, (name, values) in enumerate(found):
        parts += _range(name, values, across, TOP + ROW * (i + 0.5))
    return figure(bottom + 24, "Time of calls by model", parts)


def _axis(across: Scale, bottom: float) -> list[Markup]:
    parts: list[Markup] = [line(LEFT, bottom, RIGHT, bottom, "axis")]
    for tick in across.ticks():
        x = across.at(tick)
        parts += [line(x, TOP, x, bottom, "grid"), text(x, bottom + 16, milliseconds(tick), anchor="middle")]
    return parts


def _range(name: str, values: list[float], across: Scale, y: float) -> list[Markup]:
    p50, p90, p99 = (across.at(value) for value in values)
    title = f"{name}: " + ", ".join(f"p{100 * s:.0f} {milliseconds(v)}" for s, v in zip(SHARES, values, strict=True))
    return [
        text(LEFT - 10, y + 4, fitted(name, LEFT - 10), anchor="end"),
        line(p50, y, p99, y, "thin"),
        line(p50, y, p90, y, "thick"),
        mark(p50, y, 0, "s0", title),
    ]
