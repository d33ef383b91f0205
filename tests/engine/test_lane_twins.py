"""A replay may name one item twice, or in two generations: nothing is lost, nothing is mixed up."""

from penstock.engine.budget import Budgets
from penstock.engine.catalog import Account, Catalog, Model, Price, Version
from penstock.engine.flow.lane import Lane
from penstock.engine.flow.lane_check import check
from penstock.engine.flow.lane_types import Hooks, LaneSettings
from penstock.engine.items import Answer, Attributes, Item, Outcome, Position, Request, Usage
from penstock.engine.plan import Split
from penstock.engine.policy import Policy, Task
from penstock.engine.router import Router


def lane() -> Lane:
    model = Model("m", (Version("v1", "m"),), "v1", account="a", price=Price(input=10**9, output=10**9))
    catalog = Catalog({"a": Account("a", "openai", "http://localhost")}, {"m": model}, {2: ("m",)})
    policy = Policy({"t": Task("t")}, default_task="t")
    hooks = Hooks(lambda: 0.5, lambda item, answer, task: (), lambda body, answer, message: body)
    made = Lane(LaneSettings(0, "r"), Router(catalog, policy), catalog, policy, hooks, Budgets((), "r"))
    made.begin([Split("s", "o", 0, 0, "u", 0, None)], {}, 0)
    return made


def test_a_letter_named_twice_is_answered_once() -> None:
    """The second is a dead letter that says so; the other generation is an item of its own."""
    machine = lane()
    for position, generation in enumerate([1, 1, 2]):
        item = Item("x", Position("s", 0, position), Attributes(), Request(b"{}"), b"o", 0.0, generation=generation)
        machine.offer(item, 0.0)
        check(machine)
    machine.split_ended(0)
    machine.commit(0.0)
    machine.committed(0.0)
    for call in machine.take("api:a", 9, 1 << 30, "w", 0.0):
        answer = Answer("yes", "stop", b"{}")
        outcome = Outcome("x", call.generation, call.attempt, 0.0, 1.0, answer, None, Usage(1, output=1))
        machine.outcome(outcome, 0.0)
    check(machine)
    assert machine.finished_all
    batch = machine.commit(0.0)
    assert [(r.item.generation, r.item.source.position) for r in batch.results] == [(1, 0), (2, 2)]
    assert machine.tally.dead_letters == {"duplicate": 1}
