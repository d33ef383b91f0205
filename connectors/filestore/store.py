"""A folder tree as a store: exactly-once home of lanes, and (as primary) of the plan and the run's lock.

Its working folder (`home`, hidden beside the output) stays after the run: what is committed lives in spools there, and
outputs are assembled from them, again and whole whenever new input was added. `filestore.lane` has the protocol
and the reasons why it holds; `connectors.assembly` makes what readers want.

Exactly-once needs a file system with exclusive creation, atomic rename and fsync that means it; `flock` only keeps a
live owner from being fenced. What this store does not do: keep a record's `key` and `headers` (files have none).
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from penstock.connectors.base import Holder, Records, Taken, refuse_replaced, this_process
from penstock.connectors.filestore import assembly
from penstock.connectors.filestore import run as file_run
from penstock.connectors.filestore.disk import Faults, no_faults, sync_folder, try_lock
from penstock.connectors.filestore.lane import (
    NEVER,
    OwnedLane,
    highest_marker,
    marker_path,
    read_state,
    spools_of,
    taken,
)
from penstock.connectors.filestore.spool import Spool
from penstock.connectors.settings import FilesSink
from penstock.engine.errors import Corrupt, Fenced, Held, Refused, Temporary
from penstock.engine.plan import Epoch, Plan

LOCK_WAIT_S = 10.0
"""A killed actor lives on for about 2 s (measured); a loaded machine takes longer."""
PEEK_WAIT_S = 1.0
"""How long a mere reader waits for a taker to publish its log (it takes milliseconds)."""

_LANE = re.compile(r"lane-(\d{4})")


class FileStore:
    """See `base.Store` and `base.Primary` for what is promised. Not thread-safe; one lane's calls come one at a time.

    home: the working folder; made where it is missing. outputs: sink → where readers find it.
    faults: called at each named step (see `lane.TAKE_STEPS` and its neighbours); only tests give one.
    """

    def __init__(
        self,
        home: Path,
        outputs: Mapping[str, FilesSink],
        lock_wait_s: float = LOCK_WAIT_S,
        *,
        hold_wait_s: float = file_run.HOLD_WAIT_S,
        peek_wait_s: float = PEEK_WAIT_S,
        faults: Faults = no_faults,
    ) -> None:
        if unsafe := [s for s in outputs if not re.fullmatch(r"[a-z_]+", s)]:
            raise Refused(f"{unsafe[0]!r} cannot name a sink: use lower-case letters and underscores.")
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self.outputs = dict(outputs)
        self._lock_wait_s = lock_wait_s
        self._hold_wait_s = hold_wait_s
        self._peek_wait_s = peek_wait_s
        self._faults = faults
        self._lanes: dict[int, OwnedLane] = {}
        self._run: tuple[int, int] | None = None
        """Our run epoch and the descriptor that holds it."""

    # the lanes

    async def take(self, lane: int, epoch: Epoch, *, force: bool = False) -> Taken:
        refuse_replaced(self._lanes.get(lane), lane, epoch, self.home)
        await self.release(lane)
        try:
            folder = self._started_folder(lane)
            before = await self._wait_for_owner(folder, epoch, force)
            try:
                owned = OwnedLane.take(folder, epoch, _claim(), self._faults)
            finally:
                if before is not None:
                    os.close(before)
        except OSError as error:
            raise Temporary(
                f"{self.home}: lane {lane} cannot be taken now ({error}). Mend the disk and try again."
            ) from error
        self._lanes[lane] = owned
        return owned.taken()

    async def commit(self, lane: int, epoch: Epoch, seq: int, records: Records, chunks: Mapping[str, bytes]) -> None:
        owned = self._lanes.get(lane)
        if owned is None or owned.epoch != epoch:
            raise Fenced(f"{self.home}: lane {lane} is not ours under epoch {epoch}. Take it first.")
        if unknown := [s for s in records if s not in self.outputs]:
            raise Refused(f"{self.home}: sink {unknown[0]} does not live in this store. Put its records in the outbox.")
        await asyncio.to_thread(owned.commit, seq, records, chunks)

    async def owner(self, lane: int) -> Epoch:
        return highest_marker(self._folder(lane))

    async def release(self, lane: int, epoch: Epoch | None = None) -> None:
        owned = self._lanes.get(lane)
        if owned is not None and epoch in (None, owned.epoch):
            del self._lanes[lane]
            owned.close()

    async def peek(self, lane: int) -> Taken:
        folder = self._folder(lane)
        for _ in range(round(self._peek_wait_s / file_run.POLL_S)):
            state, epoch = read_state(folder)
            if epoch >= highest_marker(folder):
                return taken(state)
            await asyncio.sleep(file_run.POLL_S)
        return taken(read_state(folder)[0])

    def _folder(self, lane: int) -> Path:
        return self.home / f"lane-{lane:04d}"

    def _started_folder(self, lane: int) -> Path:
        folder = self._folder(lane)
        if not folder.exists():
            plan = file_run.read_plan(self.home)
            if plan is not None and lane < plan.lanes:
                raise Corrupt(f"{folder} is gone, but the plan has this lane. Restore it, or start with --fresh.")
            folder.mkdir(exist_ok=True)
            sync_folder(self.home)
        return folder

    async def _wait_for_owner(self, folder: Path, epoch: Epoch, force: bool) -> int | None:
        """The last owner's lock, or None where there is none to wait for. Raises `Fenced`, `Held`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._lock_wait_s
        while True:
            highest = highest_marker(folder)
            if highest >= epoch:
                raise Fenced(f"{folder}: owned by epoch {highest}; ours is {epoch}. Read who owns the lane and stop.")
            if highest == NEVER:
                return None
            lock = try_lock(marker_path(folder, highest))
            if force or (lock is not None and highest == highest_marker(folder)):
                return lock
            if lock is not None:
                os.close(lock)
            if loop.time() >= deadline:
                raise Held(_held(folder, highest, self._lock_wait_s))
            await asyncio.sleep(file_run.POLL_S)

    # the run

    async def hold(self, holder: Holder, *, take_over: bool = False, above: int = 0) -> int:
        await self.let_go()
        self._run = await file_run.hold_run(self.home, holder, take_over, self._hold_wait_s, above)
        return self._run[0]

    async def holder(self) -> Holder | None:
        """Who holds the run now; None: nobody alive does."""
        epoch = file_run.run_epoch(self.home)
        if not epoch:
            return None
        path = file_run.marker(self.home, epoch)
        lock = try_lock(path)
        if lock is not None:
            os.close(lock)
            return None
        return file_run.read_holder(path)

    async def let_go(self) -> None:
        if self._run is not None:
            os.close(self._run[1])
            self._run = None

    async def run_epoch(self) -> int:
        return file_run.run_epoch(self.home)

    async def read_plan(self) -> Plan | None:
        return file_run.read_plan(self.home)

    async def write_plan(self, plan: Plan) -> None:
        self._check_run()
        if not file_run.plan_version(self.home):
            self._refuse_lanes_without_plan()
        try:
            for lane in range(plan.lanes):  # before the plan: from then on a missing lane folder is a loss
                self._folder(lane).mkdir(exist_ok=True)
            self._faults("plan.folders")
            file_run.write_plan(self.home, plan)
        except OSError as error:
            raise Temporary(f"{self.home}: the plan cannot be written now ({error}). Mend the disk.") from error

    def _refuse_lanes_without_plan(self) -> None:
        """Positions that a lane has finished say nothing of another plan's input, nor its answers of another job."""
        for folder in _lane_folders(self.home):
            if highest_marker(folder) != NEVER:
                raise Corrupt(f"{folder} has progress, but its plan is gone. Restore it, or start with --fresh.")

    # the readers

    async def finish(self, plan: Plan) -> dict[str, list[str]]:
        """Assemble every output anew from all that is committed. Idempotent; restartable after a crash anywhere.
        Raises `Fenced` where another command took the run over, `Temporary`, `Corrupt`."""
        self._check_run()
        self._refuse_lost_lanes(plan)
        try:
            temp = self._assembly_folder()
            return {s: await asyncio.to_thread(self._assemble, s, plan, temp) for s in self.outputs}
        except OSError as error:
            self._check_run()
            raise Temporary(
                f"the outputs of {self.home} cannot be assembled now ({error}). Nothing committed is lost: free space "
                "or mend the disk, then run the same command again."
            ) from error

    def _refuse_lost_lanes(self, plan: Plan) -> None:
        """An output without their records would look like all of it."""
        for folder in map(self._folder, range(plan.lanes)):
            if plan.started and highest_marker(folder) == NEVER:
                raise Corrupt(
                    f"{folder} has no progress, but its lane had started. Put {self.home}, or the sink's path, back "
                    "as it was; --fresh starts over, and pays again."
                )

    def _assemble(self, sink: str, plan: Plan, temp: Path) -> list[str]:
        output = self.outputs[sink]

        def check() -> None:
            self._check_run()
            file_run.refuse_another(output, file_run.read_owner(output), plan.run_id)

        job = assembly.Job(sink, output, plan.run_id, temp, self.spools(sink), check)
        return assembly.assemble(job, self._faults)

    def _assembly_folder(self) -> Path:
        """A new folder; those of earlier commands go: a stopped one that wakes up finds nothing to publish."""
        parent = self.home / "assembly"
        parent.mkdir(exist_ok=True)
        for old in parent.iterdir():
            if old.is_dir():
                shutil.rmtree(old, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix="run-", dir=parent))

    def _check_run(self) -> None:
        if self._run is not None and self._run[0] < file_run.run_epoch(self.home):
            raise Fenced(f"{self.home}: another command took this run over. Stop.")

    def spools(self, sink: str) -> list[Spool]:
        """Committed spools of one sink, over all lanes."""
        return committed_spools(self.home, sink)


def committed_spools(home: Path, sink: str) -> list[Spool]:
    return [spool for folder in _lane_folders(home) for spool in spools_of(folder, read_state(folder)[0], sink)]


def _lane_folders(home: Path) -> list[Path]:
    return sorted(f for f in home.iterdir() if _LANE.fullmatch(f.name)) if home.exists() else []


def _claim() -> bytes:
    return msgspec.json.encode(this_process())


def _held(folder: Path, epoch: Epoch, waited_s: float) -> str:
    who = file_run.read_holder(marker_path(folder, epoch))
    name = f"process {who.pid} on {who.host}" if who else "another process"
    return f"{folder}: still held by {name} (epoch {epoch}) after {waited_s:g} s. Stop it, or use --take-over."
