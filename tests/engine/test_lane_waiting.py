"""Who waits inside a lane, and for what: urgent items ahead of bulk, deadlines, paused tiers, money of tomorrow."""

from __future__ import annotations

from math import inf

import msgspec
import pytest

from penstock.engine.budget import Budget, Budgets, Period
from penstock.engine.catalog import Account, Catalog, Model, Price, Version
from penstock.engine.flow.lane import Lane
from penstock.engine.flow.lane_check import check
from penstock.engine.flow.lane_types import CommitBatch, Hooks, LaneSettings
from penstock.engine.items import Answer, Attributes, Call, Failure, Item, Outcome, Position, Request, Usage
from penstock.engine.plan import Split
from penstock.engine.policy import Policy, Scorer, Task
from penstock.engine.router import Router

POOL = "api:a"
DAY_S = 86_400.0
NOW = 20_000 * DAY_S + 80_000.0
"""Late in a day."""
CATALOG = Catalog(
    {"a": Account("a", "openai", "http://localhost")},
    {"m": Model("m", (Version("v1", "m"),), "v1", account="a", price=Price(10**9, 10**9), context=8000)},
    {1: ("m",), 3: ("m",)},
)
POLICY = Policy({"t": Task("t", max_tokens=10), "same": Task("same", max_tokens=10, reuse=True)}, default_task="t")


class Rig:
    def __init__(
        self, budgets: tuple[Budget, ...] = (), *, endless: bool = True, floor: int = 4, policy: Policy = POLICY
    ) -> None:
        settings = LaneSettings(0, "r", 1000, horizon_floor=floor, endless=endless)
        hooks = Hooks(lambda: 0.5, lambda item, answer, task: (), lambda body, answer, message: body)
        self.lane = Lane(settings, Router(CATALOG, policy), CATALOG, policy, hooks, Budgets(budgets, "r"))
        self.lane.begin([Split(f"s{n}", "o", n, 0, "u", 0, None, "rows") for n in range(2)], {}, 0)
        self.now = NOW
        self.read = [0, 0]
        self.commit()

    def offer(
        self, n: int, attributes: Attributes | None = None, split: int = 0, *, published: float | None = None
    ) -> list[str]:
        at = self.now if published is None else published
        names: list[str] = []
        for _ in range(n):
            position = self.read[split]
            self.read[split] += 1
            names.append(f"{split}.{position}")
            where = Position(f"s{split}", split, position)
            request = Request(b'{"messages":[]}', input_hash="0")
            self.lane.offer(Item(names[-1], where, attributes or Attributes(tier=3), request, b"x", at), self.now)
        return names

    def commit(self) -> CommitBatch:
        batch = self.lane.commit(self.now)
        self.lane.committed(self.now)
        check(self.lane)
        return batch

    def take(self, n: int = 100) -> list[str]:
        self.calls = self.lane.take(POOL, n, 1 << 30, "w", self.now)
        check(self.lane)
        return [call.item_id for call in self.calls]

    def answer(self, call: Call) -> None:
        usage = Usage(10, output=1)
        done = Outcome(call.item_id, 0, call.attempt, self.now, 1.0, Answer("a", "stop", b"{}"), None, usage)
        self.lane.outcome(done, self.now)

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.lane.tick(self.now)
        check(self.lane)


def test_an_item_is_as_old_as_its_reading_not_as_the_backlog_that_it_comes_from() -> None:
    """A job that reads a topic of last week has no item that hangs: nobody is to be woken up for it."""
    rig = Rig()
    rig.offer(1, published=NOW - 7 * DAY_S)
    rig.tick(5.0)
    assert rig.lane.ends.oldest_age(rig.now) == 5.0


def test_items_that_come_with_little_time_press_nobody_while_they_are_answered_in_it() -> None:
    """Each has 30 s and is answered in two: somebody was paged all day for the one that was read last. One that has
    waited for most of its time presses, however much that was."""
    rig = Rig()
    for _ in range(20):
        rig.offer(1, Attributes(tier=3, deadline=rig.now + 30.0))
        rig.commit()
        rig.take()
        rig.tick(2.0)
        assert rig.lane.ends.deadline_left(rig.now) == inf
        for call in rig.calls:
            rig.answer(call)
    rig.offer(1, Attributes(tier=3, deadline=rig.now + 3600.0))
    rig.tick(3550.0)
    assert rig.lane.ends.deadline_left(rig.now) == 50.0


# urgent ones


def test_a_realtime_item_behind_bulk_leaves_with_the_next_commit() -> None:
    """Hundreds of bulk items were read before it and wait for the horizon; so does what stands in other splits."""
    rig = Rig()
    rig.offer(300)
    rig.offer(50, split=1)
    (urgent,) = rig.offer(1, Attributes(tier=3, latency="realtime"))
    assert rig.lane.thirsty, "the next commit is made at once"
    rig.commit()
    assert rig.take(1) == [urgent]
    assert all(slot.state == "beyond" for slot in rig.lane.slots.values() if slot.item.source.ordinal == 1)


