"""The audit log on the state URL: `audit/000001.jsonl` and so on, and `audit/head.json`.

An append rewrites the last segment, if nobody else did meanwhile, and then the head. So a writer that dies between the
two leaves a head that is one append behind, never ahead; whoever writes next moves it before anything else. Nothing is
locked: who loses a race reads again and tries again. All calls block: call them in a thread.

What is not promised: an append that ends with `Temporary` may have been written; done again, it stands there twice.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Literal, NamedTuple

import msgspec

from penstock.connectors.base import Holder
from penstock.connectors.documents import until_won
from penstock.connectors.state import ABSENT, Absent, Conflict, State, Tag, open_state
from penstock.engine import audit
from penstock.engine.audit import MAX_AHEAD, Broken, Draft, Entry, Head, Kept, Line, Verdict, Walk
from penstock.engine.errors import Corrupt, Temporary

PREFIX = "audit/"
HEAD = f"{PREFIX}head.json"
PER_SEGMENT = 128
"""Each append writes its whole segment: 128 entries are about 80 kB. What number an entry has says where it stands."""
TRIES = 200
PAUSE_S = 0.002
"""Grows with each lost race; a swap takes about as long."""
_SEGMENT = re.compile(r"audit/(\d{6,})\.jsonl")

Expected = Tag | Literal[Absent.ABSENT]


class _Tail(NamedTuple):
    """The segment that the next entry goes into. `head`: the last entry before it."""

    data: bytes
    expected: Expected
    head: Head


class AuditLog:
    """The log of one state URL. `url` is kept for the sentences that name it."""

    def __init__(self, state: State, url: str) -> None:
        self._state = state
        self._url = url

    def append(self, *drafts: Draft) -> Head:
        """Write entries (up to `MAX_AHEAD`), durable and in this order when it returns.

        Raises `Temporary`, and `Corrupt` where the log's end is not as it was left: nothing is written behind that.
        """
        return until_won(lambda: self._try(drafts), f"the audit log in {self._url}", TRIES, PAUSE_S)

    def _try(self, drafts: Sequence[Draft]) -> Head:
        """Raises `Conflict` where something had to be mended first, or somebody else was faster."""
        found = self._head()
        if found is None:
            self._begin()
            raise Conflict("the log was begun just now")
        before, tag = found
        try:
            tail = self._tail(before)
        except Corrupt:
            now = self._head()
            if now is None or now[1] == tag:
                raise
            raise Conflict("others have written since the head was read") from None
        if tail.head.count > before.count:
            self._advance(tail.head)
            raise Conflict("the head stood behind the log's end")
        lines, head = audit.append(before, drafts)
        self._state.put(_key(_segment(before.count + 1)), tail.data + lines, tail.expected)
        with contextlib.suppress(Temporary):  # the entries stand; the next writer moves the head
            self._advance(head)
        return head

    def head(self) -> Head | None:
        """As its document says; None: there is none. Raises `Corrupt`, `Temporary`."""
        found = self._head()
        return None if found is None else found[0]

    def is_absent(self) -> bool:
        """Nothing was ever written, or nothing is left of it."""
        return not self._state.list(PREFIX)

    def lines(self) -> Iterator[Line]:
        """Every line as it stands, from the first."""
        for number in self._segments():
            found = self._state.get(_key(number))
            yield from _lines(_key(number), found[0] if found is not None else b"")

    def entries(self) -> Iterator[Entry]:
        """Those that can be read; `verify` says whether they are true."""
        return (entry for line in self.lines() if (entry := audit.entry_in(line.data)) is not None)

    def verify(self, kept: Kept | None = None) -> Verdict:
        """Go through the whole log, also while others write to it. Raises `Temporary`."""
        try:
            before, walk = self.head(), Walk()
            for line in self.lines():
                walk.see(line)
            return walk.verdict(before, self.head(), kept)
        except Corrupt as error:
            return Verdict(0, Head(), Broken("altered", 0, HEAD, str(error)))

    def export(self) -> Iterator[bytes]:
        """The log's lines as they stand, and its head at the end: what `verify_lines` takes."""
        head = self.head() or Head()
        yield from (line.data for line in islice(self.lines(), head.count))
        yield _head_line(head)

    def _segments(self) -> list[int]:
        return sorted(int(found[1]) for key in self._state.list(PREFIX) if (found := _SEGMENT.fullmatch(key)))

    def _head(self) -> tuple[Head, Tag] | None:
        found = self._state.get(HEAD)
        if found is None:
            return None
        head = _head_in(found[0])
        if head is None:
            raise self._broken(f"{HEAD} was altered")
        return head, found[1]

    def _begin(self) -> None:
        """The head of an empty log comes before the first entry: so a log without a head is known to have lost it."""
        if self._state.get(_key(1)) is not None and self._head() is None:
            raise self._broken(f"{HEAD} is gone")
        with contextlib.suppress(Conflict):
            self._state.put(HEAD, _head_line(Head()), ABSENT)

    def _advance(self, head: Head) -> None:
        """Move the head forward to there, unless it is there or farther."""
        while (found := self._head()) is not None and found[0].count < head.count:
            with contextlib.suppress(Conflict):
                self._state.put(HEAD, _head_line(head), found[1])

    def _tail(self, head: Head) -> _Tail:
        """Read after the head, so it is never behind it. Raises `Corrupt` where it does not go on from there."""
        number = _segment(head.count + 1)
        found = self._state.get(_key(number))
        if found is not None:
            return _Tail(*found, self._end(found[0], head))
        if number > 1:
            previous = self._state.get(_key(number - 1))
            if previous is None or self._end(previous[0], head) != head:
                raise self._broken(f"{_key(number - 1)} does not end with entry {head.count}")
        elif head.count:
            raise self._broken(f"{_key(number)} is gone")
        return _Tail(b"", ABSENT, head)

    def _end(self, data: bytes, head: Head) -> Head:
        """The segment's last entry: the head's, or of the one append that may stand behind it."""
        lines = audit.lines_in(data)
        last = audit.entry_in(lines[-1]) if lines else None
        if last is None:
            raise self._broken("its last line is no entry, or was altered")
        ahead = last.seq - head.count
        if ahead == 0 and last.hash == head.hash:
            return head
        if not 0 < ahead <= min(MAX_AHEAD, len(lines)):
            raise self._broken(f"it ends with entry {last.seq}, and its head is of entry {head.count}")
        for line in lines[-ahead:]:
            entry = audit.entry_in(line)
            if entry is None or (entry.seq, entry.prev) != (head.count + 1, head.hash):
                raise self._broken(f"entry {head.count + 1} does not follow its head")
            head = Head(entry.seq, entry.hash)
        return head

    def _broken(self, what: str) -> Corrupt:
        return Corrupt(f"the audit log in {self._url} is broken: {what}{_ADVICE}")


