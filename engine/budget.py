"""Budgets: which of them a call must fit into, and a lane's purse of leases (`engine.leases`) that it is paid from.

    ledger (one a budget key, compare-and-swap)          purse (in a lane)
    open_lease ──────────────────────────────▶ add ─▶ reserve ─▶ (the call) ─▶ settle
    settle ◀──────────────────────────────── closable ◀─ used up, nothing in flight
    forfeit  (a dead lane's leases: what can't be proven unspent counts as spent)

Amounts are integer nano-dollars, times Unix seconds.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal
from urllib.parse import quote

import msgspec

from penstock.engine.errors import Corrupt
from penstock.engine.items import StepKind

LOW_SHARE = 0.25
"""A lease with less than this left is worth a successor. A guess: it lasts seconds, a ledger write milliseconds."""


Period = Literal["day", "month"]
LATE_DAYS = 2
"""So long the leases of a day or month that is over are still closed for owners that died. A guess."""
Purpose = StepKind | Literal["explore"]
"""What may have a budget of its own: steps, and items that try a model which is not known well enough."""
Keys = tuple[tuple[str, int], ...]
"""(key, limit in nano-dollars) of budgets."""
EXPLORING = "/for/explore"
"""How the key of that budget ends."""


class Budget(msgspec.Struct, frozen=True, omit_defaults=True):
    """A hard limit. `per` None: the whole run. `tenant` "*": one such budget for each tenant."""

    limit_nano: int
    per: Period | None = None
    tenant: str | None = None
    role: Purpose | None = None
    """Only for calls of this kind; they must fit into the general ones as well."""


# ---- which budgets an item falls under


def budget_keys(
    budgets: tuple[Budget, ...], run_id: str, tenant: str | None, now: float, role: Purpose | None = None
) -> list[tuple[str, int]]:
    """(key, limit) of every budget that a call of this tenant and role, now, must fit into. Days and months are UTC.

    Of several budgets with one key the lowest holds; a tenant's own budget stands in for the `"*"` one. An item
    without a tenant falls under `"*"` as the tenant without a name: it can't evade it.
    """
    keys: dict[str, int] = {}
    own = {(b.per, b.tenant, b.role) for b in budgets}
    for budget in budgets:
        if budget.role is not None and budget.role != role:
            continue
        named = (budget.per, tenant or "", budget.role) in own
        if budget.tenant is None:
            who = ""
        elif budget.tenant == (tenant or "") or (budget.tenant == "*" and not named):
            who = f"/tenant/{quote(tenant or '', safe='')}"
        else:
            continue
        key = _period(budget.per, run_id, now) + who + (f"/for/{budget.role}" if budget.role is not None else "")
        keys[key] = min(budget.limit_nano, keys.get(key, budget.limit_nano))
    return list(keys.items())


def run_key(run_id: str) -> str:
    """Of a budget of the run itself."""
    return f"run/{quote(run_id, safe='')}"


def scope(key: str) -> tuple[str, ...]:
    """Which kind of budget a key is of. A call falls under one key of a scope at most (one tenant, one day), so what
    lies under them adds up; what lies under keys of two scopes may be the same money."""
    parts = key.split("/")
    pairs = zip(parts[::2], parts[1::2], strict=False)
    return tuple(f"for/{value}" if kind == "for" else kind for kind, value in pairs)


def _period(per: Period | None, run_id: str, now: float) -> str:
    day = datetime.fromtimestamp(now, UTC)
    match per:
        case None:
            return run_key(run_id)
        case "day":
            return f"day/{day:%Y-%m-%d}"
        case "month":
            return f"month/{day:%Y-%m}"


def key_heads(run_id: str, now: float) -> set[str]:
    """How the keys begin under which a run may have leases that still matter: its own, those of rollouts, of this day
    and month and of those that just ended, or begin by another machine's clock. What is open in a budget whose time is
    long over keeps nobody from anything."""
    near = [now + 86_400 * days for days in range(-LATE_DAYS, 2)]
    periods: tuple[Period | None, ...] = (None, "day", "month")
    return {"rollout", *(_period(per, run_id, at) for per in periods for at in near)}


# ---- the lane's purse


class NeedLease(msgspec.Struct, frozen=True):
    """No lease of this key holds the call: lease at least `nano` first. `limit_nano` is the budget's limit."""

    key: str
    nano: int
    limit_nano: int = 0


