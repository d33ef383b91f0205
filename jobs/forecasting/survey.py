"""A sample of items, routed as the run would route them, added up by where they would go first.

Pure: items in, sums out. `jobs.planning` reads the sample and makes the plan of it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

import msgspec

from penstock.engine.catalog import Catalog, Model, Price
from penstock.engine.items import Candidate, Item, Route
from penstock.engine.policy import Policy, Task
from penstock.engine.pricing import (
    DEFAULT_MAX_TOKENS,
    estimate_input_tokens,
    expected_nano,
    max_input_tokens,
    output_ceiling,
    price_of,
    wire_extra,
    worst_case_nano,
)
from penstock.engine.registry.standing import Standing
from penstock.engine.results import DeadLetter
from penstock.engine.router import Rejection, Router
from penstock.engine.steering.document import Steering
from penstock.engine.steering.turn import Turn

CHOICE_BYTES_PER_TOKEN = 2
"""Choices are short, rare words: more tokens a byte than prose. A guess, on the safe side."""


class Group(msgspec.Struct):
    """The sampled items of one task that would go to one version of a model first."""

    tier: int
    task: str
    model: str
    version: str
    n: int = 0
    input_tokens: list[float] = msgspec.field(default_factory=list[float])
    ceilings: list[float] = msgspec.field(default_factory=list[float])
    worst_nano: list[float] = msgspec.field(default_factory=list[float])
    answers: int = 0
    """Answers asked for (`n` of the requests)."""
    default_ceiling: int = 0
    """Items whose ceiling nobody set."""
    tenants: Counter[str] = msgspec.field(default_factory=Counter[str])
    """Tenant → nano-dollars at the ceiling: for the tenants' budgets."""


class Survey:
    """Add outcomes of the intake one by one; read the sums afterwards."""

    def __init__(
        self,
        catalog: Catalog,
        policy: Policy,
        standings: Iterable[Standing] = (),
        steering: Steering | None = None,
    ) -> None:
        """`standings`: what is measured of the models. `steering`: which of their versions are in use. Raises
        `SpecError` where a tier, task or rule names a model that doesn't exist."""
        self._catalog = catalog
        self._policy = policy
        self._router = Router(catalog, policy)
        self._router.learn(standings)
        self._router.steer(Turn(catalog.models, steering))
        self._made: dict[tuple[int, str, str, str], Group] = {}
        self.n = 0
        self.dead: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        """Reason → the message of the first dead letter that had it."""
        self.refused: defaultdict[str, Counter[str]] = defaultdict(Counter)
        """Model → why it was refused → items."""

    @property
    def groups(self) -> list[Group]:
        return [self._made[key] for key in sorted(self._made)]

    def add(self, found: Item | DeadLetter) -> None:
        self.n += 1
        if isinstance(found, DeadLetter):
            self._dead(found.reason, found.message)
            return
        route = self._router.route(found.attributes, found.request, found.item_id, found.exposure)
        for refusal in route.refused:
            self.refused[refusal.model][refusal.reason] += 1
        if isinstance(route, Rejection):
            self._dead(route.reason, route.message)
        else:
            self._routed(found, route)

    def _dead(self, reason: str, message: str) -> None:
        self.dead[reason] += 1
        self.examples.setdefault(reason, message)

    def _routed(self, item: Item, route: Route) -> None:
        first = self._catalog.models[route.candidates[0].model]
        key = (route.tier, route.task, first.name, route.candidates[0].version)
        group = self._made.setdefault(key, Group(*key))
        task = self._policy.tasks.get(route.task) or Task(name=route.task)
        ceiling = output_ceiling(item.request, task.max_tokens, first)
        group.n += 1
        group.input_tokens.append(float(estimate_input_tokens(item.request)))
        group.ceilings.append(float(ceiling * item.request.n))
        group.answers += item.request.n
        group.worst_nano.append(float(max(self._worst(item, task, c) for c in route.candidates)))
        group.default_ceiling += _nobody_set(item, task, first)
        group.tenants[item.attributes.tenant or ""] += _at_ceiling(item, price_of(first, group.version), ceiling)

    def _worst(self, item: Item, task: Task, asked: Candidate) -> int:
        model = self._catalog.models[asked.model]
        price = price_of(model, asked.version)
        if price is None:
            return 0
        ceiling = output_ceiling(item.request, task.max_tokens, model) * item.request.n
        return worst_case_nano(max_input_tokens(item.request, wire_extra(task.output)), ceiling, price)

    def longest_choice(self, task: str) -> int | None:
        """Tokens of the longest permitted answer, where a task permits choices only."""
        found = self._policy.tasks.get(task)
        choices = found.output.choices if found is not None and found.output is not None else None
        return None if not choices else tokens_of_longest(choices)


def tokens_of_longest(choices: Iterable[str]) -> int:
    return max(len(c.encode()) // CHOICE_BYTES_PER_TOKEN + 2 for c in choices)


def _nobody_set(item: Item, task: Task, model: Model) -> bool:
    set_by = (item.request.max_tokens, task.max_tokens, model.default_max_tokens)
    return all(ceiling is None for ceiling in set_by)


def _at_ceiling(item: Item, price: Price | None, ceiling: int) -> int:
    if price is None:
        return 0
    return expected_nano(estimate_input_tokens(item.request), ceiling * item.request.n, price)


__all__ = ["DEFAULT_MAX_TOKENS", "Group", "Survey"]
