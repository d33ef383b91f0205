"""From an item to its next call, and from a landed call to what is charged: names, ceilings, prices, timeouts."""

from __future__ import annotations

from typing import Literal

import msgspec

from penstock.engine import signals
from penstock.engine.budget import Reservation
from penstock.engine.catalog import Catalog, Price, Version
from penstock.engine.flow.climb import Climb, Doubted
from penstock.engine.flow.ends import Costs
from penstock.engine.flow.lane_types import Adopted, Hooks, ShelfEntry
from penstock.engine.flow.settle import (
    Priced,
    attempt_of,
    book,
    cost_line,
    count_attempt,
    priced,
    result_of,
    tally_of,
)
from penstock.engine.flow.slots import Slot
from penstock.engine.flow.tally import MAX_NAME, UNSAID, Tally, count_name
from penstock.engine.flow.till import Till
from penstock.engine.items import STEP_ROLES, Answer, Call, Candidate, Exposure, Failure, Item, Outcome, Request, Usage
from penstock.engine.judging import outputs
from penstock.engine.naming import named
from penstock.engine.policy import NEVER, Cascade, Policy
from penstock.engine.pricing import (
    BYTES_PER_TOKEN,
    MAX_TEMPLATE_TOKENS,
    estimate_input_tokens,
    max_input_tokens,
    output_ceiling,
    wire_extra,
    worst_case_nano,
)
from penstock.engine.quality import sampled
from penstock.engine.registry.choice import EXPLORE
from penstock.engine.results import Attempt, Result, ShadowAnswer
from penstock.engine.routes import COMMON_TOKENS, NO_CEILING
from penstock.engine.steering.turn import Rehearsal

OWN_TIMEOUT_S = 3600.0
"""An own engine may hold a call as long as it makes progress; its shell finds hangs sooner. A guess."""


_tariff = msgspec.msgpack.Decoder(Priced)


