"""Items whose target can't take them now: who goes elsewhere, who waits, and what is counted of it."""

from __future__ import annotations

from penstock.engine.catalog import Account, Catalog, Model, Price, Version
from penstock.engine.flow.lane_check import check
from penstock.engine.flow.lane_types import Hooks
from penstock.engine.items import Attributes, Call, Failure, Item, Outcome, Position, Request
from penstock.engine.policy import Policy, Task
from tests.engine.one_lane import OneLane

PRICE = Price(input=10**9, output=10**9)
SHARED = {"large": "main"}
"""Of another model's account."""


def _model(name: str) -> Model:
    return Model(name, (Version("v1", name),), "v1", account=SHARED.get(name, name), price=PRICE, context=8000)


MODELS = [_model(name) for name in ("main", "spare", "large")]
ACCOUNTS = {name: Account(name, "openai", "http://localhost") for name in ("main", "spare")}


class Rig(OneLane):
    def __init__(self, *tier: str) -> None:
        hooks = Hooks(lambda: 0.5, lambda item, answer, task: (), lambda body, answer, message: body)
        catalog = Catalog(ACCOUNTS, {m.name: m for m in MODELS}, {1: tier})
        super().__init__(catalog, Policy({"t": Task("t", tier=1, max_tokens=10)}, default_task="t"), hooks)

    def offer(self, deadline: float | None = None) -> None:
        request = Request(b'{"messages":[]}', input_hash="h")
        where = Position("s", 0, len(self.lane.slots))
        item = Item(f"i{where.position}", where, Attributes(deadline=deadline), request, b"x", self.now)
        self.lane.offer(item, self.now)
        self.commit()

    def take(self, model: str) -> list[Call]:
        calls = self.lane.take(f"api:{model}", 9, 1 << 30, "w", self.now)
        check(self.lane)
        return calls

    def fail(self, model: str, failure: Failure) -> None:
        """To the one call that this model has."""
        (call,) = self.take(model)
        self.lane.outcome(Outcome(call.item_id, 0, call.attempt, self.now, 1.0, failure=failure), self.now)
        check(self.lane)

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.lane.tick(self.now)
        check(self.lane)


def test_what_a_pausing_account_gave_back_goes_to_the_next_target_and_was_no_try() -> None:
    """It was never sent: no attempt, no retry, nothing of the retry budgets."""
    rig = Rig("main", "spare")
    rig.offer()
    rig.fail("main", Failure("not_sent", "a pause", retry_after_s=60.0))
    assert rig.take("main") == []
    ((call,), tally) = rig.take("spare"), rig.lane.tally
    assert (call.role, tally.retries, tally.retried, tally.fallbacks) == ("fallback", 0, {}, 1)
    for _ in range(150):
        rig.offer()
        rig.fail("main", Failure("not_sent", "a pause", retry_after_s=60.0))
    assert rig.lane.targets.budgets["spare"].has_room(rig.now)


def test_what_waits_goes_on_when_its_pool_is_up_again() -> None:
    """Also what waited for a fallback that is up first; what has been sent elsewhere stays there; and what comes next
    goes to its first choice."""
    rig = Rig("main", "spare")
    for pool in ("api:main", "api:spare"):
        rig.lane.pool_down(pool, "it does not start", rig.now)
    rig.offer()
    rig.offer(deadline=rig.now + 1_000)
    assert rig.take("main") == rig.take("spare") == []
    rig.lane.pool_up("api:spare", rig.now)
    assert [call.role for call in rig.take("spare")] == ["fallback", "fallback"]
    rig.offer()
    (third,) = rig.take("spare")
    rig.lane.pool_up("api:main", rig.now)
    assert rig.take("main") == []
    rig.offer()
    assert [call.role for call in rig.take("main")] == ["primary"]
    rig.lane.pool_down("api:main", "it does not start", rig.now)
    rig.lane.pool_down("api:spare", "it does not start", rig.now)
    refused = Failure("overloaded", "busy")
    rig.lane.outcome(Outcome(third.item_id, 0, third.attempt, rig.now, 1.0, failure=refused), rig.now)
    rig.tick(100.0)
    assert rig.take("spare") == rig.take("main") == []
    rig.lane.pool_up("api:main", rig.now)
    assert [call.item_id for call in rig.take("main")] == [third.item_id]


def test_what_a_pausing_account_gave_back_waits_where_there_is_no_other() -> None:
    """In its lane, for as long as the account does, and goes as what it was."""
    rig = Rig("main")
    rig.offer()
    budget = rig.lane.targets.budgets["main"]
    for _ in range(200):
        rig.fail("main", Failure("not_sent", "a pause", retry_after_s=60.0))
        rig.tick(59.0)
        assert rig.take("main") == []
        rig.tick(1.0)
    assert budget.has_room(0.0)
    ((call,), tally) = rig.take("main"), rig.lane.tally
    assert (call.role, tally.retries, tally.retried) == ("primary", 0, {})


def test_what_a_pausing_account_gave_back_goes_to_no_other_model_of_it() -> None:
    """It waits for its own model; a larger one of the account would wait as long, and cost more."""
    rig = Rig("main", "large")
    rig.offer()
    rig.fail("main", Failure("not_sent", "a pause", retry_after_s=60.0))
    assert rig.take("main") == []
    rig.tick(60.0)
    ((call,), tally) = rig.take("main"), rig.lane.tally
    assert (call.role, call.model, tally.fallbacks) == ("primary", "main", 0)
