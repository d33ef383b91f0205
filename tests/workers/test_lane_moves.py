"""A lane moves from one actor that lives to another: handed over in peace, or taken where it is not."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from ray.exceptions import ActorDiedError

from penstock.connectors.ledger import LedgerClient
from penstock.connectors.state import FolderState
from penstock.engine import balance
from penstock.engine.budget import Budget
from penstock.engine.errors import Fenced, Temporary
from penstock.engine.flow.tally import Tally
from penstock.engine.items import Call, CallChunk
from penstock.workers.driver import Driver
from penstock.workers.lanes import crew as lane_crew
from penstock.workers.lanes import input as lane_input
from penstock.workers.lanes import member
from penstock.workers.lanes.crew import Crew
from penstock.workers.lanes.member import Member
from penstock.workers.lanes.report import LaneReport
from penstock.workers.lanes.shell import LaneShell
from penstock.workers.ports import Kept
from tests.workers.lane_rig import POOL, MemoryPlace, Rig, answered, left, line, source
from tests.workers.test_driver_ends import PLAN, Hands, driver

# -- the lane itself


async def working(rig: Rig) -> tuple[LaneShell, list[CallChunk]]:
    """A lane some calls of which are out."""
    shell, _ = rig.shell(rig.place.open())
    await shell.open(await rig.made_plan(), force=False)
    shell.go()
    out: list[CallChunk] = []
    async with asyncio.timeout(20):
        while sum(len(chunk.calls) for chunk in out) < 20:
            chunk, _ = await shell.take(POOL, 10, 1 << 30, "w")
            if chunk is None:
                await asyncio.sleep(0.005)
                continue
            rig.sent += [call.item_id for call in chunk.calls]
            out.append(chunk)
    return shell, out


async def test_a_lane_that_is_handed_over_waits_for_its_calls_and_leaves_nothing_in_doubt() -> None:
    rig = Rig(MemoryPlace("part"), source("part", [line(n) for n in range(100)]))
    shell, out = await working(rig)
    parting = asyncio.create_task(shell.part(600.0))
    await asyncio.sleep(0.05)
    assert await shell.take(POOL, 10, 1 << 30, "w") == (None, 0)
    assert not parting.done()
    for chunk in out:
        await shell.done(chunk.epoch, [answered(call) for call in chunk.calls])
    async with asyncio.timeout(20):
        await parting
    await shell.close()
    await rig.life(rig.place.open())
    told = await rig.told()
    assert (len(told), set(map(tuple, told.values()))) == (100, {("result",)})
    assert max(Counter(rig.sent).values()) == 1
    assert not any(record.penstock.get("maybe_paid") for record in await rig.place.read("results"))


async def test_what_a_lane_took_from_a_worker_is_committed_before_it_lets_go_and_the_rest_is_refused() -> None:
    """At the end of its time: an answer that the worker has given away, and the lane did not commit, would be paid for
    again. The worker keeps what is refused for the next owner."""
    rig = Rig(MemoryPlace("part"), source("part", [line(n) for n in range(100)]))
    shell, out = await working(rig)
    shell._commit_s = 60.0  # none comes by itself
    first, *others = out
    await shell.done(first.epoch, [answered(call) for call in first.calls])
    await shell.part(0.0)
    for chunk in others:
        with pytest.raises(Fenced):
            await shell.done(chunk.epoch, [answered(call) for call in chunk.calls])
    assert await shell.right(first.epoch, "w") == 0.0
    await shell.close()
    await rig.life(rig.place.open())
    told = await rig.told()
    assert (len(told), set(map(tuple, told.values()))) == (100, {("result",)})
    again = {item for item, times in Counter(rig.sent).items() if times > 1}
    assert again == {call.item_id for chunk in others for call in chunk.calls}


async def test_a_lane_whose_commit_fails_while_it_is_handed_over_ends_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether it was made is unknown, so none may follow it: the next owner reads. (It raised, and was not let go.)"""
    rig = Rig(MemoryPlace("part"), source("part", [line(n) for n in range(100)]))
    shell, out = await working(rig)
    first, *others = out
    begun, gate = asyncio.Event(), asyncio.Event()

    async def fails(*_: object) -> None:
        begun.set()
        await gate.wait()
        raise Temporary("no answer")

    monkeypatch.setattr(shell._stores.primary, "commit", fails)
    await shell.done(first.epoch, [answered(call) for call in first.calls])
    async with asyncio.timeout(20):
        await begun.wait()
    for chunk in others:
        await shell.done(chunk.epoch, [answered(call) for call in chunk.calls])
    parting = asyncio.create_task(shell.part(0.0))
    await asyncio.sleep(0.05)
    gate.set()
    async with asyncio.timeout(20):
        await parting
    await shell.close()


