"""Rollouts on virtual time: equal versions that are taken back, worse ones that are not, and who saw them meanwhile.

    python benchmarks/rollout_sim.py [parts, or all of them] [--runs 500] [--seed 1]

Parts: equal, worse, exposure, shadow, watch, units. It is the real machine (`engine.steering`): cells in, verdicts,
decisions; only the items are made up. A look is taken after every 20 of the smaller arm's items, or pairs. No rival:
each figure has a promise beside it.
Caveat: items are independent here (but in `units`), and every item is scored; with `sample: 0.1` ten times as many see
the version.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from penstock.engine.flow.cells import BAD, Cell, Scored
from penstock.engine.measure.grouped import GROUPS, Groups
from penstock.engine.measure.sample import Floats
from penstock.engine.steering.evidence import GUARDS, guards, judged
from penstock.engine.steering.rollout import BASELINE, CANDIDATE, SHADOW, How, Rollout, Shadowing, begin, said, see

PER_LOOK = 20
"""Of the candidate's items."""
STAGES = (0.01, 0.05, 0.25)
Quality = Callable[[float], float]
"""Of the traffic, after so many of the candidate's items."""


class World(NamedTuple):
    """`worse`: points that the candidate loses. `late`: share of its items that come in too late to be seen. `differ`:
    share of a shadow stage's pairs in which one answer is right and the other wrong."""

    quality: Quality
    worse: float = 0.0
    errors: float = 0.0
    slower: float = 0.0
    late: float = 0.0
    differ: float = 0.11


class Run(NamedTuple):
    state: str
    candidate: int
    """Items that saw it."""
    baseline: int
    pairs: int = 0
    """Of its shadow stage: nobody saw these answers."""


def steady(quality: float) -> Quality:
    return lambda _: quality


def day_and_night(items: float) -> float:
    return 0.8 + 0.1 * math.sin(items / 80)


def cell_of(at: Rollout, side: str) -> Cell:
    cell = Cell("t", at.model, side, "", "", "", at.id, at.arm(side))
    cell.scores["exact@1"] = Scored(counts={0: 0, 1_000: 0})
    return cell


def grow(cell: Cell, rng: np.random.Generator, items: int, quality: float, errors: float) -> None:
    """So many more items ended."""
    failed = int(rng.binomial(items, errors))
    right = int(rng.binomial(items - failed, quality))
    counts = cell.scores["exact@1"].counts
    counts[0] += items - failed - right
    counts[1_000] += right
    cell.items += items
    cell.calls += items
    cell.results += items - failed


def size(cell: Cell, rng: np.random.Generator, items: int, slower: float) -> None:
    """What they cost and took: log-normal, sigma 0.8."""
    cell.cost_n += items
    for name in ("cost", "ms"):
        x = np.rint(1_000 * (rng.standard_normal(items) * 0.8 + 7.0 + (slower if name == "ms" else 0.0))).astype(int)
        setattr(cell, f"{name}_ln", getattr(cell, f"{name}_ln") + int(x.sum()))
        setattr(cell, f"{name}_ln2", getattr(cell, f"{name}_ln2") + int((x * x).sum()))


def stand_beside(cell: Cell, rng: np.random.Generator, pairs: int, world: World) -> None:
    """So many more items were answered by both."""
    lost, won = (world.differ + world.worse) / 2, (world.differ - world.worse) / 2
    same, better, worse = (int(n) for n in rng.multinomial(pairs, [1 - lost - won, won, lost]))
    counts = cell.pairs.setdefault("exact@1", Scored(counts={-1_000: 0, 0: 0, 1_000: 0})).counts
    for step, n in ((-1_000, worse), (0, same), (1_000, better)):
        counts[step] += n
    cell.items += pairs
    cell.results += pairs


def roll(
    rng: np.random.Generator, world: World, stages: Sequence[float], names: Sequence[str], how: How | None = None
) -> Run:
    at = begin("m", ("v1", "v2"), stages, guards(names), by="sim", now=float(rng.random()), how=how)
    cells: list[Cell] = []
    other = base = pairs = 0
    while at.active and at.stage == SHADOW:
        if not cells:
            cells.append(msgspec.structs.replace(cell_of(at, CANDIDATE), role="shadow"))
        stand_beside(cells[0], rng, PER_LOOK, world)
        pairs += PER_LOOK
        at = see(at, judged(at, cells, bounds=False), 0.0) or at
    while at.active:
        if not cells or cells[-1].arm != at.arm(CANDIDATE):
            cells += [cell_of(at, BASELINE), cell_of(at, CANDIDATE)]
        n = round(PER_LOOK / at.share)
        here = int(rng.binomial(n, at.share))
        quality = world.quality(other)
        other, base = other + here, base + n - here
        seen = here if not world.late else int(rng.binomial(here, 1 - world.late))
        grow(cells[-2], rng, n - here, quality, 0.01)
        grow(cells[-1], rng, seen, quality - world.worse, 0.01 + world.errors)
        if "latency" in names:
            size(cells[-2], rng, n - here, 0.0)
            size(cells[-1], rng, seen, world.slower)
        at = see(at, judged(at, cells, bounds=False), 0.0) or at
    return Run(at.state, other, base, pairs)


