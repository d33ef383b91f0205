"""SURFACES §6's metrics, through `ray.util.metrics` (Prometheus; Ray adds `ray_`). No item or object in a label.

Nothing here is touched while an item is on its way: a lane's numbers come from its commits (so what a crash undoes is
not counted) and from its tally, once a second. Sums of the whole run (budget, quality, idle GPUs) are the driver's, an
account's limits and an engine's load its worker's. A job shorter than Ray's export interval (about 10 s) may never
show; the summary always does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Literal, Protocol, cast

import msgspec

from penstock.engine.flow.cells import Cell
from penstock.engine.flow.lane_types import CommitBatch
from penstock.engine.flow.tally import Tally
from penstock.engine.items import NANO_PER_USD, Usage
from penstock.engine.measure.intervals import anytime_interval
from penstock.engine.measure.sample import Sample, merge
from penstock.engine.quality import Interval
from penstock.engine.results import CostLine, DeadLetter, Result, last_asked
from penstock.workers.books.spending import Spend
from penstock.workers.lanes.report import LaneReport
from penstock.workers.runspec import RunSpec
from penstock.workers.status import RunStatus

EXPORT_EVERY_S = 1.0
MOST_OBSERVED = 128
"""Calls and waits of one commit that go into histograms, evenly chosen: 1.7 µs each, five commits a second."""
MOST_TENANTS = 100
"""Of one process; later ones are `other`, for a label's values must stay few."""
LONGEST_LABEL = 100
NO_DEADLINE_S = 86_400.0
"""What the gauge shows at most, and once the items with deadlines are gone: a gauge can't be taken back."""
SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0]

Name = str
Labels = tuple[str, ...]
Kind = Literal["counter", "gauge", "histogram"]


class Declared(msgspec.Struct, frozen=True):
    kind: Kind
    text: str
    labels: Labels = ()


LANE: dict[Name, Declared] = {
    "items": Declared("counter", "Items that ended and are committed", ("job", "tier", "task", "model", "outcome")),
    "tokens": Declared("counter", "Tokens of committed calls", ("model", "kind")),
    "cost_usd": Declared("counter", "US dollars of committed calls", ("job", "tenant", "tier", "model", "role")),
    "inflight": Declared("gauge", "Calls at workers", ("model",)),
    "queue_seconds": Declared("histogram", "From an item's own time, or reading it, to its first call"),
    "call_seconds": Declared("histogram", "Duration of a call", ("model",)),
    "retries": Declared("counter", "Calls made again at the same model, by what had failed", ("reason",)),
    "fallbacks": Declared("counter", "Items sent on to another model", ("from", "to")),
    "breaker_open": Declared("gauge", "1 where nothing is sent for now", ("account", "model")),
    "oldest_item_seconds": Declared("gauge", "Since the oldest unfinished item was read"),
    "deadline_left_seconds": Declared(
        "gauge", "Time left of the most pressing unfinished item that has waited for longer than that"
    ),
    "lane_lag": Declared("gauge", "Records that are there and not read yet", ("topic",)),
    "dead_letters": Declared("counter", "Dead letters that are committed", ("reason",)),
    "second_payments": Declared("counter", "Items that may have been paid for twice after a crash"),
    "wall_refusals": Declared("counter", "Targets refused by a wall", ("wall",)),
    "other_model_answers": Declared(
        "counter",
        "Answers of another model than was asked for, or with another fingerprint than is pinned",
        ("model_version",),
    ),
}
DRIVER: dict[Name, Declared] = {
    "budget_usd": Declared("gauge", "The run's money: limit, spent, forfeit", ("job", "state")),
    "period_budget_usd": Declared(
        "gauge", "A day's or month's money, all its jobs together: limit, spent, forfeit", ("job", "per", "state")
    ),
    "quality": Declared(
        "gauge", "Mean score of the samples, 95 % bounds", ("task", "model_version", "scorer", "bound")
    ),
    "cascade_drifted": Declared(
        "gauge", "1: accepted answers fall short of what calibration promised", ("job", "task")
    ),
    "gpu_idle_usd": Declared("gauge", "Hours of own engines that no call has paid for"),
    "commit_age_seconds": Declared("gauge", "Seconds that the latest lane has had something to commit, or was silent"),
    "standstill": Declared("gauge", "1: items wait, and nothing moves until somebody acts", ("job",)),
    "second_payments_bound": Declared(
        "gauge", "The most second payments that lost lanes and restarts explain", ("job",)
    ),
}
API: dict[Name, Declared] = {
    "limit_used_ratio": Declared("gauge", "0 to 1: how far an account's limit is used", ("account", "bucket")),
    "throttles": Declared("counter", "Calls that the provider refused for its limits", ("account", "kind")),
}
ENGINE: dict[Name, Declared] = {
    "vllm_running": Declared("gauge", "Requests that vLLM computes", ("model",)),
    "vllm_waiting": Declared("gauge", "Requests that wait in vLLM", ("model",)),
    "vllm_kv_cache_usage": Declared("gauge", "0 to 1: how full the KV cache is", ("model",)),
}


