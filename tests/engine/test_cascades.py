"""A cheap answer is taken where its signal passes; the doubtful go up, behind the same wall, from the same money."""

from __future__ import annotations

import math

import msgspec
import pytest

from penstock.engine import judging, signals
from penstock.engine.budget import Budget
from penstock.engine.catalog import Account, Catalog, Model, Price, Version, Wall
from penstock.engine.flow.cells import cells_in
from penstock.engine.flow.lane_check import check
from penstock.engine.flow.lane_types import CommitBatch, Hooks
from penstock.engine.items import (
    Answer,
    Attributes,
    Call,
    Exposure,
    Failure,
    FailureKind,
    Item,
    Outcome,
    Position,
    Request,
    Usage,
)
from penstock.engine.policy import (
    NEVER,
    Cascade,
    Condition,
    Output,
    Policy,
    Promise,
    Rule,
    Scorer,
    Task,
    target_name,
)
from penstock.engine.quality import score_all, scorer_version
from penstock.engine.registry.standing import Known
from penstock.engine.results import Result
from penstock.engine.steering.document import Steering
from penstock.engine.steering.turn import Turn
from tests.engine.one_lane import OneLane

PRICE = Price(input=10**9, output=10**9)


def model(name: str, region: str, lacks: tuple[str, ...] = ()) -> Model:
    versions = (Version("v1", name), Version("w@v2", name))
    return Model(
        name,
        versions,
        "v1",
        account=name,
        price=PRICE,
        context=8000,
        regions=(region,),
        lacks=lacks,
        quality={"t": 0.1},
        licence="free" if name != "top" else "dear",
    )


MODELS = [model("small", "us"), model("mid", "eu"), model("top", "eu"), model("mute", "eu", ("logprobs",))]
CATALOG = Catalog(
    {m.name: Account(m.name, "openai", "http://localhost") for m in MODELS},
    {m.name: m for m in MODELS},
    {1: ("top",)},
    {
        "public": Wall("public"),
        "eu-only": Wall("eu-only", regions=("eu",)),
        "free": Wall("free", licence=("free",)),
        "unsampled": Wall("unsampled", sample="never"),
    },
    "public",
)
LOGPROB = Cascade(("small", "mid", "top"), "logprob", 0.9)
PROMISE = Promise(1, "exact@1", 0.9)


def said(text: str, *logprobs: float, top: float | None = None) -> Answer:
    """An answer whose tokens have these log-probabilities; `top`: of the next likely token, everywhere."""
    content = [
        {
            "token": "x",
            "logprob": p,
            "top_logprobs": [{"token": t, "logprob": q} for t, q in (("x", p), ("y", top)) if q],
        }
        for p in logprobs
    ]
    choice = {"index": 0, "message": {"content": text}, "logprobs": {"content": content} if logprobs else None}
    return Answer(text, "stop", msgspec.json.encode({"id": "c", "choices": [choice]}))


class Rig(OneLane):
    def __init__(
        self,
        cascade: Cascade,
        rules: tuple[Rule, ...] = (),
        budgets: tuple[Budget, ...] = (),
        catalog: Catalog = CATALOG,
        **task: object,
    ) -> None:
        whole = Task("t", tier=1, max_tokens=10, cascade=cascade, **task)  # type: ignore[arg-type]
        policy = Policy({"t": whole}, default_task="t", rules=rules)
        hooks = Hooks(
            lambda: 0.5,
            lambda item, answer, task: score_all(task.scorers, answer.text, "c"),
            lambda body, answer, message: body,
        )
        super().__init__(catalog, policy, hooks, budgets)

    def offer(self, attributes: Attributes | None = None, request: Request | None = None) -> None:
        body = Request(b'{"messages":[]}', temperature=1.0, input_hash="h")
        self.lane.offer(
            Item("i", Position("s", 0, 0), attributes or Attributes(), request or body, b"x", self.now), self.now
        )
        self.commit()

    def answer(self, model: str, answer: Answer) -> None:
        """To the one call that this model has."""
        (call,) = self.lane.take(f"api:{model}", 9, 1 << 30, "w", self.now)
        self.lane.outcome(Outcome("i", 0, call.attempt, self.now, 1.0, answer, None, Usage(10, output=1)), self.now)
        check(self.lane)

    def _call(self) -> Call | None:
        """The next one. Judges' own money is spent; all else is paid for."""
        for _ in range(9):
            for m in MODELS:
                for call in self.lane.take(f"api:{m.name}", 9, 1 << 30, "w", self.now):
                    return call
            for n, wish in enumerate(self.lane.wishes()):
                if wish.key.endswith("/for/judge"):
                    self.lane.refused(wish, "spent", self.now)
                else:
                    self.lane.leased(wish.key, {f"{len(self.sent)}-{n}": 10**9}, self.now)
        return None

    def run(self, answers: dict[str, list[Answer | FailureKind]]) -> CommitBatch:
        """Until nobody is sent any more. Every model says what stands here for it, in turn."""
        while call := self._call():
            self.sent.append(call)
            word = answers[call.model].pop(0)
            answer = word if isinstance(word, Answer) else said("bad") if word == "invalid_output" else None
            failure = None if isinstance(word, Answer) else Failure(word, "m")
            usage = Usage(10, output=1)
            self.lane.outcome(Outcome("i", 0, call.attempt, self.now, 1.0, answer, failure, usage), self.now)
            check(self.lane)
        return self.commit()

    def one(self, answers: dict[str, list[Answer | FailureKind]]) -> Result:
        (result,) = self.run(answers).results
        return result