def all_answered(calls: list[Call]) -> Kept:
    return Kept([left(call, answered(call)) for call in calls])


async def test_answers_that_the_last_owner_left_are_committed_before_a_lane_is_handed_over() -> None:
    """Their worker has let go of them, and their items were not read again yet: they were paid for twice."""
    rig = Rig(MemoryPlace("left"), source("left", [line(n) for n in range(100)]))
    first, out = await working(rig)
    calls = [call for chunk in out for call in chunk.calls]
    second, _ = rig.shell(rig.place.open())
    await second.open(await rig.made_plan(), force=True)
    second.adopt(all_answered(calls), "w")
    second.go()
    await second.part(10.0)
    await second.close()
    await first.close()
    await rig.life(rig.place.open())
    assert not [item for item, times in Counter(rig.sent).items() if times > 1]


@pytest.mark.parametrize("opening", [False, True])
async def test_answers_that_the_last_owner_left_are_committed_though_the_run_is_stopped_at_once(opening: bool) -> None:
    """Its command goes on, and is interrupted before its lanes have read so far, or while they are opened: they were
    paid for twice."""
    rig = Rig(MemoryPlace("stopped"), source("stopped", [line(n) for n in range(100)]))
    first, out = await working(rig)
    calls = [call for chunk in out for call in chunk.calls]
    second, driver = rig.shell(rig.place.open())
    await second.open(await rig.made_plan(), force=True)
    if opening:
        second.drain()
    second.adopt(all_answered(calls), "w")
    second.go()
    if not opening:
        second.drain()
    assert await second.take(POOL, 10, 1 << 30, "w") == (None, 0)
    async with asyncio.timeout(20):
        while not driver.settled:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.005)
    await second.close()
    await first.close()
    await rig.life(rig.place.open())
    assert not [item for item, times in Counter(rig.sent).items() if times > 1]


async def test_answers_that_the_last_owner_left_are_committed_though_the_money_is_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on, and can pay for nothing more before its lanes have read so far: with more money they were
    paid for once more."""
    monkeypatch.setattr(lane_input, "READ_RECORDS", 1)
    rig = Rig(MemoryPlace("spent"), source("spent", [line(n) for n in range(100)]))
    rig.ledger, rig.budgets = LedgerClient(FolderState(tmp_path), "r"), (Budget(100_000_000),)
    first, out = await working(rig)
    late = [call for chunk in out for call in chunk.calls][10:]
    rig.budgets = (Budget(1),)
    second, driver = rig.shell(rig.place.open())
    await second.open(await rig.made_plan(), force=True)
    second.adopt(all_answered(late), "w")
    second.go()
    async with asyncio.timeout(20):
        while not driver.settled:
            assert await second.take(POOL, 10, 1 << 30, "w") == (None, 0), "there is no money"
            await asyncio.sleep(0.001)
    assert driver.reports[-1].spent_out is not None
    await second.close()
    await first.close()
    rig.budgets = (Budget(100_000_000),)
    await rig.life(rig.place.open())
    twice = [item for item, times in Counter(rig.sent).items() if times > 1]
    assert not set(twice) & {call.item_id for call in late}


async def test_a_lane_that_is_over_is_handed_over_at_once() -> None:
    rig = Rig(MemoryPlace("part"), source("part", [line(n) for n in range(30)]))
    shell, _ = await working(rig)
    newer, _ = rig.shell(rig.place.open())
    await newer.open(await rig.made_plan(), force=True)
    async with asyncio.timeout(20):
        await shell.part(600.0)
    await shell.close()
    await newer.close()


# -- its driver


class Moving:
    """Two lanes in each of two actors. `tell` lets seconds pass, in which each runs for this share of its time."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.one: Driver = driver(folder)
        self.crew: Crew = self.one._crew
        self.crew.news.plan = msgspec.structs.replace(PLAN, lanes=4)
        self.hands = [Hands(None), Hands(None)]
        for number, hands in enumerate(self.hands):
            self.crew._actors.append(Member(number, hands, PLAN.version, [number, number + 2]))
        for lane in range(4):
            self.crew._by_lane[lane], self.crew._owners[lane] = self.crew._actors[lane % 2], lane + 1
        self.crew._held = dict(self.crew._by_lane)
        self.crew._next_owner, self.crew._complete = 4, True
        self.crew._going, self.crew._opened = True, {0, 1, 2, 3}
        self.killed: list[object] = []
        monkeypatch.setattr(lane_crew, "kill", self.killed.append)
        monkeypatch.setattr(lane_crew, "time", self)
        monkeypatch.setattr(balance, "PAUSE_S", 0.0)
        self.now, self.at, self.lost = time.time(), [0.0, 0.0], [0.0, 0.0]

    def time(self) -> float:
        return self.now

    monotonic = time

    async def tell(self, seconds: int, runs: tuple[float, float]) -> None:
        for _ in range(seconds):
            self.now += 1.0
            for lane in range(4):
                self.crew.heard(lane)
            for number, share in enumerate(runs):
                self.at[number] += 1.0
                self.lost[number] += 1.0 - share
                await self.one.pace(number, self.at[number], self.lost[number])
            await self.crew.check(self.now, self.one._reports)
            await asyncio.sleep(0)

    async def over(self) -> None:
        async with asyncio.timeout(20):
            while self.crew._balance._moving:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.01)

    @property
    def lanes(self) -> list[list[int]]:
        return [sorted(actor.lanes) for actor in sorted(self.crew._actors, key=lambda actor: actor.number)]


