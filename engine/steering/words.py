"""What a guard found, as a sentence with the numbers that made it: the reason that logs and tables give.

`quality by scorer exact: 0.71 against 0.92 of v1 over 139 scored items; a loss is shown (chance of a false alarm at
most 1 %)`
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from statistics import fmean
from typing import NamedTuple

from penstock.engine.measure.allocated import Stratum
from penstock.engine.measure.guards import Guard, Verdict

UNPAIRED = "; it informs only, for a shadow is asked for no item that the live version could not answer"
INFORMS = "; it informs only, for this judge is not calibrated on people's labels"
FEW = "; nobody waits for it, for it has few scores here beside another scorer's"
MOST_CHARS = 2_000
"""Of a decision's reason. It stands in the one document that every driver reads each second."""


class Means(NamedTuple):
    """Of the two arms. `n`: values of the other one."""

    base: float
    other: float
    n: int


def means(strata: Iterable[Stratum]) -> Means | None:
    """Each stratum counts by its smaller arm, as in `difference_between`. None: no stratum has both arms."""
    both = [each for each in strata if each.base.n and each.other.n]
    if not both:
        return None
    weights = [min(each.base.n, each.other.n) for each in both]
    base = fmean((each.base.mean or 0.0 for each in both), weights)
    other = fmean((each.other.mean or 0.0 for each in both), weights)
    return Means(base, other, sum(each.other.n for each in both))


def of_scores(guard: Guard, verdict: Verdict, seen: Means | None, scorer: str, base: str) -> str:
    """`base`: what the base is called."""
    name = f"{guard.name} by scorer {scorer.partition('@')[0]}"
    if seen is None:
        return f"{name}: nothing to compare yet"
    numbers = f"{seen.other:.2f} against {seen.base:.2f} of {base} over {seen.n:,} scored items"
    return f"{name}: {numbers}{_units(verdict)}; {_found(guard, verdict, lambda line: _points('a loss', line))}"


def of_pairs(guard: Guard, verdict: Verdict, other: float | None, scorer: str, base: str, n: int) -> str:
    """`other`: mean score of the answers that stood beside the base's. `n`: of these."""
    name = f"{guard.name} by scorer {scorer.partition('@')[0]}"
    if verdict.mean is None or other is None:
        return f"{name}: nothing to compare yet"
    numbers = f"{other:.2f} against {other - verdict.mean:.2f} of {base} on the same {n:,} items"
    return f"{name}: {numbers}{_units(verdict)}; {_found(guard, verdict, lambda line: _points('a loss', line))}"


def undecidable(guard: Guard, *, judges: bool) -> str:
    """No scorer may decide. `judges`: there are scores of judges that inform."""
    if judges:
        return f"{guard.name}: no scorer may decide, only judges that are not calibrated (penstock label calibrate)"
    return f"{guard.name}: no item was scored yet"


def of_shares(guard: Guard, verdict: Verdict, seen: Means | None, base: str) -> str:
    """Values are 1 for good items, and people are told of the bad ones."""
    if seen is None:
        return f"{guard.name}: nothing to compare yet"
    numbers = f"{_percent(1 - seen.other)} against {_percent(1 - seen.base)} of {base} over {seen.n:,} items"
    return f"{guard.name}: {numbers}{_units(verdict)}; {_found(guard, verdict, lambda line: _points('a rise', line))}"


def of_sizes(guard: Guard, verdict: Verdict, n: int, base: str) -> str:
    """Values are logarithms of costs or times, and people are told how many times as much. `n`: of them."""
    if verdict.mean is None:
        return f"{guard.name}: too few items to compare yet"
    numbers = f"{_factor(verdict.mean)} that of {base} over {n:,} items"
    found = _found(guard, verdict, lambda line: f"more than {_factor(line)} as much")
    return f"{guard.name}: {numbers}{_units(verdict)}; {found}"


def of_free(guard: Guard, verdict: Verdict, base: str) -> str:
    """One of the two costs nothing."""
    if verdict.decision == "fail":
        return f"{guard.name}: it is paid for, and {base} costs nothing, over {verdict.items:,} items"
    return f"{guard.name}: nothing was paid for {verdict.items:,} items"


def bounded(why: str) -> str:
    """A reason of somebody's making, a whole log maybe: cut, for a rollback in an emergency is not refused for it."""
    left = len(why) - MOST_CHARS
    return why if left <= 0 else f"{why[:MOST_CHARS]} … ({left:,} more characters were left out)"


def _units(verdict: Verdict) -> str:
    each = verdict.per_unit
    some = f"{each:,.0f}" if each >= 10 else f"{each:.1f}"
    return f" (a unit brings some {some}, and counts once)" if each > 1.0 else ""


def _found(guard: Guard, verdict: Verdict, beyond: Callable[[float], str]) -> str:
    match verdict.decision:
        case "go on":
            return "not decided yet"
        case "fail" if verdict.shown:
            return f"{beyond(guard.fail_beyond)} is shown (chance of a false alarm at most {_chance(guard.alarm_rate)})"
        case "pass" if verdict.shown and guard.pass_within is not None:
            return f"{beyond(guard.pass_within)} is ruled out (chance of an error at most {_chance(guard.miss_rate)})"
        case _:
            return f"nothing was shown within {guard.max_items:,} items, which does not say that there is nothing"


def _points(harm: str, line: float) -> str:
    points = abs(100 * line)
    return f"{harm} of more than {points:g} point{'' if points == 1 else 's'}" if points else harm


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _chance(rate: float) -> str:
    return f"{100 * rate:.2g} %"


def _factor(logarithm: float) -> str:
    return f"{math.exp(logarithm):.3g} times"
