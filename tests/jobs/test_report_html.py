"""The page of `penstock report --html`: its numbers are the records', and nothing in a record can become markup.

The records are committed through a real file store; the page is read back with an HTML parser.
"""

import asyncio
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.connectors.base import OutRecord, Records, SinkName
from penstock.connectors.registry import open_stores
from penstock.connectors.settings import FilesSink, FilesSource, Row, SinkSettings
from penstock.connectors.writing.records import Encoder
from penstock.engine.catalog import Catalog, Model, Price, PriceAbove, Version
from penstock.engine.flow.cells import Cell, Scored
from penstock.engine.items import Answer, Attributes, Item, Position, Refusal, Request, Role, Route, Usage
from penstock.engine.measure.evaluation import Answered, evaluate
from penstock.engine.measure.evaluation import Row as EvalRow
from penstock.engine.measure.stopping import StopRule
from penstock.engine.plan import Plan
from penstock.engine.policy import Cascade, Policy, Task
from penstock.engine.pricing import cost_nano
from penstock.engine.quality import proportion_interval
from penstock.engine.results import Attempt, CostLine, DeadLetter, Result, Score
from penstock.jobs import rollouts
from penstock.jobs.cli import call
from penstock.jobs.evals.asked import Asked, Variant
from penstock.jobs.evals.dataset import Made as EvalMade
from penstock.jobs.evals.records import Seen as EvalSeen
from penstock.jobs.evals.running import Found, Prepared
from penstock.jobs.history import open_history
from penstock.jobs.look.page import compared, timeline
from penstock.jobs.look.page.beside import Beside
from penstock.jobs.look.page.groups import MOST
from penstock.jobs.look.page.parts import Table
from penstock.jobs.look.page.sketch import Sketch
from penstock.jobs.look.page.timeline import MOST_BUCKETS, Timeline
from penstock.jobs.look.page.trials import Trials
from penstock.jobs.look.told import SampleTold
from penstock.jobs.wording import dollars
from penstock.workers.runspec import RunSpec
from penstock.workers.status import RunStatus, Tally

RUN = "job-1"
AT = 1_795_525_200.0
"""2026-11-24 13:00:00 UTC."""
SECRET = "the parcel of Ms. Miller never came"
"""What a prompt, an answer and a provider's message say: never on the page."""


class Made(msgspec.Struct):
    """What was committed, for the test to add up."""

    results: list[Result] = []
    letters: list[DeadLetter] = []
    costs: list[CostLine] = []


def item(n: int, task: str, label: str) -> Item:
    body = msgspec.json.encode({"messages": [{"role": "user", "content": SECRET}]})
    return Item(
        f"{n:032x}", Position("rows.jsonl@9f2c:0-4096", 0, n), Attributes(task=task), Request(body),
        SECRET.encode(), AT, custom_id=label,
    )  # fmt: skip


def tries(rng: random.Random, model: str, at: float, trouble: float) -> tuple[Attempt, ...]:
    """One answer, now and then after a failure of the same model or another's."""
    made: list[Attempt] = []
    role: Role = "primary"
    while rng.random() < trouble and len(made) < 3:
        failed = "overloaded" if rng.random() < 0.5 else "timeout"
        made.append(Attempt(len(made) + 1, role, model, at, 50.0, failed, None, 0))
        role = "retry"
    ms = rng.lognormvariate(6, 0.5)
    made.append(Attempt(len(made) + 1, role, model, at, ms, "ok", "req", rng.randrange(1_000, 90_000), model + "-v1"))
    return tuple(made)


def result(rng: random.Random, n: int, task: str, model: str, label: str, seconds: float) -> Result:
    at = AT + rng.random() * seconds
    attempts = tries(rng, model, at, 0.1)
    right = rng.random() < 0.8
    return Result(
        item=item(n, task, label), route=Route(task, 3, (), (Refusal("opus", "wall eu-only: regions [us]"),), "tier 3"),
        answer=Answer(SECRET, "stop", b"{}"), model=model, model_version="v1", provider="p", account="a", region="eu",
        mode="now", usage=Usage(input=40, output=2), cost_nano=sum(tried.cost_nano for tried in attempts),
        cost_basis="metered", price_version="2026-11", policy_version="p1", prompt_version="q1", attempts=attempts,
        finished_at=at + 1, queue_ms=1000.0 * rng.random(), call_ms=sum(tried.ms for tried in attempts),
        output_hash="cd", sampled=True, sample_probability=0.5, maybe_paid=rng.random() < 0.05,
        scores=(Score("exact", "s1", float(right), right),),
    )  # fmt: skip


