"""What operators see: the metrics of SURFACES §6 by name and label, and logs that hold nothing of a prompt."""

from __future__ import annotations

import logging
import subprocess
import sys
from math import inf
from pathlib import Path

import msgspec
import pytest

from penstock.connectors.settings import FilesSource, Row
from penstock.engine.catalog import Catalog
from penstock.engine.flow.cells import Cell, Scored
from penstock.engine.flow.lane_types import CommitBatch
from penstock.engine.flow.progress import Saved
from penstock.engine.flow.tally import ModelTally, Tally, count_fallback, merge
from penstock.engine.items import Answer, Attributes, Item, Position, Request, Route, Usage
from penstock.engine.policy import Policy, Task
from penstock.engine.results import Attempt, CostLine, DeadLetter, Result
from penstock.jobs.look import log_lines
from penstock.workers.books.spending import Spend
from penstock.workers.lanes.report import LaneReport
from penstock.workers.log import DEAD_A_MINUTE, LaneLog, Log, collect
from penstock.workers.metrics import (
    API,
    DRIVER,
    ENGINE,
    LANE,
    MOST_OBSERVED,
    MOST_TENANTS,
    ApiMetrics,
    Declared,
    DriverMetrics,
    EngineMetrics,
    LaneMetrics,
    ray_metric,
)
from penstock.workers.runspec import RunSpec
from penstock.workers.status import RunStatus

SECRET = "the patient's name is Grete"
PROMISED = {
    "items": "job tier task model outcome",
    "tokens": "model kind",
    "cost_usd": "job tenant tier model role",
    "budget_usd": "job state",
    "inflight": "model",
    "queue_seconds": "",
    "call_seconds": "model",
    "limit_used_ratio": "account bucket",
    "throttles": "account kind",
    "retries": "reason",
    "fallbacks": "from to",
    "breaker_open": "account model",
    "oldest_item_seconds": "",
    "deadline_left_seconds": "",
    "lane_lag": "topic",
    "second_payments_bound": "job",
    "period_budget_usd": "job per state",
    "standstill": "job",
    "commit_age_seconds": "",
    "dead_letters": "reason",
    "second_payments": "",
    "wall_refusals": "wall",
    "other_model_answers": "model_version",
    "quality": "task model_version scorer bound",
    "cascade_drifted": "job task",
    "gpu_idle_usd": "",
    "vllm_running": "model",
    "vllm_waiting": "model",
    "vllm_kv_cache_usage": "model",
}
"""SURFACES §6, and what alerts need besides."""


class Sheet:
    """Stands for Ray's metrics: keeps the last value of a gauge, the sum of a counter, the number of observations."""

    def __init__(self) -> None:
        self.made: dict[str, Declared] = {}
        self.values: dict[tuple[str, ...], float] = {}

    def make(self, name: str, what: Declared) -> Line:
        self.made[name] = what
        return Line(self, name, what)

    def of(self, name: str, *labels: str) -> float:
        return self.values.get((name, *labels), 0.0)


class Line:
    def __init__(self, sheet: Sheet, name: str, what: Declared) -> None:
        self._sheet, self._name, self._what = sheet, name.removeprefix("penstock_"), what

    def _key(self, tags: dict[str, str], kind: str) -> tuple[str, ...]:
        assert self._what.kind == kind
        assert set(tags) == set(self._what.labels)
        return (self._name, *(tags[label] for label in self._what.labels))

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert value > 0, "Ray refuses it"
        key = self._key(tags, "counter")
        self._sheet.values[key] = self._sheet.values.get(key, 0.0) + value

    def set(self, value: float, tags: dict[str, str]) -> None:
        self._sheet.values[self._key(tags, "gauge")] = value

    def observe(self, value: float, tags: dict[str, str]) -> None:
        key = self._key(tags, "histogram")
        self._sheet.values[key] = self._sheet.values.get(key, 0.0) + 1


SPEC = RunSpec(
    "run",
    "mail",
    {},
    FilesSource("in.jsonl"),
    None,
    Row(),
    Catalog({}, {}, {2: ("m",)}),
    Policy({"t": Task("t")}, default_task="t"),
    {},
)


