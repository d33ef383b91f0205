"""From settings to open connectors: which store is the primary, who follows, and where each sink lives.

A connector is a case in `open_source` and `_key`, and one in `_place`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol, cast, runtime_checkable

import msgspec

from penstock.connectors.base import Bounded, Holder, Mirror, Place, Primary, SinkName, Source, Store
from penstock.connectors.settings import (
    Connection,
    FilesSink,
    FilesSource,
    KafkaSink,
    KafkaSource,
    MemorySink,
    MemorySource,
    S3Sink,
    S3Source,
    SinkSettings,
    SourceSettings,
)
from penstock.engine.errors import SpecError
from penstock.engine.plan import Plan

PRIMARY = "primary"

Sinks = Mapping[SinkName, SinkSettings]


@runtime_checkable
class _Finishing(Protocol):
    async def finish(self, plan: Plan) -> dict[str, list[str]]: ...


@runtime_checkable
class _Disowning(Protocol):
    async def fresh_since(self) -> int:
        """Of a follower whose records can't be deleted: the run epoch up to which they don't count; 0: all do."""
        ...


@runtime_checkable
class _Told(Protocol):
    async def tell(self, plan: Plan) -> None:
        """A follower that shows records to its readers in another way where a run has no end."""
        ...


class Stores(msgspec.Struct, frozen=True):
    """primary: the store of the results. followers: key → store. placement: sink → `primary` or a follower's key."""

    primary: Primary
    followers: dict[str, Store]
    placement: dict[SinkName, str]

    def bounded(self, sink: SinkName) -> Bounded | None:
        """The sink's store, where it can't take every record."""
        where = self.placement.get(sink)
        store = self.followers.get(where) if where is not None and where != PRIMARY else self.primary
        return store if where is not None and isinstance(store, Bounded) else None

    async def hold(self, holder: Holder, *, take_over: bool = False) -> int:
        """Become the run's one command; returns the run epoch. Raises `Held`.

        A primary that was begun anew counts from 1 again; a follower on Kafka can't forget: it takes no owner of an
        epoch that it has disowned, nor shows its records.
        """
        disowned = [0]
        if not await self.primary.run_epoch():
            disowned += [await one.fresh_since() for one in self.followers.values() if isinstance(one, _Disowning)]
        return await self.primary.hold(holder, take_over=take_over, above=max(disowned))

    async def tell(self, plan: Plan) -> None:
        """Let followers know the plan that the primary holds, before lanes are opened."""
        for store in self.followers.values():
            if isinstance(store, _Told):
                await store.tell(plan)

    async def finish(self, plan: Plan) -> dict[str, list[str]]:
        """Assemble the outputs of every store. Sink name → paths."""
        done = await self.primary.finish(plan)
        for store in self.followers.values():
            if isinstance(store, _Finishing):
                done |= await store.finish(plan)
        return {sink: done[sink] for sink in self.placement if sink in done}


def open_stores(sinks: Sinks, run_id: str) -> Stores:
    """Open the stores of one run; called by every process that needs them. Raises `Refused` where a place holds another
    run's output, `SpecError` where no results sink is named or two sinks share a place."""
    if "results" not in sinks:
        raise SpecError("no results sink. Name one under sinks:, or give -o FILE.")
    _check_apart(sinks)
    opened = {key: place.open() for key, place in _places(sinks, run_id).items()}
    return Stores(opened.pop(_key(sinks["results"])), dict(opened), placement(sinks))


def placement(sinks: Sinks) -> dict[SinkName, str]:
    """Sink → the store that takes its records: `primary` (that of the results), or a follower's key."""
    primary = _key(sinks["results"])
    keys: dict[SinkName, str] = {sink: _key(settings) for sink, settings in sinks.items()}
    return {sink: PRIMARY if key == primary else key for sink, key in keys.items()}


async def discard_stores(sinks: Sinks, run_id: str) -> None:
    """Throw away everything that earlier commands of this run left (`--fresh`). Raises `Held` where one is alive.

    The results' place goes last: where this is killed before, the run has its plan, and whoever goes on with it is told
    that its followers were emptied; a run without a plan would begin anew under epochs that old followers fence."""
    places = list(_places(sinks, run_id).values())
    for place in places:
        await place.refuse_held()
    for place in reversed(places):
        await place.discard()


