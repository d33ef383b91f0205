"""JSON beside JSON, field by field."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.fields import MAX_DEPTH, matches, share
from penstock.engine.measure.evaluation import Answered, Row, evaluate
from penstock.engine.measure.stopping import StopRule
from penstock.engine.policy import Scorer
from penstock.engine.quality import score
from penstock.engine.texts import text_of

WANTED = {"name": "Ann Weir", "address": {"city": "Ulm", "zip": None}, "total": 12.5, "paid": True, "tags": ["a", "b"]}


ANSWER = '{"name":"Ann Weir","address":{"city":"Ulm","zip":null},"total":12.5,"paid":true,"tags":["a","b"]}'


def but(old: str, new: str) -> str:
    assert old in ANSWER
    return ANSWER.replace(old, new)


@pytest.mark.parametrize(
    ("answer", "missed"),
    [
        (ANSWER, []),
        (f"```json\n{ANSWER}\n```", []),
        (but('"Ann Weir"', '" ann  WEIR"'), []),
        (but(',"zip":null', ',"more":1'), []),
        (but("12.5", "12.504"), []),
        (but("12.5", "12.6"), ["total"]),
        (but("12.5", '"12.5"'), ["total"]),
        (but("true", "1"), ["paid"]),
        (but('{"city":"Ulm","zip":null}', '"Ulm"'), ["address.city"]),
        (but('"zip":null', '"zip":0'), ["address.zip"]),
        (but('["a","b"]', '["b","a"]'), ["tags[]", "tags[]"]),
        (but('["a","b"]', '["a","b","c","d"]'), ["tags[]"]),
        (but('["a","b"]', '["a"]'), ["tags[]"]),
        ("[]", ["name", "address.city", "total", "paid", "tags[]", "tags[]"]),
        ("I could not find it.", ["name", "address.city", "total", "paid", "tags[]", "tags[]"]),
    ],
)
def test_every_expected_field_matches_or_does_not(answer: str, missed: list[str]) -> None:
    """Strings as `exact` compares them, numbers within the tolerance, lists in order; a list that is too long misses
    one more; a null may be left out."""
    found = matches(answer, WANTED, 0.01)
    assert found is not None
    assert [name for name, right in found if not right] == missed
    assert share(answer, WANTED, 0.01) == pytest.approx(1 - len(missed) / len(found))


def test_what_is_expected_may_be_written_as_text_and_must_be_json() -> None:
    """A column of CSV, or what a person said."""
    assert share('{"a": 1}', '{"a": 1, "b": 2}', 0.0) == 0.5
    for expected in (None, "no JSON", "3", 3, True):
        assert share("{}", expected, 0.0) is None
    assert share("{}", {}, 0.0) == 1.0
    assert share('{"a": 1}', [{"a": 1}, {"a": 2}], 0.0) == 0.0
    assert share('[{"a": 1}, {"a": 3}]', [{"a": 1}, {"a": 2}], 0.0) == 0.5


numbers = st.integers(-(10**400), 10**400) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(values, min_size=1, max_size=3) | st.dictionaries(st.text(max_size=3), values, max_size=3), values)
def test_the_expected_answer_itself_is_right_and_no_answer_breaks_it(
    expected: list[object] | dict[str, object], other: object
) -> None:
    assert share(text_of(expected), expected, 0.0) == 1.0
    found = share(text_of(other), expected, 0.0)
    assert found is not None
    assert 0.0 <= found <= 1.0


def test_what_nests_too_deeply_is_no_match_and_no_failure() -> None:
    deep: object = 1
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    assert share(text_of(deep), deep, 0.0) == 0.0
    assert share("[" * 5_000, deep, 0.0) == 0.0


def test_it_is_a_scorer_of_its_own() -> None:
    """Half of the fields pass; the tolerance is part of its version."""
    found = score(Scorer("fields", tolerance=0.5), '{"a": 1.4}', {"a": 1, "b": "x"})
    assert found is not None
    assert (found.scorer, found.score, found.passed) == ("fields", 0.5, True)
    assert score(Scorer("fields"), "{}", None) is None


def test_an_evaluation_tells_how_often_each_field_is_right() -> None:
    """By candidate; of a list the share of its elements; a failure misses all; what may not be told is left out."""
    expected = text_of({"name": "Ann", "tags": ["a", "b"]})
    right, wrong = '{"name":"ann","tags":["a","b"]}', '{"name":"Bob","tags":["a"]}'
    rows = [Row(n, (Answered(1.0, said=right), Answered(0.3, said=wrong)), expected) for n in range(50)]
    rows.append(Row(50, (Answered(0.0, True), Answered(1.0)), expected))
    rows.append(Row(51, (Answered(0.0, said="x"), Answered(0.0, said="x")), None))
    name, tags = evaluate(["x", "y"], rows, StopRule(), tolerance=0.0).fields
    assert [(line.name, line.rows) for line in (name, tags)] == [("name", 51), ("tags[]", 51)]
    shares = [[each and round(each.mean, 3) for each in line.quality] for line in (name, tags)]
    assert shares == [[0.98, 0.0], [0.98, 0.5]]
    assert evaluate(["x", "y"], rows, StopRule()).fields == ()
