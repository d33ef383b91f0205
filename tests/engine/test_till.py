"""A lane's till: who waits for money gets it in order, and what nobody needs goes back."""

import random
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.budget import Budget, Budgets
from penstock.engine.flow.queueing import IDLE_LEASE_S
from penstock.engine.flow.slots import Slot
from penstock.engine.flow.till import MOST_REFUSED, NoMoney, Till, Wish
from penstock.engine.items import Attributes, Candidate, Item, Position, Request, Route
from penstock.engine.leases import LeaseRefused, Ledger, Owner, open_leases, settle

NOW = 1_700_000_000.0
KEY = "run/r"


def slot(seq: int = 1, tenant: str | None = None, priority: int | None = None) -> Slot:
    attributes = Attributes(tenant=tenant, priority=priority)
    item = Item("i", Position("s", 0, 0), attributes, Request(b"{}"), b"", NOW)
    return Slot(item, Route("t", 3, (Candidate("m", "v1", "api:a"),), (), ""), seq)


def test_a_lease_stays_while_the_next_budgets_lease_is_fetched() -> None:
    """A call under three budgets, and a ledger that takes most of the idle time for each: all are there at once."""
    till = Till(Budgets((Budget(10**9), Budget(10**9, "day"), Budget(10**9, "month")), "r"))
    waiting, now = slot(), NOW
    for asked in range(3):
        assert till.reserve(waiting, 100, now) is False
        (wish,) = till.wishes()
        now += IDLE_LEASE_S * 0.9
        assert till.opened(wish.key, {f"lease-{asked}": 1_000}, now) == [waiting]
        till.give_back_idle(now)
    assert till.reserve(waiting, 100, now) is True
    assert not till.purse.closable()


def test_a_lease_that_waits_for_another_budget_in_vain_goes_back() -> None:
    """Two lanes that each hold what the other needs must not wait for each other."""
    till = Till(Budgets((Budget(10**9), Budget(10**9, "day")), "r"))
    waiting, now = slot(), NOW
    assert till.reserve(waiting, 100, now) is False
    till.opened(till.wishes()[0].key, {"first": 1_000}, now)
    assert till.reserve(waiting, 100, now) is False
    for _ in range(5):
        now += IDLE_LEASE_S * 0.5
        assert [wish.key for wish in till.wishes()] == ["day/2023-11-14"], "it is asked for again and again"
        till.give_back_idle(now)
    assert [lease.lease_id for lease in till.purse.closable()] == ["first"]


def remembered(till: Till) -> int:
    """Budgets that it, or its purse, says something of."""
    return sum(len(known) for part in (till, till.purse) for known in vars(part).values() if isinstance(known, dict))


def test_tenants_whose_money_is_spent_or_idle_are_not_remembered_without_end() -> None:
    """A tenant is a word of the input: a stream may bring a new one with each record, for as long as a day lasts."""
    till, sizes = Till(Budgets((Budget(10**9, tenant="*"),), "r")), list[int]()
    for n in range(3 * MOST_REFUSED):
        one = slot(n, f"t{n}")
        assert till.reserve(one, 100, NOW) is False
        (wish,) = till.wishes()
        if n % 2:
            assert till.refused(wish, "spent", NOW) == [one]
            assert isinstance(till.reserve(slot(n, f"t{n}"), 100, NOW), NoMoney), (
                "it is known for as long as it matters"
            )
        else:
            till.opened(wish.key, {f"l{n}": 100}, NOW)
            assert till.reserve(one, 100, NOW) is True
            assert one.reservation is not None
            till.purse.settle(one.reservation, 100)
            till.give_back_idle(NOW + 2 * IDLE_LEASE_S)
            for lease in till.purse.closable():
                till.purse.closed(lease.lease_id)
        if (n + 1) % MOST_REFUSED == 0:
            sizes.append(remembered(till))
    assert sizes[2] <= sizes[1]
    assert till.reserve(slot(1, "t1"), 100, NOW) is False, "one that was forgotten is asked for again"
    till.check()


def test_nobody_passes_one_that_comes_first_and_waits_for_the_same_money() -> None:
    """A dear call waits for a lease, and cheap ones that would fit into what is left wait behind it: once it is served
    they are, in order; an urgent one goes before them all."""
    till = Till(Budgets((Budget(10**9),), "r"))
    first, dear, cheap, later, urgent = slot(1), slot(2), slot(3), slot(4), slot(5, priority=1)
    assert till.reserve(first, 60, NOW) is False
    assert till.opened("run/r", {"a": 100}, NOW) == [first]
    assert till.reserve(first, 60, NOW) is True
    assert till.reserve(dear, 90, NOW) is False
    for waits in (later, cheap):
        assert till.reserve(waits, 10, NOW) is False, "it would fit, but comes after one that does not"
    assert till.reserve(urgent, 10, NOW) is True
    (wish,) = till.wishes()
    assert wish.calls == (90, 10, 10)
    assert till.opened("run/r", {"b": 100}, NOW) == [dear, cheap]
    assert till.opened("run/r", {"c": 100}, NOW) == [later]
    till.check()


