"""What follows a failed call: again at a time, the next candidate, or a dead letter. Failure × history → decision.

    rate_limited                     same target when the provider says; the next one where that is long
    spend_cap auth not_found         next target at once, else held until a person mends it: not the item's fault
    daily_limit                      next target at once, else wait for it, as what was not sent yet does
    overloaded server_error timeout
      connection                     same target with jitter, twice; then the next; at once where it says a long wait
    invalid_response                 same target once; then the next
    other_model                      the next target; then a dead letter, or held like not_found while all answer so
    bad_request refused              next target once; then a dead letter
    too_long                         a target with a larger context, else a dead letter
    invalid_output                   ask again once, then the next target, then a dead letter
    engine_died worker_lost          again at once, not the item's fault; a dead letter at the third death
    not_sent                         again at once; where its account pauses: as after a rate limit, uncounted
    cancelled                        a dead letter

Where the wait would pass the item's deadline, the next target is asked at once. A rate limit pauses its account:
another model of the same account would wait as long, so the item moves to another account's only.

`not_sent` counts for nothing. A target that is down for good (its pool, its account's money) holds an item for ever,
the run stops when nothing else moves, and a resumed run sends it: thousands of dead letters for one wrong key would
help nobody. While every target is down (breaker open) an item waits for the next probe: an outage is not the item's
fault either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, assert_never

import msgspec

from penstock.engine.items import Failure, Role
from penstock.engine.results import DeadLetterReason

MENDED = frozenset({"spend_cap", "auth", "not_found"})
"""Failures that a person has to mend: an item with a deadline waits until then, it may be mended in time."""
PAUSES = frozenset({"rate_limited", "not_sent"})
"""Failures of which the whole account waits, whatever its model."""
OBEYED = 10
"""Times that a short wait is taken at its word. A guess: others share the limit, and one of ten comes through."""
MEND_S = 60.0
"""The least wait for what a person has to mend."""


class RetrySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    max_attempts: int = 6
    """Counted attempts of one item over all targets (`Policy.max_attempts`)."""
    same_target: int = 2
    """Retries on one target after its own faults, before the next is tried."""
    base_s: float = 0.5
    """First back-off; doubles. As the providers' own clients."""
    cap_s: float = 30.0
    """Longest back-off."""
    limit_base_s: float = 1.0
    """First wait after a rate limit without Retry-After; doubles up to `limit_cap_s`."""
    limit_cap_s: float = 60.0
    """A minute: the window of nearly every rate limit."""
    patience_s: float = 20.0
    """A wait that a target asks for and that is longer sends the item to its next target, where it has one."""
    max_waits: int = 200
    """Waits for rate limits and outages of one item. 200 waits of a minute are three hours."""
    outage_s: float = 3600.0
    """The longest wait for a target that is down, where there is no other."""
    max_deaths: int = 3
    """Engines or workers that died with this item in flight, before it is taken for poison."""


class History(msgspec.Struct, frozen=True, gc=False):
    """What happened to one item before. The first call starts with `History()`."""

    candidate: int = 0
    """Where the failed call went."""
    counted: int = 0
    """Attempts that count against `max_attempts`."""
    here: int = 0
    """Faults of the current target with this item."""
    waits: int = 0
    """Waits for rate limits and outages."""
    hops: int = 0
    """Moves away from targets that asked for a long wait, since it last waited for one."""
    invalid: int = 0
    """Invalid outputs of the current target."""
    deaths: int = 0
    moved: bool = False
    """It was moved once already because a target refused the request itself."""
    left: tuple[int, ...] = ()
    """Targets that are of no use to this item any more."""


def moved_to(history: History, candidate: int) -> History:
    """The item was sent elsewhere without a failure of its own (its target was down): what follows counts there."""
    return msgspec.structs.replace(history, candidate=candidate, here=0, invalid=0)


class Target(msgspec.Struct, frozen=True, gc=False):
    """One candidate of the item's route as it stands now."""

    context: int | None = None
    up: bool = True
    """Its breaker is closed."""
    probe_at: float = 0.0
    """When it may be tried again, where it isn't up; infinite: never."""
    may_retry: bool = True
    """Its retry budget has room."""
    account: str | None = None
    """Whose limits it shares with its other models; None: an engine of our own."""


class Again(msgspec.Struct, frozen=True, gc=False):
    """Send it again, not before `at`, to `candidate`. `history` is what to hand in at the next failure."""

    at: float
    candidate: int
    role: Role
    history: History


class Stop(msgspec.Struct, frozen=True, gc=False):
    reason: DeadLetterReason
    message: str


def after(
    failure: Failure,
    history: History,
    targets: Sequence[Target],
    settings: RetrySettings,
    chance: float,
    now: float,
    deadline: float | None = None,
) -> Again | Stop:
    """Decide. `chance` is uniform in 0…1 (jitter); `deadline` is the item's, in Unix seconds."""
    case = _Case(failure, history, targets, settings, chance, now)
    decision = case.decide()
    if isinstance(decision, Stop) or deadline is None or decision.at < deadline:
        return decision
    elsewhere = case.elsewhere(decision.history) if now < deadline else None
    if elsewhere is not None:
        return elsewhere
    if failure.kind in MENDED:
        return msgspec.structs.replace(decision, at=max(now, deadline))
    return Stop("deadline", f"its deadline passes before it can be tried again; last failure: {_told(failure)}")


