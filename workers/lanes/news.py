"""What lane actors are told: pauses, versions, pools that are down, longer plans. What one missed it is told again."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from penstock.engine.plan import Plan
from penstock.workers.cluster import words
from penstock.workers.log import Log
from penstock.workers.ports import encode

TELL_S = 5.0
"""For what is told to an actor: milliseconds, unless it hangs."""

Verdict = tuple[bool, tuple[int, int], list[tuple[int, int, str]]]
"""Of the label pass: is it complete, up to where it came, and which rows are duplicates."""


class Handle(Protocol):
    """An actor's methods are attributes with `remote`."""

    def __getattr__(self, item: str, /) -> Method: ...


class Method(Protocol):
    def remote(self, *arguments: object) -> Awaitable[object]: ...


class Listener:
    """A lane actor, and what it has heard."""

    def __init__(self, number: int, handle: Handle, plan_version: int) -> None:
        self.number = number
        self.handle = handle
        self.plan_version = plan_version
        """Of the longest plan that it has."""
        self.steering = b""
        """The one that its lanes obey."""
        self.standings = b""
        self.down: dict[str, str] = {}
        """Pools that its lanes take for down, and why; "": they may."""
        self.untold: deque[tuple[str, tuple[object, ...]]] = deque()
        """Calls that it may not have heard, in order."""
        self.telling = asyncio.Lock()
        """Of these, and of pools that are down or up: the later word must not come first."""


class News:
    """`listeners`: all lane actors, as they come and go. `down`: pools that are down now, and why."""

    def __init__(
        self,
        listeners: Sequence[Listener],
        plan: Plan,
        down: Mapping[str, str],
        log: Log,
        note: Callable[[str], None],
    ) -> None:
        self.plan = plan
        """The longest, durable already. Actors that are made from now on have it from the start."""
        self._listeners = listeners
        self._down = down
        self._log = log
        self._note = note
        self._paused: tuple[int, ...] = ()
        self._steering = b""
        self._standings = b""
        self._verdict: Verdict | None = None
        self.draining = False

    # -- what is new

    async def extend(self, plan: Plan) -> None:
        """A longer plan, durable already."""
        self.plan = plan
        await self._all_catch_up()

    async def pools_changed(self) -> None:
        """The fleet's `down` says which are down now."""
        await self._all_catch_up()

    async def steer(self, steering: bytes) -> None:
        """Versions of models, and who gets which."""
        self._steering = steering
        await self._all_catch_up()

    async def learn(self, standings: bytes) -> None:
        """How good the models are, as measured."""
        self._standings = standings
        await self._all_catch_up()

    async def worker_lost(self, name: str) -> None:
        await self._tell("worker_lost", name)

    async def reprice(self, model: str, price: bytes) -> None:
        await self._tell("reprice", model, price)

    async def pause(self, tiers: tuple[int, ...]) -> None:
        """Hold back these tiers, and no others."""
        self._paused = tiers
        await self._tell("pause", list(tiers))

    async def verdict(self, complete: bool, upto: tuple[int, int], duplicates: list[tuple[int, int, str]]) -> None:
        known = self._verdict[2] if self._verdict is not None else []
        self._verdict = (complete, upto, known + duplicates)
        await self._tell("verdict", complete, upto, duplicates)

    async def drain(self) -> None:
        self.draining = True
        await self._tell("drain")

    async def _tell(self, method: str, *arguments: object) -> None:
        """All actors, in the order in which it is called. One that does not hear it in time is told again, see
        `behind`; one that is lost has a successor, which is told by `brief`. What is told may be heard twice."""
        for listener in self._listeners:
            listener.untold.append((method, arguments))
        await self._all_catch_up()

    # -- until all have heard it

    def behind(self, listener: Listener) -> bool:
        """There is something that it may not have heard."""
        known = (listener.steering, listener.standings)
        told = known == (self._steering, self._standings) and listener.down == self._down and not listener.untold
        return listener.plan_version < self.plan.version or not told

    async def catch_up(self, listener: Listener) -> None:
        """In time; else whoever finds it `behind` tries again, and no lane is opened before."""
        try:
            await asyncio.wait_for(self.inform(listener), TELL_S)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again
            self._log("warning", "lane actor was not told", actor=listener.number, reason=words(error)[:500])

    async def _all_catch_up(self) -> None:
        await asyncio.gather(*(self.catch_up(listener) for listener in self._listeners))

    async def inform(self, listener: Listener) -> None:
        """A lane that opens by an older plan than its last owner's would find progress that its plan doesn't know; one
        that opens by an older steering would send units to another version."""
        plan, steering, standings, handle = self.plan, self._steering, self._standings, listener.handle
        if all(method != "verdict" for method, _ in listener.untold):  # which needs the plan; a drain waits for nothing
            await self._hand_on(listener)
        if listener.plan_version < plan.version:
            await handle.extend.remote(encode(plan))
            listener.plan_version = max(listener.plan_version, plan.version)
        if listener.steering != steering:
            await handle.steer.remote(steering)
            listener.steering = steering
        if listener.standings != standings:
            await handle.learn.remote(standings)
            listener.standings = standings
        await self._hand_on(listener)
        await self.tell_pools(listener)

    async def _hand_on(self, listener: Listener) -> None:
        """What it may not have heard. One that it can't do is told of, and keeps it from hearing no other."""
        from ray.exceptions import RayTaskError

        async with listener.telling:
            while listener.untold:
                method, arguments = listener.untold[0]
                try:
                    await getattr(listener.handle, method).remote(*arguments)
                except RayTaskError as error:
                    self._note(f"unexpected: lane actor {listener.number} failed at {method!r}: {words(error)}")
                listener.untold.popleft()

    async def tell_pools(self, listener: Listener, *, anew: bool = False) -> None:
        """Which are down, and which are no more. `anew`: a lane of it has heard of none. A telling that fails may have
        been heard."""
        async with listener.telling:
            down = dict(self._down)
            for pool in listener.down.keys() - down.keys():
                await listener.handle.pool_up.remote(pool)
                del listener.down[pool]
            for pool, why in down.items():
                if anew or listener.down.get(pool) != why:
                    listener.down[pool] = ""
                    await listener.handle.pool_down.remote(pool, why)
                    listener.down[pool] = why

    async def brief(self, listener: Listener, lane: int, *, going: bool) -> None:
        """What the lanes were told while this one was away. `going`: that they may begin is among it."""
        if self._verdict is not None:
            await listener.handle.verdict.remote(*self._verdict)
        if self._paused:
            await listener.handle.pause.remote(list(self._paused))
        if going:
            await listener.handle.go.remote([lane])
        if self.draining:
            await listener.handle.drain.remote()
