"""An item goes where its wall, its needs, its quality and its purse allow, and the route says why."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from penstock.engine.catalog import Account, Catalog, Model, Price, Version, Wall
from penstock.engine.errors import SpecError
from penstock.engine.items import Attributes, Candidate, Exposure, Item, Position, Request, Route
from penstock.engine.measure.guards import Guard
from penstock.engine.measure.sample import Sample
from penstock.engine.policy import Condition, Explore, Policy, Rule, Task
from penstock.engine.registry.choice import EXPLORE
from penstock.engine.registry.standing import Standing
from penstock.engine.router import Rejection, Router
from penstock.engine.steering import document
from penstock.engine.steering.document import Steering
from penstock.engine.steering.rollout import begin
from penstock.engine.steering.turn import Turn

ASK = Request(b'{"messages":[{"role":"user","content":"hello"}]}')
DEAR, CHEAP, OWN = Price(5_000_000_000, 25_000_000_000), Price(100_000_000, 400_000_000), Price(1_000_000, 1_000_000)


def model(name: str, **fields: object) -> Model:
    where = {} if "worker" in fields else {"account": "us"}
    fields = {"versions": (Version("v1", name),), "live": "v1", **where, "price": CHEAP, **fields}
    return Model(name, **fields)  # type: ignore[arg-type]


MODELS = (
    model("opus", price=DEAR, origin="us", quality={"label": 0.95}, context=200_000),
    model("fast", latency="realtime", origin="us", lacks=("images",), quality={"label": 0.85}, context=8_000),
    model("small", worker="vllm", price=OWN, regions=("eu",), origin="us", quality={"label": 0.8}, context=1_024),
    model("odd", origin="cn", price=None),
)
WALLS = {"public": Wall("public"), "eu": Wall("eu", regions=("eu",)), "cn": Wall("cn", regions=("cn",))}


def catalog(**changes: object) -> Catalog:
    fields: dict[str, object] = {
        "accounts": {"us": Account("us", "openai", "http://x", regions=("us",))},
        "models": {m.name: m for m in MODELS},
        "tiers": {1: ("opus",), 2: ("fast", "small"), 3: ("small", "fast", "opus")},
    }
    return Catalog(**{**fields, **changes})  # type: ignore[arg-type]


def policy(*rules: Rule, **task: object) -> Policy:
    return Policy({"label": Task("label", **task)}, rules=rules)  # type: ignore[arg-type]


def names(route: Route | Rejection) -> list[str]:
    assert isinstance(route, Route), route
    return [c.model for c in route.candidates]


def rejected(route: Route | Rejection) -> Rejection:
    assert isinstance(route, Rejection), route
    return route


def test_a_tier_is_a_list_in_order_of_preference() -> None:
    """Nobody says anything: tier 3, its models in order; the route says so."""
    route = Router(catalog(), policy()).route(Attributes(), ASK)
    assert names(route) == ["small", "fast", "opus"]
    assert isinstance(route, Route)
    assert (route.tier, route.task, route.reason) == (3, "label", "tier 3")
    assert [c.pool for c in route.candidates] == ["vllm:small@v1", "api:us", "api:us"]


def test_the_rule_then_the_item_then_the_task_names_the_tier() -> None:
    """First match decides; what it leaves open the item, then the task, then 3 decides."""
    rule = Rule(Condition("tenant", "eq", "acme"), tier=1)
    router = Router(catalog(), policy(rule, tier=2))
    assert router.route(Attributes(), ASK).tier == 2  # type: ignore[union-attr]
    assert names(router.route(Attributes(tier=3), ASK))[0] == "small"
    assert names(router.route(Attributes(tier=3, tenant="acme"), ASK)) == ["opus"]


def test_a_task_names_its_models_and_a_rule_names_others() -> None:
    """task.models stands before the tier; rule.use stands before both; the reason names the rule."""
    rule = Rule(Condition("latency", "eq", "realtime"), use=("fast", "opus"))
    router = Router(catalog(), policy(rule, models=("opus", "small")))
    assert names(router.route(Attributes(tier=2), ASK)) == ["opus", "small"]
    route = router.route(Attributes(latency="realtime"), ASK)
    assert names(route) == ["fast"]
    assert isinstance(route, Route)
    assert "rule 1" in route.reason
    assert [(r.model, r.reason) for r in route.refused] == [("opus", "not realtime")]


def test_a_pin_is_still_behind_the_wall() -> None:
    """A pinned model that the wall forbids ends in a dead letter; nothing else is tried in its place."""
    router = Router(catalog(walls=WALLS), policy())
    pinned = Request(ASK.body_json, model="opus")
    assert names(router.route(Attributes(sensitivity="public"), pinned)) == ["opus"]
    no = rejected(router.route(Attributes(sensitivity="eu"), pinned))
    assert no.reason == "wall"
    assert [(r.model, r.reason) for r in no.refused] == [("opus", "region us not in eu")]
    assert no.route.wall == "eu"


def test_an_unknown_pin_says_which_models_exist() -> None:
    """The dead letter of an unknown model lists the names there are."""
    no = rejected(Router(catalog(), policy()).route(Attributes(), Request(b"{}", model="gpt-9")))
    assert no.reason == "unknown_model"
    assert "auto, fast, odd, opus, small" in no.message


def test_the_wall_comes_first_and_names_whom_it_refused() -> None:
    """Only what the wall permits is left, and the others stand in the record with the reason."""
    router = Router(catalog(walls=WALLS), policy())
    route = router.route(Attributes(sensitivity="eu"), ASK)
    assert names(route) == ["small"]
    assert isinstance(route, Route)
    assert {r.model: r.reason for r in route.refused} == {"fast": "region us not in eu", "opus": "region us not in eu"}
    assert rejected(router.route(Attributes(sensitivity="cn"), ASK)).reason == "wall"
    assert rejected(router.route(Attributes(), ASK)).reason == "unknown_sensitivity"
    assert rejected(router.route(Attributes(sensitivity="secret"), ASK)).reason == "unknown_sensitivity"


def test_refusals_of_the_wall_are_counted_apart() -> None:
    """What operators watch as wall refusals must not hold those for poor quality."""
    router = Router(catalog(walls=WALLS), policy(min_quality=0.9))
    route = router.route(Attributes(sensitivity="public"), ASK)
    assert isinstance(route, Route)
    assert (len(route.refused), route.walled) == (2, 0)
    none = rejected(router.route(Attributes(sensitivity="cn"), ASK))
    assert (len(none.refused), none.route.walled) == (3, 3)
    some = rejected(router.route(Attributes(sensitivity="eu"), ASK))
    assert (len(some.refused), some.route.walled) == (3, 2)


def test_needs_are_met_or_the_item_is_unsupported() -> None:
    """Targets that lack what the request needs are refused with its name."""
    router = Router(catalog(), policy())
    route = router.route(Attributes(tier=3), Request(b"{}", needs=("images",), images=1))
    assert [r.reason for r in route.refused] == ["lacks images"]
    assert rejected(router.route(Attributes(), Request(b"{}", model="fast", needs=("images",)))).reason == "unsupported"


def test_a_realtime_item_takes_realtime_models_unless_there_are_none() -> None:
    """With none left, the order of preference holds and the route says so."""
    router = Router(catalog(), policy())
    assert names(router.route(Attributes(latency="realtime", tier=3), ASK)) == ["fast"]
    route = router.route(Attributes(latency="realtime", tier=1), ASK)
    assert names(route) == ["opus"]
    assert isinstance(route, Route)
    assert "no realtime model" in route.reason


def test_with_min_quality_the_cheapest_that_meets_it_comes_first() -> None:
    """Order of cost, not of preference; unknown quality doesn't meet it; measured goes before declared."""
    router = Router(catalog(tiers={3: ("opus", "fast", "small", "odd")}), policy(min_quality=0.8))
    route = router.route(Attributes(), ASK)
    assert names(route) == ["small", "fast", "opus"]
    assert isinstance(route, Route)
    assert route.candidates[0].reason == "quality 0.8 declared"
    assert [(r.model, r.reason) for r in route.refused] == [("odd", "quality for label unknown")]
    poor = Standing("label", "small", "v1", (Sample(((0, 200), (1000, 200))),))
    router.learn([poor])
    assert names(router.route(Attributes(), ASK)) == ["fast", "opus"]
    assert rejected(router.route(Attributes(min_quality=0.99), ASK)).reason == "no_candidate"
    assert rejected(router.route(Attributes(min_quality=float("nan")), ASK)).reason == "no_candidate"