def lines_of(made: Result) -> list[CostLine]:
    source = made.item
    return [
        CostLine(
            f"{source.item_id}:0:{tried.n}", source.item_id, tried.n, tried.role, "a", tried.model, "v1",
            made.usage, tried.cost_nano, "metered", "p", None, made.route.task, 3, made.finished_at,
        )
        for tried in made.attempts
        if tried.outcome == "ok"
    ]  # fmt: skip


def letter(n: int, reason: str = "refused", label: str = "dead") -> DeadLetter:
    attempt = Attempt(1, "primary", "small", AT, 20.0, "refused", None, 700)
    return DeadLetter(
        f"{n:032x}", Position("rows.jsonl@9f2c:0-4096", 0, n), reason, f"it said: {SECRET}", SECRET.encode(),  # pyright: ignore[reportArgumentType]
        custom_id=label, attempts=(attempt,), cost_nano=700, finished_at=AT,
    )  # fmt: skip


def make(
    count: int,
    models: Iterable[str] = ("small", "large"),
    tasks: Iterable[str] = ("topic", "rewrite"),
    letters: int = 0,
    label: str = "order",
    seconds: float = 60.0,
) -> Made:
    rng, names, kinds = random.Random(count), list(models), list(tasks)
    made = Made(
        [result(rng, n, kinds[n % len(kinds)], names[n % len(names)], f"{label}-{n}", seconds) for n in range(count)],
        [letter(count + n, "refused" if n % 3 else "wall", f"{label}-dead-{n}") for n in range(letters)],
    )
    made.costs = [line for one in made.results for line in lines_of(one)]
    return made


def records(made: Made) -> Records:
    encoder = Encoder(RUN, "rows")
    out: dict[str, list[OutRecord]] = {"results": [], "costs": [], "quality": [], "dead_letters": []}
    for n, one in enumerate(made.results):
        out["results"].append(OutRecord(0, n, encoder.result(one)))
        out["quality"] += [OutRecord(0, n, encoder.quality(one, score)) for score in one.scores]
    out["costs"] += [OutRecord(0, n, encoder.cost(line)) for n, line in enumerate(made.costs)]
    out["dead_letters"] += [OutRecord(0, n, encoder.dead_letter(dead)) for n, dead in enumerate(made.letters)]
    return out


async def commit(made: Made, sinks: dict[SinkName, SinkSettings], finish: bool) -> dict[str, list[str]]:
    stores = open_stores(sinks, RUN)
    taken = await stores.primary.take(0, (1, 1))
    await stores.primary.commit(0, (1, 1), taken.seq + 1, records(made), {})
    await stores.primary.release(0)
    return await stores.finish(Plan(RUN, "n", {}, 1, (), {}, 0.0)) if finish else {}


def write(
    folder: Path,
    made: Made,
    *,
    name: str = "job",
    finish: bool = True,
    catalog: Catalog = Catalog({}, {}, {}),  # noqa: B008 # frozen
    policy: Policy = Policy({}),  # noqa: B008
    cells: Iterable[Cell] = (),
    state: str | None = None,
    drifted: dict[str, str] | None = None,
) -> Path:
    """Commit the records, save the run's history, and ask for its page."""
    sinks: dict[SinkName, SinkSettings] = {
        sink: FilesSink(str(folder / f"{sink}.jsonl")) for sink in ("results", "costs", "quality", "dead_letters")
    }
    outputs = asyncio.run(commit(made, sinks, finish))
    state = state or str(folder / ".penstock")
    history = open_history(state)
    source = FilesSource(str(folder / "rows.jsonl"))
    history.save_spec(RunSpec(RUN, name, {}, source, None, Row(), catalog, policy, dict(sinks), state=state))
    tally = Tally(
        results=len(made.results),
        dead_letters=dict(Counter(dead.reason for dead in made.letters)),
        cost_nano=sum(line.cost_nano for line in made.costs),
        tier1_cost_nano=10 * sum(line.cost_nano for line in made.costs),
        tiers={3: len(made.results)} if made.results else {},
        refused={"eu-only": len(made.results)} if made.results else {},
    )
    history.save_status(
        RunStatus(
            RUN,
            name,
            "done" if finish else "running",
            started_at=AT,
            updated_at=AT + 61,
            ended_at=AT + 61 if finish else None,
            tally=tally,
            outputs=outputs,
            cells=list(cells),
            drifted=drifted or {},
        )
    )
    page = folder / "report.html"
    assert call(["report", RUN, "--state", state, "--html", str(page)]) == 0
    return page


