"""What an evaluation is made of, before anything is called: rows, candidates, price; and how records are read."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from rich.console import Console

from penstock.connectors.base import Raw
from penstock.connectors.calibrations import write_judges
from penstock.connectors.ledger import LedgerClient
from penstock.connectors.reading.intake import Intake
from penstock.connectors.state import open_state
from penstock.engine.budget import budget_keys
from penstock.engine.catalog import Price, Wall
from penstock.engine.errors import SpecError, Spent
from penstock.engine.flow.till import Wish
from penstock.engine.items import Item, Position, Route
from penstock.engine.judging import judge_version
from penstock.engine.leases import remaining
from penstock.engine.measure.agreement import agreement
from penstock.engine.measure.evaluation import Answered
from penstock.engine.pricing import price_of
from penstock.engine.registry import standings
from penstock.engine.router import Router
from penstock.engine.routes import Rejection
from penstock.engine.steering.judges import Calibration
from penstock.jobs import spec as job_spec
from penstock.jobs.cli import call
from penstock.jobs.evals import going, running, view
from penstock.jobs.evals.asked import Asked, Variant, models_of
from penstock.jobs.evals.dataset import CARRIED, index_of, labelled, line_of
from penstock.jobs.evals.derived import scorer_of, spec_of
from penstock.jobs.evals.records import read
from penstock.jobs.evals.running import Found, Prepared
from penstock.jobs.forecasting.forecast import ZERO
from penstock.jobs.history import open_history
from penstock.jobs.look.reading import Outputs
from penstock.jobs.people.labels import Label, Labels
from penstock.jobs.preview import items
from penstock.workers.runspec import RunSpec
from penstock.workers.status import RunStatus

JOB = """\
name: sort
source: rows.jsonl
row:
  id: "{{ id }}"
  attributes: {task: "{{ kind }}", sensitivity: "{{ class }}", min_quality: "0.99", unit: "{{ id }}"}
tasks:
  topic:
    prompt: "Which? {{ text }}"
    output: {choices: [billing, delivery, other]}
    params: {max_tokens: 8}
    scorers: [{type: exact, expected: "{{ label }}"}]
    min_quality: 0.9
  chat: {prompt: "{{ text }}"}
walls: {public: {}, eu: {regions: [eu]}}
accounts: {sandbox: {regions: [us]}}
models:
  - {name: a, account: sandbox, model: m, price: {input_per_million: 1, output_per_million: 5}}
  - {name: b, account: sandbox, live: v1, versions: [{id: v1, model: m1}, {id: v2, model: m2}], price: {input_per_million: 10, output_per_million: 50}}
rules: [{when: {task: topic}, use: [a]}]
budgets: [{usd: 1}, {usd: 50, per: day}]
sinks: out.jsonl
"""  # noqa: E501 - as people write it


def fixed(rows: int) -> list[dict[str, Any]]:
    same = {"kind": "topic", "class": "public", "label": "billing"}
    return [{"id": f"r{n}", "text": f"text {n}", "channel": n % 2, **same} for n in range(rows)]


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunSpec:
    monkeypatch.chdir(tmp_path)
    made = fixed(20)
    made[3]["label"] = None
    made[4]["kind"] = "chat"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made) + "no json\n")
    (tmp_path / "job.yaml").write_text(JOB)
    return job_spec.load("job.yaml")


def asked(**more: Any) -> Asked:
    return msgspec.structs.replace(Asked("sort", "topic", (), {"": Variant()}, "exact", ("channel",)), **more)


def prepare(base: RunSpec, name: str = "one", **more: Any) -> Prepared:
    models = models_of(base.catalog, ("a", "b", "b@v2"))
    return running.prepare(name, base, asked(**{"models": models, **more}), None)


def lines(prepared: Prepared) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (prepared.place / "rows.jsonl").read_text().splitlines()]


def test_rows_are_those_that_can_be_scored_in_an_order_by_chance_that_repeats(base: RunSpec) -> None:
    """The others are counted by why; the label is handed over apart, and slices stand in the index."""
    prepared = prepare(base)
    assert prepared.made.rows == 18
    assert prepared.made.left == {"without an expected answer": 1, "of another task": 1, "malformed (malformed)": 1}
    written = lines(prepared)
    order = [row["id"] for row in written]
    assert order != sorted(order)
    assert order == [row["id"] for row in lines(prepare(base, "two"))]
    assert [row["penstock_row"] for row in written] == [f"{n}~" for n in range(18)]
    assert {slices for each in index_of(prepared.place) for slices in each.slices.items()} == {
        ("channel", "0"),
        ("channel", "1"),
    }
    assert prepare(base, "few", rows=5).made.rows == 5
    assert [row["id"] for row in lines(prepare(base, "few", rows=5))] == order[:5]


def test_what_people_said_is_right_beats_the_row(base: RunSpec) -> None:
    """Labels of the run's items; a row without an expected answer gets one."""
    before = {row["id"]: row for row in lines(prepare(base))}
    assert "r3" not in before
    ids = {item.custom_id: item.item_id for item in items(base, 20)}
    log = Labels(open_state(base.state), base.run_id)
    log.add([Label(ids["r3"], "ann", "2026", "other"), Label(ids["r5"], "ann", "2026", "delivery")])
    prepared = prepare(base, "after")
    after = {row["id"]: row["penstock_expected"] for row in lines(prepared)}
    assert (after["r3"], after["r5"], after["r6"]) == ("other", "delivery", "billing")
    assert prepared.made.labelled_by_people == 2


