"""`ApiEngine`: sends calls to one API account and reads what comes back.

A fixed set of tasks, one for each call that may be in flight, takes tickets from two queues (realtime first; one slot
in eight is kept free of bulk). No retry hides in here: a call is sent once or not at all, and the lane decides.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress

import aiohttp
from yarl import URL

from penstock.connectors import secrets
from penstock.engine.catalog import Account
from penstock.engine.errors import SpecError
from penstock.engine.items import Call, Failure, FailureKind, Outcome
from penstock.workers.clock import SYSTEM, Clock
from penstock.workers.engines.base import Ticket
from penstock.workers.engines.gates import THROTTLES, GovernedGate, LeaseCall, OwnGate, gate_for
from penstock.workers.engines.sending import (
    Body,
    Slot,
    base_url,
    bounded,
    broken,
    kept_alive,
    outcome,
    read_hidden,
    stopped,
    unexpected,
)
from penstock.workers.wire import TABLE, Read
from penstock.workers.wire.base import MAX_BODY_BYTES, fail

BATCH = 256
"""Outcomes handed over at once (see `Engine.outcomes`)."""
CONNECT_S = 30.0
"""To connect and shake hands; a guess: a far provider needs 0.5 s, a lost SYN is sent again after 1, 3 and 7 s."""
IDLE_S = 4.0
"""Idle connections are closed before uvicorn's 5 s, so that a call seldom meets a connection that is just closing."""
LONG_PAUSE_S = 5.0
"""Where a provider wants nothing for longer, what waits here goes back to its lane, which may know a better place, and
nothing is taken meanwhile. A guess: less is not worth the way."""
HANGS = 10
"""So many calls of a model in a row without an answer in time: what waits for it here goes back to its lane, unsent,
whose breaker for that target opens by then (`health.HealthSettings`). Each would wait for its whole timeout else."""
KEY_S = 60.0
"""A key is read anew once it is so old: its file may hold another by now, since it was rotated, or refused and mended.
Less than an account rests whose key was refused (`health.HealthSettings.mend_cool_s`)."""
SWEEP_S = 0.1
"""How exactly timeouts are kept. One sweep over all slots is cheaper than a timer for each call."""


