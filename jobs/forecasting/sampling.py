"""Reading as much of an input as a plan needs: all of a small one, some places of a large one."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from penstock.connectors.base import Batch, Raw, Reader, Source
from penstock.engine.errors import Temporary
from penstock.engine.items import Item
from penstock.engine.plan import Split
from penstock.engine.results import DeadLetter
from penstock.jobs.forecasting.forecast import Interval, exactly, mean_interval, rows_from_bytes, share_interval

WHOLE_BYTES = 32_000_000
"""An input up to this size is counted row by row: about a second. A larger one is looked into at `PLACES` places."""
PLACES = 16
BATCH = (512, 4_000_000)
"""Records and bytes of one read."""
COMPRESSION = (2.0, 5.0, 15.0)
"""How much larger a compressed text is once unpacked: few, usual, many. A guess from gzip and zstd on JSON."""
PATIENCE_S = 30.0
"""How long a source may bring nothing although it has more: a broker that is well answers within a second."""
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
    """Records as they were read. `sizes`: bytes each took in the input. `positions`: how many positions of a log they
    were found among (offsets have gaps)."""

    records: list[Raw]
    seen: int = 0
    size_bytes: int = 0
    sizes: list[float] = msgspec.field(default_factory=list[float])
    positions: int = 0


MakeIntake = Callable[[str], Callable[[Raw], Item | DeadLetter]]
"""From a split's format to what makes items of its records."""


async def read_sample(source: Source, make_intake: MakeIntake, sample: int, limit: int | None = None) -> Reading:
    """`limit`: the run's own limit of rows. Raises what the source raises."""
    splits = await source.splits(PLACES)
    size = sum(split.size_bytes for split in splits)
    taken = await _count(source, splits, sample, limit) if size <= WHOLE_BYTES or limit is not None else None
    if taken is not None:
        rows: Interval = exactly(float(taken.seen))
        notes: tuple[str, ...] = ()
    else:
        taken = await _look(source, splits, sample)
        rows, notes = _estimate(splits, taken)
    intake = make_intake(splits[0].format if splits else "jsonl")
    return Reading(
        found=tuple(intake(raw) for raw in taken.records),
        rows=rows,
        total_bytes=_total_bytes(splits, taken, rows),
        splits=len(splits),
        whole=rows.exact and len(taken.records) == taken.seen,
        notes=notes,
    )


async def read_at(
    source: Source, make_intake: MakeIntake, places: Mapping[str, Collection[int]]
) -> list[Item | DeadLetter]:
    """The records at these positions. `places`: object id of a split → positions. Raises what the source raises."""
    found: list[Item | DeadLetter] = []
    for split in await source.splits(PLACES):
        if wanted := places.get(split.object_id):
            intake = make_intake(split.format)
            found += [intake(raw) for raw in await _between(source, split, wanted)]
    return found


async def _between(source: Source, split: Split, wanted: Collection[int]) -> list[Raw]:
    last, found = max(wanted), list[Raw]()
    reader = await source.open([(split, min(wanted))])
    try:
        while True:
            batch = await next_batch(reader, last + 1 - min(wanted), BATCH[1])
            found += [raw for raw in batch.records if raw.position.position in wanted]
            if batch.done or not batch.records or batch.records[-1].position.position >= last:
                return found
    finally:
        await reader.close()


def _is_log(split: Split) -> bool:
    """A partition of a topic: what it weighs is known from its records alone, and its positions have gaps."""
    return split.uri.startswith("kafka://")


def _total_bytes(splits: Sequence[Split], taken: Sampled, rows: Interval) -> int:
    if not any(map(_is_log, splits)):
        return sum(split.size_bytes for split in splits)
    return round(rows.likely * mean_interval([float(_size(raw)) for raw in taken.records]).likely)


async def next_batch(reader: Reader, max_records: int, max_bytes: int) -> Batch:
    """The next batch that says something. A source over the network is asked again until it has connected."""
    waited = 0.0
    while True:
        batch = await reader.read(max_records, max_bytes)
        if batch.records or batch.ended or batch.done or batch.again_after_s is None:
            return batch
        if waited > PATIENCE_S:
            raise Temporary(f"the source brought nothing for {PATIENCE_S:.0f} s although it has more. Try again.")
        waited += batch.again_after_s
        await asyncio.sleep(batch.again_after_s)


