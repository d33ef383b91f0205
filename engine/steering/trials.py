"""What the measured cells say of an experiment: each arm beside the first, and whether the arms got what was meant."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from penstock.engine.flow.cells import Cell, Scored, add_scores, summed
from penstock.engine.measure import grouped
from penstock.engine.measure.allocated import bound_between, difference_between
from penstock.engine.measure.distinct import at_one_level, joined
from penstock.engine.measure.grouped import Groups
from penstock.engine.measure.intervals import anytime_interval
from penstock.engine.measure.moments import asymptotic_interval
from penstock.engine.measure.sample import merge
from penstock.engine.measure.split import Mismatch, sampled_mismatch
from penstock.engine.policy import Arm, Experiment
from penstock.engine.quality import Interval
from penstock.engine.steering.evidence import COST, LATENCY, Key, Sides, View, apart, compared, guards, scored
from penstock.engine.steering.rollout import Told

CONFIDENCE = 0.95
"""Of each interval by itself, however often it is looked at."""


class Scores(msgspec.Struct, frozen=True):
    """Of one scorer in one arm. `effect`: less the first arm's; None: it is the first, or nothing is known yet."""

    scorer: str
    n: int
    mean: Interval | None
    effect: Interval | None = None


class ArmSeen(msgspec.Struct, frozen=True):
    name: str
    share: float
    """That was meant."""
    answers: int
    cost_nano: int
    scores: tuple[Scores, ...] = ()
    cost: Interval | None = None
    """As a logarithm of the ratio to the first arm's; so is `latency`."""
    latency: Interval | None = None
    told: tuple[Told, ...] = ()
    """By the guardrails."""


class Seen(msgspec.Struct, frozen=True):
    arms: tuple[ArmSeen, ...]
    split: Mismatch | None
    """None: no answers yet, or none of whose units it is known (they were counted by an earlier release)."""
    united: int = 0
    """Answers and failures of items that have a `unit`, where units are divided: they come in groups that share an arm
    and, maybe, their luck, so units count, where they bring several."""
    units: int = 0
    """Of which `split` speaks, where there are such: different ones, or a sample of them."""
    earlier: int = 0
    """Answers under the same name with other arms or shares: nothing of what is said here."""


def look(experiment: Experiment, cells: Collection[Cell], trusted: Collection[str] = ()) -> Seen:
    """All that is known of it. `trusted`: judges that may decide."""
    by_arm = _by_arm(experiment, cells)
    told = broken(experiment, cells, trusted, by_arm)
    arms = tuple(_arm(experiment, arm, by_arm, told.get(arm.name, ())) for arm in experiment.arms)
    united = sum(cell.united for cells in by_arm.values() for cell in cells) if experiment.unit == "unit" else 0
    level, counts = _units(by_arm) if united else (0, [arm.answers for arm in arms])
    split = sampled_mismatch(level, counts, [arm.share for arm in arms]) if any(counts) else None
    return Seen(arms, split, united, sum(counts) if united else 0, _earlier(experiment, cells))


def _units(by_arm: dict[str, list[Cell]]) -> tuple[int, list[int]]:
    """(level of the sample, draws of each arm): its units in the sample, and all items without one."""
    seen = [joined(cell.units for cell in cells if cell.units is not None) for cells in by_arm.values()]
    level, units = at_one_level(seen)
    alone = [sum(cell.ended - cell.united for cell in cells) for cells in by_arm.values()]
    return level, [sum(each) for each in zip(units, alone, strict=True)]


def broken(
    experiment: Experiment,
    cells: Iterable[Cell],
    trusted: Collection[str] = (),
    by_arm: dict[str, list[Cell]] | None = None,
) -> dict[str, tuple[Told, ...]]:
    """What the guardrails say of each arm but the first; the arms share a guardrail's alarm rate."""
    found = _by_arm(experiment, cells) if by_arm is None else by_arm
    first, *others = experiment.arms
    chosen = [
        msgspec.structs.replace(guard, alarm_rate=guard.alarm_rate / len(others))
        for guard in guards(experiment.guardrails)
    ]

    def view(arm: str) -> View:
        return _view(experiment, found[first.name], found[arm], trusted)

    return {arm.name: compared(chosen, view(arm.name)) for arm in others}


