"""A worker's shell: what it holds outlives a lane, it sends nothing without a right, and it says when it is dead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from penstock.engine.items import Answer, Call, CallChunk, Failure, Outcome
from penstock.engine.plan import Epoch
from penstock.workers import puller as shell
from penstock.workers.engines.base import EngineDead, Ticket
from penstock.workers.ports import CallName, Grant, Kept, job_of
from penstock.workers.puller import KEEP_S, ORPHANED_S, Puller

FIRST, SECOND = 1, 2
"""Commands of one run, one after the other."""


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Script:
    """An engine that answers what the test says, when it says so."""

    def __init__(self, room: int = 8) -> None:
        self.most = room
        self.tickets: list[Ticket] = []
        self.aborted: list[Ticket] = []
        self.landed: asyncio.Queue[list[tuple[Ticket, Outcome]] | EngineDead] = asyncio.Queue()

    async def start(self) -> None: ...

    def room(self) -> int:
        return self.most - len(self.tickets)

    def submit(self, tickets: Sequence[Ticket]) -> None:
        self.tickets += tickets

    async def outcomes(self) -> list[tuple[Ticket, Outcome]]:
        batch = await self.landed.get()
        if isinstance(batch, EngineDead):
            raise batch
        return batch

    def abort(self, tickets: Sequence[Ticket]) -> None:
        self.aborted += tickets

    def gauges(self) -> dict[str, float]:
        return {}

    async def close(self) -> None: ...

    def land(self, *names: str, failure: Failure | None = None) -> None:
        done = [ticket for ticket in self.tickets if ticket.call.item_id in names]
        self.tickets = [ticket for ticket in self.tickets if ticket not in done]
        self.landed.put_nowait([(ticket, outcome(ticket.call, failure)) for ticket in done])


class LaneStub:
    """A lane's owner, as a worker sees one."""

    def __init__(self, epoch: Epoch, calls: list[Call], clock: Clock) -> None:
        self.epoch = epoch
        self.job = "job"
        self.calls = calls
        self.clock = clock
        self.got: list[tuple[Epoch, list[str]]] = []
        self.failures: list[Failure | None] = []
        self.alive = True
        self.gate: asyncio.Event | None = None
        self.heard: list[str] = []
        self.takes: list[int] = []
        self.mute = False
        """What it is told it hears, and its reply gets lost."""
        self.losses = 0
        """Answers to takes that get lost on their way."""
        self.missed_by: list[tuple[str, int, list[CallName]]] = []

    async def take(
        self, lane: int, pool: str, n: int, max_tokens: int, worker: str, number: int
    ) -> tuple[CallChunk | None, int]:
        self.takes.append(n)
        if self.losses:
            self.losses -= 1
            raise ConnectionError("the answer got lost")
        calls, self.calls = self.calls[:n], self.calls[n:]
        if not calls:
            return None, 0
        tariffs = {f"{call.model}@{call.version}": f"price of {call.model}".encode() for call in calls}
        return CallChunk(self.job, lane, self.epoch, self.clock() + 5, calls, {}, tariffs), len(self.calls)

    async def missed(self, lane: int, worker: str, upto: int, held: list[CallName]) -> None:
        if not self.alive:
            raise ConnectionError("the actor died")
        self.missed_by.append((worker, upto, sorted(held)))

    async def done(self, lane: int, epoch: Epoch, outcomes: list[Outcome]) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if not self.alive:
            raise ConnectionError("the actor died")
        self.got.append((epoch, [o.item_id for o in outcomes]))
        self.failures += [o.failure for o in outcomes]
        if self.mute:
            await asyncio.Event().wait()

    async def right(self, lane: int, epoch: Epoch, worker: str) -> float:
        self.heard.append(worker)
        if not self.alive:
            raise ConnectionError("the actor died")
        return self.clock() + 5 if epoch == self.epoch else 0.0


