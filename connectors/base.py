"""The seam between Penstock and the world: `Source`, `Reader`, `Store`, and their promises in words.

A **source** is seekable and keeps no truth: which items are done is known by the primary store alone.
A **store** is one Kafka cluster, one S3 bucket or one folder tree. The *primary* holds the results and the lanes'
progress; other stores are *followers* that hold records only.
"""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import msgspec

from penstock.engine.errors import Fenced, SpecError
from penstock.engine.items import Position
from penstock.engine.plan import Epoch, Plan, Split

if TYPE_CHECKING:  # numpy comes with it, and a job file is read without
    from penstock.engine.flow.progress import Saved

SinkName = Literal["results", "costs", "quality", "dead_letters", "review"]


class Raw(msgspec.Struct, frozen=True, gc=False):
    """One record as the source holds it. Of `data`, `row_json` and `error` the last that is set matters.

    data: the record's bytes (a JSON line). row_json: a row as a JSON object (CSV, Parquet, Avro); what a dead letter
    shows of it is `data`, where there is any.
    error: (reason, message) where the record can't be read; `data` then holds what there is of it (at most 1 MB).
    """

    position: Position
    object_id: str
    data: bytes = b""
    row_json: bytes | None = None
    error: tuple[str, str] | None = None
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp: float | None = None
    length: int = 0
    """Full length in bytes where `data` holds only the head."""
    digest: str = ""
    """blake2b-128 (hex) of the whole record where `data` holds only the head."""
    lost: tuple[int, int | None] | None = None
    """Positions that are gone (first, and one behind the last; None: all that follow), of which `error` tells.
    Some may have been read by an earlier owner of the lane, and have ended; `position` is the first."""


class Batch(msgspec.Struct, frozen=True):
    """`ended`: ids of splits that have no more records. `done`: the reader will never return records again.
    `again_after_s`: nothing is there now; ask again after so many seconds (a reader never sleeps)."""

    records: list[Raw]
    ended: tuple[str, ...] = ()
    done: bool = False
    again_after_s: float | None = None


class Reader(Protocol):
    """Reads one lane's splits in ascending position within each split.

    Promises: a record comes once per reader; positions in a split grow strictly; opened again at position p it yields
    exactly the records with position >= p, the same bytes, the same positions. A record that can't be read is a `Raw`
    with `error`, not an exception; records that are gone are one that says which (`lost`), told again by a reader that
    is opened among them. Not promised: order between splits, or that positions are dense.

    Splits that never end (`Split.end` None in an endless source) are read fairly: one that always has records holds
    back no other. Such a reader is never `done`; where nothing is there it says `again_after_s`.

    A reader takes no new splits. A lane that gets some closes its reader and opens another: each split that has not
    ended one position behind the last record it was given, the new ones at their start. So a record still comes once.
    Raises `Temporary` where the input can't be reached now, `BadRecord("source_lost")` where it changed or vanished.
    """

    async def read(self, max_records: int, max_bytes: int) -> Batch: ...
    async def close(self) -> None: ...


@runtime_checkable
class Lagging(Protocol):
    """A reader whose input goes on growing."""

    def lag(self) -> dict[str, int]:
        """Topic → records that are there and not read yet, as far as is known without asking."""
        ...


class Source(Protocol):
    async def splits(self, lanes_hint: int) -> list[Split]:
        """List the input, in input order, cut so that `lanes_hint` lanes have work. `ordinal` and `lane` are 0: the
        planner sets them. An endless run lists again and again: what is known keeps its `object_id`. Raises `NoInput`
        where nothing matches, `SpecError` where a name can't be read, `Temporary` where the input can't be reached
        now."""
        ...

    async def open(self, starts: Sequence[tuple[Split, int]]) -> Reader:
        """`starts`: splits of one lane, each with the first position wanted: its watermark, or one behind the
        last record that was read."""
        ...


@runtime_checkable
class Rereadable(Protocol):
    """A source that can be read beside its lanes: for passes over the whole input (duplicate labels)."""

    def rereading(self, splits: Sequence[Split]) -> Callable[[Split, int], Iterator[Raw]]:
        """(split, first position) → its records from there: the same that a `Reader` gives, raising as it does. The
        iterators block. `splits` says in which order they will be asked for."""
        ...


class Later(msgspec.Struct, frozen=True):
    """missing: what of the source is not there now, in words."""

    splits: list[Split]
    missing: str | None = None


@runtime_checkable
class Growing(Protocol):
    """A source whose settings say where it is begun: that counts once, and for what is there then."""

    async def later(self, known: Collection[str]) -> Later:
        """What is there beside the objects `known` to a plan, each wanted whole. Raises what `splits` raises, but where
        the source has no end and only a part of it is missing: what is there goes on."""
        ...


@runtime_checkable
class Revisited(Protocol):
    """A source of whole objects, listed again by each command of a run."""

    async def beside(self, plan: Plan) -> Later:
        """What is there beside the objects that the plan knows. These need not be readable: they may have been archived
        since. One whose content the plan knows under another `object_id` is no new one: whoever took it for that would
        pay for all of it again. No input at all is no error, for all of it may have ended. Raises what `splits` raises
        else."""
        ...


class Mirror(Protocol):
    """Shows a lane's progress to tools that look at the source; never read back. It raises nothing."""

    def told(self, lane: int, splits: Sequence[Split], saved: Saved) -> None:
        """A lane's progress that is durable. `splits`: those of the lane."""
        ...

    def leaves(self, lane: int) -> None:
        """What it told last is shown once more: from then on its next owner tells."""
        ...

    async def close(self) -> None: ...


