"""How a run ends: where lanes were given up, and where a crash left work between the last commit and the end."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from penstock.connectors import memory
from penstock.connectors.ledger import LedgerClient
from penstock.connectors.memory import MemoryStore
from penstock.connectors.registry import Stores, open_stores
from penstock.connectors.settings import KafkaSource, MemorySink, MemorySource, Row
from penstock.connectors.state import FolderState, open_state
from penstock.engine.budget import Budget
from penstock.engine.catalog import Catalog, Model, Version
from penstock.engine.errors import Away as Unreachable
from penstock.engine.errors import Fenced, PenstockError, SpecError, Temporary
from penstock.engine.flow.progress import PROGRESS, Saved
from penstock.engine.flow.tally import ModelTally, Tally
from penstock.engine.flow.till import Wish
from penstock.engine.plan import Plan
from penstock.engine.policy import Policy, Task
from penstock.engine.results import CostLine
from penstock.workers import cluster
from penstock.workers import driver as driver_module
from penstock.workers.books import gpu_bill
from penstock.workers.driver import Driver
from penstock.workers.driving import hearing
from penstock.workers.driving.asked import key
from penstock.workers.driving.board import Board
from penstock.workers.driving.clearing import count_paid
from penstock.workers.fleet import Fleet, Worker
from penstock.workers.lanes import crew as lane_crew
from penstock.workers.lanes import member, news, patience
from penstock.workers.lanes.actor import LaneActor
from penstock.workers.lanes.crew import Crew
from penstock.workers.lanes.member import Member
from penstock.workers.lanes.report import LaneReport
from penstock.workers.runspec import RunOptions, RunSpec

OWN = Catalog({}, {"own": Model("own", (Version("v1", "x"),), "v1", worker="vllm", hour_usd=3.6)}, {3: ("own",)})
PLAN = Plan("r", "n", {}, 2, (), {}, 0.0, started=True)


def driver(folder: Path, catalog: Catalog = OWN, *, endless: bool = False) -> Driver:
    spec = RunSpec(
        "r",
        "n",
        {},
        KafkaSource(("t",), bootstrap="localhost:9092") if endless else MemorySource("ends"),
        None,
        Row(),
        catalog,
        Policy({"t": Task("t")}),
        {"results": MemorySink("ends")},
        state=str(folder),
    )
    memory.forget("ends")
    made = Driver(msgspec.msgpack.encode(spec), msgspec.msgpack.encode(RunOptions()), 1)
    made._plan, made._stores = PLAN, Stores(MemoryStore("ends"), {}, {"results": "primary"})
    made._status.resumed, made._run_epoch = True, 1
    fleet = Fleet(catalog, "r", None, 1, made._worker_lost, made._pool_changed, made._worker_changed, made._note)
    made._fleet = fleet
    made._crew = Crew(spec, PLAN, None, lambda: 1, Board(), fleet, made._log, made._note, made._end)
    made._crew._primary, made._crew._run_epoch = made._stores.primary, 1
    return made


def hear(one: Driver, report: LaneReport) -> None:
    """As of the lane's owner."""
    one._reports.heard(report, one._crew._owners.get(report.lane, 0), time.monotonic())


def test_a_drivers_status_tells_when_its_command_began(tmp_path: Path) -> None:
    spec = msgspec.msgpack.encode(driver(tmp_path)._spec)
    assert Driver(spec, msgspec.msgpack.encode(RunOptions(asked_at=5.0)), 1)._status.since == 5.0
    later = Driver(spec, msgspec.msgpack.encode(RunOptions()), 1)._status
    assert later.since == later.started_at > 5.0


