"""What was measured decides where an item goes: by bounds that hold at any time, and never by samples of yesterday."""

from __future__ import annotations

import random

import msgspec
import pytest

from penstock.engine.catalog import Account, Catalog, Model, Price, Version, Wall
from penstock.engine.flow.cells import Cell, Scored
from penstock.engine.items import Attributes, Request, Route
from penstock.engine.measure.moments import Moments
from penstock.engine.measure.sample import Sample
from penstock.engine.policy import Explore, Policy, Prompt, Scorer, Task
from penstock.engine.registry.choice import EXPLORE, MARGIN
from penstock.engine.registry.document import Measured, Numbered, Sums, fold
from penstock.engine.registry.standing import Standing, changed_at, cost_per_accepted, read
from penstock.engine.registry.standings import scorer_of, standings
from penstock.engine.registry.windows import MOST, Window, grow
from penstock.engine.router import Rejection, Router
from penstock.jobs.look.page import compared

ASK = Request(b"{}")
EXACT = Scorer("exact")
NAME = scorer_of(Task("t", scorers=(EXACT,))) or ""


def share(good: int, n: int) -> Sample:
    return Sample(tuple((step, k) for step, k in ((0, n - good), (1000, good)) if k))


def model(name: str, dollars: float, quality: float | None = None, **more: object) -> Model:
    price = Price(round(dollars * 1e9), round(dollars * 1e9), version="now")
    declared = {} if quality is None else {"t": quality}
    return Model(name, (Version("v1", name),), "v1", account="a", price=price, quality=declared, **more)  # type: ignore[arg-type]


def catalog(*models: Model) -> Catalog:
    return Catalog(
        {"a": Account("a", "openai", "http://localhost")},
        {each.name: each for each in models},
        {1: tuple(each.name for each in models)},
        walls={"public": Wall("public"), "near": Wall("near", origin=("eu",))},
        unknown_wall="public",
    )


def router(*models: Model, **task: object) -> Router:
    fields: dict[str, object] = {"tier": 1, "min_quality": 0.8, "scorers": (EXACT,), **task}
    return Router(catalog(*models), Policy({"t": Task("t", **fields)}, default_task="t"))  # type: ignore[arg-type]


def known(name: str, good: int, n: int, items: int = 0, **more: object) -> Standing:
    fields: dict[str, object] = {"items": items, "results": items, **more}
    return Standing("t", name, "v1", (share(good, n),), **fields)  # type: ignore[arg-type]


def first(made: Router, item_id: str = "", **attributes: object) -> str:
    return names(made.route(Attributes(**attributes), ASK, item_id))[0]  # type: ignore[arg-type]


def names(route: Route | Rejection) -> list[str]:
    assert isinstance(route, Route), route
    return [candidate.model for candidate in route.candidates]


# ---- which model


def test_the_cheapest_whose_lower_bound_clears_goes_first_and_the_route_shows_the_numbers() -> None:
    """A mean above the bar is not enough: 50 samples of 0.86 leave room for 0.7."""
    made = router(model("cheap", 1), model("mid", 2), model("top", 10))
    made.learn([known("cheap", 43, 50), known("mid", 900, 1000), known("top", 990, 1000)])
    route = made.route(Attributes(), ASK)
    assert names(route) == ["mid", "top"]
    assert isinstance(route, Route)
    assert route.candidates[0].reason.startswith("quality 0.900 (0.866–0.928")
    assert "n = 1,000) measured" in route.candidates[0].reason
    assert route.refused[0].model == "cheap"
    assert "not shown to reach 0.8" in route.refused[0].reason
    assert route.reason.endswith(f"those with quality ≥ 0.8: mid, {route.candidates[0].reason}")


def test_where_nothing_is_measured_what_is_declared_decides_and_says_so() -> None:
    made = router(model("cheap", 1, 0.7), model("mid", 2, 0.85), model("odd", 0.5))
    route = made.route(Attributes(), ASK)
    assert names(route) == ["mid"]
    assert isinstance(route, Route)
    assert route.candidates[0].reason == "quality 0.85 declared"
    assert [(r.model, r.reason) for r in route.refused] == [
        ("cheap", "quality 0.7 declared, under 0.8"),
        ("odd", "quality for t unknown"),
    ]


