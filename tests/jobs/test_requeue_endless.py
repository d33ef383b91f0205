"""What a bad version answered in a run without an end, sent again while the run goes."""

from __future__ import annotations

import asyncio
import io
import json
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from penstock.connectors import memory
from penstock.connectors.memory_topic import MemoryTopic
from penstock.connectors.reading.intake import Ids, Intake
from penstock.connectors.reading.replay import ReplayIntake
from penstock.connectors.settings import FilesSink, MemorySource
from penstock.engine.catalog import Price
from penstock.engine.items import Item
from penstock.engine.plan import Split
from penstock.engine.steering.rollout import Rollout
from penstock.jobs import letter_files, replay, requeue, rollouts
from penstock.jobs.cli import call
from penstock.jobs.history import History, open_history
from penstock.jobs.spec import load
from penstock.workers.runspec import RunSpec
from penstock.workers.status import RunState, RunStatus
from tests.jobs.test_unread_runs import JOB

TOPIC = "requeue-endless"
Answer = tuple[int, int, str]
"""Partition, offset, and the version that answered."""


class Endless:
    """A run over a topic of two partitions with ten records each; who answered what is said by `answers`."""

    def __init__(self, folder: Path) -> None:
        (folder / "job.yaml").write_text(JOB)
        self.topic = MemoryTopic(TOPIC, 2)
        for n in range(20):
            self.topic.append(n % 2, {"text": f"hello {n}"})
        made = load("job.yaml")
        model = msgspec.structs.replace(made.catalog.models["small"], price=Price(input=1_000, output=2_000))
        catalog = msgspec.structs.replace(made.catalog, models={"small": model})
        self.spec = msgspec.structs.replace(made, source=MemorySource(TOPIC, "forever"), catalog=catalog)
        self.history: History = open_history(self.spec.state)
        rollouts.start(
            self.spec.state, rollouts.Ask("small", "v2", (0.5,), ("cost",)), rollouts.Job(catalog, self.spec.policy)
        )

    def ids(self) -> dict[tuple[int, int], str]:
        ids = Ids(self.spec.run_id)
        return {(p, n): ids.of(raw) for p, part in enumerate(self.topic.partitions) for n, raw in enumerate(part)}

    def answers(self, spec: RunSpec, given: list[Answer], state: RunState, generation: int = 0) -> None:
        sink = spec.sinks["results"]
        assert isinstance(sink, FilesSink)
        ids, lines = self.ids(), list[str]()
        for partition, offset, version in given:
            where = {"split": f"memory:{TOPIC}/{partition}", "position": offset}
            told = {
                "item_id": ids[partition, offset], "generation": generation, "model": "small", "model_version": version,
                "cost_usd": 0.5, "source": where, "finished_at": datetime.now(UTC).isoformat(),
                "tokens": {"input": 100, "output": 10},
            }  # fmt: skip
            lines.append(json.dumps({"answer": "a", "penstock": told}) + "\n")
        Path(sink.path).write_text("".join(lines))
        self.history.save_spec(spec)
        outputs = {"results": [sink.path]}
        self.history.save_status(
            RunStatus(spec.run_id, spec.name, state, started_at=1.0, updated_at=9e9, outputs=outputs)
        )

    def back(self) -> Rollout:
        return rollouts.speak(self.spec.state, "small", "rollback").rollout

    def sent(self, made: requeue.Prepared) -> list[tuple[str, int]]:
        intake = ReplayIntake(Intake(made.spec.run_id, "rows", made.spec.row, made.spec.policy, ["small"]))
        found = [intake.item(raw, 0.0) for raw in asyncio.run(_read(made.spec))]
        assert all(isinstance(one, Item) for one in found)
        return sorted((one.item_id, one.generation) for one in found)


async def _read(spec: RunSpec) -> list[memory.Raw]:
    return [raw async for raw in requeue.records(spec)]


@pytest.fixture
def endless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Endless:
    monkeypatch.chdir(tmp_path)
    return Endless(tmp_path)


