"""`rules:` → `engine.policy.Rule`: equality shorthand, comparisons, all and any."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from penstock.engine.catalog import Catalog
from penstock.engine.policy import Condition, Rule, Scalar, Task
from penstock.jobs.spec.asked import share
from penstock.jobs.spec.catalogue import refer
from penstock.jobs.spec.fields import RuleFile
from penstock.jobs.spec.tasks import check_tier
from penstock.jobs.spec.tree import Doc, Path, nearest

NUMBERS = frozenset({"tier", "min_quality", "max_cost_usd", "deadline", "priority"})
WORDS = frozenset({"task", "sensitivity", "latency", "tenant", "subject", "unit", "episode", "consent", "purpose"})
FIELDS = NUMBERS | WORDS
OPS = ("eq", "in", "lt", "lte", "gt", "gte", "exists")
_ORDER = ("lt", "lte", "gt", "gte")


def compile_rules(doc: Doc, rules: list[RuleFile], catalog: Catalog, tasks: dict[str, Task]) -> tuple[Rule, ...]:
    """Raises `SpecError`."""
    if len(rules) > 1_000:
        raise doc.error(("rules",), "more than 1,000 rules")
    return tuple(_rule(doc, ("rules", i), rule, catalog, tasks) for i, rule in enumerate(rules))


def _rule(doc: Doc, path: Path, rule: RuleFile, catalog: Catalog, tasks: dict[str, Task]) -> Rule:
    if rule.use is None and rule.tier is None and rule.min_quality is None:
        raise doc.error(path, "decides nothing; add `use:`, `tier:` or `min_quality:`")
    when = _condition(doc, (*path, "when"), rule.when)
    _known_values(doc, (*path, "when"), when, {"task": tasks, "sensitivity": catalog.walls})
    return Rule(
        when=when,
        use=None if rule.use is None else refer(doc, (*path, "use"), rule.use, catalog.models),
        tier=None if rule.tier is None else check_tier(doc, (*path, "tier"), rule.tier, catalog),
        min_quality=share(doc, (*path, "min_quality"), rule.min_quality),
    )


def _condition(doc: Doc, path: Path, when: object) -> Condition:
    if not isinstance(when, dict) or not when:
        raise doc.error(path, "expected conditions like `{task: coding}`")
    parts: list[Condition] = []
    for field, test in when.items():
        here = (*path, field)
        if field in ("all", "any"):
            parts.append(_group(doc, here, field, test))
        elif field not in FIELDS:
            raise doc.error(here, f"no attribute of an item{nearest(field, [*FIELDS, 'all', 'any'])}")
        else:
            parts.extend(_tests(doc, here, field, test))
    return parts[0] if len(parts) == 1 else Condition(all=tuple(parts))


def _group(doc: Doc, path: Path, kind: str, test: object) -> Condition:
    if not isinstance(test, list) or not test:
        raise doc.error(path, "expected a list of conditions")
    members = tuple(_condition(doc, (*path, i), one) for i, one in enumerate(test))
    return Condition(all=members) if kind == "all" else Condition(any=members)


def _tests(doc: Doc, path: Path, field: str, test: object) -> list[Condition]:
    match test:
        case None:
            return [Condition(field=field, op="exists", value=False)]
        case dict():
            if not test:
                raise doc.error(path, f"expected a value or one of {', '.join(OPS)}")
            return [_compare(doc, path, field, op, value) for op, value in test.items()]
        case list():
            return [_compare(doc, path, field, "in", test)]
        case _:
            return [_compare(doc, path, field, "eq", test)]


def _compare(doc: Doc, path: Path, field: str, op: str, value: Any) -> Condition:
    here = path if op in ("eq", "in") and (*path, op) not in doc.lines else (*path, op)
    match op:
        case "exists":
            if not isinstance(value, bool):
                raise doc.error(here, "expected true or false")
            return Condition(field=field, op="exists", value=value)
        case "in":
            if not isinstance(value, list) or not value:
                raise doc.error(here, "expected a list of values")
            return Condition(field=field, op="in", value=tuple(_scalar(doc, here, field, v) for v in value))
        case "eq":
            return Condition(field=field, op="eq", value=_scalar(doc, here, field, value))
        case "lt" | "lte" | "gt" | "gte":
            if field in WORDS:
                raise doc.error(here, f"`{field}` is text; only numbers are compared by size")
            return Condition(field=field, op=op, value=_scalar(doc, here, field, value))
        case _:
            raise doc.error(here, f"no comparison{nearest(op, OPS)}")


def _scalar(doc: Doc, path: Path, field: str, value: object) -> Scalar:
    if field in NUMBERS:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise doc.error(path, f"`{field}` is a number")
        return value
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise doc.error(path, f"`{field}` is text")
    return str(value)


def _known_values(doc: Doc, path: Path, when: Condition, known: dict[str, Collection[str]]) -> None:
    """A rule for a task or sensitivity that does not exist would never match."""
    for part in (*when.all, *when.any):
        _known_values(doc, path, part, known)
    names = {"latency": ("realtime", "batch"), **known}.get(when.field or "")
    if not names or when.op not in ("eq", "in"):
        return
    for value in when.value if isinstance(when.value, tuple) else (when.value,):
        if value not in names:
            raise doc.error(
                (*path, when.field or ""), f"no {when.field} `{str(value)[:60]}`{nearest(str(value), names)}"
            )
