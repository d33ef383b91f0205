"""The jobs of the docs as they stand there, the whole one and the smallest, with a real small model on vLLM as their
own worker; only addresses, keys and the model's path are replaced. What the hours of the engine cost is on the bill,
once, and what it measured is in the next plan."""

from __future__ import annotations

import importlib.util
import json
import re
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from infra.local.model import small_model
from penstock.engine.pricing import GpuClock
from penstock.jobs.cli import call
from penstock.jobs.sandbox import Settings, running_sandbox
from penstock.workers.books.gpu_bill import clocks_in
from tests.conftest import ray_of_a_file
from tests.jobs.test_end_to_end import message, write

pytestmark = [
    pytest.mark.ray,
    pytest.mark.vllm,
    pytest.mark.long,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: uv sync --extra cpu"),
]

Json = dict[str, Any]
DOCS = (Path(__file__).parents[2] / "docs" / "job-file.md").read_text()
KEYS = {"ANTHROPIC_API_KEY": "good", "GROQ_API_KEY": "good"}
HOUR_USD = 0.10
"""Of `small`, in the docs' catalogue."""
DATE = "2026-11-24"
CHOICES = {"delivery", "billing", "product", "other"}


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    with ray_of_a_file(KEYS):
        yield


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_sandbox(Settings(token="good"), process=True) as url:
        yield url


