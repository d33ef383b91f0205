"""One lane from source to sinks, killed wherever it can be killed: each item ends exactly once, nobody pays in vain."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from penstock.connectors.filestore.disk import no_faults
from penstock.connectors.filestore.lane import COMMIT_STEPS, TAKE_STEPS
from penstock.connectors.ledger import LedgerClient
from penstock.connectors.memory import crash_at
from penstock.connectors.state import FolderState
from penstock.engine.budget import Budget
from penstock.engine.errors import Fenced
from penstock.engine.items import Answer, Call, Failure, Outcome, OutputSpec, Usage
from penstock.engine.plan import Epoch
from penstock.engine.policy import Output, Policy, Task
from penstock.engine.quality import sampled
from penstock.engine.results import CostLine
from penstock.engine.review import Review
from penstock.workers.checking.verifying import Verifier
from penstock.workers.driving.board import Board
from penstock.workers.engines.base import Right, Ticket
from penstock.workers.lanes import telling
from penstock.workers.ports import Kept
from tests.workers import lane_rig as rig

N = 60
LEAK_BYTES = 64
"""An item that leaves so many behind leaves an object. (The moments that records name are kept up to 4,096 of, 0.7 MB:
a busy machine, which takes longer, names more of them.)"""
EXACTLY_ONCE = {f"r{n}": ["result"] for n in range(N)}


def lines(n: int = N) -> list[bytes]:
    return [rig.line(number) for number in range(n)]


def in_memory(name: str, n: int = N) -> rig.Rig:
    return rig.Rig(rig.MemoryPlace(name), rig.source(name, lines(n)))


def in_files(folder: Path) -> rig.Rig:
    return rig.Rig(rig.TwoFolders(folder), rig.source(str(folder), lines()))


@pytest.mark.parametrize("step", ["take.begin", "take.applied", "commit.begin", "commit.applied"])
@pytest.mark.parametrize("nth", [1, 2, 4])
async def test_a_kill_at_any_step_of_the_store_loses_and_doubles_nothing(step: str, nth: int) -> None:
    """Killed there, opened anew, run to its end: every item once, and none is sent that was committed."""
    lane = in_memory(f"kill-{step}-{nth}")
    await lane.life(lane.place.open(crash_at(step, nth)))
    committed = {record.penstock["item_id"] for record in await lane.place.read("results")}
    lane.sent.clear()
    driver = await lane.life(lane.place.open())
    assert driver.settled
    assert await lane.told() == EXACTLY_ONCE
    assert not committed & set(lane.sent), "a committed item was paid for again"


async def test_it_survives_a_kill_in_every_one_of_its_lives() -> None:
    """Twelve owners, each killed a commit later than the one before."""
    lane = in_memory("lives")
    for nth in range(1, 13):
        await lane.life(lane.place.open(crash_at("commit.applied" if nth % 2 else "commit.begin", 1 + nth // 2)))
    await lane.life(lane.place.open())
    assert await lane.told() == EXACTLY_ONCE


@pytest.mark.parametrize("place", [in_memory, in_files])
async def test_a_replaced_owner_that_is_closed_late_leaves_the_next_one_its_lane(
    tmp_path: Path, place: Callable[[str | Path], rig.Rig]
) -> None:
    """Both are of one process, as where its driver gave up the first one's opening, or its closing."""
    lane = place(tmp_path if place is in_files else "closed late")  # type: ignore[arg-type]
    stores = lane.place.open()
    plan = await lane.made_plan()
    first, _ = lane.shell(stores)
    await first.open(plan, force=True)
    second, driver = lane.shell(stores)
    await second.open(plan, force=True)
    await first.close()
    second.go()
    async with asyncio.timeout(30):
        await lane.work(second, driver, rig.answered, lambda shell, driver: driver.settled)
    await second.close()
    assert driver.failures == []
    assert await lane.told() == EXACTLY_ONCE


