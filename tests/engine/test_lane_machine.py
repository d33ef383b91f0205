"""The lane machine under every interleaving: each item ends once, nothing is sent too early, every cent is told."""

from __future__ import annotations

import random
import typing
from collections import Counter
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.engine import leases
from penstock.engine.budget import Budget, Budgets
from penstock.engine.catalog import Account, Catalog, Model, Price, Version, Wall
from penstock.engine.flow.deadlines import LOOK_AGAIN_S
from penstock.engine.flow.lane import Lane
from penstock.engine.flow.lane_check import check
from penstock.engine.flow.lane_types import Adopted, CommitBatch, Hooks, LaneSettings
from penstock.engine.flow.progress import SHELF, TRIED
from penstock.engine.flow.shelf import Tried
from penstock.engine.flow.slots import Slot, urgency
from penstock.engine.items import (
    Answer,
    Attributes,
    Call,
    Failure,
    FailureKind,
    Item,
    Outcome,
    Position,
    Request,
    Usage,
)
from penstock.engine.leases import LeaseRefused, Ledger, Owner
from penstock.engine.plan import Split
from penstock.engine.policy import Cascade, Output, Policy, Scorer, Shadow, Task
from penstock.engine.results import DeadLetter, Result
from penstock.engine.router import Router

KINDS: tuple[FailureKind, ...] = typing.get_args(FailureKind)
BILLED: tuple[FailureKind, ...] = ("invalid_output", "invalid_response")
COUNT = 40
LIMIT = 3_000_000_000
FOR_SHADOWS = "run/r/for/shadow"


def model(name: str, account: str, dollars: int) -> Model:
    """Only the judge comes from nobody knows where: the wall `near` forbids it."""
    price = Price(input=dollars * 10**9, output=dollars * 10**9)
    versions, origin = (Version("v1", name), Version("v2", name)), None if name == "judge" else "us"
    return Model(name, versions, "v1", account=account, price=price, context=8_000, origin=origin)


def catalog() -> Catalog:
    models = [model("big", "north", 10), model("mid", "south", 5), model("alt", "south", 4)]
    accounts = {name: Account(name, "openai", "http://localhost") for name in ("north", "south")}
    return Catalog(accounts, {m.name: m for m in models}, {1: ("big", "mid", "alt"), 2: ("mid",), 3: ("alt", "big")})