SLOW = (0.05, 0.95)


@pytest.fixture
def moving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Moving:
    return Moving(tmp_path, monkeypatch)


async def test_a_slow_actors_lanes_are_handed_over_and_opened_by_another_one_after_another(moving: Moving) -> None:
    await moving.tell(25, SLOW)
    await moving.over()
    await moving.tell(25, SLOW)
    await moving.over()
    slow, other = moving.hands
    assert moving.lanes == [[], [0, 1, 2, 3]]
    assert [name for name in slow.told if name in ("part", "open")] == ["part", "part"]
    assert (slow.opened, other.opened, moving.killed) == ([], [0, 2], [])
    assert moving.crew.handle(0) == (5, other)
    assert moving.one._status.notes == ["lane actor 0 is slow: lanes move to lane actor 1, one at a time"]


async def test_a_lane_that_moves_is_still_its_old_owners_until_it_is_opened_anew(moving: Moving) -> None:
    """A worker that asked meanwhile was sent to the new actor, which has no such lane: it got no right to go on with
    the calls that the old owner waits for, and no answer to them was taken before the lane was open there."""
    parted = asyncio.Event()

    class Part:
        async def remote(self, lane: int, seconds: float) -> None:
            await parted.wait()

    old, new = moving.hands
    old.part = Part()  # pyright: ignore[reportAttributeAccessIssue]
    await moving.tell(25, SLOW)
    assert moving.lanes == [[2], [0, 1, 3]]
    assert moving.crew.handle(0) == (1, old)
    parted.set()
    await moving.over()
    assert moving.crew.handle(0) == (5, new)


async def test_a_lane_whose_old_actor_is_lost_while_it_parts_is_taken(moving: Moving) -> None:
    moving.hands[0].fails["part"] = ActorDiedError()
    await moving.tell(25, SLOW)
    await moving.over()
    assert moving.hands[1].opened[0] == 0


async def test_answers_that_no_commit_holds_go_with_a_lane_that_moves(moving: Moving) -> None:
    class Part:
        async def remote(self, lane: int, seconds: float) -> bytes:
            return b"answers"

    moving.hands[0].part = Part()  # pyright: ignore[reportAttributeAccessIssue]
    await moving.tell(25, SLOW)
    await moving.over()
    told = [name for name in moving.hands[1].told if name in ("inherit", "open")]
    assert told[:2] == ["inherit", "open"]


async def test_a_lane_whose_old_actor_does_not_answer_is_taken(moving: Moving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member, "PART_S", 0.02)
    monkeypatch.setattr(member, "PART_LATE_S", 0.02)
    moving.hands[0].mute["part"] = 1
    await moving.tell(25, SLOW)
    await moving.over()
    assert moving.hands[1].opened[0] == 0