@pytest.mark.parametrize("follower", [False, True])
@pytest.mark.parametrize("step", TAKE_STEPS + COMMIT_STEPS)
@pytest.mark.parametrize("nth", [1, 3])
async def test_two_folders_agree_whoever_is_killed_at_whatever_step(
    tmp_path: Path, follower: bool, step: str, nth: int
) -> None:
    """Results in one folder, costs and what people shall see in another: after any kill both hold each item once."""
    lane = in_files(tmp_path)
    lane.review = Review(share=0.5)
    faults = crash_at(step, nth)
    await lane.life(lane.place.open(no_faults if follower else faults, faults if follower else no_faults))
    driver = await lane.life(lane.place.open())
    assert driver.settled
    assert await lane.told() == EXACTLY_ONCE
    assert len(await lane.place.read("costs")) == N
    chosen = [str(one.penstock["item_id"]) for one in await lane.place.read("results")]
    chosen = [item for item in chosen if sampled(f"review {item}", 0.5)]
    assert 0 < len(chosen) < N
    assert sorted(str(one.item_id) for one in await lane.place.read("review")) == sorted(chosen)


async def test_what_may_have_been_sent_before_a_kill_is_marked() -> None:
    """Calls that never came back: their results say `maybe_paid`; those never handed out do not."""
    lane = in_memory("maybe", 200)
    await lane.life(lane.place.open(), lambda call: None, until=lambda shell, driver: len(lane.sent) >= 20)
    sent = set(lane.sent)
    await lane.life(lane.place.open())
    marked = {r.penstock["item_id"] for r in await lane.place.read("results") if r.penstock["maybe_paid"]}
    assert sent <= marked
    assert len(marked) <= 64, "only what was under the horizon"


async def test_an_owner_that_was_replaced_does_nothing_more() -> None:
    """A new owner takes the lane: the old one's right is over, it gives nothing out, and its commits do not count."""
    lane = in_memory("fenced")
    old, heard = lane.shell(lane.place.open())
    await old.open(await lane.made_plan(), force=True)
    old.go()
    chunk = None
    while chunk is None:
        await asyncio.sleep(0)
        chunk, _ = await old.take(rig.POOL, 8, 1 << 30, "w")
    stores = lane.place.open()
    driver = await lane.life(stores)
    assert driver.settled
    old.own_until = 0.0
    assert await old.right(old.epoch) == 0.0
    assert await old.take(rig.POOL, 8, 1 << 30, "w") == (None, 0)
    with pytest.raises(Fenced):
        await old.done(old.epoch, [rig.answered(call) for call in chunk.calls])
    with pytest.raises(Fenced):
        await old._commit_once()
    assert heard.failures[0][0], "its driver hears that it was fenced"
    await old.close()
    assert await lane.told() == EXACTLY_ONCE


async def test_calls_that_got_lost_on_their_way_are_given_out_again() -> None:
    """The worker lives, and says what it holds: the lane does not wait for the rest until it times out."""
    lane = in_memory("lost")
    shell, driver = lane.shell(lane.place.open())
    await shell.open(await lane.made_plan(), force=True)
    shell.go()
    chunk = None
    while chunk is None:
        await asyncio.sleep(0)
        chunk, _ = await shell.take(rig.POOL, 8, 1 << 30, "w", 1)
    kept, *gone = chunk.calls
    shell.missed("w", 1, {(kept.item_id, 0, kept.attempt)})
    assert shell.machine.flights.count == 1
    async with asyncio.timeout(30):
        await lane.work(shell, driver, rig.answered, lambda shell, _: shell.machine.tally.results == N - 1)
        await shell.done(shell.epoch, [rig.answered(kept)])
        await lane.work(shell, driver, rig.answered, lambda _, driver: driver.settled)
    await shell.close()
    assert await lane.told() == EXACTLY_ONCE
    assert all(lane.sent.count(call.item_id) == 1 for call in gone)


@pytest.mark.parametrize("dies", [False, True])
async def test_a_take_that_waited_until_its_worker_had_given_it_up_gives_nothing_out(dies: bool) -> None:
    """Where the store is away for long, a take waits until it can be asked whose the lane is. The calls went out to
    nobody then, and the lane waited for them until they timed out: eleven minutes."""
    lane = in_memory(f"late-{dies}")
    shell, driver = lane.shell(lane.place.open())
    await shell.open(await lane.made_plan(), force=True)
    shell.go()
    await shell._until(lambda: shell.machine.ready.count(rig.POOL) > 0, asyncio.get_running_loop().time() + 30)
    away, verify = asyncio.Event(), shell._verify

    async def once_it_is_back() -> bool:
        await away.wait()
        return await verify()

    shell._verify, shell.own_until = once_it_is_back, 0.0
    late = [asyncio.create_task(shell.take(rig.POOL, 8, 1 << 30, "w", number)) for number in (3, 4)]
    await asyncio.sleep(0.01)
    if dies:
        shell.machine.worker_lost("w", time.time())
    else:
        shell.missed("w", 3, set())
    away.set()
    (gone, _), (given, _) = [await take for take in late]
    assert gone is None
    assert (given is None) == dies, "the later one its worker still waits for"
    async with asyncio.timeout(30):
        if given is not None:
            await shell.done(shell.epoch, [rig.answered(call) for call in given.calls])
        await lane.work(shell, driver, rig.answered, lambda _, driver: driver.settled)
    await shell.close()
    assert await lane.told() == EXACTLY_ONCE