def test_an_answer_that_its_model_is_sure_of_is_taken() -> None:
    """The record says why; nobody else was asked, and what only the cascade wanted to know is not in the answer."""
    rig = Rig(LOGPROB)
    rig.offer()
    result = rig.one({"small": [said("yes", math.log(0.93), math.log(0.93))]})
    assert (result.answer.text, result.model) == ("yes", "small")
    assert result.route.reason == "cascade of task t; answer of small accepted: logprob 0.93 ≥ 0.9"
    assert rig.roles() == [("primary", "small")]
    assert msgspec.json.decode(rig.sent[0].body_json) == {"messages": [], "logprobs": True}
    assert b"logprobs" not in result.answer.body_json


def test_a_doubtful_answer_goes_up_and_the_last_one_is_taken_as_it_is() -> None:
    """All calls are in the cost; the last model is not asked how sure it is."""
    rig = Rig(LOGPROB)
    rig.offer()
    result = rig.one({"small": [said("a", math.log(0.5))], "mid": [said("b", math.log(0.8))], "top": [said("c")]})
    assert (result.answer.text, result.model) == ("c", "top")
    assert rig.roles() == [("primary", "small"), ("cascade", "mid"), ("cascade", "top")]
    assert result.route.reason.split("; ")[1:] == [
        "answer of small doubtful: logprob 0.5 < 0.9",
        "answer of mid doubtful: logprob 0.8 < 0.9",
        "answer of top taken: the last of the cascade",
    ]
    assert result.cost_nano == sum(a.cost_nano for a in result.attempts) > 0
    assert rig.lane.tally.climbed == {"small|mid": 1, "mid|top": 1}
    assert b"logprobs" not in rig.sent[2].body_json


@pytest.mark.parametrize(
    ("cascade", "answers"),
    [
        (LOGPROB, {"small": [said("a", -2.0)], "mid": [said("a", -2.0)], "top": [said("b", -0.01)]}),
        (Cascade(("small", "top"), "agreement", 0.9, samples=3), {"small": [said("a"), said("a"), said("a")]}),
    ],
)
def test_tier_1_alone_would_have_been_asked_once(
    cascade: Cascade, answers: dict[str, list[Answer | FailureKind]]
) -> None:
    """What is saved is told against one answer's tokens, however many calls it took here."""
    rig = Rig(cascade)
    rig.offer()
    result = rig.one(answers)
    assert (result.usage, result.answer_usage) == (Usage(30, output=3), Usage(10, output=1))
    assert rig.lane.tally.tier1_cost_nano == 11_000


def test_no_signal_is_a_doubt() -> None:
    """A provider that tells no probabilities; a model that `lacks` them is not even asked, as its calls say."""
    rig = Rig(Cascade(("mute", "small", "top"), "logprob", 0.1))
    rig.offer()
    result = rig.one({"mute": [said("a")], "small": [said("b")], "top": [said("c")]})
    assert result.answer.text == "c"
    assert "answer of mute doubtful: it tells no logprob" in result.route.reason
    assert [b"logprobs" in call.body_json for call in rig.sent] == [False, True, False]
    assert [call.lacks for call in rig.sent] == [("logprobs",), (), ()]


def test_the_wall_takes_steps_out_of_a_cascade() -> None:
    """What is left is a shorter cascade; of one model, its answer is taken. Declared qualities don't matter."""
    rig = Rig(msgspec.structs.replace(LOGPROB, promise=PROMISE), min_quality=0.9)
    rig.offer(Attributes(sensitivity="eu-only"))
    result = rig.one({"mid": [said("b", math.log(0.8))], "top": [said("c")]})
    assert (result.model, rig.roles()) == ("top", [("primary", "mid"), ("cascade", "top")])
    assert [r.model for r in result.route.refused] == ["small"]


