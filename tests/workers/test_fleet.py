"""What a job's fleet does with workers that live and yet don't serve it, or whose replies get lost."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from penstock.engine.catalog import Account, Catalog, Limits
from penstock.workers import fleet as shell
from penstock.workers import governing
from penstock.workers.fleet import Fleet, Worker
from penstock.workers.governing import Governing
from penstock.workers.worker_actor import WorkerSettings

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


def made(dispatchers: int = 1, changes: list[str] | None = None) -> Fleet:
    async def heard(*_: object) -> None:
        """Nobody listens."""

    def changed(what: str, worker: Worker, why: str) -> None:
        if changes is not None:
            changes.append(what)

    return Fleet(OPEN, "r", None, dispatchers, heard, heard, changed, print)


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


class Cluster:
    """Actors by name. `hands`: those that are there already, else one that answers all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, hands: Hands | None = None) -> None:
        self.there: dict[str, Hands] = {}
        self.first = hands
        monkeypatch.setattr(shell, "_actor", self.actor)

    def actor(self, settings: WorkerSettings, name: str, model: object) -> Hands:
        return self.there.setdefault(name, self.first or Hands())


class Watched:
    """A fleet whose one worker is watched for its loss."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shell, "PING_S", 0.02)
        monkeypatch.setattr(shell, "AWAY_S", 0.02)
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
    monkeypatch.setattr(shell, "_actor", begun)


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