class Page(HTMLParser):
    """Tables by caption, all text, and every tag and attribute that stands in the page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.raw = path.read_text()
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self.feed(self.raw)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]
        self._open.append(tag)
        if tag == "table":
            self._rows, self._caption = [], ""
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self.tables[self._caption] = self._rows
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.text += data
        where = self._open[-1] if self._open else ""
        if where == "caption":
            self._caption += data
        if where in ("td", "th"):
            self._rows[-1][-1] += data

    def rows(self, caption: str) -> list[dict[str, str]]:
        head, *rows = self.tables[caption]
        return [dict(zip(head, row, strict=True)) for row in rows]


def test_the_numbers_on_the_page_are_sums_of_the_records(tmp_path: Path) -> None:
    """Cost by model, rows by reason, calls again by cause, quality with the engine's interval: nothing is lost."""
    made = make(300, letters=7)
    page = Page(write(tmp_path, made))
    total = sum(line.cost_nano for line in made.costs)
    for by in ("tier", "task", "model", "account", "role"):
        sums: Counter[str] = Counter()
        for line in made.costs:
            sums[f"tier {line.tier}" if by == "tier" else str(getattr(line, by))] += line.cost_nano
        expected = {name: dollars(nano) for name, nano in sums.items()} | (
            {"all": dollars(total)} if len(sums) > 1 else {}
        )
        assert {row[by]: row["$"] for row in page.rows(f"By {by}")} == expected
    roles = {row["role"]: row for row in page.rows("By role")}
    again = [line for line in made.costs if line.role == "retry"]
    assert roles["retry"]["$"] == dollars(sum(line.cost_nano for line in again)) == roles["all"]["again, $"]
    retried = sum(1 for one in made.results for tried in one.attempts if tried.role == "retry")
    assert sum(int(row["calls"]) for row in page.rows("Called again")) == retried
    assert {row["reason"]: row["rows"] for row in page.rows("By reason")} == {"refused": "4", "wall": "3", "all": "7"}
    quality = {(row["task"], row["model"]): row for row in page.rows("Quality by task and model")}
    for (task, model), row in quality.items():
        scores = [one.scores[0] for one in made.results if (one.route.task, one.model + "@v1") == (task, model)]
        passed = sum(score.passed for score in scores)
        around = proportion_interval(passed, len(scores))
        assert around is not None
        assert row["n"] == str(len(scores))
        assert row["mean score"] == f"{100 * around.mean:.1f} %"
        assert row["95 % interval"] == f"{100 * around.low:.1f}–{100 * around.high:.1f} %"
    assert sum(int(row["results"]) for row in page.rows("The figure's numbers")) == 300
    assert sum(int(row["rows"]) for row in page.rows("Targets that were passed over, and why")) == 300
    assert f"{sum(one.maybe_paid for one in made.results)} rows marked maybe_paid" in page.text


def test_the_slowest_rows_are_the_slowest(tmp_path: Path) -> None:
    """In order, with their labels; the rest are not there."""
    made = make(100)
    page = Page(write(tmp_path, made))
    (caption,) = [name for name in page.tables if name.startswith("The slowest rows")]
    slow = sorted(made.results, key=lambda one: -one.call_ms)[:20]
    assert [row["label"] for row in page.rows(caption)] == [one.item.custom_id for one in slow]


def test_no_prompt_and_no_answer_is_on_the_page(tmp_path: Path) -> None:
    """Nor what a provider said of a dead letter, which may quote it."""
    page = Page(write(tmp_path, make(20, letters=3)))
    assert "Miller" not in page.raw


HOSTILE = (
    '<script>alert(1)</script>', '"><img src=x onerror=alert(1)>', "</style><style>*{display:none}", "x" * 10_000,
    "\u202egnihtyna", "{{ 7 * 7 }}", "👩‍👩‍👧 famille", "汉字" * 40,
    "]]>&amp;<!--", "a\nb\x00c", "' onmouseover='alert(1)",
)  # fmt: skip


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    """Labels, tasks, models and the job's name come from others: no tag, no attribute and no style comes of them."""
    made = make(60, models=HOSTILE, tasks=HOSTILE[::-1], letters=2, label=HOSTILE[0])
    page, plain = Page(write(tmp_path, made, name=HOSTILE[1])), Page(write_in(tmp_path / "plain", make(60, letters=2)))
    assert set(page.tags) == set(plain.tags)
    assert {name for name, _ in page.attributes} == {name for name, _ in plain.attributes}
    assert "{{ 7 * 7 }}" in page.text
    assert "<script>alert(1)</script>-" in page.text
    assert "\u202e" not in page.raw
    assert len(page.raw) < 400_000


