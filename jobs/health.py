"""`/healthz` and `/readyz` for probes: is the command alive, is its run at work? Numbers only, so no token is asked.

healthz  200: the driver answered within the last ten seconds, or the run is still being started
readyz   200: its lanes are taken and what there is to commit gets committed; 503 while it starts, drains or is late
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

import msgspec
from aiohttp import web

from penstock.engine.errors import SpecError
from penstock.jobs.progress import Display, View, done_items
from penstock.workers.status import RunStatus

ANSWERED_WITHIN_S = 10.0
"""Below the 30 s after which a silent driver is replaced, above a long pause of a busy machine."""
COMMITTED_WITHIN_S = 60.0
"""A lane commits every 200 ms to 2 s; a store that took a minute is not one to send more work to. A guess."""


class Told(msgspec.Struct, frozen=True):
    """What a probe is answered."""

    ok: bool
    state: str
    answered_s: float
    """Seconds since the driver answered."""
    commit_age_s: float = 0.0
    lanes: int = 0
    lag: int = 0
    items: int = 0
    dead_letters: int = 0
    in_flight: int = 0
    paused: list[int] = []


def alive(status: RunStatus | None, now: float) -> Told:
    """`healthz`. None: nothing was heard of the run yet."""
    if status is None:
        return Told(True, "starting", 0.0)
    answered = max(0.0, now - status.updated_at)
    starting = status.state == "starting" and not status.epoch
    return _told(starting or answered <= ANSWERED_WITHIN_S, status, answered)


def ready(status: RunStatus | None, now: float) -> Told:
    """`readyz`."""
    told = alive(status, now)
    at_work = told.ok and told.state == "running" and told.commit_age_s <= COMMITTED_WITHIN_S
    return msgspec.structs.replace(told, ok=at_work)


def _told(ok: bool, status: RunStatus, answered: float) -> Told:
    tally = status.tally
    return Told(
        ok,
        status.state,
        round(answered, 3),
        round(status.commit_age_s, 3),
        status.lanes,
        sum(status.lag.values()),
        done_items(status),
        sum(tally.dead_letters.values()),
        sum(tally.in_flight.values()),
        status.paused,
    )


class Probes:
    """A display that also answers probes of what it was last shown."""

    def __init__(self, inner: Display) -> None:
        self._inner = inner
        self._status: RunStatus | None = None

    def show(self, view: View) -> None:
        self._status = view.status
        self._inner.show(view)

    def say(self, text: str) -> None:
        self._inner.say(text)

    def close(self) -> None:
        self._inner.close()

    async def healthz(self, _: web.Request) -> web.Response:
        return _answer(alive(self._status, time.time()))

    async def readyz(self, _: web.Request) -> web.Response:
        return _answer(ready(self._status, time.time()))


def _answer(told: Told) -> web.Response:
    return web.Response(body=msgspec.json.encode(told), status=200 if told.ok else 503, content_type="application/json")


@contextmanager
def probed(display: Display, host: str, port: int) -> Generator[Probes]:
    """Answer probes from a thread of its own while this lasts. Raises `SpecError` where the port can't be had."""
    probes, loop = Probes(display), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="penstock-health", daemon=True)
    thread.start()
    try:
        runner = asyncio.run_coroutine_threadsafe(_listen(probes, host, port), loop).result()
        try:
            yield probes
        finally:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _listen(probes: Probes, host: str, port: int) -> web.AppRunner:
    app = web.Application()
    app.add_routes([web.get("/healthz", probes.healthz), web.get("/readyz", probes.readyz)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise SpecError(f"--health-port {port}: {host}:{port} can't be listened on ({error.strerror})") from error
    return runner