def item(number: int, tenant: str | None = None) -> Item:
    request = Request(SECRET.encode())
    return Item(f"{number:032x}", Position("s", 0, number), Attributes(tenant=tenant), request, SECRET.encode(), 0.0)


ROUTE = Route("t", 2, (), (), "")
TRY = Attempt(1, "primary", "m", 0.0, 250.0, "ok", None, 10)


def result(number: int) -> Result:
    return Result(
        item(number), ROUTE, Answer(SECRET, "stop", b"{}"), "m", "v1", "p", "a", None, "now", Usage(10, output=5), 10,
        "metered", "1", "1", "1", (TRY,), 1.0, 500.0, 250.0, "h",
    )  # fmt: skip


def cost(number: int, tenant: str | None = None, nano: int = 10**9) -> tuple[CostLine, Item | None]:
    usage = Usage(10, 4, 2, 1, output=5, reasoning=3)
    line = CostLine(
        f"e{number}", f"{number}", 1, "primary", "a", "m", "v1", usage, nano, "metered", "1", tenant, "t", 2, 0.0,
    )  # fmt: skip
    return line, None


def dead(number: int, task: str = "t") -> DeadLetter:
    failed = msgspec.structs.replace(TRY, outcome="bad_request")
    route = msgspec.structs.replace(ROUTE, task=task)
    words = f"the provider refused {SECRET!r}"
    return DeadLetter(
        f"{number:032x}", Position("s", 0, number), "bad_request", words, SECRET.encode(), item(number), route,
        attempts=(failed,),
    )  # fmt: skip


def batch(
    results: list[Result] | None = None,
    dead_letters: list[DeadLetter] | None = None,
    costs: list[tuple[CostLine, Item | None]] | None = None,
) -> CommitBatch:
    return CommitBatch(1, {}, results or [], dead_letters or [], costs or [], Saved())


def lanes(sheet: Sheet) -> LaneMetrics:
    return LaneMetrics(SPEC, sheet.make)


def over(lane: int = 0, tally: Tally | None = None, **more: object) -> LaneReport:
    """A report that is exported at once."""
    return LaneReport(lane, tally or Tally(), settled=True, **more)  # type: ignore[arg-type]


def test_every_promised_metric_is_there_with_exactly_its_labels() -> None:
    """Dashboards are built on names and labels: a missing one shows nothing and says nothing."""
    sheet = Sheet()
    LaneMetrics(SPEC, sheet.make)
    DriverMetrics("mail", sheet.make)
    ApiMetrics("a", sheet.make)
    EngineMetrics("m", sheet.make)
    made = {name.removeprefix("penstock_"): " ".join(what.labels) for name, what in sheet.made.items()}
    assert made == PROMISED
    assert all(name.startswith("penstock_") for name in sheet.made)


def test_ray_takes_every_name_and_label() -> None:
    """Ray drops a metric whose name it does not like."""
    for name, what in {**LANE, **DRIVER, **API, **ENGINE}.items():
        info: dict[str, object] = ray_metric(f"penstock_{name}", what).info  # type: ignore[attr-defined]
        assert info["tag_keys"] == what.labels


def test_what_is_committed_is_counted_once_by_all_its_labels() -> None:
    """Items, tokens, dollars, waits and calls come from commits, so that nothing undone by a crash is counted."""
    sheet = Sheet()
    metrics = lanes(sheet)
    metrics.committed(batch([result(1), result(2)], [dead(3)], [cost(1, "acme"), cost(2)]))
    metrics.see(over())
    metrics.see(over())
    assert sheet.of("items", "mail", "2", "t", "m", "ok") == 2
    assert sheet.of("items", "mail", "2", "t", "m", "dead_letter") == 1
    assert sheet.of("dead_letters", "bad_request") == 1
    assert sheet.of("cost_usd", "mail", "acme", "2", "m", "primary") == 1
    kinds = ("input", "cached", "cache_write", "output", "reasoning")
    assert [sheet.of("tokens", "m", kind) for kind in kinds] == [20, 8, 6, 10, 6]
    assert sheet.of("queue_seconds") == sheet.of("call_seconds", "m") == 2


def judged(number: int) -> DeadLetter:
    """Its cascade's judge was asked last, and the next model never was."""
    judge = msgspec.structs.replace(TRY, n=2, role="judge", model="judge")
    return msgspec.structs.replace(dead(number), reason="deadline", attempts=(TRY, judge))


