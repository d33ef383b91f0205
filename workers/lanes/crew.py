"""Who holds which lane: actors, epochs, owners. Lanes are reopened elsewhere when their actor is lost or silent."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import msgspec

from penstock.connectors.base import Mark, Primary
from penstock.engine.balance import Balance
from penstock.engine.errors import Away, Fenced, PenstockError
from penstock.engine.plan import Plan
from penstock.workers.clock import since, tell_skew
from penstock.workers.cluster import kill, until_gone, words
from penstock.workers.driving.board import Board
from penstock.workers.fleet import Fleet
from penstock.workers.lanes.actor import started
from penstock.workers.lanes.member import Member
from penstock.workers.lanes.news import TELL_S, News
from penstock.workers.lanes.patience import Patience
from penstock.workers.lanes.reports import Reports
from penstock.workers.log import Log
from penstock.workers.ports import encode
from penstock.workers.runspec import RunSpec
from penstock.workers.status import RunState

SILENT_S = 10.0
"""A lane actor that reports nothing for so long is stopped or frozen: its lanes go to another."""
LONE_SILENT_S = 60.0
"""One lane of an actor that reports nothing for so long, while its others do, hangs: it is opened anew. Longer than a
slow read or commit lasts, which also keep a lane's loop from reporting. A guess."""
OPEN_TIMEOUT_S = 60.0
FIRST_OPEN_S = 300.0
"""Longer than a lane's opening takes by far: its reply got lost (seen in Ray), or its store is slow as never."""
COUNT_EVERY_S = 10.0
"""The cluster's cores, where it may grow."""


