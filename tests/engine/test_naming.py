"""A provider that answers with another model than it was asked for is noticed, and treated as the catalogue says."""

from __future__ import annotations

from typing import Literal

import pytest

from penstock.engine.budget import Budgets
from penstock.engine.catalog import Account, Catalog, Model, Price, Version
from penstock.engine.flow.lane import Lane
from penstock.engine.flow.lane_check import check
from penstock.engine.flow.lane_types import Hooks, LaneSettings
from penstock.engine.flow.tally import MAX_NAME, MAX_NAMES, OTHERS, UNSAID
from penstock.engine.items import Answer, Attributes, Item, Outcome, Position, Request, Usage
from penstock.engine.naming import named
from penstock.engine.plan import Split
from penstock.engine.policy import Policy, Task
from penstock.engine.router import Router

NOW = 1_000_000.0


@pytest.mark.parametrize(
    ("pinned", "answered", "what"),
    [
        ("gpt-4o", "gpt-4o", "same"),
        ("gpt-4o", "", "same"),
        ("Qwen/Qwen3-8B", "qwen/qwen3-8b", "same"),
        ("gpt-4o", "gpt-4o-2024-08-06", "alias"),
        ("gpt-3.5-turbo", "gpt-3.5-turbo-0125", "alias"),
        ("claude-haiku-4-5", "claude-haiku-4-5-20251001", "alias"),
        ("claude-3-5-haiku-latest", "claude-3-5-haiku-20241022", "alias"),
        ("gemini-2.0-flash", "models/gemini-2.0-flash-001", "alias"),
        ("openai/gpt-4o", "gpt-4o-2024-08-06", "alias"),
        ("llama-3.3-70b", "accounts/fireworks/models/llama-3.3-70b", "alias"),
        ("gpt-4o", "gpt-4o-mini", "other"),
        ("gpt-4o", "gpt-4o-mini-2024-07-18", "other"),
        ("gpt-4o-2024-08-06", "gpt-4o-2024-11-20", "other"),
        ("gpt-4o-2024-08-06", "gpt-4o", "other"),
        ("big-70b", "ig-70b", "other"),
        ("llama-3.3-70b", "llama-3.3-8b", "other"),
    ],
)
def test_an_alias_may_stand_for_a_snapshot_and_a_snapshot_for_itself_alone(
    pinned: str, answered: str, what: str
) -> None:
    assert named(pinned, answered) == what


def lane(word: Literal["tell", "refuse"], items: int = 1, fingerprint: str | None = None) -> Lane:
    def version(name: str) -> Version:
        return Version("v1", name, on_other_model=word, fingerprint=fingerprint)

    models = {
        name: Model(name, (version(name),), "v1", account=name, price=Price(10**9, 10**9))
        for name in ("first", "second")
    }
    accounts = {name: Account(name, "openai", "http://localhost") for name in models}
    catalog, policy = Catalog(accounts, models, {3: tuple(models)}), Policy({"t": Task("t")}, default_task="t")
    hooks = Hooks(lambda: 0.0, lambda _i, _a, _t: (), lambda body, _a, _m: body)
    made = Lane(LaneSettings(0, "r"), Router(catalog, policy), catalog, policy, hooks, Budgets((), "r"))
    made.begin([Split("s", "o", 0, 0, "u", 0, items)], {}, 0)
    for n in range(items):
        made.offer(Item(f"i{n}", Position("s", 0, n), Attributes(), Request(b"{}"), b"o", NOW), NOW)
    made.commit(NOW)
    made.committed(NOW)
    return made


def answer(made: Lane, account: str, name: str, fingerprint: str | None = None, n: int = 100) -> int:
    """All calls that wait there, in this name; how many they were."""
    calls = made.take(f"api:{account}", n, 1 << 40, "w", NOW)
    for call in calls:
        said = Answer("yes", "stop", b"{}", name, fingerprint)
        made.outcome(Outcome(call.item_id, 0, call.attempt, NOW, 9.0, said, usage=Usage(10, output=5)), NOW)
    check(made)
    return len(calls)


def test_an_answer_of_another_model_is_taken_and_counted_where_nothing_is_said() -> None:
    made = lane("tell")
    answer(made, "first", "first-mini")
    (result,) = made.commit(NOW).results
    assert result.model == "first"
    row = made.tally.models["first@v1"]
    assert (row.answered_as, row.other_model, row.failures) == ({"first-mini": 1}, 1, {})


