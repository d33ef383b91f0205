"""Progress of one lane: per open split the watermark, the finished beyond it, and the dispatch horizon.

Off-by-one lives here: `watermark` is the first position that may still be unfinished (all below are finished);
`horizon` is exclusive as well (items with position < horizon may be dispatched). A restart opens the split at the
watermark, skips the finished set, and knows that every other item below the horizon may have been paid for.

Items leave in any order. A lane opens its splits in ordinal order; closed ones are counted, not listed. New splits join
while it goes: their ordinals are above all that it knew, so what was counted stays counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import msgspec

from penstock.engine.errors import Corrupt
from penstock.engine.flow import offsets
from penstock.engine.flow.tally import Tally
from penstock.engine.items import Position
from penstock.engine.plan import Split

PROGRESS = "progress"
"""Name of the chunk that holds `Saved`."""
SHELF = "shelf/"
"""Prefix of a shelved item's chunk."""
TRIED = "tried/"
"""Prefix of what was paid for an unfinished item (`engine.shelf`)."""
OUTBOX = "outbox/"
"""Prefix of a batch for followers; the rest of the name is its seq, ten digits."""


class SavedSplit(msgspec.Struct, frozen=True, array_like=True):
    ordinal: int
    watermark: int
    finished: bytes
    horizon: int
    ended: bool


class Saved(msgspec.Struct, frozen=True):
    """The progress chunk."""

    opened: int = 0
    """Splits of the lane opened so far, in ordinal order."""
    splits: tuple[SavedSplit, ...] = ()
    """The open ones."""
    spent: dict[str, int] = {}
    """Budget lease → nano-dollars settled under it. Only leases that are still open in the ledger."""
    tally: Tally = msgspec.field(default_factory=Tally)
    done: bool = False
    """All splits of plan version `plan_version` are finished and committed."""
    plan_version: int = 0
    adjusted: bool = False
    """The closing adjustment lines of own GPUs are in."""
    outbox_next: int = 1
    """Number of the next batch for followers."""


def saved_in(chunks: Mapping[str, bytes]) -> Saved:
    """A lane's committed progress; empty where it never committed. Raises `Corrupt`."""
    if PROGRESS not in chunks:
        return Saved()
    try:
        return msgspec.msgpack.decode(chunks[PROGRESS], type=Saved)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"the lane's progress can't be read ({error}); restore it from a backup") from error


class OpenSplit:
    """One split being worked on."""

    __slots__ = ("_ahead", "ended", "finished", "horizon", "maybe_until", "offered", "order", "split", "watermark")

    def __init__(self, split: Split, saved: SavedSplit | None = None) -> None:
        self.split = split
        self.watermark = saved.watermark if saved else split.start
        found = offsets.decode(saved.finished, saved.watermark) if saved else []
        self.finished: set[int] = set(found)
        self.horizon = saved.horizon if saved else split.start
        self.maybe_until = self.horizon
        """Unfinished items below it may have been paid for by an earlier owner."""
        self.ended = False
        self.offered = self.watermark
        """The position after the last one that was offered."""
        self._ahead: deque[int] = deque(found)
        """Of the finished ones, those that this owner has not come to yet, ascending."""
        self.order: deque[int] = deque()
        """Positions that it came to, and that the watermark has not passed, ascending."""

    def offer(self, position: int) -> bool:
        """True where the item is work; False where it was finished before. What stands before it and was not offered
        is not there any more: records can be deleted, or compacted away, after they were finished."""
        if position < self.watermark:
            return False
        ahead, new = self._ahead, position not in self.finished
        while ahead and ahead[0] <= position:
            self.order.append(ahead.popleft())
        if new:
            self.order.append(position)
        self.offered = position + 1
        self._advance()
        return new

    def unfinished(self, first: int, end: int | None) -> int | None:
        """Where a loss of first..end-1 (None: of all from `first` on), not offered yet, is told: at the last that has
        not ended. Its name is no other item's, and so it is told once. None: all have ended, and nothing is lost."""
        if end is None:
            return max(first, max(self.finished, default=-1) + 1)
        return next((p for p in range(end - 1, first - 1, -1) if p not in self.finished), None)

    def has_ended(self, position: int) -> bool:
        return position < self.watermark or position in self.finished

    def done(self, position: int) -> None:
        self.finished.add(position)
        self._advance()

    @property
    def read_again(self) -> bool:
        """This owner has come to all that the last one may have sent."""
        return self.ended or self.offered >= self.maybe_until

    def retreat(self) -> None:
        """Nothing that was read here is under way. Of what was not read again, the owner before last must be heard."""
        self.horizon = min(self.horizon, self.watermark) if self.read_again else self.maybe_until

    def _advance(self) -> None:
        finished, order = self.finished, self.order
        while order and order[0] in finished:
            passed = order.popleft()
            finished.discard(passed)
            self.watermark = passed + 1

    @property
    def closed(self) -> bool:
        return self.ended and not self.order

    @property
    def beyond(self) -> int:
        """Finished positions that wait for the watermark. Not those of the last owner that were not come to again: they
        wait for nothing but the reader, and must not keep it from reading."""
        return len(self.finished) - len(self._ahead)

    def saved(self) -> SavedSplit:
        return SavedSplit(
            self.split.ordinal, self.watermark, offsets.encode(self.finished, self.watermark), self.horizon, self.ended
        )

    @property
    def passed(self) -> float:
        """About how far it is done, as a position: the watermark, and the finished share of what lies beyond it. One
        slow item must not make a run that is nearly over look like one that has hardly begun."""
        if not self.order:
            return self.watermark
        share = self.beyond / len(self.order)
        return self.watermark + share * (self.order[-1] - self.watermark)

    def check(self) -> None:
        """The invariants, said once."""
        assert all(p >= self.watermark for p in self.finished), "finished below the watermark"
        assert list(self.order) == sorted(set(self.order)), "positions out of order"
        assert not self.order or self.order[0] >= self.watermark, "head below the watermark"
        assert not (self.order and self.order[0] in self.finished), "a finished head was not passed"
        assert self.finished <= {*self.order, *self._ahead}, "a finished one that nothing passes"
        assert not self._ahead or self._ahead[0] >= self.offered, "a finished one was left behind"


