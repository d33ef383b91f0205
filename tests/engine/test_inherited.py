"""Calls that a lane's last owner left at workers: each is waited for, and no other is paid for in its place."""

from __future__ import annotations

import msgspec
import pytest

from penstock.engine.catalog import Account, Catalog, Model, Price, Version
from penstock.engine.flow.lane_types import Adopted, Hooks, LaneSettings
from penstock.engine.flow.progress import SHELF, TRIED
from penstock.engine.items import (
    Answer,
    Attributes,
    Call,
    Exposure,
    Failure,
    Item,
    Outcome,
    Position,
    Request,
    Role,
    Usage,
)
from penstock.engine.policy import Cascade, Policy, Prompt, Scorer, Task
from penstock.engine.results import DeadLetter, Result
from tests.engine.one_lane import OneLane

PRICE = Price(10**9, 10**9)
CATALOG = Catalog(
    {"a": Account("a", "openai", "http://localhost")},
    {
        name: Model(name, (Version("v1", name),), "v1", account="a", price=PRICE, context=8000)
        for name in ("m", "other")
    },
    {3: ("m",)},
)
POLICY = Policy({"t": Task("t", max_tokens=10)}, default_task="t")
HOOKS = Hooks(lambda: 0.5, lambda item, answer, task: (), lambda body, answer, message: body)
SETTINGS = LaneSettings(0, "r", horizon_floor=1000, beyond_max=64, shelf_after_s=5.0)


BUSY = Failure("overloaded", "busy")


class Owner(OneLane):
    """`disk`: what its last owner's commits, and its own, left."""

    def __init__(
        self, disk: dict[str, bytes], seq: int = 0, policy: Policy = POLICY, catalog: Catalog = CATALOG
    ) -> None:
        self.disk = disk
        self.results: list[Result] = []
        super().__init__(catalog, policy, HOOKS, settings=SETTINGS)
        if seq:
            self.begin(dict(disk), seq)

    def save(self) -> list[str]:
        batch = self.commit()
        for name, data in batch.chunks.items():
            self.disk[name] = data
        self.results = batch.results
        return [result.answer.text for result in batch.results]

    def offer(self, number: int) -> None:
        request = Request(b'{"messages":[]}', input_hash=str(number))
        self.lane.offer(Item(f"i{number}", Position("s", 0, number), Attributes(tier=3), request, b"o", 0.0), self.now)

    def take(self) -> list[Call]:
        return self.lane.take("api:a", 1000, 1 << 40, "w", self.now)


def answered(call: Call, text: str = "yes") -> Outcome:
    return Outcome(call.item_id, 0, call.attempt, 0.0, 1.0, Answer(text, "stop", b"{}"), None, Usage(5, output=5))


def left(call: Call, outcome: Outcome | None = None) -> Adopted:
    return Adopted(call.item_id, 0, call.attempt, "m", "w", outcome, version="v1")


def shelved(policy: Policy = POLICY) -> tuple[Owner, Call]:
    """An owner whose one item is on the shelf, while its call is at the worker."""
    first = Owner({}, policy=policy)
    for number in range(20):
        first.offer(number)
    first.save()
    slow, *fast = first.take()
    for call in fast:
        first.lane.outcome(answered(call), first.now)
    first.save()
    first.now += 30.0
    first.save()
    assert SHELF + slow.item_id in first.disk
    return first, slow


def test_a_shelved_item_gets_the_answer_that_a_worker_has() -> None:
    """It was at the worker when it went to the shelf: what is kept of it names that very attempt."""
    first, slow = shelved()
    disk = first.disk
    heir = Owner(disk, first.lane.seq)
    heir.lane.adopt([left(slow, answered(slow, "slow"))])
    heir.lane.restore_shelf(heir.now)
    assert heir.take() == []
    assert heir.save() == ["slow"]


def test_a_shelved_item_that_the_job_reads_otherwise_by_now_ends_as_it_says() -> None:
    """The job file was edited, and its record does not do any more: nothing is sent, what was paid is told, and the
    shelf forgets it."""
    first, slow = shelved()
    heir = Owner(first.disk, first.lane.seq)
    heir.lane.adopt([left(slow, answered(slow, "slow"))])

    def gone(item: Item) -> DeadLetter:
        return DeadLetter(item.item_id, item.source, "missing_field", "no such column", item.original)

    heir.lane.restore_shelf(heir.now, gone)
    assert heir.take() == []
    batch = heir.commit()
    assert [(dead.item_id, dead.reason, dead.cost_nano, dead.maybe_paid) for dead in batch.dead_letters] == [
        (slow.item_id, "missing_field", 10_000, True)
    ]
    assert batch.chunks[SHELF + slow.item_id] == b""


