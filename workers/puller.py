"""The shell around an engine: pulls calls from lanes by the board, renews their right to send, delivers outcomes.

One task a job pulls; one task delivers; one renews. A delivery to a lane is in flight at a time, and what finishes
meanwhile goes with the next: batches grow by themselves when the lane is busy.

What can't be delivered is kept for the lane's next owner (same run, higher epoch): a lost lane costs almost no
second payment. A lower epoch than the highest seen is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection

from penstock.engine.catalog import is_own
from penstock.engine.items import CallChunk, Failure, Outcome
from penstock.engine.plan import Epoch
from penstock.workers.at_lane import Landed, LaneAt
from penstock.workers.engine_time import EngineTime
from penstock.workers.engines.base import Engine, EngineDead, Right, Ticket
from penstock.workers.ports import BoardPort, Grant, Kept, LanePort

LaneKey = tuple[str, int]

RENEW_EVERY_S = 1.0
"""The right lapses 5 s after the lane last saw its own epoch; four chances to renew it."""
KEEP_S = 600.0
"""Answers nobody came for are dropped ten minutes after their run has left: a guess, far above any restart of it. As
long as it is there its lanes may come: they may wait for a store that is away."""
TAKES_IN_A_ROW = 8
"""Takes from one lane before the board is asked again, so that no lane starves the others."""

ORPHANED_S = 30.0
"""A job whose board answers nothing for so long, by the monotonic clock, is dead: a driver that takes its place says so
itself (`serve`), and one that was away for so long sees that it isn't served (`gauges`)."""
SLOW_TAKE_S = 0.5
"""A take lasts a millisecond; after so long the worker turns to other lanes meanwhile."""
SLOW_PAUSE_S = 0.02
PAUSE_S = 0.2
"""Before a board or a lane that could not be reached is asked again."""
REPLY_LOST_S = 10.0
"""A lane or a board that has not answered for so long won't: a reply can be lost while both sides live (seen in Ray),
and a lane that is silent for so long is replaced. A delivery is then made again: an outcome that a lane has is none of
its calls in flight any more, so it counts once."""

Check = Callable[[Ticket, Outcome], Outcome | Awaitable[Outcome]]
"""Looks at an answer before it is delivered: choices, schema (`workers.checking.verifying`), at once or, where it may
take long, beside all else."""


