"""Who answered: shares of model versions over time, when each version came and went, and rows by tier."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
from markupsafe import Markup

from penstock.engine.steering.rollout import arm_of
from penstock.jobs.look.page.draw import WIDTH, Scale, figure, fitted, line, rect, scale_of, text, width
from penstock.jobs.look.page.groups import Groups, named, versioned
from penstock.jobs.look.page.parts import Figure, Section, Table, columns, shown, when
from penstock.jobs.look.page.timeline import Bucket, Timeline
from penstock.jobs.look.told import Told
from penstock.jobs.wording import counted, share

SERIES = 6
"""Versions that have a colour of their own: more can't be told apart safely."""
REST = "others"
LEFT, RIGHT = 46.0, WIDTH - 8.0
TOP, MIDDLE = 14.0, 190.0
LOWER, BOTTOM = 206.0, 250.0
LINE = 18.0
LONGEST = 300.0
"""Room for a name under the figure: two in a line."""
TICKS = 6


class Seen(msgspec.Struct):
    """Results of one version; when the first and the last were finished (Unix seconds)."""

    n: int = 0
    first: float = 0.0
    last: float = 0.0

    def add(self, at: float) -> None:
        self.first = min(self.first or at, at)
        self.last = max(self.last, at)
        self.n += 1


class Routing:
    def __init__(self) -> None:
        self.versions: Groups[Seen] = Groups(Seen)
        self.settings: Groups[Seen] = Groups(Seen)
        self.tiers: Groups[Seen] = Groups(Seen)
        self.timeline = Timeline()
        self.arms: Groups[Seen] = Groups(Seen)
        self.arms_timeline = Timeline()

    def see(self, block: Told) -> None:
        at = block.finished_at.timestamp() if block.finished_at else 0.0
        label = versioned(block.model, block.model_version)
        self.versions.at(label).add(at)
        self.tiers.at(named(block.tier), _why(block)).add(at)
        for kind in ("prompt", "policy", "price"):
            self.settings.at(kind, named(getattr(block, f"{kind}_version"))).add(at)
        if at:
            self.timeline.add(at, self.versions.kept(label)[0])
            self._arm(block, at)

    def _arm(self, block: Told, at: float) -> None:
        """Of an experiment. A rollout's arms are versions, and drawn as such."""
        if block.arm is not None and arm_of(block.arm) is None:
            label = f"{named(block.experiment)} {block.arm}"
            self.arms.at(label).add(at)
            self.arms_timeline.add(at, self.arms.kept(label)[0])


def _why(block: Told) -> str:
    """As `explain` says it."""
    return "the order of preference" if block.route_reason == f"tier {block.tier}" else named(block.route_reason)


def section(routing: Routing, marks: Sequence[float] = ()) -> Section:
    """`marks`: Unix seconds at which something was decided; they are numbered from 1."""
    if not routing.versions:
        return Section("routing", "Routing", "No result yet.")
    parts = _over_time("Shares of model versions over time", routing.versions, routing.timeline, marks)
    if routing.arms:
        parts += _over_time("Shares of arms over time", routing.arms, routing.arms_timeline, ())
    parts += [_seen("Model versions", ("model version",), routing.versions)]
    parts += [_seen("Tiers and why", ("tier", "why"), routing.tiers)]
    parts += [_seen("Versions of prompts, policy and prices", ("of", "version"), routing.settings)]
    return Section("routing", "Routing", "", tuple(parts))


def _over_time(caption: str, groups: Groups[Seen], timeline: Timeline, marks: Sequence[float]) -> list[Figure | Table]:
    """The figure and its numbers; nothing where no time is known."""
    ranked = [key[0] for key, _ in groups.ranked(lambda seen: seen.n)]
    series = ranked if len(ranked) <= SERIES else [*ranked[: SERIES - 1], REST]
    buckets = [_folded(bucket, series) for bucket in timeline.buckets()]
    if not buckets:
        return []
    width_s = timeline.width_s
    note = f"Results by when they were finished, {_span(width_s)} a bar; times are UTC."
    drawn = [(n, at) for n, at in enumerate(marks, 1) if _within(at, buckets, width_s)]
    if drawn:
        note += " Lines with numbers are decisions, told under Rollouts."
    svg = _shares(caption, buckets, series, width_s, drawn)
    return [Figure(caption, svg, note), _numbers(buckets, series)]


def _span(width_s: int) -> str:
    """A bucket's width is whole in one of these."""
    units = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
    return next(f"{width_s // size} {unit}" for unit, size in units if width_s % size == 0)


def _folded(bucket: Bucket, series: list[str]) -> Bucket:
    counts = {name: bucket.counts.get(name, 0) for name in series}
    if series[-1] == REST:
        counts[REST] = bucket.total - sum(counts.values())
    return Bucket(bucket.start, counts)


