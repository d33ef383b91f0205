"""The ledger of one budget: what was spent, and what is out in leases. A lease is durable before the first call that it
covers.

Amounts are integer nano-dollars, times Unix seconds. Functions on `Ledger` are pure: they return the next document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import msgspec

from penstock.engine.errors import Corrupt
from penstock.engine.plan import Epoch

_AFTER_ALL: Epoch = (1 << 62, 0)
LEASE_SHARE = 100
"""A lease is at most 1/100 of what remains (DESIGN), or one call's worst case where that is more."""


class Lease(msgspec.Struct, frozen=True):
    run: str
    lane: int
    epoch: Epoch
    amount_nano: int
    opened_at: float


class Owner(msgspec.Struct, frozen=True):
    """Who opens a lease."""

    run: str
    lane: int
    epoch: Epoch


class GivenUp(msgspec.Struct, frozen=True):
    """What a lane's owner closed as spent of those before it, when it was opened. Its first commit tells the run."""

    run: str
    lane: int
    epoch: Epoch
    nano: int


class Ledger(msgspec.Struct, frozen=True):
    """What was spent of one budget key, and what is out in leases."""

    key: str
    limit_nano: int
    settled_nano: int = 0
    forfeit_nano: int = 0
    leases: dict[str, Lease] = {}
    overrun_nano: int = 0
    """Spent beyond the limit: calls that cost more than their worst case, or a limit that was lowered later."""
    given_up: tuple[GivenUp, ...] = ()
    """Of a lane its last owner's that gave up something; part of what is forfeit."""

    @property
    def leased_nano(self) -> int:
        return sum(lease.amount_nano for lease in self.leases.values())

    def check(self) -> None:
        """The invariant: what is spent, forfeit or out never exceeds the limit, but for overruns that are named."""
        amounts = (self.settled_nano, self.forfeit_nano, self.overrun_nano, *_amounts(self))
        if min(amounts) < 0 or self.settled_nano + self.forfeit_nano + self.leased_nano > self.limit_nano + max(
            0, self.overrun_nano
        ):
            raise Corrupt(f"the ledger of budget {self.key} does not add up: {self}")


class LeaseRefused(msgspec.Struct, frozen=True):
    """The budget cannot hold one call more. `leased_nano` is still out: some of it may come back."""

    key: str
    remaining_nano: int
    leased_nano: int


def remaining(ledger: Ledger) -> int:
    """Neither spent nor out in a lease."""
    return max(0, ledger.limit_nano - ledger.settled_nano - ledger.forfeit_nano - ledger.leased_nano)