async def test_a_take_that_comes_behind_the_news_of_its_workers_death_gives_nothing_out() -> None:
    """They come from different processes: a lane that was busy or stopped may read the later one first."""
    lane = in_memory("dead")
    shell, _ = lane.shell(lane.place.open())
    await shell.open(await lane.made_plan(), force=True)
    shell.go()
    await shell._until(lambda: shell.machine.ready.count(rig.POOL) > 0, asyncio.get_running_loop().time() + 30)
    shell.machine.worker_lost("w", time.time())
    assert await shell.take(rig.POOL, 8, 1 << 30, "w", 5) == (None, 0)
    chunk, _ = await shell.take(rig.POOL, 8, 1 << 30, "another", 1)
    assert chunk is not None
    await shell.close()


async def test_outcomes_of_another_epoch_are_left_to_be_adopted() -> None:
    """Their attempt numbers are another owner's: the worker keeps them, and the lane asks for them with their model."""
    lane = in_memory("epochs")
    shell, _ = lane.shell(lane.place.open())
    await shell.open(await lane.made_plan(), force=True)
    shell.go()
    for epoch in ((1, 0), (1, 9)):
        with pytest.raises(Fenced):
            await shell.done(epoch, [])
        assert await shell.right(epoch) == 0.0
    await shell.close()


async def test_an_answer_that_comes_before_we_know_whose_call_it_is_waits_until_we_do() -> None:
    """A worker that was asked goes on, and may be done with a call before its word on it has arrived."""
    lane = in_memory("early")
    stores = lane.place.open()
    old, _ = lane.shell(stores)
    await old.open(await lane.made_plan(), force=True)
    old.go()
    chunk = None
    while chunk is None:
        await asyncio.sleep(0)
        chunk, _ = await old.take(rig.POOL, 1, 1 << 30, "w")
    (call,) = chunk.calls
    await old.close()
    shell, driver = lane.shell(stores)
    await shell.open(await lane.made_plan(), force=True)
    bringing = asyncio.create_task(shell.done(shell.epoch, [rig.answered(call)]))
    await asyncio.sleep(0.01)
    assert not bringing.done()
    shell.adopt(Kept(flying=[rig.left(call, None)]), "w")
    shell.go()
    async with asyncio.timeout(30):
        await bringing
        await lane.work(shell, driver, rig.answered, lambda _, driver: driver.settled)
    await shell.close()
    assert await lane.told() == EXACTLY_ONCE
    assert call.item_id not in lane.sent
    assert shell.machine.tally.late_payments == 0


async def test_answers_wait_until_they_can_be_scored() -> None:
    """Where the lane is over meanwhile the worker keeps them."""
    lane = in_memory("scored")
    shell, _ = lane.shell(lane.place.open())
    await shell.open(await lane.made_plan(), force=True)
    shell.go()
    ready = asyncio.Event()
    shell._turn = ready.wait  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    bringing = asyncio.create_task(shell.done(shell.epoch, [Outcome("gone", 0, 1, 0.0, 1.0)]))
    await asyncio.sleep(0.05)
    assert not bringing.done()
    await shell.close()
    ready.set()
    with pytest.raises(Fenced):
        await bringing


async def test_a_lane_that_is_closed_before_it_goes_takes_no_answers() -> None:
    """The worker keeps them for the next owner."""
    lane = in_memory("never")
    shell, _ = lane.shell(lane.place.open())
    await shell.open(await lane.made_plan(), force=True)
    bringing = asyncio.create_task(shell.done(shell.epoch, []))
    await asyncio.sleep(0.01)
    await shell.close()
    with pytest.raises(Fenced):
        await bringing


