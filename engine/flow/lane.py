"""The lane machine: one ordered shard of the input, its window, horizon, retries, budget and commit. Never waits.

    offer ─▶ beyond ─(a commit moves the horizon)─▶ ready ─take─▶ flying ─outcome─▶ finished ─commit─▶ forgotten
                                                      ▲   │          │
                                                      │   └─ held ◀──┘   (retry at a time, or waiting for a lease)
                                                      └──────┘

Events are method calls, each with `now`; instructions come back as values: calls from `take`, a `CommitBatch` from
`commit`, wanted leases from `wishes`. Every retry, fallback and copy passes the router's list of permitted candidates
again, so no wall and no budget can be passed by.

Its parts: `horizon` (what may be sent), `places` (who is ready, who is held), `targets` (who is well), `till`, `paying`
(money), `deadlines`, `chains` (whose turn it is), `copies`, `calls` (what a call says and costs), `shelf` (what is kept
of single items), `inherited` (what the last owner left), `silence` (who froze), `takes` (who got what, and waits for
it), `flights`, `ends`; joined here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from penstock.engine.budget import Budgets
from penstock.engine.catalog import Catalog, Price
from penstock.engine.flow.anew import routed_anew
from penstock.engine.flow.booking import Cells
from penstock.engine.flow.calls import Calls
from penstock.engine.flow.cells import CELLS, cells_in
from penstock.engine.flow.chains import Chains
from penstock.engine.flow.copies import Copies
from penstock.engine.flow.deadlines import Deadlines
from penstock.engine.flow.ends import Ends
from penstock.engine.flow.flights import Flights
from penstock.engine.flow.horizon import Horizon
from penstock.engine.flow.inherited import Inherited
from penstock.engine.flow.lane_types import Adopted, CommitBatch, Hooks, LaneSettings
from penstock.engine.flow.outbox import Outbox
from penstock.engine.flow.paying import Paying
from penstock.engine.flow.places import Places
from penstock.engine.flow.progress import PROGRESS, Progress, Saved, saved_in
from penstock.engine.flow.settle import twin_of
from penstock.engine.flow.shelf import Shelf
from penstock.engine.flow.slots import Slot
from penstock.engine.flow.steps import Steps
from penstock.engine.flow.targets import Targets
from penstock.engine.flow.till import Till, Wish
from penstock.engine.items import NANO_PER_USD, Call, Item, Outcome
from penstock.engine.plan import Split
from penstock.engine.policy import Policy
from penstock.engine.registry.standing import Known
from penstock.engine.results import CostLine, DeadLetter
from penstock.engine.router import Rejection, Router
from penstock.engine.steering.turn import Turn


def _as_it_was(item: Item) -> Item | DeadLetter:
    return item


class Lane:
    """See the module. Begins empty; `begin` takes up what the last owner committed. `seq` is the last committed one."""

    def __init__(
        self, settings: LaneSettings, router: Router, catalog: Catalog, policy: Policy, hooks: Hooks, budgets: Budgets
    ) -> None:
        self.settings = settings
        self.router = router
        self.catalog = catalog
        self.policy = policy
        self.hooks = hooks
        self.till = Till(budgets)
        self.targets = Targets(catalog)
        self.draining = False
        self.parted = False
        """The last commit left the next owner nothing to doubt but what single items say."""
        self._health = self.targets.health
        self._calls = Calls(catalog, policy, hooks)
        self.places = Places(self.targets, self._calls)
        self.ready = self.places.ready
        self.copies = Copies(policy)
        self.horizon = Horizon(settings.horizon_floor)
        self.deadlines = Deadlines()
        self._inherited = Inherited()
        self._sequence = 0
        self.begin((), {}, 0)

    def begin(self, splits: Sequence[Split], chunks: Mapping[str, bytes], seq: int) -> None:
        """Take up where the last owner's last commit left off. Raises `Corrupt`. Returns with nothing offered."""
        saved = saved_in(chunks)
        self.seq = seq
        self.progress = Progress(splits, saved)
        self.shelf = Shelf(self.settings, chunks, lambda slot: self._calls.prompt_of(slot.item, slot.route.task))
        self.doubted = self.progress.doubted or any(entry.maybe_paid for entry in self.shelf.restored)
        """The last owner left calls whose end nobody knows: their items may be paid for twice."""
        self.outbox = Outbox(dict(chunks), saved.outbox_next)
        self.tally = tally = saved.tally
        tally.in_flight = {}
        tally.read = tally.results + sum(tally.dead_letters.values()) + len(self.shelf.restored)  # others come again
        self.last_spent = saved.spent
        """What the last owner's leases had settled: what can be proven of them."""
        self.adjusted = saved.adjusted
        self.plan_version = saved.plan_version
        self.chains = Chains() if self.settings.by_key else None
        self.cells = Cells(cells_in(chunks), self._calls.priced, self._calls.promises)
        self.ends = Ends(self.progress, self.shelf, tally, self.cells, self.router.tier1_price, self.chains)
        self.slots = self.ends.slots
        steps = Steps(self.router, self._calls, self.catalog, tally, stopped=self.draining)
        more = self._inherited, self.chains, steps, self.router
        self.flights = Flights(self.ends, self._calls, self.copies, self.places, self.till, *more)
        self.paying = Paying(self.till, self.flights, self.places, self._spent, endless=self.settings.endless)

    def extend(self, splits: Sequence[Split], version: int) -> bool:
        """The lane's splits in a longer plan; true where some are new: one that was done goes on. Raises `Corrupt`."""
        self.plan_version = version
        return self.progress.add(splits)

    # -- in

    def wants(self) -> int:
        """How many more records may be read now: back-pressure from the commit to the source."""
        settings, ends = self.settings, self.ends
        if self.draining or self.outbox.full or self.progress.beyond >= settings.beyond_max:
            return 0
        if ends.bytes >= settings.window_bytes:
            return 0
        return max(0, settings.window - len(self.slots) - ends.uncommitted)

    def restore_shelf(self, now: float, again: Callable[[Item], Item | DeadLetter] = _as_it_was) -> None:
        """Shelved items of the last owner come back first, in input order; each may have been paid for. `again`: what
        the job makes of one now. It may have been edited since: its walls, too, hold for what is sent from now on."""
        entries, self.shelf.restored = self.shelf.restored, []
        for entry in entries:
            made = again(entry.item)
            item = made if isinstance(made, Item) else entry.item
            slot = self._slot(self._calls.as_it_was_read(item, entry), now)
            if isinstance(made, DeadLetter):
                slot.route = msgspec.structs.replace(slot.route, candidates=())
                slot.rejection = Rejection(made.reason, made.message, slot.route)
            self.shelf.resume(slot, entry)
            if self._admit(slot, now):
                self.flights.start(slot, now)

    def offer(self, entry: Item | DeadLetter, now: float) -> None:
        """One record of the source, in order within its split. Finished ones are skipped in silence."""
        source = entry.source
        split = self.progress.of(source.ordinal)
        if not split.offer(source.position):
            return
        self.tally.read += 1
        if isinstance(entry, Item) and (entry.item_id, entry.generation) in self.slots:
            entry = twin_of(entry, now)
        if isinstance(entry, DeadLetter):
            if (entry.item_id, entry.generation) not in self.slots:
                entry = self.shelf.billed(entry)
                self.flights.unread(entry)
            self.ends.dead(entry, None)
            return
        slot = self._slot(entry, now)
        if source.position < split.maybe_until:
            slot.maybe_paid = slot.orphaned = True
        if not self._admit(slot, now):
            return
        if source.position < split.horizon:
            self.flights.start(slot, now)
        else:
            self.horizon.wait(slot)

    def split_ended(self, ordinal: int) -> None:
        self.progress.end(ordinal)

    def _slot(self, item: Item, now: float) -> Slot:
        routed = self.router.route(item.attributes, item.request, item.item_id, item.exposure)
        self._sequence += 1
        slot = Slot(item, routed.route if isinstance(routed, Rejection) else routed, self._sequence)
        slot.offered_at, slot.turn = now, self.router.turn
        slot.rejection = routed if isinstance(routed, Rejection) else None
        self.shelf.recall(slot)
        return slot

    def _admit(self, slot: Slot, now: float) -> bool:
        """False where it ended at once."""
        self.ends.begin(slot)
        if (rejection := slot.rejection) is not None:
            self.flights.refuse(slot, rejection.reason, rejection.message, now)
            return False
        self._calls.measure(slot)
        self.deadlines.add(slot)
        return True

    # -- out to workers

    def take(self, pool: str, n: int, max_tokens: int, worker: str, now: float, number: int = 0) -> list[Call]:
        """At most `n` calls and about `max_tokens` tokens (at least one call) for a worker of this pool. `number`: of
        this take among the worker's. Nothing where that worker has given it up meanwhile (`missed`), or was lost."""
        calls: list[Call] = []
        self.flights.silence.heard(worker, now)
        if self.flights.takes.is_void(worker, number):
            return calls
        for _ in range(n):
            if max_tokens <= 0 or self._stopped:
                break
            slot = self.ready.pop(pool)
            if slot is None:
                break
            model, target = slot.model, slot.target
            if not self._health.allow(target, now):
                self.places.divert(slot, now, self.tally)
            elif self._may_send(slot, now):
                slot.attempt += 1
                slot.made_by = slot.made_by if slot.pending is not None else None  # what is judged stays as it was
                self.targets.budgets[model].called()
                self.horizon.dispatched += 1
                self.flights.fly(slot, worker, now, number)
                max_tokens -= slot.tokens
                calls.append(self._calls.call(slot, model))
            else:
                self._health.unprobe(target)  # as it was: an item that could not be paid goes elsewhere
        return calls

    def tariffs(self, calls: Sequence[Call]) -> dict[str, bytes]:
        """`model@version` → what these calls to it cost, for whoever has the lane when they land."""
        asked = dict.fromkeys((call.model, call.version) for call in calls)
        return {f"{model}@{version}": self._calls.tariff(model, version) for model, version in asked}

    def _may_send(self, slot: Slot, now: float) -> bool:
        """Before its deadline, and its worst case is set aside. Else it waits or has ended."""
        if slot.is_late(now):
            self.flights.expired(slot, now)
            return False
        worst = self._calls.worst_nano(slot)
        if slot.pending is None and (why := self._outsized(slot, worst, now)) is not None:
            self.flights.dead_letter(slot, "budget", why, now)
            return False
        return self.paying.reserve(slot, worst, now)

    def _outsized(self, slot: Slot, worst: int, now: float) -> str | None:
        """Why it alone is more than a whole budget holds, and an ordinary item is not: it would stop the run, each time
        that it goes on. Where any item is, that is the budget's word."""
        limit = self.till.outsized(slot, worst, now)
        if limit is None or self._calls.usual_nano(slot) > limit:
            return None
        most, whole = worst / NANO_PER_USD, limit / NANO_PER_USD
        return f"its call may cost ${most:,.2f}, and a whole budget is ${whole:g}; shorten it, or its max_tokens"

    # -- money

    def wishes(self) -> list[Wish]:
        """Leases to ask the ledger for."""
        return [] if self._stopped else self.till.wishes()

    def leased(self, key: str, leases: dict[str, int], now: float) -> None:
        """The ledger's yes: lease id → nano-dollars."""
        self.paying.leased(key, leases, now)

    def refused(self, wish: Wish, words: str, now: float) -> None:
        """The ledger's no."""
        self.paying.refused(wish, words, now)

    def _spent(self, now: float) -> None:
        """The run's money: nothing more is sent. Answers that the last owner left are paid for, and read up to before
        this drains (`LaneShell`)."""
        if not self.has_answers:
            self.drain(now)

    @property
    def _stopped(self) -> bool:
        return self.draining or self.paying.spent_out is not None

    def drain(self, now: float) -> None:
        """Send nothing more; what waits for money stays undone."""
        if not self.draining:
            self.draining = True
            self.flights.stop_steps(now)
            for slot in self.till.let_go():
                self.flights.queue(slot, now)

    # -- back from workers

    def outcome(self, outcome: Outcome, now: float) -> None:
        """What became of a call."""
        self.flights.landed(outcome, now)

    def worker_lost(self, worker: str, now: float) -> None:
        """All that was in flight at this worker comes back; the calls may have been paid for."""
        self.flights.worker_lost(worker, now)

    def pool_down(self, pool: str, why: str, now: float) -> None:
        """Nothing can be sent to this pool, until it is up: what waits for it goes to its next candidate."""
        for slot in (*self.places.pool_down(pool, why), *self.till.take_out(lambda slot: slot.pool == pool)):
            self.flights.queue(slot, now)

    def pool_up(self, pool: str, now: float) -> None:
        """It is there again: what waits, and may go there, goes."""
        for slot in self.places.pool_up(pool, now):
            self.flights.queue(slot, now)

    def adopt(self, adopted: Sequence[Adopted]) -> None:
        """A worker still has these of the last owner, or that one's `unsaved` answers are here. Called before anything
        is offered. An answer whose item has ended is nobody's any more."""
        for one in adopted:
            self._calls.remember(one)
        shelved = self.shelf.names  # they have not ended, though their places in the input are done
        self._inherited.add(
            [
                one
                for one in adopted
                if one.source is None
                or (one.item_id, one.generation) in shelved
                or not self.progress.has_ended(one.source)
            ]
        )

    @property
    def unsaved(self) -> list[Adopted]:
        """Answers that no commit holds for sure, this owner's and those that it was left and has not come to."""
        return [*self._inherited.answers, *self.ends.unsaved.answers]

    @property
    def has_answers(self) -> bool:
        """Of the last owner's calls, for items that were not read again yet. Where all were, what is left is of items
        that had ended."""
        return self._inherited.has_answers and not (self.progress.read_again and not self.shelf.restored)

    # -- time

    def tick(self, now: float) -> None:
        """Held items whose time has come, and items whose time is over."""
        if passed := self.deadlines.passed(now):
            gone = set(passed)
            for part in (self.horizon, self.places, self.till, self.copies):
                part.drop(gone)
            for slot in passed:
                self.flights.expired(slot, now)
        self.flights.give_up_unpaid(now)
        for slot in self.till.turned_over(now):
            self.flights.queue(slot, now)
        for slot in self.places.due(now):
            self.flights.go_on(slot, now)

    def set_back(self, by_s: float) -> None:
        """The clock was set back: what waits for a time, or is bounded by one, waits no longer for that. Deadlines are
        the clock's own."""
        for part in (self.places, self._health, self.flights):
            part.set_back(by_s)

    def pause(self, tiers: frozenset[int], now: float) -> None:
        """From now on items of these tiers wait, and no others. What is in flight goes on."""
        for slot in (*self.places.pause(tiers), *self.till.take_out(lambda slot: slot.route.tier in tiers)):
            self.flights.queue(slot, now)

    def steer(self, turn: Turn, now: float) -> None:
        """From now on models have these versions. What is at a worker goes on; all else gets them before it is sent."""
        self.router.steer(turn)
        self.flights.steered(now)

    def learn(self, known: Known, now: float) -> None:
        """How good the models are, as measured: what was not sent yet goes by it as well. And whose cascade's
        calibration does not hold any more."""
        self._calls.drifted = frozenset(known.drifted)
        self.router.learn(known.standings)
        if not self.router.by_quality:
            return
        for slot in routed_anew(list(self.slots.values()), self.router, self._calls, self.places):
            self.flights.queue(slot, now)

    def heard(self, worker: str, now: float) -> None:
        """The worker renewed its right: it lives, and has calls of this lane; they may wait there for a limit."""
        self.flights.silence.heard(worker, now)

    def sweep(self, now: float) -> None:
        """Every few seconds: a worker that froze must not hold items for ever."""
        self.flights.sweep(now, self.settings.call_slack_s)

    # -- ends

    def add_costs(self, lines: Sequence[CostLine]) -> None:
        """Closing adjustments of own GPUs. They belong to no item."""
        self.adjusted = True
        self.ends.adjust(lines)

    def reprice(self, model: str, price: Price) -> None:
        """An own engine's running rate: from now on its calls are charged, and compared, at this."""
        self._calls.reprice(model, price)
        self.router.reprice(model, price)

    # -- commit

    @property
    def dirty(self) -> bool:
        """There is something to commit."""
        return self.ends.dirty or bool(self.shelf.changes) or (self._parting and not self.parted)

    @property
    def _parting(self) -> bool:
        return self.draining and self.idle and bool(self.slots)

    @property
    def waiting(self) -> bool:
        """Some item is to be sent, or its call is out. (Those of a paused tier are not: they wait for a person, and
        others for them, or for a commit.)"""
        return bool(self.ready) or not self.idle or self.places.waiting or self.till.waiting > 0

    @property
    def thirsty(self) -> bool:
        """Workers will soon have nothing under the horizon: commit now rather than at the interval."""
        behind = self.chains is not None and self.chains.pressing
        return not self.draining and self.horizon.thirsty(self.ready.items, behind=behind)

    @property
    def starved(self) -> bool:
        """Nothing is at a worker, and nothing may be sent: only a commit brings it on."""
        return not self.flights.count and not self.ready.items

    def held_up(self, now: float) -> bool:
        """Nothing was committed for long, and items that go on keep a watermark back: a commit may put them on the
        shelf."""
        return self.shelf.is_time(now) and self.progress.beyond > 0

    def commit(self, now: float) -> CommitBatch:
        """Everything finished since the last one, and a horizon over what is to be sent next. One at a time."""
        assert not self.horizon.committing, "a commit is in flight"
        quiet = self.held_up(now) and not self.ends.dirty
        self.shelf.move_slow(self.progress, self.slots.values(), now, quiet=quiet)
        if not self.draining:
            self.horizon.advance(self.progress, self.ready.items, now)
        else:
            self._stay()
        results, dead, costs = self.ends.harvest()
        self.progress.close_finished()
        self.seq += 1
        saved = self.saved()
        chunks = {
            PROGRESS: msgspec.msgpack.encode(saved),
            CELLS: msgspec.msgpack.encode(self.cells.rows),
            **self.shelf.changes,
            **self.outbox.trim(),
        }
        self.shelf.changes = {}
        return CommitBatch(self.seq, chunks, results, dead, costs, saved)

    def _stay(self) -> None:
        """A drained lane sends nothing more. Once nothing is out, its commit takes back the horizon's doubt."""
        self.horizon.stay()
        self.parted = self._parting
        if self.parted:
            self.horizon.retreat(self.progress)
            self.shelf.part(self.slots.values())

    def committed(self, now: float) -> None:
        """The commit is durable: its items are forgotten, what is under its horizon may be sent."""
        self.ends.committed()
        freed = self.chains.committed() if self.chains is not None else []
        for slot in (*freed, *self.horizon.committed()):
            self.flights.start(slot, now)

    def saved(self) -> Saved:
        return Saved(
            opened=self.progress.opened,
            splits=tuple(state.saved() for state in self.progress.open.values()),
            spent=self.till.purse.spent(),
            tally=self.tally,
            done=self.finished_all,
            adjusted=self.adjusted,
            plan_version=self.plan_version,
            outbox_next=self.outbox.next_number,
        )

    @property
    def finished_all(self) -> bool:
        """Every split is read to its end and every item has ended (and is in this commit or an earlier one)."""
        return not self.slots and not self.shelf.restored and self.progress.all_closed

    @property
    def idle(self) -> bool:
        """Nothing is at a worker."""
        return self.flights.count == 0
