"""Reading as much of an input as a plan needs: all of a small one, some places of a large one."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

import msgspec

from penstock.connectors.base import Raw, Source
from penstock.engine.items import DeadLetter, Item
from penstock.engine.plan import Split
from penstock.jobs.forecasting.forecast import Interval, exactly, rows_from_bytes

WHOLE_BYTES = 32_000_000
"""An input up to this size is counted row by row: about a second. A larger one is looked into at `PLACES` places."""
PLACES = 16
BATCH = (512, 4_000_000)
"""Records and bytes of one read."""
COMPRESSION = (2.0, 5.0, 15.0)
"""How much larger a compressed text is once unpacked: few, usual, many. A guess from gzip and zstd on JSON."""
SEED = 7
"""The sample is the same at every plan of the same input."""


class Reading(msgspec.Struct, frozen=True):
    """A sample, and what it is a sample of. `whole`: every row of the input is in it."""

    found: tuple[Item | DeadLetter, ...]
    rows: Interval
    total_bytes: int
    splits: int
    whole: bool
    notes: tuple[str, ...] = ()


class Sampled(msgspec.Struct):
    """Records as they were read. `sizes`: bytes each took in the input."""

    records: list[Raw]
    seen: int = 0
    sizes: list[float] = msgspec.field(default_factory=list[float])


MakeIntake = Callable[[str], Callable[[Raw], Item | DeadLetter]]
"""From a split's format to what makes items of its records."""


async def read_sample(source: Source, make_intake: MakeIntake, sample: int, limit: int | None = None) -> Reading:
    """`limit`: the run's own limit of rows. Raises what the source raises."""
    splits = await source.splits(PLACES)
    size = sum(split.size_bytes for split in splits)
    if size <= WHOLE_BYTES or limit is not None:
        taken = await _count(source, splits, sample, limit)
        rows: Interval = exactly(float(taken.seen))
        notes: tuple[str, ...] = ()
    else:
        taken = await _look(source, splits, sample)
        rows, notes = _estimate(splits, taken)
    intake = make_intake(splits[0].format if splits else "jsonl")
    return Reading(
        found=tuple(intake(raw) for raw in taken.records),
        rows=rows,
        total_bytes=size,
        splits=len(splits),
        whole=rows.exact and len(taken.records) == taken.seen,
        notes=notes,
    )


async def _count(source: Source, splits: Sequence[Split], sample: int, limit: int | None) -> Sampled:
    """Read everything (up to `limit` rows); keep a fair sample of it."""
    chance = random.Random(SEED)
    taken = Sampled([])
    reader = await source.open([(split, split.start) for split in splits])
    try:
        while limit is None or taken.seen < limit:
            batch = await reader.read(*BATCH)
            for record in batch.records[: None if limit is None else limit - taken.seen]:
                _reservoir(taken, record, sample, chance)
            if batch.done:
                break
    finally:
        await reader.close()
    return taken


def _reservoir(taken: Sampled, record: Raw, sample: int, chance: random.Random) -> None:
    taken.seen += 1
    if len(taken.records) < sample:
        taken.records.append(record)
    elif (at := chance.randrange(taken.seen)) < sample:
        taken.records[at] = record


async def _look(source: Source, splits: Sequence[Split], sample: int) -> Sampled:
    """The first records of places spread over the whole input."""
    places = _spread(splits)
    each = max(1, -(-sample // len(places)))
    taken = Sampled([])
    for split in places:
        reader = await source.open([(split, split.start)])
        try:
            read = (await reader.read(each + 1, BATCH[1])).records
        finally:
            await reader.close()
        taken.sizes += _sizes(split, read)
        taken.records += read[:each]
    taken.seen = len(taken.records)
    return taken


def _spread(splits: Sequence[Split]) -> list[Split]:
    if len(splits) <= PLACES:
        return list(splits)
    return [splits[n * len(splits) // PLACES] for n in range(PLACES)]


def _sizes(split: Split, read: Sequence[Raw]) -> list[float]:
    """Bytes of the input that each record took: the distance to the next one, blank lines and all."""
    if split.unit == "bytes" and not split.compression:
        at = [raw.position.position for raw in read]
        return [float(after - here) for here, after in itertools.pairwise(at)]
    return [float(raw.length or len(raw.row_json or raw.data)) + 1 for raw in read]


def _estimate(splits: Sequence[Split], taken: Sampled) -> tuple[Interval, tuple[str, ...]]:
    """Rows of a large input: known for tables, from bytes for text, a wide guess where text is compressed."""
    tables = [s for s in splits if s.unit == "rows" and s.end is not None]
    plain = sum(s.size_bytes for s in splits if s.unit == "bytes" and not s.compression)
    packed = sum(s.size_bytes for s in splits if s.unit == "bytes" and s.compression)
    rows = exactly(float(sum((s.end or 0) - s.start for s in tables)))
    notes: list[str] = []
    if plain:
        rows = rows + rows_from_bytes(plain, taken.sizes)
        notes.append("rows are estimated from bytes: the input is large")
    if packed:
        few, usual, many = COMPRESSION
        by = rows_from_bytes(packed, taken.sizes)
        rows = rows + Interval(by.low * few, by.likely * usual, by.high * many)
        notes.append("a large compressed input can't be counted without reading it: its rows are a wide guess")
    return rows, tuple(notes)