async def test_the_first_of_equal_labels_wins() -> None:
    """Nothing is offered before the label pass has passed it; duplicates become dead letters, in place."""
    source = rig.source("labels", [rig.line(n, f"r{n % 40}") for n in range(60)])
    lane = rig.Rig(rig.MemoryPlace("labels"), source)
    lane.verdicts = rig.Verdicts(complete=False)
    shell, driver = lane.shell(lane.place.open())
    await shell.open(await lane.made_plan(), force=True)
    shell.go()
    await asyncio.sleep(0.02)
    assert shell.machine.tally.read == 0
    shell.verdicts.upto = (0, 30)
    shell.wake()
    await asyncio.sleep(0.02)
    assert shell.machine.tally.read == 30
    shell.verdicts.duplicates.update({(0, 40 + n): f"line {n}" for n in range(20)})
    shell.verdicts.complete = True
    shell.wake()
    async with asyncio.timeout(20):
        await lane.work(shell, driver, rig.answered, lambda shell, driver: driver.settled)
    await shell.close()
    ends = await lane.told()
    assert ends == {f"r{n}": ["result", "duplicate"] if n < 20 else ["result"] for n in range(40)}


@pytest.mark.parametrize("nth", [2, 3, 5])
async def test_a_limit_counts_each_item_once_even_across_a_kill(nth: int) -> None:
    """`--limit 25`: the first 25 items and no other, however often the lane is killed and reads again."""
    lane = in_memory(f"limit-{nth}")
    lane.limit = 25
    slow = [0]

    def reply(call: Call) -> Outcome | None:
        slow[0] += 1
        return rig.answered(call) if slow[0] % 3 else None

    await lane.life(lane.place.open(crash_at("commit.applied", nth)), reply, until=lambda s, d: slow[0] >= 24)
    driver = await lane.life(lane.place.open())
    assert driver.settled
    assert await lane.told() == {f"r{n}": ["result"] for n in range(25)}


async def test_a_drained_lane_settles_and_goes_on_later() -> None:
    """Drained: nothing new is sent, what flew is committed; the next command does the rest."""
    lane = in_memory("drain")
    shell, driver = lane.shell(lane.place.open())
    await shell.open(await lane.made_plan(), force=True)
    shell.go()

    def stop(_: object, __: object) -> bool:
        if len(lane.sent) >= 20:
            shell.drain()
        return driver.settled

    async with asyncio.timeout(20):
        await lane.work(shell, driver, rig.answered, stop)
    first = len(lane.sent)
    shell.add_costs([own_hours(900)])
    async with asyncio.timeout(20):
        await lane.work(shell, driver, rig.answered, lambda *_: driver.settled and driver.reports[-1].closed)
    await shell.close()
    assert 20 <= first < N
    assert len(await lane.told()) == first
    await lane.life(lane.place.open())
    assert len(lane.sent) == N
    assert await lane.told() == EXACTLY_ONCE
    assert [c.entry_id for c in await lane.place.read("costs") if c.entry_id == "r:1:own@v1:idle"] == [
        "r:1:own@v1:idle"
    ]


def own_hours(nano: int) -> CostLine:
    """What closes the bill of an own engine."""
    return CostLine(
        entry_id="r:1:own@v1:idle", item_id=None, attempt=0, role="adjustment", account=None, model="own",
        model_version="v1", usage=Usage(), cost_nano=nano, basis="amortised", price_version="amortised",
        tenant=None, task=None, tier=None, at=0.0,
    )  # fmt: skip


async def test_a_wrong_key_stops_the_lane_with_words_and_ends_no_item() -> None:
    """Every item is held; the driver reads which account, and why; with a right key the same run goes on."""
    lane = in_memory("key")

    def refused(call: Call) -> Outcome:
        return Outcome(call.item_id, 0, call.attempt, 0.0, 1.0, failure=Failure("auth", "wrong key", status=401))

    driver = await lane.life(lane.place.open(), refused, until=lambda s, d: bool(d.reports and d.reports[-1].stuck))
    assert driver.reports[-1].stuck == "account a: its key is refused (HTTP 401: wrong key)"
    assert await lane.told() == {}
    assert len(lane.sent) <= 32, "a refused key is not tried with every item"
    await lane.life(lane.place.open())
    assert await lane.told() == EXACTLY_ONCE


