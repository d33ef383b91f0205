"""What own engines cost a run: their hours, spread over the tokens they served, with closing lines that make it exact.

`dump` and `load` carry the clocks through a restart of the driver, so that the hours before a crash stay on the bill.
An engine that serves several jobs at once is borne by them in equal parts, second by second (`Shares`): together they
pay for it once. The share is heard every five seconds, so a bill may be off by that much of an engine's time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable

import msgspec

from penstock.connectors.documents import ABSENT, until_won
from penstock.connectors.state import open_state
from penstock.engine.catalog import Catalog, Price
from penstock.engine.errors import Fenced, Refused, Temporary
from penstock.engine.flow.tally import Tally
from penstock.engine.items import Usage
from penstock.engine.pricing import GpuClock, price_together, usd_to_nano
from penstock.engine.results import CostLine

HURRY_S = 3.0
"""One small object; a state that is away is tried for longer than whoever stops the command waits, and then the hours
are billed by the next one. A guess."""


class Shares:
    """Held by an engine's worker: of each job that it serves, how many seconds of its time the others bear."""

    def __init__(self) -> None:
        self._others_s: dict[str, float] = {}
        self._at = 0.0

    def _pass(self, now: float) -> None:
        jobs, gone = len(self._others_s), max(0.0, now - self._at)
        self._at = now
        for job in self._others_s:
            self._others_s[job] += gone * (1 - 1 / jobs)

    def see(self, jobs: Collection[str], now: float) -> None:
        """These are served from now on."""
        self._pass(now)
        self._others_s = {job: self._others_s.get(job, 0.0) for job in jobs}

    def anew(self, job: str, now: float) -> None:
        """A driver of the job begins: its clock begins with it."""
        self._pass(now)
        self._others_s[job] = 0.0

    def others_s(self, job: str) -> float:
        """Seconds since it began that others bear."""
        return self._others_s.get(job, 0.0)


class GpuBill:
    """A clock for each version, which has engines of its own. All of a model charge one rate."""

    def __init__(self, catalog: Catalog) -> None:
        self._names = {
            f"{name}@{version.id}": (name, version.id)
            for name, model in catalog.models.items()
            if model.worker is not None and model.hour_usd
            for version in model.versions
        }
        """`model@version` → both. Either may hold an @ itself."""
        self._clocks = {
            target: GpuClock(usd_to_nano(catalog.models[name].hour_usd or 0.0), loading={}, working={})
            for target, (name, _) in self._names.items()
        }
        """By `model@version`."""

    def __bool__(self) -> bool:
        return bool(self._clocks)

    def load(self, data: bytes, now: float) -> None:
        """The clocks of the last driver. Replicas it left running are gone or will be started again: closed at `now`
        at the latest, which bills the time between."""
        for name, clock in msgspec.msgpack.decode(data, type=dict[str, GpuClock]).items():
            if name in self._clocks:
                for replica in [*clock.loading, *clock.working]:
                    clock.stopped(replica, now)
                self._clocks[name] = clock

    def dump(self, now: float) -> bytes:
        """What a successor needs: as if everything had stopped at `now`."""
        copies = msgspec.msgpack.decode(msgspec.msgpack.encode(self._clocks), type=dict[str, GpuClock])
        for clock in copies.values():
            for replica in [*clock.loading, *clock.working]:
                clock.stopped(replica, now)
        return msgspec.msgpack.encode(copies)

    def starting(self, target: str, replica: str, now: float) -> None:
        """`target`: `model@version`, as in what follows."""
        if target in self._clocks:
            self._clocks[target].started(replica, now)

    def ready(self, target: str, replica: str, now: float) -> None:
        if target in self._clocks:
            self._clocks[target].ready(replica, now)

    def stopped(self, target: str, replica: str, now: float) -> None:
        if target in self._clocks:
            self._clocks[target].stopped(replica, now)

    def shared(self, target: str, replica: str, others_s: float) -> None:
        if target in self._clocks:
            self._clocks[target].shared(replica, others_s)

    def prices(self, tally: Tally, now: float) -> dict[str, Price]:
        """Running rates by model, from all tokens that the run's lanes were served so far."""
        of_model: dict[str, list[GpuClock]] = {}
        for target, clock in self._clocks.items():
            row = tally.models.get(target)
            clock.tokens = row.input_tokens + row.output_tokens if row is not None else 0
            of_model.setdefault(self._names[target][0], []).append(clock)
        return {model: price_together(clocks, now) for model, clocks in of_model.items()}

    def idle_nano(self, tally: Tally, now: float) -> int:
        """Hours so far, loading left out, less what calls were charged. Stops nothing."""
        of_calls = {name: _charged(tally, name) - _adjusted(tally, name) for name in self._clocks}
        return sum(max(0, clock.close(of_calls[name], now).idle_nano) for name, clock in self._clocks.items())

    def closing_lines(self, tally: Tally, run: str, epoch: int, now: float) -> list[CostLine]:
        """Adjustments after which the sum of the cost records is hours × price. Stops the clocks."""
        lines: list[CostLine] = []
        for name, clock in self._clocks.items():
            for replica in [*clock.loading, *clock.working]:
                clock.stopped(replica, now)
            due = clock.close(_charged(tally, name), now)
            for kind, nano in (("load", due.load_nano), ("idle", due.idle_nano)):
                if nano:
                    lines.append(self._line(f"{run}:{epoch}:{name}:{kind}", name, nano, len(lines), now))
        return lines

    def _line(self, entry_id: str, target: str, nano: int, number: int, now: float) -> CostLine:
        model, version = self._names[target]
        return CostLine(
            entry_id=entry_id,
            item_id=None,
            attempt=number,
            role="adjustment",
            account=None,
            model=model,
            model_version=version,
            usage=Usage(),
            cost_nano=nano,
            basis="amortised",
            price_version="amortised",
            tenant=None,
            task=None,
            tier=None,
            at=now,
        )


