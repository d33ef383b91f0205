"""What an item owes after the answer that counts (`Step`), and what came of it so far (`Pending`). Pure data.

A cascade whose signal is a judge owes the judge's calls before an answer counts: then the answer is on `Trial`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec

from penstock.engine import judging
from penstock.engine.budget import Keys
from penstock.engine.items import Item, Refusal, Request, Role, Route, StepKind
from penstock.engine.judging import SIGNAL, Judged
from penstock.engine.policy import Scorer, Task
from penstock.engine.quality import PASS_MARK, scorer_name
from penstock.engine.results import Result, Score, ShadowAnswer
from penstock.engine.retry import History
from penstock.engine.steering.turn import Rehearsal

Votes = dict[tuple[int, str], list[float]]
"""(a judge's place among the task's scorers, whose answer) → what it said, in the order asked."""


class Step(msgspec.Struct, frozen=True):
    kind: StepKind
    target: str
    """A model by its name in the catalogue, with `@version` where it is not the live one."""
    scorer: int = -1
    """Of a judge: its place among the task's scorers, or `SIGNAL`."""
    about: str = ""
    """Of a judge: the shadow whose answer is scored, or compared; empty: the answer that counts."""
    swapped: bool = False
    """Of a pair: the other answer stands first."""
    rehearsal: Rehearsal | None = None
    """The shadow stage of a rollout that it belongs to, and whose money pays for it."""

    @property
    def answer(self) -> str:
        """The shadow whose answer it is, or is about; empty: the answer that counts."""
        return self.target if self.kind == "shadow" else self.about

    def of(self, rehearsal: Rehearsal) -> Step:
        return msgspec.structs.replace(self, rehearsal=rehearsal)


def script(task: Task, rehearsal: Rehearsal | None = None) -> tuple[Step, ...]:
    """All that an item of this task may owe, in order: answers first, then what judges say of them."""
    shadows = task.shadow.models if task.shadow is not None else ()
    if rehearsal is not None:
        shadows = tuple(dict.fromkeys((*shadows, rehearsal.target)))
    steps = [Step("shadow", target) for target in shadows]
    for place, scorer in enumerate(task.scorers):
        if scorer.type == "judge":
            steps += _of_judge(scorer, place, shadows)
    if rehearsal is not None:
        steps = [step.of(rehearsal) if step.answer == rehearsal.target else step for step in steps]
    return tuple(steps)


def _of_judge(scorer: Scorer, place: int, shadows: tuple[str, ...]) -> list[Step]:
    target, times = scorer.model or "", range(scorer.samples)
    if scorer.pairwise:
        abouts = shadows or ("",)  # without a shadow: against the expected answer
        return [Step("judge", target, place, a, swapped) for a in abouts for _ in times for swapped in (False, True)]
    return [Step("judge", target, place, about) for about in ("", *shadows) for _ in times]


def trial_script(judge: Scorer) -> tuple[Step, ...]:
    """What an answer of a cascade owes before it counts."""
    return (Step("judge", judge.model or "", SIGNAL),) * judge.samples


class Trial(msgspec.Struct, frozen=True):
    """Where an item stood when an answer of its cascade came that a judge has to believe first."""

    route: Route
    candidate: int
    request: Request
    role: Role
    history: History