def test_rows_whose_labels_were_corrected_are_other_rows_to_the_registry(base: RunSpec) -> None:
    """Their scores by the wrong labels must not keep out those by the right ones."""
    before = prepare(base).spec.data
    (item,) = (each for each in items(base, 20) if each.custom_id == "r5")
    Labels(open_state(base.state), base.run_id).add([Label(item.item_id, "ann", "2026", "delivery")])
    assert prepare(base, "after").spec.data != before


@pytest.mark.parametrize(("job", "counts"), [("sort", True), ("another", False)])
def test_what_people_said_yesterday_counts_for_the_same_question_today(base: RunSpec, job: str, counts: bool) -> None:
    """Another run of the job, of another file: the items have other names there. What is asked of them is the same."""
    history = open_history(base.state)
    history.save_spec(msgspec.structs.replace(base, name=job, run_id=f"{job}-yesterday"))
    hashes = {item.custom_id: item.request.input_hash for item in items(base, 20)}
    log = Labels(open_state(base.state), f"{job}-yesterday")
    log.add([Label("i1", "ann", "2026-11-23", "delivery", request=hashes["r3"] or "")])
    log.add([Label("i1", "ann", "2026-11-24", "other", request=hashes["r3"] or "")])
    log.add([Label("i2", "ann", "2026-11-24", "other")])
    prepared = prepare(base)
    assert {row["id"]: row["penstock_expected"] for row in lines(prepared)}.get("r3") == ("other" if counts else None)
    assert prepared.made.labelled_by_people == int(counts)


def test_the_run_pins_its_candidates_and_keeps_walls_and_shared_budgets(base: RunSpec) -> None:
    """First answer by the first, all others as shadows; what would choose among them is gone; sensitivity is not."""
    spec = prepare(base).spec
    (task,) = spec.policy.tasks.values()
    assert task.models == ("a", "b", "b@v2")
    assert task.shadow is not None
    assert task.shadow.models == (f"a@{base.catalog.models['a'].live}", "b@v1", "b@v2")
    assert (task.sample, task.shadow.share, task.min_quality, spec.policy.rules) == (1.0, 1.0, None, ())
    assert task.output is not None
    assert task.output.on_invalid == "keep"
    assert spec.catalog.models["b@v2"].live == "v2"
    assert set(spec.row.attributes) == {"task", "expected", *CARRIED}
    assert spec.catalog.walls == base.catalog.walls
    assert [budget.per for budget in spec.budgets] == ["day"]
    assert spec.pinned
    assert spec.state == base.state


def test_what_an_evaluation_measures_is_what_the_jobs_routes_go_by(base: RunSpec) -> None:
    """The same task, prompt and scorer in the registry; a variant's prompt is another one."""
    (task,) = prepare(base).spec.policy.tasks.values()
    mine = base.policy.tasks["topic"]
    assert standings.scorer_of(task) == standings.scorer_of(mine)
    assert task.prompt is not None
    assert mine.prompt is not None
    assert (task.name, task.prompt.version) == (mine.name, mine.prompt.version)


def test_evaluations_of_the_same_rows_are_known_by_them(base: RunSpec) -> None:
    """So that the registry counts their scores once."""
    one, two = prepare(base).spec.data, prepare(base, "two", models=models_of(base.catalog, ("b", "a"))).spec.data
    fewer = prepare(base, "three", rows=7).spec.data
    assert one
    assert one == two != fewer


def test_a_variant_asks_every_row_again_with_its_own_prompt_and_parameters(base: RunSpec) -> None:
    """As a task of its own in the same run."""
    variants = {"": Variant(), "brief": Variant("Brief: {{ text }}", {"temperature": 0})}
    prepared = prepare(base, variants=variants)
    assert len(lines(prepared)) == 36
    brief = prepared.spec.policy.tasks["topic~brief"]
    assert brief.prompt is not None
    assert brief.prompt.user == "Brief: {{ text }}"
    assert json.loads(brief.params_json) == {"max_tokens": 8, "temperature": 0}
    longer = prepare(base, "longer", variants={"": Variant(), "long": Variant(None, {"max_completion_tokens": 200})})
    task = longer.spec.policy.tasks["topic~long"]
    assert (json.loads(task.params_json), task.max_tokens) == ({"max_completion_tokens": 200}, 200)
    assert prepared.asked.names[:2] == (prepared.asked.models[0], f"{prepared.asked.models[0]} brief")


def test_candidates_that_are_versions_of_one_model_cost_what_each_version_costs(base: RunSpec) -> None:
    """In the plan, and as the run's catalogue has them."""
    b = base.catalog.models["b"]
    dear = msgspec.structs.replace(b.version("v2"), price=Price(50 * 10**9, 250 * 10**9))
    models = {**base.catalog.models, "b": msgspec.structs.replace(b, versions=(b.version("v1"), dear))}
    prepared = prepare(msgspec.structs.replace(base, catalog=msgspec.structs.replace(base.catalog, models=models)))
    cost, _ = running.price(prepared, None)
    assert cost.each["b@v2"].likely == pytest.approx(5 * cost.each["b@v1"].likely)
    made = prepared.spec.catalog.models
    assert price_of(made["b"], made["b"].live) == b.price
    assert price_of(made["b@v2"], made["b@v2"].live) == dear.price


def test_the_price_is_that_of_all_candidates_together(base: RunSpec) -> None:
    """The dear ones cost ten times the cheap one; what can't fit the budget is not begun."""
    prepared = prepare(base)
    cost, spec = running.price(prepared, None)
    each = [interval.likely for interval in cost.each.values()]
    assert each[1] == pytest.approx(10 * each[0])
    assert cost.cost_nano.likely == pytest.approx(sum(each))
    assert spec.budgets[-1].limit_nano == pytest.approx(cost.cost_nano.high * 1.25 + cost.aside_nano)
    with pytest.raises(Spent):
        running.price(prepared, 1)
    assert "18 rows × 3 candidates" in view.price_words(cost, prepared, 1_000_000)