async def test_a_lane_whose_new_actor_is_lost_while_it_moves_opens_in_the_one_that_takes_its_place(
    moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    parted, successor, crew = asyncio.Event(), Hands(None), moving.crew

    class Part:
        async def remote(self, lane: int, seconds: float) -> bytes:
            await parted.wait()
            return b"answers"

    def hired(number: int, lanes: list[int]) -> Member:
        made = Member(number, successor, PLAN.version, lanes)
        crew._by_lane.update(dict.fromkeys(lanes, made))
        return made

    moving.hands[0].part = Part()  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(crew, "_new_actor", hired)
    await moving.tell(25, SLOW)
    replacing = asyncio.create_task(crew._replace(crew._actors[1]))
    await asyncio.sleep(0.05)
    assert successor.opened == [1, 3]
    parted.set()
    await moving.over()
    await replacing
    assert (sorted(successor.opened), moving.hands[1].opened) == ([0, 1, 3], [])
    told = [name for name in successor.told if name in ("inherit", "open")]
    assert told == ["open", "open", "inherit", "open"], "answers that no commit holds go there, too"
    assert moving.lanes == [[2], [0, 1, 3]]


async def test_a_lane_that_fails_again_and_again_in_a_slow_actor_is_opened_elsewhere(moving: Moving) -> None:
    """Seen: it could not be opened in time where it was, and only lanes that were open left."""
    moving.hands[0].mute["open"] = 1
    failing = asyncio.create_task(moving.crew.failed(0, False, "its commit is uncertain", False))
    await asyncio.sleep(0.05)
    assert (moving.hands[0].opened, moving.crew._opened) == ([0], {1, 2, 3})
    await moving.tell(25, SLOW)
    assert moving.lanes == [[2], [0, 1, 3]]
    failing.cancel()
    await moving.over()
    assert moving.hands[1].opened[0] == 0
    assert moving.hands[0].told[-1] == "part"


async def test_lanes_that_are_done_and_runs_that_end_move_nothing(moving: Moving) -> None:
    for lane in (0, 2):
        moving.one._reports.now[lane] = LaneReport(lane, Tally(), done=True)
    await moving.tell(40, SLOW)
    moving.one._reports.now.clear()
    await moving.crew.drain()
    await moving.tell(40, SLOW)
    assert moving.lanes == [[0, 2], [1, 3]]


async def test_an_actor_that_has_no_lanes_and_says_nothing_is_replaced(
    moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped for good, after its lanes had left: else they would never come back."""
    monkeypatch.setattr(moving.crew, "_new_actor", lambda number, lanes: Member(number, Hands(None), 1, lanes))  # pyright: ignore[reportUnknownLambdaType]
    for _ in range(2):
        await moving.tell(25, SLOW)
        await moving.over()
    assert moving.lanes[0] == []
    for _ in range(12):
        moving.now += 1.0
        for lane in range(4):
            moving.crew.heard(lane)
        await moving.one.pace(1, moving.now, 0.0)
        await moving.crew.check(moving.now, moving.one._reports)
        await asyncio.sleep(0)
    assert moving.killed == [moving.hands[0]]


async def test_a_cluster_that_grows_gets_one_more_actor_and_lanes_move_there(
    moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving.crew, "_cores", lambda: 6)
    added = Hands(None)
    monkeypatch.setattr(moving.crew, "_new_actor", lambda number, lanes: Member(number, added, 1, lanes))  # pyright: ignore[reportUnknownLambdaType]
    moving.crew._by_lane.update(dict.fromkeys((4, 5), moving.crew._actors[0]))
    moving.crew._actors[0].lanes += [4, 5]
    moving.crew._opened |= {4, 5}
    moving.crew._owners |= {4: 4, 5: 5}
    moving.crew.news.plan = msgspec.structs.replace(PLAN, lanes=6)
    moving.at, moving.lost = [0.0] * 3, [0.0] * 3
    for _ in range(4):
        await moving.tell(25, (0.95, 0.95, 0.95))  # type: ignore[arg-type]
        await asyncio.sleep(0.1)
    assert [len(lanes) for lanes in moving.lanes] == [2, 2, 2]
    assert len(added.opened) == 2