def test_a_dead_letter_counts_at_the_model_that_was_asked_for_its_answer(tmp_path: Path) -> None:
    """Not at the judge that was asked last: it would look as if the judge failed."""
    sheet = Sheet()
    metrics = lanes(sheet)
    metrics.committed(batch(dead_letters=[judged(3)]))
    metrics.see(over())
    assert sheet.of("items", "mail", "2", "t", "m", "dead_letter") == 1
    assert sheet.of("items", "mail", "2", "t", "judge", "dead_letter") == 0
    log = lane_log(tmp_path, [0.0])
    log.committed(batch(dead_letters=[judged(3)]))
    [line] = log_lines.read(tmp_path / "logs" / "run", item=f"{3:032x}")
    assert (line.rest["model"], line.rest["last"], line.rest["attempts"]) == ("m", "ok", 2)


def test_labels_stay_few_whatever_the_input_says() -> None:
    """Tenants beyond a hundred are `other`, and a task that nobody declared is no label."""
    sheet = Sheet()
    metrics = lanes(sheet)
    metrics.committed(batch(dead_letters=[dead(1, SECRET)], costs=[cost(n, f"tenant {n}") for n in range(300)]))
    metrics.see(over())
    tenants = {key[2]: value for key, value in sheet.values.items() if key[0] == "cost_usd"}
    assert len(tenants) == MOST_TENANTS + 1
    assert tenants["other"] == 300 - MOST_TENANTS
    assert not any(SECRET in part for key in sheet.values for part in key)


def test_a_large_commit_observes_a_bounded_even_share() -> None:
    """Histograms cost microseconds a call: a busy lane must not pay for each."""
    sheet = Sheet()
    lanes(sheet).committed(batch([result(n) for n in range(4096)]))
    assert MOST_OBSERVED // 2 <= sheet.of("call_seconds", "m") <= MOST_OBSERVED


def test_a_closing_line_below_zero_takes_nothing_from_a_counter() -> None:
    """Counters only grow; what is to be taken off waits for the next cost of the same labels."""
    sheet = Sheet()
    metrics = lanes(sheet)
    metrics.committed(batch(costs=[cost(1, nano=-(10**9))]))
    metrics.see(over())
    metrics.committed(batch(costs=[cost(2, nano=3 * 10**9)]))
    metrics.see(over())
    assert sheet.of("cost_usd", "mail", "", "2", "m", "primary") == 2


def test_what_an_earlier_owner_counted_is_not_counted_again() -> None:
    """A resumed lane brings its whole story; only what comes on top is exported."""
    sheet = Sheet()
    metrics = lanes(sheet)
    tally = Tally(maybe_paid=9, second_payments=5, retried={"timeout": 7}, refused={"eu": 3})
    tally.models["m@v1"] = ModelTally("m", "v1", other_model=4)
    metrics.taken(0, tally)
    tally.retried["timeout"] += 2
    tally.late_payments += 1  # its item counts as one that may have been paid for twice, once it ends
    tally.models["m@v1"].other_model += 1
    count_fallback(tally, "m", "n")
    metrics.see(over(0, tally))
    metrics.see(over(0, tally))
    assert sheet.of("retries", "timeout") == 2
    assert sheet.of("other_model_answers", "m@v1") == 1
    assert sheet.of("fallbacks", "m", "n") == 1
    assert sheet.of("second_payments") == sheet.of("wall_refusals", "eu") == 0


def test_gauges_speak_for_all_lanes_of_the_process() -> None:
    """A lane's report must not hide what its neighbour said."""
    sheet = Sheet()
    metrics = lanes(sheet)
    metrics.see(over(0, Tally(flying={"m": 3}), oldest_item_s=9.0, deadline_left_s=-2.0, open_breakers=[("a", "m")]))
    metrics.see(over(1, Tally(flying={"m": 4, "n": 1}), lag={"requests": 5}))
    assert [sheet.of("inflight", model) for model in "mn"] == [7, 1]
    assert sheet.of("breaker_open", "a", "m") == 1
    assert sheet.of("oldest_item_seconds") == 9
    assert sheet.of("deadline_left_seconds") == -2
    assert sheet.of("lane_lag", "requests") == 5
    metrics.dropped(0)
    metrics.see(over(1, deadline_left_s=inf))
    assert sheet.of("deadline_left_seconds") == 86_400
    metrics.see(over(1))
    assert [sheet.of("inflight", model) for model in "mn"] == [0, 0]
    assert sheet.of("breaker_open", "a", "m") == 0


