"""New input of an endless run: what is there joins it, and what is missing is told, once."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Collection

import msgspec
import pytest

from penstock.connectors import memory
from penstock.connectors.base import Later
from penstock.connectors.kafka.source import KafkaTopics
from penstock.connectors.memory import MemoryStore
from penstock.connectors.settings import KafkaSource, MemorySink, Row
from penstock.engine.catalog import Catalog
from penstock.engine.errors import SpecError
from penstock.engine.flow.progress import PROGRESS, Saved
from penstock.engine.flow.tally import Tally
from penstock.engine.plan import Plan, Split
from penstock.engine.policy import Policy, Task
from penstock.jobs.before import Before
from penstock.workers.driving import planner
from penstock.workers.driving.discovery import Discovery
from penstock.workers.driving.planner import durable_plan
from penstock.workers.runspec import RunOptions, RunSpec
from penstock.workers.status import RunStatus

SPEC = RunSpec(
    "r",
    "n",
    {},
    KafkaSource(("a", "b"), bootstrap="localhost:9092"),
    None,
    Row(),
    Catalog({}, {}, {}),
    Policy({"t": Task("t")}),
    {"results": MemorySink("growing")},
)


class Topics:
    """A source whose looks find what `then` says, one after another."""

    def __init__(self, *then: Later) -> None:
        self._then = [*then]

    async def later(self, known: Collection[str]) -> Later:
        return self._then.pop(0)


async def test_input_that_is_missing_is_told_once_and_what_is_there_joins() -> None:
    """And told again when it goes away another time."""
    memory.forget("growing")
    store, notes, plans = MemoryStore("growing"), list[str](), list[Plan]()
    plan = Plan("r", "n", {}, 1, (), {}, 0.0, started=True, bounded=False, sinks={"results": "primary"})
    await store.write_plan(plan)

    async def tell(longer: Plan) -> None:
        plans.append(longer)

    split = Split("a/1", "a/1", 0, 0, "kafka://h:1/a/1", 0, None)
    gone = "there is no topic b"
    looks = Later([], gone), Later([split], gone), Later([]), Later([], gone)
    discovery = Discovery(SPEC, plan, store, tell, notes.append)
    discovery._source = Topics(*looks)  # type: ignore[assignment]
    for _ in looks:
        await discovery.step([])
    assert notes == [gone, "1 new piece of input joined the run", gone]
    assert [split.id for split in plans[0].splits] == ["a/1"]


async def test_a_topic_is_read_as_the_mended_job_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """All records of a stream were malformed since its `format:` was wrong. Mended, it is accepted like any change that
    changes answers, and counts for what comes."""
    memory.forget("mended")
    store = MemoryStore("mended")
    wrong = (Split("a@x/0#0-", "a@x/0", 0, 0, "kafka://h:1/a/0", 0, None, format="openai-batch"),)
    plan = Plan("r", "n", {}, 1, wrong, {}, 0.0, bounded=False, sinks={"results": "primary"})
    await store.write_plan(plan)
    monkeypatch.setattr(planner, "open_source", lambda _: Topics(Later([]), Later([]), Later([])))
    settings = msgspec.structs.replace(SPEC.source, format="jsonl")
    spec = msgspec.structs.replace(SPEC, source=settings, sinks={"results": MemorySink("mended")})
    ended = Saved(tally=Tally(dead_letters={"malformed": 1}))
    await store.take(0, (1, 1))
    await store.commit(0, (1, 1), 1, {}, {PROGRESS: msgspec.msgpack.encode(ended)})
    with pytest.raises(SpecError, match="changed: source: format"):
        await durable_plan(spec, RunOptions(), store, 2, 0.0)
    made = await durable_plan(spec, RunOptions(accept_changes=True), store, 2, 0.0)
    assert [split.format for split in made.plan.splits] == ["jsonl"]
    assert (await durable_plan(spec, RunOptions(), store, 2, 0.0)).plan == made.plan


async def test_a_topic_that_the_job_names_no_more_is_not_read_and_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was in the job by mistake, perhaps: its records went on to providers, though the job said otherwise. Named
    again, it is read on where it stands. A run with an end could not come to it, and is refused."""
    memory.forget("unnamed")
    store = MemoryStore("unnamed")
    splits = [
        Split(f"{t}@x/0#0-", f"{t}@x/0", n, 0, f"kafka://h:1/{t}/0", 0, None, format="auto") for n, t in enumerate("ab")
    ]
    plan = Plan("r", "n", {}, 1, tuple(splits), {}, 0.0, bounded=False, sinks={"results": "primary"})
    await store.write_plan(plan)
    monkeypatch.setattr(planner, "open_source", lambda _: Topics(Later([]), Later([])))
    fewer = msgspec.structs.replace(SPEC.source, topics=("b",))
    spec = msgspec.structs.replace(SPEC, source=fewer, sinks={"results": MemorySink("unnamed")})
    made = await durable_plan(spec, RunOptions(), store, 2, 0.0)
    assert made.notes == ("a is no topic of the source any more: what is left of it waits unread",)
    assert made.plan.splits == plan.splits
    assert (await (await KafkaTopics(fewer).open([(splits[0], 0)])).read(10, 10)).done
    await store.write_plan(msgspec.structs.replace(made.plan, bounded=True, version=made.plan.version + 1))
    ending = msgspec.structs.replace(spec, source=msgspec.structs.replace(fewer, until="end"))
    with pytest.raises(SpecError, match="run r is not done with kafka://h:1/a/0, which is no input of its source now"):
        await durable_plan(ending, RunOptions(), store, 2, 0.0)


def test_a_trial_begins_anew_where_its_source_or_a_sink_was_mended() -> None:
    """It is for editing the job between two looks; of the whole run it is told as a change."""
    trial = msgspec.structs.replace(SPEC, limit=5)
    mended = msgspec.structs.replace(trial, source=msgspec.structs.replace(SPEC.source, format="jsonl"))
    before = Before(RunStatus("r", "n", "done"), trial)
    assert before.options(mended, RunOptions()).fresh
    sinks = {**SPEC.sinks, "dead_letters": MemorySink("elsewhere")}
    assert before.options(msgspec.structs.replace(trial, sinks=sinks), RunOptions()).fresh
    assert not before.options(trial, RunOptions()).fresh
    assert not before.options(msgspec.structs.replace(mended, limit=None), RunOptions()).fresh