class Calls:
    """What of catalogue and policy every call needs, looked up once."""

    def __init__(self, catalog: Catalog, policy: Policy, hooks: Hooks) -> None:
        self._models = catalog.models
        self.policy = policy
        self.hooks = hooks
        self._tasks = policy.tasks
        self.priced = priced(catalog)
        self._pinned = {(m.name, v.id): v for m in catalog.models.values() for v in m.versions}
        self._shares = {task.name: task.sample_share for task in policy.tasks.values() if task.sample_share > 0}
        self._timeouts = {
            name: catalog.accounts[model.account].timeout_s if model.account in catalog.accounts else OWN_TIMEOUT_S
            for name, model in catalog.models.items()
        }
        self._prompts = {name: task.prompt.version if task.prompt else "" for name, task in policy.tasks.items()}
        """Task → prompt version."""
        cascades = {name: task.cascade for name, task in policy.tasks.items() if task.cascade is not None}
        self.promises = {name: each.promise for name, each in cascades.items() if each.promise is not None}
        self.drifted: frozenset[str] = frozenset()
        """Tasks whose calibration does not hold any more: no threshold does."""
        self._closed = {
            name: msgspec.structs.replace(each, threshold=NEVER, thresholds={}) for name, each in cascades.items()
        }
        self._wire_extra = {task.name: wire_extra(task.output) for task in policy.tasks.values()}
        self._wire_extra |= {name: wire_extra(output) for name, output in outputs(policy).items()}
        """Task, or judge → bytes that the wire may add to a request: choices or schema, and the words around them."""

    def measure(self, slot: Slot) -> None:
        self.move(slot, 0)

    def on_invalid(self, slot: Slot) -> Literal["ask_again", "keep", "dead_letter"]:
        task = self._tasks.get(slot.route.task)
        return task.output.on_invalid if task is not None and task.output is not None else "ask_again"

    def ask_again(self, slot: Slot, answer: str, message: str) -> None:
        """The next call shows the answer that did not do: it is longer, and so is its worst case."""
        body = slot.request.body_json
        slot.ask_again_body = self.hooks.ask_again(body, answer, message)
        self._size(slot, max(0, len(slot.ask_again_body) - len(body)))

    def _size(self, slot: Slot, more_bytes: int = 0) -> None:
        request, pending = slot.request, slot.pending
        output = slot.route.task if pending is None else pending.output
        slot.est_input = estimate_input_tokens(request) + more_bytes // BYTES_PER_TOKEN
        slot.max_input = max_input_tokens(request, self._wire_extra.get(output, 0) + more_bytes)

    def move(self, slot: Slot, candidate: int) -> None:
        """To a candidate, whose own default ceiling of output counts."""
        slot.candidate, slot.ask_again_body = candidate, None
        if slot.route.cascade:
            slot.request = self._probing(slot)
        self._size(slot)
        task = self._tasks.get(slot.route.task)
        name = slot.model
        slot.max_output = output_ceiling(slot.request, task.max_tokens if task else None, self._models[name])
        slot.timeout_s = (task.timeout_s if task else None) or self._timeouts[name]

    # -- cascades

    def cascade(self, slot: Slot) -> Cascade:
        """Of an item whose route says that it is one."""
        if slot.route.task in self.drifted or self._asked_otherwise(slot):
            return self._closed[slot.route.task]
        cascade = self._tasks[slot.route.task].cascade
        assert cascade is not None
        if cascade.signal == "agreement" and not signals.varies(slot.item.request):
            return self._closed[slot.route.task]
        return cascade

    def _asked_otherwise(self, slot: Slot) -> bool:
        """An experiment asks it another prompt, or with other parameters, than its cascade was calibrated with."""
        exposure = slot.item.exposure
        return exposure is not None and bool(exposure.asked("")) and slot.route.task in self.promises

    def may_judge(self, slot: Slot) -> bool:
        """Is a judge's word on an answer of its cascade of any use? Where no threshold holds, only to find one."""
        if slot.route.task not in self.drifted and not self._asked_otherwise(slot):
            return True
        return sampled(slot.item.item_id, self._shares.get(slot.route.task, 0.0))

    def _probing(self, slot: Slot) -> Request:
        """The item's request, with the question for the signal where its answer may be doubted."""
        if slot.is_at_last or "logprobs" in self._models[slot.model].lacks:
            return slot.item.request
        return signals.asked(slot.item.request, self.cascade(slot).signal)

    def climbed(self, slot: Slot, climb: Climb, result: Result) -> Result:
        """How sure the answer was; of a sample also what its cascade did not believe, scored like the answer."""
        doubted = tuple(self._doubted(slot, each) for each in climb.doubted) if result.sampled else ()
        return msgspec.structs.replace(result, signal=climb.signal, signal_by=climb.by, doubted=doubted)

    def _doubted(self, slot: Slot, doubted: Doubted) -> ShadowAnswer:
        task, model, version = self._tasks[slot.route.task], doubted.model, doubted.version
        own = (a for a in slot.attempts if a.role not in STEP_ROLES)
        mine = [a for a in own if (a.model, a.model_version) == (model, version)]
        return ShadowAnswer(
            model,
            version,
            doubted.answer.text,
            self.hooks.score(slot.item, doubted.answer, task),
            mine[-1].usage or Usage() if mine else Usage(),
            sum(a.cost_nano for a in mine),
            sum(a.ms for a in mine),
            task.sample_share,
            "cascade",
            doubted.signal,
            doubted.by,
        )

    def untold(self, slot: Slot, answer: Answer) -> Answer:
        """The answer without what only the cascade asked for."""
        if slot.request is slot.item.request:
            return answer
        return msgspec.structs.replace(answer, body_json=signals.untold(answer.body_json))

    def worst_nano(self, slot: Slot) -> int:
        """The most that this call can cost."""
        return worst_case_nano(slot.max_input, slot.max_output * slot.request.n, self._at(slot).price)

    def usual_nano(self, slot: Slot) -> int:
        """The most that a short request would cost there, which leaves the length of its answer to the job."""
        task = self._tasks.get(slot.route.task)
        output = output_ceiling(NO_CEILING, task.max_tokens if task else None, self._models[slot.model])
        return worst_case_nano(COMMON_TOKENS + MAX_TEMPLATE_TOKENS, output, self._at(slot).price)

    def _at(self, slot: Slot) -> Priced:
        asked = slot.route.candidates[slot.candidate]
        return self._priced_at(asked.model, asked.version)

    def _priced_at(self, model: str, version: str) -> Priced:
        """Of the version that is asked. One that the last owner had sent to may have left the catalogue since, and no
        price been told of it: then of the live one."""
        return self.priced.get((model, version)) or self.priced[model, self._models[model].live]

    def tariff(self, model: str, version: str) -> bytes:
        """What a call to it costs, for whoever has the lane when it lands."""
        return msgspec.msgpack.encode(self._priced_at(model, version))

    def remember(self, adopted: Adopted) -> None:
        """What a call of the last owner's costs, where it was to a model or version that left the catalogue since."""
        at = adopted.model, adopted.version
        if adopted.tariff and at not in self.priced:
            self.priced[at] = _tariff.decode(adopted.tariff)

    def reprice(self, model: str, price: Price) -> None:
        """An own engine's running rate: its versions share its hours."""
        for (name, _), at in self.priced.items():
            if name == model:
                at.price = price

    def call(self, slot: Slot, role_model: str) -> Call:
        item, attributes, pending = slot.item, slot.item.attributes, slot.pending
        version = slot.route.candidates[slot.candidate].version
        return Call(
            item.item_id,
            item.generation,
            slot.attempt,
            slot.role,
            role_model,
            version,
            self._pinned[role_model, version].model,
            slot.ask_again_body or slot.request.body_json,
            slot.route.task if pending is None else pending.output,
            slot.max_output,
            slot.timeout_s,
            slot.est_input,
            slot.max_input,
            attributes.deadline,
            attributes.latency == "realtime",
            item.traceparent,
            self._models[role_model].lacks,
            self.versions(slot),
        )

    def recognised(self, slot: Slot, outcome: Outcome, tally: Tally) -> Outcome:
        """What the answer calls its model, and its fingerprint, are counted. One of another model is a failure where
        its version says so; it keeps its usage, for it was paid for."""
        answer, asked = outcome.answer, slot.route.candidates[slot.candidate]
        pinned = self._pinned.get((asked.model, asked.version))
        if answer is None or pinned is None:
            return outcome
        if answer.fingerprint is not None or pinned.fingerprint is not None:
            count_name(tally_of(tally, asked.model, asked.version).fingerprints, answer.fingerprint or UNSAID)
        if answer.model not in ("", pinned.model):
            count_name(tally_of(tally, asked.model, asked.version).answered_as, answer.model)
        message = _unlike(pinned, answer)
        if message is None:
            return outcome
        tally_of(tally, asked.model, asked.version).other_model += 1
        if pinned.on_other_model == "tell":
            return outcome
        return msgspec.structs.replace(outcome, failure=Failure("other_model", message, may_be_billed=True))

    def settle(self, slot: Slot, outcome: Outcome, tally: Tally, costs: Costs, till: Till) -> Reservation | None:
        """Price the attempt, close its reservation (which is returned), and write its cost line where something was
        charged. A call that was never sent leaves no trace."""
        at = self._at(slot)
        cost = 0
        if not never_sent(outcome):
            if outcome.usage is None and outcome.answer is not None and at.basis == "metered":
                outcome = self._at_its_worst(slot, outcome)
            attempt = attempt_of(outcome, at, slot.route.candidates[slot.candidate], slot.role)
            _charge(slot, attempt, at, tally, costs)
            cost = attempt.cost_nano
        reservation, slot.reservation = slot.reservation, None
        if reservation is not None:
            _close(reservation, slot, outcome, cost, tally, till)
        return reservation

    def inherit(self, slot: Slot, adopted: Adopted, outcome: Outcome, tally: Tally, costs: Costs) -> None:
        """A call of the last owner, of which nothing but the bill is of use. One of a model that the catalogue does not
        name any more, and of which no price was told, has none."""
        model = self._models.get(adopted.model)
        target = Candidate(adopted.model, adopted.version or (model.live if model is not None else ""), "")
        if model is None and (target.model, target.version) not in self.priced:
            tally.late_payments += 1
            return
        at = self._priced_at(target.model, target.version)
        _charge(slot, attempt_of(outcome, at, target, adopted.role), at, tally, costs)

    def _at_its_worst(self, slot: Slot, outcome: Outcome) -> Outcome:
        """A host that answers without saying its usage is not free: the call is booked as set aside for it."""
        usage = Usage(slot.max_input, output=slot.max_output * slot.request.n)
        return msgspec.structs.replace(outcome, usage=usage, cost_nano=self.worst_nano(slot), estimated=True)

    def result(self, slot: Slot, answer: Answer, now: float) -> Result:
        version = slot.route.candidates[slot.candidate].version
        return result_of(slot, answer, self._at(slot), version, self.versions(slot), now)

    def versions(self, slot: Slot) -> tuple[str, str]:
        """(policy, prompt): of an experiment's arm, or the task's own; of a call that an earlier owner made, his."""
        if slot.made_by is not None:
            return slot.made_by
        return self.policy.version, self.prompt_of(slot.item, slot.route.task)

    def prompt_of(self, item: Item, task: str) -> str:
        """Version of the prompt that its request is made with."""
        exposure, prompt = item.exposure, self._prompts.get(task, "")
        return prompt if exposure is None else exposure.asked(prompt)

    def as_it_was_read(self, item: Item, entry: ShelfEntry) -> Item:
        """`item`: what the job makes now of one that comes from the shelf. Where that is the request of then, made with
        another prompt than the job has now, its records say so, and it is in no arm of now."""
        task = item.attributes.task or self.policy.default_task or ""
        if item.request is not entry.item.request or entry.prompt in ("", self.prompt_of(item, task)):
            return item
        return msgspec.structs.replace(item, exposure=Exposure(prompt_version=entry.prompt))

    def sample(self, result: Result, rehearsal: Rehearsal | None = None) -> Result:
        """Whether it is a quality sample, and its scores. `rehearsal`: the shadow stage of a rollout for which it is
        compared: then it is one too."""
        share = 1.0 if result.experiment == EXPLORE else self._shares.get(result.route.task)
        if rehearsal is not None:
            share = max(share or 0.0, rehearsal.share)
        if share is None:
            return result
        item, task = result.item, self._tasks[result.route.task]
        if not sampled(item.item_id, share):
            return msgspec.structs.replace(result, sample_probability=share)
        scores = self.hooks.score(item, result.answer, task)
        return msgspec.structs.replace(result, sampled=True, sample_probability=share, scores=scores)