CATALOG = catalog()
POLICY = Policy(
    {
        "plain": Task("plain", max_tokens=500),
        "keep": Task("keep", max_tokens=500, output=Output(choices=("a",), on_invalid="keep")),
        "drop": Task("drop", max_tokens=500, output=Output(choices=("a",), on_invalid="dead_letter")),
        "same": Task("same", max_tokens=500, reuse=True),
    },
    default_task="plain",
)
JUDGE = Scorer("judge", model="judge", rubric="good?", choices=("1", "2", "3"))
PAIRS = Scorer("judge", model="mid", rubric="better?", pairwise=True)
OWED = {
    "plain": (Shadow(("alt", "shade"), 0.6), (JUDGE, PAIRS), 1.0),
    "same": (Shadow(("shade@v2",), 0.3), (JUDGE,), 0.7),
    "keep": (None, (JUDGE,), 0.5),
}
STEPPED_CATALOG = msgspec.structs.replace(
    CATALOG,
    models={**CATALOG.models, "judge": model("judge", "north", 3), "shade": model("shade", "south", 2)},
    walls={"public": Wall("public"), "near": Wall("near", origin=("us",))},
    unknown_wall="public",
)
STEPPED = msgspec.structs.replace(
    POLICY,
    tasks={
        **POLICY.tasks,
        **{
            name: msgspec.structs.replace(POLICY.tasks[name], shadow=shadow, scorers=scorers, sample=sample)
            for name, (shadow, scorers, sample) in OWED.items()
        },
        "drop": msgspec.structs.replace(
            POLICY.tasks["drop"], cascade=Cascade(("alt", "mid", "big"), "agreement", 1.0, samples=2)
        ),
        "same": msgspec.structs.replace(
            POLICY.tasks["same"],
            cascade=Cascade(("alt", "mid"), "judge", 0.5, judge=JUDGE),
            shadow=OWED["same"][0],
            scorers=(JUDGE,),
            sample=0.7,
        ),
    },
)
SHADOW_LIMIT = 6_000_000
"""A few calls: it is used up now and then."""
POOLS = ("api:north", "api:south")
SPLITS = tuple(Split(f"s{n}", "object", n, 0, "u", n * 100, n * 100 + 100, size_bytes=1000) for n in range(COUNT // 10))


def entry(number: int, *, walled: bool = False) -> Item | DeadLetter:
    """Item `number`; every tenth record is broken, some have a deadline, some are equal, some fit no tier. `walled`:
    some may not be seen by the judge."""
    ordinal, offset = divmod(number, 10)
    source = Position(f"s{ordinal}", ordinal, ordinal * 100 + offset * (7 if ordinal % 2 else 1))  # sparse, or dense
    if offset == 9:
        return DeadLetter(f"i{number}", source, "malformed", "not JSON", b"x")
    task = ("plain", "same", "keep", "drop")[number % 4]
    attributes = Attributes(
        task="nobody" if number == 12 else task,
        tier=1 + number % 3,
        deadline=1_000_500.0 if number % 7 == 0 else None,
        tenant="t" if number % 5 == 0 else None,
        latency="realtime" if number % 13 == 3 else None,
        priority=number % 3 - 1 if number % 4 == 2 else None,
        sensitivity="near" if walled and number % 3 == 0 else None,
        expected_json=b'"1"' if number % 2 else None,
    )
    body = b'{"messages":[]}' + b" " * (number % 4)
    request, key = Request(body, input_hash=str(number % 4)), (b"", b"a", None, b"a", b"b")[number % 5]
    return Item(f"i{number}", source, attributes, request, b"o" * 10, 1_000_000.0, key=key)


def key_of(number: int) -> bytes | None:
    record = entry(number)
    return record.key


class Disk(msgspec.Struct):
    """What survives a crash."""

    seq: int = 0
    chunks: dict[str, bytes] = {}
    batches: list[CommitBatch] = []
    ledgers: dict[str, Ledger] = {}
    """By budget key."""


class LaneMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000_000.0
        self.disk = Disk()
        self.epoch = 0
        self.elsewhere: dict[str, Call] = {}
        self.gone: set[int] = set()
        """Records that are not in the source any more: deleted, or compacted away."""
        self.begins: dict[int, int] = {}
        """Split → where it begins now; its reader tells what is gone before that."""
        self.sent: set[str] = set()
        """Items of which a call may have left, under whatever owner, and that had not ended by a commit then."""
        self.sent_ever: set[str] = set()
        self.crashed: set[str] = set()
        """Of these: those whose owner died."""
        self.doubted: set[str] | None = None
        """Where the last owner left cleanly: the only items that may say `maybe_paid` when they come again."""
        self.takes = 0
        self.given_up: dict[str, int] = {}
        """Worker → up to which of its takes this owner was told that nobody waits for them."""

    @initialize(
        window=st.sampled_from([6, 20, 1000]),
        floor=st.sampled_from([1, 4, 100]),
        budgets=st.booleans(),
        by_key=st.booleans(),
        steps=st.booleans(),
    )
    def begin(self, window: int, floor: int, budgets: bool, by_key: bool, steps: bool) -> None:
        self.settings = LaneSettings(
            0, "r", window, horizon_floor=floor, beyond_max=64, shelf_after_s=5.0, shelf_max=3, by_key=by_key
        )
        self.steps = steps
        self.policy, self.catalog = (STEPPED, STEPPED_CATALOG) if steps else (POLICY, CATALOG)
        self.budgets = (Budget(LIMIT), *[Budget(SHADOW_LIMIT, role="shadow")] * steps) if budgets else ()
        self.disk.ledgers = {"run/r": Ledger("run/r", LIMIT), FOR_SHADOWS: Ledger(FOR_SHADOWS, SHADOW_LIMIT)}
        self.start()

    def start(self, adopted: list[Adopted] | None = None) -> None:
        self.epoch += 1
        hooks = Hooks(lambda: 0.5, lambda item, answer, task: (), lambda body, answer, message: body + b"!")
        router, budgets = Router(self.catalog, self.policy), Budgets(self.budgets, "r")
        self.lane = Lane(self.settings, router, self.catalog, self.policy, hooks, budgets)
        self.lane.begin(SPLITS, self.disk.chunks, self.disk.seq)
        proven = dict(self.lane.last_spent)
        for key, ledger in self.disk.ledgers.items():
            self.disk.ledgers[key], _ = leases.forfeit(ledger, "r", 0, (self.epoch, 0), proven)
        starts = self.lane.progress.starts()
        self.todo = [
            n
            for n in range(COUNT)
            for s, at in starts
            if s.ordinal == n // 10 and entry(n).source.position >= at and n not in self.gone
        ]
        self.ends = [s.ordinal for s, _ in starts]
        self.doubted = set() if self.epoch == 1 else None
        self.calls: dict[str, Call] = {}
        self.given_up = {}
        self.deaths: Counter[str] = Counter()
        self.batch: CommitBatch | None = None
        self.number = 0
        self.committing()
        self.committed()
        self.lane.adopt(adopted or [])
        self.lane.restore_shelf(self.now)

    # -- in and out

    @rule(n=st.integers(1, 12))
    def offer(self, n: int) -> None:
        self.tell_losses()
        for number in self.todo[: min(n, self.lane.wants())]:
            self.todo.remove(number)
            self.lane.offer(entry(number, walled=self.steps), self.now)
            self.see_doubt(f"i{number}")
            self.end_splits()
        self.end_splits()

    def end_splits(self) -> None:
        """Those that the reader has passed."""
        at = min(self.todo, default=COUNT) // 10
        for ordinal in [each for each in self.ends if each < at]:
            self.lane.split_ended(ordinal)
            self.ends.remove(ordinal)

    @rule(ordinal=st.integers(0, COUNT // 10 - 1), count=st.integers(1, 10))
    def retain(self, ordinal: int, count: int) -> None:
        """The first records of a split are deleted."""
        numbers = {ordinal * 10 + n for n in range(count)}
        self.begins[ordinal] = max(self.begins.get(ordinal, 0), entry(max(numbers)).source.position + 1)
        self.vanish(numbers)

    def tell_losses(self) -> None:
        """As lanes do it: of what had not ended, once."""
        for split, at in self.lane.progress.starts():
            begin = self.begins.get(split.ordinal, 0)
            if begin <= at or split.ordinal not in self.ends or not self.lane.wants():
                continue
            state = self.lane.progress.of(split.ordinal)
            place = state.unfinished(at, begin)
            numbers = range(split.ordinal * 10, split.ordinal * 10 + 10)
            names = {entry(n).source.position: f"i{n}" for n in numbers}
            lost = {name for position, name in names.items() if at <= position < begin} - self.known()
            assert place is not None or not lost, f"nobody is told that {lost} are lost"
            if place is not None:
                name, where = names.get(place, f"{split.id}/{place}"), Position(split.id, split.ordinal, place)
                letter = DeadLetter(name, where, "source_lost", "m", b"", maybe_paid=at < state.maybe_until)
                self.lane.offer(letter, self.now)
                told = [(dead.source, dead.reason) for dead in self.lane.ends.dead_letters]  # with what was paid before
                assert (where, "source_lost") in told, "a loss is passed over"

    def known(self) -> set[str]:
        """Items that have ended, or that are being worked on."""
        ends, batches = self.lane.ends, [*self.disk.batches, *[self.batch] * (self.batch is not None)]
        ending = {r.item.item_id for r in ends.results} | {d.item_id for d in ends.dead_letters}
        return ending | {name for name, _ in self.lane.slots} | {e for b in batches if b is not None for e in ids(b)}

    @rule(numbers=st.sets(st.integers(0, COUNT - 1), max_size=8))
    def vanish(self, numbers: set[int]) -> None:
        """The source loses records: read or not, finished or not. Who has read one goes on with it."""
        self.gone |= numbers
        self.todo = [number for number in self.todo if number not in numbers]
        self.elsewhere = {name: call for name, call in self.elsewhere.items() if int(name[1:]) not in numbers}

    @rule(pool=st.sampled_from(POOLS), n=st.integers(1, 8), worker=st.sampled_from(["w1", "w2"]))
    def take(self, pool: str, n: int, worker: str) -> None:
        saved = self.disk_horizons()
        self.takes += 1
        calls = self.lane.take(pool, n, 10_000, self.named(worker), self.now, self.takes)
        self.see_order(pool, calls)
        for call in calls:
            slot = self.lane.slots[call.item_id, 0]
            place = slot.item.source
            assert slot.shelved or place.position < saved[place.ordinal], "sent beyond the committed horizon"
            assert call.item_id not in self.calls, "two calls of one item in flight"
            assert call.model in [c.model for c in slot.route.candidates], "a call to a target its route does not have"
            assert not self.lane.draining
            self.see_step(call, slot)
            self.see_turn(call.item_id)
            self.calls[call.item_id] = call
            self.sent.add(call.item_id)
            self.sent_ever.add(call.item_id)

    def named(self, worker: str) -> str:
        """Who takes a dead one's place has another name."""
        return worker + "'" * self.deaths[worker]

    def see_step(self, call: Call, slot: Slot) -> None:
        """A judge or shadow is called only after the answer, and never behind a wall that forbids it."""
        assert (call.role in ("judge", "shadow")) == (slot.pending is not None)
        assert slot.item.attributes.sensitivity != "near" or call.model != "judge", "sent past a wall"
        if slot.pending is not None:
            assert call.role == slot.pending.step.kind
            assert call.model == slot.pending.step.target.partition("@")[0], "a step went to another target"

    def see_turn(self, name: str) -> None:
        """By key: all that came before it have ended for good, and none that came after it was ever sent."""
        if not self.settings.by_key:
            return
        number = int(name[1:])
        chain = [n for n in range(COUNT) if n // 10 == number // 10 and key_of(n) == key_of(number) is not None]
        ended = {e for batch in self.disk.batches for e in ids(batch)}
        assert {f"i{n}" for n in chain if n < number and n not in self.gone} <= ended, "sent before its turn"
        assert not {f"i{n}" for n in chain if n > number} & self.sent_ever, "sent after its turn"
        assert not {f"i{n}" for n in chain if n != number} & {*self.calls, *self.elsewhere}, "two of a key in flight"

    def see_order(self, pool: str, calls: list[Call]) -> None:
        """Urgent ones leave first, and no call of a tier that is paused."""
        slots = [self.lane.slots[call.item_id, 0] for call in calls]
        order = [urgency(slot.item.attributes) for slot in slots]
        left = [urgency(slot.item.attributes) for slot in self.lane.ready.slots() if slot.pool == pool]
        assert order == sorted(order, reverse=True), "bulk left before an urgent item"
        assert not order or max(left, default=order[-1]) <= order[-1], "an urgent item stayed behind"
        assert not any(slot.route.tier in self.lane.places.paused for slot in slots), "a paused tier was sent"
        assert all((s.item.attributes.deadline or self.now + 1) > self.now for s in slots), "sent after its deadline"

    @rule(pool=st.sampled_from(POOLS), n=st.integers(1, 8), worker=st.sampled_from(["w1", "w2"]))
    def take_in_vain(self, pool: str, n: int, worker: str) -> None:
        """The answer never reaches the worker."""
        self.takes += 1
        for call in self.lane.take(pool, n, 10_000, self.named(worker), self.now, self.takes):
            self.see_turn(call.item_id)

    @rule(worker=st.sampled_from(["w1", "w2"]))
    def missed(self, worker: str) -> None:
        """The worker says what it holds: the lane waits for nothing else from it, and nothing was paid for that."""
        costs, worker = len(self.lane.ends.costs), self.named(worker)
        held = {(call.item_id, 0, call.attempt) for call in self.calls.values()}
        self.lane.flights.missed(worker, self.takes, held, self.now)
        self.given_up[worker] = self.takes
        flying = {s.item.item_id for s in self.lane.slots.values() if s.state == "flying" and s.worker == worker}
        assert flying <= self.calls.keys()
        assert len(self.lane.ends.costs) == costs

    @rule(
        pool=st.sampled_from(POOLS), n=st.integers(1, 8), worker=st.sampled_from(["w1", "w2"]), before=st.integers(0, 9)
    )
    def take_late(self, pool: str, n: int, worker: str, before: int) -> None:
        """The lane comes to it after its worker gave it up, or was lost: what it gave out would be nobody's."""
        number = self.given_up.get(self.named(worker), 0) - before
        if number > 0:
            assert not self.lane.take(pool, n, 10_000, self.named(worker), self.now, number)
        if self.deaths[worker]:
            dead = worker + "'" * (self.deaths[worker] - 1)
            assert not self.lane.take(pool, n, 10_000, dead, self.now, self.takes + before + 1)

    def disk_horizons(self) -> dict[int, int]:
        saved = self.disk.batches[-1].saved
        return {split.ordinal: split.horizon for split in saved.splits}

    def outcome(self, call: Call, kind: FailureKind | None, usage: bool) -> Outcome:
        failure = None
        if kind is not None:
            pause = 30.0 if kind == "not_sent" and call.attempt % 2 else None
            billed = kind in ("timeout", "engine_died", *BILLED)
            failure = Failure(kind, "m", retry_after_s=pause, may_be_billed=billed)
        said = ("2", "A", "nonsense", "B")[call.attempt % 4] if call.role == "judge" else ("a", "b")[call.attempt % 2]
        answer = Answer(said, "stop", b"{}") if kind in (None, "invalid_output") else None
        billed = usage and kind not in ("not_sent", "connection", "cancelled")
        tokens = Usage(10, output=20) if kind is None or billed else None
        return Outcome(call.item_id, 0, call.attempt, self.now, 5.0, answer, failure, tokens)

    @precondition(lambda self: self.calls)
    @rule(which=st.integers(0, 40), kind=st.none() | st.sampled_from(KINDS), usage=st.booleans(), twice=st.booleans())
    def land(self, which: int, kind: FailureKind | None, usage: bool, twice: bool) -> None:
        call = self.calls.pop(sorted(self.calls)[which % len(self.calls)])
        outcome = self.outcome(call, kind, usage)
        self.lane.outcome(outcome, self.now)
        slot = self.lane.slots.get((call.item_id, 0))
        if kind == "not_sent" and slot is not None:  # else its step was the last, and the lane drains
            assert all(a.n != call.attempt for a in slot.attempts), "a call that was never sent is told as an attempt"
        if twice:
            ends, tally = self.lane.ends, self.lane.tally
            before = len(ends.results), len(ends.costs), tally.late_payments
            self.lane.outcome(outcome, self.now)
            assert before == (len(ends.results), len(ends.costs), tally.late_payments), "an outcome counted twice"

    @precondition(lambda self: self.calls)
    @rule(n=st.integers(1, 8))
    def succeed(self, n: int) -> None:
        for name in sorted(self.calls)[:n]:
            self.lane.outcome(self.outcome(self.calls.pop(name), None, True), self.now)

    @precondition(lambda self: self.elsewhere)
    @rule(which=st.integers(0, 40), kind=st.none() | st.sampled_from(KINDS), usage=st.booleans())
    def land_early(self, which: int, kind: FailureKind | None, usage: bool) -> None:
        """A call of the last owner's, of an item that this one has not come to yet."""
        late = self.lane.tally.late_payments
        call = self.elsewhere.pop(sorted(self.elsewhere)[which % len(self.elsewhere)])
        self.lane.outcome(self.outcome(call, kind, usage), self.now)
        assert self.lane.tally.late_payments == late, "what was paid is on nobody's bill"

    # -- time and trouble

    @rule(seconds=st.sampled_from([0.0, 0.1, 2.0, 40.0, 400.0]))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.lane.tick(self.now)
        unsent = ("beyond", "behind", "ready", "held")
        waits = [s for s in self.lane.slots.values() if s.state in unsent or (s.state == "following" and s.key)]
        overdue = [s for s in waits if (s.item.attributes.deadline or self.now) < self.now - LOOK_AGAIN_S]
        assert seconds < LOOK_AGAIN_S or not overdue, "one whose deadline has passed still waits"
        self.lane.till.give_back_idle(self.now)
        self.settle()

    @rule(worker=st.sampled_from(["w1", "w2"]))
    def worker_lost(self, worker: str) -> None:
        lost = self.named(worker)
        gone = [n for n, call in self.calls.items() if self.lane.slots[n, 0].worker == lost]
        self.deaths[worker] += 1
        self.lane.worker_lost(lost, self.now)
        for name in gone:
            del self.calls[name]
        if worker == "w1":  # where all calls of the last owner are
            self.elsewhere.clear()

    @rule(seconds=st.sampled_from([30.0, 3000.0]))
    def sweep(self, seconds: float) -> None:
        for _ in range(int(seconds // 30.0)):
            self.now += 30.0
            self.lane.sweep(self.now)
        flying = {s.item.item_id for s in self.lane.slots.values() if s.state == "flying"}
        self.calls = {name: call for name, call in self.calls.items() if name in flying}

    @precondition(lambda self: len(self.lane.targets.down) == 0)
    @rule(pool=st.sampled_from(POOLS))
    def pool_down(self, pool: str) -> None:
        self.lane.pool_down(pool, "its engine does not start", self.now)

    @precondition(lambda self: self.lane.targets.down)
    @rule()
    def pool_up(self) -> None:
        (pool,) = self.lane.targets.down
        self.lane.pool_up(pool, self.now)

    @rule(tiers=st.sampled_from([frozenset[int](), frozenset({1}), frozenset({2, 3})]))
    def pause(self, tiers: frozenset[int]) -> None:
        self.lane.pause(tiers, self.now)

    @rule()
    def drain(self) -> None:
        self.lane.drain(self.now)
        assert self.lane.wishes() == []

    # -- money

    @rule()
    def lease(self) -> None:
        for wish in self.lane.wishes():
            names = [f"{self.epoch}-{self.number + n}" for n in range(len(wish.calls))]
            self.number += len(names)
            ledger = self.disk.ledgers.get(wish.key) or Ledger(wish.key, wish.limit_nano)  # a rollout brings its own
            owner = Owner("r", 0, (self.epoch, 0))
            answer = leases.open_leases(ledger, names, owner, wish.calls, self.now)
            if not isinstance(answer, LeaseRefused):
                self.disk.ledgers[wish.key], opened = answer
                self.lane.leased(wish.key, {k: v.amount_nano for k, v in opened.items()}, self.now)
            elif answer.leased_nano == 0:
                self.lane.refused(wish, "spent", self.now)
            elif not wish.spare:
                self.lane.till.purse.retire_all()
        self.settle()

    def settle(self) -> None:
        purse = self.lane.till.purse
        for lease in purse.closable():
            ledger = self.disk.ledgers[lease.key]
            self.disk.ledgers[lease.key] = leases.settle(ledger, lease.lease_id, lease.spent_nano)
            purse.closed(lease.lease_id)

    # -- commits and crashes

    @precondition(lambda self: self.batch is None)
    @rule()
    def committing(self) -> None:
        self.batch = self.lane.commit(self.now)
        if self.number % 3 == 2:  # some commits have records for followers
            name, data = self.lane.outbox.add(b"batch")
            self.batch.chunks[name] = data

    @precondition(lambda self: self.batch is not None)
    @rule()
    def committed(self) -> None:
        assert self.batch is not None
        self.write(self.batch)
        self.batch = None
        self.lane.committed(self.now)

    def write(self, batch: CommitBatch) -> None:
        assert batch.seq == self.disk.seq + 1
        merged = {**self.disk.chunks, **batch.chunks}
        self.disk.seq, self.disk.chunks = batch.seq, {k: v for k, v in merged.items() if v}
        self.disk.batches = [*self.disk.batches, batch]
        self.told(batch)
        if self.lane.parted:  # whatever was sent has landed, and what it cost is known
            self.sent -= {name for (name, _), slot in self.lane.slots.items() if not slot.maybe_paid}

    def told(self, batch: CommitBatch) -> None:
        """What a reader may rely on, batch by batch."""
        for ended in (*batch.results, *batch.dead_letters):
            name = ended.item.item_id if ended.item is not None else ended.item_id  # type: ignore[union-attr]
            of_one = isinstance(ended, Result) or ended.reason != "source_lost"
            if name in self.crashed and (of_one or f"{TRIED}{name}" not in self.disk.chunks):
                assert ended.maybe_paid, "an item that may have been sent before a crash is not marked"
            attempts = [a.n for a in ended.attempts]
            assert attempts == sorted(set(attempts)), "attempt numbers repeat"
        for result in batch.results:
            if result.copied_from is not None:
                assert (result.cost_nano, result.usage, result.attempts) == (0, Usage(), ())
            else:
                assert result.cost_nano == sum(a.cost_nano for a in result.attempts)
                assert result.model in [c.model for c in result.route.candidates]
            self.see_comparison(result)

    def see_comparison(self, result: Result) -> None:
        """What steps leave in a result: scores of the answer, and of others; the answer is never one of theirs."""
        roles = [a.role in ("judge", "shadow") for a in result.attempts]
        owed = [a for a in result.attempts if a.role in ("judge", "shadow") and not a.experiment]
        beside = [shadow for shadow in result.shadows if shadow.experiment]  # a rollout's shadow stage owes these
        assert self.steps or not (owed or len(result.shadows) > len(beside))
        for shadow in beside:
            assert (result.model, result.model_version, result.experiment) == (shadow.model, "v1", shadow.experiment)
            assert (shadow.model_version, shadow.arm, result.route.cascade) == ("v2", "candidate-0", False)
        assert not result.attempts or result.copied_from or not all(roles), "a result without an answer of its own"
        assert result.sampled or not result.scores
        if result.route.task == "same" and result.route.cascade:
            accepted = "accepted: judge" in result.route.reason or "the last of the cascade" in result.route.reason
            assert result.copied_from or accepted, "an answer that no judge believed"
            assert result.signal is None or result.signal >= 0.5
        shadow = self.policy.tasks[result.route.task].shadow
        named = {name.partition("@")[0] for name in shadow.models} if shadow is not None else set[str]()
        assert {s.model for s in result.shadows if s not in beside} <= named - ({result.model} - {"shade"})
        for score in (*result.scores, *(score for s in result.shadows for score in s.scores)):
            assert 0.0 <= score.score <= 1.0
            assert score.judge_model in ("judge", "mid")
            assert score.judge_model != "judge" or result.item.attributes.sensitivity != "near"

    @rule(durable=st.booleans(), adopt=st.booleans(), answered=st.booleans())
    def crash(self, durable: bool, adopt: bool, answered: bool) -> None:
        """The owner dies; a commit in flight is there, or not. Its workers still hold its calls, or died with it."""
        if self.batch is not None and durable:
            self.write(self.batch)
        ended = {e for batch in self.disk.batches for e in ids(batch)}
        self.crashed |= self.sent - ended
        calls = self.elsewhere | self.calls
        self.start_anew(calls if adopt else {}, answered)

    @rule(durable=st.booleans())
    def fail(self, durable: bool) -> None:
        """A commit fails, though it may be there: the lane is taken anew by its own process. Its workers live, and what
        they answered is not asked again."""
        if self.batch is None:
            self.committing()
        if durable and self.batch is not None:
            self.write(self.batch)
        ended = {e for batch in self.disk.batches for e in ids(batch)}
        self.crashed |= self.sent - ended
        self.start_anew(self.elsewhere | self.calls, answered=False, unsaved=self.lane.unsaved)

    @rule()
    def leave(self) -> None:
        """The owner is told to stop and does so in peace: all that is out lands, and a last commit is made."""
        self.drain()
        for name in sorted(self.calls):
            self.lane.outcome(self.outcome(self.calls.pop(name), None, True), self.now)
        if self.lane.idle:  # else a worker has something of the last owner that came back to nobody
            if self.batch is not None:
                self.committed()
            while self.lane.dirty:
                self.committing()
                self.sound()
                self.committed()
            marked = {slot.item.item_id for slot in self.lane.slots.values() if slot.maybe_paid}
            unread = {f"i{number}" for number in self.todo}
            before = set[str]() if not unread else self.doubted  # not read again: as its last owner left it
            self.start_anew({}, answered=False)
            self.doubted = None if before is None else marked | before & unread
            for name, _ in self.lane.slots:
                self.see_doubt(name)

    def see_doubt(self, name: str) -> None:
        slot = self.lane.slots.get((name, 0))
        if slot is not None and self.doubted is not None:
            assert slot.maybe_paid == (name in self.doubted), "marked by an owner that left nothing in doubt, or not"

    def start_anew(self, calls: dict[str, Call], answered: bool, unsaved: Sequence[Adopted] = ()) -> None:
        self.start(
            [
                *unsaved,
                *(
                    Adopted(
                        c.item_id,
                        0,
                        c.attempt,
                        c.model,
                        "w1",
                        self.outcome(c, None, True) if answered else None,
                        c.role,
                    )
                    for c in calls.values()
                ),
            ]
        )
        steps = {name for name, call in calls.items() if call.role in ("judge", "shadow")}
        self.elsewhere = {} if answered else {name: call for name, call in calls.items() if name not in steps}
        self.see_adopted()
        self.vanish(self.gone)

    def see_adopted(self) -> None:
        """Calls of the last owner that this one waits for: of every item that may be sent, for none is sent again."""
        for name, call in list(self.elsewhere.items()):
            slot = self.lane.slots.get((name, 0))
            if slot is not None and slot.state != "beyond":
                assert slot.state == "flying", "an item does not wait for the call that a worker has of it"
                assert slot.attempt == call.attempt
                assert slot.model == call.model, "an adopted call is counted at another model"
                self.calls[name] = call
                del self.elsewhere[name]

    @invariant()
    def sound(self) -> None:
        if not hasattr(self, "lane"):
            return
        self.see_adopted()
        check(self.lane)
        for ledger in self.disk.ledgers.values():
            ledger.check()
        assert len(self.lane.slots) <= self.settings.window + self.settings.shelf_max

    def teardown(self) -> None:
        """Run it to its end: every item ends exactly once, costs add up, the budget held."""
        if not hasattr(self, "lane"):
            return
        if self.batch is not None:
            self.committed()
        self.start_anew({}, answered=False)
        for _ in range(400):
            if self.lane.finished_all or self.lane.draining:
                break
            self.now += 1.0
            self.offer(100)
            self.lease()
            for pool in POOLS:
                self.take(pool, 100, "w1")
            self.succeed(100)
            self.lane.tick(self.now)
            self.sound()
            self.committing()
            self.committed()
        self.committing()
        self.committed()
        self.tell_all()

    def tell_all(self) -> None:
        ended = [e for batch in self.disk.batches for e in ids(batch)]
        assert len(ended) == len(set(ended)), "an item ended twice"
        if not self.lane.draining:
            assert self.lane.finished_all, [(s.item.item_id, s.state) for s in self.lane.slots.values()]
            assert {f"i{n}" for n in range(COUNT) if n not in self.gone} <= set(ended), "an item never ended"
            assert self.disk.batches[-1].saved.done
            single = {k for k in self.disk.chunks if k.startswith((SHELF, TRIED))}
            assert single <= {f"{TRIED}i{n}" for n in self.gone}, "something is kept of an item that has ended"
        results = sum(r.cost_nano for b in self.disk.batches for r in b.results)
        dead = sum(d.cost_nano for b in self.disk.batches for d in b.dead_letters)
        unfinished = sum(slot.cost_nano for slot in self.lane.slots.values()) + self.paid_unread()
        lines = [line for b in self.disk.batches for line, _ in b.costs]
        assert len({line.entry_id for line in lines}) == len(lines), "two cost lines of one name"
        assert sum(line.cost_nano for line in lines) == results + dead + unfinished, "the bill does not add up"
        of_steps = {kind: sum(line.cost_nano for line in lines if line.role == kind) for kind in ("judge", "shadow")}
        assert {k: v for k, v in of_steps.items() if v} == {k: v for k, v in self.lane.tally.steps_nano.items() if v}
        for ledger in self.disk.ledgers.values():
            assert ledger.overrun_nano == 0
            assert ledger.settled_nano + ledger.forfeit_nano + ledger.leased_nano <= ledger.limit_nano
        if self.budgets:
            assert sum(line.cost_nano for line in lines) <= LIMIT
            assert not self.steps or of_steps["shadow"] <= SHADOW_LIMIT

    def paid_unread(self) -> int:
        """For items that this owner has not read, and maybe nobody will read again."""
        read = {TRIED + name for name, _ in self.lane.slots}
        kept = [data for name, data in self.disk.chunks.items() if name.startswith(TRIED) and name not in read]
        return sum(a.cost_nano for data in kept for a in msgspec.msgpack.decode(data, type=Tried).attempts)


def ids(batch: CommitBatch) -> list[str]:
    return [r.item.item_id for r in batch.results] + [d.item_id for d in batch.dead_letters]


def walk(seed: int) -> None:
    """A long story of one lane, told by dice: much goes well, and everything goes wrong now and then."""
    dice = random.Random(seed)
    machine = LaneMachine()
    machine.begin(
        window=dice.choice([6, 20, 1000]),
        floor=dice.choice([1, 4, 100]),
        budgets=dice.random() < 0.5,
        by_key=seed % 2 == 1,
        steps=seed % 3 > 0,
    )
    troubles = dice.choice([0.0, 0.02, 0.2])
    kinds: list[FailureKind | None] = [*KINDS] if troubles > 0.1 else [*BILLED, "timeout", "not_sent", "too_long"]
    for _ in range(dice.choice([40, 150, 400])):
        step = dice.random()
        if step < troubles:
            trouble(machine, dice)
        elif step < 0.35:
            machine.offer(n=dice.randint(1, 12))
        elif step < 0.65:
            machine.take(pool=dice.choice(POOLS), n=dice.randint(1, 8), worker=dice.choice(["w1", "w2"]))
        elif step < 0.8 and machine.calls:
            kind = None if dice.random() < 0.4 else dice.choice(kinds)
            machine.land(which=dice.randrange(40), kind=kind, usage=dice.random() < 0.7, twice=dice.random() < 0.2)
        elif step < 0.85:
            machine.tick(seconds=dice.choice([0.0, 0.1, 2.0, 40.0]))
        elif step < 0.9:
            machine.lease()
        elif machine.batch is None:
            machine.committing()
        else:
            machine.committed()
        machine.sound()
    machine.teardown()


def trouble(machine: LaneMachine, dice: random.Random) -> None:
    match dice.randrange(21):
        case 18 | 19:
            machine.fail(durable=dice.random() < 0.5)
        case 17:
            machine.retain(ordinal=dice.randrange(COUNT // 10), count=dice.randint(1, 10))
        case 16 if machine.elsewhere:
            machine.land_early(which=dice.randrange(40), kind=dice.choice([None, *KINDS]), usage=dice.random() < 0.7)
        case 14 | 15:
            machine.vanish(numbers={*dice.sample(range(COUNT), dice.choice([1, 3, 8]))})
        case 12 | 13:
            machine.pause(tiers=frozenset(tier for tier in (1, 2, 3) if dice.random() < 0.3))
        case 0:
            machine.worker_lost(worker=dice.choice(["w1", "w2"]))
        case 1:
            machine.sweep(seconds=dice.choice([30.0, 3000.0]))
        case 2 if not machine.lane.targets.down:
            machine.pool_down(pool=dice.choice(POOLS))
        case 2:
            machine.pool_up()
        case 3:
            machine.drain()
        case 4:
            machine.tick(seconds=400.0)
        case 5 | 6:
            machine.leave()
        case 7:
            machine.take_in_vain(pool=dice.choice(POOLS), n=dice.randint(1, 8), worker=dice.choice(["w1", "w2"]))
        case 8:
            machine.missed(worker=dice.choice(["w1", "w2"]))
        case 20:
            worker, before = dice.choice(["w1", "w2"]), dice.randint(0, 9)
            machine.missed(worker=worker)
            machine.take_late(pool=dice.choice(POOLS), n=dice.randint(1, 8), worker=worker, before=before)
        case _:
            machine.crash(durable=dice.random() < 0.5, adopt=dice.random() < 0.5, answered=dice.random() < 0.5)


@pytest.mark.parametrize("block", range(8))
def test_long_stories_keep_every_promise(block: int) -> None:
    """Hundreds of steps, dozens of crashes: nothing is lost, doubled, unmarked, unpaid or sent too early."""
    for seed in range(block * 40, block * 40 + 40):
        try:
            walk(seed)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise


TestLaneMachine = LaneMachine.TestCase
TestLaneMachine.settings = settings(
    max_examples=50, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
