"""Samples are the same on every run, scores mean what they say, and intervals are honest."""

import contextlib
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.errors import SpecError
from penstock.engine.policy import Scorer
from penstock.engine.quality import (
    mean_interval,
    number_in,
    pattern_of,
    proportion_interval,
    repeats_nest,
    sampled,
    score,
    score_all,
    scorer_version,
)
from penstock.engine.texts import normal


def value(scorer: Scorer, answer: str, expected: object = None) -> float | None:
    found = score(scorer, answer, expected)
    return None if found is None else found.score


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_holds_the_smaller_ones_samples(item_id: str, a: float, b: float) -> None:
    """The same item is sampled on every run, and raising the share only adds."""
    small, large = sorted((a, b))
    assert sampled(item_id, small) == sampled(item_id, small)
    assert not sampled(item_id, small) or sampled(item_id, large)
    assert not sampled(item_id, 0.0)
    assert sampled(item_id, 1.0)


def test_the_share_is_what_was_asked_for() -> None:
    """2 % of 100,000 items are 2,000, give or take chance."""
    assert 1_800 < sum(sampled(f"{i:032x}", 0.02) for i in range(100_000)) < 2_200


@pytest.mark.parametrize(
    ("answer", "expected", "result"),
    [
        ("delivery", "delivery", 1.0),
        ("  Delivery \n", "delivery", 1.0),
        ("a  b\tc", "A B C", 1.0),
        ("ﬁne", "fine", 1.0),
        ("delivery!", "delivery", 0.0),
        ("4", 4, 1.0),
        ("true", True, 1.0),
        ("x", None, None),
    ],
)
def test_exact_ignores_case_and_spaces_alone(answer: str, expected: object, result: float | None) -> None:
    """Equal but for case, runs of white space and forms of a character; no expected answer is no score."""
    assert value(Scorer("exact"), answer, expected) == result


def test_an_answer_of_nothing_but_accents_is_compared_in_no_time() -> None:
    """Sorting marks takes the square of their number, half an hour for these, in the lane; short runs of them stay one
    form."""
    accents = "a" + "\u0301\u0316" * 250_000
    assert value(Scorer("exact"), accents, accents) == 1.0
    composed, loose = "\u1ea5" * 2_000, "a\u0302\u0301" * 2_000
    assert normal(composed) == normal(loose)
    assert normal("x" * 2_000 + "a\u0316\u0301") == normal("x" * 2_000 + "\u00e1\u0316")


@pytest.mark.parametrize(
    ("answer", "expected", "tolerance", "result"),
    [
        ("42", "42", 0.0, 1.0),
        ("First 3, then 5; the sum is 8.", "8", 0.0, 1.0),
        ("$1,234.50", 1234.5, 0.0, 1.0),
        ("3.14", "3.1416", 0.01, 1.0),
        ("3.14", "3.1416", 0.001, 0.0),
        ("none", "3", 0.0, 0.0),
        ("-2e3", -2000, 0.0, 1.0),
    ],
)
def test_numeric_compares_the_last_number(answer: str, expected: object, tolerance: float, result: float) -> None:
    """Answers reason first and conclude last; the tolerance is absolute."""
    assert value(Scorer("numeric", tolerance=tolerance), answer, expected) == result


@given(st.text())
def test_any_text_has_a_number_or_none(text: str) -> None:
    """No answer makes the numeric scorer fail."""
    assert number_in(text) is None or isinstance(number_in(text), float)


def test_regex_finds_its_pattern() -> None:
    """Anywhere in the answer's first part."""
    assert value(Scorer("regex", pattern=r"^\d{4}-\d\d$"), "2026-11") == 1.0
    assert value(Scorer("regex", pattern=r"^\d{4}-\d\d$"), "x 2026-11") == 0.0


@pytest.mark.parametrize("bad", [None, "", "(a+)+$", "(a|aa)*b", "((a{2,})*c)+", "(", "x" * 1_001, r"([^)]*x)*"])
def test_a_pattern_that_could_run_for_ever_is_refused(bad: str | None) -> None:
    """Before any item is read, with the pattern in the message."""
    with pytest.raises(SpecError):
        pattern_of(Scorer("regex", pattern=bad))


