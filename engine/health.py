"""Which targets are down. A breaker for each model; faults of an account open all of its models.

closed ──(10 faults in a row, or one that needs no proof)──▶ open ──(cool-down)──▶ half-open ──(success)──▶ closed
                                                              ▲                        │
                                                              └──(fault: twice as long)┘
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from penstock.engine.items import Failure, FailureKind

FAULTS: frozenset[FailureKind] = frozenset(
    {"connection", "timeout", "overloaded", "server_error", "invalid_response", "other_model"}
)
"""The target's own. A rate limit is none: the limiter paces it."""


class HealthSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    faults: int = 10
    """In a row, without a success between: one call in five failing does that once in ten million calls."""
    never_met: int = 3
    """The same of a target that no call has reached yet: a wrong address shows itself at once."""
    window_s: float = 60.0
    """Faults further apart are no row."""
    cool_s: float = 5.0
    """First cool-down; doubles with each failed probe."""
    max_cool_s: float = 120.0
    mend_cool_s: float = 300.0
    """After 401 or 403, an empty account, an unknown model, or one that goes on answering as another (each look is paid
    for): somebody must mend it; look again in five minutes."""
    daily_cool_s: float = 900.0
    """After a daily limit without Retry-After."""
    probe_s: float = 60.0
    """A probe without an answer for so long is taken for lost; another may go."""
    unasked_s: float = 600.0
    """What waits for a target probes it as soon as it may be. One that nobody has asked for so long after that is of
    no use to anybody: a version that was taken back, a model of a tier that is paused. A guess."""
    look_again_s: float = 1.0
    """How soon to look again while a probe is out."""


class _Breaker:
    __slots__ = ("cool_s", "firm", "first_at", "mend", "open_until", "probing_until", "row")

    def __init__(self) -> None:
        self.row = 0
        self.first_at = 0.0
        self.open_until: float | None = None
        """None: closed. In the past: half-open."""
        self.probing_until = 0.0
        self.cool_s = 0.0
        self.firm = False
        """Only a probe's success closes it: a key, a cap or a day's limit is not disproved by a late answer."""
        self.mend: str | None = None
        """What a person has to mend; waiting alone won't help."""


