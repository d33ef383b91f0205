"""The workers of one job: leased from the cluster where they run already, started where not, replaced when lost."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable, Collection

from penstock.engine.catalog import Account, Catalog, is_own
from penstock.workers.clock import since, tell_skew
from penstock.workers.cluster import kill, until_gone, words
from penstock.workers.replies import Unanswered, answered
from penstock.workers.staffing import found, has_place, hire, model_of, pools_of, settings_of

MAX_STARTS = 5
"""Starts of one worker in a row that fail before its pool is down: a model that dies while loading won't heal."""
PAUSE_S = 0.5
"""Twice that before the second of them, and doubled each time."""
MAX_PAUSE_S = 10.0
GONE_S = 15.0
"""For the process of a worker that could not load to be gone: the next try would meet it, or find its GPU taken."""
SILENT_S = 15.0
"""A worker that does not answer for so long is stopped or frozen: it is replaced."""
PING_S = 5.0
HOLDS_S = 10.0
"""To say whether it has anything of a run: milliseconds, but on a busy machine. One that is frozen never does."""
START_ASKED_S = 60.0
"""How often a worker that loads is asked whether it is there: a reply can get lost."""
BACKLOG = 128
"""Ready items a replica before one more is worth its loading. A guess: two batches of a small GPU."""
GROW_AFTER_S = 30.0
WARM_S = 30.0
"""For workers that start before a run is ours: it is not kept waiting for longer."""
AGAIN_S = 180.0
"""A pool that is down is tried again so often, in a run without an end: nobody begins that anew. A guess."""


class Worker:
    def __init__(self, pool: str, number: int) -> None:
        self.pool = pool
        self.number = number
        self.name = ""
        self.handle: object | None = None
        self.trying: object | None = None
        """The process that loads, or could not."""
        self.failures = 0
        self.given_up = False
        """It did not start, however often it was tried."""
        self.gauges: dict[str, float] = {}
        self.started_at = 0.0
        self.ready_at = 0.0
        self.released = False
        """Its version is not in use any more: it ends what it has, and nobody takes its place, or tries to start it."""


def first_pools(catalog: Catalog, own: Collection[str]) -> list[str]:
    """Pools that will surely be asked: the first candidates of every tier. Others start when work waits there. `own`:
    of engines whose versions are in use."""
    firsts = [catalog.models[names[0]] for names in catalog.tiers.values() if names]
    pools = [model.pool_of(v.id) for model in firsts for v in model.versions]
    return list(dict.fromkeys(pool for pool in pools if pool in own or not is_own(pool)))