def read_otherwise(number: int, *, malformed: bool) -> Item | DeadLetter:
    """As the edited job reads it: it names a tier without models, or does not do at all."""
    where, request = Position("s", 0, number), Request(b'{"messages":[]}', input_hash=str(number))
    if malformed:
        return DeadLetter(f"i{number}", where, "missing_field", "no such column", b"o")
    return Item(f"i{number}", where, Attributes(tier=2), request, b"o", 0.0)


@pytest.mark.parametrize("malformed", [False, True])
def test_what_was_paid_for_an_item_that_the_edited_job_refuses_is_told(malformed: bool) -> None:
    """Its call was answered while its lane had no owner. The answer is of no use, and was paid for: it stands on the
    item's bill where there is an item, and is counted where its record makes none. One that is still out is counted
    when it lands, and nobody waits for an item that comes no more."""
    first = Owner({})
    first.offer(0)
    first.offer(1)
    first.save()
    done, out = first.take()
    heir = Owner(first.disk, first.lane.seq)
    heir.lane.adopt([left(done, answered(done)), left(out)])
    for number in range(2):
        heir.lane.offer(read_otherwise(number, malformed=malformed), heir.now)
    assert not heir.lane.has_answers
    heir.lane.outcome(answered(out), heir.now)
    batch = heir.commit()
    assert [dead.reason for dead in batch.dead_letters] == ["missing_field" if malformed else "no_candidate"] * 2
    billed = [] if malformed else [("i0", 10_000)]
    assert [(line.item_id, line.cost_nano) for line, _ in batch.costs] == billed
    assert [dead.cost_nano for dead in batch.dead_letters if dead.cost_nano] == [nano for _, nano in billed]
    assert heir.lane.tally.late_payments == (2 if malformed else 1)


def test_what_stands_on_the_bill_of_an_item_that_the_edited_job_can_not_read_is_told_with_it() -> None:
    """Its first call was answered in vain, and its cost line is committed; its second was answered when the lane died.
    The dead letter said that it had cost nothing, and what was kept of its tries stayed in the progress for ever."""
    first = Owner({})
    first.offer(0)
    first.save()
    (call,) = first.take()
    in_vain = Outcome("i0", 0, call.attempt, 5.0, 1.0, None, Failure("invalid_response", "x"), Usage(5, output=5))
    first.lane.outcome(in_vain, first.now)
    first.save()
    assert TRIED + "i0" in first.disk
    first.now += 60.0
    first.lane.tick(first.now)
    (again,) = first.take()
    heir = Owner(first.disk, first.lane.seq)
    heir.lane.adopt([left(call, in_vain), left(again, answered(again))])
    heir.lane.offer(read_otherwise(0, malformed=True), heir.now)
    batch = heir.commit()
    (dead,) = batch.dead_letters
    assert ([attempt.n for attempt in dead.attempts], dead.cost_nano) == ([call.attempt], 10_000)
    assert batch.chunks[TRIED + "i0"] == b""
    assert batch.costs == []
    assert heir.lane.tally.late_payments == 1


def test_a_lane_that_drains_while_it_is_opened_ends_what_has_its_answer() -> None:
    """Its judge is not asked, since nothing is sent any more; the answer was paid for, and is not thrown away."""
    first, slow = shelved()
    judge = Scorer("judge", model="other", rubric="good?", choices=("1", "2"))
    task = Task("t", max_tokens=10, sample=1.0, scorers=(judge,))
    heir = Owner({}, policy=Policy({"t": task}, default_task="t"))
    heir.lane.drain(heir.now)
    heir.begin(first.disk, first.lane.seq)
    heir.lane.adopt([left(slow, answered(slow, "slow"))])
    heir.lane.restore_shelf(heir.now)
    assert heir.save() == ["slow"]


def test_a_paid_item_gets_the_answer_to_its_second_call() -> None:
    """The first was billed and in vain; its cost line was committed while the second was at the worker."""
    disk: dict[str, bytes] = {}
    first = Owner(disk)
    first.offer(0)
    first.save()
    (call,) = first.take()
    failed = Outcome("i0", 0, 1, 0.0, 1.0, None, Failure("invalid_response", "x"), Usage(1, output=1))
    first.lane.outcome(failed, first.now)
    first.now += 60.0
    first.lane.tick(first.now)
    (call,) = first.take()
    first.save()
    assert TRIED + "i0" in disk
    heir = Owner(disk, first.lane.seq)
    heir.lane.adopt([left(call)])
    heir.offer(0)
    assert heir.take() == []
    heir.lane.outcome(answered(call, "second"), heir.now)
    assert heir.save() == ["second"]
    assert [attempt.n for attempt in heir.results[-1].attempts] == [1, 2]


