"""The demo's ending, on records as a run writes them and a journal as the sandbox writes it."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from penstock.connectors.writing.records import Encoder
from penstock.engine.items import Answer, Attributes, Item, Position, Request, Route, Usage
from penstock.engine.results import Attempt, CostLine, DeadLetter, Result, Score
from penstock.jobs import demo_data
from penstock.jobs import spec as job_spec
from penstock.jobs.demo import files, rehearsal
from penstock.jobs.demo.stage import Stage
from penstock.jobs.sandbox.ledger import Ledger, who

ROWS = [
    demo_data.Row("a:topic", "topic", "a", "about a", "web"),
    demo_data.Row("b:rewrite", "rewrite", "b", "about b"),
    rehearsal.PLANTED,
]
USAGE = Usage(input=100, output=10)
NANO = 750_000
"""100 tokens in and 10 out at the pretended Tier 1 price of 5 and 25 dollars a million."""


def _item(n: int) -> Item:
    row = ROWS[n]
    return Item(
        item_id=f"{n:032x}",
        source=Position("split", 0, n),
        attributes=Attributes(task=row.kind),
        request=Request(b"{}"),
        original=msgspec.json.encode(row),
        enqueued_at=0.0,
        custom_id=row.id,
        keep_json=msgspec.json.encode({"id": row.id, "package": row.package, "label": row.label}),
    )


def _finish(n: int, request_id: str, *, maybe_paid: bool) -> tuple[Result, CostLine]:
    item, task = _item(n), ROWS[n].kind
    tier = 3 if task == "topic" else 1
    attempt = Attempt(1, "primary", "large", 0.0, 5.0, "ok", request_id, NANO, usage=USAGE)
    result = Result(
        item=item,
        route=Route(task, tier, (), (), f"tier {tier}"),
        answer=Answer("web", "stop", b"{}"),
        model="large",
        model_version="v1",
        provider="closed",
        account="closed",
        region=None,
        mode="now",
        usage=USAGE,
        cost_nano=NANO,
        cost_basis="metered",
        price_version="pretend",
        policy_version="p",
        prompt_version="q",
        attempts=(attempt,),
        finished_at=1.0,
        queue_ms=1.0,
        call_ms=5.0,
        output_hash="h",
        sampled=task == "topic",
        sample_probability=1.0,
        scores=(Score("exact", "1", 1.0, True),) if task == "topic" else (),
        maybe_paid=maybe_paid,
    )
    line = CostLine(
        f"{item.item_id}:0:1", item.item_id, 1, "primary", "closed", "large", "v1", USAGE, NANO, "metered", "pretend",
        None, task, tier, 1.0,
    )  # fmt: skip
    return result, line


def _run(part: Path, *, marked: bool, keep: int = 2) -> None:
    """Two results, one dead letter; the second item was also served before a kill. `keep`: results that were kept."""
    encoder = Encoder("run", "rows")
    ledger = Ledger(str(part / "sandbox-journal.jsonl"))
    made = [_finish(n, f"req_{n}", maybe_paid=marked and n == 1) for n in range(2)]
    for n in range(2):
        ledger.charge(who(f"{_item(n).item_id}:0", "1", b""), f"req_{n}", "large", (100, 10))
    ledger.charge(who(f"{_item(1).item_id}:0", "1", b""), "req_lost", "large", (100, 10))
    ledger.close()
    planted = _item(2)
    dead = DeadLetter(planted.item_id, planted.source, "unknown_sensitivity", "no wall", planted.original, item=planted)
    lines = {
        "results": [encoder.result(result) for result, _ in made[:keep]],
        "results.dead_letters": [encoder.dead_letter(dead)],
        "results.costs": [encoder.cost(line) for _, line in made[:keep]],
        "results.quality": [encoder.quality(result, score) for result, _ in made[:keep] for score in result.scores],
    }
    for name, records in lines.items():
        (part / f"{name}.jsonl").write_bytes(b"".join(record + b"\n" for record in records))
    files.write_rows(part / "packages.jsonl", ROWS)
    catalog = files.rehearsal_catalog("http://127.0.0.1:1")
    files.write(part, {"catalog.yaml": catalog, "job.yaml": files.job("d", files.TASKS + files.SHORTEN, 1.0)})


def _tell(part: Path) -> tuple[int, str]:
    stage = Stage()
    out = io.StringIO()
    stage.console, stage.live = Console(file=out, width=120, highlight=False), False
    spec = job_spec.load(part / "job.yaml")
    code = rehearsal.tell(stage, spec, part, ROWS, part / "sandbox-journal.jsonl", killed_after=3)
    return code, out.getvalue()


def test_the_ending_is_measured_from_files_and_journal(tmp_path: Path) -> None:
    """Lost, twice, repeated; one record; the bill against all-Tier-1; the files."""
    _run(tmp_path, marked=True)
    code, said = _tell(tmp_path)
    assert code == 0
    assert "3 rows in, 2 results and 1 dead letter out: 0 lost, 0 twice, 1 repeated" in said
    assert "among the 1 marked maybe_paid" in " ".join(said.split())
    assert '"custom_id"' in said or '"package": "b"' in said
    assert "large (tier 1)" in said
    assert "$0.001500" in said
    assert "results.costs.jsonl" in said


@pytest.mark.parametrize(("marked", "keep", "fault"), [(False, 2, "unmarked"), (True, 1, "lost")])
def test_the_ending_fails_where_the_promise_was_broken(tmp_path: Path, marked: bool, keep: int, fault: str) -> None:
    """A second payment without its mark, or a lost row, is shown, and the demo's exit code isn't 0."""
    _run(tmp_path, marked=marked, keep=keep)
    code, said = _tell(tmp_path)
    assert code == 1
    assert fault in said