class OutRecord(msgspec.Struct, frozen=True, gc=False):
    """One record on its way out: a JSON line (no newline) and its place in input order.

    (`ordinal`, `position`, `sub`) sorts records into input order; `sub` tells several records of one item apart.
    """

    ordinal: int
    position: int
    value: bytes
    sub: int = 0
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    item_id: str = ""
    """Whose record it is, for stores that file records under names; empty for closing lines."""


Records = Mapping[str, Sequence[OutRecord]]
"""Sink name → records, in the order in which they were decided."""


class Taken(msgspec.Struct, frozen=True):
    """What `take` returns: the last committed seq (0: none yet) and the lane's chunks (progress, outbox, shelf)."""

    seq: int
    epoch: Epoch
    """The epoch that wrote it; (0, 0): this lane never committed."""
    chunks: dict[str, bytes]


class Store(Protocol):
    """Exactly-once home of a lane's records.

    * `take(lane, epoch)` fences every older epoch, then reads. After it returns, no commit of an older epoch can take
      effect. Raises `Fenced` where an equal or higher epoch is there, `Held` where the old owner still holds the lane
      and `force` is False, `Corrupt` where progress can't be read.
    * `commit(lane, epoch, seq, records, chunks)` is atomic: after a crash at any point all of it is there or nothing.
      `seq` must be the last one + 1; one that was committed before is a no-op (so an outbox may be sent again from its
      start, whatever each follower has); a gap is `Corrupt`; an older epoch gets `Fenced`. `chunks` holds only
      those that changed; an empty value deletes. It is durable when it returns. Raises `Temporary` where it is
      *uncertain* (disk full, lost connection): take anew, read, decide from that.
    * `owner(lane)` reads the highest epoch, cheaply.
    * `release(lane, epoch)` lets go of it, unless a newer owner of this process has it by then (`epoch` None: whoever
      has it).
    * Readers of the output never see what is not committed.
    """

    async def take(self, lane: int, epoch: Epoch, *, force: bool = False) -> Taken: ...
    async def commit(
        self, lane: int, epoch: Epoch, seq: int, records: Records, chunks: Mapping[str, bytes]
    ) -> None: ...
    async def owner(self, lane: int) -> Epoch: ...
    async def release(self, lane: int, epoch: Epoch | None = None) -> None: ...


@runtime_checkable
class Bounded(Protocol):
    """A store that can't take every record."""

    def refuses(self, sink: SinkName, record: OutRecord) -> str | None:
        """Why it can't take this one, in words; None: it can. Known once the lane was taken. A record that is committed
        all the same is `Refused`."""
        ...


class Holder(msgspec.Struct, frozen=True):
    """Who holds a run, in words for the person who is refused."""

    host: str
    pid: int
    user: str
    since: float
    command: str = ""


class Mark(msgspec.Struct, frozen=True):
    """What a process on another node must find, so that it is taken to see a folder of the run as the marking one does:
    see `filestore.common`."""

    what: str
    """In the words of the person who is refused: `the state`, `the input`, `the results`."""
    path: str
    content: str
    """Of a mark; of an input's file its fingerprint."""


def this_process(command: str = "") -> Holder:
    """A `Holder` that describes the calling process."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container may run as a user without a name
        user = str(os.getuid())
    return Holder(host=socket.gethostname(), pid=os.getpid(), user=user, since=time.time(), command=command)


def gone(where: str) -> SpecError:
    """A finished output that is not where its run left it."""
    return SpecError(
        f"{where} is not there any more: the run wrote it, and it was moved or deleted since. Put it back there; or "
        "run the job again with --fresh, which makes it anew, and pays for it anew"
    )


class Primary(Store, Protocol):
    """The store of the results: besides the lanes it holds the plan and the run's lock."""

    async def hold(self, holder: Holder, *, take_over: bool = False, above: int = 0) -> int:
        """Become the run's one command; returns the new run epoch: one more than the last one, or than `above` where
        that is higher. Raises `Held`."""
        ...

    async def holder(self) -> Holder | None:
        """Who holds the run now; None: nobody alive does."""
        ...

    async def run_epoch(self) -> int: ...
    async def read_plan(self) -> Plan | None: ...
    async def write_plan(self, plan: Plan) -> None:
        """Atomic; `plan.version` must be the stored one + 1. Raises `Fenced` otherwise."""
        ...

    async def peek(self, lane: int) -> Taken:
        """Read a lane's committed state without fencing anybody (for `status`)."""
        ...

    async def finish(self, plan: Plan) -> dict[str, list[str]]:
        """Assemble what readers want (single files in input order, manifests); restartable. Sink name → paths."""
        ...

    async def let_go(self) -> None: ...


class Place(Protocol):
    """Where one store's sinks of one run are: opens the store, and serves commands that need no open store."""

    def open(self) -> Primary:
        """Raises `Refused` where another run's output is there, or the store can't keep the promises of `Store`."""
        ...

    async def refuse_held(self) -> None:
        """Raises `Held` where a command that is alive holds the run here: asked before anything is thrown away."""
        ...

    async def discard(self) -> None:
        """Throw away what earlier commands of this run left here (`--fresh`); what readers were given stays until it
        is replaced. Raises `Held` as `refuse_held` does."""
        ...

    def committed(self, sink: SinkName) -> Iterator[bytes]:
        """What is committed to one sink so far, as JSON lines, in the order in which it was decided. Blocking."""
        ...


class Owned(Protocol):
    """A lane, as a store of this process has it."""

    @property
    def epoch(self) -> Epoch: ...


def refuse_replaced(held: Owned | None, lane: int, epoch: Epoch, where: object) -> None:
    """A take that comes late must neither let go of its successor's lane in this process, nor take its place. Raises
    `Fenced`. `where`: the store, in words."""
    if held is not None and held.epoch >= epoch:
        raise Fenced(f"{where}: lane {lane} is owned by epoch {held.epoch}; ours is {epoch}. Stop.")
