"""Steps of an item: the calls that it owes after the answer that counts. A `shadow` answers the same request, for
comparison; a `judge` scores an answer.

    answer ─▶ begin ─▶ next ─▶ (queue, reserve, call, settle, retry: as any call of the item) ─▶ answered ─▶ next …
                          └─ nothing is left ─▶ finish: the item ends, once, with its result

Each step is routed behind the item's own wall and paid from the same budgets, and from those of its kind. It has one
target: another model's answer would be no comparison. One that is forbidden, fails for good or finds no money is left
out and counted; it never costs the item its result. While they go on, the slot's `route` and `request` are the step's.

Of a cascade whose signal is a judge, an answer is tried before it counts: `begin_trial`, the judge's calls,
`end_trial`. An answer that the judge did not speak of as often as it should is doubtful.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import msgspec

from penstock.engine import judging
from penstock.engine.catalog import Catalog
from penstock.engine.flow.calls import Calls
from penstock.engine.flow.climb import SILENT, Word
from penstock.engine.flow.pending import Pending, Step, Trial, script, trial_script, verdicts
from penstock.engine.flow.slots import FIRST, Slot
from penstock.engine.flow.tally import Tally, count_refused, count_step, count_step_left_out
from penstock.engine.items import Answer, Failure, Refusal, Request, Usage
from penstock.engine.policy import Scorer, Task
from penstock.engine.quality import sampled
from penstock.engine.results import Result, Score, ShadowAnswer
from penstock.engine.retry import MENDED, Again, RetrySettings, Stop
from penstock.engine.router import Rejection, Router
from penstock.engine.steering.turn import Rehearsal

PATIENCE_S = 120.0
"""A step waits for its target, or for a shadow stage's money, at most so long at a time; the item's result waits with
it. A guess: a minute's rate limit and a short outage pass in it."""
MAX_WAITS = 60
"""Waits for rate limits: an hour of full minutes."""
OWN_FAULTS = frozenset({"attempts_exhausted", "bad_request", "refused", "too_long", "invalid_output"})
"""Reasons for leaving out a step that speak against its target. The others are limits, outages, money, or the run's
end: the answer that counts would have waited for longer, so a candidate is not blamed for them."""


