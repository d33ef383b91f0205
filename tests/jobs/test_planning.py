"""A plan says what a run would cost before anything is paid for, and never says more than it knows."""

from __future__ import annotations

import asyncio
import io
import math
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from penstock.connectors.base import Raw
from penstock.connectors.files import FileSource
from penstock.connectors.measured import Registry
from penstock.connectors.settings import FilesSink, FilesSource, KafkaSource, Row
from penstock.connectors.state import open_state
from penstock.engine.budget import Budget
from penstock.engine.catalog import Account, Catalog, Limits, Model, Price, PriceAbove, Version, Wall
from penstock.engine.flow.cells import Cell
from penstock.engine.items import Attributes, Item, Request, Usage
from penstock.engine.policy import Cascade, Output, Policy, Scorer, Shadow, Task
from penstock.engine.pricing import cost_nano
from penstock.engine.results import DeadLetter
from penstock.engine.steering.document import Steering, started
from penstock.engine.steering.evidence import guards
from penstock.engine.steering.rollout import begin
from penstock.jobs import spec as job_spec
from penstock.jobs.forecasting import forecast, planning
from penstock.jobs.forecasting.forecast import Interval, Measured, call_cost, exactly
from penstock.jobs.forecasting.plan_report import PlanReport
from penstock.jobs.forecasting.sampling import Reading, read_sample
from penstock.jobs.forecasting.survey import Survey
from penstock.workers.runspec import RunSpec

USD = 1_000_000_000
VERSION = (Version("v1", "upstream"),)


def _catalog() -> Catalog:
    opus = Model("opus", VERSION, "v1", account="a", price=Price(5 * USD, 25 * USD, version="t1"), regions=("us",))
    cheap = Model("cheap", VERSION, "v1", account="a", price=Price(1 * USD, 2 * USD, version="t1"), regions=("eu",))
    small = Model("small", VERSION, "v1", worker="vllm", hour_usd=0.1, regions=("eu",))
    return Catalog(
        accounts={"a": Account("a", "openai", "http://127.0.0.1:1", limits=Limits(rpm=600, concurrency=8))},
        models={m.name: m for m in (opus, cheap, small)},
        tiers={1: ("opus",), 2: ("cheap", "opus"), 3: ("small", "cheap")},
        walls={"public": Wall("public"), "eu": Wall("eu", regions=("eu",))},
    )


def _spec(path: Path, *tasks: Task, budgets: tuple[Budget, ...] = ()) -> RunSpec:
    every = tasks or (Task("write", tier=1),)
    return RunSpec(
        run_id="r",
        name="r",
        vars={},
        source=FilesSource(str(path)),
        shape="rows",
        row=Row(),
        catalog=_catalog(),
        policy=Policy({t.name: t for t in every}, default_task=every[0].name),
        sinks={"results": FilesSink(str(path.with_name("out.jsonl")))},
        budgets=budgets,
    )


def _intake(raw: Raw) -> Item | DeadLetter:
    """Rows of this test: `{"text", "task"?, "sensitivity"?, "tenant"?, "max_tokens"?}`."""
    try:
        row = msgspec.json.decode(raw.data, type=dict[str, str | int])
    except msgspec.DecodeError as error:
        return DeadLetter("x", raw.position, "malformed", str(error), raw.data)
    said = {key: str(row[key]) for key in ("task", "tenant") if key in row}
    ceiling = row.get("max_tokens")
    return Item(
        "x",
        raw.position,
        Attributes(sensitivity=str(row.get("sensitivity", "public")), **said),
        Request(msgspec.json.encode(row["text"]), max_tokens=int(ceiling) if ceiling else None),
        raw.data,
        0.0,
    )


def _plan(spec: RunSpec, *, sample: int = 500, endless: bool = False) -> PlanReport:
    """`endless`: of the same rows, as if more came for ever."""
    assert isinstance(spec.source, FilesSource)
    reading = asyncio.run(read_sample(FileSource(spec.source), lambda _: _intake, sample, spec.limit))
    survey = Survey(spec.catalog, spec.policy)
    for found in reading.found:
        survey.add(found)
    if endless:
        spec = msgspec.structs.replace(spec, source=KafkaSource(("t",), bootstrap="localhost:9092"))
    return planning.report(spec, reading, survey, {})


