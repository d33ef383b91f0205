"""Dead letters that their place does not take whole: what goes first, and that they say so."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.items import Position
from penstock.engine.results import DeadLetter
from penstock.workers.lanes.letters import Headers, fitted

WALL = ("penstock-sensitivity", b"health")


def letter(original: bytes = b"", headers: Headers = (), key: bytes | None = None) -> DeadLetter:
    return DeadLetter("id", Position("s", 0, 7), "malformed", "bad", original, key=key, headers=headers)


def size(of: DeadLetter) -> int:
    return len(of.original) + len(of.key or b"") + sum(len(name) + len(value) for name, value in of.headers)


def within(limit: int, of: DeadLetter) -> DeadLetter:
    return fitted(of, lambda one: size(one) <= limit)


def test_a_letter_that_fits_is_left_as_it_is() -> None:
    whole = letter(b"x" * 50, (WALL,), b"k")
    assert within(100, whole) is whole


def test_the_original_is_cut_before_any_header() -> None:
    made = within(600, letter(b"x" * 1000, (("blob", b"y" * 400),), b"k"))
    assert (len(made.original), made.original_length, made.headers[0][0], made.cut) == (125, 1000, "blob", "")


def test_large_headers_go_before_small_ones_and_the_original_has_their_room() -> None:
    headers = (WALL, ("blob", b"y" * 700), ("trace", b"z" * 20))
    made = within(600, letter(b"x" * 1000, headers, b"k"))
    assert (made.headers, made.key, made.cut) == ((headers[0], headers[2]), b"k", "header blob")
    assert (len(made.original), made.original_length) == (500, 1000)


def test_a_key_that_fits_no_record_goes_last() -> None:
    made = within(100, letter(b"", (("a", b"y" * 90), ("b", b"y" * 80)), b"k" * 200))
    assert (made.key, made.headers, made.cut) == (None, (), "the key, headers a, b")


@given(st.lists(st.tuples(st.text(max_size=300), st.binary(max_size=300)), max_size=60), st.integers(0, 5_000))
def test_what_is_told_of_the_missing_headers_stays_short(headers: list[tuple[str, bytes]], limit: int) -> None:
    made = within(limit, letter(b"x" * 100, tuple(headers), b"k"))
    assert size(made) <= limit
    assert len(made.cut) < 1_000
    assert bool(made.cut) == (len(made.headers) < len(headers) or made.key is None)


@pytest.mark.parametrize("count", [1, 50_000])
def test_many_small_headers_take_few_tries(count: int) -> None:
    tries = 0

    def fits(one: DeadLetter) -> bool:
        nonlocal tries
        tries += 1
        return size(one) <= 100

    made = fitted(letter(b"", tuple((f"h{n}", b"v" * 200) for n in range(count)), b"k"), fits)
    assert size(made) <= 100
    assert tries < 60
