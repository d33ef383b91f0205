"""What finished runs left in the progress topic: found by reading it once, and deleted in one transaction a run.

Two small records of a pruned run stay: who held it last, and up to which run epoch its records were disowned. So a run
that is begun anew under its name has a higher epoch, and counts none of the old records as its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import msgspec
from aiokafka import TopicPartition

from penstock.connectors.filestore.disk import no_faults
from penstock.connectors.kafka.client import new_admin, new_consumer, opened, within
from penstock.connectors.kafka.control import FRESH, Claim, Hold
from penstock.connectors.kafka.keys import PLAN, Scope
from penstock.connectors.kafka.lane import Transactions, fenced
from penstock.connectors.kafka.opening import BATCH_BYTES, PARTITIONS, frozen_partitions
from penstock.connectors.kafka.progress import FETCH_BYTES, READ_S, joined, records_below
from penstock.connectors.kafka.records import Row
from penstock.connectors.kafka.topics import TopicFacts, ends, look_up
from penstock.connectors.settings import Connection
from penstock.engine.errors import Corrupt, PenstockError, SpecError
from penstock.engine.flow.progress import OUTBOX, PROGRESS, SHELF, saved_in
from penstock.engine.plan import Plan

_CONTROLS = ("hold", "fresh")
_READ = (PROGRESS, "plan", *_CONTROLS, "claim")
"""Parts of keys whose values say whether a run is over."""
_Keys = dict[tuple[int, bytes], bytes]
"""Partition and key → the latest value; empty where only its being there counts."""


class Found(msgspec.Struct, frozen=True):
    """A run in the progress topic. `over`: all its lanes are done, and followers have all. `last_at`: of its latest
    record, Unix seconds. `stays`: of `records` those that pruning leaves."""

    name: str
    over: bool
    last_at: float
    records: int
    bytes: int
    stays: int


class Progress:
    """All runs of one progress topic. Blocking nobody: read committed, up to where it ended at the start."""

    def __init__(self, connection: Connection, topic: str) -> None:
        self._connection = connection
        self._name = topic
        self._facts: TopicFacts | None = None
        self._partitions = 0
        self._keys: dict[str, _Keys] = defaultdict(dict)
        self._upto: dict[TopicPartition, int] = {}
        self._last: dict[str, float] = defaultdict(float)
        self._sizes: dict[str, dict[tuple[int, bytes], int]] = defaultdict(dict)

    async def read(self) -> list[Found]:
        """Raises `SpecError` where there is no such topic, `Away`, `Refused`."""
        connection = self._connection
        async with opened(new_admin(connection), connection) as admin:
            facts = (await look_up(admin, connection, [self._name])).get(self._name)
        if facts is None:
            raise SpecError(f"there is no topic {self._name} at {connection.bootstrap}: is it the progress topic?")
        self._facts, self._partitions = facts, await frozen_partitions(connection, facts)
        async with opened(new_consumer(connection, fetch_bytes=FETCH_BYTES), connection) as consumer:
            self._upto = upto = await ends(consumer, connection, facts.all())
            for where in facts.all():
                consumer.assign([where])
                async with within(READ_S, connection, f"reading {where.topic}/{where.partition}") as limit:
                    await consumer.seek_to_beginning(where)
                    async for record in records_below(consumer, where, upto[where], limit):
                        if record.key is not None and record.key != PARTITIONS and b"\0" in record.key:
                            self._see(where, record.key, record.value, record.timestamp / 1000)
        return [self._found(name) for name in sorted(self._keys) if self._keys[name]]

    def _see(self, where: TopicPartition, key: bytes, value: bytes | None, at: float) -> None:
        name, *parts = key.decode("utf-8", "replace").split("\0")
        place = (where.partition, key)
        self._last[name] = max(self._last[name], at)
        if value is None:
            self._keys[name].pop(place, None)
            self._sizes[name].pop(place, None)
        else:
            self._keys[name][place] = value if any(part in _READ for part in parts) else b""
            self._sizes[name][place] = len(key) + len(value)

    def _found(self, name: str) -> Found:
        keys, sizes = self._keys[name], self._sizes[name]
        stays = [place for place in keys if _parts(place[1])[0] in _CONTROLS]
        return Found(name, self._over(name), self._last[name], len(keys), sum(sizes.values()), len(stays))

    def _over(self, name: str) -> bool:
        """What can't be read is not over: whoever runs it is told what is wrong."""
        try:
            return _is_over(_chunks(self._keys[name]))
        except (Corrupt, msgspec.MsgspecError):
            return False

    async def prune(self, found: Found) -> bool:
        """All or nothing. False: somebody has begun it anew since it was read. Raises `Away`, `Refused`."""
        assert self._facts is not None
        scope, facts, keys = Scope(found.name, self._partitions), self._facts, self._keys[found.name]
        if await self._moved(scope):
            return False
        driver = Transactions(self._connection, scope.transactional_id("driver"), batch_bytes=BATCH_BYTES)
        await driver.start()  # whoever begins it from here on ends our transaction
        if await self._moved(scope):
            driver.close()
            return False
        for lane in _unreleased(keys):  # a process that only sleeps can commit nothing after this
            await self._fenced(scope, lane)
        gone = [place for place in keys if _parts(place[1])[0] not in _CONTROLS]
        rows = [Row(facts, key, None, partition=partition) for partition, key in gone]
        epoch = msgspec.msgpack.encode(_last_epoch(keys))
        rows.append(Row(facts, scope.key(FRESH), epoch, partition=scope.control))
        try:
            await driver.write(rows, no_faults)
        except PenstockError as error:
            if not fenced(error):
                raise
            return False
        driver.close()
        return True

    async def _moved(self, scope: Scope) -> bool:
        """Whether a process told of itself since then. Read uncommitted, as `Control` does: nobody's open transaction
        hides it."""
        connection, where = self._connection, TopicPartition(self._name, scope.control)
        async with opened(new_consumer(connection, committed=False), connection) as consumer:
            end = (await ends(consumer, connection, [where]))[where]
            consumer.assign([where])
            consumer.seek(where, self._upto[where])
            async with within(READ_S, connection, f"reading {where.topic}/{where.partition}") as limit:
                return any([scope.parts(r.key) is not None async for r in records_below(consumer, where, end, limit)])

    async def _fenced(self, scope: Scope, lane: int) -> None:
        fence = Transactions(self._connection, scope.transactional_id(lane), batch_bytes=BATCH_BYTES)
        await fence.start()
        fence.close()