def test_a_prompt_that_surely_fits_nowhere_is_too_long() -> None:
    """Sure ones are refused by name; those that may not fit come last, so that a free 400 costs nothing."""
    router = Router(catalog(), policy())
    assert names(router.route(Attributes(tier=2), Request(b"x" * 5_000))) == ["fast", "small"]
    route = router.route(Attributes(tier=3), Request(b"x" * 20_000))
    assert names(route) == ["fast", "opus"]
    assert [(r.model, r.reason) for r in route.refused] == [("small", "longer than its context of 1024")]
    assert rejected(router.route(Attributes(tier=2), Request(b"x" * 1_000_000))).reason == "too_long"


def test_a_long_answer_counts_as_length_too() -> None:
    """max_tokens and prompt share the context: the one that holds both comes first."""
    router = Router(catalog(), policy())
    assert names(router.route(Attributes(tier=3), Request(b"{}", max_tokens=2_000)))[0] == "fast"
    assert names(router.route(Attributes(tier=3), Request(b"{}", max_tokens=10)))[0] == "small"


def test_who_would_cost_too_much_is_refused() -> None:
    """Expected cost, output at its ceiling; an unknown price is no promise; all refused is `over_max_cost`."""
    router = Router(catalog(tiers={3: ("opus", "odd", "small")}), policy(max_tokens=100))
    route = router.route(Attributes(max_cost_usd=0.001), ASK)
    assert names(route) == ["small"]
    assert {r.model: r.reason for r in route.refused} == {"opus": "over max_cost_usd", "odd": "price unknown"}
    assert rejected(router.route(Attributes(max_cost_usd=0.0), ASK)).reason == "over_max_cost"
    assert rejected(router.route(Attributes(max_cost_usd=float("nan")), ASK)).reason == "over_max_cost"
    assert len(names(router.route(Attributes(max_cost_usd=float("inf")), ASK))) == 3


