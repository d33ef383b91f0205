"""A lane's splits read one after another; after a failure it goes on behind the last record handed out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from penstock.connectors.base import Batch, Raw
from penstock.engine.errors import PenstockError
from penstock.engine.plan import Split

Read = Callable[[Split, int], Iterator[Raw]]
"""(split, first position) → its records from there. Raises `BadRecord("source_lost")`, `Temporary`."""


def size_of(raw: Raw) -> int:
    """What a record counts against a limit of bytes."""
    return len(raw.row_json or raw.data)


class Cursor:
    """One split being read; after a failure it begins again behind the last record handed out."""

    def __init__(self, split: Split, start: int, read: Read) -> None:
        self.split = split
        self._next = start
        self._read = read
        self._records: Iterator[Raw] | None = None

    def take(self, records: list[Raw], room: int, room_bytes: int) -> bool:
        """Append until a limit is met (then True) or the split has ended."""
        if self._records is None:
            self._records = self._read(self.split, self._next)
        have = len(records)
        full = have + room
        try:
            for raw in self._records:
                records.append(raw)
                room_bytes -= size_of(raw)
                if room_bytes <= 0 or len(records) >= full:
                    return True
        except PenstockError:
            self._records = None
            if len(records) == have:
                raise
            return True  # what was read first; the failure comes again with the next call if it lasts
        except BaseException:
            self._records = None  # an iterator that failed would look like one that has ended
            del records[have:]
            raise
        finally:
            if len(records) > have:
                self._next = records[-1].position.position + 1
        return False


class Cursors:
    """The splits one after another, in the order given. Blocking; one call at a time."""

    def __init__(self, starts: Sequence[tuple[Split, int]], read: Read) -> None:
        self._left = [Cursor(split, start, read) for split, start in reversed(starts)]

    def take(self, max_records: int, max_bytes: int) -> Batch:
        """Raises what `Read` raises, where no record and no end came before it."""
        records: list[Raw] = []
        ended: list[str] = []
        size = 0
        while self._left and len(records) < max_records and size < max_bytes:
            before = len(records)
            try:
                more = self._left[-1].take(records, max_records - before, max_bytes - size)
            except PenstockError:
                if records or ended:
                    break
                raise
            if more:
                break
            ended.append(self._left.pop().split.id)
            size += sum(size_of(raw) for raw in records[before:])
        return Batch(records, tuple(ended), done=not self._left)

    def close(self) -> None:
        self._left.clear()
