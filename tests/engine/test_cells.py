"""Measured cells: each item that ended is in them once, wherever it was counted, and sums can be taken apart again."""

from __future__ import annotations

import math
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.engine.budget import Budgets
from penstock.engine.catalog import Account, Catalog, Model, Price, Version
from penstock.engine.flow.booking import MAX_ARMS, MAX_CELLS, Cells
from penstock.engine.flow.cells import (
    MAX_VALUES,
    Cell,
    Key,
    Scored,
    add,
    cells_in,
    quality_rows,
    summed,
)
from penstock.engine.flow.lane import Lane
from penstock.engine.flow.lane_types import Hooks, LaneSettings
from penstock.engine.items import Answer, Attributes, Failure, Item, Outcome, Position, Request, Role, Route, Usage
from penstock.engine.plan import Split
from penstock.engine.policy import Policy, Prompt, Scorer, Task
from penstock.engine.results import Attempt, DeadLetter, Result, Score, ShadowAnswer
from penstock.engine.router import Router

ROUTE = Route("sort", 2, (), (), "")


def item(number: int) -> Item:
    return Item(f"i{number}", Position("s", 0, number), Attributes(), Request(b"{}"), b"o", 0.0)


def attempt(
    model: str = "m", cost: int = 1_000, ms: float = 100.0, outcome: str = "ok", role: Role = "primary"
) -> Attempt:
    return Attempt(1, role, model, 0.0, ms, outcome, None, cost, "v1", "a", Usage(10, output=2))


def result(*attempts: Attempt, scores: tuple[Score, ...] = (), **more: object) -> Result:
    answer = Answer("yes", "stop", b"{}")
    model = attempts[-1].model if attempts else "m"
    fields = {"model": model, "scores": scores, **more}
    return msgspec.structs.replace(
        Result(
            item(1), ROUTE, answer, "m", "v1", "p", "a", None, "now", Usage(), sum(a.cost_nano for a in attempts),
            "metered", "", "policy", "prompt", attempts, 0.0, 0.0, 0.0, "h",
        ),
        **fields,
    )  # fmt: skip


def score(value: float, scorer: str = "exact") -> Score:
    return Score(scorer, "1", value, value >= 0.5)


def by_role(cells: Cells) -> dict[str, Cell]:
    return {f"{cell.model}{cell.role and '/' + cell.role}": cell for cell in cells.rows}


def test_an_item_counts_once_at_each_model_it_was_sent_to_and_as_a_result_at_the_one_that_answered() -> None:
    cells = Cells()
    cells.result(
        result(
            attempt("a", 5, outcome="timeout"), attempt("a", 7, outcome="refused"), attempt("b", 9), scores=(score(1),)
        )
    )
    a, b = by_role(cells)["a"], by_role(cells)["b"]
    assert (a.items, a.results, a.calls, a.cost_nano, a.failures, a.refused) == (
        1,
        0,
        2,
        12,
        {"timeout": 1, "refused": 1},
        1,
    )
    assert (b.items, b.results, b.calls, b.cost_nano, b.failures) == (1, 1, 1, 9, {})
    assert (a.input, a.output, b.input, b.output) == (20, 4, 10, 2)
    assert (a.scores, b.scores["exact@1"].counts) == ({}, {1000: 1})


def test_what_an_item_took_of_an_own_engines_time_is_that_of_all_its_calls_there() -> None:
    """A call that died with its engine has no part that is known: it counts as the others."""
    cells = Cells()
    timed = msgspec.structs.replace(attempt(), engine_ms=400.0)
    cells.result(result(timed))
    cells.result(result(attempt(outcome="engine_died"), msgspec.structs.replace(timed, engine_ms=200.0)))
    (cell,) = cells.rows
    assert cell.engine_s() == pytest.approx((0.4 + 0.2) / 2 * 3 / 2)
    assert Cell().engine_s() is None


def test_an_item_without_a_result_counts_as_failed_at_each_model_that_was_asked() -> None:
    """With the prompt that they were asked with."""
    cells = Cells()
    dead = DeadLetter("i", Position("s", 0, 1), "attempts_exhausted", "", b"", route=ROUTE, prompt_version="p7")
    cells.dead(msgspec.structs.replace(dead, attempts=(attempt("a", 0, outcome="timeout"),)))
    cells.dead(dead)
    (cell,) = cells.rows
    assert (cell.items, cell.results, cell.prompt, cell.cost_n) == (1, 0, "p7", 0)