async def refuse_held(sinks: Sinks, run_id: str) -> None:
    """Raises `Held` where a command that is alive holds one of these sinks: asked before anything is thrown away."""
    for place in _places(sinks, run_id).values():
        await place.refuse_held()


def iter_committed(sinks: Sinks, run_id: str, sink: SinkName) -> Iterator[bytes]:
    """What is committed to one sink so far, finished or not, as JSON lines in the order in which it was decided."""
    return _places(sinks, run_id)[_key(sinks[sink])].committed(sink)


def open_source(settings: SourceSettings) -> Source:
    """Open what the items come from."""
    match settings:
        case FilesSource():
            from penstock.connectors.files import FileSource

            return FileSource(settings)
        case KafkaSource():
            from penstock.connectors.kafka.source import KafkaTopics

            return KafkaTopics(settings)
        case S3Source():
            from penstock.connectors.s3 import source as s3

            return s3.S3Source(settings)
        case MemorySource():
            from penstock.connectors import memory

            return memory.source(settings.name)


def open_mirror(settings: SourceSettings, run_id: str) -> Mirror | None:
    """Where a source has a place for progress."""
    if not isinstance(settings, KafkaSource):
        return None
    from penstock.connectors.kafka.group_mirror import GroupMirror
    from penstock.connectors.kafka.source import connection_of

    return GroupMirror(connection_of(settings), settings.group or run_id)


def _key(settings: SinkSettings) -> str:
    """Names the store: sinks of one key commit in one act."""
    match settings:
        case FilesSink():
            from penstock.connectors.filestore.place import folder

            return str(folder(settings))
        case KafkaSink():
            from penstock.connectors.kafka.place import store_key

            return store_key(settings)
        case S3Sink():
            from penstock.connectors.s3.store.place import bucket_of

            return bucket_of(settings)
        case MemorySink():
            return f"memory:{settings.name}"


def _places(sinks: Sinks, run_id: str) -> dict[str, Place]:
    """Store key → the place of its sinks; the results' place comes first."""
    groups: dict[str, dict[SinkName, SinkSettings]] = {}
    for sink in sorted(sinks, key=lambda s: (s != "results", s)):
        groups.setdefault(_key(sinks[sink]), {})[sink] = sinks[sink]
    return {key: _place(group, run_id) for key, group in groups.items()}


def _place(group: dict[SinkName, SinkSettings], run_id: str) -> Place:
    """`group`: sinks of one key, hence of one kind."""
    first = next(iter(group.values()))
    match first:
        case FilesSink():
            from penstock.connectors.filestore.place import FilesPlace

            return FilesPlace(cast("dict[SinkName, FilesSink]", group), run_id)
        case KafkaSink():
            from penstock.connectors.kafka.place import KafkaPlace

            return KafkaPlace(cast("dict[SinkName, KafkaSink]", group), run_id)
        case S3Sink():
            from penstock.connectors.s3.store.place import S3Place

            return S3Place(cast("dict[SinkName, S3Sink]", group), run_id)
        case MemorySink():
            from penstock.connectors.memory import MemoryPlace

            return MemoryPlace(first.name)


def where(settings: SinkSettings) -> str:
    """The sink's place as a person would write it; two sinks never share one."""
    match settings:
        case FilesSink():
            return settings.path
        case KafkaSink():
            at = settings.connection
            servers = at.bootstrap if isinstance(at, Connection) else settings.bootstrap
            return f"kafka://{servers}/{settings.topic}"
        case S3Sink():
            return f"s3://{settings.bucket}/{settings.prefix}"
        case MemorySink():
            return f"memory:{settings.name}"


def _check_apart(sinks: Sinks) -> None:
    seen: dict[str, SinkName] = {}
    for sink, settings in sinks.items():
        place = where(settings).rstrip("/")
        if place in seen and not isinstance(settings, MemorySink):
            raise SpecError(f"sinks {seen[place]} and {sink} share the place {place}. Give each its own.")
        seen[place] = sink
