"""The lane machine: one ordered shard of the input, its window, horizon, retries, budget and commit. Never waits.

    offer ─▶ beyond ─(a commit moves the horizon)─▶ ready ─take─▶ flying ─outcome─▶ finished ─commit─▶ forgotten
                                                      ▲   │          │
                                                      │   └─ held ◀──┘   (retry at a time, or waiting for a lease)
                                                      └──────┘

Events are method calls, each with `now`; instructions come back as values: calls from `take`, a `CommitBatch` from
`commit`, wanted leases from `leases_wanted`, and `next_wake`. Every retry, fallback and copy passes the router's list
of permitted candidates again, so no wall and no budget can be passed by.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence

import msgspec

from penstock.engine.budget import Budgets, NeedLease, Reservation
from penstock.engine.catalog import Catalog, Price
from penstock.engine.health import NEVER, Health
from penstock.engine.items import (
    Answer,
    Call,
    Candidate,
    CostLine,
    DeadLetter,
    DeadLetterReason,
    Failure,
    Item,
    Outcome,
    Result,
    Usage,
)
from penstock.engine.lane_types import CommitBatch, Hooks, LaneSettings, ShelfEntry
from penstock.engine.outbox import Outbox
from penstock.engine.policy import Policy, Task
from penstock.engine.pricing import (
    cost_nano,
    estimate_input_tokens,
    max_input_tokens,
    output_ceiling,
    price_of,
    worst_case_nano,
)
from penstock.engine.progress import PROGRESS, SHELF, Progress, Saved
from penstock.engine.quality import sampled
from penstock.engine.retry import RetryBudget, RetrySettings, Stop, Target, after, moved_to
from penstock.engine.router import Rejection, Router
from penstock.engine.settle import (
    Priced,
    add_usage,
    attempt_of,
    cost_line,
    count_attempt,
    count_dead,
    count_result,
    dead_letter_of,
    priced,
    result_of,
)
from penstock.engine.slots import Ready, Slot
from penstock.engine.tally import Tally

OWN_TIMEOUT_S = 3600.0
"""An own engine may hold a call as long as it makes progress; its shell finds hangs sooner. A guess."""


class Lane:
    """See the module. `seq` is the last committed one; `shelf` what the last owner had shelved."""

    def __init__(
        self,
        settings: LaneSettings,
        router: Router,
        catalog: Catalog,
        policy: Policy,
        hooks: Hooks,
        budgets: Budgets,
    ) -> None:
        self.settings = settings
        self.router = router
        self.catalog = catalog
        self.policy = policy
        self.hooks = hooks
        self.money = budgets
        self.health = Health({name: model.account for name, model in catalog.models.items()})
        self.priced = priced(catalog)
        self.refused_keys: dict[str, str] = {}
        """Budget keys that the ledger refused → its words."""
        self._retry_settings = RetrySettings(max_attempts=policy.max_attempts)
        self._retry_budgets = {name: RetryBudget() for name in catalog.models}
        self._tier1 = _first_price(catalog)
        self._wire_extra = {task.name: _wire_extra(task) for task in policy.tasks.values()}
        """Task → bytes that the wire may add to a request: choices or schema, and the words around them."""
        self.tally = Tally()
        self.ready = Ready()
        self.slots: dict[tuple[str, int], Slot] = {}
        """Unfinished items by (item_id, generation)."""
        self.draining = False
        self.spent_out: str | None = None
        """Set when the run's budget is used up: the words for the person."""
        self.down: dict[str, str] = {}
        """Pool → why nothing can be sent there."""
        self._beyond: deque[Slot] = deque()
        self._held: list[tuple[float, int, Slot]] = []
        self._broke: dict[str, tuple[NeedLease, list[Slot]]] = {}
        """Budget key → the dearest call that waits for a lease on it, and all items that do."""
        self._leaders: dict[tuple[object, ...], Slot] = {}
        self._kept: dict[tuple[str, int], Outcome] = {}
        self._elsewhere: dict[tuple[str, int], tuple[str, int]] = {}
        self._results: list[Result] = []
        self._dead: list[DeadLetter] = []
        self._costs: list[tuple[CostLine, Item | None]] = []
        self._shelf_changes: dict[str, bytes] = {}
        self._shelf_bytes = 0
        self._committing: list[Slot] | None = None
        self._uncommitted = 0
        self._bytes = 0
        self._dispatched = 0
        """Calls handed out since the last commit."""
        self._aim = settings.horizon_floor
        """Items wanted under the horizon: twice what a commit interval sends, shrinking slowly."""
        self._sequence = 0

    def begin(self, progress: Progress, saved: Saved, shelf: Sequence[ShelfEntry], outbox: Outbox, seq: int) -> None:
        """Take up where the last owner's last commit left off."""
        self.progress = progress
        self.outbox = outbox
        self.seq = seq
        self.tally = saved.tally
        self.adjusted = saved.adjusted
        self.plan_version = saved.plan_version
        self._shelf = list(shelf)

    # -- in

    def wants(self) -> int:
        """How many more records may be read now: back-pressure from the commit to the source."""
        if self.draining or self.outbox.full or self.progress.beyond >= self.settings.beyond_max:
            return 0
        if self._bytes >= self.settings.window_bytes:
            return 0
        return max(0, self.settings.window - len(self.slots) - self._uncommitted)

    def restore_shelf(self, now: float) -> None:
        """Shelved items of the last owner come back first; each may have been paid for."""
        for entry in self._shelf:
            self._shelf_bytes += len(entry.item.original)
            slot = self._admit(entry.item, now, shelved=True)
            if slot is not None:
                slot.maybe_paid = True
                slot.attempt = max(slot.attempt, entry.attempt)
                self._dispatchable(slot, now)
        self._shelf = []

    def offer(self, entry: Item | DeadLetter, now: float) -> None:
        """One record of the source, in order within its split. Finished ones are skipped in silence."""
        source = entry.source
        split = self.progress.of(source.ordinal)
        if not split.offer(source.position):
            return
        self.tally.read += 1
        if isinstance(entry, DeadLetter):
            self._end_dead(entry, None)
            return
        slot = self._admit(entry, now)
        if slot is None:
            return
        slot.maybe_paid = source.position < split.maybe_until
        if slot.state == "beyond":
            if source.position < split.horizon:
                self._dispatchable(slot, now)
            else:
                self._beyond.append(slot)

    def split_ended(self, ordinal: int) -> None:
        self.progress.end(ordinal)

    def _admit(self, item: Item, now: float, *, shelved: bool = False) -> Slot | None:
        """Route it; None where it ended at once."""
        routed = self.router.route(item.attributes, item.request)
        route = routed.route if isinstance(routed, Rejection) else routed
        if route.refused and route.wall is not None:
            self.tally.refused[route.wall] = self.tally.refused.get(route.wall, 0) + len(route.refused)
        self._sequence += 1
        slot = Slot(item, route, self._sequence)
        slot.shelved = shelved
        self.slots[item.item_id, item.generation] = slot
        self._bytes += len(item.original)
        if isinstance(routed, Rejection):
            self._dead_letter(slot, routed.reason, routed.message, now)
            return None
        slot.est_input = estimate_input_tokens(item.request)
        slot.max_input = max_input_tokens(item.request, self._wire_extra.get(route.task, 0))
        self._move(slot, 0)
        return slot

    def _dispatchable(self, slot: Slot, now: float) -> None:
        """The item is under the committed horizon: adopt what a worker already has of it, copy, or queue it."""
        key = (slot.item.item_id, slot.item.generation)
        kept = self._kept.pop(key, None)
        if kept is not None:
            slot.state, slot.attempt, slot.sent_at = "flying", kept.attempt, kept.started_at
            self.outcome(kept, now)
            return
        elsewhere = self._elsewhere.pop(key, None)
        if elsewhere is not None:
            slot.state, (slot.worker, slot.attempt), slot.sent_at = "flying", elsewhere, now
            return
        if not self._follows(slot):
            self._queue(slot, now)

    def _follows(self, slot: Slot) -> bool:
        """Identical requests within the window are answered once: at temperature 0, or where the task says so."""
        task = self.policy.tasks.get(slot.route.task)
        temperature = slot.item.request.temperature
        if temperature is None and task is not None:
            temperature = task.temperature
        if temperature != 0 and not (task is not None and task.reuse):
            return False
        key = _copy_key(slot)
        leader = self._leaders.get(key)
        if leader is None:
            self._leaders[key], slot.key = slot, key
            return False
        leader.followers = [*(leader.followers or ()), slot]
        slot.state = "following"
        return True

    def _queue(self, slot: Slot, now: float) -> None:
        """Ready at its candidate, or at the next one that is up; held where none is."""
        if slot.pool in self.down or self.health.is_open(slot.model, now):
            self._divert(slot, now)
        else:
            self.ready.push(slot)

    def _divert(self, slot: Slot, now: float) -> None:
        """Its candidate can't take it now: the next one that is up, else wait for the first probe of any."""
        candidates = slot.route.candidates
        count = len(candidates)
        for step in range(1, count):
            index = (slot.candidate + step) % count
            if candidates[index].pool not in self.down and self.health.is_up(candidates[index].model):
                self.tally.fallbacks += 1
                self._move(slot, index)
                slot.role, slot.history = "fallback", moved_to(slot.history, index)
                self.ready.push(slot)
                return
        self._hold(slot, max(now + 0.05, min(self._usable_at(c, now) for c in candidates)))

    def _move(self, slot: Slot, candidate: int) -> None:
        """To another candidate, whose own default ceiling of output counts."""
        slot.candidate, slot.ask_again_body = candidate, None
        task = self.policy.tasks.get(slot.route.task)
        model = self.catalog.models[slot.model]
        slot.max_output = output_ceiling(slot.item.request, task.max_tokens if task else None, model)

    def _usable_at(self, candidate: Candidate, now: float) -> float:
        if candidate.pool in self.down:
            return NEVER
        return self.health.next_probe_at(candidate.model, now)

    def _hold(self, slot: Slot, at: float) -> None:
        slot.state = "held"
        heapq.heappush(self._held, (at, slot.seq, slot))

    # -- out to workers

    def take(self, pool: str, n: int, max_tokens: int, worker: str, now: float) -> list[Call]:
        """At most `n` calls and about `max_tokens` tokens (at least one call) for a worker of this pool."""
        calls: list[Call] = []
        while len(calls) < n and max_tokens > 0 and not self.draining:
            slot = self.ready.pop(pool)
            if slot is None:
                break
            if not self.health.allow(slot.model, now):
                self._divert(slot, now)
                continue
            call = self._call(slot, worker, now)
            if call is None:
                self.health.unprobe(slot.model)
            else:
                max_tokens -= slot.tokens
                calls.append(call)
        return calls

    def _call(self, slot: Slot, worker: str, now: float) -> Call | None:
        item = slot.item
        deadline = item.attributes.deadline
        if deadline is not None and deadline <= now:
            self._dead_letter(slot, "deadline", "its deadline passed before it was sent; nothing was paid for it", now)
            return None
        at = self.priced[slot.model]
        if not self._reserve(slot, at, now):
            return None
        candidate = slot.route.candidates[slot.candidate]
        task = self.policy.tasks.get(slot.route.task)
        self._retry_budgets[slot.model].called()
        slot.attempt += 1
        slot.state, slot.worker, slot.sent_at = "flying", worker, now
        slot.first_sent_at = slot.first_sent_at or now
        self._dispatched += 1
        tier = slot.route.tier
        self.tally.in_flight[tier] = self.tally.in_flight.get(tier, 0) + 1
        return Call(
            item_id=item.item_id,
            generation=item.generation,
            attempt=slot.attempt,
            role=slot.role,
            model=slot.model,
            version=candidate.version,
            upstream=self._upstream(slot.model, candidate.version),
            body_json=slot.ask_again_body or item.request.body_json,
            task=slot.route.task,
            max_tokens=slot.max_output,
            timeout_s=(task.timeout_s if task and task.timeout_s else None) or self._timeout(at.account),
            est_input_tokens=slot.est_input,
            max_input_tokens=slot.max_input,
            deadline=deadline,
            realtime=item.attributes.latency == "realtime",
            traceparent=item.traceparent,
        )

    def _reserve(self, slot: Slot, at: Priced, now: float) -> bool:
        """Lease money for the worst case of one call; False where the item has to wait or ends."""
        worst = worst_case_nano(slot.max_input, slot.max_output * slot.item.request.n, at.price)
        tenant = slot.item.attributes.tenant
        answer = self.money.reserve(tenant, worst, now)
        if isinstance(answer, Reservation):
            slot.reservation = answer
            return True
        if answer.key in self.refused_keys:
            self._cannot_pay(slot, answer.key, now)
        else:
            slot.state = "held"
            need, waiting = self._broke.get(answer.key, (answer, []))
            waiting.append(slot)
            self._broke[answer.key] = (answer if answer.nano > need.nano else need, waiting)
        return False

    def leases_wanted(self) -> list[NeedLease]:
        """What items wait for, and what runs low."""
        wanted = {need.key: need for need in self.money.purse.low() if need.key not in self.refused_keys}
        wanted.update({key: need for key, (need, _) in self._broke.items()})
        return list(wanted.values())

    def _cannot_pay(self, slot: Slot, key: str, now: float) -> None:
        """The run's own budget stops the run, its items stay undone; any other budget ends the item."""
        if key.startswith("run/") and "/tenant/" not in key:
            self.spent_out = self.refused_keys[key]
            self.draining = True
            self._hold(slot, now + 1.0)
        else:
            self._dead_letter(slot, "budget", f"budget {key}: {self.refused_keys[key]}", now)

    def lease_answered(self, key: str, now: float) -> None:
        """The purse has a new lease for `key`, or `refused_keys` the ledger's no: who waited for it tries again."""
        need = self._broke.pop(key, None)
        for slot in need[1] if need else ():
            if key in self.refused_keys:
                self._cannot_pay(slot, key, now)
            else:
                self.ready.push(slot)

    # -- back from workers

    def outcome(self, outcome: Outcome, now: float) -> None:
        """What became of a call. One that is not the item's current attempt was counted before: it is only tallied."""
        slot = self.slots.get((outcome.item_id, outcome.generation))
        if slot is None or slot.state != "flying" or slot.attempt != outcome.attempt:
            if outcome.usage is not None:
                self.tally.late_payments += 1
            return
        self._landed(slot)
        failure, answer = outcome.failure, outcome.answer
        model = slot.model
        self._settle(slot, outcome)
        self.health.record(model, failure, now)
        if failure is None and answer is not None:
            self._succeed(slot, answer, now)
        elif failure is not None:
            self._fail(slot, failure, answer, now)

    def _upstream(self, model: str, version: str) -> str:
        return next(v.model for v in self.catalog.models[model].versions if v.id == version)

    def _timeout(self, account: str | None) -> float:
        return self.catalog.accounts[account].timeout_s if account else OWN_TIMEOUT_S

    def _landed(self, slot: Slot) -> None:
        tier = slot.route.tier
        self.tally.in_flight[tier] = max(0, self.tally.in_flight.get(tier, 0) - 1)

    def _settle(self, slot: Slot, outcome: Outcome) -> None:
        """Price the attempt, close its reservation, and write its cost line where something was charged."""
        at = self.priced[slot.model]
        candidate = slot.route.candidates[slot.candidate]
        attempt = attempt_of(slot, outcome, at, candidate.version)
        if attempt.outcome != "not_sent":
            slot.attempts.append(attempt)
            count_attempt(self.tally, attempt)
        slot.cost_nano += attempt.cost_nano
        slot.call_ms += outcome.ms
        if outcome.usage is not None:
            slot.usage = add_usage(slot.usage, outcome.usage)
            self._costs.append((cost_line(slot.item, slot.route, attempt, at.price.version), slot.item))
        reservation, slot.reservation = slot.reservation, None
        if isinstance(reservation, Reservation):
            unknown = outcome.usage is None and outcome.failure is not None and outcome.failure.may_be_billed
            if unknown:
                slot.maybe_paid = True
                self.tally.forfeit_nano += reservation.nano
            self.money.purse.settle(reservation, reservation.nano if unknown else attempt.cost_nano)

    def _succeed(self, slot: Slot, answer: Answer, now: float, *, valid: bool = True) -> None:
        at = self.priced[slot.model]
        version = slot.route.candidates[slot.candidate].version
        task = self.policy.tasks.get(slot.route.task)
        prompt_version = task.prompt.version if task is not None and task.prompt is not None else ""
        result = result_of(slot, answer, at, version, (self.policy.version, prompt_version), now)
        if not valid:
            result = msgspec.structs.replace(result, status="invalid_output")
        if task is not None and task.sample > 0:
            result = self._sample(result, slot.item, answer, task)
        self._end_result(result, slot, now)
        self._copy_to_followers(slot, result, now)

    def _sample(self, result: Result, item: Item, answer: Answer, task: Task) -> Result:
        if not sampled(item.item_id, task.sample):
            return msgspec.structs.replace(result, sample_probability=task.sample)
        scores = self.hooks.score(item, answer, task)
        return msgspec.structs.replace(result, sampled=True, sample_probability=task.sample, scores=scores)

    def _copy_to_followers(self, slot: Slot, result: Result, now: float) -> None:
        followers = self._unlead(slot)
        for follower in followers:
            task = self.policy.tasks.get(follower.route.task)
            follower.first_sent_at = slot.first_sent_at
            copy = msgspec.structs.replace(
                result,
                item=follower.item,
                route=follower.route,
                usage=Usage(),
                cost_nano=0,
                attempts=(),
                call_ms=0.0,
                maybe_paid=follower.maybe_paid,
                copied_from=slot.item.item_id,
                sampled=False,
                scores=(),
            )
            if task is not None and task.sample > 0 and result.status == "ok":
                copy = self._sample(copy, follower.item, result.answer, task)
            self.tally.copied += 1
            self._end_result(copy, follower, now)

    def _unlead(self, slot: Slot) -> list[Slot]:
        if slot.key is not None:
            self._leaders.pop(slot.key, None)
            slot.key = None
        followers, slot.followers = slot.followers or [], None
        return followers

    def _fail(self, slot: Slot, failure: Failure, answer: Answer | None, now: float) -> None:
        task = self.policy.tasks.get(slot.route.task)
        on_invalid = task.output.on_invalid if task is not None and task.output is not None else "ask_again"
        if failure.kind == "invalid_output" and answer is not None and on_invalid != "ask_again":
            if on_invalid == "keep":
                self._succeed(slot, answer, now, valid=False)
            else:
                self._dead_letter(slot, "invalid_output", failure.message, now)
            return
        if failure.kind == "cancelled":
            expired = slot.item.attributes.deadline is not None and slot.item.attributes.deadline <= now
            self._dead_letter(slot, "deadline" if expired else "cancelled", failure.message, now)
            return
        self._again(slot, failure, answer, now)

    def _again(self, slot: Slot, failure: Failure, answer: Answer | None, now: float) -> None:
        decision = after(
            failure,
            slot.history,
            self._targets(slot, now),
            self._retry_settings,
            self.hooks.chance(),
            now,
            slot.item.attributes.deadline,
        )
        if isinstance(decision, Stop):
            self._dead_letter(slot, decision.reason, decision.message, now)
            return
        slot.history = decision.history
        self._retry_budgets[slot.route.candidates[decision.candidate].model].retried(now)
        if decision.candidate != slot.candidate:
            self.tally.fallbacks += 1
            self._move(slot, decision.candidate)
        else:
            self.tally.retries += 1
            if failure.kind == "invalid_output" and answer is not None:
                slot.ask_again_body = self.hooks.ask_again(slot.item.request.body_json, answer.text, failure.message)
        slot.role = decision.role
        if decision.at <= now:
            self._queue(slot, now)
        else:
            self._hold(slot, decision.at)

    def _targets(self, slot: Slot, now: float) -> list[Target]:
        targets: list[Target] = []
        for candidate in slot.route.candidates:
            name = candidate.model
            up = candidate.pool not in self.down and self.health.is_up(name)
            probe_at = self._usable_at(candidate, now)
            context = self.catalog.models[name].context
            targets.append(Target(context, up, probe_at, self._retry_budgets[name].has_room(now)))
        return targets

    def worker_lost(self, worker: str, now: float) -> None:
        """All that was in flight at this worker comes back; the calls may have been paid for."""
        for slot in [s for s in self.slots.values() if s.state == "flying" and s.worker == worker]:
            self._lose(slot, f"worker {worker} was lost with the call in flight", now)

    def _lose(self, slot: Slot, message: str, now: float) -> None:
        slot.maybe_paid = True
        failure = Failure("worker_lost", message, may_be_billed=True)
        lost = Outcome(
            slot.item.item_id,
            slot.item.generation,
            slot.attempt,
            slot.sent_at,
            max(0.0, now - slot.sent_at) * 1000,
            failure=failure,
        )
        self.outcome(lost, now)

    def pool_down(self, pool: str, why: str, now: float) -> None:
        """Nothing can be sent to this pool any more: what waits for it goes to its next candidate."""
        self.down[pool] = why
        for slot in self.ready.pop_all(pool):
            self._queue(slot, now)

    def stuck(self) -> str | None:
        """Why some item waits for ever, where every candidate of it is down for good: a person has to act."""
        for at, _, slot in self._held:
            if at == NEVER and slot.state == "held":
                return "; ".join(
                    f"{c.model}: {self.down.get(c.pool, 'its account refuses')}" for c in slot.route.candidates
                )
        return None

    def adopt(self, outcomes: Sequence[Outcome], flying: Sequence[tuple[str, int, int]], worker: str) -> None:
        """A worker still has these of the last owner. Called before anything is offered."""
        for outcome in outcomes:
            self._kept[outcome.item_id, outcome.generation] = outcome
        for item_id, generation, attempt in flying:
            self._elsewhere[item_id, generation] = (worker, attempt)

    # -- time

    def tick(self, now: float) -> None:
        """Held items whose time has come; calls that never came back."""
        while self._held and self._held[0][0] <= now:
            _, _, slot = heapq.heappop(self._held)
            if slot.state == "held":
                self._queue(slot, now)

    def sweep(self, now: float) -> None:
        """Every few seconds: a worker that froze must not hold items for ever."""
        slack = self.settings.call_slack_s
        for slot in [s for s in self.slots.values() if s.state == "flying"]:
            if now - slot.sent_at > self._timeout(self.priced[slot.model].account) + slack:
                self._lose(slot, f"no outcome from worker {slot.worker} long after the call's timeout", now)

    def next_wake(self) -> float | None:
        return self._held[0][0] if self._held else None

    # -- ends

    def _end_result(self, result: Result, slot: Slot, now: float) -> None:
        self._results.append(result)
        count_result(self.tally, result)
        if self._tier1 is not None:
            self.tally.tier1_cost_nano += cost_nano(result.usage, self._tier1)
        self._forget(slot)

    def _dead_letter(self, slot: Slot, reason: DeadLetterReason, message: str, now: float) -> None:
        self._end_dead(dead_letter_of(slot, reason, message, self.policy.version, now), slot)
        followers = self._unlead(slot)
        for follower in followers:  # the first of them asks for itself, the others follow it
            if not self._follows(follower):
                self._queue(follower, now)

    def _end_dead(self, dead: DeadLetter, slot: Slot | None) -> None:
        self._dead.append(dead)
        count_dead(self.tally, dead)
        if slot is not None:
            self._forget(slot)
        else:
            self._uncommitted += 1
            self.progress.of(dead.source.ordinal).done(dead.source.position)

    def _forget(self, slot: Slot) -> None:
        item = slot.item
        slot.state = "finished"
        del self.slots[item.item_id, item.generation]
        self._bytes -= len(item.original)
        self._uncommitted += 1
        if slot.shelved:
            self._shelf_changes[SHELF + item.item_id] = b""
            self._shelf_bytes -= len(item.original)
        else:
            self.progress.of(item.source.ordinal).done(item.source.position)

    # -- what the shell asks

    def redacts(self, wall: str | None) -> bool | None:
        """How a quality sample of this wall is written: False whole, True redacted, None not at all."""
        rule = self.catalog.walls[wall].sample if wall is not None and wall in self.catalog.walls else "keep"
        return {"keep": False, "redact": True, "never": None}[rule]

    def reprice(self, model: str, price: Price) -> None:
        """An own engine's running rate: from now on its calls are charged, and compared, at this."""
        self.priced[model].price = price
        self.router.reprice(model, price)

    def add_costs(self, lines: Sequence[CostLine]) -> None:
        """Closing adjustments of own GPUs. They belong to no item."""
        self._costs += [(line, None) for line in lines]
        self.adjusted = True
        for line in lines:
            self.tally.cost_nano += line.cost_nano
            key = f"{line.model}@{line.model_version}"
            if key in self.tally.models:
                self.tally.models[key].cost_nano += line.cost_nano

    @property
    def shelved(self) -> int:
        return sum(1 for slot in self.slots.values() if slot.shelved)

    def oldest_age(self, now: float) -> float:
        """Seconds since the oldest unfinished item was read. Slots stand in reading order."""
        first = next(iter(self.slots.values()), None)
        return now - first.item.enqueued_at if first is not None else 0.0

    # -- commit

    @property
    def dirty(self) -> bool:
        """There is something to commit."""
        return bool(self._results or self._dead or self._costs or self._shelf_changes)

    @property
    def thirsty(self) -> bool:
        """Workers will soon have nothing under the horizon: commit now rather than at the interval."""
        return bool(self._beyond) and len(self.ready) < self._aim // 2

    def commit(self, now: float) -> CommitBatch:
        """Everything finished since the last one, and a horizon over what is to be sent next. One at a time."""
        assert self._committing is None, "a commit is in flight"
        self._shelve(now)
        self._committing = self._advance_horizon()
        self.progress.close_finished()
        self.seq += 1
        saved = self.saved()
        chunks = {PROGRESS: msgspec.msgpack.encode(saved), **self._shelf_changes, **self.outbox.trim()}
        batch = CommitBatch(self.seq, chunks, self._results, self._dead, self._costs, saved)
        self._results, self._dead, self._costs, self._shelf_changes = [], [], [], {}
        return batch

    def saved(self) -> Saved:
        return Saved(
            opened=self.progress.opened,
            splits=tuple(state.saved() for state in self.progress.open.values()),
            spent=self.money.purse.spent(),
            tally=self.tally,
            done=self.finished_all,
            adjusted=self.adjusted,
            plan_version=self.plan_version,
            outbox_next=self.outbox.next_number,
        )

    def _advance_horizon(self) -> list[Slot]:
        """Move the horizon over the next items: only as far as will be sent soon, since a kill may repeat them all."""
        self._aim = max(self.settings.horizon_floor, 2 * self._dispatched, self._aim * 7 // 8)
        self._dispatched = 0
        aim = self._aim - len(self.ready)
        moved: list[Slot] = []
        while self._beyond and len(moved) < aim:
            slot = self._beyond.popleft()
            position = slot.item.source
            self.progress.of(position.ordinal).horizon = position.position + 1
            moved.append(slot)
        return moved

    def committed(self, now: float) -> None:
        """The commit is durable: its items are forgotten, what is under its horizon may be sent."""
        moved, self._committing = self._committing or [], None
        self._uncommitted = len(self._results) + len(self._dead)
        for slot in moved:
            if slot.state == "beyond":
                self._dispatchable(slot, now)

    def _shelve(self, now: float) -> None:
        """Slow heads leave their split's unfinished ones, so that the watermark moves on."""
        if self.progress.beyond < self.settings.beyond_max // 8:
            return
        by_place = {(s.item.source.ordinal, s.item.source.position): s for s in self.slots.values() if not s.shelved}
        for ordinal, state in self.progress.open.items():
            while state.order and self._shelf_room():
                slot = by_place.get((ordinal, state.order[0]))
                if slot is None or slot.state == "beyond" or now - slot.item.enqueued_at < self.settings.shelf_after_s:
                    break
                slot.shelved = True
                self._shelf_bytes += len(slot.item.original)
                entry = ShelfEntry(slot.item, slot.attempt)
                self._shelf_changes[SHELF + slot.item.item_id] = msgspec.msgpack.encode(entry)
                state.done(state.order[0])

    def _shelf_room(self) -> bool:
        return self.shelved < self.settings.shelf_max and self._shelf_bytes < self.settings.shelf_bytes

    @property
    def finished_all(self) -> bool:
        """Every split is read to its end and every item has ended (and is in this commit or an earlier one)."""
        return not self.slots and self.progress.all_closed

    @property
    def idle(self) -> bool:
        """Nothing is at a worker."""
        return not any(slot.state == "flying" for slot in self.slots.values())


def _copy_key(slot: Slot) -> tuple[object, ...]:
    """What must be equal for one answer to serve two items: the request, and all that decides who may see it."""
    attributes = slot.item.attributes
    return (
        slot.item.request.input_hash,
        slot.route.task,
        slot.route.candidates,
        slot.route.wall,
        attributes.sensitivity,
        attributes.tenant,
    )


def _wire_extra(task: Task) -> int:
    if task.output is None:
        return 0
    return (
        512
        + len(task.output.json_schema or b"")
        + sum(len(choice.encode()) + 4 for choice in task.output.choices or ())
    )


def _first_price(catalog: Catalog) -> Price | None:
    """The price of the first model of Tier 1, for "saved against all-Tier-1"."""
    names = catalog.tiers.get(1, ())
    return price_of(catalog.models[names[0]]) if names and names[0] in catalog.models else None