def test_an_actor_whose_last_lane_has_moved_tells_nothing_of_it_any_more() -> None:
    """It reports nothing from then on, but its gauges stay in what Ray exports: the lane's new process told the same
    lag once more, and alerts of breakers and deadlines spoke for as long as the old one lived. What its last commit
    brought is told."""
    sheet = Sheet()
    metrics = lanes(sheet)
    metrics.see(
        over(
            0,
            Tally(flying={"m": 3}),
            oldest_item_s=9.0,
            deadline_left_s=5.0,
            open_breakers=[("a", "m")],
            lag={"requests": 5},
        )
    )
    metrics.committed(batch([result(1)]))
    metrics.dropped(0)
    metrics.moved()
    assert [sheet.of("inflight", "m"), sheet.of("breaker_open", "a", "m"), sheet.of("lane_lag", "requests")] == [
        0,
        0,
        0,
    ]
    assert sheet.of("oldest_item_seconds") == 0
    assert sheet.of("deadline_left_seconds") > 60
    assert sheet.of("items", "mail", "2", "t", "m", "ok") == 1


def test_the_driver_tells_money_quality_and_idle_hours_of_the_whole_run() -> None:
    """Quality has its mean and both bounds, by each scorer: answers that are always JSON are no better for it."""
    sheet = Sheet()
    tally = Tally(cost_nano=9 * 10**9, forfeit_nano=10**9, models={"own@v1": ModelTally(adjusted_nano=7 * 10**9)})
    cell = Cell("t", "m", "v1", scores={"exact@1": Scored(80, {1000: 80, 0: 20}), "json@1": Scored(50, {1000: 50})})
    status = RunStatus("run", "mail", "running", cells=[cell], tally=tally, budget_limit_nano=5 * 10**9)
    status.drifted = {"t": "its calibration does not hold any more"}
    status.standstill = "no model can answer"
    told = DriverMetrics("mail", sheet.make)
    told.late(40.0)
    told.see(status, 3 * 10**9, 4096, [Spend("day", 9 * 10**9, 2 * 10**9, 10**9)])
    period = [sheet.of("period_budget_usd", "mail", "day", state) for state in ("limit", "spent", "forfeit")]
    assert period == [9, 2, 1]
    assert [sheet.of("budget_usd", "mail", state) for state in ("limit", "spent", "forfeit")] == [5, 2, 1]
    low, mean, high = (sheet.of("quality", "t", "m@v1", "exact@1", bound) for bound in ("low", "mean", "high"))
    assert mean == pytest.approx(0.8)
    assert 0.6 < low < mean < high < 0.95
    assert sheet.of("gpu_idle_usd") == 3
    assert sheet.of("second_payments_bound", "mail") == 4096
    assert sheet.of("cascade_drifted", "mail", "t") == 1
    assert sheet.of("standstill", "mail") == 1
    assert sheet.of("commit_age_seconds") == 40


def test_workers_tell_limits_throttles_and_vllms_own_load() -> None:
    """A limit that does not exist is no limit at zero."""
    sheet = Sheet()
    api = ApiMetrics("a", sheet.make)
    api.see({"throttled_rate_limited": 2.0, "calls": 9.0}, {"used_requests": 0.5, "used_tokens": 0.0, "window": 4.0})
    api.see({"throttled_rate_limited": 3.0}, {"used_requests": 0.0})
    EngineMetrics("small", sheet.make).see({"running": 8.0, "waiting": 2.0, "kv_cache_usage": 0.4})
    assert sheet.of("throttles", "a", "rate_limited") == 3
    assert [key for key in sheet.values if key[0] == "limit_used_ratio"] == [("limit_used_ratio", "a", "requests")]
    assert sheet.of("limit_used_ratio", "a", "requests") == 0
    assert sheet.of("vllm_kv_cache_usage", "small") == 0.4