def test_what_a_killed_process_had_under_way_leaves_enough_for_the_whole_evaluation(base: RunSpec) -> None:
    """Every row is under way at its dearest candidate, ten parts of the 21 that all set aside, and counts as spent."""
    prepared = prepare(base)
    cost, spec = running.price(prepared, None)
    ((key, limit),) = budget_keys(spec.budgets[-1:], spec.run_id, None, 0.0)
    ledger, dearest = LedgerClient(open_state(spec.state), spec.run_id), round(cost.aside_nano / 18 * 10 / 21)
    ids = [f"0-{n}" for n in range(18)]
    opened = ledger.leases(Wish(key, limit, (dearest,) * 18), ids, 0, (1, 0), 0.0)
    assert isinstance(opened, dict)
    assert len(opened) == 18
    ledger.forfeit(0, (2, 0), {}, 0.0)
    there = ledger.read(key)
    assert there is not None
    assert there.forfeit_nano >= 18 * dearest
    assert remaining(there) > cost.cost_nano.high * 1.25
    _, later = running.price(prepared, None)
    assert later.budgets[-1].limit_nano == limit + there.forfeit_nano


def test_a_name_goes_on_with_the_same_thing_or_is_refused(base: RunSpec) -> None:
    """Narrower intervals may be asked for later; other candidates may not."""
    prepare(base)
    assert prepare(base, within=0.1).before
    with pytest.raises(SpecError, match="another models"):
        prepare(base, models=models_of(base.catalog, ("b",)))
    with pytest.raises(SpecError, match="letters"):
        prepare(base, "../up")


def test_candidates_that_are_not_there_are_told(base: RunSpec) -> None:
    """By the nearest name; a candidate can't come twice; a scorer must be the task's."""
    with pytest.raises(SpecError, match="no model `c`"):
        models_of(base.catalog, ("c",))
    with pytest.raises(SpecError, match="no version `v3`"):
        models_of(base.catalog, ("b@v3",))
    with pytest.raises(SpecError, match="twice"):
        models_of(base.catalog, ("b", "b@v1"))
    with pytest.raises(SpecError, match="it has exact"):
        scorer_of(base.policy.tasks["topic"], "judge")


def test_the_candidates_of_a_cascade_are_its_models(base: RunSpec, capsys: pytest.CaptureFixture[str]) -> None:
    """Where none is named: not those of a tier that the task's items never go to."""
    text = JOB.replace("    min_quality: 0.9\n", "    cascade: {models: [a, b], signal: logprob, threshold: 2}\n")
    Path("job.yaml").write_text(f"{text}tiers: {{3: [b]}}\n")
    assert call(["eval", "job.yaml", "--task", "topic", "--price"]) == 0
    assert "18 rows × 2 candidates" in " ".join(capsys.readouterr().out.split())


def samples_of(spec: RunSpec, *made: dict[str, Any]) -> Outputs:
    """A run whose quality samples are these."""
    body = {"messages": [{"role": "user", "content": "Which?"}]}
    told = [
        {"item_id": f"{n}", "task": "topic", "scorer": "exact", "input": body, "expected": "billing", **each}
        for n, each in enumerate(made)
    ]
    Path("quality.jsonl").write_text("".join(json.dumps(each) + "\n" for each in told))
    return Outputs(spec, RunStatus(spec.run_id, "sort", "done", outputs={"quality": ["quality.jsonl"]}))


def test_a_sample_stays_behind_the_wall_of_its_item(base: RunSpec) -> None:
    """It says which: so `a`, a model in the US, is never asked about one of the EU."""
    outputs = samples_of(base, {"sensitivity": "public"}, {"sensitivity": "eu"})
    models = models_of(base.catalog, ("a",))
    prepared = running.prepare("s", base, asked(models=models, samples=True, slices=()), outputs)
    router = Router(prepared.spec.catalog, prepared.spec.policy)
    found = items(prepared.spec, 2)
    routes = {item.attributes.sensitivity: router.route(item.attributes, item.request) for item in found}
    open_, closed = routes["public"], routes["eu"]
    assert isinstance(open_, Route)
    assert [candidate.model for candidate in open_.candidates] == ["a"]
    assert isinstance(closed, Rejection)
    assert closed.reason == "wall"


@pytest.mark.parametrize(
    ("unknown", "sample", "why"),
    [
        ("refuse", {}, "that don't say their sensitivity (an older release, or a job without walls, wrote them)"),
        ("public", {}, "that don't say their sensitivity (an older release, or a job without walls, wrote them)"),
        ("refuse", {"wall": "public"}, "whose sensitivity names no wall"),
        ("refuse", {"sensitivity": "helth"}, "whose sensitivity names no wall"),
        ("public", {"sensitivity": "health"}, "behind a wall that says sample: redact"),
        ("refuse", {"sensitivity": "public", "input": None}, "redacted by their wall"),
    ],
)
def test_a_sample_that_may_not_be_copied_is_left_out(
    base: RunSpec, unknown: str, sample: dict[str, Any], why: str
) -> None:
    """Also where what is unknown is public: an older record says nothing of its item, which may have had a wall. And
    one whose item said nothing, and was public then, is not once the policy refuses such items."""
    text = JOB.replace("walls: {", f"unknown_wall: {unknown}\nwalls: {{health: {{sample: redact}}, ")
    Path("job.yaml").write_text(text)
    spec = job_spec.load("job.yaml")
    models = models_of(spec.catalog, ("a",))
    outputs = samples_of(spec, {"sensitivity": "public"}, sample, sample)
    prepared = running.prepare("s", spec, asked(models=models, samples=True, slices=()), outputs)
    assert (prepared.made.rows, prepared.made.left) == (1, {why: 2})
    with pytest.raises(SpecError, match=re.escape(f"2 {why}")):
        running.prepare("t", spec, asked(models=models, samples=True, slices=()), samples_of(spec, sample, sample))


