"""What a job's fleet does with workers that live and yet don't serve it, or whose replies get lost."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from penstock.engine.catalog import Account, Catalog, Limits, Model, Version
from penstock.engine.errors import SpecError
from penstock.workers import cluster, driver, governing, staffing, worker_actor
from penstock.workers import fleet as shell
from penstock.workers.engines.base import EngineDead
from penstock.workers.fleet import MAX_STARTS, Fleet, Worker
from penstock.workers.governing import Governing
from penstock.workers.worker_actor import WorkerActor, WorkerSettings

OWN = Catalog(
    {}, {"own": Model("own", (Version("v1", "x"),), "v1", worker="vllm", min_replicas=2, max_replicas=3)}, {1: ("own",)}
)
POOL = "vllm:own@v1"
OPEN = Catalog({"a": Account("a", "openai", "https://a.example/v1", limits=Limits(concurrency=100))}, {}, {})


class Hands:
    """Stands where a worker's handle would. `mute`: calls of it whose next replies get lost."""

    def __init__(self, **mute: int) -> None:
        self.mute = mute
        self.failing: dict[str, Exception] = {}
        """Call → what it raises; `lost` also where it was asked before."""
        self.heard: list[str] = []
        self.governed: list[object] = []
        """What it was told at each start."""

    def __getattr__(self, name: str) -> Method:
        return Method(self, name)


class Method:
    def __init__(self, hands: Hands, name: str) -> None:
        self.hands, self.name = hands, name

    async def remote(self, *arguments: object) -> object:
        self.hands.heard.append(self.name)
        while self.name == "lost" and "lost" not in self.hands.failing:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.005)
        if self.name in self.hands.failing:
            raise self.hands.failing[self.name]
        if self.name == "start":
            self.hands.governed += arguments
        if self.hands.mute.get(self.name, 0) > 0:
            self.hands.mute[self.name] -= 1
            await asyncio.Event().wait()
        return ("w", 1) if self.name == "start" else 0.0


def made(
    dispatchers: int = 1,
    changes: list[str] | None = None,
    catalog: Catalog = OPEN,
    *,
    pools: list[tuple[str, str | None]] | None = None,
    endless: bool = False,
) -> Fleet:
    async def heard(*_: object) -> None:
        """Nobody listens."""

    async def told(pool: str, why: str | None) -> None:
        if pools is not None:
            pools.append((pool, why))

    def changed(what: str, worker: Worker, why: str) -> None:
        if changes is not None:
            changes.append(what)

    return Fleet(catalog, "r", None, dispatchers, heard, told, changed, print, endless=endless)


async def test_a_worker_that_has_given_the_job_up_is_told_anew() -> None:
    """It heard nothing of its driver for long, since that was stopped; its gauges say so. One let go is left alone."""
    changes: list[str] = []
    fleet, hands = made(changes=changes), Hands()
    worker = fleet.workers["api:a", 0] = Worker("api:a", 0)
    worker.handle = hands
    fleet._heard(worker, {"running": 3.0, "serves": 1.0})
    assert (hands.heard, worker.gauges["running"]) == ([], 3.0)
    fleet._heard(worker, {"running": 0.0, "serves": 0.0})
    await asyncio.gather(*fleet._tasks)
    assert hands.heard == ["serve"]
    assert (changes, worker.released) == (["left", "starting", "ready"], False)
    fleet.let_go(["api:a"])
    fleet._heard(worker, {"serves": 0.0})
    await asyncio.gather(*fleet._tasks)
    assert hands.heard == ["serve", "leave"]


def test_jobs_of_two_versions_share_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen: a worker that had begun before an upgrade could not ask the new driver, and its items waited for ever."""
    names: list[str] = []
    for found in ("1.0", "1.0", "1.1"):
        monkeypatch.setattr(staffing, "version", {"penstock": found}.__getitem__)
        names.append(staffing.settings_of(made().catalog, "api:a", 0)[1])
    assert names[0] == names[1] != names[2]


class Cluster:
    """Actors by name. `hands`: those that are there already, else one that answers all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, hands: Hands | None = None) -> None:
        self.there: dict[str, Hands] = {}
        self.first = hands
        monkeypatch.setattr(shell, "hire", self.actor)

    def actor(self, settings: WorkerSettings, name: str, model: object) -> Hands:
        return self.there.setdefault(name, self.first or Hands())


