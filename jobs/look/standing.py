"""What is measured of each model for a task of a job, and where its items would go: for `penstock models --task`."""

from __future__ import annotations

import math
from importlib import resources

import msgspec

from penstock.engine.errors import SpecError
from penstock.engine.items import NANO_PER_USD, Attributes, Request, Route
from penstock.engine.pricing import BYTES_PER_TOKEN
from penstock.engine.quality import Interval
from penstock.engine.registry.document import Measured
from penstock.engine.registry.standing import Standing, cost_per_accepted, read
from penstock.engine.registry.standings import scorer_of, standings
from penstock.engine.router import COMMON_TOKENS, Rejection, Router
from penstock.engine.steering.document import Steering
from penstock.engine.steering.turn import Turn
from penstock.jobs.look.page.scatter import Point, scatter
from penstock.workers.runspec import RunSpec


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """One model version. Money in dollars, of an item. None: not measured, or by too few items."""

    model: str
    version: str
    prompt: str
    n: int
    """Scores that count."""
    quality: Interval | None
    declared: float | None
    items: int
    item_usd: float | None
    accepted_usd: Interval | None
    latency_ms: float | None
    """The geometric mean: half of the items take longer, about."""
    place: int | None
    """Among those that an item would try; None: it would not be tried."""
    why: str


class Standings(msgspec.Struct, frozen=True):
    task: str
    asked: float | None
    scorer: str | None
    why: str
    """Why items go where they go, or why they go nowhere."""
    models: tuple[Known, ...]
    others: tuple[str, ...]
    """Versions of other prompts that were measured for this task."""


def known(
    spec: RunSpec, shared: Measured, task: str, sensitivity: str | None = None, steering: Steering | None = None
) -> Standings:
    """`steering`: what all jobs obey; while a rollout goes, the baseline stands for its model. Raises `SpecError` where
    the job has no such task."""
    wanted = spec.policy.tasks.get(task)
    if wanted is None:
        raise SpecError(f"the job has no task {task!r}; tasks: {', '.join(spec.policy.tasks)}")
    found = standings(shared, spec.catalog, spec.policy)
    router = Router(spec.catalog, spec.policy)
    router.learn(found)
    router.steer(Turn(spec.catalog.models, Steering(live=steering.live) if steering is not None else None))
    asked = Request(b"x" * (COMMON_TOKENS * BYTES_PER_TOKEN))
    route = router.route(Attributes(task=task, sensitivity=sensitivity), asked)
    prompt = wanted.prompt.version if wanted.prompt else ""
    seen = {(each.model, each.version): each for each in found if each.task == task}
    order = {c.model: (i, c.reason) for i, c in enumerate(route.candidates)} if isinstance(route, Route) else {}
    whole = route.route if isinstance(route, Rejection) else route
    refused = {refusal.model: refusal.reason for refusal in whole.refused}
    rows: list[Known] = []
    for model in spec.catalog.models.values():
        for version in model.versions:
            live = version.id == router.turn.pick(model, None).version
            standing = seen.get((model.name, version.id))
            if standing is None and not (live and (model.name in order or model.name in refused)):
                continue
            place, why = order.get(model.name, (None, refused.get(model.name, "not among the task's models")))
            rows.append(
                _row(
                    standing or Standing(task, model.name, version.id),
                    prompt,
                    model.quality.get(task),
                    wanted.min_quality,
                    place if live else None,
                    why if live else "not the live version",
                )
            )
    rows.sort(key=lambda row: (row.place is None, row.place or 0, row.model, row.version))
    others = sorted({cell.prompt for cell in shared.cells if cell.task == task and cell.prompt != prompt})
    reason = route.message if isinstance(route, Rejection) else route.reason
    return Standings(task, wanted.min_quality, scorer_of(wanted), reason, tuple(rows), tuple(others))


def _row(
    standing: Standing, prompt: str, declared: float | None, asked: float | None, place: int | None, why: str
) -> Known:
    reading = read(standing, asked if asked is not None else 0.0)
    paid, latency = cost_per_accepted(reading.now), standing.log_ms
    return Known(
        model=standing.model,
        version=standing.version,
        prompt=prompt,
        n=reading.n,
        quality=reading.interval,
        declared=declared,
        items=standing.items,
        item_usd=standing.cost.mean * (1 + standing.aside) / NANO_PER_USD if standing.items else None,
        accepted_usd=paid and Interval(*(each / NANO_PER_USD for each in (paid.mean, paid.low, paid.high))),
        latency_ms=math.exp(latency.mean) if latency.n else None,
        place=place,
        why=why,
    )


def plot(found: Standings, *, page: bool) -> str:
    """Quality against the cost of 1,000 accepted items, of the models that both are known of: an SVG file, or a page.
    Raises `SpecError` where there is none."""
    points = [
        Point(i, found.task, f"{row.model}@{row.version}", _thousand(row.accepted_usd), _bar(row.quality))
        for i, row in enumerate(found.models, 1)
        if row.accepted_usd is not None and row.quality is not None
    ]
    if not points:
        raise SpecError(f"nothing to draw: no model has {50} items and a score for the task {found.task} yet")
    drawn = str(scatter(points, of="accepted items, judging and idle hours included"))
    style = (resources.files("penstock.jobs.look.page") / "page.css").read_text("utf-8")
    if page:
        return f'<!doctype html><meta charset="utf-8"><title>{found.task}</title><style>{style}</style>{drawn}\n'
    named = drawn.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    head, _, rest = named.partition(">")
    return f"{head}><style>{style}</style>{rest}\n"


def _thousand(usd: Interval) -> tuple[float, ...]:
    return tuple(1000 * each for each in (usd.mean, usd.low, usd.high))


def _bar(around: Interval) -> tuple[float, ...]:
    return around.mean, around.low, around.high