def test_an_item_counts_once_and_is_a_row_if_one_of_its_samples_says_what_was_asked(base: RunSpec) -> None:
    """One of several records may have been too large for its sink, and have left that out."""
    one = {"item_id": "one", "sensitivity": "public"}
    outputs = samples_of(base, {**one, "input": None}, one, {**one, "input": None}, {"task": "chat"}, {"input": None})
    models = models_of(base.catalog, ("a",))
    made = running.prepare("s", base, asked(models=models, samples=True, slices=()), outputs).made
    assert (made.rows, made.left) == (1, {"of another task": 1, "redacted by their wall": 1})


def sampled(base: RunSpec) -> tuple[RunSpec, Outputs]:
    """Two rows of today's file, and one that was there yesterday, in a job without walls."""
    text = Path("job.yaml").read_text().replace("walls: {public: {}, eu: {regions: [eu]}}\n", "")
    Path("job.yaml").write_text(text.replace('sensitivity: "{{ class }}", ', ""))
    spec = job_spec.load("job.yaml")
    made = [(item.item_id, json.loads(item.request.body_json)) for item in items(spec, 2)]
    made.append(("old", {**made[0][1], "messages": [{"role": "user", "content": "Which? yesterday's"}]}))
    told = [{"item_id": name, "task": "topic", "input": body, "expected": "billing"} for name, body in made]
    Path("quality.jsonl").write_text("".join(json.dumps({**each, "scorer": "exact"}) + "\n" for each in told))
    return spec, Outputs(
        spec, RunStatus(spec.run_id, "sort", "done", outputs={"quality": [str(Path("quality.jsonl"))]})
    )


def test_samples_beside_rows_add_what_the_source_has_no_more(base: RunSpec) -> None:
    """A row that is a sample as well counts once, and is asked what the job asks; columns are the rows'."""
    spec, outputs = sampled(base)
    prepared = running.prepare(
        "s", spec, asked(models=models_of(spec.catalog, ("a", "b")), samples=True, beside=True), outputs
    )
    assert prepared.made.rows == 19
    assert prepared.made.left["that are samples of rows that are there"] == 2
    assert {each.slices["channel"] for each in index_of(prepared.place)} == {"0", "1", "(none)"}
    assert {line["body"]["metadata"]["penstock-expected"] for line in lines(prepared)} == {"billing"}
    before, now = ({item.request.body_json for item in items(each, n)} for each, n in ((spec, 20), (prepared.spec, 19)))
    (new,) = now - before
    assert b"yesterday" in new


