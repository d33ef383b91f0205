"""One call on the wire: its slot, the last look before it is written, and what its end means."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from penstock.engine.catalog import Account
from penstock.engine.errors import SpecError
from penstock.engine.items import Failure, FailureKind
from penstock.workers.clock import Clock
from penstock.workers.engines.base import Ticket
from penstock.workers.wire.base import MAX_BODY_BYTES


class NotSent(Exception):
    """Raised between having a connection and writing to it."""


class Slot:
    """One call that may be in flight."""

    __slots__ = ("sent", "started", "task", "ticket", "until", "wake", "why")

    def __init__(self) -> None:
        self.ticket: Ticket | None = None
        self.task: asyncio.Task[None] | None = None
        self.wake: asyncio.Future[None] | None = None
        self.sent = False
        """From here on the call may be billed."""
        self.started = 0.0
        self.until = 0.0
        """Monotonic seconds at which the call times out."""
        self.why: FailureKind | None = None
        """Why the sweep or an abort stopped it."""


current: ContextVar[Slot] = ContextVar("slot")


class Connector(aiohttp.TCPConnector):
    """Asks once more, with the connection in hand and nothing awaited before the write, whether the call may go:
    a process that was stopped while it connected must not pay when it wakes up."""

    def __init__(self, clock: Clock, **options: Any) -> None:
        super().__init__(**options)
        self._clock = clock

    async def connect(self, req: Any, traces: Any, timeout: Any) -> Any:
        connection = await super().connect(req, traces, timeout)
        slot = current.get()
        ticket = slot.ticket
        if ticket is None or ticket.aborted or ticket.right.until <= self._clock.now():
            connection.release()
            raise NotSent
        slot.sent = True
        return connection


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
