"""Reads a lane's partitions in turn, so that none starves the others, and looks after their topics.

What takes long (connecting, looking) is one task at a time in the background; `read` hands out what is there and never
waits for it.

* A topic's id is looked at when the reader connects, every `LOOK_EVERY_S`, and whenever the client learned anew who
  leads a partition: then nothing more is fetched before the look is done. So records of a topic that was made anew
  under the same name are not taken for those of the old one.
* What looks lost is believed only when it still looks so after `CONFIRM_S`: a broker that has just come up may not
  know all topics yet.
* A topic that was made anew may be in one lane in both its lives. The client knows one partition, and one position in
  it: that of the life that is read (`_reads`). The other's end must not move it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence

from aiokafka import TopicPartition
from aiokafka import errors as kafka

from penstock.connectors.base import Batch, Raw
from penstock.connectors.kafka.client import translated
from penstock.connectors.kafka.partition import Make, Partition
from penstock.connectors.kafka.schemas import Schemas
from penstock.connectors.kafka.session import Session, Sight
from penstock.connectors.kafka.verdict import judge
from penstock.connectors.settings import Connection
from penstock.engine.errors import PenstockError, Permanent
from penstock.engine.plan import Split

AGAIN_S = 0.05
LOOK_EVERY_S = 10.0
RETRY_S = 1.0
STALLED_LOOKS = 3
"""So many looks in a row see records that the client does not bring: it is replaced."""
FETCH_RECORDS = 256
CAREFUL = 256
"""Records that are fetched one by one after the client choked."""


class KafkaReader:
    """Implements `base.Reader`. `now`: seconds of a clock that never goes back."""

    def __init__(
        self,
        connection: Connection,
        starts: Sequence[tuple[Split, int]],
        make: Make,
        schemas: Schemas | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._now = now
        self._schemas = schemas
        self._turn = deque(Partition(split, max(split.start, at), make) for split, at in starts)
        self._session: Session | None = None
        self._reads: dict[TopicPartition, Partition] = {}
        """Whose position the client has: of two lives of one partition it is one's."""
        self._work: asyncio.Task[Session | Sight] | None = None
        self._due = 0.0
        """When to connect or to look next."""
        self._unsure = True
        """Nothing is fetched before a look that began from now on."""
        self._trouble: PenstockError | None = None

    async def read(self, max_records: int, max_bytes: int) -> Batch:
        self._settle(self._now())
        if isinstance(trouble := self._told(), Permanent):
            raise trouble
        records: list[Raw] = []
        ended: list[str] = []
        size = idle = 0
        while idle < len(self._turn) and len(records) < max_records and size < max_bytes:
            partition = self._turn[0]
            share = max(1, (max_records - len(records)) // len(self._turn))
            got = await self._some(partition, records, share, max_bytes - size)
            size += got
            idle = 0 if got or partition.over else idle + 1
            if partition.over:
                ended.append(self._turn.popleft().split.id)
                self._leave(partition)
            else:
                self._turn.rotate(-1)
        return self._batch(records, ended)

    def lag(self) -> dict[str, int]:
        """Topic → records that were not handed out yet, as far as is known (gaps in the offsets count)."""
        found: dict[str, int] = {}
        for partition in self._turn:
            found[partition.tp.topic] = found.get(partition.tp.topic, 0) + partition.lag
        return found

    async def close(self) -> None:
        self._turn.clear()
        if self._work is not None:
            self._work.cancel()
            (left,) = await asyncio.gather(self._work, return_exceptions=True)
            if isinstance(left, Session):
                left.close()
        self._disconnect()
        if self._schemas is not None:
            await self._schemas.close()

    # -- handing out

    async def _some(self, partition: Partition, records: list[Raw], share: int, room: int) -> int:
        """Up to `share` records of one partition; returns their bytes (at least 1 each)."""
        size = 0
        for _ in range(share):
            if partition.empty:
                await self._fill(partition, min(share, FETCH_RECORDS))
            raw = partition.take()
            if raw is None:
                break
            records.append(raw)
            size += max(1, len(raw.row_json or raw.data))
            if size >= room:
                break
        return size

    def _batch(self, records: list[Raw], ended: list[str]) -> Batch:
        if records or ended or not self._turn:
            return Batch(records, tuple(ended), done=not self._turn)
        if (trouble := self._told()) is not None:
            raise trouble
        return Batch([], again_after_s=AGAIN_S)

    def _told(self) -> PenstockError | None:
        return self._trouble or (self._schemas.trouble if self._schemas is not None else None)

    def _leave(self, partition: Partition) -> None:
        """The client must not go on to fetch a partition that is over, nor hold what it fetched beyond the end."""
        session, tp = self._session, partition.tp
        if session is None or not session.has(tp) or any(other.tp == tp for other in self._turn):
            return
        session.pause(tp)
        session.seek(tp, partition.next)

    # -- fetching

    def _put(self, session: Session, partition: Partition) -> None:
        """What the client fetches next begins where this partition stands."""
        session.seek(partition.tp, partition.next)
        self._reads[partition.tp] = partition

    async def _fill(self, partition: Partition, count: int) -> None:
        session = self._session
        if session is None or self._unsure or session.refreshed or not partition.wants:
            return
        partition.asked += 1
        count = 1 if partition.careful else count
        if self._reads.get(partition.tp) is not partition:
            self._put(session, partition)
        try:
            partition.fetched(*await session.fetch(partition.tp, count))
        except kafka.OffsetOutOfRangeError:
            partition.strayed = self._now()
            self._due = 0.0
        except Exception as error:  # noqa: BLE001 - told, or a record that the client can't take apart: that is data
            self._put(session, partition)
            if isinstance(error, kafka.KafkaError) and not _is_of_a_record(error):
                self._trouble = translated(error, self._connection, f"reading {partition.tp.topic}")
                self._due = min(self._due, self._now() + RETRY_S)
                return
            if count == 1:
                partition.skip_unreadable(f"{type(error).__name__}: {error}"[:300])
                self._put(session, partition)
            partition.careful = CAREFUL
        else:
            partition.end_offset = session.end_seen(partition.tp) or partition.end_offset

    # -- looking after

    def _settle(self, now: float) -> None:
        """Take what the background work has brought, and begin the next where it is time."""
        if self._work is not None and self._work.done():
            work, self._work = self._work, None
            self._take(work, now)
        if self._work is not None:
            return
        live = [partition for partition in self._turn if not partition.all_fetched]
        if not live or not (now >= self._due or (self._session is not None and self._session.refreshed)):
            return
        if self._session is None:
            self._reads = {partition.tp: partition for partition in live}
            work = Session.connect(self._connection, {tp: partition.next for tp, partition in self._reads.items()})
        else:
            self._unsure = self._unsure or self._session.refreshed
            self._session.refreshed = False
            strayed = [partition.tp for partition in live if partition.strayed is not None]
            work = self._session.look([partition.tp for partition in live], strayed)
        self._work = asyncio.get_running_loop().create_task(work)

    def _take(self, work: asyncio.Task[Session | Sight], now: float) -> None:
        try:
            found = work.result()
        except PenstockError as error:
            self._trouble = error
            self._due = now + RETRY_S
            return
        if isinstance(found, Session):
            self._session, self._unsure, self._due = found, True, 0.0
        else:
            self._see(found, now)

    def _see(self, sight: Sight, now: float) -> None:
        session = self._session
        assert session is not None
        self._trouble, self._unsure = None, False
        self._due = now + LOOK_EVERY_S
        for partition in self._turn:
            if partition.all_fetched:
                continue
            verdict = judge(partition, sight, now)
            if verdict.fatal is not None:
                self._trouble = verdict.fatal
            if verdict.seek:
                self._put(session, partition)
            if verdict.again:
                self._due = now + RETRY_S
            if verdict.stalls >= STALLED_LOOKS:
                self._disconnect()
                self._due = 0.0
                return

    def _disconnect(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()


def _is_of_a_record(error: kafka.KafkaError) -> bool:
    """The batch came as it was written, and what was written is broken. Where its checksum is wrong, a disk or the way
    here may have broken it: another replica, or a person, can bring it back."""
    return isinstance(error, kafka.CorruptRecordException) and "Invalid CRC" not in str(error)
