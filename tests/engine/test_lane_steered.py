"""Versions change while a lane works: what is not at a worker gets the new ones, and nothing else about it changes."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from penstock.engine.budget import Budgets
from penstock.engine.catalog import Account, Catalog, Model, Price, Version
from penstock.engine.flow.cells import cells_in
from penstock.engine.flow.lane import Lane
from penstock.engine.flow.lane_types import Adopted, Hooks, LaneSettings
from penstock.engine.flow.slots import Slot
from penstock.engine.items import Answer, Attributes, Exposure, Failure, Item, Outcome, Position, Request, Usage
from penstock.engine.measure.guards import Guard
from penstock.engine.plan import Split
from penstock.engine.policy import Policy, Prompt, Task
from penstock.engine.router import Router
from penstock.engine.steering import document
from penstock.engine.steering.document import Steering
from penstock.engine.steering.rollout import How, Shadowing, begin
from penstock.engine.steering.turn import Turn
from tests.engine import test_lane_machine as machine

GUARDS = (Guard(name="quality"),)


def half(model: str) -> Steering:
    return document.started(Steering(), begin(model, ("v1", "v2"), (0.5,), GUARDS, by="ann", now=1.0))


def shadowed(model: str, share: float) -> Steering:
    how = How(shadow=Shadowing(share, machine.SHADOW_LIMIT))
    return document.started(Steering(), begin(model, ("v1", "v2"), (0.5,), GUARDS, by="ann", now=1.0, how=how))


STEERED = [
    Steering(),
    Steering(live={"mid": "v2"}),
    half("mid"),
    half("alt"),
    document.with_rollout(half("mid"), half("big").rollouts["big"]),
    Steering(live={"mid": "v9", "nobody": "v2"}),
    shadowed("mid", 1.0),
    shadowed("alt", 0.5),
]


class SteeredLane(machine.LaneMachine):
    turn: Turn | None = None

    def start(self, *args: object, **kwargs: object) -> None:
        super().start(*args, **kwargs)  # type: ignore[arg-type]
        if self.turn is not None:
            self.lane.steer(self.turn, self.now)

    @rule(to=st.sampled_from(STEERED))
    def steer(self, to: Steering) -> None:
        self.turn = Turn(self.lane.catalog.models, to)
        flying = {key: slot.route for key, slot in self.lane.slots.items() if slot.state == "flying"}
        before = len(self.lane.slots)
        self.lane.steer(self.turn, self.now)
        assert len(self.lane.slots) == before, "an item ended by being steered"
        assert all(self.lane.slots[key].route is route for key, route in flying.items()), "a call under way was touched"
        over = [slot for slot in self.lane.ready.slots() if slot.pending is not None and _is_over(slot, self.turn)]
        assert not over, "a call for a shadow stage that is over may still be sent"

    @invariant()
    def what_may_be_sent_has_the_versions_of_now(self) -> None:
        if not hasattr(self, "lane"):
            return
        for slot in self.lane.ready.slots():
            if slot.pending is None:
                assert self.lane.router.turned(slot.route, slot.item) is slot.route
        for leader in self.lane.copies.leaders():
            for follower in leader.followers or ():
                assert follower.route.candidates == leader.route.candidates, "it gets an answer from another arm"


def _is_over(slot: Slot, turn: Turn) -> bool:
    rehearsal = slot.pending.step.rehearsal if slot.pending is not None else None
    return rehearsal is not None and turn.rehearsals.get(rehearsal.rollout) != rehearsal


TestSteeredLane = SteeredLane.TestCase
TestSteeredLane.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def two_versions() -> Lane:
    versions = (Version("v1", "m1"), Version("v2", "m2"))
    model = Model("m", versions, "v1", account="a", price=Price(input=10**9, output=10**9))
    catalog = Catalog({"a": Account("a", "openai", "http://localhost")}, {"m": model}, {2: ("m",)})
    policy = Policy({"t": Task("t", prompt=Prompt(user="{{ x }}", version="own"))}, default_task="t")
    hooks = Hooks(lambda: 0.5, lambda item, answer, task: (), lambda body, answer, message: body)
    made = Lane(LaneSettings(0, "r"), Router(catalog, policy), catalog, policy, hooks, Budgets((), "r"))
    made.begin([Split("s", "o", 0, 0, "u", 0, None)], {}, 0)
    return made


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_items_that_wait_for_the_answer_to_an_equal_one_are_asked_anew_once_it_comes_from_a_version_taken_back(
    share: float,
) -> None:
    """The one at a worker goes on; those behind it want the version of now, and one of them asks for all."""
    lane = two_versions()
    for position in range(3):
        request = Request(b"{}", temperature=0.0, input_hash="same")
        lane.offer(Item(f"i{position}", Position("s", 0, position), Attributes(), request, b"o", 0.0), 0.0)
    lane.commit(0.0)
    lane.committed(0.0)
    (first,) = lane.take("api:a", 9, 1 << 30, "w", 0.0)
    lane.steer(Turn(lane.catalog.models, Steering(live={"m": "v2"} if share else {})), 0.0)
    again = lane.take("api:a", 9, 1 << 30, "w", 0.0)
    assert [call.version for call in again] == (["v2"] if share else [])
    for call in (first, *again):
        answer = Outcome(
            call.item_id, 0, call.attempt, 0.0, 1.0, Answer(call.version, "stop", b"{}"), None, Usage(1, output=1)
        )
        lane.outcome(answer, 0.0)
    results = {r.item.item_id: r.answer.text for r in lane.commit(0.0).results}
    assert results == {"i0": "v1", "i1": "v2" if share else "v1", "i2": "v2" if share else "v1"}


def test_a_version_that_its_provider_does_not_know_stops_only_its_own_arm() -> None:
    """A wrong snapshot name in a rollout: the baseline's items go on to be sent."""
    lane = two_versions()
    lane.steer(
        Turn(
            lane.catalog.models, document.started(Steering(), begin("m", ("v1", "v2"), (0.5,), GUARDS, by="a", now=1.0))
        ),
        0.0,
    )
    for position in range(40):
        lane.offer(Item(f"i{position}", Position("s", 0, position), Attributes(), Request(b"{}"), b"o", 0.0), 0.0)
    lane.commit(0.0)
    lane.committed(0.0)
    calls = lane.take("api:a", 20, 1 << 30, "w", 0.0)
    versions = {call.version for call in calls}
    assert versions == {"v1", "v2"}
    for call in calls:
        bad = Failure("not_found", "no such model") if call.version == "v2" else None
        answer = None if bad else Answer("yes", "stop", b"{}")
        lane.outcome(Outcome(call.item_id, 0, call.attempt, 0.0, 1.0, answer, bad, Usage(1, output=1)), 0.0)
    later = lane.take("api:a", 20, 1 << 30, "w", 0.1)
    assert {call.version for call in later} == {"v1"}
    assert lane.targets.health.opened(0.1) == [("a", "m@v2")]