class BoardStub:
    def __init__(self, lane: LaneStub) -> None:
        self.lane_stub = lane
        self.rooms: list[int] = []
        self.asked = 0
        """How often it was asked late whose the lane is."""
        self.mute: set[str] = set()
        """Calls of it whose next reply gets lost."""
        self.away = False

    async def _reply(self, name: str) -> None:
        if self.away:
            raise ConnectionError("the actor died")
        if name in self.mute:
            self.mute.remove(name)
            await asyncio.Event().wait()

    async def ask(self, worker: str, pool: str, room: int) -> Grant | None:
        self.rooms.append(room)
        await self._reply("ask")
        if self.lane_stub.calls:
            return Grant(0, 1, room, 1 << 30)
        await asyncio.sleep(0.001)
        return None

    async def lane(self, lane: int) -> tuple[int, LaneStub]:
        await self._reply("lane")
        return 1, self.lane_stub


def call(name: str, attempt: int = 1, model: str = "m") -> Call:
    by = "policy", f"prompt of {name}"
    return Call(name, 0, attempt, "primary", model, "v", model, b"{}", "t", 10, 60.0, 5, 9, made_by=by)


def outcome(call: Call, failure: Failure | None = None) -> Outcome:
    answer = Answer("yes", "stop", b"{}") if failure is None else None
    return Outcome(call.item_id, 0, call.attempt, 0.0, 1.0, answer, failure)


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110 - what is awaited has no event of its own
            await asyncio.sleep(0)


class World:
    def __init__(self, calls: list[Call], room: int = 8) -> None:
        self.clock = Clock()
        self.engine = Script(room)
        self.lane = LaneStub((1, 1), calls, self.clock)
        self.board = BoardStub(self.lane)
        self.puller = Puller("w", "api:a", self.engine, lambda ticket, outcome: outcome, self.clock)
        self.puller.start()
        self.puller.serve("job", self.board, FIRST)

    def successor(self, epoch: Epoch = (1, 2)) -> LaneStub:
        return LaneStub(epoch, [], self.clock)


@pytest.fixture
async def world():
    made = World([call("a"), call("b"), call("c", 2, "other")])
    await until(lambda: len(made.engine.tickets) == 3)
    yield made
    await made.puller.close()


async def test_answers_come_home(world: World) -> None:
    """What is answered is delivered to the owner that asked for it."""
    world.engine.land("a", "b")
    await until(lambda: world.lane.got)
    assert world.lane.got == [((1, 1), ["a", "b"])]


async def test_answers_outlive_a_lane(world: World) -> None:
    """The owner dies: its answers are kept for the next one, with their models and the prompts that they
    were asked; calls still going on become his."""
    world.lane.alive = False
    world.engine.land("a", "c")
    await until(lambda: world.puller._lanes["job", 0].lost_at is not None)
    heir = world.successor()
    kept = world.puller.adopt("job", 0, (1, 2), heir, world.clock() + 5)
    assert [(one.item_id, one.model, one.made_by, one.tariff) for one in (*kept.answered, *kept.flying)] == [
        ("a", "m", ("policy", "prompt of a"), b"price of m"),
        ("c", "other", ("policy", "prompt of c"), b"price of other"),
        ("b", "m", ("policy", "prompt of b"), b"price of m"),
    ]
    assert [one.outcome is None for one in (*kept.answered, *kept.flying)] == [False, False, True]
    world.engine.land("b")
    await until(lambda: heir.got)
    assert heir.got == [((1, 2), ["b"])]


@pytest.mark.parametrize("heard", ["", "take", "done"])
async def test_an_owner_that_did_not_hear_what_is_here_leaves_it_to_the_next(world: World, heard: str) -> None:
    """The reply got lost, and the lane is opened anew: its answers were gone. Who gives calls out, or takes answers,
    has heard it."""
    world.lane.alive = False
    world.engine.land("a")
    await until(lambda: world.puller._lanes["job", 0].lost_at is not None)
    second = world.successor()
    assert len(world.puller.adopt("job", 0, (1, 2), second, world.clock() + 5).answered) == 1
    if heard == "take":
        world.puller._accept(world.puller._lanes["job", 0], CallChunk("job", 0, (1, 2), 0.0, [call("d")]))
    elif heard == "done":
        world.engine.land("b")
        await until(lambda: second.got and world.puller._lanes["job", 0].busy is None)
    kept = world.puller.adopt("job", 0, (1, 3), world.successor((1, 3)), world.clock() + 5)
    assert [one.item_id for one in kept.answered] == ([] if heard else ["a"])


