"""The audit log: decisions, each chained to the one before it by its hash, so that nobody can quietly change the past.

An entry is one line of JSON. Its last field is its hash: blake2b-256, in hex, of the line's bytes before `,"hash":"`.
`prev` is the hash of the entry before it. So a line that was changed no longer has its hash, and one that was taken
out, put in or moved no longer has its place. What was cut off at the end leaves a whole chain: the head (count and
hash of the last entry) says how long the log was. Whoever can write the log can write its head too, and can make all of
it anew: only a head that was kept elsewhere (`Kept`) finds that.

Facts are names, numbers and reasons of ours: no prompt, no answer, no key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Literal, NamedTuple, get_args

import msgspec

from penstock.engine.errors import SpecError

Kind = Literal[
    "run_started", "run_ended", "job_changed", "take_over", "cancel", "pause", "replay", "deletion",
    "policy", "wall_refusals", "budget_stop",
    "rollout_started", "stage", "rollback", "rollout_ended", "drift", "calibration", "label", "feedback", "other_model",
]  # fmt: skip
KINDS: tuple[str, ...] = get_args(Kind)

GENESIS = "0" * 64
"""What the first entry has in place of the hash before it."""
MAX_AHEAD = 8
"""Entries of one append. A writer that dies right after it leaves the head so far behind, and never farther: the next
one moves the head first."""
MAX_FACTS_BYTES = 32_768
"""Of one entry: a log that is read whole must stay readable. A guess."""
_MOST_NAMED = 20
_HASH_BYTES = 32
_MARK = b',"hash":"'
_END = b'"}\n'
_KEPT = re.compile(r"(?:(\d{1,15}):)?([0-9a-f]{64})")


class Draft(msgspec.Struct, frozen=True):
    """A decision that is to be written down. `at`: Unix seconds. `actor`: `user@host/command`, or `penstock`."""

    at: float
    actor: str
    kind: Kind
    job: str = ""
    run: str = ""
    facts: Mapping[str, object] = {}
    """A small JSON object. Of one beyond `MAX_FACTS_BYTES` the longest members are left out, and the entry says so."""


class _Body(msgspec.Struct, frozen=True):
    seq: int
    at: str
    actor: str
    kind: str
    job: str
    run: str
    facts: msgspec.Raw
    prev: str


class Entry(_Body, frozen=True):
    """A decision as it stands in the log. `seq` counts from 1; `at`: UTC. `kind` is one of `KINDS`, or a newer one."""

    hash: str


class Head(msgspec.Struct, frozen=True):
    """How long a log is, and the hash of its last entry."""

    count: int = 0
    hash: str = GENESIS

    def __str__(self) -> str:
        return f"{self.count}:{self.hash}"


class Kept(msgspec.Struct, frozen=True):
    """A head that an auditor kept. `count` None: only the hash was kept."""

    count: int | None
    hash: str


def kept(text: str) -> Kept:
    """`128:ab12…` as `penstock audit verify` prints it, or the hash alone. Raises `SpecError`."""
    found = _KEPT.fullmatch(text.strip().lower())
    if found is None:
        raise SpecError(f"{text!r} is no head of an audit log: expected COUNT:HASH, with 64 hex digits of hash")
    return Kept(None if found[1] is None else int(found[1]), found[2])


def append(head: Head, drafts: Sequence[Draft]) -> tuple[bytes, Head]:
    """The lines of up to `MAX_AHEAD` entries that follow `head`, and the head after them."""
    assert 0 < len(drafts) <= MAX_AHEAD, "an append has 1 to MAX_AHEAD entries"
    lines: list[bytes] = []
    for draft in drafts:
        body = msgspec.json.encode(_body(head, draft))[:-1]
        head = Head(head.count + 1, _hash(body))
        lines.append(body + _MARK + head.hash.encode() + _END)
    return b"".join(lines), head


def _body(head: Head, draft: Draft) -> _Body:
    at = datetime.fromtimestamp(draft.at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
    facts = msgspec.Raw(_bounded(draft.facts))
    return _Body(head.count + 1, at, draft.actor, draft.kind, draft.job, draft.run, facts, head.hash)


def _bounded(facts: Mapping[str, object]) -> bytes:
    """As JSON. An entry that is too long must not keep those behind it, nor the decision, from being written down: its
    longest members give way to their names and a digest of the whole."""
    whole = msgspec.json.encode(facts, order="sorted")
    longest = sorted(facts, key=lambda name: len(msgspec.json.encode(facts[name])), reverse=True)
    told, left = whole, list[str]()
    while len(told) > MAX_FACTS_BYTES:
        left.append(longest[len(left)])
        out = {"members": len(left), "names": left[:_MOST_NAMED], "bytes": len(whole), "digest": _hash(whole)}
        kept = {name: facts[name] for name in longest[len(left) :]}
        told = msgspec.json.encode({**kept, "left_out": out}, order="sorted")
    return told


def _hash(body: bytes) -> str:
    return blake2b(body, digest_size=_HASH_BYTES).hexdigest()


_entry = msgspec.json.Decoder(Entry)


def entry_in(line: bytes) -> Entry | None:
    """The entry of a line (with its line break); None where the line is no entry with its own hash."""
    body, mark, rest = line.rpartition(_MARK)
    if not mark or rest != _hash(body).encode() + _END:
        return None
    try:
        return _entry.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def lines_in(data: bytes) -> list[bytes]:
    """With their line breaks; the last one may lack it."""
    parts = data.split(b"\n")
    whole = [part + b"\n" for part in parts[:-1]]
    return [*whole, parts[-1]] if parts[-1] else whole


# ---- verifying

Fault = Literal["altered", "removed", "reordered", "duplicated", "forked", "truncated", "unanchored"]


class Line(NamedTuple):
    """`place`: where it stands, in words."""

    place: str
    data: bytes


class Broken(msgspec.Struct, frozen=True):
    """The first place where a log does not hold. `seq`: the entry that is wrong or missing."""

    fault: Fault
    seq: int
    place: str
    why: str


class Verdict(msgspec.Struct, frozen=True):
    """`entries`, `head`: as far as the log holds. `broken` None: all of it does."""

    entries: int
    head: Head
    broken: Broken | None = None


class Walk:
    """Goes through a log from its first line: `see` each, then ask for the verdict. Keeps 32 bytes an entry."""

    def __init__(self) -> None:
        self._hashes = bytearray()
        self._head = Head()
        self._broken: Broken | None = None

    def see(self, line: Line) -> None:
        entry = entry_in(line.data)
        if self._broken is not None:
            self._look_for_the_missing(self._broken, entry)
        elif entry is None:
            why = "it is no entry, or not the one that was written: its hash is not that of its bytes"
            self._broken = Broken("altered", self._head.count + 1, line.place, why)
        elif self._follows(entry):
            self._head = Head(entry.seq, entry.hash)
            self._hashes += bytes.fromhex(entry.hash)
        else:
            self._broken = self._misplaced(entry, line.place)

    def _follows(self, entry: Entry) -> bool:
        return entry.seq == self._head.count + 1 and entry.prev == self._head.hash

    def _misplaced(self, entry: Entry, place: str) -> Broken:
        expected = self._head.count + 1
        if entry.seq > expected:
            return Broken("removed", expected, place, f"entry {entry.seq} stands where entry {expected} should")
        if 0 < entry.seq < expected:
            if self._at(entry.seq) == entry.hash:
                return Broken("duplicated", entry.seq, place, "the same entry stands here again")
            return Broken("forked", entry.seq, place, "another entry of this number stands before it")
        if expected == 1 or entry.seq < 1:
            return Broken("altered", expected, place, "it is not the first entry of a log")
        why = f"entry {expected} was written after another entry {expected - 1} than the one that stands here"
        return Broken("altered", expected - 1, place, why)

    def _look_for_the_missing(self, broken: Broken, entry: Entry | None) -> None:
        if broken.fault == "removed" and entry is not None and self._follows(entry):
            self._broken = msgspec.structs.replace(broken, fault="reordered")

    def _at(self, seq: int) -> str:
        return self._hashes[(seq - 1) * _HASH_BYTES : seq * _HASH_BYTES].hex() if seq else GENESIS

    def verdict(self, head: Head | None, newest: Head | None, mine: Kept | None = None) -> Verdict:
        """`head`: as read before the lines; `newest`: after them; None: there is none. `mine`: kept elsewhere."""
        broken = (
            self._broken or self._against_head(head or Head(), newest) or (self._against_kept(mine) if mine else None)
        )
        return Verdict(self._head.count, self._head, broken)

    def cut_off(self, place: str) -> Verdict:
        """The verdict where a head should stand at the end, and none does."""
        why = "the last line is not the log's head: it was cut off or altered"
        missing = Broken("truncated", self._head.count + 1, place, why)
        return Verdict(self._head.count, self._head, self._broken or missing)

    def _against_head(self, head: Head, newest: Head | None) -> Broken | None:
        count = self._head.count
        if head.count > count:
            why = f"the log had {head.count} entries, as its head says; {head.count - count} are gone from its end"
            return Broken("truncated", count + 1, "the end", why)
        if self._at(head.count) != head.hash:
            return Broken("altered", head.count, "the head", f"the log's head names another entry {head.count}")
        if newest is None and count:
            return Broken("unanchored", 1, "the head", f"the head is gone, and the log has {count} entries")
        if newest is not None and count > newest.count + MAX_AHEAD:
            why = f"the head was put back: it says {newest.count} entries, and the log has {count}"
            return Broken("unanchored", newest.count + 1, "the head", why)
        return None

    def _against_kept(self, mine: Kept) -> Broken | None:
        count = self._head.count
        if mine.count is None:
            if any(self._at(seq) == mine.hash for seq in range(count + 1)):
                return None
            why = "no entry has the hash that you kept: the log was cut before it, or made anew"
            return Broken("forked", count + 1, "your head", why)
        if mine.count > count:
            why = f"you kept the head of {mine.count} entries, and the log has {count}"
            return Broken("truncated", count + 1, "your head", why)
        if self._at(mine.count) == mine.hash:
            return None
        why = f"entry {mine.count} is not the one whose hash you kept: it, or something before it, was made anew"
        return Broken("forked", mine.count, "your head", why)