class _Case:
    """One decision."""

    def __init__(
        self,
        failure: Failure,
        history: History,
        targets: Sequence[Target],
        settings: RetrySettings,
        chance: float,
        now: float,
    ) -> None:
        self.failure = failure
        self.history = history
        self.targets = targets
        self.settings = settings
        self.chance = chance
        self.now = now

    def decide(self) -> Again | Stop:
        kind = self.failure.kind
        match kind:
            case "cancelled":
                return Stop("cancelled", "the run was cancelled")
            case "not_sent":
                return self._unsent()
            case "engine_died" | "worker_lost":
                return self._death()
            case "rate_limited":
                return self._limited()
            case "daily_limit":
                return self._next(self._counted(), give_up=True) or self._until_probe(
                    "no_candidate", most_s=float("inf")
                )
            case "spend_cap" | "auth" | "not_found":
                return self._next(self.history, give_up=True) or self._until_mended(self.history)
            case "overloaded" | "server_error" | "timeout" | "connection":
                return self._fault(self.settings.same_target)
            case "invalid_response":
                return self._fault(1)
            case "other_model":
                return self._other_model()
            case "bad_request" | "refused":
                return self._refused(kind)
            case "too_long":
                return self._too_long()
            case "invalid_output":
                return self._invalid()
            case _:
                assert_never(kind)

    def elsewhere(self, history: History) -> Again | None:
        """The item can't wait as decided: to another target at once. The present one would be too late, and is left."""
        return self._next(history, give_up=True, apart=self.failure.kind in PAUSES)

    # ---- cases

    def _death(self) -> Again | Stop:
        deaths = self.history.deaths + 1
        if deaths >= self.settings.max_deaths:
            return Stop("attempts_exhausted", f"{deaths} workers died with this item in flight: {_told(self.failure)}")
        return self._same(0.0, msgspec.structs.replace(self.history, deaths=deaths))

    def _unsent(self) -> Again:
        moved = self._hop(self.failure.retry_after_s or 0.0, self.history)
        return moved or self._same(0.0, msgspec.structs.replace(self.history, hops=0))

    def _limited(self) -> Again | Stop:
        waits = self.history.waits + 1
        wait = self._limit_wait()
        if waits > self.settings.max_waits:
            return self._nowhere("attempts_exhausted")
        history = msgspec.structs.replace(self.history, waits=waits)
        return self._hop(wait, history) or self._same(wait, msgspec.structs.replace(history, hops=0))

    def _limit_wait(self) -> float:
        """What the provider says, spread a little so that waiters don't return as one; else full jitter. A word
        that has not done ten times is no more than the least: it doubles, or would use up all waits within seconds."""
        told, waits, cap = self.failure.retry_after_s, self.history.waits, self.settings.limit_cap_s
        if told is None or told < 0:
            return self.chance * min(cap, self.settings.limit_base_s * 2 ** min(waits, 20))
        grown = self.chance * min(cap, told * 2 ** min(waits - OBEYED, 40)) if waits > OBEYED else 0.0
        return max(told + self.chance * min(1.0, 0.1 * told), grown)

    def _fault(self, retries: int) -> Again | Stop:
        """The target's own fault. It counts against the item only where the target is otherwise well."""
        history = self._counted(here=self.history.here + 1)
        target = self._target
        if not target.up:
            return self._outage()
        moved = self._hop(self.failure.retry_after_s or 0.0, history)
        if moved is not None:
            return moved
        history = msgspec.structs.replace(history, hops=0)
        if history.here <= retries and history.counted < self.settings.max_attempts and target.may_retry:
            return self._same(self._backoff(history.here), history)
        moved = self._next(history, give_up=True)
        if moved is not None:
            return moved
        if history.counted >= self.settings.max_attempts:
            return self._nowhere("attempts_exhausted")
        slow = self.settings.cap_s * (1 + self.chance) / 2 if not target.may_retry else self._backoff(history.here)
        return self._same(slow, history)

    def _other_model(self) -> Again | Stop:
        """It would answer the same again, for money: the item is not sent there twice while the target is up. One that
        answers so in a row is down until a person mends it, which is not the item's fault; looks at it are counted."""
        history = self._counted()
        moved = self._next(history, give_up=True)
        if moved is not None:
            return moved
        ends = self._target.up or history.counted >= self.settings.max_attempts
        return self._nowhere("attempts_exhausted") if ends else self._until_mended(history)

    def _outage(self) -> Again | Stop:
        return self._next(self.history, give_up=False) or self._until_probe(
            "attempts_exhausted", most_s=self.settings.outage_s
        )

    def _until_mended(self, history: History) -> Again:
        """Nobody else is there, and somebody has to act: held until it is worth another look."""
        return Again(max(self._target.probe_at, self.now + MEND_S), history.candidate, "retry", history)

    def _until_probe(self, reason: DeadLetterReason, *, most_s: float) -> Again | Stop:
        """Nobody else is there: wait for this target, if it is worth the wait. One that is down for good holds it."""
        if self._target.probe_at == float("inf"):
            return self._until_mended(self.history)
        waits = self.history.waits + 1
        wait = max(0.0, self._target.probe_at - self.now) + self.chance
        if waits > self.settings.max_waits or wait > most_s:
            return self._nowhere(reason)
        return self._same(wait, msgspec.structs.replace(self.history, waits=waits))

    def _refused(self, kind: Literal["bad_request", "refused"]) -> Again | Stop:
        if not self.history.moved:
            moved = self._next(self._counted(moved=True), give_up=True)
            if moved is not None:
                return moved
        return self._nowhere(kind)

    def _too_long(self) -> Again | Stop:
        here = self._target.context
        history = self._counted()
        for i, target in self._others(history):
            if target.context is None or here is None or target.context > here:
                return self._moved(i, history, give_up=True)
        return self._nowhere("too_long")

    def _invalid(self) -> Again | Stop:
        history = self._counted(invalid=self.history.invalid + 1)
        if history.counted >= self.settings.max_attempts:
            return self._nowhere("invalid_output")
        if history.invalid == 1:
            return self._same(0.0, history)
        return self._next(history, give_up=True) or self._nowhere("invalid_output")

    # ---- moves

    @property
    def _target(self) -> Target:
        return self.targets[self.history.candidate]

    def _counted(self, **changes: int) -> History:
        return msgspec.structs.replace(self.history, counted=self.history.counted + 1, **changes)

    def _same(self, wait_s: float, history: History) -> Again:
        told = self.failure.retry_after_s
        wait = max(wait_s, told) if told is not None and self.failure.kind != "rate_limited" else wait_s
        return Again(self.now + wait, history.candidate, "retry", history)

    def _hop(self, wait: float, history: History) -> Again | None:
        """Away from a target that asks for a long wait. Each of them is asked once before one is waited for."""
        apart = self.failure.kind in PAUSES
        asked = {target.account or i for i, target in enumerate(self.targets)} if apart else self.targets
        if wait <= self.settings.patience_s or history.hops >= len(asked) - 1:
            return None
        return self._next(msgspec.structs.replace(history, hops=history.hops + 1), give_up=False, apart=apart)

    def _next(self, history: History, *, give_up: bool, apart: bool = False) -> Again | None:
        """The next candidate that is up, at once; `apart`: of another account. None: there is none, or the attempts are
        used up."""
        if history.counted >= self.settings.max_attempts:
            return None
        account = self._target.account if apart else None
        for i, target in self._others(history):
            if target.up and (account is None or target.account != account):
                return self._moved(i, history, give_up=give_up)
        return None

    def _others(self, history: History) -> list[tuple[int, Target]]:
        """Those after the current one first, then those before it; never one that was given up."""
        n, here = len(self.targets), history.candidate
        order = [(here + k) % n for k in range(1, n)]
        return [(i, self.targets[i]) for i in order if i not in history.left]

    def _moved(self, candidate: int, history: History, *, give_up: bool) -> Again:
        left = (*history.left, history.candidate) if give_up else history.left
        fresh = msgspec.structs.replace(history, candidate=candidate, here=0, invalid=0, left=left)
        return Again(self.now, candidate, "fallback", fresh)

    def _backoff(self, tries: int) -> float:
        """Full jitter: a storm of retries spreads over the whole window."""
        return self.chance * min(self.settings.cap_s, self.settings.base_s * 2 ** min(tries, 20))

    def _nowhere(self, reason: DeadLetterReason) -> Stop:
        tries = self.history.counted + 1
        return Stop(reason, f"after {tries} attempt{'s' if tries > 1 else ''}: {_told(self.failure)}")


def _told(failure: Failure) -> str:
    status = f" (HTTP {failure.status})" if failure.status is not None else ""
    return f"{failure.kind}{status}: {failure.message[:500]}"


# ---- the retry budget


class RetryBudget:
    """One target's allowance of retries: a share of its calls and a floor, so that a storm dies out.

    With 20 % a failing target sees at most 1.2 × its load. The floor keeps a quiet target's rare failures retryable.
    """

    def __init__(self, share: float = 0.2, floor_per_s: float = 1.0, most: float = 100.0) -> None:
        self._share = share
        self._floor = floor_per_s
        self._most = most
        self._level = most
        self._at = 0.0

    def called(self, calls: int = 1) -> None:
        self._level = min(self._most, self._level + self._share * calls)

    def has_room(self, now: float) -> bool:
        self._refill(now)
        return self._level >= 1.0

    def retried(self, now: float) -> None:
        self._refill(now)
        self._level = max(0.0, self._level - 1.0)

    def _refill(self, now: float) -> None:
        self._level = min(self._most, self._level + self._floor * max(0.0, now - self._at))
        self._at = now  # a clock that was set back counts from where it is
