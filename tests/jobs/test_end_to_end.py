# ruff: noqa: E501 - job files and rows stand here as people write them
"""Whole jobs as people run them, through the command line, on one Ray, against pretend providers: the job of SURFACES,
a zoo of bad input, walls under attack, wrong keys and addresses. What was offered ends exactly once, always."""

from __future__ import annotations

import gzip
import json
import secrets
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import penstock as ps
from penstock.connectors.ledger import LedgerClient
from penstock.connectors.state import open_state
from penstock.engine.budget import Budget, budget_keys
from penstock.jobs.cli import call
from penstock.jobs.sandbox import Behaviour, Faults, Settings, running_sandbox
from tests.conftest import ray_of_a_file

pytestmark = pytest.mark.ray

Json = dict[str, Any]
WRONG_KEY = "sk-wrong-0123456789abcdef"


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    with ray_of_a_file({"E2E_KEY": "good", "E2E_WRONG_KEY": WRONG_KEY}):
        yield


@pytest.fixture(scope="module")
def us() -> Iterator[str]:
    with running_sandbox(process=True) as url:
        yield url


@pytest.fixture(scope="module")
def eu() -> Iterator[str]:
    with running_sandbox(Settings(token="good"), process=True) as url:
        yield url


def stats(url: str) -> Json:
    with urllib.request.urlopen(f"{url}/stats", timeout=10) as reply:
        return json.loads(reply.read())


def calls(url: str) -> Counter[str]:
    """Calls by model, since the sandbox came up."""
    return Counter({name: model["calls"] for name, model in stats(url)["models"].items()})