class Watched:
    """A fleet whose one worker is watched for its loss."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shell, "PING_S", 0.02)
        monkeypatch.setattr(cluster, "AWAY_S", 0.02)
        self.hands, self.killed = Hands(), list[object]()
        monkeypatch.setattr(shell, "kill", self.killed.append)
        self.worker = Worker("api:a", 0)
        self.worker.handle = self.hands
        self.lost = asyncio.ensure_future(made()._until_lost(self.worker))

    async def asked(self, times: int) -> None:
        """Until its gauges were asked for so often again."""
        upto = self.hands.heard.count("gauges") + times
        async with asyncio.timeout(5):
            while self.hands.heard.count("gauges") < upto and not self.lost.done():  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.01)


async def test_a_broken_connection_is_no_lost_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lanes would take back all its calls and pay for them again, while it goes on with them."""
    watched = Watched(monkeypatch)
    await watched.asked(1)
    away = ActorUnavailableError("the connection broke", None)
    watched.hands.failing = {"gauges": away, "lost": away}
    await watched.asked(3)
    watched.hands.failing = {}
    await watched.asked(3)
    assert not watched.lost.done()
    watched.lost.cancel()


async def test_a_worker_that_is_gone_is_lost_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However its end is told: also after its connection had broken."""
    watched = Watched(monkeypatch)
    watched.hands.failing = {"gauges": ActorDiedError(), "lost": ActorUnavailableError("it broke", None)}
    await watched.asked(2)
    watched.hands.failing["lost"] = ActorDiedError()
    async with asyncio.timeout(2):
        await watched.lost
    assert watched.killed == []


async def test_a_watch_of_a_worker_ends_by_itself_and_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of weeks would keep the call of each job that ever watched it, and take no others after a thousand."""
    monkeypatch.setattr(cluster, "WATCH_S", 0.01)
    settings = WorkerSettings("w", "api a", "api:a", "api", account=Account("a", "openai", "https://a.example/v1"))
    actor, asked = WorkerActor(msgspec.msgpack.encode(settings)), 0

    async def remote() -> None:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise ActorDiedError
        await actor.lost()

    async with asyncio.timeout(5):
        await cluster.until_gone(SimpleNamespace(lost=SimpleNamespace(remote=remote)))
    assert asked == 3


async def test_a_worker_without_a_connection_for_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that does not answer: another takes its place, and two must not work."""
    monkeypatch.setattr(shell, "SILENT_S", 0.3)
    watched = Watched(monkeypatch)
    watched.hands.failing = dict.fromkeys(("gauges", "lost"), ActorUnavailableError("no way", None))
    async with asyncio.timeout(5):
        await watched.lost
    assert watched.killed == [watched.hands]


@pytest.mark.parametrize("call", ["start", "serve"])
async def test_a_worker_whose_reply_gets_lost_is_asked_again(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lives and has heard: it would stand idle, with a run that waits for it for ever."""
    monkeypatch.setattr(shell, "START_ASKED_S", 0.02)
    monkeypatch.setattr(shell, "PING_S", 0.02)
    hands = Hands(**{call: 1})
    Cluster(monkeypatch, hands)
    fleet = made()
    fleet.want("api:a")
    async with asyncio.timeout(5):
        while "clock" not in hands.heard:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
    told = [name for name in hands.heard if name in ("start", "serve")]
    assert told == (["start", "start", "serve"] if call == "start" else ["start", "serve", "serve"])
    assert fleet.workers["api:a", 0].failures == 0
    await fleet.close()


