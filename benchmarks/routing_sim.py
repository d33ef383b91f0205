"""Does routing by measured quality find the cheapest model that is good enough, and leave it when it no longer is?

    python benchmarks/routing_sim.py [--runs 100] [--seed 1]

Virtual time: a look at the registry is five seconds, in which 500 items come. The router, the registry's document, its
windows and the standings are the real ones; models are planted: a true share of passing answers and a price. One of
the five is declared good (`top`); nothing is known of the others, and a share of the items explores them. Caveats:
answers are independent of each other, every item has the same size, and no call fails.
"""

from __future__ import annotations

import argparse
import copy
import math
import platform
import random
from collections import Counter
from collections.abc import Callable
from statistics import median

import msgspec

from penstock.engine.catalog import Account, Catalog, Model, Price, Version
from penstock.engine.flow.cells import Cell, Key, Scored, summed
from penstock.engine.items import Attributes, Candidate, Request, Route
from penstock.engine.measure.betting import log_evidence
from penstock.engine.measure.sample import STEPS, UNIT, Sample
from penstock.engine.policy import Explore, Policy, Scorer, Task
from penstock.engine.quality import sampled
from penstock.engine.registry.choice import EXPLORE
from penstock.engine.registry.document import Measured, Sums, fold
from penstock.engine.registry.standing import ALARM
from penstock.engine.registry.standings import scorer_of, standings
from penstock.engine.router import Router

ASKED = 0.85
SAMPLE = 0.1
EXPLORED = 0.05
ITEMS = 500
"""Between two looks at the registry."""
WARM = 150
AFTER = 60
TOKENS = (300, 20)
FLEET = {"tiny": (0.05, 0.70), "small": (0.2, 0.89), "mid": (0.6, 0.92), "large": (3.0, 0.95), "top": (15.0, 0.97)}
"""Dollars a million tokens, true quality. `small` is the right choice, four points above what is asked for."""
TASK = Task("t", 1, ASKED, sample=SAMPLE, scorers=(Scorer("exact"),), max_tokens=20, explore=Explore(EXPLORED, 1e9))
NAME = scorer_of(TASK) or ""
ASK = Request(b"x" * 1000)


def price(dollars: float) -> Price:
    return Price(round(dollars * 1e9), round(dollars * 1e9))


