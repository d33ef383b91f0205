"""The permitted targets of one combination of labels (`Choice`), and an item's order among them by length and cost.

What is here knows neither rules nor tiers: `router.py` fills it, once for each combination of labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from penstock.engine.catalog import Catalog, Model, Price, Wall
from penstock.engine.errors import SpecError
from penstock.engine.items import Attributes, Candidate, Exposure, Refusal, Request, Route
from penstock.engine.policy import Policy, Task
from penstock.engine.pricing import MOST_USD, estimate_input_tokens, expected_nano, usd_to_nano
from penstock.engine.registry.choice import EXPLORE, Grade, which
from penstock.engine.results import DeadLetterReason

MAX_ROUTES = 64
"""Orders kept of one plan's candidates (by length and cost); then they are built again."""
SURELY_TOO_LONG = 2
"""An estimate this many times the context is too long for sure: no vocabulary packs 8 bytes of JSON into a token on
average. Anything shorter is for the engine or the provider to refuse: a wrong dead letter is worse than a free 400."""
UNLIMITED = 1 << 60
"""Context of a model that declares none; cost of one whose price is unknown."""
NO_CEILING = Request(b"")
COMMON_TOKENS = 500
"""Input of an item by which models are compared once for all; each item compares them anew by its own. A guess."""


class Rejection(msgspec.Struct, frozen=True, gc=False):
    """No target. `route` has no candidates, and names every refused target."""

    reason: DeadLetterReason
    message: str
    route: Route

    @property
    def refused(self) -> tuple[Refusal, ...]:
        return self.route.refused


Drawn = tuple[int, Exposure | None]
"""The arms of rollouts and of an experiment that an item is in."""


class Target(msgspec.Struct, frozen=True, gc=False):
    model: Model
    candidate: Candidate
    price: Price | None
    context: int
    ceiling: int
    """Output tokens where the request sets no ceiling."""
    output: int | None = None
    """Output tokens of an item as measured."""
    weight: float = 1.0
    """What an accepted item costs, as a multiple of a call: for the order only."""


class Ask(msgspec.Struct, frozen=True):
    """What was asked for, once task, rule and wall are known."""

    task: Task
    tier: int
    names: tuple[str, ...]
    why: str
    min_quality: float | None
    wall: Wall | None
    walled: int = 0
    """Targets that the wall forbids."""
    explore: float = 0.0
    """Share of the items that try a model which is not known well enough."""
    cascade: bool = False
    promised: float | None = None
    """The quality that was asked for, where the task's cascade promises as much, as long as its last model is there."""
    above: float | None = None
    """The quality that was asked for, where the task's cascade promises less: its last model is asked alone."""
    arms: int | None = None
    """Of rollouts (`Turn.arms`); None: a step, which is in none."""
    exposure: Exposure | None = None


class Choice(msgspec.Struct):
    """The permitted targets of one combination of labels."""

    ask: Ask
    targets: tuple[Target, ...]
    refused: tuple[Refusal, ...]
    route: Route
    """Where length and cost change nothing."""
    easy: bool
    """Order of preference, not of cost."""
    context: int
    """The smallest context among the targets."""
    room: int
    """The same, less the answer's length where the task sets it."""
    routes: dict[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], Route | Rejection]
    explore: tuple[Target, ...] = ()
    """Targets that a share of the items try first."""


# ---- once for each item: length and cost


def weigh(plan: Choice, attributes: Attributes, request: Request) -> Route | Rejection:
    """The permitted targets that this item fits into and may pay, in order. Those it may not fit come last; but for a
    cascade's, whose last one is believed unasked: a cheap one that refuses the prompt is passed by, for nothing."""
    tokens = estimate_input_tokens(request)
    ceiling, n, easy = request.max_tokens, request.n, plan.easy
    asked = tokens + (ceiling or plan.ask.task.max_tokens or 0)  # a default ceiling gives way to the prompt
    limit = _nano_limit(attributes.max_cost_usd)
    fits_first = not plan.ask.cascade
    order: list[tuple[bool, float, int]] = []
    long: list[int] = []
    dear: list[int] = []
    for i, target in enumerate(plan.targets):
        if tokens > target.context * SURELY_TOO_LONG:
            long.append(i)
        else:
            cost = i if easy and limit is None else _cost(target, tokens, (ceiling or target.ceiling) * n)
            if limit is not None and cost > limit:
                dear.append(i)
            else:
                order.append(
                    (fits_first and asked > target.context, i if easy else _accepted(target, tokens, ceiling, n), i)
                )
    order.sort()
    key = (tuple(i for _, _, i in order), tuple(long), tuple(dear))
    route = plan.routes.get(key)
    if route is None:
        if len(plan.routes) >= MAX_ROUTES:
            plan.routes.clear()
        route = plan.routes[key] = _numbered(plan, *key)
    return route