def test_an_answer_that_was_settled_is_not_taken_twice() -> None:
    """The worker never heard that its answer had come, and brings it to the next owner as well."""
    disk: dict[str, bytes] = {}
    first = Owner(disk)
    first.offer(0)
    first.save()
    (call,) = first.take()
    in_vain = Outcome("i0", 0, 1, 0.0, 1.0, None, Failure("invalid_response", "x"), Usage(1, output=1))
    first.lane.outcome(in_vain, first.now)
    first.save()
    heir = Owner(disk, first.lane.seq)
    heir.lane.adopt([left(call, in_vain)])
    heir.offer(0)
    heir.now += 60.0
    heir.lane.tick(heir.now)
    assert [again.attempt for again in heir.take()] == [2]


def test_of_two_calls_of_one_item_the_later_one_is_waited_for() -> None:
    """The earlier one's worker was given up, and lives: its number must not be given to another call."""
    disk: dict[str, bytes] = {}
    first = Owner(disk)
    first.offer(0)
    first.save()
    (early,) = first.take()
    first.lane.worker_lost("w", first.now)
    first.now += 60.0
    first.lane.tick(first.now)
    (late,) = first.take()
    for order in ([left(late), left(early)], [left(early), left(late)]):
        heir = Owner(dict(disk), first.lane.seq)
        heir.lane.adopt(order)
        heir.offer(0)
        heir.lane.outcome(answered(late, "late"), heir.now)
        assert heir.save() == ["late"]


def asking(prompt: str) -> Policy:
    return Policy(
        {"t": Task("t", max_tokens=10, prompt=Prompt(user="?", version=prompt))}, default_task="t", version="1"
    )


@pytest.mark.parametrize("waits_for_the_item", [False, True])
def test_an_answer_to_the_prompt_of_before_is_told_as_that(waits_for_the_item: bool) -> None:
    """The job file was edited, and another command took the run over with calls under way. What they bring is the
    item's, and no evidence for the new prompt; what is asked from then on goes by the new one."""
    first = Owner({}, policy=asking("old"))
    first.offer(0)
    first.offer(1)
    first.save()
    early, late = first.take()
    heir = Owner(first.disk, first.lane.seq, policy=asking("new"))
    mine = msgspec.structs.replace(left(early), made_by=early.made_by)
    answers = [answered(early), msgspec.structs.replace(answered(late), answer=None, usage=None, failure=BUSY)]
    theirs = msgspec.structs.replace(left(late), made_by=late.made_by)
    heir.lane.adopt([mine, theirs])
    if waits_for_the_item:
        for outcome in answers:
            heir.lane.outcome(outcome, heir.now)
    heir.offer(0)
    heir.offer(1)
    if not waits_for_the_item:
        for outcome in answers:
            heir.lane.outcome(outcome, heir.now)
    heir.now += 60.0
    heir.lane.tick(heir.now)
    (again,) = heir.take()
    heir.lane.outcome(answered(again, "new"), heir.now)
    heir.save()
    assert [(one.answer.text, one.prompt_version) for one in heir.results] == [("yes", "old"), ("new", "new")]
    assert {(cell.prompt, cell.results) for cell in heir.lane.cells.rows} == {("old", 1), ("new", 1)}


def test_an_answer_to_an_arm_of_before_counts_for_none_of_now() -> None:
    """The arm's prompt was edited: it is another experiment, which begins at 0."""
    request = Request(b'{"messages":[]}', input_hash="1")
    before, now = (Exposure(f"j/wording@{n}", "kind", 0.5, prompt_version=f"kind {n}") for n in (1, 2))
    item = Item("i0", Position("s", 0, 0), Attributes(tier=3), request, b"o", 0.0, exposure=before)
    first = Owner({}, policy=asking("own"))
    first.lane.offer(item, first.now)
    first.save()
    (call,) = first.take()
    heir = Owner(first.disk, first.lane.seq, policy=asking("own"))
    heir.lane.adopt([msgspec.structs.replace(left(call, answered(call)), made_by=call.made_by)])
    heir.lane.offer(msgspec.structs.replace(item, exposure=now), heir.now)
    heir.save()
    assert [(one.prompt_version, one.experiment, one.arm) for one in heir.results] == [("kind 1", "", "")]
    assert {cell.experiment for cell in heir.lane.cells.rows} == {""}


def test_an_answer_to_the_prompt_of_before_is_told_so_by_the_next_owner_too() -> None:
    """Its commit failed, and the lane was opened anew in the same process."""
    first = Owner({}, policy=asking("old"))
    first.offer(0)
    first.save()
    (call,) = first.take()
    heir = Owner(first.disk, first.lane.seq, policy=asking("new"))
    heir.lane.adopt([msgspec.structs.replace(left(call, answered(call)), made_by=call.made_by)])
    heir.offer(0)
    (unsaved,) = heir.lane.unsaved
    last = Owner(first.disk, first.lane.seq, policy=asking("new"))
    last.lane.adopt([unsaved])
    last.offer(0)
    last.save()
    assert [one.prompt_version for one in last.results] == ["old"]


