"""A rollout goes forward stage by stage or back, one decision at a time, whoever decides."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.engine.catalog import Model, Version
from penstock.engine.errors import SpecError
from penstock.engine.items import Attributes
from penstock.engine.measure.guards import Guard
from penstock.engine.steering import document
from penstock.engine.steering.document import Steering
from penstock.engine.steering.rollout import (
    SHADOW,
    UNPAID,
    How,
    Rollout,
    Shadowing,
    Told,
    Word,
    arm_of,
    begin,
    check,
    said,
    see,
)
from penstock.engine.steering.turn import Turn

GUARD = (Guard(name="quality"),)
BESIDE = Shadowing(0.5, 10**9)
WORDS: list[Word] = ["pause", "resume", "promote", "rollback"]
SMALL = Model("small", (Version("v1", "s1"), Version("v2", "s2")), "v1", account="a")


def rollout(
    stages: tuple[float, ...] = (0.01, 0.05, 0.25, 1.0),
    *,
    auto: bool = True,
    shadow: Shadowing | None = None,
    watch: float = 0.0,
) -> Rollout:
    how = How(auto, shadow=shadow, watch=watch)
    return begin("small", ("v1", "v2"), stages, GUARD, by="ann@here/penstock rollout", now=1.0, how=how)


def told(*decisions: str) -> tuple[Told, ...]:
    return tuple(Told(f"g{i}", d, 10, 0.0, None, f"g{i} said {d}") for i, d in enumerate(decisions))  # type: ignore[arg-type]


def steering(of: Rollout) -> Steering:
    return document.started(Steering(), of)


def test_a_rollout_that_passes_every_stage_is_promoted_and_the_version_is_live() -> None:
    at, now = rollout(), steering(rollout())
    for share in (0.05, 0.25, 1.0):
        after = see(at, told("pass", "pass"), 2.0)
        assert after is not None
        at, now = after, document.with_rollout(now, after)
        assert at.share == share
    assert (at.state, now.live) == ("promoted", {"small": "v2"})
    assert [d.what for d in at.decisions] == ["started", "stage", "stage", "promoted"]


def test_one_guard_that_fails_takes_the_version_back_and_the_numbers_are_kept() -> None:
    after = see(rollout(), told("pass", "fail", "go on"), 2.0)
    assert after is not None
    assert (after.state, after.share) == ("rolled_back", 0.0)
    assert after.decisions[-1].why == "g1 said fail"
    assert len(after.decisions[-1].told) == 3
    owed = document.with_rollout(steering(rollout()), after).owed
    assert [each.kind for each in owed] == ["rollout_started", "rollback"]
    assert b'"g1 said fail"' in bytes(owed[-1].facts)


def test_nothing_is_decided_while_a_guard_goes_on_or_nobody_was_asked() -> None:
    assert see(rollout(), told("pass", "go on"), 2.0) is None
    assert see(rollout(), (), 2.0) is None
    assert see(said(rollout(), "pause", "ann", 2.0), told("fail"), 3.0) is None


@pytest.mark.parametrize("found", ["pass", "fail"])
def test_by_hand_a_stage_that_passed_or_failed_waits_for_a_person(found: str) -> None:
    after = see(rollout(auto=False), told(found), 2.0)
    assert after is not None
    assert (after.state, after.stage, after.share) == ("waiting", 0, 0.01)
    assert see(after, told(found), 3.0) is None
    assert said(after, "promote", "ann", 4.0).share == 0.05


def test_a_promoted_version_can_still_be_taken_back() -> None:
    at = rollout((0.5,))
    promoted = document.spoken(steering(at), "small", "promote", "ann", 2.0)
    assert promoted.live == {"small": "v2"}
    back = document.spoken(promoted, "small", "rollback", "ann", 3.0)
    assert back.live == {"small": "v1"}
    with pytest.raises(SpecError, match="is rolled_back: it can't rollback any more"):
        document.spoken(back, "small", "rollback", "ann", 4.0)


def test_a_model_has_one_rollout_at_a_time() -> None:
    with pytest.raises(SpecError, match="has a rollout already"):
        document.started(steering(rollout()), rollout())
    over = document.spoken(steering(rollout()), "small", "rollback", "ann", 2.0)
    again = begin("small", ("v1", "v2"), (0.5,), GUARD, by="ann", now=3.0)
    assert document.started(over, again).rollouts["small"].id == again.id


@pytest.mark.parametrize("stages", [(), (1.0,), (0.5, 0.1), (0.5, 0.5), (0.0,), (0.2, 1.5), (-0.1, 0.5)])
def test_stages_that_are_no_rising_shares_are_refused(stages: tuple[float, ...]) -> None:
    with pytest.raises(SpecError, match="stages are"):
        rollout(stages)


def test_what_stands_in_the_document_is_read_back_as_it_was() -> None:
    at = document.with_rollout(steering(rollout()), said(rollout(), "pause", "ann", 2.0))
    assert msgspec.json.decode(msgspec.json.encode(at), type=Steering) == at


# ---- a shadow in front, or alone


def test_a_rollout_begins_with_its_shadow_and_goes_on_to_the_first_stage() -> None:
    at, now = rollout((0.05, 1.0), shadow=BESIDE), steering(rollout((0.05, 1.0), shadow=BESIDE))
    assert (at.stage, at.share, at.shadows) == (SHADOW, 0.0, True)
    assert arm_of(at.arm("candidate")) == ("candidate", SHADOW)
    after = see(at, told("pass"), 2.0)
    assert after is not None
    assert (after.stage, after.share, after.shadows) == (0, 0.05, False)
    assert document.with_rollout(now, after).live == {"small": "v1"}


@pytest.mark.parametrize(("found", "state"), [("pass", "passed"), ("fail", "rolled_back")])
def test_a_lone_shadow_ends_with_a_word_and_the_live_version_stays(found: str, state: str) -> None:
    at = rollout((), shadow=BESIDE)
    after = see(at, told(found), 2.0)
    assert after is not None
    assert (after.state, after.active, after.share, after.shadows) == (state, False, 0.0, False)
    ended = document.with_rollout(steering(at), after)
    assert ended.live == {"small": "v1"}
    assert ended.owed[-1].kind == ("rollout_ended" if found == "pass" else "rollback")
    again = begin("small", ("v1", "v2"), (0.5,), GUARD, by="ann", now=9.0)
    assert document.started(ended, again).rollouts["small"].active, "the next one may begin"
    with pytest.raises(SpecError, match="can't rollback any more"):
        said(after, "rollback", "ann", 3.0)


def test_a_shadow_whose_money_is_spent_waits_for_a_person_and_asks_nobody_any_more() -> None:
    at = rollout((0.5,), shadow=BESIDE)
    assert see(at, told("go on"), 2.0, UNPAID - 1) is None
    after = see(at, told("go on"), 2.0, UNPAID)
    assert after is not None
    assert (after.state, after.stage, after.shadows) == ("waiting", SHADOW, False)
    assert "money ($1) is spent" in after.decisions[-1].why
    passed = see(at, told("pass"), 2.0, UNPAID)
    assert passed is not None
    assert passed.stage == 0, "what was shown before it was spent counts"
    assert said(after, "promote", "ann", 3.0).stage == 0
    stage = said(after, "promote", "ann", 3.0)
    assert see(stage, told("go on"), 4.0, UNPAID) is None


@pytest.mark.parametrize("shadow", [Shadowing(0.0, 1), Shadowing(1.1, 1), Shadowing(0.5, 0)])
def test_a_shadow_without_items_or_money_is_refused(shadow: Shadowing) -> None:
    with pytest.raises(SpecError, match="shadow"):
        rollout(shadow=shadow)


def test_nobody_gets_the_candidate_in_a_shadow_stage_and_all_stand_beside_it() -> None:
    turn = Turn({"small": SMALL}, steering(rollout(shadow=BESIDE)))
    picks = {turn.pick(SMALL, turn.arms(Attributes(unit=f"u{n}"), "x")) for n in range(500)}
    assert {(pick.version, pick.arm, pick.propensity) for pick in picks} == {("v1", "baseline-0", 1.0)}
    (rehearsal,) = turn.rehearsals.values()
    assert (rehearsal.target, rehearsal.share, rehearsal.fund[1]) == ("small@v2", 0.5, 10**9)
    paused = Turn({"small": SMALL}, steering(said(rollout(shadow=BESIDE), "pause", "ann", 2.0)))
    assert paused.rehearsals, "what is measured counts"


# ---- a watch behind


def watched() -> Rollout:
    after = see(rollout((0.5,), watch=0.02), told("pass"), 2.0)
    assert after is not None
    return after


def test_after_the_last_stage_a_few_units_keep_the_old_version_and_all_others_have_the_new_one() -> None:
    at = watched()
    assert (at.state, at.active, at.share, at.round) == ("watching", True, 0.98, 1)
    now = document.with_rollout(steering(rollout((0.5,), watch=0.02)), at)
    assert now.live == {"small": "v2"}
    turn = Turn({"small": SMALL}, now)
    picks = [turn.pick(SMALL, turn.arms(Attributes(unit=f"u{n}"), "x")) for n in range(2_000)]
    assert 10 < sum(pick.version == "v1" for pick in picks) < 80
    assert {(pick.version, pick.arm) for pick in picks} == {("v1", "baseline-2"), ("v2", "candidate-2")}
    with pytest.raises(SpecError, match="has a rollout already"):
        document.started(now, rollout())


@pytest.mark.parametrize("auto", [True, False])
def test_what_is_shown_in_the_watch_takes_the_version_back(auto: bool) -> None:
    at = msgspec.structs.replace(watched(), auto=auto)
    after = see(at, told("pass", "fail"), 3.0)
    assert after is not None
    assert after.state == ("rolled_back" if auto else "waiting")
    back = after if auto else said(after, "rollback", "ann", 4.0)
    assert document.with_rollout(steering(at), back).live == {"small": "v1"}
    assert auto or said(after, "resume", "ann", 4.0).state == "watching"


def test_a_watch_has_ten_rounds_with_arms_of_their_own_and_then_all_have_the_new_version() -> None:
    at, arms = watched(), list[str]()
    while at.active:
        arms.append(at.arm("candidate"))
        after = see(at, told("pass"), 3.0)
        assert after is not None
        check(at, after)
        at = after
    assert arms == [f"candidate-{n}" for n in range(2, 12)]
    assert (at.state, at.share) == ("promoted", 1.0)
    assert said(watched(), "promote", "ann", 3.0).state == "promoted", "a person may end it"


@pytest.mark.parametrize(("stages", "watch"), [((0.5,), 0.5), ((0.99,), 0.02), ((0.5,), -0.1), ((), 0.1)])
def test_a_watch_that_keeps_more_than_the_last_stage_did_is_refused(stages: tuple[float, ...], watch: float) -> None:
    with pytest.raises(SpecError, match="a watch keeps"):
        rollout(stages, shadow=BESIDE, watch=watch)


# ---- who gets the candidate


@given(unit=st.text(max_size=20), item=st.text(min_size=1, max_size=20))
def test_a_unit_stays_in_its_arm_and_a_larger_share_keeps_who_was_in(unit: str, item: str) -> None:
    at, attributes = rollout(), Attributes(unit=unit or None)
    shares: list[bool] = []
    for _ in range(3):
        turns = [Turn({"small": SMALL}, steering(at)) for _ in range(2)]
        picks = {turn.pick(SMALL, turn.arms(attributes, item)) for turn in turns}
        assert len(picks) == 1
        (pick,) = picks
        shares.append(pick.version == "v2")
        assert pick.propensity == pytest.approx(at.share if pick.version == "v2" else 1 - at.share)
        assert arm_of(pick.arm) == (("baseline", "candidate")[pick.version == "v2"], at.stage)
        at = said(at, "promote", "ann", 2.0)
    assert shares == sorted(shares)


def test_the_candidate_gets_its_share_of_units() -> None:
    turn = Turn({"small": SMALL}, steering(rollout((0.25,))))
    n = sum(turn.arms(Attributes(), f"item {i}") for i in range(20_000))
    assert 4_750 < n < 5_250  # 4 standard deviations


def test_items_of_one_unit_go_together_unless_each_goes_for_itself() -> None:
    together = rollout((0.5,))
    apart = msgspec.structs.replace(together, unit="item")
    for at, one_arm in ((together, True), (apart, False)):
        turn = Turn({"small": SMALL}, steering(at))
        arms = {turn.arms(Attributes(unit="customer 7"), f"item {i}") for i in range(200)}
        assert (len(arms) == 1) == one_arm


def test_a_catalogue_that_does_not_know_the_version_keeps_its_own() -> None:
    old = Model("small", (Version("v1", "s1"),), "v1", account="a")
    turn = Turn({"small": old}, steering(rollout((0.99,))))
    assert turn.gates == ()
    assert turn.unknown == ["small@v2"]
    assert turn.pick(old, turn.arms(Attributes(), "x")).version == "v1"
    promoted = Turn({"small": old}, Steering(live={"small": "v2", "other": "v9"}))
    assert promoted.pick(old, 0).version == "v1"
    assert promoted.unknown == ["small@v2"]


# ---- under every interleaving


class Deciders(RuleBasedStateMachine):
    """Two who look, think and swap, in any order; a person among them."""

    def __init__(self) -> None:
        super().__init__()
        self.accepted: list[Rollout] = []
        self.seen: dict[str, tuple[int, Steering]] = {}
        self.tag = 0

    @initialize(
        auto=st.booleans(),
        stages=st.sampled_from([(), (0.5,), (0.01, 0.5), (0.01, 0.05, 0.25, 1.0)]),
        shadow=st.booleans(),
        watch=st.booleans(),
    )
    def start(self, auto: bool, stages: tuple[float, ...], shadow: bool, watch: bool) -> None:
        beside, kept = BESIDE if shadow or not stages else None, 0.02 if watch and stages else 0.0
        first = rollout(stages, auto=auto, shadow=beside, watch=kept)
        self.stored = steering(first)
        self.accepted.append(self.stored.rollouts["small"])

    @rule(who=st.sampled_from(["one", "two", "ann"]))
    def read(self, who: str) -> None:
        self.seen[who] = (self.tag, self.stored)

    @precondition(lambda self: self.seen)
    @rule(
        who=st.sampled_from(["one", "two"]),
        found=st.lists(st.sampled_from(["pass", "fail", "go on"]), max_size=3),
        unpaid=st.sampled_from([0, UNPAID]),
    )
    def decide(self, who: str, found: list[str], unpaid: int) -> None:
        if who in self.seen:
            tag, at = self.seen.pop(who)
            after = see(at.rollouts["small"], told(*found), 2.0, unpaid)
            if after is not None:
                self.swap(tag, at.rollouts["small"], document.with_rollout(at, after))

    @rule(word=st.sampled_from(WORDS))
    def speak(self, word: Word) -> None:
        if "ann" in self.seen:
            tag, at = self.seen.pop("ann")
            try:
                after = document.spoken(at, "small", word, "ann", 3.0)
            except SpecError:
                assert not at.rollouts["small"].active
                return
            self.swap(tag, at.rollouts["small"], after)

    def swap(self, tag: int, before: Rollout, after: Steering) -> None:
        check(before, after.rollouts["small"])
        if tag == self.tag:  # compare-and-swap
            self.tag += 1
            self.stored = after
            self.accepted.append(after.rollouts["small"])

    @invariant()
    def every_decision_was_made_once_and_in_order(self) -> None:
        last = self.accepted[-1]
        assert self.stored.rollouts["small"] == last
        assert len(last.decisions) == len(self.accepted) == len(self.stored.owed) == self.stored.number
        stages = [at.stage for at in self.accepted]
        assert stages == sorted(stages)
        assert all(b - a <= 1 for a, b in itertools.pairwise(stages))
        assert len({each.id for each in self.stored.owed}) == len(self.stored.owed)
        in_use = "v2" if last.state == "promoted" or (last.active and last.round) else "v1"
        assert self.stored.live["small"] == in_use


TestDeciders = Deciders.TestCase