def test_what_a_settled_call_leaves_serves_who_waits_first() -> None:
    """Before the ledger is asked again, and not those behind it, whom it might leave nothing."""
    till = Till(Budgets((Budget(10**9),), "r"))
    flying, dear, cheap = slot(1), slot(2), slot(3)
    till.reserve(flying, 90, NOW)
    till.opened("run/r", {"a": 100}, NOW)
    assert till.reserve(flying, 90, NOW) is True
    assert till.reserve(dear, 50, NOW) is False
    assert till.reserve(cheap, 10, NOW) is False
    assert flying.reservation is not None
    assert till.freed(flying.reservation, NOW) == []
    till.purse.settle(flying.reservation, 20)
    till.give_back_small(till.wishes()[0], NOW)
    assert till.freed(flying.reservation, NOW) == [dear]
    assert till.freed(flying.reservation, NOW) == [], "what is left is for the dear one, which has not come yet"
    assert till.reserve(slot(4), 10, NOW) is False, "for it alone"
    assert till.reserve(dear, 50, NOW) is True
    assert till.freed(flying.reservation, NOW) == [cheap]
    assert till.waiting == 1
    till.check()


def test_who_was_told_and_does_not_come_holds_nobody_up_for_long() -> None:
    """Its account is busy, its pool went down, or it was given up: its money is for whoever comes then."""
    till = Till(Budgets((Budget(10**9),), "r"))
    told, later = slot(1), slot(2)
    assert till.reserve(told, 60, NOW) is False
    till.give_back_small(till.wishes()[0], NOW)
    assert till.opened(KEY, {"a": 100}, NOW) == [told]
    assert till.reserve(later, 60, NOW) is False
    till.give_back_idle(NOW + IDLE_LEASE_S / 2)
    assert till.waiting == 1
    assert till.take_out(lambda one: one is later) == [later]
    assert till.reserve(later, 60, NOW + IDLE_LEASE_S + 0.1) is True
    till.give_back_idle(NOW + IDLE_LEASE_S + 0.1)
    assert till.reserve(told, 40, NOW + IDLE_LEASE_S + 0.2) is True
    till.check()


def test_where_there_is_money_for_all_nobody_waits_for_who_was_told_and_is_late() -> None:
    """Its account is slow: else each quick one would wait for it, and leases pile up meanwhile."""
    till = Till(Budgets((Budget(10**9),), "r"))
    told, quick = slot(1), slot(2)
    assert till.reserve(told, 60, NOW) is False
    assert till.opened(KEY, {"a": 1_000}, NOW) == [told]
    assert till.reserve(quick, 60, NOW) is True


def test_what_its_tenant_has_lets_nobody_pass_at_the_runs_money() -> None:
    """It was told of its tenant's lease; one that comes first waits for the run's."""
    till = Till(Budgets((Budget(10**9), Budget(10**9, tenant="*")), "r"))
    first, other = slot(1, tenant="a"), slot(2, tenant="b")
    assert till.reserve(other, 50, NOW) is False
    assert till.opened(KEY, {"run": 60}, NOW) == [other]
    assert till.reserve(other, 50, NOW) is False, "now its tenant's"
    assert till.reserve(first, 90, NOW) is False
    assert till.opened("run/r/tenant/b", {"b": 100}, NOW) == [other]
    assert till.reserve(other, 50, NOW) is False
    assert [wish.calls for wish in till.wishes() if wish.key == KEY] == [(90, 50)]


def test_an_own_engines_call_waits_behind_nobody_and_one_too_dear_is_told_so_at_once() -> None:
    till = Till(Budgets((Budget(10**9),), "r"))
    free, dear, cheap = slot(3), slot(4), slot(2)
    assert till.reserve(slot(0), 100, NOW) is False
    assert till.opened(KEY, {"a": 50}, NOW) == [], "too small for it"
    assert till.reserve(cheap, 10, NOW) is False
    assert till.reserve(free, 0, NOW) is True
    till.refused(Wish(KEY, 10**9, (200,)), "spent", NOW)
    assert isinstance(till.reserve(dear, 300, NOW), NoMoney), "though a cheaper one waits before it"