class Metric(Protocol):
    """What of Ray's three classes is used; each has one of them."""

    def inc(self, value: float, tags: dict[str, str]) -> None: ...
    def set(self, value: float, tags: dict[str, str]) -> None: ...
    def observe(self, value: float, tags: dict[str, str]) -> None: ...


Maker = Callable[[str, Declared], Metric]


def ray_metric(name: str, what: Declared) -> Metric:
    """`name` without Ray's prefix."""
    from ray.util.metrics import Counter, Gauge, Histogram

    made: object
    match what.kind:
        case "counter":
            made = Counter(name, what.text, tag_keys=what.labels)
        case "gauge":
            made = Gauge(name, what.text, tag_keys=what.labels)
        case "histogram":
            made = Histogram(name, what.text, boundaries=SECONDS, tag_keys=what.labels)
    return cast(Metric, made)


class Metrics:
    """The metrics of one process, by their short names."""

    def __init__(self, declared: Mapping[Name, Declared], make: Maker) -> None:
        self._made = {name: (make(f"penstock_{name}", what), what.labels) for name, what in declared.items()}

    def add(self, name: Name, more: float, *labels: str) -> None:
        metric, keys = self._made[name]
        metric.inc(more, dict(zip(keys, labels, strict=True)))

    def set(self, name: Name, value: float, *labels: str) -> None:
        metric, keys = self._made[name]
        metric.set(value, dict(zip(keys, labels, strict=True)))

    def observe(self, name: Name, value: float, *labels: str) -> None:
        metric, keys = self._made[name]
        metric.observe(value, dict(zip(keys, labels, strict=True)))