def _charged(tally: Tally, target: str) -> int:
    row = tally.models.get(target)
    return row.cost_nano if row is not None else 0


def _adjusted(tally: Tally, target: str) -> int:
    row = tally.models.get(target)
    return row.adjusted_nano if row is not None else 0


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    """Clocks in the state, and who wrote them: the run's life and epoch. A newer life is newer whatever its epoch."""

    life: float
    epoch: int
    clocks: bytes


def _kept(data: bytes) -> _Kept:
    try:
        return msgspec.msgpack.decode(data, type=_Kept)
    except msgspec.ValidationError:  # clocks of an earlier version, which did not say whose they are
        return _Kept(0.0, 0, data)


def clocks_in(data: bytes) -> dict[str, GpuClock]:
    """What a state holds of a run, by `model@version`."""
    return msgspec.msgpack.decode(_kept(data).clocks, type=dict[str, GpuClock])


class BillKeeper:
    """The run's bill, kept in the state so that the hours before a crash stay on it. The state may be far away: it is
    asked in threads. A driver that was replaced, and slept, writes nothing over what its successor keeps."""

    def __init__(self, catalog: Catalog, state: str, run_id: str) -> None:
        self._catalog = catalog
        self._state = state
        self._run = run_id
        self._bill = GpuBill(catalog)
        self._me = (0.0, 0)

    def __bool__(self) -> bool:
        return bool(self._bill)

    def hold(self, epoch: int, life: float) -> None:
        """The run is ours. `life`: when it was begun, as its plan says."""
        self._me = (life, epoch)

    async def read(self, *, resumed: bool, now: float) -> None:
        """The clocks, going on from where an earlier driver of this run left them."""
        if self._bill and resumed:
            found = await asyncio.to_thread(lambda: open_state(self._state).get(self._key()))
            self._bill = self._gone_on(_kept(found[0]).clocks if found is not None else None, now)

    async def open(self, *, resumed: bool, now: float) -> None:
        """The same, and from here on no earlier driver writes there. Raises `Fenced` where a later one does."""
        if self._bill:
            data = await asyncio.to_thread(
                self._swap, lambda before: self._gone_on(before if resumed else None, now).dump(now), fresh=not resumed
            )
            self._bill = self._gone_on(data, now)

    def _gone_on(self, clocks: bytes | None, now: float) -> GpuBill:
        bill = GpuBill(self._catalog)
        if clocks is not None:
            bill.load(clocks, now)
        return bill

    async def save(self, now: float, *, hurry: bool = False) -> bool:
        """False: the state can't be written now, or a later driver has it. `hurry`: the run is to stop, and waits
        `HURRY_S` at most."""
        data = self._bill.dump(now)
        try:
            put = asyncio.to_thread(self._swap, lambda _: data)
            await asyncio.wait_for(put, HURRY_S if hurry else None)
        except (Temporary, Refused, Fenced, TimeoutError):
            return False
        return True

    def _swap(self, clocks: Callable[[bytes | None], bytes], *, fresh: bool = False) -> bytes:
        """What is kept for what `clocks` makes of it. Raises `Fenced` where a later driver keeps it, unless that was in
        a life before this one (`fresh`)."""
        state, (life, epoch) = open_state(self._state), self._me

        def attempt() -> bytes:
            found = state.get(self._key())
            kept = _kept(found[0]) if found is not None else None
            if kept is not None and self._me < (kept.life, kept.epoch) and not fresh:
                raise Fenced(f"run {self._run} was taken over by epoch {kept.epoch}, which keeps its engines' hours")
            made = clocks(kept.clocks if kept is not None else None)
            data = msgspec.msgpack.encode(_Kept(life, epoch, made))
            state.put(self._key(), data, ABSENT if found is None else found[1])
            return made

        return until_won(attempt, f"the hours of own engines of run {self._run}")

    def _key(self) -> str:
        return f"runs/{self._run}/gpu"

    def changed(self, what: str, pool: str, replica: str, now: float) -> None:
        """A worker is `starting`, `ready`, or anything else that says that it is gone."""
        target = _target(pool)
        match what:
            case "starting":
                self._bill.starting(target, replica, now)
            case "ready":
                self._bill.ready(target, replica, now)
            case _:
                self._bill.stopped(target, replica, now)

    def shared(self, borne: Iterable[tuple[str, str, float]]) -> None:
        """(pool, replica, seconds of its time that other jobs bear) of the engines that serve this run."""
        for pool, replica, others_s in borne:
            self._bill.shared(_target(pool), replica, others_s)

    def prices(self, tally: Tally, now: float) -> dict[str, Price]:
        return self._bill.prices(tally, now)

    def idle_nano(self, tally: Tally, now: float) -> int | None:
        """Hours paid for without work, so far; None where the run has no engines of its own."""
        return self._bill.idle_nano(tally, now) if self._bill else None

    def owed(self, tally: Tally, epoch: int, now: float) -> list[CostLine]:
        """Closing lines that are not in the tally yet. They stop the clocks."""
        lines = self._bill.closing_lines(tally, self._run, epoch, now) if self._bill else []
        return lines if sum(line.cost_nano for line in lines) else []


def _target(pool: str) -> str:
    return pool.removeprefix("vllm:")
