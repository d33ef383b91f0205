"""The budget ledger on the state: `engine.leases`' pure functions, made durable by compare-and-swap.

One document a budget key. Whoever loses a race reads again and decides again, so no two leases share a cent, whatever
the number of processes. All calls block (a few milliseconds): call them in a thread.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from penstock.connectors.documents import until_won
from penstock.connectors.state import ABSENT, State
from penstock.engine import leases
from penstock.engine.budget import key_heads, run_key, scope
from penstock.engine.errors import Corrupt
from penstock.engine.flow.till import Wish
from penstock.engine.leases import LeaseRefused, Ledger, Owner
from penstock.engine.plan import Epoch

PREFIX = "ledger/"
TRIES = 200
"""Of one swap. 64 lanes that all want one key at once lose at most 63 races each, if they are served in turn."""
PAUSE_S = 0.001
"""Grows with each lost race; a swap takes about as long."""
STALE_LEASE_S = 900.0
"""A lease lives for seconds. One of another run that is this old belongs to the dead: nobody will give it back soon.
A guess; it decides only whether a lane waits or stops."""
READERS = 16
"""Documents read at once: at S3's 40 ms for each, a few hundred a second. A guess."""
_LONGEST_NAME = 150
_CUT = 80

Swap = Callable[[Ledger], Ledger]


class LedgerClient:
    """One run's hand on the ledger. Every amount is in nano-dollars.

    Lease ids need to be unique within the run only: in the document they carry the run's name, so two jobs under one
    day's budget never take one lease for two.
    """

    def __init__(self, state: State, run_id: str) -> None:
        self._state = state
        self._run = run_id

    def leases(
        self, wish: Wish, lease_ids: Sequence[str], lane: int, epoch: Epoch, now: float
    ) -> dict[str, int] | str | None:
        """Leases for one call or more in one write (`engine.leases.open_leases`). Lease id → the amount, durable before
        this returns; or, in words, why the budget can't hold the next call; or None: not now, but leases are out that
        may come back. The same id again returns the same lease."""
        refused: list[LeaseRefused] = []
        owner, mine = Owner(self._run, lane, epoch), {self._own(lease_id): lease_id for lease_id in lease_ids}

        def swap(ledger: Ledger) -> Ledger:
            refused.clear()
            if ledger.limit_nano != wish.limit_nano:
                ledger = leases.relimit(ledger, wish.limit_nano)
            answer = leases.open_leases(ledger, tuple(mine), owner, wish.calls, now)
            if isinstance(answer, LeaseRefused):
                refused.append(answer)
                return leases.bury(ledger, owner)
            return answer[0]

        ledger = self._swap(wish.key, swap, wish.limit_nano)
        if not refused:
            return {lease_id: ledger.leases[own].amount_nano for own, lease_id in mine.items() if own in ledger.leases}
        may_reach = leases.remaining(ledger) + ledger.leased_nano >= wish.floor_nano
        if may_reach and self._may_come_back(ledger, now):
            return None
        return _words(refused[-1], wish)

    def _may_come_back(self, ledger: Ledger, now: float) -> bool:
        return any(ls.run == self._run or now - ls.opened_at < STALE_LEASE_S for ls in ledger.leases.values())

    def settle(self, key: str, lease_id: str, spent_nano: int) -> None:
        """Close a lease with what it spent, and those that owners before its own took too late. Again: no-op."""
        own = self._own(lease_id)

        def swap(ledger: Ledger) -> Ledger:
            lease = ledger.leases.get(own)
            if lease is None:
                return ledger
            owner = Owner(lease.run, lease.lane, lease.epoch)
            return leases.bury(leases.settle(ledger, own, spent_nano), owner)

        self._swap(key, swap)

    def at_least(self, key: str, limit_nano: int, called_nano: int, forfeit_nano: int) -> None:
        """A run goes on whose lanes committed so much under this key: no less counts as spent. Call it after they were
        taken, before they lease."""
        self._swap(key, lambda ledger: leases.at_least(ledger, limit_nano, called_nano, forfeit_nano), limit_nano)

    def forfeit(self, lane: int, before: Epoch, proven: Mapping[str, int], now: float, told: Epoch = (0, 0)) -> int:
        """Close what dead owners of a lane left open, under every key that can still matter (`key_heads`). Returns what
        of the run's money had to be given up as spent, and what was by owners none of whose commits tells of it (`told`
        is the epoch of the lane's last): each dollar lies under several keys, so that of the run's own
        budget counts, or without one the largest sum over keys that share no dollar (`scope`). Call it after
        the lane was taken."""
        mine = {self._own(lease_id): spent for lease_id, spent in proven.items()}
        return self._forfeit(lane, lambda one: leases.take_over(one, Owner(self._run, lane, before), mine, told), now)

    def forfeit_run(self, now: float) -> int:
        """Close every lease of this run as spent: before `--fresh` throws away the progress that could prove less."""
        return self._forfeit(None, lambda one: leases.begin_anew(one, self._run), now)

    def _own(self, lease_id: str) -> str:
        return f"{self._run}/{lease_id}"

    def _forfeit(self, lane: int | None, close: Callable[[Ledger], tuple[Ledger, int]], now: float) -> int:
        given_up: Counter[tuple[str, ...]] = Counter()
        for name, found in self._within_reach(now):
            if not _concerns(found, self._run, lane):
                continue
            lost = [0]

            def swap(ledger: Ledger, lost: list[int] = lost) -> Ledger:
                ledger, lost[0] = close(ledger)
                return ledger

            self._swap_at(name, swap, None)
            given_up[scope(found.key)] += lost[0]
        return given_up.get(scope(run_key(self._run)), max(given_up.values(), default=0))

    def _within_reach(self, now: float) -> list[tuple[str, Ledger]]:
        """The documents that leases of this run may be in, and no others: a state that has served for years holds
        one for each day, tenant and finished run."""
        starts = [_start(head) for head in key_heads(self._run, now)]
        names = sorted({name for start in starts for name in self._state.list(start) if _is_below(name, start)})
        with ThreadPoolExecutor(READERS) as pool:
            found = list(pool.map(self._state.get, names))
        return [(name, _decode(name, one[0])) for name, one in zip(names, found, strict=True) if one is not None]

    def read(self, key: str) -> Ledger | None:
        """The ledger of one key, for people. None: nothing was leased yet."""
        found = self._state.get(document(key))
        return None if found is None else _decode(key, found[0])

    def check(self, now: float) -> None:
        """Prove before anything is paid for that the ledger can be read and written. Raises `Temporary`, `Corrupt`."""
        self._within_reach(now)
        self._state.put("ledger-check", b"", None)

    def _swap(self, key: str, swap: Swap, limit_nano: int | None = None) -> Ledger:
        empty = Ledger(key, limit_nano) if limit_nano is not None else None
        return self._swap_at(document(key), swap, empty)

    def _swap_at(self, name: str, swap: Swap, empty: Ledger | None) -> Ledger:
        """`empty`: where there is no document yet."""
        return until_won(lambda: self._try_at(name, swap, empty), f"the budget ledger {name}", TRIES, PAUSE_S)

    def _try_at(self, name: str, swap: Swap, empty: Ledger | None) -> Ledger:
        """Read, decide, write. Raises `Conflict` where somebody wrote meanwhile."""
        found = self._state.get(name)
        before = empty if found is None else _decode(name, found[0])
        if before is None:
            raise Corrupt(
                f"the budget ledger {name} is gone from the state: put it back. Run again without it, the run counts "
                "what it has committed as spent; budgets of days, months and tenants begin anew."
            )
        after = swap(before)
        if after != before or found is None:
            after.check()
            self._state.put(name, msgspec.json.encode(after), ABSENT if found is None else found[1])
        return after


