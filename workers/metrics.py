"""SURFACES §6's metrics, through `ray.util.metrics` (Prometheus; Ray adds `ray_`). No item or object in a label.

They are fed from a lane's tally at each report: differences of counters, values of gauges. So the hot path never
touches them. A job shorter than Ray's export interval (about 10 s) may never show; the summary always does.
"""

from __future__ import annotations

from penstock.engine.items import NANO_PER_USD
from penstock.engine.tally import Tally
from penstock.workers.lane_shell import LaneReport
from penstock.workers.runspec import RunSpec

Labels = tuple[tuple[str, str], ...]


class LaneMetrics:
    """Metrics of one lane actor."""

    def __init__(self, spec: RunSpec) -> None:
        from ray.util.metrics import Counter, Gauge

        def counter(name: str, text: str, *keys: str) -> Counter:
            return Counter(f"penstock_{name}", text, tag_keys=keys)

        def gauge(name: str, text: str, *keys: str) -> Gauge:
            return Gauge(f"penstock_{name}", text, tag_keys=keys)

        self._job = spec.name
        self._items = counter("items", "Items that ended", "job", "tier", "task", "model", "outcome")
        self._tokens = counter("tokens", "Tokens", "model", "kind")
        self._cost = counter("cost_usd", "US dollars spent", "job", "tenant", "tier", "model", "role")
        self._calls = counter("call_seconds", "Seconds spent in calls", "model")
        self._retries = counter("retries", "Calls made again, or failed, by reason", "reason")
        self._dead = counter("dead_letters", "Dead letters", "reason")
        self._second = counter("second_payments", "Items that may have been paid for twice", "job")
        self._walls = counter("wall_refusals", "Targets refused by a wall", "wall")
        self._fallbacks = counter("fallbacks", "Items sent to their next candidate", "job")
        self._inflight = gauge("inflight", "Calls at workers", "tier", "lane")
        self._breaker = gauge("breaker_open", "1 where nothing is sent there", "account", "model")
        self._oldest = gauge("oldest_item_seconds", "Age of the oldest unfinished item", "lane")
        self._commit_age = gauge("commit_age_seconds", "Seconds since the last commit", "lane")
        self._quality = gauge("quality", "Mean score of the quality samples", "task", "model_version", "bound")
        self._seen: dict[tuple[str, Labels], float] = {}
        self._breakers: set[tuple[str, str]] = set()

    def see(self, report: LaneReport) -> None:
        """Export what changed since the lane's last report."""
        tally, lane = report.tally, str(report.lane)
        self._count_models(tally, lane)
        for reason, n in tally.dead_letters.items():
            self._add(self._dead, n, lane, reason=reason)
        for wall, n in tally.refused.items():
            self._add(self._walls, n, lane, wall=wall)
        self._add(self._second, tally.maybe_paid + tally.late_payments, lane, job=self._job)
        self._add(self._fallbacks, tally.fallbacks, lane, job=self._job)
        for tier, n in tally.in_flight.items():
            self._inflight.set(n, {"tier": str(tier), "lane": lane})  # pyright: ignore[reportAttributeAccessIssue]
        self._oldest.set(report.oldest_item_s, {"lane": lane})
        self._commit_age.set(report.commit_age_s, {"lane": lane})
        self._set_breakers({(account or "", model) for account, model in report.open_breakers})
        for row in tally.quality.values():
            self._quality.set(
                row.score / max(1, row.n), {"task": row.task, "model_version": row.model, "bound": "mean"}
            )

    def _count_models(self, tally: Tally, lane: str) -> None:
        for name, row in tally.models.items():
            self._add(self._items, row.items, lane, job=self._job, tier="", task="", model=name, outcome="ok")
            self._add(self._tokens, row.input_tokens, lane, model=name, kind="input")
            self._add(self._tokens, row.cached_tokens, lane, model=name, kind="cached")
            self._add(self._tokens, row.output_tokens, lane, model=name, kind="output")
            usd = row.cost_nano / NANO_PER_USD
            self._add(self._cost, usd, lane, job=self._job, tenant="", tier="", model=name, role="")
            self._add(self._calls, row.ms / 1000, lane, model=name)
            for kind, n in row.failures.items():
                self._add(self._retries, n, lane, reason=kind)

    def _add(self, counter: object, total: float, lane: str, **labels: str) -> None:
        key = (str(id(counter)), (("lane", lane), *labels.items()))
        more = total - self._seen.get(key, 0.0)
        if more > 0:
            self._seen[key] = total
            counter.inc(more, labels)  # pyright: ignore[reportAttributeAccessIssue]

    def _set_breakers(self, now_open: set[tuple[str, str]]) -> None:
        for account, model in self._breakers | now_open:
            self._breaker.set(float((account, model) in now_open), {"account": account, "model": model})
        self._breakers = now_open