def write_in(folder: Path, made: Made, **more: Any) -> Path:
    folder.mkdir()
    return write(folder, made, **more)


def test_a_page_asks_for_nothing_from_anywhere(tmp_path: Path) -> None:
    """No script, no font, no image, no link that leaves the page; and its own policy forbids them."""
    page = Page(write(tmp_path, make(20)))
    assert not page.tags.keys() & {"script", "link", "img", "iframe", "object", "form", "base"}
    assert all(value.startswith("#") for name, value in page.attributes if name in ("href", "src", "action"))
    assert "url(" not in page.raw
    assert "@import" not in page.raw
    assert "default-src 'none'" in page.raw


@pytest.mark.parametrize(("count", "letters"), [(0, 0), (1, 0), (0, 1)])
def test_a_run_of_nothing_or_of_one_row_has_a_page(tmp_path: Path, count: int, letters: int) -> None:
    """No division by zero, no figure without points."""
    page = Page(write(tmp_path, make(count, letters=letters)))
    assert page.tags["h2"] == 9
    assert ("No result yet." in page.text) == (count == 0)
    if count:
        assert "too few samples to choose by" in page.text


def test_a_run_that_goes_is_reported_as_it_stands(tmp_path: Path) -> None:
    """From what is committed, before any output is assembled."""
    page = Page(write(tmp_path, make(50), finish=False))
    assert sum(int(row["results"]) for row in page.rows("Model versions")) == 50
    assert "not yet: this is how it stands" in page.text


def test_many_models_are_told_apart_as_far_as_a_page_goes_and_added_up_beyond(tmp_path: Path) -> None:
    """A hundred lines a table, and the rest in one: sums stay whole, and the page stays small."""
    made = make(600, models=[f"model-{n}" for n in range(150)], tasks=["topic"])
    page = Page(write(tmp_path, made))
    rows = page.rows("Model versions")
    assert len(rows) == MOST + 1
    assert sum(int(row["results"]) for row in rows) == 600
    assert rows[0]["model version"] == "(others)"
    assert len(page.raw) < 400_000


def test_experiments_and_cascades_are_told_of_where_they_are(tmp_path: Path) -> None:
    """Only then: a run without them has no such section."""
    made = make(20)
    assert "Experiments" not in Page(write(tmp_path, made)).text
    first = Attempt(1, "primary", "small", AT, 10.0, "ok", None, 100)
    second = Attempt(2, "cascade", "large", AT, 10.0, "ok", None, 900)
    made.results[1] = msgspec.structs.replace(made.results[1], attempts=(first, second), cost_nano=1000)
    page = Page(write_in(tmp_path / "cascade", made))
    assert (
        page.rows("Sent on")[0] | {"results": "1", "first asked": "small", "answered by": "large"}
        == page.rows("Sent on")[0]
    )


def test_a_cascade_is_set_against_its_top_model(tmp_path: Path) -> None:
    """What was paid, judges and doubtful answers included, beside the top model's price for one answer's tokens."""
    made = make(20, models=["small", "opus"], tasks=["topic"])
    asked_thrice = Usage(90_000, output=90_000)
    made.results = [msgspec.structs.replace(r, answer_usage=r.usage, usage=asked_thrice) for r in made.results]
    tasks = {"topic": Task("topic", cascade=Cascade(("small", "opus"), "validity"))}
    price = Price(input=5_000_000_000, output=25_000_000_000, version="2026-11")
    models = {"opus": Model("opus", (Version("v1", "opus"),), "v1", price=price)}
    why = "cascade of task topic: its calibration 3 does not hold any more"
    page = write(tmp_path, made, catalog=Catalog({}, models, {}), policy=Policy(tasks), drifted={"topic": why})
    assert f"Note: {why}." in Page(page).text
    (row,) = Page(page).rows("Against its top model")
    paid = sum(one.cost_nano for one in made.results)
    alone = sum(cost_nano(one.answer_usage, price) for one in made.results)
    assert (row["task"], row["top model"], row["results"]) == ("topic", "opus", "20")
    assert (row["paid"], row["top model alone, about"]) == (dollars(paid), dollars(alone))
    assert row["saved"].startswith(dollars(alone - paid))