def test_a_copied_answer_is_no_new_evidence() -> None:
    cells = Cells()
    cells.result(result(scores=(score(1.0),), copied_from="i0"))
    assert cells.rows == []


def test_a_shadow_is_told_apart_from_results_and_a_judge_is_on_the_bill_of_what_it_judged() -> None:
    """The same model under another role is another cell."""
    cells = Cells()
    shadow = ShadowAnswer("b", "v1", "no", (score(0.0),), Usage(), 30, 5.0, 0.1)
    calls = (attempt("m", 10), attempt("b", 30, role="shadow"), attempt("j", 4, role="judge"))
    cells.result(result(*calls, scores=(score(1.0),), model="m", shadows=(shadow,)))
    found = by_role(cells)
    assert (found["m"].judge_nano, found["m"].cost_nano, found["m"].scores["exact@1"].counts) == (4, 10, {1000: 1})
    assert (found["b/shadow"].cost_nano, found["b/shadow"].results) == (30, 1)
    assert found["b/shadow"].scores["exact@1"].counts == {0: 1}
    assert (found["j/judge"].cost_nano, found["j/judge"].results) == (4, 0)
    assert [(row.model, row.n) for row in quality_rows(cells.rows)] == [("b@v1 (shadow)", 1), ("m@v1", 1)]


def test_arms_of_an_experiment_have_cells_of_their_own() -> None:
    cells = Cells()
    for arm in "ab":
        one = msgspec.structs.replace(attempt(), experiment="tone", arm=arm)
        cells.result(result(one, experiment="tone", arm=arm))
    assert [(cell.experiment, cell.arm, cell.items, cell.results) for cell in cells.rows] == [
        ("tone", "a", 1, 1),
        ("tone", "b", 1, 1),
    ]


def test_logarithms_of_cost_and_latency_are_those_of_the_items() -> None:
    cells, dice = Cells(), random.Random(3)
    drawn = [(round(dice.lognormvariate(12, 1)), dice.lognormvariate(6, 0.5)) for _ in range(500)]
    for cost, ms in drawn:
        cells.result(result(attempt("m", cost, ms)))
    (cell,) = cells.rows
    logs = [math.log(cost) for cost, _ in drawn]
    mean = sum(logs) / 500
    found = cell.log_cost()
    assert (found.n, found.mean) == (500, pytest.approx(mean, abs=2e-3))
    assert found.variance == pytest.approx(sum((x - mean) ** 2 for x in logs) / 500, rel=1e-2)
    assert cell.log_ms().mean == pytest.approx(sum(math.log(ms) for _, ms in drawn) / 500, abs=2e-3)
    assert cell.cost().mean * 500 == pytest.approx(cell.cost_nano)


def test_a_job_of_ever_new_prompts_keeps_a_bounded_number_of_cells_and_loses_no_count() -> None:
    cells = Cells()
    for number in range(3 * MAX_CELLS):
        cells.result(result(attempt(), prompt_version=f"p{number}"))
    assert len(cells.rows) == MAX_CELLS + 1
    assert sum(cell.items for cell in cells.rows) == 3 * MAX_CELLS


def test_a_watch_over_many_tasks_is_seen_by_its_guards_however_many_prompts_there_were() -> None:
    cells = Cells()
    for number in range(2 * MAX_CELLS):
        cells.result(result(attempt(), prompt_version=f"p{number}"))
    for round_ in range(10):
        for task in range(40):
            for arm in ("baseline-1", "candidate-1"):
                one = result(msgspec.structs.replace(attempt(), experiment=f"m-{round_}", arm=arm), arm=arm)
                route = msgspec.structs.replace(one.route, task=f"t{task}")
                cells.result(msgspec.structs.replace(one, route=route, experiment=f"m-{round_}"))
    assert len({cell.task for cell in cells.rows if cell.experiment == "m-9"}) == 40
    assert len(cells.rows) <= MAX_CELLS + MAX_ARMS + 41, "and what takes the rest of a task"
    assert sum(cell.items for cell in cells.rows) == 2 * MAX_CELLS + 10 * 40 * 2
    assert sum(cell.items for cell in Cells(cells.rows).rows) == 2 * MAX_CELLS + 10 * 40 * 2


