"""The durable plan of a run: its frozen input, bundled into lanes. Written once, then only appended to."""

from __future__ import annotations

import msgspec

MAX_LANES = 64
"""One transactional producer a lane: 48 lanes on one broker still commit in 14 ms, 144 take 618 ms (measured)."""

Epoch = tuple[int, int]
"""(run epoch, lane epoch); compared as a tuple; monotone; lives in the primary store."""


class Split(msgspec.Struct, frozen=True, gc=False):
    """A piece of input, named by content and never by index.

    It holds the records whose position `p` satisfies `start <= p < end` (`end` None: to the end of the object).
    Positions are byte offsets of a record's first byte (`unit: bytes`) or row numbers (`unit: rows`), absolute in the
    object. `id` names object, content version and range; `object_id` names object and content version only, and is
    what an item's identity is made of.
    """

    id: str
    object_id: str
    ordinal: int
    """Place in input order; unique in the plan."""
    lane: int
    uri: str
    start: int
    end: int | None
    unit: str = "bytes"
    format: str = "jsonl"
    compression: str | None = None
    size_bytes: int = 0


class Plan(msgspec.Struct, frozen=True):
    """What a run froze. `version` grows with every append of new inputs."""

    run_id: str
    name: str
    vars: dict[str, str]
    lanes: int
    splits: tuple[Split, ...]
    fingerprint: dict[str, str]
    """Part of the job → hash of it; parts that change answers must match on resume or be accepted."""
    created_at: float
    version: int = 1
    generation: int = 0
    bounded: bool = True
    started: bool = False
    """Every lane has committed once. From then on a lane without progress is corrupt, not new."""
    sinks: dict[str, str] = {}
    """Sink name → the store that takes its records: `primary`, or a follower's key."""
    joined_at: float = 0.0
    """When a command found input that joined it, the last time (Unix seconds); 0: none joined since it was made."""
    topics: dict[str, str] = {}
    """Sink name → its topic, of those on Kafka: what is written to one stays there."""