def _write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return path


def _shown(plan: PlanReport, width: int = 80) -> str:
    out = Console(file=io.StringIO(), width=width)
    for part in planning.render(plan):
        out.print(part)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def test_a_plan_is_priced_at_the_versions_that_are_in_use_and_divided_among_those_of_a_rollout(tmp_path: Path) -> None:
    """`v2` costs ten times as much as `v1`, whatever the catalogue says is live."""
    path = _write(tmp_path / "a.jsonl", [{"text": f"row {n}", "max_tokens": 10} for n in range(100)])
    spec = _spec(path)
    dear = Version("v2", "dear", price=Price(50 * USD, 250 * USD, version="t2"))
    opus = msgspec.structs.replace(spec.catalog.models["opus"], versions=(*VERSION, dear))
    spec = msgspec.structs.replace(
        spec, catalog=msgspec.structs.replace(spec.catalog, models={**spec.catalog.models, "opus": opus})
    )
    reading = asyncio.run(read_sample(FileSource(FilesSource(str(path))), lambda _: _intake, 500, None))

    def planned(steering: Steering | None) -> PlanReport:
        survey = Survey(spec.catalog, spec.policy, (), steering)
        for n, found in enumerate(reading.found):
            assert isinstance(found, Item)
            survey.add(msgspec.structs.replace(found, item_id=f"i{n}"))
        return planning.report(spec, reading, survey, {})

    (before,), (after,) = planned(None).models, planned(Steering(live={"opus": "v2"})).models
    assert (before.version, before.price_version, after.version, after.price_version) == ("v1", "t1", "v2", "t2")
    assert after.cost_nano.likely == pytest.approx(10 * before.cost_nano.likely)
    assert after.worst_nano == pytest.approx(10 * before.worst_nano)
    rollout = begin("opus", ("v1", "v2"), (0.5,), guards(("cost",)), by="ann", now=1.0)
    both = planned(started(Steering(), rollout))
    assert {made.version: made.price_version for made in both.models} == {"v1": "t1", "v2": "t2"}
    assert sum(made.rows.likely for made in both.models) == 100
    assert "opus@v2" in _shown(both, 120)


def test_a_small_input_is_counted_exactly(tmp_path: Path) -> None:
    """Rows are a number, not an interval, however small the sample."""
    path = _write(tmp_path / "a.jsonl", [{"text": f"row {n}"} for n in range(300)])
    whole, sampled = _plan(_spec(path)), _plan(_spec(path), sample=20)
    assert whole.rows == sampled.rows == forecast.exactly(300)
    assert (whole.sampled, sampled.sampled) == (300, 20)
    assert "300 rows" in _shown(sampled)


def test_a_large_input_is_estimated_and_the_truth_lies_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows from bytes at several places, with an interval that holds the true count."""
    monkeypatch.setattr("penstock.jobs.forecasting.sampling.WHOLE_BYTES", 0)
    path = _write(tmp_path / "a.jsonl", [{"text": "x" * (20 + n * 7919 % 300)} for n in range(60_000)])
    plan = _plan(_spec(path))
    assert not plan.rows_exact
    assert plan.rows.low < 60_000 < plan.rows.high
    assert plan.rows.high < 70_000
    assert any("estimated from bytes" in note for note in plan.notes)


def test_what_comes_on_top_of_the_first_answers_is_told(tmp_path: Path) -> None:
    """Judges, shadows and the way up a cascade are not in the sum: a plan says so, and how many calls that are."""
    path = _write(tmp_path / "a.jsonl", [{"text": "hello"}] * 10)
    judge = Scorer("judge", model="opus", rubric="Good?", choices=("1", "2"))
    measured = Task("write", tier=1, sample=0.1, scorers=(judge,), shadow=Shadow(("cheap",), 0.05))
    notes = _plan(_spec(path, measured)).notes
    assert "write: judges and shadows come on top, about 200 calls for 1,000 rows; they are not counted" in notes
    climbing = _plan(_spec(path, Task("up", cascade=Cascade(("cheap", "opus"), "logprob", 0.9))))
    assert any(note.startswith("up: counted as if each answer of cheap were taken") for note in climbing.notes)
    believed = Task("up", cascade=Cascade(("cheap", "opus"), "judge", 0.9, judge=judge))
    assert any(note.startswith("up: opus judges each answer of cheap") for note in _plan(_spec(path, believed)).notes)
    assert not any("on top, about" in note for note in _plan(_spec(path)).notes)


def test_cost_follows_from_tokens_and_price(tmp_path: Path) -> None:
    """At the ceiling, cost is input plus ceiling at the model's price; the truth of any answer lies in the interval."""
    path = _write(tmp_path / "a.jsonl", [{"text": "y" * 398, "max_tokens": 100}] * 50)
    plan = _plan(_spec(path))
    high = 50 * (112 * 1.25 * 5 + 100 * 25) / 1e6 * USD
    assert plan.cost_nano.high == pytest.approx(high, rel=0.02)
    assert plan.cost_nano.low < 50 * (112 * 5 + 50 * 25) / 1e6 * USD < plan.cost_nano.high
    assert plan.worst_nano >= plan.cost_nano.high


