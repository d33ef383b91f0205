"""The source that ships: a list with crashes in it."""

from __future__ import annotations

import pytest

from penstock.connectors import memory
from penstock.connectors.memory import CRASH, EOF, STALL, Crash, MemorySource
from penstock.connectors.registry import open_source
from penstock.connectors.settings import MemorySource as Settings
from penstock.engine.errors import SpecError


async def test_crashes_stalls_and_ends_stand_in_the_data_and_happen_once() -> None:
    """Records in front of a marker come first; then it happens; a reader opened anew goes on behind it."""
    source = MemorySource("marked", [b"0", b"1", CRASH, b"2", STALL, b"3", EOF, {"n": 4}])
    (split,) = await source.splits(1)
    reader = await source.open([(split, 0)])
    assert [r.data for r in (await reader.read(10, 1000)).records] == [b"0", b"1"]
    with pytest.raises(Crash):
        await reader.read(10, 1000)
    reader = await source.open([(split, 1)])
    assert [r.data for r in (await reader.read(10, 1000)).records] == [b"1", b"2"]
    assert (await reader.read(10, 1000)).again_after_s
    assert [r.data for r in (await reader.read(10, 1000)).records] == [b"3"]
    assert (await reader.read(10, 1000)).done
    reader = await source.open([(split, 4)])
    batch = await reader.read(10, 1000)
    assert [r.row_json for r in batch.records] == [b'{"n":4}']
    assert (batch.done, batch.ended) == (True, (split.id,))
    memory.forget("marked")


async def test_splits_cover_every_record_once() -> None:
    """However many lanes are hinted at; `max_records` and `max_bytes` end a batch, never a split."""
    source = open_source(Settings(MemorySource("plain", [b"%d" % n for n in range(10)]).name))
    for hint in (1, 3, 10, 64):
        found: list[int] = []
        for split in await source.splits(hint):
            reader = await source.open([(split, split.start)])
            batch = await reader.read(2, 1)
            while not batch.done or batch.records:
                found += [r.position.position for r in batch.records]
                batch = await reader.read(2, 1)
        assert found == list(range(10))
    memory.forget("plain")
    with pytest.raises(SpecError, match="plain"):
        open_source(Settings("plain"))