MORE = "cascade of task t; quality ≥ 0.95 is more than it promises: its last model alone"


@pytest.mark.parametrize("cascade", [LOGPROB, msgspec.structs.replace(LOGPROB, promise=PROMISE)])
@pytest.mark.parametrize("by_rule", [True, False])
def test_who_asks_for_more_than_a_cascade_promises_is_answered_by_its_last_model(
    cascade: Cascade, by_rule: bool
) -> None:
    """Of a threshold that was set by hand nothing is promised; the record says so of each that was passed over."""
    rig = Rig(cascade, (Rule(Condition("tenant", "eq", "t"), min_quality=0.95),) if by_rule else ())
    rig.offer(Attributes(tenant="t") if by_rule else Attributes(min_quality=0.95))
    result = rig.one({"top": [said("c")]})
    assert (result.answer.text, rig.roles()) == ("c", [("primary", "top")])
    assert result.route.reason == (MORE.replace("task t", "task t (rule 1)") if by_rule else MORE)
    why = "quality ≥ 0.95 is more than the cascade promises of its answers"
    assert [(r.model, r.reason) for r in result.route.refused] == [("small", why), ("mid", why)]


def test_the_tasks_own_quality_is_what_the_loader_has_compared() -> None:
    """A run that was begun before that was compared goes on as it was, not at the dearest model alone."""
    rig = Rig(LOGPROB, min_quality=0.9)
    rig.offer()
    rig.one({"small": [said("a", math.log(0.95))]})
    assert rig.roles() == [("primary", "small")]


def test_where_the_last_model_is_forbidden_no_cheaper_one_stands_in_unasked_for_its_quality() -> None:
    """The cheaper ones are taken for what was measured or declared of them, as without a cascade."""
    rig = Rig(LOGPROB)
    rig.offer(Attributes(sensitivity="free", min_quality=0.95))
    assert rig.lane.tally.dead_letters == {"no_candidate": 1}


@pytest.mark.parametrize("by_task", [True, False])
def test_where_the_last_model_is_forbidden_nobody_keeps_a_cascades_promise(by_task: bool) -> None:
    """A cheaper one would be the last, whose answer is taken as it is: it is asked where its own quality is known."""
    cascade, asked = msgspec.structs.replace(LOGPROB, promise=PROMISE), None if by_task else 0.9
    mid = msgspec.structs.replace(CATALOG.models["mid"], quality={"t": 0.95})
    known = msgspec.structs.replace(CATALOG, models={**CATALOG.models, "mid": mid})
    rig = Rig(cascade, min_quality=0.9 if by_task else None)
    rig.offer(Attributes(sensitivity="free", min_quality=asked))
    assert rig.lane.tally.dead_letters == {"no_candidate": 1}
    rig = Rig(cascade, catalog=known, min_quality=0.9 if by_task else None)
    rig.offer(Attributes(sensitivity="free", min_quality=asked))
    result = rig.one({"mid": [said("b")]})
    assert (result.route.cascade, rig.roles()) == (False, [("primary", "mid")])


@pytest.mark.parametrize("asked", [0.9, None])
def test_who_may_not_pay_the_last_model_is_promised_nothing(asked: float | None) -> None:
    """The cheap model would be the last. Where no quality is asked for, it is, as behind a wall."""
    dear = msgspec.structs.replace(CATALOG.models["top"], price=Price(input=10**12, output=10**12))
    catalog = msgspec.structs.replace(CATALOG, models={**CATALOG.models, "top": dear})
    rig = Rig(Cascade(("small", "top"), "logprob", 0.9, promise=PROMISE), catalog=catalog)
    rig.offer(Attributes(max_cost_usd=0.001, min_quality=asked))
    if asked is not None:
        assert rig.lane.tally.dead_letters == {"over_max_cost": 1}
    else:
        assert rig.one({"small": [said("a", math.log(0.5))]}).model == "small"


def test_who_asks_for_what_a_cascade_promises_or_for_no_cheap_answer_climbs_it() -> None:
    """A run that takes no answer but the last model's, for labels, asks all of its models."""
    for cascade, sent in (
        (msgspec.structs.replace(LOGPROB, promise=PROMISE), ["small"]),
        (msgspec.structs.replace(LOGPROB, threshold=NEVER), ["small", "mid", "top"]),
    ):
        rig = Rig(cascade)
        rig.offer(Attributes(min_quality=0.9))
        rig.one({name: [said("a", math.log(0.95))] for name in ("small", "mid", "top")})
        assert [model for _, model in rig.roles()] == sent