@pytest.mark.parametrize("when", ["while it goes", "while engines' hours are billed"])
async def test_lanes_are_looked_after_whatever_else_a_driver_waits_for(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state that is away is tried for half a minute, several times a round: meanwhile no lane that hangs was opened
    anew, and too many dead letters ended nothing. Nor was a lane 0 that froze before it had the last lines."""
    one, checks, gate = driver(tmp_path), list[float](), asyncio.Event()
    monkeypatch.setattr(driver_module, "LOOK_EVERY_S", 0.0)

    async def away(*_: object) -> None:
        await gate.wait()

    async def check(now: float, reports: object) -> None:
        checks.append(now)

    one._crew.check, one._hearing.look = check, away  # type: ignore[method-assign]
    one._bill.changed("starting", "vllm:own@v1", "vllm:own@v1#0", time.time() - 1000.0)
    going = asyncio.create_task(one._watch() if when == "while it goes" else one._settle_up("done", ""))
    async with asyncio.timeout(5):
        while len(checks) < 3:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
    if when == "while it goes":
        one._spec = msgspec.structs.replace(one._spec, max_dead_letters=2)
        hear(one, LaneReport(0, Tally(dead_letters={"template": 3})))
        hear(one, LaneReport(1, Tally()))
        async with asyncio.timeout(5):
            while one._ending is None:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.01)
        assert one._ending[0] == "too_many_dead_letters"
    gate.set()
    going.cancel()
    await asyncio.gather(going, return_exceptions=True)


class Enough(Exception):
    pass


class Listening:
    """Counts the looks for requests; after the second the clock is set back by an hour."""

    monotonic = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self.now, self.looks = 1_700_000_000.0, 0

    def time(self) -> float:
        self.now += 0.6
        return self.now

    async def look(self, pause: object) -> None:
        self.looks += 1
        self.now -= 3_600.0 if self.looks == 2 else 0.0
        if self.looks == 5:
            raise Enough


async def test_a_clock_that_is_set_back_does_not_make_the_driver_deaf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For as long as it was set back it heard no cancel, pause or hand-over, and saw no lane that is silent."""
    made, listening = driver(tmp_path), Listening()
    monkeypatch.setattr(driver_module, "time", listening)
    monkeypatch.setattr(driver_module, "TICK_S", 0.001)
    made._hearing = listening  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(Enough):
        await asyncio.wait_for(made._watch(), 5)


async def test_a_standstill_is_timed_by_a_clock_that_can_not_be_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the run sat there for as long as it was set back, and longer."""
    made, heard = driver(tmp_path), list[float]()
    monkeypatch.setattr(made._outages, "verdict", lambda *said: heard.append(said[-1]))
    watching = asyncio.create_task(made._watch())
    async with asyncio.timeout(5):
        while not heard:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
    watching.cancel()
    assert abs(time.monotonic() - heard[0]) < 60 > time.monotonic() - made._outages._moved_at > 0


async def commit(lane: int, tally: Tally | None = None, more: dict[str, bytes] | None = None) -> None:
    store = MemoryStore("ends")
    await store.take(lane, (1, 1), force=True)
    saved = Saved(done=True, tally=tally or Tally())
    await store.commit(lane, (1, 1), 1, {}, {PROGRESS: msgspec.msgpack.encode(saved), **(more or {})})


@pytest.mark.parametrize("known_nano", [0, 50, 900])
async def test_what_a_run_has_paid_is_spent_of_a_budget_that_is_newer(tmp_path: Path, known_nano: int) -> None:
    """Or whose ledger was elsewhere for a while: the next call gets no money. Of shadows their own calls count; nobody
    sums up a tenant's."""
    budgets = Budget(600), Budget(600, role="shadow"), Budget(600, role="explore"), Budget(600, tenant="*")
    spec = msgspec.structs.replace(driver(tmp_path)._spec, budgets=budgets)
    await commit(0, Tally(cost_nano=400, steps_nano={"shadow": 20}))
    await commit(1, Tally(cost_nano=130, forfeit_nano=70, steps_nano={"shadow": 30}))
    client = LedgerClient(open_state(str(tmp_path)), "r")
    if known_nano:
        client.leases(Wish("run/r", 1_000, (known_nano,)), ["0-1"], 0, (1, 1), 0.0)
        client.settle("run/r", "0-1", known_nano)
    await count_paid(spec, PLAN, MemoryStore("ends"))
    keys = "run/r", "run/r/for/shadow", "run/r/for/explore", "run/r/tenant/a"
    found = [ledger.settled_nano + ledger.forfeit_nano if (ledger := client.read(key)) else None for key in keys]
    assert found == [{0: 600, 50: 530, 900: 900}[known_nano], 50, 0, None]
    assert isinstance(client.leases(Wish("run/r", 600, (100,)), ["0-2"], 0, (2, 1), 0.0), str)


async def test_a_lane_that_was_given_up_does_not_keep_a_run_from_ending(tmp_path: Path) -> None:
    """Its input is gone, say: nobody will report for it again."""
    one = driver(tmp_path)
    one._reports.now[1] = LaneReport(1, Tally(), settled=True)
    assert not one._all_settled()
    await one._crew.failed(0, False, "input.jsonl is gone", True)
    assert one._all_settled()
    assert one._ending == ("failed", "input.jsonl is gone")


async def test_what_a_lane_had_done_before_it_was_given_up_is_in_the_runs_sums(tmp_path: Path) -> None:
    """So is what the others do until the run has ended: both are in the outputs, and were paid for."""
    one, _ = with_lanes(tmp_path, Temporary("away"), endless=False)

    async def report(lane: int, results: int) -> None:
        told = LaneReport(lane, Tally(results=results, cost_nano=results), settled=True)
        await one.report(msgspec.msgpack.encode(told), lane + 1)

    await report(0, 3)
    await report(1, 4)
    await one.lane_failed(0, 1, False, "input.jsonl is gone", True)
    await report(1, 5)
    assert await one._watch() == ("failed", "input.jsonl is gone")
    assert (one._status.tally.results, one._status.budget_spent_nano) == (8, 8)


async def test_a_run_that_others_took_over_ends(tmp_path: Path) -> None:
    """Each of its lanes is fenced, and none comes back."""
    one = driver(tmp_path)
    holder = MemoryStore("ends")
    for _ in range(2):
        await holder.hold(memory_holder(), take_over=True)
    for lane in range(2):
        await one._crew.failed(lane, True, "fenced", True)
    assert one._all_settled()
    assert one._ending is not None
    assert "taken over" in one._ending[1]


async def test_a_run_that_others_took_over_leaves_its_calls_alone(tmp_path: Path) -> None:
    """Workers know them by the run, which is the other command's: they would be paid for, and made again."""
    for taken in (False, True):
        one, worker = driver(tmp_path), Hands(None)
        one._fleet.workers["api:a", 0] = Worker("api:a", 0)
        one._fleet.workers["api:a", 0].handle = worker
        for _ in range(2 if taken else 1):
            await MemoryStore("ends").hold(memory_holder(), take_over=True)
        if taken:
            await one._finish("failed", "the run was taken over by another command")
        else:
            await one._fail("a lane can't go on")
        assert worker.told == (["leave"] if taken else ["abort", "leave"])
        assert one._status.state == "failed"


class Away(MemoryStore):
    """Can't be reached."""

    async def run_epoch(self) -> int:
        raise Temporary("the store is away")


class Hands:
    """Stands where a lane actor's handle would: opening lane 0 fails as `error` says, every other call goes well."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.opened: list[int] = []
        self.told: list[str] = []
        """Every call, in order."""
        self.deaf = False
        """It does not hear of a longer plan."""
        self.mute: dict[str, int] = {}
        """Calls whose next replies get lost."""
        self.said: list[tuple[object, ...]] = []
        """Calls that ask something of lanes, with their arguments."""
        self.fails: dict[str, Exception] = {}

    def __getattr__(self, name: str) -> Method:
        return Method(self, name)


class Method(msgspec.Struct):
    hands: Hands
    name: str

    async def remote(self, *arguments: object) -> None:
        if self.name == "extend" and self.hands.deaf:
            await asyncio.Event().wait()
        self.hands.told.append(self.name)
        if self.name in ("pause", "drain"):
            self.hands.said.append((self.name, *arguments))
        if self.name in self.hands.fails:
            raise self.hands.fails[self.name]
        if self.name == "open" and arguments[0] == 0 and self.hands.error is not None:
            raise self.hands.error
        if self.name == "open":
            self.hands.opened.append(arguments[0])  # type: ignore[arg-type]
        if self.hands.mute.get(self.name, 0) > 0:
            self.hands.mute[self.name] -= 1
            await asyncio.Event().wait()


def with_lanes(folder: Path, error: Exception, *, endless: bool) -> tuple[Driver, Hands]:
    """Two lanes in one actor."""
    one, hands = driver(folder, endless=endless), Hands(error)
    crew = one._crew
    assert crew._spec.endless == endless
    crew._complete = True
    actor = Member(0, hands, PLAN.version, [0, 1])
    crew._actors.append(actor)
    crew._by_lane, crew._owners = {0: actor, 1: actor}, {0: 1, 1: 2}
    crew._held = dict(crew._by_lane)
    return one, hands


async def test_a_fenced_lane_whose_store_is_away_is_opened_again(tmp_path: Path) -> None:
    """Whether the run was taken over can't be read just then: a lane that nobody looks after would hold it up for
    ever."""
    one, hands = with_lanes(tmp_path, Temporary("away"), endless=False)
    one._crew._primary = Away("ends")  # type: ignore[assignment]
    await one._crew.failed(1, True, "fenced", True)
    assert hands.opened == [1]


async def test_what_is_said_of_an_owner_that_was_replaced_meanwhile_reopens_nothing(tmp_path: Path) -> None:
    """Its actor died while the store was asked who has the run: the lane is well again in another, and what workers
    have of it would be in doubt once more."""
    one, hands = with_lanes(tmp_path, Temporary("away"), endless=False)
    crew, asked, gate = one._crew, asyncio.Event(), asyncio.Event()

    class Slow(MemoryStore):
        async def run_epoch(self) -> int:
            asked.set()
            await gate.wait()
            return await super().run_epoch()

    crew._primary = Slow("ends")  # type: ignore[assignment]
    failing = asyncio.create_task(crew.failed(1, True, "fenced", True))
    await asked.wait()
    await crew._reopen_here(1, crew._by_lane[1])
    gate.set()
    await failing
    assert (hands.opened, crew._opened) == ([1], {1})


async def test_a_run_without_an_end_that_was_taken_over_ends_where_a_lane_is_being_opened(tmp_path: Path) -> None:
    """Cut off from its store it opens its lanes again and again; when the store is back, they are another command's."""
    one, _ = with_lanes(tmp_path, Fenced("owned by epoch (2, 1)"), endless=True)
    for _ in range(2):
        await MemoryStore("ends").hold(memory_holder(), take_over=True)
    async with asyncio.timeout(20):
        await one._crew.failed(0, False, "away", False)
    assert 0 in one._crew.gone
    assert one._ending is not None
    assert "taken over" in one._ending[1]


async def test_a_lane_that_can_not_be_opened_keeps_no_other_from_it(tmp_path: Path) -> None:
    """Its partition is offline, say, and the run has no end: it is tried for ever."""
    one, hands = with_lanes(tmp_path, Temporary("its partition has no leader"), endless=True)
    stuck = asyncio.create_task(one._crew.failed(0, False, "away", False))
    await asyncio.sleep(0)
    async with asyncio.timeout(20):
        await one._crew.failed(1, False, "away", False)
    assert hands.opened == [1]
    assert not stuck.done()
    stuck.cancel()
    await asyncio.gather(stuck, return_exceptions=True)


async def test_a_worker_that_is_lost_while_a_lane_asks_around_is_told_again(tmp_path: Path) -> None:
    """It has answered, another is slow: the lane learns of its calls only when it is gone, and would wait for them
    until they time out."""
    one, hands = with_lanes(tmp_path, Temporary("away"), endless=False)
    hands.error = None
    workers = one._fleet.workers
    for number in range(2):
        worker = workers["api:a", number] = Worker("api:a", number)
        worker.name, worker.handle = f"w{number}", hands
    lost: list[str] = []

    class Adopt:
        async def remote(self, lane: int, me: object, asked: list[tuple[str, object]]) -> None:
            assert [name for name, _ in asked] == ["w0", "w1"]
            workers["api:a", 0].handle = None

    class Lost:
        async def remote(self, name: str) -> None:
            lost.append(name)

    hands.adopt, hands.worker_lost = Adopt(), Lost()  # pyright: ignore[reportAttributeAccessIssue]
    await one._crew.failed(1, False, "away", False)
    assert (hands.opened, lost) == ([1], ["w0"])


async def test_a_run_with_an_end_waits_for_a_store_that_is_away_and_says_so(tmp_path: Path) -> None:
    """As long as the job says, not as often as a broken disk is tried; asked to stop, it waits no longer than calls in
    flight may take."""
    one, hands = with_lanes(tmp_path, Unreachable("Kafka at b:9092 can't be reached"), endless=False)
    crew = one._crew
    waiting = asyncio.create_task(crew.failed(0, False, "its commit is uncertain", False))
    async with asyncio.timeout(20):
        while not one._status.notes:  # noqa: ASYNC110 - it tells nobody else
            await asyncio.sleep(0.01)
    assert "waits for up to 600 s" in one._status.notes[0]
    assert "Kafka at b:9092 can't be reached" in one._status.notes[0]
    assert all(crew._may_reopen(0, "away", Unreachable("away")) for _ in range(50))
    assert (one._ending, len(one._status.notes)) == (None, 1)
    hands.error = None
    async with asyncio.timeout(20):
        await waiting
    assert hands.opened == [0]
    assert one._status.notes[1:] == ["the run goes on: what was away is back"]


async def test_a_lane_that_hangs_beside_others_that_work_is_opened_anew(tmp_path: Path) -> None:
    """Its actor lives, so nobody else would notice; its neighbour is left alone."""
    one, hands = with_lanes(tmp_path, Temporary("away"), endless=False)
    crew = one._crew
    hands.error, crew._going, crew._opened = None, True, {0, 1}
    now = time.time()
    crew._heard = {0: now, 1: now}
    for second in range(70):
        crew._heard[1] = now + second
        await crew.check(now + second, one._reports)
    async with asyncio.timeout(20):
        while not hands.opened:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
    assert hands.opened == [0]
    assert any("lane 0 hangs" in note for note in one._status.notes)


async def test_a_lane_actor_whose_connection_breaks_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on with its window, which another would pay for again; its end is told as before."""
    monkeypatch.setattr(cluster, "AWAY_S", 0.01)
    asked, over = 0, asyncio.Event()

    class Broken:
        async def remote(self) -> None:
            nonlocal asked
            asked += 1
            if asked < 3:
                raise ActorUnavailableError("the connection broke", None)
            await over.wait()
            raise ActorDiedError

    one, hands = with_lanes(tmp_path, Temporary("away"), endless=False)
    hands.lost = Broken()  # pyright: ignore[reportAttributeAccessIssue]
    crew, (actor,) = one._crew, one._crew._actors
    monkeypatch.setattr(crew, "_new_actor", lambda number, lanes: Member(number, Hands(None), PLAN.version, []))  # pyright: ignore[reportUnknownLambdaType]
    watching = asyncio.create_task(crew._watch(actor))
    async with asyncio.timeout(5):
        while asked < 3:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
    assert crew._actors == [actor]
    over.set()
    async with asyncio.timeout(5):
        await watching
    assert actor not in crew._actors


async def test_a_lane_whose_opening_is_never_answered_is_opened_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reply got lost, or it hangs: a run would not begin for ever, and nobody looks after lanes before it did."""
    monkeypatch.setattr(lane_crew, "FIRST_OPEN_S", 0.1)
    one, hands = with_lanes(tmp_path, Temporary("away"), endless=False)
    hands.error, hands.mute = None, {"open": 1}
    async with asyncio.timeout(20):
        await one._crew.start(PLAN, MemoryStore("ends"), 1, complete=True, force=False)
    assert (sorted(hands.opened), one._crew._opened) in (([0, 0, 1], {0, 1}), ([0, 1, 1], {0, 1}))


async def test_lanes_hear_that_they_have_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose progress is gone is not begun anew then, not by the command that began it either: all that it had done
    would be paid for again."""
    one, hands = with_lanes(tmp_path, Temporary("away"), endless=False)
    hands.error = None
    memory.MemorySource("ends", [])
    one._plan = one._crew.news.plan = msgspec.structs.replace(PLAN, started=False)
    await one._stores.primary.write_plan(one._plan)
    plans = list[Plan]()

    class Extend:
        async def remote(self, plan: bytes) -> None:
            plans.append(msgspec.msgpack.decode(plan, type=Plan))

    hands.extend = Extend()  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(one._fleet, "want", lambda _: None)  # pyright: ignore[reportUnknownLambdaType]
    monkeypatch.setattr(one._fleet, "_left", lambda: asyncio.sleep(0, []))
    await one._begin()
    assert [plan.started for plan in plans[-1:]] == [True]
    assert (await MemoryStore("ends").read_plan()) == plans[-1]
    one._labels._stopping = True


@pytest.mark.parametrize("tells", [False, True])
async def test_an_actor_that_is_frozen_while_its_lanes_open_is_ended(
    tells: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of its lanes is open, so none can be silent: they were opened there again and again, for ever where the run
    has no end. One that tells its pace lives, and its store is slow."""
    monkeypatch.setattr(lane_crew, "OPEN_TIMEOUT_S", 0.1)
    monkeypatch.setattr(patience, "AWAY_PAUSE_S", 0.0)
    killed = list[object]()
    monkeypatch.setattr(lane_crew, "kill", killed.append)
    one, hands = with_lanes(tmp_path, Temporary("away"), endless=True)
    hands.error, hands.mute = None, {"open": 1 << 30}
    opening = asyncio.create_task(one._crew._reopen_here(0, one._crew._by_lane[0]))
    async with asyncio.timeout(20):
        while not killed and len(hands.opened) < 4:
            if tells:
                await one.pace(0, 1.0, 0.0)
            await asyncio.sleep(0.01)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    assert set(killed) == (set() if tells else {hands})


@pytest.mark.parametrize("error", [Unreachable("no broker answers"), SpecError("no such sink")])
async def test_a_lane_that_opens_first_waits_for_a_store_that_is_away(error: PenstockError, tmp_path: Path) -> None:
    """As a lane that is opened anew does: a driver that followed a lost one gave the run up for one lane whose broker
    was about to be replaced, and an endless run ended. What no waiting mends ends it at once."""
    one, hands = with_lanes(tmp_path, Temporary("away"), endless=True)
    hands.error = RayTaskError("open", "where it was", error).as_instanceof_cause()
    starting = asyncio.create_task(one._crew.start(PLAN, MemoryStore("ends"), 1, complete=True, force=False))
    if isinstance(error, SpecError):
        with pytest.raises(SpecError):
            await starting
        return
    async with asyncio.timeout(20):
        while not one._status.notes:  # noqa: ASYNC110 - it tells nobody else
            await asyncio.sleep(0.01)
        assert one._status.notes == ["the run waits, and goes on by itself, since no broker answers"]
        hands.error = None
        await starting
    assert (one._crew._opened, one._ending) == ({0, 1}, None)


async def test_a_run_whose_lanes_wait_for_their_store_hears_that_it_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It went on waiting until the store was back, for ever where the run has no end."""
    monkeypatch.setattr(hearing, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(patience, "AWAY_PAUSE_S", 0.0)
    one, hands = with_lanes(tmp_path, Temporary("away"), endless=True)
    execution = msgspec.structs.replace(one._spec.execution, drain_s=0.1)
    one._crew._spec = msgspec.structs.replace(one._spec, execution=execution)
    hands.error = RayTaskError("open", "where it was", Unreachable("no broker answers")).as_instanceof_cause()
    opening = one._crew.start(PLAN, MemoryStore("ends"), 1, complete=True, force=False)
    starting = asyncio.create_task(one._hearing.meanwhile(opening))
    async with asyncio.timeout(20):
        while not one._status.notes:  # noqa: ASYNC110 - it tells nobody else
            await asyncio.sleep(0.01)
        open_state(one._spec.state).put(key(one._spec.run_id, "cancel"), b"x", None)
        await starting
    assert one._ending == ("cancelled", "cancelled; the same command goes on where it was")
    assert one._crew.gone == {0}


async def test_a_run_that_is_to_stop_while_its_store_is_away_ends_as_it_was_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was told as failed, though whoever cancelled it got what they asked for."""
    one = driver(tmp_path)

    async def away() -> bool:
        one._end("cancelled", "cancelled; the same command goes on where it was")
        raise Unreachable("no broker answers")

    monkeypatch.setattr(one, "_nothing_to_do", away)
    await one._run()
    assert one._status.state == "cancelled"
    assert one._status.message == "cancelled; the same command goes on where it was (no broker answers)"


@pytest.mark.parametrize("call", ["open", "adopt"])
async def test_a_lane_whose_actor_can_not_be_reached_while_it_opens_first_is_opened_anew(
    call: str, tmp_path: Path
) -> None:
    """The connection broke for a moment, and the actor lives: nobody replaces it, and the run never began."""
    one, hands = with_lanes(tmp_path, Temporary("away"), endless=False)
    one._fleet.workers["api:a", 0] = worker = Worker("api:a", 0)
    worker.name, worker.handle, hands.error = "w", Hands(None), None

    class Breaks:
        async def remote(self, lane: int, *_: object) -> None:
            delattr(hands, call)
            raise ActorUnavailableError("the connection broke", None)

    setattr(hands, call, Breaks())
    async with asyncio.timeout(5):
        await one._crew.start(PLAN, MemoryStore("ends"), 1, complete=True, force=False)
    assert one._crew._opened == {0, 1}


async def test_lanes_whose_answer_to_go_gets_lost_are_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told twice they go once. An actor that never answers is ended, so that its lanes go on in another."""
    monkeypatch.setattr(member, "GO_S", 0.02)
    killed: list[object] = []
    monkeypatch.setattr(member, "kill", killed.append)
    one, hands = with_lanes(tmp_path, Temporary("away"), endless=False)
    hands.mute = {"go": 1}
    async with asyncio.timeout(20):
        await one._crew.go()
    assert (hands.told, killed) == (["go", "go"], [])
    hands.mute = {"go": 100}
    async with asyncio.timeout(20):
        await one._crew.go()
    assert killed == [hands]


async def test_no_lane_opens_by_an_older_plan_than_its_last_owner_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An actor on a busy machine did not hear of the longer plan in time. It is told again, and before a lane is opened
    there in any case: else the lane would find progress that its plan doesn't know."""
    monkeypatch.setattr(news, "TELL_S", 0.01)
    one, hands = with_lanes(tmp_path, Temporary("away"), endless=True)
    crew = one._crew
    hands.error, hands.deaf, crew._going = None, True, True
    await crew.news.extend(msgspec.structs.replace(PLAN, version=2))
    assert hands.told == []
    opening = asyncio.create_task(crew.failed(0, False, "away", False))
    await crew.check(time.time(), one._reports)
    await asyncio.sleep(0.05)
    assert hands.opened == []
    opening.cancel()
    hands.deaf = False
    await crew.failed(0, False, "away", False)
    assert hands.told[:2] == ["extend", "open"]
    await crew.check(time.time(), one._reports)
    await asyncio.sleep(0)
    assert hands.told.count("extend") == 1


async def test_lanes_hear_in_the_end_which_pools_are_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A telling that gets lost is made again, or a lane would be without its pool until it is opened anew."""
    monkeypatch.setattr(news, "TELL_S", 0.05)
    one, hands = with_lanes(tmp_path, Temporary("away"), endless=True)
    crew = one._crew
    hands.error, crew._going, crew._opened = None, True, {0}
    (actor,) = crew._actors

    async def checked() -> list[str]:
        await crew.check(time.time(), one._reports)
        await asyncio.gather(*crew._tasks)
        told = [each for each in hands.told if each.startswith("pool")]
        hands.told.clear()
        return told

    one._fleet.down["vllm:own@v1"] = "no such folder"
    hands.mute["pool_down"] = 1
    await crew.news.pools_changed()
    assert await checked() == ["pool_down", "pool_down"]
    assert await checked() == []
    await crew.news.tell_pools(actor, anew=True)
    assert hands.told == ["pool_down"], "another lane has just opened there"
    hands.told.clear()
    del one._fleet.down["vllm:own@v1"]
    hands.mute["pool_up"] = 1
    await crew.news.pools_changed()
    assert await checked() == ["pool_up", "pool_up"]
    assert await checked() == []


async def test_lanes_hear_in_the_end_what_they_are_asked_and_the_last_word_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tier that one actor never heard to be paused went on being paid for; a run waited for lanes that had not heard
    of its stop."""
    monkeypatch.setattr(news, "TELL_S", 0.05)
    one, hands = with_lanes(tmp_path, Temporary("away"), endless=True)
    crew = one._crew
    hands.error, crew._going, crew._opened = None, True, {0}
    hands.mute["pause"] = 2
    await crew.news.pause((3,))
    await crew.news.pause(())
    await crew.drain()
    assert hands.said == [("pause", [3])] * 2 + [("pause", [3]), ("pause", []), ("drain",)]
    hands.said.clear()
    await crew.check(time.time(), one._reports)
    await asyncio.gather(*crew._tasks)
    assert hands.said == []


async def test_what_a_lane_actor_fails_at_is_told_and_keeps_it_from_hearing_nothing_else(tmp_path: Path) -> None:
    """It was passed over in silence: the status said paused, and the items went on."""
    one, hands = with_lanes(tmp_path, Temporary("away"), endless=True)
    hands.fails["pause"] = RayTaskError("pause", "where it was", ValueError("no such tier"))
    await one._crew.news.pause((3,))
    await one._crew.drain()
    assert [said[0] for said in hands.said] == ["pause", "drain"]
    assert any("failed at 'pause'" in note and "no such tier" in note for note in one._status.notes)


async def test_a_drain_waits_for_nothing_else_that_an_actor_was_not_told(tmp_path: Path) -> None:
    """Whatever keeps it from hearing of versions or of a longer plan: it goes on paying until it hears the stop."""
    one, hands = with_lanes(tmp_path, Temporary("away"), endless=True)
    hands.fails["learn"] = RayTaskError("learn", "where it was", ValueError("a fault of ours"))
    await one._crew.news.learn(b"standings")
    await one._crew.drain()
    assert hands.said == [("drain",)]


async def test_all_that_lanes_are_told_is_something_that_they_do() -> None:
    """The names are words to the type checker."""
    for name in ("worker_lost", "reprice", "pause", "verdict", "drain"):
        assert callable(getattr(LaneActor, name))


async def test_a_finished_run_with_a_full_outbox_is_not_over(tmp_path: Path) -> None:
    """Killed after the primary's last commit: its followers still lack records."""
    one = driver(tmp_path)
    await commit(0)
    await commit(1)
    assert await one._nothing_to_do()
    one = driver(tmp_path)
    await commit(0)
    await commit(1, more={"outbox/0000000001": b"batch"})
    assert not await one._nothing_to_do()


async def test_a_finished_run_whose_engines_are_not_billed_is_not_over(tmp_path: Path) -> None:
    """Killed between the last answer and the closing lines: the hours are still owed; once they are in, they are in."""
    one = driver(tmp_path)
    one._bill.changed("starting", "vllm:own@v1", "vllm:own@v1#0", 1000.0)
    await one._bill.save(2000.0)
    await commit(0)
    await commit(1)
    assert not await one._nothing_to_do()
    owed: list[CostLine] = one._bill.owed(Tally(), 1, 3000.0)
    nano = sum(line.cost_nano for line in owed)
    assert nano == 1_000_000_000
    one = driver(tmp_path)
    await commit(0, Tally(models={"own@v1": ModelTally("own", "v1", cost_nano=nano)}))
    await commit(1)
    assert await one._nothing_to_do()


@pytest.mark.parametrize("trouble", ["", "a lane given up", "no state"])
async def test_a_run_that_stops_before_its_end_bills_the_hours_of_its_engines(tmp_path: Path, trouble: str) -> None:
    """Once: lane 0 commits them, and the next command counts them as charged. Where they can't be kept, or what the
    lanes committed is not known, it ends as it would, and the next command bills them."""
    one, hands = with_lanes(tmp_path, Temporary("away"), endless=True)
    told: list[list[CostLine]] = []

    class AddCosts:
        async def remote(self, lane: int, lines: bytes) -> None:
            told.append(msgspec.msgpack.decode(lines, type=list[CostLine]))

    hands.add_costs = AddCosts()  # pyright: ignore[reportAttributeAccessIssue]
    one._bill.changed("starting", "vllm:own@v1", "vllm:own@v1#0", time.time() - 1000.0)
    tally = Tally(models={"own@v1": ModelTally("own", "v1", cost_nano=400_000_000)})
    for lane in range(2):
        hear(one, LaneReport(lane, tally if lane else Tally(), settled=True))
    one._ending = ("interrupted", "interrupted")
    if trouble == "a lane given up":
        one._crew.gone.add(1)
    if trouble == "no state":
        (tmp_path / "runs").write_text("in the way")
    ending = asyncio.create_task(one._settle_up("interrupted", "interrupted"))
    if not trouble:
        async with asyncio.timeout(20):
            while not told:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.01)
        (lines,) = told
        nano = sum(line.cost_nano for line in lines)
        assert 600_000_000 <= nano < 620_000_000
        billed = Tally(models={"own@v1": ModelTally("own", "v1", cost_nano=nano)})
        hear(one, LaneReport(0, billed, settled=True, closed=True))
    async with asyncio.timeout(20):
        assert await ending == ("interrupted", "interrupted")
    assert len(told) == (not trouble)
    if not trouble:
        heir = driver(tmp_path)
        await heir._bill.open(resumed=True, now=time.time() + 9_000.0)
        assert heir._bill.owed(one._status.tally, 2, time.time() + 9_000.0) == []