class Puller:
    def __init__(
        self,
        name: str,
        pool: str,
        engine: Engine,
        check: Check,
        now: Callable[[], float] = time.time,
        tick: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.pool = pool
        self.engine = engine
        self.dead: EngineDead | None = None
        self._check = check
        self._now = now
        self._tick = tick
        self._lanes: dict[LaneKey, LaneAt] = {}
        self._boards: dict[str, asyncio.Task[None]] = {}
        self._commands: dict[str, int] = {}
        """Job → run epoch of the latest command that it was served for, while it is served, or anything of it is here.
        One that it was taken from may live on for a while."""
        self._underway: set[tuple[str, int, int, int]] = set()
        """(job, lane, owner, command by whose numbers that is the owner) of takes."""
        self._takes = 0
        """Takes so far: they are numbered."""
        self._room = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._capacity = 1
        self._time = EngineTime() if is_own(pool) else None
        self.idle_since = now()
        """Since it was left by its last job, or a call of that landed."""

    def start(self) -> None:
        self._spawn(self._deliver())
        self._spawn(self._renew())

    def serve(self, job: str, board: BoardPort, command: int) -> bool:
        """Take work from this job's board until `leave`. `command`: its run epoch. Owners are numbered by each driver
        anew: what an earlier one's number stood for is forgotten, or we would go on asking a lane actor of a run that
        is over. False: a later command has taken the run over."""
        if self._commands.get(job, command) > command:
            return False
        self._commands[job] = command
        self._turn_away(job)
        for at in self._lanes.values():
            if at.job == job:
                at.owner = -1
        if self.dead is None:
            self._boards[job] = self._spawn(self._pull(job, board))
        return True

    def leave(self, job: str, command: int) -> bool:
        """False: it isn't this command's any more."""
        ours = self._commands.get(job) == command
        if ours:
            self._turn_away(job)
        return ours

    def _turn_away(self, job: str) -> None:
        task = self._boards.pop(job, None)
        if task is not None:
            task.cancel()
        self.idle_since = self._now()

    @property
    def jobs(self) -> Collection[str]:
        """That are served."""
        return self._boards.keys()

    def holds(self, job: str) -> bool:
        """Calls or answers of it are here, for whoever has its lanes next."""
        return any(not at.empty for at in self._lanes.values() if at.job == job)

    def adopt(self, job: str, lane: int, epoch: Epoch, port: LanePort, until: float) -> Kept:
        """A lane's new owner asks for what we hold; again where the answer got lost. Calls of the last owner that go on
        are his from now on. One that an owner before that left is not told: it may have been made again since, under
        the same name."""
        at = self._lanes.setdefault((job, lane), LaneAt(job))
        if at.right is not None and at.right.epoch > epoch:
            return Kept()
        return at.hand_over(Right(job, lane, epoch, until), port)

    def abort(self, job: str, command: int) -> None:
        """Nobody wants this job's calls any more; unless a later command has taken the run over, and them with it."""
        for (run, _), at in self._lanes.items():
            if run == job and self._commands.get(job) == command:
                self.engine.abort(list(at.tickets))

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.engine.close()

    # -- pulling

    async def _pull(self, job: str, board: BoardPort) -> None:
        mute_since: float | None = None
        while mute_since is None or self._tick() - mute_since < ORPHANED_S:
            room = await self._wait_for_room()
            asked_at = self._tick()
            try:
                # not `wait_for`: it loses a cancel that meets the answer (Python 3.11)
                async with asyncio.timeout(REPLY_LOST_S):
                    grant = await board.ask(self.name, self.pool, room)
                mute_since = None
            except Exception:  # noqa: BLE001 - a lost board: its driver is told by Ray and brings a new one
                mute_since = asked_at if mute_since is None else mute_since
                await asyncio.sleep(PAUSE_S)
                continue
            try:
                if grant is not None:
                    await self._take_within(job, board, grant)
            except Exception:  # noqa: BLE001 - a lost lane: its next owner is told by the board
                await asyncio.sleep(PAUSE_S)
        if self._boards.get(job) is asyncio.current_task():
            del self._boards[job]
            self.idle_since = self._now()

    async def _wait_for_room(self) -> int:
        """Ask only when a worthwhile share is free: a trickle of tiny takes costs more than it brings."""
        while True:
            room = self.engine.room()
            self._capacity = max(self._capacity, room)
            if room >= max(1, self._capacity // 4):
                return room
            self._room.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._room.wait()

    async def _take_within(self, job: str, board: BoardPort, grant: Grant) -> None:
        """A lane that does not answer (stopped, frozen) holds back nobody: its take goes on by itself."""
        key = (job, grant.lane, grant.owner, self._commands.get(job, -1))
        if key in self._underway:
            await asyncio.sleep(SLOW_PAUSE_S)
            return
        take = self._spawn(self._take_from(job, board, grant.lane, grant.owner, grant.n, grant.max_tokens))
        self._underway.add(key)
        take.add_done_callback(lambda _: self._underway.discard(key))
        try:
            await asyncio.wait([take], timeout=SLOW_TAKE_S)
        except asyncio.CancelledError:
            take.cancel()
            raise
        if take.done():
            take.result()
        else:
            take.add_done_callback(_seen)

    async def _take_from(self, job: str, board: BoardPort, lane: int, owner: int, n: int, max_tokens: int) -> None:
        at = self._lanes.setdefault((job, lane), LaneAt(job))
        if at.port is None or at.owner != owner:
            command, before = self._commands.get(job), at.port
            async with asyncio.timeout(REPLY_LOST_S):
                found = await board.lane(lane)
            later_word = self._commands.get(job) != command or at.port is not before
            if found is None or later_word:  # another driver numbers its owners anew, or a new owner has asked us
                return
            at.owner, at.port = found
            at.lost_at = None
            self._flush((job, lane))
        for _ in range(TAKES_IN_A_ROW):
            chunk, left = await self._take(at, at.port, lane, n, max_tokens)
            if chunk is None:
                return
            room = self.engine.room()
            if left < n or room < max(1, self._capacity // 4):
                return
            n = min(n, room)

    async def _take(
        self, at: LaneAt, port: LanePort, lane: int, n: int, max_tokens: int
    ) -> tuple[CallChunk | None, int]:
        """One take. Whatever ends it without an answer, an answer that comes later is not accepted any more."""
        self._takes += 1
        number = self._takes
        at.taking.add(number)
        try:
            take = port.take(lane, self.pool, n, max_tokens, self.name, number)
            chunk, left = await asyncio.wait_for(take, REPLY_LOST_S)
        except BaseException:
            at.given_up = max(at.given_up, number)
            raise
        finally:
            at.taking.discard(number)
        if chunk is not None:
            self._accept(at, chunk)
        return chunk, left

    def _accept(self, at: LaneAt, chunk: CallChunk) -> None:
        right = at.right
        if right is None or right.epoch < chunk.epoch:
            if right is not None:
                right.until = 0.0
            right = at.right = Right(chunk.run, chunk.lane, chunk.epoch, chunk.send_until)
        elif right.epoch > chunk.epoch:
            return  # an old owner's calls: the new one has them from its own progress
        right.until = max(right.until, chunk.send_until)
        at.handed = []
        prices = chunk.tariffs
        tickets = [
            Ticket(call, right, chunk.outputs.get(call.task), prices.get(f"{call.model}@{call.version}", b""))
            for call in chunk.calls
        ]
        at.tickets.update(tickets)
        if self._time is not None:
            self._time.came(tickets, self._tick())
        self.engine.submit(tickets)

    # -- delivering

    async def _deliver(self) -> None:
        try:
            while True:
                batch = await self.engine.outcomes()
                if self._time is not None:
                    batch = self._time.left(batch, self._tick())
                self._landed([landed for ticket, outcome in batch for landed in self._checked(ticket, outcome)])
                self._room.set()
        except EngineDead as error:
            self.died(error)
        except Exception as error:  # noqa: BLE001 - who takes calls and delivers nothing would be waited for, for ever
            self._broke(error)

    def _checked(self, ticket: Ticket, outcome: Outcome) -> list[Landed]:
        """Nothing where it takes long: it lands by itself."""
        checked = self._check(ticket, outcome)
        if isinstance(checked, Outcome):
            return [(ticket, checked)]
        self._spawn(self._land_later(ticket, checked))
        return []

    async def _land_later(self, ticket: Ticket, checking: Awaitable[Outcome]) -> None:
        try:
            outcome = await checking
        except Exception as error:  # noqa: BLE001 - as in `_deliver`
            self._broke(error)
            return
        self._landed([(ticket, outcome)])

    def _broke(self, error: Exception) -> None:
        self.died(EngineDead(f"answers can't be delivered any more: {error!r}"[:500]))

    def _landed(self, batch: list[Landed]) -> None:
        touched: set[LaneKey] = set()
        for landed in batch:
            right = landed[0].right
            key = (right.run, right.lane)
            at = self._lanes.get(key)
            if at is None or landed[0] not in at.tickets:
                continue  # it was told as fallen meanwhile
            at.tickets.discard(landed[0])
            at.undelivered.append(landed)
            touched.add(key)
        if touched and not self._boards:
            self.idle_since = self._now()
        for key in touched:
            self._flush(key)

    @property
    def busy(self) -> bool:
        """The engine owes outcomes."""
        return any(at.tickets for at in self._lanes.values())

    def died(self, error: EngineDead) -> None:
        """No more work is taken, and what was in flight is told: its lanes send it elsewhere at once."""
        self.dead = error
        for task in self._boards.values():
            task.cancel()
        failure = Failure("engine_died", f"{self.name}: {error}"[:500], may_be_billed=not is_own(self.pool))
        self._landed([(t, self._fallen(t, failure)) for at in self._lanes.values() for t in list(at.tickets)])

    def _fallen(self, ticket: Ticket, failure: Failure) -> Outcome:
        call = ticket.call
        return Outcome(call.item_id, call.generation, call.attempt, self._now(), 0.0, failure=failure, worker=self.name)

    def _flush(self, key: LaneKey) -> None:
        at = self._lanes[key]
        if at.undelivered and at.busy is None and at.port is not None and at.lost_at is None:
            at.busy = token = object()
            self._spawn(self._deliver_to(key, at, token))

    async def _deliver_to(self, key: LaneKey, at: LaneAt, token: object) -> None:
        """One delivery at a time; what lands meanwhile goes with the next."""
        while at.busy is token and at.port is not None and (right := at.right) is not None and (landed := at.due()):
            at.delivering = landed
            try:
                async with asyncio.timeout(REPLY_LOST_S):
                    await at.port.done(key[1], right.epoch, [outcome for _, outcome in landed])
                if at.right is right:
                    at.handed = []
            except Exception:  # noqa: BLE001 - the lane is gone, or going: its next owner will ask
                if at.delivering is landed:
                    at.keep(landed)
                    at.lost_at = self._now()
            if at.delivering is landed:  # else a new owner asked meanwhile, and has them
                at.delivering = []
            if at.lost_at is not None:
                break
        if at.busy is token:
            at.busy = None

    # -- the right to send

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            await self.renew()

    async def renew(self) -> None:
        """Once a second: ask every lane whose calls are here for the right to go on; forget lanes that are over."""
        now = self._now()
        lanes = list(self._lanes.items())
        there = [self._renew_one(key, at) for key, at in lanes if at.tickets or (at.undelivered and at.lost_at)]
        await asyncio.gather(*there, *(self._tell_missed(key[1], at) for key, at in lanes if at.missed))
        taking = {(job, lane) for job, lane, *_ in self._underway}  # what these bring must find its lane
        for key, at in list(self._lanes.items()):
            if at.stranded if at.job not in self._boards else at.lost_at is not None:
                at.lost_at = now
            lost = at.lost_at is not None and now - at.lost_at > KEEP_S and not at.tickets
            if key not in taking and (lost or (at.empty and at.job not in self._boards)):
                del self._lanes[key]
        here = {job for job, _ in self._lanes} | self._boards.keys()
        self._commands = {job: command for job, command in self._commands.items() if job in here}

    async def _renew_one(self, key: LaneKey, at: LaneAt) -> None:
        right, port = at.right, at.port
        if right is None or port is None:
            return
        epoch = right.epoch
        with contextlib.suppress(Exception):  # no answer: the right simply lapses
            right.until = await asyncio.wait_for(port.right(key[1], epoch, self.name), 3.0)
            if right.until > self._now() and at.lost_at is not None and at.right is right:
                at.lost_at = None  # it lives, and is the owner: only the delivery had failed
                self._flush(key)

    async def _tell_missed(self, lane: int, at: LaneAt) -> None:
        """Else the owner would wait for those calls until they time out."""
        port, upto = at.port, at.missed
        if port is None:
            return
        with contextlib.suppress(Exception):  # told again in a second
            await asyncio.wait_for(port.missed(lane, self.name, upto, at.names()), 3.0)
            if at.given_up == upto:
                at.given_up = 0

    def _spawn(self, work: object) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)  # pyright: ignore[reportArgumentType]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _seen(take: asyncio.Task[None]) -> None:
    """A late take that failed: its lane is gone, and everybody knows."""
    if not take.cancelled():
        take.exception()