def test_a_long_prompts_price_holds_for_the_calls_that_are_long(tmp_path: Path) -> None:
    """The tokens of a run together are none; and a copy would have cost nothing there either."""
    made = make(20, models=["small", "opus"], tasks=["topic"])
    made.results = [msgspec.structs.replace(one, answer_usage=Usage(500, output=100)) for one in made.results]
    made.results[0] = msgspec.structs.replace(made.results[0], copied_from="another", answer_usage=Usage())
    long = PriceAbove(1_000, input=5_000_000_000, output=25_000_000_000)
    price = Price(input=1_000_000_000, output=5_000_000_000, per_request=7, version="2026-11", above=(long,))
    models = {"opus": Model("opus", (Version("v1", "opus"),), "v1", price=price)}
    tasks = {"topic": Task("topic", cascade=Cascade(("small", "opus"), "validity"))}
    page = Page(write(tmp_path, made, catalog=Catalog({}, models, {}), policy=Policy(tasks)))
    (row,) = page.rows("Against its top model")
    assert row["top model alone, about"] == dollars(19 * cost_nano(Usage(500, output=100), price))


def test_an_arm_is_told_by_its_results_and_not_by_the_jobs_own_shadows() -> None:
    trials = Trials()
    for n in range(100):
        own = SampleTold(f"i{n}", "t", "exact", arm="kind", score=float(n < 60))
        trials.sample(own)
        trials.sample(msgspec.structs.replace(own, score=1.0, model="opus", role="shadow"))
    ((_, seen),) = trials.scores.ranked(lambda seen: seen.tally.n)
    assert (seen.tally.n, seen.mean) == (100, 0.6)


def test_decisions_about_versions_stand_on_the_page_with_who_answered(tmp_path: Path) -> None:
    """From the audit log, whichever run of the state it was; a rollout's arms are no experiment."""
    made = make(40, models=["small"], tasks=["topic"])
    small = Model("small", (Version("v1", "m1"), Version("v2", "m2")), "v1", price=Price(version="free"))
    catalog, state = Catalog({}, {"small": small}, {}), str(tmp_path / ".penstock")
    page = write(tmp_path, made, finish=False, catalog=catalog)
    assert "Rollouts" not in Page(page).text
    assert call(["rollout", "start", "small", "v2", "--stages", "25,100", "--state", state]) == 0
    assert call(["rollback", "small", "--why", "it swears", "--state", state]) == 0
    (at,) = rollouts.standing(state, "small")
    arms = (("baseline-1", "v1", 30, 27), ("candidate-1", "v2", 10, 6))
    cells = [
        Cell("topic", "small", version, experiment=at.rollout.id, arm=arm, items=n, results=n,
             scores={"exact@s1": Scored(right, {0: n - right, 1000: right})})
        for arm, version, n, right in arms
    ]  # fmt: skip
    page = write_in(tmp_path / "after", made, finish=False, catalog=catalog, cells=cells, state=state)
    decided = [(row["decision"], row["from"], row["to"], row["why"]) for row in Page(page).rows("Decisions")]
    assert [row[:3] for row in decided] == [("started", "v1", "v2"), ("taken back", "v1", "v2")]
    assert decided[1][3] == "it swears"
    answered = Page(page).rows("Who answered, by stage")
    assert [(row["version"], row["items"], row["of the run"], row["mean score"]) for row in answered] == [
        ("v1", "30", "75 %", "90.0 %"),
        ("v2", "10", "25 %", "60.0 %"),
    ]


def test_evaluations_of_the_job_are_told_with_their_verdict() -> None:
    """As `penstock eval show` tells them: the best is called a winner only where that is shown."""
    rows = tuple(
        EvalRow(n, (Answered(1.0, cost_nano=2_000, ms=90.0), Answered(float(n % 3 > 0), cost_nano=9_000, ms=300.0)))
        for n in range(200)
    )
    asked = Asked("job", "topic", ("small@v1", "opus@v1"), {"": Variant()}, "exact")
    catalog = Catalog({}, {name: Model(name, (Version("v1", name),), "v1") for name in ("small", "opus")}, {})
    spec = RunSpec(RUN, "eval one", {}, FilesSource("r"), None, Row(), catalog, Policy({}), {})
    prepared = Prepared("one", Path("evals/one"), asked, EvalMade(200, False, 0, {}), spec, True)
    whole = evaluate(asked.names, rows, StopRule())
    found = Found(prepared, EvalSeen(rows, 200, 0, 0, 2_200_000), whole, None, RunStatus(RUN, "eval one", "done"))
    section = compared.evaluations(Beside(evaluations=(found,)))
    assert section is not None
    (table,) = section.parts
    assert isinstance(table, Table)
    assert table.caption == "one: 200 rows, scored by exact"
    assert [row[:2] for row in table.rows] == [("small", "100.0 %"), ("opus", "66.5 %")]
    assert table.note.startswith("the winner is small (wrong in at most 5 of 100")
    nobody = msgspec.structs.replace(found, evaluation=None)
    assert compared.evaluations(Beside(evaluations=(nobody,))) is None