class ApiEngine:
    """Implements `Engine` for one account. `governor`: what leases rights where several processes send to the account
    (`handle.lease.remote`); None: this process keeps the limits alone. `worker` names it in outcomes and leases."""

    def __init__(
        self, account: Account, *, governor: LeaseCall | None = None, clock: Clock = SYSTEM, worker: str = "api"
    ) -> None:
        self._account = account
        self._wire = TABLE[account.protocol]
        self._gate = gate_for(account, governor, worker, clock)
        self._clock = clock
        self._worker = worker
        self._base = base_url(account)
        self._urls: dict[str, URL] = {}
        self._session: aiohttp.ClientSession | None = None
        self._key: secrets.Secret | None = None
        self._key_at = 0.0
        self._slots = [Slot() for _ in range(max(1, account.limits.concurrency))]
        self._idle: list[Slot] = []
        self._bulk_slots = len(self._slots) - len(self._slots) // 8
        self._bulk_running = 0
        self._urgent: deque[Ticket] = deque()
        self._bulk: deque[Ticket] = deque()
        self._done: deque[tuple[Ticket, Outcome]] = deque()
        self._arrived: asyncio.Event = asyncio.Event()
        self._beside: list[asyncio.Task[None]] = []
        self._resume: asyncio.TimerHandle | None = None
        self._unanswered: Counter[str] = Counter()
        """Model → calls in a row."""
        self._closed = False
        self._tells_item = account.provider == "sandbox"
        self._totals = {"calls": 0.0, "failures": 0.0, "throttles": 0.0, "input_tokens": 0.0, "output_tokens": 0.0}

    # The interface

    async def start(self) -> None:
        """Resolve the key and open the pool. Raises `SpecError` where the key or the address can't be used."""
        key = self._key = secrets.resolve(self._account.api_key)
        self._key_at = self._clock.tick()
        headers = {
            **self._wire.auth(key.reveal() if key else None),
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",  # answers are short: unpacking costs more than it saves
            "User-Agent": "penstock",
        }
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=IDLE_S, ttl_dns_cache=60, socket_factory=kept_alive
            ),
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_S),
            auto_decompress=True,
        )
        for slot in self._slots:
            slot.task = asyncio.create_task(self._work(slot))
        self._beside = [asyncio.create_task(self._sweep()), asyncio.create_task(self._gate.run(self._again))]

    async def govern(self, lease: LeaseCall) -> None:
        """From now on others send to the account as well. Returns when the governor knows of the calls in flight."""
        gate = self._gate
        if isinstance(gate, OwnGate):
            gate = self._gate = GovernedGate(self._account, lease, self._worker, self._clock, alone=gate)
            self._beside.append(asyncio.create_task(gate.run(self._again)))
        if isinstance(gate, GovernedGate):
            await gate.met.wait()

    def room(self) -> int:
        """Bulk slots and one more round behind them (so that a slot never waits for a pull), less what is here."""
        if self._long_pause():
            return 0
        wanted = self._bulk_slots + min(BATCH, max(16, self._bulk_slots))
        return max(0, wanted - self._bulk_running - len(self._bulk))

    def submit(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            (self._urgent if ticket.call.realtime else self._bulk).append(ticket)
        self._wake(len(tickets))

    async def outcomes(self) -> list[tuple[Ticket, Outcome]]:
        while not self._done:
            self._arrived.clear()
            await self._arrived.wait()
        done = self._done
        return [done.popleft() for _ in range(min(BATCH, len(done)))]

    def abort(self, tickets: Sequence[Ticket]) -> None:
        wanted = {id(ticket) for ticket in tickets}
        for ticket in tickets:
            ticket.aborted = True
        for queue in (self._urgent, self._bulk):
            queued = [ticket for ticket in queue if id(ticket) in wanted]
            for ticket in queued:
                queue.remove(ticket)
                self._unsent(ticket, "cancelled", "cancelled before it was sent")
        for slot in self._slots:
            if slot.ticket is not None and id(slot.ticket) in wanted:
                self._stop(slot, "cancelled")

    def limits(self) -> dict[str, float]:
        """`used_<bucket>`, 0 to 1; nothing where a governor keeps the account's limits."""
        return {f"used_{name}": share for name, share in self._gate.used(self._clock.tick()).items()}

    def gauges(self) -> dict[str, float]:
        running = sum(slot.ticket is not None for slot in self._slots)
        return {**self._totals, "running": float(running), "waiting": float(len(self._bulk) + len(self._urgent))}

    async def close(self) -> None:
        self._closed = True
        if self._resume is not None:
            self._resume.cancel()
        tasks = [*self._beside, *(slot.task for slot in self._slots if slot.task is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    # Choosing the next call

    def _wake(self, n: int) -> None:
        while n > 0 and self._idle:
            wake = self._idle.pop().wake
            if wake is not None and not wake.done():
                wake.set_result(None)
            n -= 1

    def _next(self) -> Ticket | None:
        """The next ticket that may go now, charged to the limits; None: nothing may."""
        while (queue := self._queue()) is not None:
            ticket = queue[0]
            if (kind := self._lapsed(ticket)) is not None:
                queue.popleft()
                self._unsent(ticket, *kind)
                continue
            wait_s = self._gate.admit(ticket.call, self._clock.tick())
            if wait_s > 0.0:
                self._later(wait_s)
                self._give_back()
                return None
            queue.popleft()
            if queue is self._bulk:
                self._bulk_running += 1
            if self._idle and (self._bulk or self._urgent):
                self._wake(1)  # one wakes the next, as long as there is work that may go
            return ticket
        return None

    def _queue(self) -> deque[Ticket] | None:
        if self._urgent:
            return self._urgent
        return self._bulk if self._bulk and self._bulk_running < self._bulk_slots else None

    def _lapsed(self, ticket: Ticket) -> tuple[FailureKind, str] | None:
        now = self._clock.now()
        if ticket.aborted:
            return "cancelled", "cancelled before it was sent"
        if ticket.lapsed(now):
            return "not_sent", "the lane's right to send had lapsed"
        if ticket.late(now):
            return "cancelled", "the deadline passed before it was sent"
        return None

    def _long_pause(self) -> float:
        """Seconds that are left of it; 0: there is none."""
        pause_s = self._gate.paused(self._clock.tick())
        return pause_s if pause_s > LONG_PAUSE_S else 0.0

    def _give_back(self) -> None:
        """Nothing goes for long: what waits is unpaid, and need not wait here."""
        pause_s = self._long_pause()
        for queue in (self._urgent, self._bulk) if pause_s else ():
            while queue:
                words = f"its account is to send nothing for {pause_s:.0f} s"
                self._unsent(queue.popleft(), "not_sent", words, wait_s=pause_s)

    def _no_answers(self, late: Counter[str]) -> None:
        """Of models to calls that were given up just now."""
        self._unanswered += late
        for model in late:
            if (n := self._unanswered[model]) >= HANGS:
                for queue in (self._urgent, self._bulk):
                    for ticket in [ticket for ticket in queue if ticket.call.upstream == model]:
                        queue.remove(ticket)
                        self._unsent(ticket, "not_sent", f"{n} calls of {model} in a row had no answer in time")

    def _later(self, wait_s: float) -> None:
        if self._resume is None:
            # At most a second ahead: what is known of the limits changes meanwhile.
            self._resume = asyncio.get_running_loop().call_later(min(wait_s, 1.0), self._again)

    def _again(self) -> None:
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        self._wake(1)

    # One slot

    async def _work(self, slot: Slot) -> None:
        loop = asyncio.get_running_loop()
        while True:
            ticket = self._next()
            if ticket is None:
                slot.wake = loop.create_future()
                self._idle.append(slot)
                await slot.wake
                continue
            await self._serve(slot, ticket)
            if ticket.call.realtime is False:
                self._bulk_running -= 1

    async def _serve(self, slot: Slot, ticket: Ticket) -> None:
        call = ticket.call
        clock = self._clock
        started_at = clock.now()
        slot.started = clock.tick()
        slot.until = slot.started + call.timeout_s
        slot.sent = slot.withdrawn = False
        slot.why = None
        slot.ticket = ticket
        try:
            read = await self._call(slot, ticket)
        except asyncio.CancelledError:
            task = slot.task
            if slot.why is None or task is None or self._closed:
                raise
            task.uncancel()
            read = Read(failure=stopped(slot.why, slot.sent, call.timeout_s))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            read = Read(failure=self._withdrawn(ticket) if slot.withdrawn else broken(error, slot.sent))
        except Exception as error:  # noqa: BLE001 - one call's trouble is data; it must not end the slot
            read = Read(failure=unexpected(error, slot.sent))
        slot.ticket = None
        ended = clock.tick()
        self._learn(slot, call, read, ended)
        ms = (ended - slot.started) * 1000.0
        self._put(ticket, outcome(call, read, started_at, ms, self._worker))

    async def _call(self, slot: Slot, ticket: Ticket) -> Read:
        call, account = ticket.call, self._account
        try:
            path, data = self._wire.build(call, ticket.output, account)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            return Read(
                failure=Failure("bad_request", f"the request can't be said in {account.protocol}: {error!r}"[:500])
            )
        url = self._urls.get(path) or self._url(path)
        session = self._session
        assert session is not None, "start() first"
        headers = (
            {"x-penstock-item": f"{call.item_id}:{call.generation}", "x-penstock-attempt": str(call.attempt)}
            if self._tells_item
            else None
        )
        body, key = Body(data, slot, ticket, self._clock), self._fresh_key(session)
        async with session.post(url, data=body, headers=headers, allow_redirects=False) as response:
            answer = await bounded(response)
            if answer is None:
                return Read(
                    failure=fail(
                        "invalid_response", f"the answer is larger than {MAX_BODY_BYTES} bytes", response.status
                    )
                )
            status, told, now = response.status, response.headers, self._clock.now()
            return read_hidden(lambda body: self._wire.read(status, told, body, now, account), answer, key)

    def _fresh_key(self, session: aiohttp.ClientSession) -> secrets.Secret | None:
        """What the next call carries. A key that can't be read now (its file is being written) stays what it was."""
        tick = self._clock.tick()
        if self._key is not None and tick - self._key_at >= KEY_S:
            self._key_at = tick
            with suppress(SpecError):
                self._key = secrets.resolve(self._account.api_key)
                session.headers.update(self._wire.auth(self._key.reveal() if self._key else None))
        return self._key

    def _url(self, path: str) -> URL:
        base = self._base
        if path.startswith("/v1/") and base.endswith("/v1"):
            path = path[3:]
        url = self._urls[path] = URL(base + path)
        return url

    # What came back

    def _learn(self, slot: Slot, call: Call, read: Read, tick: float) -> None:
        gate, totals, failure = self._gate, self._totals, read.failure
        gate.settle(call, slot.sent, read.usage, failure, tick)
        if read.limits is not None:
            gate.told(read.limits, tick)
        totals["calls"] += 1
        if read.usage is not None:
            totals["input_tokens"] += read.usage.input
            totals["output_tokens"] += read.usage.output
        if failure is None or failure.kind != "timeout":
            self._unanswered.pop(call.upstream, None)
        if failure is not None:
            totals["failures"] += 1
            if failure.kind in THROTTLES:
                totals["throttles"] += 1
                by_kind = f"throttled_{failure.kind}"
                totals[by_kind] = totals.get(by_kind, 0.0) + 1

    def _withdrawn(self, ticket: Ticket) -> Failure:
        kind, message = self._lapsed(ticket) or ("not_sent", "the lane's right to send had lapsed")
        return Failure(kind, message)

    def _unsent(self, ticket: Ticket, kind: FailureKind, message: str, wait_s: float | None = None) -> None:
        read = Read(failure=Failure(kind, message, retry_after_s=wait_s))
        self._put(ticket, outcome(ticket.call, read, self._clock.now(), 0.0, self._worker))

    def _put(self, ticket: Ticket, outcome: Outcome) -> None:
        self._done.append((ticket, outcome))
        self._arrived.set()

    # Time

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            tick = self._clock.tick()
            late = [slot for slot in self._slots if slot.ticket is not None and slot.until <= tick and slot.why is None]
            self._no_answers(Counter(slot.ticket.call.upstream for slot in late if slot.ticket is not None))
            for slot in late:
                self._stop(slot, "timeout")

    def _stop(self, slot: Slot, why: FailureKind) -> None:
        if slot.why is None and slot.task is not None:
            slot.why = why
            slot.task.cancel()
