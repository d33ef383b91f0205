"""One item that is larger than the whole budget must not stop all the others, each time that the run goes on."""

from __future__ import annotations

import msgspec
import pytest

from penstock.engine.budget import Budget
from penstock.engine.catalog import Account, Catalog, Model, Price, Version
from penstock.engine.flow.lane_types import Hooks
from penstock.engine.items import Attributes, Item, Position, Request
from penstock.engine.leases import LeaseRefused, Ledger, Owner, open_leases
from penstock.engine.policy import Policy, Task
from tests.engine.one_lane import OneLane

CATALOG = Catalog(
    {"a": Account("a", "openai", "http://localhost")},
    {"m": Model("m", (Version("v1", "m"),), "v1", account="a", price=Price(input=10**9, output=10**9))},
    {3: ("m",)},
)
HOOKS = Hooks(lambda: 0.5, lambda item, answer, task: (), lambda body, answer, message: body)
POLICY = Policy({"t": Task("t", max_tokens=100)}, default_task="t")
LONG = Request(b'{"messages":[{"role":"user","content":"' + b"x" * 2_000_000 + b'"}]}')
SHORT = Request(b'{"messages":[]}')


class Rig(OneLane):
    def __init__(self, *budgets: Budget) -> None:
        super().__init__(CATALOG, POLICY, HOOKS, budgets)

    def sent_of(self, *requests: Request) -> list[str]:
        for n, request in enumerate(requests):
            item = Item(f"i{n}", Position("s", 0, n), Attributes(tenant="t"), request, b"o", self.now)
            self.lane.offer(item, self.now)
        self.commit()
        ledgers: dict[str, Ledger] = {}
        for round_ in range(6):
            self.sent += self.lane.take("api:a", 9, 1 << 60, "w", self.now)
            for wish in self.lane.wishes():
                ledger = ledgers.setdefault(wish.key, Ledger(wish.key, wish.limit_nano))
                names = [f"{round_}-{n}" for n in range(len(wish.calls))]
                answer = open_leases(ledger, names, Owner("r", 0, (1, 1)), wish.calls, self.now)
                if isinstance(answer, LeaseRefused):
                    self.lane.refused(wish, "spent", self.now)
                else:
                    ledgers[wish.key], opened = answer
                    self.lane.leased(wish.key, {k: v.amount_nano for k, v in opened.items()}, self.now)
        return [call.item_id for call in self.sent]


@pytest.mark.parametrize("per", [None, "day", "month"])
@pytest.mark.parametrize("odd", [msgspec.structs.replace(SHORT, max_tokens=10**8), LONG], ids=["answer", "prompt"])
def test_one_item_that_no_budget_could_hold_ends_and_the_others_are_sent(per: str | None, odd: Request) -> None:
    """A line with a ceiling of its own, or a prompt of megabytes: its worst case alone is above the limit."""
    rig = Rig(Budget(10**9, per))  # type: ignore[arg-type]
    assert rig.sent_of(odd, SHORT, SHORT) == ["i1", "i2"]
    assert (rig.lane.draining, rig.lane.tally.dead_letters) == (False, {"budget": 1})
    (dead,) = rig.commit().dead_letters
    assert "a whole budget is $1" in dead.message
    assert (dead.cost_nano, dead.attempts) == (0, ())


def test_a_budget_that_holds_no_ordinary_call_stops_the_run() -> None:
    """As ever: thousands of dead letters for a limit that was meant otherwise help nobody."""
    rig = Rig(Budget(10_000))
    assert rig.sent_of(msgspec.structs.replace(SHORT, max_tokens=10**8), SHORT) == []
    assert (rig.lane.draining, rig.lane.tally.dead_letters) == (True, {})
