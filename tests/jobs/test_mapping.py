"""`penstock.map`: a table in memory → the same kind of table, with answers. Whole runs on one Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import polars as pl
import psutil
import pyarrow as pa
import pytest

import penstock as ps
from penstock.connectors.base import Raw
from penstock.connectors.formats.lines import MAX_RECORD_BYTES
from penstock.connectors.reading.intake import Intake
from penstock.connectors.settings import FilesSource
from penstock.engine.errors import SpecError
from penstock.engine.items import NANO_PER_USD, Item, Position
from penstock.engine.router import Rejection, Router
from penstock.jobs.history import open_history
from penstock.jobs.sandbox import running_sandbox
from penstock.jobs.spec.digest import run_id
from penstock.workers.runspec import RunSpec
from tests.jobs.test_end_to_end import calls

TEXTS = ["a parcel is late", "the bill is wrong", "", "a third message"]
CHOICES = ["delivery", "billing"]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[str]:
    with running_sandbox(process=True) as url:
        yield url


@pytest.fixture
def asked(one_ray: None, sandbox: str, tmp_path: Path) -> dict[str, Any]:
    """Arguments of a call that all kinds of tables share."""
    account = {"base_url": f"{sandbox}/v1"}
    model = {"name": "m", **account, "model": "small", "price": {"input_per_million": 1, "output_per_million": 2}}
    return {
        "prompt": "Which? {{ text }}",
        "models": [model],
        "output": CHOICES,
        "state": str(tmp_path),
        "progress": False,
    }


def test_processes_of_a_local_ray_get_as_much_of_a_busy_machine_as_the_command(one_ray: None) -> None:
    """Ray's default would leave them what is left over, and lanes that get nothing fall silent."""
    import ray

    assert ray.get(ray.remote(lambda: os.nice(0)).remote()) == os.nice(0)


def test_a_local_ray_starts_nothing_that_has_nothing_to_do(one_ray: None) -> None:
    """Its dashboard is off here: then nobody reads what the scaler would report, nor what the log monitor prints."""
    running = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
    assert any("raylet" in line for line in running)
    assert not [line for line in running if "monitor.py" in line]


def check(rows: list[dict[str, Any]]) -> None:
    assert [row["text"] for row in rows] == TEXTS
    assert all(row["answer"] in CHOICES and row["error"] is None for row in rows)
    assert all(row["model"] == "m" and row["cost_usd"] > 0 for row in rows)


@pytest.mark.ray
def test_the_same_kind_of_table_comes_back_in_order_and_is_paid_for_once(asked: dict[str, Any], sandbox: str) -> None:
    """Rows of any kind hold the same content: pandas keeps its index, and the second call of a kind sends nothing."""
    rows = [{"text": text, "n": n} for n, text in enumerate(TEXTS)]
    check(ps.map(rows, **asked))
    paid = calls(sandbox).total()
    check(ps.map(rows, **asked))
    assert calls(sandbox).total() == paid

    frame = pd.DataFrame(rows, index=[7, 5, 3, 1])
    done = ps.map(frame, **asked)
    assert list(done.index) == [7, 5, 3, 1]
    check(done.astype(object).where(done.notna(), None).to_dict("records"))
    table = pa.Table.from_pylist(rows)
    check(ps.map(table, **asked).to_pylist())
    check(ps.map(pl.DataFrame(rows), **asked).to_dicts())
    reader = pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=2))
    check(ps.map(reader, **asked).read_all().to_pylist())
    import ray.data

    check(ray.data.from_arrow(table) and ps.map(ray.data.from_arrow(table), **asked).take_all())


@pytest.mark.ray
def test_a_bad_row_says_so_in_error_and_the_others_have_answers(asked: dict[str, Any]) -> None:
    rows = [{"text": "fine"}, {"other": "no text here"}, {"text": "fine too"}]
    done = ps.map(rows, **asked)
    assert [row["answer"] is not None for row in done] == [True, False, True]
    assert done[1]["error"].startswith(("template: ", "missing_field: "))


LONG = "x" * (MAX_RECORD_BYTES + 1)