def _view(experiment: Experiment, first: list[Cell], other: list[Cell], trusted: Collection[str] = ()) -> View:
    base, units = f"arm {experiment.arms[0].name}", experiment.unit == "unit"
    return View(_beside(first, other), base, bounds=False, trusted=trusted, units=units)


def _by_arm(experiment: Experiment, cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    found: dict[str, list[Cell]] = {arm.name: [] for arm in experiment.arms}
    for cell in summed(cell for cell in cells if cell.experiment == experiment.key and cell.role == ""):
        if cell.arm in found:
            found[cell.arm].append(cell)
    return found


def _earlier(experiment: Experiment, cells: Iterable[Cell]) -> int:
    others = (cell for cell in cells if cell.role == "" and cell.experiment != experiment.key)
    return sum(c.results for c in others if experiment.id in (c.experiment, c.experiment.rpartition("@")[0]))


def _beside(first: list[Cell], other: list[Cell]) -> dict[Key, Sides]:
    return {(0, ""): Sides([_items(first)], [_items(other)])} if first or other else {}


def _items(cells: list[Cell]) -> Cell:
    """An arm's items, each once and with all of its calls, whichever models these went to."""
    made = Cell()
    for cell in cells:
        made.items += cell.ended
        made.results += cell.ended - cell.dead
        made.failures["refused"] = made.refused + cell.balked
        made.cost_n += cell.whole_cost_n
        made.cost_ln += cell.whole_cost_ln
        made.cost_ln2 += cell.whole_cost_ln2
        made.ms_ln += cell.whole_ms_ln
        made.ms_ln2 += cell.whole_ms_ln2
        for scorer, scores in cell.scores.items():
            add_scores(made.scores.setdefault(scorer, Scored()), scores)
        for of, groups in cell.groups.items():
            made.groups.setdefault(of, Groups()).join(groups)
    return made


def _arm(experiment: Experiment, arm: Arm, by_arm: dict[str, list[Cell]], told: tuple[Told, ...]) -> ArmSeen:
    first, own = by_arm[experiment.arms[0].name], by_arm[arm.name]
    share = arm.weight / sum(each.weight for each in experiment.arms)
    answers, cost = sum(cell.results for cell in own), sum(cell.cost_nano + cell.judge_nano for cell in own)
    scorers = sorted({scorer for cell in own for scorer in cell.scores})
    if own is first:
        return ArmSeen(arm.name, share, answers, cost, tuple(_scores(own, scorer) for scorer in scorers))
    view = _view(experiment, first, own)
    strata = {scorer: list(each.values()) for scorer, each in scored(view).items()}
    scores: list[Scores] = []
    for scorer in scorers:
        seen, chance = difference_between(strata[scorer]), (1.0 - CONFIDENCE) / 2
        low, high = (bound_between(strata[scorer], chance, side) for side in ("up", "down"))
        effect = None if seen is None else Interval(seen, low, high)
        scores.append(msgspec.structs.replace(_scores(own, scorer), effect=effect))
    sizes = (apart(view.sides.values(), size, units=view.units).moments for size in (COST, LATENCY))
    dearer, slower = (asymptotic_interval(each, CONFIDENCE) for each in sizes)
    return ArmSeen(arm.name, share, answers, cost, tuple(scores), dearer, slower, told)


def _scores(cells: list[Cell], scorer: str) -> Scores:
    sample = merge(*(cell.scores[scorer].sample() for cell in cells if scorer in cell.scores))
    units = grouped.tally(cell.groups.get(scorer) for cell in cells)
    values = grouped.means(units) if grouped.crowded(units.n) else sample
    return Scores(scorer, sample.n, anytime_interval(values, CONFIDENCE))
