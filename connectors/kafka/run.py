"""The run in a Kafka cluster: who its one command is, and the plan. Written by the driver's transactional producer."""

from __future__ import annotations

import contextlib
import datetime
import time

import msgspec

from penstock.connectors.base import Holder
from penstock.connectors.filestore.disk import no_faults
from penstock.connectors.kafka.control import HOLD, Control, Hold
from penstock.connectors.kafka.heart import Heart
from penstock.connectors.kafka.keys import PLAN
from penstock.connectors.kafka.lane import Transactions, farewell, fenced
from penstock.connectors.kafka.opening import Cluster
from penstock.connectors.kafka.progress import Stored, assemble, read_rows, rows_of
from penstock.connectors.kafka.records import Row
from penstock.connectors.settings import Connection
from penstock.engine.errors import Corrupt, Fenced, Held, PenstockError, Temporary
from penstock.engine.plan import Plan

_CHUNK = "plan"


class Run:
    """window_s: how long a command whose counter stands still may be silent before it counts as gone."""

    def __init__(
        self, connection: Connection, cluster: Cluster, control: Control, heart: Heart, window_s: float
    ) -> None:
        self._connection = connection
        self._cluster = cluster
        self._control = control
        self._heart = heart
        self._window_s = window_s
        self._driver: Transactions | None = None
        self.epoch = 0
        """Ours while we hold the run; 0: we do not."""

    async def hold(self, holder: Holder, *, take_over: bool, above: int = 0) -> int:
        if not take_over:
            await self.refuse_held()
        await self._heart.start()
        driver = await self._start_driver()
        await self._control.refresh()  # after the fence: of two commands at once the later one sees the other's epoch
        epoch = max(self._control.hold.epoch if self._control.hold else 0, above) + 1
        await self._write(driver, [self._hold_row(Hold(epoch, holder, self._heart.process))])
        self.epoch = epoch
        await self._heart.bury(self._control.dead(time.time()))
        return epoch

    async def refuse_held(self) -> None:
        """Raises `Held` where a command that is alive holds the run, and it is not we."""
        await self._control.refresh()
        hold = self._control.hold
        if hold is None or hold.process in ("", self._heart.process):
            return
        if await self._control.alive(hold.process, self._window_s):
            raise Held(_describe(hold.holder))

    async def holder(self) -> Holder | None:
        await self._control.refresh()
        hold = self._control.hold
        if hold is None or not hold.process:
            return None
        ours = hold.process == self._heart.process
        return hold.holder if ours or await self._control.alive(hold.process, self._window_s) else None

    async def let_go(self) -> None:
        """Leave a mark, so that the next command need not wait to see that we are gone."""
        driver, epoch = self._driver, self.epoch
        self._driver, self.epoch = None, 0
        hold = self._control.hold
        if driver is None:
            return
        mine = epoch and hold is not None
        rows = [self._hold_row(Hold(epoch, hold.holder))] if mine else []  # pyright: ignore[reportOptionalMemberAccess]
        if rows and await self._still_ours(epoch):
            await farewell(driver, rows, no_faults)
        else:
            driver.close()

    async def _still_ours(self, epoch: int) -> bool:
        with contextlib.suppress(PenstockError):
            return await self.run_epoch() == epoch
        return False

    async def run_epoch(self) -> int:
        await self._control.refresh()
        return self._control.hold.epoch if self._control.hold else 0

    async def check(self) -> None:
        """Raises `Fenced` where another command took the run over from us."""
        if self.epoch and self.epoch < await self.run_epoch():
            raise Fenced("another command took this run over. Stop.")

    # the plan

    async def read_plan(self) -> Plan | None:
        return (await self._read_plan())[1]

    async def _read_plan(self) -> tuple[Stored, Plan | None]:
        partition = self._cluster.partition(self._cluster.scope.data(PLAN))
        end = await self._control.end(partition)
        rows = await read_rows(self._connection, partition, end, self._cluster.scope)
        stored, chunks = assemble(self._cluster.scope, PLAN, rows)
        if _CHUNK not in chunks:
            return stored, None
        try:
            return stored, msgspec.msgpack.decode(chunks[_CHUNK], type=Plan)
        except msgspec.MsgspecError as error:
            raise Corrupt(f"the plan in {partition.topic} can't be read ({error}). Start with --fresh.") from error

    async def write_plan(self, plan: Plan) -> None:
        await self.check()
        driver = self._driver or await self._start_driver()
        stored, before = await self._read_plan()
        version = before.version if before else 0
        if plan.version != version + 1:
            raise Fenced(
                f"the plan is at version {version} and version {plan.version} was to be written: another command "
                "changed it. Read it and start anew."
            )
        scope, topic = self._cluster.scope, self._cluster.progress
        chunks = {_CHUNK: msgspec.msgpack.encode(plan)}
        rows, _ = rows_of(scope, PLAN, stored, (self.epoch, 0), plan.version, chunks, self._cluster.piece_bytes)
        await self._write(driver, [Row(topic, k, v, partition=scope.data(PLAN)) for k, v in rows])

    # the driver's producer

    async def _start_driver(self) -> Transactions:
        if self._driver is not None:
            self._driver.close()
        driver = Transactions(
            self._connection, self._cluster.scope.transactional_id("driver"), batch_bytes=self._cluster.batch_bytes
        )
        await driver.start()
        self._driver = driver
        return driver

    async def _write(self, driver: Transactions, rows: list[Row]) -> None:
        try:
            await driver.write(rows, no_faults)
        except PenstockError as error:
            self._driver = None
            if not fenced(error):
                raise
            await self.check()
            if self.epoch:  # ours all the same: the broker ended the transaction, since this process slept amid it
                raise Temporary("a transaction of the run was ended by the broker. The same again may work.") from error
            raise Fenced(
                "another command began to take this run over while this one wrote. See who holds it, and start anew."
            ) from error

    def _hold_row(self, hold: Hold) -> Row:
        scope = self._cluster.scope
        return Row(self._cluster.progress, scope.key(HOLD), msgspec.msgpack.encode(hold), partition=scope.control)

    def kill(self) -> None:
        if self._driver is not None:
            self._driver.kill()


def _describe(who: Holder) -> str:
    since = datetime.datetime.fromtimestamp(who.since, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    command = f" ({who.command})" if who.command else ""
    return (
        f"this run is held by {who.user}@{who.host}, process {who.pid}{command}, since {since}. "
        "Wait for it or stop it; or use --take-over, which fences it off and goes on in its place."
    )
