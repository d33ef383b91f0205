"""What a crash leaves in doubt is told apart from calls that had no answer."""

from __future__ import annotations

import msgspec
import pytest

from penstock.engine.budget import Budget
from penstock.engine.catalog import Account, Catalog, Model, Price, Version
from penstock.engine.flow.lane_types import Adopted, CommitBatch, Hooks
from penstock.engine.flow.progress import PROGRESS
from penstock.engine.items import Answer, Attributes, Call, Failure, Item, Outcome, Position, Request, Usage
from penstock.engine.policy import Policy, Task
from tests.engine.one_lane import OneLane

MODEL = Model("m", (Version("v1", "m"),), "v1", account="a", price=Price(10**9, 10**9), context=8000)
CATALOG = Catalog({"a": Account("a", "openai", "http://localhost")}, {"m": MODEL}, {1: ("m",)})
HOOKS = Hooks(lambda: 0.5, lambda item, answer, task: (), lambda body, answer, message: body)


class Rig(OneLane):
    """`left`: whose place it takes, after a crash."""

    def __init__(self, left: Rig | None = None) -> None:
        self.disk: dict[str, bytes] = {}
        super().__init__(
            CATALOG, Policy({"t": Task("t", tier=1, max_tokens=10)}, default_task="t"), HOOKS, (Budget(10**12),)
        )
        if left is not None:
            self.disk = left.disk
            self.begin(dict(left.disk), left.lane.seq)

    def commit(self) -> CommitBatch:
        batch = super().commit()
        self.disk |= batch.chunks
        self.disk = {name: data for name, data in self.disk.items() if data}
        self.disk[PROGRESS] = msgspec.msgpack.encode(batch.saved)
        return batch

    def offer(self, position: int = 0) -> None:
        item = Item("i", Position("s", 0, position), Attributes(), Request(b"{}"), b"x", self.now)
        self.lane.offer(item, self.now)

    def take(self) -> list[Call]:
        while not (calls := self.lane.take("api:a", 9, 1 << 30, "w", self.now)) and (wishes := self.lane.wishes()):
            for wish in wishes:
                self.lane.leased(wish.key, {f"{len(self.lane.till.purse.spent())}": 10**11}, self.now)
        return calls

    def land(self, failure: Failure | None = None) -> None:
        """The one call that waits."""
        (call,) = self.take()
        answer = None if failure is not None else Answer("yes", "stop", b"{}")
        usage = None if failure is not None else Usage(1)
        self.lane.outcome(Outcome(call.item_id, 0, call.attempt, self.now, 1.0, answer, failure, usage), self.now)

    def told(self) -> tuple[int, int]:
        self.commit()
        return self.lane.tally.maybe_paid, self.lane.tally.second_payments


def test_a_shelved_item_that_a_crash_left_in_doubt_explains_what_is_counted_of_it() -> None:
    """Nothing lies between watermark and horizon, and it may be paid twice all the same."""
    rig = Rig()
    rig.offer()
    rig.commit()
    slot = rig.lane.slots["i", 0]
    rig.lane.shelf.put(slot)
    rig.lane.progress.of(0).done(0)
    rig.lane.progress.of(0).retreat()
    rig.commit()
    assert not rig.lane.doubted
    rig = Rig(rig)
    assert (rig.lane.doubted, rig.lane.progress.doubted) == (True, False)
    rig.lane.restore_shelf(rig.now)
    rig.land()
    assert rig.told() == (1, 1)


def test_an_item_that_was_under_way_at_a_crash_or_at_a_lost_worker_counts() -> None:
    for lost in ("lane", "worker"):
        rig = Rig()
        rig.offer()
        rig.commit()
        rig.take()
        if lost == "lane":
            rig = Rig(rig)
            rig.offer()
        else:
            rig.lane.worker_lost("w", rig.now)
        rig.land()
        assert rig.told() == (1, 1), lost


def test_a_call_without_an_answer_is_marked_and_is_no_crash() -> None:
    rig = Rig()
    rig.offer()
    rig.commit()
    rig.land(Failure("timeout", "no answer", may_be_billed=True))
    rig.now += 60.0
    rig.lane.tick(rig.now)
    rig.land()
    assert rig.told() == (1, 0)


