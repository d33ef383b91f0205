"""A lane's reader of S3 objects: parses in threads, a batch ahead of the lane; fetches small objects early."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from penstock.connectors.base import Batch, Raw
from penstock.connectors.formats.lines import lead
from penstock.connectors.objects.cursor import Cursors, size_of
from penstock.connectors.objects.cutting import READERS
from penstock.connectors.s3.client import S3
from penstock.connectors.s3.objects import pinned_by
from penstock.connectors.s3.ranges import SMALL_BYTES, RangeFile, StreamFile, open_object
from penstock.engine.errors import Temporary
from penstock.engine.plan import Split

READERS_AT_ONCE = 32
"""Threads of this process that parse; one waits while its bytes come, so they are not the threads of `client`."""
BATCH_RECORDS, BATCH_BYTES = 512, 1_000_000
"""What is read ahead: at some 100 µs to hand work to a thread, 512 records make that vanish."""
PATIENCE_S = 0.02
"""A call waits so long for its batch, then says that nothing is there: a lane has more to do than to wait for S3."""
SMALL_AHEAD = 8
"""Small objects under way behind the one being read: one after another, each would cost a full round trip."""


@functools.cache
def _parsers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(READERS_AT_ONCE, thread_name_prefix="s3-read")


class S3Reader:
    """Implements `base.Reader`: the splits one after another, in the order given."""

    def __init__(self, s3: S3, starts: Sequence[tuple[Split, int]], limit: int) -> None:
        self._objects = Objects(s3, limit, [split for split, _ in starts])
        self._cursors = Cursors(starts, self._objects.read)
        self._coming: asyncio.Future[Batch] | None = None
        """Being read, in a thread."""
        self._batch: Batch | None = None
        self._given = 0
        """Records of `_batch` handed out."""
        self._away: Temporary | None = None
        """What the last try came to, where it was in vain."""
        self._closed = False

    async def read(self, max_records: int, max_bytes: int) -> Batch:
        """Raises as promised; the next call then goes on behind the last record handed out."""
        if self._batch is None:
            self._batch = await self._next()
            if self._batch is None:
                return Batch([], again_after_s=PATIENCE_S)
        return self._hand_out(self._batch, max_records, max_bytes)

    async def close(self) -> None:
        """Does not wait for S3: a thread that is reading ends when its bytes have come."""
        self._closed = True
        coming, self._coming, self._batch = self._coming, None, None
        if coming is None or coming.done():
            self._objects.close()
        else:
            coming.cancel()

    async def _next(self) -> Batch | None:
        coming = self._coming = self._coming or self._begin()
        if not coming.done():
            await asyncio.wait([coming], timeout=PATIENCE_S)
        if not coming.done():
            if self._away is not None:  # still away: a caller who only sees that nothing is there would wait for ever
                raise self._away
            return None
        self._coming = None
        try:
            batch = coming.result()
        except Temporary as error:
            self._away = error
            raise
        self._away = None
        if not batch.done:
            self._coming = self._begin()
        return batch

    def _begin(self) -> asyncio.Future[Batch]:
        coming = asyncio.get_running_loop().run_in_executor(_parsers(), self._take)
        coming.add_done_callback(_heard)
        return coming

    def _take(self) -> Batch:
        try:
            return self._cursors.take(BATCH_RECORDS, BATCH_BYTES)
        finally:
            if self._closed:
                self._objects.close()

    def _hand_out(self, batch: Batch, max_records: int, max_bytes: int) -> Batch:
        """The batch, or as much of it as is wanted; splits end with its last record."""
        upto = _within(batch.records, self._given, max_records, max_bytes)
        if upto < len(batch.records):
            part = batch.records[self._given : upto]
            self._given = upto
            return Batch(part)
        records = batch.records[self._given :] if self._given else batch.records
        self._batch, self._given = None, 0
        return Batch(records, batch.ended, batch.done)


def _within(records: Sequence[Raw], start: int, max_records: int, max_bytes: int) -> int:
    """Behind the last record that fits both limits; the one that crosses the limit of bytes is in."""
    at, size = start, 0
    until = min(len(records), start + max_records)
    while at < until and size < max_bytes:
        size += size_of(records[at])
        at += 1
    return at


def _heard(waiting: asyncio.Future[Batch]) -> None:
    """A failure that nobody waits for any more is no news."""
    if not waiting.cancelled():
        waiting.exception()


class Objects:
    """Opens the objects of `splits`, which are read in that order; small ones are fetched before their turn."""

    def __init__(self, s3: S3, limit: int, splits: Sequence[Split]) -> None:
        self._s3 = s3
        self._limit = limit
        self._splits = splits
        self._places = {split.id: place for place, split in enumerate(splits)}
        self._prepared: dict[str, StreamFile] = {}

    def read(self, split: Split, start: int) -> Iterator[Raw]:
        """Raises `BadRecord("source_lost")` where the object changed or is gone, `Temporary`."""
        file: RangeFile = self._prepared.pop(split.id, None) or self._open(split)
        place = self._places[split.id]
        self._prepare(itertools.islice(self._splits, place + 1, place + 1 + SMALL_AHEAD))
        with file:
            yield from READERS[split.format](file.binary, split, max(start, split.start), self._limit)

    def _prepare(self, splits: Iterable[Split]) -> None:
        for split in splits:
            if split.id not in self._prepared and split.size_bytes <= SMALL_BYTES:
                file = self._open(split)
                if isinstance(file, StreamFile):
                    file.begin(lead(split.start))
                    self._prepared[split.id] = file

    def close(self) -> None:
        for file in self._prepared.values():
            file.close()
        self._prepared.clear()

    def _open(self, split: Split) -> RangeFile:
        return open_object(self._s3, pinned_by(split), split.format, split.end if split.unit == "bytes" else None)
