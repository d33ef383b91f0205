"""`Item` → `Route`: wall first, then what a target can do, then quality and cost. Every refused target is named.

Who decides: the **task** is the item's own, else the job's default. The first matching **rule** decides what it sets.
The **tier** is the rule's, else the item's, else the task's, else 3 (else the highest there is). **Candidates** are the
pin; else the rule's `use`; else, where the rule sets a tier, that tier's models; else the task's `models`; else the
tier's, in order of preference. **min_quality** is the rule's, else the item's, else the task's. A realtime item takes
realtime models only, unless none is left: then all that are, in order.

What depends on labels alone is decided once and kept (`_Plan`); an item adds its length and its `max_cost_usd`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from penstock.engine.catalog import Catalog, Model, Price, Wall
from penstock.engine.errors import SpecError
from penstock.engine.fingerprints import policy_version as policy_version
from penstock.engine.items import (
    Attributes,
    Candidate,
    DeadLetterReason,
    Exposure,
    Item,
    Refusal,
    Request,
    Route,
    StepKind,
)
from penstock.engine.policy import Policy, Rule, Task
from penstock.engine.pricing import (
    BYTES_PER_TOKEN,
    TEMPLATE_TOKENS,
    estimate_input_tokens,
    expected_nano,
    output_ceiling,
    price_of,
    usd_to_nano,
)
from penstock.engine.registry.choice import (
    EXPLORE,
    MARGIN,
    Grade,
    Option,
    Standings,
    choose,
    explores,
    grade,
    which,
)
from penstock.engine.registry.standing import Standing
from penstock.engine.rules import compile_rules
from penstock.engine.steering.turn import Turn
from penstock.engine.walls import WallUnknown, refusal, wall_of

DEFAULT_TIER = 3
MAX_PLANS = 4096
"""Combinations of labels kept; a job has tens. Beyond it the oldest is decided again when it comes back."""
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
_NOTHING_ASKED = Attributes()


class Rejection(msgspec.Struct, frozen=True, gc=False):
    """No target. `route` has no candidates, and names every refused target."""

    reason: DeadLetterReason
    message: str
    route: Route

    @property
    def refused(self) -> tuple[Refusal, ...]:
        return self.route.refused


_Drawn = tuple[int, Exposure | None]
"""The arms of rollouts and of an experiment that an item is in."""


class _Target(msgspec.Struct, frozen=True, gc=False):
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


class _Ask(msgspec.Struct, frozen=True):
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
    arms: int | None = None
    """Of rollouts (`Turn.arms`); None: a step, which is in none."""
    exposure: Exposure | None = None


class _Plan(msgspec.Struct):
    """The permitted targets of one combination of labels."""

    ask: _Ask
    targets: tuple[_Target, ...]
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
    explore: tuple[_Target, ...] = ()
    """Targets that a share of the items try first."""


class Router:
    """Decides where items may go. What was measured (`learn`) goes before what the catalogue declares."""

    def __init__(self, catalog: Catalog, policy: Policy) -> None:
        """Raises `SpecError` where a tier, task or rule names a model that doesn't exist."""
        self._catalog = catalog
        self._policy = policy
        self._standings: Standings = {}
        self._chosen: dict[tuple[object, ...], str] = {}
        """What was asked for, with a quality → the model that its items go to now."""
        self._tasks = policy.tasks or {"default": Task(name="default")}
        self._default = policy.default_task or (next(iter(self._tasks)) if len(self._tasks) == 1 else None)
        self._match = compile_rules(policy.rules)
        self._prices = {name: price_of(model) for name, model in catalog.models.items()}
        self._plans: dict[tuple[object, ...], _Plan | Rejection] = {}
        self.turn = Turn(catalog.models)
        _check_names(catalog, policy)

    def reprice(self, model: str, price: Price) -> None:
        """An own model's running rate, or a new price table: from now on costs are compared with it."""
        if self._prices.get(model) != price:
            self._prices[model] = price
            self._plans.clear()

    def learn(self, standings: Iterable[Standing]) -> None:
        """What is known of the models now. What was routed before: `flow.anew`."""
        self._standings = {(each.task, each.model, each.version): each for each in standings}
        self._plans.clear()

    def steer(self, turn: Turn) -> None:
        """From now on items get these versions. What was routed before: `turned`."""
        self.turn = turn
        self._plans.clear()

    def turned(self, route: Route, item: Item) -> Route:
        """The same candidates at the versions that the item gets now; the route itself where nothing changed."""
        arms = self.turn.arms(item.attributes, item.item_id)
        candidates = tuple(self._at(candidate, arms, item.exposure) for candidate in route.candidates)
        return route if candidates == route.candidates else msgspec.structs.replace(route, candidates=candidates)

    def _at(self, candidate: Candidate, arms: int | None, exposure: Exposure | None) -> Candidate:
        """At the version that its rollout says, or its experiment; an item that is in both is told by the latter."""
        if candidate.experiment == EXPLORE:
            return candidate
        model = self._catalog.models[candidate.model]
        version, experiment, arm, propensity = self.turn.pick(model, arms)
        if exposure is not None:
            experiment, arm, propensity = exposure.experiment, exposure.arm, exposure.propensity
            if exposure.version is not None and exposure.version[0] == model.name:
                version = exposure.version[1]
        pool = model.pool_of(version)
        return Candidate(candidate.model, version, pool, candidate.reason, experiment, arm, propensity)

    def route(
        self, attributes: Attributes, request: Request, item_id: str = "", exposure: Exposure | None = None
    ) -> Route | Rejection:
        """`item_id`: with the attribute `unit`, it decides in which arm of a rollout the item is. `exposure`: to an
        experiment."""
        task = attributes.task or self._default
        rule = self._match(attributes, task)
        arms = self.turn.arms(attributes, item_id) if self.turn.gates else 0
        key = (
            arms,
            exposure,
            task,
            rule,
            attributes.tier,
            attributes.sensitivity,
            attributes.latency,
            attributes.min_quality,
            request.model,
            request.needs,
        )
        plan = self._plans.get(key)
        if plan is None:
            plan = self._remember(key, self._plan(attributes, request, task, rule, (arms, exposure)))
        if type(plan) is Rejection:
            return plan
        assert type(plan) is _Plan
        if plan.explore and explores(item_id, plan.ask.explore):
            return _explored(plan, attributes, request, item_id)
        if plan.easy and attributes.max_cost_usd is None and not request.images:
            tokens = len(request.body_json) // BYTES_PER_TOKEN + TEMPLATE_TOKENS
            ceiling = request.max_tokens
            if tokens <= plan.room if ceiling is None else tokens + ceiling <= plan.context:
                return plan.route
        return _weigh(plan, attributes, request)

    def route_step(
        self, attributes: Attributes, request: Request, route: Route, role: StepKind, target: str
    ) -> Route | Rejection:
        """A judge or a shadow of an item that has `route`: the one target, a model or `model@version`, behind the same
        wall. What the item asks of its own answer (latency, quality, cost) it does not ask of a step."""
        key = (role, target, route.task, route.tier, attributes.sensitivity, request.needs)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._remember(key, self._plan_step(attributes, request, route, role, target))
        if isinstance(plan, Rejection):
            return plan
        return _weigh(plan, _NOTHING_ASKED, request)

    def _plan_step(
        self, attributes: Attributes, request: Request, route: Route, role: StepKind, target: str
    ) -> _Plan | Rejection:
        name, _, version = target.partition("@")
        wall = wall_of(self._catalog, attributes.sensitivity)
        if isinstance(wall, WallUnknown):
            return Rejection("unknown_sensitivity", wall.message, Route(route.task, route.tier, (), (), ""))
        ask = _Ask(self._tasks[route.task], route.tier, (name,), f"{role} of the item", None, wall)
        plan = self._filter(ask, _NOTHING_ASKED, request)
        return _at_version(plan, version) if version and isinstance(plan, _Plan) else plan

    def _remember(self, key: tuple[object, ...], plan: _Plan | Rejection) -> _Plan | Rejection:
        if len(self._plans) >= MAX_PLANS:
            del self._plans[next(iter(self._plans))]
        self._plans[key] = plan
        return plan

    # ---- once for each combination of labels

    def _plan(
        self, attributes: Attributes, request: Request, name: str | None, rule: int, drawn: _Drawn
    ) -> _Plan | Rejection:
        task = self._tasks.get(name) if name is not None else None
        if task is None:
            return _no_task(name, self._tasks)
        asked = self._ask(attributes, request, task, rule)
        if isinstance(asked, Rejection):
            return asked
        (arms, exposure), names = drawn, asked.names
        if exposure is not None and exposure.model is not None:
            names = (exposure.model, *names)
        return self._filter(
            msgspec.structs.replace(asked, names=names, arms=arms, exposure=exposure), attributes, request
        )

    def _ask(self, attributes: Attributes, request: Request, task: Task, index: int) -> _Ask | Rejection:
        rule = self._policy.rules[index] if index >= 0 else None
        tier = self._tier(attributes, task, rule)
        blank = Route(task.name, tier, (), (), "")
        if request.model is not None and request.model not in self._catalog.models:
            return Rejection("unknown_model", _unknown_model(request.model, self._catalog), blank)
        wall = wall_of(self._catalog, attributes.sensitivity)
        if isinstance(wall, WallUnknown):
            return Rejection("unknown_sensitivity", wall.message, blank)
        names, why = self._names(request, task, tier, rule)
        if rule is not None:
            why = f"{why} (rule {index + 1})"
        cascade = task.cascade is not None and names is task.cascade.models
        quality = _first(rule.min_quality if rule else None, attributes.min_quality, task.min_quality)
        return _Ask(task, tier, names, why, None if cascade else quality, wall, cascade=cascade)

    def _tier(self, attributes: Attributes, task: Task, rule: Rule | None) -> int:
        for tier in (rule.tier if rule else None, attributes.tier, task.tier):
            if tier is not None:
                return tier
        tiers = self._catalog.tiers
        return DEFAULT_TIER if DEFAULT_TIER in tiers or not tiers else max(tiers)

    def _names(self, request: Request, task: Task, tier: int, rule: Rule | None) -> tuple[tuple[str, ...], str]:
        if request.model is not None:
            return (request.model,), "pinned by the request"
        if rule is not None and rule.use is not None:
            return rule.use, "named by a rule"
        if task.cascade is not None and not (rule is not None and rule.tier is not None):
            return task.cascade.models, f"cascade of task {task.name}"  # its signal stands for a quality asked for
        if task.models is not None and not (rule is not None and rule.tier is not None):
            return task.models, f"models of task {task.name}"
        return self._catalog.tiers.get(tier, ()), f"tier {tier}"

    def _filter(self, ask: _Ask, attributes: Attributes, request: Request) -> _Plan | Rejection:
        """Wall, then needs, then latency, then quality; whoever empties the list gives the reason."""
        targets = [self._target(name, ask) for name in dict.fromkeys(ask.names)]
        refused: list[Refusal] = []
        if not targets:
            return _reject("no_candidate", f"tier {ask.tier} has no models", ask, refused)
        wall = ask.wall
        targets = _keep(targets, refused, lambda t: self._wall_says(wall, t.model))
        ask = msgspec.structs.replace(ask, walled=len(refused))
        if not targets:
            return _reject("wall", f"wall {ask.wall.name if ask.wall else ''} forbids every candidate", ask, refused)
        targets = _keep(targets, refused, lambda t: _lacking(t.model, request.needs))
        if not targets:
            return _reject("unsupported", f"no candidate has what the request needs: {request.needs}", ask, refused)
        why = ask.why
        if attributes.latency == "realtime":
            if any(t.model.latency == "realtime" for t in targets):
                targets = _keep(targets, refused, lambda t: None if t.model.latency == "realtime" else "not realtime")
            else:
                why += "; no realtime model: by preference"
        ask = msgspec.structs.replace(ask, why=why)
        if ask.min_quality is not None:
            return self._by_quality(ask, ask.min_quality, targets, refused, request.needs)
        return _plan_of(ask, tuple(targets), tuple(refused))

    def _by_quality(
        self, ask: _Ask, asked: float, targets: list[_Target], refused: list[Refusal], needs: tuple[str, ...]
    ) -> _Plan | Rejection:
        """The cheapest of those that are good enough, by what was measured, else declared (`registry.choice`)."""
        key = (ask.task.name, ask.names, asked, ask.wall, needs, len(targets))
        now = self._chosen.get(key)
        targets = [self._weighed(target, ask.task.name) for target in targets]
        grades = [self._grade(t, ask.task.name, asked, chosen=t.model.name == now) for t in targets]
        options = [Option(grade, _common(target)) for grade, target in zip(grades, targets, strict=True)]
        chosen = choose(options, asked, next((i for i, t in enumerate(targets) if t.model.name == now), None))
        kept = chosen.kept if chosen is not None else ()
        refused += [_no(t, _short(grades[i], ask, asked)) for i, t in enumerate(targets) if i not in kept]
        if chosen is None:
            return _reject("no_candidate", f"no candidate is known to reach quality {asked:g}", ask, refused)
        self._chosen[key] = targets[chosen.first].model.name
        named = [_named(target, grade.words) for target, grade in zip(targets, grades, strict=True)]
        first = named[chosen.first]
        named[chosen.first] = msgspec.structs.replace(first, weight=first.weight * (1.0 - MARGIN))
        why = "the likeliest first, none is shown to have" if chosen.ranked else "cheapest first of those with"
        share = ask.task.explore.share if ask.task.explore is not None else 0.0
        ask = msgspec.structs.replace(ask, why=f"{ask.why}; {why} quality ≥ {asked:g}", explore=share)
        plan = _plan_of(ask, tuple(named[i] for i in kept), tuple(refused), ranked=chosen.ranked)
        if share:
            plan.explore = tuple(named[i] for i in chosen.explored if not named[i].candidate.experiment)
        return plan

    def _weighed(self, target: _Target, task: str) -> _Target:
        """With what an accepted item costs there, where it was measured."""
        standing = self._standings.get((task, target.model.name, target.candidate.version))
        if standing is None or not standing.items:
            return target
        output = round(standing.output / standing.items)
        return msgspec.structs.replace(target, output=output, weight=standing.weight)

    def _grade(self, target: _Target, task: str, asked: float, *, chosen: bool) -> Grade:
        model = target.model
        standing = self._standings.get((task, model.name, target.candidate.version))
        return grade(standing, model.quality.get(task), asked, chosen=chosen)

    def _target(self, name: str, ask: _Ask) -> _Target:
        model = self._catalog.models[name]
        candidate = self._at(Candidate(name, model.live, ""), ask.arms, ask.exposure)
        ceiling = output_ceiling(NO_CEILING, ask.task.max_tokens, model)
        return _Target(model, candidate, self._prices[name], model.context or UNLIMITED, ceiling)

    def _wall_says(self, wall: Wall | None, model: Model) -> str | None:
        if wall is None:
            return None
        return refusal(wall, model, self._catalog.accounts.get(model.account) if model.account else None)