class Crew:
    def __init__(
        self,
        spec: RunSpec,
        plan: Plan,
        driver: object,
        cores: Callable[[], int],
        board: Board,
        fleet: Fleet,
        log: Log,
        note: Callable[[str], None],
        end: Callable[[RunState, str], None],
    ) -> None:
        self._spec = spec
        self._run_epoch = 0
        """0: the run is not ours yet."""
        self._driver = driver
        self._cores = cores
        self._board = board
        self._fleet = fleet
        self._log = log
        self._note = note
        self._end = end
        self._actors: list[Member] = []
        self.news = News(self._actors, plan, fleet.down, log, note)
        self._by_lane: dict[int, Member] = {}
        """Where each lane is opened next."""
        self._owners: dict[int, int] = {}
        self._held: dict[int, Member] = {}
        """Where its present owner is, or was: of a lane that moves, the old one until it opens in the other."""
        self._openings: dict[int, int] = {}
        self._patience = Patience(None if spec.endless else spec.execution.outage_s, note)
        self._heard: dict[int, float] = {}
        self._next_owner = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._going = False
        self._reopening: dict[int, asyncio.Lock] = {}
        self._primary: Primary | None = None
        """None: the run is not ours yet."""
        self._opened: set[int] = set()
        self._checked = self._counted = time.time()
        self._balance = Balance()
        self._why = ""
        """Of the last move."""
        self.marks: tuple[Mark, ...] = ()
        """Which each lane's node must see before the lane opens there."""
        self.gone: set[int] = set()
        """Lanes nobody holds any more, and nobody will: the run ends without a word from them."""

    def owns(self, lane: int, owner: int) -> bool:
        return self._owners.get(lane) == owner

    def heard(self, lane: int) -> None:
        self._heard[lane] = time.time()

    def paced(self, number: int, at_s: float, lost_s: float) -> None:
        """An actor's word on how much of its time it does not run."""
        self._balance.heard(number, at_s, lost_s, time.monotonic())
        for actor in self._actors:
            if actor.number == number:
                actor.heard_at = time.time()

    def handle(self, lane: int) -> tuple[int, object] | None:
        actor = self._held.get(lane)
        return (self._owners[lane], actor.handle) if actor is not None else None

    # -- opening

    async def warm(self) -> None:
        """Start the actors, and wait until they are there: their lanes are somebody else's still."""
        self._hire()
        calls = [actor.handle.pid.remote() for actor in self._actors]  # pyright: ignore[reportAttributeAccessIssue]
        with contextlib.suppress(Exception):  # one that is lost is replaced by `_watch`
            await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), OPEN_TIMEOUT_S)

    def _hire(self) -> None:
        count, lanes = self._wanted(), range(self.news.plan.lanes)
        for number in range(count):
            self._actors.append(self._new_actor(number, list(lanes[number::count])))

    def _wanted(self) -> int:
        """So many actors, in a cluster as it is now."""
        return max(1, min(self.news.plan.lanes, self._spec.execution.lane_actors or self._cores() // 2))

    async def _grow(self) -> None:
        """One more actor where nodes have joined the cluster: lanes move there."""
        wanted = await asyncio.to_thread(self._wanted)
        if len(self._actors) < wanted and not (self.news.draining or self._closing):
            number = 1 + max(actor.number for actor in self._actors)
            self._note(f"the cluster has more cores: lane actor {number} starts")
            self._actors.append(self._new_actor(number, []))

    async def start(self, plan: Plan, primary: Primary, run_epoch: int, *, complete: bool, force: bool) -> None:
        """The run is ours: take every lane. Nothing is dispatched before `go`. `force`: the run was taken over, so
        its last owner may still live (or be stopped, with its locks). A lane that does not open in time is opened
        anew."""
        self._complete, self._primary, self._run_epoch = complete, primary, run_epoch
        if self._actors:
            await self.news.extend(plan)
        else:
            self._hire()
        await asyncio.gather(*(self._open_first(lane, force) for lane in range(self.news.plan.lanes)))

    async def _open_first(self, lane: int, force: bool) -> None:
        from ray.exceptions import ActorDiedError, RayError, RayTaskError

        try:
            await asyncio.wait_for(self._open(lane, force=force), FIRST_OPEN_S)
        except RayTaskError as error:  # what the lane says itself
            if not isinstance(error.cause, Away):
                raise
            await self._reopen_here(lane, self._by_lane[lane])
        except ActorDiedError:
            self._log("warning", "lane actor died while it opened", lane=lane)
        except (TimeoutError, RayError) as error:  # it lives, so nobody else looks after the lane
            why = words(error) if isinstance(error, RayError) else f"it took more than {FIRST_OPEN_S:g} s"
            self._note(f"lane {lane} did not open ({why}), and is opened anew")
            await self._reopen_here(lane, self._by_lane[lane])
        while lane not in self._opened and lane not in self.gone:  # noqa: ASYNC110 - `_watch` opens it in another
            await asyncio.sleep(0.05)

    async def go(self) -> None:
        self._going = True
        for lane in self._by_lane:
            self._heard[lane] = time.time()
        await asyncio.gather(*(actor.begin() for actor in list(self._actors)))

    def _new_actor(self, number: int, lanes: list[int]) -> Member:
        label = f"lane {self._spec.name}[{_shown(lanes)}]"
        handle = started(encode(self._spec), encode(self.news.plan), self._driver, label, self.marks)
        actor = Member(number, handle, self.news.plan.version, lanes)
        for lane in lanes:
            self._by_lane[lane] = actor
        self._spawn(self._watch(actor))
        self._spawn(actor.beat())
        self._spawn(tell_skew(label, handle.clock.remote, self._note))  # pyright: ignore[reportArgumentType]
        return actor

    async def _open(self, lane: int, *, force: bool) -> None:
        actor = self._by_lane[lane]
        self._opened.discard(lane)
        self._openings[lane] = self._openings.get(lane, 0) + 1
        self._next_owner += 1
        owner = self._owners[lane] = self._next_owner
        self._held[lane] = actor
        self._board.own(lane, owner)
        epoch = (self._run_epoch, self._openings[lane])
        await self.news.inform(actor)
        await actor.handle.open.remote(lane, owner, epoch, force, self._complete)
        workers = self._fleet.handles()
        if workers:
            await actor.handle.adopt.remote(lane, actor.handle, workers)
            there = {name for name, _ in self._fleet.handles()}
            for name in {name for name, _ in workers} - there:  # it was told when the lane did not know their calls yet
                await actor.handle.worker_lost.remote(name)
        await self.news.tell_pools(actor, anew=True)
        self._opened.add(lane)

    # -- losing and reopening

    async def _watch(self, actor: Member) -> None:
        await until_gone(actor.handle)
        if not self._closing and actor in self._actors:
            self._note(f"lane actor {actor.number} was lost; its lanes go on in another")
            await self._replace(actor)

    async def _replace(self, actor: Member) -> None:
        if actor not in self._actors or self._closing:
            return
        self._actors.remove(actor)
        for lane in actor.lanes:
            self._board.drop(lane)
        if not all([self._may_reopen(lane, "its actor was lost again and again") for lane in actor.lanes]):
            self.gone.update(actor.lanes)
            return
        fresh = self._new_actor(actor.number, actor.lanes)
        self._actors.append(fresh)
        if self._run_epoch:
            await asyncio.gather(*(self._reopen_here(lane, fresh) for lane in fresh.lanes))

    async def _reopen_here(self, lane: int, actor: Member) -> None:
        """One lane that can't be opened, for however long, keeps no other from it."""
        async with self._reopening.setdefault(lane, asyncio.Lock()):
            await self._try_to_reopen(lane, actor)

    async def _try_to_reopen(self, lane: int, actor: Member) -> None:
        from ray.exceptions import ActorDiedError

        while actor in self._actors and self._by_lane[lane] is actor:  # else it was lost, or the lane moves
            heard = self._last_words(actor)
            try:
                await asyncio.wait_for(self._open_and_brief(lane, actor), OPEN_TIMEOUT_S)
            except ActorDiedError:  # killed while it opened: `_watch` sees it too, and opens the lane in another
                return
            except Exception as error:  # noqa: BLE001 - told and bounded by `_may_reopen`
                fenced = isinstance(getattr(error, "cause", error), Fenced)
                if actor not in self._actors or (fenced and await self._taken_over(lane)):
                    return
                if not self._may_reopen(lane, words(error), error):
                    return
                await asyncio.sleep(max(0.5, self._patience.pause_s(lane)))
                if type(error) is TimeoutError and self._last_words(actor) == heard:  # frozen: `_watch` sees its end
                    kill(actor.handle)
            else:
                self._patience.opened(lane)
                return

    def _last_words(self, actor: Member) -> tuple[float | None, ...]:
        """When it, and each of its lanes, was heard last."""
        return actor.heard_at, *(self._heard.get(lane) for lane in actor.lanes)

    async def _open_and_brief(self, lane: int, actor: Member) -> None:
        await self._open(lane, force=True)
        self._heard[lane] = time.time()
        await self.news.brief(actor, lane, going=self._going)

    async def failed(self, lane: int, fenced: bool, message: str, corrupt: bool) -> None:
        """A lane gave up: fenced by somebody, or its commit is uncertain, or its input or progress is unusable."""
        self._log("warning", "lane failed", lane=lane, reason=message[:500])
        owner = self._owners.get(lane)
        if fenced and await self._taken_over(lane):
            return
        if self._owners.get(lane) != owner:  # that took a while, in which its actor was replaced
            return
        if corrupt and not fenced:
            self.gone.add(lane)
            self._end("failed", message)
            return
        if self._may_reopen(lane, message):
            self._opened.discard(lane)  # until it is opened again its silence says nothing
            await asyncio.sleep(self._patience.pause_s(lane))
            async with self._reopening.setdefault(lane, asyncio.Lock()):
                if self._owners.get(lane) == owner:  # likewise
                    await self._try_to_reopen(lane, self._by_lane[lane])

    async def _taken_over(self, lane: int) -> bool:
        """Where the run is another command's now, this lane is nobody's here. False, too, where that can't be read."""
        with contextlib.suppress(PenstockError):
            if self._primary is not None and await self._primary.run_epoch() > self._run_epoch:
                self.gone.add(lane)
                self._end("failed", "the run was taken over by another command")
                return True
        return False

    def _may_reopen(self, lane: int, why: str, error: Exception | None = None) -> bool:
        """`error`: what kept it from being opened. Where it may not, the run ends."""
        cause = getattr(error, "cause", None) or error
        if self._patience.may_reopen(lane, cause, why, time.time()):
            return True
        self.gone.add(lane)
        self._end("failed", f"lane {lane} can't go on: {why}")
        return False

    async def check(self, now: float, reports: Reports) -> None:
        """Replace actors that are alive but silent (stopped, frozen), open lanes anew that hang alone, and tell
        who has not heard it of the longer plan, or of pools. Then one lane may move."""
        slept, self._checked = not 0 <= now - self._checked <= SILENT_S / 2, now
        if not self._going or self._closing:
            return
        if slept:  # we were stopped ourselves, the machine slept, or its clock was set: who is silent shows in a while
            self._heard = dict.fromkeys(self._heard, now)
            for actor in self._actors:
                actor.heard_at = now if actor.heard_at is not None else None
        for actor in list(self._actors):
            lanes = [lane for lane in actor.lanes if lane not in self.gone and lane in self._opened]
            heard = [self._heard.get(lane, now) for lane in lanes] or [actor.heard_at or now]
            if (lanes or not actor.lanes) and now - max(heard) > SILENT_S:
                self._note(f"lane actor {actor.number} is silent; its lanes go on in another")
                for lane in actor.lanes:
                    reports.void(lane)
                    self._heard[lane] = now
                kill(actor.handle)
                self._spawn(self._replace(actor))
                continue
            for lane in lanes:
                if now - self._heard.get(lane, now) > LONE_SILENT_S:
                    reports.void(lane)
                    self._hangs(lane, now)
            if self.news.behind(actor):
                self._spawn(self.news.catch_up(actor))

        if not (slept or self.news.draining):
            self._rebalance(reports)
            if since(self._counted, now) > COUNT_EVERY_S:
                self._counted = now
                self._spawn(self._grow())

    def _rebalance(self, reports: Reports) -> None:
        ended = self.gone | {lane for lane, report in reports.now.items() if report.done}
        held = {actor.number: actor.lanes for actor in self._actors}
        move = self._balance.next(held, time.monotonic(), ended)
        if move is not None:
            if move.why != self._why:
                self._why = move.why
                self._note(f"{move.why}: lanes move to lane actor {move.target}, one at a time")
            self._log("info", "lane moves", **msgspec.structs.asdict(move))
            by_number = {actor.number: actor for actor in self._actors}
            source, target = by_number[move.source], by_number[move.target]
            source.lanes.remove(move.lane)
            target.lanes.append(move.lane)
            self._by_lane[move.lane] = target  # whoever opens it from now on does so there
            self._opened.discard(move.lane)
            self._board.drop(move.lane)
            self._spawn(self._move(move.lane, source, target, reports))

    async def _move(self, lane: int, source: Member, target: Member, reports: Reports) -> None:
        """From one actor that lives to another. Where the old one does not hand it over in time, the new epoch fences
        it, as one that was lost."""
        try:
            async with self._reopening.setdefault(lane, asyncio.Lock()):
                self._opened.discard(lane)
                try:
                    if left := await source.part(lane):
                        heir = self._by_lane[lane]  # another than the target, where that was lost meanwhile
                        await asyncio.wait_for(heir.handle.inherit.remote(lane, left), TELL_S)
                except Exception as error:  # noqa: BLE001 - lost, or mute: the lane is taken all the same
                    self._log("warning", "lane was not handed over", lane=lane, reason=words(error)[:500])
                reports.void(lane)
                await self._try_to_reopen(lane, target)
        finally:
            self._balance.moved(time.monotonic())

    def _hangs(self, lane: int, now: float) -> None:
        self._heard[lane] = now
        why = f"it said nothing for {LONE_SILENT_S:g} s"
        self._note(f"lane {lane} hangs ({why}), and is opened anew")
        self._spawn(self.failed(lane, False, why, False))

    async def add_costs(self, lines: bytes) -> None:
        await asyncio.wait_for(self._by_lane[0].handle.add_costs.remote(0, lines), TELL_S)

    async def drain(self) -> None:
        self._patience.hurry(self._spec.execution.drain_s)
        await self.news.drain()

    async def close(self) -> None:
        """Let go of all lanes and end their actors."""
        self._closing = True
        for task in list(self._tasks):
            task.cancel()
        for actor in self._actors:
            await actor.close()

    def _spawn(self, work: object) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)  # pyright: ignore[reportArgumentType]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _shown(lanes: list[int]) -> str:
    """Those that it begins with: Ray reads an actor's label once."""
    return f"{lanes[0]}…{lanes[-1]}" if len(lanes) > 1 else "".join(map(str, lanes))
