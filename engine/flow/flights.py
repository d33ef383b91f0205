"""Items that may be sent, their calls at workers, and what follows when these land: a result, a retry, another target,
or a dead letter."""

from __future__ import annotations

from collections.abc import Callable, Set

import msgspec

from penstock.engine.flow.calls import Calls
from penstock.engine.flow.chains import Chains
from penstock.engine.flow.climb import SILENT, Climb, Taken, Word
from penstock.engine.flow.copies import FOR_ALL, Copies, copy_of
from penstock.engine.flow.ends import Ends
from penstock.engine.flow.inherited import Inherited, as_asked
from penstock.engine.flow.lane_types import Adopted
from penstock.engine.flow.pending import Pending
from penstock.engine.flow.places import Places
from penstock.engine.flow.settle import dead_letter_of
from penstock.engine.flow.silence import Silence
from penstock.engine.flow.slots import Slot
from penstock.engine.flow.steps import Steps
from penstock.engine.flow.takes import Takes
from penstock.engine.flow.tally import count_climb, count_fallback
from penstock.engine.flow.till import Till
from penstock.engine.items import Answer, Failure, Outcome
from penstock.engine.results import DeadLetter, DeadLetterReason, Result, Score
from penstock.engine.retry import RetrySettings, Stop, after
from penstock.engine.router import Router