class _Held:
    """One lease in the purse."""

    __slots__ = ("amount", "drawn", "key", "lease_id", "reserved", "retired", "spent")

    def __init__(self, key: str, lease_id: str, amount: int) -> None:
        self.key = key
        self.lease_id = lease_id
        self.amount = amount
        self.spent = 0
        self.reserved = 0
        self.drawn = False
        """Some call was paid from it."""
        self.retired = False

    @property
    def free(self) -> int:
        return self.amount - self.spent - self.reserved


class Reservation:
    """Money set aside for one call, in one lease of each key. Settled or released once; a second time is a no-op."""

    __slots__ = ("held", "nano", "open")

    def __init__(self, held: tuple[_Held, ...], nano: int) -> None:
        self.held = held
        self.nano = nano
        self.open = True


class Closable(msgspec.Struct, frozen=True):
    """A lease that is used up: settle it in the ledger, then tell the purse by `closed`."""

    key: str
    lease_id: str
    spent_nano: int


class Purse:
    """A lane's open leases: a few a key, tens where a call is more than 1 % of what remains."""

    def __init__(self) -> None:
        self._leases: dict[str, list[_Held]] = {}
        self._by_id: dict[str, _Held] = {}
        self._wanted: dict[str, NeedLease] = {}
        """Key → the last call that no lease could hold."""
        self._limits: dict[str, int] = {}
        """Limits of the keys that were drawn on lately."""
        self.overrun_nano = 0
        """By how much calls cost more than their worst case, in all."""

    def add(self, key: str, lease_id: str, amount_nano: int) -> None:
        """A lease was opened in the ledger. The same id again is a no-op. Older ones that are nearly used up, or that
        could not hold the call which this one was opened for, are closed when they have nothing in flight. (One that
        nobody drew on yet was opened for calls that are about to.)"""
        if lease_id in self._by_id:
            return
        wanted = self._wanted.pop(key, None)
        for old in self._leases.get(key, ()):
            least = max(wanted.nano if wanted else 0, int(LOW_SHARE * old.amount))
            old.retired = old.retired or (old.drawn and old.free < least)
        held = self._by_id[lease_id] = _Held(key, lease_id, amount_nano)
        self._leases.setdefault(key, []).append(held)

    def reserve(self, keys: list[tuple[str, int]] | Keys, nano: int) -> Reservation | NeedLease:
        """Set `nano` (a call's worst case) aside under every key, or say which key lacks a lease. All or nothing."""
        found: list[_Held] = []
        for key, limit in keys:
            held = self._holding(key, nano)
            self._limits[key] = limit
            if held is None:
                need = self._wanted[key] = NeedLease(key, nano, limit)
                return need
            found.append(held)
        for held in found:
            held.reserved += nano
            held.drawn = True
        return Reservation(tuple(found), nano)

    def holds(self, key: str, nano: int) -> bool:
        """Whether some lease of this key has so much left."""
        return self._holding(key, nano) is not None

    def _holding(self, key: str, nano: int) -> _Held | None:
        """The one with the least left of those that hold it: a cheap call takes no lease that a dear one waits for."""
        fits = (held for held in self._leases.get(key, ()) if not held.retired and held.free >= nano)
        return min(fits, key=lambda held: held.free, default=None)

    def settle(self, reservation: Reservation, actual_nano: int) -> None:
        """The call is over and cost so much. A cost above the worst case is counted in full."""
        if not reservation.open:
            return
        reservation.open = False
        for held in reservation.held:
            held.reserved -= reservation.nano
            held.spent += actual_nano
        if reservation.held:
            self.overrun_nano += max(0, actual_nano - reservation.nano)

    def reserved(self, key: str) -> int:
        """Nano-dollars set aside for calls in flight under this key."""
        return sum(held.reserved for held in self._leases.get(key, ()))

    def release(self, reservation: Reservation) -> None:
        """The call was never sent."""
        self.settle(reservation, 0)

    def retire_all(self) -> None:
        """The lane ends, a day is over, or the last cents are wanted: close whatever has nothing in flight."""
        self._limits.clear()
        for held in self._by_id.values():
            held.retired = True

    def retire(self, key: str) -> None:
        """Nobody draws on this key any more, or it is refused: give back what is free once nothing is in flight."""
        self._limits.pop(key, None)
        for held in self._leases.get(key, ()):
            held.retired = True

    def unwanted(self, key: str) -> None:
        """Nobody waits for a lease of it any more."""
        self._wanted.pop(key, None)
        if key not in self._leases:
            self._limits.pop(key, None)

    def retire_small(self, key: str, least_nano: int, *, untouched: bool) -> None:
        """Leases that can't hold a call of `least_nano`; `untouched`: those too that nobody drew on yet."""
        for held in self._leases.get(key, ()):
            held.retired = held.retired or (held.free < least_nano and (untouched or held.drawn))

    def closable(self) -> list[Closable]:
        """Leases to settle in the ledger now. They stay in `spent` until `closed`."""
        return [
            Closable(held.key, held.lease_id, held.spent)
            for held in self._by_id.values()
            if held.retired and held.reserved == 0
        ]

    def closed(self, lease_id: str) -> None:
        """The ledger holds it as settled."""
        held = self._by_id.pop(lease_id, None)
        if held is not None:
            rest = [other for other in self._leases[held.key] if other is not held]
            if rest:
                self._leases[held.key] = rest
            else:
                del self._leases[held.key]

    def spent(self) -> dict[str, int]:
        """Lease id → spent so far, for the lane's progress: what a successor can prove."""
        return {lease_id: held.spent for lease_id, held in self._by_id.items()}

    def low(self, share: float = LOW_SHARE) -> list[NeedLease]:
        """Keys in use of which less than `share` of the newest lease is free: worth a lease before anybody waits."""
        needs: list[NeedLease] = []
        for key, limit in self._limits.items():
            leases = [held for held in self._leases.get(key, ()) if not held.retired]
            if leases and sum(held.free for held in leases) < share * leases[-1].amount:
                needs.append(NeedLease(key, leases[-1].amount, limit))
        return needs

    def check(self) -> None:
        """No lease promises more than it has, unless a call overran."""
        for held in self._by_id.values():
            if held.reserved < 0 or held.spent < 0 or held.free < -self.overrun_nano:
                raise Corrupt(f"lease {held.lease_id} of {held.key} does not add up")