class Steps:
    def __init__(self, router: Router, calls: Calls, catalog: Catalog, tally: Tally, *, stopped: bool) -> None:
        self._router = router
        self._calls = calls
        self._tasks = calls.policy.tasks
        self._tally = tally
        self.retry = RetrySettings(max_attempts=calls.policy.max_attempts, max_waits=MAX_WAITS, outage_s=PATIENCE_S)
        scripts = {name: script(task) for name, task in self._tasks.items()}
        self._scripts: dict[str, tuple[Step, ...]] = {name: steps for name, steps in scripts.items() if steps}
        """Task → what its items may owe. Tasks without steps are not in it."""
        self.tasks = frozenset(self._scripts)
        self._rehearsals: dict[tuple[str, Rehearsal], tuple[Step, ...]] = {}
        """The same of tasks with the shadow stage of a rollout."""
        self._untold = frozenset(name for name, wall in catalog.walls.items() if wall.sample == "never")
        """Walls of which no quality record is ever written: nothing is asked for it either."""
        self.stopped = stopped
        """Nothing is sent any more: the lane drains, as it may already while it is being opened."""

    # -- an item enters, goes from step to step, and leaves

    def rehearsal(self, result: Result) -> Rehearsal | None:
        """The shadow stage for which a rollout's candidate is to answer this item as well. Of a cascade never: what it
        accepts are answers that the baseline is sure of, and beside these an equal version would look worse."""
        found = self._router.turn.rehearsals.get(result.experiment)
        if found is None or self.stopped or result.route.cascade or result.route.wall in self._untold:
            return None
        return found if sampled(result.item.item_id, found.share) else None

    def begin(
        self, slot: Slot, result: Result, followers: list[Slot], rehearsal: Rehearsal | None = None
    ) -> Pending | None:
        """What the item owes; None: nothing."""
        task = self._tasks.get(result.route.task)
        if task is None or result.route.wall in self._untold or (self.stopped and not is_whole(task)):
            return None
        item_id = result.item.item_id
        shadowed = task.shadow is not None and sampled(item_id, task.shadow.share)
        judged = result.sampled or any(sampled(each.item.item_id, task.sample_share) for each in followers)
        if not (shadowed or judged or rehearsal is not None):  # as most items are: nothing is looked up for them
            return None
        steps = self._scripts.get(task.name, ()) if rehearsal is None else self._rehearsed(task, rehearsal)
        own = (result.model, f"{result.model}@{result.model_version}", *_in_vain(slot))
        todo = [step for step in steps if _owes(step, own, shadowed=shadowed, judged=judged)]
        if rehearsal is not None and not sampled(item_id, task.sample_share):  # the answer is judged for it alone
            todo = [step if step.answer else step.of(rehearsal) for step in todo]
        if not todo:
            return None
        slot.pending, slot.followers = Pending(task, result, todo), followers
        return slot.pending

    def _rehearsed(self, task: Task, rehearsal: Rehearsal) -> tuple[Step, ...]:
        key = task.name, rehearsal
        if key not in self._rehearsals:
            self._rehearsals[key] = script(task, rehearsal)
        return self._rehearsals[key]

    def begin_trial(self, slot: Slot, result: Result, judge: Scorer) -> Pending:
        """`result`: the item's, if the answer is believed. Behind a wall of which no sample is written no judge is
        asked."""
        todo = () if result.route.wall in self._untold else trial_script(judge)
        trial = Trial(slot.route, slot.candidate, slot.request, slot.role, slot.history)
        slot.pending = Pending(self._tasks[result.route.task], result, todo, trial)
        return slot.pending

    def end_trial(self, slot: Slot, pending: Pending, trial: Trial) -> Word:
        """What the judge says. The slot is its own again."""
        route = trial.route
        new = tuple(each for each in pending.refused if each not in route.refused)
        slot.pending = None
        slot.route = msgspec.structs.replace(route, refused=(*route.refused, *new)) if new else route
        slot.candidate, slot.request, slot.role, slot.history = (
            trial.candidate,
            trial.request,
            trial.role,
            trial.history,
        )
        judge = judging.judge_at(pending.task, judging.SIGNAL)
        votes = pending.votes.get((judging.SIGNAL, ""), [])
        if len(votes) < judge.samples:
            return SILENT
        return Word(judging.verdict(judge, votes), judging.judge_version(judge, pending.versions[judge.model or ""]))

    def gives_up(self, pending: Pending) -> bool:
        """Nothing is sent any more, and the item ends with what it has. One whose answer is on trial has none yet."""
        return self.stopped and pending.trial is None and not is_whole(pending.task)

    def is_over(self, pending: Pending) -> bool:
        """The step under way is for the shadow stage of a rollout, and that has ended."""
        mine = pending.step.rehearsal
        return mine is not None and self._router.turn.rehearsals.get(mine.rollout) != mine

    def next(self, slot: Slot, pending: Pending) -> bool:
        """Make the slot ready for its next step. False: nothing is left to do."""
        if self.gives_up(pending):
            self._leave_out(pending.todo, "cancelled")
            pending.todo.clear()
        while pending.todo:
            pending.step = pending.todo.popleft()
            if self.is_over(pending):
                self.fail(pending, "cancelled")
                continue
            request = pending.request(slot.item)
            if request is not None and self._enter(slot, pending, request):
                return True
        return False

    def _enter(self, slot: Slot, pending: Pending, request: Request) -> bool:
        step, route = pending.step, pending.result.route
        routed = self._router.route_step(slot.item.attributes, request, route, step.kind, step.target, step.rehearsal)
        if isinstance(routed, Rejection):
            self._refuse(pending, routed)
            return False
        slot.route, slot.request, slot.role, slot.history = routed, request, step.kind, FIRST
        pending.attempts, pending.blocked_at, pending.unfunded_at = len(slot.attempts), None, None
        self._calls.move(slot, 0)
        if step.kind == "judge":
            pending.versions[step.target] = routed.candidates[0].version
        return True

    def _refuse(self, pending: Pending, rejection: Rejection) -> None:
        """Named in the record, counted at the wall, once an item."""
        step, route = pending.step, rejection.route
        named = [Refusal(each.model, f"as {step.kind}: {each.reason}") for each in route.refused]
        if any(each not in pending.refused for each in named):
            pending.refused += named
            if route.wall is not None:
                count_refused(self._tally, route.wall, (each.model for each in route.refused[: route.walled]))
        self._leave_out([step], rejection.reason)

    def fail(self, pending: Pending, reason: str, *, all_of_them: bool = False) -> None:
        """The step under way comes to nothing; with it, where asked, all that would follow."""
        self._leave_out([pending.step], reason)
        if pending.step.kind == "shadow" and pending.step.rehearsal is not None and reason not in OWN_FAULTS:
            pending.unheard = True
        if all_of_them:
            self._leave_out(pending.todo, reason)
            pending.todo.clear()

    def unpaid(self, pending: Pending) -> None:
        """The money of a rollout's shadow stage does not come: nothing that it would pay for is asked."""
        pending.unpaid = True
        self.fail(pending, "budget")
        self._leave_out((step for step in pending.todo if step.rehearsal is not None), "budget")
        pending.todo = deque(step for step in pending.todo if step.rehearsal is None)

    def _leave_out(self, steps: Iterable[Step], reason: str) -> None:
        for step in steps:
            count_step_left_out(self._tally, step.kind, reason)

    def answered(self, slot: Slot, pending: Pending, answer: Answer) -> None:
        """The step's call was answered."""
        if pending.step.kind == "shadow":
            pending.shadows[pending.step.target] = self._shadow(slot, pending, answer)
        elif not pending.vote(answer.text):
            self.fail(pending, "invalid_output")
            return
        count_step(self._tally, pending.step.kind)

    def _shadow(self, slot: Slot, pending: Pending, answer: Answer) -> ShadowAnswer:
        task, target, calls = pending.task, slot.route.candidates[0], slot.attempts[pending.attempts :]
        scores = self._calls.hooks.score(slot.item, answer, task)
        asked = pending.step.rehearsal or task.shadow
        share = asked.share if asked is not None else 0.0
        cost, ms, usage = sum(c.cost_nano for c in calls), sum(c.ms for c in calls), calls[-1].usage
        made = ShadowAnswer(target.model, target.version, answer.text, scores, usage or Usage(), cost, ms, share)
        return msgspec.structs.replace(made, experiment=target.experiment, arm=target.arm)

    def finish(self, slot: Slot, pending: Pending, now: float) -> tuple[Result, tuple[Score, ...]]:
        """The item's result, and what judges say of its answer. The slot is its own again."""
        result, route = pending.result, pending.result.route
        if pending.refused:
            route = msgspec.structs.replace(route, refused=(*route.refused, *pending.refused))
        slot.pending, slot.route, slot.request = None, route, slot.item.request
        judged = verdicts(pending)
        shadows = tuple(
            msgspec.structs.replace(shadow, scores=(*shadow.scores, *judged.get(target, ())))
            for target, shadow in pending.shadows.items()
        )
        of_answer = judged.get("", ())
        whole = msgspec.structs.replace(
            result,
            route=route,
            attempts=tuple(slot.attempts),
            cost_nano=slot.cost_nano,
            maybe_paid=slot.maybe_paid,
            finished_at=now,
            scores=(*result.scores, *of_answer) if result.sampled else (),
            shadows=shadows,
            unpaid=pending.unpaid,
            unheard=pending.unheard,
        )
        return whole, of_answer

    # -- how long a step may wait

    def bounded(self, failure: Failure, decision: Again | Stop, now: float, *, up: bool) -> Again | Stop:
        """The retry of a step: it neither waits long nor for somebody to mend its target. `up`: the target is."""
        if isinstance(decision, Stop):
            waited = decision.reason == "attempts_exhausted" and (failure.kind == "rate_limited" or not up)
            return Stop("no_candidate", decision.message) if waited else decision
        if failure.kind in MENDED or decision.at - now > PATIENCE_S:
            return Stop("no_candidate", f"it would have to wait for long: {failure.kind}: {failure.message}")
        return decision

    def out_of_patience(self, pending: Pending, usable_at: float | None, now: float) -> bool:
        """`usable_at`: when the step's target may be up again; None: it is."""
        if usable_at is None:
            pending.blocked_at = None
            return False
        pending.blocked_at = now if pending.blocked_at is None else min(now, pending.blocked_at)  # clocks go back too
        return usable_at - pending.blocked_at > PATIENCE_S

    def unfunded(self, pending: Pending, now: float) -> bool:
        """The step has waited for its shadow stage's money for too long: others may hold it, and be dead."""
        if pending.unfunded_at is None:
            return False
        pending.unfunded_at = min(now, pending.unfunded_at)
        return now - pending.unfunded_at > PATIENCE_S


def is_whole(task: Task) -> bool:
    """Its items stay undone rather than end without an answer of each shadow."""
    return task.shadow is not None and task.shadow.whole


def _in_vain(slot: Slot) -> Iterator[str]:
    """Targets that the item was tried at before one of them answered: as shadows they would get a second chance."""
    tried = {attempt.model for attempt in slot.attempts}
    for candidate in slot.route.candidates[: slot.candidate]:
        if candidate.model in tried:
            yield from (candidate.model, f"{candidate.model}@{candidate.version}")


def _owes(step: Step, own: tuple[str, ...], *, shadowed: bool, judged: bool) -> bool:
    """A model is no shadow of itself. What is about a shadow's answer is owed with it."""
    if not step.answer:
        return judged
    return (shadowed or step.rehearsal is not None) and step.answer not in own