def read_anew(item: Item) -> Item:
    request = msgspec.structs.replace(item.request, body_json=b'{"messages":["new"]}')
    return msgspec.structs.replace(item, request=request)


@pytest.mark.parametrize("kept", [True, False])
def test_an_item_that_is_asked_the_prompt_of_before_says_so(kept: bool) -> None:
    """It was under way for long when the job was edited. Where its record can't be read again (a schema's bytes, the
    head of a large one), it is asked what it was read with."""
    first, slow = shelved(asking("old"))
    disk, seq = first.disk, first.lane.seq
    for owner in range(3):  # restarts tell it on
        heir = Owner(disk, seq, policy=asking("new"))
        if kept:
            heir.lane.restore_shelf(heir.now)
        else:
            heir.lane.restore_shelf(heir.now, read_anew)
        heir.save()
        (call,) = heir.take()
        assert (call.item_id, call.made_by[1]) == (slow.item_id, "old" if kept else "new"), owner
        if owner < 2:
            heir.lane.outcome(msgspec.structs.replace(answered(call), answer=None, usage=None, failure=BUSY), heir.now)
            heir.lane.drain(heir.now)
            heir.save()
        seq = heir.lane.seq
    heir.lane.outcome(answered(call), heir.now)
    heir.save()
    assert [one.prompt_version for one in heir.results] == ["old" if kept else "new"]


def serving(model: str, version: str, price: int) -> Catalog:
    """One model, of one version."""
    made = Model(model, (Version(version, version),), version, account="a", price=Price(price, price), context=8000)
    return Catalog({"a": Account("a", "openai", "http://localhost")}, {model: made}, {3: (model,)})


DEAR, CHEAP = 10 * 10**9, 10**9


def heir_of(served: tuple[str, str], serves: tuple[str, str], *, landed: bool) -> tuple[Owner, Call]:
    """Who took over with another (model, version), and the call to the first one's, `landed` before or not."""
    first = Owner({}, catalog=serving(*served, DEAR))
    first.offer(0)
    first.save()
    (call,) = first.take()
    (tariff,) = first.lane.tariffs([call]).values()
    heir = Owner(first.disk, first.lane.seq, catalog=serving(*serves, CHEAP))
    theirs = msgspec.structs.replace(left(call), model=served[0], version=served[1], tariff=tariff)
    heir.lane.adopt([msgspec.structs.replace(theirs, outcome=answered(call)) if landed else theirs])
    heir.offer(0)
    return heir, call


@pytest.mark.parametrize("lands", ["before", "after"])
def test_a_call_to_a_version_that_left_the_catalogue_costs_what_it_cost(lands: str) -> None:
    """`model: large` became `model: small` under the same name, and another command took the run over: the large one's
    answers were billed as the small one's."""
    heir, call = heir_of(("m", "large"), ("m", "small"), landed=lands == "before")
    if lands == "after":
        heir.lane.outcome(answered(call), heir.now)
    heir.save()
    (result,) = heir.results
    assert (result.model_version, result.cost_nano) == ("large", 10 * 10_000)


@pytest.mark.parametrize("lands", ["before", "after", "too late"])
def test_a_call_to_a_model_that_left_the_job_is_on_the_bill(lands: str) -> None:
    """Its item is asked of another now; what it cost stood nowhere. Once the item has its end no record can tell it."""
    heir, call = heir_of(("gone", "v1"), ("m", "v1"), landed=lands == "before")
    (again,) = heir.take()
    if lands == "after":
        heir.lane.outcome(answered(call), heir.now)
    heir.lane.outcome(answered(again, "new"), heir.now)
    if lands == "too late":
        heir.lane.outcome(answered(call), heir.now)
    heir.lane.outcome(answered(call), heir.now)  # told again, since the reply got lost
    batch = heir.commit()
    (result,) = batch.results
    assert (result.model, result.answer.text) == ("m", "new")
    billed = [(line.model, line.attempt, line.cost_nano) for line, _ in batch.costs]
    if lands == "too late":
        assert (billed, heir.lane.tally.late_payments) == ([("m", 2, 10_000)], 1)
    else:
        assert (billed, heir.lane.tally.late_payments) == ([("gone", 1, 100_000), ("m", 2, 10_000)], 0)
        assert result.cost_nano == heir.lane.tally.cost_nano == 110_000
    assert (len(result.attempts), result.cost_basis) == (1 + (lands != "too late"), "metered")


JUDGED = Task("t", max_tokens=10, sample=1.0, scorers=(Scorer("judge", model="other", rubric="?", choices=("1", "2")),))


