"""One governor an account: all dispatchers of it lease their rights here, whatever job they serve.

A plain class; the cluster makes it a named actor. One call does all, in msgpack: a dispatcher tells its cumulative use
(so a lost report is made good by the next), what the provider's headers and refusals said, and how much it wants next.
"""

from __future__ import annotations

import msgspec

from penstock.engine.catalog import Account, Limits
from penstock.engine.items import FailureKind
from penstock.engine.limits import BURST_S, AccountLimits, Ask, Remaining
from penstock.workers.clock import SYSTEM, Clock

LEASE_S = BURST_S
"""How long rights last. A restarted governor knows of none older than that."""
CALM_S = 60.0
"""Trouble is watched for so long: a provider's windows are a minute."""
LOST_S = 10.0
"""A dispatcher that has been silent so long is gone: heartbeats come every half second."""


class Use(msgspec.Struct, frozen=True, array_like=True):
    """Cumulative, since the dispatcher began. `est`: rights that are over (used or lapsed), as they were granted;
    then what was really sent and used. `flying`: all calls in flight now, and rights in hand."""

    est_calls: int = 0
    est_input: int = 0
    est_output: int = 0
    calls: int = 0
    input: int = 0
    output: int = 0
    flying: int = 0


class Told(msgspec.Struct, frozen=True, array_like=True):
    """What a provider's headers said. `limits`: where little is left, the account's limits as far as they are known."""

    left: Remaining
    limits: Limits | None = None


class Want(msgspec.Struct, frozen=True, array_like=True):
    """`calls` 0: only a report. `told`: the newest headers; `refusals`: what came back since the last call."""

    dispatcher: str
    use: Use
    calls: int = 0
    input: int = 0
    output: int = 0
    told: Told | None = None
    refusals: list[tuple[FailureKind, float | None]] = []
    flew: int = 0
    """Calls in flight when the first of them came: an overload takes its share of these."""


class Lease(msgspec.Struct, frozen=True, array_like=True):
    """Rights for `life_s`. `open`: the account has no rates to keep now: only `concurrency` holds (this dispatcher's
    share). `wait_s`: when to ask again."""

    calls: int
    input: int
    output: int
    concurrency: int
    open: bool
    wait_s: float = 0.0
    life_s: float = LEASE_S
    paused_s: float = 0.0
    """For so long the provider wants nothing of anybody."""


_want = msgspec.msgpack.Decoder(Want)
_encode = msgspec.msgpack.Encoder().encode


class _Dispatcher:
    __slots__ = ("seen", "use")

    def __init__(self, use: Use, tick: float) -> None:
        self.use = use
        self.seen = tick


class Governor:
    """Shares one account's limits among its dispatchers.

    Methods are async for the actor's sake and never wait. After a restart nothing is granted until every lease of the
    former life has lapsed; a dispatcher that already has a past gives a restart away, if the caller doesn't.
    """

    def __init__(self, account_json: bytes, *, restarted: bool = False, clock: Clock = SYSTEM) -> None:
        self._account = msgspec.json.decode(account_json, type=Account)
        limits = self._account.limits
        self._limits = AccountLimits(limits)
        self._rated = limits.rated
        self._clock = clock
        self._born = clock.tick()
        self._restarted = restarted
        self._trouble_at = float("-inf")
        self._dispatchers: dict[str, _Dispatcher] = {}

    async def lease(self, data: bytes) -> bytes:
        """`Want` in, `Lease` out, both in msgpack."""
        tick = self._clock.tick()
        want = _want.decode(data)
        self._forget_lost(tick)
        self._account_for(want, tick)
        self._listen(want, tick)
        return _encode(self._grant(want, tick))

    async def state(self) -> dict[str, float]:
        """For metrics: how full each bucket is (0…1), calls in flight, dispatchers."""
        tick = self._clock.tick()
        used = {f"used_{name}": share for name, share in self._limits.used(tick).items()}
        counts = {"in_flight": float(self._limits.in_flight), "dispatchers": float(len(self._dispatchers))}
        return {**used, **counts, "window": float(self._limits.window), "open": float(self._is_open(tick))}

    def _forget_lost(self, tick: float) -> None:
        for name, one in list(self._dispatchers.items()):
            if tick - one.seen > LOST_S:
                del self._dispatchers[name]
                self._limits.forget(name)

    def _account_for(self, want: Want, tick: float) -> None:
        one = self._dispatchers.get(want.dispatcher)
        use = want.use
        if one is None:
            self._dispatchers[want.dispatcher] = _Dispatcher(use, tick)
            if use.est_calls or use.flying:
                self._restarted = True
            return
        old = one.use
        if use.est_calls >= old.est_calls:  # else it was restarted under its old name: its calls died with it
            est = Ask(use.est_calls - old.est_calls, use.est_input - old.est_input, use.est_output - old.est_output)
            real = Ask(use.calls - old.calls, use.input - old.input, use.output - old.output)
            self._limits.settle(est, real, tick, want.dispatcher)
        one.use, one.seen = use, tick

    def _listen(self, want: Want, tick: float) -> None:
        if want.told is not None:
            if want.told.limits is not None:
                self._trouble_at = max(self._trouble_at, tick)
                self._limits.learn(want.told.limits, tick)
            self._limits.observe(want.told.left, tick)
        if want.refusals:
            self._limits.flies(max(want.flew, want.use.flying), want.dispatcher)
        for kind, wait_s in want.refusals:
            self._limits.throttled(kind, wait_s, tick)
            self._trouble_at = max(self._trouble_at, tick, self._limits.paused_until)
        self._limits.flies(want.use.flying, want.dispatcher)

    def _grant(self, want: Want, tick: float) -> Lease:
        share = max(1, self._limits.window // max(1, len(self._dispatchers)))
        if self._restarted and tick - self._born < LEASE_S:
            return Lease(0, 0, 0, share, False, self._born + LEASE_S - tick)
        if self._is_open(tick):
            return Lease(0, 0, 0, share, True)
        if (paused_s := self._limits.paused_until - tick) > 0:
            return Lease(0, 0, 0, share, False, paused_s, paused_s=paused_s)
        room = min(want.calls, share - want.use.flying)
        if room <= 0:
            return Lease(0, 0, 0, share, False, 0.05 if want.calls else 0.0)
        part = room / want.calls
        grant = self._limits.grant(Ask(room, int(want.input * part), int(want.output * part)), tick, want.dispatcher)
        return Lease(grant.calls, grant.input_tokens, grant.output_tokens, share, False, grant.wait_s)

    def _is_open(self, tick: float) -> bool:
        """No rates of ours, no trouble for a minute, and all of the concurrency is back."""
        return (
            not self._rated
            and tick - self._trouble_at > CALM_S
            and self._limits.window >= max(self._account.limits.concurrency, len(self._dispatchers))
        )