class Fleet:
    """`job`: see `ports.job_of`. `on_lost(name, replaced)`, `on_pool(pool, why it is down)` (None: it is up again),
    `on_change(what, worker, why)` tell the driver, `note` tells people. `logs` (of workers): (state, run id)."""

    def __init__(
        self,
        catalog: Catalog,
        job: str,
        driver: object,
        dispatchers: int,
        on_lost: Callable[[str, bool], Awaitable[None]],
        on_pool: Callable[[str, str | None], Awaitable[None]],
        on_change: Callable[[str, Worker, str], None],
        note: Callable[[str], None],
        keep_s: float = 120.0,
        logs: tuple[str, str] | None = None,
        *,
        endless: bool = False,
    ) -> None:
        self.catalog = catalog
        self.workers: dict[tuple[str, int], Worker] = {}
        self.down: dict[str, str] = {}
        self.command = 0
        """Its run epoch, set before any worker is wanted: workers obey no command that the run was taken from."""
        self.only_left: set[str] = set()
        """Pools of own engines that have something of this run (`reunite`), and are wanted by nobody besides."""
        self._job = job
        self._driver = driver
        self._dispatchers = dispatchers
        self._keep_s = keep_s
        self._logs = logs
        self._endless = endless
        self._on_lost = on_lost
        self._on_pool = on_pool
        self._on_change = on_change
        self._note = note
        self._tasks: set[asyncio.Task[None]] = set()
        self._warmed: list[object] = []
        """Handles of workers that were started before the run was ours."""
        self._closing = False

    async def warm(self, pools: Collection[str]) -> None:
        """Start the dispatchers of these accounts while the run is another's still, and wait until they are there. They
        serve nobody, so they send nothing; `want` finds them by their names. Why one does not start `want` tells."""
        workers = [Worker(pool, number) for pool in pools for number in range(self._replicas(pool))]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WARM_S):
                await asyncio.gather(*(self._warm(worker) for worker in workers), return_exceptions=True)

    async def _warm(self, worker: Worker) -> None:
        settings, name = settings_of(self.catalog, worker.pool, worker.number)
        handle = hire(settings, name, None)
        self._warmed.append(handle)
        await self._loaded(handle, settings.account is not None and self._governed(settings.account))

    def want(self, pool: str) -> None:
        """See that the pool has its workers. Asked again: nothing."""
        self.only_left.discard(pool)
        for worker in self._of(pool):
            self._take_back(worker)
        if self._closing or pool in self.down:
            return
        for number in range(self._replicas(pool)):
            self._begin(pool, number)

    def _begin(self, pool: str, number: int) -> None:
        if (pool, number) not in self.workers:
            worker = self.workers[pool, number] = Worker(pool, number)
            self._spawn(self._keep(worker))

    def grow(self, pool: str, waiting: int, now: float) -> None:
        """One more replica of an own model, up to its `replicas.max`: where all it has have been busy for a while, work
        for each of them waits, and the cluster has a place for one more."""
        model = model_of(self.catalog, pool)
        here = self._of(pool)
        if model is None or self._closing or len(here) >= model.max_replicas or waiting < BACKLOG * len(here):
            return
        settled = all(worker.handle is not None and since(worker.ready_at, now) > GROW_AFTER_S for worker in here)
        if settled and has_place(model, len(here)):
            self._begin(pool, next(n for n in itertools.count() if (pool, n) not in self.workers))

    def _of(self, pool: str) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker.pool == pool]

    def let_go(self, pools: Collection[str]) -> None:
        """No item is sent there any more: their workers end what they have, and then themselves. Asked again:
        nothing."""
        for worker in self.workers.values():
            if worker.given_up:
                worker.released = worker.pool in pools
            elif worker.pool in pools and not worker.released:
                self._release(worker)

    def _release(self, worker: Worker) -> None:
        if worker.handle is not None:
            worker.released, worker.gauges = True, {}
            self._on_change("left", worker, "")  # other jobs may use it for hours: those are not on our bill
            self._spawn(_await(worker.handle.leave.remote(self._job, self.command)))  # pyright: ignore[reportAttributeAccessIssue]

    def _take_back(self, worker: Worker) -> None:
        if worker.released and worker.handle is not None:
            worker.released, worker.gauges = False, {}
            for what in ("starting", "ready"):  # what others bear of it is counted anew as well
                self._on_change(what, worker, "")
            self._spawn(_await(self._serve(worker.handle)))

    def _heard(self, worker: Worker, gauges: dict[str, float]) -> None:
        """A worker that heard nothing of us for long (we were stopped) has given the job up: it is told anew."""
        worker.gauges = gauges
        if gauges.get("serves") == 0.0 and not worker.released:
            worker.released = True
            self._on_change("left", worker, "")
            self._note(f"worker {worker.name} heard nothing of this run for long: it is told of it anew")
            self._take_back(worker)

    async def reunite(self, seconds: float) -> None:
        """Serve with all workers at which an earlier driver left something of this run, whether anybody wants them now
        or not, and wait for these: their answers would be asked for anew. New ones have none. Engines that are wanted
        for nothing else would keep their GPUs from others: once the lanes have asked them, they may be let go."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                left = await self._left()
                self.only_left = {pool for pool, _ in left if is_own(pool) and not self._of(pool)}
                for pool in {pool for pool, _ in left} - self.only_left:
                    self.want(pool)
                for place in left:
                    self._begin(*place)
                while not self._there.issuperset(left):  # noqa: ASYNC110 - once a run
                    await asyncio.sleep(0.05)

    async def _left(self) -> list[tuple[str, int]]:
        """(pool, number) of workers that live, and have something of this run."""
        places = [(pool, number) for pool in pools_of(self.catalog) for number in range(self._most(pool))]
        names = [settings_of(self.catalog, *place)[1] for place in places]
        there = await asyncio.to_thread(lambda: [found(name) for name in names])
        held = await asyncio.gather(*(self._holds(handle) for handle in there))
        return [place for place, holds in zip(places, held, strict=True) if holds]

    async def _holds(self, handle: object | None) -> bool:
        """False, too, where it can't say so in time."""
        with contextlib.suppress(Exception):
            if handle is not None:
                return await asyncio.wait_for(handle.holds.remote(self._job), HOLDS_S)  # pyright: ignore[reportAttributeAccessIssue]
        return False

    def _most(self, pool: str) -> int:
        """So many workers it has ever had."""
        model = model_of(self.catalog, pool)
        return max(1, model.max_replicas if model is not None else self._dispatchers)

    @property
    def _there(self) -> set[tuple[str, int]]:
        return {place for place, worker in self.workers.items() if worker.handle is not None}

    def handles(self) -> list[tuple[str, object]]:
        return [(worker.name, worker.handle) for worker in self.workers.values() if worker.handle is not None]

    def borne(self) -> list[tuple[str, str, float]]:
        """(pool, replica, seconds of its time that other jobs bear) of every worker that is there, as last heard."""
        there = (worker for worker in self.workers.values() if worker.handle is not None)
        return [(w.pool, f"{w.pool}#{w.number}", w.gauges.get("others_s", 0.0)) for w in there]

    async def close(self, *, abort: bool = False) -> None:
        """Give the workers back to the cluster. Those that were started for a run which did not become ours end."""
        self._closing = True
        for task in list(self._tasks):
            task.cancel()
        if abort:
            await self.abort()
        for _, handle in self.handles():
            with contextlib.suppress(Exception):
                await asyncio.wait_for(handle.leave.remote(self._job, self.command), 2.0)  # pyright: ignore[reportAttributeAccessIssue]
        await asyncio.gather(*(self._dismiss(handle) for handle in self._warmed))

    async def _dismiss(self, handle: object) -> None:
        """It ends now where it never served anybody."""
        with contextlib.suppress(Exception):
            await asyncio.wait_for(handle.dismiss.remote(), 2.0)  # pyright: ignore[reportAttributeAccessIssue]

    async def abort(self) -> None:
        for _, handle in self.handles():
            with contextlib.suppress(Exception):
                await asyncio.wait_for(handle.abort.remote(self._job, self.command), 2.0)  # pyright: ignore[reportAttributeAccessIssue]

    # -- one worker's life

    async def _keep(self, worker: Worker) -> None:
        while not self._closing:
            try:
                await self._start(worker)
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever keeps a worker from starting is told, and bounded
                if isinstance(error, Unanswered):
                    kill(worker.trying)
                worker.failures += 1
                if worker.given_up or worker.failures >= MAX_STARTS or (_hopeless(error) and not worker.ready_at):
                    await self._give_up(worker, error)
                    if not self._endless:
                        return
                    await self._later(worker)
                else:
                    if worker.trying is not None:
                        await _gone(worker.trying)
                    await asyncio.sleep(min(MAX_PAUSE_S, PAUSE_S * 2**worker.failures))
                continue
            worker.failures, worker.given_up = 0, False
            if worker.released:  # while it was loading, after all
                self._release(worker)
            if self.down.pop(worker.pool, None) is not None:
                await self._on_pool(worker.pool, None)
            await self._until_lost(worker)
            self._on_change("lost", worker, "")
            lost, worker.handle = worker.name, None
            await self._on_lost(lost, not worker.released)
            if worker.released:
                del self.workers[worker.pool, worker.number]
                return

    async def _start(self, worker: Worker) -> None:
        settings, name = settings_of(self.catalog, worker.pool, worker.number)
        worker.started_at, worker.gauges = time.time(), {}
        self._on_change("starting", worker, "")
        governed = settings.account is not None and self._governed(settings.account)
        if governed and worker.number:  # who had the account to itself so far shares it from now on
            worker.trying = hire(*settings_of(self.catalog, worker.pool, 0), None)
            await self._loaded(worker.trying, governed)
        worker.trying = handle = hire(settings, name, model_of(self.catalog, worker.pool))
        worker.name = await self._loaded(handle, governed, own=is_own(worker.pool))
        worker.handle, worker.trying, worker.ready_at = handle, None, time.time()
        self._on_change("ready", worker, "")
        await self._served(handle)
        self._spawn(tell_skew(f"worker {worker.name}", handle.clock.remote, self._note))  # pyright: ignore[reportAttributeAccessIssue]

    async def _served(self, handle: object) -> None:
        """One that does not answer is ended. Its end, and that it heard nothing, `_until_lost` sees."""
        try:
            await self._serve(handle)
        except Unanswered:
            kill(handle)
        except Exception:  # noqa: BLE001 - it is gone, or there is no way to it
            return

    async def _loaded(self, handle: object, governed: bool, *, own: bool = False) -> str:
        """Its name. Loading may take long: asked again, it says the same. Raises `Unanswered` where it is frozen; of an
        engine of our `own`, which may also wait for a GPU, nobody can tell."""

        def ask() -> Awaitable[tuple[str, int]]:
            return handle.start.remote(governed)  # pyright: ignore[reportAttributeAccessIssue]

        while True:
            try:
                name, _ = await answered(ask, START_ASKED_S)
                return name
            except Unanswered:
                if not own:
                    raise

    async def _serve(self, handle: object) -> None:
        def ask() -> Awaitable[None]:
            return handle.serve.remote(self._job, self.command, self._driver, self._keep_s, self._logs)  # pyright: ignore[reportAttributeAccessIssue]

        await answered(ask, PING_S)

    async def _until_lost(self, worker: Worker) -> None:
        """Returns when its process is gone, or has not answered for long: its calls are paid for again then, which a
        connection that broke for a moment is no reason for."""
        from ray.exceptions import RayTaskError

        handle = worker.handle
        gone = asyncio.ensure_future(until_gone(handle))
        heard = time.monotonic()
        try:
            while not gone.done():
                await asyncio.wait([gone], timeout=PING_S)
                if gone.done():
                    return
                try:
                    self._heard(worker, await asyncio.wait_for(handle.gauges.remote(self._job), PING_S))  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
                    heard = time.monotonic()
                except RayTaskError:  # it answers: gauges that can't be read are no reason either
                    heard = time.monotonic()
                except Exception:  # noqa: BLE001 - no answer, or no way to it: `gone` says so where its process is gone
                    if time.monotonic() - heard > SILENT_S:
                        kill(handle)
                        return
        finally:
            gone.cancel()

    async def _give_up(self, worker: Worker, error: Exception) -> None:
        """Its pool is down where none of its workers is there, or still tried."""
        why = _words(error)
        worker.given_up = True
        self._on_change("down", worker, why)
        if worker.pool not in self.down and all(each.given_up for each in self._of(worker.pool)):
            self.down[worker.pool] = why
            await self._on_pool(worker.pool, why)

    async def _later(self, worker: Worker) -> None:
        """Until it is time to try again; never while nobody wants it."""
        await asyncio.sleep(AGAIN_S)
        while worker.released:  # noqa: ASYNC110 - a look every few minutes
            await asyncio.sleep(AGAIN_S)

    def _replicas(self, pool: str) -> int:
        model = model_of(self.catalog, pool)
        return max(1, model.min_replicas if model is not None else self._dispatchers)

    def _governed(self, account: Account) -> bool:
        """Only accounts with rates, or with several dispatchers, need a governor. A worker that serves one without it
        has one as soon as a job with several dispatchers comes, and keeps it."""
        return account.limits.rated or self._dispatchers > 1

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)  # pyright: ignore[reportArgumentType]
        task.add_done_callback(self._tasks.discard)  # pyright: ignore[reportArgumentType]


async def _await(call: Awaitable[object]) -> None:
    with contextlib.suppress(Exception):
        await call


def _words(error: Exception) -> str:
    """Ray's long story of a dead process, in one line."""
    from ray.exceptions import ActorDiedError

    if isinstance(error, ActorDiedError):
        return "its process died while it was starting; the Ray dashboard has its log"
    return words(error)[:300]


async def _gone(handle: object) -> None:
    """A process that could not load ends a moment after its reply; the next try waits for that."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(GONE_S):
            await until_gone(handle)


def _hopeless(error: Exception) -> bool:
    """A wrong key or model name won't become right. (One that was right before may.)"""
    from penstock.engine.errors import SpecError

    return isinstance(getattr(error, "cause", error), SpecError)
