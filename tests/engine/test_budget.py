"""A hard budget is never exceeded, and the ledger never claims less than was spent."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from penstock.engine.budget import Budget, Budgets, NeedLease, Purse, Reservation, budget_keys
from penstock.engine.leases import (
    Lease,
    LeaseRefused,
    Ledger,
    Owner,
    at_least,
    forfeit,
    open_lease,
    open_leases,
    relimit,
    remaining,
    settle,
)

NOW = 1_700_000_000.0  # 2023-11-14, 22:13:20 UTC
ME = Owner("run", 0, (1, 1))
KEYS = (("k", 1_000_000),)


def leased(ledger: Ledger, lease_id: str, want: int, floor: int, owner: Owner = ME) -> tuple[Ledger, Lease]:
    answer = open_lease(ledger, lease_id, owner, want, floor, NOW)
    assert not isinstance(answer, LeaseRefused)
    answer[0].check()
    return answer


@pytest.mark.parametrize(
    ("want", "floor", "amount"),
    [(10**9, 1, 10_000), (5_000, 1, 5_000), (10**9, 50_000, 50_000), (0, 0, 1), (10**9, 1_000_000, 1_000_000)],
)
def test_a_lease_is_small(want: int, floor: int, amount: int) -> None:
    """What is wanted, at most 1 % of what remains, or one call's worst case where that is more."""
    _, lease = leased(Ledger("k", 1_000_000), "a", want, floor)
    assert lease.amount_nano == amount


def test_what_can_not_be_held_is_refused() -> None:
    """A call above what remains gets no lease, and the answer says what is still out."""
    ledger, _ = leased(Ledger("k", 1_000), "a", 900, 900)
    assert open_lease(ledger, "b", ME, 101, 101, NOW) == LeaseRefused("k", 100, 900)
    assert remaining(settle(ledger, "a", 0)) == 1_000


def test_a_lost_answer_opens_no_second_lease_and_settles_nothing_twice() -> None:
    """The same id is the same lease; a closed lease is closed."""
    ledger, lease = leased(Ledger("k", 1_000), "a", 500, 500)
    assert leased(ledger, "a", 500, 500) == (ledger, lease)
    once = settle(ledger, "a", 300)
    assert settle(once, "a", 300) == once
    assert (once.settled_nano, remaining(once)) == (300, 700)


def test_a_dead_lanes_leases_are_spent_unless_proven() -> None:
    """Only that run's, lane's and older epochs' leases are closed; the rest of them is forfeit and reported."""
    ledger = Ledger("k", 10_000)
    for lease_id, owner in (
        ("a", Owner("run", 0, (1, 1))),
        ("b", Owner("run", 0, (1, 1))),
        ("c", Owner("run", 0, (2, 1))),
        ("d", Owner("run", 1, (1, 1))),
        ("e", Owner("other", 0, (1, 1))),
    ):
        ledger, _ = leased(ledger, lease_id, 1_000, 1_000, owner)
    after, lost = forfeit(ledger, "run", 0, (2, 1), {"a": 400})
    assert lost == 600 + 1_000
    assert sorted(after.leases) == ["c", "d", "e"]
    assert (after.settled_nano, after.forfeit_nano) == (400, 1_600)
    assert forfeit(after, "run", 0, (2, 1), {"a": 400}) == (after, 0)


def test_several_leases_in_one_write_are_each_small() -> None:
    """As many as cover what is wanted, or as many as the budget still holds; none at all is a refusal."""
    answer = open_leases(Ledger("k", 10_000), ["a", "b", "c", "d"], ME, [300] * 3, NOW)
    assert not isinstance(answer, LeaseRefused)
    assert {key: lease.amount_nano for key, lease in answer[1].items()} == {"a": 300, "b": 300, "c": 300}
    answer[0].check()
    few = open_leases(Ledger("k", 700), ["a", "b", "c"], ME, [300] * 3, NOW)
    assert not isinstance(few, LeaseRefused)
    assert (list(few[1]), remaining(few[0])) == (["a", "b"], 100)
    assert isinstance(open_leases(few[0], ["x"], ME, [300] * 3, NOW), LeaseRefused)


