"""May this call go now? What stands between a queue of calls and an account's limits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from penstock.engine.catalog import Account, Limits
from penstock.engine.items import Call, Failure, FailureKind, Usage
from penstock.engine.limits import AccountLimits, Ask, Remaining
from penstock.workers.clock import Clock
from penstock.workers.governor import CALM_S, Lease, Told, Use, Want
from penstock.workers.wire import Bucket, LimitHeaders

THROTTLES: frozenset[FailureKind] = frozenset({"rate_limited", "overloaded"})
LeaseCall = Callable[[bytes], Awaitable[bytes]]
"""`governor.lease`, or `handle.lease.remote` of the actor."""

HEARTBEAT_S = 0.5
"""Half of a lease's life."""
LEAST_ASKED = 16
MOST_ASKED = 1024
BLIND_S = 10.0
"""How long an account without rates goes on without a word from its governor (a restart takes about two seconds)."""
LEASE_LOST_S = 3.0
"""A governor that has not answered for so long won't: a reply can be lost while both sides live (seen in Ray). What it
granted has lapsed; it is asked anew. A restart takes about two seconds."""
PROBE_S = 0.2
MOST_REFUSALS = 64
"""Kept for a governor that does not answer; the newest say enough."""


class Gate(Protocol):
    """`tick` is monotonic seconds. None of these waits."""

    def admit(self, call: Call, tick: float) -> float:
        """0: the call is charged to the limits and may go. Else: seconds until it is worth asking again."""
        ...

    def settle(self, call: Call, sent: bool, usage: Usage | None, failure: Failure | None, tick: float) -> None:
        """An admitted call is over."""
        ...

    def told(self, limits: LimitHeaders, tick: float) -> None:
        """A response's headers spoke of the account's limits."""
        ...

    def paused(self, tick: float) -> float:
        """For how many seconds more the provider wants nothing, as a refusal said."""
        ...

    def used(self, tick: float) -> dict[str, float]:
        """Bucket → 0 to 1, of limits that are kept here."""
        ...

    async def run(self, wake: Callable[[], None]) -> None:
        """What the gate does beside; `wake` when calls that had to wait may be worth asking for again."""
        ...


def gate_for(account: Account, governor: LeaseCall | None, dispatcher: str, clock: Clock) -> Gate:
    return OwnGate(account) if governor is None else GovernedGate(account, governor, dispatcher, clock)


def actual(call: Call, sent: bool, usage: Usage | None, failure: Failure | None) -> Ask:
    """What a call really used of the limits. A refused one counts as a request; a lost one as estimated."""
    if not sent:
        return Ask(0)
    if usage is not None:
        return Ask(1, usage.input, usage.output)
    if failure is not None and not failure.may_be_billed:
        return Ask(1)
    return Ask(1, call.est_input_tokens, call.max_tokens)


def remaining(told: LimitHeaders) -> Remaining:
    """The headers as the limits understand them. Days are left out: a bucket of minutes can't hold them."""
    return Remaining(*_left(told.requests), *_left(told.input_tokens), *_left(told.output_tokens), *_left(told.tokens))


def _left(bucket: Bucket | None) -> tuple[int | None, float | None]:
    """What is left, and when the next unit is there: the headers tell when *all* are, and they come back evenly
    (OpenAI, Anthropic and Groq keep token buckets)."""
    if bucket is None or bucket.remaining is None or bucket.limit is None or not _minutes(bucket):
        return None, None
    reset_s = None if bucket.reset_s is None else bucket.reset_s / max(1, bucket.limit - bucket.remaining)
    return bucket.remaining, reset_s


def learn(limits: Limits, told: LimitHeaders) -> Limits:
    """The account's limits, with those that it does not declare taken from the headers."""

    def filled(known: int | None, bucket: Bucket | None) -> int | None:
        return known if known is not None or bucket is None or not _minutes(bucket) else bucket.limit

    return Limits(
        filled(limits.rpm, told.requests),
        filled(limits.input_tpm, told.input_tokens),
        filled(limits.output_tpm, told.output_tokens),
        filled(limits.tpm, told.tokens),
        limits.concurrency,
    )


def _minutes(bucket: Bucket) -> bool:
    """Whether the limit is a minute's. Some that look so are a day's: then filling up takes far longer."""
    if bucket.window_s > 60.0:
        return False
    if bucket.reset_s is None or bucket.limit is None or bucket.remaining is None:
        return True
    return bucket.reset_s * bucket.limit <= 120.0 * max(1, bucket.limit - bucket.remaining)