def lines(path: Path) -> list[Json]:
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def write(path: Path, rows: list[Json]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def penstock(*argv: str | Path) -> int:
    return call([str(arg) for arg in argv])


def request(label: str, text: str = "hello", model: str = "auto", **metadata: str) -> Json:
    named = {f"penstock-{name}": value for name, value in metadata.items()}
    body = {"model": model, "max_tokens": 5, "temperature": 0, "messages": [{"role": "user", "content": text}]}
    return {"custom_id": label, "method": "POST", "url": "/v1/chat/completions", "body": {**body, "metadata": named}}


# ---- the job of SURFACES

CATALOG = """\
accounts:
  anthropic: {{protocol: anthropic, base_url: "{us}", api_key: "env:E2E_KEY", regions: [us], no_train: true,
              limits: {{rpm: 400000, input_tpm: 20000000, output_tpm: 4000000, concurrency: 256}}}}
  groq: {{protocol: openai, base_url: "{us}/v1", api_key: "env:E2E_KEY", regions: [us]}}
  own: {{protocol: openai, base_url: "{eu}/v1", api_key: "env:E2E_KEY", regions: [eu]}}
models:
  - {{name: opus, account: anthropic, model: claude-opus-4-6, origin: us, price: {{input_per_million: 5, output_per_million: 25}}}}
  - {{name: groq-llama, account: groq, model: llama-3.3-70b-versatile, latency: realtime, origin: us, licence: llama}}
  - {{name: small, account: own, origin: us, price: {{input_per_million: 0.1, output_per_million: 0.1}},
     live: v1, versions: [{{id: v1, model: small-135m, revision: main}}], quality: {{classification: 0.82}}}}
tiers: {{1: [opus], 2: [groq-llama, small], 3: [small, groq-llama]}}
walls:
  public: {{}}
  eu-only: {{regions: [eu]}}
  health: {{self_hosted: true, origin: [us, eu], sample: redact}}
unknown_wall: refuse
"""
JOB = """\
name: label-messages
catalog: catalog.yaml
vars: {date: required}
source: {type: files, path: "in/{{ vars.date }}/*.jsonl"}
row:
  id: "{{ order_id }}"
  keep: [order_id, shop]
  attributes: {task: "{{ kind }}", sensitivity: "{{ class }}", subject: "{{ customer }}", unit: "{{ customer }}"}
tasks:
  classification:
    tier: 3
    min_quality: 0.8
    prompt: {system: Label messages for a shop., user: "{{ text }}"}
    output: {choices: [delivery, billing, product, other], on_invalid: ask_again}
    params: {max_tokens: 8, temperature: 0}
    sample: 0.2
    scorers: [{type: exact, expected: "{{ label }}"}]
  coding: {tier: 1, prompt: "{{ text }}"}
rules:
  - {when: {task: coding, latency: realtime}, use: [groq-llama, opus]}
  - {when: {max_cost_usd: {lt: 0.001}}, tier: 3}
sinks:
  results: {type: files, path: "out/{{ vars.date }}/results.jsonl"}
  costs: {type: files, path: "out/{{ vars.date }}/costs.jsonl"}
budgets: [{usd: 25}, {usd: 100, per: day, tenant: "*"}]
max_dead_letters: 0.01
state: .penstock/
"""
CHOICES = {"delivery", "billing", "product", "other"}


def message(n: int) -> Json:
    coding = n % 10 == 0
    return {
        "order_id": n,
        "shop": f"shop-{n % 3}",
        "kind": "coding" if coding else "classification",
        "class": "public" if coding or n % 3 else "eu-only",
        "customer": f"c{n % 90}",
        "text": f"message {n} about a parcel",
        "label": "delivery",
    }


def test_the_job_of_surfaces_runs_as_it_stands(
    tmp_path: Path, us: str, eu: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With addresses and keys replaced, wider limits, and an API in the place of the own engine: each row at its tier,
    behind its wall, once, in input order, paid to the nano-dollar; a second run has nothing to do; a new file under the prefix is new work; one item's story is told."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "catalog.yaml").write_text(CATALOG.format(us=us, eu=eu))
    (tmp_path / "job.yaml").write_text(JOB)
    for part in range(2):
        write(tmp_path / f"in/2026-11-24/m{part}.jsonl", [message(part * 150 + n) for n in range(150)])
    before = calls(us), calls(eu)
    run = ("run", "job.yaml", "--set", "date=2026-11-24")
    assert penstock("run", "job.yaml") == 2, "the var has no value"
    assert penstock("plan", *run[1:]) == 0
    assert penstock(*run) == 0

    out = tmp_path / "out/2026-11-24"
    results, costs = lines(out / "results.jsonl"), lines(out / "costs.jsonl")
    assert [r["order_id"] for r in results] == list(range(300))
    assert list(results[0]) == ["order_id", "shop", "answer", "penstock"]
    for n, result in enumerate(results):
        told = result["penstock"]
        assert (told["tier"], told["model"]) == ((1, "opus") if n % 10 == 0 else (3, "small"))
        assert told["subject"] == told["unit"] == f"c{n % 90}"
        assert told["custom_id"] == str(n)
        assert result["answer"] in CHOICES or n % 10 == 0
    assert not lines(out / "results.dead_letters.jsonl")
    assert calls(us) - before[0] == {"claude-opus-4-6": 30}, "walls and tiers"
    assert calls(eu) - before[1] == {"small-135m": 270}
    assert round(sum(c["usd"] for c in costs) * 1e9) == round(sum(r["penstock"]["cost_usd"] for r in results) * 1e9)
    sampled = {r["penstock"]["item_id"] for r in results if r["penstock"]["sampled"]}
    assert {q["item_id"] for q in lines(out / "results.quality.jsonl")} == sampled
    assert 20 < len(sampled) < 100

    capsys.readouterr()
    assert penstock(*run) == 0
    assert "nothing to do" in capsys.readouterr().out
    write(tmp_path / "in/2026-11-24/m2.jsonl", [message(300)])
    assert penstock(*run) == 0
    assert [r["order_id"] for r in lines(out / "results.jsonl")] == list(range(301))
    assert calls(us) - before[0] == {"claude-opus-4-6": 31}, "nothing is paid twice"

    capsys.readouterr()
    assert penstock("explain", results[7]["penstock"]["item_id"][:12]) == 0
    assert penstock("explain", "9") == 0
    story = capsys.readouterr().out
    assert "groq-llama: quality for classification unknown" in story
    assert "region us not in eu" in story
    for by in ("model", "tier", "task", "tenant", "day"):
        assert penstock("costs", "--by", by) == 0
    assert penstock("report") == 0
    assert "Traceback" not in capsys.readouterr().out
    assert [kind for kind, _ in audited(capsys)][:4] == ["run_started", "policy", "wall_refusals", "run_ended"]
    walled = {"refused": {"eu-only": {"groq-llama": 90}}, "dead_letters": {}}
    assert [facts for kind, facts in audited(capsys) if kind == "wall_refusals"][-1] == walled
    assert [facts["results"] for kind, facts in audited(capsys) if kind == "run_ended"] == [300, 300, 301]


def audited(capsys: pytest.CaptureFixture[str]) -> list[tuple[str, Json]]:
    """What the audit log says, once it was verified."""
    assert penstock("audit", "verify") == 0
    capsys.readouterr()
    assert penstock("audit", "list", "--json") == 0
    return [(entry["kind"], entry["facts"]) for entry in json.loads(capsys.readouterr().out)]


@pytest.mark.long
def test_an_edited_prompt_is_told_before_answers_mix(
    tmp_path: Path, us: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The smallest job, in Parquet: a trial beside it, then the edit is refused, accepted, or starts over."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PENSTOCK_SANDBOX", us)
    (tmp_path / "messages.csv").write_text("id,text\n" + "".join(f"{n},text {n}\n" for n in range(40)))
    job = 'source: messages.csv\nprompt: "{{ text }}?"\noutput: {choices: [a, b]}\nmodels: [sandbox/claude-haiku-4-5]\n'
    path = tmp_path / "job.yaml"
    path.write_text(job + "sinks: labels.parquet\n")
    assert penstock("run", "job.yaml", "--limit", "3") == 0
    assert "── " in capsys.readouterr().out
    assert not (tmp_path / "labels.parquet").exists()
    assert penstock("run", "job.yaml") == 0
    table = pq.read_table(tmp_path / "labels.parquet")
    assert table["id"].to_pylist() == [str(n) for n in range(40)]
    assert set(table["answer"].to_pylist()) <= {"a", "b"}
    assert str(table.schema.field("penstock_cost_usd").type) == "decimal128(18, 9)"
    path.write_text(path.read_text().replace("}}?", "}}!"))
    assert penstock("run", "job.yaml") == 2
    assert "changed: task default: prompt" in capsys.readouterr().err
    assert penstock("run", "job.yaml", "--accept-changes") == 0
    assert penstock("run", "job.yaml", "--fresh") == 0
    assert "40 results" in capsys.readouterr().out
    told = [(kind, facts) for kind, facts in audited(capsys) if kind in ("job_changed", "deletion")]
    assert [kind for kind, _ in told] == ["job_changed", "deletion"]
    assert told[0][1] == {"changed": ["task default: prompt"]}


def test_a_run_that_goes_on_has_spent_what_it_paid_before_it_had_a_budget(
    tmp_path: Path, us: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another state, too, that knows nothing of the run: nothing more is sent."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PENSTOCK_SANDBOX", us)
    job = 'source: {type: files, path: "in/*.jsonl"}\nprompt: "{{ text }}?"\nmodels: [sandbox/claude-haiku-4-5]\n'
    job += "params: {max_tokens: 2}\n"
    (tmp_path / "job.yaml").write_text(job + "sinks: out.jsonl\n")
    write(tmp_path / "in/1.jsonl", [{"text": f"text {n}"} for n in range(100)])
    assert penstock("run", "job.yaml") == 0
    paid = sum(line["usd"] for line in lines(tmp_path / "out.costs.jsonl"))
    before = calls(us)
    write(tmp_path / "in/2.jsonl", [{"text": f"more {n}"} for n in range(20)])
    (tmp_path / "job.yaml").write_text(job + f"sinks: out.jsonl\nbudgets: [{{usd: {paid:.9f}}}]\n")
    assert penstock("run", "job.yaml", "--state", "elsewhere") == 3
    assert calls(us) == before


async def test_a_run_works_inside_a_notebooks_loop(tmp_path: Path, us: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`penstock.run(dict)`, `plan` and `arun` beside a running loop; openai-batch in, rows out, parts and manifest."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PENSTOCK_SANDBOX", us)
    with gzip.open(tmp_path / "in.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(request(f"c{n}", f"text {n}")) + "\n" for n in range(50))
    job: Json = {
        "name": "n",
        "source": "in.jsonl.gz",
        "models": ["sandbox/claude-haiku-4-5"],
        "sinks": "out/",
        "shape": "rows",
    }
    assert ps.plan(job).fits
    result = await ps.arun(job, progress=False)
    assert result.ok
    assert ps.run(job, progress=False).nothing_to_do
    found = [row for part in sorted((tmp_path / "out").glob("part-*.jsonl")) for row in lines(part)]
    assert [row["penstock"]["custom_id"] for row in found] == [f"c{n}" for n in range(50)]
    manifest = json.loads((tmp_path / "out/_manifest.json").read_text())
    assert (manifest["rows"], [f["rows"] for f in manifest["files"]]) == (50, [50])
    assert result.to_arrow().num_rows == 50


def test_one_big_file_over_several_lanes_comes_out_in_order(
    tmp_path: Path, us: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four lanes in two processes; a line of output for each of input, in its order."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PENSTOCK_SANDBOX", us)
    count = 9_000
    write(tmp_path / "big.jsonl", [{"n": n, "text": f"row {n} " + "x" * 600} for n in range(count)])
    (tmp_path / "job.yaml").write_text(
        'source: big.jsonl\nprompt: "Say {{ text[:20] }}"\nparams: {max_tokens: 2}\nrow: {keep: [n]}\n'
        "models: [sandbox/claude-haiku-4-5]\nsinks: out.jsonl\nexecution: {lanes: 4, lane_actors: 2}\n"
    )
    assert penstock("run", "job.yaml") == 0
    results = lines(tmp_path / "out.jsonl")
    assert [r["n"] for r in results] == list(range(count))
    assert len({r["penstock"]["source"]["split"] for r in results}) > 2


def test_a_job_without_a_file_runs_from_the_command_line(
    tmp_path: Path, us: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command again is the same run; another choice of answers is another, and its place is the first one's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PENSTOCK_SANDBOX", us)
    (tmp_path / "messages.csv").write_text("id,text\n" + "".join(f"{n},text {n}\n" for n in range(20)))
    command = ("run", "messages.csv", "--prompt", "{{ text }}?", "--model", "sandbox/claude-haiku-4-5")
    choices = ("--choice", "yes", "--choice", "no")
    assert penstock(*command, *choices, "-o", "labels.jsonl") == 0
    results = lines(tmp_path / "labels.jsonl")
    assert [row["id"] for row in results] == [str(n) for n in range(20)]
    assert {row["answer"] for row in results} == {"yes", "no"}
    capsys.readouterr()
    assert penstock(*command, *choices, "-o", "labels.jsonl") == 0
    assert "nothing to do" in capsys.readouterr().out
    assert penstock(*command, "-o", "labels.jsonl") == 2
    assert "labels.jsonl" in capsys.readouterr().err


def test_a_cluster_that_does_not_see_the_state_is_refused_before_anything_is_sent(
    tmp_path: Path, us: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each process stands in a folder of its own, as each node may have a disk of its own: none shares the budget."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PENSTOCK_SANDBOX", us)
    write(tmp_path / "in.jsonl", [{"text": "hello"}])
    job = 'source: in.jsonl\nprompt: "{{ text }}"\nmodels: [sandbox/claude-haiku-4-5]\nsinks: out.jsonl\n'
    (tmp_path / "job.yaml").write_text(job + "budgets: [{usd: 1}]\nstate: /proc/self/cwd/state\n")
    before = calls(us)
    assert penstock("run", "job.yaml") == 2
    assert "the state: on node" in capsys.readouterr().err
    assert calls(us) == before
    assert not list(tmp_path.rglob(".penstock-mark-*"))
    assert penstock("run", "job.yaml", "--state", "state") == 0


# ---- dead letters

FUSED = """\
name: fused
source: rows.jsonl
prompt: "What is {{{{ topic }}}} about?"
params: {{max_tokens: 2}}
accounts: {{a: {{protocol: openai, base_url: "{url}/v1", limits: {{concurrency: 4}}}}}}
models: [{{name: m, account: a, model: slow, price: free}}]
sinks: out.jsonl
max_dead_letters: {allowed}
"""


def test_more_dead_letters_than_the_fuse_allows_stop_a_run_which_goes_on_with_a_wider_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 5, most rows untouched; then none is sent twice, and the dead ones stay dead."""
    monkeypatch.chdir(tmp_path)
    dead: list[Json] = [{"n": n} for n in range(20)]
    write(tmp_path / "rows.jsonl", [*dead, *({"n": n, "topic": f"topic {n}"} for n in range(20, 420))])
    with running_sandbox(Settings(models={"slow": Behaviour(latency_ms=50)}), process=True) as url:
        (tmp_path / "job.yaml").write_text(FUSED.format(url=url, allowed=10))
        assert penstock("run", "job.yaml") == 5
        assert "20 dead letters of" in " ".join(capsys.readouterr().out.split())
        assert calls(url).total() < 400
        (tmp_path / "job.yaml").write_text(FUSED.format(url=url, allowed=20))
        assert penstock("run", "job.yaml") == 0
        assert calls(url) == {"slow": 400}
    assert len(lines(tmp_path / "out.jsonl")) == 400
    assert len(lines(tmp_path / "out.dead_letters.jsonl")) == 20


@pytest.mark.long
def test_dead_letters_are_listed_mended_and_sent_again(
    tmp_path: Path, us: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows that the prompt can't be made of, and one of no task: the prompt is mended, then they are sent as
    generation 1 of the same items; what dies again is sent again alone; what ended well is never sent twice."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PENSTOCK_SANDBOX", us)
    job = """\
name: letters
source: rows.jsonl
row: {keep: [n], attributes: {task: "{{ kind }}"}}
tasks:
  label: {prompt: "What is {{ topic }} about?", output: {choices: [a, b]}}
models: [sandbox/claude-haiku-4-5]
sinks: out.jsonl
"""
    (tmp_path / "job.yaml").write_text(job)
    rows: list[Json] = [{"n": n, "kind": "label", "topic": f"topic {n}"} for n in range(30)]
    for row in rows[::3]:
        del row["topic"]
    write(tmp_path / "rows.jsonl", [*rows, {"n": 30, "kind": "nobody", "topic": "none"}])
    before = calls(us).total()
    assert penstock("run", "job.yaml") == 5
    capsys.readouterr()
    assert penstock("dead-letters", "list", "job.yaml", "--json") == 0
    letters = json.loads(capsys.readouterr().out)
    assert Counter(letter["reason"] for letter in letters) == {"missing_field": 10, "unknown_task": 1}
    assert penstock("dead-letters", "replay", "job.yaml") == 2, "sending these again changes nothing by itself"
    assert "left: 10 missing_field" in capsys.readouterr().err
    assert calls(us).total() - before == 20

    (tmp_path / "job.yaml").write_text(job.replace("{{ topic }}", "{{ topic | default('this') }}"))
    assert penstock("dead-letters", "replay", "job.yaml", "--all", "--yes") == 5
    first = lines(tmp_path / "out.replay-1.jsonl")
    assert [(row["n"], row["penstock"]["generation"]) for row in first] == [(n, 1) for n in range(0, 30, 3)]
    died = {letter["item_id"] for letter in letters if letter["reason"] == "missing_field"}
    assert {row["penstock"]["item_id"] for row in first} == died
    assert calls(us).total() - before == 30

    again = (tmp_path / "job.yaml").read_text().replace("tasks:\n", 'tasks:\n  nobody: {prompt: "{{ topic }}?"}\n')
    (tmp_path / "job.yaml").write_text(again)
    assert penstock("dead-letters", "replay", "job.yaml", "--all", "--yes") == 0
    assert [(r["n"], r["penstock"]["generation"]) for r in lines(tmp_path / "out.replay-2.jsonl")] == [(30, 2)]
    capsys.readouterr()
    assert penstock("dead-letters", "replay", "job.yaml", "--all", "--yes") == 2
    assert "no dead letters to send again" in capsys.readouterr().err
    assert calls(us).total() - before == 31, "each item was paid for once"
    assert not any(row["penstock"]["maybe_paid"] for n in (1, 2) for row in lines(tmp_path / f"out.replay-{n}.jsonl"))


# ---- the zoo


def _zoo() -> list[tuple[bytes, str | None]]:
    """Lines of an openai-batch file, each with the reason it must end with; None: a result."""

    def encoded(line: Json) -> bytes:
        return json.dumps(line).encode()

    def body(text: bytes) -> bytes:
        head = (
            b'{"custom_id":"' + str(next(numbers)).encode() + b'","url":"/v1/chat/completions","body":{"model":"auto",'
        )
        return head + b'"messages":[{"role":"user","content":"x"}],' + text + b"}}"

    numbers = iter(range(1000))
    without = request("x")
    del without["custom_id"]
    return [
        (b"\xef\xbb\xbf" + encoded(request("first, behind a BOM")), None),
        (encoded(request("CRLF")) + b"\r", None),
        (b'{"custom_id": "cut", "body": {', "malformed"),
        (body(b'"stop":"\xff\xfe"'), "malformed"),
        (body(b'"x":' + b"[" * 10_000 + b"]" * 10_000), "malformed"),
        (body(b'"temperature":NaN'), "malformed"),
        (body(b'"temperature":-Infinity'), "malformed"),
        (body(b'"temperature":1e999'), "malformed"),
        (body(b'"max_tokens":1' + b"0" * 400), "bad_field"),
        (body(b'"max_tokens":-5'), "bad_field"),
        (b"\0\0\0", "malformed"),
        (b"[1, 2]", "malformed"),
        (b"null", "malformed"),
        (b'{"custom_id":"a","custom_id":"b","body":{}}', "malformed"),
        (encoded(request("lone surrogate", "\ud800")), "malformed"),
        (encoded(without), "missing_field"),
        (encoded({**without, "custom_id": None}), "missing_field"),
        (encoded({**without, "custom_id": 17}), "bad_field"),
        (encoded(request("i" * 100_000)), "bad_field"),
        (encoded(request("twice")), None),
        (encoded(request("twice", "another")), "duplicate"),
        (encoded(request("unknown model", model="gpt-9")), "unknown_model"),
        (encoded(request("unknown wall", sensitivity="zzz")), "unknown_sensitivity"),
        (encoded(request("odd tier", tier="nine")), "bad_field"),
        (encoded(request("typo", sensitivty="public")), "bad_field"),
        (encoded(request("long", "word " * 50_000)), "too_long"),
        (encoded({"custom_id": "no body"}), "missing_field"),
        (encoded({"custom_id": "odd body", "body": "x"}), "bad_field"),
        (encoded({"custom_id": "no messages", "body": {"model": "auto", "messages": []}}), "bad_field"),
        (encoded({"custom_id": "endpoint", "url": "/v1/embeddings", "body": {"model": "auto", "input": "x"}}), "unsupported"),
        (b'{"custom_id":"long line","body":{"messages":[{"role":"user","content":"' + b"a" * 100_000_000 + b'"}]}}', "too_large"),
        (encoded(request("last, no newline")), None),
    ]  # fmt: skip


def test_bad_requests_are_dead_letters_with_place_and_reason(
    tmp_path: Path, us: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Blank lines are nothing; every other line is a result or a dead letter that says where it stood and why; the
    originals are kept, long ones by head, length and hash. The run goes to its end and exits 5."""
    monkeypatch.chdir(tmp_path)
    zoo = _zoo()
    data = b"\n\n   \n".join(line for line, _ in zoo)
    (tmp_path / "in.jsonl").write_bytes(data)
    (tmp_path / "job.yaml").write_text(
        f'source: in.jsonl\naccounts: {{a: {{protocol: openai, base_url: "{us}/v1"}}}}\n'
        "models: [{name: m, account: a, model: m, price: free, context: 8000}]\n"
        "tiers: {3: [m]}\nwalls: {public: {}}\nunknown_wall: refuse\nsinks: out/r.jsonl\n"
    )
    text = (tmp_path / "in.jsonl").read_bytes()
    assert penstock("validate", "job.yaml") == 0
    good = [line for line, reason in zoo if reason is None]
    # Walls are declared: the good ones and those that get so far must say where they may go.
    text = text.replace(b'"metadata": {}', b'"metadata": {"penstock-sensitivity": "public"}')
    (tmp_path / "in.jsonl").write_bytes(text)
    assert penstock("run", "job.yaml") == 5
    results, letters = lines(tmp_path / "out/r.jsonl"), lines(tmp_path / "out/r.dead_letters.jsonl")
    assert len(results) == len(good)
    expected = Counter(reason for _, reason in zoo if reason)
    found = Counter(letter["reason"] for letter in letters)
    assert found == expected
    for letter in letters:
        at = letter["source"]["position"]
        assert text[at : at + 1] not in (b"", b"\n"), letter["message"]
        assert text[max(0, at - 1) : at] in (b"", b"\n"), "the position is a line's beginning"
        assert letter["message"]
    huge = next(letter for letter in letters if letter["reason"] == "too_large")
    assert huge["original_length"] > 100_000_000
    assert len(huge["original"]) <= 1_000_000
    capsys.readouterr()
    assert penstock("dead-letters", "list") == 0
    assert penstock("explain", "unknown model") == 0
    told = capsys.readouterr()
    assert "no model is named 'gpt-9'; there are auto, m" in " ".join(told.out.split())
    assert "Traceback" not in told.out + told.err


def test_bad_tables_and_rows_are_dead_letters_and_their_neighbours_are_answered(
    tmp_path: Path, us: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ragged CSV, missing, null and wrong-typed columns, Parquet cut short or damaged, gzip cut short, empty files:
    offered = results + dead letters, file by file."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "ragged.csv").write_bytes(
        b"\xef\xbb\xbfid,text,cls\r\nr1,hello,public\r\n\r\nr2,too,many,public\r\nr3,few\r\n"
        b'r4,"two\r\nlines",public\r\nr5,\xff,public\r\nr6,"open,public\r\n'
    )
    rows = [
        {"id": "j1", "text": "{{ 1 / 0 }}", "cls": "public"},
        {"id": "j2", "text": 5, "cls": "public"},
        {"id": "j3", "text": None, "cls": "public"},
        {"id": "j4", "cls": "public"},
        {"id": "j5", "text": "x", "cls": None},
        {"id": "j6", "text": "x", "cls": "secret"},
        {"id": ["j7"], "text": "x", "cls": "public"},
        {"id": None, "text": "x", "cls": "public"},
    ]
    write(folder / "rows.jsonl", rows)
    table = pa.table({"id": [f"p{n}" for n in range(400)], "text": ["x" * 9] * 400, "cls": ["public"] * 400})
    pq.write_table(table, folder / "whole.parquet", row_group_size=100)
    whole = (folder / "whole.parquet").read_bytes()
    pq.write_table(table.set_column(0, "id", pa.array([f"d{n}" for n in range(400)])), folder / "damaged.parquet", row_group_size=100)  # fmt: skip
    damaged = bytearray((folder / "damaged.parquet").read_bytes())
    damaged[20:300] = bytes(280)
    (folder / "damaged.parquet").write_bytes(damaged)
    (folder / "short.parquet").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.csv").write_bytes(b"")
    (folder / "blank.jsonl").write_bytes(b"\n \n")
    (folder / "twice.csv").write_bytes(b"id,id\n1,2\n")
    packed = gzip.compress("".join(json.dumps({"id": f"g{n}", "text": secrets.token_hex(9), "cls": "public"}) + "\n" for n in range(900)).encode())  # fmt: skip
    (folder / "short.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "job.yaml").write_text(
        'source: in/\nprompt: "Say {{ text }}"\nparams: {max_tokens: 2}\n'
        'row: {id: "{{ id }}", attributes: {sensitivity: "{{ cls }}"}}\n'
        f'accounts: {{a: {{protocol: openai, base_url: "{us}/v1"}}}}\n'
        "models: [{name: m, account: a, model: m, price: free}]\nwalls: {public: {}}\nsinks: out/r.jsonl\n"
    )
    assert penstock("plan", "job.yaml") == 0
    assert penstock("run", "job.yaml") == 5
    results, letters = lines(tmp_path / "out/r.jsonl"), lines(tmp_path / "out/r.dead_letters.jsonl")

    def ended(name: str) -> tuple[list[str], Counter[str]]:
        inside = [r for r in (*results, *letters) if f"/in/{name}@" in (r.get("penstock") or r)["source"]["split"]]
        assert len({(r.get("penstock") or r)["item_id"] for r in inside}) == len(inside)
        return [r["id"] for r in inside if "answer" in r], Counter(r["reason"] for r in inside if "reason" in r)

    assert ended("ragged.csv") == (["r1", "r4"], Counter(malformed=4))
    assert ended("rows.jsonl") == (["j1", "j2"], Counter(bad_field=2, missing_field=2, unknown_sensitivity=2))
    assert ended("whole.parquet")[0] == [f"p{n}" for n in range(400)]
    answered, lost = ended("damaged.parquet")
    assert len(answered) + lost["source_lost"] == 400
    assert answered[-300:] == [f"d{n}" for n in range(100, 400)]
    assert ended("short.parquet") == ended("twice.csv") == ([], Counter(source_lost=1))
    answered, lost = ended("short.jsonl.gz")
    assert answered == [f"g{n}" for n in range(len(answered))]
    assert (len(answered) > 100, lost) == (True, Counter(source_lost=1))
    assert ended("empty.csv") == ended("blank.jsonl") == ([], Counter())


@pytest.mark.long
def test_templates_that_misbehave_are_refused_or_cost_their_row_only(
    tmp_path: Path, us: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that reaches for attributes never gets them, one that loops for ever ends; no traceback."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.jsonl", [{"text": f"row {n}"} for n in range(3)])
    for n, prompt in enumerate(
        (
            "{{ text.__class__.__mro__ }}",
            "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
            "{{ text * 999999999 }}",
            "{{ cycler.__init__.__globals__.os.system('true') }}",
        )
    ):
        (tmp_path / f"job{n}.yaml").write_text(
            f'source: in.jsonl\nprompt: {json.dumps(prompt)}\naccounts: {{a: {{protocol: openai, base_url: "{us}/v1"}}}}\n'
            f"models: [{{name: m, account: a, model: m, price: free}}]\nsinks: out{n}.jsonl\n"
        )
        code = penstock("run", f"job{n}.yaml")
        letters = lines(tmp_path / f"out{n}.dead_letters.jsonl")
        told = capsys.readouterr()
        assert code == 2 or (code == 5 and len(letters) == 3), (prompt, code, told)
        assert not lines(tmp_path / f"out{n}.jsonl")
        assert "Traceback" not in told.out + told.err
    assert penstock("validate", "job0.yaml") in (0, 2)


# ---- a provider that hangs

HANGING = """\
source: rows.jsonl
tasks:
  t: {{prompt: "{{{{ text }}}}", params: {{max_tokens: 4}}, timeout_s: 2}}
accounts:
  hangs: {{protocol: openai, base_url: "{url}/v1", limits: {{concurrency: 8}}}}
  good: {{protocol: openai, base_url: "{us}/v1", limits: {{concurrency: 8}}}}
models:
  - {{name: first, account: hangs, model: first, price: {{input_per_million: 0, output_per_million: 0, per_request: 0.01}}}}
  - {{name: second, account: good, model: second, price: {{input_per_million: 0, output_per_million: 0, per_request: 0.002}}}}
tiers: {{3: [first, second]}}
sinks: out.jsonl
budgets: [{{usd: 10}}]
"""


@pytest.mark.parametrize("hang", [pytest.param(0.5, marks=pytest.mark.long), 1.0])
def test_a_provider_that_hangs_is_left_when_the_jobs_timeout_is_over(
    hang: float, tmp_path: Path, us: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It takes calls and never answers some, or any. An item asks it three times at most, then the next candidate
    answers; where nothing comes at all, those that are not at its worker yet don't wait for it. What was answered is on
    the bill; what was not costs nothing that is known, is marked, and counts as spent in the budget."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", [{"text": f"hello {n}"} for n in range(48)])
    settings = Settings(default=Behaviour(faults=Faults(hang=hang)), seed=1)
    before = calls(us)["second"]
    with running_sandbox(settings, process=True) as url:
        (tmp_path / "job.yaml").write_text(HANGING.format(url=url, us=us))
        assert penstock("run", "job.yaml") == 0
        took = stats(url)
    results, costs = lines(tmp_path / "out.jsonl"), lines(tmp_path / "out.costs.jsonl")
    assert len(results) == 48
    hung = answered = 0
    for row in results:
        told = row["penstock"]
        *tries, last = told["attempts"]
        assert (last["outcome"], last["model"]) == ("ok", told["model"])
        assert [each["outcome"] for each in tries] == ["timeout"] * len(tries)
        assert {each["model"] for each in tries} <= {"first"}
        assert all(2000 <= each["ms"] < 8000 and each["cost_usd"] == 0 for each in tries)
        assert len(tries) <= 3 - (told["model"] == "first")
        assert told["maybe_paid"] == bool(tries)
        assert told["cost_usd"] == (0.01 if told["model"] == "first" else 0.002)
        hung += len(tries)
        answered += told["model"] == "first"
    if hang < 1:
        assert 5 < answered < 48
        assert any(len(row["penstock"]["attempts"]) == 2 for row in results), "asked again, and answered"
    else:
        assert answered == 0
        assert sum(len(row["penstock"]["attempts"]) == 1 for row in results) >= 8, "what was not taken yet is not sent"
    assert hung > 5
    assert took["failed"]["hang"] + took["served"] == hung + answered
    assert calls(us)["second"] - before == 48 - answered
    paid = answered * 10_000_000 + (48 - answered) * 2_000_000
    assert sum(round(line["usd"] * 1e9) for line in costs) == paid
    assert sorted(line["model"] for line in costs if line["usd"]) == ["first"] * answered + ["second"] * (48 - answered)
    capsys.readouterr()
    assert penstock("status", "job.yaml", "--json") == 0
    batch = json.loads(capsys.readouterr().out)
    assert round(batch["penstock"]["forfeit_usd"] * 1e9) == hung * 10_000_000
    ((key, _),) = budget_keys((Budget(10**10),), batch["id"], None, 0.0)
    ledger = LedgerClient(open_state(".penstock"), batch["id"]).read(key)
    assert ledger is not None
    assert ledger.settled_nano + ledger.forfeit_nano == paid + hung * 10_000_000


# ---- walls

WALLED = """\
name: {name}
source: {name}.jsonl
accounts:
  us: {{protocol: openai, base_url: "{us}/v1", regions: [us]}}
  eu: {{protocol: openai, base_url: "{eu}/v1", api_key: "env:E2E_KEY", regions: [eu], no_train: true}}
models:
  - {{name: us-m, account: us, model: us-m, price: free}}
  - {{name: eu-m, account: eu, model: eu-m, price: free}}
tiers: {{3: [us-m, eu-m]}}
walls:
  public: {{}}
  personal: {{regions: [eu], no_train: true, sample: redact}}
  secret: {{regions: [eu], sample: never}}
sample: 1.0
scorers: [{{type: regex, pattern: "."}}]
sinks: {name}.out.jsonl
"""


def test_no_request_passes_its_wall(tmp_path: Path, us: str, eu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by pin, not by a missing, unknown or doubled sensitivity, not by a copied answer of another wall or tenant,
    and not in a quality sample. What each provider got is what the provider itself counted."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(WALLED.format(name="walls", us=us, eu=eu))
    walls = ("public", "personal", "secret")
    rows = [request(f"{wall} {n}", f"{wall} text {n}", sensitivity=wall) for wall in walls for n in range(20)]
    for tenant in ("a", "b"):
        for wall in walls:
            rows += [request(f"{wall} same {tenant}{n}", "the same", sensitivity=wall, tenant=tenant) for n in range(2)]
    rows += [
        request("pinned", "x", "us-m", sensitivity="personal"),
        request("none", "x"),
        request("unknown", "x", sensitivity="nope"),
        request("empty", "x", sensitivity=""),
        request("case", "x", sensitivity="Personal"),
    ]
    doubled = request("doubled", "x", sensitivity="public")
    doubled["body"]["metadata"]["sensitivity"] = "personal"
    write(tmp_path / "walls.jsonl", [*rows, doubled])
    before = calls(us), calls(eu)
    assert penstock("run", "job.yaml") == 5
    results = lines(tmp_path / "walls.out.jsonl")
    by_id = {r["penstock"]["item_id"]: r for r in results}
    for result in results:
        wall = result["custom_id"].split()[0]
        assert result["penstock"]["model"] == ("us-m" if wall == "public" else "eu-m")
        if result["penstock"]["copied_from"] is not None:
            original = by_id[result["penstock"]["copied_from"]]
            assert original["custom_id"][:-1] == result["custom_id"][:-1], "same wall, same tenant"
    assert len(results) == 72
    assert sum(r["penstock"]["copied_from"] is not None for r in results) == 6
    assert calls(us) - before[0] == {"us-m": 22}
    assert calls(eu) - before[1] == {"eu-m": 44}
    letters = {letter["custom_id"]: letter["reason"] for letter in lines(tmp_path / "walls.out.dead_letters.jsonl")}
    unknown = dict.fromkeys(("none", "unknown", "empty", "case"), "unknown_sensitivity")
    assert letters == {"pinned": "wall", **unknown, "doubled": "bad_field"}
    shown = Counter(
        (q["model"], q["input"] is None, q["output"] is None) for q in lines(tmp_path / "walls.out.quality.jsonl")
    )
    assert shown == {("us-m", False, False): 24, ("eu-m", True, True): 24}, "secret: never; personal: scores alone"


def test_a_provider_that_answers_with_another_model_is_told_and_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was asked for is answered by the next candidate; what was paid for the other answers is on the bill."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", [{"text": f"hello {n}"} for n in range(5)])
    with running_sandbox(Settings(models={"big-2026-01-01": Behaviour(answers_as="tiny")}), process=True) as url:
        (tmp_path / "job.yaml").write_text(f"""\
source: rows.jsonl
prompt: "{{{{ text }}}}"
accounts: {{a: {{protocol: openai, base_url: "{url}/v1", provider: sandbox}}}}
models:
  - {{name: big, account: a, model: big-2026-01-01, on_other_model: refuse, price: {{input_per_million: 1, output_per_million: 1}}}}
  - {{name: other, account: a, model: other, price: {{input_per_million: 1, output_per_million: 1}}}}
sinks: out.jsonl
""")
        assert penstock("run", "job.yaml") == 0
    told = capsys.readouterr()
    assert "ANOTHER MODEL ANSWERS: 'tiny'; its answers are refused" in " ".join((told.out + told.err).split())
    for row in lines(tmp_path / "out.jsonl"):
        first, second = row["penstock"]["attempts"]
        assert (first["model"], first["outcome"], second["model"]) == ("big", "other_model", "other")
        assert first["cost_usd"] > 0
    facts = [facts for kind, facts in audited(capsys) if kind == "other_model"]
    assert [(each["pinned"], each["answered"], each["what"]) for each in facts] == [("big-2026-01-01", "tiny", "other")]


def test_a_wall_holds_while_the_only_permitted_provider_is_down(
    tmp_path: Path, us: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are answered; the walled ones wait, go nowhere, and the run stops with what to mend (exit 4). Mended,
    it goes on, and only they are sent."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "job.yaml"
    path.write_text(WALLED.format(name="down", us=us, eu="http://127.0.0.1:9"))
    rows = [request(f"{n}", f"down {n}", sensitivity="personal" if n % 2 else "public") for n in range(40)]
    write(tmp_path / "down.jsonl", rows)
    before = calls(us)
    assert penstock("run", "job.yaml") == 4
    told = " ".join(capsys.readouterr().out.split())
    assert "account eu: it was never reached, is base_url right?" in told
    assert "run the job file again" in told
    assert calls(us) - before == {"us-m": 20}
    assert not lines(tmp_path / "down.out.dead_letters.jsonl")
    with running_sandbox(process=True) as eu:
        path.write_text(WALLED.format(name="down", us=us, eu=eu))
        assert penstock("run", "job.yaml", "--accept-changes") == 0
        assert calls(eu) == {"eu-m": 20}
    assert calls(us) - before == {"us-m": 20}
    assert [r["custom_id"] for r in lines(tmp_path / "down.out.jsonl")] == [str(n) for n in range(40)]


@pytest.mark.long
def test_a_wrong_key_falls_back_or_stops_and_costs_no_item(
    tmp_path: Path, eu: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """401 for every call: with another candidate all is answered there; without one nothing is a dead letter, the run
    stops with exit 4 and names the account."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.jsonl", [{"text": f"row {n}"} for n in range(1_500)])
    job = (
        'source: in.jsonl\nprompt: "{{ text }}"\nparams: {max_tokens: 2}\naccounts:\n'
        f'  bad: {{protocol: openai, base_url: "{eu}/v1", api_key: "env:E2E_WRONG_KEY"}}\n'
        f'  good: {{protocol: openai, base_url: "{eu}/v1", api_key: "env:E2E_KEY"}}\n'
        "models: [{name: m, account: bad, model: m, price: free}, {name: n, account: good, model: n, price: free}]\n"
    )
    (tmp_path / "two.yaml").write_text(job + "tiers: {3: [m, n]}\nsinks: two.jsonl\n")
    (tmp_path / "one.yaml").write_text(job + "tiers: {3: [m]}\nsinks: one.jsonl\n")
    assert penstock("run", "two.yaml") == 0
    assert {r["penstock"]["model"] for r in lines(tmp_path / "two.jsonl")} == {"n"}
    assert len(lines(tmp_path / "two.jsonl")) == 1_500
    capsys.readouterr()
    assert penstock("run", "one.yaml") == 4
    assert "account bad: its key is refused (HTTP 401: " in " ".join(capsys.readouterr().out.split())
    assert not lines(tmp_path / "one.jsonl")
    assert not lines(tmp_path / "one.dead_letters.jsonl")
    (status,) = tmp_path.glob(".penstock/runs/one-*/status.json")
    assert "account bad does not answer" in status.read_text()
    path = tmp_path / "one.yaml"
    path.write_text(path.read_text().replace("env:E2E_WRONG_KEY", "env:E2E_KEY").replace('prompt: "', 'prompt: "Say '))
    assert penstock("run", "one.yaml") == 0, "nothing had ended: nothing to accept"
    assert len(lines(tmp_path / "one.jsonl")) == 1_500
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(WRONG_KEY.encode() in content for content in written), "no file ever holds a key"


# ---- code and patterns of the user's own

PATTERNED = """\
accounts: {{a: {{protocol: openai, base_url: "{us}/v1"}}}}
models: [{{name: m, model: x, account: a, price: {{input_per_million: 1, output_per_million: 1}}}}]
tiers: {{3: [m]}}
source: in.jsonl
row: {{keep: [n]}}
tasks:
  t:
    tier: 3
    prompt: "row {{{{ n }}}}"
    output: {{on_invalid: keep, json_schema: {{type: object, required: [a], properties: {{a: {{type: string, pattern: "{pattern}"}}}}}}}}
    params: {{max_tokens: 40}}
    sample: 1.0
    scorers: [{{type: function, function: "my_scorers:long"}}, {{type: json_schema, json_schema: {{properties: {{a: {{pattern: "{pattern}"}}}}}}}}]
sinks: {{results: {place}}}
"""


@pytest.mark.parametrize(("pattern", "valid"), [("^.*$", 1.0), ("^never$", 0.0)])
def test_patterns_and_functions_are_asked_beside_the_run(
    pattern: str, valid: float, tmp_path: Path, us: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answer is held against its schema's pattern by its worker, and scored by its lane, in other processes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_scorers.py").write_text("def long(answer, expected): return 0.25 if len(answer) > 5 else 0.0")
    (tmp_path / "job.yaml").write_text(PATTERNED.format(us=us, pattern=pattern, place="out/results.jsonl"))
    write(tmp_path / "in.jsonl", [{"n": n} for n in range(30)])
    assert penstock("run", "job.yaml") == 0
    results, samples = lines(tmp_path / "out/results.jsonl"), lines(tmp_path / "out/results.quality.jsonl")
    assert [r["n"] for r in results] == list(range(30))
    assert {r["penstock"]["attempts"][0]["outcome"] for r in results} == {"ok" if valid else "invalid_output"}
    scored = {(sample["scorer"], sample["score"]) for sample in samples}
    assert (len(samples), scored) == (60, {("my_scorers:long", 0.25), ("json_schema", valid)})
