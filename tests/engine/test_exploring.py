"""Exploring: paid, bounded, told, and never at the expense of an item."""

from __future__ import annotations

import pytest

from penstock.engine.budget import EXPLORING, Budget, Budgets
from penstock.engine.catalog import Account, Catalog, Model, Price, Version
from penstock.engine.flow.cells import Cell
from penstock.engine.flow.lane import Lane
from penstock.engine.flow.lane_check import check
from penstock.engine.flow.lane_types import Hooks, LaneSettings
from penstock.engine.items import Answer, Attributes, Failure, Item, Outcome, Position, Request, Usage
from penstock.engine.measure.sample import Sample
from penstock.engine.plan import Split
from penstock.engine.policy import Explore, Policy, Scorer, Task
from penstock.engine.registry.choice import EXPLORE
from penstock.engine.registry.standing import Known, Standing
from penstock.engine.results import Result, Score
from penstock.engine.router import Router

COUNT = 40


def lane(limit_nano: int, share: float = 1.0) -> Lane:
    models = {
        name: Model(name, (Version("v1", name),), "v1", account="a", price=Price(dollars * 10**9, dollars * 10**9))
        for name, dollars in (("new", 1), ("main", 5))
    }
    catalog = Catalog({"a": Account("a", "openai", "http://localhost")}, models, {1: ("new", "main")})
    task = Task(
        "t", 1, min_quality=0.8, max_tokens=100, scorers=(Scorer("exact"),), explore=Explore(share, limit_nano / 1e9)
    )
    policy = Policy({"t": task}, default_task="t")
    router = Router(catalog, policy)
    router.learn([Standing("t", "main", "v1", (Sample(((0, 20), (1000, 980))),))])
    hooks = Hooks(lambda: 0.5, lambda _i, _a, _t: (Score("exact", "1", 1.0, True),), lambda body, _a, _m: body)
    budgets = (Budget(10**15), Budget(limit_nano, role="explore"))
    return Lane(LaneSettings(0, "r"), router, catalog, policy, hooks, Budgets(budgets, "r"))


def run(machine: Lane, limit_nano: int, *, fails: str = "") -> tuple[list[Result], int]:
    """All items, with a ledger that gives out what the budget of exploring holds. Returns what it leased as well."""
    machine.begin([Split("s", "o", 0, 0, "u", 0, COUNT)], {}, 0)
    for n in range(COUNT):
        request = Request(b'{"messages":[]}', input_hash=str(n))
        machine.offer(Item(f"i{n}", Position("s", 0, n), Attributes(), request, b"o", 0.0), 1.0)
    machine.split_ended(0)
    results, leased, now = list[Result](), 0, 1.0
    while not machine.finished_all:
        now += 1.0
        batch = machine.commit(now)
        machine.committed(now)
        results += batch.results
        machine.tick(now)
        for wish in machine.wishes():
            if not wish.key.endswith(EXPLORING):
                machine.leased(wish.key, {f"{wish.key}/{now}": sum(wish.calls)}, now)
            elif leased + wish.floor_nano <= limit_nano:
                leased += wish.floor_nano
                machine.leased(wish.key, {f"{wish.key}/{now}": wish.floor_nano}, now)
            else:
                machine.refused(wish, "nothing is left", now)
        for call in machine.take("api:a", 4, 1 << 40, "w", now):
            failure = Failure("invalid_response", "no", may_be_billed=True) if call.model == fails else None
            answer = None if failure else Answer("yes", "stop", b"{}")
            machine.outcome(
                Outcome(call.item_id, 0, call.attempt, now, 9.0, answer, failure, Usage(10, output=100)), now
            )
        check(machine)
        assert now < 1000
    return results + machine.commit(now).results, leased


def at(machine: Lane, experiment: str) -> list[Cell]:
    return [cell for cell in machine.cells.rows if cell.experiment == experiment]


def test_exploring_ends_with_its_own_money_and_every_item_has_its_result() -> None:
    """Nobody waits for money that does not come, and no item is refused for it: it goes where it would have gone."""
    limit = 1_500_000
    machine = lane(limit)
    results, leased = run(machine, limit)
    assert len(results) == COUNT
    tried = [result for result in results if result.experiment == EXPLORE]
    assert 0 < len(tried) < COUNT
    assert sum(result.cost_nano for result in tried) <= leased <= limit
    assert {result.model for result in results if result.experiment != EXPLORE} == {"main"}
    assert not machine.tally.dead_letters


def test_what_is_explored_is_always_scored_and_its_cells_are_told_apart() -> None:
    """The task samples nothing else: its evidence would take for ever."""
    machine = lane(10**12, share=0.5)
    results, _ = run(machine, 10**12)
    tried = [result for result in results if result.experiment == EXPLORE]
    assert 0 < len(tried) < COUNT
    assert all(result.sampled and result.scores and result.sample_probability == 1.0 for result in tried)
    assert all(result.arm == result.model == "new" for result in tried)
    assert not any(result.sampled for result in results if result.experiment != EXPLORE)
    assert [(cell.model, cell.arm, cell.results) for cell in at(machine, EXPLORE)] == [("new", "new", len(tried))]


def test_an_explored_model_that_fails_costs_no_item_its_result() -> None:
    machine = lane(10**12)
    results, _ = run(machine, 10**12, fails="new")
    assert len(results) == COUNT
    assert {result.model for result in results} == {"main"}
    assert 0 < sum(cell.items for cell in at(machine, EXPLORE)) < COUNT  # then its breaker opens


def test_what_is_not_sent_yet_goes_where_it_would_go_now() -> None:
    """A model turns out to be too poor: items that were read for it go elsewhere; what is out stays out."""
    machine = lane(10**12, share=0.0)
    machine.router.learn([standing("new", 950), standing("main", 980)])
    machine.begin([Split("s", "o", 0, 0, "u", 0, COUNT)], {}, 0)
    for n in range(COUNT):
        machine.offer(Item(f"i{n}", Position("s", 0, n), Attributes(), Request(b"{}", input_hash=str(n)), b"o", 0.0), 1)
    machine.commit(1.0)
    machine.committed(1.0)
    machine.leased("run/r", {"l": 10**14}, 1.0)
    while not (out := machine.take("api:a", 4, 1 << 40, "w", 1.0)):
        for wish in machine.wishes():
            machine.leased(wish.key, {f"{wish.key}/l": sum(wish.calls)}, 1.0)
    assert {call.model for call in out} == {"new"}
    machine.learn(Known((standing("new", 500), standing("main", 980))), 2.0)
    check(machine)
    machine.leased("run/r", {"m": 10**14}, 2.0)
    later = machine.take("api:a", COUNT, 1 << 40, "w", 2.0)
    assert (len(out) + len(later), {call.model for call in later}) == (COUNT, {"main"})
    assert {slot.model for slot in machine.slots.values() if slot.state == "flying" and slot.sent_at == 1.0} == {"new"}


def standing(name: str, good: int) -> Standing:
    return Standing("t", name, "v1", (Sample(((0, 1000 - good), (1000, good))),))


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_share_is_a_share_of_all_items(share: float) -> None:
    machine = lane(10**12, share=share)
    results, _ = run(machine, 10**12)
    tried = sum(result.experiment == EXPLORE for result in results)
    assert tried <= COUNT * share * 2
    assert (tried > 0) == (share > 0)