def document(key: str) -> str:
    """The state's key of a budget's ledger. Long tenants' names are shortened by their hash.

    Names in a budget's key are quoted as in an address, which leaves `~` as it is: here it stands for `/`.
    """
    name = _name(key)
    if len(name) > _LONGEST_NAME:
        name = f"{name[:_CUT]}~{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}"
    return f"{PREFIX}{name}.json"


def _name(key: str) -> str:
    return key.replace("~", "%7E").replace("/", "~")


def _start(head: str) -> str:
    """How the documents of a head's keys begin, shortened ones too."""
    return PREFIX + _name(head)[:_CUT]


def _is_below(name: str, start: str) -> bool:
    """Not merely alike in how it begins, as `run/job-10` is to `run/job-1`; of a head that was cut nobody can tell."""
    return len(start) == len(PREFIX) + _CUT or name[len(start)] in "~."


def _decode(name: str, data: bytes) -> Ledger:
    try:
        ledger = msgspec.json.decode(data, type=Ledger)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"the budget ledger {name} cannot be read ({error}). Restore it from a backup.") from error
    ledger.check()
    return ledger


def _concerns(ledger: Ledger, run: str, lane: int | None) -> bool:
    return any(one.run == run and lane in (None, one.lane) for one in (*ledger.leases.values(), *ledger.given_up))


def _words(refused: LeaseRefused, wish: Wish) -> str:
    left, want, limit = (n / 1e9 for n in (refused.remaining_nano, wish.floor_nano, wish.limit_nano))
    return f"budget {refused.key} has {_money(left)} of {_money(limit)} left; the next call may cost {_money(want)}"


def _money(usd: float) -> str:
    """A limit of a tenth of a cent is not `$0.00`."""
    return f"${usd:.2f}" if usd >= 1 or usd == 0 else f"${usd:.6f}"
