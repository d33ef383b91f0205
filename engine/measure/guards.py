"""Guards of a rollout's stage: pass, fail or go on, after any number of items, with declared error rates.

A guard watches the mean of one value:

| what is guarded | the value of an item | support |
|---|---|---|
| quality, paired with the baseline | score less the baseline's on the same row | `GUARDED` |
| error or refusal rate against a line | 1 for an error, else 0 | `UNIT` |
| error or refusal rate against the baseline | as for quality; higher is worse | `GUARDED` |
| q-quantile of cost or latency against a line | `beyond(value, line)`; higher is worse than 1 − q | `UNIT` |
| median of cost or latency against the baseline | `beyond(value, paired baseline × 1.1)` | `UNIT` |
| mean of log cost or latency against the baseline | log(value / paired baseline), in `Moments` | `judge_moments` |
| the arms of a rollout, from their sums | score, or 1 for a good call | `judge_arms` |

Guards keep one sample through all stages of a rollout: then `alarm_rate` is the chance of a false alarm in the whole
rollout. A sample that starts anew at each stage has that chance at each. Chances of several guards add up at most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from penstock.engine.measure import grouped
from penstock.engine.measure.allocated import (
    Stratum,
    bound_between,
    difference_between,
    items_between,
    log_evidence_between,
    sizes,
)
from penstock.engine.measure.betting import Side, log_evidence
from penstock.engine.measure.intervals import bound
from penstock.engine.measure.moments import FEWEST, Moments, asymptotic_margin
from penstock.engine.measure.sample import GUARDED, Sample, Support

Decision = Literal["pass", "fail", "go on"]


class Guard(msgspec.Struct, frozen=True, kw_only=True):
    """Fails once the mean is shown to be worse than `fail_beyond`; passes once it is shown better than `pass_within`.

    For quality against a baseline: `fail_beyond=-0.01` allows to lose a point, `pass_within=-0.03` is content when a
    loss of three points is ruled out.
    """

    name: str
    worse: Literal["lower", "higher"] = "lower"
    fail_beyond: float = 0.0
    pass_within: float | None = None
    """None: a stage passes only at `max_items`."""
    alarm_rate: float = 0.01
    """Chance, over all looks together, to fail a candidate whose mean is no worse than `fail_beyond`."""
    miss_rate: float = 0.05
    """Chance, over all looks together, to pass before `max_items` one whose mean is no better than `pass_within`."""
    max_items: int = 1_500
    """Values after which a stage ends: 5 points worse is found in about as many (docs/quality.md). Where units bring
    several, a value counts for less (`grouped.counted`)."""
    at_limit: Literal["pass", "fail"] = "pass"
    """What becomes of a stage that nothing was shown in. "pass" says "no harm found", not "no harm"."""
    support: Support = GUARDED


class Verdict(msgspec.Struct, frozen=True):
    decision: Decision
    items: int
    """Values, or what they count for where units bring several."""
    mean: float | None
    worst: float
    """The worst mean that `alarm_rate` can't rule out: what may still be wrong with one that passes."""
    why: str
    shown: bool = False
    """False: it goes on, or ended at `max_items` with nothing shown."""
    per_unit: float = 1.0
    """Items that a unit brings, where units are what is counted; 1: items are."""


def beyond(value: float, line: float) -> float:
    """1 above the line, else 0: its mean is at most 1 − q while the q-quantile is no higher than the line."""
    return float(value > line)


def judge(guard: Guard, sample: Sample, *, items: int | None = None, bounds: bool = True) -> Verdict:
    """May be asked after every item. `items`: what the values count for, if not for one each. `bounds=False`: `worst`,
    which takes most of the time, is not asked for, and endless. Raises `SpecError` where a value leaves the guard's
    support."""
    items = sample.n if items is None else items
    bad, good = _sides(guard)

    def shown(mean: float | None, side: Side, chance: float) -> bool:
        return mean is not None and log_evidence(sample, mean, side, guard.support) >= math.log(1.0 / chance)

    decision, shown_at_all, why = _decide(
        guard,
        items,
        shown(guard.fail_beyond, bad, guard.alarm_rate),
        shown(guard.pass_within, good, guard.miss_rate),
    )
    worst = bound(sample, guard.alarm_rate, good, guard.support) if bounds else math.inf
    return Verdict(decision, items, sample.mean, worst, why, shown_at_all)


def judge_moments(guard: Guard, seen: Moments, items: int | None = None) -> Verdict:
    """The same for values without an end, such as logarithms of ratios; see `moments.py` for what is assumed. Waits
    for `FEWEST` values. The support is not used."""
    items = seen.n if items is None else items
    sign = 1.0 if guard.worse == "lower" else -1.0

    def shown(line: float | None, towards: float, chance: float) -> bool:
        return line is not None and towards * (seen.mean - line) > asymptotic_margin(seen, chance)

    decision, shown_at_all, why = _decide(
        guard,
        items,
        shown(guard.fail_beyond, -sign, guard.alarm_rate),
        shown(guard.pass_within, sign, guard.miss_rate),
    )
    worst = seen.mean - sign * asymptotic_margin(seen, guard.alarm_rate)
    return Verdict(decision, items, seen.mean if seen.n >= FEWEST else None, worst, why, shown_at_all)


def _sides(guard: Guard) -> tuple[Side, Side]:
    return ("down", "up") if guard.worse == "lower" else ("up", "down")


def _decide(guard: Guard, items: int, harm: bool, safe: bool) -> tuple[Decision, bool, str]:
    """Harm goes first: a mean that is both worse than one line and better than the other fails."""
    if harm:
        return "fail", True, f"{guard.name}: worse than {guard.fail_beyond:g}, shown after {items} items"
    if safe:
        return "pass", True, f"{guard.name}: better than {guard.pass_within:g}, shown after {items} items"
    if items >= guard.max_items:
        return guard.at_limit, False, f"{guard.name}: nothing shown within {guard.max_items} items"
    return "go on", False, f"{guard.name}: not decided after {items} items"


def judge_arms(guard: Guard, strata: Sequence[Stratum], here: Sequence[Stratum], *, bounds: bool = True) -> Verdict:
    """The same for two arms to which chance sends items or units, from their sums (`allocated.py`); values lie in 0…1,
    and the support is not used. `strata`: of all stages so far; `here`: of the present one, which must show by itself
    that it passes, and whose items of the smaller arm are counted. `bounds=False`: `worst`, which takes most of the
    time, is not asked for, and endless."""
    bad, good = _sides(guard)

    def shown(of: Sequence[Stratum], line: float | None, side: Side, chance: float) -> bool:
        return line is not None and log_evidence_between(of, line, side) >= math.log(1.0 / chance)

    items = items_between(here)
    decision, shown_at_all, why = _decide(
        guard,
        items,
        shown(strata, guard.fail_beyond, bad, guard.alarm_rate),
        shown(here, guard.pass_within, good, guard.miss_rate),
    )
    worst = bound_between(strata, guard.alarm_rate, good) if bounds and items else math.inf
    per_unit = grouped.per_unit(sizes(strata))
    return Verdict(decision, items, difference_between(strata), worst, why, shown_at_all, per_unit)
