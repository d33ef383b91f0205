"""The audit log's chain: whatever is changed, taken out, put in, moved or cut off is found, and named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine import audit
from penstock.engine.audit import (
    GENESIS,
    MAX_AHEAD,
    MAX_FACTS_BYTES,
    Draft,
    Head,
    Kept,
    Line,
    Verdict,
    Walk,
    append,
    kept,
)
from penstock.engine.errors import SpecError

AT = 1_795_525_207.12


def draft(number: int = 0, **facts: object) -> Draft:
    return Draft(AT, "ann@host/penstock run", "stage", "label", f"label-{number}", facts)


def a_log(count: int) -> tuple[list[bytes], Head]:
    lines, head = list[bytes](), Head()
    for number in range(count):
        line, head = append(head, [draft(number, share=number, why='a "hash":"x" in a reason\n')])
        lines.append(line)
    return lines, head


LINES, HEAD = a_log(9)


def verdict(lines: Sequence[bytes], head: Head | None = HEAD, mine: Kept | None = None) -> Verdict:
    walk = Walk()
    for number, line in enumerate(lines, 1):
        walk.see(Line(f"line {number}", line))
    return walk.verdict(head, head, mine)


def fault(lines: Sequence[bytes], head: Head | None = HEAD, mine: Kept | None = None) -> tuple[str, int]:
    broken = verdict(lines, head, mine).broken
    assert broken is not None
    return broken.fault, broken.seq


def test_a_log_as_it_was_written_holds() -> None:
    """Count and head are told; an empty log holds too."""
    assert verdict(LINES) == Verdict(9, HEAD)
    assert verdict([], Head()) == verdict([], None) == Verdict(0, Head())


def test_a_line_can_be_checked_in_any_language_by_its_bytes_alone() -> None:
    """The hash is that of what stands before it; the entry before is named by its own."""
    before = GENESIS
    for number, line in enumerate(LINES, 1):
        told = json.loads(line)
        assert blake2b(line[: line.rindex(b',"hash":"')], digest_size=32).hexdigest() == told["hash"]
        assert (told["seq"], told["prev"], told["at"]) == (number, before, "2026-11-24T13:00:07.120Z")
        before = told["hash"]


@given(st.data())
def test_a_change_of_any_byte_is_found_where_it_is(data: st.DataObject) -> None:
    """Also of a line break, and where the JSON would mean the same."""
    text = b"".join(LINES)
    at = data.draw(st.integers(0, len(text) - 1))
    changed = bytearray(text)
    changed[at] ^= data.draw(st.integers(1, 255))
    broken = verdict(audit.lines_in(bytes(changed))).broken
    assert broken is not None
    assert broken.seq == text[:at].count(b"\n") + 1


@given(st.data())
def test_a_byte_put_in_or_taken_out_is_found(data: st.DataObject) -> None:
    """Blanks and line breaks too."""
    text = b"".join(LINES)
    at = data.draw(st.integers(0, len(text) - 1))
    extra = data.draw(st.sampled_from([b"", b" ", b"\n", b"0", b"\r"]))
    changed = text[:at] + extra + text[at + (not extra) :]
    assert verdict(audit.lines_in(changed)).broken is not None


@given(st.integers(0, 7))
def test_a_removed_entry_is_named(at: int) -> None:
    """In the middle or at the start; the last one is a truncation."""
    assert fault([*LINES[:at], *LINES[at + 1 :]]) == ("removed", at + 1)


@given(st.integers(0, 8))
def test_an_entry_that_stands_twice_is_named(at: int) -> None:
    assert fault([*LINES[: at + 1], LINES[at], *LINES[at + 1 :]]) == ("duplicated", at + 1)


@given(st.permutations(range(9)))
def test_another_order_is_found_and_its_first_wrong_place_named(order: list[int]) -> None:
    moved = [LINES[at] for at in order]
    if order == sorted(order):
        assert verdict(moved).broken is None
    else:
        assert fault(moved) == ("reordered", next(n for n, at in enumerate(order) if at != n) + 1)


@given(st.integers(0, 8))
def test_what_is_cut_off_at_the_end_is_found_by_the_head(count: int) -> None:
    """However many; where the head is gone too, that is told unless nothing is left."""
    assert fault(LINES[:count]) == ("truncated", count + 1)
    if count:
        assert fault(LINES[:count], None) == ("unanchored", 1)


@given(st.integers(0, 8), st.booleans())
def test_an_entry_made_anew_with_its_own_hash_is_named(at: int, head_too: bool) -> None:
    """The entry after it was written after another; the last one is known by the head, or by one kept elsewhere."""
    before = Head(at, json.loads(LINES[at - 1])["hash"]) if at else Head()
    forged, head = append(before, [draft(at, share="forged")])
    lines = [*LINES[:at], forged, *LINES[at + 1 :]]
    if at == 8 and head_too:
        assert fault(lines, head, Kept(9, HEAD.hash)) == ("forked", 9)
    else:
        assert fault(lines) == ("altered", at + 1)


def test_a_log_made_wholly_anew_is_found_only_by_a_kept_head() -> None:
    """Its own head fits; the auditor's does not, with or without its count."""
    anew, head = append(Head(), [draft(n, share="other") for n in range(5)])
    lines = audit.lines_in(anew)
    assert verdict(lines, head).broken is None
    early = json.loads(LINES[2])["hash"]
    assert fault(lines, head, Kept(3, early)) == ("forked", 3)
    assert fault(lines, head, Kept(None, early)) == ("forked", 6)
    assert fault(lines, head, Kept(9, HEAD.hash)) == ("truncated", 10 - 4)