class OwnGate:
    """Limits kept in this process. While an account has no rates and no trouble, a call costs one addition."""

    def __init__(self, account: Account) -> None:
        self._declared = account.limits
        self._core = AccountLimits(account.limits)
        self._rated = account.limits.rated
        self._strict = self._rated
        self._flying = 0
        """Calls in flight that the core does not know of (not strict)."""
        self._trouble_at = float("-inf")

    def admit(self, call: Call, tick: float) -> float:
        if not self._strict:
            self._flying += 1
            return 0.0
        return self._core.admit(call.est_input_tokens, call.max_tokens, tick)

    def settle(self, call: Call, sent: bool, usage: Usage | None, failure: Failure | None, tick: float) -> None:
        if failure is not None and failure.kind in THROTTLES:
            self._watch(tick)
            self._core.throttled(failure.kind, failure.retry_after_s, tick)
            self._trouble_at = max(self._trouble_at, self._core.paused_until)
        if not self._strict:
            self._flying -= 1
            return
        est = Ask(1, call.est_input_tokens, call.max_tokens)
        self._core.settle(est, actual(call, sent, usage, failure), tick)
        if not self._rated and tick - self._trouble_at > CALM_S and self._core.window >= self._declared.concurrency:
            self._strict = False
            self._flying = self._core.in_flight

    @property
    def flying(self) -> int:
        """Calls in flight."""
        return self._core.in_flight if self._strict else self._flying

    def told(self, limits: LimitHeaders, tick: float) -> None:
        if nearly_spent(limits):
            self._watch(tick)
            self._core.learn(learn(self._declared, limits), tick)
        if self._strict:
            self._core.observe(remaining(limits), tick)

    def paused(self, tick: float) -> float:
        return max(0.0, self._core.paused_until - tick)

    def used(self, tick: float) -> dict[str, float]:
        if self._strict:
            return self._core.used(tick)
        return {"concurrency": min(1.0, self._flying / max(1, self._declared.concurrency))}

    async def run(self, wake: Callable[[], None]) -> None:
        return

    def _watch(self, tick: float) -> None:
        self._trouble_at = max(self._trouble_at, tick)
        if not self._strict:
            self._strict = True
            self._core.flies(self._flying)


def nearly_spent(limits: LimitHeaders) -> bool:
    buckets = (limits.requests, limits.tokens, limits.input_tokens, limits.output_tokens)
    return any(b is not None and _minutes(b) and _low(b) for b in buckets)


def _low(bucket: Bucket) -> bool:
    """Under a twentieth left (a guess): from here on our own count must watch."""
    return bucket.remaining is not None and bucket.limit is not None and bucket.remaining * 20 < bucket.limit


