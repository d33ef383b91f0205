"""A rollout's shadow stage: the candidate answers beside the live version, is paid from its own money, and is compared
in pairs; nothing of it is ever a result."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.budget import Budget
from penstock.engine.errors import SpecError
from penstock.engine.flow.cells import Cell, Scored, summed
from penstock.engine.flow.lane_check import check
from penstock.engine.flow.steps import PATIENCE_S
from penstock.engine.items import Answer, Attributes, Call, Failure, FailureKind, Outcome, Usage
from penstock.engine.policy import NEVER, Cascade, Output, Shadow
from penstock.engine.registry.document import Measured, Numbered, Sums, fold
from penstock.engine.results import Result
from penstock.engine.steering import document
from penstock.engine.steering.document import Steering
from penstock.engine.steering.evidence import counts, guards, judged, silent, unpaid
from penstock.engine.steering.rollout import SILENT, How, Rollout, Shadowing, begin, said, see
from penstock.engine.steering.turn import Turn
from tests.engine.test_steps import CATALOG, GRADE, GRADED, PAIR, SHADOWED, Rig

PLAIN = msgspec.structs.replace(SHADOWED, shadow=None)
RIGHT, WRONG = Attributes(expected_json=b'"yes"'), Attributes(expected_json=b'"no"')


def rolling(stages: tuple[float, ...] = (0.5,), share: float = 1.0, nano: int = 10**12, *names: str) -> Rollout:
    how = How(shadow=Shadowing(share, nano))
    return begin("main", ("v1", "v2"), stages, guards(names or ["quality"]), by="ann", now=1.0, how=how)


def steer(rig: Rig, at: Rollout) -> None:
    rig.lane.steer(Turn(CATALOG.models, document.with_rollout(Steering(), at)), rig.now)


def test_the_candidate_answers_as_well_and_the_pair_is_measured() -> None:
    rig, at = Rig(PLAIN), rolling()
    steer(rig, at)
    rig.offer(attributes=RIGHT)
    result = rig.one()
    assert (result.model, result.model_version, result.answer.text) == ("main", "v1", "yes")
    assert (result.experiment, result.arm, result.propensity) == (at.id, "baseline-0", 1.0)
    (shadow,) = result.shadows
    assert (shadow.model, shadow.model_version, shadow.experiment, shadow.arm) == ("main", "v2", at.id, "candidate-0")
    assert [(call.role, call.version) for call in rig.sent] == [("primary", "v1"), ("shadow", "v2")]
    base, other = rig.lane.cells.rows
    assert ((base.role, base.arm, base.items), (other.role, other.arm, other.items)) == (
        ("", "baseline-0", 1),
        ("shadow", "candidate-0", 1),
    )
    ((scorer, pairs),) = other.pairs.items()
    assert scorer.startswith("exact@")
    assert pairs.counts == {0: 1}  # both say yes
    assert not base.pairs
    assert counts(at, rig.lane.cells.rows) == {-1: (1, 1)}


def test_its_share_is_scored_whatever_the_task_samples_and_no_item_beside_it_is_asked() -> None:
    rig = Rig(msgspec.structs.replace(PLAIN, sample=0.0))
    steer(rig, rolling(share=0.3))
    rig.offer(200, attributes=RIGHT)
    told = {(bool(r.shadows), r.sampled, bool(r.scores)) for r in rig.run()}
    assert told == {(True, True, True), (False, False, False)}
    asked = sum(call.role == "shadow" for call in rig.sent)
    assert 30 < asked < 90


def test_a_tasks_own_shadow_and_the_rollouts_are_asked_once_each() -> None:
    rig = Rig(msgspec.structs.replace(SHADOWED, shadow=Shadow(("other", "main@v2"), 1.0)))
    steer(rig, rolling())
    rig.offer(attributes=RIGHT)
    result = rig.one()
    assert [(s.model, s.model_version, s.arm) for s in result.shadows] == [
        ("other", "v1", ""),
        ("main", "v2", "candidate-0"),
    ]


def test_judges_of_both_answers_are_paid_by_the_stage_and_not_by_the_live_version() -> None:
    rig = Rig(msgspec.structs.replace(GRADED, sample=0.0))
    steer(rig, rolling())
    rig.says["main"] = "yes"
    rig.offer(attributes=RIGHT)
    result = rig.one()
    assert [call.role for call in rig.sent] == ["primary", "shadow", "judge"]  # both said the same: asked once
    assert len(result.scores) == len(result.shadows[0].scores) == 1
    base = next(cell for cell in rig.lane.cells.rows if cell.role == "")
    judge = next(cell for cell in rig.lane.cells.rows if cell.role == "judge")
    assert (base.judge_nano, judge.arm) == (0, "candidate-0")


def test_a_judge_of_pairs_sees_both_answers() -> None:
    rig = Rig(msgspec.structs.replace(PLAIN, scorers=(PAIR,)))
    steer(rig, rolling())
    rig.offer()
    result = rig.one()
    assert result.shadows[0].scores[0].scorer == "judge pairwise"


@pytest.mark.parametrize("sensitivity", ["silent", "eu-only"])
def test_walls_hold_for_it(sensitivity: str) -> None:
    """Of a wall without samples nobody is asked; else it stands behind the item's own wall, as the live one does."""
    rig = Rig(PLAIN)
    steer(rig, rolling())
    rig.offer(attributes=Attributes(sensitivity=sensitivity))
    result = rig.one()
    assert bool(result.shadows) == (sensitivity == "eu-only")