def test_a_log_that_grew_since_its_head_was_kept_holds() -> None:
    """Whatever head of it was kept, even that of the empty log."""
    for count, line in enumerate(LINES, 1):
        of = json.loads(line)["hash"]
        assert verdict(LINES, HEAD, Kept(count, of)).broken is None
        assert verdict(LINES, HEAD, Kept(None, of)).broken is None
    assert verdict(LINES, HEAD, Kept(0, GENESIS)).broken is None


def test_two_branches_of_one_log_are_a_fork() -> None:
    """Both entries of one number hold by themselves."""
    other, _ = append(Head(3, json.loads(LINES[2])["hash"]), [draft(3, share="other")])
    assert fault([*LINES, other]) == ("forked", 4)


def test_a_writer_that_died_before_it_moved_the_head_broke_nothing() -> None:
    """The head may be one append behind, and no more: a head that was put back is told."""
    long, _ = a_log(MAX_AHEAD + 3)
    head = Head(2, json.loads(long[1])["hash"])
    assert verdict(long[:-1], head).broken is None
    assert fault(long, head) == ("unanchored", 3)


def test_an_entry_of_a_newer_penstock_still_holds() -> None:
    """Its hash is that of its bytes, whatever kinds and fields it has."""
    body = b'{"seq":1,"at":"x","actor":"a","kind":"new","job":"","run":"","facts":{},"more":[1.5],"prev":"' + b"0" * 64
    body += b'"'
    digest = blake2b(body, digest_size=32).hexdigest()
    line = body + b',"hash":"' + digest.encode() + b'"}\n'
    assert verdict([line], Head(1, digest)).broken is None


def test_facts_are_small_and_what_is_too_long_is_left_out_with_its_name() -> None:
    """A log that is read whole must stay readable, and a long entry may not keep out those behind it."""
    names = {f"m{n}": "y" * 9_000 for n in range(9)}
    for facts, left in (({"why": "x" * 40_000}, ["why"]), (names, [f"m{n}" for n in range(6)])):
        line, head = append(Head(), [draft(0, share=0.5, **facts)])
        told = json.loads(line)["facts"]
        assert verdict([line], head).broken is None
        assert (told["share"], told["left_out"]["names"]) == (0.5, left)
        assert len(line) < MAX_FACTS_BYTES + 1_000


@pytest.mark.parametrize("text", ["", "abc", "9:" + "0" * 63, "x:" + "0" * 64, "-1:" + "0" * 64])
def test_what_is_no_head_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="COUNT:HASH"):
        kept(text)


def test_a_head_is_kept_as_it_is_printed() -> None:
    """With its count or without."""
    assert kept(f" {HEAD}\n") == Kept(9, HEAD.hash)
    assert kept(HEAD.hash) == Kept(None, HEAD.hash)
