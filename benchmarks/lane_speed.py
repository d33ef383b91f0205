"""What one item costs in the lane machine: offer, take, outcome, commit; CPU time on one core.

    python benchmarks/lane_speed.py [items]

No rival: it is the part of the 60 to 80 µs an item that decides. Caveat: items are made before the clock starts, calls
succeed at the first try, and nothing is encoded or written (`records`, the stores and the wire are the rest).
"""

from __future__ import annotations

import platform
import sys
import time

from penstock.engine.budget import Budget, Budgets
from penstock.engine.catalog import Account, Catalog, Model, Price, Version
from penstock.engine.flow.lane import Lane
from penstock.engine.flow.lane_types import Hooks, LaneSettings
from penstock.engine.items import Answer, Attributes, Item, Outcome, Position, Request, Usage
from penstock.engine.plan import Split
from penstock.engine.policy import Policy, Task
from penstock.engine.router import Router

PROMISE_US = 20.0
"""A third of what an item may cost in all."""
BATCH = 256


def lane(budgets: tuple[Budget, ...]) -> Lane:
    price = Price(input=10**9, output=4 * 10**9)
    models = {n: Model(n, (Version("v1", n),), "v1", account="a", price=price, context=128_000) for n in ("m1", "m2")}
    catalog = Catalog({"a": Account("a", "openai", "http://localhost")}, models, {1: ("m1",), 2: ("m1", "m2")})
    policy = Policy({"t": Task("t", tier=2, max_tokens=64)}, default_task="t")
    hooks = Hooks(lambda: 0.5, lambda item, answer, task: (), lambda body, answer, message: body)
    return Lane(LaneSettings(0, "r"), Router(catalog, policy), catalog, policy, hooks, Budgets(budgets, "r"))


def measure(n: int, what: str, budgets: tuple[Budget, ...]) -> float:
    machine = lane(budgets)
    machine.begin([Split("s", "o", 0, 0, "u", 0, None)], {}, 0)
    request = Request(b'{"messages":[{"role":"user","content":"' + b"x" * 400 + b'"}]}', input_hash="h")
    items = [Item(f"{i:032x}", Position("s", 0, i), Attributes(), request, b"o" * 400, 0.0) for i in range(n)]
    answer, usage = Answer("yes", "stop", b"{}"), Usage(120, output=3)
    read = done = 0
    started = time.process_time()
    machine.commit(0.0)
    machine.committed(0.0)
    while done < n:
        now = 1.0 + done / 10_000
        for item in items[read : read + min(BATCH, machine.wants())]:
            machine.offer(item, now)
            read += 1
        calls = machine.take("api:a", BATCH, 1 << 40, "w", now)
        for call in calls:
            machine.outcome(Outcome(call.item_id, 0, call.attempt, now, 200.0, answer, None, usage), now)
        done += len(calls)
        for wish in machine.wishes():
            machine.leased(wish.key, {f"lease-{done}": 10**15}, now)
        if done % (8 * BATCH) == 0 or not calls:
            machine.commit(now)
            machine.committed(now)
    took = (time.process_time() - started) / n * 1e6
    print(f"{what:>12}: {took:.1f} µs an item ({1e6 / took:,.0f} items/s)")
    return took


def main() -> int:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    print(f"lane machine, one core, Python {platform.python_version()} on {platform.machine()}, {n:,} items")
    slowest = max(measure(n, "no budget", ()), measure(n, "one budget", (Budget(10**16),)))
    return 0 if slowest <= PROMISE_US else 1


if __name__ == "__main__":
    raise SystemExit(main())
