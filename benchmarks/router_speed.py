"""How many items a second the router decides on one core. Prints one line a mix, and one for all.

    python benchmarks/router_speed.py [items]

No rival: the routers of other tools pick among deployments of one model name, without walls, rules or quality. The
promise is 100,000 items/s on one core; CPU time is counted, so that a busy machine says the same. Caveat: items are
made before the clock starts; labels repeat as they do in a real job (3 tasks, 3 walls, 2 latencies, 50 tenants),
lengths and cost limits do not. "rollout": the mixed items, with rollouts of two of the five models in force.
"""

from __future__ import annotations

import platform
import random
import sys
import time

from penstock.engine.catalog import Account, Catalog, Model, Price, Version, Wall
from penstock.engine.items import Attributes, Request
from penstock.engine.measure.guards import Guard
from penstock.engine.measure.sample import Sample
from penstock.engine.policy import Condition, Explore, Policy, Rule, Task
from penstock.engine.registry.standing import Standing
from penstock.engine.router import Rejection, Router
from penstock.engine.steering.document import Steering, with_rollout
from penstock.engine.steering.rollout import begin
from penstock.engine.steering.turn import Turn

PROMISE = 100_000


def catalog() -> Catalog:
    def model(name: str, cost: int, **fields: object) -> Model:
        versions = (Version("v1", name), Version("v2", f"{name}-2"))
        price = Price(input=cost * 10**8, output=cost * 4 * 10**8)
        where = {} if "worker" in fields else {"account": "us"}
        fields = {"price": price, "context": 128_000, "quality": {"classify": 0.8 + cost / 500}, **where, **fields}
        return Model(name, versions, "v1", **fields)  # type: ignore[arg-type]

    models = [
        model("opus", 50, origin="us"),
        model("haiku", 10, origin="us", latency="realtime"),
        model("llama", 5, origin="us", latency="realtime", licence="llama"),
        model("small", 1, worker="vllm", regions=("eu",), origin="us", context=4_096),
        model("mid", 2, worker="vllm", regions=("eu",), origin="eu", context=8_192),
    ]
    return Catalog(
        accounts={"us": Account("us", "openai", "http://localhost", regions=("us",), no_train=True)},
        models={m.name: m for m in models},
        tiers={1: ("opus", "haiku"), 2: ("haiku", "llama", "mid"), 3: ("small", "mid", "llama")},
        walls={
            "public": Wall("public"),
            "eu-only": Wall("eu-only", regions=("eu",)),
            "health": Wall("health", self_hosted=True, origin=("us", "eu")),
        },
    )


def policy() -> Policy:
    coding = Condition(all=(Condition("task", "eq", "coding"), Condition("latency", "eq", "realtime")))
    return Policy(
        tasks={
            "classify": Task("classify", tier=3, min_quality=0.8, max_tokens=8, explore=Explore(0.05, 5.0)),
            "coding": Task("coding", tier=1),
            "rewrite": Task("rewrite", tier=2, max_tokens=300),
        },
        rules=(
            Rule(coding, use=("llama", "opus")),
            Rule(Condition("max_cost_usd", "lt", 0.0005), tier=3),
            Rule(Condition("tenant", "in", ("t1", "t2", "t3")), tier=2),
        ),
    )


def items(n: int, mix: str) -> list[tuple[Attributes, Request]]:
    dice = random.Random(7)

    def one() -> tuple[Attributes, Request]:
        attributes = Attributes(
            task=dice.choice(["classify", "coding", "rewrite"]) if mix != "plain" else "rewrite",
            sensitivity=dice.choice(["public", "public", "eu-only", "health"]),
            latency="realtime" if dice.random() < 0.1 else None,
            max_cost_usd=dice.random() * 0.01
            if dice.random() < {"plain": 0.0, "all cost": 1.0}.get(mix, 0.2)
            else None,
            tenant=f"t{dice.randrange(50)}",
        )
        size = min(60_000, int(dice.lognormvariate(6.5, 1.0)))
        return attributes, Request(b"x" * size, max_tokens=dice.choice([None, None, 64, 500]))

    return [one() for _ in range(n)]


def steering() -> Steering:
    found = Steering()
    for name in ("small", "haiku"):
        guards = (Guard(name="quality"),)
        found = with_rollout(found, begin(name, ("v1", "v2"), (0.05, 0.25), guards, by="bench", now=1.0))
    return found


def standings() -> list[Standing]:
    """Of every model: 1,000 samples in twenty windows; `small` is not shown to reach 0.8, and is explored."""
    shares = {"opus": 48, "haiku": 47, "llama": 46, "small": 40, "mid": 45}
    return [
        Standing("classify", name, "v1", (Sample(((0, 50 - good), (1000, good))),) * 20, 5_000, 4_900, output=100_000)
        for name, good in shares.items()
    ]


def measure(n: int, mix: str) -> float:
    work = items(n, mix)
    names = [f"item {i}" for i in range(n)]
    router = Router(catalog(), policy())
    if mix == "rollout":
        router.steer(Turn(catalog().models, steering()))
    if mix == "measured":
        router.learn(standings())
    rejected = 0
    started = time.process_time()
    for (attributes, request), name in zip(work, names, strict=True):
        rejected += type(router.route(attributes, request, name)) is Rejection
    took = time.process_time() - started
    print(f"{mix:>9}: {n / took:>10,.0f} items/s  ({took / n * 1e6:.2f} µs an item, {rejected / n:.0%} rejected)")
    return n / took


def main() -> int:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    print(f"router, one core, Python {platform.python_version()} on {platform.machine()}, {n:,} items a mix")
    slowest = min(measure(n, mix) for mix in ("plain", "mixed", "all cost", "rollout", "measured"))
    print(f"slowest: {slowest:,.0f} items/s, {slowest / PROMISE:.1f} × the promised {PROMISE:,}")
    return 0 if slowest >= PROMISE else 1


if __name__ == "__main__":
    raise SystemExit(main())
