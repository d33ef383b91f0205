"""Kafka topics as a source: each partition is a split, its positions are offsets."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches

from aiokafka import AIOKafkaConsumer, TopicPartition

from penstock.connectors.base import Later, Raw
from penstock.connectors.kafka import topic_ids
from penstock.connectors.kafka.client import describe, new_consumer, opened, within
from penstock.connectors.kafka.members import refuse_members
from penstock.connectors.kafka.partition import Name, text_record
from penstock.connectors.kafka.reader import KafkaReader
from penstock.connectors.kafka.rereading import records
from penstock.connectors.kafka.starts import Latest, Since, read_start, starts
from penstock.connectors.kafka.topic_ids import Topic
from penstock.connectors.kafka.topics import begins, ends
from penstock.connectors.settings import Connection, KafkaSource
from penstock.engine.errors import SpecError
from penstock.engine.plan import Split

LOOK_S = 15.0
NEAR = 0.75
"""How alike a topic's name must be to be the one that was meant: above what `requests` and `results` are (0.67), which
stand side by side in many jobs, and below a letter too few."""
RECORD_BYTES = 1_000
"""What a record weighs in sizes, which only progress and the number of lanes are made of. A guess."""


class KafkaTopics:
    """Implements `base.Source`, `base.Growing` and `base.Rereadable`. Raises `SpecError` where the settings say
    something impossible."""

    def __init__(self, settings: KafkaSource) -> None:
        self._settings = settings
        self._connection = connection_of(settings)
        self._start = read_start(settings.start)
        self._pattern = _pattern(settings)

    async def splits(self, lanes_hint: int) -> list[Split]:
        """All partitions, each from where `start` says. `lanes_hint` changes nothing: partitions are not cut.

        Raises `SpecError` where a topic is not there or nothing matches, `Refused` where we may not look, or where
        somebody's consumers are in the group that is to mirror our progress.
        """
        if self._settings.group is not None:
            await refuse_members(self._connection, self._settings.group)
        async with self._looking() as consumer:
            found, missing = await self._topics(consumer)
            if missing is not None:
                raise missing
            partitions = _partitions(found)
            last = await ends(consumer, self._connection, partitions)
            first = await starts(self._start, consumer, self._connection, partitions, last)
            return [self._split(found, tp, first[tp], last[tp]) for tp in partitions]

    async def later(self, known: Collection[str]) -> Later:
        """The partitions whose object is not among `known`, each from its earliest record: what appears while a run
        lives, topics that were made anew included, is wanted whole. But a topic that an edited job names for the first
        time was there before, perhaps: it is begun as `start` says. One that was deleted holds up no other."""
        async with self._looking() as consumer:
            found, missing = await self._topics(consumer)
            if missing is not None and (self._settings.until == "end" or not found):
                raise missing
            told = None if missing is None else f"{missing}; the run goes on with the other topics"
            partitions = [tp for tp in _partitions(found) if not _name(found, tp).is_among(known)]
            if not partitions:
                return Later([], told)
            last = await ends(consumer, self._connection, partitions)
            first = await begins(consumer, self._connection, partitions)
            if named := self._named_anew(partitions, known):
                first |= await starts(self._start, consumer, self._connection, named, last)
            return Later([self._split(found, tp, first[tp], last[tp]) for tp in partitions], told)

    async def open(self, starts: Sequence[tuple[Split, int]]) -> KafkaReader:
        """Connects with the first read. A topic of the plan that the job names no more is not read, nor does it end:
        it waits where it stands."""
        starts = [(split, at) for split, at in starts if self._settings.reads(Name.read(split.object_id).topic)]
        match self._settings.format:
            case "avro" | "json-schema" | "protobuf" as format:
                from penstock.connectors.kafka.registry_formats import RegistryRecords

                make = RegistryRecords(format, self._connection)
                return KafkaReader(self._connection, starts, make, make.schemas)
            case None | "openai-batch" | "jsonl":
                return KafkaReader(self._connection, starts, text_record)

    def rereading(self, splits: Sequence[Split]) -> Callable[[Split, int], Iterator[Raw]]:
        """As promised, of partitions that have an end."""
        return lambda split, start: records(lambda: self.open([(split, start)]))

    def _named_anew(self, partitions: Sequence[TopicPartition], known: Collection[str]) -> list[TopicPartition]:
        """Of topics that this run has not named before, where `start` says anything but all. (A group that is begun
        from has not read them.)"""
        if self._pattern is not None or not isinstance(self._start, Latest | Since):
            return []
        before = {one.partition("@")[0] for one in known}
        return [tp for tp in partitions if tp.topic not in before]

    @contextlib.asynccontextmanager
    async def _looking(self) -> AsyncGenerator[AIOKafkaConsumer]:
        async with opened(new_consumer(self._connection), self._connection) as consumer:
            yield consumer

    async def _topics(self, consumer: AIOKafkaConsumer) -> tuple[dict[str, Topic], SpecError | None]:
        """Those that are there, and why not all are. Raises `SpecError` where no name matches the pattern."""
        missing = None
        wanted = self._settings.topics if self._pattern is None else None
        async with within(LOOK_S, self._connection, "looking up topics"):
            found = await topic_ids.topics(topic_ids.client_of(consumer), wanted)
            if self._pattern is not None:
                found = {name: topic for name, topic in found.items() if self._pattern.fullmatch(name)}
            elif gone := [name for name in self._settings.topics if name not in found]:
                missing = await self._missing(consumer, gone[0])
            if not found and missing is None:
                told = f"{describe(self._connection)} has no topic that matches {self._settings.pattern!r}"
                raise SpecError(f"{told}: source.pattern is a regular expression for the whole name")
            await topic_ids.client_of(consumer).set_topics(list(found))
        return found, missing

    async def _missing(self, consumer: AIOKafkaConsumer, name: str) -> SpecError:
        there = await topic_ids.topics(topic_ids.client_of(consumer))
        near = get_close_matches(name, there, n=1, cutoff=NEAR)
        hint = f"did you mean {near[0]!r}?" if near else f"`penstock publish FILE --topic {name} --create` makes it"
        return SpecError(f"{describe(self._connection)} has no topic {name!r} that we may see; {hint}")

    def _split(self, found: Mapping[str, Topic], tp: TopicPartition, start: int, end: int) -> Split:
        object_id = str(_name(found, tp))
        stop = max(start, end) if self._settings.until == "end" else None
        return Split(
            id=f"{object_id}#{start}-{'' if stop is None else stop}",
            object_id=object_id,
            ordinal=0,
            lane=0,
            uri=f"kafka://{self._connection.bootstrap}/{tp.topic}/{tp.partition}",
            start=start,
            end=stop,
            unit="rows",
            format=self._settings.format or "auto",
            size_bytes=max(0, end - start) * RECORD_BYTES,
        )


def connection_of(settings: KafkaSource) -> Connection:
    """Raises `SpecError` where none is named."""
    match settings.connection:
        case Connection():
            return settings.connection
        case None if settings.bootstrap:
            return Connection(settings.bootstrap)
        case None:
            raise SpecError("a kafka source needs bootstrap: or connection:")
        case name:
            raise SpecError(f"the connection {name!r} is not among connections:")


def _pattern(settings: KafkaSource) -> re.Pattern[str] | None:
    if bool(settings.topics) == (settings.pattern is not None):
        raise SpecError("a kafka source needs either topics: or pattern:")
    if settings.pattern is None:
        return None
    try:
        return re.compile(settings.pattern)
    except re.error as error:
        raise SpecError(f"source.pattern is no regular expression: {error}") from error


def _partitions(found: Mapping[str, Topic]) -> list[TopicPartition]:
    return [TopicPartition(name, number) for name in sorted(found) for number in found[name].partitions]


def _name(found: Mapping[str, Topic], tp: TopicPartition) -> Name:
    return Name(tp.topic, found[tp.topic].id, tp.partition)
