"""A source that grows while it is read, and never ends: what a topic is, in one process. For tests and rehearsals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from penstock.connectors.base import Batch, Raw
from penstock.connectors.memory import STALL_S, publish, raw_of
from penstock.engine.items import Position
from penstock.engine.plan import Split


class MemoryTopic:
    """Partitions of records; positions are numbers in a partition.

    Example:
        >>> topic = MemoryTopic("orders", partitions=2)
        >>> topic.append(1, b'{"n": 1}')
        >>> topic.widen(3)
    """

    def __init__(self, name: str, partitions: int = 1) -> None:
        self.name = name
        self.partitions: list[list[Raw]] = [[] for _ in range(partitions)]
        publish(name, self)

    def append(self, partition: int, item: bytes | Mapping[str, object]) -> None:
        """One record more, at the end of a partition."""
        records = self.partitions[partition]
        records.append(raw_of(self._id(partition), len(records), item))

    def widen(self, partitions: int) -> None:
        """Add partitions until there are so many."""
        while len(self.partitions) < partitions:
            self.partitions.append([])

    def _id(self, partition: int) -> str:
        return f"memory:{self.name}/{partition}"

    async def splits(self, lanes_hint: int) -> list[Split]:
        names = map(self._id, range(len(self.partitions)))
        return [Split(name, name, ordinal=0, lane=0, uri=name, start=0, end=None, unit="rows") for name in names]

    async def open(self, starts: Sequence[tuple[Split, int]]) -> TopicReader:
        return TopicReader(self, starts)

    def records(self, split: Split, start: int, count: int) -> list[Raw]:
        """At most `count` of a split, from position `start`."""
        found = self.partitions[_number(split)][start : min(start + count, self.length(split))]
        return [
            msgspec.structs.replace(raw, position=Position(split.id, split.ordinal, raw.position.position))
            for raw in found
        ]

    def length(self, split: Split) -> int:
        """What there is of it by now."""
        there = len(self.partitions[_number(split)])
        return there if split.end is None else min(there, split.end)


class TopicReader:
    def __init__(self, topic: MemoryTopic, starts: Sequence[tuple[Split, int]]) -> None:
        self._topic = topic
        self._at = [(split, max(split.start, start)) for split, start in starts]

    async def read(self, max_records: int, max_bytes: int) -> Batch:
        """An equal share of each partition that has records; whoever was read last comes last the next time."""
        records: list[Raw] = []
        size = 0
        for left in range(len(self._at), 0, -1):
            if len(records) >= max_records or size >= max_bytes:
                break
            split, start = self._at.pop(0)
            found = self._topic.records(split, start, -(-(max_records - len(records)) // left))
            records += found
            size += sum(raw.length for raw in found)
            self._at.append((split, start + len(found)))
        done = all(split.end is not None and at >= split.end for split, at in self._at)
        return Batch(records, again_after_s=None if records or done else STALL_S, done=done)

    def lag(self) -> dict[str, int]:
        return {self._topic.name: sum(self._topic.length(split) - at for split, at in self._at)}

    async def close(self) -> None:
        self._at.clear()


def _number(split: Split) -> int:
    return int(split.id.rpartition("/")[2])