def test_long_prompts_cost_what_long_prompts_cost() -> None:
    """A provider charges the whole call at its dearer rates: the plan prices each sampled item by its own length."""
    price = Price(3 * USD, 15 * USD, above=(PriceAbove(200_000, 6 * USD, 30 * USD),))
    long, short = (call_cost(exactly(float(n)), exactly(100.0), price).likely for n in (300_000, 100_000))
    assert long == cost_nano(Usage(300_000, output=100), price)
    assert short == cost_nano(Usage(100_000, output=100), price)
    around = call_cost(Interval(150_000, 190_000, 240_000), exactly(100.0), price)
    assert around.high == cost_nano(Usage(240_000, output=100), price), "it may be longer than it looks"


def test_a_plan_of_long_prompts_is_priced_as_the_run_will_be(tmp_path: Path) -> None:
    """Half of the rows are over the bound, half are under it."""
    rows: list[dict[str, object]] = [{"text": "y" * size, "max_tokens": 100} for size in (60_000, 2_000) * 10]
    spec = _spec(_write(tmp_path / "a.jsonl", rows))
    above = Price(5 * USD, 25 * USD, version="t1", above=(PriceAbove(10_000, 10 * USD, 50 * USD),))
    models = {**spec.catalog.models, "opus": msgspec.structs.replace(spec.catalog.models["opus"], price=above)}
    dear = msgspec.structs.replace(spec, catalog=msgspec.structs.replace(spec.catalog, models=models))
    plain, long = _plan(spec).cost_nano.likely, _plan(dear).cost_nano.likely
    shorts = 10 * (520 * 5 + 35 * 25) / 1e6 * USD
    assert long - shorts == pytest.approx(2 * (plain - shorts), rel=0.01)