def test_samples_alone_are_the_rows_as_ever(base: RunSpec) -> None:
    """What they don't keep, columns, can't part them."""
    spec, outputs = sampled(base)
    models = models_of(spec.catalog, ("a", "b"))
    assert running.prepare("s", spec, asked(models=models, samples=True, slices=()), outputs).made.rows == 3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--samples", "--slice", "channel"], "samples keep none"),
        (["--samples", "--with-samples"], "say one of them"),
        (["--slice", "chanel"], "no row has that column or attribute; did you mean `channel`?"),
        (["--slice", "tenant"], "--slice tenant: no row has that column or attribute"),
    ],
)
def test_a_slice_that_no_row_falls_into_is_refused(
    base: RunSpec, options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not one slice of all rows, and not left out in silence."""
    assert call(["eval", "job.yaml", "--task", "topic", "--model", "a", "--price", *options]) == 2
    assert told in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("rule", ["never", "redact"])
def test_rows_whose_text_may_stand_in_no_sample_are_not_copied_into_the_state_nor_paid_for(
    base: RunSpec, rule: Literal["never", "redact"]
) -> None:
    """The rows of an evaluation and its answers stay there."""
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()[:-1]]
    rows[0]["class"] = "eu"
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    walls = {**base.catalog.walls, "eu": Wall("eu", regions=("eu",), sample=rule)}
    closed = msgspec.structs.replace(base, catalog=msgspec.structs.replace(base.catalog, walls=walls))
    prepared = prepare(closed)
    assert prepared.made.left[f"behind a wall that says sample: {rule}"] == 1
    assert "r0" not in {row["id"] for row in lines(prepared)}
    assert not any(b'"r0"' in file.read_bytes() for file in Path(closed.state).rglob("*") if file.is_file())


# ---- reading


def attempt(n: int, role: str, model: str, outcome: str = "ok", ms: float = 100.0) -> dict[str, Any]:
    return {"n": n, "role": role, "model": model, "outcome": outcome, "ms": ms}


class Committed:
    """Records of an evaluation, as files."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self._lines: dict[str, list[dict[str, Any]]] = {"results": [], "quality": [], "costs": [], "dead_letters": []}

    def result(self, row: int, attempts: list[dict[str, Any]], **more: Any) -> None:
        block = {"item_id": f"i{row}", "custom_id": f"{row}~", "attempts": attempts, "model": "a", **more}
        self._lines["results"].append({"answer": "x", "penstock": block})

    def dead(self, row: int, reason: str) -> None:
        self._lines["dead_letters"].append({"item_id": f"i{row}", "custom_id": f"{row}~", "reason": reason})

    def score(self, row: int, model: str, version: str, score: float, **more: Any) -> None:
        told = {"item_id": f"i{row}", "scorer": "exact", "score": score, "model": model, "model_version": version}
        self._lines["quality"].append({**told, "output": "billing", "passed": score >= 0.5, **more})

    def cost(self, row: int, n: int, role: str, model: str, version: str, usd: float) -> None:
        told = {"entry_id": f"i{row}:0:{n}", "item_id": f"i{row}", "attempt": n, "role": role, "usd": usd}
        self._lines["costs"].append({**told, "model": model, "model_version": version})

    def status(self) -> RunStatus:
        paths: dict[str, list[str]] = {}
        for sink, records in self._lines.items():
            path = self._prepared.place / f"{sink}.jsonl"
            path.write_text("".join(json.dumps(record) + "\n" for record in records))
            paths[sink] = [str(path)]
        return RunStatus(self._prepared.spec.run_id, "x", "done", outputs=paths)

    def seen(self) -> Any:
        outputs = Outputs(self._prepared.spec, self.status())
        return read(outputs, self._prepared.asked, index_of(self._prepared.place))

    def found(self) -> Found:
        """As `penstock eval show` finds it."""
        history = open_history(self._prepared.spec.state)
        history.save_spec(self._prepared.spec)
        history.save_status(self.status())
        return running.find(self._prepared, history)


def test_each_candidate_has_its_score_cost_and_time_by_version(base: RunSpec) -> None:
    """Two versions of one model are told apart by the cost line of each attempt."""
    prepared = prepare(base)
    made = Committed(prepared)
    a = base.catalog.models["a"].live
    made.result(0, [attempt(1, "primary", "a"), attempt(2, "shadow", "b", ms=200), attempt(3, "shadow", "b", ms=300)])
    for n, (role, model, version) in enumerate([("primary", "a", a), ("shadow", "b", "v1"), ("shadow", "b", "v2")], 1):
        made.cost(0, n, role, model, version, n * 1e-6)
        made.score(0, model, version, float(n == 2))
    seen = made.seen()
    (row,) = seen.rows
    assert [(x.score, x.cost_nano, x.ms) for x in row.answers] == [(0.0, 1000, 100), (1.0, 2000, 200), (0.0, 3000, 300)]
    assert (seen.ended, seen.unasked, seen.spent_nano) == (1, 0, 6000)


def test_candidates_that_are_shown_to_be_as_good_end_it_where_that_was_asked_for(base: RunSpec) -> None:
    """Without that, equal candidates take all rows; it may be asked of rows that were answered already."""
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in fixed(80)))
    models = models_of(base.catalog, ("a", "b"))
    a = base.catalog.models["a"].live
    for within in (None, 0.3):
        prepared = prepare(base, models=models, same_within=within)
        made = Committed(prepared)
        for row in range(70):
            made.result(row, [attempt(1, "primary", "a"), attempt(2, "shadow", "b")])
            made.score(row, "a", a, 1.0)
            made.score(row, "b", "v1", 1.0)
        found = made.found()
        assert (found.stopped is not None, view.machine(found)["winner"]) == (within is not None, None)
        assert ("a is better than no other by more than 0.3 (wrong in at most 5" in told(found)) == (within is not None)


def test_failing_scores_nothing_and_never_asked_counts_for_nobody(base: RunSpec) -> None:
    """A shadow that failed, one that was left out, a row that all failed on, a row that nobody was asked."""
    prepared = prepare(base)
    made = Committed(prepared)
    a = base.catalog.models["a"].live
    whole = [attempt(1, "primary", "a"), attempt(2, "shadow", "b", "server_error"), attempt(3, "shadow", "b")]
    made.result(0, whole)
    made.result(1, [attempt(1, "primary", "a")])
    made.dead(2, "refused")
    made.dead(3, "wall")
    for row in (0, 1):
        made.score(row, "a", a, 1.0)
    made.score(0, "b", "v2", 1.0)
    made.result(5, whole)
    seen = made.seen()
    assert [row.number for row in seen.rows] == [0, 2]
    assert seen.rows[0].answers[1] == Answered(0.0, True)
    assert [x.failed for x in seen.rows[1].answers] == [True, True, True]
    assert (seen.ended, seen.unasked) == (4, 2)  # row 4 has not ended: row 5 does not count yet


def test_a_stand_in_is_the_candidate_that_it_stands_for(base: RunSpec) -> None:
    """Where the first fails, a further version answers under an entry of its own."""
    prepared = prepare(base)
    made = Committed(prepared)
    made.result(0, [attempt(1, "primary", "a", "refused"), attempt(2, "fallback", "b@v2"), attempt(3, "shadow", "b")])
    made.cost(0, 2, "fallback", "b@v2", "v2", 1e-6)
    made.score(0, "b@v2", "v2", 1.0)
    made.score(0, "b", "v1", 1.0)
    (row,) = made.seen().rows
    assert [(x.score, x.failed) for x in row.answers] == [(0.0, True), (1.0, False), (1.0, False)]


def test_equal_requests_are_asked_once_and_count_for_each_row_that_expects_the_same(base: RunSpec) -> None:
    """The copy cost nothing; a row that expects something else is not scored by another's answer."""
    prepared = prepare(base)
    made = Committed(prepared)
    a = base.catalog.models["a"].live
    whole = [attempt(1, "primary", "a"), attempt(2, "shadow", "b"), attempt(3, "shadow", "b")]
    made.result(0, whole)
    for n, (model, version) in enumerate((("a", a), ("b", "v1"), ("b", "v2")), 1):
        made.score(0, model, version, 1.0)
        made.cost(0, n, "primary" if n == 1 else "shadow", model, version, 1e-6)
    made.result(1, [], copied_from="i0")
    seen = made.seen()
    assert [[(x.score, x.cost_nano) for x in row.answers] for row in seen.rows] == [[(1.0, 1000)] * 3, [(1.0, 0)] * 3]
    index = [msgspec.structs.replace(each, expected=f"{each.row}") for each in index_of(prepared.place)]
    (prepared.place / "index.jsonl").write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in index))
    assert [row.number for row in made.seen().rows] == [0]


