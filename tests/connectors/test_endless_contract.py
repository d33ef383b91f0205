"""The promises of `base.Source` and `base.Reader` where the input grows for ever, kept by every such source."""

from collections.abc import Callable
from typing import Protocol

import pytest

from penstock.connectors.base import Reader, Source
from penstock.connectors.memory_topic import MemoryTopic
from penstock.engine.plan import Split


class Rig(Protocol):
    """A source of two partitions that a test can add to."""

    source: Source

    def append(self, partition: int, item: bytes) -> None: ...
    def widen(self, partitions: int) -> None: ...


class MemoryRig:
    def __init__(self) -> None:
        self.source = self.topic = MemoryTopic("endless-contract", partitions=2)
        self.append, self.widen = self.topic.append, self.topic.widen


RIGS: dict[str, Callable[[], Rig]] = {"memory": MemoryRig}


@pytest.fixture(params=RIGS)
def rig(request: pytest.FixtureRequest) -> Rig:
    return RIGS[str(request.param)]()


async def named(rig: Rig) -> list[Split]:
    import msgspec

    return [msgspec.structs.replace(split, ordinal=n) for n, split in enumerate(await rig.source.splits(4))]


async def read(reader: Reader, want: int, size: int = 7) -> list[tuple[int, int, bytes]]:
    """`want` records as (ordinal, position, data); the reader may say meanwhile that nothing is there."""
    found: list[tuple[int, int, bytes]] = []
    for _ in range(1000):
        if len(found) >= want:
            return found
        batch = await reader.read(min(size, want - len(found)), 1 << 20)
        assert not batch.done
        assert not batch.ended
        found += [(raw.position.ordinal, raw.position.position, raw.data) for raw in batch.records]
    raise AssertionError(f"only {len(found)} of {want} records came")


async def test_what_is_added_later_comes_too(rig: Rig) -> None:
    """The reader never ends: it says when to ask again, and then has what came meanwhile."""
    splits = await named(rig)
    assert all(split.end is None for split in splits)
    reader = await rig.source.open([(split, split.start) for split in splits])
    empty = await reader.read(10, 1 << 20)
    assert (empty.records, empty.done) == ([], False)
    assert empty.again_after_s is not None
    for n in range(20):
        rig.append(n % 2, b"%d" % n)
    assert sorted(data for _, _, data in await read(reader, 20)) == sorted(b"%d" % n for n in range(20))
    await reader.close()


async def test_a_full_partition_holds_back_no_other(rig: Rig) -> None:
    """One always has records; what comes to the other is read soon."""
    splits = await named(rig)
    for n in range(500):
        rig.append(0, b"bulk %d" % n)
    reader = await rig.source.open([(split, split.start) for split in splits])
    await read(reader, 100)
    rig.append(1, b"the other")
    assert b"the other" in [data for _, _, data in await read(reader, 100)]
    await reader.close()


async def test_a_reader_that_is_replaced_gives_each_record_once(rig: Rig) -> None:
    """As a lane does where partitions are new: closed, and opened behind what was read, the new ones at their start."""
    splits = await named(rig)
    for n in range(60):
        rig.append(n % 2, b"%d" % n)
    reader = await rig.source.open([(split, split.start) for split in splits])
    found = await read(reader, 31)
    await reader.close()
    rig.widen(3)
    rig.append(2, b"60")
    longer = await named(rig)
    assert longer[:2] == splits, "what is known is named the same"
    ends = {ordinal: position + 1 for ordinal, position, _ in found}
    reader = await rig.source.open([(split, ends.get(split.ordinal, split.start)) for split in longer])
    found += await read(reader, 30)
    await reader.close()
    assert sorted(int(data) for _, _, data in found) == list(range(61))