def test_validity_sends_up_what_keeps_to_no_choice() -> None:
    """It is not asked again at the same place; the last one is, as ever."""
    rig = Rig(Cascade(("small", "top"), "validity"), output=Output(choices=("yes", "no")))
    rig.offer()
    result = rig.one({"small": ["invalid_output"], "top": ["invalid_output", said("yes")]})
    assert rig.roles() == [("primary", "small"), ("cascade", "top"), ("retry", "top")]
    assert (result.answer.text, result.status) == ("yes", "ok")
    rig = Rig(Cascade(("small", "top"), "validity"), output=Output(choices=("yes", "no")))
    rig.offer()
    assert rig.one({"small": [said("no")]}).route.reason.endswith("answer of small accepted: valid")


def test_agreement_asks_as_often_as_it_must() -> None:
    """Two equal answers of three are enough for 0.6; when they can't agree any more, the item goes up."""
    three = Cascade(("small", "top"), "agreement", 0.6, samples=3)
    rig = Rig(three)
    rig.offer()
    result = rig.one({"small": [said("yes"), said("Yes ")]})
    assert rig.roles() == [("primary", "small"), ("cascade", "small")]
    assert (result.answer.text, "agreement 0.667 ≥ 0.6" in result.route.reason) == ("yes", True)
    rig = Rig(three, output=Output(choices=("a", "b", "c")))
    rig.offer()
    result = rig.one({"small": [said("a"), "invalid_output", said("b")], "top": [said("c")]})
    assert (result.answer.text, len(rig.sent)) == ("c", 4)
    rig = Rig(three)
    rig.offer()
    result = rig.one({"small": [said("a"), said("b"), said("B")]})
    assert result.answer.text == "b", "the first of those who agree"


@pytest.mark.parametrize(
    ("temperature", "more", "agrees"),
    [
        (1.0, b"", True),
        (0.0, b"", False),
        (1.0, b',"seed":7', False),
        (1.0, b',"random_seed":7', False),
        (1.0, b',"seed":null', True),
        (1.0, b',"stop":"\\"seed\\""', True),
    ],
)
def test_answers_that_are_the_same_each_time_do_not_agree(temperature: float, more: bytes, agrees: bool) -> None:
    """A line may bring its own temperature of 0, or a seed: two equal answers say nothing of it then."""
    rig = Rig(Cascade(("small", "top"), "agreement", 0.6, samples=3))
    rig.offer(request=Request(b'{"messages":[]' + more + b"}", temperature=temperature, input_hash="h"))
    result = rig.one({"small": [said("yes"), said("yes")], "top": [said("no")]})
    assert (result.answer.text, [model for _, model in rig.roles()]) == (
        ("yes", ["small", "small"]) if agrees else ("no", ["small", "top"])
    )


def test_the_margin_is_the_least_lead_of_a_token() -> None:
    """Over the next likely one; a token that was not the likeliest has none."""
    rig = Rig(Cascade(("small", "top"), "margin", 0.5))
    rig.offer()
    result = rig.one({"small": [said("yes", math.log(0.9), math.log(0.7), top=math.log(0.1))]})
    assert "margin 0.6 ≥ 0.5" in result.route.reason
    assert b'"top_logprobs":2' in rig.sent[0].body_json
    unlikely = said("x", math.log(0.2), top=math.log(0.7))
    assert signals.of_tokens("margin", unlikely.body_json) == pytest.approx(-0.5)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"choices":[]}', b'{"choices":[{"logprobs":{"content":[]}}]}', b"[1]"])
def test_a_body_without_probabilities_has_no_signal_and_stays_as_it_is_read(body: bytes) -> None:
    """Whatever a provider sends."""
    assert signals.of_tokens("logprob", body) is None
    assert signals.of_tokens("margin", body) is None
    signals.untold(body)


def test_an_item_that_fails_on_its_way_up_is_no_result() -> None:
    """The doubtful answer is not given out for want of a better one; nor is its model asked a second time."""
    rig = Rig(Cascade(("small", "top"), "logprob", 0.9))
    rig.offer()
    batch = rig.run({"small": [said("a", math.log(0.5))], "top": ["refused"]})
    (dead,) = batch.dead_letters
    assert (dead.reason, rig.roles()) == ("refused", [("primary", "small"), ("cascade", "top")])
    assert dead.cost_nano == sum(a.cost_nano for a in dead.attempts)


