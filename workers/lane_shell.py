"""The shell around one lane machine: reads its source, encodes and commits its records, keeps its right to send.

It decides nothing about items (`engine.lane` does); it owns the waiting. No Ray here: `lane_actor` puts shells into an
actor, tests drive them directly.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Protocol

import msgspec

from penstock.connectors.base import OutRecord, Reader, Source
from penstock.connectors.records import Encoder
from penstock.connectors.registry import Stores
from penstock.connectors.replay import Intake
from penstock.engine.budget import NeedLease
from penstock.engine.errors import Corrupt, Fenced, PenstockError, Temporary
from penstock.engine.items import CallChunk, CostLine, DeadLetter, Item, Outcome, OutputSpec
from penstock.engine.lane import Lane
from penstock.engine.lane_types import CommitBatch, ShelfEntry
from penstock.engine.outbox import Outbox
from penstock.engine.plan import Epoch, Plan
from penstock.engine.progress import PROGRESS, SHELF, Progress, Saved
from penstock.engine.tally import Tally
from penstock.workers.ports import Kept, Post

RIGHT_S = 5.0
"""How long the right to send lasts after a commit or read that showed our own epoch (DESIGN, commit protocol 4)."""
READ_RECORDS = 256
READ_BYTES = 1_000_000
"""One read blocks the lane's loop: 256 records are about 6 ms."""
IDLE_S = 0.05
VERIFY_EVERY_S = 1.0
POST_EVERY_S = 0.02
REPORT_EVERY_S = 0.25
SWEEP_EVERY_S = 5.0
LEASE_RETRY_S = 0.5
HASTE_S = 0.02
"""Least time between commits when workers are short of dispatchable items."""

Batches = dict[str, list[OutRecord]]


class LaneReport(msgspec.Struct, frozen=True):
    """What a lane tells the driver, a few times a second."""

    lane: int
    tally: Tally
    done: bool = False
    idle: bool = True
    settled: bool = False
    """Nothing in flight, everything committed, leases settled, followers up to date."""
    stuck: str | None = None
    spent_out: str | None = None
    open_breakers: list[tuple[str | None, str]] = []
    commit_age_s: float = 0.0
    oldest_item_s: float = 0.0
    first_dispatch_at: float | None = None


class DriverPort(Protocol):
    """What a lane asks of its driver."""

    def post(self, posts: list[Post]) -> None: ...
    def report(self, report: LaneReport) -> None: ...
    def failed(self, lane: int, fenced: bool, message: str, corrupt: bool) -> None: ...


class LedgerPort(Protocol):
    """The budget ledger on the state URL (`connectors.ledger`). Blocking: called in a thread."""

    def lease(self, need: NeedLease, lease_id: str, lane: int, epoch: Epoch, now: float) -> int | str | None:
        """Nano-dollars leased, durable; or why never; None: not while others hold leases that they may give back."""
        ...

    def settle(self, key: str, lease_id: str, spent_nano: int) -> None: ...
    def forfeit(self, lane: int, before: Epoch, proven: dict[str, int]) -> int: ...