class Pending:
    """An answer that counts, while its item owes steps; or, on `trial`, one that may count once it is judged."""

    __slots__ = (
        "attempts",
        "blocked_at",
        "refused",
        "result",
        "shadows",
        "step",
        "task",
        "todo",
        "trial",
        "unfunded_at",
        "unheard",
        "unpaid",
        "versions",
        "votes",
    )

    def __init__(self, task: Task, result: Result, todo: Sequence[Step], trial: Trial | None = None) -> None:
        self.task = task
        self.result = result
        self.trial = trial
        self.todo = deque(todo)
        self.step = Step("shadow", "")
        """The one under way."""
        self.attempts = 0
        """Of the item when the step under way began."""
        self.shadows: dict[str, ShadowAnswer] = {}
        self.votes: Votes = {}
        self.versions: dict[str, str] = {}
        """Judge → the version of its model that was asked."""
        self.refused: list[Refusal] = []
        self.blocked_at: float | None = None
        """Since when the target of the step under way has been down."""
        self.unfunded_at: float | None = None
        """Since when the step under way has waited for a rollout's money."""
        self.unpaid = False
        """The money of a rollout's shadow stage did not reach for it."""
        self.unheard = False
        """Its candidate was given up for a reason that says nothing of it."""

    @property
    def fund(self) -> Keys:
        """Budgets that the step under way must fit into beside those of its item and kind: (key, limit)."""
        return () if self.step.rehearsal is None else (self.step.rehearsal.fund,)

    @property
    def output(self) -> str:
        """Name of the constraint on the answer of the step under way."""
        step = self.step
        return self.task.name if step.kind == "shadow" else judging.output_name(self.task.name, step.scorer)

    @property
    def scorer(self) -> Scorer:
        return judging.judge_at(self.task, self.step.scorer)

    def request(self, item: Item) -> Request | None:
        """What the step under way asks. None: nothing, since an answer that it is about never came, or is the same."""
        step = self.step
        if step.kind == "shadow":
            return item.request
        scorer, answer, reference = self.scorer, self.result.answer.text, item.attributes.expected_json
        shadow = self.shadows.get(step.about)
        if step.about and (shadow is None or shadow.text == answer):
            return None
        if not scorer.pairwise:
            return judging.request(scorer, Judged(item, answer if shadow is None else shadow.text, reference=reference))
        if shadow is not None:
            other = shadow.text
        elif reference is None or (other := judging.plain(reference)) == answer:
            return None
        else:
            reference = None
        pair = (other, answer) if step.swapped else (answer, other)
        return judging.request(scorer, Judged(item, *pair, reference))

    def vote(self, said: str) -> bool:
        """A judge spoke. False: nothing that it may say."""
        worth = judging.vote(self.scorer, said, swapped=self.step.swapped)
        if worth is not None:
            self.votes.setdefault((self.step.scorer, self.step.about), []).append(worth)
        return worth is not None


# ---- from votes to scores


def verdicts(pending: Pending) -> dict[str, tuple[Score, ...]]:
    """What judges say: of each shadow's answer, and (under the empty name) of the answer that counts."""
    scores: dict[str, list[Score]] = {}
    for place, scorer in enumerate(pending.task.scorers):
        if scorer.type == "judge":
            worths = (_pairs if scorer.pairwise else _singles)(pending, place, scorer)
            for about, worth in worths.items():
                scores.setdefault(about, []).append(_score(scorer, worth, pending.versions.get(scorer.model or "", "")))
    return {about: tuple(each) for about, each in scores.items()}


def _singles(pending: Pending, place: int, scorer: Scorer) -> dict[str, float]:
    worths = {about: judging.verdict(scorer, pending.votes.get((place, about), ())) for about in ("", *pending.shadows)}
    for about, shadow in pending.shadows.items():
        if shadow.text == pending.result.answer.text:  # it was not asked for twice
            worths[about] = worths[""]
    return {about: worth for about, worth in worths.items() if worth is not None}


def _pairs(pending: Pending, place: int, scorer: Scorer) -> dict[str, float]:
    """A shadow's score is how often it is better than the answer that counts; that one's, the mean over its shadows."""
    if not pending.shadows:
        against = judging.verdict(scorer, pending.votes.get((place, ""), ()))
        return {} if against is None else {"": against}
    better: dict[str, float] = {}
    for about, shadow in pending.shadows.items():
        same = shadow.text == pending.result.answer.text
        worth = judging.TIE if same else judging.verdict(scorer, pending.votes.get((place, about), ()))
        if worth is not None:
            better[about] = worth
    if not better:
        return {}
    return {"": sum(better.values()) / len(better), **{about: 1.0 - worth for about, worth in better.items()}}


def _score(scorer: Scorer, worth: float, version: str) -> Score:
    return Score(scorer_name(scorer), judging.judge_version(scorer, version), worth, worth >= PASS_MARK, scorer.model)