def test_a_model_that_fails_is_passed_by() -> None:
    """Then the next one's signal decides."""
    rig = Rig(LOGPROB)
    rig.offer()
    result = rig.one({"small": ["refused"], "mid": [said("b", math.log(0.95))]})
    assert (result.model, rig.roles()) == ("mid", [("primary", "small"), ("fallback", "mid")])
    assert "answer of mid accepted" in result.route.reason


def test_of_a_sampled_item_each_answer_is_scored_with_its_signal() -> None:
    """Also those that were not believed: from both kinds a threshold can be found. None of them is a shadow."""
    rig = Rig(LOGPROB, sample=1.0, scorers=(Scorer("exact"),))
    rig.offer()
    result = rig.one({"small": [said("a", math.log(0.5))], "mid": [said("c", math.log(0.8))], "top": [said("c")]})
    assert (result.signal, [s.score for s in result.scores], result.shadows) == (None, [1.0], ())
    told = [(d.role, d.model, d.model_version, d.signal, [s.score for s in d.scores]) for d in result.doubted]
    assert told == [
        ("cascade", "small", "v1", pytest.approx(0.5), [0.0]),
        ("cascade", "mid", "v1", pytest.approx(0.8), [1.0]),
    ]
    rig = Rig(LOGPROB, sample=1.0, scorers=(Scorer("exact"),))
    rig.offer()
    result = rig.one({"small": [said("c", math.log(0.95))]})
    assert (result.signal, result.doubted) == (pytest.approx(0.95), ())


def test_a_doubted_answer_stays_that_of_the_version_that_gave_it() -> None:
    """Though another version is live before the item ends."""
    rig = Rig(LOGPROB, sample=1.0, scorers=(Scorer("exact"),))
    rig.offer()
    rig.answer("small", said("a", math.log(0.5)))
    rig.lane.steer(Turn(CATALOG.models, Steering(live={"small": "w@v2", "mid": "w@v2"})), rig.now)
    result = rig.one({"mid": [said("b", math.log(0.5))], "top": [said("c")]})
    told = [(d.model, d.model_version, d.usage.input, d.cost_nano) for d in result.doubted]
    assert told == [(a.model, a.model_version, 10, a.cost_nano) for a in result.attempts[:2]]
    assert [version for _, version, *_ in told] == ["v1", "w@v2"]


def test_a_calibrated_model_has_a_threshold_of_its_own() -> None:
    """And one that has none is never believed; nor is another version, which a rollout may bring at any time."""
    rig = Rig(Cascade(("small", "mid", "top"), "logprob", 2.0, thresholds={"small@v0": 0.1, "mid@v1": 0.7}))
    rig.offer()
    result = rig.one({"small": [said("a", math.log(0.99))], "mid": [said("b", math.log(0.8))]})
    assert (result.model, "accepted: logprob 0.8 ≥ 0.7" in result.route.reason) == ("mid", True)


GRADE = Scorer("judge", model="top", rubric="Is it right?", choices=("1", "2", "3", "4", "5"))
JUDGED = Cascade(("small", "mid"), "judge", 0.75, judge=GRADE)


def test_a_judge_speaks_before_a_cheap_answer_is_taken() -> None:
    """Its call is the item's: its cost, its record, its role. What it says is no score of the item."""
    rig = Rig(JUDGED, sample=1.0, scorers=(Scorer("exact"),))
    rig.offer()
    result = rig.one({"small": [said("yes")], "top": [said("4")]})
    assert (result.answer.text, result.model, result.signal) == ("yes", "small", 0.75)
    assert result.route.reason == "cascade of task t; answer of small accepted: judge 0.75 ≥ 0.75"
    assert rig.roles() == [("primary", "small"), ("judge", "top")]
    assert b"yes" in rig.sent[1].body_json
    assert rig.sent[1].task == judging.output_name("t", judging.SIGNAL)
    assert result.cost_nano == sum(a.cost_nano for a in result.attempts)
    assert result.usage == Usage(10, output=1), "what was judged with is no part of the answer"
    assert rig.lane.tally.steps == {"judge": 1}
    assert rig.lane.tally.steps_nano == {"judge": result.attempts[1].cost_nano}
    assert result.signal_by == judging.judge_version(GRADE, "v1")
    assert [score.scorer for score in result.scores] == ["exact"]
    assert judging.outputs(rig.lane.policy)[rig.sent[1].task] == Output(GRADE.choices)