async def test_a_small_budget_is_leased_for_many_calls_in_one_write(tmp_path: Path) -> None:
    """Where one call is more than 1 % of what remains, a lease is one call; they are asked for together."""
    lane = in_memory("small")
    lane.budgets = (Budget(40_000_000),)
    writes: list[int] = []

    class Counting(LedgerClient):
        def leases(self, *asked):  # type: ignore[no-untyped-def]
            answer = super().leases(*asked)
            writes.append(len(answer) if isinstance(answer, dict) else 0)
            return answer

    lane.ledger = Counting(FolderState(tmp_path), "r")
    driver = await lane.life(lane.place.open())
    assert driver.settled
    assert await lane.told() == EXACTLY_ONCE
    assert len(writes) < N / 2
    ledger = lane.ledger.read("run/r")
    assert ledger is not None
    assert (ledger.leases, ledger.forfeit_nano) == ({}, 0)
    assert ledger.settled_nano == N * 15_000


async def test_a_budget_stops_the_run_and_a_larger_one_lets_it_go_on(tmp_path: Path) -> None:
    """Not a cent above it; what could not be paid stays undone, and every lease comes back."""
    lane = in_memory("stop")
    lane.budgets = (Budget(900_000),)
    lane.ledger = LedgerClient(FolderState(tmp_path), "r")
    driver = await lane.life(lane.place.open())
    assert driver.settled
    assert driver.reports[-1].spent_out is not None
    done = len(await lane.told())
    ledger = lane.ledger.read("run/r")
    assert ledger is not None
    assert 0 < done < N
    assert (ledger.settled_nano, ledger.leases, ledger.overrun_nano) == (done * 15_000, {}, 0)
    lane.budgets = (Budget(100_000_000),)
    await lane.life(lane.place.open())
    assert await lane.told() == EXACTLY_ONCE


async def test_two_lanes_with_small_remainders_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """Two lanes under one budget that holds a handful of calls at a time: both come to their end."""
    lane = rig.Rig(rig.MemoryPlace("two"), rig.source("two", lines()), lanes=2)
    lane.budgets = (Budget(4_000_000),)
    lane.ledger = LedgerClient(FolderState(tmp_path), "r")
    drivers = await asyncio.gather(*(lane.life(lane.place.open(), lane=number) for number in range(2)))
    assert all(driver.settled for driver in drivers)
    ledger = lane.ledger.read("run/r")
    assert ledger is not None
    done = len(await lane.told())
    assert done == N or all(driver.reports[-1].spent_out for driver in drivers)
    assert ledger.leases == {}
    assert ledger.settled_nano == done * 15_000