def test_an_own_engine_that_is_lost_costs_the_budget_nothing_more() -> None:
    """Its hours are on the bill whatever becomes of its calls; the item is marked all the same."""
    own = Model("own", (Version("v1", "own"),), "v1", worker="vllm", hour_usd=3.0, context=8000)
    spent: dict[str, int] = {}
    for model, pool in ((MODEL, "api:a"), (own, "vllm:own@v1")):
        catalog = Catalog(CATALOG.accounts, {model.name: model}, {1: (model.name,)})
        policy = Policy({"t": Task("t", tier=1, max_tokens=10)}, default_task="t")
        one = OneLane(catalog, policy, HOOKS, (Budget(10**12),))
        one.lane.offer(Item("i", Position("s", 0, 0), Attributes(), Request(b"{}"), b"x", one.now), one.now)
        one.commit()
        one.lane.take(pool, 9, 1 << 30, "w", one.now)
        for wish in one.lane.wishes():
            one.lane.leased(wish.key, {"l": 10**11}, one.now)
        assert len(one.lane.take(pool, 9, 1 << 30, "w", one.now)) == 1
        one.lane.worker_lost("w", one.now)
        spent[model.name] = one.lane.tally.forfeit_nano
        slot = one.lane.slots["i", 0]
        assert (slot.maybe_paid, slot.orphaned) == (True, True)
    assert spent["m"] > 0
    assert spent["own"] == 0


def test_only_the_answer_of_a_call_that_was_given_up_is_a_late_payment() -> None:
    """A worker delivers again what it has no reply to: nothing is paid by that."""
    rig = Rig()
    rig.offer()
    rig.commit()
    (early,) = rig.take()
    rig.lane.worker_lost("w", rig.now)
    (again,) = rig.take()
    said: list[int] = []
    for call in (again, again, early, early):
        answer = Answer("yes", "stop", b"{}")
        rig.lane.outcome(Outcome("i", 0, call.attempt, rig.now, 1.0, answer, None, Usage(1)), rig.now)
        said.append(rig.lane.tally.late_payments)
        rig.commit()
    assert said == [0, 0, 1, 1]


@pytest.mark.parametrize("why", ["a step", "its worker is lost", "of two the earlier one"])
def test_an_answer_to_the_last_owner_that_nobody_takes_is_on_the_bill_or_a_late_payment(why: str) -> None:
    """Where the number of its call may be another's as well, it stands on no bill."""
    rig = Rig()
    calls = [Adopted("i", 0, 1, "m", "w", role="judge" if why == "a step" else "primary", version="v1")]
    if why == "of two the earlier one":
        calls.append(msgspec.structs.replace(calls[0], attempt=2))
    rig.begin({}, 0, calls)
    if why == "its worker is lost":
        rig.lane.worker_lost("w", rig.now)
    rig.offer()
    rig.commit()
    for _ in range(2):
        rig.lane.outcome(Outcome("i", 0, 1, rig.now, 1.0, Answer("yes", "stop", b"{}"), None, Usage(1)), rig.now)
    assert (rig.lane.tally.late_payments, rig.lane.tally.cost_nano) == ((1, 0) if "lost" in why else (0, 1000))


@pytest.mark.parametrize("jumps", [False, True])
def test_a_call_is_given_up_where_its_worker_froze_and_not_where_the_clock_jumped(jumps: bool) -> None:
    """Or the machine slept: nobody could be heard meanwhile, and who lives is heard soon."""
    rig = Rig()
    rig.offer()
    rig.commit()
    rig.take()
    rig.lane.sweep(rig.now)
    for _ in range(1 if jumps else 720):
        rig.now += 3600.0 if jumps else 5.0
        rig.lane.sweep(rig.now)
    assert rig.lane.idle != jumps
    for _ in range(720):
        rig.now += 5.0
        rig.lane.heard("w" if jumps else "another", rig.now)
        rig.lane.sweep(rig.now)
    assert rig.lane.idle != jumps