class Health:
    """`accounts`: model → the account it is served by (None: an engine of our own)."""

    def __init__(self, accounts: Mapping[str, str | None], settings: HealthSettings | None = None) -> None:
        self._settings = settings or HealthSettings()
        self._accounts = dict(accounts)
        self._breakers: dict[str, _Breaker] = {}
        self._open: set[str] = set()
        self._met: set[str] = set()
        """Who has ever answered: models, and accounts."""

    def allow(self, model: str, now: float) -> bool:
        """May a call go there now? Half-open: one probe at a time (this call is it, where True is returned)."""
        if not self._open:
            return True
        if self.is_open(model, now):
            return False
        for key in self._keys(model):
            if key in self._open:
                self._breakers[key].probing_until = now + self._settings.probe_s
        return True

    def is_open(self, model: str, now: float) -> bool:
        """Would `allow` say no? Changes nothing."""
        return bool(self._open) and any(self._shut(key, now) for key in self._keys(model))

    def is_up(self, model: str) -> bool:
        """Is it closed: not down, and not on probation either?"""
        return not self._open or not any(key in self._open for key in self._keys(model))

    def next_probe_at(self, model: str, now: float) -> float:
        """When to ask `allow` again: `now` where it is up; while a probe is out: soon, since its answer may
        come any time."""
        times = [now]
        for key in self._keys(model):
            breaker = self._breakers.get(key)
            if breaker is not None and breaker.open_until is not None:
                times += [breaker.open_until, min(breaker.probing_until, now + self._settings.look_again_s)]
        return max(times)

    def ok(self, model: str) -> None:
        """A call was answered (whatever the answer's worth)."""
        if model not in self._met:
            self._met.update(self._keys(model))
        if not self._breakers:
            return
        for key in self._keys(model):
            breaker = self._breakers.get(key)
            if breaker is not None and (not breaker.firm or breaker.probing_until > 0.0):
                del self._breakers[key]
                self._open.discard(key)

    def record(self, model: str, failure: Failure | None, now: float) -> None:
        """What became of a call: None is a success."""
        if failure is None:
            self.ok(model)
            return
        kind = failure.kind
        match kind:
            case "auth":
                self._trip(self._account_key(model), now, self._settings.mend_cool_s, firm=True)
                self._to_mend(self._account_key(model), "its key is refused", failure)
            case "spend_cap":
                self._trip(self._account_key(model), now, self._settings.mend_cool_s, firm=True)
                self._to_mend(self._account_key(model), "its money is spent", failure)
            case "not_found":
                self._trip(model, now, self._settings.mend_cool_s, firm=True)
                self._to_mend(model, f"it does not know the model {model}", failure)
            case "daily_limit":
                self._trip(model, now, failure.retry_after_s or self._settings.daily_cool_s, firm=True)
            case _ if kind in FAULTS:
                self._fault(model, now, failure)
            case "bad_request" | "too_long" | "refused" | "rate_limited" | "invalid_output":
                self._met.update(self._keys(model))
                self._alive(model)
            case _:
                self.unprobe(model)  # it says nothing of the target: the probe is still to be made

    def set_back(self, by_s: float) -> None:
        """The clock was: no breaker is open for longer by that."""
        for breaker in self._breakers.values():
            breaker.first_at -= by_s
            breaker.probing_until -= by_s
            if breaker.open_until is not None:
                breaker.open_until -= by_s

    def unprobe(self, model: str) -> None:
        """`allow` said yes, but the call was never sent: the next one may be the probe."""
        for key in self._keys(model):
            breaker = self._breakers.get(key)
            if breaker is not None:
                breaker.probing_until = 0.0

    @property
    def mends(self) -> bool:
        """Is there anything that a person has to mend?"""
        return any(self._breakers[key].mend is not None for key in self._open)

    def to_mend(self, model: str) -> str | None:
        """Why only a person can bring it back: a refused key, a spent account, an unknown model. Else None."""
        for key in self._keys(model):
            breaker = self._breakers.get(key)
            if breaker is not None and breaker.mend is not None:
                return breaker.mend
        return None

    def opened(self, now: float) -> list[tuple[str | None, str]]:
        """(account, model) of all that are not closed; an account that is down has the model `*`. Not of those that
        might be asked again, and have not been for long: nobody wants them, so nothing is to be said of them."""
        return self._named(key for key in self._open if self._is_wanted(self._breakers[key], now))

    def _is_wanted(self, breaker: _Breaker, now: float) -> bool:
        return now - max(breaker.open_until or now, breaker.probing_until) < self._settings.unasked_s

    def answering(self) -> list[tuple[str | None, str]]:
        """Of those that are closed, the ones that have answered, so that it is known of them; named alike."""
        return self._named(self._met - self._open)

    def _named(self, keys: Iterable[str]) -> list[tuple[str | None, str]]:
        return sorted(
            ((key[8:], "*") if key.startswith("account:") else (self._accounts.get(key), key) for key in keys),
            key=lambda pair: (pair[0] or "", pair[1]),
        )

    # ---- breakers

    def _fault(self, model: str, now: float, failure: Failure) -> None:
        told_s = failure.retry_after_s or 0.0
        breaker = self._breakers.setdefault(model, _Breaker())
        unmet = failure.kind == "connection" and self._account_key(model) not in self._met
        if breaker.open_until is not None:
            if now >= breaker.open_until:
                self._down(model, now, max(told_s, min(self._settings.max_cool_s, 2 * breaker.cool_s)), failure)
            return
        if breaker.row == 0 or now - breaker.first_at > self._settings.window_s:
            breaker.row, breaker.first_at = 0, now
        breaker.row += 1
        if breaker.row >= (self._settings.never_met if unmet else self._settings.faults):
            self._down(model, now, max(told_s, self._settings.cool_s), failure)
            if unmet:  # an outage of one that has answered before may pass by itself; this one nobody ever reached
                self._to_mend(model, "it was never reached, is base_url right?", failure)

    def _down(self, model: str, now: float, cool_s: float, failure: Failure) -> None:
        """Waiting does not bring back a model that another stands in for, and every look at it costs an answer."""
        other = failure.kind == "other_model"
        self._trip(model, now, max(cool_s, self._settings.mend_cool_s) if other else cool_s)
        if other:
            self._to_mend(model, "it answers as another model", failure)

    def _trip(self, key: str, now: float, cool_s: float, *, firm: bool = False) -> None:
        breaker = self._breakers.setdefault(key, _Breaker())
        breaker.firm = breaker.firm or firm
        breaker.open_until = max(now + cool_s, breaker.open_until or 0.0)
        breaker.cool_s = max(self._settings.cool_s, min(cool_s, self._settings.max_cool_s))
        breaker.probing_until = 0.0
        self._open.add(key)

    def _to_mend(self, key: str, what: str, failure: Failure) -> None:
        status = f"HTTP {failure.status}: " if failure.status is not None else ""
        message = failure.message.removeprefix(f"{failure.status} ")  # a provider's own words may begin with it
        self._breakers[key].mend = f"{what} ({status}{message[:200]})"

    def _alive(self, model: str) -> None:
        """It answered, if only to refuse this request: no row of faults goes on, and a probe that got it is passed."""
        breaker = self._breakers.get(model)
        if breaker is not None and breaker.open_until is None:
            breaker.row = 0
        elif breaker is not None and breaker.probing_until > 0.0:
            self.ok(model)

    def _keys(self, model: str) -> tuple[str, str]:
        return model, self._account_key(model)

    def _account_key(self, model: str) -> str:
        account = self._accounts.get(model)
        return f"account:{account}" if account is not None else model

    def _shut(self, key: str, now: float) -> bool:
        breaker = self._breakers.get(key)
        return (
            breaker is not None
            and breaker.open_until is not None
            and now < max(breaker.open_until, breaker.probing_until)
        )