def test_what_the_judge_does_not_believe_goes_up_and_the_last_answer_is_not_judged() -> None:
    """Of a sample the record keeps the judge's word on the answer that was not taken."""
    rig = Rig(JUDGED, sample=1.0, scorers=(Scorer("exact"),))
    rig.offer()
    result = rig.one({"small": [said("a")], "top": [said("2")], "mid": [said("c")]})
    assert (result.answer.text, rig.roles()) == ("c", [("primary", "small"), ("judge", "top"), ("cascade", "mid")])
    (doubted,) = result.doubted
    assert (doubted.signal, doubted.signal_by) == (0.25, judging.judge_version(GRADE, "v1"))
    assert "answer of small doubtful: judge 0.25 < 0.75" in result.route.reason


@pytest.mark.parametrize(
    ("judge", "why"),
    [
        (["refused"], "refused"),
        (["auth"], "no_candidate"),
        (["invalid_output", "invalid_output"], "invalid_output"),
        ([said("splendid")], "invalid_output"),
    ],
)
def test_a_judge_that_fails_or_talks_nonsense_has_believed_nothing(judge: list[Answer | FailureKind], why: str) -> None:
    """The answer is doubtful; the item goes up, and is judged no more where it ends."""
    rig = Rig(JUDGED)
    rig.offer()
    result = rig.one({"small": [said("a")], "top": judge, "mid": [said("c")]})
    assert (result.answer.text, result.signal) == ("c", None)
    assert "answer of small doubtful: no judge spoke" in result.route.reason
    assert rig.lane.tally.steps_failed == {f"judge|{why}": 1}
    assert rig.lane.tally.dead_letters == {}


def test_a_judge_that_is_asked_thrice_has_to_speak_thrice() -> None:
    """The mean counts; a word that is missing makes a doubt."""
    thrice = msgspec.structs.replace(JUDGED, judge=msgspec.structs.replace(GRADE, samples=3))
    rig = Rig(thrice)
    rig.offer()
    result = rig.one({"small": [said("a")], "top": [said("5"), said("3"), said("4")]})
    assert "accepted: judge 0.75 ≥ 0.75" in result.route.reason
    rig = Rig(thrice)
    rig.offer()
    result = rig.one({"small": [said("a")], "top": [said("5"), "refused", said("5")], "mid": [said("c")]})
    assert "no judge spoke" in result.route.reason


def test_an_answer_that_is_not_valid_is_not_worth_a_judge() -> None:
    rig = Rig(JUDGED, output=Output(choices=("a", "c")))
    rig.offer()
    result = rig.one({"small": ["invalid_output"], "mid": [said("c")]})
    assert rig.roles() == [("primary", "small"), ("cascade", "mid")]
    assert "answer of small doubtful: not valid" in result.route.reason


@pytest.mark.parametrize("sensitivity", ["free", "unsampled"])
def test_a_judge_behind_the_wall_is_not_asked(sensitivity: str) -> None:
    """One that the wall forbids, or any where the wall keeps samples away: nothing is believed. The record names it."""
    rig = Rig(JUDGED)
    rig.offer(Attributes(sensitivity=sensitivity))
    result = rig.one({"small": [said("a")], "mid": [said("c")]})
    assert (result.model, rig.roles()) == ("mid", [("primary", "small"), ("cascade", "mid")])
    named = [(refusal.model, refusal.reason[:9]) for refusal in result.route.refused]
    assert named == ([("top", "as judge:")] if sensitivity == "free" else [])


def test_without_money_for_the_judge_an_answer_goes_up() -> None:
    """Judges have a budget of their own; when it is spent the cascade costs more, and stays right."""
    rig = Rig(JUDGED, budgets=(Budget(10**9), Budget(1, role="judge")))
    rig.offer()
    result = rig.one({"small": [said("a")], "mid": [said("c")]})
    assert result.model == "mid"
    assert rig.lane.tally.steps_failed == {"judge|budget": 1}


def test_an_item_on_trial_has_no_answer_yet() -> None:
    """Past its deadline it is a dead letter; in a lane that drains it stays undone, for whoever goes on."""
    rig = Rig(JUDGED)
    rig.offer(Attributes(deadline=rig.now + 5))
    rig.answer("small", said("a"))
    rig.now += 6
    rig.lane.tick(rig.now)
    (dead,) = rig.commit().dead_letters
    assert (dead.reason, [a.role for a in dead.attempts]) == ("deadline", ["primary"])
    rig = Rig(JUDGED)
    rig.offer()
    rig.answer("small", said("a"))
    rig.lane.drain(rig.now)
    batch = rig.commit()
    assert (batch.results, batch.dead_letters, len(rig.lane.slots)) == ([], [], 1)