def _unlike(pinned: Version, answer: Answer) -> str | None:
    """How the answer shows that it is another model's than the pinned one; None: it shows nothing of the kind. Of a
    pinned fingerprint silence is not taken for it: what can't be seen can't be held to."""
    if named(pinned.model, answer.model) == "other":
        return f"{pinned.model!r} was asked for, and {answer.model[:MAX_NAME]!r} answered"
    if pinned.fingerprint in (None, answer.fingerprint):
        return None
    said = "none" if answer.fingerprint is None else repr(answer.fingerprint[:MAX_NAME])
    return f"the fingerprint {pinned.fingerprint!r} is pinned, and {pinned.model!r} answered with {said}"


def never_sent(outcome: Outcome) -> bool:
    """Given back, or cancelled before it was sent: no attempt, no money."""
    failure = outcome.failure
    return (
        failure is not None
        and failure.kind in ("not_sent", "cancelled")
        and outcome.usage is None
        and not failure.may_be_billed
    )


def _charge(slot: Slot, attempt: Attempt, at: Priced, tally: Tally, costs: Costs) -> None:
    book(slot, attempt)
    count_attempt(tally, attempt)
    if attempt.usage is not None:
        costs.append((cost_line(slot.item, slot.route, attempt, at.price.version), slot.item))


def _close(reservation: Reservation, slot: Slot, outcome: Outcome, cost: int, tally: Tally, till: Till) -> None:
    failure = outcome.failure
    unknown = outcome.usage is None and failure is not None and failure.may_be_billed
    if unknown:
        slot.maybe_paid = True
        tally.forfeit_nano += reservation.nano
        tally.unknown_nano += reservation.nano
    till.purse.settle(reservation, reservation.nano if unknown else cost)
