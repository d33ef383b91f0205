"""A source read by itself, without lanes: from where it was left, to its present end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

import msgspec

from penstock.connectors.base import Raw, Source
from penstock.connectors.settings import KafkaSource, SourceSettings
from penstock.engine.plan import Split

BATCH = 1_000
BATCH_BYTES = 4_000_000


def to_the_end(settings: SourceSettings) -> SourceSettings:
    """A topic without an end is read to where it ends now."""
    return msgspec.structs.replace(settings, until="end") if isinstance(settings, KafkaSource) else settings


async def records_from(
    source: Source, splits: Sequence[Split], cursors: Mapping[str, int]
) -> AsyncIterator[tuple[Split, list[Raw]]]:
    """Batches of one split at a time. `splits`: as the source made them. `cursors`: object id → first position that is
    wanted; it may be moved on while this goes, as batches are dealt with. Raises what sources raise."""
    for split in splits:
        start = max(split.start, cursors.get(split.object_id, 0))
        if split.end is not None and start >= split.end:
            continue
        reader = await source.open([(split, start)])
        try:
            while True:
                batch = await reader.read(BATCH, BATCH_BYTES)
                if batch.records:
                    yield split, batch.records
                if batch.done or split.id in batch.ended:
                    break
                if batch.again_after_s is not None:
                    await asyncio.sleep(batch.again_after_s)
        finally:
            await reader.close()