@pytest.mark.parametrize("lost", [False, True])
async def test_hours_of_engines_of_which_lane_0_did_not_hear_are_told_again(lost: bool, tmp_path: Path) -> None:
    """It could not be reached for a moment, or was `lost`: then its next owner is told once it is open, and knows what
    the last one committed. (Told before that it did not hear, and the run waited for it for ever.)"""
    one, hands = with_lanes(tmp_path, Temporary("away"), endless=False)
    tried, told, there = list[int](), list[list[CostLine]](), False

    class AddCosts:
        async def remote(self, lane: int, lines: bytes) -> None:
            tried.append(one._crew._owners[0])
            if not there:
                raise ActorUnavailableError("the connection broke", None)
            told.append(msgspec.msgpack.decode(lines, type=list[CostLine]))

    hands.add_costs = AddCosts()  # pyright: ignore[reportAttributeAccessIssue]
    one._bill.changed("starting", "vllm:own@v1", "vllm:own@v1#0", time.time() - 1000.0)
    for lane in range(2):
        hear(one, LaneReport(lane, Tally(), settled=True))
    ending = asyncio.create_task(one._settle_up("done", ""))
    async with asyncio.timeout(20):
        while not tried:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
        if lost:
            one._crew._owners[0] = 5
            await asyncio.sleep(0.5)
            assert set(tried) == {1}, "it is not open yet"
            hear(one, LaneReport(0, Tally(), settled=True))
        there = True
        while not told:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
        (lines,) = told
        billed = Tally(models={"own@v1": ModelTally("own", "v1", cost_nano=sum(line.cost_nano for line in lines))})
        hear(one, LaneReport(0, billed, settled=True, closed=True))
        assert await ending == ("done", "")