def _seen(caption: str, names: tuple[str, ...], groups: Groups[Seen]) -> Table:
    ranked = groups.ranked(lambda seen: seen.n)
    if names[0] != "model version":
        ranked.sort(key=lambda kv: kv[0][0])
    total = sum(seen.n for _, seen in ranked) // (3 if names[0] == "of" else 1)
    rows = [(*map(shown, key), *_seen_cells(seen, total)) for key, seen in ranked]
    return Table(caption, columns(*names, "#results", "#share", "#first", "#last"), rows)


def _seen_cells(seen: Seen, total: int) -> tuple[str, ...]:
    return (f"{seen.n:,}", share(seen.n, total), when(seen.first), when(seen.last))


def _numbers(buckets: list[Bucket], series: list[str]) -> Table:
    full = [bucket for bucket in buckets if bucket.total]
    rows = [(when(b.start), f"{b.total:,}", *(share(b.counts[name], b.total) for name in series)) for b in full]
    names = columns("from (UTC)", "#results", *(f"#{shown(name)}" for name in series))
    return Table("The figure's numbers", names, rows, folded=True)


# ---- the figure


def _within(at: float, buckets: list[Bucket], width_s: int) -> bool:
    return buckets[0].start <= at <= buckets[-1].start + width_s


def _shares(
    caption: str, buckets: list[Bucket], series: list[str], width_s: int, marks: list[tuple[int, float]]
) -> Markup:
    legend = _legend(series)
    parts = [*_grid(), *legend[0]]
    volume = scale_of((bucket.total for bucket in buckets), BOTTOM, LOWER)
    step = min((RIGHT - LEFT) / len(buckets), 60.0)
    for i, bucket in enumerate(buckets):
        x = LEFT + i * step
        parts += _stack(bucket, series, x, step)
        title = f"{when(bucket.start)}: {counted(bucket.total, 'result')}"
        parts.append(rect(x, volume.at(bucket.total), step - 1, BOTTOM - volume.at(bucket.total), "volume", title))
    across = Scale(buckets[0].start, buckets[-1].start + width_s, LEFT, LEFT + len(buckets) * step)
    parts += [*_volume_axis(volume), *_times(buckets, step, width_s), *_decided(marks, across)]
    return figure(legend[1], caption, parts)


def _stack(bucket: Bucket, series: list[str], x: float, step: float) -> list[Markup]:
    if not bucket.total:
        return []
    up, done, parts = Scale(0.0, bucket.total, MIDDLE, TOP), 0, list[Markup]()
    for i, name in enumerate(series):
        count = bucket.counts[name]
        if count:
            title = f"{when(bucket.start)}, {shown(name)}: {count:,} of {bucket.total:,} ({share(count, bucket.total)})"
            top, base = up.at(done + count), up.at(done)
            parts.append(rect(x, top, step - 1, base - top - 0.5, _style(i, name), title))
        done += count
    return parts


def _decided(marks: list[tuple[int, float]], across: Scale) -> list[Markup]:
    parts, free = list[Markup](), 0.0
    for number, at in marks:
        x = across.at(at)
        parts.append(line(x, TOP, x, BOTTOM, "decided"))
        if x >= free:
            parts.append(text(x, TOP - 2, str(number), anchor="middle", style="label"))
            free = x + width(str(number)) + 3
    return parts


def _style(i: int, name: str) -> str:
    return "rest" if name == REST else f"s{i}"


def _grid() -> list[Markup]:
    up, parts = Scale(0.0, 1.0, MIDDLE, TOP), list[Markup]()
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts += [
            line(LEFT, up.at(tick), RIGHT, up.at(tick), "grid"),
            text(LEFT - 6, up.at(tick) + 4, f"{100 * tick:.0f} %", anchor="end"),
        ]
    return parts


def _volume_axis(volume: Scale) -> list[Markup]:
    top = text(LEFT - 6, LOWER + 8, f"{volume.high:,.0f}", anchor="end")
    return [line(LEFT, BOTTOM, RIGHT, BOTTOM, "axis"), top, text(LEFT - 6, BOTTOM, "results", anchor="end")]


def _times(buckets: list[Bucket], step: float, width_s: int) -> list[Markup]:
    every = max(1, -(-len(buckets) // TICKS), round(70 / step))
    parts = [
        text(LEFT + i * step, BOTTOM + 15, _time(buckets[i].start, width_s)) for i in range(0, len(buckets), every)
    ]
    return [*parts]


def _time(at: float, width_s: int) -> str:
    form = "%H:%M:%S" if width_s < 60 else "%m-%d %H:%M" if width_s < 86_400 else "%Y-%m-%d"
    return datetime.fromtimestamp(at, UTC).strftime(form)


def _legend(series: list[str]) -> tuple[list[Markup], float]:
    """Drawn under the figure, in as many lines as it takes; and the height of the whole."""
    parts, x, y = list[Markup](), LEFT, BOTTOM + 38
    for i, name in enumerate(series):
        word = fitted(shown(name), LONGEST)
        if x > LEFT and x + width(word) + 18 > RIGHT:
            x, y = LEFT, y + LINE
        parts += [rect(x, y - 9, 11, 11, _style(i, name)), text(x + 16, y, word)]
        x += width(word) + 34
    return parts, y + 10