def test_what_a_fallback_or_a_cascade_answered_is_not_compared() -> None:
    """Only the live version's own answers, and of these not only the ones that it is sure of."""
    rig = Rig(msgspec.structs.replace(PLAIN, models=("main", "other")))
    steer(rig, rolling())
    rig.fails["main"] = "bad_request"
    rig.offer()
    assert rig.one().shadows == ()
    sure = Cascade(("main", "other"), "validity")
    rig = Rig(msgspec.structs.replace(PLAIN, cascade=sure))
    steer(rig, rolling())
    rig.offer()
    result = rig.one()
    assert (result.model, result.shadows) == ("main", ())


def test_a_candidate_that_fails_costs_no_item_its_result_and_is_counted_against_it() -> None:
    rig, at = Rig(PLAIN), rolling((), 1.0, 10**12, "quality", "error_rate")
    steer(rig, at)
    rig.offer(3, attributes=RIGHT)
    for call in rig.take():
        rig.land(call)
    rig.fails["main"] = "bad_request"
    results = rig.run()
    assert [len(r.shadows) for r in results] == [0, 0, 0]
    other = next(cell for cell in rig.lane.cells.rows if cell.role == "shadow")
    assert (other.items, other.results) == (3, 0)


# ---- both arms are the same items


class Sized(Rig):
    """Items of a wall without samples are short; v2 costs and takes `times` as much."""

    times = 1
    refuses: frozenset[tuple[str, int]] = frozenset()
    """(version, an item's number modulo ten)."""

    def land(self, call: Call) -> None:
        number = int(call.item_id[1:])
        tokens = (10 if number % 2 else 30) * (self.times if call.version == "v2" else 1)
        failure = Failure("refused", "policy") if (call.version, number % 10) in self.refuses else None
        answer = Answer("yes", "stop", b"{}") if failure is None else None
        usage = Usage(tokens)
        self.lane.outcome(
            Outcome(call.item_id, 0, call.attempt, self.now, 5.0 * tokens, answer, failure, usage), self.now
        )

    def short_ones_are_silent(self, n: int) -> None:
        for k in range(n):
            self.offer(attributes=Attributes(expected_json=b'"yes"', sensitivity="silent" if k % 2 else None))
        self.run()


@pytest.mark.parametrize("times", [1, 2])
def test_cost_and_latency_are_compared_over_the_items_that_both_answered(times: int) -> None:
    """Items of other walls are no part of it, however cheap they are."""
    rig, at = Sized(PLAIN), rolling((0.5,), 1.0, 10**12, "cost", "latency")
    rig.times = times
    steer(rig, at)
    rig.short_ones_are_silent(200)
    cost, latency = judged(at, rig.lane.cells.rows)
    assert {each.items for each in (cost, latency)} == {100}
    assert {each.decision for each in (cost, latency)} == {"pass" if times == 1 else "fail"}
    mean = latency.mean or 0.0
    assert math.exp(mean) == pytest.approx(times, rel=0.01)


