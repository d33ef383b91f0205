"""Versions of one model may cost different money: each call is set aside, charged, ordered and measured at the price of
the version that it asks."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.budget import Budgets
from penstock.engine.catalog import Account, Catalog, Model, Price, PriceAbove, Version
from penstock.engine.flow.calls import Calls
from penstock.engine.flow.cells import Cell
from penstock.engine.flow.ends import Costs
from penstock.engine.flow.lane_types import Hooks
from penstock.engine.flow.slots import Slot
from penstock.engine.flow.tally import Tally
from penstock.engine.flow.till import Till
from penstock.engine.items import (
    Answer,
    Attributes,
    Candidate,
    Exposure,
    Item,
    Outcome,
    Position,
    Request,
    Route,
    Usage,
)
from penstock.engine.measure.sample import Sample
from penstock.engine.policy import Policy, Scorer, Task
from penstock.engine.pricing import cost_nano, worst_case_nano
from penstock.engine.registry.document import Measured, Numbered, Sums, fold
from penstock.engine.registry.standing import Standing
from penstock.engine.registry.standings import standings
from penstock.engine.results import Result
from penstock.engine.router import Rejection, Router
from penstock.engine.steering.document import Steering
from penstock.engine.steering.turn import Turn
from tests.engine.one_lane import OneLane

USD = 10**9
CHEAP, DEAR = Price(USD, USD, version="of mini"), Price(20 * USD, 20 * USD, version="of big")
POLICY = Policy({"t": Task("t", tier=1, max_tokens=100)}, default_task="t")
HOOKS = Hooks(lambda: 0.5, lambda item, answer, task: (), lambda body, answer, message: body)


def gpt(mini: Price | None = CHEAP, big: Price | None = DEAR, **more: object) -> Model:
    versions = (Version("mini", "gpt-4o-mini", price=mini), Version("big", "gpt-4o", price=big))
    return Model("gpt", versions, "mini", **{"account": "a", **more})  # type: ignore[arg-type]


def catalog(*models: Model) -> Catalog:
    named = {each.name: each for each in models or (gpt(),)}
    return Catalog({"a": Account("a", "openai", "http://localhost")}, named, {1: tuple(named)})


def item(name: str = "i", **attributes: object) -> Item:
    request = Request(b'{"messages":[{"role":"user","content":"hello"}]}')
    return Item(name, Position("s", 0, int(name[1:] or 0)), Attributes(**attributes), request, b"o", 0.0)  # type: ignore[arg-type]


RATE, MAYBE = st.integers(0, 10**11), st.none() | st.integers(0, 10**11)
ABOVE = st.builds(PriceAbove, st.integers(0, 1_000), RATE, RATE, MAYBE, MAYBE, MAYBE)
PRICES = st.builds(
    Price,
    input=RATE,
    output=RATE,
    cached=MAYBE,
    cache_write=MAYBE,
    cache_write_1h=MAYBE,
    per_request=st.integers(0, USD),
    above=st.lists(ABOVE, max_size=2, unique_by=lambda a: a.start).map(
        lambda a: tuple(sorted(a, key=lambda each: each.start))
    ),
)


@given(mini=PRICES, big=PRICES, version=st.sampled_from(["mini", "big"]), data=st.data())
def test_no_call_costs_more_than_was_set_aside_for_it_whatever_its_version(
    mini: Price, big: Price, version: str, data: st.DataObject
) -> None:
    """And it is charged what its own version costs, to the nano-dollar, under that price's name."""
    calls = Calls(catalog(gpt(mini, big)), POLICY, HOOKS)
    slot = Slot(item(), Route("t", 1, (Candidate("gpt", version, "api:a"),), (), ""), 1)
    calls.measure(slot)
    worst = calls.worst_nano(slot)
    asked = {"mini": mini, "big": big}[version]
    assert worst == worst_case_nano(slot.max_input, slot.max_output, asked)
    cached, written = data.draw(st.integers(0, slot.max_input // 2)), data.draw(st.integers(0, slot.max_input // 2))
    usage = Usage(
        data.draw(st.integers(cached + written, slot.max_input)),
        cached=cached,
        cache_write=written,
        output=data.draw(st.integers(0, slot.max_output)),
    )
    tally, costs = Tally(), Costs()
    outcome = Outcome("i", 0, 0, 0.0, 1.0, Answer("yes", "stop", b"{}"), None, usage)
    calls.settle(slot, outcome, tally, costs, Till(Budgets((), "r")))
    assert slot.cost_nano == tally.cost_nano == cost_nano(usage, asked)
    assert slot.cost_nano <= worst
    if costs:
        ((line, _),) = costs
        assert (line.model_version, line.cost_nano, line.price_version) == (version, slot.cost_nano, asked.version)


def results(lane: OneLane, *items: Item, turn: Turn | None = None) -> list[Result]:
    """Each answered with 1,000 tokens in and 1,000 out."""
    if turn is not None:
        lane.lane.steer(turn, lane.now)
    for each in items:
        lane.lane.offer(each, lane.now)
    lane.commit()
    for call in lane.lane.take("api:a", 99, 1 << 30, "w", lane.now):
        answer, usage = Answer("yes", "stop", b"{}"), Usage(1_000, output=1_000)
        lane.lane.outcome(Outcome(call.item_id, 0, call.attempt, lane.now, 1.0, answer, None, usage), lane.now)
    return list(lane.commit().results)


def test_an_experiments_arm_is_charged_and_measured_at_the_price_of_its_version() -> None:
    """What cost guards compare are these cells."""
    lane = OneLane(catalog(), POLICY, HOOKS)
    arms = {
        "i0": Exposure("x", "a", 0.5, version=("gpt", "mini")),
        "i1": Exposure("x", "b", 0.5, version=("gpt", "big")),
    }
    items = [msgspec.structs.replace(item(name), exposure=exposure) for name, exposure in arms.items()]
    found = {r.model_version: (r.cost_nano, r.price_version) for r in results(lane, *items)}
    assert found == {"mini": (2_000_000, "of mini"), "big": (40_000_000, "of big")}
    cells = {cell.arm: (cell.version, cell.price, cell.cost_nano) for cell in lane.lane.cells.rows}
    assert cells == {"a": ("mini", "of mini", 2_000_000), "b": ("big", "of big", 40_000_000)}


def test_a_promoted_version_is_charged_at_its_price_and_so_is_what_tier_1_would_have_cost() -> None:
    """Once it is the one in use, all-Tier-1 means this one."""
    lane = OneLane(catalog(), POLICY, HOOKS)
    (before,) = results(lane, item("i0"))
    assert (before.cost_nano, lane.lane.tally.tier1_cost_nano) == (2_000_000, 2_000_000)
    (after,) = results(lane, item("i1"), turn=Turn(lane.lane.catalog.models, Steering(live={"gpt": "big"})))
    assert (after.model_version, after.cost_nano, after.price_version) == ("big", 40_000_000, "of big")
    assert lane.lane.tally.tier1_cost_nano == 42_000_000


def test_an_own_engines_running_rate_holds_for_all_its_versions() -> None:
    """They share its hours."""
    lane = OneLane(catalog(gpt(None, None, account=None, worker="vllm", hour_usd=1.0)), POLICY, HOOKS)
    lane.lane.reprice("gpt", DEAR)
    lane.lane.steer(Turn(lane.lane.catalog.models, Steering(live={"gpt": "big"})), lane.now)
    lane.lane.offer(item("i0"), lane.now)
    lane.commit()
    (call,) = lane.lane.take("vllm:gpt@big", 9, 1 << 30, "w", lane.now)
    answer = Outcome(
        call.item_id, 0, call.attempt, 0.0, 1.0, Answer("y", "stop", b"{}"), None, Usage(1_000, output=1_000)
    )
    lane.lane.outcome(answer, lane.now)
    assert lane.commit().results[0].cost_nano == 40_000_000


def known(model: str, version: str) -> Standing:
    return Standing("t", model, version, (Sample(((0, 20), (1000, 980))),))


@pytest.mark.parametrize(("live", "first"), [("mini", "gpt"), ("big", "other")])
def test_the_cheapest_is_found_by_the_versions_that_would_be_asked(live: str, first: str) -> None:
    """`mini` costs less than `other`, `big` more."""
    other = Model("other", (Version("v1", "o"),), "v1", account="a", price=Price(5 * USD, 5 * USD))
    made = catalog(gpt(), other)
    router = Router(made, Policy({"t": Task("t", tier=1, min_quality=0.8)}, default_task="t"))
    router.learn([known("gpt", "mini"), known("gpt", "big"), known("other", "v1")])
    router.steer(Turn(made.models, Steering(live={"gpt": live})))
    route = router.route(Attributes(), Request(b"{}"))
    assert isinstance(route, Route)
    assert (route.candidates[0].model, {c.version for c in route.candidates}) == (first, {live, "v1"})


def test_a_limit_of_cost_is_held_against_the_version_that_would_be_asked() -> None:
    """100 tokens out: $0.0001 at mini, $0.002 at big."""
    router = Router(catalog(), POLICY)
    asked = item(max_cost_usd=0.001)
    assert isinstance(router.route(asked.attributes, asked.request), Route)
    router.steer(Turn(catalog().models, Steering(live={"gpt": "big"})))
    refused = router.route(asked.attributes, asked.request)
    assert isinstance(refused, Rejection)
    assert refused.reason == "over_max_cost"


def test_what_was_measured_of_a_version_costs_its_price_of_today() -> None:
    """1,000 tokens in and 1,000 out, an item."""
    cells = [
        Cell("t", "gpt", version, items=10, results=10, calls=10, input=10_000, output=10_000, cost_nano=1_000)
        for version in ("mini", "big")
    ]
    task = Policy({"t": Task("t", scorers=(Scorer("exact"),))}, default_task="t")
    shared = Measured()
    fold(shared, "r", Sums(states=(Numbered(0), Numbered(1, cells))), 0.0)
    found = {each.version: each.cost.mean for each in standings(shared, catalog(), task)}
    assert found == {"mini": pytest.approx(2_000_000), "big": pytest.approx(40_000_000)}
