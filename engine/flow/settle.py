"""From an outcome to what is recorded of it: the attempt, its cost line, the result, the counters. Pure functions."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from hashlib import blake2b

import msgspec

from penstock.engine.catalog import Account, Catalog, Model, Price
from penstock.engine.flow.slots import Slot
from penstock.engine.flow.tally import SLOWEST_KEPT, ModelTally, Slow, Tally
from penstock.engine.items import STEP_ROLES, Answer, Candidate, Item, Outcome, Role, Route, Usage
from penstock.engine.pricing import cost_nano, dearer, price_of
from penstock.engine.results import Attempt, CostBasis, CostLine, DeadLetter, DeadLetterReason, Mode, Result, last_asked

FREE = Price(version="free")
_NO_USAGE = Usage()


class Priced(msgspec.Struct, array_like=True):
    """What of the catalogue a settled call needs, looked up once a version. Told with a call: who has the lane when it
    lands may have a catalogue without it."""

    model: str
    account: str | None
    provider: str
    region: str | None
    mode: Mode
    basis: CostBasis
    price: Price


def priced_of(model: Model, version: str, account: Account | None) -> Priced:
    regions = model.regions or (account.regions if account else ())
    return Priced(
        model.name,
        account.name if account else None,
        (account.provider or account.name) if account else "own",
        regions[0] if len(regions) == 1 else None,
        "own" if model.worker else "now",
        "amortised" if model.worker else "metered",
        price_of(model, version) or FREE,
    )


def priced(catalog: Catalog) -> dict[tuple[str, str], Priced]:
    """By (model, version)."""
    return {
        (name, version.id): priced_of(model, version.id, catalog.accounts.get(model.account) if model.account else None)
        for name, model in catalog.models.items()
        for version in model.versions
    }


def attempt_of(outcome: Outcome, at: Priced, target: Candidate, role: Role) -> Attempt:
    """Price the call. A failed call costs what its usage says, else nothing known."""
    return Attempt(
        n=outcome.attempt,
        role=role,
        model=at.model,
        started_at=outcome.started_at,
        ms=outcome.ms,
        outcome="ok" if outcome.failure is None else outcome.failure.kind,
        request_id=outcome.request_id,
        cost_nano=_charged_nano(outcome, at.price),
        model_version=target.version,
        account=at.account,
        usage=outcome.usage,
        basis="estimated" if outcome.estimated else at.basis,
        experiment=target.experiment,
        arm=target.arm,
        engine_ms=outcome.engine_ms,
    )


def book(slot: Slot, attempt: Attempt) -> None:
    """What its steps use is on the item's bill, and no part of its answer's usage and time. By number: one that the
    last owner made may be taken up when a later one is booked already."""
    insort(slot.attempts, attempt, key=lambda each: each.n)
    slot.cost_nano += attempt.cost_nano
    if attempt.role not in STEP_ROLES:
        slot.call_ms += attempt.ms
        if attempt.usage is not None:
            slot.usage = attempt.usage if slot.usage == _NO_USAGE else add_usage(slot.usage, attempt.usage)


def _charged_nano(outcome: Outcome, price: Price) -> int:
    if outcome.usage is None:
        return 0
    if outcome.cost_nano is not None:
        return outcome.cost_nano
    return dearer(cost_nano(outcome.usage, price), outcome.surcharge_percent)


def cost_line(item: Item, route: Route, attempt: Attempt, price_version: str) -> CostLine:
    return CostLine(
        entry_id=f"{item.item_id}:{item.generation}:{attempt.n}",
        item_id=item.item_id,
        attempt=attempt.n,
        role=attempt.role,
        account=attempt.account,
        model=attempt.model,
        model_version=attempt.model_version,
        usage=attempt.usage or Usage(),
        cost_nano=attempt.cost_nano,
        basis=attempt.basis,
        price_version=price_version,
        tenant=item.attributes.tenant,
        task=route.task,
        tier=route.tier,
        at=attempt.started_at + attempt.ms / 1000,
    )


def output_hash(answer: Answer) -> str:
    return blake2b(answer.text.encode(), digest_size=16).hexdigest()


def add_usage(a: Usage, b: Usage) -> Usage:
    return Usage(
        a.input + b.input,
        a.cached + b.cached,
        a.cache_write + b.cache_write,
        a.cache_write_1h + b.cache_write_1h,
        a.output + b.output,
        a.reasoning + b.reasoning,
    )


def result_of(slot: Slot, answer: Answer, at: Priced, version: str, versions: tuple[str, str], now: float) -> Result:
    """`versions`: (policy, prompt). The caller adds sampling and scores."""
    item, target = slot.item, slot.route.candidates[slot.candidate]
    return Result(
        item=item,
        route=slot.route,
        answer=answer,
        model=at.model,
        model_version=version,
        provider=at.provider,
        account=at.account,
        region=at.region,
        mode=at.mode,
        usage=slot.usage,
        cost_nano=slot.cost_nano,
        cost_basis=asked.basis if (asked := last_asked(slot.attempts)) is not None else at.basis,
        price_version=at.price.version,
        policy_version=versions[0],
        prompt_version=versions[1],
        attempts=tuple(slot.attempts),
        finished_at=now,
        queue_ms=max(0.0, (slot.first_sent_at or now) - item.enqueued_at) * 1000,
        call_ms=slot.call_ms,
        output_hash=output_hash(answer),
        answer_usage=_last_usage(slot.attempts),
        maybe_paid=slot.maybe_paid,
        experiment=target.experiment,
        arm=target.arm,
        propensity=target.propensity,
    )


def _last_usage(attempts: Sequence[Attempt]) -> Usage:
    """Of the call that answered."""
    asked = last_asked(attempts)
    return asked.usage or _NO_USAGE if asked is not None else _NO_USAGE


def dead_letter_of(
    slot: Slot, reason: DeadLetterReason, message: str, versions: tuple[str, str], now: float
) -> DeadLetter:
    """`versions`: (policy, prompt)."""
    item = slot.item
    return DeadLetter(
        item_id=item.item_id,
        source=item.source,
        reason=reason,
        message=message,
        original=item.original,
        item=item,
        route=slot.route,
        custom_id=item.custom_id,
        generation=item.generation,
        attempts=tuple(slot.attempts),
        cost_nano=slot.cost_nano,
        maybe_paid=slot.maybe_paid,
        finished_at=now,
        policy_version=versions[0],
        prompt_version=versions[1] if slot.attempts else "",
        original_length=item.original_length,
        original_hash=item.original_hash,
    )


def too_large_of(result: Result, message: str) -> DeadLetter:
    """A result that its store can't take: it was paid for, and is not asked for again."""
    item = result.item
    return DeadLetter(
        item_id=item.item_id,
        source=item.source,
        reason="result_too_large",
        message=message,
        original=item.original,
        item=item,
        route=result.route,
        custom_id=item.custom_id,
        generation=item.generation,
        attempts=result.attempts,
        cost_nano=result.cost_nano,
        maybe_paid=result.maybe_paid,
        finished_at=result.finished_at,
        price_version=result.price_version,
        policy_version=result.policy_version,
        prompt_version=result.prompt_version,
        original_length=item.original_length,
        original_hash=item.original_hash,
    )