def open_lease(
    ledger: Ledger, lease_id: str, owner: Owner, want_nano: int, floor_nano: int, now: float
) -> tuple[Ledger, Lease] | LeaseRefused:
    """Lease `want_nano`, but at most 1 % of what remains; never less than `floor_nano` (one call's worst case), never
    more than remains. The same id again returns the lease that is there (a lost answer is no second lease)."""
    have = ledger.leases.get(lease_id)
    if have is not None:
        return ledger, have
    left = remaining(ledger)
    floor = max(1, floor_nano)
    if floor > left:
        return LeaseRefused(ledger.key, left, ledger.leased_nano)
    amount = max(floor, min(want_nano, left // LEASE_SHARE))
    lease = Lease(owner.run, owner.lane, owner.epoch, amount, now)
    return msgspec.structs.replace(ledger, leases={**ledger.leases, lease_id: lease}), lease


def open_leases(
    ledger: Ledger, lease_ids: Sequence[str], owner: Owner, calls: Sequence[int], now: float
) -> tuple[Ledger, dict[str, Lease]] | LeaseRefused:
    """Leases for several calls in one write. `calls`: what each may cost at most, first come first served. A lease
    holds the next of them, and as many more as 1 % of what remains can: where one call's worst case is more than that,
    a lease holds one call only, and a lane with many in flight would write once for each."""
    opened: dict[str, Lease] = {}
    held = 0
    for lease_id in lease_ids:
        waiting = calls[held:]
        if not waiting:
            break
        want = max(sum(waiting), remaining(ledger) // LEASE_SHARE) if not opened else sum(waiting)
        answer = open_lease(ledger, lease_id, owner, want, waiting[0], now)
        if isinstance(answer, LeaseRefused):
            return (ledger, opened) if opened else answer
        ledger, opened[lease_id] = answer
        held += covered(opened[lease_id].amount_nano, waiting)
    return ledger, opened


def covered(amount_nano: int, calls: Sequence[int]) -> int:
    """How many of the first calls fit into one lease together."""
    return next((n for n, total in enumerate(accumulate(calls)) if total > amount_nano), len(calls))


def settle(ledger: Ledger, lease_id: str, spent_nano: int) -> Ledger:
    """Close a lease: what it spent is spent, the rest is free. A lease that isn't there was closed before: no-op."""
    lease = ledger.leases.get(lease_id)
    if lease is None:
        return ledger
    spent = max(0, spent_nano)
    return msgspec.structs.replace(
        ledger,
        leases={key: other for key, other in ledger.leases.items() if key != lease_id},
        settled_nano=ledger.settled_nano + spent,
        overrun_nano=ledger.overrun_nano + max(0, spent - lease.amount_nano),
    )


def forfeit(ledger: Ledger, run: str, lane: int | None, before: Epoch, proven: Mapping[str, int]) -> tuple[Ledger, int]:
    """Close the leases that a dead owner of this lane (None: of any) left behind (epochs below `before`). Call it after
    the fence.

    `proven`: lease id → nano-dollars that its committed progress says were spent. The rest of the lease may have been
    spent on calls in flight: it counts as spent and is returned as forfeit.
    """
    dead = {key: lease for key, lease in ledger.leases.items() if _is_dead(lease, run, lane, before)}
    lost = 0
    for key, lease in dead.items():
        spent = max(0, proven.get(key, 0))
        ledger = settle(ledger, key, spent)
        lost += max(0, lease.amount_nano - spent)
    return (msgspec.structs.replace(ledger, forfeit_nano=ledger.forfeit_nano + lost) if lost else ledger), lost


def take_over(ledger: Ledger, owner: Owner, proven: Mapping[str, int], told: Epoch) -> tuple[Ledger, int]:
    """`forfeit` by a lane's new owner. Returns also what earlier ones gave up and told nobody of, since none of their
    commits was made: `told` is the epoch of the lane's last commit. The same again returns the same."""
    ledger, lost = forfeit(ledger, owner.run, owner.lane, owner.epoch, proven)
    before = [one for one in ledger.given_up if (one.run, one.lane) == (owner.run, owner.lane)]
    lost += sum(one.nano for one in before if tuple(one.epoch) > tuple(told))
    rest = tuple(one for one in ledger.given_up if one not in before)
    mine = (GivenUp(owner.run, owner.lane, owner.epoch, lost),) if lost else ()
    return msgspec.structs.replace(ledger, given_up=(*rest, *mine)), lost


def begin_anew(ledger: Ledger, run: str) -> tuple[Ledger, int]:
    """`forfeit` of all that a run left: its progress is thrown away, and its epochs begin anew."""
    ledger, lost = forfeit(ledger, run, None, _AFTER_ALL, {})
    return msgspec.structs.replace(ledger, given_up=tuple(g for g in ledger.given_up if g.run != run)), lost


def at_least(ledger: Ledger, limit_nano: int, called_nano: int, forfeit_nano: int) -> Ledger:
    """What a run's lanes have committed is spent, also where no lease says so: the budget is newer than the run, or the
    ledger was elsewhere for a while. Where the ledger knows of anything, calls alone are counted: an answer that a
    dead owner's lane got after all is among them, and its lease is forfeit already."""
    claimed = ledger.settled_nano + ledger.forfeit_nano + ledger.leased_nano
    if not claimed:
        ledger = msgspec.structs.replace(ledger, settled_nano=called_nano, forfeit_nano=forfeit_nano)
    elif called_nano > claimed:
        ledger = msgspec.structs.replace(ledger, settled_nano=ledger.settled_nano + called_nano - claimed)
    return relimit(ledger, limit_nano)


def bury(ledger: Ledger, owner: Owner) -> Ledger:
    """Close as spent what owners before this one leased after it had closed what they left: they were asking when they
    were replaced, and settle nothing any more. In a budget that outlives the run it would be out for ever."""
    ledger, _ = forfeit(ledger, owner.run, owner.lane, owner.epoch, {})
    return forfeit(ledger, owner.run, None, (owner.epoch[0], 0), {})[0]


def relimit(ledger: Ledger, limit_nano: int) -> Ledger:
    """The budget was changed. Lowered below what is spent: nothing more is leased, and the excess is named."""
    claimed = ledger.settled_nano + ledger.forfeit_nano + ledger.leased_nano
    over = max(ledger.overrun_nano, claimed - limit_nano)
    return msgspec.structs.replace(ledger, limit_nano=limit_nano, overrun_nano=over)


def _is_dead(lease: Lease, run: str, lane: int | None, before: Epoch) -> bool:
    return lease.run == run and lane in (None, lease.lane) and tuple(lease.epoch) < tuple(before)


def _amounts(ledger: Ledger) -> list[int]:
    return [lease.amount_nano for lease in ledger.leases.values()]