class Progress:
    """All splits of one lane."""

    def __init__(self, splits: Sequence[Split], saved: Saved | None = None) -> None:
        self.splits = sorted(splits, key=lambda split: split.ordinal)
        self.open: dict[int, OpenSplit] = {}
        self.opened = 0
        self.doubted = False
        """Of items that are not on the shelf, some may have been under way when the last owner ended."""
        self._opened_bytes = 0
        by_ordinal = {split.ordinal: split for split in self.splits}
        if saved is not None:
            if saved.opened > len(self.splits):
                raise Corrupt(f"the lane has opened {saved.opened} splits, its plan names only {len(self.splits)}")
            self.opened = saved.opened
            self._opened_bytes = sum(split.size_bytes for split in self.splits[: self.opened])
            for state in saved.splits:
                if state.ordinal not in by_ordinal:
                    raise Corrupt(f"progress names split {state.ordinal}, which the plan does not have")
                self.open[state.ordinal] = OpenSplit(by_ordinal[state.ordinal], state)
                self.doubted = self.doubted or state.horizon > state.watermark

    def add(self, splits: Sequence[Split]) -> bool:
        """New splits of a longer plan; those that are known are passed over. True where some are new.

        Raises `Corrupt` where one would stand before a split that is known: it could be counted as opened, unread.
        """
        last = self.splits[-1].ordinal if self.splits else -1
        known = {split.ordinal: split.id for split in self.splits}
        new = sorted((s for s in splits if known.get(s.ordinal) != s.id), key=lambda split: split.ordinal)
        if new and new[0].ordinal <= last:
            raise Corrupt(f"split {new[0].id} joins at place {new[0].ordinal}, but the lane knows splits up to {last}")
        self.splits += new
        return bool(new)

    def starts(self) -> list[tuple[Split, int]]:
        """What a reader is to be opened at. Open splits: behind what was offered (the watermark, where nothing was
        yet); those that ended need no reader. Then those never opened."""
        begun = [(state.split, state.offered) for state in self.open.values() if not state.ended]
        return sorted(
            [*begun, *((split, split.start) for split in self.splits[self.opened :])], key=lambda pair: pair[0].ordinal
        )

    def of(self, ordinal: int) -> OpenSplit:
        """The split's state; opens it, and all unopened ones before it, at first touch."""
        state = self.open.get(ordinal)
        if state is None:
            state = self._open_up_to(ordinal)
        return state

    def has_ended(self, source: Position) -> bool:
        """Of an item that is not on the shelf."""
        state = self.open.get(source.ordinal)
        if state is not None:
            return state.has_ended(source.position)
        return any(split.ordinal == source.ordinal for split in self.splits[: self.opened])

    def _open_up_to(self, ordinal: int) -> OpenSplit:
        while self.opened < len(self.splits) and self.splits[self.opened].ordinal <= ordinal:
            split = self.splits[self.opened]
            self.open[split.ordinal] = OpenSplit(split)
            self.opened += 1
            self._opened_bytes += split.size_bytes
        if ordinal not in self.open:
            raise Corrupt(f"a record came from split {ordinal}, which is closed or not of this lane")
        return self.open[ordinal]

    def end(self, ordinal: int) -> None:
        self.of(ordinal).ended = True

    def close_finished(self) -> None:
        for ordinal in [ordinal for ordinal, state in self.open.items() if state.closed]:
            del self.open[ordinal]

    @property
    def read_again(self) -> bool:
        """All that the last owner may have sent, but what is on the shelf."""
        return all(state.read_again for state in self.open.values())

    @property
    def all_read(self) -> bool:
        """Every split was read to its end."""
        return self.opened == len(self.splits) and all(state.ended for state in self.open.values())

    @property
    def all_closed(self) -> bool:
        return self.opened == len(self.splits) and all(state.closed for state in self.open.values())

    @property
    def beyond(self) -> int:
        """Finished positions that wait for watermarks: what bounds the record's size."""
        return sum(state.beyond for state in self.open.values())

    def bytes_done(self) -> int:
        """Input passed, in the split's own units scaled to bytes: for progress and ETA only."""
        total = self._opened_bytes
        for state in self.open.values():
            split = state.split
            total -= split.size_bytes
            if split.unit == "bytes":
                total += max(0, min(round(state.passed) - split.start, split.size_bytes))
            elif split.end:
                total += round(split.size_bytes * (state.passed - split.start) / max(1, split.end - split.start))
        return total

    def check(self) -> None:
        for state in self.open.values():
            state.check()