def twin_of(item: Item, now: float) -> DeadLetter:
    """The same item of the same generation is being worked on (a replay that names one letter twice)."""
    return DeadLetter(
        item_id=item.item_id,
        source=item.source,
        reason="duplicate",
        message="the same item came before in this input, and is being worked on",
        original=item.original,
        item=item,
        custom_id=item.custom_id,
        generation=item.generation,
        finished_at=now,
    )


def tally_of(tally: Tally, model: str, version: str) -> ModelTally:
    key = f"{model}@{version}"
    row = tally.models.get(key)
    if row is None:
        row = tally.models[key] = ModelTally(model, version)
    return row


def count_attempt(tally: Tally, attempt: Attempt) -> None:
    row = tally_of(tally, attempt.model, attempt.model_version)
    if not row.calls:
        row.basis = attempt.basis
    row.calls += 1
    row.cost_nano += attempt.cost_nano
    row.ms += attempt.ms
    tally.cost_nano += attempt.cost_nano
    if attempt.role in STEP_ROLES:
        tally.steps_nano[attempt.role] = tally.steps_nano.get(attempt.role, 0) + attempt.cost_nano
    usage = attempt.usage
    if usage is not None:
        row.input_tokens += usage.input
        row.cached_tokens += usage.cached
        row.output_tokens += usage.output
    if attempt.outcome != "ok":
        row.failures[attempt.outcome] = row.failures.get(attempt.outcome, 0) + 1


def count_result(tally: Tally, result: Result) -> None:
    tally.results += 1
    tally.tiers[result.route.tier] = tally.tiers.get(result.route.tier, 0) + 1
    tally.maybe_paid += result.maybe_paid
    tally_of(tally, result.model, result.model_version).items += 1
    seconds = result.call_ms / 1000
    slowest = tally.slowest
    if len(slowest) < SLOWEST_KEPT or seconds > slowest[-1].seconds:
        slowest.append(Slow(result.item.item_id, result.item.custom_id, result.model, seconds))
        slowest.sort(key=lambda slow: -slow.seconds)
        del slowest[SLOWEST_KEPT:]


def count_dead(tally: Tally, dead: DeadLetter) -> None:
    tally.dead_letters[dead.reason] = tally.dead_letters.get(dead.reason, 0) + 1
    tally.maybe_paid += dead.maybe_paid
