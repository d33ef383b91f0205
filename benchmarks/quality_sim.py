"""What the statistics of `engine/measure/` promise, tried out on made-up data. No clock; all chance is from the seed.

    python benchmarks/quality_sim.py [parts, or all of them] [--runs 1000] [--seed 1]

Parts: widths, coverage, evaluations, false-alarms, regressions, cascade, drift, split, costs, accepted, clusters,
units, climb.
No rival: each figure has a promise beside it. Caveat: items are independent here, as sampled rows are (but in
`clusters`); scores of one conversation are not.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from penstock.engine.flow.cells import Scored
from penstock.engine.measure.allocated import Stratum, log_evidence_between
from penstock.engine.measure.betting import Side, log_factors, log_mixed
from penstock.engine.measure.cascade import Threshold, calibrate
from penstock.engine.measure.differences import arms_interval
from penstock.engine.measure.distinct import Distinct, at_one_level
from penstock.engine.measure.drift import Watch, watch
from penstock.engine.measure.evaluation import Answered, Row, evaluate
from penstock.engine.measure.grouped import GROUPS, Tally
from penstock.engine.measure.guards import Guard
from penstock.engine.measure.intervals import anytime_interval
from penstock.engine.measure.moments import FEWEST, TUNED_FOR
from penstock.engine.measure.sample import DIFFERENCE, STEPS, UNIT, Sample, Support, sample_of
from penstock.engine.measure.split import mismatch, sampled_mismatch
from penstock.engine.measure.stopping import StopRule
from penstock.engine.quality import proportion_interval
from penstock.engine.registry.standing import fallen
from penstock.engine.registry.windows import Window, grow

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int, int], Floats]
"""(chance, runs, items) → values in thousandths, a run a row."""
CHUNK = 50
"""Runs worked on at once: bounds memory at about 100 MB for 5,000 items and 24 bets."""


def evidence(values: Floats, mean: float, side: Side, support: Support) -> Floats:
    """Log evidence after every item, a run a row: `betting.log_evidence` for all items at once."""
    levels = np.arange(round(support.low * STEPS), round(support.high * STEPS) + 1) / STEPS
    table = log_factors(levels, mean, side, support)
    at = np.rint((values - support.low) * STEPS).astype(np.int64)
    return np.concatenate(
        [log_mixed(table[at[i : i + CHUNK]].cumsum(axis=1), support) for i in range(0, len(at), CHUNK)]
    )


def first_at(reached: NDArray[np.bool_]) -> Floats:
    """Item, counted from 1, at which each run first reached it; infinite where it never did."""
    return np.where(reached.any(axis=1), reached.argmax(axis=1) + 1.0, math.inf)


def binary(p: float) -> Draw:
    return lambda rng, runs, items: (rng.random((runs, items)) < p).astype(float)


def graded(a: float, b: float) -> Draw:
    return lambda rng, runs, items: np.rint(rng.beta(a, b, (runs, items)) * STEPS) / STEPS


def paired(worse: float, other: float) -> Draw:
    """Differences on the same rows: −1 with chance worse + other, +1 with chance other."""

    def draw(rng: np.random.Generator, runs: int, items: int) -> Floats:
        u = rng.random((runs, items))
        return np.where(u < worse + other, -1.0, np.where(u < worse + 2 * other, 1.0, 0.0))

    return draw


def against_arm(quality: float, worse: float, ratio: int) -> Draw:
    """Differences of a candidate's item and the mean of `ratio` items of the baseline."""

    def draw(rng: np.random.Generator, runs: int, items: int) -> Floats:
        base = rng.binomial(ratio, quality, (runs, items)) / ratio
        return np.rint(((rng.random((runs, items)) < quality - worse) - base) * STEPS) / STEPS

    return draw


def widths(rng: np.random.Generator, runs: int) -> None:
    print("\nHalf-width of a 95 % interval that may be looked at after every item (beside: one fixed look, Wilson)")
    for p in (0.5, 0.85, 0.97):
        for n in (50, 100, 500, 1_000, 5_000):
            k = round(p * n)
            ours, fixed = anytime_interval(Sample(((0, n - k), (STEPS, k)))), proportion_interval(k, n)
            assert ours
            assert fixed
            print(f"  share {p:.2f}, n {n:5}: ±{half(ours):.4f}   ±{half(fixed):.4f}")
    seen = graded(8, 2)(rng, 1, 5_000)[0]
    for n in (50, 500, 5_000):
        print(f"  graded 0.80 ± 0.12, n {n:5}: ±{half(anytime_interval(sample_of(seen[:n]))):.4f}")