async def test_leases_of_several_budgets_do_not_wait_for_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An item that was granted, and had to wait for money, is told to the board again as soon as the money is there.
    (Once it was told a second later, for each budget; the first lease had gone back by then, and so on.)"""
    monkeypatch.setattr(telling, "POST_AGAIN_S", float("inf"))
    lane = in_memory("several", 1)
    lane.budgets = (Budget(10**12), Budget(10**12, "day"), Budget(10**12, "month", "*"))
    lane.ledger = LedgerClient(FolderState(tmp_path), "r")
    shell, driver = lane.shell(lane.place.open())
    await shell.open(await lane.made_plan(), force=True)
    shell.go()
    board, heard = Board(), 0
    board.own(0, 1)
    async with asyncio.timeout(20):
        while not driver.settled:
            for post in driver.posts[heard:]:
                board.post(post, 1)
            heard = len(driver.posts)
            grant = board.grant("w", rig.POOL, 16, 0.0)
            chunk = None if grant is None else (await shell.take(rig.POOL, grant.n, 1 << 30, "w"))[0]
            if chunk is not None:
                await shell.done(chunk.epoch, [rig.answered(call) for call in chunk.calls])
            await asyncio.sleep(0.001)
    await shell.close()
    assert len(await lane.told()) == 1


async def test_an_idle_lane_gives_its_money_back(tmp_path: Path) -> None:
    """A lane that waits for something else holds no lease that another lane may want."""
    lane = in_memory("idle", 5)
    lane.budgets = (Budget(10**12),)
    lane.ledger = LedgerClient(FolderState(tmp_path), "r")
    shell, _ = lane.shell(lane.place.open())
    await shell.open(await lane.made_plan(), force=True)
    shell.go()
    async with asyncio.timeout(20):
        while not shell.machine.till.purse.spent():
            await shell.take(rig.POOL, 1, 1 << 30, "w")
            await asyncio.sleep(0)
        while lane.ledger.read("run/r").leases:  # noqa: ASYNC110 - a document of other processes has no event
            await asyncio.sleep(0.01)
    await shell.close()


async def killed_with_leases(folder: Path, name: str) -> tuple[rig.Rig, int]:
    """And what they hold, nano-dollars."""
    lane = in_memory(name)
    lane.budgets = (Budget(40_000_000),)
    lane.ledger = LedgerClient(FolderState(folder), "r")
    loop, asking = asyncio.get_running_loop(), ThreadPoolExecutor()
    loop.set_default_executor(asking)
    await lane.life(lane.place.open(), lambda call: None, until=lambda s, d: len(lane.sent) >= 5)
    asking.shutdown()  # a lease that it asked for as it died is there now, or never will be
    loop.set_default_executor(ThreadPoolExecutor())
    ledger = lane.ledger.read("run/r")
    assert ledger is not None
    assert ledger.leased_nano > 0
    return lane, ledger.leased_nano


@pytest.mark.parametrize("step", ["commit.begin", "commit.applied"])
async def test_what_a_lanes_opening_gave_up_is_told_though_it_then_failed(tmp_path: Path, step: str) -> None:
    """The ledger holds it as spent; the owner died before, or right after, its first commit told the run of it."""
    lane, out = await killed_with_leases(tmp_path, f"failed opening {step}")
    await lane.life(lane.place.open(crash_at(step)))
    driver = await lane.life(lane.place.open())
    assert driver.settled
    assert driver.reports[-1].tally.forfeit_nano == out
    again = await lane.life(lane.place.open())
    assert again.reports[-1].tally.forfeit_nano == out, "it is told once"


async def test_a_killed_lanes_leases_are_spent_not_lost(tmp_path: Path) -> None:
    """What a dead owner can't prove unspent counts as spent, to the nano-dollar; nothing stays out. Its committed
    progress proves nothing here: no call of it was answered."""
    lane, out = await killed_with_leases(tmp_path, "forfeit")
    assert lane.ledger is not None
    driver = await lane.life(lane.place.open())
    assert driver.settled
    ledger = lane.ledger.read("run/r")
    assert ledger.leases == {}
    tally = driver.reports[-1].tally
    assert ledger.forfeit_nano == tally.forfeit_nano == out
    assert ledger.settled_nano == tally.cost_nano > 0


async def test_a_lane_without_its_right_asks_for_no_money(tmp_path: Path) -> None:
    """It was stopped and wakes up, replaced: nobody would ever settle what it leases."""
    lane, asked, slept = in_memory("woken", 5), list[Epoch](), [0.0]
    lane.now = lambda: time.time() + slept[0]

    class Asked(LedgerClient):
        def leases(self, wish, lease_ids, lane, epoch, now):  # type: ignore[no-untyped-def]
            asked.append(epoch)
            return super().leases(wish, lease_ids, lane, epoch, now)

    lane.budgets, lane.ledger = (Budget(10**12),), Asked(FolderState(tmp_path), "r")
    woken, driver = lane.shell(lane.place.open())
    await woken.open(await lane.made_plan(), force=True)
    woken.go()
    async with asyncio.timeout(20):
        while not woken.machine.ready.count(rig.POOL):  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0)
        await woken.take(rig.POOL, 5, 1 << 30, "w")
        assert woken.machine.wishes()
        slept[0] = 60.0
        await lane.place.open().primary.take(0, (1, 2), force=True)
        while not driver.failures:  # noqa: ASYNC110 - it tells nobody else
            await asyncio.sleep(0.01)
    await woken.close()
    assert asked == []


async def test_hours_of_engines_that_a_lane_is_told_twice_are_billed_once() -> None:
    """Who tells them did not hear that it heard. One that can't commit them says so: they would be on nobody's bill."""
    line = CostLine(
        "end/1", None, 0, "adjustment", None, "own", "v1", Usage(), 7, "amortised", "p", None, None, None, 1.0
    )
    lane = rig.Rig(rig.MemoryPlace("hours"), rig.source("hours", [rig.line(0)]))
    early, _ = lane.shell(lane.place.open())
    with pytest.raises(Fenced):
        early.add_costs([line])
    await lane.life(lane.place.open())
    shell, driver = lane.shell(lane.place.open())
    await shell.open(await lane.made_plan(), force=True)
    shell.go()
    shell.add_costs([line])
    shell.add_costs([line])
    await lane.work(shell, driver, rig.answered, lambda shell, driver: driver.settled and driver.reports[0].closed)
    await shell.close()
    with pytest.raises(Fenced):
        shell.add_costs([line])
    entries = [record.entry_id for record in await lane.place.read("costs")]
    assert entries.count("end/1") == 1


async def test_memory_does_not_grow_with_the_input() -> None:
    """20,000 items and 4,000 leave the same behind, and the window bounds what is held meanwhile. (The peak itself goes
    by how far a busy machine lets the commits fall behind.)"""

    async def left(n: int) -> int:
        lane = rig.Rig(rig.MemoryPlace("flat"), Endless(n))
        stores = lane.place.open()
        stores.primary._apply = drop(stores.primary)
        shell, driver = lane.shell(stores)
        await shell.open(await lane.made_plan(), force=True)
        shell.go()
        tracemalloc.start()
        most = 0

        def look(shell: rig.LaneShell, driver: rig.Driver) -> bool:
            nonlocal most
            lane.sent.clear()
            driver.posts.clear()
            most = max(most, len(shell.machine.slots) + shell.machine.ends.uncommitted)
            return driver.settled

        async with asyncio.timeout(600):
            await lane.work(shell, driver, rig.answered, look)
        gc.collect()
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        await shell.close()
        assert shell.machine.tally.results == n
        assert most <= 1000
        return size

    small, large = await left(4_000), await left(20_000)
    assert large < small + 16_000 * LEAK_BYTES, f"{small:,} bytes, {large:,} bytes"


class Endless:
    """`n` records made as they are read."""

    def __init__(self, n: int) -> None:
        self.n = n

    async def splits(self, lanes_hint: int) -> list[rig.Split]:
        return [rig.Split("s", "o", 0, 0, "u", 0, None)]

    async def open(self, starts: object) -> Endless:
        self.at = 0
        return self

    async def read(self, max_records: int, max_bytes: int) -> rig.Batch:
        ends = min(self.n, self.at + max_records)
        raws = [rig.Raw(rig.Position("s", 0, n), "o", rig.line(n)) for n in range(self.at, ends)]
        self.at = ends
        return rig.Batch(raws, ("s",) if ends == self.n else (), done=ends == self.n)

    async def close(self) -> None:
        pass


def drop(store: rig.MemoryStore) -> object:
    """A store that keeps progress and forgets records."""
    apply = type(store)._apply
    return lambda here, epoch, seq, records, chunks: apply(store, here, epoch, seq, {}, chunks)


async def test_an_answer_that_nests_too_deeply_ends_no_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept although invalid, in shape rows, under a schema: it is a result whose answer is text. (Each commit ended of
    it, and all that waited with it was paid for again.)"""
    schema = b'{"type":"object"}'
    task = Task("t", max_tokens=50, output=Output(json_schema=schema, on_invalid="keep"))
    encoder = rig.Encoder
    monkeypatch.setattr(rig, "POLICY", Policy({"t": task}, default_task="t"))
    monkeypatch.setattr(rig, "Encoder", lambda run, shape, **more: encoder(run, "rows", ["t"], **more))
    lane = in_memory("deep", 20)

    def reply(call: Call) -> Outcome:
        text = '{"a":' + "[" * 1000 if b'item 3"' in call.body_json else '{"a":1}'
        said = msgspec.structs.replace(rig.answered(call), answer=Answer(text, "stop", b"{}"))
        held = Verifier()(Ticket(call, Right("r", 0, (1, 1), 1e18), OutputSpec(None, schema)), said)
        assert isinstance(held, Outcome)
        return held

    driver = await lane.life(lane.place.open(), reply)
    assert driver.failures == []
    assert driver.settled
    assert len(lane.sent) == 20, "paid for once"
    assert len(await lane.place.read("results")) == 20
