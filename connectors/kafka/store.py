"""A Kafka cluster as a store: results, costs, dead letters and progress in one transaction; see `lane` for the steps.

Exactly-once holds for readers with `isolation.level=read_committed`. What this store does not do: order the records of
different lanes, or assemble anything at the end: a topic is what its readers want.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

import msgspec

from penstock.connectors.arrivals import Arrivals
from penstock.connectors.base import Holder, OutRecord, Records, SinkName, Taken, refuse_replaced
from penstock.connectors.filestore.disk import Faults, no_faults
from penstock.connectors.kafka.client import describe
from penstock.connectors.kafka.control import ALIVE_S, CLAIM, Claim, Control
from penstock.connectors.kafka.dead_letters import outgoing, without_death
from penstock.connectors.kafka.heart import BEAT_S, Heart
from penstock.connectors.kafka.lane import COMMIT_S, Transactions, farewell, fenced
from penstock.connectors.kafka.large import Large, LargeObjects
from penstock.connectors.kafka.opening import Cluster, looked_up_again, open_cluster
from penstock.connectors.kafka.progress import Stored, assemble, read_rows, rows_of
from penstock.connectors.kafka.records import Row, row
from penstock.connectors.kafka.run import Run
from penstock.connectors.settings import DEAD_LETTER, Connection, KafkaSink
from penstock.engine.errors import Corrupt, Fenced, Held, PenstockError, Refused, Temporary
from penstock.engine.plan import Epoch, Plan

_ANY_EPOCH = 1_000_000_000
"""As long as any run epoch, for sizes."""


class Settings(msgspec.Struct, frozen=True):
    """run_id: goes into every record's headers. scope: names this store's progress (see `keys.Scope`)."""

    connection: Connection
    run_id: str
    scope: str
    sinks: dict[SinkName, KafkaSink]
    reply_to: tuple[str, ...] = ()
    commit_s: float = COMMIT_S
    alive_s: float = ALIVE_S
    beat_s: float = BEAT_S

    @property
    def compression(self) -> str:
        """One producer compresses all alike: the results' wish counts."""
        sinks = sorted(self.sinks.items(), key=lambda pair: pair[0] != "results")
        return sinks[0][1].compression

    @property
    def large(self) -> LargeObjects | None:
        """Where results go that their topic does not take; None: they become dead letters."""
        sink = self.sinks.get("results")
        return LargeObjects(sink.too_large, self.run_id) if sink and sink.too_large != DEAD_LETTER else None


class _Owned(msgspec.Struct):
    """A lane that is ours."""

    epoch: Epoch
    producer: Transactions
    stored: Stored
    cluster: Cluster
    """As it was known when the lane was taken."""


class _Open(msgspec.Struct):
    cluster: Cluster
    control: Control
    heart: Heart
    run: Run