async def test_a_delivery_that_failed_is_made_again_where_the_owner_lives(world: World) -> None:
    """A broken connection is no lost lane: its answers must not wait for an heir who never comes."""
    world.lane.alive = False
    world.engine.land("a", "b", "c")
    await until(lambda: world.puller._lanes["job", 0].lost_at is not None)
    await world.puller.renew()
    assert world.lane.got == []
    world.lane.alive = True
    await world.puller.renew()
    await until(lambda: world.lane.got)
    assert world.lane.got == [((1, 1), ["a", "b", "c"])]


async def test_a_lane_that_dies_while_it_is_told_loses_nothing(world: World) -> None:
    """The delivery hangs in a dead owner: the next one gets those answers at once, and only once; later ones flow."""
    world.lane.gate = asyncio.Event()
    world.engine.land("a")
    await until(lambda: world.puller._lanes["job", 0].delivering)
    heir = world.successor()
    kept = world.puller.adopt("job", 0, (1, 2), heir, world.clock() + 5)
    assert [one.item_id for one in kept.answered] == ["a"]
    world.engine.land("b")
    await until(lambda: heir.got)
    world.lane.alive = False
    world.lane.gate.set()
    world.engine.land("c")
    await until(lambda: len(heir.got) == 2)
    assert heir.got == [((1, 2), ["b"]), ((1, 2), ["c"])]


async def test_a_take_whose_answer_got_lost_is_told(world: World) -> None:
    """The lane learns what the worker holds after it, answered or not, and is told once; what it gave besides never
    arrived, and would be waited for until it timed out."""
    await world.puller.renew()
    assert world.lane.missed_by == []
    world.lane.gate = asyncio.Event()
    world.engine.land("c")
    await until(lambda: world.puller._lanes["job", 0].delivering)
    before = len(world.lane.takes)
    world.lane.losses, world.lane.calls = 1, [call("d")]
    await until(lambda: len(world.lane.takes) > before and not world.lane.losses)
    await until(lambda: len(world.engine.tickets) == 3)
    await world.puller.renew()
    await world.puller.renew()
    [(worker, _, held)] = world.lane.missed_by
    assert (worker, held) == ("w", [("a", 0, 1), ("b", 0, 1), ("c", 0, 2), ("d", 0, 1)])
    world.lane.gate.set()


async def test_nothing_is_said_of_a_take_that_may_still_be_answered(world: World) -> None:
    """An earlier one that hangs: what it brings is still accepted, so the lane must not give it to others."""
    at = world.puller._lanes["job", 0]
    at.taking.add(7)
    at.given_up = 8
    await world.puller.renew()
    assert world.lane.missed_by == []
    at.taking.discard(7)
    world.lane.alive = False
    await world.puller.renew()
    world.lane.alive = True
    await world.puller.renew()
    assert [upto for _, upto, _ in world.lane.missed_by] == [8], "told again, where it could not be told"


@pytest.mark.parametrize("comes_back", [False, True])
async def test_a_take_whose_answer_got_lost_is_told_though_its_job_was_left(world: World, comes_back: bool) -> None:
    """The lane goes on without this worker, and waits for what it gave it; one that is over is forgotten in the end."""
    world.engine.land("a", "b", "c")
    await until(lambda: sum(len(names) for _, names in world.lane.got) == 3)
    world.lane.losses, world.lane.calls = 1, [call("d")]
    await until(lambda: not world.lane.losses)
    world.puller.leave("job", FIRST)
    await until(lambda: not world.puller._underway)
    world.lane.alive = False
    await world.puller.renew()
    world.lane.alive = comes_back
    world.clock.now += 1 if comes_back else KEEP_S + 1
    await world.puller.renew()
    assert len(world.lane.missed_by) == comes_back
    assert world.puller._lanes == {}