@pytest.mark.parametrize("answered_first", [False, True])
def test_of_two_calls_of_one_number_the_answer_counts(answered_first: bool) -> None:
    """The last owner did not hear of the first one's call, since its worker was stopped, and made it again under the
    same number. Its answer was dropped, and the other call waited for."""
    heir = Owner({})
    call = Adopted("i0", 0, 1, "m", "w", version="v1")
    said = Outcome("i0", 0, 1, 0.0, 1.0, Answer("said", "stop", b"{}"), None, Usage(5, output=5))
    both = [Adopted("i0", 0, 1, "m", "stopped", version="v1"), msgspec.structs.replace(call, outcome=said)]
    heir.lane.adopt(both[::-1] if answered_first else both)
    heir.offer(0)
    heir.save()
    assert heir.save() == ["said"]
    heir.lane.outcome(said, heir.now)
    assert heir.lane.tally.late_payments == 1, "the other one's"


@pytest.mark.parametrize("lost", [False, True])
def test_an_answer_that_the_item_goes_on_without_is_on_the_bill(lost: bool) -> None:
    """A cascade did not believe it, and the next model was asked; then the commit failed. Where that call is lost with
    its worker, the answer counts again."""
    heir = Owner({})
    first, later = (Call("i0", 0, n, "primary", "m", "v1", "m", b"", "t", 9, 9.0, 9, 9) for n in (1, 2))
    heir.lane.adopt([left(first, answered(first, "first")), left(later)])
    if lost:
        heir.lane.worker_lost("w", heir.now)
        heir.offer(0)
        heir.save()
        assert heir.save() == ["first"]
        return
    heir.offer(0)
    heir.save()
    heir.lane.outcome(answered(later, "later"), heir.now)
    assert heir.save() == ["later"]
    (result,) = heir.results
    assert [attempt.n for attempt in result.attempts] == [1, 2]
    assert result.cost_nano == heir.lane.tally.cost_nano == 2 * 10 * 1000


def test_an_answer_is_not_asked_for_again_where_its_judge_was_asked() -> None:
    """What the judge says then has no number that another call gets, and is on the bill."""
    heir = Owner({}, policy=Policy({"t": JUDGED}, default_task="t"))
    call = Call("i0", 0, 1, "primary", "m", "v1", "m", b"", "t", 9, 9.0, 9, 9)
    heir.lane.adopt([left(call, answered(call)), Adopted("i0", 0, 2, "other", "w", None, "judge", "v1")])
    heir.offer(0)
    heir.save()
    (again,) = heir.take()
    assert (again.role, again.attempt) == ("judge", 3)
    heir.lane.outcome(Outcome("i0", 0, 2, 0.0, 1.0, Answer("1", "stop", b"{}"), None, Usage(5, output=5)), heir.now)
    heir.lane.outcome(answered(again, "2"), heir.now)
    assert heir.save() == ["yes"]
    told = [(attempt.n, attempt.role) for attempt in heir.results[0].attempts]
    assert told == [(1, "primary"), (2, "judge"), (3, "judge")]
    assert heir.lane.tally.late_payments == 0


def test_an_answer_that_comes_before_its_item_waits_for_it() -> None:
    """The worker is done before the reader comes to the record: the answer was paid for, and nobody asks again."""
    disk: dict[str, bytes] = {}
    first = Owner(disk)
    for number in range(2):
        first.offer(number)
    first.save()
    calls = first.take()
    heir = Owner(disk, first.lane.seq)
    heir.lane.adopt([left(call) for call in calls])
    heir.lane.outcome(answered(calls[0], "early"), heir.now)
    heir.lane.worker_lost("w", heir.now)
    for number in range(2):
        heir.offer(number)
    assert heir.save() == ["early"]
    assert heir.lane.tally.late_payments == 0
    assert [(call.item_id, call.attempt) for call in heir.take()] == [("i1", 1)]


def test_a_call_that_outlived_its_lane_keeps_its_role() -> None:
    """A fallback's answer is no first choice's, in the costs neither."""
    heir = Owner({})
    heir.lane.adopt([Adopted("i0", 0, 2, "m", "w", role="fallback", version="v1")])
    heir.offer(0)
    heir.commit()
    heir.lane.outcome(Outcome("i0", 0, 2, 0.0, 1.0, Answer("yes", "stop", b"{}"), None, Usage(5, output=5)), heir.now)
    assert [line.role for line, _ in heir.commit().costs] == ["fallback"]


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize(("model", "role"), [("m", "judge"), ("m", "shadow"), ("other", "primary")])
def test_an_answer_that_nobody_waits_for_any_more_is_on_the_bill(model: str, role: Role, early: bool) -> None:
    """A step's, whose item is asked anew, or of a model that the item may not go to now. `early`: its worker was not
    done with it when the new owner asked, but before the item was read again."""
    heir = Owner({})
    said = Outcome("i0", 0, 2, 0.0, 1.0, Answer("4", "stop", b"{}"), None, Usage(5, output=5))
    heir.lane.adopt([Adopted("i0", 0, 2, model, "w", None if early else said, role, "v1")])
    if early:
        heir.lane.outcome(said, heir.now)
    heir.offer(0)
    heir.commit()
    (call,) = heir.take()
    heir.lane.outcome(answered(call), heir.now)
    batch = heir.commit()
    (result,) = batch.results
    assert [(a.n, a.role, a.model) for a in result.attempts] == [(2, role, model), (3, "primary", "m")]
    assert result.cost_nano == heir.lane.tally.cost_nano == 2 * 10 * 1000
    assert result.call_ms == 1.0 + (role == "primary"), "what steps take is no time of the answer's"
    assert heir.lane.tally.steps_nano == ({role: 10_000} if role != "primary" else {})
    assert heir.lane.tally.late_payments == 0


