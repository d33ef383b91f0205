"""What a bad version answered in a run without an end, sent again while the run goes."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from penstock.connectors import memory
from penstock.connectors.memory_topic import MemoryTopic
from penstock.connectors.reading.intake import Ids, Intake
from penstock.connectors.reading.replay import ReplayIntake
from penstock.connectors.registry import open_source
from penstock.connectors.settings import FilesSink, KafkaSource, MemorySource
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
from tests.crash.streams import kafka_lines
from tests.crash.streams.kafka_lines import Offered
from tests.jobs.test_unread_runs import JOB

if TYPE_CHECKING:
    from penstock.jobs.dev.kafka import KafkaServer
    from tests.conftest import KafkaAt

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


def test_a_record_that_only_a_schema_can_read_is_sent_as_the_row_that_it_made(endless: Endless) -> None:
    """Avro and Protobuf: a replay's lines are JSON, and its source knows no registry."""
    record = endless.topic.partitions[0][3]
    endless.topic.partitions[0][3] = msgspec.structs.replace(record, data=b"\0avro", length=5)
    endless.answers(endless.spec, [(0, 3, "v2")], "running")
    (one,), _ = requeue.touched(endless.history, endless.back())
    assert endless.sent(requeue.prepare(endless.history, one)) == [(endless.ids()[0, 3], 1)]


@pytest.mark.kafka
async def test_of_a_real_topic_no_more_is_read_than_is_wanted_and_there(
    endless: Endless, kafka_server: KafkaServer | KafkaAt, new_topic: Callable[..., Awaitable[str]]
) -> None:
    """From the first to the last offset of each partition that has any, whatever the run's first start was."""
    topic = await new_topic("requests", partitions=3)
    await kafka_lines.publish(
        kafka_server.bootstrap, topic, [Offered(b'{"text": "%d"}' % n, partition=n % 3) for n in range(60)]
    )
    source = KafkaSource((topic,), bootstrap=kafka_server.bootstrap, start="latest", group=f"{topic}-group")
    spec = msgspec.structs.replace(endless.spec, source=source)
    names = [split.object_id for split in await open_source(source).splits(1)]

    async def read(spans: dict[str, tuple[int, int]]) -> list[tuple[str, int]]:
        return sorted([(raw.object_id, raw.position.position) async for raw in requeue.records(spec, spans)])

    spans = {names[0]: (4, 6), names[2]: (19, 19), f"{topic}@another/0": (0, 9)}
    assert await read(spans) == [(names[0], 4), (names[0], 5), (names[0], 6), (names[2], 19)]
    assert await read({}) == []
    await kafka_lines.delete_records(kafka_server.bootstrap, topic, {0: 6, 2: 20})
    assert await read(spans) == [(names[0], 6)]


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


def test_of_two_commands_that_ask_at_once_one_sends(endless: Endless) -> None:
    """The other was told a price, and is answered when the first has sent and ended: its items are not sent twice."""
    endless.answers(endless.spec, [(0, 3, "v2")], "running")
    at = endless.back()
    (one,), _ = requeue.touched(endless.history, at)
    (other,), _ = requeue.touched(endless.history, at)
    first = requeue.prepare(endless.history, one).spec
    with replay.begun(endless.history, first):
        endless.answers(first, [(0, 3, "v1")], "done", generation=1)
    late = requeue.prepare(endless.history, other).spec
    with pytest.raises(requeue.SpecError, match="another command has begun"), replay.begun(endless.history, late):
        raise AssertionError("it must not run")
    assert letter_files.is_there(letter_files.of(first.source))
    assert not letter_files.is_there(letter_files.of(late.source))


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
