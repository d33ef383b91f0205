"""One S3 bucket as a store: exactly-once home of lanes, and (as primary) of the plan and the run's lock.

`lane` has the protocol and the reasons why it holds; `merge` and `assembly` make what readers want. What this store
does not do: keep a record's `key` and `headers` (objects have none).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping

import msgspec

from penstock.connectors.arrivals import Arrivals
from penstock.connectors.base import Holder, Records, Taken, refuse_replaced
from penstock.connectors.filestore.disk import Faults, no_faults
from penstock.connectors.s3.client import Stored
from penstock.connectors.s3.store import leftovers, manifest, parts
from penstock.connectors.s3.store import run as s3_run
from penstock.connectors.s3.store.assembly import assemble_object
from penstock.connectors.s3.store.beacon import BEAT_S, Beacon, is_alive
from penstock.connectors.s3.store.home import call, together
from penstock.connectors.s3.store.lane import Lane, peek, read_progress
from penstock.connectors.s3.store.merge import GRACE_S, MERGE_STEPS, Stopped, collect, forget, is_due, merge
from penstock.connectors.s3.store.partitions import Sinks
from penstock.connectors.s3.store.parts import Made
from penstock.connectors.s3.store.progress import Progress, progress_name
from penstock.connectors.s3.store.run import Life
from penstock.connectors.s3.urls import Where
from penstock.connectors.settings import S3Sink
from penstock.engine.errors import Fenced, Held, PenstockError, Refused, Temporary
from penstock.engine.plan import Epoch, Plan

FINISH_STEPS = (
    "finish.begin", *MERGE_STEPS, "finish.merged", *manifest.STEPS, "finish.published", "finish.assembled"
)  # fmt: skip
MERGES = 4
"""Lanes that are merged side by side at the end. Each holds some 50 MB: parts on their way (`parts.AHEAD_BYTES`), and
one of an upload."""
MERGE_AGAIN_S = 60.0
OWNER_WAIT_S = 10.0
"""How long a lane's live owner of the same command is waited for."""

_log = logging.getLogger(__name__)