@pytest.mark.parametrize("durable", [False, True])
def test_an_answer_whose_commit_failed_is_the_next_owners(durable: bool) -> None:
    """Nobody knows whether it was made. Where it was not, the answer is taken up, and billed once; where it was, its
    item has ended, and nobody waits for the answer."""
    disk: dict[str, bytes] = {}
    first = Owner(disk)
    for number in range(3):
        first.offer(number)
    first.save()
    saved, unsaved, flying = first.take()
    first.lane.outcome(answered(saved, "saved"), first.now)
    assert first.save() == ["saved"]
    first.lane.outcome(answered(unsaved, "unsaved"), first.now)
    batch = first.lane.commit(first.now)  # `committed` never comes
    if durable:
        disk.update(batch.chunks)
    heir = Owner(disk, batch.seq if durable else batch.seq - 1)
    assert [one.item_id for one in first.lane.unsaved] == ["i1"]
    heir.lane.adopt(first.lane.unsaved)
    assert heir.lane.has_answers is not durable
    for number in range(3):
        heir.offer(number)
    assert [line.item_id for line, _ in heir.commit().costs] == ([] if durable else ["i1"])
    assert [call.item_id for call in heir.take()] == [flying.item_id]


def test_an_answer_whose_item_has_ended_is_waited_for_no_longer_than_until_all_was_read_again() -> None:
    """It was committed, and its worker did not hear so: each later move of the lane waited five seconds for it, in
    which nothing was sent."""
    disk: dict[str, bytes] = {}
    first = Owner(disk)
    for number in range(3):
        first.offer(number)
    first.save()
    one, *others = first.take()
    first.lane.outcome(answered(others[0]), first.now)
    first.save()
    heir = Owner(disk, first.lane.seq)
    heir.lane.adopt([left(others[0], answered(others[0])), left(one, answered(one))])
    for number in range(3):
        assert heir.lane.has_answers, "more may come"
        heir.offer(number)
    assert not heir.lane.has_answers


def test_answers_that_an_owner_was_left_and_did_not_come_to_are_left_to_the_next() -> None:
    """Two commits fail in a row, the second before all was read again."""
    disk: dict[str, bytes] = {}
    first = Owner(disk)
    for number in range(2):
        first.offer(number)
    first.save()
    for call in first.take():
        first.lane.outcome(answered(call), first.now)
    second = Owner(disk, first.lane.seq)
    second.lane.adopt(first.lane.unsaved)
    second.offer(0)
    assert sorted(one.item_id for one in second.lane.unsaved) == ["i0", "i1"]
    heir = Owner(disk, second.lane.seq)
    heir.lane.adopt(second.lane.unsaved)
    for number in range(2):
        heir.offer(number)
    assert heir.save() == ["yes", "yes"]
    assert heir.take() == []
    assert heir.lane.unsaved == []


def unsaved_of(first: Owner) -> list[Adopted]:
    """Its commit fails, and was not made. What it leaves, and the calls that go on at the worker."""
    first.lane.commit(first.now)
    flying = [
        Adopted(slot.item.item_id, 0, slot.attempt, slot.model, "w", None, slot.role, "v1")
        for slot in first.lane.slots.values()
        if slot.state == "flying"
    ]
    return [*first.lane.unsaved, *flying]


def asked_on(owner: Owner) -> Call:
    """Its first item was answered; the call that follows: of a judge, or of the next model."""
    owner.offer(0)
    owner.save()
    (call,) = owner.take()
    owner.lane.outcome(answered(call), owner.now)
    (following,) = owner.take()
    return following


@pytest.mark.parametrize("judged", [False, True])
def test_an_unsaved_answer_is_taken_up_though_its_judge_was_asked(judged: bool) -> None:
    """The judge's call is the later one, and what it is about would be paid for again. `judged`: it was answered, and
    a worker holds that."""
    disk, policy = dict[str, bytes](), Policy({"t": JUDGED}, default_task="t")
    first = Owner(disk, policy=policy)
    judge = asked_on(first)
    assert (judge.role, judge.attempt) == ("judge", 2)
    answer, asked = unsaved_of(first)
    heir = Owner(disk, first.lane.seq - 1, policy=policy)
    said = answered(judge, "2") if judged else None
    heir.lane.adopt([answer, Adopted("i0", 0, 2, asked.model, "w", said, "judge", "v1")])
    heir.offer(0)
    (again,) = heir.take()
    assert (again.role, again.attempt) == ("judge", 3)
    heir.lane.outcome(answered(again, "2"), heir.now)
    batch = heir.commit()
    assert [result.answer.text for result in batch.results] == ["yes"]
    assert [attempt.n for attempt in batch.results[0].attempts] == ([1, 2, 3] if judged else [1, 3])
    assert batch.results[0].cost_nano == heir.lane.tally.cost_nano == len(batch.costs) * 10_000


