"""When an evaluation has seen enough."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from penstock.engine.measure.comparison import Comparison, log_better
from penstock.engine.measure.intervals import anytime_interval, error_rate
from penstock.engine.measure.sample import UNIT
from penstock.engine.quality import Interval

Reason = Literal["winner", "same", "narrow", "rows used up", "go on"]


class StopRule(msgspec.Struct, frozen=True, kw_only=True):
    """Stops at the first of these that holds; each that is None is not asked."""

    confidence: float = 0.95
    winner: bool = True
    """One candidate is better than every other."""
    same_within: float | None = None
    """The leader is better than no other by more than this: a difference that wouldn't change what is done."""
    half_width: float | None = None
    """Every candidate's mean is known to ± this."""
    max_rows: int | None = None


class Stop(msgspec.Struct, frozen=True):
    reason: Reason
    rows: int
    leader: str
    """The best mean so far. A winner only where the reason says so."""
    intervals: tuple[Interval | None, ...]
    """Of each candidate's mean, all of them right together with the rule's confidence."""


def look(at: Comparison, rule: StopRule) -> Stop:
    """May be asked after every row. A winner is wrongly named, or "same" wrongly said, with at most 1 − confidence in
    the whole evaluation; where both are asked for they share that chance."""
    wrong = error_rate(rule.confidence)
    said = wrong / 2 if rule.winner and rule.same_within is not None else wrong
    means = [sample.mean or 0.0 for sample in at.scores]
    leader = max(range(len(means)), key=means.__getitem__)
    intervals = tuple(anytime_interval(sample, 1.0 - wrong / len(means), UNIT) for sample in at.scores)
    return Stop(_reason(at, rule, leader, said, intervals), at.rows, at.names[leader], intervals)


def _reason(
    at: Comparison, rule: StopRule, leader: int, wrong: float, intervals: tuple[Interval | None, ...]
) -> Reason:
    rivals = [j for j in range(len(at.names)) if j != leader]
    if rivals and rule.winner and _all_shown(at, leader, rivals, 0.0, wrong):
        return "winner"
    if rivals and rule.same_within is not None and _not_behind(at, leader, rivals, rule.same_within, wrong):
        return "same"
    if rule.half_width is not None and all(_half(each) <= rule.half_width for each in intervals):
        return "narrow"
    return "rows used up" if rule.max_rows is not None and at.rows >= rule.max_rows else "go on"


def _all_shown(at: Comparison, leader: int, rivals: list[int], by: float, wrong: float) -> bool:
    """Is the leader better than each? Wrong only if some rival lost to the truly best one: one of k − 1 tests."""
    needed = math.log(len(rivals) / wrong)
    return all(log_better(at, leader, j, by) >= needed for j in rivals)


def _not_behind(at: Comparison, leader: int, rivals: list[int], margin: float, wrong: float) -> bool:
    """Is each rival worse than the leader by less than the margin? Any ordered pair may be the one that errs."""
    needed = math.log(len(at.names) * len(rivals) / wrong)
    return all(log_better(at, j, leader, -margin) >= needed for j in rivals)


def _half(interval: Interval | None) -> float:
    return math.inf if interval is None else (interval.high - interval.low) / 2