class S3Store:
    """See `base.Store` and `base.Primary` for what is promised. One lane's calls come one at a time.

    life: the run's, in its working prefix. outputs: sink → where readers find it. faults: called at each
    named step (see `lane.TAKE_STEPS` and its neighbours); only tests give one.
    """

    def __init__(
        self,
        life: Life,
        outputs: Mapping[str, S3Sink],
        *,
        beat_s: float = BEAT_S,
        owner_wait_s: float = OWNER_WAIT_S,
        now: Callable[[], float] = time.time,
        faults: Faults = no_faults,
    ) -> None:
        self.home = life.home
        self._life = life
        self.outputs = dict(outputs)
        self.beacon = Beacon(self.home, beat_s, self._now_and_then)
        self._beat_s = beat_s
        self._owner_wait_s = owner_wait_s
        self._now = now
        self._faults = faults
        self._sinks = Sinks({sink: output for sink, output in outputs.items() if is_prefix(output)}, life.name)
        self._merged = frozenset(self._sinks.outputs)
        self._merges: dict[int, tuple[asyncio.Task[None], threading.Event]] = {}
        self._merge_failed: dict[int, float] = {}
        """Lane → when a merge failed: it is tried again later, but for a clock that was set back."""
        self._plan: Plan | None = None
        self._lanes: dict[int, Lane] = {}
        self._arrivals = Arrivals()
        """They need the sign of life that they begin with."""
        self._run: s3_run.Hold | None = None

    # the lanes

    async def take(self, lane: int, epoch: Epoch, *, force: bool = False) -> Taken:
        with self._arrivals.one():
            return await self._take(lane, epoch, force)

    async def _take(self, lane: int, epoch: Epoch, force: bool) -> Taken:
        refuse_replaced(self._lanes.get(lane), lane, epoch, self.home)
        await self.release(lane)
        await self.beacon.light()

        async def courtesy(before: Progress) -> None:
            same_command = before.owner[0] == epoch[0]  # an older one has lost the run already
            if not force and same_command and before.beat != self.beacon.id:
                await self._wait_for_owner(lane, before)

        owned = await Lane.take(self.home, lane, epoch, self.beacon.id, courtesy, self._merged, self._faults)
        refuse_replaced(self._lanes.get(lane), lane, epoch, self.home)  # it may have come while we read
        self._lanes[lane] = owned
        if owned.inherited:
            await together(owned.sweep(), *(self._drop_finals(sink, lane) for sink in self._sinks.outputs))
        return owned.taken()

    async def _drop_finals(self, sink: str, lane: int) -> None:
        with contextlib.suppress(PenstockError):  # at worst they stay until the end of the run
            await call(leftovers.drop_finals, self.home, self._sinks, sink, lane)

    async def _wait_for_owner(self, lane: int, before: Progress) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._owner_wait_s
        while await is_alive(self.home, before.beat, self._beat_s):
            if loop.time() >= deadline:
                raise Held(
                    f"{self.home}: lane {lane} is still held by epoch {before.owner} after {self._owner_wait_s:g} s. "
                    "Stop that command, or use --take-over."
                )

    async def commit(self, lane: int, epoch: Epoch, seq: int, records: Records, chunks: Mapping[str, bytes]) -> None:
        owned = self._lanes.get(lane)
        if owned is None or owned.epoch != epoch:
            raise Fenced(f"{self.home}: lane {lane} is not ours under epoch {epoch}. Take it first.")
        if unknown := [sink for sink in records if sink not in self.outputs]:
            raise Refused(f"{self.home}: sink {unknown[0]} does not live in this store. Put its records in the outbox.")
        await owned.commit(seq, records, chunks)
        await owned.forget_garbage()

    async def owner(self, lane: int) -> Epoch:
        mine = self._lanes.get(lane)
        if mine is not None and mine.is_current(await self.home.etag(progress_name(lane))):
            return mine.epoch
        return (await read_progress(self.home, lane))[0].owner

    async def release(self, lane: int, epoch: Epoch | None = None) -> None:
        owned = self._lanes.get(lane)
        if owned is not None and epoch in (None, owned.epoch):
            del self._lanes[lane]
            await self._stop_merge(lane)
            await owned.release()
        await self._rest()

    async def peek(self, lane: int) -> Taken:
        return await peek(self.home, lane)

    # merging while the run goes

    async def _now_and_then(self) -> None:
        for number, lane in list(self._lanes.items()):
            failed_s = self._now() - self._merge_failed.get(number, float("-inf"))
            busy = number in self._merges or 0 <= failed_s < MERGE_AGAIN_S
            if not busy and is_due(lane.state, self._now(), endless=await self._is_endless()):
                stop = threading.Event()
                self._merges[number] = asyncio.create_task(self._merge(lane, stop)), stop

    async def _is_endless(self) -> bool:
        """Readers of a job without an end are told of its records while it goes."""
        if self._plan is None:
            with contextlib.suppress(PenstockError):
                self._plan = await self.read_plan()
        return self._plan is not None and not self._plan.bounded

    async def _merge(self, lane: Lane, stop: threading.Event) -> None:
        """What fails is told, and tried again later, at last by `finish`."""
        try:
            await merge(lane, self.home, self._sinks, self._now(), stop)
            await collect(lane, self.home, self._now() - GRACE_S)
            if await self._is_endless():
                made = await asyncio.to_thread(parts.made, self.home, lane.number, lane.state)
                await self._publish({lane.number: made})
                await forget(lane, made.end, self._now())
        except Exception as error:  # noqa: BLE001 - records are committed; a lane that was lost says so at its next commit
            self._merge_failed[lane.number] = self._now()
            if not isinstance(error, Stopped | Fenced):
                _log.warning("%s: merging lane %d failed, its readers wait: %r", self.home, lane.number, error)
        finally:
            del self._merges[lane.number]

    async def _stop_merge(self, number: int) -> None:
        """Its thread ends at its next look, so nothing is written behind our back."""
        if number in self._merges:
            task, stop = self._merges[number]
            stop.set()
            await asyncio.gather(task, return_exceptions=True)

    async def _publish(self, made: Mapping[int, Made]) -> dict[str, str]:
        """Manifests that tell of all that these lanes have made. Sink → key."""
        telling = (asyncio.to_thread(self._publish_one, sink, made) for sink in self._sinks.outputs)
        return dict(zip(self._sinks.outputs, await together(*telling), strict=True))

    def _publish_one(self, sink: str, made: Mapping[int, Made]) -> str:
        prefix, stored = self.outputs[sink].prefix, self._manifest_stored(sink)
        return manifest.publish(self._life, sink, prefix, made, stored, self._faults)

    def _made(self, states: Mapping[int, Progress]) -> dict[int, Made]:
        return {lane: parts.made(self.home, lane, state) for lane, state in states.items()}

    def _manifest_stored(self, sink: str) -> Stored:
        return msgspec.structs.replace(self._sinks.stored(sink), content_type="application/json")

    async def _rest(self) -> None:
        """Give no more signs of life where nothing is held."""
        if not self._lanes and not self._arrivals and self._run is None:
            await self.beacon.put_out()

    # the run

    async def hold(self, holder: Holder, *, take_over: bool = False, above: int = 0) -> int:
        await self.let_go()
        try:
            with self._arrivals.one():
                await self.beacon.light()
                self._run = held = await s3_run.take_hold(
                    self.home, holder, self.beacon.id, self._beat_s, take_over=take_over, above=above
                )
        except PenstockError:
            await self._rest()
            raise
        await self.beacon.forget_others()
        return held.epoch

    async def holder(self) -> Holder | None:
        """Who holds the run now; None: nobody alive does. Watches for some seconds where nobody gives a sign."""
        found = await s3_run.read_hold(self.home)
        alive = found is not None and await is_alive(self.home, found[0].beat, self._beat_s)
        return found[0].holder if found is not None and alive else None

    async def let_go(self) -> None:
        if self._run is not None:
            held, self._run = self._run, None
            with contextlib.suppress(PenstockError):
                await s3_run.leave_hold(self.home, held)
            await self._rest()

    async def run_epoch(self) -> int:
        found = await s3_run.read_hold(self.home)
        return found[0].epoch if found is not None else 0

    async def read_plan(self) -> Plan | None:
        return await s3_run.read_plan(self.home)

    async def write_plan(self, plan: Plan) -> None:
        await self._check_run()
        await s3_run.write_plan(self.home, plan)

    # the readers

    async def finish(self, plan: Plan) -> dict[str, list[str]]:
        """Merge what waits in all lanes, publish manifests, assemble single objects. Lanes are not held any more.
        Idempotent; restartable after a crash anywhere. Raises `Fenced`, `Temporary`, `Corrupt`."""
        await self._check_run()
        self._faults("finish.begin")
        states = await self._merge_all(plan) if self._merged else {}
        self._faults("finish.merged")
        await self._check_run()
        done = await self._publish(await asyncio.to_thread(self._made, states))
        self._faults("finish.published")
        for sink, output in self.outputs.items():
            if sink not in self._merged:
                await self._check_run()
                if await asyncio.to_thread(assemble_object, self._life, sink, output, plan):
                    done[sink] = output.prefix
                self._faults("finish.assembled")
        await self._sweep(plan)
        return {sink: self._urls(sink, done.get(sink)) for sink in self.outputs}

    async def _merge_all(self, plan: Plan) -> dict[int, Progress]:
        """What waits in each lane, some lanes side by side; lane → what is committed there. After a failure no other
        one is begun."""
        numbers = list(reversed(range(plan.lanes)))
        states: dict[int, Progress] = {}

        async def one_after_another() -> None:
            while numbers:
                number = numbers.pop()
                try:
                    state = await self._merge_rest(number)
                except BaseException:
                    numbers.clear()
                    raise
                if state is not None:
                    states[number] = state

        await together(*(one_after_another() for _ in range(MERGES)))
        parts.refuse_lost(self.home, plan, states)
        return dict(sorted(states.items()))

    async def _merge_rest(self, number: int) -> Progress | None:
        await self._stop_merge(number)
        lane = self._lanes.get(number) or await Lane.visit(self.home, number, self._merged, self._faults)
        if lane is None:
            return None
        while await merge(lane, self.home, self._sinks, self._now(), threading.Event()):
            pass
        with contextlib.suppress(Temporary, Refused):  # at worst what was merged stays beside it
            await collect(lane, self.home, self._now())
        return lane.state

    async def _sweep(self, plan: Plan) -> None:
        """Remove what killed processes left where readers look. At worst it stays; so it does where a run has no end,
        whose objects are too many to be looked through each time that it is stopped."""
        with contextlib.suppress(PenstockError):
            sweep = functools.partial(leftovers.sweep, self._life, self._sinks, finals=plan.bounded)
            left = await together(*(asyncio.to_thread(sweep, sink) for sink in self._sinks.outputs))
            for number, keys in leftovers.by_lane(itertools.chain(*left)).items():
                lane = await Lane.visit(self.home, number, self._merged, self._faults)
                if lane is not None:
                    await leftovers.remove(lane, self.home, self._sinks, keys)

    def _urls(self, sink: str, key: str | None) -> list[str]:
        output = self.outputs[sink]
        return [Where(output.bucket, key, output.endpoint, output.region).url] if key is not None else []

    async def tell(self, plan: Plan) -> None:
        """As a follower: whether the run has an end. Later versions of the plan say the same."""
        if await self.read_plan() is None:
            with contextlib.suppress(Fenced):  # another command told it just now
                await s3_run.write_plan(self.home, msgspec.structs.replace(plan, version=1, splits=()))

    async def _check_run(self) -> None:
        await together(self._check_hold(), call(self._life.check))

    async def _check_hold(self) -> None:
        if self._run is not None and self._run.epoch < await self.run_epoch():
            raise Fenced(f"{self.home}: another command took this run over. Stop.")


def is_prefix(output: S3Sink) -> bool:
    """A prefix of parts and a manifest; else one object."""
    return output.prefix.endswith("/") or not output.prefix
