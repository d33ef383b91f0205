"""Experiments divide units as was meant, stick to them, and say what is real about their arms."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.catalog import Account, Catalog, Model, Price, Version
from penstock.engine.flow.booking import Cells
from penstock.engine.flow.cells import Cell, Scored, summed
from penstock.engine.flow.lane_types import Hooks
from penstock.engine.items import Answer, Attributes, Exposure, Item, Outcome, Position, Request, Route, Usage
from penstock.engine.measure.distinct import MOST, Distinct
from penstock.engine.policy import Arm, Experiment, Policy, Prompt, Scorer, Task
from penstock.engine.registry.document import Measured, Numbered, Sums, fold
from penstock.engine.registry.standings import scorer_of, standings
from penstock.engine.results import Attempt, DeadLetter, Result, Score
from penstock.engine.steering.arms import Draw
from penstock.engine.steering.trials import broken, look
from tests.engine.one_lane import OneLane

WORDING = Experiment(
    "job/wording",
    "t",
    (Arm("plain", 3.0), Arm("kind", 1.0, prompt=Prompt("Please: {{ text }}", version="kind"))),
    guardrails=("quality", "error_rate"),
)


@given(st.text(max_size=30), st.text(min_size=1, max_size=10))
def test_a_unit_is_drawn_into_the_same_arm_by_every_process_and_its_items_follow_it(unit: str, item: str) -> None:
    one, two = Draw(WORDING), Draw(WORDING)
    at, exposure = one.exposed(unit or None, item, stopped=False)
    assert (at, exposure) == two.exposed(unit or None, item if not unit else "another", stopped=False)
    assert exposure.arm == WORDING.arms[at].name
    assert exposure.propensity == (0.75, 0.25)[at]
    assert exposure.prompt_version == ("", "kind")[at]


def test_arms_get_their_weights_and_another_experiment_draws_anew() -> None:
    other = Experiment("job/other", "t", WORDING.arms)
    one, two = Draw(WORDING), Draw(other)
    drawn = [(one.place(f"u{i}"), two.place(f"u{i}")) for i in range(20_000)]
    assert 4_750 < sum(a for a, _ in drawn) < 5_250  # 4 standard deviations
    both = sum(a and b for a, b in drawn) / 20_000
    assert abs(both - 0.25 * 0.25) < 0.01  # independent of each other


def test_a_stopped_experiment_gives_all_the_first_arm_and_counts_nobody() -> None:
    draw = Draw(WORDING)
    for unit in ("a", "b", "c", "d", "e", "f"):
        at, exposure = draw.exposed(unit, "x", stopped=True)
        assert (at, exposure.experiment, exposure.arm, exposure.propensity) == (0, "", "", 1.0)


def arm(name: str, items: int, right: int, **fields: int) -> Cell:
    cell = Cell("t", "small", "v1", "", "", "", WORDING.id, name, items=items, results=items, calls=items, ended=items)
    cell.scores["exact@1"] = Scored(counts={0: items - right, 1_000: right})
    for field, value in fields.items():
        setattr(cell, field, value)
    return cell


def test_arms_are_told_side_by_side_with_effects_and_intervals() -> None:
    seen = look(WORDING, [arm("plain", 3_000, 2_400), arm("kind", 1_000, 900)])
    plain, kind = seen.arms
    assert (plain.answers, kind.answers) == (3_000, 1_000)
    assert plain.scores[0].effect is None
    effect = kind.scores[0].effect
    assert effect is not None
    assert 0.0 < effect.low < effect.mean < effect.high < 0.2
    assert effect.mean == pytest.approx(0.1)
    assert seen.split is not None
    assert not seen.split.found


def test_shares_that_do_not_fit_are_found() -> None:
    seen = look(WORDING, [arm("plain", 3_000, 2_400), arm("kind", 800, 640)])
    assert seen.split is not None
    assert seen.split.found


def test_an_arm_with_parameters_of_its_own_is_another_thing_to_measure_than_its_prompt() -> None:
    """Answers that it cuts off after five tokens must not make its models look poor to every job."""
    short = Arm("short", params_json=b'{"max_tokens":5}', max_tokens=5)
    draw = Draw(Experiment("job/short", "t", (Arm("plain"), short)))
    drawn = {e.arm: e for e in (draw.exposed(f"u{n}", "x", stopped=False)[1] for n in range(50))}
    assert drawn["plain"].asked("p1") == "p1"
    assert drawn["short"].asked("p1").startswith("p1+")
    catalog = Catalog(
        {"a": Account("a", "openai", "http://localhost")},
        {"m": Model("m", (Version("v1", "m"),), "v1", account="a", price=Price())},
        {3: ("m",)},
    )
    scorer = Scorer("exact")
    task = Task("t", prompt=Prompt("x", version="p1"), scorers=(scorer,), sample=1.0)
    policy = Policy({"t": task}, default_task="t")
    name, version = (scorer_of(task) or "").split("@")

    def score(_item: Item, answer: Answer, _task: Task) -> tuple[Score, ...]:
        return (Score(name, version, float(answer.text == "yes"), answer.text == "yes"),)

    lane = OneLane(catalog, policy, Hooks(lambda: 0.0, score, lambda body, _a, _m: body))
    for n, arm in enumerate(("plain", "short")):
        lane.lane.offer(
            Item(f"i{n}", Position("s", 0, n), Attributes(), Request(b"{}"), b"o", 0.0, exposure=drawn[arm]), lane.now
        )
    lane.commit()
    for call in lane.lane.take("api:a", 9, 1 << 40, "w", lane.now):
        said = Answer("yes" if call.item_id == "i0" else "ye", "stop", b"{}")
        lane.lane.outcome(Outcome(call.item_id, 0, call.attempt, lane.now, 9.0, said, usage=Usage(1)), lane.now)
    shared = Measured()
    fold(shared, "r", Sums(states=(Numbered(1, lane.lane.cells.rows),)), 1.0)
    (found,) = standings(shared, catalog, policy)
    assert (found.sample.n, found.sample.mean, found.items) == (1, 1.0, 1)


def customers(name: str, count: int, *, items: int = 20) -> Cell:
    """An arm's, who bring so many items each."""
    cell = arm(name, count * items, count * items * 4 // 5, united=count * items)
    cell.units = Distinct()
    for n in range(count):
        cell.units.see(f"{name} {n}")
    return cell


def test_no_alarm_is_given_from_items_that_share_a_unit() -> None:
    """One arm gets a few customers less, and these bring twenty items each: the split is as it should."""
    cells = [customers("plain", 300), customers("kind", 70)]
    seen = look(WORDING, cells)
    assert seen.split is not None
    assert (seen.split.found, seen.units, seen.united) == (False, 370, 7_400)
    items = look(msgspec.structs.replace(WORDING, unit="item"), cells).split  # items are what is divided
    assert items is not None
    assert items.found


@pytest.mark.parametrize("alone", [0, 2_000])
def test_shares_of_units_that_do_not_fit_are_found(alone: int) -> None:
    """However many they are: of many a sample is looked at. An item without a unit is drawn by itself."""
    cells = [customers("plain", 6_000 - alone), customers("kind", 1_000), arm("plain", alone, alone)]
    seen = look(WORDING, cells)
    assert seen.split is not None
    assert seen.split.found
    assert seen.units < 3 * MOST + alone


def test_units_that_an_earlier_release_counted_by_their_items_alone_are_no_finding() -> None:
    cells = [arm("plain", 6_000, 4_800, united=6_000), arm("kind", 1_400, 1_120, united=1_400)]
    assert (look(WORDING, cells).split, look(WORDING, cells).units) == (None, 0)


def test_a_unit_counts_once_in_its_arm_whoever_counts_its_items() -> None:
    """Lanes, runs that go on, and their sums at the state."""
    lanes = [trial("kind", called("big", 2_000, 9.0), unit=unit) for unit in ("ann", "bob", "ann", "ann")]
    first, *later = (cell for lane in lanes for cell in lane.rows)
    shared, states = Measured(), (Numbered(1, [first]), Numbered(2, summed([first], later)))
    fold(shared, "r", Sums(states=states[:1]), 1.0)
    fold(shared, "r", Sums(states=states), 2.0)
    (found,) = shared.cells
    assert found.units is not None
    assert (found.united, len(found.units.places)) == (4, 2)


def trial(name: str, *calls: Attempt, dead: bool = False, unit: str | None = None) -> Cells:
    """One item of an arm, as a lane counts it."""
    attributes = Attributes(unit=unit)
    exposed = Item("i", Position("s", 0, 0), attributes, Request(b"{}"), b"o", 0.0, exposure=Exposure(WORDING.id, name))
    attempts = tuple(msgspec.structs.replace(call, experiment=WORDING.id, arm=name) for call in calls)
    cells, route, last = Cells(), Route("t", 3, (), (), ""), attempts[-1]
    if dead:
        letter = DeadLetter("i", exposed.source, "attempts_exhausted", "", b"", exposed, route, attempts=attempts)
        cells.dead(letter)
        return cells
    made = Result(
        exposed, route, Answer("a", "stop", b"{}"), last.model, "v1", "p", None, None, "now", Usage(),
        sum(call.cost_nano for call in attempts), "metered", "", "", "", attempts, 0.0, 0.0, 0.0, "",
        experiment=WORDING.id, arm=name,
    )  # fmt: skip
    cells.result(made)
    return cells


def called(model: str, nano: int, ms: float, outcome: str = "ok") -> Attempt:
    return Attempt(1, "primary", model, 0.0, ms, outcome, None, nano, "v1")


def test_an_arm_pays_for_its_fallbacks_and_an_item_that_was_answered_is_no_error() -> None:
    """One arm asks once, the other a small model first and, each time, a big one after it."""
    plain = trial("plain", called("big", 2_000_000, 1_000.0))
    kind = trial("kind", called("small", 1_000_000, 1_000.0, "invalid_output"), called("big", 4_000_000, 1_000.0))
    cells = [cell for one in (plain, kind) for cell in many(one.rows, 1_000)]
    guarded = msgspec.structs.replace(WORDING, guardrails=("error_rate", "cost", "latency"))
    errors, cost, latency = broken(guarded, cells)["kind"]
    assert (errors.decision, errors.items, errors.mean) == ("pass", 1_000, 0.0)
    assert math.exp(cost.mean or 0.0) == pytest.approx(2.5, rel=0.01)
    assert math.exp(latency.mean or 0.0) == pytest.approx(2.0, rel=0.01)
    seen = look(guarded, cells).arms[1]
    assert (seen.answers, seen.cost_nano) == (1_000, 5_000_000_000)
    assert seen.cost is not None
    assert math.exp(seen.cost.mean) == pytest.approx(2.5, rel=0.01)


def test_an_item_without_an_answer_is_one_error_of_its_arm_however_many_models_were_asked() -> None:
    plain = trial("plain", called("big", 2_000, 9.0))
    lost = trial("kind", called("small", 1_000, 9.0, "refused"), called("big", 0, 9.0, "timeout"), dead=True)
    guarded = msgspec.structs.replace(WORDING, guardrails=("error_rate", "refusals"))
    cells = [*many(plain.rows, 400), *many(trial("kind", called("big", 2_000, 9.0)).rows, 300), *many(lost.rows, 100)]
    errors, refusals = broken(guarded, cells)["kind"]
    assert (errors.decision, errors.mean, refusals.mean) == ("fail", -0.25, -0.25)


def many(cells: list[Cell], times: int) -> list[Cell]:
    return [cell for cell in cells for _ in range(times)]


def test_a_guardrail_speaks_for_the_arm_that_broke_it() -> None:
    cells = [arm("plain", 3_000, 2_700), arm("kind", 1_000, 700)]
    told = broken(WORDING, cells)
    assert [each.decision for each in told["kind"]] == ["fail", "pass"]
    assert {each.decision for each in broken(WORDING, [])["kind"]} == {"go on"}


def test_an_effect_holds_the_truth_however_often_it_is_looked_at() -> None:
    """100 experiments, each looked at 8 times: the interval may miss in 1 of 20, and misses in fewer."""
    rng, missed = np.random.default_rng(5), 0
    for _ in range(100):
        n, right = [0, 0], [0, 0]
        wrong = False
        for _ in range(8):
            for i, (items, quality) in enumerate(((225, 0.85), (75, 0.80))):
                n[i] += items
                right[i] += int(rng.binomial(items, quality))
            seen = look(WORDING, [arm("plain", n[0], right[0]), arm("kind", n[1], right[1])])
            effect = seen.arms[1].scores[0].effect
            assert effect is not None
            wrong = wrong or not effect.low <= -0.05 <= effect.high
        missed += wrong
    assert missed <= 9  # 5, and 2 standard deviations


def test_what_arms_did_before_they_were_changed_is_not_pooled_with_what_they_do_now() -> None:
    """Under one name: an arm that was mended would still show its loss, and new weights a broken split."""
    was, now = (msgspec.structs.replace(WORDING, version=version) for version in ("a1", "b2"))
    shares = ((was, "plain", 900, 810), (was, "kind", 100, 60), (now, "plain", 300, 270), (now, "kind", 100, 95))
    cells = [
        Cell(
            "t",
            "m",
            "v",
            "",
            "",
            "",
            each.key,
            arm,
            n,
            n,
            n,
            ended=n,
            scores={"exact@1": Scored(good, {1000: good, 0: n - good})},
        )
        for each, arm, n, good in shares
    ]
    seen = look(now, cells)
    assert [arm.answers for arm in seen.arms] == [300, 100]
    (kind,) = seen.arms[1].scores
    assert kind.mean is not None
    assert kind.mean.mean == 0.95
    assert seen.split is not None
    assert not seen.split.found
    assert seen.earlier == 1_000


def test_an_edit_moves_no_more_units_than_the_shares_say() -> None:
    """A customer keeps what it got where only an arm's wording was mended, or Penstock is another release."""
    mended = msgspec.structs.replace(WORDING, version="b2")
    halves = msgspec.structs.replace(mended, arms=(Arm("plain", 1.0), WORDING.arms[1]))
    was, now, then = ([Draw(each).place(f"u{i}") for i in range(2_000)] for each in (WORDING, mended, halves))
    assert now == was
    assert set(zip(was, then, strict=True)) == {(0, 0), (0, 1), (1, 1)}
    assert Draw(halves).exposed("u", "i", stopped=False)[1].experiment == halves.key
    assert "".join(str(at) for at in was[:20]) == "10000000010010001011"