def test_a_declaration_is_believed_until_enough_is_measured_to_show_it() -> None:
    """A few samples do not overthrow it, nor does it stand against many."""
    made = router(model("cheap", 1, 0.9), model("top", 10, 0.95))
    made.learn([known("cheap", 16, 20)])
    assert first(made) == "cheap"
    made.learn([known("cheap", 164, 200)])
    assert first(made) == "top"


def test_what_is_measured_to_be_too_poor_goes_nowhere_whatever_was_declared() -> None:
    made = router(model("cheap", 1, 0.99), model("top", 10, 0.95))
    made.learn([known("cheap", 100, 200)])
    route = made.route(Attributes(), ASK)
    assert names(route) == ["top"]
    assert isinstance(route, Route)
    assert "under 0.8" in route.refused[0].reason


def test_where_none_is_shown_to_be_good_enough_the_likeliest_goes_first() -> None:
    """An item is not refused because the evidence is thin; one that is shown to be too poor stays out."""
    made = router(model("cheap", 1), model("mid", 2), model("poor", 3))
    made.learn([known("cheap", 33, 40), known("mid", 250, 300), known("poor", 100, 300)])
    route = made.route(Attributes(), ASK)
    assert names(route) == ["mid", "cheap"]
    assert isinstance(route, Route)
    assert "none is shown to have quality ≥ 0.8" in route.reason


def test_a_wall_comes_before_what_was_measured() -> None:
    made = router(model("cheap", 1, origin="us"), model("top", 10, origin="eu"))
    made.learn([known("cheap", 990, 1000), known("top", 990, 1000)])
    assert names(made.route(Attributes(sensitivity="near"), ASK)) == ["top"]


def test_failures_and_answers_that_do_not_pass_count_in_what_an_item_costs() -> None:
    """The cheap call that fails every other time is the dearer one."""
    made = router(model("cheap", 1.0), model("firm", 1.5), min_quality=0.4)
    made.learn([known("cheap", 500, 1000, 1000, output=1000), known("firm", 1000, 1000, 1000, output=1000)])
    assert first(made) == "firm"


def test_long_answers_count_as_they_were_measured() -> None:
    made = router(model("chatty", 1.0), model("terse", 1.5))
    made.learn([known("chatty", 950, 1000, 1000, output=900_000), known("terse", 950, 1000, 1000, output=5_000)])
    assert first(made) == "terse"


# ---- hysteresis


def test_a_route_is_left_for_a_margin_only() -> None:
    """A model that is a little cheaper changes nothing; one that is much cheaper does, at once."""
    made = router(model("a", 1.0), model("b", 1.05))
    sure = [known("a", 950, 1000), known("b", 950, 1000)]
    made.learn(sure)
    assert first(made) == "a"
    made.reprice("b", Price(round(0.95e9), round(0.95e9)))
    assert first(made) == "a"
    made.reprice("b", Price(round((1 - MARGIN) * 0.9e9), round((1 - MARGIN) * 0.9e9)))
    assert first(made) == "b"
    made.reprice("b", Price(round(0.95e9), round(0.95e9)))
    assert first(made) == "b"


def test_a_route_is_left_when_its_own_bound_falls_below() -> None:
    made = router(model("a", 1.0), model("b", 2.0))
    made.learn([known("a", 950, 1000), known("b", 950, 1000)])
    assert first(made) == "a"
    made.learn([known("a", 830, 1000), known("b", 950, 1000)])
    assert first(made) == "b"


# ---- exploring


def test_a_share_of_the_items_tries_what_is_cheaper_and_not_known_well_enough() -> None:
    """By the item's id, so a rerun explores the same ones; what is shown to be poor, and what would not be cheaper, is
    not explored. The record tells; the other candidates stand behind it."""
    made = router(
        model("new", 1), model("poor", 1), model("main", 3), model("dear", 9), explore=Explore(share=0.2, usd=5)
    )
    made.learn([known("poor", 100, 400), known("main", 950, 1000)])
    routes = {f"i{n}": made.route(Attributes(), ASK, f"i{n}") for n in range(2000)}
    assert routes == {item_id: made.route(Attributes(), ASK, item_id) for item_id in routes}
    tried = [r for r in routes.values() if isinstance(r, Route) and r.candidates[0].experiment == EXPLORE]
    assert 300 < len(tried) < 500
    assert {tuple(names(route)) for route in tried} == {("new", "main")}
    assert tried[0].candidates[0].propensity == pytest.approx(0.2)
    assert "new is explored" in tried[0].reason
    assert tried[0].candidates[0].reason == "explored: quality unknown"


