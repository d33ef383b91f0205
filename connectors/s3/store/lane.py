"""One lane: who owns it, what is committed, and the act of committing.

Everything that counts stands in one object, the lane's progress, and changes by compare-and-swap alone:

* Taking:     (T1) read the progress   (T2) swap it for the same with our epoch in it   (T3) read what it names
* Committing: (C1) put parts and large chunks, each an object that is made once   (C2) swap the progress for one that
              names them
* Reading:    the progress, then what it names.

Why a stopped owner that wakes up can do no harm: its swap names the ETag that it read or wrote last. A taker's swap
(T2) makes another, so every later swap of the old owner fails, and one that came before T2 makes T2 fail, and the taker
reads anew. So after `take` returns no older commit takes effect, and *what is acknowledged is never lost*. *What is not
acknowledged is there wholly or not at all*, since what a commit's swap does not name does not exist: a part without a
progress that names it is a leftover, and the next owner removes it. No lock is needed for any of this; signs of life
(`beat`) only spare a live owner the fence.

A swap whose answer was lost is told from one that failed by reading back (see `fence`). Where it stays unknown, the
lane is lost to this owner until it is taken anew, which reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

import msgspec

from penstock.connectors.base import Records, Taken
from penstock.connectors.filestore.disk import Faults
from penstock.connectors.filestore.spool import pack_batch
from penstock.connectors.s3.client import Got
from penstock.connectors.s3.fence import Lost
from penstock.connectors.s3.store import progress as lists
from penstock.connectors.s3.store.chunks import Chunks, Objects, read_chunks
from penstock.connectors.s3.store.home import Home
from penstock.connectors.s3.store.progress import (
    Chain,
    Part,
    Progress,
    decode,
    encode,
    folder,
    object_name,
    progress_name,
)
from penstock.engine.errors import Corrupt, Fenced, PenstockError, Temporary
from penstock.engine.plan import Epoch

TAKE_STEPS = ("take.begin", "take.read", "take.swapped", "take.loaded")
COMMIT_STEPS = ("commit.begin", "commit.packed", "commit.put", "commit.swapped")
GARBAGE = 100
"""Objects that nothing names any more are deleted in calls of so many."""
SILENT_S = 5.0
"""After so long without a commit an owner looks first whether it still is one."""
_READINGS = 5
"""A reader may meet a progress whose chunks its owner has just replaced: look again."""

Courtesy = Callable[[Progress], Awaitable[None]]
"""Waits for a live owner, or raises `Held`."""


async def read_progress(home: Home, lane: int) -> tuple[Progress, str | None]:
    """What is committed, and the ETag of the object that says so (None: there is none yet). Raises `Corrupt`."""
    return _read(home, lane, await home.read(progress_name(lane)))


def _read(home: Home, lane: int, found: Got | None) -> tuple[Progress, str | None]:
    if found is None:
        return Progress(), None
    return decode(found.data, f"{home}{progress_name(lane)}"), found.etag


async def peek(home: Home, lane: int) -> Taken:
    """A lane's committed state, without fencing anybody."""
    for last in range(_READINGS):
        progress, _ = await read_progress(home, lane)
        try:
            return Taken(progress.seq, progress.epoch, await read_chunks(home, lane, progress))
        except Corrupt:
            if last == _READINGS - 1:
                raise
    raise AssertionError