def _parts(key: bytes) -> list[str]:
    return key.decode("utf-8", "replace").split("\0")[1:]


def _chunks(keys: _Keys) -> dict[int, dict[str, bytes]]:
    """Lane → its chunks; of those that were not kept, the name."""
    pieces: dict[int, dict[str, dict[int, bytes]]] = defaultdict(lambda: defaultdict(dict))
    for (_, key), value in keys.items():
        match _parts(key):
            case [lane, name, number] if lane.lstrip("-").isdigit():
                pieces[int(lane)][name][int(number)] = value
            case _:
                pass
    return {
        lane: {name: joined(name, parts) if name in _READ else b"" for name, parts in of.items() if 0 in parts}
        for lane, of in pieces.items()
    }


def _is_over(lanes: Mapping[int, Mapping[str, bytes]]) -> bool:
    """As `planner.all_ended` says it."""
    text = lanes.get(PLAN, {}).get("plan")
    plan = msgspec.msgpack.decode(text, type=Plan) if text else None
    if plan is None or not plan.started or not plan.bounded:
        return False
    for lane in range(plan.lanes):
        chunks = lanes.get(lane, {})
        saved = saved_in(chunks)
        splits = sum(split.lane == lane for split in plan.splits)
        if not saved.done or saved.opened != splits or any(name.startswith((OUTBOX, SHELF)) for name in chunks):
            return False
    return True


def _unreleased(keys: _Keys) -> list[int]:
    found: list[int] = []
    for (_, key), value in keys.items():
        match _parts(key):
            case ["claim", lane] if msgspec.msgpack.decode(value, type=Claim).process:
                found.append(int(lane))
            case _:
                pass
    return found


def _last_epoch(keys: _Keys) -> int:
    """The highest run epoch that ever wrote."""
    epochs = [0]
    for (_, key), value in keys.items():
        match _parts(key):
            case ["claim", _]:
                epochs.append(msgspec.msgpack.decode(value, type=Claim).epoch[0])
            case ["hold"]:
                epochs.append(msgspec.msgpack.decode(value, type=Hold).epoch)
            case _:
                pass
    return max(epochs)