class KafkaStore:
    """See `base.Store` and `base.Primary`. One lane's calls come one at a time; those of several lanes may overlap.

    Connects with its first call. faults: called at each named step (`lane.TAKE_STEPS`, …); only tests give one.
    """

    def __init__(self, settings: Settings, faults: Faults = no_faults) -> None:
        self._settings = settings
        self._faults = faults
        self._lanes: dict[int, _Owned] = {}
        self._arrivals = Arrivals()
        """They begin with the connection and its sign of life."""
        self._opened: _Open | None = None
        self._opening = asyncio.Lock()
        self._looking = asyncio.Lock()
        """Not `_opening`: lanes that only commit wait for nobody's second look at the topics."""
        self._stale = False
        """A commit failed since topics were looked up: they may be others than we think."""
        self._large = settings.large

    async def _open(self) -> _Open:
        async with self._opening:
            if self._opened is None:
                s = self._settings
                cluster = await open_cluster(s.connection, s.scope, s.sinks, s.reply_to)
                control = Control(s.connection, cluster.progress.name, cluster.scope)
                heart = Heart(s.connection, control.partition, cluster.scope, s.beat_s)
                self._opened = _Open(cluster, control, heart, Run(s.connection, cluster, control, heart, s.alive_s))
            return self._opened

    async def _open_afresh(self) -> _Open:
        """Else a lane would be taken again with what its last commit broke on, and its items be paid for again."""
        here = await self._open()
        async with self._looking:
            if self._stale:
                self._stale = False  # first: a commit that fails meanwhile asks for one more look
                try:
                    here.cluster = await looked_up_again(here.cluster, self._settings.connection)
                except BaseException:
                    self._stale = True
                    raise
        return here

    # the lanes

    async def take(self, lane: int, epoch: Epoch, *, force: bool = False) -> Taken:
        with self._arrivals.one():
            return await self._take(lane, epoch, force)

    async def _take(self, lane: int, epoch: Epoch, force: bool) -> Taken:
        here = await self._open_afresh()
        refuse_replaced(self._lanes.get(lane), lane, epoch, self._where)
        if before := self._lanes.pop(lane, None):
            before.producer.close()
        self._faults("take.begin")
        await self._check_owner(here, lane, epoch, force)
        await here.heart.start()
        producer = self._producer(here, lane)
        try:
            await producer.start()
            self._faults("take.fenced")
            await here.control.refresh()  # whoever claimed it before our fence is seen here
            self._refuse_older(here, lane, epoch)
            await producer.write([_claim(here.cluster, lane, Claim(epoch, here.heart.process))], no_faults)
            self._faults("take.claimed")
            stored, chunks = await self._read(here, lane)
            # A newer owner that started between our fence and our claim is seen now, or its own commits fence us.
            await here.control.refresh()
            self._refuse_older(here, lane, epoch, claimed=True)
        except PenstockError as error:
            producer.close()
            raise await self._explained(here, lane, epoch, error) from error
        except BaseException:
            producer.kill()
            raise
        if before := self._lanes.pop(lane, None):  # of a take that was slower than ours, and older
            before.producer.close()
        self._lanes[lane] = _Owned(epoch, producer, stored, here.cluster)
        return Taken(stored.head.seq, stored.head.epoch, chunks)

    async def _check_owner(self, here: _Open, lane: int, epoch: Epoch, force: bool) -> None:
        await here.control.refresh()
        self._refuse_older(here, lane, epoch)
        claim = here.control.claims.get(lane)
        if force or claim is None or claim.process in ("", here.heart.process):
            return
        if await here.control.alive(claim.process, self._settings.alive_s):
            raise Held(
                f"{self._where}: lane {lane} is still held by a process that is alive (epoch {claim.epoch}). Stop it, "
                "or use --take-over."
            )

    def _refuse_older(self, here: _Open, lane: int, epoch: Epoch, *, claimed: bool = False) -> None:
        owner = here.control.owner(lane)
        if owner > epoch or (owner == epoch and not claimed):
            raise Fenced(f"{self._where}: lane {lane} is owned by epoch {owner}; ours is {epoch}. Read it and stop.")

    def _producer(self, here: _Open, lane: int) -> Transactions:
        return Transactions(
            self._settings.connection,
            here.cluster.scope.transactional_id(lane),
            batch_bytes=here.cluster.batch_bytes,
            compression=self._settings.compression,
        )

    async def _read(self, here: _Open, lane: int) -> tuple[Stored, dict[str, bytes]]:
        partition = here.cluster.partition(here.cluster.scope.data(lane))
        end = await here.control.end(partition)
        rows = await read_rows(self._settings.connection, partition, end, here.cluster.scope)
        return assemble(here.cluster.scope, lane, rows)

    async def commit(self, lane: int, epoch: Epoch, seq: int, records: Records, chunks: Mapping[str, bytes]) -> None:
        here = await self._open()
        owned = self._owned(lane, epoch)
        last = owned.stored.head.seq
        if seq <= last:
            return
        if seq > last + 1:
            raise Corrupt(f"{self._where}: commit {seq} cannot follow commit {last}. Take the lane anew.")
        self._faults("commit.begin")
        cluster = here.cluster
        changed, stored = rows_of(cluster.scope, lane, owned.stored, epoch, seq, chunks, cluster.piece_bytes)
        place = cluster.scope.data(lane)
        own, large = self._rows(cluster, epoch[0], records)
        if message := next((message for one in own if (message := one.too_large)), None):
            raise self._too_large(message, owned.cluster is cluster)
        if large and self._large is not None:
            await self._large.put(large)
            self._faults("commit.large")
        rows = [
            *own,
            *(Row(cluster.progress, k, v, partition=place) for k, v in changed),
        ]
        try:
            await owned.producer.write(rows, self._faults, seconds=self._settings.commit_s)
        except PenstockError as error:
            self._stale = True
            raise await self._explained(here, lane, epoch, error) from error
        owned.stored = stored

    def _owned(self, lane: int, epoch: Epoch) -> _Owned:
        owned = self._lanes.get(lane)
        if owned is None or owned.epoch != epoch:
            raise Fenced(f"{self._where}: lane {lane} is not ours under epoch {epoch}. Take it first.")
        if owned.producer.lost:
            raise Temporary(f"{self._where}: the last commit of lane {lane} is uncertain. Take it anew and read.")
        return owned

    def _rows(self, cluster: Cluster, run_epoch: int, records: Records) -> tuple[list[Row], list[Large]]:
        """What goes to the topics, and what must be on S3 before."""
        rows: list[Row] = []
        large: list[Large] = []
        for sink, lines in records.items():
            if sink not in cluster.sinks:
                raise Refused(f"{self._where}: sink {sink} does not live in this store. Put its records in the outbox.")
            for record in lines:
                one, beside = self._row(cluster, run_epoch, sink, record)
                rows.append(one)
                if beside is not None:
                    large.append(beside)
        return rows, large

    def _too_large(self, message: str, known: bool) -> PenstockError:
        """`known`: the lane was taken with what is known of the topic now."""
        if known:
            return Refused(f"{self._where}: {message}")
        return Temporary(f"{self._where}: the topic's limit was changed meanwhile: {message} The lane is taken anew.")

    def _row(self, cluster: Cluster, run_epoch: int, sink: str, record: OutRecord) -> tuple[Row, Large | None]:
        replies = cluster.replies if sink == "results" else {}
        record = outgoing(record) if sink == "dead_letters" else _framed(cluster, sink, without_death(record))
        one = row(self._settings.run_id, run_epoch, cluster.sinks[sink], record, replies)
        if sink != "results" or self._large is None or one.too_large is None:
            return one, None
        short, large = self._large.pointer(record)
        return row(self._settings.run_id, run_epoch, cluster.sinks[sink], short, replies), large

    def refuses(self, sink: SinkName, record: OutRecord) -> str | None:
        here = self._opened
        return self._row(here.cluster, _ANY_EPOCH, sink, record)[0].too_large if here is not None else None

    async def _explained(self, here: _Open, lane: int, epoch: Epoch, error: PenstockError) -> PenstockError:
        """A fenced producer may have been fenced by a new owner, or by its own transaction's timeout: read which."""
        if not fenced(error):
            return error
        with contextlib.suppress(PenstockError):
            await here.control.refresh()
        owner = here.control.owner(lane)
        if owner > epoch:
            return Fenced(f"{self._where}: lane {lane} was taken over by epoch {owner}; ours is {epoch}. Stop.")
        return Temporary(f"{self._where}: a transaction of lane {lane} was ended by the broker. Take the lane anew.")

    async def owner(self, lane: int) -> Epoch:
        here = await self._open()
        await here.control.refresh()
        return here.control.owner(lane)

    async def release(self, lane: int, epoch: Epoch | None = None) -> None:
        owned, here = self._lanes.get(lane), self._opened
        if here is None:
            return
        if owned is not None and epoch in (None, owned.epoch):
            del self._lanes[lane]
            await farewell(owned.producer, [_claim(here.cluster, lane, Claim(owned.epoch))], no_faults)
        await self._rest(here)

    async def _rest(self, here: _Open) -> None:
        """Nothing is ours any more: nobody needs to see that we live."""
        if self._opened is here and not self._lanes and not self._arrivals and not here.run.epoch:
            self._opened = None  # first: whoever comes now opens anew
            await here.heart.stop()
            here.control.close()

    async def peek(self, lane: int) -> Taken:
        stored, chunks = await self._read(await self._open(), lane)
        return Taken(stored.head.seq, stored.head.epoch, chunks)

    # the run

    async def hold(self, holder: Holder, *, take_over: bool = False, above: int = 0) -> int:
        with self._arrivals.one():
            return await (await self._open()).run.hold(holder, take_over=take_over, above=above)

    async def holder(self) -> Holder | None:
        return await (await self._open()).run.holder()

    async def refuse_held(self) -> None:
        await (await self._open()).run.refuse_held()

    async def let_go(self) -> None:
        if self._opened is not None:
            here = self._opened
            await here.run.let_go()
            await self._rest(here)

    async def run_epoch(self) -> int:
        return await (await self._open()).run.run_epoch()

    async def read_plan(self) -> Plan | None:
        return await (await self._open()).run.read_plan()

    async def write_plan(self, plan: Plan) -> None:
        await (await self._open()).run.write_plan(plan)

    async def finish(self, plan: Plan) -> dict[str, list[str]]:
        """Nothing is left to do: what is committed is there. Raises `Fenced` where the run was taken over."""
        await (await self._open()).run.check()
        servers = self._settings.connection.bootstrap
        return {str(sink): [f"kafka://{servers}/{s.topic}"] for sink, s in self._settings.sinks.items()}

    async def forget(self) -> None:
        """Delete the run's progress and plan (`--fresh`); the records in the topics stay. Raises `Held`."""
        from penstock.connectors.kafka.forgetting import forget

        here = await self._open()
        await here.run.refuse_held()
        await forget(self._settings.connection, here.cluster, here.control)

    async def fresh_since(self) -> int:
        """The run epoch up to which the run's records were disowned (`--fresh`); 0: none were."""
        here = await self._open()
        await here.control.refresh()
        fresh = here.control.fresh
        await self._rest(here)
        return fresh

    @property
    def _where(self) -> str:
        return describe(self._settings.connection)

    @property
    def heart(self) -> Heart | None:
        """None: not connected."""
        return self._opened.heart if self._opened else None

    def kill(self) -> None:
        """End as a killed process would: nothing is said to anybody, open transactions stay open."""
        for owned in self._lanes.values():
            owned.producer.kill()
        self._lanes.clear()
        if self._opened is not None:
            self._opened.run.kill()
            self._opened.heart.kill()
            self._opened.control.close()
            self._opened = None


def _framed(cluster: Cluster, sink: str, record: OutRecord) -> OutRecord:
    avro = cluster.avro
    return record if avro is None else msgspec.structs.replace(record, value=avro.framed(sink, record.value))


def _claim(cluster: Cluster, lane: int, claim: Claim) -> Row:
    key = cluster.scope.key(CLAIM, str(lane))
    return Row(cluster.progress, key, msgspec.msgpack.encode(claim), partition=cluster.scope.control)
