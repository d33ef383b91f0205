"""The store's working prefix: short asynchronous calls on the objects below it, each with a deadline of ours."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import ParamSpec, TypeVar

from penstock.connectors.s3 import fence
from penstock.connectors.s3.client import S3, Got, Stored, threads
from penstock.engine.errors import Away

DEADLINE_S = 30.0
"""Of one call of ours, with all tries below it. S3 answers small calls in 0.02–0.2 s. After it a write is uncertain."""
SLOWEST_BYTES_PER_S = 1 << 20
"""Large objects get more time: so much as a poor line needs."""
LARGE_BYTES = 128 << 20
"""Larger than any object that is read whole: a batch of the outbox, the base of a lane's chunks."""

P = ParamSpec("P")
T = TypeVar("T")


async def call(what: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking S3 call in its threads. Raises `Away` at the deadline: the call may still take effect."""
    return await within(DEADLINE_S, what, *args, **kwargs)


async def within(deadline_s: float, what: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`call` with another deadline."""
    work = asyncio.get_running_loop().run_in_executor(threads(), functools.partial(what, *args, **kwargs))
    try:
        async with asyncio.timeout(deadline_s):  # not `wait_for`: before Python 3.12 it may swallow a cancellation
            return await work
    except TimeoutError as error:
        raise Away(f"S3 did not answer within {deadline_s:.0f} s. Check endpoint and network.") from error


async def together(*work: Awaitable[T]) -> list[T]:
    """What they return, side by side. All have ended when one has failed; then this raises the first one's error."""
    ended = await asyncio.gather(*work, return_exceptions=True)
    done: list[T] = []
    for one in ended:
        if isinstance(one, BaseException):
            raise one
        done.append(one)
    return done


class Home:
    """`root`: the working prefix, with its last slash. Names are keys below it."""

    def __init__(self, s3: S3, bucket: str, root: str, stored: Stored) -> None:
        self.s3 = s3
        self.bucket = bucket
        self.root = root
        self.stored = stored

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.root}"

    def key(self, name: str) -> str:
        return self.root + name

    async def read(self, name: str, most_bytes: int = 0) -> Got | None:
        """None: no such object. `most_bytes`: how large it may be, where it isn't small."""
        return await within(_time_for(most_bytes), fence.read, self.s3, self.bucket, self.key(name))

    async def etag(self, name: str) -> str | None:
        found = await call(self.s3.head, self.bucket, self.key(name))
        return found.etag if found is not None else None

    async def swap(self, name: str, data: bytes, etag: str | None) -> str:
        """See `fence.swap`."""
        key, deadline_s = self.key(name), _time_for(len(data))
        return await within(deadline_s, fence.swap, self.s3, self.bucket, key, data, etag, self.stored)

    async def create(self, name: str, data: bytes) -> None:
        """Make an object that never changes; `name` is unique to this attempt."""
        await self.swap(name, data, None)

    async def put(self, name: str, data: bytes) -> None:
        """Write it whatever is there."""
        await call(self.s3.put, self.bucket, self.key(name), data, stored=self.stored)

    async def delete(self, names: Iterable[str]) -> None:
        keys = [self.key(name) for name in names]
        if keys:
            await call(self.s3.delete, self.bucket, keys)

    async def names(self, prefix: str, after: str = "") -> Sequence[str]:
        """Names that start with `prefix` and sort behind `after`."""
        return await call(self.list, prefix, after)

    def list(self, prefix: str, after: str = "") -> Sequence[str]:
        """The same, blocking."""
        pages = self.s3.pages(self.bucket, self.key(prefix), self.key(after) if after else "")
        return [one.key.removeprefix(self.root) for page in pages for one in page]


def _time_for(size: int) -> float:
    return DEADLINE_S + size / SLOWEST_BYTES_PER_S