class GovernedGate:
    """Rights leased from the account's governor, for at most a second. While the governor says that the account is
    open, a call costs two additions and no message. `alone`: how the account stood before there was one: its calls in
    flight count, and a pause that the provider asked for goes on and is passed on."""

    def __init__(
        self, account: Account, governor: LeaseCall, dispatcher: str, clock: Clock, *, alone: OwnGate | None = None
    ) -> None:
        self._declared = account.limits
        self._governor = governor
        self._dispatcher = dispatcher
        self._clock = clock
        self._share = 0
        self._open = False
        self._heard_at = float("-inf")
        self._calls = self._input = self._output = 0
        """Rights in hand."""
        self._until = 0.0
        self._flying = alone.flying if alone is not None else 0
        self._used = self._used_input = self._used_output = 0
        """Calls (and their estimates) since the last lease: what the next asks for."""
        self._next_size = (0, 0)
        self._est = [0, 0, 0]
        self._real = [0, 0, 0]
        self._on_lease: dict[int, tuple[int, int]] = {}
        self._told: Told | None = None
        self._refusals: list[tuple[FailureKind, float | None]] = []
        self._flew = 0
        """Calls in flight when the first of these refusals came."""
        self._hold_until = 0.0
        """As refusals here said, which the governor may not have heard."""
        self._paused_until = 0.0
        """As the governor says."""
        self._hungry = asyncio.Event()
        self.met = asyncio.Event()
        """Set when the governor knows of us."""
        if alone is not None and (pause_s := alone.paused(clock.tick())) > 0:
            self._refused("rate_limited", pause_s, clock.tick())
        self._decode = msgspec.msgpack.Decoder(Lease)
        self._encode = msgspec.msgpack.Encoder().encode

    def admit(self, call: Call, tick: float) -> float:
        if tick < self._hold_until:
            return self._hold_until - tick
        self._next_size = (call.est_input_tokens, call.max_tokens)
        if self._flying >= self._share:
            if not self.met.is_set():
                self._hungry.set()
            return PROBE_S  # else a call that ends makes room, and a heartbeat tells of a larger share: no need to ask
        if self._open and tick - self._heard_at < BLIND_S:
            self._flying += 1
            return 0.0
        return self._admit_on_lease(call, tick)

    def settle(self, call: Call, sent: bool, usage: Usage | None, failure: Failure | None, tick: float) -> None:
        self._flying -= 1
        est = self._on_lease.pop(id(call), None)
        if est is not None:
            real = actual(call, sent, usage, failure)
            self._over(1, *est, real.calls, real.input_tokens, real.output_tokens)
        if failure is not None and failure.kind in THROTTLES:
            self._refused(failure.kind, failure.retry_after_s, tick)

    def _refused(self, kind: FailureKind, wait_s: float | None, tick: float) -> None:
        if not self._refusals:
            self._flew = self._flying + 1
        self._refusals.append((kind, wait_s))
        self._hold_until = max(self._hold_until, tick + min(wait_s or PROBE_S, CALM_S))
        self._open = False
        self._hungry.set()

    def told(self, limits: LimitHeaders, tick: float) -> None:
        scarce = nearly_spent(limits)
        if scarce or not self._open:
            self._told = Told(remaining(limits), learn(self._declared, limits) if scarce else None)
        if scarce:
            self._open = False
            self._hungry.set()

    def paused(self, tick: float) -> float:
        return max(0.0, max(self._hold_until, self._paused_until) - tick)

    def used(self, tick: float) -> dict[str, float]:
        return {}

    async def run(self, wake: Callable[[], None]) -> None:
        """Lease and report until cancelled. A governor that does not answer is asked again: it is being restarted."""
        while True:
            try:
                wait_s = await self._exchange()
            except Exception:  # noqa: BLE001 - lost or restarting: rights lapse by themselves, then nothing is sent
                await asyncio.sleep(PROBE_S)
                continue
            wake()
            await asyncio.sleep(min(max(wait_s, 0.01), HEARTBEAT_S))
            if not self._hungry.is_set():
                try:
                    await asyncio.wait_for(self._hungry.wait(), HEARTBEAT_S)
                except TimeoutError:
                    continue

    def _admit_on_lease(self, call: Call, tick: float) -> float:
        inputs, outputs = self._next_size
        enough = self._input >= inputs and self._output >= outputs
        if tick >= self._until or self._calls <= 0 or not (enough or self._whole):
            self._hungry.set()
            return PROBE_S
        inputs, outputs = min(inputs, self._input), min(outputs, self._output)
        self._calls -= 1
        self._input -= inputs
        self._output -= outputs
        self._flying += 1
        self._on_lease[id(call)] = (inputs, outputs)
        self._used += 1
        self._used_input += inputs
        self._used_output += outputs
        if self._calls * 4 < self._used:
            self._hungry.set()
        return 0.0

    @property
    def _whole(self) -> bool:
        """The last right in hand was granted for one call of average size: it must do for whatever call is next."""
        return self._calls == 1

    def _over(self, n: int, est_input: int, est_output: int, calls: int, inputs: int, outputs: int) -> None:
        for sums, adds in ((self._est, (n, est_input, est_output)), (self._real, (calls, inputs, outputs))):
            for i, add in enumerate(adds):
                sums[i] += add

    async def _exchange(self) -> float:
        hungry = self._hungry.is_set()
        self._hungry.clear()
        if self._calls and (hungry or self._clock.tick() >= self._until):
            self._over(self._calls, self._input, self._output, 0, 0, 0)  # given back; what is wanted is asked anew
            self._calls = self._input = self._output = 0
        refusals, self._refusals = self._refusals, []
        told, self._told = self._told, None
        want = self._want(hungry, told, refusals)
        sent_at = self._clock.tick()
        try:
            async with asyncio.timeout(LEASE_LOST_S):
                lease = self._decode.decode(await self._governor(self._encode(want)))
        except BaseException:
            self._refusals = (refusals + self._refusals)[-MOST_REFUSALS:]
            self._hungry.set()
            raise
        self._heard_at = sent_at
        self.met.set()
        self._share, self._open = lease.concurrency, lease.open and not self._refusals
        self._paused_until = sent_at + lease.paused_s
        if hungry:  # else the rights in hand are still good
            self._calls, self._input, self._output = lease.calls, lease.input, lease.output
            self._until = sent_at + lease.life_s
            if not lease.calls and not lease.open and self._flying < self._share:
                self._hungry.set()
        return lease.wait_s

    def _want(self, hungry: bool, told: Told | None, refusals: list[tuple[FailureKind, float | None]]) -> Want:
        use = Use(*self._est, *self._real, flying=self._flying + self._calls)
        used, inputs, outputs = self._used, self._used_input, self._used_output
        self._used = self._used_input = self._used_output = 0
        if not hungry:
            return Want(self._dispatcher, use, told=told, refusals=refusals, flew=self._flew)
        # The call that waits may be larger than those before it: it counts as the average asks for.
        size = self._next_size
        used, inputs, outputs = used + 1, inputs + size[0], outputs + size[1]
        calls = min(MOST_ASKED, max(LEAST_ASKED, 2 * used))
        return Want(
            self._dispatcher, use, calls, calls * inputs // used, calls * outputs // used, told, refusals, self._flew
        )
