"""A second question is longer than the first: its worst case is set aside for what is really sent."""

from __future__ import annotations

from penstock.engine.budget import Budget, Budgets
from penstock.engine.catalog import Account, Catalog, Model, Price, Version
from penstock.engine.flow.lane import Lane
from penstock.engine.flow.lane_types import Hooks, LaneSettings
from penstock.engine.items import Answer, Attributes, Call, Failure, Item, Outcome, Position, Request, Usage
from penstock.engine.plan import Split
from penstock.engine.policy import Output, Policy, Task
from penstock.engine.router import Router

PRICE = Price(input=10**9, output=10**9)
CATALOG = Catalog(
    {"a": Account("a", "openai", "http://localhost")},
    {"m": Model("m", (Version("v1", "m"),), "v1", account="a", price=PRICE, context=100_000)},
    {3: ("m",)},
)
POLICY = Policy({"t": Task("t", max_tokens=5_000, output=Output(choices=("a",)))}, default_task="t")
NOW = 1_000_000.0


def begun() -> Lane:
    """With one item, ready to be taken."""
    hooks = Hooks(lambda: 0.0, lambda _i, _a, _t: (), lambda body, answer, _m: body + answer.encode())
    lane = Lane(LaneSettings(0, "r"), Router(CATALOG, POLICY), CATALOG, POLICY, hooks, Budgets((Budget(10**12),), "r"))
    lane.begin([Split("s", "o", 0, 0, "u", 0, 100)], {}, 0)
    lane.commit(NOW)
    lane.committed(NOW)
    item = Item("i", Position("s", 0, 0), Attributes(), Request(b'{"messages":[]}', input_hash="h"), b"o", NOW)
    lane.offer(item, NOW)
    lane.commit(NOW)
    lane.committed(NOW)
    return lane


def test_asking_again_is_paid_for_from_what_was_set_aside() -> None:
    """Budgets count retries at their true size: a long wrong answer is part of the next prompt."""
    lane = begun()
    first = take(lane)
    set_aside = lane.till.purse.reserved("run/r")
    wrong = Answer("b" * 20_000, "stop", b"{}")
    failure = Failure("invalid_output", "not a choice", may_be_billed=True)
    lane.outcome(Outcome("i", 0, 1, NOW, 1.0, wrong, failure, Usage(10, output=5_000)), NOW)
    second = take(lane)
    assert len(second.body_json) == len(first.body_json) + 20_000
    assert second.max_input_tokens == first.max_input_tokens + 20_000
    assert second.est_input_tokens > first.est_input_tokens
    assert lane.till.purse.reserved("run/r") == set_aside + 20_000 * 1000


def test_an_answer_that_its_host_kept_back_is_asked_for_once_more() -> None:
    """There is nothing to show: the request goes as it was. The second time ends the item."""
    lane = begun()
    first = take(lane)
    slip = Failure("invalid_output", "the JSON is broken", 400, may_be_billed=True)
    lane.outcome(Outcome("i", 0, 1, NOW, 1.0, None, slip), NOW)
    second = take(lane)
    assert second.body_json == first.body_json
    lane.outcome(Outcome("i", 0, 2, NOW, 1.0, None, slip), NOW)
    batch = lane.commit(NOW)
    assert batch is not None
    assert [letter.reason for letter in batch.dead_letters] == ["invalid_output"]


def take(lane: Lane) -> Call:
    """The one call; its lease is opened where it waits for one."""
    found = lane.take("api:a", 1, 10**9, "w", NOW)
    if not found:
        for number, wish in enumerate(lane.wishes()):
            lane.leased(wish.key, {f"{len(lane.till.purse.spent())}-{number}": 10**11}, NOW)
        found = lane.take("api:a", 1, 10**9, "w", NOW)
    return found[0]