async def test_an_owner_that_asks_again_is_told_the_same(world: World) -> None:
    """His connection broke before he was answered."""
    world.lane.alive = False
    world.engine.land("a")
    await until(lambda: world.puller._lanes["job", 0].lost_at is not None)
    heir = world.successor()
    first = world.puller.adopt("job", 0, (1, 2), heir, world.clock() + 5)
    assert len(first.answered) == 1
    assert len(first.flying) == 2
    again = world.puller.adopt("job", 0, (1, 2), heir, world.clock() + 5)
    assert again.answered == first.answered
    assert {one.item_id for one in again.flying} == {one.item_id for one in first.flying}
    world.engine.land("b", "c")
    await until(lambda: heir.got)
    assert heir.got == [((1, 2), ["b", "c"])]


async def test_a_lower_epoch_is_refused(world: World) -> None:
    """Who owned the lane before gets nothing, and takes nothing away."""
    heir = world.successor((1, 3))
    world.puller.adopt("job", 0, (1, 3), heir, world.clock() + 5)
    for epoch in ((1, 2), (0, 9)):
        assert world.puller.adopt("job", 0, epoch, world.lane, 1e12).flying == []
    assert all(ticket.right.epoch == (1, 3) for ticket in world.engine.tickets)
    world.engine.land("a")
    await until(lambda: heir.got)


async def test_a_call_that_an_owner_did_not_ask_for_is_promised_to_no_later_one(world: World) -> None:
    """It is not delivered to him either: he would wait for it until it timed out. Who comes when it is answered gets
    it."""
    heir = world.successor()
    world.lane.epoch, world.lane.calls = heir.epoch, [call("d")]
    await until(lambda: len(world.engine.tickets) == 4)
    third = world.successor((1, 3))
    assert [one.item_id for one in world.puller.adopt("job", 0, (1, 3), third, 1e12).flying] == ["d"]
    world.engine.land("a", "d")
    await until(lambda: third.got)
    assert third.got == [((1, 3), ["d"])]
    kept = world.puller.adopt("job", 0, (1, 4), world.successor((1, 4)), 1e12)
    assert [one.item_id for one in kept.answered] == ["a"]


async def test_what_was_never_sent_is_not_kept(world: World) -> None:
    """A `not_sent` says nothing worth adopting: the next owner sends it."""
    world.lane.alive = False
    world.engine.land("a", failure=Failure("not_sent", "lapsed"))
    await until(lambda: world.puller._lanes["job", 0].lost_at is not None)
    assert world.puller.adopt("job", 0, (1, 2), world.successor(), 0.0).answered == []


async def test_the_right_to_send_is_renewed_and_lapses(world: World) -> None:
    """While the owner says so it is prolonged, and he hears who asks; without an answer it ends by itself."""
    right = world.engine.tickets[0].right
    world.clock.now += 3
    await world.puller.renew()
    assert right.until == world.clock() + 5
    assert world.lane.heard == ["w"]
    world.lane.alive = False
    world.clock.now += 6
    await world.puller.renew()
    assert right.until <= world.clock()


async def test_an_owner_that_was_replaced_takes_the_right_away(world: World) -> None:
    """His lane is another's: nothing of what is queued goes out."""
    world.lane.epoch = (1, 2)
    await world.puller.renew()
    assert world.engine.tickets[0].right.until == 0.0


async def test_it_asks_only_for_a_worthwhile_share() -> None:
    """Full, it asks for nothing; with a quarter free it asks for that much."""
    world = World([call(f"i{n}") for n in range(16)], room=8)
    await until(lambda: len(world.engine.tickets) == 8)
    asked = len(world.board.rooms)
    world.engine.land("i0")
    await until(lambda: world.lane.got)
    assert (len(world.board.rooms), len(world.engine.tickets)) == (asked, 7)
    world.engine.land("i1")
    await until(lambda: len(world.engine.tickets) == 8)
    assert world.board.rooms[-1] == 2
    await world.puller.close()