@pytest.mark.parametrize("failures", [1, 2])
def test_an_unsaved_answer_that_a_cascade_did_not_believe_is_on_the_bill(failures: int) -> None:
    """The next model was asked when the commit failed; so may the next owner's first commit."""
    doubted = Task("t", max_tokens=10, cascade=Cascade(("m", "other"), "logprob", 0.9))
    disk, policy = dict[str, bytes](), Policy({"t": doubted}, default_task="t")
    heir = Owner(disk, policy=policy)
    above = asked_on(heir)
    assert (above.model, above.attempt) == ("other", 2)
    seq = heir.lane.seq
    for _ in range(failures):
        adopted = unsaved_of(heir)
        heir = Owner(disk, seq, policy=policy)
        heir.lane.adopt(adopted)
        heir.offer(0)
        assert heir.take() == []
    heir.lane.outcome(answered(above, "sure"), heir.now)
    batch = heir.commit()
    assert [result.answer.text for result in batch.results] == ["sure"]
    assert [line.attempt for line, _ in batch.costs] == [1, 2]
    assert batch.results[0].cost_nano == heir.lane.tally.cost_nano == 2 * 10_000


def test_an_unsaved_call_in_vain_is_on_the_bill() -> None:
    """It was charged for; the next owner asks again under the next number, and no sooner than the last one would."""
    disk: dict[str, bytes] = {}
    first = Owner(disk)
    first.offer(0)
    first.save()
    first.take()
    in_vain = Outcome("i0", 0, 1, 0.0, 1.0, None, Failure("invalid_response", "x"), Usage(1, output=1))
    first.lane.outcome(in_vain, first.now)
    heir = Owner(disk, first.lane.seq)
    heir.lane.adopt(unsaved_of(first))
    heir.offer(0)
    heir.now += 60.0
    heir.lane.tick(heir.now)
    (again,) = heir.take()
    assert again.attempt == 2
    assert [line.attempt for line, _ in heir.commit().costs] == [1]


def test_an_unsaved_answer_of_a_judge_is_on_the_bill() -> None:
    """The answer's own cost is committed already; what the judge said of it died with its owner."""
    disk, policy = dict[str, bytes](), Policy({"t": JUDGED}, default_task="t")
    first = Owner(disk, policy=policy)
    judge = asked_on(first)
    assert first.save() == []
    first.lane.outcome(answered(judge, "2"), first.now)
    heir = Owner(disk, first.lane.seq, policy=policy)
    heir.lane.adopt(unsaved_of(first))
    heir.offer(0)
    (again,) = heir.take()
    assert (again.role, again.attempt) == ("judge", 3)
    assert [(line.role, line.attempt) for line, _ in heir.commit().costs] == [("judge", 2)]


@pytest.mark.parametrize("failures", [1, 2])
@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("slow", [False, True])
def test_an_answer_whose_cost_is_committed_is_not_paid_for_again_though_its_judge_is_slow(
    failures: int, durable: bool, slow: bool
) -> None:
    """A later commit fails, and was made or not (`durable`), perhaps more than one; the lane's process lives on, and
    has the answer. `slow`: that commit puts the item on the shelf."""
    disk, policy = dict[str, bytes](), Policy({"t": JUDGED}, default_task="t")
    heir = Owner(disk, policy=policy)
    judge = asked_on(heir)
    for number in range(1, 12):
        heir.offer(number)
    heir.save()
    others = heir.take()
    assert len(others) == 11
    for call in others:
        heir.lane.outcome(answered(call, "other"), heir.now)
    for call in heir.take():  # their judges
        heir.lane.outcome(answered(call, "2"), heir.now)
    for _ in range(failures):
        heir.now += 30.0 if slow else 0.0
        batch = heir.lane.commit(heir.now)  # `committed` never comes
        if durable:
            disk.update(batch.chunks)
        left_behind, seq = heir.lane.unsaved, batch.seq if durable else batch.seq - 1
        heir = Owner(disk, seq, policy=policy)
        heir.lane.adopt(left_behind)
        heir.lane.restore_shelf(heir.now)
        for number in range(12):
            heir.offer(number)
    calls = heir.take()
    assert [call.role for call in calls] == ["judge"] * len(calls)
    assert judge.item_id in {call.item_id for call in calls}
    for call in calls:
        heir.lane.outcome(answered(call, "2"), heir.now)
    heir.save()
    (whole,) = [result for result in heir.results if result.item.item_id == judge.item_id]
    assert whole.answer.text == "yes"
    assert [(one.role, one.n) for one in whole.attempts if one.role == "primary"] == [("primary", 1)]
    assert whole.cost_nano == len(whole.attempts) * 10_000
    assert heir.lane.unsaved == []