def test_what_was_paid_in_the_shadow_stage_does_not_count_in_the_stages_after_it() -> None:
    rig, at = Sized(PLAIN), rolling((0.5,), 1.0, 10**12, "cost")
    rig.times = 2
    steer(rig, at)
    rig.short_ones_are_silent(200)
    (told,) = judged(said(at, "promote", "ann", 2.0), rig.lane.cells.rows)
    assert (told.decision, told.items) == ("go on", 0)


def test_refusals_that_only_the_candidate_makes_never_pass_a_shadow_stage_nor_take_it_back() -> None:
    """v1 refuses a tenth, and v2 another three tenths: of nine tenths that are asked of it."""
    rig, at = Sized(PLAIN), rolling((), 1.0, 10**12, "quality", "refusals")
    rig.refuses = frozenset({("v1", 0), ("v2", 1), ("v2", 2), ("v2", 3)})
    steer(rig, at)
    for _ in range(6):
        rig.offer(100, attributes=RIGHT)
        rig.run()
    told = judged(at, rig.lane.cells.rows)
    assert (told[1].guard, told[1].decision, told[1].informs) == ("refusals", "fail", True)
    after = see(at, told, 2.0)
    assert after is not None
    assert (after.state, after.stage) == ("waiting", -1)
    assert "refusals: 33.3 % against 10.0 % of v1" in after.decisions[-1].why


def test_equal_refusals_are_told_and_what_can_decide_passes() -> None:
    rig, at = Sized(PLAIN), rolling((), 1.0, 10**12, "quality", "refusals", "error_rate")
    rig.refuses = frozenset({("v1", 0), ("v2", 0)})
    steer(rig, at)
    for _ in range(13):
        rig.offer(100, attributes=RIGHT)
        rig.run()
    told = judged(at, rig.lane.cells.rows)
    assert [(each.decision, each.informs) for each in told] == [("pass", False), ("go on", True), ("go on", True)]
    after = see(at, told, 2.0)
    assert after is not None
    assert (after.state, after.decisions[-1].why) == ("passed", "every guard that may decide passed")


class Limited(Rig):
    """While `limit` is set, that is what every call gets."""

    limit: Failure | None = None

    def land(self, call: Call) -> None:
        if self.limit is None:
            super().land(call)
        else:
            self.lane.outcome(Outcome(call.item_id, 0, call.attempt, self.now, 5.0, None, self.limit, None), self.now)


LONG = [
    Failure("rate_limited", "slow down", retry_after_s=180.0),
    Failure("rate_limited", "slow down"),
    Failure("daily_limit", "tomorrow"),
    Failure("auth", "who are you?"),
    Failure("overloaded", "too many"),
]


@pytest.mark.parametrize("limit", LONG, ids=lambda limit: f"{limit.kind}-{limit.retry_after_s}")
def test_a_limit_or_an_outage_that_is_longer_than_a_steps_patience_does_not_speak_against_the_candidate(
    limit: Failure,
) -> None:
    """Both versions are of one account, and the live one's items just wait for it."""
    rig, at = Limited(PLAIN), rolling((), 1.0, 10**12, "quality", "error_rate")
    steer(rig, at)
    rig.offer(60, attributes=RIGHT)
    for call in rig.take():
        rig.land(call)
    rig.limit = limit
    results = rig.run(rounds=400)
    assert len(results) == 60
    base, other = rig.lane.cells.rows
    assert (base.items, base.results, other.results) == (60, 60, 0)
    assert other.items == other.unheard > 0
    told = judged(at, rig.lane.cells.rows)
    assert [(each.decision, each.items) for each in told] == [("go on", 0), ("go on", 0)]
    assert rig.failed == {"shadow|no_candidate": 60}


@pytest.mark.parametrize("kind", ["bad_request", "server_error", "refused"])
def test_its_own_failures_speak_against_it(kind: FailureKind) -> None:
    rig, at = Limited(PLAIN), rolling((), 1.0, 10**12, "quality", "error_rate")
    steer(rig, at)
    rig.offer(1, attributes=RIGHT)
    rig.land(rig.take()[0])
    rig.limit = Failure(kind, "no")
    rig.run(rounds=80)
    other = next(cell for cell in rig.lane.cells.rows if cell.role == "shadow")
    assert (other.items, other.unheard, other.results) == (1, 0, 0)


