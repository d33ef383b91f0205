"""S3 as a source: objects below a prefix, or that match a pattern, cut into splits that are named by content.

A split's name holds bucket, key, size, and the version or ETag that the plan saw; what is read is that content or
nothing. Planning reads listings, the first line of some JSON objects and the footers of Parquet objects, no more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import BinaryIO, TypeVar

from penstock.connectors.base import Later, Raw
from penstock.connectors.formats import names
from penstock.connectors.formats.lines import MAX_RECORD_BYTES
from penstock.connectors.objects.cutting import (
    Found,
    cut,
    cut_among_others,
    format_of,
    piece_bytes,
    settled,
    whole,
)
from penstock.connectors.s3.client import S3, THREADS, client
from penstock.connectors.s3.objects import Pinned, is_etag, listed, pinned_by
from penstock.connectors.s3.ranges import RangeFile, open_object
from penstock.connectors.s3.reader import Objects, S3Reader
from penstock.connectors.settings import S3Source as Settings
from penstock.engine.errors import NoInput, Temporary
from penstock.engine.plan import Plan, Split

MAX_LOOKS = 500
"""JSON objects that are looked into for requests or rows, spread over the listing: with 32 at once some 2 s. What the
others hold is seen when they are read: a stranger's lines become dead letters."""

SHORT_BYTES = 64
"""A JSON object of no more may be blank. A guess: who leaves an empty one leaves a line break or two."""

_BLANK = "blank"
T = TypeVar("T")
R = TypeVar("R")


class S3Source:
    """Implements `base.Source`, `base.Revisited` and `base.Rereadable`. `max_record_bytes`: longer records become dead
    letters."""

    def __init__(self, settings: Settings, *, max_record_bytes: int = MAX_RECORD_BYTES) -> None:
        self._settings = settings
        self._limit = max_record_bytes

    async def splits(self, lanes_hint: int) -> list[Split]:
        """Raises `SpecError` where nothing matches, a name can't be read, requests and rows are mixed, or the one
        object there is can't be read; `Refused` where the credentials may not; `Temporary`."""
        return await asyncio.to_thread(self._plan, lanes_hint, ())

    async def beside(self, plan: Plan) -> Later:
        """As promised."""
        try:
            return Later(await asyncio.to_thread(self._plan, plan.lanes, plan.splits))
        except NoInput as error:
            return Later([], str(error))

    async def open(self, starts: Sequence[tuple[Split, int]]) -> S3Reader:
        return S3Reader(self._client(), starts, self._limit)

    def rereading(self, splits: Sequence[Split]) -> Callable[[Split, int], Iterator[Raw]]:
        """As promised; small objects of `splits` are fetched before their turn."""
        return Objects(self._client(), self._limit, splits).read

    def records(self, split: Split, start: int) -> Iterator[Raw]:
        """One split as a plain iterator that blocks. Raises as a reader does."""
        return Objects(self._client(), self._limit, [split]).read(split, start)

    def _client(self) -> S3:
        return client(self._settings.endpoint, self._settings.region)

    def _plan(self, lanes_hint: int, known: Sequence[Split]) -> list[Split]:
        planner = _Planner(self._settings, self._client(), known)
        found = settled(planner.found())
        if not found:
            raise NoInput(
                f"no object matches {planner.where}: put some there, or mend source.prefix and source.pattern"
            )
        new = [one for one in found if not planner.knows(one.object_id)]
        return planner.cut(new, piece_bytes(found, lanes_hint), alone=len(found) == 1)