@pytest.mark.ray
def test_rows_that_cannot_be_read_say_so_too(asked: dict[str, Any]) -> None:
    """They have no label: a year that Python does not know, text that is no UTF-8, a row over the limit. Of rows behind
    the call's own limit nothing is said."""
    times = pa.array([0, 1 << 50, 0, 0, 0], pa.timestamp("s"))
    texts = pa.array([b"fine", b"fine", b"no \xff UTF-8", LONG.encode(), b"not asked"]).view(pa.string())
    told = ps.map(pa.table({"text": texts, "at": times}), limit=4, **asked).select(["answer", "error"]).to_pylist()
    assert [row["answer"] is not None for row in told] == [True, False, False, False, False]
    starts = ["malformed: a value", "malformed: a value", "too_large: "]
    assert [row["error"].startswith(start) for row, start in zip(told[1:4], starts, strict=True)] == [True] * 3
    assert (told[0]["error"], told[4]["error"]) == (None, None)
    rows = ps.map([{"text": "fine"}, {"text": LONG}, {"text": "fine too"}], **asked)
    assert [row["answer"] is not None for row in rows] == [True, False, True]
    assert rows[1]["error"].startswith("too_large: ")


def test_a_call_whose_catalogue_changed_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another model behind the same name gives other answers; another price does not."""
    ran: list[RunSpec] = []

    def caught(spec: RunSpec, **_: object) -> None:
        ran.append(spec)
        raise KeyboardInterrupt

    monkeypatch.setattr("penstock.jobs.run.run", caught)
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text("{catalog: catalog.yaml, prompt: 'say {{ text }}', models: [m]}")
    for model, price in (("a", 1), ("a", 2), ("b", 2)):
        Path("catalog.yaml").write_text(
            "models: [{name: m, base_url: 'http://127.0.0.1:1/v1', "
            f"model: {model}, price: {{input_per_million: {price}, output_per_million: 1}}}}]"
        )
        with pytest.raises(KeyboardInterrupt):
            ps.map([{"text": "x"}], job="job.yaml")
    first, dearer, other = ran
    assert first.run_id == dearer.run_id != other.run_id
    assert first.sinks["results"] == dearer.sinks["results"] != other.sinks["results"]


def test_a_call_that_ran_before_an_upgrade_is_that_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls were once named without their catalogue. Such a run is gone on with, unless the catalogue changed since."""
    ran: list[RunSpec] = []

    def caught(spec: RunSpec, **_: object) -> None:
        ran.append(spec)
        raise KeyboardInterrupt

    def called() -> RunSpec:
        with pytest.raises(KeyboardInterrupt):
            ps.map([{"text": "x"}], prompt="say {{ text }}", models="sandbox/fast", state=str(tmp_path))
        return ran[-1]

    monkeypatch.setattr("penstock.jobs.run.run", caught)
    now = called()
    assert isinstance(now.source, FilesSource)
    asked = {"prompt": "say {{ text }}", "models": ["sandbox/fast"]}
    whole = {"id": None, "vars": {}, "base": os.getcwd(), "rows": Path(now.source.path).name, "job": asked}
    digest = blake2b(msgspec.json.encode(whole, order="sorted"), digest_size=8).hexdigest()
    assert called() == now
    for stored, goes_on in ((now.fingerprint, True), ({**now.fingerprint, "model": "another"}, False)):
        spec = msgspec.structs.replace(now, run_id=run_id(f"map-{digest}", {}), fingerprint=stored)
        open_history(now.state).save_spec(spec)
        assert (called().name == f"map-{digest}") == goes_on


def test_what_cannot_stand_in_a_job_is_refused_in_words(tmp_path: Path) -> None:
    for value in (object(), "half a pair: \ud800"):
        with pytest.raises(SpecError, match="can't stand in a job"):
            ps.map([{"text": "x"}], prompt="a", models="sandbox/fast", output={"choices": [value]}, state=str(tmp_path))