@pytest.mark.parametrize("above", [None, "bad_request"])
def test_an_answer_that_a_cascade_doubts_is_no_error_of_the_version_that_gave_it(above: FailureKind | None) -> None:
    """No threshold is known for v2: all its answers go up, whatever becomes of them there."""
    cascade = Cascade(("main", "other"), "agreement", NEVER, 1, {"main@v1": 0.5})
    rig = Rig(msgspec.structs.replace(PLAIN, output=Output(choices=("yes", "no")), cascade=cascade))
    at = begin("main", ("v1", "v2"), (0.5,), guards(["error_rate"]), by="ann", now=1.0)
    steer(rig, at)
    if above is not None:
        rig.fails["other"] = above
    rig.offer(400, attributes=RIGHT)
    rig.run()
    base, other = (
        next(c for c in rig.lane.cells.rows if c.model == "main" and not c.role and c.version == v)
        for v in ("v1", "v2")
    )
    assert (base.results, base.doubted) == (base.items, 0)
    assert (other.results, other.doubted) == (0, other.items)
    top = next(c for c in rig.lane.cells.rows if c.model == "other")
    assert (top.results, top.doubted) == (0 if above else top.items, 0)
    (told,) = judged(at, rig.lane.cells.rows)
    assert told.decision != "fail"
    assert told.mean == 0.0


def seen(at: Rollout, rig: Rig) -> Rollout | None:
    cells = rig.lane.cells.rows
    return see(at, judged(at, cells), 9.0, unpaid(at, cells), silent(at, cells))


def test_a_version_that_answers_nothing_fails_its_shadow_stage_though_no_guard_sees_an_item() -> None:
    """Else it would be asked for ever, and paid for where it answers nonsense."""
    rig, at = Limited(PLAIN), rolling((), 1.0, 10**12, "quality")
    steer(rig, at)
    for n in (SILENT - 1, 1):
        assert seen(at, rig) is None
        rig.limit = None
        rig.offer(n, attributes=RIGHT)
        for call in rig.take():
            rig.land(call)
        rig.limit = Failure("bad_request", "no")
        rig.run()
    after = seen(at, rig)
    assert after is not None
    assert (after.state, after.decisions[-1].why) == (
        "rolled_back",
        "v2 failed on 100 more items of its shadow stage than it answered",
    )


def test_a_version_that_cannot_be_asked_for_long_waits_for_a_person() -> None:
    """Most of its items are given up without a call: its breaker is open."""
    rig, at = Limited(PLAIN), rolling((), 1.0, 10**12, "quality")
    steer(rig, at)
    rig.offer(SILENT, attributes=RIGHT)
    for call in rig.take():
        rig.land(call)
    rig.limit = Failure("auth", "who are you?")
    rig.run(rounds=400)
    after = seen(at, rig)
    assert after is not None
    assert after.state == "waiting"
    assert "100 more items have no answer of v2 than have one, for limits or an outage" in after.decisions[-1].why


def test_a_shadow_stage_needs_a_guard_that_can_decide_in_it() -> None:
    with pytest.raises(SpecError, match="can't decide about error_rate and refusals"):
        rolling((0.5,), 1.0, 10**12, "error_rate", "refusals")


# ---- its money