def test_arms_of_an_experiment_have_their_cost_and_quality(tmp_path: Path) -> None:
    """As a store will hold them once experiments write them: the fields stand in the records today, empty."""
    made = make(40)
    page = write(tmp_path, made)
    for sink in ("results", "quality"):
        path = tmp_path / f"{sink}.jsonl"
        lines = path.read_bytes().splitlines()
        for n, line in enumerate(lines):
            arm = b'"arm":"new"' if n % 2 else b'"arm":"old"'
            lines[n] = line.replace(b'"experiment":null', b'"experiment":"e1"').replace(b'"arm":null', arm)
        path.write_bytes(b"\n".join(lines) + b"\n")
    assert call(["report", "--state", str(tmp_path / ".penstock"), "-o", str(page)]) == 0
    arms = {row["arm"]: row for row in Page(page).rows("Cost and latency by arm")}
    for n, arm in enumerate(("old", "new")):
        paid = [one.cost_nano for one in made.results[n::2]]
        assert (arms[arm]["results"], arms[arm]["$ per 1,000"]) == ("20", dollars(sum(paid) * 1000 // 20))
    assert sum(int(row["n"]) for row in Page(page).rows("Quality by arm")) == 40
    assert "Shares of arms over time" in Page(page).text


def test_a_file_that_is_no_report_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`-o results.jsonl` by mistake must not cost the results; an older report is replaced."""
    page = write(tmp_path, make(3))
    assert call(["report", "--state", str(tmp_path / ".penstock"), "-o", str(page)]) == 0
    before = (tmp_path / "results.jsonl").read_bytes()
    assert call(["report", "--state", str(tmp_path / ".penstock"), "-o", str(tmp_path / "results.jsonl")]) == 2
    assert (tmp_path / "results.jsonl").read_bytes() == before
    assert "is no report" in capsys.readouterr().err
    assert call(["report", "--state", str(tmp_path / ".penstock"), "--json", "-o", str(page)]) == 2


def test_quantiles_are_right_to_within_a_hundredth() -> None:
    """Whatever the values, and in few bins."""
    rng, sketch = random.Random(7), Sketch()
    values = sorted(rng.lognormvariate(5, 2) for _ in range(20_000))
    for value in values:
        sketch.add(value)
    for share in (0.5, 0.9, 0.99):
        exact = values[int(share * len(values)) - 1]
        assert sketch.quantile(share) == pytest.approx(exact, rel=0.011)
    assert Sketch().quantile(0.5) is None


@pytest.mark.parametrize("span_s", [1, 50, 5_000, 400_000, 1e9])
def test_a_timeline_holds_every_count_in_few_buckets(span_s: float) -> None:
    """However long the run, and in whatever order the rows come."""
    rng, line = random.Random(1), Timeline()
    for _ in range(2_000):
        line.add(AT + rng.random() * span_s, "m")
    buckets = line.buckets()
    assert sum(bucket.total for bucket in buckets) == 2_000
    assert len(buckets) <= MOST_BUCKETS
    assert all(wide % narrow == 0 for narrow, wide in zip(timeline.WIDTHS_S, timeline.WIDTHS_S[1:], strict=False))


CHROMIUM = shutil.which("chromium")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: the page's other promises are tested without it")
def test_a_browser_prints_the_page(tmp_path: Path) -> None:
    """A4, and the folded numbers too."""
    page, pdf = write(tmp_path, make(60, letters=3)), tmp_path / "report.pdf"
    assert CHROMIUM is not None
    flags = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}")
    command = [CHROMIUM, *flags, "--no-pdf-header-footer", f"--print-to-pdf={pdf}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert pdf.read_bytes().startswith(b"%PDF")
