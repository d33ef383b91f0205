"""Asking another process where a reply may get lost while both sides live (seen in Ray)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from penstock.engine.errors import Temporary
from penstock.workers import cluster

T = TypeVar("T")

TIMES = 3


class Unanswered(Temporary):
    """No reply in time, however often it was asked."""


async def answered(ask: Callable[[], Awaitable[T]], seconds: float, times: int = TIMES) -> T:
    """What `ask` brings, within `seconds`; else it is asked again, `times` in all: only for calls of which the second
    does nothing. Raises `Unanswered`, or what the other side raises."""
    for _ in range(times):
        asked = asyncio.ensure_future(_awaited(ask))
        try:
            done, _ = await asyncio.wait([asked], timeout=seconds)
        finally:
            asked.cancel()
        if done:
            return asked.result()
    raise Unanswered(f"no answer within {seconds:g} s, asked {times} times")


async def reached(ask: Callable[[], Awaitable[T]], seconds: float) -> T:
    """What `ask` brings, of an actor; asked again for as long where there is no way to it for a moment: only for calls
    of which the second does nothing. Raises what Ray raises."""
    from ray.exceptions import ActorUnavailableError

    ends = time.monotonic() + seconds
    while True:
        try:
            return await ask()
        except ActorUnavailableError:
            if time.monotonic() > ends:
                raise
        await asyncio.sleep(cluster.AWAY_S)


async def _awaited(ask: Callable[[], Awaitable[T]]) -> T:
    return await ask()
