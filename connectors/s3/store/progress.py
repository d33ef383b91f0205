"""What a lane's one progress object says, and the sealed lists that it points to.

A list that grows with the run is a `Chain`: its last entries stand in the progress object itself, the older ones in
sealed segments, immutable objects that each name the one before. So a commit never rewrites what it has written.

Names of a lane's objects: `<seq>-<run epoch>.<lane epoch>-<token>.<kind>`: they sort by the commit that made them, and
tell whose they are.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

from penstock.connectors.s3 import fence
from penstock.connectors.s3.store.home import Home
from penstock.engine.errors import Corrupt
from penstock.engine.plan import Epoch

NEVER: Epoch = (0, 0)
SEAL = 64
"""Entries that the progress object holds at most of one chain: about 10 kB."""

T = TypeVar("T")


class Part(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One object of records: a batch (see `filestore.spool`) for each sink. slices: (sink, offset, length)."""

    name: str
    slices: tuple[tuple[str, int, int], ...]

    @property
    def size(self) -> int:
        return sum(length for _, _, length in self.slices)


class Final(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One object that readers see, made of a lane's parts. rows, bytes: as the manifest shows them."""

    sink: str
    key: str
    rows: int
    bytes: int


class Chain(msgspec.Struct, Generic[T], frozen=True, array_like=True):
    """sealed: name of the last sealed segment ("": none). size: bytes of all its parts. since: when the first came."""

    recent: tuple[T, ...] = ()
    sealed: str = ""
    size: int = 0
    since: float = 0.0

    @property
    def empty(self) -> bool:
        return not self.recent and not self.sealed


class Segment(msgspec.Struct, Generic[T], frozen=True, array_like=True):
    before: str
    entries: tuple[T, ...]


class Merging(msgspec.Struct, frozen=True, array_like=True):
    """Parts that are being merged. attempt: names the finals that it writes. head: the last segment of the parts."""

    attempt: str
    head: str


class Retired(msgspec.Struct, frozen=True, array_like=True):
    """A chain that nothing names any more: deleted some time after `at` (unix seconds). head: its last segment. finals:
    of such, which stay, else of parts, which go too."""

    at: float
    head: str
    finals: bool = False


class Progress(msgspec.Struct, frozen=True, omit_defaults=True):
    """owner: who may commit. beat: its process's sign of life, "" once it has let go. epoch: who made commit `seq`.

    parts: records of prefix sinks that are not merged yet; whole: those of single-object sinks. changes: small chunks
    since `base`, an object with all small ones ("": none); refs: name of a large chunk → its object. told: finals that
    came before `finals`, and were forgotten since readers know of them (`told`). dropped: objects to be deleted.
    """

    token: str = ""
    """Unique to each write: see `fence`."""
    owner: Epoch = NEVER
    beat: str = ""
    seq: int = 0
    epoch: Epoch = NEVER
    parts: Chain[Part] = Chain()
    whole: Chain[Part] = Chain()
    merging: Merging | None = None
    finals: Chain[Final] = Chain()
    told: int = 0
    retired: tuple[Retired, ...] = ()
    base: str = ""
    base_size: int = 0
    changes: dict[str, bytes] = {}
    refs: dict[str, str] = {}
    dropped: tuple[str, ...] = ()
    format: int = 1


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Progress).decode
_parts = msgspec.msgpack.Decoder(Segment[Part]).decode
_finals = msgspec.msgpack.Decoder(Segment[Final]).decode


def encode(progress: Progress) -> bytes:
    """Never the same bytes twice."""
    return _encode(msgspec.structs.replace(progress, token=secrets.token_hex(8)))


def decode(data: bytes, name: str) -> Progress:
    """Raises `Corrupt`."""
    try:
        return _decode(data)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"{name} cannot be decoded ({error}). Restore it, or start with --fresh.") from error


def progress_name(lane: int) -> str:
    return f"progress/{lane:04d}"


def folder(lane: int) -> str:
    return f"lane/{lane:04d}/"


def object_name(seq: int, epoch: Epoch, kind: str) -> str:
    """A new name for an object that commit `seq` of `epoch` makes."""
    return f"{seq:010d}-{epoch[0]:08d}.{epoch[1]:08d}-{secrets.token_hex(4)}.{kind}"


_NAME = re.compile(r"\d{10}-(\d{8})\.(\d{8})-[0-9a-f]{8}\.[a-z]+")


def epoch_of(name: str) -> Epoch | None:
    """Whose object it is; None: none of ours."""
    found = _NAME.fullmatch(name)
    return (int(found[1]), int(found[2])) if found else None


def sealed(chain: Chain[T], name: str) -> tuple[Chain[T], bytes]:
    """The chain with its recent entries in a segment of that name, and the segment."""
    segment = Segment(chain.sealed, chain.recent)
    return Chain((), name, chain.size, chain.since), _encode(segment)


def all_parts(home: Home, lane: int, chain: Chain[Part]) -> Iterator[Part]:
    """Oldest first. Blocking. Raises `Corrupt` where a segment is gone."""
    older = [segment.entries for _, segment in _segments(home, lane, chain.sealed, _parts)]
    for entries in reversed(older):
        yield from entries
    yield from chain.recent


def all_finals(home: Home, lane: int, chain: Chain[Final]) -> Iterator[Final]:
    """As `all_parts`."""
    older = [segment.entries for _, segment in _segments(home, lane, chain.sealed, _finals)]
    for entries in reversed(older):
        yield from entries
    yield from chain.recent


def retired_names(home: Home, lane: int, one: Retired) -> Iterator[list[str]]:
    """Names of a retired chain's objects, segment by segment, oldest first; each list ends with the segment itself.
    What is gone was deleted before."""
    held: list[list[str]] = []
    head = one.head
    while head:
        found = fence.read(home.s3, home.bucket, home.key(folder(lane) + head))
        if found is None:
            break
        before, names = _names(found.data, finals=one.finals)
        held.append([*names, head])
        head = before
    yield from reversed(held)


def _names(data: bytes, *, finals: bool) -> tuple[str, list[str]]:
    if finals:
        return _finals(data).before, []
    segment = _parts(data)
    return segment.before, [part.name for part in segment.entries]


def _segments(home: Home, lane: int, name: str, decoded: object) -> Iterator[tuple[str, Segment[T]]]:
    while name:
        found = fence.read(home.s3, home.bucket, home.key(folder(lane) + name))
        if found is None:
            raise Corrupt(f"{home}{folder(lane)}{name} is gone. Restore it, or start with --fresh.")
        segment: Segment[T] = decoded(found.data)  # pyright: ignore[reportCallIssue]
        yield name, segment
        name = segment.before