def half(interval: object) -> float:
    return (interval.high - interval.low) / 2  # type: ignore[attr-defined]


def coverage(rng: np.random.Generator, runs: int) -> None:
    print(f"\nRuns of {runs} whose 95 % interval held the truth at every one of 5,000 looks (promise: 95 %)")
    cases: list[tuple[str, Draw, float | None, Support]] = [
        *((f"share {p}", binary(p), p, UNIT) for p in (0.5, 0.85, 0.97)),
        ("graded, mean about 0.8", graded(8, 2), None, UNIT),
        ("paired difference −0.05", paired(0.05, 0.05), -0.05, DIFFERENCE),
        ("paired difference 0", paired(0.0, 0.05), 0.0, DIFFERENCE),
    ]
    for name, draw, mean, support in cases:
        values = draw(rng, runs, 5_000)
        truth = 0.8 if mean is None else mean
        missed = np.zeros(runs, dtype=bool)
        for side in ("up", "down"):
            missed |= (evidence(values, truth, side, support) >= math.log(2 / 0.05)).any(axis=1)
        print(f"  {name:26} {1 - missed.mean():.1%}")
    print("  two arms, 0.85 and 0.80    " + _arms_coverage(rng, min(runs, 200)))


def _arms_coverage(rng: np.random.Generator, runs: int) -> str:
    looks, held = (50, 100, 200, 400, 800, 1_600), 0
    for _ in range(runs):
        base, other = binary(0.85)(rng, 1, 8_000)[0], binary(0.80)(rng, 1, 1_600)[0]
        found = [arms_interval(sample_of(base[: 5 * n]), sample_of(other[:n])) for n in looks]
        held += all(each is not None and each.low <= -0.05 <= each.high for each in found)
    return f"{held / runs:.1%} ({runs} runs, {len(looks)} looks each)"


def evaluations(rng: np.random.Generator, runs: int) -> None:
    print("\nEvaluations that stop by themselves at 95 %, looked at after each of at most 3,000 rows")
    for name, qualities in {
        "three equal": (0.80, 0.80, 0.80),
        "one 5 points better": (0.80, 0.80, 0.85),
        "one 2 points better": (0.80, 0.80, 0.82),
        "five, one 5 points better": (0.75, 0.78, 0.80, 0.80, 0.85),
    }.items():
        named, stops = _stops(rng, runs, np.array(qualities))
        best = [i for i, q in enumerate(qualities) if q == max(qualities)]
        wrong = named >= 0 if len(best) > 1 else (named >= 0) & (named != best[0])
        median = np.median(stops)
        print(
            f"  {name:26} wrong winner {wrong.mean():.1%} (promise: at most 5 %), stopped {(named >= 0).mean():.1%}, "
            f"median rows {'over 3000' if math.isinf(median) else int(median)}"
        )


