"""An answer whose host does not say what it used is not free."""

from __future__ import annotations

from penstock.engine.budget import Budgets
from penstock.engine.catalog import Account, Catalog, Model, Price, Version
from penstock.engine.flow.lane import Lane
from penstock.engine.flow.lane_types import Hooks, LaneSettings
from penstock.engine.items import Answer, Attributes, Item, Outcome, Position, Request, Usage
from penstock.engine.plan import Split
from penstock.engine.policy import Policy, Task
from penstock.engine.router import Router

CATALOG = Catalog(
    {"a": Account("a", "openai", "http://localhost")},
    {"m": Model("m", (Version("v1", "m"),), "v1", account="a", price=Price(input=10**9, output=10**9))},
    {3: ("m",)},
)
POLICY = Policy({"t": Task("t", max_tokens=100)}, default_task="t")
NOW = 1_000_000.0


def test_an_answer_without_usage_is_booked_at_its_worst() -> None:
    """Else a hard budget would let any number of such calls pass, and the bill would say nothing."""
    hooks = Hooks(lambda: 0.0, lambda _i, _a, _t: (), lambda body, _a, _m: body)
    lane = Lane(LaneSettings(0, "r"), Router(CATALOG, POLICY), CATALOG, POLICY, hooks, Budgets((), "r"))
    lane.begin([Split("s", "o", 0, 0, "u", 0, 100)], {}, 0)
    for number in range(2):
        item = Item(f"i{number}", Position("s", 0, number), Attributes(), Request(b"{}"), b"o", NOW)
        lane.offer(item, NOW)
    lane.commit(NOW)
    lane.committed(NOW)
    first, _ = lane.take("api:a", 2, 10**9, "w", NOW)
    answer = Answer("yes", "stop", b"{}")
    lane.outcome(Outcome("i0", 0, 1, NOW, 1.0, answer), NOW)
    lane.outcome(Outcome("i1", 0, 1, NOW, 1.0, answer, usage=Usage(10, output=5)), NOW)
    batch = lane.commit(NOW)
    unsaid, said = batch.results
    assert unsaid.cost_basis == "estimated"
    assert unsaid.cost_nano == (first.max_input_tokens + 100) * 1000
    assert (said.cost_basis, said.cost_nano) == ("metered", 15_000)
    assert [line.cost_nano for line, _ in batch.costs] == [unsaid.cost_nano, 15_000]
    assert [line.basis for line, _ in batch.costs] == ["estimated", "metered"]