class Flights:
    def __init__(
        self,
        ends: Ends,
        calls: Calls,
        copies: Copies,
        places: Places,
        till: Till,
        inherited: Inherited,
        chains: Chains | None,
        steps: Steps,
        router: Router,
    ) -> None:
        self.count = 0
        """Calls at workers."""
        self.silence = Silence()
        self.takes = Takes()
        self._ends = ends
        self._tally = ends.tally
        self._calls = calls
        self._copies = copies
        self._places = places
        self._till = till
        self._inherited = inherited
        self._chains = chains
        self._steps = steps
        self._router = router
        self._health = places.targets.health
        self._retry = RetrySettings(max_attempts=calls.policy.max_attempts)

    def start(self, slot: Slot, now: float) -> None:
        """The item is under the committed horizon: go on with what a worker already has of it, or wait for those of its
        key that come before it, or for the answer to an equal one; else queue it."""
        self._turn(slot)
        if self._goes_on(slot, now):
            return
        if not (self._chains is not None and self._chains.waits(slot)) and not self._copies.follows(slot):
            self.queue(slot, now)

    def _goes_on(self, slot: Slot, now: float) -> bool:
        """A worker has its call, or the answer. What nobody waits for, and was paid for, goes onto the item's bill."""
        claimed = self._inherited.claim(slot)
        if claimed is None:
            return False
        for one in claimed.paid:  # no commit holds what they say before the item ends
            self._ends.unsaved.keep(one)
        for one in claimed.beside:
            if one.outcome is not None and one.outcome.usage is not None:
                self._calls.inherit(slot, one, one.outcome, self._tally, self._ends.costs)
                self._ends.unsaved.keep(one)
        if claimed.call is not None:
            paid = any(one is claimed.call for one in claimed.paid)
            self._go_on_with(slot, claimed.call, claimed.candidate, now, paid=paid)
        slot.attempt = claimed.attempt  # no later call gets a number of these
        return claimed.call is not None

    def refuse(self, slot: Slot, reason: DeadLetterReason, message: str, now: float) -> None:
        """No target is left for it: the job may have changed since the last owner sent it. What he paid is on its
        bill."""
        self._goes_on(slot, now)
        self.dead_letter(slot, reason, message, now)

    def unread(self, dead: DeadLetter) -> None:
        """Its record makes no item, of this job at least."""
        self._tally.late_payments += self._inherited.forget(dead.item_id, dead.generation, dead.attempts)

    def _go_on_with(self, slot: Slot, adopted: Adopted, candidate: int, now: float, *, paid: bool) -> None:
        self._places.move(slot, candidate)
        as_asked(slot, candidate, adopted, self._calls.versions(slot))
        slot.attempt, slot.role = adopted.attempt, adopted.role
        if paid and adopted.outcome is not None and adopted.outcome.answer is not None:
            self._succeed(slot, adopted.outcome.answer, now)
            return
        self.fly(slot, adopted.worker, now)
        if adopted.outcome is not None:
            self.landed(adopted.outcome, now)

    def fly(self, slot: Slot, worker: str, now: float, number: int = 0) -> None:
        """`number`: of the worker's take, growing from 1; 0: it has the call already."""
        self.takes.flies(slot, number)
        slot.state, slot.worker, slot.sent_at = "flying", worker, now
        slot.first_sent_at = slot.first_sent_at or now
        self.count += 1
        in_flight, tier = self._tally.in_flight, slot.route.tier
        in_flight[tier] = in_flight.get(tier, 0) + 1

    # -- versions that change while it waits

    def steered(self, now: float) -> None:
        """Other versions are to be asked from now on (`Router.steer`). What is at a worker goes on; what is ready, or
        follows another, starts anew where it gets another one; all else is turned when it is queued. What waits for a
        shadow stage that is over is not sent."""
        self._let_go(self._steps.is_over, now)
        freed = self._copies.part(self._turns)
        ready = self._places.ready
        stopped = [slot for slot in ready.slots() if self._turns(slot)]
        ready.drop(set(stopped))
        for slot in (*stopped, *freed):
            self._turn(slot)
            if not self._copies.follows(slot):
                self.queue(slot, now)

    def _turns(self, slot: Slot) -> bool:
        return slot.pending is None and self._router.turned(slot.route, slot.item) is not slot.route

    def _turn(self, slot: Slot) -> list[Slot]:
        """Who waited for its answer, and would get one of another version or arm now."""
        if slot.turn is self._router.turn or slot.pending is not None:
            return []
        slot.turn, before = self._router.turn, slot.route
        slot.route = self._router.turned(before, slot.item)
        return self._copies.disband(slot) if slot.route is not before else []

    def landed(self, outcome: Outcome, now: float) -> None:
        """What became of a call. One of the last owner's, whose item did not come again yet, waits for it. Any other
        that is not the item's current attempt was settled before; where it was given up, its payment is tallied."""
        slot = self._ends.slots.get((outcome.item_id, outcome.generation))
        if slot is None or slot.state != "flying" or slot.attempt != outcome.attempt:
            if not self._inherited.landed(outcome) and (stray := self._inherited.strays.paid(outcome)) is not None:
                self._strayed(slot, stray, outcome)
            return
        self.takes.landed(slot)
        self.count -= 1
        self._tally.in_flight[slot.route.tier] -= 1
        outcome = self._calls.recognised(slot, outcome, self._tally)
        failure, answer = outcome.failure, outcome.answer
        if outcome.usage is not None or (failure is None and answer is not None):
            asked = slot.route.candidates[slot.candidate]
            tariff = self._calls.tariff(asked.model, asked.version)
            self._ends.unsaved.add(slot, outcome, self._calls.versions(slot), tariff)
        settled = self._calls.settle(slot, outcome, self._tally, self._ends.costs, self._till)
        for waiting in self._till.freed(settled, now) if settled is not None else ():
            self.queue(waiting, now)
        self._health.record(slot.target, failure, now)
        if failure is not None:
            self._fail(slot, failure, answer, now)
        elif answer is not None:
            self._succeed(slot, answer, now)
        else:
            self._again(slot, Failure("invalid_response", "neither an answer nor a failure"), None, now)

    def _strayed(self, slot: Slot | None, stray: Adopted | Outcome, outcome: Outcome) -> None:
        """It was paid for, and is of no use. A call of the last owner's goes onto its item's bill while that is open,
        unless another of the item's has its number, or may get it; of this one's the worst case was booked when it was
        lost."""
        if slot is None or isinstance(stray, Outcome) or not _is_free(slot, outcome.attempt):
            self._tally.late_payments += 1
            return
        self._calls.inherit(slot, stray, outcome, self._tally, self._ends.costs)
        self._ends.unsaved.keep(msgspec.structs.replace(stray, outcome=outcome))

    def _succeed(self, slot: Slot, answer: Answer, now: float, *, valid: bool = True) -> None:
        if slot.pending is not None:
            self._steps.answered(slot, slot.pending, answer)
            self._go_on(slot, slot.pending, now)
            return
        if slot.route.cascade:
            self._climb(slot, answer, now, valid=valid)
        else:
            self._count(slot, answer, now, valid=valid)

    def _count(self, slot: Slot, answer: Answer, now: float, *, valid: bool = True) -> None:
        """This answer is the item's."""
        result = self._calls.result(slot, answer, now)
        if not valid:
            result = msgspec.structs.replace(result, status="invalid_output")
        followers = self._copies.disband(slot)
        rehearsal = self._steps.rehearsal(result) if result.experiment else None
        result = self._calls.sample(result, rehearsal)
        if slot.climb is not None:
            result = self._calls.climbed(slot, slot.climb, result)
        owes = rehearsal is not None or result.route.task in self._steps.tasks
        pending = self._steps.begin(slot, result, followers, rehearsal) if owes else None
        if pending is None:
            self._end(slot, result, followers)
        else:
            self._go_on(slot, pending, now)

    def _end(self, slot: Slot, result: Result, followers: list[Slot], judged: tuple[Score, ...] = ()) -> None:
        """`judged`: what judges say of the answer; its copies are worth as much, where the same was expected of it."""
        self._ends.result(result, slot)
        for follower in followers:
            self._tally.copied += 1
            copy = self._calls.sample(copy_of(result, slot, follower))
            if judged and copy.sampled and copy.item.attributes.expected_json == result.item.attributes.expected_json:
                copy = msgspec.structs.replace(copy, scores=(*copy.scores, *judged))
            self._ends.result(copy, follower)

    # -- up a cascade

    def _climb(self, slot: Slot, answer: Answer, now: float, *, valid: bool) -> None:
        """A judge is asked first where it is the signal."""
        judge = self._calls.cascade(slot).judge
        if judge is not None and valid and not slot.is_at_last and self._calls.may_judge(slot):
            self._go_on(slot, self._steps.begin_trial(slot, self._calls.result(slot, answer, now), judge), now)
        else:
            self._believe(slot, answer, SILENT, now, valid=valid)

    def _believe(self, slot: Slot, answer: Answer, judged: Word, now: float, *, valid: bool = True) -> None:
        """Take the answer, or go on for another. One of a cheap model that was asked since those above it had failed is
        the last word of its cascade no more than any other of it."""
        cascade, above, source = self._calls.cascade(slot), self._places.targets.above(slot), slot.model
        climb = slot.climb = slot.climb or Climb()
        asked = source, slot.route.candidates[slot.candidate].version
        word = climb.heard(cascade, asked, answer, valid=valid, last=slot.is_at_last, judged=judged)
        if isinstance(word, Taken):
            slot.route = msgspec.structs.replace(slot.route, reason=f"{slot.route.reason}; {word.why}")
            self._count(slot, self._calls.untold(slot, word.answer), now, valid=valid)
            return
        if word == "up":
            if above is None:
                self.dead_letter(slot, "no_candidate", f"nobody is left to ask: {'; '.join(climb.doubts)}", now)
                return
            left = (*slot.history.left, slot.candidate)
            self._places.move(slot, above)
            slot.history = msgspec.structs.replace(slot.history, left=left)
            count_climb(self._tally, source, slot.model)
        slot.role = "cascade"
        self.queue(slot, now)

    # -- steps that an item owes after its answer

    def _go_on(self, slot: Slot, pending: Pending, now: float) -> None:
        if self._steps.next(slot, pending):
            self.queue(slot, now)
        elif pending.trial is not None:
            judged = self._steps.end_trial(slot, pending, pending.trial)
            self._believe(slot, pending.result.answer, judged, now)
        else:
            result, judged = self._steps.finish(slot, pending, now)
            followers, slot.followers = slot.followers or [], None
            self._end(slot, result, followers, judged)

    def stop_steps(self, now: float) -> None:
        """Nothing is sent any more: items that have their answer end with it, those at a worker when they land."""
        self._steps.stopped = True
        self._let_go(self._steps.gives_up, now)

    def _let_go(self, of: Callable[[Pending], bool], now: float) -> None:
        """Steps that wait and are not to be sent any more."""
        slots = (s for s in self._ends.slots.values() if s.pending is not None and of(s.pending))
        waiting = {s for s in slots if s.state != "flying"}
        self._places.drop(waiting)
        self._till.drop(waiting)
        for slot in waiting:
            self.queue(slot, now)

    def give_up_unpaid(self, now: float) -> None:
        """No item that has its answer waits for long for a shadow stage's money, which other jobs hold."""
        for rehearsal in self._router.turn.rehearsals.values():
            waiting = self._till.waiting_for(rehearsal.fund[0])
            gone = {s: s.pending for s in waiting if s.pending is not None and self._steps.unfunded(s.pending, now)}
            self._till.drop(gone)
            for slot, pending in gone.items():
                self._steps.unpaid(pending)
                self._go_on(slot, pending, now)

    def _waits_in_vain(self, slot: Slot, pending: Pending, now: float) -> bool:
        """A step whose target is down for long, or that may not be sent any more, is left out."""
        targets = self._places.targets
        usable_at = targets.usable_at(slot, now) if targets.blocked(slot, now) else None
        if self._steps.gives_up(pending) or self._steps.is_over(pending):
            self._steps.fail(pending, "cancelled")
        elif self._steps.out_of_patience(pending, usable_at, now):
            self._steps.fail(pending, "no_candidate")
        elif self._steps.unfunded(pending, now):
            self._steps.unpaid(pending)
        else:
            return False
        self._go_on(slot, pending, now)
        return True

    def _fail(self, slot: Slot, failure: Failure, answer: Answer | None, now: float) -> None:
        match failure.kind:
            case "not_sent" if failure.retry_after_s is None:
                self.queue(slot, now)
            case "cancelled":
                self.go_on(slot, now)
            case "invalid_output" if answer is not None:
                self._invalid(slot, failure, answer, now)
            case _:
                self._again(slot, failure, answer, now)

    def go_on(self, slot: Slot, now: float) -> None:
        """Nothing came of it so far: past its deadline it ends, else it is sent again, by this owner or the next."""
        if slot.is_late(now):
            self.expired(slot, now)
        else:
            self.queue(slot, now)

    def _invalid(self, slot: Slot, failure: Failure, answer: Answer, now: float) -> None:
        on_invalid = self._calls.on_invalid(slot)
        if slot.pending is not None and (slot.step != "shadow" or on_invalid != "keep"):
            self._again(slot, failure, answer, now)
            return
        if slot.route.cascade and self._places.targets.above(slot) is not None:
            self._succeed(slot, answer, now, valid=False)  # doubtful, whatever the signal
            return
        match on_invalid:
            case "keep":  # a shadow's answer as well: it is compared with one that was not asked for again either
                self._succeed(slot, answer, now, valid=False)
            case "dead_letter":
                self.dead_letter(slot, "invalid_output", failure.message, now)
            case "ask_again":
                self._again(slot, failure, answer, now)

    def _again(self, slot: Slot, failure: Failure, answer: Answer | None, now: float) -> None:
        targets, deadline = self._places.targets.of(slot, now), slot.item.attributes.deadline
        retry, chance = self._retry if slot.pending is None else self._steps.retry, self._calls.hooks.chance()
        decision = after(failure, slot.history, targets, retry, chance, now, deadline)
        if slot.pending is not None:
            decision = self._steps.bounded(failure, decision, now, up=targets[slot.candidate].up)
        if isinstance(decision, Stop):
            if slot.step == "shadow" and decision.reason == "invalid_output" and answer is not None:
                self._succeed(slot, answer, now)  # as good as it gets: its scorers see it
            else:
                self.dead_letter(slot, decision.reason, decision.message, now)
            return
        if decision.candidate != slot.candidate:
            source = slot.model
            self._places.move(slot, decision.candidate)
            count_fallback(self._tally, source, slot.model)
        elif failure.kind != "not_sent":
            self._tally.retries += 1
            self._tally.retried[failure.kind] = self._tally.retried.get(failure.kind, 0) + 1
            if failure.kind == "invalid_output" and answer is not None:
                self._calls.ask_again(slot, answer.text, failure.message)
        slot.history = decision.history
        if failure.kind != "not_sent":  # else this repeats nothing
            self._places.targets.budgets[slot.model].retried(now)
        if failure.kind != "not_sent" or decision.role == "fallback":
            slot.role = slot.step or decision.role
        if decision.at <= now:
            self.queue(slot, now)
        else:
            self._places.hold(slot, decision.at)

    def worker_lost(self, worker: str, now: float) -> None:
        """All that was in flight at this worker comes back; the calls may have been paid for."""
        self._inherited.worker_lost(worker)
        self.silence.forget(worker)
        self.takes.lost(worker)
        for slot in [s for s in self._ends.slots.values() if s.state == "flying" and s.worker == worker]:
            self._lose(slot, f"worker {worker} was lost with the call in flight", now)

    def missed(self, worker: str, upto: int, held: Set[tuple[str, int, int]], now: float) -> None:
        """The worker has done with its takes up to this number, and holds only these (item, generation, attempt):
        what else it was given under them got lost on its way. It was never sent, and never will be."""
        for slot in self.takes.given_up(worker, upto):
            item = slot.item
            if (item.item_id, item.generation, slot.attempt) in held:
                continue
            failure = Failure("not_sent", f"worker {worker} never got it")
            self.landed(Outcome(item.item_id, item.generation, slot.attempt, now, 0.0, failure=failure), now)

    def _lose(self, slot: Slot, message: str, now: float) -> None:
        slot.maybe_paid = slot.orphaned = True
        failure = Failure("worker_lost", message, may_be_billed=not slot.own)
        item, ms = slot.item, max(0.0, now - slot.sent_at) * 1000
        lost = Outcome(item.item_id, item.generation, slot.attempt, slot.sent_at, ms, failure=failure)
        self._inherited.strays.add(lost)
        self.landed(lost, now)

    def set_back(self, by_s: float) -> None:
        """The clock was."""
        self.silence.set_back(by_s)
        for slot in self._ends.slots.values():
            slot.sent_at -= by_s

    def sweep(self, now: float, slack_s: float) -> None:
        flying = [slot for slot in self._ends.slots.values() if slot.state == "flying"]
        for slot in self.silence.lost(flying, now, slack_s):
            self._lose(slot, f"no word from worker {slot.worker} long after the call's timeout", now)

    # -- ends without a result

    def dead_letter(self, slot: Slot, reason: DeadLetterReason, message: str, now: float) -> None:
        """The item ends without a result. One that has its answer only loses a step; past its deadline, all. An answer
        on trial is none yet."""
        if slot.pending is not None and slot.pending.trial is not None and reason == "deadline":
            self._steps.end_trial(slot, slot.pending, slot.pending.trial)
        if slot.pending is not None:
            self._steps.fail(slot.pending, reason, all_of_them=reason == "deadline")
            self._go_on(slot, slot.pending, now)
            return
        followers = self._copies.disband(slot)
        self._ends.dead(dead_letter_of(slot, reason, message, self._calls.versions(slot), now), slot)
        for follower in followers:
            if reason in FOR_ALL:
                self.dead_letter(follower, reason, f"{message} (as item {slot.item.item_id}, which asks the same)", now)
            elif not self._copies.follows(follower):  # the first of them asks for itself, the others follow it
                self.queue(follower, now)

    def expired(self, slot: Slot, now: float) -> None:
        words = "its deadline passed before it was sent; nothing was paid for it"
        if slot.attempts:
            words = f"its deadline passed before it could be tried again (last: {slot.attempts[-1].outcome})"
        self.dead_letter(slot, "deadline", words, now)

    def queue(self, slot: Slot, now: float) -> None:
        freed = self._turn(slot)
        if slot.pending is None or not self._waits_in_vain(slot, slot.pending, now):
            self._places.queue(slot, now, self._tally)
        for each in freed:
            if not self._copies.follows(each):
                self.queue(each, now)


def _is_free(slot: Slot, number: int) -> bool:
    """It is used up, and on no bill."""
    return number <= slot.attempt and all(each.n != number for each in slot.attempts)