@pytest.mark.parametrize("durable", [False, True])
def test_the_answer_of_a_shelved_item_is_left_to_nobody_once_the_item_has_ended(durable: bool) -> None:
    """Its place in the input is done since it went to the shelf. Where the commit that failed was made, the answer is
    nobody's: else each later move of the lane would wait for an item that never comes."""
    first, slow = shelved()
    first.lane.outcome(answered(slow, "slow"), first.now)
    batch = first.lane.commit(first.now)  # `committed` never comes
    if durable:
        for name, data in batch.chunks.items():
            first.disk.pop(name, None)
            first.disk |= {name: data} if data else {}
    heir = Owner(first.disk, batch.seq if durable else batch.seq - 1)
    heir.lane.adopt(first.lane.unsaved)
    assert heir.lane.has_answers is not durable
    heir.lane.restore_shelf(heir.now)
    assert heir.save() == ([] if durable else ["slow"])
    assert heir.lane.unsaved == []


def test_an_answer_is_not_taken_for_another_call_of_its_number() -> None:
    """Its owner was replaced, and the next one, elsewhere, did not hear of it: it made a call of its own under that
    number, and paid for it. The lane comes back to where the first answer still is."""
    disk, policy = dict[str, bytes](), Policy({"t": JUDGED}, default_task="t")
    first = Owner(disk, policy=policy)
    first.offer(0)
    first.save()
    (call,) = first.take()
    first.lane.outcome(answered(call, "mine"), first.now)
    kept, seq = first.lane.unsaved, first.lane.seq
    elsewhere = Owner(disk, seq, policy=policy)
    elsewhere.offer(0)
    (again,) = elsewhere.take()
    assert again.attempt == call.attempt
    later = msgspec.structs.replace(answered(again, "theirs"), started_at=7.0)
    elsewhere.lane.outcome(later, elsewhere.now)
    elsewhere.save()
    back = Owner(disk, elsewhere.lane.seq, policy=policy)
    back.lane.adopt(kept)
    back.offer(0)
    assert [each.role for each in back.take()] == ["primary"]


def test_an_answer_that_a_cascade_did_not_believe_is_kept_while_the_next_model_fails() -> None:
    """One commit fails while that one is asked, another after it failed: its turn is next, and not the first one's."""
    doubted = Task("t", max_tokens=10, cascade=Cascade(("m", "other"), "logprob", 0.9))
    disk, policy = dict[str, bytes](), Policy({"t": doubted}, default_task="t")
    owner = Owner(disk, policy=policy)
    above = asked_on(owner)
    owner.save()
    for fails in (True, False):
        seq, adopted = owner.lane.seq, unsaved_of(owner)
        owner = Owner(disk, seq, policy=policy)
        owner.lane.adopt(adopted)
        owner.offer(0)
        if fails:
            in_vain = Outcome(
                "i0", 0, above.attempt, 5.0, 1.0, None, Failure("invalid_response", "x"), Usage(1, output=1)
            )
            owner.lane.outcome(in_vain, owner.now)
            owner.save()
    (again,) = owner.take()
    assert (again.model, again.attempt) == ("other", 3)


@pytest.mark.parametrize("lost", [False, True])
def test_an_answer_of_a_cascade_whose_cost_is_committed_is_neither_asked_nor_billed_again(lost: bool) -> None:
    """It was not believed, and the next model was asked when a commit failed. `lost`: with that one's worker."""
    doubted = Task("t", max_tokens=10, cascade=Cascade(("m", "other"), "logprob", 0.9))
    disk, policy = dict[str, bytes](), Policy({"t": doubted}, default_task="t")
    first = Owner(disk, policy=policy)
    above = asked_on(first)
    first.save()
    seq, adopted = first.lane.seq, unsaved_of(first)
    heir = Owner(disk, seq, policy=policy)
    heir.lane.adopt(adopted)
    if lost:
        heir.lane.worker_lost("w", heir.now)
    heir.offer(0)
    if lost:
        (above,) = heir.take()
    assert heir.take() == []
    assert above.model == "other"
    heir.lane.outcome(answered(above, "sure"), heir.now)
    batch = heir.commit()
    assert [result.answer.text for result in batch.results] == ["sure"]
    assert [(each.n, each.model) for each in batch.results[0].attempts] == [(1, "m"), (above.attempt, "other")]
    assert [line.attempt for line, _ in batch.costs] == [above.attempt]
