"""The two calls by which a worker and a lane meet, and the one by which a worker learns where work is.

In a cluster they cross processes (`RemoteLane`, `RemoteBoard`); tests plug in objects of the same shape. What crosses
is msgpack bytes: one copy, no pickling of structs.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from penstock.engine.flow.lane_types import Adopted
from penstock.engine.items import CallChunk, Outcome
from penstock.engine.plan import Epoch


class Grant(msgspec.Struct, frozen=True, array_like=True):
    """The board's answer: take up to `n` items, `max_tokens` in all, from `lane`."""

    lane: int
    owner: int
    """Changes whenever the lane gets a new owner; a worker asks for the handle when it does not know it."""
    n: int
    max_tokens: int


class Post(msgspec.Struct, frozen=True, array_like=True):
    """What a lane tells the board of one pool."""

    lane: int
    pool: str
    ready: int
    tokens: int
    urgency: int = 0
    """Of the item that goes first; bulk is 0."""


class Kept(msgspec.Struct, frozen=True):
    """What a worker holds for a lane's new owner, who knows by what name it is called."""

    answered: list[Adopted] = []
    """Could not be delivered."""
    flying: list[Adopted] = []
    """Go on."""


def job_of(run_id: str, planned_at: float) -> str:
    """By what name workers know a run. Its id is made of its name and vars: on one cluster another may have the same,
    with a state of its own; and a run that is begun anew has it again, and counts its epochs anew."""
    return f"{run_id}~{planned_at!r}"


CallName = tuple[str, int, int]
"""(item_id, generation, attempt)."""


class LanePort(Protocol):
    async def take(
        self, lane: int, pool: str, n: int, max_tokens: int, worker: str, number: int
    ) -> tuple[CallChunk | None, int]:
        """Calls to make, and how many more are ready for this pool. The caller owes one outcome for each. `number`
        grows from take to take of this worker."""
        ...

    async def missed(self, lane: int, worker: str, upto: int, held: list[CallName]) -> None:
        """The worker will never accept anything more from its takes up to this number, and of all that they brought it
        holds only these: the lane takes back what else it gave under them."""
        ...

    async def done(self, lane: int, epoch: Epoch, outcomes: list[Outcome]) -> None: ...

    async def right(self, lane: int, epoch: Epoch, worker: str) -> float:
        """Until when (Unix seconds) calls of this owner may be sent; 0: not any more. So a lane also knows that the
        worker lives, where calls wait long for an account's limits."""
        ...


class BoardPort(Protocol):
    async def ask(self, worker: str, pool: str, room: int) -> Grant | None:
        """Wait up to a second for work; None: nothing now."""
        ...

    async def lane(self, lane: int) -> tuple[int, LanePort] | None:
        """(owner, port) of a lane, as it is now."""
        ...


_chunk = msgspec.msgpack.Decoder(CallChunk)
_outcomes = msgspec.msgpack.Decoder(list[Outcome])
_names = msgspec.msgpack.Decoder(set[CallName])
encode = msgspec.msgpack.Encoder().encode


def decode_outcomes(data: bytes) -> list[Outcome]:
    return _outcomes.decode(data)


def decode_names(data: bytes) -> set[CallName]:
    return _names.decode(data)


class RemoteLane:
    """A lane in another process, by its Ray actor handle."""

    def __init__(self, handle: object) -> None:
        self.handle = handle

    async def take(
        self, lane: int, pool: str, n: int, max_tokens: int, worker: str, number: int
    ) -> tuple[CallChunk | None, int]:
        data, left = await self.handle.take.remote(lane, pool, n, max_tokens, worker, number)  # pyright: ignore[reportAttributeAccessIssue]
        return (_chunk.decode(data) if data else None), left

    async def missed(self, lane: int, worker: str, upto: int, held: list[CallName]) -> None:
        await self.handle.missed.remote(lane, worker, upto, encode(held))  # pyright: ignore[reportAttributeAccessIssue]

    async def done(self, lane: int, epoch: Epoch, outcomes: list[Outcome]) -> None:
        await self.handle.done.remote(lane, epoch, encode(outcomes))  # pyright: ignore[reportAttributeAccessIssue]

    async def right(self, lane: int, epoch: Epoch, worker: str) -> float:
        return await self.handle.right.remote(lane, epoch, worker)  # pyright: ignore[reportAttributeAccessIssue]


class RemoteBoard:
    """A job's board in its driver, by the driver's Ray actor handle."""

    def __init__(self, handle: object) -> None:
        self.handle = handle

    async def ask(self, worker: str, pool: str, room: int) -> Grant | None:
        answer = await self.handle.ask.remote(worker, pool, room)  # pyright: ignore[reportAttributeAccessIssue]
        return None if answer is None else Grant(*answer)

    async def lane(self, lane: int) -> tuple[int, LanePort] | None:
        answer = await self.handle.lane_handle.remote(lane)  # pyright: ignore[reportAttributeAccessIssue]
        return None if answer is None else (answer[0], RemoteLane(answer[1]))