def _numbered(plan: Choice, order: tuple[int, ...], long: tuple[int, ...], dear: tuple[int, ...]) -> Route | Rejection:
    refused = list(plan.refused)
    refused += [refused_for(plan.targets[i], f"longer than its context of {plan.targets[i].context}") for i in long]
    refused += [
        refused_for(plan.targets[i], "price unknown" if plan.targets[i].price is None else "over max_cost_usd")
        for i in dear
    ]
    last = len(plan.targets) - 1
    if order and plan.ask.promised is not None and last not in order:  # a cheaper one's answer would be taken as it is
        words = f"quality ≥ {plan.ask.promised:g} needs the last model of its cascade"
        return reject("over_max_cost" if last in dear else "too_long", words, plan.ask, refused)
    if order:
        return _route(plan.ask, tuple(plan.targets[i].candidate for i in order), tuple(refused))
    if dear:
        return reject("over_max_cost", "every candidate that is left costs more than max_cost_usd", plan.ask, refused)
    return reject("too_long", "the prompt is longer than every candidate's context", plan.ask, refused)


def _nano_limit(usd: float | None) -> int | None:
    """None: no limit. NaN permits nothing; an unknown price is above every limit."""
    if usd is None or usd == float("inf"):
        return None
    return min(UNLIMITED - 1, usd_to_nano(min(usd, MOST_USD))) if usd >= 0 else -1


def _cost(target: Target, input_tokens: int, output_tokens: int) -> int:
    return UNLIMITED if target.price is None else expected_nano(input_tokens, output_tokens, target.price)


def _accepted(target: Target, tokens: int, ceiling: int | None, n: int) -> float:
    """What an accepted answer is expected to cost: with output, failures and answers that don't pass as measured."""
    most = ceiling or target.ceiling
    output = most if target.output is None else min(most, target.output)
    return _cost(target, tokens, output * n) * target.weight


def common_cost(target: Target) -> float:
    """Of an item of common size."""
    return _accepted(target, COMMON_TOKENS, None, 1)


def explored(plan: Choice, attributes: Attributes, request: Request, item_id: str) -> Route | Rejection:
    """One of the models that are to be known better, and behind it those that the item would have tried anyway."""
    route = weigh(plan, attributes, request)
    target = plan.explore[which(item_id, len(plan.explore))]
    tokens = estimate_input_tokens(request) + (request.max_tokens or plan.ask.task.max_tokens or 0)
    if isinstance(route, Rejection) or attributes.max_cost_usd is not None or tokens > target.context:
        return route
    tried = msgspec.structs.replace(
        target.candidate,
        reason=f"explored: {target.candidate.reason}",
        experiment=EXPLORE,
        arm=target.model.name,
        propensity=plan.ask.explore / len(plan.explore),
    )
    reason = f"{route.reason}; {tried.model} is explored, {target.candidate.reason}"
    return msgspec.structs.replace(route, candidates=(tried, *route.candidates), reason=reason)


# ---- words


def with_reason(target: Target, reason: str) -> Target:
    return msgspec.structs.replace(target, candidate=msgspec.structs.replace(target.candidate, reason=reason))


def short_of(grade: Grade, ask: Ask, asked: float) -> str:
    if grade.state == "unknown":
        return f"quality for {ask.task.name} unknown"
    return f"{grade.words}, {'not shown to reach' if grade.state == 'unsure' else 'under'} {asked:g}"


def in_arm(plan: Choice, experiment: str, arm: str) -> Choice:
    """The same plan of one target, asked for a rollout."""
    (target,) = plan.targets
    candidate = msgspec.structs.replace(target.candidate, experiment=experiment, arm=arm)
    return choice_of(plan.ask, (msgspec.structs.replace(target, candidate=candidate),), plan.refused)