class Verdicts:
    """How far the duplicate-label pass has come, and the places of the duplicates it found."""

    def __init__(self, complete: bool) -> None:
        self.complete = complete
        self.upto: tuple[int, int] = (-1, -1)
        self.duplicates: dict[tuple[int, int], str] = {}


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
        verdicts: Verdicts | None = None,
        outputs: dict[str, OutputSpec] | None = None,
    ) -> None:
        self.lane = lane
        self.epoch = epoch
        self.machine = machine
        self.verdicts = verdicts or Verdicts(complete=True)
        self.own_until = 0.0
        self._stores = stores
        self._source = source
        self._intake = intake
        self._encoder = encoder
        self._driver = driver
        self._ledger = ledger
        self._now = now
        self._commit_s = commit_s
        self._limit = limit
        self._outputs = outputs or {}
        self._reader: Reader | None = None
        self._behind: list[Item | DeadLetter] = []
        """Read, but the label pass is not past them yet."""
        self._wake = asyncio.Event()
        self._going = False
        self._over = False
        self._commit: asyncio.Task[None] | None = None
        self._applying: asyncio.Task[None] | None = None
        self._leasing: dict[str, asyncio.Task[None]] = {}
        self._lease_number = 0
        self._committed_at = 0.0
        self._done_committed = False
        self._posted: dict[str, tuple[int, int, bool]] = {}
        self._posted_at = self._reported_at = self._swept_at = self._verified_at = 0.0
        self._first_dispatch_at: float | None = None
        self._pump: asyncio.Task[None] | None = None

    # -- life

    async def open(self, plan: Plan, *, force: bool) -> None:
        """Take the lane: fence, read, commit the new epoch. Nothing may be dispatched before `go`."""
        primary = self._stores.primary
        taken = await primary.take(self.lane, self.epoch, force=force)
        if taken.seq == 0 and plan.started:
            raise Corrupt(
                f"lane {self.lane} of {plan.name} had started, but its progress is gone; put it back, "
                "or start over with --fresh"
            )
        saved = msgspec.msgpack.decode(taken.chunks[PROGRESS], type=Saved) if PROGRESS in taken.chunks else Saved()
        shelf = [
            msgspec.msgpack.decode(data, type=ShelfEntry)
            for name, data in sorted(taken.chunks.items())
            if name.startswith(SHELF)
        ]
        splits = [split for split in plan.splits if split.lane == self.lane]
        outbox = Outbox(taken.chunks, saved.outbox_next)
        self.machine.begin(Progress(splits, saved), saved, shelf, outbox, taken.seq)
        self.machine.plan_version = plan.version
        await self._forfeit(saved)
        await self._commit_once()
        for store in self._stores.followers.values():
            await store.take(self.lane, self.epoch, force=force)
        await self._apply_outbox()
        self._reader = await self._source.open(self.machine.progress.starts())

    async def _forfeit(self, saved: Saved) -> None:
        if self._ledger is not None:
            lost = await asyncio.to_thread(self._ledger.forfeit, self.lane, self.epoch, dict(saved.spent))
            self.machine.tally.forfeit_nano += lost

    def adopt(self, kept: Kept, worker: str) -> None:
        self.machine.adopt(kept.outcomes, kept.flying, worker)

    def go(self) -> None:
        """All lanes have taken their place: read and dispatch."""
        self.machine.restore_shelf(self._now())
        self._pump = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Let go of the lane. What is not committed is left to the next owner."""
        self._over = True
        tasks = [t for t in (self._pump, self._commit, self._applying, *self._leasing.values()) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._reader is not None:
            await self._reader.close()
        for store in (self._stores.primary, *self._stores.followers.values()):
            with contextlib.suppress(PenstockError):
                await store.release(self.lane)

    def drain(self) -> None:
        """Read and dispatch nothing more."""
        self.machine.draining = True
        self.wake()

    def wake(self) -> None:
        self._wake.set()

    # -- calls of workers

    async def take(self, pool: str, n: int, max_tokens: int, worker: str) -> tuple[CallChunk | None, int]:
        now = self._now()
        if self._over or not self._going:
            return None, 0
        if now >= self.own_until and not await self._verify():
            return None, 0
        calls = self.machine.take(pool, n, max_tokens, worker, now)
        if not calls:
            return None, 0
        self._first_dispatch_at = self._first_dispatch_at or now
        self.wake()
        names = {call.task for call in calls}
        outputs = {name: spec for name, spec in self._outputs.items() if name in names}
        chunk = CallChunk(self.machine.settings.run, self.lane, self.epoch, self.own_until, calls, outputs)
        return chunk, self.machine.ready.count(pool)

    async def done(self, epoch: Epoch, outcomes: list[Outcome]) -> None:
        """Raises `Fenced` where this owner's lane is over: the worker keeps the outcomes for the next one."""
        if self._over or epoch > self.epoch:
            raise Fenced(f"lane {self.lane}: this owner is over")
        now = self._now()
        for outcome in outcomes:
            self.machine.outcome(outcome, now)
        self.wake()

    async def right(self, epoch: Epoch) -> float:
        """Until when this owner's calls may be sent; 0: not any more."""
        if self._over or epoch != self.epoch:
            return 0.0
        if self.own_until - self._now() < RIGHT_S - VERIFY_EVERY_S and not await self._verify():
            return 0.0
        return self.own_until

    async def _verify(self) -> bool:
        """Read who owns the lane. A stopped process that wakes up learns here that it was replaced."""
        asked = self._now()
        owner = await self._stores.primary.owner(self.lane)
        if owner != self.epoch:
            self._fail(Fenced(f"lane {self.lane} was taken over by epoch {owner}"))
            return False
        self.own_until = max(self.own_until, asked + RIGHT_S)
        self._verified_at = asked
        return True

    # -- the loop

    async def _run(self) -> None:
        self._going = True
        try:
            while not self._over:
                busy = await self._step()
                if busy:
                    await asyncio.sleep(0)
                else:
                    await self._rest()
        except PenstockError as error:
            self._fail(error)

    async def _step(self) -> bool:
        now = self._now()
        machine = self.machine
        read = await self._read(now)
        machine.tick(now)
        if now - self._swept_at > SWEEP_EVERY_S:
            self._swept_at = now
            machine.sweep(now)
        self._lease(now)
        if self._commit is None and self._due(now):
            self._commit = asyncio.get_running_loop().create_task(self._commit_and_apply())
        if now - self._verified_at > VERIFY_EVERY_S and now - self._committed_at > VERIFY_EVERY_S:
            await self._verify()
        self._post(now)
        if now - self._reported_at > REPORT_EVERY_S or self.settled:
            self._report(now)
        return read > 0

    async def _rest(self) -> None:
        self._wake.clear()
        wait = IDLE_S
        held = self.machine.next_wake()
        if held is not None:
            wait = max(0.001, min(wait, held - self._now()))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), wait)

    async def _read(self, now: float) -> int:
        room = min(self.machine.wants(), READ_RECORDS)
        if self._limit is not None:
            room = min(room, self._limit - self.machine.tally.read - len(self._behind))
        if self._behind:
            return self._offer_behind(now)
        if room <= 0 or self._reader is None:
            if self._limit is not None and self.machine.tally.read >= self._limit:
                self._end_all()
            return 0
        batch = await self._reader.read(room, READ_BYTES)
        entries = [self._intake.item(raw, now) for raw in batch.records]
        if self.verdicts.complete and not self.verdicts.duplicates:
            for entry in entries:
                self.machine.offer(entry, now)
        else:
            self._behind += entries
            self._offer_behind(now)
        self._ended += batch.ended
        if not self._behind:
            self._end_splits()
        if batch.done:
            await self._reader.close()
            self._reader = None
        return len(entries)

    _ended: tuple[str, ...] = ()

    def _end_splits(self) -> None:
        ended, self._ended = self._ended, ()
        by_id = {split.id: split.ordinal for split in self.machine.progress.splits} if ended else {}
        for split_id in ended:
            self.machine.split_ended(by_id[split_id])

    def _end_all(self) -> None:
        """`--limit` is reached: the rest of the input is not part of this run."""
        for split in self.machine.progress.splits[: self.machine.progress.opened]:
            if split.ordinal in self.machine.progress.open:
                self.machine.split_ended(split.ordinal)
        for split in self.machine.progress.splits[self.machine.progress.opened :]:
            self.machine.split_ended(split.ordinal)
        self._reader = None

    def _offer_behind(self, now: float) -> int:
        """Offer what the label pass has passed; the first of equal labels wins, the others are dead letters."""
        verdicts, offered = self.verdicts, 0
        for entry in self._behind:
            place = (entry.source.ordinal, entry.source.position)
            if not verdicts.complete and place >= verdicts.upto:
                break
            first = verdicts.duplicates.get(place)
            if first is not None and isinstance(entry, Item):
                entry = _duplicate(entry, first, now)
            self.machine.offer(entry, now)
            offered += 1
        del self._behind[:offered]
        if not self._behind:
            self._end_splits()
        return offered

    # -- commits

    def _due(self, now: float) -> bool:
        machine, age = self.machine, now - self._committed_at
        if machine.thirsty and age >= HASTE_S:
            return True
        return age >= self._commit_s and (machine.dirty or self._unsaved())

    def _unsaved(self) -> bool:
        """The end of the lane, or an applied outbox batch, wants a commit of its own."""
        return (self.machine.finished_all and not self._done_committed) or self.machine.outbox.trimmable

    async def _commit_and_apply(self) -> None:
        try:
            await self._commit_once()
            if not self.machine.outbox.empty and self._applying is None:
                self._applying = asyncio.get_running_loop().create_task(self._apply_in_background())
        except PenstockError as error:
            self._fail(error)
        finally:
            self._commit = None
            self.wake()

    async def _commit_once(self) -> None:
        started = self._now()
        batch = self.machine.commit(started)
        own, follow = self._place(self._encode(batch))
        chunks = batch.chunks
        if follow:
            name, data = self.machine.outbox.add(msgspec.msgpack.encode(follow))
            chunks[name] = data
        await self._stores.primary.commit(self.lane, self.epoch, batch.seq, own, chunks)
        self._committed_at = self._now()
        self.own_until = max(self.own_until, started + RIGHT_S)
        self._done_committed = batch.saved.done
        self.machine.committed(self._committed_at)

    def _encode(self, batch: CommitBatch) -> Batches:
        encoder = self._encoder
        records: Batches = {"results": [], "costs": [], "quality": [], "dead_letters": []}
        for result in batch.results:
            item, place = result.item, result.item.source
            records["results"].append(
                OutRecord(place.ordinal, place.position, encoder.result(result), key=item.key, headers=item.headers)
            )
            redact = self.machine.redacts(result.route.wall)
            for sub, score in enumerate(result.scores):
                if redact is not None:
                    value = encoder.quality(result, score, redact=redact)
                    records["quality"].append(OutRecord(place.ordinal, place.position, value, sub))
        for dead in batch.dead_letters:
            place = dead.source
            records["dead_letters"].append(OutRecord(place.ordinal, place.position, encoder.dead_letter(dead)))
        for line, item in batch.costs:
            ordinal, position = (item.source.ordinal, item.source.position) if item else (_LAST, line.attempt)
            records["costs"].append(OutRecord(ordinal, position, encoder.cost(line), line.attempt))
        return {sink: lines for sink, lines in records.items() if lines}

    def _place(self, records: Batches) -> tuple[Batches, dict[str, Batches]]:
        """Records of the primary's own sinks, and those of each follower."""
        own: Batches = {}
        follow: dict[str, Batches] = {}
        placement: dict[str, str] = {**self._stores.placement}
        for sink, lines in records.items():
            where = placement[sink]
            if where in self._stores.followers:
                follow.setdefault(where, {})[sink] = lines
            else:
                own[sink] = lines
        return own, follow

    async def _apply_in_background(self) -> None:
        try:
            await self._apply_outbox()
        except PenstockError as error:
            self._fail(error)
        finally:
            self._applying = None
            self.wake()

    async def _apply_outbox(self) -> None:
        """Bring followers up to date, batch by batch. A batch a follower has already is a no-op there."""
        for number, data in self.machine.outbox.waiting():
            batches = msgspec.msgpack.decode(data, type=dict[str, Batches])
            for key, store in self._stores.followers.items():
                await store.commit(self.lane, self.epoch, number, batches.get(key, {}), {})
            self.machine.outbox.applied(number)

    # -- budget

    def _lease(self, now: float) -> None:
        if self._ledger is None:
            return
        for need in self.machine.leases_wanted():
            if need.key not in self._leasing:
                self._leasing[need.key] = asyncio.get_running_loop().create_task(self._lease_one(need, now))
        if "" not in self._leasing and self.machine.money.purse.closable():
            self._leasing[""] = asyncio.get_running_loop().create_task(self._settle_leases())

    async def _lease_one(self, need: NeedLease, now: float) -> None:
        assert self._ledger is not None
        try:
            self._lease_number += 1
            lease_id = f"{self.lane}-{self.epoch[0]}.{self.epoch[1]}-{self._lease_number}"
            answer = await asyncio.to_thread(self._ledger.lease, need, lease_id, self.lane, self.epoch, now)
            if isinstance(answer, int):
                self.machine.money.purse.add(need.key, lease_id, answer)
            else:
                await self._refused(need, answer)
            self.machine.lease_answered(need.key, self._now())
        except PenstockError as error:
            self._fail(error)
        finally:
            del self._leasing[need.key]
            self.wake()

    async def _refused(self, need: NeedLease, why: str | None) -> None:
        """Money that is leased but not spent yet may come back (None): give back what we hold idle, and ask later."""
        self.machine.money.purse.retire_all()
        if why is not None:
            self.machine.refused_keys[need.key] = why
        else:
            await asyncio.sleep(LEASE_RETRY_S)

    async def _settle_leases(self) -> None:
        assert self._ledger is not None
        try:
            for lease in self.machine.money.purse.closable():
                await asyncio.to_thread(self._ledger.settle, lease.key, lease.lease_id, lease.spent_nano)
                self.machine.money.purse.closed(lease.lease_id)
        except PenstockError as error:
            self._fail(error)
        finally:
            del self._leasing[""]
            self.wake()

    # -- what others are told

    @property
    def settled(self) -> bool:
        """This lane is over and leaves nothing open: all committed, followers too, leases closed."""
        machine = self.machine
        over = self._done_committed or (machine.draining and machine.idle)
        return (
            over
            and not machine.dirty
            and self._commit is None
            and self._applying is None
            and machine.outbox.empty
            and not self._money_open()
        )

    def _money_open(self) -> bool:
        if self._ledger is None:
            return False
        purse = self.machine.money.purse
        purse.retire_all()
        return bool(purse.spent()) or bool(self._leasing)

    def add_costs(self, lines: list[CostLine]) -> None:
        """Closing adjustments of own GPUs: they go with one more commit of this lane."""
        self.machine.add_costs(lines)
        self._done_committed = False
        self.wake()

    def _post(self, now: float) -> None:
        """Tell the board what is ready: at once where a pool was empty, else every 20 ms."""
        counts = {pool: (n, tokens, realtime) for pool, n, tokens, realtime in self.machine.ready.counts()}
        if counts == self._posted:
            return
        urgent = any(n and not self._posted.get(pool, (0, 0, False))[0] for pool, (n, _, _) in counts.items())
        if urgent or now - self._posted_at > POST_EVERY_S:
            self._posted, self._posted_at = counts, now
            self._driver.post([Post(self.lane, pool, *count) for pool, count in counts.items()])

    def _report(self, now: float) -> None:
        self._reported_at = now
        machine = self.machine
        tally = machine.tally
        tally.ready = len(machine.ready)
        tally.shelved = machine.shelved
        tally.position_bytes = machine.progress.bytes_done()
        self._driver.report(
            LaneReport(
                self.lane,
                tally,
                done=self._done_committed,
                idle=machine.idle,
                settled=self.settled,
                stuck=machine.stuck(),
                spent_out=machine.spent_out,
                open_breakers=machine.health.opened(),
                commit_age_s=now - self._committed_at,
                oldest_item_s=machine.oldest_age(now),
                first_dispatch_at=self._first_dispatch_at,
            )
        )

    def _fail(self, error: PenstockError) -> None:
        if not self._over:
            self._over = True
            uncertain = isinstance(error, Temporary)
            self._driver.failed(self.lane, isinstance(error, Fenced), str(error), not uncertain)
            self.wake()


_LAST = 1 << 31
"""Sorts closing lines behind all items."""


def _duplicate(item: Item, first: str, now: float) -> DeadLetter:
    return DeadLetter(
        item_id=item.item_id,
        source=item.source,
        reason="duplicate",
        message=f"the label {item.custom_id!r} came first in {first}; that one is kept (on_duplicate: allow: both)",
        original=item.original,
        item=item,
        custom_id=item.custom_id,
        generation=item.generation,
        finished_at=now,
    )