class LaneMetrics:
    """All lanes of one lane actor. `committed` sums up, `see` exports once a second."""

    def __init__(self, spec: RunSpec, make: Maker = ray_metric, now: Callable[[], float] = time.monotonic) -> None:
        self._metrics = Metrics(LANE, make)
        self._job = spec.name
        self._tasks = frozenset(spec.policy.tasks)
        self._tiers = frozenset(spec.catalog.tiers)
        self._now = now
        self._exported_at = 0.0
        self._lanes: dict[int, LaneReport] = {}
        self._seen: dict[int, dict[tuple[Name, Labels], float]] = {}
        """Lane → what of its tally was exported, or stood there when the lane was taken."""
        self._sums: dict[tuple[Name, Labels], float] = {}
        self._tenants: set[str] = set()
        self._models: set[str] = set()
        self._breakers: set[Labels] = set()
        self._topics: set[str] = set()
        self._deadlines = False

    def taken(self, lane: int, tally: Tally) -> None:
        """What an earlier owner counted is his: this process exports what comes on top."""
        self._seen[lane] = {(name, labels): total for name, labels, total in _totals(tally)}

    def dropped(self, lane: int) -> None:
        self._lanes.pop(lane, None)

    def moved(self) -> None:
        """A lane goes on in another process. No report may follow here, and a gauge stays as it was set last."""
        self._export()

    def committed(self, batch: CommitBatch) -> None:
        """A commit of one of the lanes is durable."""
        items: dict[tuple[int, str, str, str], int] = {}
        for result in batch.results:
            route = result.route
            key = (route.tier, route.task, result.model, result.status)
            items[key] = items.get(key, 0) + 1
        for (tier, task, model, outcome), n in items.items():
            self._sum("items", n, self._job, str(tier), self._task(task), model, outcome)
        for dead in batch.dead_letters:
            self._dead(dead)
        self._charge(batch.costs)
        self._observe(batch.results)

    def see(self, report: LaneReport) -> None:
        self._lanes[report.lane] = report
        now = self._now()
        if report.settled or now - self._exported_at >= EXPORT_EVERY_S:
            self._exported_at = now
            self._export()

    def _dead(self, dead: DeadLetter) -> None:
        route, last = dead.route, last_asked(dead.attempts)
        model = last.model if last is not None else ""
        tier, task = (route.tier, route.task) if route is not None else (0, "")
        self._sum(
            "items", 1, self._job, str(tier) if tier in self._tiers else "", self._task(task), model, "dead_letter"
        )
        self._sum("dead_letters", 1, dead.reason)

    def _charge(self, costs: Sequence[tuple[CostLine, object]]) -> None:
        money: dict[tuple[str | None, int | None, str, str], int] = {}
        tokens: dict[tuple[str, str], int] = {}
        for line, _ in costs:
            key = (line.tenant, line.tier, line.model, line.role)
            money[key] = money.get(key, 0) + line.cost_nano
            for kind, n in _kinds(line.usage):
                tokens[line.model, kind] = tokens.get((line.model, kind), 0) + n
        for (tenant, tier, model, role), nano in money.items():
            labels = (self._job, self._tenant(tenant), "" if tier is None else str(tier), model, role)
            self._sum("cost_usd", nano / NANO_PER_USD, *labels)
        for (model, kind), n in tokens.items():
            self._sum("tokens", n, model, kind)

    def _observe(self, results: list[Result]) -> None:
        for result in results[:: 1 + len(results) // MOST_OBSERVED]:
            self._metrics.observe("queue_seconds", result.queue_ms / 1000)
            for attempt in result.attempts:
                self._metrics.observe("call_seconds", attempt.ms / 1000, attempt.model)

    def _task(self, name: str) -> str:
        """A task nobody declared is a word of the input."""
        return name if name in self._tasks else ""

    def _tenant(self, name: str | None) -> str:
        if not name:
            return ""
        if name not in self._tenants:
            if len(self._tenants) >= MOST_TENANTS or len(name) > LONGEST_LABEL:
                return "other"
            self._tenants.add(name)
        return name

    def _sum(self, name: Name, more: float, *labels: str) -> None:
        self._sums[name, labels] = self._sums.get((name, labels), 0.0) + more

    def _export(self) -> None:
        for lane, report in self._lanes.items():
            self._difference(lane, report.tally)
        for key, more in list(self._sums.items()):
            if more > 0:  # a closing line may be negative: it waits for something to be taken from
                del self._sums[key]
                self._metrics.add(key[0], more, *key[1])
        reports = self._lanes.values()
        self._set_in_flight([report.tally.flying for report in reports])
        self._set_breakers({(account or "", model) for r in reports for account, model in r.open_breakers})
        self._metrics.set("oldest_item_seconds", max((report.oldest_item_s for report in reports), default=0.0))
        self._set_lag([report.lag for report in reports])
        left = [report.deadline_left_s for report in reports if report.deadline_left_s is not None]
        if left or self._deadlines:
            self._deadlines = True
            self._metrics.set("deadline_left_seconds", min([*left, NO_DEADLINE_S]))

    def _difference(self, lane: int, tally: Tally) -> None:
        seen = self._seen.setdefault(lane, {})
        for name, labels, total in _totals(tally):
            more = total - seen.get((name, labels), 0.0)
            if more > 0:
                seen[name, labels] = total
                self._sum(name, more, *labels)

    def _set_in_flight(self, lanes: list[dict[str, int]]) -> None:
        self._models.update(model for flying in lanes for model in flying)
        for model in self._models:
            self._metrics.set("inflight", sum(flying.get(model, 0) for flying in lanes), model)

    def _set_lag(self, lanes: list[dict[str, int]]) -> None:
        self._topics.update(topic for lag in lanes for topic in lag)
        for topic in self._topics:
            self._metrics.set("lane_lag", sum(lag.get(topic, 0) for lag in lanes), topic)

    def _set_breakers(self, now_open: set[Labels]) -> None:
        self._breakers |= now_open
        for labels in self._breakers:
            self._metrics.set("breaker_open", float(labels in now_open), *labels)


def _kinds(usage: Usage) -> Iterator[tuple[str, int]]:
    """As records name them: cached and written ones are part of the input, reasoning of the output."""
    yield "input", usage.input
    yield "cached", usage.cached
    yield "cache_write", usage.cache_write + usage.cache_write_1h
    yield "output", usage.output
    yield "reasoning", usage.reasoning


def _totals(tally: Tally) -> Iterator[tuple[Name, Labels, float]]:
    for reason, n in tally.retried.items():
        yield "retries", (reason,), n
    for (source, to), n in tally.fell_back():
        yield "fallbacks", (source, to), n
    for wall, n in tally.refused.items():
        yield "wall_refusals", (wall,), n
    for model_version, row in tally.models.items():
        if row.other_model:
            yield "other_model_answers", (model_version,), row.other_model
    yield "second_payments", (), tally.second_payments


class DriverMetrics:
    """Sums over all lanes: a mean and its bounds can't be added up by whoever reads the metrics."""

    def __init__(self, job: str, make: Maker = ray_metric) -> None:
        self._metrics = Metrics(DRIVER, make)
        self._job = job

    async def tell_lateness(self, late_s: Callable[[], float], meanwhile: Awaitable[None]) -> None:
        """While `meanwhile` goes on: lanes that are to be opened wait for a store for as long as it is away."""
        work = asyncio.ensure_future(meanwhile)
        try:
            while not (await asyncio.wait([work], timeout=EXPORT_EVERY_S))[0]:
                self.late(late_s())
            work.result()
        finally:
            work.cancel()

    def late(self, seconds: float) -> None:
        self._metrics.set("commit_age_seconds", seconds)

    def see(
        self, status: RunStatus, gpu_idle_nano: int | None, second_payments: int, periods: Sequence[Spend] = ()
    ) -> None:
        """`gpu_idle_nano`: None where there are no own engines with a price. `second_payments`: the most that
        lost lanes and commands explain."""
        tally = status.tally
        self._metrics.set("second_payments_bound", second_payments, self._job)
        self._metrics.set("standstill", float(status.standstill is not None), self._job)
        money = {
            "limit": status.budget_limit_nano,
            "spent": tally.called_nano(),
            "forfeit": tally.forfeit_nano,
        }
        for state, nano in money.items():
            if nano is not None:
                self._metrics.set("budget_usd", nano / NANO_PER_USD, self._job, state)
        for period in periods:
            sums = (("limit", period.limit_nano), ("spent", period.settled_nano), ("forfeit", period.forfeit_nano))
            for state, nano in sums:
                self._metrics.set("period_budget_usd", nano / NANO_PER_USD, self._job, period.per, state)
        if gpu_idle_nano is not None:
            self._metrics.set("gpu_idle_usd", gpu_idle_nano / NANO_PER_USD)
        for of, around in _bounds(status.cells).items():
            for bound, value in (("mean", around.mean), ("low", around.low), ("high", around.high)):
                self._metrics.set("quality", value, *of, bound)
        for task in status.drifted:
            self._metrics.set("cascade_drifted", 1, self._job, task)


def _bounds(cells: list[Cell]) -> dict[tuple[str, str, str], Interval]:
    """Of results by (task, model version, scorer): what one scorer says and what another does have no common mean.
    Somebody always looks, so the bounds are those that hold at any time."""
    samples: dict[tuple[str, str, str], Sample] = {}
    for cell in cells:
        for scorer, scored in cell.scores.items() if not cell.role else ():
            key = (cell.task, f"{cell.model}@{cell.version}", scorer)
            samples[key] = merge(samples.get(key, Sample()), scored.sample())
    found = {key: anytime_interval(sample) for key, sample in samples.items()}
    return {key: around for key, around in found.items() if around is not None}


class ApiMetrics:
    """One dispatcher of an account."""

    def __init__(self, account: str, make: Maker = ray_metric) -> None:
        self._metrics = Metrics(API, make)
        self._account = account
        self._seen: dict[str, float] = {}
        self._used: set[str] = set()

    def see(self, gauges: Mapping[str, float], limits: Mapping[str, float]) -> None:
        """`gauges`: the engine's, with `throttled_<kind>`; `limits`: `used_<bucket>`, of the governor where there is
        one. A bucket that was never touched has no limit, as far as we know, and stays away."""
        for name, total in gauges.items():
            more = total - self._seen.get(name, 0.0)
            if name.startswith("throttled_") and more > 0:
                self._seen[name] = total
                self._metrics.add("throttles", more, self._account, name.removeprefix("throttled_"))
        for name, share in limits.items():
            if name.startswith("used_") and (share > 0 or name in self._used):
                self._used.add(name)
                self._metrics.set("limit_used_ratio", share, self._account, name.removeprefix("used_"))


class EngineMetrics:
    """One vLLM."""

    def __init__(self, model: str, make: Maker = ray_metric) -> None:
        self._metrics = Metrics(ENGINE, make)
        self._model = model

    def see(self, gauges: Mapping[str, float]) -> None:
        for name in ("running", "waiting", "kv_cache_usage"):
            self._metrics.set(f"vllm_{name}", gauges.get(name, 0.0), self._model)