def test_a_threshold_is_of_one_version_of_the_judge() -> None:
    """Another judge is another measure."""
    of = target_name("small@v1", judging.judge_version(GRADE, "v1"))
    for known, model in ((of, "small"), (target_name("small@v1", "another"), "mid"), ("small@v1", "mid")):
        rig = Rig(msgspec.structs.replace(JUDGED, threshold=2.0, thresholds={known: 0.5}))
        rig.offer()
        assert rig.one({"small": [said("a")], "top": [said("4")], "mid": [said("c")]}).model == model


def test_where_a_calibration_does_not_hold_nobody_is_believed_but_the_last() -> None:
    """From the next answer on, also of items that are on their way."""
    rig = Rig(msgspec.structs.replace(LOGPROB, promise=Promise(3, "exact@1", 0.9)))
    rig.offer()
    rig.lane.learn(Known(drifted=("t",)), rig.now)
    result = rig.one({"small": [said("a", math.log(0.99))], "mid": [said("b", math.log(0.99))], "top": [said("c")]})
    assert result.answer.text == "c"
    assert "answer of small doubtful: no threshold holds for it (logprob 0.99)" in result.route.reason


def test_an_arm_with_another_prompt_is_not_believed_by_a_calibration_that_does_not_know_it() -> None:
    """Another prompt is answered otherwise."""
    rig = Rig(msgspec.structs.replace(LOGPROB, promise=Promise(3, "exact@1", 0.9)))
    body = Request(b'{"messages":[]}', temperature=1.0, input_hash="h")
    kind = Exposure("job/wording", "kind", 0.5, prompt_version="p2")
    rig.lane.offer(Item("i", Position("s", 0, 0), Attributes(), body, b"x", rig.now, exposure=kind), rig.now)
    rig.commit()
    result = rig.one({"small": [said("a", math.log(0.99))], "mid": [said("b", math.log(0.99))], "top": [said("c")]})
    assert result.answer.text == "c"


def test_a_judge_is_spared_where_nobody_would_be_believed() -> None:
    """But of samples: from them a new threshold can be found."""
    rig = Rig(JUDGED)
    rig.offer()
    rig.lane.learn(Known(drifted=("t",)), rig.now)
    rig.one({"small": [said("a")], "mid": [said("c")]})
    assert rig.roles() == [("primary", "small"), ("cascade", "mid")]
    rig = Rig(JUDGED, sample=1.0, scorers=(Scorer("exact"),))
    rig.offer()
    rig.lane.learn(Known(drifted=("t",)), rig.now)
    result = rig.one({"small": [said("a")], "top": [said("5")], "mid": [said("c")]})
    assert [(each.model, each.signal) for each in result.doubted] == [("small", 1.0)]


def test_scores_of_accepted_answers_are_counted_by_their_calibration() -> None:
    """Those by the scorer that it was made with; not those of the last model, nor of answers that were not believed."""
    exact = Scorer("exact")
    promise = Promise(3, f"exact@{scorer_version(exact)}", 0.9)
    cascade = msgspec.structs.replace(LOGPROB, promise=promise)
    told: dict[str, dict[int, dict[int, int]]] = {}
    for answers in (
        {"small": [said("c", math.log(0.95))]},
        {"small": [said("c", math.log(0.5))], "mid": [said("no", math.log(0.95))]},
        {"small": [said("c", math.log(0.5))], "mid": [said("c", math.log(0.5))], "top": [said("c")]},
    ):
        rig = Rig(cascade, sample=1.0, scorers=(exact, Scorer("numeric")))
        rig.offer()
        batch = rig.run(answers)  # pyright: ignore[reportArgumentType]
        for cell in cells_in(batch.chunks):
            for version, scored in cell.accepted.items():
                told.setdefault(cell.model, {})[version] = scored.counts
    assert told == {"small": {3: {1000: 1}}, "mid": {3: {0: 1}}}


def test_a_pin_or_a_rule_is_no_cascade() -> None:
    """Who was named answers."""
    rig = Rig(LOGPROB, (Rule(Condition("tenant", "eq", "t"), use=("small",)),))
    rig.offer(Attributes(tenant="t"))
    result = rig.one({"small": [said("a", math.log(0.1))]})
    assert (result.answer.text, rig.roles()) == ("a", [("primary", "small")])
    rig = Rig(LOGPROB)
    rig.offer(request=Request(b'{"messages":[]}', model="small", temperature=1.0, input_hash="h"))
    assert rig.one({"small": [said("a", math.log(0.1))]}).route.reason == "pinned by the request"