@pytest.mark.ray
def test_a_budget_that_ends_it_is_an_error_and_a_larger_one_goes_on(asked: dict[str, Any], sandbox: str) -> None:
    """Half a table would look like a whole one; what was answered under the small budget is not paid for again."""
    rows = [{"text": f"{'long ' * 50}{n}"} for n in range(300)]
    before = calls(sandbox).total()
    with pytest.raises(ps.Spent, match="goes on where it was"):
        ps.map(rows, budget_usd=0.01, **asked)
    check_all = ps.map(rows, budget_usd=10, **asked)
    assert all(row["answer"] in CHOICES for row in check_all)
    assert calls(sandbox).total() - before == 300


def test_what_is_no_table_and_columns_that_are_taken_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ps.SpecError, match="this is a int"):
        ps.map(5, prompt="x", models="groq/m", state=str(tmp_path))
    with pytest.raises(ps.SpecError, match="adds: answer; rename"):
        ps.map([{"answer": 1}], prompt="x", models="groq/m", state=str(tmp_path))
    with pytest.raises(ps.SpecError, match="no such column"):
        ps.map([{"a": 1}], id="b", prompt="x", models="groq/m", state=str(tmp_path))
    with pytest.raises(ps.SpecError, match="no such kind of state"):
        ps.map([{"a": 1}], prompt="x", models="groq/m", state="gs://bucket/x")
    with pytest.raises(ps.SpecError, match="row 0 can't be written as JSON"):
        ps.map([{"a": "half a pair \ud800"}], prompt="x", models="groq/m", state=str(tmp_path))
    with pytest.raises(ps.SpecError, match="row is a str"):
        ps.map([{"a": 1}], job={"prompt": "x", "models": ["groq/m"], "row": "id"}, state=str(tmp_path))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".jsonl"]


WALLED = {
    "accounts": {"us": {"protocol": "openai", "base_url": "https://us.example/v1", "regions": ["us"]}},
    "models": [
        {"name": "cloud", "account": "us", "model": "m", "price": "free"},
        {"name": "own", "worker": "vllm", "model": "x/y", "hour_usd": 1, "regions": ["eu"]},
    ],
    "walls": {"public": {}, "health": {"self_hosted": True}},
    "unknown_wall": "public",
    "row": {"id": "{{ n }}", "attributes": {"sensitivity": "{{ class }}", "tenant": "{{ shop }}"}},
    "tasks": {"t": {"models": ["cloud", "own"], "prompt": "say {{ text }}"}},
    "state": "of-the-job",
    "budgets": [{"usd": 5, "per": "day"}, {"usd": 1, "tenant": "*"}],
}


def test_the_jobs_walls_tenants_budgets_and_state_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `ps.map(…, job=…)` would run: a row that the job would not send to the cloud isn't sent there."""
    ran: list[RunSpec] = []

    def caught(spec: RunSpec, **_: object) -> None:
        ran.append(spec)
        raise KeyboardInterrupt

    monkeypatch.setattr("penstock.jobs.run.run", caught)
    monkeypatch.chdir(tmp_path)
    row = {"n": 1, "text": "patient X", "class": "health", "shop": "a"}
    for state in (None, "elsewhere"):
        with pytest.raises(KeyboardInterrupt):
            ps.map([row], job=WALLED, budget_usd=2, state=state)
    spec, elsewhere = ran
    line = Path(spec.source.path).read_bytes().strip() if isinstance(spec.source, FilesSource) else b""
    item = Intake(spec.run_id, "rows", spec.row, spec.policy, spec.catalog.models, 0, spec.vars).item(
        Raw(data=line, position=Position("a", 0, 0), object_id="o"), 0.0
    )
    assert isinstance(item, Item)
    assert (item.attributes.sensitivity, item.attributes.tenant, item.custom_id) == ("health", "a", "0")
    route = Router(spec.catalog, spec.policy).route(item.attributes, item.request, item.item_id)
    assert not isinstance(route, Rejection)
    assert [candidate.model for candidate in route.candidates] == ["own"]
    assert {(b.limit_nano, b.per, b.tenant) for b in spec.budgets} == {
        (5 * NANO_PER_USD, "day", None),
        (1 * NANO_PER_USD, None, "*"),
        (2 * NANO_PER_USD, None, None),
    }
    assert (spec.state, elsewhere.state) == (str(tmp_path / "of-the-job"), str(tmp_path / "elsewhere"))
    assert spec.run_id == elsewhere.run_id