@pytest.mark.parametrize("call", ["start", "serve"])
async def test_a_dispatcher_that_is_frozen_when_it_is_found_is_replaced(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed command left it so, on a cluster that lives: the next one waited for it for ever, and so did its
    items."""
    for bound in ("START_ASKED_S", "PING_S", "PAUSE_S"):
        monkeypatch.setattr(shell, bound, 0.02)
    frozen, killed = Hands(**{call: 1 << 30}), list[object]()
    cluster = Cluster(monkeypatch, frozen)

    def end(handle: object) -> None:
        killed.append(handle)
        frozen.failing["lost"] = ActorDiedError()
        cluster.first = None
        cluster.there.clear()

    monkeypatch.setattr(shell, "kill", end)
    fleet = made()
    fleet.want("api:a")
    await until(lambda: [handle for _, handle in fleet.handles()] not in ([], [frozen]))
    assert killed == [frozen]
    assert fleet.down == {}
    await fleet.close()


class Loading(Cluster):
    """Own engines, each start of which goes as the test says: an error, or True. What ended is nowhere to be found."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *starts: Exception | bool) -> None:
        super().__init__(monkeypatch)
        self.starts = list(starts)
        self.begun: list[str] = []
        monkeypatch.setattr(shell, "PAUSE_S", 0.001)
        monkeypatch.setattr(shell, "AGAIN_S", 0.05)
        monkeypatch.setattr(shell, "GONE_S", 0.001)

    def actor(self, settings: WorkerSettings, name: str, model: object) -> Hands:
        hands, how = Hands(), self.starts.pop(0)
        self.begun.append(settings.label)
        if isinstance(how, Exception):
            hands.failing["start"] = how
        return hands


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.005)


async def test_a_model_whose_process_dies_while_it_loads_is_loaded_in_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed by the system when memory is short, say: other replicas go on, and none is down."""
    pools: list[tuple[str, str | None]] = []
    cluster = Loading(monkeypatch, ActorDiedError(), True, ActorDiedError(), True)
    fleet = made(catalog=OWN, pools=pools)
    fleet.want(POOL)
    await until(lambda: len(fleet.handles()) == 2)
    assert sorted(cluster.begun) == ["engine own@v1 #0"] * 3 + ["engine own@v1 #1"]
    assert (pools, fleet.down) == ([], {})
    await fleet.close()


async def test_a_pool_is_down_once_none_of_its_replicas_is_tried_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that gives up first leaves the pool to the other, which still loads."""
    pools: list[tuple[str, str | None]] = []
    cluster = Loading(monkeypatch, *([ActorDiedError()] * (2 * MAX_STARTS)))
    fleet = made(catalog=OWN, pools=pools)
    slow = fleet.workers[POOL, 0] = Worker(POOL, 0)
    await fleet._give_up(fleet.workers.setdefault((POOL, 1), Worker(POOL, 1)), SpecError("no GPU is free"))
    assert (pools, fleet.down) == ([], {})
    await asyncio.wait_for(fleet._keep(slow), 5)
    assert (len(cluster.begun), list(fleet.down), len(pools)) == (MAX_STARTS, [POOL], 1)
    fleet.want(POOL)
    await asyncio.sleep(0.2)
    assert len(cluster.begun) == MAX_STARTS, "a run with an end is begun again by a person"


async def test_a_run_without_an_end_tries_a_pool_that_is_down_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once in a while, and tells when it is up; not while its version is in nobody's use."""
    pools: list[tuple[str, str | None]] = []
    cluster = Loading(monkeypatch, SpecError("no such folder"), EngineDead("out of memory"), True, True)
    fleet = made(catalog=OWN, pools=pools, endless=True)
    worker = fleet.workers[POOL, 0] = Worker(POOL, 0)
    keeping = asyncio.ensure_future(fleet._keep(worker))
    await until(lambda: fleet.down)
    fleet.let_go([POOL])
    await asyncio.sleep(0.2)
    assert len(cluster.begun) == 1
    fleet.let_go([])
    await until(lambda: fleet.handles() and len(pools) > 1)  # it has a handle before it serves, and the pool is up
    assert pools == [(POOL, "no such folder"), (POOL, None)]
    assert (fleet.down, len(cluster.begun)) == ({}, 3)
    keeping.cancel()
    await fleet.close()


