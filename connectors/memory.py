"""A source and a store that ship: for tests, rehearsals and `ps.map`. They keep every promise of `connectors.base`.

Both are found by name within one process. The source carries its crashes in the data, the store in a script of steps.

Example:
    >>> source = MemorySource("orders", [b'{"n": 1}', CRASH, b'{"n": 2}'])
    >>> store = MemoryStore("orders", faults=crash_at("commit.applied", 2))
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import get_args

import msgspec

from penstock.connectors.base import Batch, Holder, OutRecord, Raw, Records, SinkName, Source, Taken
from penstock.connectors.filestore.disk import Faults, no_faults
from penstock.engine.errors import Corrupt, Fenced, Held, SpecError, Temporary
from penstock.engine.items import Position
from penstock.engine.plan import Epoch, Plan, Split

SINKS: tuple[SinkName, ...] = get_args(SinkName)


class Crash(Exception):
    """The process ends here. Deliberately no `PenstockError`: nothing of ours may handle it."""


def crash_at(step: str, nth: int = 1) -> Faults:
    """A script that raises `Crash` the `nth` time that `step` is reached, once."""
    seen = 0

    def faults(name: str) -> None:
        nonlocal seen
        seen += name == step
        if name == step and seen == nth:
            raise Crash(f"{step} (number {nth})")

    return faults


# the store


class _Lane(msgspec.Struct):
    owner: Epoch = (0, 0)
    holder: object | None = None
    seq: int = 0
    epoch: Epoch = (0, 0)
    chunks: dict[str, bytes] = {}


class _Shared(msgspec.Struct):
    """What outlives a crash: the "disk" of all stores of one name."""

    lanes: dict[int, _Lane] = {}
    records: dict[str, list[OutRecord]] = {}
    plan: Plan | None = None
    run_epoch: int = 0
    holder: Holder | None = None
    held_by: object | None = None


_stores: dict[str, _Shared] = {}
_sources: dict[str, Source] = {}


def forget(name: str) -> None:
    """Drop the store and the source of that name."""
    _stores.pop(name, None)
    _sources.pop(name, None)


class MemoryStore:
    """One process's handle on the store `name`. Two handles stand for two processes.

    Steps, for `faults`: take.begin, take.applied, commit.begin, commit.applied (the commit is there, its answer is
    lost). `crash()` ends a handle as `kill -9` would: its locks fall, what is committed stays.
    """

    def __init__(self, name: str, faults: Faults = no_faults) -> None:
        self.name = name
        self._shared = _stores.setdefault(name, _Shared())
        self._faults = faults
        self._lost: dict[int, Epoch] = {}
        """Lanes with an uncertain commit, by the epoch under which it happened."""

    def _lane(self, lane: int) -> _Lane:
        return self._shared.lanes.setdefault(lane, _Lane())

    async def take(self, lane: int, epoch: Epoch, *, force: bool = False) -> Taken:
        self._faults("take.begin")
        here = self._lane(lane)
        if here.owner >= epoch:
            raise Fenced(f"{self.name}: lane {lane} is owned by epoch {here.owner}; ours is {epoch}.")
        if here.holder not in (None, self) and not force:
            raise Held(f"{self.name}: lane {lane} is still held. Release it, or use --take-over.")
        here.owner, here.holder = epoch, self
        self._lost.pop(lane, None)
        self._faults("take.applied")
        return Taken(here.seq, here.epoch, dict(here.chunks))

    async def commit(self, lane: int, epoch: Epoch, seq: int, records: Records, chunks: Mapping[str, bytes]) -> None:
        here = self._lane(lane)
        self._check(lane, here, epoch, seq)
        if seq <= here.seq:
            return
        try:
            self._faults("commit.begin")
            self._apply(here, epoch, seq, records, chunks)
            self._faults("commit.applied")
        except BaseException:
            self._lost[lane] = epoch
            raise

    def _check(self, lane: int, here: _Lane, epoch: Epoch, seq: int) -> None:
        if here.owner != epoch or here.holder is not self:
            raise Fenced(f"{self.name}: lane {lane} is owned by epoch {here.owner}; ours is {epoch}.")
        if self._lost.get(lane) == epoch:
            raise Temporary(f"{self.name}: the last commit of lane {lane} is uncertain. Take it anew and read.")
        if seq > here.seq + 1:
            raise Corrupt(f"{self.name}: commit {seq} cannot follow commit {here.seq}. Take the lane anew.")

    def _apply(self, here: _Lane, epoch: Epoch, seq: int, records: Records, chunks: Mapping[str, bytes]) -> None:
        merged = {**here.chunks, **chunks}
        for sink, rows in records.items():
            self._shared.records.setdefault(sink, []).extend(rows)
        here.seq, here.epoch, here.chunks = seq, epoch, {k: v for k, v in merged.items() if v}

    async def owner(self, lane: int) -> Epoch:
        return self._lane(lane).owner

    async def release(self, lane: int, epoch: Epoch | None = None) -> None:
        here = self._lane(lane)
        if here.holder is self and epoch in (None, here.owner):
            here.holder = None

    def crash(self) -> None:
        """End this handle as a killed process ends."""
        for here in self._shared.lanes.values():
            if here.holder is self:
                here.holder = None
        if self._shared.held_by is self:
            self._shared.held_by = None

    async def hold(self, holder: Holder, *, take_over: bool = False, above: int = 0) -> int:
        if self._shared.held_by not in (None, self) and not take_over:
            who = self._shared.holder
            name = f"{who.user}@{who.host}, process {who.pid}" if who else "another command"
            raise Held(f"this run is held by {name}. Wait for it, or use --take-over.")
        self._shared.held_by, self._shared.holder = self, holder
        self._shared.run_epoch = max(self._shared.run_epoch, above) + 1
        return self._shared.run_epoch

    async def let_go(self) -> None:
        if self._shared.held_by is self:
            self._shared.held_by = None

    async def holder(self) -> Holder | None:
        return self._shared.holder if self._shared.held_by is not None else None

    async def run_epoch(self) -> int:
        return self._shared.run_epoch

    async def read_plan(self) -> Plan | None:
        return self._shared.plan

    async def write_plan(self, plan: Plan) -> None:
        stored = self._shared.plan.version if self._shared.plan else 0
        if plan.version != stored + 1:
            raise Fenced(f"{self.name}: the plan is at version {stored}, not {plan.version - 1}. Read it anew.")
        self._shared.plan = plan

    async def peek(self, lane: int) -> Taken:
        here = self._lane(lane)
        return Taken(here.seq, here.epoch, dict(here.chunks))

    async def finish(self, plan: Plan) -> dict[str, list[str]]:
        return {sink: [f"memory:{self.name}/{sink}"] for sink in SINKS}

    def values(self, sink: str) -> list[bytes]:
        """Committed records of one sink, in input order."""
        rows = self._shared.records.get(sink, [])
        return [r.value for r in sorted(rows, key=lambda r: (r.ordinal, r.position, r.sub))]


class MemoryPlace:
    """Implements `base.Place`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def open(self) -> MemoryStore:
        return MemoryStore(self._name)

    async def refuse_held(self) -> None:
        """Nobody outside this process can hold it."""

    async def discard(self) -> None:
        forget(self._name)

    def committed(self, sink: SinkName) -> Iterator[bytes]:
        yield from MemoryStore(self._name).values(sink)