async def _count(source: Source, splits: Sequence[Split], sample: int, limit: int | None) -> Sampled | None:
    """Read everything (up to `limit` rows); keep a fair sample of it. None: a log whose records are too large for
    that."""
    chance = random.Random(SEED)
    taken = Sampled([])
    log = any(map(_is_log, splits))
    reader = await source.open([(split, split.start) for split in splits])
    try:
        while limit is None or taken.seen < limit:
            batch = await next_batch(reader, *BATCH)
            for record in batch.records[: None if limit is None else limit - taken.seen]:
                _reservoir(taken, record, sample, chance)
            if batch.done:
                break
            if log and limit is None and taken.size_bytes > WHOLE_BYTES:
                return None
    finally:
        await reader.close()
    return taken


def _reservoir(taken: Sampled, record: Raw, sample: int, chance: random.Random) -> None:
    taken.seen += 1
    taken.size_bytes += _size(record)
    if len(taken.records) < sample:
        taken.records.append(record)
    elif (at := chance.randrange(taken.seen)) < sample:
        taken.records[at] = record


async def _look(source: Source, splits: Sequence[Split], sample: int) -> Sampled:
    """The first records of places spread over the whole input."""
    places = _spread(splits)
    each = max(1, -(-sample // len(places)))
    taken = Sampled([])
    for split, at in places:
        reader = await source.open([(split, at)])
        try:
            read = (await next_batch(reader, each + 1, BATCH[1])).records
        finally:
            await reader.close()
        taken.sizes += _sizes(split, read)
        taken.records += read[:each]
        taken.positions += read[:each][-1].position.position + 1 - at if read else 0
    taken.seen = len(taken.records)
    return taken


def _spread(splits: Sequence[Split]) -> list[tuple[Split, int]]:
    """(split, where to begin in it). A log is one long piece: it is looked into at several places."""
    if len(splits) > PLACES:
        return [(split, split.start) for split in (splits[n * len(splits) // PLACES] for n in range(PLACES))]
    return [(split, at) for split in splits for at in _within(split, PLACES // len(splits))]


def _within(split: Split, places: int) -> list[int]:
    if not _is_log(split) or split.end is None:
        return [split.start]
    span = split.end - split.start
    return sorted({split.start + n * span // places for n in range(places)})


def _sizes(split: Split, read: Sequence[Raw]) -> list[float]:
    """Bytes of the input that each record took: the distance to the next one, blank lines and all."""
    if split.unit == "bytes" and not split.compression:
        at = [raw.position.position for raw in read]
        return [float(after - here) for here, after in itertools.pairwise(at)]
    return [float(_size(raw)) + 1 for raw in read]


def _size(raw: Raw) -> int:
    return raw.length or len(raw.row_json or raw.data)


def _estimate(splits: Sequence[Split], taken: Sampled) -> tuple[Interval, tuple[str, ...]]:
    """Rows of a large input: known for tables, from bytes for text, a wide guess where text is compressed."""
    logs = [s for s in splits if _is_log(s) and s.end is not None]
    tables = [s for s in splits if s.unit == "rows" and s.end is not None and not _is_log(s)]
    plain = sum(s.size_bytes for s in splits if s.unit == "bytes" and not s.compression)
    packed = sum(s.size_bytes for s in splits if s.unit == "bytes" and s.compression)
    rows = exactly(float(sum((s.end or 0) - s.start for s in tables)))
    notes: list[str] = []
    if logs:
        offsets = exactly(float(sum((s.end or 0) - s.start for s in logs)))
        rows = rows + offsets.times(share_interval(taken.seen, taken.positions))
        notes.append("records are estimated from offsets, which have gaps: the topic is large")
    if plain:
        rows = rows + rows_from_bytes(plain, taken.sizes)
        notes.append("rows are estimated from bytes: the input is large")
    if packed:
        few, usual, many = COMPRESSION
        by = rows_from_bytes(packed, taken.sizes)
        rows = rows + Interval(by.low * few, by.likely * usual, by.high * many)
        notes.append("a large compressed input can't be counted without reading it: its rows are a wide guess")
    return rows, tuple(notes)