def test_overruns_are_named() -> None:
    """A call above its worst case counts in full; a lowered limit leases nothing more."""
    ledger, _ = leased(Ledger("k", 1_000), "a", 1_000, 1_000)
    over = settle(ledger, "a", 1_200)
    over.check()
    assert (over.settled_nano, over.overrun_nano, remaining(over)) == (1_200, 200, 0)
    lowered = relimit(settle(ledger, "a", 800), 500)
    lowered.check()
    assert isinstance(open_lease(lowered, "b", ME, 1, 1, NOW), LeaseRefused)


@pytest.mark.parametrize(
    ("known", "left"),
    [
        (Ledger("k", 1_000), 530),  # nothing: 400 were called for, 70 forfeit
        (Ledger("k", 1_000, settled_nano=150), 600),  # less
        (Ledger("k", 1_000, settled_nano=250, forfeit_nano=170), 580),  # answers of 150 came to a lease that was dead
        (Ledger("k", 1_000, settled_nano=900), 100),  # more: of a life that was thrown away
    ],
)
def test_what_a_run_has_committed_is_spent_whatever_its_ledger_knows(known: Ledger, left: int) -> None:
    """The budget may be newer than the run, the state another one. Said again it changes nothing."""
    ledger = at_least(known, 1_000, 400, 70)
    ledger.check()
    assert remaining(ledger) == left
    assert at_least(ledger, 1_000, 400, 70) == ledger
    lowered = at_least(known, 10, 400, 70)
    lowered.check()
    assert remaining(lowered) == 0


def test_which_budgets_an_item_falls_under() -> None:
    """Run, day and month (UTC), each tenant its own; a named tenant's budget stands in for the starred one."""
    budgets = (
        Budget(1_000),
        Budget(900),
        Budget(50, "day"),
        Budget(10, "day", "*"),
        Budget(99, "day", "acme"),
        Budget(7, "month", "a/b"),
    )
    assert budget_keys(budgets, "r", "acme", NOW) == [
        ("run/r", 900),
        ("day/2023-11-14", 50),
        ("day/2023-11-14/tenant/acme", 99),
    ]
    assert ("day/2023-11-14/tenant/other", 10) in budget_keys(budgets, "r", "other", NOW)
    assert ("month/2023-11/tenant/a%2Fb", 7) in budget_keys(budgets, "r", "a/b", NOW)
    assert ("day/2023-11-14/tenant/", 10) in budget_keys(budgets, "r", None, NOW)
    assert ("day/2023-11-15", 50) in budget_keys(budgets, "r", None, NOW + 7_200)


def test_an_item_needs_a_lease_of_every_key_or_none_is_touched() -> None:
    """All or nothing; the answer says which key, how much, and the budget's limit."""
    purse = Purse()
    purse.add("a", "l1", 100)
    keys = (("a", 1_000), ("b", 2_000))
    assert purse.reserve(keys, 60) == NeedLease("b", 60, 2_000)
    purse.add("b", "l2", 100)
    first = purse.reserve(keys, 60)
    assert isinstance(first, Reservation)
    assert purse.reserve(keys, 60) == NeedLease("a", 60, 1_000)
    purse.settle(first, 10)
    purse.settle(first, 10)
    assert purse.spent() == {"l1": 10, "l2": 10}
    assert isinstance(purse.reserve(keys, 90), Reservation)


def test_a_used_up_lease_is_closed_when_nothing_flies_on_it() -> None:
    """The successor is drawn on; the old one is closable once its calls are settled, and its rest goes back."""
    purse = Purse()
    purse.add("k", "old", 100)
    held = purse.reserve(KEYS, 80)
    assert isinstance(held, Reservation)
    assert [need.key for need in purse.low()] == ["k"]
    assert isinstance(purse.reserve(KEYS, 80), NeedLease)
    purse.add("k", "new", 200)
    assert purse.low() == []
    assert purse.closable() == []
    purse.settle(held, 30)
    assert [(c.lease_id, c.spent_nano) for c in purse.closable()] == [("old", 30)]
    assert purse.spent() == {"old": 30, "new": 0}
    purse.closed("old")
    assert purse.spent() == {"new": 0}