def test_who_waits_for_its_tenants_money_holds_up_no_other_tenant() -> None:
    till = Till(Budgets((Budget(10**9, tenant="*"),), "r"))
    poor, rich = slot(1, tenant="poor"), slot(2, tenant="rich")
    assert till.reserve(rich, 10, NOW) is False
    assert till.opened(till.wishes()[0].key, {"a": 100}, NOW) == [rich]
    assert till.reserve(poor, 10, NOW) is False
    assert till.reserve(rich, 10, NOW) is True


class Shop:
    """A till, its ledger, and 60 calls of which each tenth is dear, in two pools; what happens next is drawn."""

    def __init__(self, limit: int, chance: random.Random) -> None:
        self.till, self.ledger = Till(Budgets((Budget(limit),), "r")), Ledger(KEY, limit)
        self.chance = chance
        self.ready = [slot(n) for n in range(60)]
        self.worst = {one: chance.randint(9_000, 10_400) // (1 if one.seq % 10 == 9 else 10) for one in self.ready}
        self.flying: list[Slot] = []
        self.paid: list[Slot] = []
        self.came: dict[Slot, int] = {}
        """When each first asked for money."""
        self.had: dict[Slot, int] = {}
        """When it was set aside for it, or it was told that it is there."""
        self.clock = 0
        self.scarce = 1 << 30
        """Since when the ledger has not had all that was asked for."""
        self.names = count()
        self.over = False

    def ask(self) -> None:
        for wish in self.till.wishes():
            ids = [f"l{next(self.names)}" for _ in wish.calls]
            answer = open_leases(self.ledger, ids, Owner("r", 0, (1, 1)), wish.calls, NOW)
            if not isinstance(answer, LeaseRefused):
                self.ledger, opened = answer
                self.told(self.till.opened(wish.key, {k: v.amount_nano for k, v in opened.items()}, NOW))
            elif not wish.spare:
                self.scarce = min(self.scarce, self.clock)
                may_reach = answer.remaining_nano + answer.leased_nano >= wish.floor_nano
                if may_reach or self.till.awaits(wish.key):
                    self.till.give_back_small(wish, NOW)
                else:
                    self.over = bool(self.till.refused(wish, "spent", NOW))

    def told(self, slots: list[Slot]) -> None:
        self.ready += slots
        self.had |= dict.fromkeys(slots, self.clock)

    def take(self) -> None:
        """By workers of one pool, who take a few at a time, in order."""
        pool = self.chance.randrange(2)
        mine = sorted((one for one in self.ready if one.seq % 2 == pool), key=lambda one: one.seq)
        for one in mine[: self.chance.randint(1, 20)]:
            self.ready.remove(one)
            self.came.setdefault(one, self.clock)
            was_told = one.told is not None
            if self.till.reserve(one, self.worst[one], NOW) is True:
                one.state = "flying"
                self.flying.append(one)
                if not was_told:
                    self.had[one] = self.clock

    def land(self) -> None:
        if self.flying:
            one = self.flying.pop(self.chance.randrange(len(self.flying)))
            assert one.reservation is not None
            self.till.purse.settle(one.reservation, self.worst[one] // 15)
            self.paid.append(one)
            self.told(self.till.freed(one.reservation, NOW))

    def settle(self) -> None:
        self.till.give_back_idle(NOW)
        for lease in self.till.purse.closable():
            self.ledger = settle(self.ledger, lease.lease_id, lease.spent_nano)
            self.till.purse.closed(lease.lease_id)

    def step(self) -> None:
        self.clock += 1
        self.chance.choice([self.ask, self.take, self.land, self.settle])()
        self.till.check()
        self.ledger.check()


@given(st.integers(11_000, 60_000), st.integers(0, 1 << 32))
def test_a_small_budget_is_used_to_its_end_in_order_and_soon(limit: int, seed: int) -> None:
    """Whatever comes first of asking, taking, landing and settling: who waits for money is passed by none that comes
    after it, once there is not enough for all, and nobody waits for leases to grow old: the clock stands still."""
    shop = Shop(limit, random.Random(seed))
    for _ in range(4_000):
        if shop.over or len(shop.paid) == 60:
            break
        shop.step()
    else:
        raise AssertionError(f"{len(shop.paid)} paid, {len(shop.ready)} ready, {shop.till.waiting} wait")
    while shop.flying:
        shop.land()
    for left in shop.came.keys() - shop.had.keys():
        since = max(shop.came[left], shop.scarce)
        passed_by = [one.seq for one in shop.paid if one.seq > left.seq and shop.had[one] > since]
        assert not passed_by, f"{left.seq} was left out, though it had come first"
