"""Rules: conditions over an item's attributes, compiled once to functions. First match decides."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial

from penstock.engine.errors import SpecError
from penstock.engine.items import Attributes
from penstock.engine.policy import Condition, Rule, Scalar

Test = Callable[[Attributes, str | None], bool]
"""(attributes, task) → does it hold. The task is handed in because the job's default counts as the item's own."""

FIELDS = tuple(name for name in Attributes.__struct_fields__ if name != "expected_json")
"""What a condition may ask about."""

_ORDER: dict[str, Callable[[float, float], bool]] = {
    "lt": operator.lt,
    "lte": operator.le,
    "gt": operator.gt,
    "gte": operator.ge,
}


def compile_rules(rules: tuple[Rule, ...]) -> Callable[[Attributes, str | None], int]:
    """A function to the index of the first rule that matches; -1: none. Raises `SpecError` on unknown attributes."""
    tests = tuple(compile_condition(rule.when) for rule in rules)

    def match(attributes: Attributes, task: str | None) -> int:
        for i, test in enumerate(tests):
            if test(attributes, task):
                return i
        return -1

    return match


def compile_condition(condition: Condition) -> Test:
    """A missing attribute meets only `exists: false`. An empty condition always holds."""
    if condition.all:
        return _all(tuple(map(compile_condition, condition.all)))
    if condition.any:
        return _any(tuple(map(compile_condition, condition.any)))
    if condition.field is None:
        return _always
    return _compare(_reader(condition.field), condition)


def _reader(field: str) -> Callable[[Attributes, str | None], Scalar | None]:
    if field not in FIELDS:
        raise SpecError(f"a rule asks for {field!r}, which is no attribute; attributes: {', '.join(FIELDS)}")
    if field == "task":
        return _task
    return partial(_attribute, operator.attrgetter(field))


def _compare(read: Callable[[Attributes, str | None], Scalar | None], condition: Condition) -> Test:
    value = condition.value
    match condition.op:
        case "exists":
            wanted = value is None or bool(value)
            return lambda a, t: (read(a, t) is not None) is wanted
        case "eq":
            return lambda a, t: (found := read(a, t)) is not None and found == value
        case "in":
            values = value if isinstance(value, tuple) else (value,)
            return lambda a, t: (found := read(a, t)) is not None and found in values
        case "lt" | "lte" | "gt" | "gte" as op:
            if not isinstance(value, int | float):
                raise SpecError(f"a rule compares {condition.field} ({op}) with {value!r}, which is no number")
            bound, holds = value, _ORDER[op]
            return lambda a, t: isinstance(found := read(a, t), int | float) and holds(found, bound)


def _all(tests: tuple[Test, ...]) -> Test:
    return lambda a, t: all(test(a, t) for test in tests)


def _any(tests: tuple[Test, ...]) -> Test:
    return lambda a, t: any(test(a, t) for test in tests)


def _always(attributes: Attributes, task: str | None) -> bool:
    return True


def _task(attributes: Attributes, task: str | None) -> Scalar | None:
    return task


def _attribute(get: Callable[[Attributes], Scalar | None], attributes: Attributes, task: str | None) -> Scalar | None:
    return get(attributes)