class Budgets:
    """All of a lane's budget decisions: which keys an item falls under (kept for a UTC day) and the purse."""

    def __init__(self, budgets: tuple[Budget, ...], run_id: str) -> None:
        self._budgets = budgets
        self._run = run_id
        self._keys: dict[str | tuple[str | None, Purpose] | None, Keys] = {}
        self._day = -1
        self.purse = Purse()

    def keys(self, tenant: str | None, now: float, role: Purpose | None = None) -> Keys:
        if not self._budgets:
            return ()
        day = int(now // 86_400)
        if day != self._day or len(self._keys) >= MAX_TENANTS_KEPT:
            if day != self._day:
                self.purse.retire_all()
            self._day = day
            self._keys.clear()
        who = tenant if role is None else (tenant, role)
        keys = self._keys.get(who)
        if keys is None:
            keys = self._keys[who] = tuple(budget_keys(self._budgets, self._run, tenant, now, role))
        return keys

    def reserve(
        self, tenant: str | None, nano: int, now: float, role: Purpose | None = None, fund: Keys = ()
    ) -> Reservation | NeedLease:
        """Money for one call of this tenant. `fund`: what it must fit into beside the job's budgets. Without either:
        an empty reservation."""
        keys = self.keys(tenant, now, role)
        return self.purse.reserve((*keys, *fund) if fund else keys, nano)


MAX_TENANTS_KEPT = 10_000
"""Tenants whose keys a lane remembers."""