def _stops(rng: np.random.Generator, runs: int, qualities: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Who was named winner in each run (−1: nobody) and after how many rows. Half of a row's luck is common to all."""
    k, needed = len(qualities), math.log((len(qualities) - 1) / 0.05)
    named, stops = np.full(runs, -1), np.full(runs, math.inf)
    for start in range(0, runs, CHUNK):
        count = min(CHUNK, runs - start)
        own = rng.random((k, count, 3_000))
        own = np.where(rng.random((count, 3_000)) < 0.5, rng.random((count, 3_000)), own)
        scores = (own < qualities[:, None, None]).astype(float)
        for i in range(k):
            beats = [evidence(scores[i] - scores[j], 0.0, "up", DIFFERENCE) >= needed for j in range(k) if j != i]
            first = first_at(np.logical_and.reduce(beats))
            part = slice(start, start + count)
            named[part] = np.where(first < stops[part], i, named[part])
            stops[part] = np.minimum(first, stops[part])
    return named, stops


def _alarms(draw: Draw, rng: np.random.Generator, runs: int, items: int) -> Floats:
    guard = Guard(name="quality")
    log_e = evidence(draw(rng, runs, items), guard.fail_beyond, "down", guard.support)
    return first_at(log_e >= math.log(1 / guard.alarm_rate))


def false_alarms(rng: np.random.Generator, runs: int) -> None:
    print(f"\nA/A rollouts rolled back, looked at after each of 1,500 values, {2 * runs} runs (promise: at most 1 %)")
    cases = {f"paired, {2 * f:.0%} of rows differ": paired(0.0, f) for f in (0.02, 0.05)}
    cases |= {f"two arms 1:{r}, quality {q}": against_arm(q, 0.0, r) for r in (1, 9) for q in (0.7, 0.9)}
    for name, draw in cases.items():
        alarms = _alarms(draw, rng, 2 * runs, 1_500)
        print(f"  {name:34} {np.isfinite(alarms).mean():.2%}")


def regressions(rng: np.random.Generator, runs: int) -> None:
    print(f"\nRegressions taken back within so many scored items of the candidate ({runs} runs; promise: 95 %)")
    for worse, items in ((0.10, 400), (0.05, 1_500)):
        for quality in (0.80, 0.85, 0.90, 0.95):
            for ratio in (1, 9, 19):
                draw = against_arm(quality, worse, ratio)
                _found(f"{quality:.2f} falls by {worse:.2f}, arms 1:{ratio}", draw, rng, runs, items)
    for worse, items in ((0.10, 400), (0.05, 1_000)):
        for other in (0.01, 0.02, 0.03, 0.05):
            name = f"paired, falls by {worse:.2f}, {worse + 2 * other:.0%} of rows differ"
            _found(name, paired(worse, other), rng, runs, items)


def _found(name: str, draw: Draw, rng: np.random.Generator, runs: int, items: int) -> None:
    alarms = _alarms(draw, rng, runs, 2 * items)
    within, p95 = (alarms <= items).mean(), np.quantile(alarms, 0.95, method="higher")
    later = f"> {2 * items}" if math.isinf(p95) else f"{p95:.0f}"
    print(f"  {name:42} within {items}: {within:.1%}, median {np.median(alarms):.0f}, 95 % by {later}")


def clusters(rng: np.random.Generator, runs: int) -> None:
    """Equal arms, divided by unit: looked at by units, and as if items were independent."""
    most, looks = min(runs, 400), 20
    print(
        f"\nItems that come in units: equal arms 1:1, mean 0.80, {looks} looks, {most} runs "
        "(promise: 1 % taken for worse, 5 % of the intervals without 0), and the same had items been counted"
    )
    for units, each, alike, late in (
        (10_000, 1, 0.0, False),
        (1_000, 2, 1.0, False),
        (2_000, 50, 1 / 20, False),
        (2_000, 50, 1 / 6, False),
        (200, 50, 1 / 6, False),
        (200, 50, 1 / 6, True),
        (2_000, 10, 0.5, True),
        (400, 100, 1.0, False),
    ):
        seen = [_taken_for_different(rng, (units, each, alike), looks, late=late) for _ in range(most)]
        worse, without, by_item, items_without = np.mean(seen, axis=0)
        come = "one after the other" if late else "all the time"
        print(
            f"  {units:7,} units of {each:3} items, {come:19}, {alike:.2f} of the variance between units: "
            f"taken for worse {worse:.1%} ({by_item:.1%}), intervals without 0 {without:.1%} ({items_without:.1%})",
            flush=True,
        )


def _taken_for_different(
    rng: np.random.Generator, crowd: tuple[int, int, float], looks: int, *, late: bool
) -> tuple[bool, bool, bool, bool]:
    """(the guard of quality failed, the interval of 95 % was without 0) at some look, by units and by items. `late`:
    units begin one after the other, and go on to the end; else all of them bring items all the time."""
    units, each, alike = crowd
    arm, group = rng.random(units) < 0.5, rng.integers(0, GROUPS, units)
    quality = _of_units(rng, units, alike)
    begins = np.arange(units) * looks // units if late else np.zeros(units, int)
    inside = [(group[mask], mask) for mask in (~arm, arm)]
    n, right = np.zeros((2, GROUPS)), np.zeros((2, GROUPS))
    found = [False] * 4
    left = np.full(units, each)
    for look in range(looks):
        items = rng.binomial(left, np.where(begins <= look, 1 / (looks - look), 0.0))
        left = left - items
        good = rng.binomial(items, quality)
        for i, (at, mask) in enumerate(inside):
            n[i] += np.bincount(at, items[mask], GROUPS)
            right[i] += np.bincount(at, good[mask], GROUPS)
        coins = (
            Sample(((0, int(all_ - ok)), (STEPS, int(ok)))) for all_, ok in zip(n.sum(1), right.sum(1), strict=True)
        )
        by_unit = Stratum(*coins, *(Tally(*both) for both in zip(n, right, strict=True)))
        for i, stratum in enumerate((by_unit, Stratum(by_unit.base, by_unit.other))):
            down, up = (log_evidence_between([stratum], 0.0, side) for side in ("down", "up"))
            found[2 * i] |= down >= math.log(100)
            found[2 * i + 1] |= max(down, up) >= math.log(40)
    return found[0], found[1], found[2], found[3]


def _of_units(rng: np.random.Generator, units: int, alike: float) -> Floats:
    """Each one's chance to be right, 0.80 on average."""
    if alike in (0.0, 1.0):
        return np.where(rng.random(units) < 0.8, 1.0, 0.0) if alike else np.full(units, 0.8)
    whole = 1 / alike - 1
    return rng.beta(0.8 * whole, 0.2 * whole, units)


CHEAP, TOP = 1.0, 10.0
"""What an answer of the first and of the last model costs: a guess, as small open models and the dearest ones differ by
more than that."""


def cascade(rng: np.random.Generator, runs: int) -> None:
    print(f"\nCascades calibrated for accepted answers of 0.95 at 95 % confidence ({runs} runs; promise: 95 % good)")
    grid = np.linspace(0, 1, 100_001)
    for name, slope in (("a telling signal", 8.0), ("a weak signal", 3.0)):
        correct = 1 / (1 + np.exp(-(0.8 + slope * (grid - 0.4))))
        tail = np.cumsum(correct[::-1])[::-1] / np.arange(len(grid), 0, -1)
        ideal = 1 - grid[tail >= 0.95].min() if (tail >= 0.95).any() else 0.0
        for labels in (300, 1_000, 3_000):
            good, shares = 0, list[float]()
            for _ in range(runs):
                signal = rng.random(labels)
                right = rng.random(labels) < np.interp(signal, grid, correct)
                found = calibrate(signal.tolist(), right.astype(float).tolist(), 0.95)
                good += not isinstance(found, Threshold) or np.interp(found.above, grid, tail) >= 0.95
                shares.append(1 - found.above if isinstance(found, Threshold) else 0.0)
            refused, cost = np.mean(np.array(shares) == 0), np.mean([_of_top(share) for share in shares])
            print(
                f"  {name:16} {labels:5} labels: good {good / runs:.1%}, refused {refused:.1%}, "
                f"accepts {np.mean(shares):.2f} of all (with full knowledge {ideal:.2f}), "
                f"costs {cost:.2f} of always the top model ({_of_top(ideal):.2f})"
            )


def climb(rng: np.random.Generator, runs: int) -> None:
    """The second model is calibrated on the rows that the first one's threshold passes on: where the first is unsure,
    the second is wrong more often. Both thresholds have 97.5 %."""
    print(f"\nCascades of three models, both thresholds for 0.95 ({runs} runs; promise: both good in 95 %)")
    at = (np.arange(400) + 0.5) / 400
    first, second = _right_first(at), _right_second(at[:, None], at[None, :])
    for labels in (1_000, 3_000):
        each, both, given = [0, 0], 0, 0
        for _ in range(runs):
            one, two = rng.random(labels), rng.random(labels)
            right = (rng.random(labels) < _right_first(one)).astype(float)
            found = calibrate(one.tolist(), right.tolist(), 0.95, 0.975)
            bar = found.above if isinstance(found, Threshold) else 1.0
            up = one <= bar
            right = (rng.random(labels) < _right_second(one, two)).astype(float)
            then = calibrate(two[up].tolist(), right[up].tolist(), 0.95, 0.975)
            over = then.above if isinstance(then, Threshold) else 1.0
            good = [_good(first[at > bar]), _good(second[np.ix_(at <= bar, at > over)])]
            each = [n + is_good for n, is_good in zip(each, good, strict=True)]
            both, given = both + all(good), given + isinstance(then, Threshold)
        shown = " / ".join(f"{n / runs:.1%}" for n in each)
        print(f"  {labels:5} labels: good {shown}, both {both / runs:.1%}; the second has one in {given / runs:.1%}")


def _right_first(signal: Floats) -> Floats:
    return 1 / (1 + np.exp(-(0.8 + 8.0 * (signal - 0.4))))


def _right_second(first: Floats, signal: Floats) -> Floats:
    """`first`: how sure the first model is of the row."""
    return 1 / (1 + np.exp(-(2.0 + 8.0 * (signal - 0.4) - 2.0 * (1 - first))))


def _good(accepted: Floats) -> bool:
    """Nothing accepted is good as well."""
    return not accepted.size or float(accepted.mean()) >= 0.95


def _of_top(accepted: float) -> float:
    """What a cascade of two costs, as a share of asking the top model alone."""
    return (CHEAP + (1 - accepted) * TOP) / TOP if accepted else 1.0


def drift(rng: np.random.Generator, runs: int) -> None:
    print("\nDrift of accepted quality, watched against 0.95, true 0.97 until it falls (alarm once in 10,000 at most)")
    fresh = Watch(line=0.95)
    short = min(runs, 200)
    calm = [watch(fresh, (rng.random(10_000) < 0.95).astype(float)) for _ in range(short)]
    over = np.mean([each.log_evidence >= math.log(each.items_between_alarms) for each in calm])
    print(f"  true quality 0.95 for 10,000 items: {over:.1%} in alarm at the end ({short} runs)")
    for after in (0.92, 0.90, 0.85):
        delays = [_delay(fresh, rng, after) for _ in range(short)]
        print(f"  falls to {after}: noticed after {np.median(delays):.0f} items (median), 95 % by {_p95(delays):.0f}")
    print("  the same by the registry's windows, as cascades are watched:")
    cried = np.mean([_fallen_after(rng, 0.95, 10_000) is not None for _ in range(short)])
    print(f"  true quality 0.95 for 10,000 items: {cried:.1%} cried out ({short} runs)")
    for after in (0.92, 0.90, 0.85):
        delays = [_fallen_after(rng, after, 10_000, before=1_000) or math.inf for _ in range(short)]
        print(f"  falls to {after}: noticed after {np.median(delays):.0f} items (median), 95 % by {_p95(delays):.0f}")


def _fallen_after(rng: np.random.Generator, quality: float, most: int, *, before: int = 0) -> int | None:
    """Looked at every 20 items, after so many of 0.97."""
    windows: list[Window] = []
    for n in range(20, before + most + 1, 20):
        right = int(rng.binomial(20, 0.97 if n <= before else quality))
        grow(windows, Scored(right, {step: k for step, k in ((1000, right), (0, 20 - right)) if k}), 0.0)
        if n > before and fallen([window.scores.sample() for window in windows], 0.95) is not None:
            return n - before
    return None


def _delay(fresh: Watch, rng: np.random.Generator, after: float) -> float:
    seen = watch(fresh, (rng.random(1_000) < 0.97).astype(float))
    for items in range(20, 10_001, 20):
        seen = watch(seen, (rng.random(20) < after).astype(float))
        if seen.alarm:
            return items
    return math.inf


def _p95(delays: list[float]) -> float:
    return float(np.quantile(delays, 0.95, method="higher"))


def split(rng: np.random.Generator, runs: int) -> None:
    print("\nSample-ratio mismatch, arms meant 90:10, looked at every 100 of 100,000 items (alarm rate 0.1 %)")
    for share in (0.10, 0.11, 0.09):
        firsts = [first for _ in range(runs) for first in _mismatch_at(rng, share)]
        said = f"alarms {np.isfinite(firsts).mean():.2%}"
        print(f"  true share {share:.2f}: {said}" + ("" if share == 0.10 else f", median at {np.median(firsts):.0f}"))


def units(rng: np.random.Generator, runs: int) -> None:
    print("\nThe same of units with many items, arms meant 50:50, looked at every 100 of 10,000 units")
    for share in (0.50, 0.55, 0.60, 0.65):
        firsts = [_units_at(rng.random(10_000) < share, rng) for _ in range(max(1, runs // 10))]
        said = f"alarms {np.isfinite(firsts).mean():.1%} of {len(firsts)} runs"
        late = np.quantile(firsts, (0.5, 0.95), method="higher")
        told = "" if share == 0.5 else f", median {late[0]:.0f}, 95 % {late[1]:.0f}"
        print(f"  true share {share:.2f}: {said}{told}")


def _units_at(in_first: NDArray[np.bool_], rng: np.random.Generator) -> float:
    arms, name = (Distinct(), Distinct()), str(rng.integers(1 << 60))
    for n, first in enumerate(in_first.tolist(), start=1):
        arms[not first].see(f"{name} {n}")
        if n % 100 == 0 and sampled_mismatch(*at_one_level(arms), (0.5, 0.5)).found:
            return n
    return math.inf


def _mismatch_at(rng: np.random.Generator, share: float) -> Iterator[float]:
    small = rng.binomial(100, share, 1_000).cumsum()
    for look, count in enumerate(small.tolist(), start=1):
        if mismatch((100 * look - count, count), (0.9, 0.1)).found:
            yield 100.0 * look
            return
    yield math.inf


def costs(rng: np.random.Generator, runs: int) -> None:
    print(f"\nMean cost without a cap (asymptotic), looks {FEWEST}…5,000, {runs} runs (promise 95 %, for many items)")
    for spread in (0.5, 1.0, 1.5):
        truth, alpha = math.exp(spread**2 / 2), 0.05
        rho2 = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha)) + 1) / TUNED_FOR
        values = rng.lognormal(0, spread, (runs, 5_000))
        n = np.arange(1, 5_001)
        mean = values.cumsum(axis=1) / n
        variance = np.maximum(0, (values**2).cumsum(axis=1) / n - mean**2)
        wide = n * rho2 + 1
        margin = np.sqrt(variance * 2 * wide / (n**2 * rho2) * np.log(np.sqrt(wide) / alpha))
        outside = (np.abs(mean - truth) > margin)[:, FEWEST - 1 :]
        late = outside[:, 500 - FEWEST :]
        print(
            f"  log-normal, sigma {spread}: held {1 - outside.any(axis=1).mean():.1%}; "
            f"looked at from 500 items on: {1 - late.any(axis=1).mean():.1%}"
        )


def accepted(rng: np.random.Generator, runs: int) -> None:
    """Long answers cost more, and are right less often: the cost of an answer and its being right hang together."""
    looks, some = (50, 100, 200, 400, 800, 1_600), min(runs, 200)
    print(f"\nCost of an accepted item, {some} runs, looks {looks[0]}…{looks[-1]} (promise 95 %, for many items)")
    for quality, spread in ((0.95, 0.5), (0.7, 0.5), (0.7, 1.0), (0.3, 1.0)):
        held, widths = 0, list[float]()
        truth = _true_cost(quality, spread)
        for _ in range(some):
            length = rng.normal(0, 1, looks[-1])
            right = rng.random(looks[-1]) < _right_by_length(quality, length)
            nano = np.rint(1e5 * np.exp(spread * length)).astype(int)
            rows = [Row(n, (Answered(float(right[n]), False, None, int(nano[n]), None),)) for n in range(looks[-1])]
            lines = [evaluate(("m",), rows[:n], StopRule(winner=False)).lines[0] for n in looks]
            found = [line.per_accepted for line in lines if line.per_accepted is not None]
            held += all(each.low <= truth <= each.high for each in found)
            widths.append(half(found[-1]) / truth)
        wide = f"after {looks[-1]:,} rows ± {np.median(widths):.0%}"
        print(f"  right {quality:.0%}, log-normal, sigma {spread}: held {held / some:.1%}; {wide}")


def _right_by_length(quality: float, length: Floats) -> Floats:
    return np.clip(quality - 0.05 * length, 0, 1)


def _true_cost(quality: float, spread: float) -> float:
    length = np.random.default_rng(7).normal(0, 1, 4_000_000)
    return float((1e5 * np.exp(spread * length)).mean() / _right_by_length(quality, length).mean())


PARTS: dict[str, Callable[[np.random.Generator, int], None]] = {
    "widths": widths,
    "coverage": coverage,
    "evaluations": evaluations,
    "false-alarms": false_alarms,
    "regressions": regressions,
    "cascade": cascade,
    "drift": drift,
    "split": split,
    "costs": costs,
    "accepted": accepted,
    "clusters": clusters,
    "units": units,
    "climb": climb,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"all where none is named: {', '.join(PARTS)}")
    parser.add_argument("--runs", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    print(f"runs {args.runs}, seed {args.seed}")
    for number, (name, part) in enumerate(PARTS.items()):
        if not args.parts or name in args.parts:
            part(np.random.default_rng((args.seed, number)), args.runs)


if __name__ == "__main__":
    main()