def test_a_call_that_outlived_its_owner_is_told_as_the_version_that_was_asked() -> None:
    """It was sent to v2; meanwhile that was taken back, and its lane has a new owner."""
    lane = two_versions()
    answer = Answer("by v2", "stop", b"{}")
    outcome = Outcome("i0", 0, 1, 0.0, 1.0, answer, None, Usage(1, output=1))
    lane.adopt([Adopted("i0", 0, 1, "m", "w", outcome, "primary", "v2"), Adopted("i1", 0, 1, "m", "w", version="v2")])
    for position in range(2):
        lane.offer(Item(f"i{position}", Position("s", 0, position), Attributes(), Request(b"{}"), b"o", 0.0), 0.0)
    lane.commit(0.0)
    lane.committed(0.0)
    failed = Failure("server_error", "boom")
    lane.outcome(Outcome("i1", 0, 1, 0.0, 1.0, None, failed, None), 0.0)
    (result,) = lane.commit(0.0).results
    assert (result.model_version, result.experiment, result.attempts[0].model_version) == ("v2", "", "v2")
    lane.committed(0.0)
    lane.tick(60.0)
    (again,) = lane.take("api:a", 9, 1 << 30, "w", 60.0)
    assert (again.item_id, again.version) == ("i1", "v1")


def test_nobody_joins_one_that_was_sent_anew_to_another_version() -> None:
    """It was known by the version that it was sent to first; who wants that one asks for itself."""
    lane = two_versions()

    def offer(position: int) -> None:
        request = Request(b"{}", temperature=0.0, input_hash="same")
        lane.offer(Item(f"i{position}", Position("s", 0, position), Attributes(), request, b"o", 0.0), 0.0)
        lane.commit(0.0)
        lane.committed(0.0)

    def steer(version: str) -> None:
        lane.steer(Turn(lane.catalog.models, Steering(live={"m": version})), 0.0)

    offer(0)
    (first,) = lane.take("api:a", 9, 1 << 30, "w", 0.0)
    steer("v2")
    lane.outcome(Outcome(first.item_id, 0, 1, 0.0, 1.0, failure=Failure("not_sent", "given back")), 0.0)
    (again,) = lane.take("api:a", 9, 1 << 30, "w", 0.0)
    steer("v1")
    offer(1)
    calls = [again, *lane.take("api:a", 9, 1 << 30, "w", 0.0)]
    assert [(call.item_id, call.version) for call in calls] == [("i0", "v2"), ("i1", "v1")]
    for call in calls:
        answer = Answer(call.version, "stop", b"{}")
        lane.outcome(Outcome(call.item_id, 0, call.attempt, 0.0, 1.0, answer, None, Usage(1, output=1)), 0.0)
    results = lane.commit(0.0).results
    assert [(each.answer.text, each.model_version, each.copied_from) for each in results] == [
        ("v2", "v2", None),
        ("v1", "v1", None),
    ]


def test_an_item_that_fails_counts_under_the_prompt_of_its_arm() -> None:
    """Not under the task's own: else a bad prompt would look as good as its answers."""
    lane = two_versions()
    for position, prompt in enumerate(("kind", "")):
        exposure = Exposure("job/wording", prompt or "plain", 0.5, prompt_version=prompt)
        request = Request(b"{}", input_hash=str(position))
        item = Item(f"i{position}", Position("s", 0, position), Attributes(), request, b"o", 0.0, exposure=exposure)
        lane.offer(item, 0.0)
    lane.commit(0.0)
    lane.committed(0.0)
    for call in lane.take("api:a", 9, 1 << 30, "w", 0.0):
        lane.outcome(Outcome(call.item_id, 0, 1, 0.0, 1.0, failure=Failure("refused", "no")), 0.0)
    batch = lane.commit(0.0)
    assert [dead.prompt_version for dead in batch.dead_letters] == ["kind", "own"]
    found = {(cell.prompt, cell.arm): cell.failures for cell in cells_in(batch.chunks)}
    assert found == {("kind", "kind"): {"refused": 1}, ("own", "plain"): {"refused": 1}}
