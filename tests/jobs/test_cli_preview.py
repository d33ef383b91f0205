"""What `run --limit` shows: each row's prompt as it was sent, and the answer."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from penstock.connectors.writing.records import Encoder
from penstock.engine.items import Answer, Item, Route, Usage
from penstock.engine.results import DeadLetter, Result
from penstock.jobs import preview, trial
from penstock.jobs import spec as job_spec
from penstock.jobs.result import JobResult
from penstock.workers.status import RunStatus

JOB = """\
source: messages.csv
row: {id: "{{ id }}"}
prompt: {system: Sort it., user: "Which? {{ text }}"}
models: [sandbox/fast]
sinks: labels.jsonl
"""


@pytest.fixture
def tried(tmp_path: Path) -> JobResult:
    """A trial of two rows: one answered, one dead."""
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "messages.csv").write_text("id,text\nm-1,hello [bold]\x1b[2J\nm-2,parcel\nm-3,never read\n")
    spec = trial.first(job_spec.load(tmp_path / "job.yaml"), 2)
    answered, dead = preview.items(spec, 2)
    assert isinstance(answered, Item)
    encoder = Encoder(spec.run_id, "rows")
    made = Result(
        item=answered, route=Route("default", 3, (), (), ""), answer=Answer("billing", "stop", b"{}"), model="fast",
        model_version="v", provider="p", account="a", region=None, mode="now", usage=Usage(), cost_nano=71_000,
        cost_basis="metered", price_version="", policy_version="", prompt_version="", attempts=(), finished_at=2.0,
        queue_ms=0.0, call_ms=0.0, output_hash="",
    )  # fmt: skip
    letter = DeadLetter(dead.item_id, dead.source, "invalid_output", "none of the choices", b"{}", custom_id="m-2")
    (tmp_path / "r.jsonl").write_bytes(encoder.result(made) + b"\n")
    (tmp_path / "d.jsonl").write_bytes(encoder.dead_letter(letter) + b"\n")
    outputs = {"results": [str(tmp_path / "r.jsonl")], "dead_letters": [str(tmp_path / "d.jsonl")]}
    return JobResult(spec, RunStatus(spec.run_id, "job", "done", outputs=outputs))


def test_prompts_and_answers_stand_together(tried: JobResult) -> None:
    """By row, with its label; a row that died says why; nothing a user wrote is read as markup, or obeyed by a
    terminal."""
    out = StringIO()
    preview.show(tried, Console(file=out, width=80, no_color=True, highlight=False))
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert lines == [
        "── m-1",
        "system  Sort it.",
        "  user  Which? hello [bold] [2J",
        "answer  billing  (fast, $0.000071)",
        "── m-2",
        "system  Sort it.",
        "  user  Which? parcel",
        "answer  none  (invalid_output: none of the choices)",
    ]