def test_what_earlier_runs_measured_narrows_the_forecast(tmp_path: Path) -> None:
    """Their mean of tokens and seconds replaces wide guesses, and the plan says so. That of another prompt says
    nothing, nor does that of another version."""
    path = _write(tmp_path / "a.jsonl", [{"text": "hello"}] * 100)
    model = {"name": "m", "base_url": "http://127.0.0.1:1/v1", "model": "x", "price": {"input_per_million": 1,
             "output_per_million": 2}, "limits": {"concurrency": 1}}  # fmt: skip
    job = {"name": "j", "source": str(path), "models": [model], "sinks": str(tmp_path / "o.jsonl"),
           "prompt": "Say {{ text }}", "params": {"max_tokens": 1000}, "state": str(tmp_path / "state")}  # fmt: skip
    spec = job_spec.from_mapping(job, tmp_path)
    task, (version,) = next(iter(spec.policy.tasks.values())), spec.catalog.models["m"].versions
    assert task.prompt is not None
    guess = planning.make_plan(spec)
    ln = 400 * round(1_000 * math.log(2_000))
    measured = Cell(task.name, "m", version.id, items=400, results=400, calls=400, output=48_000, ms_ln=ln,
                    ms_ln2=ln * ln // 400)  # fmt: skip
    others = [msgspec.structs.replace(measured, prompt="another"), msgspec.structs.replace(measured, version="v0")]
    Registry(open_state(spec.state), "others").tell(others)
    assert planning.make_plan(spec) == guess
    Registry(open_state(spec.state), "r").tell([msgspec.structs.replace(measured, prompt=task.prompt.version)])
    known = planning.make_plan(spec)
    outputs = known.models[0].output_tokens
    assert outputs.likely == pytest.approx(12_000)
    assert outputs.high - outputs.low < 0.1 * (guess.models[0].output_tokens.high - guess.models[0].output_tokens.low)
    assert known.seconds is not None
    assert (known.seconds.low, known.seconds.high) == (pytest.approx(100 * 2 / 1.5, 0.01), pytest.approx(300, 0.01))
    assert (guess.models[0].measured, known.models[0].measured) == (False, True)
    assert any("how long answers get" in note for note in guess.notes)
    assert not any("how long answers get" in note for note in known.notes)


def test_choices_bound_the_answers(tmp_path: Path) -> None:
    """One of four words is no thousand tokens."""
    path = _write(tmp_path / "a.jsonl", [{"text": "hello"}] * 10)
    task = Task("label", tier=1, output=Output(choices=("delivery", "billing")))
    assert _plan(_spec(path, task)).models[0].output_tokens.high <= 10 * 8


def test_an_unset_ceiling_is_said(tmp_path: Path) -> None:
    """The plan tells of the 1,024 tokens that it adds."""
    path = _write(tmp_path / "a.jsonl", [{"text": "hello"}, {"text": "hello", "max_tokens": 5}])
    assert "1 of 2 sampled rows set no max_tokens: answers end at 1,024 tokens" in " ".join(
        _shown(_plan(_spec(path))).split()
    )


def test_rows_are_told_by_tier_and_model(tmp_path: Path) -> None:
    """Each task's rows stand at the model that they would go to first."""
    rows: list[dict[str, object]] = [{"text": "a", "task": "write"}] * 3 + [{"text": "b", "task": "label"}] * 7
    plan = _plan(_spec(_write(tmp_path / "a.jsonl", rows), Task("write", tier=1), Task("label", tier=3)))
    assert {(m.tier, m.model): m.rows.likely for m in plan.models} == {(1, "opus"): 3, (3, "small"): 7}
    assert [t.tier for t in plan.tiers] == [1, 3]


def test_dead_letters_and_refusals_are_foreseen(tmp_path: Path) -> None:
    """What can't be read, has no wall's name, or may go nowhere is counted by reason before the run."""
    rows: list[dict[str, object]] = [{"text": "a"}] * 8 + [
        {"text": "a", "sensitivity": "eu"},
        {"text": "a", "sensitivity": "?"},
    ]
    path = _write(tmp_path / "a.jsonl", rows)
    path.write_bytes(path.read_bytes() + b"{not json\n")
    plan = _plan(_spec(path))
    assert {reason: many.likely for reason, many in plan.dead_letters.items()} == {
        "malformed": 1,
        "wall": 1,
        "unknown_sensitivity": 1,
    }
    assert sum(plan.refused["opus"].values()) == 1
    assert "dead letters foreseen" in _shown(plan)


@pytest.mark.parametrize(
    ("limit_usd", "fits", "mark"), [(0.000001, False, "✗"), (0.06, True, "!"), (1000.0, True, "✓")]
)
def test_a_budget_is_checked_before_the_run(tmp_path: Path, limit_usd: float, fits: bool, mark: str) -> None:
    """Too small for the low end: it can't hold. Too small for the worst case: a warning. Else: it holds."""
    path = _write(tmp_path / "a.jsonl", [{"text": "hello", "max_tokens": 100}] * 50)
    plan = _plan(_spec(path, budgets=(Budget(round(limit_usd * USD)),)))
    assert plan.fits is fits
    assert mark in _shown(plan)
    assert ("takes at least" in plan.budgets[0].message) is not fits


@pytest.mark.parametrize("endless", [True, False])
@pytest.mark.parametrize(
    ("budget", "bounded", "without_end"),
    [
        (Budget(1), "then the run stops", "then the run stops"),
        (
            Budget(1, "day"),
            "then the run stops, and goes on with the same command the next day",
            "then items wait for the next day",
        ),
        (
            Budget(1, "month"),
            "then the run stops, and goes on with the same command the next month",
            "then items wait for the next month",
        ),
        (Budget(1, tenant="*"), "what is more ends in dead letters", "what is more ends in dead letters"),
        (Budget(1, "day", "t"), "what is more ends in dead letters", "what is more ends in dead letters"),
    ],
)
def test_a_plan_says_what_becomes_of_rows_that_a_budget_can_not_hold(
    tmp_path: Path, budget: Budget, bounded: str, without_end: str, endless: bool
) -> None:
    path = _write(tmp_path / "a.jsonl", [{"text": "hello", "tenant": "t"}] * 5)
    for nano in (1, 60 * USD // 1_000):  # below the low end, and below the worst case
        one = msgspec.structs.replace(budget, limit_nano=nano)
        (told,) = _plan(_spec(path, budgets=(one,)), endless=endless).budgets
        assert told.message.endswith("; " + (without_end if endless else bounded))
        assert told.holds == (endless or nano > 1)


def test_a_tenants_budget_bears_its_own_share(tmp_path: Path) -> None:
    """A budget of one tenant is compared with that tenant's rows only."""
    rows: list[dict[str, object]] = [{"text": "a", "tenant": "big"}] * 99 + [{"text": "a", "tenant": "small"}]
    path = _write(tmp_path / "a.jsonl", rows)
    low = _plan(_spec(path)).cost_nano.low
    fits = {t: _plan(_spec(path, budgets=(Budget(round(low / 2), tenant=t),))).fits for t in ("big", "small", "*")}
    assert fits == {"big": False, "small": True, "*": False}


def test_an_own_worker_of_unknown_speed_takes_an_unknown_time(tmp_path: Path) -> None:
    """No number is made up; a declared speed gives one."""
    path = _write(tmp_path / "a.jsonl", [{"text": "a", "max_tokens": 10}] * 100)
    spec = _spec(path, Task("label", tier=3))
    assert _plan(spec).seconds is None
    assert "unknown: not measured yet, and tokens_per_s is not declared" in _shown(_plan(spec), 120)
    models = {**spec.catalog.models, "small": msgspec.structs.replace(spec.catalog.models["small"], tokens_per_s=100.0)}
    known = _plan(msgspec.structs.replace(spec, catalog=msgspec.structs.replace(spec.catalog, models=models)))
    assert known.seconds is not None
    assert known.seconds.likely == pytest.approx(100 * 3.5 / 100.0)


def test_what_earlier_runs_measured_of_an_own_worker_says_how_long_it_takes(tmp_path: Path) -> None:
    """Seconds of the engine's time that an item took, whatever is declared; where more come at once than were there
    when it was measured, it may be faster by as much. Of another prompt they say nothing."""
    path = _write(tmp_path / "a.jsonl", [{"text": "hello"}] * 100)
    model = {"name": "m", "worker": "vllm", "model": "x", "hour_usd": 1, "engine": {"max_num_seqs": 50},
             "replicas": {"min": 1, "max": 2}, "tokens_per_s": 1000}  # fmt: skip
    job = {"name": "j", "source": str(path), "models": [model], "sinks": str(tmp_path / "o.jsonl"),
           "prompt": "Say {{ text }}", "params": {"max_tokens": 100}, "state": str(tmp_path / "state")}  # fmt: skip
    spec = job_spec.from_mapping(job, tmp_path)
    task, (version,) = next(iter(spec.policy.tasks.values())), spec.catalog.models["m"].versions
    assert task.prompt is not None
    declared = planning.make_plan(spec).seconds
    ln = 200 * round(1_000 * math.log(10_000))  # 10 s each, of which 0.4 s are its part: 25 at once
    measured = Cell(task.name, "m", version.id, "another", items=200, results=200, calls=220, output=4_000, ms_ln=ln,
                    ms_ln2=ln * ln // 200, engine_n=200, engine_us=80_000_000)  # fmt: skip
    Registry(open_state(spec.state), "others").tell([measured])
    assert planning.make_plan(spec).seconds == declared
    Registry(open_state(spec.state), "r").tell([msgspec.structs.replace(measured, prompt=task.prompt.version)])
    known, each = planning.make_plan(spec).seconds, 0.4 * 220 / 200
    assert known is not None
    at_once = 10 / each
    assert known.low == pytest.approx(100 * each * at_once / 50 / 1.5 / 2, rel=0.01)
    assert known.likely == pytest.approx(100 * each)
    assert known.high == pytest.approx(100 * each * 1.5)


def test_an_accounts_limits_make_it_slow(tmp_path: Path) -> None:
    """600 requests a minute: 1,800 rows take two minutes after the first."""
    path = _write(tmp_path / "a.jsonl", [{"text": "a", "max_tokens": 1}] * 1800)
    seconds = _plan(_spec(path)).seconds
    assert seconds is not None
    assert seconds.low == pytest.approx(120.0, rel=0.02)


def test_an_empty_input_is_no_error(tmp_path: Path) -> None:
    """Nothing to do costs nothing."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"")
    plan = _plan(_spec(path))
    assert plan.rows == plan.cost_nano == forecast.ZERO
    assert "0 rows" in _shown(plan)


def test_a_plan_is_json_for_machines(tmp_path: Path) -> None:
    """Written and read back, it is the same plan."""
    path = _write(tmp_path / "a.jsonl", [{"text": "a"}] * 3)
    plan = _plan(_spec(path, budgets=(Budget(USD),)))
    assert msgspec.json.decode(msgspec.json.encode(plan), type=PlanReport) == plan


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=50), st.integers(1, 10**9))
def test_intervals_are_in_order(values: list[float], size: int) -> None:
    """low ≤ likely ≤ high, whatever the sample."""
    for made in (
        forecast.mean_interval(values),
        forecast.share_interval(len([v for v in values if v > 1]), len(values)),
        forecast.rows_from_bytes(size, [v + 1 for v in values]),
        forecast.output_tokens(size),
        forecast.measured_output(Measured(len(values), values[0], 1.0), size),
    ):
        assert made.low <= made.likely + 1e-6
        assert made.likely <= made.high + 1e-6


def test_a_share_seen_never_may_still_be_there() -> None:
    """No dead letter in 100 rows isn't none in a million."""
    none = forecast.share_interval(0, 100)
    assert (none.low, none.likely) == (0.0, 0.0)
    assert 0.02 < none.high < 0.06
    assert isinstance(none, Interval)
    assert isinstance(Reading((), none, 0, 0, False), Reading)


def test_the_whole_way_from_a_job_file(tmp_path: Path) -> None:
    """`make_plan` reads, renders prompts and routes as the run will; a missing column is foreseen as a dead letter."""
    rows: list[dict[str, object]] = [{"text": "hello " * 20, "n": n} for n in range(40)]
    _write(tmp_path / "a.jsonl", [*rows, {"n": 41}])
    (tmp_path / "job.yaml").write_text(
        "source: a.jsonl\n"
        "prompt: 'Summarise: {{ text }}'\n"
        "params: {max_tokens: 50}\n"
        "models: [anthropic/claude-haiku-4-5]\n"
        "budgets: [{usd: 1}]\n"
        "sinks: out.jsonl\n"
    )
    plan = planning.make_plan(job_spec.load(tmp_path / "job.yaml"))
    assert (plan.rows.likely, plan.fits) == (41, True)
    assert {reason: many.likely for reason, many in plan.dead_letters.items()} == {"missing_field": 1}
    assert 0 < plan.cost_nano.low < plan.cost_nano.high <= plan.worst_nano
    limited = planning.make_plan(job_spec.load(tmp_path / "job.yaml", limit=5))
    assert limited.rows.likely == 5


def test_rows_without_a_tenant_are_under_the_budget_of_each(tmp_path: Path) -> None:
    """As the ledger has it: nobody evades `tenant: "*"` by naming none."""
    path = _write(tmp_path / "a.jsonl", [{"text": "a"}] * 20)
    low = _plan(_spec(path)).cost_nano.low
    plan = _plan(_spec(path, budgets=(Budget(round(low / 2), tenant="*"),)))
    assert not plan.fits
    assert "of each tenant can't hold the run" in plan.budgets[0].message
