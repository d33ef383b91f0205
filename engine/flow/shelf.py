"""What a lane keeps of single unfinished items in its progress: slow ones with their bytes, paid ones with their tries.

*Shelved*: an item that waits long leaves its split's unfinished ones, so that the watermark moves on.
*Tried*: attempts whose cost lines are committed while the item goes on. The next owner adds to them: so its attempt
numbers stay unique, and an item's cost is the sum of its cost lines, whoever was killed in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import msgspec

from penstock.engine.errors import Corrupt
from penstock.engine.flow.lane_types import LaneSettings, ShelfEntry
from penstock.engine.flow.progress import SHELF, TRIED, Progress
from penstock.engine.flow.settle import book
from penstock.engine.flow.slots import Slot
from penstock.engine.results import Attempt, DeadLetter

T = TypeVar("T")
MOVED_AT_ONCE = 256
"""Items that one commit moves at most: their bytes go with it."""


class Tried(msgspec.Struct, frozen=True, array_like=True):
    attempt: int
    """Number of the last one."""
    attempts: tuple[Attempt, ...]
    maybe_paid: bool = False
    """Some call of it had an end that nobody knows."""
    orphaned: bool = False
    """That was a crash."""


class Shelf:
    def __init__(
        self,
        settings: LaneSettings,
        chunks: Mapping[str, bytes] | None = None,
        prompt: Callable[[Slot], str] = lambda slot: "",
    ) -> None:
        """`prompt`: version of the one that an item's request was made with."""
        self._settings = settings
        self._prompt = prompt
        self.count = 0
        self._bytes = 0
        self.changes: dict[str, bytes] = {}
        """Chunks for the next commit."""
        self._looked_at = 0.0
        self.restored: list[ShelfEntry] = []
        """Of the last owner, in input order."""
        self._tried: dict[str, bytes] = {}
        for name, data in sorted((chunks or {}).items()):
            if name.startswith(SHELF):
                entry = _decode(name, data, ShelfEntry)
                self.restored.append(entry)
                if not entry.maybe_paid:  # it will be, as soon as it may be sent
                    self.changes[name] = msgspec.msgpack.encode(msgspec.structs.replace(entry, maybe_paid=True))
            elif name.startswith(TRIED):
                self._tried[name.removeprefix(TRIED)] = data
        self.restored.sort(key=lambda entry: (entry.item.source.ordinal, entry.item.source.position))

    @property
    def names(self) -> set[tuple[str, int]]:
        """Of the last owner's items (id, generation), as long as they did not come back."""
        return {(entry.item.item_id, entry.item.generation) for entry in self.restored}

    # -- slow ones

    def resume(self, slot: Slot, entry: ShelfEntry) -> None:
        """The last owner's entry is this one's now."""
        slot.maybe_paid = slot.maybe_paid or entry.maybe_paid
        slot.orphaned = slot.orphaned or entry.maybe_paid
        slot.attempt = max(slot.attempt, entry.attempt)
        self._count(slot)

    def put(self, slot: Slot) -> None:
        self._count(slot)
        self._write(slot, maybe_paid=True)

    def _write(self, slot: Slot, *, maybe_paid: bool) -> None:
        entry = ShelfEntry(slot.item, slot.attempt, maybe_paid, self._prompt(slot))
        self.changes[SHELF + _name(slot)] = msgspec.msgpack.encode(entry)

    def _count(self, slot: Slot) -> None:
        slot.shelved = True
        self.count += 1
        self._bytes += len(slot.item.original)

    def move_slow(self, progress: Progress, slots: Iterable[Slot], now: float, *, quiet: bool = False) -> None:
        """Heads that have waited long, where much is finished beyond them; the more, the sooner: a lane whose limit is
        near would stop reading for them. `quiet`: nothing else has ended for long, so those that were sent go even for
        a little beyond them."""
        self._looked_at = now
        used = progress.beyond / self._settings.beyond_max
        if used < 1 / 8 and not quiet:
            return
        stays = ("beyond", "ready") if quiet else ("beyond",)
        after_s, moves = self._settings.shelf_after_s * max(0.0, 1.0 - used), MOVED_AT_ONCE
        by_place = {(s.item.source.ordinal, s.item.source.position): s for s in slots if not s.shelved}
        for ordinal, state in progress.open.items():
            while state.order and state.finished and moves and self._room():
                slot = by_place.get((ordinal, state.order[0]))
                if slot is None or slot.state in stays or now - slot.offered_at < after_s:
                    break
                moves -= 1
                self.put(slot)
                state.done(state.order[0])
        if not moves:
            self._looked_at = 0.0

    def is_time(self, now: float) -> bool:
        """The last commit is so long ago that items under way since then are slow; or it could not move them all."""
        return not 0 <= now - self._looked_at < self._settings.shelf_after_s

    def _room(self) -> bool:
        return self.count < self._settings.shelf_max and self._bytes < self._settings.shelf_bytes

    # -- paid ones

    def recall(self, slot: Slot) -> None:
        """What earlier owners paid for this item."""
        tried = self._paid(_name(slot))
        if tried is None:
            return
        slot.tried, slot.attempt = True, tried.attempt
        slot.maybe_paid, slot.orphaned = tried.maybe_paid, tried.orphaned
        for attempt in tried.attempts:
            book(slot, attempt)

    def billed(self, dead: DeadLetter) -> DeadLetter:
        """A record that makes no item any more, with what earlier owners paid for the item that it made."""
        name = _named(dead.item_id, dead.generation)
        tried = self._paid(name)
        if tried is None:
            return dead
        self.changes[TRIED + name] = b""
        cost = sum(attempt.cost_nano for attempt in tried.attempts)
        maybe_paid = dead.maybe_paid or tried.maybe_paid
        return msgspec.structs.replace(dead, attempts=tried.attempts, cost_nano=cost, maybe_paid=maybe_paid)

    def _paid(self, name: str) -> Tried | None:
        """Taken out."""
        data = self._tried.pop(name, None)
        return _decode(TRIED + name, data, Tried) if data is not None else None

    def note_tries(self, slot: Slot) -> None:
        """Cost lines of an unfinished item go with this commit."""
        slot.tried = True
        tried = Tried(slot.attempt, tuple(slot.attempts), slot.maybe_paid, slot.orphaned)
        self.changes[TRIED + _name(slot)] = msgspec.msgpack.encode(tried)

    # -- a drained lane with nothing at a worker

    def part(self, slots: Iterable[Slot]) -> None:
        """Say of each unfinished item what is known of it, instead of a horizon that doubts them all."""
        for slot in slots:
            if slot.shelved:
                self._write(slot, maybe_paid=slot.maybe_paid)
            if slot.attempts or slot.maybe_paid:
                self.note_tries(slot)

    # -- ends

    def forget(self, slot: Slot) -> None:
        if slot.shelved:
            self.count -= 1
            self._bytes -= len(slot.item.original)
            self.changes[SHELF + _name(slot)] = b""
        if slot.tried:
            self.changes[TRIED + _name(slot)] = b""


def _name(slot: Slot) -> str:
    return _named(slot.item.item_id, slot.item.generation)


def _named(item_id: str, generation: int) -> str:
    """A replay may hold one item in several generations."""
    return f"{item_id}.{generation}" if generation else item_id


def _decode(name: str, data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"the lane's progress can't be read at {name} ({error}); restore it from a backup") from error