def test_who_failed_on_the_first_of_equal_rows_failed_on_each(base: RunSpec) -> None:
    """Nobody asked again; leaving the copies out would count the failure once and the others' answers twice."""
    prepared = prepare(base)
    made = Committed(prepared)
    a = base.catalog.models["a"].live
    made.result(0, [attempt(1, "primary", "a"), attempt(2, "shadow", "b"), attempt(3, "shadow", "b", "refused")])
    for n, (model, version) in enumerate((("a", a), ("b", "v1")), 1):
        made.score(0, model, version, 1.0)
        made.cost(0, n, "primary" if n == 1 else "shadow", model, version, 1e-6)
    made.cost(0, 3, "shadow", "b", "v2", 1e-6)
    made.result(1, [], copied_from="i0")
    seen = made.seen()
    assert [[(x.score, x.failed, x.cost_nano) for x in row.answers] for row in seen.rows] == [
        [(1.0, False, 1000), (1.0, False, 1000), (0.0, True, 1000)],
        [(1.0, False, 0), (1.0, False, 0), (0.0, True, 0)],
    ]


def judged(scorers: str) -> RunSpec:
    Path("job.yaml").write_text(JOB.replace('[{type: exact, expected: "{{ label }}"}]', scorers))
    return job_spec.load("job.yaml")


JUDGE = '{type: judge, model: b, rubric: Kind?, choices: [bad, good], expected: "{{ label }}"}'


def calibrate(base: RunSpec, rows: list[list[int]]) -> None:
    (scorer, *_) = base.policy.tasks["topic"].scorers
    agreed = agreement(rows)
    assert agreed is not None
    right, wrong = map(sum, rows)
    found = Calibration(f"judge@{judge_version(scorer, 'v1')}", "b", right, wrong, agreed, "run", "now", "ann")
    write_judges(open_state(base.state), [found])


def judged_rows(prepared: Prepared, rows: int) -> Committed:
    """The first candidate is always good by the judge, the second never."""
    made = Committed(prepared)
    a = prepared.spec.catalog.models["a"].live
    for row in range(rows):
        made.result(row, [attempt(1, "primary", "a"), attempt(2, "shadow", "b")])
        for n, (model, version) in enumerate((("a", a), ("b", "v1")), 1):
            made.cost(row, n, "primary" if n == 1 else "shadow", model, version, 1e-6)
            made.score(row, model, version, float(n == 1), scorer="judge", judge_model="b")
        made.cost(row, 3, "judge", "b", "v1", 4e-6)
        made.cost(row, 4, "judge", "b", "v1", 3e-6)
    return made


def test_a_judge_that_nobody_held_against_people_names_no_winner_and_stops_nothing(base: RunSpec) -> None:
    """However sure its numbers are. Calibrated, the same judge decides about the same rows."""
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in fixed(60)))
    spec = judged(f"[{JUDGE}]")
    prepared = prepare(spec, scorer="judge", models=models_of(base.catalog, ("a", "b")))
    made = judged_rows(prepared, 50)
    found = made.found()
    assert (found.stopped, view.machine(found)["winner"]) == (None, None)
    assert "no winner is named: a leads by a judge that informs only" in view.verdict(found)
    why = "the judge informs only: it was never held against what people say."
    assert why in told(found)
    assert "real, as the judge sees it" in told(found)
    calibrate(spec, [[60, 10], [10, 20]])
    assert "the judge informs only: the lower end of its kappa is" in told(made.found())
    calibrate(spec, [[60, 0], [0, 40]])
    found = made.found()
    assert (found.stopped is not None, view.machine(found)["winner"]) == (True, prepared.asked.names[0])
    assert "informs only" not in told(found)


def told(found: Found) -> str:
    out = Console(file=io.StringIO(), width=300)
    for part in view.parts(found):
        out.print(part)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def test_an_evaluation_of_which_no_row_counts_says_why_and_does_not_end_well(base: RunSpec) -> None:
    """All have ended, at a wall say: nothing was found, and nothing is still to come."""
    prepared = prepare(base)
    made = Committed(prepared)
    for row in range(prepared.made.rows):
        made.dead(row, "wall")
    found = made.found()
    assert running.exit_code(found, to_the_end=False) == 5
    assert "no row has an answer of every candidate\n18 rows not counted: some candidate was never asked" in told(found)


@pytest.mark.parametrize(("confidence", "sure", "wrong"), [(0.95, "95 %", "5"), (0.999, "99.9 %", "0.1")])
def test_a_confidence_is_told_as_it_is(base: RunSpec, confidence: float, sure: str, wrong: str) -> None:
    """None is certainty."""
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in fixed(80)))
    prepared = prepare(base, models=models_of(base.catalog, ("a", "b")), confidence=confidence)
    made = Committed(prepared)
    for row in range(80):
        made.result(row, [attempt(1, "primary", "a"), attempt(2, "shadow", "b")])
        made.score(row, "a", base.catalog.models["a"].live, 1.0)
        made.score(row, "b", "v1", 0.0)
    words = told(made.found())
    assert f"at {sure} confidence" in words
    assert f"the winner is a (wrong in at most {wrong} of 100 such evaluations)" in words


