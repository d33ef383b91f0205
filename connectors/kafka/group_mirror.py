"""The source group's offsets: for lag tools, never read back.

They go beside the lanes' transactions, never with them (decision 13): a group whose coordinator is silent, or a topic
that is gone, must hold up nobody's commit; and lanes that are idle commit nothing, while their offsets would expire.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence

from aiokafka import errors as kafka
from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.protocol.commit import OffsetCommitRequest

from penstock.connectors.kafka.client import Admin, abandon, new_admin, start, within
from penstock.connectors.kafka.members import AGAIN_S, MOVING
from penstock.connectors.kafka.mirror import Offsets, offsets
from penstock.connectors.settings import Connection
from penstock.engine.errors import PenstockError, Refused
from penstock.engine.flow.progress import Saved
from penstock.engine.plan import Split

EVERY_S = 5.0
"""Lag tools look every few seconds; Kafka's own clients commit as often."""
ALIVE_S = 60.0
"""Offsets that do not move are written again: a group without members loses them after `offsets.retention.minutes`."""
COMMIT_S = 5.0
_FINE = {0, kafka.UnknownTopicOrPartitionError.errno}
"""Of a topic that is gone a broker takes no offsets; it takes those that stand beside them."""

_log = logging.getLogger(__name__)


class GroupMirror:
    """Takes what lanes have committed, and writes it to the group in the background. It raises nothing: a mirror that
    can't be written hurts nobody's progress; `trouble` says why."""

    def __init__(
        self, connection: Connection, group: str, *, every_s: float = EVERY_S, alive_s: float = ALIVE_S
    ) -> None:
        self.trouble: str | None = None
        self._connection = connection
        self._group = group
        self._every_s = every_s
        self._alive_s = alive_s
        self._lanes: dict[int, Offsets] = {}
        self._unwritten: set[int] = set()
        """Lanes that were told of since their offsets were last written."""
        self._leaving: set[int] = set()
        """They are forgotten once they are written: their next owner tells of them."""
        self._changed = asyncio.Event()
        self._admin: Admin | None = None
        self._task: asyncio.Task[None] | None = None

    def told(self, lane: int, splits: Sequence[Split], saved: Saved) -> None:
        self._lanes[lane] = offsets(splits, saved)
        self._unwritten.add(lane)
        self._leaving.discard(lane)
        self._changed.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def leaves(self, lane: int) -> None:
        self._leaving.add(lane)
        self._forget()

    async def close(self) -> None:
        """The last offsets are written, if the broker takes them now."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._unwritten:
            await self._write()
        self._lanes.clear()  # who has them next tells of them, and may be somebody else
        self._unwritten.clear()
        self._leaving.clear()
        if self._admin is not None:
            abandon(self._admin)
            self._admin = None

    async def _run(self) -> None:
        while True:
            await self._write()
            await asyncio.sleep(self._every_s)
            with contextlib.suppress(TimeoutError):
                # Not `wait_for`: it loses a cancel that meets the event (Python 3.11).
                async with asyncio.timeout(self._alive_s):
                    await self._changed.wait()

    async def _write(self) -> None:
        self._changed.clear()
        lanes = dict(self._lanes)
        try:
            await self._commit(_by_topic(lanes.values()))
            self.trouble = None
            self._unwritten -= {lane for lane, written in lanes.items() if self._lanes.get(lane) is written}
            self._forget()
        except PenstockError as error:
            if self.trouble is None:
                _log.warning("this run's progress is not shown in the group %s: %s", self._group, error)
            self.trouble = str(error)
            self._changed.set()  # again, in a while
            if self._admin is not None:
                abandon(self._admin)
                self._admin = None

    def _forget(self) -> None:
        """Of lanes that left what is written already: else it would be written over what their next owners say."""
        for lane in self._leaving - self._unwritten:
            self._leaving.discard(lane)
            self._lanes.pop(lane, None)

    async def _commit(self, topics: list[tuple[str, list[tuple[int, int, str]]]]) -> None:
        if self._admin is None:
            self._admin = new_admin(self._connection)
            await start(self._admin, self._connection)
        client: AIOKafkaClient = self._admin._client  # pyright: ignore[reportPrivateUsage] it has no call for this
        async with within(COMMIT_S, self._connection, f"writing the offsets of the group {self._group}"):
            while True:
                try:
                    return await self._send(client, topics)
                except MOVING:
                    await asyncio.sleep(AGAIN_S)

    async def _send(self, client: AIOKafkaClient, topics: list[tuple[str, list[tuple[int, int, str]]]]) -> None:
        node = await client.coordinator_lookup(CoordinationType.GROUP, self._group)
        # No generation and no member: a group that only keeps offsets.
        request = OffsetCommitRequest(self._group, -1, "", OffsetCommitRequest.DEFAULT_RETENTION_TIME, topics)
        answer = await client.send(node, request)
        for code in {code for _, partitions in answer.topics for _, code in partitions} - _FINE:
            if code == kafka.UnknownMemberIdError.errno:
                raise Refused(f"consumers are in the group {self._group}, and its offsets are theirs")
            raise kafka.for_code(code)(self._group)


def _by_topic(lanes: Iterable[Offsets]) -> list[tuple[str, list[tuple[int, int, str]]]]:
    topics: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for tp, offset in (pair for lane in lanes for pair in lane.items()):
        topics[tp.topic].append((tp.partition, offset.offset, offset.metadata))
    return list(topics.items())
