"""A run whose sinks moved between two of its commands: nothing is lost or paid again without a word."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

import msgspec
import pytest

from penstock.connectors import memory
from penstock.connectors.base import Later, SinkName
from penstock.connectors.ledger import LedgerClient
from penstock.connectors.memory import MemoryStore
from penstock.connectors.registry import PRIMARY, open_stores
from penstock.connectors.settings import FilesSink, FilesSource, KafkaSink, KafkaSource, Row, SinkSettings
from penstock.connectors.state import FolderState
from penstock.engine.budget import Budget, run_key
from penstock.engine.errors import SpecError
from penstock.engine.flow.progress import PROGRESS, Saved, SavedSplit
from penstock.engine.flow.till import Wish
from penstock.engine.plan import Plan, Split
from penstock.workers.driving import planner
from penstock.workers.driving.planner import durable_plan
from penstock.workers.runspec import RunOptions, RunSpec
from tests.workers.lane_rig import CATALOG, POLICY


def job(folder: Path, results: str = "r/results.jsonl", costs: str = "r/costs.jsonl") -> RunSpec:
    (folder / "rows.jsonl").write_text('{"text":"hi"}\n')
    sinks: dict[SinkName, SinkSettings] = {
        "results": FilesSink(str(folder / results)),
        "costs": FilesSink(str(folder / costs)),
    }
    source, budgets = FilesSource(str(folder / "rows.jsonl")), (Budget(10**9),)
    return RunSpec(
        "r", "j", {}, source, None, Row(), CATALOG, POLICY, sinks, budgets=budgets, state=str(folder / "state")
    )


async def planned(spec: RunSpec, options: RunOptions | None = None) -> Plan:
    stores = open_stores(spec.sinks, spec.run_id)
    return (await durable_plan(spec, options or RunOptions(), stores.primary, 2, 0.0)).plan


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("r/costs.jsonl", "bill/costs.jsonl", r"costs went to another store .*beside the results; now at .*/bill\)"),
        ("bill/costs.jsonl", "r/costs.jsonl", r"costs went to another store .*at .*/bill; now beside the results\)"),
    ],
)
async def test_a_sink_that_moved_away_from_what_it_holds_is_refused(
    tmp_path: Path, before: str, after: str, said: str
) -> None:
    """What is committed lies in the spools of one store; the other would put out the rest as if it were all."""
    await planned(job(tmp_path, costs=before))
    with pytest.raises(SpecError, match=said):
        await planned(job(tmp_path, costs=after), RunOptions(accept_changes=True))
    await planned(job(tmp_path, costs=before))


async def test_input_that_the_job_names_no_more_is_sent_no_more_without_a_word(tmp_path: Path) -> None:
    """It was the wrong file: somebody stopped the run and wrote another one into the job. What was left of the first
    one was sent all the same, and paid for."""
    spec = job(tmp_path)
    await planned(spec)
    (tmp_path / "other.jsonl").write_text('{"text":"ho"}\n')
    other = msgspec.structs.replace(spec, source=FilesSource(str(tmp_path / "other.jsonl")))
    with pytest.raises(SpecError, match=r"not done with .*rows.jsonl, .* --accept-changes goes on with both"):
        await planned(other)
    assert len((await planned(other, RunOptions(accept_changes=True))).splits) == 2
    (tmp_path / "rows.jsonl").unlink()
    await planned(other)  # it is gone: its lane says so


async def test_a_finished_input_may_leave_the_job(tmp_path: Path) -> None:
    """A job that is run over one file after another."""
    spec = job(tmp_path)
    plan = await planned(spec)
    store = open_stores(spec.sinks, spec.run_id).primary
    for lane in range(plan.lanes):
        await store.take(lane, (1, 1))
        mine = sum(split.lane == lane for split in plan.splits)
        done = msgspec.msgpack.encode(Saved(opened=mine, done=True))
        await store.commit(lane, (1, 1), 1, {}, {PROGRESS: done})
        await store.release(lane, (1, 1))
    (tmp_path / "other.jsonl").write_text('{"text":"ho"}\n')
    other = msgspec.structs.replace(spec, source=FilesSource(str(tmp_path / "other.jsonl")))
    assert len((await planned(other)).splits) == 2


async def test_a_sink_that_is_new_to_a_run_that_has_begun_is_refused(tmp_path: Path) -> None:
    """It would hold a part as if it were all. The run stays as it is."""
    spec = job(tmp_path, costs="bill/costs.jsonl")
    alone = msgspec.structs.replace(spec, sinks={"results": spec.sinks["results"]})
    plan = await planned(alone)
    stores = open_stores(alone.sinks, "r")
    await stores.primary.write_plan(msgspec.structs.replace(plan, started=True, version=2))
    with pytest.raises(SpecError, match="costs is new to run r that has begun"):
        await planned(spec)
    assert (await planned(alone)).version == 2


async def test_a_sink_may_get_another_name_in_its_store(tmp_path: Path) -> None:
    """Its records are put together there."""
    first = await planned(job(tmp_path))
    assert await planned(job(tmp_path, costs="r/money.jsonl")) == first
    assert first.sinks == {"results": PRIMARY, "costs": PRIMARY}


async def test_a_sink_that_went_to_another_topic_is_refused(tmp_path: Path) -> None:
    """What it holds stays in the first: the run's bill, its letters to send again and its checks would read the second
    alone. Not before anything was written; and a cluster may be written in another way."""
    memory.forget("topics")
    store, spec = MemoryStore("topics"), job(tmp_path)

    def to(letters: str, brokers: str = "a:1") -> RunSpec:
        sinks: dict[SinkName, SinkSettings] = {
            "results": KafkaSink("results", bootstrap=brokers),
            "dead_letters": KafkaSink(letters, bootstrap=brokers),
        }
        return msgspec.structs.replace(spec, sinks=sinks)

    await durable_plan(to("dead"), RunOptions(), store, 2, 0.0)
    plan = (await durable_plan(to("died"), RunOptions(), store, 2, 0.0)).plan
    await store.write_plan(msgspec.structs.replace(plan, started=True, version=plan.version + 1))
    with pytest.raises(SpecError, match=r"dead_letters went to another topic since run r began \(died; now dead\)"):
        await durable_plan(to("dead"), RunOptions(accept_changes=True), store, 2, 0.0)
    await durable_plan(to("died", "b:1,a:1"), RunOptions(), store, 2, 0.0)


async def test_a_folder_may_move_with_all_that_is_in_it(tmp_path: Path) -> None:
    """The follower is known by what its lanes hold, not by its path."""
    await planned(job(tmp_path, costs="bill/costs.jsonl"))
    for part in ("r", "bill"):
        shutil.move(tmp_path / part, tmp_path / "moved" / part)
    moved = job(tmp_path, "moved/r/results.jsonl", "moved/bill/costs.jsonl")
    assert (await planned(moved, RunOptions(results_at=str(tmp_path / "r/results.jsonl")))).version == 2


async def test_results_that_moved_are_not_paid_again_without_a_word(tmp_path: Path) -> None:
    """`--fresh`, or a run that history does not know, begins there."""
    spec = job(tmp_path, "new/results.jsonl")
    known = RunOptions(results_at=str(tmp_path / "r/results.jsonl"))
    with pytest.raises(SpecError, match=r"were at .*/r/results.jsonl, and nothing of it is at .*/new/results.jsonl"):
        await planned(spec, known)
    assert (await planned(spec)).version == 1
    assert (await planned(spec, known)).version == 1


async def test_results_whose_progress_is_gone_are_not_paid_again_without_a_word(tmp_path: Path) -> None:
    """A cluster that was wiped, a progress topic that was deleted, another store at the same address: history alone
    knows what was paid. Of a run in which nothing had ended nothing is paid again."""
    spec = job(tmp_path)
    at = str(tmp_path / "r/results.jsonl")
    with pytest.raises(
        SpecError, match=r"13 items of run r had ended, and nothing of it is at .*r/results.jsonl any more"
    ):
        await planned(spec, RunOptions(results_at=at, ended=13))
    assert (await planned(spec, RunOptions(results_at=at))).version == 1
    assert (await planned(spec, RunOptions(results_at=at, ended=13))).version == 1


async def test_a_new_life_stands_above_the_replays_of_the_last_whichever_command_plans_it(tmp_path: Path) -> None:
    """`--fresh` may fail after it threw the plan away. A plan that is there keeps what it says."""
    assert (await planned(job(tmp_path), RunOptions(generation_anew=2))).generation == 2
    assert (await planned(job(tmp_path), RunOptions(generation_anew=4))).generation == 2


async def test_leases_of_a_life_whose_progress_is_gone_are_spent(tmp_path: Path) -> None:
    """The new life counts its epochs from 1 again; by their names the old leases would be taken for its own."""
    spec = job(tmp_path)
    ledger = LedgerClient(FolderState(tmp_path / "state"), "r")
    asked = (Wish(run_key("r"), 10**9, (10,)), ["0-1.1-1"], 0, (1, 1), 0.0)
    assert ledger.leases(*asked) == {"0-1.1-1": 10**7}
    await planned(spec)
    assert ledger.leases(*asked) == {"0-1.1-1": 10**7 - 10**5}, "1 % of what remains: another lease"


@pytest.mark.parametrize("over", [False, True])
async def test_a_run_over_files_goes_to_a_topic_only_once_it_is_done_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, over: bool
) -> None:
    """A job is often tried on a file first. Cut off and edited, it could open neither, and nothing but `--fresh`, which
    pays again, led out of it."""
    memory.forget("topics")
    store, spec = MemoryStore("topics"), job(tmp_path)
    plan = await durable_plan(spec, RunOptions(), store, 2, 0.0)
    await store.take(0, (1, 1))
    saved = Saved(opened=1, splits=() if over else (SavedSplit(0, 0, b"", 0, ended=False),), done=over)
    await store.commit(0, (1, 1), 1, {}, {PROGRESS: msgspec.msgpack.encode(saved)})
    split = Split("t@x/0#0-9", "t@x/0", 0, 0, "kafka://k:1/t/0", 0, 9, format="auto")
    topic = msgspec.structs.replace(spec, source=KafkaSource(("t",), bootstrap="k:1", until="end"))
    monkeypatch.setattr(planner, "open_source", lambda _: Topic(split))  # pyright: ignore[reportUnknownLambdaType]
    if over:
        joined = await durable_plan(topic, RunOptions(accept_changes=True), store, 2, 0.0)
        assert [each.object_id for each in joined.plan.splits[1:]] == ["t@x/0"]
        return
    with pytest.raises(SpecError, match=r"is not done with .*rows.jsonl, which is no input of its source now"):
        await durable_plan(topic, RunOptions(accept_changes=True), store, 2, 0.0)
    assert await store.read_plan() == plan.plan


class Topic:
    def __init__(self, *splits: Split) -> None:
        self._splits = splits

    async def later(self, known: Collection[str]) -> Later:
        return Later([split for split in self._splits if split.object_id not in known])