def test_what_lanes_retried_and_sent_on_adds_up() -> None:
    """Merged by reason and by pair of models, and kept through a commit's encoding."""
    one, other = Tally(retried={"timeout": 1}, flying={"m": 2}), Tally(retried={"timeout": 2, "overloaded": 1})
    count_fallback(one, "m", "n")
    count_fallback(other, "m", "n")
    merge(one, msgspec.msgpack.decode(msgspec.msgpack.encode(other), type=Tally))
    assert one.retried == {"timeout": 3, "overloaded": 1}
    assert one.fell_back() == [(("m", "n"), 2)]
    assert one.fallbacks == 2
    assert one.flying == {"m": 2}


def lane_log(tmp_path: Path, now: list[float]) -> LaneLog:
    return LaneLog(Log(str(tmp_path), "run", "lane-3"), 3, lambda: now[0])


def written(tmp_path: Path) -> str:
    return (tmp_path / "logs" / "run" / "lane-3.jsonl").read_text()


def test_logs_hold_nothing_of_prompts_or_answers(tmp_path: Path) -> None:
    """Providers and parsers quote what they were given: no message of a dead letter is logged."""
    log = lane_log(tmp_path, [0.0])
    log.taken((1, 1), Tally())
    log.committed(batch([result(1)], [dead(2)]))
    log.failed(fenced=True, corrupt=False)
    log.closed()
    assert "dead letter" in written(tmp_path)
    assert SECRET not in written(tmp_path)
    assert "Grete" not in written(tmp_path)


def test_an_items_dead_letter_is_found_by_its_id(tmp_path: Path) -> None:
    """`penstock logs --item ID` shows the line, with lane and reason."""
    log = lane_log(tmp_path, [0.0])
    log.committed(batch(dead_letters=[dead(2), dead(3)]))
    [line] = log_lines.read(tmp_path / "logs" / "run", item=f"{3:032x}")
    assert (line.event, line.level) == ("dead letter", "warning")
    assert (line.rest["lane"], line.rest["reason"]) == (3, "bad_request")


def test_a_flood_of_dead_letters_is_counted_not_listed(tmp_path: Path) -> None:
    """A hundred lines a minute and lane; the rest is one number."""
    now = [0.0]
    log = lane_log(tmp_path, now)
    log.committed(batch(dead_letters=[dead(n) for n in range(1000)]))
    now[0] = 61.0
    log.see(over(3, Tally(retried={"timeout": 4})))
    lines = list(log_lines.read(tmp_path / "logs" / "run"))
    assert sum(line.event == "dead letter" for line in lines) == DEAD_A_MINUTE
    counts = {line.event: line.rest["count"] for line in lines if "count" in line.rest}
    assert counts == {"dead letters without a line of their own": 900, "calls made again": 4}


def test_what_kafkas_client_warns_of_is_a_line_of_the_log_once_a_minute(tmp_path: Path) -> None:
    """A client that can't connect says so many times a second; what is no warning is left out."""
    now = [0.0]
    before = {name: list(logging.getLogger(name).handlers) for name in ("aiokafka", "penstock")}
    collect(Log(str(tmp_path), "r", "driver"), lambda: now[0])
    try:
        for at in (0.0, 1.0, 61.0):
            now[0] = at
            for node in (1, 2):
                logging.getLogger("aiokafka.client").error("Unable connect to node with id %s", node)
            logging.getLogger("penstock.connectors.kafka").info("nothing to see")
    finally:
        for name, handlers in before.items():
            logging.getLogger(name).handlers = handlers
    lines = [msgspec.json.decode(line) for line in (tmp_path / "logs/r/driver.jsonl").read_bytes().splitlines()]
    assert [(line["level"], line["event"]) for line in lines] == [("error", "Unable connect to node with id 1")] * 2


def test_what_kafkas_client_logs_is_not_printed() -> None:
    """A person who typed a command reads our one line, not a library's."""
    typed = [sys.executable, "-m", "penstock.jobs.cli", "tail", "t", "--bootstrap", "127.0.0.1:9"]
    code = f"import sys; sys.argv = {typed[2:]!r}; from penstock.jobs.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "can't be reached" in done.stderr
    assert "Unable connect" not in done.stderr