def test_tasks_must_be_known() -> None:
    """No task among several, and a task that doesn't exist, are dead letters that list the tasks."""
    several = Policy({"a": Task("a"), "b": Task("b")})
    router = Router(catalog(), several)
    assert "tasks: a, b" in rejected(router.route(Attributes(), ASK)).message
    assert rejected(router.route(Attributes(task="c"), ASK)).reason == "unknown_task"
    assert names(router.route(Attributes(task="a"), ASK))
    assert names(Router(catalog(), Policy({"a": Task("a"), "b": Task("b")}, "b")).route(Attributes(), ASK))


def test_a_tier_without_models_is_no_candidate() -> None:
    """An item that asks for a tier that the company doesn't have is told so."""
    assert rejected(Router(catalog(), policy()).route(Attributes(tier=9), ASK)).reason == "no_candidate"


def test_names_that_do_not_exist_are_a_spec_error() -> None:
    """Tiers, tasks and rules name models of the catalogue, or the job doesn't start."""
    for bad in (policy(models=("opsu",)), policy(Rule(Condition(), use=("opsu",)))):
        with pytest.raises(SpecError, match="opsu"):
            Router(catalog(), bad)
    with pytest.raises(SpecError, match="tier 1"):
        Router(catalog(tiers={1: ("opsu",)}), policy())


def test_a_new_rate_changes_the_order_of_cost() -> None:
    """The running rate of an own model is compared at once."""
    router = Router(catalog(), policy(min_quality=0.8))
    assert names(router.route(Attributes(), ASK))[0] == "small"
    router.reprice("small", DEAR)
    assert names(router.route(Attributes(), ASK))[0] == "fast"