@pytest.mark.parametrize("state", ["running", "interrupted", "handed_over"])
def test_what_it_answered_so_far_is_sent_again(endless: Endless, state: RunState) -> None:
    """While the run goes or not; what is committed later comes with another command, and nothing comes twice."""
    endless.answers(endless.spec, [(0, 3, "v2"), (0, 4, "v1"), (1, 9, "v2")], state)
    at = endless.back()
    (one,), left = requeue.touched(endless.history, at)
    assert (left, one.goes_on) == ([], state != "interrupted")
    assert one.spans == {f"memory:{TOPIC}/0": (3, 3), f"memory:{TOPIC}/1": (9, 9)}, "no more is read"
    made, ids = requeue.prepare(endless.history, one), endless.ids()
    assert (made.sent, made.lost, made.spec.endless, made.spec.generation) == (2, 0, False, 1)
    assert endless.sent(made) == sorted([(ids[0, 3], 1), (ids[1, 9], 1)])
    endless.answers(made.spec, [], "running")
    endless.answers(endless.spec, [(0, 3, "v2"), (0, 4, "v1"), (1, 9, "v2"), (0, 5, "v2")], state)
    found, left = requeue.touched(endless.history, at)
    assert (found, [each.run_id for each in left]) == ([], [made.spec.run_id])
    endless.answers(made.spec, [(0, 3, "v1"), (1, 9, "v1")], "done", generation=1)
    (one,), _ = requeue.touched(endless.history, at)
    assert endless.sent(requeue.prepare(endless.history, one)) == [(ids[0, 5], 1)]


def test_what_a_replay_had_sent_is_sent_again_from_its_file(endless: Endless) -> None:
    """Its records may say no place in the topic, and the topic may not hold it any more."""
    endless.answers(endless.spec, [(0, 3, "v2")], "running")
    at, ids = endless.back(), endless.ids()
    made = requeue.prepare(endless.history, requeue.touched(endless.history, at)[0][0])
    endless.answers(made.spec, [(0, 3, "v2")], "done", generation=1)
    memory.forget(TOPIC)
    (one,), _ = requeue.touched(endless.history, at)
    second = requeue.prepare(endless.history, one)
    assert (second.sent, second.spec.run_id) == (1, f"{endless.spec.run_id}~replay-2")
    assert endless.sent(second) == [(ids[0, 3], 2)]
    assert second.spec.generation == 2


def test_what_the_topic_holds_no_more_is_counted_as_lost(
    endless: Endless, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Retention took the first five offsets: the rest is sent."""
    endless.answers(endless.spec, [(0, n, "v2") for n in range(3, 8)], "running")
    splits = MemoryTopic.splits

    async def kept(self: MemoryTopic, lanes_hint: int) -> list[Split]:
        return [msgspec.structs.replace(split, start=5) for split in await splits(self, lanes_hint)]

    monkeypatch.setattr(MemoryTopic, "splits", kept)
    (one,), _ = requeue.touched(endless.history, endless.back())
    made = requeue.prepare(endless.history, one)
    assert (made.sent, made.lost) == (3, 2)
    monkeypatch.setattr(MemoryTopic, "splits", splits)
    gone = msgspec.structs.replace(one, spans={})
    with pytest.raises(requeue.SpecError, match=r"none of the 5 items .* is in its source any more"):
        requeue.prepare(endless.history, gone)
    assert [*letter_files.read(letter_files.of(made.spec.source))] != []


def test_it_is_priced_as_the_version_that_answers_now(
    endless: Endless, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many tokens at its price, not what the bad version cost: a nano-dollar each."""
    endless.answers(endless.spec, [(0, 3, "v2"), (1, 9, "v2")], "running")
    (one,), _ = requeue.touched(endless.history, endless.back())
    assert (one.cost_nano, one.priced) == (2, 2)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    code = call(["rollback", "small", "--requeue"])
    said, err = capsys.readouterr()
    assert "2 items answered by small@v2; it goes on: what is under way there comes with another --requeue" in said
    assert "the tokens of their answers at the price of small@v1" in said
    assert (code, "--yes sends without asking" in err) == (2, True)
    assert replay.replays(endless.history, endless.spec.run_id) == []