# ---- once for each item: length and cost


def _weigh(plan: _Plan, attributes: Attributes, request: Request) -> Route | Rejection:
    """The permitted targets that this item fits into and may pay, in order. Those it may not fit come last."""
    tokens = estimate_input_tokens(request)
    ceiling, n, easy = request.max_tokens, request.n, plan.easy
    asked = tokens + (ceiling or plan.ask.task.max_tokens or 0)  # a default ceiling gives way to the prompt
    limit = _nano_limit(attributes.max_cost_usd)
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
                order.append((asked > target.context, i if easy else _accepted(target, tokens, ceiling, n), i))
    order.sort()
    key = (tuple(i for _, _, i in order), tuple(long), tuple(dear))
    route = plan.routes.get(key)
    if route is None:
        if len(plan.routes) >= MAX_ROUTES:
            plan.routes.clear()
        route = plan.routes[key] = _numbered(plan, *key)
    return route


def _numbered(plan: _Plan, order: tuple[int, ...], long: tuple[int, ...], dear: tuple[int, ...]) -> Route | Rejection:
    refused = list(plan.refused)
    refused += [_no(plan.targets[i], f"longer than its context of {plan.targets[i].context}") for i in long]
    refused += [
        _no(plan.targets[i], "price unknown" if plan.targets[i].price is None else "over max_cost_usd") for i in dear
    ]
    if order:
        return _route(plan.ask, tuple(plan.targets[i].candidate for i in order), tuple(refused))
    if dear:
        return _reject("over_max_cost", "every candidate that is left costs more than max_cost_usd", plan.ask, refused)
    return _reject("too_long", "the prompt is longer than every candidate's context", plan.ask, refused)