OPTIONAL = st.none()
ATTRIBUTES = st.builds(
    Attributes,
    tier=st.none() | st.integers(0, 4),
    sensitivity=st.none() | st.sampled_from(["public", "eu", "cn", "x"]),
    latency=st.none() | st.sampled_from(["realtime", "batch"]),
    min_quality=st.none() | st.floats(0, 1),
    max_cost_usd=st.none() | st.floats(),
)
REQUESTS = st.builds(
    Request,
    body_json=st.integers(0, 9_000).map(lambda n: b"x" * n),
    model=st.none() | st.sampled_from(["opus", "fast", "small", "odd", "nope"]),
    max_tokens=st.none() | st.integers(1, 4_000),
    needs=st.sampled_from([(), ("images",), ("tools",)]),
)
SHARED = Router(catalog(walls=WALLS), policy())


@given(ATTRIBUTES, REQUESTS)
def test_no_mix_of_labels_passes_a_wall_or_loses_a_target(attributes: Attributes, request: Request) -> None:
    """Every candidate is permitted, every target is either a candidate or refused with a reason, none is both; a
    router that decided other items before decides as a fresh one."""
    decided = SHARED.route(attributes, request)
    assert decided == Router(catalog(walls=WALLS), policy()).route(attributes, request)
    route = decided.route if isinstance(decided, Rejection) else decided
    taken = [c.model for c in route.candidates]
    assert bool(taken) == isinstance(decided, Route)
    if route.wall == "eu":
        assert set(taken) <= {"small"}
    assert attributes.sensitivity in WALLS or not taken
    assert not set(taken) & {r.model for r in route.refused}
    assert all(r.reason for r in route.refused)


# ---- versions that are steered


SMALL = model("small", worker="vllm", versions=(Version("v1", "a"), Version("v2", "b")), regions=("eu",))


ITEM = Item("x", Position("s", 0, 0), Attributes(), ASK, b"", 0.0)


def rolling(share: float) -> Turn:
    at = begin("small", ("v1", "v2"), (share,), (Guard(name="quality"),), by="ann", now=1.0)
    return Turn({"small": SMALL}, document.started(Steering(), at))


def steered(turn: Turn) -> Router:
    router = Router(catalog(models={**{m.name: m for m in MODELS}, "small": SMALL}), policy())
    router.steer(turn)
    return router


def first(route: Route | Rejection) -> Candidate:
    assert isinstance(route, Route)
    return route.candidates[0]


def test_a_rollout_splits_items_by_unit_and_says_so() -> None:
    router = steered(rolling(0.5))
    found = {first(router.route(Attributes(), ASK, f"item {i}")) for i in range(100)}
    assert {(c.version, c.pool, c.arm, c.propensity) for c in found} == {
        ("v1", "vllm:small@v1", "baseline-1", 0.5),
        ("v2", "vllm:small@v2", "candidate-1", 0.5),
    }
    assert len({c.experiment for c in found}) == 1
    others = {c for i in range(100) for c in router.route(Attributes(), ASK, f"item {i}").candidates[1:]}  # type: ignore[union-attr]
    assert {(c.model, c.version, c.experiment) for c in others} == {("fast", "v1", ""), ("opus", "v1", "")}


def test_what_was_routed_before_is_turned_to_the_versions_of_now_and_else_left_alone() -> None:
    router = steered(Turn({"small": SMALL}))
    before = router.route(Attributes(), ASK, "x")
    assert isinstance(before, Route)
    router.steer(Turn({"small": SMALL}, Steering(live={"small": "v2"})))
    after = router.turned(before, ITEM)
    assert first(after).version == "v2"
    assert after.candidates[1:] == before.candidates[1:]
    assert after == router.route(Attributes(), ASK, "x")
    assert router.turned(after, ITEM) is after


def test_an_arm_of_an_experiment_puts_its_model_first_at_its_version_and_is_named_in_each_candidate() -> None:
    router = steered(rolling(0.5))
    arm = Exposure("job/try", "dear", 0.25, model="opus", version=("small", "v2"))
    for name in ("x", "y", "z"):
        route = router.route(Attributes(), ASK, name, arm)
        assert names(route) == ["opus", "small", "fast"]
        found = {(c.model, c.version, c.experiment, c.arm, c.propensity) for c in route.candidates}  # type: ignore[union-attr]
        assert {f[2:] for f in found} == {("job/try", "dear", 0.25)}
        assert ("small", "v2") in {f[:2] for f in found}
    behind = Router(catalog(walls=WALLS, models={**{m.name: m for m in MODELS}, "small": SMALL}), policy())
    assert names(behind.route(Attributes(sensitivity="eu"), ASK, "x", arm)) == ["small"]  # no arm passes a wall