class Lane:
    """A lane as its owner holds it; or as somebody who changes nothing but how records are stored (`visit`)."""

    def __init__(
        self, home: Home, lane: int, state: Progress, etag: str | None, merged: frozenset[str], faults: Faults
    ) -> None:
        self.number = lane
        self.epoch = state.owner
        self.state = state
        self._home = home
        self._etag = etag
        self._merged = merged
        """Sinks whose parts are merged into objects that readers see."""
        self._faults = faults
        self._chunks = Chunks({}, state)
        self._deleted: set[str] = set()
        """Of what the progress says is dropped."""
        self._seen_at = time.monotonic()
        """When the lane was last seen to be ours."""
        self.inherited = False
        """It had another owner before, who may have left something."""
        self._lost: PenstockError | None = None
        self._one_at_a_time = asyncio.Lock()

    @classmethod
    async def take(
        cls,
        home: Home,
        lane: int,
        epoch: Epoch,
        beat: str,
        courtesy: Courtesy,
        merged: frozenset[str],
        faults: Faults,
    ) -> Lane:
        """T1 to T3. Raises `Fenced`, `Held`, `Corrupt`, `Temporary`."""
        faults("take.begin")
        while True:
            before, etag = await read_progress(home, lane)
            if before.owner >= epoch:
                raise Fenced(
                    f"{home}: lane {lane} is owned by epoch {before.owner}; ours is {epoch}. Read who owns it and stop."
                )
            await courtesy(before)
            faults("take.read")
            state = msgspec.structs.replace(before, owner=epoch, beat=beat)
            try:
                etag = await home.swap(progress_name(lane), encode(state), etag)
            except Lost:
                continue
            break
        faults("take.swapped")
        owned = cls(home, lane, state, etag, merged, faults)
        owned.inherited = before.owner != lists.NEVER
        owned._chunks = Chunks(await read_chunks(home, lane, state), state)
        faults("take.loaded")
        return owned

    @classmethod
    async def visit(cls, home: Home, lane: int, merged: frozenset[str], faults: Faults) -> Lane | None:
        """For a lane that nobody holds any more: its owner stays who it was, and would learn of a change at its next
        commit. None: it never started."""
        state, etag = await read_progress(home, lane)
        return cls(home, lane, state, etag, merged, faults) if etag is not None else None

    def taken(self) -> Taken:
        return Taken(self.state.seq, self.state.epoch, dict(self._chunks.values))

    # -- committing

    async def commit(self, seq: int, records: Records, chunks: Mapping[str, bytes]) -> None:
        """C1 and C2; of a seq that is there already only a look. Raises `Fenced`, `Temporary`, `Corrupt` (a gap)."""
        async with self._one_at_a_time:
            self._check()
            last = self.state.seq
            if seq > last + 1:
                raise Corrupt(f"{self}: commit {seq} cannot follow commit {last}. Take the lane anew.")
            async with self._uncertain(f"commit {seq}"):
                if seq <= last or self._is_silent():
                    await self._look()
                if seq > last:
                    await self._commit(seq, records, chunks)

    async def _commit(self, seq: int, records: Records, chunks: Mapping[str, bytes]) -> None:
        self._faults("commit.begin")
        new, objects = self._chunks.change(self.state, seq, self.epoch, chunks)
        new = self._with_records(new, seq, records, objects)
        new = self._with_short_lists(new, seq, objects)
        dropped = (*new.dropped, *self._chunks.garbage)
        self._chunks.garbage.clear()
        self._faults("commit.packed")
        await self._put(objects)
        self._faults("commit.put")
        await self._swap(msgspec.structs.replace(new, seq=seq, epoch=self.epoch, dropped=dropped))
        self._faults("commit.swapped")

    def _with_records(self, new: Progress, seq: int, records: Records, objects: Objects) -> Progress:
        merged = {sink: rows for sink, rows in records.items() if rows and sink in self._merged}
        whole = {sink: rows for sink, rows in records.items() if rows and sink not in self._merged}
        if merged:
            part = self._pack(seq, "part", merged, objects)
            new = msgspec.structs.replace(new, parts=_longer(new.parts, part))
        if whole:
            part = self._pack(seq, "whole", whole, objects)
            new = msgspec.structs.replace(new, whole=_longer(new.whole, part))
        return new

    def _pack(self, seq: int, kind: str, records: Records, objects: Objects) -> Part:
        batches = {sink: pack_batch(rows) for sink, rows in records.items()}
        slices: list[tuple[str, int, int]] = []
        at = 0
        for sink, batch in batches.items():
            slices.append((sink, at, len(batch)))
            at += len(batch)
        name = object_name(seq, self.epoch, kind)
        objects.append((name, b"".join(batches.values())))
        return Part(name, tuple(slices))

    def _with_short_lists(self, new: Progress, seq: int, objects: Objects) -> Progress:
        if len(new.parts.recent) >= lists.SEAL:
            new = msgspec.structs.replace(new, parts=self.sealed(new.parts, seq, objects))
        if len(new.whole.recent) >= lists.SEAL:
            new = msgspec.structs.replace(new, whole=self.sealed(new.whole, seq, objects))
        return new

    def sealed(self, chain: Chain[lists.T], seq: int, objects: Objects) -> Chain[lists.T]:
        """The chain with its recent entries in a new segment, which must be put before it is named."""
        chain, segment = lists.sealed(chain, name := object_name(seq, self.epoch, "list"))
        objects.append((name, segment))
        return chain

    def step(self, name: str) -> None:
        """A named step, for tests."""
        self._faults(name)

    # -- changing how it is stored

    async def change(self, to: Callable[[Progress, Objects], Progress]) -> None:
        """Swap the progress for another that commits nothing. `to` adds the objects that the new one names. Raises as
        `commit`."""
        async with self._one_at_a_time:
            self._check()
            async with self._uncertain("a change of its parts"):
                if self._is_silent():
                    await self._look()
                objects: Objects = []
                new = to(self.state, objects)
                await self._put(objects)
                await self._swap(new)

    async def forget_garbage(self, at_least: int = GARBAGE) -> None:
        """Delete objects that nothing names any more; the next swap forgets their names. At worst they stay."""
        names = [name for name in self.state.dropped if name not in self._deleted]
        if names and len(names) >= at_least:
            self._deleted.update(names)
            with contextlib.suppress(PenstockError):
                await self._home.delete(folder(self.number) + name for name in names)

    async def sweep(self) -> None:
        """Remove what dead owners left: what they put and never committed (all that lies behind the last commit and
        isn't ours), and what they dropped and did not come to delete."""
        await self.forget_garbage(1)
        here = folder(self.number)
        with contextlib.suppress(PenstockError):  # at worst they stay
            names = await self._home.names(here, f"{here}{self.state.seq + 1:010d}")
            theirs = [n for n in names if (lists.epoch_of(n.removeprefix(here)) or self.epoch) < self.epoch]
            await self._home.delete(theirs)

    # -- letting go

    async def release(self) -> None:
        """Say that nobody needs to be waited for. At worst the next owner waits."""
        async with self._one_at_a_time:
            if self._lost is None:
                with contextlib.suppress(PenstockError):
                    await self._swap(msgspec.structs.replace(self.state, beat=""))
            self._lost = self._lost or Temporary(f"{self}: released. Take the lane anew.")
        await self.forget_garbage(1)

    def is_current(self, etag: str | None) -> bool:
        """Nobody took it, as far as the ETag of its progress tells."""
        return self._lost is None and etag == self._etag

    # -- the swap

    def __str__(self) -> str:
        return f"{self._home}lane {self.number}"

    def _check(self) -> None:
        if self._lost is not None:
            raise self._lost

    @contextlib.asynccontextmanager
    async def _uncertain(self, what: str) -> AsyncGenerator[None]:
        """Whatever breaks in here loses the lane: it is unknown what is stored."""
        try:
            yield
        except Fenced as error:
            self._lost = error
            raise
        except Temporary as error:
            self._lost = Temporary(f"{self}: {what} is uncertain ({error}) Take the lane anew and read.")
            raise self._lost from error
        except BaseException:
            self._lost = Temporary(f"{self}: {what} was cut off. Take the lane anew and read.")
            raise

    async def _put(self, objects: Objects) -> None:
        here = folder(self.number)
        await asyncio.gather(*(self._home.create(here + name, data) for name, data in objects))

    async def _swap(self, new: Progress) -> None:
        gone = frozenset(self._deleted)
        new = msgspec.structs.replace(new, dropped=tuple(name for name in new.dropped if name not in gone))
        try:
            self._etag = await self._home.swap(progress_name(self.number), encode(new), self._etag)
        except Lost as error:
            raise self._taken_over(error.found) from error
        self.state, self._seen_at = new, time.monotonic()
        self._deleted -= gone

    async def _look(self) -> None:
        found = await self._home.etag(progress_name(self.number))
        if found != self._etag:
            raise self._taken_over(await self._home.read(progress_name(self.number)))
        self._seen_at = time.monotonic()

    def _is_silent(self) -> bool:
        """It may have slept, and have been replaced: then it should leave nothing behind that nobody will name."""
        return time.monotonic() - self._seen_at > SILENT_S

    def _taken_over(self, found: Got | None) -> PenstockError:
        if found is None:
            return Fenced(f"{self}: its progress was thrown away by another command. Stop: write and send nothing.")
        owner = _read(self._home, self.number, found)[0].owner
        if owner == self.epoch:
            return Temporary("its progress was changed by the command that finishes the run.")
        return Fenced(f"{self}: taken over by epoch {owner}; ours is {self.epoch}. Stop: write and send nothing.")


def _longer(chain: Chain[Part], part: Part) -> Chain[Part]:
    since = chain.since if not chain.empty else time.time()
    return Chain((*chain.recent, part), chain.sealed, chain.size + part.size, since)
