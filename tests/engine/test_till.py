"""A lane's till: who waits for money gets it in order, and what nobody needs goes back."""

from penstock.engine.budget import Budget, Budgets
from penstock.engine.flow.slots import Slot
from penstock.engine.flow.till import IDLE_LEASE_S, Till
from penstock.engine.items import Attributes, Candidate, Item, Position, Request, Route

NOW = 1_700_000_000.0


def slot() -> Slot:
    item = Item("i", Position("s", 0, 0), Attributes(), Request(b"{}"), b"", NOW)
    return Slot(item, Route("t", 3, (Candidate("m", "v1", "api:a"),), (), ""), 1)


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
    for _ in range(5):
        assert till.reserve(waiting, 100, now) is False
        now += IDLE_LEASE_S * 0.5
        assert till.opened(till.wishes()[0].key, {}, now) == [waiting], "asked again"
        till.give_back_idle(now)
    assert [lease.lease_id for lease in till.purse.closable()] == ["first"]