@given(limit=st.integers(0, 60), items=st.integers(1, 12), general=st.booleans())
def test_the_stage_never_costs_more_than_it_was_given_and_every_item_has_its_result(
    limit: int, items: int, general: bool
) -> None:
    """`limit`: in thousands of nano-dollars; a call sets some 20 aside and costs 11. What finds no money is counted."""
    at = rolling(nano=1 + limit * 1_000)
    key = next(iter(Turn(CATALOG.models, document.with_rollout(Steering(), at)).rehearsals.values())).fund[0]
    rig = Rig(PLAIN, (Budget(10**12),) if general else ())
    steer(rig, at)
    rig.offer(items, attributes=RIGHT)
    left, results = at.shadow.limit_nano if at.shadow is not None else 0, list[object]()
    for n in range(60):
        for wish in rig.lane.wishes():
            most = left if wish.key == key else 10**12
            if wish.floor_nano > most:
                rig.lane.refused(wish, "spent", rig.now)
            else:
                rig.lane.leased(wish.key, {f"l{n}{wish.key}": wish.floor_nano}, rig.now)
                left -= wish.floor_nano if wish.key == key else 0
        for call in rig.take():
            rig.land(call)
        results += rig.commit().results
        for lease in rig.lane.till.purse.closable():
            rig.lane.till.purse.closed(lease.lease_id)
            assert lease.spent_nano <= 10**12
    assert len(results) == items
    spent = sum(cell.cost_nano for cell in rig.lane.cells.rows if cell.role == "shadow")
    paired = sum(cell.items for cell in rig.lane.cells.rows if cell.role == "shadow")
    assert spent <= 1 + limit * 1_000
    assert paired + unpaid(at, rig.lane.cells.rows) == items
    assert rig.lane.paying.spent_out is None, "the run goes on"


@pytest.mark.parametrize("judged_too", [False, True])
def test_an_item_waits_no_longer_for_a_shadow_stages_money_than_for_its_target(judged_too: bool) -> None:
    """Another job holds the rest of it, and may be dead: the ledger says "not now" for a quarter of an hour."""
    rig = Rig(msgspec.structs.replace(GRADED, sample=0.0) if judged_too else PLAIN)
    at = rolling(nano=60_000)
    steer(rig, at)
    rig.offer(5, attributes=RIGHT)
    for call in rig.take():
        rig.land(call)
    began, results = rig.now, list[Result]()
    while len(results) < 5 and rig.now - began < 900.0:
        assert rig.take() == []
        for wish in rig.lane.wishes():
            rig.lane.leased(wish.key, {}, rig.now)
        rig.now += 5.0
        rig.lane.tick(rig.now)
        results += rig.commit().results
    assert len(results) == 5
    assert PATIENCE_S < rig.now - began <= PATIENCE_S + 15.0
    assert all(r.shadows == () and r.answer.text == "yes" and r.unpaid for r in results)
    assert unpaid(at, rig.lane.cells.rows) == 5
    assert silent(at, rig.lane.cells.rows).whole == 0, "spent money is told as such, and not as an outage"
    check(rig.lane)


def test_money_that_comes_in_time_pays_for_the_shadow() -> None:
    rig = Rig(PLAIN)
    steer(rig, rolling())
    rig.offer(1, attributes=RIGHT)
    rig.land(rig.take()[0])
    rig.take()
    rig.lane.tick(rig.now)
    rig.now += PATIENCE_S - 1.0
    rig.lane.tick(rig.now)
    result = rig.one()
    assert (len(result.shadows), result.unpaid) == (1, False)


# ---- when it is over


def test_calls_that_wait_when_the_stage_ends_are_not_sent() -> None:
    rig, at = Rig(PLAIN), rolling()
    steer(rig, at)
    rig.offer(3, attributes=RIGHT)
    first, second, third = rig.take()
    for call in (first, second):
        rig.land(call)
    assert rig.lane.take("api:a", 9, 1 << 30, "w", rig.now) == [], "no money was leased yet"
    for wish in rig.lane.wishes():
        rig.lane.leased(wish.key, {"l": 10**6}, rig.now)
    (flying,) = rig.lane.take("api:a", 1, 1 << 30, "w", rig.now)
    steer(rig, said(at, "rollback", "ann", 2.0))
    rig.land(flying)
    rig.land(third)
    results = {r.item.item_id: r for r in rig.run()}
    assert [bool(results[f"i{n}"].shadows) for n in range(3)] == [flying.item_id == f"i{n}" for n in range(3)]
    assert all(r.model_version == "v1" for r in results.values())
    assert rig.failed == {"shadow|cancelled": 1}


# ---- what the guards make of it