@pytest.mark.parametrize(
    "good", [r"(ab)+", r"[(+]+", r"(a+)?b", r"\(a+\)+", r"(a|b)c*", r"[]+]*", r"(a{2,3})+", "a|b+"]
)
def test_an_ordinary_pattern_is_not(good: str) -> None:
    """Groups, classes and escapes are told apart."""
    assert not repeats_nest(good)


@given(st.text(alphabet="ab()[]|*+?{},\\^$2", max_size=20), st.text(alphabet="ab", max_size=200))
def test_no_accepted_pattern_hangs(pattern: str, answer: str) -> None:
    """What is accepted answers in seconds on the slowest machine; what is refused is a SpecError."""
    started = time.perf_counter()
    with contextlib.suppress(SpecError):
        score(Scorer("regex", pattern=pattern), answer, None)
    assert time.perf_counter() - started < 5.0


def test_schema_and_function_are_handed_in() -> None:
    """Without a check there is no score; with one its number counts, held between 0 and 1."""
    scorer = Scorer("function", function="mine:judge")
    assert score(scorer, "x", None) is None
    for said, counted, passed in ((True, 1.0, True), (0.4, 0.4, False), (7, 1.0, True), (float("nan"), 0.0, False)):
        found = score(scorer, "x", None, {"function": lambda s, a, e, said=said: said})  # type: ignore[misc]
        assert found is not None
        assert (found.score, found.passed, found.scorer) == (counted, passed, "mine:judge")
    assert len(score_all((scorer, Scorer("exact")), "x", "x")) == 1


def test_a_scorers_version_changes_with_its_settings() -> None:
    """The same settings, the same hash."""
    assert scorer_version(Scorer("numeric", tolerance=0.1)) == scorer_version(Scorer("numeric", tolerance=0.1))
    assert scorer_version(Scorer("numeric", tolerance=0.1)) != scorer_version(Scorer("numeric", tolerance=0.2))


def test_where_the_right_answer_is_found_makes_no_other_scorer() -> None:
    """What an evaluation measures, which brings its rows' answers itself, is what the job's own routes go by."""
    assert scorer_version(Scorer("exact", expected="{{ label }}")) == scorer_version(Scorer("exact"))


def test_a_scorer_has_the_same_version_in_every_process() -> None:
    """Said or left out, a default is the same; msgspec tells them apart by which object it is."""
    sent = msgspec.json.decode(b'{"type":"numeric","tolerance":0.0,"params_json":"e30=","samples":1}', type=Scorer)
    assert sent == Scorer("numeric")
    versions = [scorer_version.__wrapped__(each) for each in (sent, Scorer("numeric"))]
    assert versions[0] == versions[1]


@given(st.integers(1, 10_000), st.data())
def test_a_share_lies_in_its_interval(n: int, data: st.DataObject) -> None:
    """Between 0 and 1, around the share, narrower with more samples."""
    k = data.draw(st.integers(0, n))
    found = proportion_interval(k, n)
    more = proportion_interval(k * 10, n * 10)
    assert found is not None
    assert more is not None
    assert 0.0 <= found.low <= k / n + 1e-12
    assert k / n - 1e-12 <= found.high <= 1.0
    assert more.high - more.low < found.high - found.low


def test_known_intervals() -> None:
    """Textbook values: Wilson 8 of 10, and Student for 0, 1, 1, 1."""
    found = proportion_interval(8, 10)
    assert found is not None
    assert (round(found.low, 3), round(found.high, 3)) == (0.490, 0.943)
    mean = mean_interval(4, 3.0, 3.0)
    assert mean is not None
    assert (mean.mean, round(mean.low, 2), mean.high) == (0.75, 0.0, 1.0)
    assert mean_interval(1, 1.0, 1.0) is None
    assert proportion_interval(0, 0) is None