_ADVICE = (
    ". `penstock audit verify` says where. Restore it from a backup; or keep what is there, move it out of the state "
    f"({PREFIX}), and a new log begins."
)


def open_audit(url: str) -> AuditLog:
    """The log at a state URL; nothing is made there before the first entry. Raises `SpecError`."""
    return AuditLog(open_state(url), url)


def actor_of(holder: Holder) -> str:
    """`user@host/penstock run`. Of the command line no more than its first words: a prompt may stand in it."""
    words = holder.command.split()
    command = " ".join(words[: 2 if words[:1] == ["penstock"] else 1]) or "python"
    return f"{holder.user}@{holder.host}/{command}"[:200]


def verify_lines(name: str, lines: Iterable[bytes], kept: Kept | None = None) -> Verdict:
    """Of an exported log: lines with their line breaks, the head at the end. `name`: of the file, in words."""
    walk, last = Walk(), None
    for number, data in enumerate(lines, 1):
        if last is not None:
            walk.see(last)
        last = Line(f"{name}, line {number}", data)
    head = None if last is None else _head_in(last.data)
    if head is not None:
        return walk.verdict(head, head, kept)
    if last is not None:
        walk.see(last)
    return walk.cut_off(f"{name}, the end")


def _head_line(head: Head) -> bytes:
    return msgspec.json.encode(head) + b"\n"


def _head_in(data: bytes) -> Head | None:
    """None where it is not exactly what `_head_line` makes."""
    try:
        head = msgspec.json.decode(data, type=Head)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return head if _head_line(head) == data else None


def _lines(key: str, data: bytes) -> Iterator[Line]:
    return (Line(f"{key}, line {number}", line) for number, line in enumerate(audit.lines_in(data), 1))


def _segment(seq: int) -> int:
    """Where an append that begins with this entry stands, all of it."""
    return (seq - 1) // PER_SEGMENT + 1


def _key(segment: int) -> str:
    return f"{PREFIX}{segment:06d}.jsonl"