def at_version(plan: Choice, version: str, price: Price | None) -> Choice:
    """The same plan for another version of its one model than the live one, at that version's price."""
    (target,) = plan.targets
    model = msgspec.structs.replace(target.model, live=version)
    candidate = msgspec.structs.replace(target.candidate, version=version, pool=model.pool)
    targets = (msgspec.structs.replace(target, model=model, candidate=candidate, price=price),)
    return choice_of(plan.ask, targets, plan.refused)


def choice_of(ask: Ask, targets: tuple[Target, ...], refused: tuple[Refusal, ...], *, ranked: bool = False) -> Choice:
    """`ranked`: their order stands, whatever they cost."""
    route = _route(ask, tuple(t.candidate for t in targets), refused)
    context = min(t.context for t in targets)
    room = context - (ask.task.max_tokens or 0)
    return Choice(ask, targets, refused, route, ask.min_quality is None or ranked, context, room, {})


def _route(ask: Ask, candidates: tuple[Candidate, ...], refused: tuple[Refusal, ...]) -> Route:
    """Where a quality was asked for, the reason tells the numbers of the first candidate."""
    wall, why = ask.wall.name if ask.wall else None, ask.why
    if candidates and candidates[0].reason:
        why = f"{why}: {candidates[0].model}, {candidates[0].reason}"
    cascade = ask.cascade and len(candidates) > 1
    return Route(ask.task.name, ask.tier, candidates, refused, why, wall, ask.walled, cascade)


def reject(reason: DeadLetterReason, message: str, ask: Ask, refused: list[Refusal]) -> Rejection:
    told = "; ".join(f"{r.model}: {r.reason}" for r in refused[:20])
    route = _route(ask, (), tuple(refused))
    return Rejection(reason, f"{message} ({told})" if told else message, route)


def refused_for(target: Target, reason: str) -> Refusal:
    return Refusal(target.model.name, reason)


def lacking(model: Model, needs: tuple[str, ...]) -> str | None:
    missing = [need for need in needs if need in model.lacks]
    return f"lacks {', '.join(missing)}" if missing else None


def kept_of(targets: list[Target], refused: list[Refusal], why: Callable[[Target], str | None]) -> list[Target]:
    """Those without a reason against them; the others join `refused`."""
    kept: list[Target] = []
    for target in targets:
        reason = why(target)
        if reason is None:
            kept.append(target)
        else:
            refused.append(refused_for(target, reason))
    return kept


def last_alone(ask: Ask, above: float, targets: list[Target], refused: list[Refusal]) -> list[Target]:
    """The last of a cascade's models that are left, and before it the one that an experiment's arm names."""
    kept = {targets[-1].model.name, ask.exposure.model if ask.exposure is not None else None}
    why = f"quality ≥ {above:g} is more than the cascade promises of its answers"
    return kept_of(targets, refused, lambda t: None if t.model.name in kept else why)


def first_said(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def no_task(name: str | None, tasks: Mapping[str, Task]) -> Rejection:
    said = "the item names no task, and the job has several" if name is None else f"no task is named {name[:100]!r}"
    return Rejection("unknown_task", f"{said}; tasks: {_names(tasks)}", Route((name or "")[:100], 0, (), (), ""))


def unknown_model(name: str, catalog: Catalog) -> str:
    return f"no model is named {name[:100]!r}; models: auto, {_names(catalog.models)}"


def _names(named: Mapping[str, object]) -> str:
    return ", ".join(sorted(named)[:20]) + (", …" if len(named) > 20 else "")


def check_names(catalog: Catalog, policy: Policy) -> None:
    used = [(f"tier {tier}", names) for tier, names in catalog.tiers.items()]
    used += [(f"task {task.name}", task.models or ()) for task in policy.tasks.values()]
    used += [(f"task {task.name}", task.cascade.models) for task in policy.tasks.values() if task.cascade is not None]
    used += [(f"rule {i + 1}", rule.use or ()) for i, rule in enumerate(policy.rules)]
    for where, names in used:
        for name in names:
            if name not in catalog.models:
                raise SpecError(f"{where} names the model {name!r}; models: {_names(catalog.models)}")
