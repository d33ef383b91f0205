"""One S3 bucket as a store: exactly-once home of lanes, and (as primary) of the plan and the run's lock.

`lane` has the protocol and the reasons why it holds; `merge` and `assembly` make what readers want. What this store
does not do: keep a record's `key` and `headers` (objects have none).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping

from penstock.connectors.base import Holder, Records, Taken
from penstock.connectors.filestore.disk import Faults, no_faults
from penstock.connectors.s3.store import run as s3_run
from penstock.connectors.s3.store.beacon import BEAT_S, Beacon, is_alive
from penstock.connectors.s3.store.home import Home
from penstock.connectors.s3.store.lane import Lane, peek, read_progress
from penstock.connectors.s3.store.progress import Progress, progress_name
from penstock.connectors.settings import S3Sink
from penstock.engine.errors import Fenced, Held, PenstockError, Refused
from penstock.engine.plan import Epoch, Plan

OWNER_WAIT_S = 10.0
"""How long a lane's live owner of the same command is waited for."""


class S3Store:
    """See `base.Store` and `base.Primary` for what is promised. One lane's calls come one at a time.

    home: the working prefix of the run's present life. outputs: sink → where readers find it. faults: called at each
    named step (see `lane.TAKE_STEPS` and its neighbours); only tests give one.
    """

    def __init__(
        self,
        home: Home,
        outputs: Mapping[str, S3Sink],
        *,
        beat_s: float = BEAT_S,
        owner_wait_s: float = OWNER_WAIT_S,
        now: Callable[[], float] = time.time,
        faults: Faults = no_faults,
    ) -> None:
        self.home = home
        self.outputs = dict(outputs)
        self.beacon = Beacon(home, beat_s, self._now_and_then)
        self._beat_s = beat_s
        self._owner_wait_s = owner_wait_s
        self._now = now
        self._faults = faults
        self._merged = frozenset(sink for sink, output in outputs.items() if is_prefix(output))
        self._lanes: dict[int, Lane] = {}
        self._run: s3_run.Hold | None = None

    # the lanes

    async def take(self, lane: int, epoch: Epoch, *, force: bool = False) -> Taken:
        await self.release(lane)
        await self.beacon.light()

        async def courtesy(before: Progress) -> None:
            same_command = before.owner[0] == epoch[0]  # an older one has lost the run already
            if not force and same_command and before.beat != self.beacon.id:
                await self._wait_for_owner(lane, before)

        owned = await Lane.take(self.home, lane, epoch, self.beacon.id, courtesy, self._merged, self._faults)
        self._lanes[lane] = owned
        await owned.sweep()
        return owned.taken()

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

    async def release(self, lane: int) -> None:
        if owned := self._lanes.pop(lane, None):
            await owned.release()
            await self._rest()

    async def peek(self, lane: int) -> Taken:
        return await peek(self.home, lane)

    async def _now_and_then(self) -> None:
        pass

    async def _rest(self) -> None:
        """Give no more signs of life where nothing is held."""
        if not self._lanes and self._run is None:
            await self.beacon.put_out()

    # the run

    async def hold(self, holder: Holder, *, take_over: bool = False) -> int:
        await self.let_go()
        await self.beacon.light()
        try:
            held = await s3_run.take_hold(self.home, holder, self.beacon.id, self._beat_s, take_over=take_over)
        except PenstockError:
            await self._rest()
            raise
        self._run = held
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

    async def _check_run(self) -> None:
        if self._run is not None and self._run.epoch < await self.run_epoch():
            raise Fenced(f"{self.home}: another command took this run over. Stop.")


def is_prefix(output: S3Sink) -> bool:
    """A prefix of parts and a manifest; else one object."""
    return output.prefix.endswith("/") or not output.prefix