async def test_a_dead_engine_is_told_at_once_and_takes_no_more_work(world: World) -> None:
    """What was in flight comes home as `engine_died`; nothing more is pulled into a dead process."""
    world.engine.landed.put_nowait(EngineDead("out of memory"))
    await until(lambda: world.lane.failures)
    assert {f.kind for f in world.lane.failures if f is not None} == {"engine_died"}
    assert len(world.lane.failures) == 3
    assert world.puller.dead is not None
    world.lane.calls = [call("later")]
    await asyncio.sleep(0.01)
    assert world.lane.calls
    world.puller.serve("job", world.board, FIRST)
    await asyncio.sleep(0.01)
    assert world.lane.calls


async def test_lanes_that_are_over_are_forgotten(world: World) -> None:
    """No memory grows with the jobs a worker served; what nobody came for goes after ten minutes."""
    world.engine.land("a", "b", "c")
    await until(lambda: world.lane.got)
    world.puller.leave("job", FIRST)
    await until(lambda: world.puller._lanes["job", 0].empty)
    await world.puller.renew()
    assert world.puller._lanes == world.puller._commands == {}


@pytest.mark.parametrize("slow", ["take", "lane"])
async def test_a_slow_take_that_comes_in_after_its_job_was_left_is_delivered(
    slow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else is here of its lane, which must not be forgotten meanwhile: its calls would find no way home, and
    the worker would deliver nothing to anybody any more."""
    monkeypatch.setattr(shell, "SLOW_TAKE_S", 0.0)
    gate, world = asyncio.Event(), World([call("a")])
    stub = world.lane if slow == "take" else world.board
    answered = getattr(stub, slow)

    async def late(*arguments: object) -> object:
        await gate.wait()
        return await answered(*arguments)

    setattr(stub, slow, late)
    await until(lambda: len(world.board.rooms) == 2)  # it has turned to others
    world.puller.leave("job", FIRST)
    await world.puller.renew()
    gate.set()
    await until(lambda: world.engine.tickets)
    world.engine.land("a")
    await until(lambda: world.lane.got)
    world.lane.calls = [call("b")]
    world.puller.serve("job", world.board, FIRST)
    await until(lambda: world.engine.tickets)
    world.engine.land("b")
    await until(lambda: len(world.lane.got) == 2)
    await world.puller.close()


async def test_a_worker_that_can_deliver_nothing_more_is_dead() -> None:
    """Whatever broke: with its lanes told, they send its calls elsewhere instead of waiting for ever."""
    world = World([call("a"), call("b")])
    world.puller._check = lambda ticket, outcome: outcome if ticket.call.item_id == "b" else 1 / 0  # pyright: ignore[reportAttributeAccessIssue]
    await until(lambda: len(world.engine.tickets) == 2)
    world.engine.land("a")
    await until(lambda: len(world.lane.failures) == 2)
    assert {f.kind for f in world.lane.failures if f is not None} == {"engine_died"}
    assert world.puller.dead is not None
    assert "ZeroDivisionError" in str(world.puller.dead)
    await world.puller.close()


async def test_a_call_that_was_told_as_fallen_is_not_told_again() -> None:
    """A check beside all else broke the worker; its engine still answers."""
    world = World([call("a"), call("b")])

    async def breaks() -> Outcome:
        raise ZeroDivisionError

    world.puller._check = lambda ticket, outcome: outcome if ticket.call.item_id == "b" else breaks()
    await until(lambda: len(world.engine.tickets) == 2)
    (other,) = [ticket for ticket in world.engine.tickets if ticket.call.item_id == "b"]
    world.engine.land("a")
    await until(lambda: len(world.lane.failures) == 2)
    world.puller._landed([(other, outcome(other.call))])
    await asyncio.sleep(0.02)
    assert len(world.lane.failures) == 2
    await world.puller.close()


async def test_answers_nobody_came_for_are_dropped_in_the_end(world: World) -> None:
    """Kept for ten minutes after their run has left, not for ever. While it is there it may wait for a store that is
    away for hours, and its lanes come back: what was answered meanwhile was paid for again then."""
    world.lane.alive = False
    world.engine.land("a", "b", "c")
    await until(lambda: world.puller._lanes["job", 0].lost_at is not None)
    world.clock.now += 10 * KEEP_S
    await world.puller.renew()
    world.puller.leave("job", FIRST)
    world.clock.now += KEEP_S - 1
    await world.puller.renew()
    assert world.puller._lanes
    world.clock.now += 2
    await world.puller.renew()
    assert world.puller._lanes == {}


async def test_what_an_owner_did_not_hear_outlives_his_command(world: World) -> None:
    """A run that goes on is interrupted, or killed, while its lanes are still opened: what their owners were told is
    committed nowhere, and the same command, run once more, paid for it again. Kept for ten minutes, like the rest."""
    world.lane.alive = False
    world.engine.land("a", "b", "c")
    await until(lambda: world.puller._lanes["job", 0].lost_at is not None)
    assert len(world.puller.adopt("job", 0, (1, 2), world.successor(), world.clock() + 5).answered) == 3
    world.puller.leave("job", FIRST)
    world.clock.now += KEEP_S - 1
    await world.puller.renew()
    world.clock.now += KEEP_S - 1
    await world.puller.renew()
    assert world.puller.holds("job")
    kept = world.puller.adopt("job", 0, (2, 1), world.successor((2, 1)), world.clock() + 5)
    assert [one.item_id for one in kept.answered] == ["a", "b", "c"]
    await world.puller.renew()
    world.clock.now += KEEP_S + 1
    await world.puller.renew()
    assert world.puller._lanes == {}


async def test_what_an_owner_left_that_nobody_asked_for_is_dropped_in_the_end(world: World) -> None:
    """Its successor was given work, and the run went on to its end without it."""
    world.lane.epoch, world.lane.calls = (1, 2), [call("d")]
    await until(lambda: len(world.engine.tickets) == 4)
    world.engine.land("a", "b", "c", "d")
    await until(lambda: world.lane.got == [((1, 2), ["d"])])
    world.puller.leave("job", FIRST)
    world.lane.alive = False
    await until(lambda: world.puller._lanes["job", 0].busy is None)
    await world.puller.renew()
    assert world.puller._lanes
    world.clock.now += KEEP_S + 1
    await world.puller.renew()
    assert world.puller._lanes == {}


async def test_the_next_driver_of_a_run_numbers_its_owners_anew(world: World) -> None:
    """A run is begun again at once, on the same workers: its lane has the same number and owner as before, and is
    another actor. The worker asks the new driver for it, not the old lane for ever."""
    world.engine.land("a", "b", "c")
    await until(lambda: world.lane.got)
    old, new = world.lane, LaneStub((2, 1), [call("j0")], world.clock)
    taken = len(old.takes)
    world.puller.leave("job", FIRST)
    world.puller.serve("job", BoardStub(new), SECOND)
    await until(lambda: any(ticket.call.item_id == "j0" for ticket in world.engine.tickets))
    assert len(old.takes) == taken


async def test_what_an_earlier_driver_says_late_of_a_lane_is_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reply comes when the worker serves the next driver already, by whose numbers the lane's owner has the same:
    the worker would ask the old lane actor for ever."""
    monkeypatch.setattr(shell, "SLOW_TAKE_S", 0.0)
    world, gate = World([call("a")]), late(monkeypatch, BoardStub)
    await until(lambda: len(world.board.rooms) == 2)
    new = LaneStub((2, 1), [], world.clock)
    world.puller.serve("job", BoardStub(new), SECOND)
    gate.set()
    await until(lambda: not world.puller._underway)
    new.calls = [call("b")]
    await until(lambda: any(ticket.call.item_id == "b" for ticket in world.engine.tickets))
    assert world.lane.takes == []
    await world.puller.close()


async def test_a_take_that_hangs_at_an_earlier_drivers_lane_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its actor is frozen, or gone with its node: the next driver numbers its owners anew, and the worker took nothing
    from the lane of the same number for twenty seconds."""
    monkeypatch.setattr(shell, "SLOW_TAKE_S", 0.0)
    world, gate = World([call("a")]), asyncio.Event()

    async def hangs(*_: object) -> None:
        await gate.wait()

    monkeypatch.setattr(world.lane, "take", hangs)
    await until(lambda: len(world.board.rooms) == 2)
    new = LaneStub((2, 1), [call("b")], world.clock)
    world.puller.serve("job", BoardStub(new), SECOND)
    await until(lambda: any(ticket.call.item_id == "b" for ticket in world.engine.tickets))
    await world.puller.close()


async def test_whose_a_lane_was_is_not_heard_behind_its_new_owner(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The board's reply was on its way while the lane moved: answers went to the old owner, who refuses them, until
    there was more work for this worker."""
    gate = late(monkeypatch, BoardStub)
    world.puller._lanes["job", 0].owner = 0
    world.lane.calls = [call("d")]
    await until(lambda: world.board.asked)
    heir = world.successor()
    world.puller.adopt("job", 0, (1, 2), heir, world.clock() + 5)
    world.lane.calls = []
    gate.set()
    await until(lambda: not world.puller._underway)
    world.engine.land("a")
    await until(lambda: heir.got)


def late(monkeypatch: pytest.MonkeyPatch, board: type[BoardStub]) -> asyncio.Event:
    """Boards say whose the lane is once this is set."""
    gate, answered = asyncio.Event(), board.lane

    async def lane(self: BoardStub, number: int) -> tuple[int, LaneStub]:
        self.asked += 1
        await gate.wait()
        return await answered(self, number)

    monkeypatch.setattr(board, "lane", lane)
    return gate


async def test_it_says_whether_it_has_anything_of_a_run(world: World) -> None:
    """Calls, answers that nobody took, and those that an owner was told who did not show yet that he heard."""
    assert (world.puller.holds("job"), world.puller.holds("another")) == (True, False)
    world.lane.alive = False
    world.engine.land("a", "b", "c")
    await until(lambda: world.puller._lanes["job", 0].lost_at is not None)
    assert world.puller.holds("job")
    world.puller.adopt("job", 0, (1, 2), world.successor(), world.clock() + 5)
    assert world.puller.holds("job")
    world.puller._accept(world.puller._lanes["job", 0], CallChunk("job", 0, (1, 2), 0.0, []))
    assert not world.puller.holds("job")


async def test_an_abort_reaches_what_is_in_flight(world: World) -> None:
    """`cancel`: the engine is told of every call of the job."""
    world.puller.abort("job", FIRST)
    assert {ticket.call.item_id for ticket in world.engine.aborted} == {"a", "b", "c"}


async def test_a_command_that_the_run_was_taken_from_stops_nothing(world: World) -> None:
    """It may come to its end, or be told to, when its successor's calls are under way here."""
    heir = LaneStub((2, 1), [], world.clock)
    assert world.puller.serve("job", BoardStub(heir), SECOND)
    assert world.puller.adopt("job", 0, (2, 1), heir, world.clock() + 5).flying
    world.puller.abort("job", FIRST)
    assert not world.puller.leave("job", FIRST)
    assert not world.puller.serve("job", world.board, FIRST)
    assert (world.engine.aborted, list(world.puller.jobs)) == ([], ["job"])
    heir.calls = [call("d")]
    await until(lambda: len(world.engine.tickets) == 4)


async def test_runs_of_one_id_have_nothing_of_each_other(world: World) -> None:
    """Two with states of their own on one cluster, or one that `--fresh` begins anew: lanes, items and epochs look the
    same."""
    anew = LaneStub((1, 1), [call("a"), call("d")], world.clock)
    other = job_of("run", 8.0)
    assert other != job_of("run", 7.0)
    anew.job = other
    assert world.puller.adopt(other, 0, (1, 1), anew, world.clock() + 5) == Kept()
    assert world.puller.serve(other, BoardStub(anew), FIRST)
    await until(lambda: len(world.engine.tickets) == 5)
    world.puller.abort(other, SECOND)
    assert world.engine.aborted == []
    world.engine.land("b", "c", "d")
    await until(lambda: anew.got and world.lane.got)
    assert anew.got == [((1, 1), ["d"])]
    assert [ids for _, ids in world.lane.got] == [["b", "c"]]


@pytest.mark.parametrize("ticks", range(6))
async def test_a_job_that_is_left_is_asked_for_no_more_work(ticks: int) -> None:
    """Whatever wakes its puller in the moment in which it is told to stop."""
    clock = Clock()
    puller = Puller("w", "api:a", Script(room=0), lambda ticket, outcome: outcome, clock)
    puller.serve("job", BoardStub(LaneStub((1, 1), [], clock)), FIRST)
    pulling = puller._boards["job"]  # pyright: ignore[reportPrivateUsage]
    for _ in range(5):
        await asyncio.sleep(0)
    puller._room.set()  # pyright: ignore[reportPrivateUsage]
    for _ in range(ticks):
        await asyncio.sleep(0)
    puller.leave("job", FIRST)
    await asyncio.wait([pulling], timeout=5)
    assert pulling.cancelled()
    await puller.close()


async def test_a_job_is_served_on_whatever_the_clock_does_meanwhile(world: World) -> None:
    """The clock is set forward, or the machine sleeps, during a take: that is no word of the driver's."""
    take = world.lane.take

    async def slept(*arguments: object) -> tuple[CallChunk | None, int]:
        world.clock.now += 10 * ORPHANED_S
        return await take(*arguments)  # pyright: ignore[reportArgumentType]

    world.lane.take = slept  # pyright: ignore[reportAttributeAccessIssue]
    world.lane.calls = [call("d")]
    await until(lambda: len(world.engine.tickets) == 4)
    world.lane.calls = [call("e")]
    await until(lambda: len(world.engine.tickets) == 5)
    assert list(world.puller.jobs) == ["job"]


async def test_a_job_is_given_up_after_a_long_silence_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at the first call that fails after a long wait for room; and its driver sees that it isn't served."""
    monkeypatch.setattr(shell, "PAUSE_S", 0.0)
    clock, ticks = Clock(), Clock()
    board = BoardStub(LaneStub((1, 1), [], clock))
    puller = Puller("w", "api:a", Script(), lambda ticket, outcome: outcome, clock, ticks)
    puller.serve("job", board, FIRST)
    await until(lambda: board.rooms)
    ticks.now += 10 * ORPHANED_S
    board.away = True
    asked = len(board.rooms)
    await until(lambda: len(board.rooms) > asked + 2)
    board.away = False
    await until(lambda: len(board.rooms) > asked + 5)
    assert list(puller.jobs) == ["job"]
    board.away = True
    await until(lambda: len(board.rooms) > asked + 8)
    ticks.now += ORPHANED_S
    await until(lambda: not puller.jobs)
    await puller.close()


@pytest.mark.parametrize("name", ["ask", "lane"])
async def test_a_reply_of_the_board_that_got_lost_is_asked_for_again(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell, "REPLY_LOST_S", 0.05)
    world = World([])
    world.board.mute.add(name)
    world.lane.calls = [call("a")]
    await until(lambda: world.engine.tickets)
    await world.puller.close()


async def test_a_delivery_whose_reply_got_lost_holds_nothing_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made again, and the lane knows those outcomes; what landed meanwhile goes with it."""
    monkeypatch.setattr(shell, "REPLY_LOST_S", 0.05)
    world.lane.mute = True
    world.engine.land("a")
    await until(lambda: world.puller._lanes["job", 0].delivering)
    world.engine.land("b")
    await until(lambda: world.puller._lanes["job", 0].lost_at is not None)
    world.lane.mute = False
    await world.puller.renew()
    await until(lambda: len(world.lane.got) == 2)
    assert world.lane.got == [((1, 1), ["a"]), ((1, 1), ["a", "b"])]