async def test_what_was_right_before_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that was mounted when the lost worker loaded, and is away for a moment."""
    cluster = Loading(monkeypatch, True, SpecError("there is no /models/own"), True)
    fleet = made(catalog=OWN)
    worker = fleet.workers[POOL, 0] = Worker(POOL, 0)
    keeping = asyncio.ensure_future(fleet._keep(worker))
    await until(lambda: worker.handle)
    assert isinstance(worker.handle, Hands)
    worker.handle.failing["lost"] = ActorDiedError()
    await until(lambda: len(cluster.begun) == 3 and worker.handle)
    assert not fleet.down
    keeping.cancel()
    await fleet.close()


async def test_a_worker_that_is_let_go_while_it_loads_again_is_told_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """It had been given up, and starts well after all: nobody uses it, and its GPU would be on the bill for ever."""
    changes: list[str] = []
    cluster = Loading(monkeypatch, SpecError("no such folder"), True)
    fleet = made(changes=changes, catalog=OWN, endless=True)
    worker = fleet.workers[POOL, 0] = Worker(POOL, 0)
    gate, loaded = asyncio.Event(), fleet._loaded

    async def slowly(handle: object, governed: bool, *, own: bool) -> str:
        if len(cluster.begun) == 2:
            await gate.wait()
        return await loaded(handle, governed, own=own)

    monkeypatch.setattr(fleet, "_loaded", slowly)
    keeping = asyncio.ensure_future(fleet._keep(worker))
    await until(lambda: len(cluster.begun) == 2)
    fleet.let_go([POOL])
    gate.set()
    await until(lambda: isinstance(worker.handle, Hands) and "leave" in worker.handle.heard)
    assert changes[-1] == "left"
    keeping.cancel()
    await fleet.close()


async def test_the_next_try_does_not_meet_the_process_that_could_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends a moment after its reply, and holds its name and its GPU until then."""
    cluster = Loading(monkeypatch, EngineDead("out of memory"), True)
    monkeypatch.setattr(shell, "GONE_S", 60.0)
    fleet, failed = made(catalog=OWN, endless=True), Hands()
    actor = cluster.actor

    def begun(settings: WorkerSettings, name: str, model: object) -> Hands:
        nonlocal failed
        hands = actor(settings, name, model)
        failed = hands if hands.failing else failed
        return hands

    monkeypatch.setattr(shell, "hire", begun)
    keeping = asyncio.ensure_future(fleet._keep(fleet.workers.setdefault((POOL, 0), Worker(POOL, 0))))
    await until(lambda: "lost" in failed.heard)
    await asyncio.sleep(0.05)
    assert len(cluster.begun) == 1
    failed.failing["lost"] = ActorDiedError()
    await until(fleet.handles)
    assert len(cluster.begun) == 2
    keeping.cancel()
    await fleet.close()


async def test_a_new_replica_takes_no_others_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one was released and is gone; the second still works."""
    Loading(monkeypatch, True)
    monkeypatch.setattr(shell, "has_place", lambda model, replicas: True)  # pyright: ignore[reportUnknownLambdaType]
    fleet = made(catalog=OWN)
    second = fleet.workers[POOL, 1] = Worker(POOL, 1)
    second.handle = Hands()
    fleet.grow(POOL, 10_000, shell.GROW_AFTER_S + 1)
    assert sorted(fleet.workers) == [(POOL, 0), (POOL, 1)]
    assert fleet.workers[POOL, 1] is second
    await fleet.close()


async def test_a_worker_that_cannot_load_ends_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would hold its GPUs and its name for ever, and each further try would meet the same broken process."""
    codes: list[int] = []
    monkeypatch.setattr(worker_actor.os, "_exit", codes.append)
    monkeypatch.setattr(worker_actor, "LAST_WORD_S", 0.05)
    account = Account("a", "openai", "https://a.example/v1", api_key="env:PENSTOCK_NO_SUCH_KEY")
    settings = WorkerSettings("w", "api a", "api:a", "api", account=account)
    actor = WorkerActor(msgspec.msgpack.encode(settings))
    monkeypatch.setattr(worker_actor, "governor_lives", lambda account: False)  # pyright: ignore[reportUnknownLambdaType]
    with pytest.raises(SpecError):
        await actor.start()
    assert codes == [], "the reply has to leave first"
    await until(lambda: codes)
    assert codes == [1]