def test_an_answer_of_another_model_is_a_failure_where_it_is_refused_and_its_money_is_booked() -> None:
    made = lane("refuse")
    answer(made, "first", "first-mini")
    answer(made, "second", "second-2026-01-01")  # a date is no other model
    batch = made.commit(NOW)
    (result,) = batch.results
    assert (result.model, result.cost_nano) == ("second", 30_000)
    assert [(a.model, a.outcome, a.cost_nano) for a in result.attempts] == [
        ("first", "other_model", 15_000),
        ("second", "ok", 15_000),
    ]
    assert [line.cost_nano for line, _ in batch.costs] == [15_000, 15_000]
    assert (made.tally.models["second@v1"].answered_as, made.tally.models["second@v1"].other_model) == (
        {"second-2026-01-01": 1},
        0,
    )


@pytest.mark.parametrize("said", ["fp2", None])
def test_an_answer_with_another_fingerprint_than_the_pinned_one_is_of_another_model(said: str | None) -> None:
    """Silence is not the pinned one: what can't be seen can't be held to."""
    made = lane("refuse", items=2, fingerprint="fp1")
    answer(made, "first", "first", said, n=1)
    answer(made, "first", "first", "fp1", n=1)
    answer(made, "second", "second", "fp1")
    batch = made.commit(NOW)
    assert sorted(result.model for result in batch.results) == ["first", "second"]
    (moved,) = (result for result in batch.results if result.model == "second")
    assert [(a.model, a.outcome, a.cost_nano) for a in moved.attempts] == [
        ("first", "other_model", 15_000),
        ("second", "ok", 15_000),
    ]
    row = made.tally.models["first@v1"]
    assert (row.other_model, row.fingerprints) == (1, {said or UNSAID: 1, "fp1": 1})


def test_another_fingerprint_is_taken_and_counted_where_it_is_only_told() -> None:
    made = lane("tell", fingerprint="fp1")
    answer(made, "first", "first", "fp2")
    assert [result.model for result in made.commit(NOW).results] == ["first"]
    assert made.tally.models["first@v1"].other_model == 1


def test_who_goes_on_answering_as_another_is_held_like_who_fails() -> None:
    """Each refused answer is paid for: a few, and its breaker opens."""
    made = lane("refuse", items=30)
    answer(made, "first", "first-mini")
    assert [model for _, model in made.targets.health.opened(NOW)] == ["first"]
    assert answer(made, "second", "second") == 30


def test_who_alone_goes_on_answering_as_another_is_paid_no_more_until_a_person_mends_it() -> None:
    """Ten in a row, and the rest wait, with words of what to mend; one look in five minutes, not one in seconds."""
    made = lane("refuse", items=30)
    for _ in range(10):
        answer(made, "first", "first-mini", n=1)
        answer(made, "second", "second-mini", n=1)
    made.tick(NOW)
    assert answer(made, "first", "first") + answer(made, "second", "second") == 0
    words = made.places.stuck() or ""
    assert "it answers as another model" in words
    assert "'second' was asked for, and 'second-mini' answered" in words
    made.tick(NOW + 250.0)
    assert made.take("api:first", 9, 1 << 40, "w", NOW + 250.0) == []
    made.tick(NOW + 400.0)
    assert len(made.take("api:first", 9, 1 << 40, "w", NOW + 400.0)) <= 1


def test_names_and_fingerprints_are_kept_few_and_short() -> None:
    """What a provider says of itself is in every commit of the lane, for ever."""
    made = lane("tell", items=20)
    for n, call in enumerate(made.take("api:first", 20, 1 << 40, "w", NOW)):
        said = Answer("yes", "stop", b"{}", f"{n}" + "x" * 1_000, f"fp{n}")
        made.outcome(Outcome(call.item_id, 0, call.attempt, NOW, 9.0, said, usage=Usage(10, output=5)), NOW)
    row = made.tally.models["first@v1"]
    assert len(row.answered_as) == len(row.fingerprints) == MAX_NAMES + 1
    assert (row.answered_as[OTHERS], row.fingerprints[OTHERS]) == (20 - MAX_NAMES, 20 - MAX_NAMES)
    assert max(map(len, row.answered_as)) == MAX_NAME