def test_a_model_of_a_cascade_is_measured_by_what_was_believed_of_it_and_by_what_was_not() -> None:
    """Else its quality would be that of the answers it was sure of, and routes would go by it. What was delivered is
    told apart."""
    cells = Cells()
    small = msgspec.structs.replace(attempt("small"), experiment="r", arm="candidate-1")
    doubted = ShadowAnswer("small", "v1", "no", (score(0.0),), Usage(), 1_000, 100.0, 1.0, "cascade", 0.3)
    cells.result(result(small, attempt("top", role="cascade"), scores=(score(1.0),), doubted=(doubted,)))
    cells.result(result(small, model="small", scores=(score(1.0),), experiment="r", arm="candidate-1"))
    own, apart = (cell for cell in cells.rows if cell.model == "small")
    assert (own.role, own.items, own.results, own.scores["exact@1"].counts) == ("", 2, 1, {1000: 1})
    assert (apart.role, apart.items, apart.results, apart.scores["exact@1"].counts) == ("shadow", 0, 0, {0: 1})
    (of_top,) = [cell for cell in cells.rows if cell.model == "top"]
    assert of_top.scores["exact@1"].counts == {1000: 1}


def test_the_hundredth_rollout_of_a_run_without_an_end_is_still_seen_by_its_guards() -> None:
    """Arms of rollouts that are over for long make room; nothing that was counted is lost, and one that goes stays."""
    cells, count = Cells(), 0
    for number in range(100):
        for arm in ("baseline-1", "candidate-1"):
            for name in ("job/always", f"m-v{number}"):
                one = msgspec.structs.replace(attempt(), experiment=name, arm=arm)
                cells.result(result(one, experiment=name, arm=arm))
                count += 1
            failed = msgspec.structs.replace(attempt("other", outcome="server_error"), experiment="job/always", arm=arm)
            cells.result(result(failed, one, experiment=name, arm=arm))
            count += 2  # an item counts once at each model that was asked
    assert len(cells.rows) <= MAX_CELLS + MAX_ARMS
    assert sum(cell.items for cell in cells.rows) == count
    assert not any(cell.arm == "*" for cell in cells.rows)
    arms = {(cell.experiment, cell.arm): cell.items for cell in cells.rows if cell.model == "m"}
    assert arms["m-v99", "candidate-1"] == 2
    assert arms["job/always", "candidate-1"] == 100
    assert sum(cell.calls for cell in summed(cells.rows)) == count
    assert [Cells(cells.rows).at(cell.key) for cell in cells.rows] == cells.rows


def test_scores_of_many_values_are_kept_in_hundredths() -> None:
    scored = Scored()
    for step in range(1001):
        scored.add(score(step / 1000))
    assert len(scored.counts) <= MAX_VALUES
    assert (scored.n, scored.passed) == (1001, 501)
    assert scored.sample().mean == pytest.approx(0.5, abs=0.001)


VALUES = st.lists(st.floats(0, 1), max_size=60)


def cell_of(values: list[float], prompt: str, cost: int) -> Cell:
    cells = Cells()
    for value in values:
        cells.result(result(attempt("m", cost), scores=(score(value),), prompt_version=prompt))
    return cells.rows[0] if cells.rows else Cell("sort", "m", "v1", prompt)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(VALUES, st.sampled_from("pq"), st.integers(0, 10**12)), max_size=6), st.randoms())
def test_sums_are_the_same_in_any_order_and_what_was_added_can_be_taken_out_again(
    parts: list[tuple[list[float], str, int]], dice: random.Random
) -> None:
    cells = [cell_of(*part) for part in parts]
    mixed = list(cells)
    dice.shuffle(mixed)
    whole = [exact(cell) for cell in summed(cells)]
    assert [exact(cell) for cell in summed(mixed[:2], mixed[2:])] == whole
    total: dict[Key, Cell] = {}
    add(total, cells)
    add(total, cells, -1)
    assert all(not cell.items and not cell.cost_nano and not cell.ms_ln2 for cell in total.values())
    assert all(not any(scored.counts.values()) for cell in total.values() for scored in cell.scores.values())