# the source


class Marker(enum.Enum):
    """What may stand among a source's items. Each happens once: the next reader goes on behind it."""

    CRASH = "crash"
    """`read` raises `Crash`."""
    STALL = "stall"
    """`read` says that nothing is there now."""
    EOF = "eof"
    """The reader ends here; one that is opened later goes on."""


CRASH, STALL, EOF = Marker.CRASH, Marker.STALL, Marker.EOF
STALL_S = 0.01
"""What a stalled reader asks its caller to wait."""


class MemorySource:
    """A list of records with crashes in it. Positions are the numbers of the records; markers have none.

    items: JSON lines (bytes), or mappings (rows of a table), or markers.
    """

    def __init__(self, name: str, items: Iterable[bytes | Mapping[str, object] | Marker]) -> None:
        self.name = name
        self._records: list[Raw] = []
        self._markers: dict[int, list[Marker]] = {}
        """Record number → markers that stand in front of it."""
        for item in items:
            if isinstance(item, Marker):
                self._markers.setdefault(len(self._records), []).append(item)
            else:
                self._records.append(raw_of(f"memory:{name}", len(self._records), item))
        publish(name, self)

    def __len__(self) -> int:
        return len(self._records)

    async def splits(self, lanes_hint: int) -> list[Split]:
        count = max(1, min(lanes_hint, len(self._records)))
        cuts = [len(self._records) * n // count for n in range(count + 1)]
        return [self._split(start, end) for start, end in itertools.pairwise(cuts)]

    def _split(self, start: int, end: int) -> Split:
        size = sum(len(r.data) + len(r.row_json or b"") for r in self._records[start:end])
        return Split(
            id=f"memory:{self.name}:{start}-{end}",
            object_id=f"memory:{self.name}",
            ordinal=0,
            lane=0,
            uri=f"memory:{self.name}",
            start=start,
            end=end,
            unit="rows",
            size_bytes=size,
        )

    async def open(self, starts: Sequence[tuple[Split, int]]) -> MemoryReader:
        return MemoryReader(self, starts)

    def has_marker(self, number: int) -> bool:
        return bool(self._markers.get(number))

    def take_marker(self, number: int) -> Marker:
        """Take the marker in front of record `number` out of the data: it happens once."""
        return self._markers[number].pop(0)

    def record(self, number: int, split: Split) -> Raw:
        raw = self._records[number]
        return msgspec.structs.replace(raw, position=Position(split.id, split.ordinal, number))


def raw_of(object_id: str, number: int, item: bytes | Mapping[str, object]) -> Raw:
    """A JSON line, or a row of a table, as record `number` of its object."""
    where = Position(object_id, 0, number)
    if isinstance(item, bytes):
        return Raw(where, object_id, data=item, length=len(item))
    row = msgspec.json.encode(item)
    return Raw(where, object_id, data=row, row_json=row, length=len(row))


class MemoryReader:
    def __init__(self, source: MemorySource, starts: Sequence[tuple[Split, int]]) -> None:
        self._source = source
        self._open = [(split, max(split.start, start)) for split, start in starts]

    async def read(self, max_records: int, max_bytes: int) -> Batch:
        records: list[Raw] = []
        ended: list[str] = []
        size = 0
        while self._open and len(records) < max_records and size < max_bytes:
            split, number = self._open[0]
            if self._source.has_marker(number):
                return Batch(records, tuple(ended)) if records else self._at_marker(number, tuple(ended))
            if split.end is not None and number >= split.end:
                self._open.pop(0)
                ended.append(split.id)
                continue
            records.append(self._source.record(number, split))
            size += records[-1].length
            self._open[0] = (split, number + 1)
        return Batch(records, tuple(ended), done=not self._open)

    def _at_marker(self, number: int, ended: tuple[str, ...]) -> Batch:
        match self._source.take_marker(number):
            case Marker.CRASH:
                raise Crash(f"{self._source.name}, in front of record {number}")
            case Marker.STALL:
                return Batch([], ended, again_after_s=STALL_S)
            case Marker.EOF:
                self._open.clear()
                return Batch([], ended, done=True)

    async def close(self) -> None:
        self._open.clear()


def publish(name: str, source: Source) -> None:
    """Let `source(name)` find it."""
    _sources[name] = source


def source(name: str) -> Source:
    """The source published under `name` in this process. Raises `SpecError`."""
    found = _sources.get(name)
    if found is None:
        raise SpecError(f"no memory source named {name!r} in this process. Make MemorySource({name!r}, items) first.")
    return found
