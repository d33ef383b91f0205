"""A lane's way in: reads its splits, waits for the label pass where there is one, and offers items to the machine."""

from __future__ import annotations

import msgspec

from penstock.connectors.base import Batch, Lagging, Raw, Reader, Source
from penstock.connectors.reading.replay import Intake
from penstock.engine.errors import Refused, Temporary
from penstock.engine.flow.lane import Lane
from penstock.engine.items import Item, Position
from penstock.engine.results import DeadLetter

READ_RECORDS = 256
READ_BYTES = 1_000_000
"""One read blocks the lane's loop: 256 records are about 6 ms."""

PATIENCE_S = 120.0
"""Of a run without an end: how long an input may be away before its lane is opened anew, with new connections. A
guess."""
RETRY_S = 1.0
TELL_S = 5.0
"""An input that is away so long is told of: clients get over less by themselves."""


class Verdicts:
    """How far the duplicate-label pass has come, and the places of the duplicates it found."""

    def __init__(self, complete: bool) -> None:
        self.complete = complete
        self.upto: tuple[int, int] = (-1, -1)
        self.duplicates: dict[tuple[int, int], str] = {}

    def passed(self, place: tuple[int, int]) -> bool:
        return self.complete or place < self.upto


class LaneInput:
    """`limit`: the most records of this run (its one lane); the rest of the input is no part of it. `outage_s`: how
    long the input may be away before the run ends; None: the run has no end."""

    def __init__(
        self,
        machine: Lane,
        source: Source,
        intake: Intake,
        verdicts: Verdicts,
        limit: int | None,
        outage_s: float | None = None,
    ) -> None:
        self.verdicts = verdicts
        self.was_read = False
        """Its source has answered once."""
        self._machine = machine
        self._source = source
        self._intake = intake
        self.again = intake.again
        """What the job makes of an item that an earlier owner read."""
        self._limit = limit
        self._outage_s = outage_s
        self._reader: Reader | None = None
        self._ordinals: dict[str, int] = {}
        """Split → its place, of the reader's splits: a lane may have thousands."""
        self._behind: list[Item | DeadLetter] = []
        """Read, but the label pass is not past them yet."""
        self._ended: list[str] = []
        self._more = False
        self._away_since: float | None = None
        self._away = ""
        self._not_before = 0.0

    async def open(self) -> None:
        starts = self._machine.progress.starts()
        self._ordinals = {split.id: split.ordinal for split, _ in starts}
        self._reader = await self._source.open(starts)

    def more(self) -> None:
        """The lane has new splits: a reader of all of them takes over once everything is offered that was read."""
        self._more = True

    async def close(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            await reader.close()

    def lag(self) -> dict[str, int]:
        """Topic → records that are there and not read yet; empty where the input doesn't grow."""
        return self._reader.lag() if isinstance(self._reader, Lagging) else {}

    async def step(self, now: float) -> int:
        """Read and offer a little; how many were offered."""
        if self._behind:
            return self._offer_behind(now)
        if self._more:
            self._more = False
            await self.close()
            await self.open()
        if self._reader is None:
            return 0
        room = self._room()
        if room <= 0:
            if self._limit is not None and self._machine.tally.read >= self._limit:
                await self._end_all()
            return 0
        batch = await self._read(self._reader, room, now)
        if batch is None:
            return 0
        self._behind = [entry for raw in batch.records if (entry := self._entry(raw, now)) is not None]
        self._ended += batch.ended
        if batch.done:
            await self.close()
        return self._offer_behind(now)

    def _entry(self, raw: Raw, now: float) -> Item | DeadLetter | None:
        """None: it tells of a loss, and all that was lost had ended before. Else a loss is an item of its own, at a
        position that no other item has."""
        if raw.lost is None:
            return self._intake.item(raw, now)
        (first, end), place = raw.lost, raw.position
        split = self._machine.progress.of(place.ordinal)
        position = split.unfinished(first, end)
        if position is None:
            return None
        told = msgspec.structs.replace(raw, position=Position(place.split, place.ordinal, position))
        entry = self._intake.item(told, now)
        assert isinstance(entry, DeadLetter), "a loss that is a record"
        return msgspec.structs.replace(entry, maybe_paid=first < split.maybe_until)

    async def _read(self, reader: Reader, room: int, now: float) -> Batch | None:
        """None: the input can't be reached now. What is under way goes on, and it is asked again, until it was away too
        long: then this raises."""
        if now < self._not_before:
            return None
        try:
            batch = await reader.read(room, READ_BYTES)
        except Temporary as error:
            self._miss(error, now)
            self._not_before = now + (error.retry_after_s or RETRY_S)
            return None
        self._away_since, self.was_read = None, True
        return batch

    def _miss(self, error: Temporary, now: float) -> None:
        """Raises the error where a lane of a run without an end should connect anew, `Refused` where one with an end
        has waited long enough."""
        self._away = str(error)
        self._away_since = now if self._away_since is None else self._away_since
        missed_s = now - self._away_since
        if self._outage_s is None and missed_s >= PATIENCE_S:
            raise error
        if self._outage_s is not None and missed_s >= self._outage_s:
            raise Refused(
                f"the input was away for {missed_s:.0f} s (execution.outage_s: {self._outage_s:g}): {error} Run it "
                "again when it is back: it goes on where it was."
            ) from error

    def set_back(self, by_s: float) -> None:
        """The clock was: an input that is away is asked again no later for that."""
        self._not_before -= by_s
        if self._away_since is not None:
            self._away_since -= by_s

    def away(self, now: float) -> str | None:
        """Why nothing could be read for a while; None: it can."""
        return self._away if self._away_since is not None and now - self._away_since >= TELL_S else None

    def _room(self) -> int:
        room = min(self._machine.wants(), READ_RECORDS)
        return room if self._limit is None else min(room, self._limit - self._machine.tally.read)

    def _offer_behind(self, now: float) -> int:
        """Offer what the label pass has passed; the first of equal labels wins, the others are dead letters."""
        verdicts, offered = self.verdicts, 0
        offer = self._machine.offer
        if verdicts.complete and not verdicts.duplicates:
            for entry in self._behind:
                offer(entry, now)
            offered = len(self._behind)
        else:
            for entry in self._behind:
                place = (entry.source.ordinal, entry.source.position)
                if not verdicts.passed(place):
                    break
                first = verdicts.duplicates.pop(place, None)
                offer(_duplicate(entry, first, now) if first is not None and isinstance(entry, Item) else entry, now)
                offered += 1
        del self._behind[:offered]
        if not self._behind:
            self._end_splits()
        return offered

    def _end_splits(self) -> None:
        if self._ended:
            for split_id in self._ended:
                self._machine.split_ended(self._ordinals[split_id])
            self._ended = []

    async def _end_all(self) -> None:
        """`--limit` is reached: the rest of the input is not part of this run."""
        progress = self._machine.progress
        rest = [split.ordinal for split in progress.splits[progress.opened :]]
        for ordinal in [*progress.open, *rest]:
            self._machine.split_ended(ordinal)
        await self.close()


def _duplicate(item: Item, first: str, now: float) -> DeadLetter:
    return DeadLetter(
        item_id=item.item_id,
        source=item.source,
        reason="duplicate",
        message=f"the label {item.custom_id!r} came first in {first}; that one is kept (on_duplicate: allow: both)",
        original=item.original,
        item=item,
        custom_id=item.custom_id,
        generation=item.generation,
        finished_at=now,
    )
