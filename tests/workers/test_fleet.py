"""What a job's fleet does with workers that live and yet don't serve it, or whose replies get lost."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio

from penstock.engine.catalog import Account, Catalog, Limits
from penstock.workers.fleet import Fleet, Worker

OPEN = Catalog({"a": Account("a", "openai", "https://a.example/v1", limits=Limits(concurrency=100))}, {}, {})


class Hands:
    """Stands where a worker's handle would. `mute`: calls of it whose next replies get lost."""

    def __init__(self, **mute: int) -> None:
        self.mute = mute
        self.heard: list[str] = []

    def __getattr__(self, name: str) -> Method:
        return Method(self, name)


class Method:
    def __init__(self, hands: Hands, name: str) -> None:
        self.hands, self.name = hands, name

    async def remote(self, *arguments: object) -> object:
        self.hands.heard.append(self.name)
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
