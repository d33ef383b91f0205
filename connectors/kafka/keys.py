"""Names in a Kafka cluster: transactional ids, keys of the progress topic, and which partition holds what.

The progress topic's first partitions are for control records (who holds the run, which epoch owns a lane): few and
small, so that the tail of one of them says cheaply who owns what. The others hold the lanes' progress and plans,
spread so that one lane's open transaction hides nothing from the next lane.
"""

from __future__ import annotations

import hashlib
import re
import zlib

import msgspec

PLAN = -1
"""The plan's place among the lanes."""
MAX_ID = 200
"""Characters of a transactional id that we use; brokers take 32,767, their tools' tables do not."""
_SAFE = re.compile(r"[^A-Za-z0-9._-]")


class Scope(msgspec.Struct, frozen=True):
    """One store's records among those of other runs. `name`: the run's id; a follower adds a sink of its own, for it
    may turn out to be the primary's own cluster under another address."""

    name: str
    partitions: int
    """Of the progress topic, frozen when the topic was first used."""

    @property
    def control(self) -> int:
        return self._hash % _controls(self.partitions)

    def data(self, lane: int) -> int:
        """The partition of a lane's progress, or of the plan."""
        first = _controls(self.partitions) if self.partitions > 1 else 0
        return first + (self._hash + lane + 1) % (self.partitions - first)

    def key(self, *parts: str) -> bytes:
        return "\0".join((self.name, *parts)).encode()

    def parts(self, key: bytes | None) -> list[str] | None:
        """The parts of a key of ours; None for those of others."""
        prefix = self.name.encode() + b"\0"
        return key.removeprefix(prefix).decode().split("\0") if key and key.startswith(prefix) else None

    def transactional_id(self, of: int | str) -> str:
        """`of`: a lane, or `driver`. Whoever starts a producer under it fences the one before."""
        safe = _SAFE.sub("-", self.name)[:MAX_ID]
        if safe != self.name:
            safe += "." + hashlib.blake2b(self.name.encode(), digest_size=6).hexdigest()
        return f"penstock-{safe}-{of}"

    @property
    def _hash(self) -> int:
        return zlib.crc32(self.name.encode())


def _controls(partitions: int) -> int:
    return max(1, partitions // 8)