def test_probabilities_that_the_request_asks_for_stay_in_the_answer() -> None:
    """They are the user's."""
    rig = Rig(LOGPROB)
    rig.offer(request=Request(b'{"messages":[],"logprobs":true}', temperature=1.0, needs=("logprobs",), input_hash="h"))
    result = rig.one({"small": [said("yes", math.log(0.95))]})
    assert b"logprobs" in result.answer.body_json


def test_a_prompt_that_may_be_too_long_for_the_cheap_model_climbs_from_it_all_the_same() -> None:
    """Behind the others it would be the last, whose answer is taken as it is, and the best one's would be doubted."""
    body = b'{"messages":[{"role":"user","content":"' + b"x" * 30_000 + b'"}]}'
    models = {**CATALOG.models, "small": msgspec.structs.replace(CATALOG.models["small"], context=7000)}
    rig = Rig(LOGPROB, catalog=msgspec.structs.replace(CATALOG, models=models))
    rig.offer(request=Request(body, temperature=1.0, input_hash="h"))
    result = rig.one({"small": ["too_long"], "mid": [said("b", math.log(0.5))], "top": [said("c")]})
    assert (result.answer.text, rig.roles()) == ("c", [("primary", "small"), ("fallback", "mid"), ("cascade", "top")])


@pytest.mark.parametrize("sure", [0.5, 0.95])
def test_a_cheap_model_that_is_asked_after_the_best_one_failed_is_not_believed_for_being_the_last_left(
    sure: float,
) -> None:
    """Its worker was away at first. An answer that its signal passes is as good as any; a doubtful one is none."""
    rig = Rig(Cascade(("small", "top"), "logprob", 0.9))
    rig.lane.pool_down("api:small", "away", rig.now)
    rig.offer()
    (call,) = rig.lane.take("api:top", 9, 1 << 30, "w", rig.now)
    rig.lane.pool_up("api:small", rig.now)
    rig.lane.outcome(Outcome("i", 0, call.attempt, rig.now, 1.0, failure=Failure("refused", "m")), rig.now)
    batch = rig.run({"small": [said("a", math.log(sure))]})
    assert [result.route.reason.split("; ")[1:] for result in batch.results] == (
        [["answer of small accepted: logprob 0.95 ≥ 0.9"]] if sure > 0.9 else []
    )
    assert [(dead.reason, dead.message) for dead in batch.dead_letters] == (
        [] if sure > 0.9 else [("no_candidate", "nobody is left to ask: answer of small doubtful: logprob 0.5 < 0.9")]
    )


@pytest.mark.parametrize(
    ("named", "sent"),
    [
        ("top", [("primary", "top")]),
        ("mid", [("primary", "mid"), ("cascade", "top")]),
        ("small", [("primary", "small"), ("cascade", "mid"), ("cascade", "top")]),
        ("mute", [("primary", "mute"), ("cascade", "small"), ("cascade", "mid"), ("cascade", "top")]),
    ],
)
def test_an_arm_that_names_a_model_climbs_from_it(named: str, sent: list[tuple[str, str]]) -> None:
    """The last of the cascade stays the last: its answer is not doubted, to take that of a cheaper one behind it."""
    rig = Rig(LOGPROB)
    body = Request(b'{"messages":[]}', temperature=1.0, input_hash="h")
    arm = Exposure("job/models", named, 0.5, model=named)
    rig.lane.offer(Item("i", Position("s", 0, 0), Attributes(), body, b"x", rig.now, exposure=arm), rig.now)
    rig.commit()
    result = rig.one({model: [said(model, math.log(0.5))] for model in ("mute", "small", "mid", "top")})
    assert (result.answer.text, rig.roles()) == ("top", sent)


def test_an_answer_that_no_signal_looked_at_is_no_copy_for_who_climbs() -> None:
    """A rule names the same models in the same order, and takes the first one's answer as it is."""
    rig = Rig(LOGPROB, (Rule(Condition("purpose", "eq", "draft"), use=tuple(list(LOGPROB.models))),))
    body = Request(b'{"messages":[]}', temperature=0.0, input_hash="h")
    for at, purpose in enumerate(("draft", "final")):
        attributes = Attributes(purpose=purpose)
        rig.lane.offer(Item(f"i{at}", Position("s", 0, at), attributes, body, b"x", rig.now), rig.now)
    rig.commit()
    assert len(rig.lane.take("api:small", 9, 1 << 30, "w", rig.now)) == 2
