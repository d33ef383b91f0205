"""What people shall look at depends on the result and the rules alone, and each rule chooses what it says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.quality import sampled
from penstock.engine.review import Review, Seen, reasons

UNIT = st.floats(0, 1)
RULES = st.builds(
    Review, low_confidence=st.none() | UNIT, disagreement=st.booleans(), invalid=st.booleans(), share=UNIT
)
TEXTS = st.sampled_from(["yes", " Yes\n", "no", "yes!", ""])
SEEN = st.builds(
    Seen,
    item_id=st.uuids().map(lambda one: one.hex),
    answer=TEXTS,
    invalid=st.booleans(),
    scores=st.lists(UNIT, max_size=3).map(tuple),
    passed=st.frozensets(st.booleans()),
    signals=st.lists(UNIT, max_size=1).map(tuple),
    others=st.lists(TEXTS, max_size=3).map(tuple),
)
WORD = {
    "invalid": "invalid output",
    "low_confidence": "low confidence",
    "disagreement": "disagreement",
    "share": "random share",
}
"""Rule → what a record says of it, in the order of a record."""


@given(RULES, SEEN)
def test_rules_together_choose_what_each_chooses_alone(rules: Review, seen: Seen) -> None:
    """None hides another, and each has its word once, in one order: records of two lanes can be compared."""
    alone = [reasons(Review(**{name: getattr(rules, name)}), seen) for name in WORD]
    assert all(found in ((), (WORD[name],)) for name, found in zip(WORD, alone, strict=True))
    assert reasons(rules, seen) == tuple(word for found in alone for word in found)


@given(SEEN, UNIT, UNIT)
def test_more_is_chosen_where_more_is_asked_for(seen: Seen, a: float, b: float) -> None:
    """A higher bar, a larger share; a whole answer that is sure and alone is chosen by chance only."""
    small, large = sorted((a, b))
    assert set(reasons(Review(low_confidence=small, share=small), seen)) <= set(
        reasons(Review(low_confidence=large, share=large), seen)
    )
    assert reasons(Review(share=1.0), seen) == ("random share",)
    assert reasons(Review(), seen) == ()
    sure = Seen(seen.item_id, "yes", False, (1.0,), frozenset({True}), (1.0,), (" YES",))
    assert reasons(Review(low_confidence=1.0, disagreement=True, invalid=True), sure) == ()


def test_the_share_for_people_is_drawn_apart_from_the_share_of_samples() -> None:
    """Else a tenth of each would be the same tenth, and people would never see an answer without a score."""
    both = people = 0
    for n in range(20_000):
        item = f"{n:032x}"
        chosen = reasons(Review(share=0.1), Seen(item, "", False, (), frozenset(), (), ())) != ()
        people += chosen
        both += chosen and sampled(item, 0.1)
    assert 1_800 < people < 2_200
    assert 140 < both < 260