def test_a_budget_of_nothing_is_a_budget(base: RunSpec) -> None:
    """Free candidates, whose answers may be alike, so that a dear judge of pairs is perhaps not asked at all."""
    b = msgspec.structs.replace(base.catalog.models["b"], name="dear")
    free = {name: msgspec.structs.replace(model, price=Price()) for name, model in base.catalog.models.items()}
    spec = judged("[{type: judge, model: dear, rubric: Kind?, pairwise: true}]".replace("dear", "b"))
    (judge,) = spec.policy.tasks["topic"].scorers
    task = msgspec.structs.replace(spec.policy.tasks["topic"], scorers=(msgspec.structs.replace(judge, model="dear"),))
    spec = msgspec.structs.replace(
        spec,
        catalog=msgspec.structs.replace(spec.catalog, models={**free, "dear": b}),
        policy=msgspec.structs.replace(spec.policy, tasks={**spec.policy.tasks, "topic": task}),
    )
    prepared = prepare(spec, scorer="judge pairwise", models=models_of(spec.catalog, ("a", "b")))
    cost, run = running.price(prepared, 0)
    assert cost.cost_nano.low == 0 < cost.cost_nano.high
    assert [budget.limit_nano for budget in run.budgets if budget.per is None] == [0]


def test_a_judge_of_pairs_never_names_a_winner(base: RunSpec) -> None:
    spec = judged("[{type: judge, model: b, rubric: Kind?, pairwise: true}]")
    prepared = prepare(spec, scorer="judge pairwise", models=models_of(base.catalog, ("a", "b")))
    assert going.informs(prepared.spec, prepared.asked) == "people are not asked what a judge of pairs is asked"


def test_what_judges_cost_is_borne_by_the_candidates_that_they_judged(base: RunSpec) -> None:
    """In the cost of an item and of an accepted one; shown apart as well."""
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in fixed(20)))
    prepared = prepare(judged(f"[{JUDGE}]"), scorer="judge", models=models_of(base.catalog, ("a", "b")))
    found = judged_rows(prepared, 10).found()
    assert found.evaluation is not None
    first, second = found.evaluation.lines
    assert (first.cost_nano, first.judged_nano, second.cost_nano) == (45_000, 35_000, 45_000)
    assert (first.per_item_nano, first.per_accepted_nano, second.per_accepted_nano) == (4_500, 4_500, None)
    assert (found.seen.judges_nano, found.seen.spent_nano) == (70_000, 90_000)
    assert "of it judges" in told(found)


def test_the_price_holds_what_judges_ask_about_every_answer(base: RunSpec) -> None:
    """Three candidates are judged on each row, twice; where answers are alike, once. The budget has room for it."""
    models = models_of(base.catalog, ("a", "b", "b@v2"))
    plain, _ = running.price(prepare(base, "plain", models=models), None)
    spec = judged(f"[{JUDGE[:-1]}, samples: 2}}]")
    cost, run = running.price(prepare(spec, "judged", scorer="judge", models=models), None)
    assert plain.judges == ZERO
    assert cost.cost_nano.likely == pytest.approx(sum(each.likely for each in cost.each.values()) + cost.judges.likely)
    calls = 2 * 3 * 19  # the row without a label is judged, too
    one = cost.judges.likely / calls  # about 150 tokens in, at ten dollars a million
    assert 100 * 10_000 < one < 300 * 10_000
    assert cost.judges.low < cost.judges.likely / 2
    assert run.budgets[-1].limit_nano > 1.25 * (cost.judges.high + plain.cost_nano.high)
    prepared = prepare(spec, "judged", scorer="judge", models=models)
    assert "of it for judges" in view.price_words(cost, prepared, 1)


def test_answers_that_are_json_are_compared_field_by_field(base: RunSpec) -> None:
    """Rows need a JSON answer; the table says which field is how often right."""
    rows = fixed(4)
    for row, label in zip(rows, ({"kind": "bill", "[b]sum": 3}, '{"kind": "mail"}', "no JSON", None), strict=True):
        row["label"] = label
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = judged('[{type: fields, expected: "{{ label }}", tolerance: 0.5}]')
    prepared = prepare(spec, scorer="fields", models=models_of(base.catalog, ("a", "b")))
    assert prepared.made.rows == 2
    without = {"without an expected answer": 1, "whose expected answer is no JSON object or list": 1}
    assert prepared.made.left == without
    made = Committed(prepared)
    a = base.catalog.models["a"].live
    for row in range(2):
        made.result(row, [attempt(1, "primary", "a"), attempt(2, "shadow", "b")])
        for model, version, said in (("a", a, '{"kind": "bill", "[b]sum": 3.2}'), ("b", "v1", "?")):
            made.score(row, model, version, 1.0, scorer="fields", output=said)
    found = made.found()
    assert found.evaluation is not None
    fields = {line.name: (line.rows, [each and each.mean for each in line.quality]) for line in found.evaluation.fields}
    assert fields == {"kind": (2, [0.5, 0.0]), "[b]sum": (1, [1.0, 0.0])}
    assert re.search(r"\[b\]sum +1 +1.00", told(found))


def test_fields_are_told_by_the_scorer_that_decides(base: RunSpec) -> None:
    """Where another one decides there is no table by field: its tolerance would be of a question that nobody asked."""
    both = judged('[{type: exact, expected: "{{ label }}"}, {type: fields, expected: "{{ label }}", tolerance: 0.5}]')
    for scorer, there in (("exact", False), ("fields", True)):
        rows = fixed(4)
        for row in rows:
            row["label"] = {"sum": 3}
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        made = Committed(prepare(both, scorer, scorer=scorer, models=models_of(base.catalog, ("b",))))
        made.result(0, [attempt(1, "primary", "b")], model="b")
        made.score(0, "b", "v1", 1.0, scorer=scorer, output='{"sum": 3.2}')
        evaluation = made.found().evaluation
        assert evaluation is not None
        assert bool(evaluation.fields) == there