@pytest.mark.parametrize("urgent", [Attributes(tier=3, latency="realtime"), Attributes(tier=3, priority=1)])
def test_an_urgent_item_does_not_follow_an_equal_one_at_the_end_of_the_queue(urgent: Attributes) -> None:
    rig = Rig(floor=100)
    rig.offer(20)
    (bulk,) = rig.offer(1, Attributes(tier=3, task="same"))
    (pressed,) = rig.offer(1, msgspec.structs.replace(urgent, task="same"))
    rig.commit()
    assert rig.take(1) == [pressed]
    assert bulk in rig.take()


def test_higher_priority_leaves_before_lower_and_realtime_before_all() -> None:
    """Below zero is behind bulk."""
    rig = Rig(floor=100)
    names = [
        rig.offer(1, Attributes(tier=3, priority=priority, latency=latency))[0]  # type: ignore[arg-type]
        for priority, latency in ((-5, None), (None, None), (3, None), (9, None), (None, "realtime"), (1, "realtime"))
    ]
    rig.commit()
    assert rig.take() == list(reversed(names))


# deadlines


def dead(batch: CommitBatch) -> list[tuple[str, str, int]]:
    return [(letter.item_id, letter.reason, len(letter.attempts)) for letter in batch.dead_letters]


WHERE = ["behind the horizon", "ready and not taken", "waiting for money", "paused", "shelved", "behind an equal one"]


@pytest.mark.parametrize("where", WHERE)
def test_an_item_whose_deadline_passes_ends_unsent_wherever_it_waits(where: str) -> None:
    """A dead letter `deadline`, nothing paid, and the others go on."""
    rig = Rig((Budget(10**12),) if where == "waiting for money" else ())
    if where == "paused":
        rig.lane.pause(frozenset({3}), rig.now)
    if where == "behind the horizon":
        rig.offer(20, Attributes(tier=1))
    task = "same" if where == "behind an equal one" else "t"
    if where == "behind an equal one":
        rig.offer(1, Attributes(tier=3, task=task))
    (pressed,) = rig.offer(1, Attributes(tier=3, task=task, deadline=rig.now + 60))
    (other,) = rig.offer(1, Attributes(tier=1))
    if where != "behind the horizon":
        rig.commit()
    if where == "waiting for money":
        assert rig.take() == []
        assert rig.lane.till.waiting == 2
    if where == "shelved":
        slot = rig.lane.slots[pressed, 0]
        rig.lane.shelf.put(slot)
        rig.lane.progress.of(0).done(slot.item.source.position)
    if where == "behind an equal one":
        rig.take(1)
        assert rig.lane.slots[pressed, 0].state == "following"
    rig.tick(59.0)
    assert not rig.lane.ends.dead_letters
    rig.tick(2.0)
    assert dead(rig.commit()) == [(pressed, "deadline", 0)]
    assert (other, 0) in rig.lane.slots
    assert pressed not in rig.take()


def test_an_expired_leader_leaves_its_followers_to_ask_for_themselves() -> None:
    """Equal requests: the first had a deadline, the others have none."""
    rig = Rig()
    (leader,) = rig.offer(1, Attributes(tier=3, task="same", deadline=rig.now + 60))
    follower, other = rig.offer(2, Attributes(tier=3, task="same"))
    rig.commit()
    rig.tick(61.0)
    assert dead(rig.commit()) == [(leader, "deadline", 0)]
    assert rig.take() == [follower]
    rig.answer(rig.calls[0])
    assert {result.item.item_id for result in rig.commit().results} == {follower, other}


def test_a_follower_keeps_the_answer_that_came_in_time() -> None:
    """It is judged yet when the deadline passes: the item ends with it, as the one that was asked would."""
    judge = Scorer("judge", model="m", rubric="good?", choices=("1", "2"))
    task = Task("t", max_tokens=10, reuse=True, sample=1.0, scorers=(judge,))
    rig = Rig(policy=Policy({"t": task}, default_task="t"))
    (leader,) = rig.offer(1)
    (follower,) = rig.offer(1, Attributes(tier=3, deadline=rig.now + 60))
    rig.commit()
    for _ in ("the answer", "what the judge says"):
        rig.take()
        rig.tick(50.0)
        rig.answer(rig.calls[0])
    batch = rig.commit()
    assert [result.item.item_id for result in batch.results] == [leader, follower]
    assert batch.dead_letters == []


def test_deadlines_of_finished_items_are_forgotten_long_before_their_time() -> None:
    """A day's deadline on each of a stream of items must not keep them in memory for a day."""
    rig = Rig(floor=100)
    for _ in range(50):
        rig.offer(50, Attributes(tier=3, deadline=rig.now + DAY_S))
        rig.commit()
        rig.take()
        for call in rig.calls:
            rig.answer(call)
        rig.tick(1.0)
    rig.commit()
    rig.lane.deadlines.check(len(rig.lane.slots))


# tiers that are paused


