"""`penstock feedback`: outcomes from the command line, files and topics, kept and joined to a run's results."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import pytest

from penstock.connectors.audit import open_audit
from penstock.connectors.documents import Absent, Tag
from penstock.connectors.settings import FilesSource, KafkaSource
from penstock.connectors.state import FolderState, open_state
from penstock.engine.errors import SpecError, Temporary
from penstock.engine.outcomes import Finished
from penstock.jobs import spec as job_spec
from penstock.jobs.cli import call
from penstock.jobs.feedback.following import Followed, following
from penstock.jobs.feedback.taking import Kept, Took
from penstock.jobs.history import open_history
from penstock.workers.status import RunStatus
from tests.crash.streams import kafka_lines
from tests.crash.streams.kafka_lines import Offered

if TYPE_CHECKING:
    from penstock.jobs.dev.kafka import KafkaServer

JOB = """\
name: rated
source: rows.jsonl
prompt: "{{ text }}"
models: [sandbox/a]
sinks: out.jsonl
feedback: outcomes.jsonl
"""
ENDED_AT = 1_795_525_200.0
"""2026-11-24 13:00:00 UTC."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run with four results of two models, and that is where we stand."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(JOB)
    spec = job_spec.load("job.yaml")
    blocks = [
        {"item_id": f"item-{n}", "task": "t", "model": model, "model_version": version, "episode": "e"}
        for n, (model, version) in enumerate([("small", "v1"), ("small", "v1"), ("small", "v2"), ("opus", "opus")])
    ]
    write(tmp_path / "out.jsonl", [{"answer": "x", "penstock": block} for block in blocks])
    history = open_history(spec.state)
    history.save_spec(spec)
    outputs = {"results": [str(tmp_path / "out.jsonl")]}
    history.save_status(RunStatus(spec.run_id, "rated", "done", ended_at=ENDED_AT, outputs=outputs))
    return tmp_path


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))