def many(
    rng: np.random.Generator,
    runs: int,
    world: World,
    stages: Sequence[float],
    names: Sequence[str],
    how: How | None = None,
) -> list[Run]:
    return [roll(rng, world, stages, names, how) for _ in range(runs)]


def equal(rng: np.random.Generator, runs: int) -> None:
    print(f"\nEqual versions taken back, of {runs} rollouts (promise: at most 1 % by each guard)")
    worlds = [(f"quality {q:.2f}", World(steady(q))) for q in (0.8, 0.9, 0.97)]
    worlds += [("quality swings 0.70…0.90", World(day_and_night)), ("a fifth comes late", World(steady(0.9), late=0.2))]
    for name, world in worlds:
        print(f"  {name:26} {_back(many(rng, runs, world, STAGES, ['quality'])):.2%} by quality alone", flush=True)
    found = many(rng, runs, World(steady(0.9)), (0.05, 0.25), list(GUARDS))
    print(f"  {'all five guards':26} {_back(found):.2%} (stages 5, 25)")


def worse(rng: np.random.Generator, runs: int) -> None:
    print(f"\nWorse versions taken back, of {runs} rollouts, within so many of the candidate's scored items")
    for stages in (STAGES, (0.1, 0.5)):
        for quality, points, within in (
            (q, p, n) for p, n in ((0.10, 400), (0.05, 1_500)) for q in (0.8, 0.85, 0.9, 0.95)
        ):
            found = many(rng, runs, World(steady(quality), points), stages, ["quality"])
            soon = sum(r.state == "rolled_back" and r.candidate <= within for r in found) / runs
            items = sorted(r.candidate if r.state == "rolled_back" else 10**9 for r in found)
            middle = items[runs // 2]
            print(
                f"  stages {_told(stages):10} {quality:.2f} less {points * 100:.0f}, within {within:5}: {soon:6.1%}"
                f"   ever: {_back(found):6.1%}   median {middle if middle < 10**9 else '–'}",
                flush=True,
            )
    for name, world, guard in (
        ("3 points more errors", World(steady(0.9), errors=0.03), "error_rate"),
        ("10 points more errors", World(steady(0.9), errors=0.10), "error_rate"),
        ("1.5 times slower", World(steady(0.9), slower=math.log(1.5)), "latency"),
        ("2 times slower", World(steady(0.9), slower=math.log(2)), "latency"),
    ):
        found = many(rng, max(50, runs // 4), world, (0.05, 0.25), [guard])
        items = sorted(r.candidate for r in found if r.state == "rolled_back")
        print(f"  {name:24} {guard:10}: {_back(found):6.1%}   median {items[len(items) // 2] if items else '–'} items")


def shadow(rng: np.random.Generator, runs: int) -> None:
    """Alone, and in front of stages: then its alarm rate is the half, so that both together keep theirs."""
    how = How(shadow=Shadowing(0.1, 10**12))
    for stages in ((), STAGES):
        behind = f"in front of {_told(stages)}" if stages else "alone"
        print(f"\nA shadow stage {behind}: equal versions taken back, of {4 * runs} rollouts (promise: at most 1 %)")
        for differ in (0.07, 0.11, 0.2):
            found = many(rng, 4 * runs, World(steady(0.9), differ=differ), stages, ["quality"], how)
            pairs = sorted(r.pairs for r in found)
            told = f"{_back(found):.2%} by quality alone   median pairs {pairs[2 * runs]}"
            print(f"  pairs differ in {differ:4.0%}: {told}", flush=True)
        print(f"A shadow stage {behind}: worse versions taken back, of {runs}, within so many pairs")
        for points, within, shares in ((0.1, 400, (0.12, 0.14, 0.16, 0.2)), (0.05, 1_000, (0.07, 0.09, 0.11, 0.15))):
            for differ in shares:
                found = many(rng, runs, World(steady(0.9), points, differ=differ), stages, ["quality"], how)
                soon = [r.pairs for r in found if r.candidate == 0 and r.state == "rolled_back" and r.pairs <= within]
                part = len(soon) / runs
                later = f"   taken back later: {_back(found) - part:6.1%}" if stages else ""
                told = f"{part:6.1%}   median {sorted(soon)[len(soon) // 2] if soon else '–'}{later}"
                print(
                    f"  less {points * 100:.0f}, pairs differ in {differ:4.0%}, within {within:5}: {told}", flush=True
                )


def exposure(rng: np.random.Generator, runs: int) -> None:
    print("\nWho saw a version that is 10 points worse (0.90): items until it was taken back, and their share of all")
    for stages in (STAGES, (0.05, 0.25), (0.25,), (0.5,)):
        found = many(rng, runs, World(steady(0.9), 0.10), stages, ["quality"])
        other = sorted(r.candidate for r in found)
        share = sum(r.candidate for r in found) / sum(r.candidate + r.baseline for r in found)
        print(
            f"  stages {_told(stages):10} median {other[runs // 2]}, 95 % within {other[int(runs * 0.95)]}, "
            f"{share:.1%} of the traffic until then; promoted in spite: {1 - _back(found):.1%}",
            flush=True,
        )


def _back(found: Sequence[Run]) -> float:
    return sum(r.state == "rolled_back" for r in found) / len(found)


def _told(stages: Sequence[float]) -> str:
    return ",".join(f"{share * 100:g}" for share in stages)


def watch(rng: np.random.Generator, runs: int) -> None:
    """Told by the old version's items, which are the scarce ones."""
    print(f"\nA watch after the promotion, 2 % of the units on the old version (0.90), {runs} of each")
    for points, quiet in ((0.0, 0), *((p, q) for p in (0.1, 0.05) for q in (0, 300, 3_300))):
        found = [guarded(rng, points, quiet) for _ in range(runs)]
        back = sorted(old - quiet for old in found if old is not None and old > quiet)
        early = sum(old is not None and old <= quiet for old in found) if points else len(back)
        if not points:
            print(
                f"  equal all the time: {early / runs:.2%} taken back in ten rounds (promise: at most 1 %)", flush=True
            )
            continue
        at = f"{back[len(back) // 2]:5}, 95 % of these within {back[int(len(back) * 0.95)]:5}" if back else "–"
        print(
            f"  {points * 100:.0f} points less from its item {quiet:5} on: {len(back) / runs:6.1%} taken back after"
            f" {at} of the old version's items",
            flush=True,
        )


def guarded(rng: np.random.Generator, points: float, quiet: int) -> int | None:
    """The old version's items until it is back; None: it never is. It falls after so many."""
    how, kept = How(watch=0.02), 49  # items of the new version for each of the old one's
    first = begin("m", ("v1", "v2"), (0.5,), guards(["quality"]), by="sim", now=float(rng.random()), how=how)
    at = said(first, "promote", "sim", 0.0)
    cells: list[Cell] = []
    old = 0
    while at.active:
        if not cells or cells[-1].arm != at.arm(CANDIDATE):
            cells = [cell_of(at, BASELINE), cell_of(at, CANDIDATE)]
        grow(cells[0], rng, PER_LOOK, 0.9, 0.01)
        grow(cells[1], rng, PER_LOOK * kept, 0.9 - (points if old >= quiet else 0.0), 0.01)
        old += PER_LOOK
        at = see(at, judged(at, cells, bounds=False), 0.0) or at
    return old if at.state == "rolled_back" else None


class Come(NamedTuple):
    """How units come. `each`: items of one. `pool`: so many units bring items for ever, in all stages; 0: new ones come
    all the time, and bring their items at once. `alike`: share of an item's variance that lies between units."""

    each: int
    alike: float
    pool: int = 0

    @property
    def named(self) -> str:
        of = f"{self.pool:,} units for ever" if self.pool else f"units of {self.each} item{'s' * (self.each > 1)}"
        return f"{of}, {self.alike:.2f} of the variance between units"


class Units(NamedTuple):
    """`at`: where each stands among all, which tells its arm at a share; `luck`: quantile of its quality."""

    at: Floats
    luck: Floats
    group: NDArray[np.int64]


def drawn(rng: np.random.Generator, units: int) -> Units:
    return Units(rng.random(units), rng.random(units), rng.integers(0, GROUPS, units))


def quality_of(luck: Floats, mean: float, alike: float) -> Floats:
    if alike in (0.0, 1.0):
        return (luck < mean).astype(float) if alike else np.full(len(luck), mean)
    whole = 1 / alike - 1
    return betaincinv(mean * whole, (1 - mean) * whole, luck)


def unite(cell: Cell, name: str, group: NDArray[np.int64], n: NDArray[np.int64], total: NDArray[np.int64]) -> None:
    groups = cell.groups.setdefault(name, Groups())
    more, sums = (np.bincount(group, of, GROUPS).astype(int).tolist() for of in (n, total))
    groups.join(Groups(more, sums))


def end_units(cell: Cell, rng: np.random.Generator, units: Units, items: NDArray[np.int64], luck: Floats) -> None:
    """So many more items of these units ended, with such chances to be right (`BAD`: to have an answer)."""
    right, whole = rng.binomial(items, luck), int(items.sum())
    counts = cell.scores["exact@1"].counts
    counts[0] += whole - int(right.sum())
    counts[1_000] += int(right.sum())
    cell.items += whole
    cell.results += int(right.sum())
    unite(cell, "exact@1", units.group, items, 1_000 * right)
    unite(cell, BAD, units.group, items, items - right)


def roll_units(
    rng: np.random.Generator, come: Come, quality: float, worse: float, stages: Sequence[float], guard: str
) -> Run:
    """With `guard` error_rate, quality is the share of items with an answer."""
    at = begin("m", ("v1", "v2"), stages, guards([guard]), by="sim", now=float(rng.random()))
    cells: list[Cell] = []
    pool = drawn(rng, come.pool) if come.pool else None
    while at.active:
        if not cells or cells[-1].arm != at.arm(CANDIDATE):
            cells += [cell_of(at, BASELINE), cell_of(at, CANDIDATE)]
        n = round(PER_LOOK * min(10, come.each) / at.share)
        units = pool or drawn(rng, max(1, n // come.each))
        items = rng.poisson(n / come.pool, come.pool) if come.pool else np.full(len(units.at), come.each)
        for cell, inside, mean in (
            (cells[-2], units.at >= at.share, quality),
            (cells[-1], units.at < at.share, quality - worse),
        ):
            here = Units(*(each[inside] for each in units))
            end_units(cell, rng, here, items[inside], quality_of(here.luck, mean, come.alike))
        at = see(at, judged(at, cells, bounds=False), 0.0) or at
    seen = {side: sum(cell.items for cell in cells if cell.arm.startswith(side)) for side in (BASELINE, CANDIDATE)}
    return Run(at.state, seen[CANDIDATE], seen[BASELINE])


def units(rng: np.random.Generator, runs: int) -> None:
    crowds = [Come(1, 0.5), Come(10, 1 / 6), Come(10, 1.0), Come(100, 1 / 6), Come(100, 1.0), Come(10, 1 / 6, 300)]
    print(f"\nUnits that bring several items, stages 5,25: equal versions (0.80) taken back, of {2 * runs} rollouts")
    print(f"(promise: at most 1 %); 0.90 less 10 points, of {runs}")
    for come in crowds:
        equal = _back([roll_units(rng, come, 0.8, 0.0, (0.05, 0.25), "quality") for _ in range(2 * runs)])
        found = [roll_units(rng, come, 0.9, 0.1, (0.05, 0.25), "quality") for _ in range(runs)]
        items = sorted(r.candidate if r.state == "rolled_back" else 10**9 for r in found)
        late = [f"{n:,}" if n < 10**9 else "never" for n in (items[runs // 2], items[int(runs * 0.95)])]
        print(
            f"  {come.named:58} equal {equal:.2%}; worse {_back(found):6.1%}, "
            f"after items of the candidate: median {late[0]}, 95 % {late[1]}",
            flush=True,
        )
    equal = _back([roll_units(rng, Come(10, 1.0), 0.97, 0.0, (0.05, 0.25), "error_rate") for _ in range(2 * runs)])
    print(f"  error_rate, 3 % of the units fail: equal {equal:.2%}")


PARTS = {"equal": equal, "worse": worse, "exposure": exposure, "shadow": shadow, "watch": watch, "units": units}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all, where none is named")
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    print(f"rollouts simulated, seed {given.seed}, guards as `penstock rollout start` has them")
    for number, name in enumerate(PARTS):
        if not given.parts or name in given.parts:
            PARTS[name](np.random.default_rng([given.seed, number]), given.runs)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