def planted(at: Rollout, rng: np.random.Generator, pairs: int, base: float, lost: float, differ: float) -> list[Cell]:
    """Of so many pairs a share `differ` differs, and the candidate's mean is `lost` lower."""
    worse = int(rng.binomial(pairs, (differ + lost) / 2))
    better = int(rng.binomial(pairs, (differ - lost) / 2))
    cell = Cell("t", "main", "v2", "", "", "shadow", at.id, "candidate-0", items=pairs, results=pairs)
    cell.pairs["exact@1"] = Scored(counts={-1_000: worse, 0: pairs - worse - better, 1_000: better})
    right = round(pairs * (base - lost))
    cell.scores["exact@1"] = Scored(counts={0: pairs - right, 1_000: right})
    live = Cell("t", "main", "v1", "", "", "", at.id, "baseline-0", items=10 * pairs, results=10 * pairs)
    live.scores["exact@1"] = Scored(counts={0: pairs, 1_000: 9 * pairs})
    return [live, cell]


def test_a_worse_version_fails_its_shadow_and_an_equal_one_goes_on() -> None:
    rng = np.random.default_rng(1)
    at = rolling()
    after = see(at, judged(at, planted(at, rng, 400, 0.9, 0.1, 0.14)), 2.0)
    assert after is not None
    assert after.state == "rolled_back"
    assert "on the same 400 items" in after.decisions[-1].why
    after = see(at, judged(at, planted(at, rng, 1_000, 0.9, 0.0, 0.14)), 2.0)
    assert after is not None
    assert (after.state, after.stage) == ("running", 0)
    few = judged(at, planted(at, rng, 8, 0.9, 0.0, 0.14))
    assert see(at, few, 2.0) is None


def test_what_the_shadow_showed_does_not_count_for_the_stages_after_it() -> None:
    """Both may raise one false alarm in 200 rollouts, and together one in 100."""
    rng, at = np.random.default_rng(2), rolling()
    bad = planted(at, rng, 60, 0.9, 0.05, 0.2)
    stage = said(at, "promote", "ann", 2.0)
    assert [each.why for each in judged(stage, bad)] == ["quality: no item was scored yet"]
    alone = rolling(())
    told = [judged(each, planted(each, np.random.default_rng(3), 500, 0.9, 0.1, 0.14)) for each in (at, alone)]
    assert ["at most 0.5 %" in each[0].why for each in told] == [True, False]


@given(
    lanes=st.lists(
        st.dictionaries(st.integers(-1_000, 1_000), st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=4
    ),
    data=st.data(),
)
def test_pairs_of_lanes_and_jobs_add_up_in_any_order_and_can_be_taken_out(
    lanes: list[dict[int, int]], data: st.DataObject
) -> None:
    at = rolling()
    cells = []
    for counted in lanes:
        cell = Cell("t", "main", "v2", "", "", "shadow", at.id, "candidate-0", items=sum(counted.values()))
        cell.pairs["exact@1"] = Scored(counts=dict(counted))
        cell.unpaid = 1
        cells.append(cell)
    mixed = data.draw(st.permutations(cells))
    cut = data.draw(st.integers(0, len(cells)))
    whole = judged(at, cells, bounds=False)
    assert whole == judged(at, summed(summed(mixed[:cut]), summed(mixed[cut:])), bounds=False)
    assert unpaid(at, summed(cells)) == len(lanes)


def test_grades_are_compared_in_pairs_too() -> None:
    rig, at = Rig(msgspec.structs.replace(PLAIN, scorers=(GRADE,))), rolling()
    steer(rig, at)
    rig.says["main"] = "yes"
    rig.offer(2)
    rig.run()
    other = next(cell for cell in rig.lane.cells.rows if cell.role == "shadow")
    assert [scored.counts for scored in other.pairs.values()] == [{0: 2}]


def test_a_runs_pairs_get_into_the_registry_once_and_go_with_what_is_thrown_away() -> None:
    shared, told = Measured(), Sums(states=(Numbered(0),))
    for number, pairs in enumerate(({0: 5}, {0: 7, -1_000: 2}), start=1):
        cell = Cell("t", "main", "v2", "", "", "shadow", "r", "candidate-0", items=9)
        cell.pairs["exact@1"] = Scored(counts=dict(pairs))
        told = told.then([cell])
        fold(shared, "run", told, float(number))
        fold(shared, "run", told, float(number))
        assert [each.pairs["exact@1"].counts for each in shared.cells] == [pairs]
    fold(shared, "run", told.then([]), 3.0)
    assert shared.cells == []
    assert shared.recent == [], "differences are no scores of a model"
