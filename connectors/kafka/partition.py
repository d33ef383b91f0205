"""One partition as a lane reads it: where it stands, what waits to be handed out, what was lost. No I/O here.

`next` is the first offset that was not fetched yet. Offsets have gaps (compaction, transaction markers, aborted
records): the client's own position moves over them, and `moved` follows it.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Collection, Sequence

import msgspec
from aiokafka import TopicPartition
from aiokafka.structs import ConsumerRecord

from penstock.connectors.base import Raw
from penstock.connectors.formats.json_lines import invalid_utf8
from penstock.connectors.formats.lines import HEAD_BYTES, MAX_RECORD_BYTES
from penstock.engine.items import Position
from penstock.engine.plan import Split

Record = ConsumerRecord[bytes, bytes]
Make = Callable[[Split, Record], Raw | None]
"""A record as `Raw`; None: what its format needs is not there yet, ask again."""


ASKED_OFTEN = 10
"""So many fetches between two looks that brought nothing mean something."""


class Name(msgspec.Struct, frozen=True):
    """What a split's `object_id` says: `topic@topic_id/partition`. Neither `@` nor `/` can be in a topic's name."""

    topic: str
    topic_id: str
    partition: int

    @classmethod
    def read(cls, object_id: str) -> Name:
        topic, _, rest = object_id.partition("@")
        topic_id, _, partition = rest.rpartition("/")
        return cls(topic, topic_id, int(partition))

    def is_among(self, known: Collection[str]) -> bool:
        """Whether one of these object ids is this partition's. A broker that is too old tells no ids: amid a cluster's
        upgrade, and behind it, what one side names without an id is not new for that."""
        if not self.topic_id:
            head, tail = f"{self.topic}@", f"/{self.partition}"
            return any(one.startswith(head) and one.endswith(tail) for one in known)
        return str(self) in known or f"{self.topic}@/{self.partition}" in known

    def __str__(self) -> str:
        return f"{self.topic}@{self.topic_id}/{self.partition}"


class Partition:
    """`doubted`: its topic is not the one that was planned, or not there, or has no such partition; since when (by the
    caller's clock). `strayed`: the broker said that `next` is out of range; since when."""

    def __init__(self, split: Split, start: int, make: Make) -> None:
        self.split = split
        self.name = Name.read(split.object_id)
        self.tp = TopicPartition(self.name.topic, self.name.partition)
        self.next = start
        self.doubted: float | None = None
        self.strayed: float | None = None
        self.gone = False
        self.end_offset: int | None = None
        """Where the log ended when somebody last looked."""
        self.careful = 0
        """So many records more are fetched one by one: the client choked on one of them."""
        self.asked = 0
        """Fetches since the last look."""
        self._looked_at = -1
        self._stalls = 0
        self._make = make
        self._told: deque[Raw] = deque()
        """Stands before the records."""
        self._records: deque[Record] = deque()

    @property
    def empty(self) -> bool:
        """Nothing waits to be handed out."""
        return not (self._told or self._records)

    @property
    def all_fetched(self) -> bool:
        return self.gone or (self.split.end is not None and self.next >= self.split.end)

    @property
    def over(self) -> bool:
        return self.all_fetched and self.empty

    @property
    def wants(self) -> bool:
        """May be fetched from now."""
        return self.empty and not self.all_fetched and self.doubted is None and self.strayed is None

    @property
    def lag(self) -> int:
        """Records (offsets, gaps included) that were not handed out yet."""
        end = self.split.end if self.split.end is not None else self.end_offset
        first = self._records[0].offset if self._records else self.next
        return 0 if end is None or self.gone else max(0, end - first)

    def fetched(self, records: Sequence[Record], position: int) -> None:
        """`position`: the client's, behind these records and the gaps that follow them."""
        self.careful = max(0, self.careful - len(records))
        stop = self.split.end
        self._records.extend(r for r in records if r.offset >= self.next and (stop is None or r.offset < stop))
        self.next = max(self.next, position)

    def seen(self, end_offset: int) -> int:
        """A look found the log's end; how many looks in a row saw records there that the client does not bring."""
        self.end_offset = end_offset
        stalled = self.wants and self.next == self._looked_at and self.next < end_offset and self.asked > ASKED_OFTEN
        self._stalls = self._stalls + 1 if stalled else 0
        self._looked_at, self.asked = self.next, 0
        return self._stalls

    def take(self) -> Raw | None:
        """The next record to hand out; None: there is none now."""
        if self._told:
            return self._told.popleft()
        if not self._records:
            return None
        raw = self._make(self.split, self._records[0])
        if raw is not None:
            self._records.popleft()
        return raw

    def drop(self) -> None:
        """Forget what was fetched and not handed out: it may not be ours."""
        if self._records:
            self.next = self._records[0].offset
            self._records.clear()

    def lose_until(self, begin: int) -> None:
        """The log begins at `begin` now: tell of what is gone, once, and go on there."""
        upto = begin if self.split.end is None else min(begin, self.split.end)
        place = f"{self.tp.topic}/{self.tp.partition}"
        gone = f"{_offsets(self.next, upto)} of {place} were deleted (by retention, or by hand)"
        self._tell("source_lost", f"{gone}: those among them that were not done yet are lost", (self.next, upto))
        self.next = begin
        self.strayed = None

    def vanish(self, why: str) -> None:
        """The topic that was planned is gone for good: tell it, and end."""
        self.drop()
        gone = (self.next, self.split.end)
        self._tell("source_lost", f"{why}: what was not done yet of {_offsets(*gone)} is lost", gone)
        self.gone, self.doubted, self.strayed = True, None, None

    def skip_unreadable(self, why: str) -> None:
        """The client can't take apart the record at `next`, or one in front of it in the same batch."""
        place = f"offset {self.next} of {self.tp.topic}/{self.tp.partition}"
        self._tell("malformed", f"the record at {place} can't be taken apart: {why}")
        self.next += 1

    def _tell(self, reason: str, message: str, lost: tuple[int, int | None] | None = None) -> None:
        place = Position(self.split.id, self.split.ordinal, self.next)
        self._told.append(Raw(place, self.split.object_id, error=(reason, message), lost=lost))


def _offsets(first: int, end: int | None) -> str:
    return f"offset {first} and all that follow" if end is None else f"offsets {first}..{end - 1}"


def text_record(split: Split, record: Record) -> Raw:
    """A record whose value is JSON text."""
    value = record.value
    error: tuple[str, str] | None = None
    if value is None:
        error = ("malformed", "the record has no value (a tombstone): there is nothing to work on")
    elif len(value) > MAX_RECORD_BYTES:
        return too_large(split, record, value)
    elif not value.isascii() and (why := invalid_utf8(value)) is not None:
        error = ("malformed", why)
    return raw(split, record, value or b"", error=error)


def too_large(split: Split, record: Record, value: bytes) -> Raw:
    message = f"the record has {len(value):,} bytes; the longest allowed has {MAX_RECORD_BYTES:,}"
    digest = hashlib.blake2b(value, digest_size=16).hexdigest()
    made = raw(split, record, value[:HEAD_BYTES], error=("too_large", message))
    return msgspec.structs.replace(made, length=len(value), digest=digest)


FIRST_MS, LAST_MS = 946_684_800_000, 4_102_444_800_000
"""The years 2000 to 2099."""


def record_time(unix_ms: int) -> float | None:
    """A record's timestamp as Unix seconds. None: it has none, or one that is no time, as that of a producer which
    writes seconds or microseconds where Kafka has milliseconds."""
    return unix_ms / 1000 if FIRST_MS <= unix_ms < LAST_MS else None


def raw(
    split: Split,
    record: Record,
    data: bytes,
    *,
    row_json: bytes | None = None,
    error: tuple[str, str] | None = None,
) -> Raw:
    return Raw(
        Position(split.id, split.ordinal, record.offset),
        split.object_id,
        data,
        row_json,
        error,
        record.key,
        tuple((name, value or b"") for name, value in record.headers) if record.headers else (),
        record_time(record.timestamp),
        len(data),
    )