def told(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> Any:
    assert call(["feedback", *argv, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def shown(capsys: pytest.CaptureFixture[str]) -> dict[tuple[str, str], tuple[int, float]]:
    cells = told(capsys, "show", "job.yaml")["cells"]
    return {(cell["metric"], cell["model"]): (cell["outcomes"], cell["mean"]) for cell in cells}


def test_a_file_is_taken_once_however_often_it_is_given(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also when it has grown; what can't be read is counted, named, and makes the exit code 5."""
    rows: list[dict[str, Any]] = [
        {"item_id": "item-0", "metric": "ok", "value": 1, "at": "2026-11-24T12:00:00Z"},
        {"item_id": "item-1", "metric": "ok", "value": False, "at": 1_795_521_600},
        {"item_id": "item-2", "metric": "ok", "value": 1},
    ]
    write(folder / "late.jsonl", rows)
    assert told(capsys, "late.jsonl")["new"] == 3
    assert told(capsys, "late.jsonl")["new"] == 0
    write(folder / "late.jsonl", [*rows, {"item_id": "item-3", "metric": "ok", "value": "good"}, {"metric": "ok"}])
    took = told(capsys, "late.jsonl", code=5)
    assert (took["new"], took["repeated"], took["malformed"]) == (0, 3, 2)
    assert "value" in took["examples"][0]
    assert shown(capsys) == {("ok", "small@v1"): (2, 0.5), ("ok", "small@v2"): (1, 1.0)}


def test_one_outcome_is_said_on_the_command_line_and_stands_in_the_audit_log(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For an item or an episode; without a metric, or with both, it is refused."""
    assert call(["feedback", "--item", "item-0", "--metric", "ok", "--value", "1"]) == 0
    assert call(["feedback", "--episode", "e", "--metric", "solved", "--value", "0"]) == 0
    assert call(["feedback", "--item", "nobody", "--metric", "ok", "--value", "1"]) == 0
    capsys.readouterr()
    assert call(["feedback", "--item", "item-0", "--value", "1"]) == 2
    assert call(["feedback", "--item", "a", "--episode", "b", "--metric", "ok", "--value", "1"]) == 2
    assert call(["feedback", "nosuch.jsonl"]) == 2
    capsys.readouterr()
    facts = [
        json.loads(bytes(e.facts)) for e in open_audit(str(folder / ".penstock")).entries() if e.kind == "feedback"
    ]
    assert [fact["new"] for fact in facts] == [1, 1, 1]
    assert call(["feedback", "show", "job.yaml"]) == 0
    text = capsys.readouterr().out
    assert "solved" in text
    assert "1 outcome of no result of this run" in text
    assert "2 outcomes came after the run's end, and count" in text


def test_a_job_names_where_outcomes_come_from(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`pull` reads what is new there; the field changes no answer, so it may come and go."""
    write(folder / "outcomes.jsonl", [{"item_id": "item-3", "metric": "ok", "value": 0.5, "id": "1"}])
    assert told(capsys, "pull", "job.yaml")["new"] == 1
    assert told(capsys, "pull", "job.yaml") == {
        "new": 0,
        "repeated": 0,
        "contradicted": 0,
        "malformed": 0,
        "examples": [],
    }
    assert shown(capsys) == {("ok", "opus"): (1, 0.5)}
    with_it = job_spec.load("job.yaml")
    (folder / "job.yaml").write_text(JOB.replace("feedback: outcomes.jsonl\n", ""))
    without = job_spec.load("job.yaml")
    assert without.fingerprint == with_it.fingerprint
    assert call(["feedback", "pull", "job.yaml"]) == 2
    (folder / "job.yaml").write_text(JOB.replace("outcomes.jsonl", "{type: files, pth: x}"))
    with pytest.raises(SpecError) as refused:
        job_spec.load("job.yaml")
    assert refused.value.line == 6


def test_a_topic_is_read_on_where_it_was_left(tmp_path: Path) -> None:
    """Cursors are kept behind the outcomes: a reader killed between the two reads again, and nothing counts twice."""
    path = tmp_path / "grows.jsonl"
    source = FilesSource(str(path))
    write(path, [{"item_id": "a", "metric": "ok", "value": 1, "id": "1"}])
    state = open_state(str(tmp_path / "state"))
    kept = Kept(state)
    assert kept.pull(source).new == 1
    (cursors,) = state.list("feedback/")
    state.put(cursors, b"{}", None)
    again = Kept(state)
    again.load()
    took = again.pull(source)
    assert (took.new, took.repeated) == (0, 1)
    assert len(list(again._all())) == 1  # pyright: ignore[reportPrivateUsage]


def test_a_file_that_grows_all_the_time_leaves_no_trail(tmp_path: Path) -> None:
    """Each time it is another object, and of those before it nobody will ask again."""
    path, state = tmp_path / "grows.jsonl", open_state(str(tmp_path / "state"))
    kept, sizes = Kept(state), set[int]()
    for n in range(3):
        write(path, [{"item_id": "a", "metric": "ok", "value": 1, "id": str(i)} for i in range(n + 1)])
        assert kept.pull(FilesSource(str(path))).new == 1
        found = state.get(*state.list("feedback/"))
        assert found is not None
        sizes.add(len(json.loads(found[0])))
    assert sizes == {1}


class Away(FolderState):
    """Can't be written for a moment."""

    away = True

    def put(self, key: str, value: bytes, expect: Tag | Literal[Absent.ABSENT] | None) -> Tag:
        if self.away:
            raise Temporary("the state is away")
        return super().put(key, value, expect)


def test_what_could_not_be_kept_is_taken_again_and_not_for_a_repetition(tmp_path: Path) -> None:
    """The same reader goes on: what it only knows of is not what is kept."""
    source, state = FilesSource(str(tmp_path / "o.jsonl")), Away(tmp_path / "state")
    write(tmp_path / "o.jsonl", [{"item_id": "a", "metric": "ok", "value": 1, "id": "1"}])
    kept = Kept(state)
    with pytest.raises(Temporary):
        kept.pull(source)
    state.away = False
    took = kept.pull(source)
    assert (took.new, took.repeated) == (1, 0)
    assert len(list(kept._all())) == 1  # pyright: ignore[reportPrivateUsage]


def test_outcomes_are_joined_a_part_at_a_time(tmp_path: Path) -> None:
    """Results are read again for each part, and the sums are the same."""
    path = tmp_path / "o.jsonl"
    write(path, [{"item_id": f"i{n}", "metric": "ok", "value": n % 2, "id": "1"} for n in range(50)])
    kept, asked = Kept(open_state(str(tmp_path / "state"))), list[int]()
    assert kept.pull(FilesSource(str(path))).new == 50

    def results() -> Iterator[Finished]:
        asked.append(1)
        return (Finished(f"i{n}", None, "t", "small@v1") for n in range(40))

    whole, parts = (kept.joined(results, held=held) for held in (1000, 8))
    assert len(asked) == 1 + 7
    assert (parts.counted, parts.unknown, parts.items) == (40, 10, {("t", "small@v1"): 40})
    assert parts == whole


def test_an_outcome_is_about_the_answer_that_stood_when_it_came(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Items of a version that was taken back were answered anew, and so was one that had no answer at all: what people
    say from then on is no word on the old answers."""
    spec, history = job_spec.load("job.yaml"), open_history(job_spec.load("job.yaml").state)
    runs = {spec.run_id: ("bad", 12, ("a", "b")), f"{spec.run_id}~replay-1": ("good", 14, ("a", "b", "dead"))}
    for run_id, (model, hour, items) in runs.items():
        path = folder / f"{model}.jsonl"
        at = f"2026-11-24T{hour}:00:00.000Z"
        blocks = [{"item_id": item, "task": "t", "model": model, "finished_at": at} for item in items]
        write(path, [{"answer": "x", "penstock": block} for block in blocks])
        history.save_spec(msgspec.structs.replace(spec, run_id=run_id, generation=int("~" in run_id)))
        outputs = {"results": [str(path)]}
        history.save_status(RunStatus(run_id, "rated", "done", ended_at=ENDED_AT, outputs=outputs))
    told = (("a", 0, 13), ("b", 1, 15), ("dead", 1, 11))
    rows = [{"item_id": item, "metric": "ok", "value": v, "at": f"2026-11-24T{at}:00:00Z"} for item, v, at in told]
    write(folder / "said.jsonl", rows)
    assert call(["feedback", "said.jsonl"]) == 0
    capsys.readouterr()
    assert shown(capsys) == {("ok", "bad"): (1, 0.0), ("ok", "good"): (2, 1.0)}


@pytest.mark.kafka
async def test_outcomes_come_from_a_topic_each_once(
    folder: Path,
    kafka_server: KafkaServer,
    new_topic: Callable[..., Awaitable[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two partitions; what comes later is read on from where it was left; what is no outcome is counted."""
    topic = await new_topic("outcomes", partitions=2)
    (folder / "job.yaml").write_text(
        JOB.replace("outcomes.jsonl", f"{{type: kafka, bootstrap: '{kafka_server.bootstrap}', topics: [{topic}]}}")
    )
    for first, count in ((0, 3), (3, 1)):
        rows = [{"item_id": f"item-{n}", "metric": "ok", "value": n % 2} for n in range(first, first + count)]
        write(folder / "sent.jsonl", [*rows, {"metric": "ok"}])
        sent = ["publish", "sent.jsonl", "--topic", topic, "--bootstrap", kafka_server.bootstrap]
        assert await asyncio.to_thread(call, sent) == 0
        capsys.readouterr()
        assert await asyncio.to_thread(call, ["feedback", "pull", "job.yaml", "--json"]) == 5
        took = json.loads(capsys.readouterr().out)
        assert (took["new"], took["malformed"], took["repeated"]) == (count, 1, 0)
    assert shown(capsys) == {("ok", "small@v1"): (2, 0.5), ("ok", "small@v2"): (1, 0.0), ("ok", "opus"): (1, 1.0)}


@pytest.mark.kafka
async def test_outcomes_that_come_between_two_looks_are_read_wherever_the_topic_is_begun(
    tmp_path: Path, kafka_server: KafkaServer, new_topic: Callable[..., Awaitable[str]]
) -> None:
    """`latest` is elsewhere at each look: it is asked for once."""
    topic, kept = await new_topic("outcomes"), Kept(open_state(str(tmp_path / "state")))
    source = KafkaSource((topic,), bootstrap=kafka_server.bootstrap, start="latest")
    told = b'{"item_id": "%s", "metric": "ok", "value": 1}'
    for item, new in ((b"before", 0), (b"a", 1), (b"b", 1)):
        await kafka_lines.publish(kafka_server.bootstrap, topic, [Offered(told % item)])
        assert (await asyncio.to_thread(kept.pull, source)).new == new, item


def test_a_run_that_goes_takes_outcomes_by_itself_and_a_lost_source_stops_nothing(tmp_path: Path) -> None:
    """Said once, tried again; what came in the last moment is taken at the end."""
    path, state, told = tmp_path / "o.jsonl", str(tmp_path / "state"), list[str]()
    with following(Followed(FilesSource(str(path)), state, "", every_s=0.01), told.append):
        until = time.monotonic() + 20
        while not told and time.monotonic() < until:
            time.sleep(0.01)
        write(path, [{"item_id": "a", "metric": "ok", "value": 1, "id": "1"}])
        assert len(told) == 1
    assert Kept(open_state(state)).joined(list).unknown == 1
    assert [json.loads(bytes(e.facts))["new"] for e in open_audit(state).entries()] == [1]


def test_a_failure_of_ours_ends_no_reading_of_outcomes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread died of it, and a run without an end took none for the rest of its life."""
    path, state, told = tmp_path / "o.jsonl", str(tmp_path / "state"), list[str]()
    write(path, [{"item_id": "a", "metric": "ok", "value": 1, "id": "1"}])
    pull, first = Kept.pull, ["a client's own mistake"]

    def fails_once(self: Kept, source: FilesSource) -> Took:
        if first:
            raise ValueError(first.pop())
        return pull(self, source)

    monkeypatch.setattr(Kept, "pull", fails_once)
    with following(Followed(FilesSource(str(path)), state, "", every_s=0.01), told.append):
        until = time.monotonic() + 20
        while not open_state(state).list("feedback/") and time.monotonic() < until:
            time.sleep(0.01)
    assert told == ["feedback can't be read now: unexpected ValueError: a client's own mistake"]
    assert Kept(open_state(state)).joined(list).unknown == 1


def test_what_a_run_took_is_in_the_audit_log_also_where_its_source_is_away_at_the_end(tmp_path: Path) -> None:
    path, state, told = tmp_path / "o.jsonl", str(tmp_path / "state"), list[str]()
    write(path, [{"item_id": "a", "metric": "ok", "value": 1, "id": "1"}])
    with following(Followed(FilesSource(str(path)), state, "", every_s=0.01), told.append):
        until = time.monotonic() + 20
        while not open_state(state).list("feedback/") and time.monotonic() < until:
            time.sleep(0.01)
        path.unlink()
        while not told and time.monotonic() < until:
            time.sleep(0.01)
    assert [json.loads(bytes(e.facts))["new"] for e in open_audit(state).entries()] == [1]