def _nano_limit(usd: float | None) -> int | None:
    """None: no limit. NaN permits nothing; an unknown price is above every limit."""
    if usd is None or usd == float("inf"):
        return None
    return min(UNLIMITED - 1, usd_to_nano(usd)) if usd >= 0 else -1


def _cost(target: _Target, input_tokens: int, output_tokens: int) -> int:
    return UNLIMITED if target.price is None else expected_nano(input_tokens, output_tokens, target.price)


def _accepted(target: _Target, tokens: int, ceiling: int | None, n: int) -> float:
    """What an accepted answer is expected to cost: with output, failures and answers that don't pass as measured."""
    most = ceiling or target.ceiling
    output = most if target.output is None else min(most, target.output)
    return _cost(target, tokens, output * n) * target.weight


def _common(target: _Target) -> float:
    """Of an item of common size."""
    return _accepted(target, COMMON_TOKENS, None, 1)


def _explored(plan: _Plan, attributes: Attributes, request: Request, item_id: str) -> Route | Rejection:
    """One of the models that are to be known better, and behind it those that the item would have tried anyway."""
    route = _weigh(plan, attributes, request)
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


def _named(target: _Target, reason: str) -> _Target:
    return msgspec.structs.replace(target, candidate=msgspec.structs.replace(target.candidate, reason=reason))


