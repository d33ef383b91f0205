"""`penstock models --task`: what was measured, what it costs, where items would go, and a plot of it."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from penstock.connectors.measured import Registry
from penstock.connectors.state import FolderState
from penstock.engine.flow.cells import Cell, Scored
from penstock.engine.registry.standings import scorer_of
from penstock.jobs import spec
from penstock.jobs.cli import call

JOB = """\
name: known
accounts: {{a: {{protocol: openai, base_url: "http://localhost:1/v1"}}}}
models:
  - {{name: cheap, account: a, model: c, price: {{input_per_million: 1, output_per_million: 1}},
     quality: {{sort: 0.95}}}}
  - {{name: good, account: a, price: {{input_per_million: 5, output_per_million: 5}},
     live: g, versions: [{{id: g, model: g}}, {{id: h, model: h}}]}}
  - {{name: top, account: a, model: t, price: {{input_per_million: 50, output_per_million: 50}},
     quality: {{sort: 0.97}}}}
tiers: {{1: [cheap, good, top]}}
source: {folder}/rows.jsonl
tasks:
  sort:
    tier: 1
    min_quality: 0.8
    prompt: "{{{{ text }}}}"
    params: {{max_tokens: 10}}
    sample: 1
    scorers: [exact]
sinks: {folder}/out.jsonl
state: {folder}/state
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """`cheap` turned out poor, `good` is good, of `top` nothing is known but what is declared."""
    (tmp_path / "rows.jsonl").write_text('{"text": "x"}\n')
    path = tmp_path / "job.yaml"
    path.write_text(JOB.format(folder=tmp_path))
    task = spec.load(path).policy.tasks["sort"]
    assert task.prompt is not None
    cells = [
        cell("cheap", 500, 1000, task.prompt.version, scorer_of(task) or ""),
        cell("good", 930, 1000, task.prompt.version, scorer_of(task) or ""),
        cell("good", 10, 10, "other", scorer_of(task) or ""),
    ]
    Registry(FolderState(tmp_path / "state"), "earlier", 1).end(cells)
    return path


def cell(model: str, good: int, n: int, prompt: str, scorer: str) -> Cell:
    return Cell(
        "sort", model, model[0], prompt, "p", items=n, results=n, calls=n, input=100 * n, output=10 * n,
        cost_nano=1_000 * n, cost_square=1_000.0**2 * n, ms_ln=6_000 * n, ms_ln2=6_000**2 * n,
        scores={scorer: Scored(good, {1000: good, 0: n - good})},
    )  # fmt: skip


def test_the_table_tells_bounds_costs_and_the_choice(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cost is that of today's price: 110 tokens at $5 a million are $0.55 per 1,000 items."""
    assert call(["models", str(job), "--task", "sort"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "→ good@g" in said
    assert "good: quality 0.930 (0.900–0.954, n = 1,000) measured" in said
    assert "$0.55" in said
    assert "cheap: quality 0.500" in said
    assert "under 0.8" in said
    assert "top: quality 0.97 declared" in said
    assert "other prompts of this task were measured too, and don't count: other" in said


def test_after_a_promotion_the_version_that_all_jobs_use_is_the_live_one(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--state", str(tmp_path / "state"))
    assert call(["rollout", "start", "good", "h", "--stages", "50", "--job", str(job), *where]) == 0
    assert places(job, capsys) == {"good@g": 0, "top@t": 1, "cheap@c": None}
    assert call(["rollout", "promote", "good", *where]) == 0
    assert places(job, capsys) == {"top@t": 0, "cheap@c": None, "good@g": None, "good@h": None}


def places(job: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, int | None]:
    capsys.readouterr()
    assert call(["models", str(job), "--task", "sort", "--json"]) == 0
    return {f"{row['model']}@{row['version']}": row["place"] for row in json.loads(capsys.readouterr().out)["models"]}


def test_machines_get_numbers(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["models", str(job), "--task", "sort", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    by_name = {row["model"]: row for row in told["models"]}
    assert [by_name[name]["place"] for name in ("good", "top", "cheap")] == [0, 1, None]
    accepted = by_name["good"]["accepted_usd"]
    assert accepted["low"] < 0.00055 / 0.93 < accepted["high"]
    assert by_name["good"]["latency_ms"] == pytest.approx(403.4, abs=0.1)
    assert (by_name["top"]["n"], by_name["top"]["accepted_usd"]) == (0, None)


def test_the_plot_is_a_whole_file(job: Path, tmp_path: Path) -> None:
    svg, page = tmp_path / "plot.svg", tmp_path / "plot.html"
    assert call(["models", str(job), "--task", "sort", "--plot", str(svg)]) == 0
    assert ElementTree.fromstring(svg.read_text()).tag == "{http://www.w3.org/2000/svg}svg"
    assert "accepted items" in svg.read_text()
    assert call(["models", str(job), "--task", "sort", "--plot", str(page)]) == 0
    assert page.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--task", "sorting"), "the job has no task 'sorting'; tasks: sort"),
        (("--plot", "x.svg"), "--sensitivity and --plot go with --task"),
        (("--task", "sort", "--plot", "x.png"), "name a file that ends in .svg or .html"),
    ],
)
def test_what_cannot_be_done_is_told(
    argv: tuple[str, ...], words: str, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["models", str(job), *argv]) != 0
    assert words in " ".join(capsys.readouterr().err.split())


def test_a_plan_goes_by_what_is_measured_as_the_run_would(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["plan", str(job), "--json"]) == 0
    assert [model["model"] for model in json.loads(capsys.readouterr().out)["models"]] == ["good"]


def test_nothing_measured_yet_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "job.yaml").write_text(JOB.format(folder=tmp_path))
    assert call(["models", str(tmp_path / "job.yaml"), "--task", "sort"]) == 0
    assert "declared" in capsys.readouterr().out
    assert call(["models", str(tmp_path / "job.yaml"), "--task", "sort", "--plot", str(tmp_path / "p.svg")]) != 0
    assert "nothing to draw" in capsys.readouterr().err
