"""A process's sign of life: one small object that it writes again and again while it holds a run or a lane.

It decides nothing: epochs fence. It only spares a live owner the fence, and tells a second command that the first one
lives. A process that was killed, stopped or cut off writes no more, and counts as gone after three missed signs.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable

from penstock.connectors.s3.store.home import Home
from penstock.engine.errors import PenstockError

BEAT_S = 2.0
"""1,800 small puts an hour: about a cent of S3's list price."""
MISSED = 3
"""Signs that may be missing: S3 throttles, and processes pause."""


class Beacon:
    """`each`: called with every sign, for what else is to be done now and then."""

    def __init__(self, home: Home, beat_s: float, each: Callable[[], Awaitable[None]]) -> None:
        self.id = secrets.token_hex(8)
        self._home = home
        self._beat_s = beat_s
        self._each = each
        self._task: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        """Lanes come and go at their own times: one of them lights it, or puts it out, at a time."""

    async def light(self) -> None:
        """The first sign is there when this returns. Raises `Temporary`."""
        async with self._turn:
            if self._task is None or self._task.done():
                await self._sign()
                self._task = asyncio.get_running_loop().create_task(self._beat())

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._beat_s)
            for act in (self._sign, self._each):
                with contextlib.suppress(Exception):  # whatever it is, the next one may come through
                    await act()

    async def _sign(self) -> None:
        await self._home.put(_name(self.id), secrets.token_bytes(8))

    async def forget_others(self) -> None:
        """Remove the signs that killed processes left. One that lives makes the next in a moment."""
        with contextlib.suppress(PenstockError):
            await self._home.delete(name for name in await self._home.names("alive/") if name != _name(self.id))

    async def stop(self) -> None:
        """No more signs, and nothing written: as when the process is killed."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def put_out(self) -> None:
        """Nobody has to wait for us any more."""
        async with self._turn:
            if self._task is not None:
                await self.stop()
                with contextlib.suppress(PenstockError):
                    await self._home.delete([_name(self.id)])


async def is_alive(home: Home, beacon: str, beat_s: float) -> bool:
    """Watch until it moves (True), or for `MISSED` signs (False). "": nobody."""
    if not beacon:
        return False
    loop = asyncio.get_running_loop()
    ends = loop.time() + MISSED * beat_s
    seen = await home.etag(_name(beacon))
    while seen is not None and loop.time() < ends:
        await asyncio.sleep(beat_s / 4)
        now = await home.etag(_name(beacon))
        if now != seen:
            return now is not None
    return False


def _name(beacon: str) -> str:
    return f"alive/{beacon}"
