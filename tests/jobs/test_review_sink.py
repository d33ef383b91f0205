"""The sink of results for people: what a job may say of it, what `penstock label` makes of it, how labels come back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.connectors.settings import FilesSink, KafkaSink, S3Sink
from penstock.connectors.state import open_state
from penstock.connectors.writing.records import Encoder
from penstock.engine.errors import SpecError
from penstock.engine.items import Answer, Attributes, Item, Position, Request, Route, Usage
from penstock.engine.results import Result, Score, ShadowAnswer
from penstock.engine.review import Review
from penstock.jobs import spec as job_spec
from penstock.jobs import trial
from penstock.jobs.cli import call
from penstock.jobs.history import open_history
from penstock.jobs.look.reading import Outputs
from penstock.jobs.people import review
from penstock.jobs.people.labels import Labels
from penstock.workers.status import RunStatus

JOB = """\
name: looked-at
source: rows.jsonl
tasks:
  topic: {prompt: "{{ text }}", output: {choices: [billing, delivery, other]}}
models: [sandbox/a]
sinks: {results: out.jsonl, review: people/review.jsonl}
review: {share: 1}
"""
ROUTE = Route("topic", 3, (), (), "")


def result(n: int, answer: str, **more: Any) -> Result:
    body = b'{"messages":[{"role":"system","content":"Sort."},{"role":"user","content":"The message %d"}]}' % n
    item = Item(
        f"{n:032x}", Position("in", 0, n), Attributes(task="topic"), Request(body, input_hash=f"asked {n}"), b"", 0.0
    )
    made = Result(
        item, ROUTE, Answer(answer, "stop", b"{}"), "small", "v1", "p", None, None, "now", Usage(), 0, "metered",
        "p", "p", "p", (), 0.0, 0.0, 0.0, f"hash of {answer}", sampled=True, sample_probability=1.0,
    )  # fmt: skip
    return msgspec.structs.replace(made, **more)


class Run:
    """A finished run of the job in the folder where we stand."""

    def __init__(self, results: list[Result], rules: Review) -> None:
        self.spec = job_spec.load("job.yaml")
        encoder = Encoder(self.spec.run_id, "rows", review=rules)
        lines: dict[str, list[bytes]] = {"results": [], "quality": [], "review": []}
        for one in results:
            lines["results"].append(encoder.result(one))
            lines["quality"] += [encoder.quality(one, score) for score in one.scores]
            for other in (*one.shadows, *one.doubted):
                lines["quality"] += [encoder.quality(one, score, shadow=other) for score in other.scores]
            if why := encoder.reasons(one):
                lines["review"].append(encoder.review(one, why))
        paths = {sink: Path(f"{sink}.jsonl") for sink in lines}
        for sink, path in paths.items():
            path.write_bytes(b"".join(line + b"\n" for line in lines[sink]))
        self.status = RunStatus(
            self.spec.run_id, "looked-at", "done", outputs={sink: [str(path)] for sink, path in paths.items()}
        )

    def save(self) -> None:
        history = open_history(self.spec.state)
        history.save_spec(self.spec)
        history.save_status(self.status)

    def listed(self, rules: Review | None, *, sink: bool) -> review.Listed:
        named = {name: place for name, place in self.spec.sinks.items() if sink or name != "review"}
        return review.listed(Outputs(msgspec.structs.replace(self.spec, sinks=named), self.status), rules)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(JOB)
    return tmp_path


UNIT = st.sampled_from([0.0, 0.25, 0.5, 1.0])
WORDS = st.sampled_from(["billing", "Billing ", "other", "", "ü\u2028"])
SCORES = st.lists(UNIT, min_size=1, max_size=2).map(
    lambda values: tuple(Score(f"s{n}", "1", value, value >= 0.5) for n, value in enumerate(values))
)
OTHERS = st.builds(
    lambda text, scores: (ShadowAnswer("large", "v1", text, scores, Usage(), 0, 0.0, 1.0),), WORDS, SCORES
)
RULES = st.builds(
    Review, low_confidence=st.none() | UNIT, disagreement=st.booleans(), invalid=st.booleans(), share=UNIT
)
ONE = st.tuples(WORDS, SCORES, st.just(()) | OTHERS, st.none() | UNIT, st.sampled_from(["ok", "invalid_output"]))


def test_the_sink_holds_what_its_rules_choose_from_the_records(folder: Path) -> None:
    """What is decided as a result is committed, and what is read later from results and scores, are one list: the same
    items, the same reasons, answers, hashes, and what others said."""

    @given(st.lists(ONE, max_size=6), RULES)
    def same(made: list[Any], rules: Review) -> None:
        results = [
            result(n, answer, scores=scores, shadows=others, signal=signal, status=status)
            for n, (answer, scores, others, signal, status) in enumerate(made)
        ]
        run = Run(results, rules)
        assert run.listed(None, sink=True) == run.listed(rules, sink=False)

    same()


def test_people_see_what_the_sink_holds_and_a_tool_brings_its_records_back(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A record with `label` or `score` in it is all that `label import` wants; rules that were edited since choose
    nothing anew."""
    Run([result(n, "billing") for n in range(4)], Review(share=1.0)).save()
    (folder / "job.yaml").write_text(JOB.replace("share: 1", "invalid: true"))
    assert call(["label", "export", "job.yaml", "list.jsonl"]) == 0
    told = [json.loads(line) for line in Path("list.jsonl").read_text().splitlines()]
    assert [line["input"] for line in told] == [f"[system] Sort.\n\nThe message {n}" for n in range(4)]
    assert {(line["choices"], line["why"], line["answer"]) for line in told} == {
        ("billing | delivery | other", "random share", "billing")
    }
    records = [json.loads(line) for line in Path("review.jsonl").read_text().splitlines()]
    records[0]["label"], records[1]["score"], records[2]["label"] = " Other", 0.25, "odd"
    Path("back.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert call(["label", "import", "job.yaml", "back.jsonl", "--by", "tool"]) == 5
    out = capsys.readouterr()
    assert "2 new labels; 0 known already; 1 lines without one" in out.out
    assert "the label 'odd' is none of the choices" in out.err
    first, second = Labels(open_state(".penstock"), job_spec.load("job.yaml").run_id).history()
    assert (first.says, first.request, first.output_hash) == ("other", "asked 0", "")
    assert (second.says, second.output_hash) == ("0.25", "hash of billing")
    assert first.at > "2026", "when it was said, not when the item was answered"


def test_the_sinks_file_is_not_taken_for_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Labels of its lines as rows would count for no item."""
    run = Run([result(0, "billing")], Review(share=1.0))
    run.save()
    assert call(["label", "export", "review.jsonl", "list.jsonl", "--choices", "billing,other"]) == 2
    assert f"penstock label {run.spec.run_id}" in " ".join(capsys.readouterr().err.split())


def test_what_a_wall_kept_out_of_the_sink_is_counted_and_not_shown(folder: Path) -> None:
    """Nor read from the results, where it stands."""
    run = Run([], Review())
    encoder = Encoder(run.spec.run_id, "rows")
    lines = [encoder.review(result(n, "billing"), ("disagreement",), redact=n == 1) for n in range(3)]
    Path("review.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    listed = run.listed(None, sink=True)
    assert ([item.item_id[-1] for item in listed.items], listed.unshown) == (["0", "2"], 1)


def test_it_is_there_where_it_is_named_and_for_rules_alone(folder: Path) -> None:
    """It has no place of its own beside the results: that list is `penstock label`'s to make."""
    spec = job_spec.load("job.yaml")
    assert spec.sinks["review"] == FilesSink(str(folder / "people/review.jsonl"))
    assert trial.first(spec, 5).sinks["review"] == FilesSink(str(folder / "people/review.first-5.jsonl"))
    (folder / "job.yaml").write_text(JOB.replace(", review: people/review.jsonl", ""))
    assert set(job_spec.load("job.yaml").sinks) == {"results", "costs", "quality", "dead_letters"}
    (folder / "job.yaml").write_text(JOB.replace("review: {share: 1}\n", ""))
    with pytest.raises(SpecError, match=r"sinks\.review: nothing is chosen for it; say which results with `review:`"):
        job_spec.load("job.yaml")


@pytest.mark.parametrize(
    ("place", "settings"),
    [
        ("kafka://127.0.0.1:9092/people", KafkaSink),
        ("s3://outbox/people/", S3Sink),
        ("people.parquet", FilesSink),
    ],
)
def test_it_may_stand_wherever_a_sink_may(folder: Path, place: str, settings: type[object]) -> None:
    (folder / "job.yaml").write_text(JOB.replace("people/review.jsonl", f'"{place}"'))
    assert isinstance(job_spec.load("job.yaml").sinks["review"], settings)
    (folder / "job.yaml").write_text(JOB.replace("people/review.jsonl", "out.jsonl"))
    with pytest.raises(SpecError, match=r"sinks\.review: the same place as `results`"):
        job_spec.load("job.yaml")


def test_a_run_without_the_sink_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`tail` of a run that was begun before the job named one."""
    run = Run([], Review())
    sinks = {name: place for name, place in run.spec.sinks.items() if name != "review"}
    run.spec = msgspec.structs.replace(run.spec, sinks=sinks)
    run.save()
    assert call(["tail", "job.yaml", "--sink", "review"]) == 2
    assert "has no sink review; it has results" in " ".join(capsys.readouterr().err.split())