async def test_a_run_that_is_stopped_before_its_engines_are_billed_is_not_done(tmp_path: Path) -> None:
    """All items have ended, and lane 0, which is to commit the hours, can't be opened: who waits for it long enough and
    interrupts must not be told that nothing is left to do."""
    one, _ = with_lanes(tmp_path, Temporary("away"), endless=False)
    execution = msgspec.structs.replace(one._spec.execution, drain_s=0.0)
    one._spec = msgspec.structs.replace(one._spec, execution=execution)
    one._bill.changed("starting", "vllm:own@v1", "vllm:own@v1#0", time.time() - 1000.0)
    hear(one, LaneReport(1, Tally(), settled=True, done=True))
    ending = asyncio.create_task(one._settle_up("done", ""))
    await asyncio.sleep(0)
    assert not ending.done()
    one._ending = ("interrupted", "interrupted")
    async with asyncio.timeout(20):
        assert await ending == ("interrupted", "interrupted")


async def test_a_run_that_is_to_stop_does_not_wait_for_a_state_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 is tried for half a minute, and the command is killed meanwhile: the next one bills the hours."""
    one, back = with_lanes(tmp_path, Temporary("away"), endless=True)[0], threading.Event()
    one._bill.changed("starting", "vllm:own@v1", "vllm:own@v1#0", time.time() - 1000.0)
    for lane in range(2):
        hear(one, LaneReport(lane, Tally(), settled=True))
    one._ending = ("interrupted", "interrupted")
    monkeypatch.setattr(gpu_bill, "HURRY_S", 0.01)
    monkeypatch.setattr(FolderState, "put", lambda *_: back.wait(10))
    try:
        async with asyncio.timeout(5):
            assert await one._settle_up("interrupted", "interrupted") == ("interrupted", "interrupted")
    finally:
        back.set()


async def test_the_state_and_the_stores_are_asked_beside_the_drivers_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state or a bucket that takes seconds to answer must not keep workers and lanes from being heard."""
    asked: list[str] = []

    def watched(what: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            asked.append(what.__name__)
            assert threading.current_thread() is not threading.main_thread(), what.__name__
            return what(*arguments)

        return call

    for name in ("get", "put", "list"):
        monkeypatch.setattr(FolderState, name, watched(getattr(FolderState, name)))
    monkeypatch.setattr(driver_module, "open_stores", watched(open_stores))
    memory.MemorySource("none", [])
    for fresh in (False, True):
        one = driver(tmp_path)
        one._spec = msgspec.structs.replace(one._spec, budgets=(Budget(10**9),), source=MemorySource("none"))
        one._options = msgspec.structs.replace(one._options, fresh=fresh)
        del one._crew
        await one.accept()
        assert one._main is not None
        one._main.cancel()
        assert {"get", "put", "list", "open_stores"} <= set(asked)
        await one._bill.open(resumed=True, now=1.0)
        await one._bill.save(2.0)
        asked.clear()


async def test_a_state_that_is_away_for_a_while_does_not_end_the_run(tmp_path: Path) -> None:
    """The hours of own engines are written down again five seconds later."""
    one = driver(tmp_path)
    (tmp_path / "runs").write_text("in the way")
    await one._reprice(2.0)
    (tmp_path / "runs").unlink()
    await one._reprice(7.0)
    assert FolderState(tmp_path).get("runs/r/gpu") is not None


async def test_an_interrupt_before_the_lanes_are_open_is_not_forgotten(tmp_path: Path) -> None:
    """Starting takes seconds; whoever presses Ctrl-C then means it. After the end it changes nothing."""
    one = driver(tmp_path)
    del one._crew
    await one.drain()
    assert one._ending is not None
    assert one._ending[0] == "interrupted"
    other = driver(tmp_path)
    await other._over("done", "")
    await other.drain()
    await asyncio.sleep(0)
    assert other._status.state == "done"


def memory_holder():
    from penstock.connectors.base import this_process

    return this_process("penstock run")


async def test_reports_that_come_while_a_round_waits_are_in_the_last_sums(tmp_path: Path) -> None:
    """Else a run ends as done with nothing in it, and its dead letters change no exit code."""
    one = driver(tmp_path)

    async def check(now: float, reports: object) -> None:
        for lane in range(2):
            hear(one, LaneReport(lane, Tally(dead_letters={"template": 3}), done=True, settled=True))

    one._crew.check = check  # type: ignore[method-assign]
    async with asyncio.timeout(20):
        assert await one._watch() == ("done", "")
    assert (one._status.tally.dead_letters, one._status.lanes_ended) == ({"template": 6}, 2)


async def test_a_take_over_that_would_be_refused_leaves_the_holder_alone(tmp_path: Path) -> None:
    """Its prompt changed and nobody accepted it: else the one that works would have drained for nothing."""
    one = driver(tmp_path)
    one._options = msgspec.structs.replace(one._options, take_over=True)
    one._spec = msgspec.structs.replace(one._spec, fingerprint={"prompt": "new"})
    memory.MemorySource("ends", [])
    held = MemoryStore("ends")
    await held.hold(memory_holder())
    await held.write_plan(msgspec.structs.replace(PLAN, fingerprint={"prompt": "old"}))
    await commit(0, Tally(results=1))
    with pytest.raises(SpecError, match="prompt"):
        await one.accept()
    assert await held.run_epoch() == 1
    assert await held.holder() is not None
    assert FolderState(tmp_path).get("runs/r/handover") is None


@pytest.mark.parametrize("away", [False, True])
async def test_what_started_for_a_take_over_that_fails_is_ended(
    away: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its dispatchers start while the holder still works, and serve nobody; whether it then can't be asked, or nobody
    wants the run any more, they go, and the holder stays."""
    one, told = driver(tmp_path), list[str]()
    one._options = msgspec.structs.replace(one._options, take_over=True)
    memory.MemorySource("ends", [])
    held = MemoryStore("ends")
    await held.hold(memory_holder())
    await held.write_plan(PLAN)
    await commit(0, Tally(results=1))

    async def warm(pools: object = None) -> None:
        assert await held.run_epoch() == 1
        told.append("warm")

    async def close(*, abort: bool = False) -> None:
        told.append(f"closed, abort={abort}")

    async def ask(*_: object) -> bool:
        told.append("asked")
        if away:
            raise Unreachable("the state is away")
        await asyncio.Event().wait()
        return False

    monkeypatch.setattr(one, "_recruit", lambda plan: None)  # pyright: ignore[reportUnknownLambdaType]
    monkeypatch.setattr(one._crew, "warm", warm)
    monkeypatch.setattr(one._fleet, "warm", warm)
    monkeypatch.setattr(one._fleet, "close", close)
    monkeypatch.setattr(driver_module, "ask_for", ask)
    accepting = asyncio.ensure_future(one.accept())
    async with asyncio.timeout(5):
        while "asked" not in told:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.005)
    if not away:
        await one.forgo()
    with pytest.raises(Unreachable if away else asyncio.CancelledError):
        await accepting
    assert told == ["warm", "warm", "asked", "closed, abort=False"]
    assert await held.holder() is not None
    assert await held.run_epoch() == 1
