"""`Item` → `Route`: wall first, then what a target can do, then quality and cost. Every refused target is named.

Who decides: the **task** is the item's own, else the job's default. The first matching **rule** decides what it sets.
The **tier** is the rule's, else the item's, else the task's, else 3 (else the highest there is). **Candidates** are the
pin; else the rule's `use`; else, where the rule sets a tier, that tier's models; else the task's `models`; else the
tier's, in order of preference. **min_quality** is the rule's, else the item's, else the task's; a cascade's promise
stands for it, and who asks for more is answered by its last model alone. A realtime item takes realtime models only,
unless none is left: then all that are, in order.

What depends on labels alone is decided once and kept (`routes.Choice`); an item adds its length and its `max_cost_usd`.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from penstock.engine.catalog import Catalog, Model, Price, Wall
from penstock.engine.fingerprints import policy_version as policy_version
from penstock.engine.items import (
    Attributes,
    Candidate,
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
    output_ceiling,
    price_of,
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
)
from penstock.engine.registry.standing import Standing, read
from penstock.engine.routes import COMMON_TOKENS as COMMON_TOKENS
from penstock.engine.routes import (
    NO_CEILING,
    UNLIMITED,
    Ask,
    Choice,
    Drawn,
    Target,
    at_version,
    check_names,
    choice_of,
    common_cost,
    explored,
    first_said,
    in_arm,
    kept_of,
    lacking,
    last_alone,
    no_task,
    refused_for,
    reject,
    short_of,
    unknown_model,
    weigh,
    with_reason,
)
from penstock.engine.routes import Rejection as Rejection
from penstock.engine.rules import compile_rules
from penstock.engine.steering.turn import Rehearsal, Turn
from penstock.engine.walls import WallUnknown, refusal, wall_of

DEFAULT_TIER = 3
MAX_PLANS = 4096
"""Combinations of labels kept; a job has tens. Beyond it the oldest is decided again when it comes back."""
_NOTHING_ASKED = Attributes()


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
        self._prices = {(m.name, v.id): price_of(m, v.id) for m in catalog.models.values() for v in m.versions}
        self._plans: dict[tuple[object, ...], Choice | Rejection] = {}
        self.turn = Turn(catalog.models)
        check_names(catalog, policy)

    def reprice(self, model: str, price: Price) -> None:
        """An own model's running rate, whatever its version: from now on costs are compared with it."""
        keys = [key for key in self._prices if key[0] == model]
        if any(self._prices[key] != price for key in keys):
            self._prices |= dict.fromkeys(keys, price)
            self._plans.clear()

    def tier1_price(self) -> Price | None:
        """Of the version in use of Tier 1's first model; None: there is no Tier 1."""
        name = next(iter(self._catalog.tiers.get(1, ())), None)
        if name is None:
            return None
        return self._prices[name, self.turn.pick(self._catalog.models[name], None).version]

    @property
    def by_quality(self) -> bool:
        """Something was asked for with a quality: where its items go hangs on what is learned."""
        return bool(self._chosen)

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
        """At the version that its rollout says, or its experiment; an item that is in both is told by the latter, and
        one that explores by that: it must not go to a version that was taken back either. An experiment that was
        stopped tells of no item any more, but the version that its first arm names is none of the rollout's doing."""
        model = self._catalog.models[candidate.model]
        version, experiment, arm, propensity = self.turn.pick(model, arms)
        if exposure is not None:
            named = exposure.version is not None and exposure.version[0] == model.name
            if exposure.experiment or named:
                experiment, arm, propensity = exposure.experiment, exposure.arm, exposure.propensity
            if exposure.version is not None and named:
                version = exposure.version[1]
        if candidate.experiment == EXPLORE:
            experiment, arm, propensity = candidate.experiment, candidate.arm, candidate.propensity
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
        assert type(plan) is Choice
        if plan.explore and explores(item_id, plan.ask.explore):
            return explored(plan, attributes, request, item_id)
        if plan.easy and attributes.max_cost_usd is None and not request.images:
            tokens = len(request.body_json) // BYTES_PER_TOKEN + TEMPLATE_TOKENS
            ceiling = request.max_tokens
            if tokens <= plan.room if ceiling is None else tokens + ceiling <= plan.context:
                return plan.route
        return weigh(plan, attributes, request)

    def route_step(
        self,
        attributes: Attributes,
        request: Request,
        route: Route,
        role: StepKind,
        target: str,
        rehearsal: Rehearsal | None = None,
    ) -> Route | Rejection:
        """A judge or a shadow of an item that has `route`: the one target, a model or `model@version`, behind the same
        wall. What the item asks of its own answer (latency, quality, cost) it does not ask of a step. `rehearsal`: the
        shadow stage of a rollout that it is asked for."""
        key = (role, target, route.task, route.tier, attributes.sensitivity, request.needs, rehearsal)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plan_step(attributes, request, route, role, target)
            if rehearsal is not None and isinstance(plan, Choice):
                plan = in_arm(plan, rehearsal.rollout, rehearsal.arm)
            self._remember(key, plan)
        if isinstance(plan, Rejection):
            return plan
        return weigh(plan, _NOTHING_ASKED, request)

    def _plan_step(
        self, attributes: Attributes, request: Request, route: Route, role: StepKind, target: str
    ) -> Choice | Rejection:
        name, version = self._catalog.parted(target)
        wall = wall_of(self._catalog, attributes.sensitivity)
        if isinstance(wall, WallUnknown):
            return Rejection("unknown_sensitivity", wall.message, Route(route.task, route.tier, (), (), ""))
        ask = Ask(self._tasks[route.task], route.tier, (name,), f"{role} of the item", None, wall)
        plan = self._filter(ask, _NOTHING_ASKED, request)
        if not version or isinstance(plan, Rejection):
            return plan
        return at_version(plan, version, self._prices[name, version])

    def _remember(self, key: tuple[object, ...], plan: Choice | Rejection) -> Choice | Rejection:
        if len(self._plans) >= MAX_PLANS:
            del self._plans[next(iter(self._plans))]
        self._plans[key] = plan
        return plan

    # ---- once for each combination of labels

    def _plan(
        self, attributes: Attributes, request: Request, name: str | None, rule: int, drawn: Drawn
    ) -> Choice | Rejection:
        task = self._tasks.get(name) if name is not None else None
        if task is None:
            return no_task(name, self._tasks)
        asked = self._ask(attributes, request, task, rule)
        if isinstance(asked, Rejection):
            return asked
        arms, exposure = drawn
        asked = msgspec.structs.replace(asked, arms=arms, exposure=exposure)
        if exposure is not None and exposure.model is not None:
            asked = _led_by(asked, exposure.model)
        return self._filter(asked, attributes, request)

    def _ask(self, attributes: Attributes, request: Request, task: Task, index: int) -> Ask | Rejection:
        rule = self._policy.rules[index] if index >= 0 else None
        tier = self._tier(attributes, task, rule)
        blank = Route(task.name, tier, (), (), "")
        if request.model is not None and request.model not in self._catalog.models:
            return Rejection("unknown_model", unknown_model(request.model, self._catalog), blank)
        wall = wall_of(self._catalog, attributes.sensitivity)
        if isinstance(wall, WallUnknown):
            return Rejection("unknown_sensitivity", wall.message, blank)
        names, why = self._names(request, task, tier, rule)
        if rule is not None:
            why = f"{why} (rule {index + 1})"
        quality = first_said(rule.min_quality if rule else None, attributes.min_quality)
        if task.cascade is None or names is not task.cascade.models:
            return Ask(task, tier, names, why, first_said(quality, task.min_quality), wall)
        # the task's own quality was compared with what its cascade promises when the job was read
        if quality is None or task.cascade.vouches_for(quality):
            promised = first_said(quality, task.min_quality) if task.cascade.promise is not None else None
            return Ask(task, tier, names, why, None, wall, cascade=True, promised=promised)
        why += f"; quality ≥ {quality:g} is more than it promises: its last model alone"
        return Ask(task, tier, names, why, None, wall, above=quality)

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
            return task.cascade.models, f"cascade of task {task.name}"
        if task.models is not None and not (rule is not None and rule.tier is not None):
            return task.models, f"models of task {task.name}"
        return self._catalog.tiers.get(tier, ()), f"tier {tier}"

    def _filter(self, ask: Ask, attributes: Attributes, request: Request) -> Choice | Rejection:
        """Wall, then needs, then latency, then quality; whoever empties the list gives the reason."""
        targets = [self._target(name, ask) for name in dict.fromkeys(ask.names)]
        refused: list[Refusal] = []
        if not targets:
            return reject("no_candidate", f"tier {ask.tier} has no models", ask, refused)
        wall = ask.wall
        targets = kept_of(targets, refused, lambda t: self._wall_says(wall, t.model))
        ask = msgspec.structs.replace(ask, walled=len(refused))
        if not targets:
            return reject("wall", f"wall {ask.wall.name if ask.wall else ''} forbids every candidate", ask, refused)
        targets = kept_of(targets, refused, lambda t: lacking(t.model, request.needs))
        if not targets:
            return reject("unsupported", f"no candidate has what the request needs: {request.needs}", ask, refused)
        why = ask.why
        if attributes.latency == "realtime":
            if any(t.model.latency == "realtime" for t in targets):
                targets = kept_of(targets, refused, lambda t: None if t.model.latency == "realtime" else "not realtime")
            else:
                why += "; no realtime model: by preference"
        ask = msgspec.structs.replace(ask, why=why)
        if ask.above is not None and targets[-1].model.name == ask.names[-1]:
            targets = last_alone(ask, ask.above, targets, refused)
        elif ask.above is not None:  # what a cascade climbs to in the end needs no voucher, a cheaper one does
            ask = msgspec.structs.replace(ask, min_quality=ask.above)
        elif ask.promised is not None and targets[-1].model.name != ask.names[-1]:  # it would be taken as it is
            ask = msgspec.structs.replace(ask, min_quality=ask.promised, promised=None, cascade=False)
        if ask.min_quality is not None:
            return self._by_quality(ask, ask.min_quality, targets, refused, request.needs)
        return choice_of(ask, tuple(targets), tuple(refused))

    def _by_quality(
        self, ask: Ask, asked: float, targets: list[Target], refused: list[Refusal], needs: tuple[str, ...]
    ) -> Choice | Rejection:
        """The cheapest of those that are good enough, by what was measured, else declared (`registry.choice`)."""
        key = (ask.task.name, ask.names, asked, ask.wall, needs, len(targets))
        now = self._chosen.get(key)
        targets = [self._weighed(target, ask.task.name, asked) for target in targets]
        grades = [self._grade(t, ask.task.name, asked, chosen=t.model.name == now) for t in targets]
        options = [Option(grade, common_cost(target)) for grade, target in zip(grades, targets, strict=True)]
        chosen = choose(options, asked, next((i for i, t in enumerate(targets) if t.model.name == now), None))
        kept = chosen.kept if chosen is not None else ()
        refused += [refused_for(t, short_of(grades[i], ask, asked)) for i, t in enumerate(targets) if i not in kept]
        if chosen is None:
            return reject("no_candidate", f"no candidate is known to reach quality {asked:g}", ask, refused)
        if key not in self._chosen and len(self._chosen) >= MAX_PLANS:  # each item may ask for a quality of its own
            del self._chosen[next(iter(self._chosen))]
        self._chosen[key] = targets[chosen.first].model.name
        named = [with_reason(target, grade.words) for target, grade in zip(targets, grades, strict=True)]
        first = named[chosen.first]
        named[chosen.first] = msgspec.structs.replace(first, weight=first.weight * (1.0 - MARGIN))
        why = "the likeliest first, none is shown to have" if chosen.ranked else "cheapest first of those with"
        share = ask.task.explore.share if ask.task.explore is not None else 0.0
        why += f" quality ≥ {asked:g}"
        led = next((i for i in kept if ask.exposure is not None and targets[i].model.name == ask.exposure.model), None)
        if led is not None:
            named[led] = msgspec.structs.replace(named[led], weight=0.0)
            kept, why = (led, *(i for i in kept if i != led)), f"the model of its arm, then {why}"
        ask = msgspec.structs.replace(ask, why=f"{ask.why}; {why}", explore=share)
        plan = choice_of(ask, tuple(named[i] for i in kept), tuple(refused), ranked=chosen.ranked)
        if share:
            plan.explore = tuple(named[i] for i in chosen.explored if not named[i].candidate.experiment)
        return plan

    def _weighed(self, target: Target, task: str, asked: float) -> Target:
        """With what an accepted item costs there, where it was measured."""
        standing = self._standings.get((task, target.model.name, target.candidate.version))
        if standing is None or not standing.items:
            return target
        output = round(standing.output / standing.items)
        return msgspec.structs.replace(target, output=output, weight=read(standing, asked).now.weight)

    def _grade(self, target: Target, task: str, asked: float, *, chosen: bool) -> Grade:
        model = target.model
        standing = self._standings.get((task, model.name, target.candidate.version))
        return grade(standing, model.quality.get(task), asked, chosen=chosen)

    def _target(self, name: str, ask: Ask) -> Target:
        model = self._catalog.models[name]
        candidate = self._at(Candidate(name, model.live, ""), ask.arms, ask.exposure)
        ceiling = output_ceiling(NO_CEILING, ask.task.max_tokens, model)
        price = self._prices[name, candidate.version]
        return Target(model, candidate, price, model.context or UNLIMITED, ceiling)

    def _wall_says(self, wall: Wall | None, model: Model) -> str | None:
        if wall is None:
            return None
        return refusal(wall, model, self._catalog.accounts.get(model.account) if model.account else None)


def _led_by(ask: Ask, model: str) -> Ask:
    """The model that an arm names goes first, the others are its fallbacks. A climb begins at it, where its cascade has
    it: with the cheaper ones behind it, one of these would be the last, whose answer is taken as it is."""
    climbs = ask.cascade and model in ask.names
    names = ask.names[ask.names.index(model) :] if climbs else (model, *ask.names)
    return msgspec.structs.replace(ask, names=names)