def exact(cell: Cell) -> Cell:
    """All but the one sum that is rounded."""
    return msgspec.structs.replace(cell, cost_square=0.0)


# ---- in a lane


def lane() -> Lane:
    price = Price(input=10**9, output=10**9, version="p1")
    models = {n: Model(n, (Version("v1", n),), "v1", account="a", price=price) for n in ("m", "n")}
    catalog = Catalog({"a": Account("a", "openai", "http://localhost")}, models, {1: ("m", "n")})
    task = Task("sort", tier=1, sample=1.0, scorers=(Scorer("exact"),), prompt=Prompt("x", version="w1"))
    policy = Policy({"sort": task}, default_task="sort", max_attempts=3)
    hooks = Hooks(lambda: 0.5, lambda _item, answer, _task: (score(float(answer.text)),), lambda body, _a, _m: body)
    return Lane(LaneSettings(0, "r"), Router(catalog, policy), catalog, policy, hooks, Budgets((), "r"))


@pytest.mark.parametrize("seed", range(10))
def test_a_lane_that_is_killed_again_and_again_counts_every_item_once(seed: int) -> None:
    """What a dead owner had counted and not committed is counted by the next one, under the numbers of the next one's
    calls. In the end the cells are those of the committed records, whatever happened in between."""
    dice, count, now = random.Random(seed), 60, 1.0
    chunks: dict[str, bytes] = {}
    seq, ended = 0, list[Result | DeadLetter]()
    while True:
        machine = lane()
        machine.begin([Split("s", "o", 0, 0, "u", 0, count)], chunks, seq)
        alive, read = dice.randrange(3, 40), 0
        pending: list[Outcome] = []
        while alive or read >= count:
            alive = max(0, alive - 1)
            now += 1.0
            while read < count and machine.wants():
                machine.offer(item(read), now)
                read += 1
            machine.tick(now)
            calls = machine.take("api:a", 5, 1 << 40, "w", now)
            pending += [outcome(call.item_id, call.attempt, now, dice) for call in calls]
            dice.shuffle(pending)
            for each in [pending.pop() for _ in range(dice.randrange(len(pending) + 1))]:
                machine.outcome(each, now)
            if dice.random() < 0.5:
                batch = machine.commit(now)
                if dice.random() < 0.2:  # killed while it commits: it was written, or it was not
                    break
                machine.committed(now)
                seq = batch.seq
                chunks |= {name: data for name, data in batch.chunks.items() if data}
                for name in [name for name, data in batch.chunks.items() if not data]:
                    chunks.pop(name, None)
                ended += [*batch.results, *batch.dead_letters]
            if len(ended) == count:
                break
        if len(ended) == count:
            break
    check(cells_in(chunks), ended)


def outcome(item_id: str, number: int, now: float, dice: random.Random) -> Outcome:
    usage = Usage(dice.randrange(1, 100), output=3)
    if dice.random() < 0.2:
        failure = Failure("invalid_response", "no", may_be_billed=True)
        return Outcome(item_id, 0, number, now, 50.0, failure=failure, usage=usage)
    return Outcome(item_id, 0, number, now, 200.0, Answer(dice.choice("01"), "stop", b"{}"), None, usage)


def check(cells: list[Cell], ended: list[Result | DeadLetter]) -> None:
    attempts = [attempt for one in ended for attempt in one.attempts]
    results = [one for one in ended if isinstance(one, Result)]
    assert {(cell.task, cell.prompt, cell.price) for cell in cells} <= {("sort", "w1", "p1")}
    assert sum(cell.calls for cell in cells) == len(attempts)
    assert sum(cell.cost_nano for cell in cells) == sum(attempt.cost_nano for attempt in attempts)
    assert sum(cell.input for cell in cells) == sum(a.usage.input for a in attempts if a.usage is not None)
    assert sum(sum(cell.failures.values()) for cell in cells) == sum(a.outcome != "ok" for a in attempts)
    assert sum(cell.results for cell in cells) == len(results)
    for name in ("m", "n"):
        asked = sum(any(attempt.model == name for attempt in one.attempts) for one in ended)
        assert sum(cell.items for cell in cells if cell.model == name) == asked
        right = sum(one.model == name and one.scores[0].passed for one in results)
        assert sum(s.passed for cell in cells if cell.model == name for s in cell.scores.values()) == right