def test_of_two_scorers_of_one_name_the_first_decides(base: RunSpec) -> None:
    """As they stand in the task, and so in the records."""
    spec = judged('[{type: regex, pattern: "^b"}, {type: regex, pattern: "^x"}]')
    made = Committed(prepare(spec, scorer="regex", models=models_of(base.catalog, ("b",))))
    made.result(0, [attempt(1, "primary", "b")], model="b")
    for score in (1.0, 0.0):
        made.score(0, "b", "v1", score, scorer="regex")
    (row,) = made.seen().rows
    assert [answer.score for answer in row.answers] == [1.0]


def test_rows_that_the_scorer_who_decides_can_not_score_are_not_paid_for(base: RunSpec) -> None:
    """Another scorer of the task could: it does not count here."""
    both = '[{type: exact, expected: "{{ label }}"}, {type: regex, pattern: "billing"}]'
    spec = judged(both)
    assert prepare(spec, "exact").made.left["without an expected answer"] == 1
    assert "without an expected answer" not in prepare(spec, "regex", scorer="regex").made.left


def test_an_answer_that_nobody_scored_is_no_failure(base: RunSpec) -> None:
    """A judge that gave no word, a wall that forbids samples: such a row counts for nobody."""
    prepared = prepare(base)
    made = Committed(prepared)
    a = base.catalog.models["a"].live
    made.result(0, [attempt(1, "primary", "a"), attempt(2, "shadow", "b"), attempt(3, "shadow", "b")])
    for n, (model, version) in enumerate((("a", a), ("b", "v1"), ("b", "v2")), 1):
        made.cost(0, n, "primary" if n == 1 else "shadow", model, version, 1e-6)
    made.score(0, "a", a, 1.0)
    made.score(0, "b", "v1", 1.0)
    seen = made.seen()
    assert (seen.rows, seen.unasked) == ((), 1)


ROW = b'{"id":"r1","kind":"topic","class":"","text":"hi","label":"other"}'
REQUEST = (
    b'{"custom_id":"r1","method":"POST","url":"/v1/chat/completions","body":{"model":"auto","messages":'
    b'[{"role":"user","content":"hi"}],"metadata":{"penstock-task":"topic","penstock-unit":"r1"}}}'
)


@pytest.mark.parametrize("data", [ROW, REQUEST])
def test_what_headers_said_of_a_record_holds_in_the_evaluation(base: RunSpec, data: bytes) -> None:
    """Its wall above all: a row of the evaluation is read with the very attributes that the job read it with."""
    requests = data is REQUEST
    headers = (("penstock-sensitivity", b"eu"), ("penstock-tenant", b"acme"), ("penstock-consent", b"no"))
    position = Position("a", 0, 0)
    was = read_item(base, Raw(data=data, position=position, object_id="o", headers=headers), requests=requests)
    prepared = prepare(base)
    made = labelled(was, Raw(data=data, position=position, object_id="o", headers=headers), prepared.asked)
    line = msgspec.json.encode(line_of(made, 0, "topic", ""))
    spec = spec_of(base, prepared.asked, prepared.place, "e", requests=requests)
    item = read_item(spec, Raw(data=line, position=position, object_id="p"), requests=requests)
    attributes = [{name: getattr(each.attributes, name) for name in CARRIED} for each in (was, item)]
    assert attributes[0] == attributes[1]
    assert (item.attributes.sensitivity, item.attributes.tenant, item.attributes.unit) == ("eu", "acme", "r1")


def read_item(spec: RunSpec, raw: Raw, *, requests: bool) -> Item:
    shape = "openai-batch" if requests else "rows"
    item = Intake(spec.run_id, shape, spec.row, spec.policy, spec.catalog.models, 0, spec.vars).item(raw, 0.0)
    assert isinstance(item, Item), item
    return item


REQUESTS = """\
name: asked
source: {type: files, path: requests.jsonl, format: openai-batch}
tasks: {topic: {output: {choices: [billing, other]}, scorers: [exact]}}
walls: {x: {}}
accounts: {sandbox: {}}
models:
  - {name: a, account: sandbox, model: m, price: {input_per_million: 1, output_per_million: 5}}
  - {name: b, account: sandbox, model: n, price: {input_per_million: 1, output_per_million: 5}}
sinks: out.jsonl
"""


def test_requests_are_rows_too_without_their_pin_and_haste(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata that would choose among candidates goes; sensitivity and the user's own stay; variants make no sense."""
    monkeypatch.chdir(tmp_path)
    metadata = {"penstock-expected": "other", "penstock-min-quality": "0.9", "latency": "realtime", "shop": "north"}
    body = {"model": "a", "messages": [{"role": "user", "content": "hi"}], "metadata": {**metadata, "sensitivity": "x"}}
    line = {"custom_id": "r1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (tmp_path / "requests.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "job.yaml").write_text(REQUESTS)
    base = job_spec.load("job.yaml")
    models = models_of(base.catalog, ("a", "b"))
    prepared = running.prepare("r", base, asked(models=models, slices=("shop",)), None)
    (made,) = lines(prepared)
    assert (made["custom_id"], made["body"]["model"]) == ("0~", "auto")
    kept = {"shop": "north", "sensitivity": "x", "penstock-sensitivity": "x"}
    assert made["body"]["metadata"] == {**kept, "penstock-task": "topic", "penstock-expected": "other"}
    assert index_of(prepared.place)[0].slices == {"shop": "north"}
    with pytest.raises(SpecError, match=r"--slice shops: .*; did you mean `shop`\?"):
        running.prepare("s", base, asked(models=models, slices=("shops",)), None)
    variants = {"": Variant(), "brief": Variant("Brief.")}
    with pytest.raises(SpecError, match="variants need rows"):
        running.prepare("v", base, asked(models=models, variants=variants, slices=()), None)
