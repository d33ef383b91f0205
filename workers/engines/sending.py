"""One call on the wire: its slot, the last look before it is written, and what its end means."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

import aiohttp
import msgspec
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

from penstock.connectors.secrets import Secret
from penstock.engine.catalog import Account
from penstock.engine.errors import SpecError
from penstock.engine.items import Call, Failure, FailureKind, Outcome
from penstock.workers.clock import Clock
from penstock.workers.engines.base import Ticket
from penstock.workers.wire.base import MAX_BODY_BYTES, Read

QUIET_S = 60
ASKING_S = 30
"""A connection that is quiet for so long is asked every so often whether it is alive. A long answer that is read whole
sends nothing for minutes; gateways between forget such connections (GCP's NAT after 120 s, AWS' after 350 s), and the
answer is lost, though paid for."""
_KEPT = {"TCP_KEEPIDLE": QUIET_S, "TCP_KEEPALIVE": QUIET_S, "TCP_KEEPINTVL": ASKING_S}
"""By their names in `socket`; a system has one of the first two."""

PIECE_BYTES = 256_000
"""A larger body goes out in pieces of so much: in one it holds up every other call of the loop."""


class NotSent(Exception):
    """Raised in place of a write."""


class Slot:
    """One call that may be in flight."""

    __slots__ = ("sent", "started", "task", "ticket", "until", "wake", "why", "withdrawn")

    def __init__(self) -> None:
        self.ticket: Ticket | None = None
        self.task: asyncio.Task[None] | None = None
        self.wake: asyncio.Future[None] | None = None
        self.sent = False
        """From here on the call may be billed."""
        self.withdrawn = False
        """The last look stopped it: its request never left as a whole."""
        self.started = 0.0
        self.until = 0.0
        """Monotonic seconds at which the call times out."""
        self.why: FailureKind | None = None
        """Why the sweep or an abort stopped it."""


class Body(Payload):
    """A request's body, that looks once more before any of it is written whether the call may go: a process that was
    stopped and wakes up must not pay.

    The client holds the headers back until the first piece, and writes a body in a task of its own, a turn of the loop
    after the connection is there: so the look is here and not there. Left open, and not to be closed from here: a stop
    between the look and the system call after it (one call), and a body's last piece that the socket had no room for.
    """

    def __init__(self, data: bytes, slot: Slot, ticket: Ticket, clock: Clock) -> None:
        super().__init__(data, content_type="application/json")
        self._size = len(data)
        self._slot = slot
        self._ticket = ticket
        self._clock = clock

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return self._value.decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        await self.write_with_length(writer, None)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        data: bytes = self._value
        for at in range(0, len(data), PIECE_BYTES):
            if at:
                await writer.drain()
                await asyncio.sleep(0)
            self._look()
            await writer.write(data[at : at + PIECE_BYTES])

    def _look(self) -> None:
        """Nothing is awaited between this and the write."""
        ticket, now = self._ticket, self._clock.now()
        begun = self._slot.sent
        if ticket.aborted or (ticket.right.until <= now if begun else ticket.lapsed(now) or ticket.late(now)):
            self._slot.withdrawn = True
            raise NotSent
        self._slot.sent = True


def kept_alive(address: tuple[int, int, int, str, object]) -> socket.socket:
    """A new socket for the client (its `socket_factory`)."""
    family, kind, proto, _, _ = address
    made = socket.socket(family, kind, proto)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, seconds in _KEPT.items():
        if (option := getattr(socket, name, None)) is not None:
            made.setsockopt(socket.IPPROTO_TCP, option, seconds)
    return made


def base_url(account: Account) -> str:
    base = account.base_url.rstrip("/")
    parts = urlsplit(base)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SpecError(f"account {account.name}: base_url {account.base_url!r} is no http(s) address")
    return base


async def bounded(response: aiohttp.ClientResponse) -> bytes | None:
    """The whole body; None where it is larger than is read."""
    length = response.content_length
    if length is not None:
        if length > MAX_BODY_BYTES:
            response.close()
            return None
        return await response.read()
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > MAX_BODY_BYTES:
            response.close()
            return None
    return b"".join(parts)


def read_hidden(read: Callable[[bytes], Read], body: bytes, key: Secret | None) -> Read:
    """A response as its protocol reads it; of a failure, told without the key that the call carried.

    Messages are cut short, so the key is taken out before; what it means is read from the response as it came.
    """
    got = read(body)
    if got.failure is None or key is None:
        return got
    told = read(key.cut_out(body)).failure or got.failure
    failure = msgspec.structs.replace(got.failure, message=key.hidden(told.message))
    return msgspec.structs.replace(got, failure=failure)


def stopped(why: FailureKind, sent: bool, timeout_s: float) -> Failure:
    if why == "timeout":
        if not sent:
            return Failure("connection", f"no connection within {timeout_s:g} s")
        return Failure("timeout", f"no answer within {timeout_s:g} s", may_be_billed=True)
    return Failure(
        why, "cancelled while it was in flight" if sent else "cancelled before it was sent", may_be_billed=sent
    )


def broken(error: BaseException, sent: bool) -> Failure:
    """The type says enough: texts of client errors can hold addresses and headers."""
    name = type(error).__name__
    if not sent:
        return Failure("connection", f"could not connect: {_reason(error) or name}")
    return Failure("connection", f"the connection broke before the answer was there ({name})", may_be_billed=True)


def _reason(error: BaseException) -> str:
    return (error.strerror or "") if isinstance(error, OSError) else ""


def unexpected(error: Exception, sent: bool) -> Failure:
    return Failure("connection", f"the call failed in the client ({type(error).__name__})", may_be_billed=sent)


def outcome(call: Call, read: Read, started_at: float, ms: float, worker: str) -> Outcome:
    """What became of a call, as its lane is told."""
    return Outcome(
        call.item_id,
        call.generation,
        call.attempt,
        started_at,
        ms,
        read.answer,
        read.failure,
        read.usage,
        read.request_id,
        worker,
        read.cost_nano,
        surcharge_percent=read.surcharge_percent,
    )