def test_exploring_ends_once_the_answer_is_known() -> None:
    made = router(model("new", 1), model("main", 3), explore=Explore(share=1.0, usd=5))
    made.learn([known("main", 950, 1000)])
    assert first(made, "i") == "new"
    made.learn([known("main", 950, 1000), known("new", 100, 300)])
    assert first(made, "i") == "main"
    made.learn([known("main", 950, 1000), known("new", 960, 1000)])
    route = made.route(Attributes(), ASK, "i")
    assert isinstance(route, Route)
    assert (names(route)[0], route.candidates[0].experiment) == ("new", "")


def test_nothing_is_explored_behind_a_wall_or_over_an_items_own_limit() -> None:
    made = router(model("new", 1, origin="us"), model("main", 3, origin="eu"), explore=Explore(share=1.0, usd=5))
    made.learn([known("main", 950, 1000)])
    assert first(made, "i", sensitivity="near") == "main"
    assert first(made, "i", max_cost_usd=1.0) == "main"


# ---- silent change


def stream(dice: random.Random, shares: list[tuple[int, float]]) -> tuple[Sample, ...]:
    """Windows as the document keeps them: (samples, true share) one after another."""
    windows: list[Window] = []
    for n, true in shares:
        for _ in range(n // 10):
            good = sum(dice.random() < true for _ in range(10))
            grow(windows, Scored(good, {1000: good, 0: 10 - good}), 0.0)
    return tuple(window.scores.sample() for window in windows)


def test_windows_keep_every_score_and_grow_with_age() -> None:
    windows = stream(random.Random(1), [(100_000, 0.9)])
    assert len(windows) <= MOST
    assert sum(window.n for window in windows) == 100_000
    assert windows[-1].n <= 60 < 5_000 < windows[0].n


def test_a_thousand_good_samples_do_not_hide_that_a_model_has_become_worse() -> None:
    """All together they still clear the bar; what came after the change does not."""
    windows = stream(random.Random(2), [(5_000, 0.95), (300, 0.7)])
    standing = Standing("t", "m", "v1", windows)
    whole = standing.sample.mean
    assert whole is not None
    assert whole > 0.93
    found = read(standing, 0.9)
    assert found.dropped >= 4_500
    assert found.interval is not None
    assert found.interval.high < 0.9
    made = router(model("m", 1, 0.95), model("top", 9, 0.95), min_quality=0.9)
    made.learn([standing])
    route = made.route(Attributes(), ASK)
    assert names(route) == ["top"]
    assert isinstance(route, Route)
    assert "since it changed" in route.refused[0].reason


def test_a_model_that_stays_as_it_is_is_hardly_ever_taken_for_worse() -> None:
    """Exactly as good as asked for, the hardest case: a false alarm in 10,000 samples on average, or fewer."""
    alarms = sum(changed_at(stream(random.Random(seed), [(2_000, 0.9)]), 0.9) > 0 for seed in range(60))
    assert alarms <= 20
    assert not any(changed_at(stream(random.Random(seed), [(2_000, 0.93)]), 0.9) for seed in range(60))


# ---- from the document


def told(*cells: Cell) -> Measured:
    shared = Measured()
    fold(shared, "r", Sums(states=(Numbered(0), Numbered(1, list(cells)))), 0.0)
    return shared


def cell(model: str = "m", good: int = 90, n: int = 100, **more: object) -> Cell:
    scores = {NAME: Scored(good, {1000: good, 0: n - good})}
    base = Cell(
        "t", model, "v1", "p1", "old", items=n, results=n, calls=n, input=1000 * n, output=100 * n, scores=scores
    )
    base = msgspec.structs.replace(base, cost_nano=2_000 * n, cost_square=2_000.0**2 * n)
    return msgspec.structs.replace(base, **more)


def policy(**task: object) -> Policy:
    fields: dict[str, object] = {"scorers": (EXACT,), "prompt": Prompt("x", version="p1"), **task}
    return Policy({"t": Task("t", **fields)})  # type: ignore[arg-type]


def test_only_the_jobs_own_prompt_and_scorer_count() -> None:
    """Another prompt is another thing to measure; a judge that nobody calibrated decides nothing."""
    shared = told(cell(), cell(prompt="p2", good=10), cell(scores={"judge@1": Scored(0, {0: 100})}, price="new"))
    (found,) = standings(shared, catalog(model("m", 1)), policy())
    assert (found.sample.n, found.sample.mean) == (100, pytest.approx(0.9))
    judged = policy(scorers=(Scorer("judge", model="m", rubric="?"),))
    assert standings(shared, catalog(model("m", 1)), judged)[0].sample.n == 0


def test_shadows_count_as_evidence_of_quality_and_not_of_what_results_cost() -> None:
    shared = told(cell(), cell(role="shadow", good=80))
    (found,) = standings(shared, catalog(model("m", 1)), policy())
    assert (found.sample.n, found.items) == (200, 100)


def test_cost_follows_the_price_of_today() -> None:
    """1,000 tokens in and 100 out at $1 a million: 1,100,000 nano-dollars, whatever was paid then."""
    (found,) = standings(told(cell()), catalog(model("m", 1)), policy())
    assert found.cost.mean == pytest.approx(1_100_000)
    paid = cost_per_accepted(found)
    assert paid is not None
    assert paid.mean == pytest.approx(1_100_000 / 0.9)
    assert paid.low < paid.mean < paid.high


def test_scores_of_many_values_leave_the_windows_with_what_is_thrown_away() -> None:
    """Beyond 128 different ones they are in hundredths: a run's sums, or old windows that were joined, or both."""
    windows = [Window(0.0, Scored(0, {10: 2, 20: 1}, coarse=True)), Window(1.0, Scored(0, {13: 1, 500: 1}))]
    grow(windows, Scored(0, {11: -1, 12: -1}), 2.0)
    assert [window.scores.counts for window in windows] == [{20: 1}, {13: 1, 500: 1}]
    grow(windows, Scored(0, {10: -1, 500: -1}, coarse=True), 3.0)
    assert [window.scores.counts for window in windows] == [{20: 1}]


def test_what_an_accepted_item_costs_is_of_the_answers_since_a_fall_as_its_quality_is() -> None:
    """Else a route would weigh a new quality by an old cost; and so would the page."""
    windows = (*(share(900, 1_000) for _ in range(5)), *(share(30, 50) for _ in range(6)))
    found = Standing("t", "m", "v1", windows, 1_000, 1_000, cost=Moments(1_000, 600.0, 1.0))
    now = read(found, 0.85).now
    paid = cost_per_accepted(now)
    assert paid is not None
    assert (now.weight, paid.mean) == (pytest.approx(1 / 0.6), pytest.approx(1_000))
    task = Task("t", min_quality=0.85)
    table = compared.measured((found,), Policy({"t": task}))
    assert table is not None
    assert table.rows[0][2:4] == ("300", "60.0 %")
    old = compared.measured((found,), Policy({"t": Task("t")}))
    assert old is not None
    assert old.rows[0][2] == "5,300"  # nothing is asked for: no change is told from chance


def test_judging_and_idle_hours_are_part_of_what_an_accepted_item_costs() -> None:
    idle = Cell("", "m", "v1", price="amortised", role="idle", cost_nano=100_000)
    plain = standings(told(cell()), catalog(model("m", 1)), policy())[0]
    shared = told(cell(judge_nano=20_000), idle)
    (found,) = standings(shared, catalog(model("m", 1)), policy())
    assert found.aside == pytest.approx(0.1 + 0.5)
    assert found.weight == pytest.approx(plain.weight * 1.6)


def test_nothing_is_said_of_costs_by_few_items() -> None:
    assert cost_per_accepted(Standing("t", "m", "v1", (share(9, 10),), 10, 10, cost=Moments(10, 5.0, 1.0))) is None


def test_standings_survive_their_way_to_the_lanes() -> None:
    found = standings(told(cell(), cell("n")), catalog(model("m", 1), model("n", 2)), policy())
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=tuple[Standing, ...])
    assert sent == found
    assert {read(standing, 0.8) for standing in sent} == {read(standing, 0.8) for standing in found}