def test_a_new_day_has_a_new_key_and_the_old_days_leases_go_back() -> None:
    """After midnight UTC yesterday's leases are closable and are not topped up."""
    budgets = Budgets((Budget(1_000, "day"),), "r")
    need = budgets.reserve(None, 10, NOW)
    assert need == NeedLease("day/2023-11-14", 10, 1_000)
    budgets.purse.add("day/2023-11-14", "l", 10)
    held = budgets.reserve(None, 10, NOW)
    assert isinstance(held, Reservation)
    assert budgets.reserve(None, 10, NOW + 7_200) == NeedLease("day/2023-11-15", 10, 1_000)
    budgets.purse.settle(held, 4)
    assert [c.lease_id for c in budgets.purse.closable()] == ["l"]
    assert budgets.purse.low() == []


def test_without_budgets_nothing_is_reserved_and_everything_goes() -> None:
    """No budget: an empty reservation."""
    assert isinstance(Budgets((), "r").reserve("acme", 10**12, NOW), Reservation)


class LanesThatCrash(RuleBasedStateMachine):
    """Lanes lease, call, commit, crash at any moment and are taken over; every call costs at most its worst case."""

    calls = Bundle("calls")

    @initialize(limit=st.integers(1, 100_000))
    def begin(self, limit: int) -> None:
        self.limit = limit
        self.ledger = Ledger("k", limit)
        self.true_spend = 0
        self.epoch = [1, 1, 1]
        self.purses = [Purse() for _ in range(3)]
        self.committed: list[dict[str, int]] = [{} for _ in range(3)]
        self.n = 0

    @rule(target=calls, lane=st.integers(0, 2), worst=st.integers(1, 5_000), want=st.integers(0, 20_000))
    def call(self, lane: int, worst: int, want: int) -> tuple[int, int, Reservation, int] | None:
        purse = self.purses[lane]
        held = purse.reserve((("k", self.limit),), worst)
        if isinstance(held, NeedLease):
            self.n += 1
            lease_id = f"{lane}.{self.epoch[lane]}.{self.n}"
            owner = Owner("run", lane, (self.epoch[lane], 0))
            answer = open_lease(self.ledger, lease_id, owner, want, held.nano, NOW)
            if isinstance(answer, LeaseRefused):
                assert held.nano > answer.remaining_nano
                return None
            self.ledger, lease = answer
            purse.add("k", lease_id, lease.amount_nano)
            held = purse.reserve((("k", self.limit),), worst)
        assert isinstance(held, Reservation)
        return lane, self.epoch[lane], held, worst

    @rule(call=consumes(calls), share=st.floats(0, 1))
    def answered(self, call: tuple[int, int, Reservation, int] | None, share: float) -> None:
        """The provider charges, whether the lane that asked still lives or not."""
        if call is None:
            return
        lane, epoch, held, worst = call
        cost = int(worst * share)
        self.true_spend += cost
        if epoch == self.epoch[lane]:
            self.purses[lane].settle(held, cost)

    @rule(lane=st.integers(0, 2))
    def commit(self, lane: int) -> None:
        self.committed[lane] = self.purses[lane].spent()

    @rule(lane=st.integers(0, 2), lost=st.booleans())
    def close(self, lane: int, lost: bool) -> None:
        """Settle what is used up; the answer of the ledger may be lost, then it is settled again later."""
        for lease in self.purses[lane].closable():
            self.ledger = settle(self.ledger, lease.lease_id, lease.spent_nano)
            if not lost:
                self.purses[lane].closed(lease.lease_id)

    @rule(lane=st.integers(0, 2))
    def retire(self, lane: int) -> None:
        self.purses[lane].retire_all()

    @precondition(lambda self: self.n > 0)
    @rule(lane=st.integers(0, 2))
    def crash(self, lane: int) -> None:
        """Killed, fenced, taken over: the next owner knows the committed progress only."""
        self.epoch[lane] += 1
        before = remaining(self.ledger)
        self.ledger, lost = forfeit(self.ledger, "run", lane, (self.epoch[lane], 0), self.committed[lane])
        assert lost >= 0
        assert remaining(self.ledger) == before, "what a dead lease held is never handed out again"
        self.purses[lane] = Purse()
        self.committed[lane] = {}

    @invariant()
    def never_exceeded(self) -> None:
        self.ledger.check()
        for purse in self.purses:
            purse.check()
        claimed = self.ledger.settled_nano + self.ledger.forfeit_nano + self.ledger.leased_nano
        assert self.true_spend <= claimed <= self.limit
        assert self.ledger.overrun_nano == 0


TestLanesThatCrash = LanesThatCrash.TestCase