class Left:
    """A worker of an earlier driver, that has something of the run, and starts to serve again after so long."""

    def __init__(self, after_s: float) -> None:
        self.after_s = after_s

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *_: self._says(name))  # pyright: ignore[reportUnknownLambdaType]

    async def _says(self, name: str) -> object:
        if name == "lost":
            await asyncio.Event().wait()
        if name == "start":
            await asyncio.sleep(self.after_s)
        return {"start": ("w", 1), "holds": True, "gauges": {"serves": 1.0}}.get(name, 0.0)


TWO = Catalog({name: Account(name, "openai", f"https://{name}.example/v1") for name in "ab"}, {}, {})


@pytest.mark.parametrize("pool", ["api:a", "api:b"])
async def test_a_worker_that_has_something_of_the_run_is_there_before_its_lanes_ask_around(
    pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is late on a busy machine, or nobody wants its account at first, which the run had fallen back to: what it had
    was asked anew, and paid for twice. One that starts only now has nothing, and is not waited for."""
    there = {staffing.settings_of(TWO, pool, 0)[1]: Left(1.2)}
    monkeypatch.setattr(shell, "hire", lambda settings, name, model: there.setdefault(name, Left(60.0)))  # pyright: ignore[reportUnknownLambdaType]
    monkeypatch.setattr(shell, "found", there.get, raising=False)
    fleet = made(catalog=TWO)
    fleet.want("api:a")
    async with asyncio.timeout(10):
        await fleet.reunite(driver.REUNITE_S)
    assert [handle for _, handle in fleet.handles()] == [there[staffing.settings_of(TWO, pool, 0)[1]]]
    await fleet.close()


async def test_an_engine_that_only_has_something_of_the_run_is_let_go_once_its_lanes_have_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The job was edited, and goes to another model now. The old one's engine was served for the whole run, and a
    second one, its least replicas, was started: where they filled the GPUs, the new one's never came."""
    left = Hands()
    monkeypatch.setattr(shell, "hire", lambda *_: left)  # pyright: ignore[reportUnknownLambdaType]
    monkeypatch.setattr(shell, "found", {staffing.settings_of(OWN, POOL, 0)[1]: left}.get)
    monkeypatch.setattr(shell.Fleet, "_holds", lambda _, handle: asyncio.sleep(0, handle is left))  # pyright: ignore[reportUnknownLambdaType]
    fleet = made(catalog=OWN)
    async with asyncio.timeout(10):
        await fleet.reunite(driver.REUNITE_S)
    assert set(fleet.workers) == {(POOL, 0)}
    fleet.let_go(fleet.only_left)
    await asyncio.sleep(0.01)
    assert "leave" in left.heard
    fleet.want(POOL)  # some item is sent there after all
    await asyncio.sleep(0.01)
    assert left.heard.index("leave") < len(left.heard) - 1 - left.heard[::-1].index("serve")
    assert set(fleet.workers) == {(POOL, 0), (POOL, 1)}
    await fleet.close()


async def test_dispatchers_start_before_the_run_is_ours_and_serve_nobody_until_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who serves nobody is given no call, so nothing is sent. What started is what serves once the run is ours."""
    cluster, changes = Cluster(monkeypatch), list[str]()
    fleet = made(2, changes)
    await fleet.warm(["api:a"])
    warmed = list(cluster.there.values())
    assert [(hands.heard, hands.governed) for hands in warmed] == [(["start"], [True])] * 2
    assert (changes, fleet.workers, fleet.handles()) == ([], {}, [])
    fleet.command = 2
    fleet.want("api:a")
    await until_ready(fleet)
    assert list(cluster.there.values()) == warmed
    assert all("serve" in hands.heard for hands in warmed)
    await fleet.close()


async def test_dispatchers_of_a_run_that_did_not_become_ours_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that loads still; why one could not start is for whoever has the run to tell."""
    cluster, pools = Cluster(monkeypatch), list[tuple[str, str | None]]()
    monkeypatch.setattr(shell, "WARM_S", 0.02)
    fleet = made(3, pools=pools)
    actor = cluster.actor

    def begun(settings: WorkerSettings, name: str, model: object) -> Hands:
        hands = actor(settings, name, model)
        if settings.label.endswith("#1"):
            hands.mute["start"] = 1
        if settings.label.endswith("#2"):
            hands.failing["start"] = SpecError("there is no such key")
        return hands

    monkeypatch.setattr(shell, "hire", begun)
    await fleet.warm(["api:a"])
    await fleet.close()
    assert [hands.heard for hands in cluster.there.values()] == [["start", "dismiss"]] * 3
    assert (pools, fleet.down) == ([], {})


@pytest.mark.parametrize("served", [False, True])
async def test_a_worker_that_was_never_used_ends_at_once_when_nobody_wants_it(
    served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another job may have taken to it meanwhile, or use it again soon: then it stays as any worker does."""
    codes: list[int] = []
    monkeypatch.setattr(worker_actor.os, "_exit", codes.append)
    monkeypatch.setattr(worker_actor, "governor_lives", lambda account: False)  # pyright: ignore[reportUnknownLambdaType]
    account = Account("a", "openai", "https://a.example/v1")
    actor = WorkerActor(msgspec.msgpack.encode(WorkerSettings("w", "api a", "api:a", "api", account=account)))
    await actor.start()
    if served:
        await actor.serve("another", 1, None)
        await actor.leave("another", 1)
    await actor.dismiss()
    assert codes == ([] if served else [0])
    for task in (actor._watching, actor._exporting):
        assert task is not None
        task.cancel()
    assert actor._puller is not None
    await actor._puller.close()


async def test_jobs_that_differ_in_dispatchers_share_an_account_under_one_governor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first job's worker had the account to itself. It is told before the second job's other worker begins: else
    each of them would take all of the concurrency."""
    cluster = Cluster(monkeypatch)
    one, two = made(1), made(2)
    one.want("api:a")
    await until_ready(one)
    [(name, first)] = cluster.there.items()
    assert first.governed == [False]
    order: list[str] = []
    spied(monkeypatch, cluster, order)
    first.mute["start"] = 2
    monkeypatch.setattr(shell, "START_ASKED_S", 0.05)
    two.want("api:a")
    await until_ready(two)
    assert len(cluster.there) == 2
    assert first.governed[1:] == [True] * (len(first.governed) - 1)
    second = next(hands for other, hands in cluster.there.items() if other != name)
    assert second.governed == [True]
    assert order.index("told") < order.index("begun")
    await one.close()
    await two.close()


def spied(monkeypatch: pytest.MonkeyPatch, cluster: Cluster, order: list[str]) -> None:
    """`told`: the first worker has answered that it knows of the governor; `begun`: a second one is made."""
    remote, actor = Method.remote, cluster.actor

    async def answered(self: Method, *arguments: object) -> object:
        answer = await remote(self, *arguments)
        order.append("told" if (self.name, *arguments) == ("start", True) else self.name)
        return answer

    def begun(settings: WorkerSettings, name: str, model: object) -> Hands:
        if name not in cluster.there:
            order.append("begun")
        return actor(settings, name, model)

    monkeypatch.setattr(Method, "remote", answered)
    monkeypatch.setattr(shell, "hire", begun)


async def until_ready(fleet: Fleet) -> None:
    async with asyncio.timeout(5):
        while not all(worker.ready_at for worker in fleet.workers.values()):  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)


async def test_a_governor_that_has_ended_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was idle for long, just before a dispatcher's first lease: nobody restarts it, so it is looked up again."""

    class Governor:
        def __init__(self, *, ended: bool) -> None:
            self.ended = ended
            self.lease = self

        async def remote(self, data: bytes) -> bytes:
            if self.ended:
                raise ActorDiedError
            return data

    lives: list[Any] = [Governor(ended=False), Governor(ended=True)]
    monkeypatch.setattr(governing, "governor_actor", lambda account: lives.pop())  # pyright: ignore[reportUnknownLambdaType]
    one = Governing(OPEN.accounts["a"])
    with pytest.raises(ActorDiedError):
        await one.lease(b"want")
    assert await one.lease(b"want") == b"want"