def test_a_paused_tier_waits_and_the_others_go_on() -> None:
    """What is in flight lands; what is ready stays; after `resume` all of it leaves, none of it is lost."""
    rig = Rig(floor=100)
    bulk, important = rig.offer(4), rig.offer(2, Attributes(tier=1))
    rig.commit()
    assert rig.take(3) == bulk[:3]
    flying = rig.calls
    rig.lane.pause(frozenset({3}), rig.now)
    more = rig.offer(2)
    rig.commit()
    assert rig.take() == important
    rig.answer(flying[0])
    rig.tick(3600.0)
    assert rig.take() == []
    assert [result.item.item_id for result in rig.commit().results] == [bulk[0]]
    rig.lane.pause(frozenset(), rig.now)
    assert rig.take() == [bulk[3], *more]


def test_items_of_a_paused_tier_wait_for_a_person_and_for_no_model() -> None:
    """A provider was down when somebody paused the tier for the night. Two hours later the run was ended for that
    outage, though nobody had asked the provider any more."""
    rig = Rig(floor=100)
    rig.offer(4)
    rig.commit()
    assert rig.lane.waiting
    (first, second) = rig.lane.take(POOL, 2, 1 << 30, "w", rig.now)
    rig.lane.pause(frozenset({3}), rig.now)
    assert rig.lane.waiting, "calls are out"
    rig.answer(first)
    failed = Outcome(second.item_id, 0, 1, rig.now, 1.0, failure=Failure("rate_limited", "slow down", 429, 9.0))
    rig.lane.outcome(failed, rig.now)
    rig.offer(3)
    rig.commit()
    assert not rig.lane.waiting
    rig.tick(60.0)
    assert not rig.lane.waiting
    rig.lane.pause(frozenset(), rig.now)
    assert rig.lane.waiting


def test_an_item_does_not_wait_behind_an_equal_one_of_a_paused_tier() -> None:
    rig = Rig()
    rig.lane.pause(frozenset({3}), rig.now)
    rig.offer(1, Attributes(tier=3, task="same"))
    (important,) = rig.offer(1, Attributes(tier=1, task="same"))
    rig.commit()
    assert rig.take() == [important]


# money


def refuse(rig: Rig) -> None:
    for wish in rig.lane.wishes():
        rig.lane.refused(wish, "it is spent", rig.now)


def test_an_endless_run_waits_for_the_next_days_money() -> None:
    """Nothing ends as a dead letter; the lane says what it waits for; at midnight (UTC) it asks anew."""
    rig = Rig((Budget(10**6, per="day"),))
    first, second = rig.offer(2)
    rig.commit()
    assert rig.take() == []
    refuse(rig)
    rig.take()
    assert rig.lane.paying.waits_until is not None
    midnight, words = rig.lane.paying.waits_until
    assert midnight == 20_001 * DAY_S
    assert "it is spent" in words
    assert rig.take() == []
    assert rig.lane.wishes() == [], "the ledger is not asked again before"
    rig.tick(midnight - rig.now + 1)
    assert rig.take() == []
    (wish,) = rig.lane.wishes()
    assert wish.key == "day/2024-10-05"
    rig.lane.leased(wish.key, {"l": sum(wish.calls)}, rig.now)
    assert rig.take() == [first, second]
    assert not rig.lane.ends.dead_letters


@pytest.mark.parametrize("endless", [True, False])
def test_a_no_of_yesterdays_budget_leaves_todays_money_to_the_item(endless: bool) -> None:
    """It waited for the ledger's word while midnight passed: it asks today's budget, and is neither ended nor held."""
    rig = Rig((Budget(10**6, per="day"),), endless=endless)
    rig.offer(1)
    rig.commit()
    rig.take()
    (yesterday,) = rig.lane.wishes()
    rig.now = (NOW // DAY_S + 1) * DAY_S + 1.0
    rig.lane.refused(yesterday, "nothing left", rig.now)
    rig.commit()
    rig.take()
    (today,) = rig.lane.wishes()
    assert today.key != yesterday.key
    rig.lane.leased(today.key, {"l": 10**6}, rig.now)
    assert rig.take() == ["0.0"]
    assert rig.lane.tally.dead_letters == {}


@pytest.mark.parametrize("per", ["day", "month"])
def test_a_run_with_an_end_stops_where_the_days_money_is_spent(per: Period) -> None:
    """Its items stay undone: the same command goes on tomorrow."""
    rig = Rig((Budget(10**6, per=per),), endless=False)
    rig.offer(2)
    rig.commit()
    rig.take()
    refuse(rig)
    assert rig.lane.paying.spent_out is not None
    assert "when that day or month is over (UTC), the same command goes on" in rig.lane.paying.spent_out
    assert rig.take() == []
    assert (dead(rig.commit()), rig.lane.paying.waits_until, len(rig.lane.slots)) == ([], None, 2)


@pytest.mark.parametrize("endless", [True, False])
def test_a_tenant_does_not_wait_for_tomorrow(endless: bool) -> None:
    """One tenant's items must not stand before everybody's."""
    rig = Rig((Budget(10**6, per="day", tenant="*"),), endless=endless)
    rig.offer(2)
    rig.commit()
    rig.take()
    refuse(rig)
    rig.take()
    assert [reason for _, reason, _ in dead(rig.commit())] == ["budget", "budget"]
    assert rig.lane.paying.spent_out is None
