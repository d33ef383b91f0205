"""The driver: one actor a run. Makes the plan durable, gives lanes to lane actors, watches, replaces, and ends the run.

It holds the board (counts only) and never sees an item. When it dies its lane actors die with it; the next driver of
the run reads the plan, takes the lanes with a higher epoch, and asks the workers for what they still hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import msgspec

from penstock.connectors.base import Holder, this_process
from penstock.connectors.filestore.common import refuse_apart
from penstock.connectors.registry import Stores, open_stores
from penstock.engine.errors import PenstockError, Temporary
from penstock.engine.plan import Plan
from penstock.workers.books.gpu_bill import BillKeeper
from penstock.workers.books.measuring import Measuring
from penstock.workers.books.spending import Spending
from penstock.workers.books.steering import Steersman, reading
from penstock.workers.books.trail import Trail
from penstock.workers.clock import since
from penstock.workers.cluster import cores, words
from penstock.workers.driving.asked import ask_for, forget_wishes
from penstock.workers.driving.clearing import count_paid, make_way
from penstock.workers.driving.desk import Desk
from penstock.workers.driving.discovery import Discovery
from penstock.workers.driving.ends import early_end, taken_over
from penstock.workers.driving.hearing import LOOK_EVERY_S, Hearing
from penstock.workers.driving.outages import Outages
from penstock.workers.driving.planner import all_ended, durable_plan, wanted_plan
from penstock.workers.driving.sums import second_payments_bound, sum_up
from penstock.workers.fleet import Fleet, Worker, first_pools
from penstock.workers.lanes.crew import Crew
from penstock.workers.lanes.labels import LabelWatch
from penstock.workers.lanes.report import LaneReport
from penstock.workers.lanes.reports import Reports
from penstock.workers.log import Log, collect
from penstock.workers.metrics import DriverMetrics
from penstock.workers.orphan import end_with_raylet
from penstock.workers.ports import encode, job_of
from penstock.workers.runspec import RunOptions, RunSpec
from penstock.workers.status import RunState, RunStatus

TICK_S = 0.1
REPRICE_EVERY_S = 5.0
REUNITE_S = 15.0
"""For workers that an earlier driver left, which answer at once, but on a busy machine. A guess: one that serves and
is silent for so long is replaced."""

_report = msgspec.msgpack.Decoder(LaneReport)


class Driver:
    """Ray actor. `accept` takes the run or raises; then everything goes by itself and `status` tells."""

    def __init__(self, spec: bytes, options: bytes, cores: int) -> None:
        end_with_raylet()
        self._spec = msgspec.msgpack.decode(spec, type=RunSpec)
        self._options, self._cores = msgspec.msgpack.decode(options, type=RunOptions), cores
        self._status = RunStatus(self._spec.run_id, self._spec.name, "starting", started_at=time.time())
        self._status.asked_at = self._options.asked_at
        self._desk = Desk()
        self._board = self._desk.board
        self._reports, self._metrics = Reports(), DriverMetrics(self._spec.name)
        self._ending: tuple[RunState, str] | None = None
        self._cancelled = False
        self._checked_at = self._looked_at = self._repriced_at = 0.0
        self._bill = BillKeeper(self._spec.catalog, self._spec.state, self._spec.run_id)
        self._outages = Outages(time.monotonic(), endless=self._spec.endless)
        self._discovery: Discovery | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._main: asyncio.Task[None] | None = None
        self._log = Log(self._spec.state, self._spec.run_id, "driver")
        collect(self._log)
        self._hearing = Hearing(self._spec, self._status, self._end, self._note)
        self._spending = Spending(self._spec)
        self._measuring = Measuring(self._spec, self._note)
        self._trail = Trail(self._spec, self._options, self._note)
        cells = reading(self._spec.state, self._spec.run_id, lambda: self._status.cells)
        self._steersman = Steersman(self._spec.state, self._spec.catalog, cells, self._note, self._spec.policy)

    def __repr__(self) -> str:
        return f"driver {self._spec.name}"

    # -- taking the run

    async def accept(self) -> None:
        """Hold the run, read or make its plan, and begin. Raises `Refused`, `SpecError`, `Corrupt`, `Temporary`."""
        spec, options = self._spec, self._options
        self._accepting = asyncio.current_task()
        await asyncio.to_thread(refuse_apart, options.marks)
        await make_way(spec, self._trail, fresh=options.fresh)
        self._stores: Stores = await asyncio.to_thread(open_stores, spec.sinks, spec.run_id)
        holder = this_process(options.command)
        self._run_epoch = await self._take_over(holder) if options.take_over else await self._stores.hold(holder)
        self._status.epoch = self._run_epoch
        try:
            await asyncio.to_thread(forget_wishes, spec.state, spec.run_id)
            self._plan = await self._make_plan()
        except BaseException:
            await self._close(abort=True)
            await self._stores.primary.let_go()
            raise
        for books in (self._measuring, self._bill):
            books.hold(self._run_epoch, self._plan.created_at)
        self._log("info", "run accepted", epoch=self._run_epoch, lanes=self._plan.lanes, splits=len(self._plan.splits))
        self._main = asyncio.get_running_loop().create_task(self._run())

    async def _take_over(self, holder: Holder) -> int:
        """The run's epoch. Whoever holds it is left alone until all that can start before has started; where the run
        does not become ours after all, nothing of that stays."""
        spec, primary = self._spec, self._stores.primary
        await wanted_plan(spec, self._options, primary, self._cores, time.time())
        await self._trail.takes_over(await primary.holder(), time.time())
        try:
            await self._warm_up()
            await ask_for(spec.state, spec.run_id, primary, holder, spec.execution.drain_s)
            return await self._stores.hold(holder, take_over=True)
        except BaseException:
            await self._close(abort=False)
            raise

    async def forgo(self) -> None:
        """Take the run no more, where `accept` still goes: let go of it, and ask its holder for nothing."""
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.wait([self._accepting])

    async def _make_plan(self) -> Plan:
        made = await durable_plan(self._spec, self._options, self._stores.primary, self._cores, time.time())
        await self._stores.tell(made.plan)
        await self._trail.began(self._run_epoch, made, time.time())
        for note in made.notes:
            self._tell(note)
        self._status.resumed, self._status.lanes = made.resumed, made.plan.lanes
        self._status.endless, self._status.generation = not made.plan.bounded, made.plan.generation
        self._status.total_bytes = sum(split.size_bytes for split in made.plan.splits) if made.plan.bounded else 0
        return made.plan

    # -- the run

    async def _run(self) -> None:
        try:
            if await self._nothing_to_do():
                await self._finish("done", "nothing to do: every item of this run has ended")
                return
            await self._begin()
            await self._finish(*await self._settle_up(*await self._watch()))
        except PenstockError as error:
            if (taken := await taken_over(self._stores.primary, self._run_epoch)) is not None:
                await self._fail(taken, abort=False)
            elif self._ending is not None and isinstance(error, Temporary):  # it was to stop, and something is away
                await self._fail(f"{self._ending[1]} ({words(error)})", state=self._ending[0])
            else:
                await self._fail(words(error))
        except Exception as error:  # noqa: BLE001 - the last resort: told to the person, then over
            self._log("error", "driver failed", error=words(error))
            self._status.unexpected = True
            await self._fail(f"unexpected: {type(error).__name__}: {words(error)}")

    async def _nothing_to_do(self) -> bool:
        """Every item has ended, followers have all records, and own engines' closing lines are in."""
        if (ended := await all_ended(self._plan, self._stores.primary)) is None:
            return False
        total, cells = ended
        self._measuring.ended(self._status, cells)
        await self._bill.read(resumed=self._status.resumed, now=time.time())
        if self._bill.owed(total, self._run_epoch, time.time()):
            return False
        self._status.tally, self._status.lanes_ended = total, self._plan.lanes
        return True

    def _recruit(self, plan: Plan) -> None:
        """The fleet and the crew; nobody is started yet."""
        import ray

        spec, me = self._spec, ray.get_runtime_context().current_actor
        hear, how = (self._worker_lost, self._pool_changed, self._worker_changed, self._note), spec.execution
        more, job = (how.keep_s, (spec.state, spec.run_id)), job_of(spec.run_id, plan.created_at)
        self._fleet = Fleet(spec.catalog, job, me, how.dispatchers, *hear, *more, endless=spec.endless)
        self._crew = Crew(spec, plan, me, cores, self._board, self._fleet, self._log, self._note, self._end)
        self._crew.marks = self._options.marks

    async def _warm_up(self) -> None:
        """The run's holder still works: lane processes and dispatchers start now, so that less time is lost once it has
        let go. They take no lane and serve nobody before the run is ours. Own engines don't start: the holder's may
        fill the GPUs."""
        plan = await self._stores.primary.read_plan()
        if plan is not None:
            self._recruit(plan)
            await asyncio.gather(self._crew.warm(), self._fleet.warm(first_pools(self._spec.catalog, ())))

    async def _begin(self) -> None:
        spec = self._spec
        await self._bill.open(resumed=self._status.resumed, now=time.time())
        if not hasattr(self, "_crew"):
            self._recruit(self._plan)
        self._fleet.command = self._run_epoch
        if not spec.pinned:
            await self._steersman.first(self._crew.news.steer)
        await self._measuring.first(self._crew.news.learn)
        for pool in first_pools(spec.catalog, self._steersman.pools()):
            self._fleet.want(pool)
        if self._status.resumed:
            await self._fleet.reunite(REUNITE_S)
        force, primary = self._options.take_over, self._stores.primary
        self._labels = LabelWatch(spec, self._plan, primary, lambda why: self._end("failed", why), self._note)
        start = self._crew.start(self._plan, primary, self._run_epoch, complete=self._labels.complete, force=force)
        await self._metrics.tell_lateness(
            lambda: self._reports.lateness.most_s(self._plan.lanes, time.monotonic()), self._hearing.meanwhile(start)
        )
        if self._status.resumed:
            await count_paid(spec, self._plan, primary)
        if not self._plan.started and not self._crew.gone:
            self._plan = msgspec.structs.replace(self._plan, started=True, version=self._plan.version + 1)
            await self._stores.primary.write_plan(self._plan)
            await self._crew.news.extend(self._plan)
        await self._hearing.look(self._crew.news.pause)
        await self._crew.go()
        self._labels.start(self._crew.news.verdict)
        if spec.endless:
            self._discovery = Discovery(spec, self._plan, self._stores.primary, self._longer, self._note)
            self._discovery.start(lambda: [report.plan_version for report in self._reports.now.values()])
        if self._ending is None:
            self._status.state = "running"
        else:  # asked to stop while the lanes were opened: not all of them have heard it
            await self._crew.drain()

    async def _longer(self, plan: Plan) -> None:
        self._plan = plan
        await self._crew.news.extend(plan)

    async def _watch(self) -> tuple[RunState, str]:
        """Until every lane is over, or something ends the run early."""
        look = asyncio.ensure_future(asyncio.sleep(0))
        try:
            over = None
            while over is None:
                await asyncio.sleep(TICK_S)
                over = await self._round(time.time())
                if over is None and look.done():
                    await look  # it may have raised
                    look = asyncio.ensure_future(self._look(time.time()))
            await look
            return over
        finally:
            look.cancel()

    async def _round(self, now: float) -> tuple[RunState, str] | None:
        """What may not wait for a state that is away. Returns how the run ends, where it does."""
        self._sum_up()
        for pool in self._board.pools():
            self._fleet.want(pool)
        await self._check(now)
        self._judge(time.monotonic())
        if self._all_settled():
            self._sum_up()  # the last reports came while this round waited for something
            if self._ending is not None:
                return self._ending
            if self._plan.bounded and all(report.done for report in self._reports.now.values()):
                return "done", ""
        return None

    async def _check(self, now: float) -> None:
        """Once a second: lanes that hang, or are late, pools that are short of workers."""
        if since(self._checked_at, now) > LOOK_EVERY_S:
            self._checked_at = now
            self._metrics.late(self._status.commit_age_s)
            await self._crew.check(now, self._reports)
            for pool in self._board.pools():
                self._fleet.grow(pool, self._board.ready(pool), now)

    async def _look(self, now: float) -> None:
        """Once a second, or as often as the state answers: what stands there, and what is told there."""
        if since(self._looked_at, now) > LOOK_EVERY_S:
            self._looked_at = now
            await self._hearing.look(self._crew.news.pause)
            if not self._spec.pinned:
                await self._steersman.look(self._crew.news.steer, now)
            left = self._steersman.left() | self._fleet.only_left
            self._fleet.let_go([pool for pool in left if not self._board.ready(pool)])
            self._measuring.see(self._status)
            self._measuring.look(self._crew.news.learn, now)
            idle = self._bill.idle_nano(self._status.tally, now)
            bound = second_payments_bound(self._spec, self._plan.lanes, len(self._reports.doubted))
            periods = await asyncio.to_thread(self._spending.look, now)
            await asyncio.to_thread(self._metrics.see, self._status, idle, bound, periods)
            await self._trail.look(self._status, now)
        if since(self._repriced_at, now) > REPRICE_EVERY_S and self._bill:
            self._repriced_at = now
            await self._reprice(now)

    def _all_settled(self) -> bool:
        return self._reports.settled(self._plan.lanes, self._crew.gone)

    def _judge(self, tick: float) -> None:
        """Does anything end the run early?"""
        if self._ending is not None:
            return
        for news in self._outages.news(self._reports.now.values()):
            self._note(news)
        found = early_end(
            self._spec.max_dead_letters, self._reports.now.values(), self._status.tally, self._outages, tick
        )
        self._status.standstill = self._outages.standstill
        if found is not None:
            self._end(*found)

    def _end(self, state: RunState, message: str) -> None:
        """Stop reading and dispatching; what is in flight finishes and is committed. The first reason stays."""
        if self._ending is None and self._status.ended_at is None:
            self._ending = (state, message)
            self._status.state, self._status.standstill = "draining", None
            self._log("info", "ending", state=state, reason=message[:500])
            if hasattr(self, "_crew"):
                self._draining = asyncio.ensure_future(self._crew.drain())

    async def _settle_up(self, state: RunState, message: str) -> tuple[RunState, str]:
        """Closing lines of own engines, committed by lane 0 when all else is in, whether the run is done or stops here:
        to whoever goes on they count as charged. An owner of lane 0 is told until it has heard; the next one, where it
        died before it had committed them, is told anew. Where a lane was given up the sums are not those of its
        commits: no lines."""
        told, until = None, time.monotonic() + self._spec.execution.drain_s
        while self._bill and (self._ending is None or time.monotonic() < until):
            now = time.time()
            self._sum_up()
            await self._check(now)
            if self._all_settled():
                report, holder = self._reports.now.get(0), self._crew.handle(0)
                if self._crew.gone or report is None or holder is None:
                    return self._ending or ("failed", "lane 0 could not write the closing lines of own engines")
                self._bill.shared(self._fleet.borne())
                lines = self._bill.owed(self._status.tally, self._run_epoch, now)
                if report.closed or not lines:
                    return state, message
                if told != holder[0] == self._reports.owners[0]:  # not one that is being opened
                    if not await self._bill.save(now, hurry=self._ending is not None):
                        return self._ending or ("failed", "the hours of own engines can't be kept: the state is away")
                    with contextlib.suppress(Exception):  # it may not have heard, or lane 0 has another owner soon
                        await self._crew.add_costs(encode(lines))
                        told = holder[0]
            await asyncio.sleep(TICK_S)
        return self._ending or (state, message)  # asked to stop before the lines were in: it is not done

    async def _finish(self, state: RunState, message: str) -> None:
        if (why := await taken_over(self._stores.primary, self._run_epoch)) is not None:
            await self._fail(why, abort=False)
            return
        self._status.state = "assembling"
        await self._close(abort=self._cancelled)
        if state != "handed_over":  # its successor waits
            self._status.outputs = await self._stores.finish(self._plan)
        await self._stores.primary.let_go()
        await self._over(state, message)

    async def _fail(self, message: str, *, state: RunState = "failed", abort: bool = True) -> None:
        """`abort`: what workers still have under way. Where another command took the run over, it is that one's."""
        self._log("error", "run failed", state=state, reason=message[:500])
        await self._close(abort=abort)
        with contextlib.suppress(PenstockError):
            await self._stores.primary.let_go()
        await self._over(state, message)

    async def _close(self, *, abort: bool) -> None:
        if self._discovery is not None:
            await self._discovery.close()
        if hasattr(self, "_crew"):
            await self._crew.close()
            await self._fleet.close(abort=abort)
        if hasattr(self, "_labels"):
            await self._labels.close()

    async def _over(self, state: RunState, message: str) -> None:
        self._measuring.see(self._status)
        await self._measuring.end(over=state == "done")
        await self._trail.ended(state, message, self._status.tally, time.time())
        self._status.ended_at, self._status.message, self._status.state = time.time(), message, state
        self._log("info", "run over", state=state, reason=message[:500])

    # -- what the command asks

    async def status(self) -> bytes:
        if self._status.state == "running":
            self._see_lateness()  # the round under way may wait for a state that is away, as the lanes' store is
        return encode(self._status)

    async def drain(self) -> None:
        self._end("interrupted", "interrupted: the same command goes on where it was")

    async def cancel(self) -> None:
        """Stop now: nobody waits for what is in flight."""
        self._cancelled = True
        await self.drain()
        if hasattr(self, "_fleet"):
            await self._fleet.abort()

    # -- what lanes tell

    async def post(self, posts: bytes, owner: int) -> None:
        self._desk.post(posts, owner)

    async def report(self, data: bytes, owner: int) -> None:
        report = _report.decode(data)
        if self._crew.owns(report.lane, owner):
            self._reports.heard(report, owner, time.monotonic())
            self._measuring.heard(report)
            self._crew.heard(report.lane)
            self._status.first_dispatch_at = self._status.first_dispatch_at or report.first_dispatch_at

    async def pace(self, number: int, at_s: float, lost_s: float) -> None:
        self._crew.paced(number, at_s, lost_s)

    async def lane_failed(self, lane: int, owner: int, fenced: bool, message: str, corrupt: bool) -> None:
        if self._crew.owns(lane, owner):
            self._reports.void(lane)
            await self._crew.failed(lane, fenced, message, corrupt)

    # -- what workers ask

    async def ask(self, worker: str, pool: str, room: int) -> tuple[int, int, int, int] | None:
        return await self._desk.ask(worker, pool, room)

    async def lane_handle(self, lane: int) -> tuple[int, object] | None:
        return self._crew.handle(lane)

    # -- workers come and go

    async def _worker_lost(self, name: str, replaced: bool) -> None:
        if replaced:
            self._note(f"worker {name} was lost; another takes its place")
        await self._crew.news.worker_lost(name)

    async def _pool_changed(self, pool: str, why: str | None) -> None:
        """`why` it is down; None: it is up again."""
        self._note(f"{pool} is up again" if why is None else f"{pool} is down: {why}")
        await self._crew.news.pools_changed()
        if why is not None:
            await self._steersman.pool_down(self._crew.news.steer, pool, why, time.time())

    def _worker_changed(self, what: str, worker: Worker, why: str) -> None:
        replica = f"{worker.pool}#{worker.number}"
        self._bill.changed(what, worker.pool, replica, time.time())
        self._log("info", f"worker {what}", worker=worker.name or replica, reason=why)

    def _note(self, text: str) -> None:
        self._log("warning", text)
        self._tell(text)

    def _tell(self, note: str) -> None:
        self._status.notes = [*self._status.notes[-49:], note]
        self._status.noted += 1

    # -- sums

    def _sum_up(self) -> None:
        sum_up(self._status, self._spec, self._reports.last.values(), self._plan.lanes)
        self._see_lateness()

    def _see_lateness(self) -> None:
        self._status.commit_age_s = self._reports.lateness.most_s(self._plan.lanes, time.monotonic())

    async def _reprice(self, now: float) -> None:
        await self._bill.save(now)  # where it can't be, the next save says all of it
        self._bill.shared(self._fleet.borne())
        for model, price in self._bill.prices(self._status.tally, now).items():
            await self._crew.news.reprice(model, encode(price))
