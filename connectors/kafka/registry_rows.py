"""What the dead letters of a topic hold that is read by a registry's schema: the values themselves → their rows, for a
source that knows no registry."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager

from penstock.connectors.kafka.registry_formats import RegistryFormat, RegistryRecords
from penstock.connectors.kafka.source import connection_of
from penstock.connectors.settings import KafkaSource
from penstock.engine.errors import BadRecord

AGAIN_S = 0.02
ToRow = Callable[[bytes], bytes]


@contextmanager
def rows_of(source: KafkaSource, format: RegistryFormat) -> Generator[ToRow]:
    """What is no such value, or can't be read, stays as it is. Blocking; raises what a registry that can't be asked
    does."""
    records = RegistryRecords(format, connection_of(source))
    with asyncio.Runner() as runner:
        try:
            yield lambda value: runner.run(_row(records, value))
        finally:
            runner.run(records.schemas.close())


async def _row(records: RegistryRecords, value: bytes) -> bytes:
    try:
        while (row := records.row(value)) is None:
            await asyncio.sleep(AGAIN_S)
            if records.schemas.trouble is not None:
                raise records.schemas.trouble
        return row
    except BadRecord:
        return value
