"""The shell around one lane machine: reads its source, encodes and commits its records, keeps its right to send.

It decides nothing about items (`engine.flow.lane` does); it owns the waiting. No Ray here: `actor` puts shells into an
actor, tests drive them directly. Its parts: `input` (in), `commit` (out), `money` (leases), `telling` (the driver).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine

import msgspec

from penstock.connectors.base import Source
from penstock.connectors.reading.replay import Intake
from penstock.connectors.registry import Stores
from penstock.connectors.writing.records import Encoder
from penstock.engine.errors import Corrupt, Fenced, PenstockError, Refused, Temporary
from penstock.engine.flow.lane import Lane
from penstock.engine.flow.lane_types import CommitBatch
from penstock.engine.flow.tally import as_before
from penstock.engine.items import CallChunk, Outcome, OutputSpec
from penstock.engine.plan import Epoch, Plan, Split
from penstock.engine.results import CostLine
from penstock.workers.clock import Watched, since
from penstock.workers.lanes.commit import LaneCommit
from penstock.workers.lanes.input import LaneInput, Verdicts
from penstock.workers.lanes.money import LaneMoney, LedgerPort
from penstock.workers.lanes.telling import DriverPort, LaneTelling
from penstock.workers.ports import CallName, Kept

RIGHT_S = 5.0
"""How long the right to send lasts after a commit or read that showed our own epoch (DESIGN, commit protocol 4)."""
IDLE_S = 0.05
BLIND_S = 30.0
"""A lane whose store can't say who owns it goes on for so long: a commit to S3 is tried for as long, and nothing is
sent once the right has lapsed. A guess."""
VERIFY_EVERY_S = 1.0
SWEEP_EVERY_S = 5.0
PART_LOOK_S = 0.02
READ_UP_S = 5.0
"""To come to the answers that the last owner left, before a lane drains. Some may be of items that never come. A guess:
a window is read in a second."""
HASTE, HASTE_S, STARVED_S = 0.1, 0.1, 0.02
"""Least time between commits when somebody waits for one, as a share of the usual one, and at most: workers that are
short of dispatchable items, or the run for its last lane; the last: where the lane itself can do nothing before. (Seen:
to S3, 2 of 4.5 s were spent waiting for the last commit, and 1 s until the horizon had grown to what workers could do;
with a tenth of a second between them still 0.3 of 1.25 s.)"""


class LaneShell:
    def __init__(
        self,
        lane: int,
        epoch: Epoch,
        machine: Lane,
        stores: Stores,
        source: Source,
        intake: Intake,
        encoder: Encoder,
        driver: DriverPort,
        ledger: LedgerPort | None,
        now: Callable[[], float],
        *,
        commit_s: float,
        limit: int | None = None,
        outage_s: float | None = None,
        verdicts: Verdicts | None = None,
        outputs: dict[str, OutputSpec] | None = None,
        turn: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`turn`: awaited before each outcome, which may have to be scored."""
        self.lane = lane
        self.epoch = epoch
        self.machine = machine
        self.own_until = 0.0
        self.verdicts = verdicts or Verdicts(complete=True)
        self._stores = stores
        self._driver = driver
        self._now = now
        self._commit_s = commit_s
        self._outputs = outputs or {}
        self._turn = turn
        self._wake = asyncio.Event()
        self._input = LaneInput(machine, source, intake, self.verdicts, limit, outage_s)
        self._out = LaneCommit(lane, epoch, machine, stores, encoder, now)
        self._telling = LaneTelling(machine, driver, self._input, self._out)
        self._money = (
            None if ledger is None else LaneMoney(lane, epoch, machine, ledger, now, self._fail, self._wake.set)
        )
        self._moment = Watched(now, machine.set_back, self._input.set_back)
        self._plan: Plan | None = None
        self._begun = self._opened = self._closed = self._over = self._parting = self._drains = False
        self._drains_at: float | None = None
        """By the loop's clock, at the latest; None: it is not to drain, or does not go yet."""
        self._going = asyncio.Event()
        """Its calls are given out, and outcomes are taken; or it is over."""
        self._commit: asyncio.Task[None] | None = None
        self._applying: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._pump: asyncio.Task[None] | None = None
        self._swept_at = self._verified_at = self._looked_at = 0.0

    # -- life

    async def open(self, plan: Plan, *, force: bool) -> None:
        """Take the lane: fence, read, commit the new epoch. Nothing may be dispatched before `go`."""
        self.extend(plan)
        taken = await self._stores.primary.take(self.lane, self.epoch, force=force)
        plan = self._plan or plan  # a longer one may have come meanwhile
        if taken.seq == 0 and plan.started:
            raise Corrupt(
                f"lane {self.lane} of {plan.name} had started, but its progress is gone; put it back, "
                "or start over with --fresh"
            )
        self.machine.begin(self._splits(plan), taken.chunks, taken.seq)
        if taken.epoch[0] != self.epoch[0]:  # else its last owner was this command's, too
            as_before(self.machine.tally)
        self._out.begin()
        self.machine.plan_version = plan.version
        self._begun = True
        if self._money is not None:
            await self._money.forfeit(taken.epoch)
        await self._commit_once()
        await self._out.take_followers(force=force)
        await self._input.open()
        self._opened = True

    def extend(self, plan: Plan) -> None:
        """The plan is longer now, and durable. Told late, or twice: nothing is lost, nothing is read twice."""
        if self._plan is not None and plan.version <= self._plan.version:
            return
        self._plan = plan
        if self._begun and self.machine.extend(self._splits(plan), plan.version):
            self._out.done = False
            self._input.more()
            self.wake()

    def _splits(self, plan: Plan) -> list[Split]:
        return [split for split in plan.splits if split.lane == self.lane]

    def watch(self, committed: Callable[[CommitBatch], object]) -> None:
        """`committed`: told of every commit when it is durable; it must not raise, nor take long."""
        self._out.committed = committed

    def adopt(self, kept: Kept, worker: str) -> None:
        """Answers and calls that a worker still has of the last owner."""
        calls = (*kept.answered, *kept.flying)
        self.machine.adopt([msgspec.structs.replace(call, worker=worker) for call in calls])

    def go(self) -> None:
        """All lanes have taken their place: read and dispatch. Told early, or twice: nothing."""
        if not self._opened or self._pump is not None:
            return
        self.machine.restore_shelf(self._now(), self._input.again)
        self._pump = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Let go of the lane. What is not committed is left to the next owner."""
        await self._stop()
        await self._input.close()
        for store in (self._stores.primary, *self._stores.followers.values()):
            with contextlib.suppress(PenstockError):
                await store.release(self.lane, self.epoch)

    async def _stop(self) -> None:
        self._over = True
        self._going.set()
        money = self._money.tasks if self._money is not None else []
        tasks = [t for t in (self._pump, self._commit, self._applying, self._looking, *money) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def drain(self) -> None:
        """Dispatch nothing more, nor read, but up to what the last owner left: no commit holds those answers."""
        self._parting = self._drains = True
        if self._going.is_set():  # else more answers may come
            self._drain_when_read()
        self.wake()

    def _drain_when_read(self) -> None:
        if self.machine.draining or not (self._drains or self.machine.paying.spent_out):
            return
        now = asyncio.get_running_loop().time()
        self._drains_at = self._drains_at or now + READ_UP_S
        if not self.machine.has_answers or now > self._drains_at:
            self.machine.drain(self._now())

    async def part(self, seconds: float) -> None:
        """Hand the lane over, in at most about `seconds`: nothing more is read or sent, what comes back until then is
        committed. Calls that still go on then are left to the next owner, who asks the workers for them. Nothing that
        was taken from a worker stays uncommitted, or it would be paid for again: answers that the last owner left are
        read up to first. Then this owner is over."""
        self._parting = True
        ends = asyncio.get_running_loop().time() + seconds
        # some may be of items that are committed, and never come
        await self._until(lambda: self._over or not self.machine.has_answers, ends - seconds / 2)
        self.machine.drain(self._now())
        self.wake()
        await self._until(lambda: self._over or self.settled, ends)
        if self._over:
            return
        self._over = True  # first: from here on outcomes are refused, and their worker keeps them for the next owner
        self._going.set()
        self.wake()
        await asyncio.gather(*filter(None, [self._pump]), return_exceptions=True)  # it may still begin a commit
        await asyncio.gather(*filter(None, [self._commit, self._applying]), return_exceptions=True)
        if self.machine.dirty and not self.machine.horizon.committing:  # none may follow one that failed
            with contextlib.suppress(PenstockError):  # uncertain: the next owner reads
                await self._out.commit()

    async def _until(self, met: Callable[[], bool], ends: float) -> None:
        """Nobody tells of it. `ends`: of the loop's clock."""
        while not met() and asyncio.get_running_loop().time() < ends:  # noqa: ASYNC110
            await asyncio.sleep(PART_LOOK_S)

    def wake(self) -> None:
        self._wake.set()

    # -- calls of workers

    async def take(
        self, pool: str, n: int, max_tokens: int, worker: str, number: int = 0
    ) -> tuple[CallChunk | None, int]:
        if self._over or self._parting or not self._going.is_set() or not await self._ours():
            return None, 0
        now = self._now()
        calls = self.machine.take(pool, n, max_tokens, worker, now, number)
        self._telling.granted(n, len(calls), now)
        self.wake()
        if not calls:
            return None, 0
        outputs = {call.task: self._outputs[call.task] for call in calls if call.task in self._outputs}
        run, tariffs = self.machine.settings.run, self.machine.tariffs(calls)
        chunk = CallChunk(run, self.lane, self.epoch, self.own_until, calls, outputs, tariffs)
        return chunk, self.machine.ready.count(pool)

    async def done(self, epoch: Epoch, outcomes: list[Outcome]) -> None:
        """Raises `Fenced` where these are not our calls, or this owner is over: the worker keeps the outcomes for the
        lane's next owner, who learns of them by `adopt`, with the models that were called. Returns after `go`: a worker
        that was asked may be done with a call before we know that it has it."""
        if epoch == self.epoch:
            await self._going.wait()
        refused = Fenced(f"lane {self.lane}: epoch {self.epoch} can't take outcomes of epoch {epoch}")
        if self._over or epoch != self.epoch or not await self._ours():
            raise refused
        for outcome in outcomes:
            if self._turn is not None:
                await self._turn()
                if self._over:
                    raise refused
            self.machine.outcome(outcome, self._now())
        self.wake()

    def missed(self, worker: str, upto: int, held: set[CallName]) -> None:
        """Calls on their way to this worker got lost, and it knows (`LanePort.missed`)."""
        if not self._over:
            self.machine.flights.missed(worker, upto, held, self._now())
            self.wake()

    async def right(self, epoch: Epoch, worker: str = "") -> float:
        """Until when this owner's calls may be sent; 0: not any more."""
        if self._over or epoch != self.epoch:
            return 0.0
        if self._left() < RIGHT_S - VERIFY_EVERY_S and not await self._verify():
            return 0.0
        self.machine.heard(worker, self._now())
        return self.own_until

    def _left(self) -> float:
        """Seconds that the right has left. More than it ever gets: the clock went back, and nothing is left of it."""
        left = self.own_until - self._now()
        return left if left <= RIGHT_S else 0.0

    def _prolong(self, asked: float) -> None:
        """`asked`: when it was asked that now says that the lane is ours."""
        self.own_until = max(self.own_until if self._left() > 0 else 0.0, asked + RIGHT_S)

    async def _ours(self) -> bool:
        return self._left() > 0 or await self._verify()

    async def _verify(self) -> bool:
        """Read who owns the lane. A stopped process that wakes up learns here that it was replaced."""
        asked = self._now()
        owner = await self._stores.primary.owner(self.lane)
        if owner != self.epoch:
            self._fail(Fenced(f"lane {self.lane} was taken over by epoch {owner}"))
            return False
        self._prolong(asked)
        self._verified_at = asked
        return not self._over

    # -- the loop

    async def _run(self) -> None:
        self._going.set()
        await self._well(self._steps(), "worked")

    async def _steps(self) -> None:
        while not self._over:
            busy = await self._step()
            await (asyncio.sleep(0) if busy else self._rest())

    async def _step(self) -> bool:
        now = self._moment()
        machine = self.machine
        self._drain_when_read()
        read = await self._input.step(now)
        machine.tick(now)
        if since(self._swept_at, now) > SWEEP_EVERY_S:
            self._swept_at = now
            machine.sweep(now)
        if self._money is not None and self._left() > 0:
            self._money.step(now)
        if self._commit is None and self._due(now):
            self._commit = asyncio.get_running_loop().create_task(self._commit_and_apply())
        if self._looking is None and min(self._blind_s(now), since(self._looked_at, now)) > VERIFY_EVERY_S:
            self._looked_at = now
            self._looking = asyncio.get_running_loop().create_task(self._look())
        self._telling.post(now)
        settled = self.settled
        if settled or self._telling.is_due(now):
            self._telling.report(now, settled=settled, closed=self._closed)
        return read > 0

    async def _rest(self) -> None:
        self._wake.clear()
        held = self.machine.places.next_wake()
        wait = IDLE_S if held is None else max(0.001, min(IDLE_S, held - self._now()))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), wait)

    # -- commits

    def _due(self, now: float) -> bool:
        machine, age = self.machine, since(self._out.at, now)
        hurried = machine.thirsty or (machine.finished_all and self._unsaved())
        due = self._out.due(hurried or machine.dirty or self._unsaved() or machine.held_up(now), now)
        hurry_s = min(STARVED_S if machine.starved else HASTE_S, HASTE * self._commit_s)
        return due and age >= (hurry_s if hurried else self._commit_s)

    def _unsaved(self) -> bool:
        """The end of the lane, or an applied outbox batch, wants a commit of its own."""
        return (self.machine.finished_all and not self._out.done) or self.machine.outbox.trimmable

    async def _commit_once(self) -> None:
        started = await self._out.commit()
        self._prolong(started)

    async def _commit_and_apply(self) -> None:
        try:  # where it fails, whether it was committed is unknown: the next owner reads
            well = await self._well(self._commit_once(), "committed")
            if well and not self.machine.outbox.empty and self._applying is None:
                self._applying = asyncio.get_running_loop().create_task(self._apply_in_background())
        finally:
            self._commit = None
            self.wake()

    async def _apply_in_background(self) -> None:
        try:  # a batch that followers did not take stays in the outbox for the next owner
            await self._well(self._out.apply_outbox(), "told its followers")
        finally:
            self._applying = None
            self.wake()

    async def _look(self) -> None:
        """Beside the loop: a lane whose store is slow must not look frozen."""
        try:
            await self._well(self._see(), "read who owns it")
        finally:
            self._looking = None

    async def _see(self) -> None:
        """A store that can't be asked for a moment ends no lane: what was answered since the last commit would be paid
        for again."""
        try:
            await self._verify()
        except Temporary:
            if self._blind_s(self._now()) > BLIND_S:
                raise

    def _blind_s(self, now: float) -> float:
        """Since it was last seen that the lane is ours."""
        return min(since(self._verified_at, now), since(self._out.at, now))

    async def _well(self, work: Coroutine[None, None, object], doing: str) -> bool:
        """Did it end well? Else the lane is over."""
        try:
            await work
            return True
        except Exception as error:  # noqa: BLE001 - a lane must not die in silence: its driver opens it anew, and counts
            said = f"{type(error).__name__}: {error}"[:300]  # not its `repr`: that of a decoding error holds the data
            strange = Temporary(f"unexpected, while lane {self.lane} {doing}: {said}")
            self._fail(error if isinstance(error, PenstockError) else strange)
            return False

    @property
    def settled(self) -> bool:
        """This lane is over and leaves nothing open: all committed, followers too, leases closed."""
        machine = self.machine
        over = self._out.done or (machine.draining and machine.idle)
        return (
            over
            and not machine.dirty
            and self._commit is None
            and self._applying is None
            and machine.outbox.empty
            and not (self._money is not None and self._money.open)
        )

    def add_costs(self, lines: list[CostLine]) -> None:
        """Closing adjustments of own GPUs: they go with one more commit of this lane. Told again: nothing. Raises
        `Fenced` where this owner will commit nothing."""
        if self._over or not self._opened:
            raise Fenced(f"lane {self.lane}: epoch {self.epoch} is not open")
        if self._closed:
            return
        self.machine.add_costs(lines)
        self._closed = True
        self._out.done = False
        self.wake()

    def _fail(self, error: PenstockError) -> None:
        if not self._over:
            self._over = True
            self._going.set()
            endless = self._plan is not None and not self._plan.bounded  # it outlives rights that are taken for a while
            uncertain = isinstance(error, Temporary) or (endless and isinstance(error, Refused))
            self._driver.failed(self.lane, isinstance(error, Fenced), str(error), not uncertain)
            self.wake()
