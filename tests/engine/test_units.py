"""From an item's `unit` to what guards and experiments say: whoever counts its items, a unit counts once."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import pytest

from penstock.engine.flow.booking import Cells
from penstock.engine.flow.cells import Cell, cells_in, decoded, summed
from penstock.engine.items import Answer, Attributes, Exposure, Item, Position, Request, Route, Usage
from penstock.engine.policy import Arm, Experiment
from penstock.engine.registry.document import Measured, Numbered, Sums, fold
from penstock.engine.results import Attempt, DeadLetter, Result, Score, ShadowAnswer
from penstock.engine.steering.evidence import guards, judged
from penstock.engine.steering.rollout import BASELINE, CANDIDATE, How, Rollout, Shadowing, Told, begin
from penstock.engine.steering.rollout import Unit as Sticks
from penstock.engine.steering.trials import broken, look

ROUTE = Route("t", 3, (), (), "")
ALL = ("quality", "error_rate", "refusals", "cost", "latency")
EACH = 30
"""Items of a unit."""


def rollout(unit: Sticks = "unit", shadow: Shadowing | None = None) -> Rollout:
    how = How(unit=unit, shadow=shadow)
    return begin("m", ("v1", "v2"), (0.5,), guards(ALL), by="ann", now=1.0, how=how)


def item(unit: str | None, exposure: Exposure | None = None) -> Item:
    return Item(f"of {unit}", Position("s", 0, 0), Attributes(unit=unit), Request(b"{}"), b"o", 0.0, exposure=exposure)


def call(ms: float, arm: tuple[str, str], outcome: str = "ok", nano: int = 1_000) -> Attempt:
    return Attempt(1, "primary", "m", 0.0, ms, outcome, None, nano, "v", experiment=arm[0], arm=arm[1])


def result(of: Item, calls: tuple[Attempt, ...], score: float, arm: tuple[str, str]) -> Result:
    return Result(
        of, ROUTE, Answer("a", "stop", b"{}"), "m", "v", "p", None, None, "now", Usage(),
        sum(each.cost_nano for each in calls), "metered", "", "", "", calls, 0.0, 0.0, 0.0, "",
        scores=(Score("exact", "1", score, score > 0.5),), experiment=arm[0], arm=arm[1],
    )  # fmt: skip


def lanes(arm: tuple[str, str], units: int, hard: int, *, on_trial: bool = False) -> list[Cell]:
    """Two lanes' cells. All items of hard units are wrong, slow and dear, fail first at this model, and are refused."""
    both = Cells(), Cells()
    exposure = Exposure(*arm) if on_trial else None
    for number in range(units):
        bad = number < hard
        of = item(f"{arm[1]} {number}", exposure)
        ms, nano = (30_000.0, 3_000) if bad else (300.0, 1_000)
        for n in range(EACH):
            if bad and n % 2:
                calls = (call(ms, arm, "refused", nano),)
                both[n % 3 == 0].dead(DeadLetter(of.item_id, of.source, "refused", "", b"", of, ROUTE, attempts=calls))
            else:
                both[n % 3 == 0].result(result(of, (call(ms, arm, nano=nano),), float(not bad), arm))
    return [cell for lane in both for cell in lane.rows]


def by_guard(told: Iterable[Told]) -> dict[str, Told]:
    return {each.guard.partition(" ")[0]: each for each in told}


def test_some_unlucky_customers_take_no_version_back_unless_items_are_what_is_divided() -> None:
    """20 of 100 units are hard in one arm, 33 in the other: 3,000 items each would show that for sure, units don't."""
    for unit in ("unit", "item"):
        at = rollout(unit)
        cells = [*lanes((at.id, at.arm(BASELINE)), 100, 20), *lanes((at.id, at.arm(CANDIDATE)), 100, 33)]
        said = by_guard(judged(at, cells))
        assert {name: each.decision == "fail" for name, each in said.items()} == dict.fromkeys(ALL, unit == "item")
        assert (said["error_rate"].items < 1_000) == (unit == "unit")
        assert ("counts once" in said["quality"].why) == ("counts once" in said["cost"].why) == (unit == "unit")
        assert said["quality"].worst is not None