class World:
    """One run: a job that starts on what is declared."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.seed = seed
        self.truth = {name: quality for name, (_, quality) in FLEET.items()}
        self.dollars = {name: dollars for name, (dollars, _) in FLEET.items()}
        self.catalog = Catalog({"a": Account("a", "openai", "http://localhost")}, self._models(), {1: tuple(FLEET)})
        self.policy = Policy({"t": TASK}, default_task="t")
        self.router = Router(self.catalog, self.policy)
        self.shared = Measured()
        self.sums = Sums()
        self.cells: dict[Key, Cell] = {}
        self.sent = 0
        self.samples: Counter[str] = Counter()
        self.looks = 0

    def _models(self) -> dict[str, Model]:
        return {
            name: Model(
                name, (Version("v1", name),), "v1", account="a", price=price(dollars),
                quality={"t": 0.95} if name == "top" else {},
            )
            for name, dollars in self.dollars.items()
        }  # fmt: skip

    def reprice(self, name: str, dollars: float) -> None:
        self.dollars[name] = dollars
        self.catalog = msgspec.structs.replace(self.catalog, models=self._models())
        self.router.reprice(name, price(dollars))

    def look(self) -> Counter[str]:
        """Five seconds: items, then the registry. Returns where items went that explored nothing."""
        went: Counter[str] = Counter()
        for _ in range(ITEMS):
            item_id = f"{self.seed}/{self.sent}"
            self.sent += 1
            route = self.router.route(Attributes(), ASK, item_id)
            assert isinstance(route, Route)
            self._answer(route.candidates[0], item_id)
            if route.candidates[0].experiment != EXPLORE:
                went[route.candidates[0].model] += 1
        self.looks += 1
        self.sums = self.sums.then(summed(self.cells.values()))
        fold(self.shared, "r", self.sums, float(self.looks))
        self.router.learn(standings(self.shared, self.catalog, self.policy))
        return went

    def _answer(self, to: Candidate, item_id: str) -> None:
        key: Key = ("t", to.model, to.version, "", "", "", to.experiment, to.arm)
        cell = self.cells.setdefault(key, Cell(*key))
        cost = self.cost(to.model)
        cell.items += 1
        cell.results += 1
        cell.calls += 1
        cell.input += TOKENS[0]
        cell.output += TOKENS[1]
        cell.cost_nano += cost
        cell.cost_square += float(cost) * cost
        good = self.dice.random() < self.truth[to.model]
        if sampled(item_id, SAMPLE) or to.experiment == EXPLORE:
            self.samples[to.model] += 1
            scored = cell.scores.setdefault(NAME, Scored())
            scored.counts[1000 * good] = scored.counts.get(1000 * good, 0) + 1
            scored.passed += good

    def cost(self, name: str) -> int:
        return round(sum(TOKENS) * self.dollars[name] * 1_000)

    def best(self) -> str:
        good = [name for name, quality in self.truth.items() if quality >= ASKED]
        return min(good, key=lambda name: self.dollars[name] / self.truth[name])

    def per_accepted(self, went: Counter[str]) -> float:
        return sum(n * self.cost(name) for name, n in went.items()) / sum(
            n * self.truth[name] for name, n in went.items()
        )

    def excess(self, went: Counter[str]) -> float:
        """What an accepted item cost, above the best choice."""
        return self.per_accepted(went) / self.per_accepted(Counter({self.best(): 1})) - 1.0

    def quality(self, went: Counter[str]) -> float:
        return sum(n * self.truth[name] for name, n in went.items()) / sum(went.values())


def warmed(seed: int) -> tuple[World, int]:
    """After `WARM` looks; and how many it took until the best had most of the items and kept them."""
    world, found = World(seed), WARM
    for look in range(WARM):
        went = world.look()
        if went.most_common(1)[0][0] != world.best():
            found = WARM
        elif found == WARM:
            found = look
    return world, found


def settled(world: World, looks: int) -> Counter[str]:
    total: Counter[str] = Counter()
    for _ in range(looks):
        total.update(world.look())
    return total


def warm_up(worlds: list[World], found: list[int]) -> None:
    excess, quality, flaps = list[float](), list[float](), 0
    for world in copy.deepcopy(worlds):
        before, total = "", Counter[str]()
        for _ in range(AFTER):
            went = world.look()
            first = went.most_common(1)[0][0]
            flaps += bool(before) and first != before
            before = first
            total.update(went)
        excess.append(world.excess(total))
        quality.append(world.quality(total))
    runs = len(worlds)
    near, held = sum(x <= 0.02 for x in excess) / runs, sum(q >= ASKED for q in quality) / runs
    print(f"warm-up: the best was found after {spread([5 * look for look in found])} s (virtual)")
    print(
        f"  then within 2 % of the cheapest that meets {ASKED}: {near:.1%} of runs; median excess {median(excess):.2%}"
    )
    print(f"  quality held: {held:.1%} of runs; routes changed {flaps} times in {runs * AFTER:,} looks")


def after(worlds: list[World], what: str, change: Callable[[World], None], needed: list[int] | None = None) -> None:
    """How long until another model has most of the items, and how many samples of the old one that took."""
    looks, samples, held = list[int](), list[int](), 0
    for world in copy.deepcopy(worlds):
        old = world.look().most_common(1)[0][0]
        change(world)
        before = world.samples[old]
        for look in range(AFTER):
            went = world.look()
            if went.most_common(1)[0][0] != old:
                looks.append(look)
                samples.append(world.samples[old] - before)
                break
        held += world.quality(settled(world, AFTER)) >= ASKED
    runs = len(worlds)
    moved = f"left in {len(looks) / runs:.1%} of runs, after {spread([5 * n for n in looks])} s"
    print(f"{what}: {moved}, {spread(samples)} samples; quality held afterwards: {held / runs:.1%} of runs")
    if needed is not None:
        most = needed[int(0.95 * len(needed))] + round(ITEMS * SAMPLE)
        within = sum(n <= most for n in samples) / runs
        print(f"  the evidence alone needs {spread(needed)} samples; left within its 95 % and one look's: {within:.1%}")


def predicted(true: float, runs: int = 400) -> list[int]:
    """Samples until a bet that began right at the change has won enough, without windows, looks or a router."""
    found: list[int] = []
    for seed in range(runs):
        dice, good, n, needed = random.Random(seed), 0, 0, math.log(ALARM)
        while True:
            good += sum(dice.random() < true for _ in range(10))
            n += 10
            sample = Sample(tuple((step, k) for step, k in ((0, n - good), (STEPS, good)) if k))
            if log_evidence(sample, ASKED, "down", UNIT) >= needed:
                break
        found.append(n)
    return sorted(found)


def spread(values: list[int]) -> str:
    """`median (95 %)`."""
    if not values:
        return "–"
    ordered = sorted(values)
    return f"{median(ordered):.0f} (95 %: {ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    print(f"routing on a planted fleet, {given.runs} runs, seed {given.seed}, Python {platform.python_version()}")
    warm = [warmed(given.seed * 10_000 + run) for run in range(given.runs)]
    worlds = [world for world, _ in warm]
    warm_up(worlds, [found for _, found in warm])
    after(worlds, "mid becomes cheaper than small", lambda world: world.reprice("mid", 0.15))
    after(worlds, "small becomes dearer than mid", lambda world: world.reprice("small", 0.9))
    for true in (0.75, 0.80):
        what = f"small falls from {FLEET['small'][1]} to {true}"
        after(worlds, what, lambda world, true=true: world.truth.update(small=true), predicted(true))


if __name__ == "__main__":
    main()
