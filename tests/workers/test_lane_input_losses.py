"""Records that a topic lost before a lane was done with them: told once, as an item of their own, whoever reads."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from aiokafka.structs import ConsumerRecord

from penstock.connectors.base import Batch, Raw
from penstock.connectors.kafka.partition import Partition, text_record
from penstock.connectors.reading.intake import Intake
from penstock.connectors.settings import Row
from penstock.engine.budget import Budgets
from penstock.engine.catalog import Account, Catalog, Model, Price, Version
from penstock.engine.flow.lane import Lane
from penstock.engine.flow.lane_types import CommitBatch, Hooks, LaneSettings
from penstock.engine.items import Answer, Call, Outcome, Usage
from penstock.engine.plan import Split
from penstock.engine.policy import Policy, Task
from penstock.engine.router import Router
from penstock.workers.lanes.input import LaneInput, Verdicts

CATALOG = Catalog(
    {"a": Account("a", "openai", "http://localhost")},
    {"m": Model("m", (Version("v1", "m"),), "v1", account="a", price=Price(10**9, 10**9), context=8000)},
    {1: ("m",), 2: ("m",), 3: ("m",)},
)
POLICY = Policy({"t": Task("t", max_tokens=10)}, default_task="t")
HOOKS = Hooks(lambda: 0.5, lambda item, answer, task: (), lambda body, answer, message: body)


def record(offset: int) -> ConsumerRecord[bytes, bytes]:
    body = {"model": "auto", "messages": [{"role": "user", "content": f"{offset}"}]}
    line = {"custom_id": f"{offset}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return ConsumerRecord("t", 0, offset, 0, 0, b"", msgspec.json.encode(line), 0, 0, 0, ())


class Topic:
    """One partition. `deleted`: its topic is. What is below `begin` is gone."""

    def __init__(self, end: int | None) -> None:
        self.split = Split("t@id/0", "t@id/0", 0, 0, "u", 0, end)
        self.offsets = list(range(100))
        self.begin = 0
        self.length = 100
        self.deleted = False

    async def splits(self, lanes_hint: int) -> list[Split]:
        return [self.split]

    async def open(self, starts: Sequence[tuple[Split, int]]) -> Topic:
        self.partition = Partition(*starts[0], text_record) if starts else None
        return self

    async def read(self, max_records: int, max_bytes: int) -> Batch:
        part = self.partition
        if part is None:
            return Batch([], done=True)
        if not part.all_fetched and part.next < self.begin:
            part.lose_until(self.begin)
        if not part.all_fetched and self.deleted:
            part.vanish("the topic was deleted")
        if not part.all_fetched:
            part.fetched([record(n) for n in self.offsets if n >= max(part.next, self.begin)], self.length)
        raws: list[Raw] = []
        while (raw := part.take()) is not None:
            raws.append(raw)
        return Batch(raws, (self.split.id,) if part.over else ())

    async def close(self) -> None:
        pass


class Life:
    """One owner, on what its last left on `disk`."""

    def __init__(self, topic: Topic, disk: dict[str, bytes], seq: int) -> None:
        self.disk = disk
        self.lane = Lane(
            LaneSettings(0, "r", horizon_floor=1000),
            Router(CATALOG, POLICY),
            CATALOG,
            POLICY,
            HOOKS,
            Budgets((), "r"),
        )
        self.lane.begin([topic.split], disk, seq)
        intake = Intake("r", "openai-batch", Row(), POLICY, {"m"})
        self.input = LaneInput(self.lane, topic, intake, Verdicts(complete=True), None)
        self.ended: list[str] = []
        self.letters: list[tuple[str, str, bool]] = []
        self.commit()

    def commit(self) -> CommitBatch:
        batch = self.lane.commit(0.0)
        self.lane.committed(0.0)
        self.disk.update(batch.chunks)
        self.ended += [result.item.item_id for result in batch.results] + [d.item_id for d in batch.dead_letters]
        self.letters += [(d.reason, d.message, d.maybe_paid) for d in batch.dead_letters]
        return batch

    async def work(self, *slow: str) -> CommitBatch:
        """All but those with these labels are answered."""
        await self.input.open()
        for _ in range(3):
            await self.input.step(0.0)
        self.commit()
        names = {slot.item.item_id: slot.item.custom_id for slot in self.lane.slots.values()}
        for call in self.lane.take("api:a", 1000, 1 << 40, "w", 0.0):
            if names[call.item_id] not in slow:
                self.lane.outcome(answered(call), 0.0)
        return self.commit()


def answered(call: Call) -> Outcome:
    return Outcome(call.item_id, 0, call.attempt, 0.0, 1.0, Answer("y", "stop", b"{}"), None, Usage(1, output=1))


@pytest.mark.parametrize("slow", ["0", "50", "98", "99"])
@pytest.mark.parametrize("end", [100, None])
@pytest.mark.parametrize("deleted", [True, False])
async def test_a_loss_is_told_although_what_came_later_had_ended(slow: str, end: int | None, deleted: bool) -> None:
    """One item was slow when the run stopped; meanwhile all is deleted: it is lost, and nothing else."""
    topic, disk = Topic(end), dict[str, bytes]()
    first = Life(topic, disk, 0)
    await first.work(slow)
    assert len(first.ended) == 99
    topic.deleted, topic.begin, topic.offsets = deleted, 0 if deleted else 100, []
    second = Life(topic, disk, first.lane.seq)
    saved = (await second.work()).saved
    ((reason, message, maybe_paid),) = second.letters
    assert (reason, maybe_paid) == ("source_lost", True)
    assert ("the topic was deleted" if deleted else "were deleted (by retention, or by hand)") in message
    assert not {*first.ended} & {*second.ended}, "it is told under the name of an item that has ended"
    assert saved.done or (end is None and not deleted)


async def test_a_loss_is_not_told_again_by_the_next_reader() -> None:
    """The owner dies with an earlier item under way, and with the loss committed."""
    topic, disk = Topic(None), dict[str, bytes]()
    first = Life(topic, disk, 0)
    await first.work("50", "60")
    topic.begin, topic.offsets, topic.length = 60, [*range(90, 120)], 120
    second = Life(topic, disk, first.lane.seq)
    await second.work("110")
    third = Life(topic, disk, second.lane.seq)
    await third.work()
    told = [*first.ended, *second.ended, *third.ended]
    assert len(told) == len(set(told))
    assert [reason for reason, _, _ in (*second.letters, *third.letters)] == ["source_lost"]


async def test_nothing_is_told_where_all_that_is_gone_had_ended() -> None:
    """51..98 are deleted with 50 still under way at its worker: the reader comes behind 50 and finds nothing lost."""
    topic, disk = Topic(None), dict[str, bytes]()
    first = Life(topic, disk, 0)
    await first.work("50", "99")
    second = Life(topic, disk, first.lane.seq)
    topic.offsets = [50]
    await second.input.open()
    assert second.lane.progress.of(0).unfinished(51, 99) is None
    assert second.lane.progress.of(0).unfinished(51, 100) == 99


def test_a_topic_that_is_deleted_after_some_of_it_was_tells_both() -> None:
    """The first notice was not handed out yet."""
    part = Partition(Topic(100).split, 50, text_record)
    part.lose_until(60)
    part.vanish("the topic was deleted")
    assert [told.lost for told in (part.take(), part.take()) if told is not None] == [(50, 60), (60, 100)]
    assert part.take() is None
    assert part.over
