"""Rules bend tiers and tasks; their conditions mean what they say."""

import pytest

from penstock.engine.catalog import Account, Catalog, Model, Price, Version
from penstock.engine.errors import SpecError
from penstock.engine.fingerprints import policy_version
from penstock.engine.items import Attributes
from penstock.engine.policy import Condition, Policy, Rule, Task
from penstock.engine.rules import compile_condition, compile_rules


def holds(condition: Condition, attributes: Attributes, task: str | None = None) -> bool:
    return compile_condition(condition)(attributes, task)


@pytest.mark.parametrize("op", ["eq", "in", "lt", "lte", "gt", "gte"])
def test_a_missing_attribute_meets_only_exists_false(op: str) -> None:
    """No comparison holds for what isn't there."""
    assert not holds(Condition("max_cost_usd", op, 1.0), Attributes())  # type: ignore[arg-type]
    assert holds(Condition("max_cost_usd", "exists", False), Attributes())
    assert not holds(Condition("max_cost_usd", "exists", True), Attributes())
    assert holds(Condition("max_cost_usd", "exists", True), Attributes(max_cost_usd=0.0))


@pytest.mark.parametrize(
    ("condition", "result"),
    [
        (Condition("tier", "eq", 2), True),
        (Condition("tier", "in", (1, 2)), True),
        (Condition("tier", "in", (1, 3)), False),
        (Condition("max_cost_usd", "lt", 0.5), False),
        (Condition("max_cost_usd", "lte", 0.5), True),
        (Condition("max_cost_usd", "gt", 0.4), True),
        (Condition("max_cost_usd", "gte", 0.6), False),
        (Condition("tenant", "lt", 5), False),
        (Condition(all=(Condition("tier", "eq", 2), Condition("tenant", "eq", "acme"))), True),
        (Condition(all=(Condition("tier", "eq", 2), Condition("tenant", "eq", "other"))), False),
        (Condition(any=(Condition("tier", "eq", 1), Condition("tenant", "eq", "acme"))), True),
        (Condition(any=(Condition("tier", "eq", 1), Condition("tenant", "eq", "x"))), False),
        (Condition(), True),
    ],
)
def test_conditions_compare(condition: Condition, result: bool) -> None:
    """Each operator over present attributes; a text is never less than a number."""
    assert holds(condition, Attributes(tier=2, max_cost_usd=0.5, tenant="acme")) is result


def test_the_first_rule_that_matches_decides() -> None:
    """Later rules are not looked at; the default task counts as the item's own."""
    match = compile_rules((Rule(Condition("task", "eq", "coding")), Rule(Condition()), Rule(Condition())))
    assert match(Attributes(), "coding") == 0
    assert match(Attributes(), "other") == 1
    assert compile_rules(())(Attributes(), None) == -1


@pytest.mark.parametrize("bad", [Condition("teir", "eq", 1), Condition("tier", "lt", "x"), Condition("tier", "gt")])
def test_a_rule_that_means_nothing_is_a_spec_error(bad: Condition) -> None:
    """Unknown attributes and comparisons with no number are refused before any item is read."""
    with pytest.raises(SpecError):
        compile_rules((Rule(bad),))


def test_the_policy_version_changes_with_what_changes_routes_and_with_nothing_else() -> None:
    """A new key, address or limit leaves it alone; a wall, price, rule or version does not."""

    def version(**model: object) -> str:
        account = Account("a", "openai", str(model.pop("url", "http://x")), regions=model.pop("at", ()))  # type: ignore[arg-type]
        m = Model("m", (Version("v1", "m"),), "v1", account="a", **model)  # type: ignore[arg-type]
        return policy_version(Catalog({"a": account}, {"m": m}, {1: ("m",)}), Policy({"t": Task("t")}, version="old"))

    assert version() == version(url="http://y") == version(engine={"max_num_seqs": 8})
    versions = {version(), version(at=("eu",)), version(price=Price(1, 2)), version(origin="us"), version(context=9)}
    assert len(versions) == 5