class _Planner:
    """One look at the input. Its own threads wait for S3's threads, so they are others. known: splits of a plan, whose
    objects are not opened."""

    def __init__(self, settings: Settings, s3: S3, known: Sequence[Split]) -> None:
        self._settings = settings
        self._s3 = s3
        self._by_uri: dict[str, Pinned] = {}
        self._formats = {split.object_id: split.format for split in known}
        self._pins: dict[str, dict[str, str]] = {}
        """URI → each pin by which the plan knows it, with the id."""
        for split in (one for one in known if one.uri.startswith("s3://")):  # else the job had another kind of source
            self._pins.setdefault(split.uri, {})[pinned_by(split).pin] = split.object_id
        self.where = f"s3://{settings.bucket}/{settings.prefix}{settings.pattern or ''}"

    def knows(self, object_id: str) -> bool:
        return object_id in self._formats

    def found(self) -> list[Found]:
        formats: dict[str, str] = {}
        all = list(listed(self._s3, self._settings))
        self._find_renamed(all)
        for one in all:
            known = self._settings.format or self._known_format(one)
            format = known or format_of(one.uri, one.size, lambda: None, "source.pattern")
            if format is not None:
                formats[one.uri] = format
                self._by_uri[one.uri] = one
        blank = [one for one in self._by_uri.values() if formats[one.uri] == _BLANK and not self.knows(one.object_id)]
        formats |= self._looked_into([one.uri for one in blank])
        return [Found(uri, one.size, one.object_id, formats[uri]) for uri, one in self._by_uri.items()]

    def _known_format(self, one: Pinned) -> str | None:
        """Blank ones count to rows in a plan: whether they go with requests is not known of a short one any more."""
        format = self._formats.get(one.object_id)
        return _BLANK if format == "jsonl" and one.size <= SHORT_BYTES else format

    def _find_renamed(self, all: Sequence[Pinned]) -> None:
        """Those that are pinned by their version today and were by their ETag, or the other way round: the bucket began
        or stopped to keep versions, or the credentials have other rights."""

        def known_as(one: Pinned) -> str | None:
            there = self._s3.head(one.bucket, one.key)
            if there is None:  # a proxy may say so too; to take it for new input would pay for it again
                raise Temporary(f"{one.uri} vanished while it was listed. Run the same command again.")
            return next(
                (id for pin, id in self._pins[one.uri].items() if {pin, one.pin} <= {there.etag, there.version}), None
            )

        new = [one for one in all if not self.knows(one.object_id)]
        doubtful = [one for one in new if any(is_etag(p) != is_etag(one.pin) for p in self._pins.get(one.uri, ()))]
        for one, object_id in zip(doubtful, _each(known_as, doubtful), strict=True):
            if object_id is not None:
                self._formats[one.object_id] = self._formats[object_id]

    def _looked_into(self, uris: Sequence[str]) -> dict[str, str]:
        some = [uri for uri in uris if self._by_uri[uri].size]
        some = [some[n * len(some) // MAX_LOOKS] for n in range(MAX_LOOKS)] if len(some) > MAX_LOOKS else some
        return dict(zip(some, _each(self._look, some), strict=True))

    def _look(self, uri: str) -> str:
        with open_object(self._s3, self._by_uri[uri], _BLANK, names.LOOK_BYTES) as file:
            return names.look(file.binary, names.compression_of(uri)) or _BLANK

    def cut(self, found: Sequence[Found], piece: int, *, alone: bool) -> list[Split]:
        """`alone`: there is one object in all."""
        if alone and found:
            return cut(found[0], piece, self._open, _rows_are_lines)

        def one(object: Found) -> list[Split]:
            if object.format == "csv":
                return [whole(object)]  # its reader says so where the header can't be read
            return cut_among_others(object, piece, self._open, _rows_are_lines)

        tables = [one for one in found if one.format == "parquet"]
        footers = dict(zip((t.uri for t in tables), _each(one, tables), strict=True))
        return [split for object in found for split in footers.get(object.uri) or one(object)]

    def _open(self, found: Found) -> AbstractContextManager[BinaryIO]:
        return _opened(open_object(self._s3, self._by_uri[found.uri], found.format, None))


@contextmanager
def _opened(file: RangeFile) -> Generator[BinaryIO]:
    with file:
        yield file.binary


def _rows_are_lines(found: Found) -> bool:
    """A quote anywhere in a CSV object may hide a line break, and to look for one is to read it all: it is read from
    its start, by one lane."""
    return False


def _each(work: Callable[[T], R], on: Sequence[T]) -> list[R]:
    if len(on) < 2:
        return [work(one) for one in on]
    pool = ThreadPoolExecutor(min(THREADS, len(on)), thread_name_prefix="s3-plan")
    try:
        return list(pool.map(work, on))
    finally:
        pool.shutdown(cancel_futures=True)