def _short(grade: Grade, ask: _Ask, asked: float) -> str:
    if grade.state == "unknown":
        return f"quality for {ask.task.name} unknown"
    return f"{grade.words}, {'not shown to reach' if grade.state == 'unsure' else 'under'} {asked:g}"


def _at_version(plan: _Plan, version: str) -> _Plan:
    """The same plan for another version of its one model than the live one."""
    (target,) = plan.targets
    model = msgspec.structs.replace(target.model, live=version)
    candidate = msgspec.structs.replace(target.candidate, version=version, pool=model.pool)
    targets = (msgspec.structs.replace(target, model=model, candidate=candidate),)
    return _plan_of(plan.ask, targets, plan.refused)


def _plan_of(ask: _Ask, targets: tuple[_Target, ...], refused: tuple[Refusal, ...], *, ranked: bool = False) -> _Plan:
    """`ranked`: their order stands, whatever they cost."""
    route = _route(ask, tuple(t.candidate for t in targets), refused)
    context = min(t.context for t in targets)
    room = context - (ask.task.max_tokens or 0)
    return _Plan(ask, targets, refused, route, ask.min_quality is None or ranked, context, room, {})


def _route(ask: _Ask, candidates: tuple[Candidate, ...], refused: tuple[Refusal, ...]) -> Route:
    """Where a quality was asked for, the reason tells the numbers of the first candidate."""
    wall, why = ask.wall.name if ask.wall else None, ask.why
    if candidates and candidates[0].reason:
        why = f"{why}: {candidates[0].model}, {candidates[0].reason}"
    cascade = ask.cascade and len(candidates) > 1
    return Route(ask.task.name, ask.tier, candidates, refused, why, wall, ask.walled, cascade)