def test_an_arms_model_goes_first_also_where_the_cheapest_of_the_good_ones_would() -> None:
    """Else all arms would ask the same model, and an experiment compare it with itself. What is not good enough for the
    item is not asked for the arm's sake."""
    router = Router(catalog(tiers={3: ("opus", "fast", "small")}), policy(min_quality=0.8))
    for name, others in (("opus", ["small", "fast"]), ("fast", ["small", "opus"]), ("small", ["fast", "opus"])):
        arm = Exposure("job/try", name, 0.5, model=name)
        assert names(router.route(Attributes(), ASK, "x", arm)) == [name, *others]
        assert names(router.route(Attributes(min_quality=0.9), ASK, "x", arm)) == ["opus"]
    bare = {m.name: replace(m, quality={}) for m in MODELS}
    ranked = Router(catalog(tiers={3: ("opus", "fast")}, models=bare), policy(min_quality=0.8))
    ranked.learn([Standing("label", m, "v1", (Sample(((0, 9), (1000, n))),)) for m, n in (("opus", 90), ("fast", 60))])
    assert names(ranked.route(Attributes(), ASK, "x")) == ["opus", "fast"]
    assert names(ranked.route(Attributes(), ASK, "x", Exposure("job/try", "b", 0.5, model="fast"))) == ["fast", "opus"]


def test_an_experiment_that_was_stopped_leaves_a_rollout_its_items() -> None:
    """Else no guard would see any of them, and a broken version would be promoted or stay for ever."""
    router = steered(rolling(0.5))
    over = Exposure()
    found = {first(router.route(Attributes(), ASK, f"item {i}", over)) for i in range(100)}
    assert {(c.version, c.arm, c.propensity) for c in found} == {("v1", "baseline-1", 0.5), ("v2", "candidate-1", 0.5)}
    assert all(c.experiment.startswith("small-v2-") for c in found)
    named = Exposure(version=("small", "v1"))  # its first arm says so, and no rollout did
    found = {first(router.route(Attributes(), ASK, f"item {i}", named)) for i in range(100)}
    assert {(c.version, c.experiment, c.arm, c.propensity) for c in found} == {("v1", "", "", 1.0)}


def test_what_explores_is_turned_to_the_versions_of_now_as_well_and_still_told_as_exploring() -> None:
    """A version that was taken back is not tried out of curiosity: also not by items that were read before."""
    task = Task("t", models=("small", "opus"), min_quality=0.8, explore=Explore(1.0, 1.0))
    router = Router(
        catalog(models={**{m.name: m for m in MODELS}, "small": SMALL}), Policy({"t": task}, default_task="t")
    )
    router.learn([Standing("t", "opus", "v1", (Sample(((0, 20), (1000, 980))),))])
    router.steer(Turn({"small": SMALL}, Steering(live={"small": "v2"})))
    before = router.route(Attributes(), ASK, "x")
    assert isinstance(before, Route)
    assert (first(before).version, first(before).experiment) == ("v2", EXPLORE)
    assert router.turned(before, ITEM) is before
    router.steer(Turn({"small": SMALL}, Steering(live={"small": "v1"})))
    after = first(router.turned(before, ITEM))
    assert (after.model, after.version, after.pool) == ("small", "v1", "vllm:small@v1")
    assert (after.experiment, after.arm, after.propensity) == (EXPLORE, "small", 1.0)


def test_what_is_remembered_of_chosen_models_is_bounded_where_each_item_asks_for_a_quality_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("penstock.engine.router.MAX_PLANS", 8)
    router = Router(catalog(), policy())
    router.learn([Standing("t", name, "v1", (Sample(((1000, 2000),)),)) for name in ("fast", "opus", "small")])
    for n in range(40):
        router.route(Attributes(min_quality=0.5 + n / 1000), ASK)
    assert len(router._chosen) <= 8  # pyright: ignore[reportPrivateUsage]