@pytest.fixture
def folder(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the docs' catalogue, in which the test stands."""
    (catalog,) = (text for mark, text in blocks() if mark == "catalog")
    places = {
        "https://api.anthropic.com": url,
        "https://api.groq.com/openai/v1": f"{url}/v1",
        "HuggingFaceTB/SmolLM2-135M-Instruct": str(small_model()),
    }
    (tmp_path / "catalog.yaml").write_text(replaced(catalog, places))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks() -> list[tuple[str, str]]:
    """(mark, text) of the YAML of the docs' page."""
    found = re.finditer(r"^```yaml([^\n]*)\n(.*?)^```", DOCS, re.DOTALL | re.MULTILINE)
    return [(match[1].strip(), match[2]) for match in found]


def job_with(words: str) -> str:
    """The docs' job that holds these words."""
    return next(text for mark, text in blocks() if not mark and words in text)


def replaced(text: str, places: dict[str, str]) -> str:
    for old, new in places.items():
        assert old in text
        text = text.replace(old, new)
    return text


def lines(path: Path) -> list[Json]:
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def own_nano(costs: list[Json]) -> int:
    """All that the bill says of the own engine: its calls and its closing lines."""
    return sum(round(line["usd"] * 1e9) for line in costs if line["basis"] == "amortised")


def clock_of(folder: Path) -> GpuClock:
    """The engine's hours, as the state holds them."""
    (path,) = folder.glob(".penstock/runs/*/gpu")
    return clocks_in(path.read_bytes())["small@v1"]


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def seconds(nano: int) -> float:
    return nano / 1e9 / HOUR_USD * 3600


def test_the_whole_job_runs_on_its_own_worker_and_pays_its_hours_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each row at its tier, behind its wall, once. The amortised lines with their adjustments are hours × $/hour, to
    the nano-dollar; the hours are not less than the engine served and not more than the commands lasted. A second
    command with new work finds the loaded engine and bills its own hours alone."""
    (folder / "job.yaml").write_text(job_with("name: label-messages"))
    for part in range(2):
        write(folder / f"in/{DATE}/m{part}.jsonl", [message(part * 60 + n) for n in range(60)])
    run = ["run", "job.yaml", "--set", f"date={DATE}"]
    out = folder / f"out/{DATE}"

    assert planned_s(run, capsys) is None, "nobody has measured it"
    began = time.monotonic()
    assert call(run) == 0
    lasted = time.monotonic() - began
    results, costs = lines(out / "results.jsonl"), lines(out / "costs.jsonl")
    assert [row["order_id"] for row in results] == list(range(120))
    assert not lines(out / "results.dead_letters.jsonl")
    for n, row in enumerate(results):
        told = row["penstock"]
        assert (told["tier"], told["model"]) == ((1, "opus") if n % 10 == 0 else (3, "small"))
        assert row["answer"] in CHOICES or n % 10 == 0
    own = [row["penstock"] for row in results if row["penstock"]["model"] == "small"]
    assert {(told["mode"], told["cost_basis"], told["model_version"]) for told in own} == {("own", "amortised", "v1")}
    assert all(told["tokens"]["output"] > 0 and told["cost_usd"] > 0 for told in own)
    sampled = {row["penstock"]["item_id"] for row in results if row["penstock"]["sampled"]}
    assert {sample["item_id"] for sample in lines(out / "results.quality.jsonl")} == sampled

    first = own_nano(costs)
    assert first == clock_of(folder).total_nano(0.0)
    calls = [(at(attempt["started_at"]), attempt["ms"] / 1000) for told in own for attempt in told["attempts"]]
    served = max(start + took for start, took in calls) - min(start for start, _ in calls)
    adjusted = {line["entry_id"].rpartition(":")[2]: line for line in costs if line["role"] == "adjustment"}
    load_s = seconds(round(adjusted["load"]["usd"] * 1e9))
    assert load_s > 2, "vLLM was imported"
    assert load_s + served < seconds(first) < lasted
    metered = sum(round(line["usd"] * 1e9) for line in costs if line["basis"] == "metered")
    assert metered == sum(round(r["penstock"]["cost_usd"] * 1e9) for r in results if r["penstock"]["tier"] == 1)

    write(folder / f"in/{DATE}/m2.jsonl", [message(120 + n) for n in range(20)])
    known = planned_s(run, capsys)
    assert known is not None
    assert known["likely"] == pytest.approx(served / len(own) * 126, rel=0.3), "the engine was kept busy"
    began = time.monotonic()
    assert call(run) == 0
    lasted = time.monotonic() - began
    costs = lines(out / "costs.jsonl")
    assert [row["order_id"] for row in lines(out / "results.jsonl")] == list(range(140))
    assert len({line["entry_id"] for line in costs}) == len(costs)
    both = own_nano(costs)
    assert both == clock_of(folder).total_nano(0.0)
    assert 0 < seconds(both - first) < lasted
    assert len(engines(folder)) == 1, "the second command found it loaded"

    capsys.readouterr()
    assert call(run) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert own_nano(lines(out / "costs.jsonl")) == both


def planned_s(run: list[str], capsys: pytest.CaptureFixture[str]) -> Json | None:
    """How long tier 3 takes, as the plan has it for all rows."""
    capsys.readouterr()
    assert call(["plan", *run[1:], "--json"]) == 0
    (tier,) = (one for one in json.loads(capsys.readouterr().out)["tiers"] if one["tier"] == 3)
    return tier["seconds"]


def engines(folder: Path) -> set[str]:
    """Those that served, by name: a new one at each start."""
    logs = folder.glob(".penstock/logs/*/worker-engine*")
    return {entry["worker"] for log in logs for entry in lines(log) if entry.get("event") == "worker serves"}


def test_the_smallest_job_runs_on_its_own_worker(folder: Path) -> None:
    """In Parquet; `models:` names the catalogue's own model."""
    text = replaced(job_with("sinks: labels.parquet\n"), {"anthropic/claude-haiku-4-5": "small"})
    (folder / "job.yaml").write_text(text + "catalog: catalog.yaml\nrow: {attributes: {sensitivity: public}}\n")
    (folder / "messages.csv").write_text("text\n" + "".join(f"where is parcel {n}?\n" for n in range(40)))
    assert call(["run", "job.yaml"]) == 0
    table = pq.read_table(folder / "labels.parquet")
    assert table.num_rows == 40
    assert set(table["answer"].to_pylist()) <= CHOICES
    assert set(table["penstock_model"].to_pylist()) == {"small"}
    costs = pq.read_table(folder / "labels.costs.parquet").to_pylist()
    assert round(sum(line["usd"] for line in costs) * 10**9) == clock_of(folder).total_nano(0.0)