def _reject(reason: DeadLetterReason, message: str, ask: _Ask, refused: list[Refusal]) -> Rejection:
    told = "; ".join(f"{r.model}: {r.reason}" for r in refused[:20])
    route = _route(ask, (), tuple(refused))
    return Rejection(reason, f"{message} ({told})" if told else message, route)


def _no(target: _Target, reason: str) -> Refusal:
    return Refusal(target.model.name, reason)


def _lacking(model: Model, needs: tuple[str, ...]) -> str | None:
    missing = [need for need in needs if need in model.lacks]
    return f"lacks {', '.join(missing)}" if missing else None


def _keep(targets: list[_Target], refused: list[Refusal], why: Callable[[_Target], str | None]) -> list[_Target]:
    """Those without a reason against them; the others join `refused`."""
    kept: list[_Target] = []
    for target in targets:
        reason = why(target)
        if reason is None:
            kept.append(target)
        else:
            refused.append(_no(target, reason))
    return kept


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _no_task(name: str | None, tasks: Mapping[str, Task]) -> Rejection:
    said = "the item names no task, and the job has several" if name is None else f"no task is named {name[:100]!r}"
    return Rejection("unknown_task", f"{said}; tasks: {_names(tasks)}", Route((name or "")[:100], 0, (), (), ""))


def _unknown_model(name: str, catalog: Catalog) -> str:
    return f"no model is named {name[:100]!r}; models: auto, {_names(catalog.models)}"


def _names(named: Mapping[str, object]) -> str:
    return ", ".join(sorted(named)[:20]) + (", …" if len(named) > 20 else "")


def _check_names(catalog: Catalog, policy: Policy) -> None:
    used = [(f"tier {tier}", names) for tier, names in catalog.tiers.items()]
    used += [(f"task {task.name}", task.models or ()) for task in policy.tasks.values()]
    used += [(f"task {task.name}", task.cascade.models) for task in policy.tasks.values() if task.cascade is not None]
    used += [(f"rule {i + 1}", rule.use or ()) for i, rule in enumerate(policy.rules)]
    for where, names in used:
        for name in names:
            if name not in catalog.models:
                raise SpecError(f"{where} names the model {name!r}; models: {_names(catalog.models)}")
