"""A partition read once more, beside its lane, by ordinary code: for the pass that looks for equal labels."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from penstock.connectors.base import Batch, Raw, Reader
from penstock.connectors.kafka.client import ended

READ_RECORDS = 1_000
READ_BYTES = 4_000_000


def records(connect: Callable[[], Coroutine[Any, Any, Reader]]) -> Iterator[Raw]:
    """All that the reader brings, in a loop of its own: whoever asks may do so from one thread after another, none of
    which runs a loop. Raises as the reader does."""
    with asyncio.Runner() as runner:
        reader = runner.run(connect())
        try:
            done = False
            while not done:
                batch = runner.run(_next(reader))
                yield from batch.records
                done = batch.done
        finally:
            runner.run(_closed(reader))


async def _next(reader: Reader) -> Batch:
    batch = await reader.read(READ_RECORDS, READ_BYTES)
    if not batch.records and batch.again_after_s is not None:
        await asyncio.sleep(batch.again_after_s)
    return batch


async def _closed(reader: Reader) -> None:
    await reader.close()
    await ended()
