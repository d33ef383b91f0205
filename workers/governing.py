"""The actor around an account's governor, and how a dispatcher reaches it for as long as it lives."""

from __future__ import annotations

import asyncio
import time
from hashlib import blake2b

import msgspec

from penstock.engine.catalog import Account
from penstock.workers.cluster import NAMESPACE, kill
from penstock.workers.orphan import end_with_raylet

GOVERNOR_IDLE_S = 180.0
"""Dispatchers are heard twice a second while they live, and a lost one is back within a minute. A guess."""


class GovernorActor:
    """The governor of one account, restarted by Ray when it dies: it then knows of no lease older than one life.

    It ends when no dispatcher has been heard for long.
    """

    def __init__(self, account_json: bytes) -> None:
        import ray

        from penstock.workers.governor import Governor

        end_with_raylet()
        restarted = bool(ray.get_runtime_context().was_current_actor_reconstructed)
        self._governor = Governor(account_json, restarted=restarted)
        self._name = msgspec.json.decode(account_json, type=Account).name
        self._heard = time.time()
        self._watching: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"governor {self._name}"

    async def lease(self, data: bytes) -> bytes:
        self._heard = time.time()
        if self._watching is None:
            self._watching = asyncio.get_running_loop().create_task(self._watch())
        return await self._governor.lease(data)

    async def state(self) -> dict[str, float]:
        return await self._governor.state()

    async def _watch(self) -> None:
        import ray

        while (left := self._heard + GOVERNOR_IDLE_S - time.time()) > 0:  # noqa: ASYNC110 - every lease moves it
            await asyncio.sleep(left)
        kill(ray.get_runtime_context().current_actor)


def governor_actor(account: Account) -> object:
    import ray

    options = ray.remote(GovernorActor).options(
        name=_name(account),
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_concurrency=1000,
        max_restarts=-1,
        num_cpus=0,
    )
    return options.remote(msgspec.json.encode(account))  # pyright: ignore[reportCallIssue]


def governor_lives(account: Account) -> bool:
    """Whether somebody in the cluster shares the account under a governor."""
    import ray

    try:
        ray.get_actor(_name(account), namespace=NAMESPACE)
    except ValueError:  # there is none
        return False
    return True


def _name(account: Account) -> str:
    return f"governor {account.name} {blake2b(msgspec.json.encode(account), digest_size=4).hexdigest()}"


class Governing:
    """The governor of one account, for a dispatcher: one that has ended is begun anew by the same name.

    It ends when it was idle for long, and that may be just before a new dispatcher's first lease.
    """

    def __init__(self, account: Account) -> None:
        self._account = account
        self._handle = governor_actor(account)

    async def lease(self, data: bytes) -> bytes:
        """`Want` in, `Lease` out. Raises what Ray raises while it is lost or restarting."""
        from ray.exceptions import ActorDiedError

        handle = self._handle
        try:
            return await handle.lease.remote(data)  # pyright: ignore[reportAttributeAccessIssue]
        except ActorDiedError:  # for good: Ray restarts one that was lost
            if self._handle is handle:
                self._handle = governor_actor(self._account)
            raise

    async def state(self) -> dict[str, float]:
        """As `Governor.state`."""
        return await self._handle.state.remote()  # pyright: ignore[reportAttributeAccessIssue]