def test_a_version_that_fails_most_customers_is_taken_back() -> None:
    at = rollout()
    cells = [*lanes((at.id, at.arm(BASELINE)), 100, 5), *lanes((at.id, at.arm(CANDIDATE)), 100, 60)]
    assert {each.decision for each in judged(at, cells)} == {"fail"}


def test_a_stage_counts_units_that_bring_several_items_and_does_not_wait_for_ever() -> None:
    at = rollout()
    cells = [*lanes((at.id, at.arm(BASELINE)), 100, 5), *lanes((at.id, at.arm(CANDIDATE)), 100, 5)]
    said = by_guard(judged(at, cells))
    assert (said["error_rate"].items, said["error_rate"].decision) == (300, "go on")  # ten of one count as one
    assert said["error_rate"].mean == pytest.approx(0.0, abs=0.02)


def test_an_experiment_tells_effects_of_units_where_units_are_divided() -> None:
    arms = (Arm("plain"), Arm("kind", prompt=None))
    told = {}
    for unit in ("unit", "item"):
        trial = Experiment("job/x", "t", arms, unit=unit, guardrails=ALL)
        cells = [
            *lanes((trial.key, "plain"), 100, 20, on_trial=True),
            *lanes((trial.key, "kind"), 100, 33, on_trial=True),
        ]
        told[unit] = look(trial, cells).arms[1]
        said = by_guard(broken(trial, cells)["kind"])
        assert {name: each.decision == "fail" for name, each in said.items()} == dict.fromkeys(ALL, unit == "item")
    by_unit, by_item = told["unit"], told["item"]
    for unit, one in ((by_unit.scores[0].effect, by_item.scores[0].effect), (by_unit.latency, by_item.latency)):
        assert unit is not None
        assert one is not None
        assert unit.high - unit.low > 3 * (one.high - one.low)
        assert unit.low <= 0.0 <= unit.high
        assert not one.low <= 0.0 <= one.high
    assert by_unit.scores[0].n == by_item.scores[0].n  # scored items, as they are


def test_where_each_unit_brings_one_item_units_change_nothing() -> None:
    said: list[object] = []
    for named in (True, False):
        at, cells = rollout(), Cells()
        for number in range(400):
            arm = at.id, at.arm(CANDIDATE if number % 4 == 0 else BASELINE)
            of = item(f"u{number}" if named else None)
            cells.result(result(of, (call(100.0 + number, arm),), float(number % 10 != 0), arm))
        assert all(bool(cell.groups) == named for cell in cells.rows)
        said.append(judged(at, cells.rows))
    assert said[0] == said[1]


def test_pairs_of_one_unit_count_once_in_a_shadow_stage() -> None:
    """The candidate loses on all items of 12 of 100 units and wins on those of 2."""
    at = rollout(shadow=Shadowing(1.0, 10**12))
    beside, cells = (at.id, at.arm(CANDIDATE)), Cells()
    for number in range(100):
        for _ in range(EACH):
            own = result(item(f"u{number}"), (call(100.0, ("", "")),), float(number >= 2), ("", ""))
            scores = (Score("exact", "1", float(not 2 <= number < 14), True),)
            shadow = ShadowAnswer(
                "m", "v2", "a", scores, Usage(), 1_000, 100.0, 1.0, experiment=beside[0], arm=beside[1]
            )
            cells.result(msgspec.structs.replace(own, shadows=(shadow,)))
    found = by_guard(judged(at, cells.rows))
    assert found["quality"].decision == "go on"
    assert found["quality"].mean == pytest.approx(-0.1, abs=0.02)
    assert "(a unit brings some" in found["quality"].why
    assert found["latency"].decision == found["cost"].decision == "pass"


def test_what_a_life_measured_is_taken_out_again_and_no_group_stays_behind() -> None:
    at = rollout()
    old = lanes((at.id, at.arm(CANDIDATE)), 20, 5)
    new = lanes((at.id, at.arm(CANDIDATE)), 10, 1)
    shared, first = Measured(), Numbered(1, summed(old))
    fold(shared, "r", Sums(states=(first,)), 1.0)
    fold(shared, "r", Sums(states=(first, Numbered(2, summed(new)))), 2.0)
    (found,) = shared.cells
    assert found.groups == summed(new)[0].groups
    again = decoded(msgspec.msgpack.encode(shared.cells))
    assert again[0].groups == found.groups
    assert cells_in({}) == []
