"""What the measured cells say of a rollout, and what its guards say to that.

Of cells whose `experiment` is the rollout and whose `arm` is `baseline-N` or `candidate-N`. Stages and tasks stay apart
(their shares and their means differ); prompts and prices are added up.

In a shadow stage the candidate's arm are the answers that it gave beside the baseline's. Quality, cost and latency are
compared in pairs, over the items that both answered. Errors and refusals can't be: only items that the baseline
answered, behind a wall that lets samples be written, are asked of the candidate. They are told beside those of all the
baseline's items and decide nothing; where they look worse, the rollout waits for a person.

| guard | an item's value |
|---|---|
| quality | its score, for each scorer by itself (they share the alarm rate) |
| error_rate | 1 where a call here gave the item its answer, or one that its cascade doubted; else 0 |
| refusals | 1, or 0 where the provider's policy refused it |
| cost, latency | the logarithm, compared by means: what is doubled for half of the items shows, an outlier doesn't |

Where chance divides units, and these bring several items each, units are what is compared (`measure.grouped`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from penstock.engine.errors import SpecError
from penstock.engine.flow.cells import BAD, LN, LOG_COST, LOG_MS, PAIR, REFUSED, Cell, summed
from penstock.engine.measure import grouped
from penstock.engine.measure.allocated import Stratum
from penstock.engine.measure.grouped import NOTHING, Tally, moments_between
from penstock.engine.measure.guards import Guard, Verdict, judge, judge_arms, judge_moments
from penstock.engine.measure.moments import Moments, merge_moments
from penstock.engine.measure.sample import STEPS, Sample, merge
from penstock.engine.steering import words
from penstock.engine.steering.judges import is_judge
from penstock.engine.steering.rollout import BASELINE, ROUNDS, SHADOW, UNPAIRED, Rollout, Silent, Told, arm_of

GUARDS: Mapping[str, Guard] = {
    "quality": Guard(name="quality", fail_beyond=0.0, pass_within=-0.05, max_items=750),
    "error_rate": Guard(name="error_rate", fail_beyond=-0.01, pass_within=-0.03, max_items=1_000),
    "refusals": Guard(name="refusals", fail_beyond=-0.01, pass_within=-0.03, max_items=1_000),
    "cost": Guard(name="cost", worse="higher", fail_beyond=math.log(1.1), pass_within=math.log(1.25), max_items=1_000),
    "latency": Guard(
        name="latency", worse="higher", fail_beyond=math.log(1.25), pass_within=math.log(1.5), max_items=1_000
    ),
}
"""By the name that a person says. Any loss of quality that can be shown fails; of the others, what all items are
counted for, only a loss that matters: a point more of errors, a tenth more cost, a quarter more time. Guesses."""

FEW = 10
"""A stage does not wait for a scorer with so many times fewer scores there than the one with the most. A guess."""

Key = tuple[int, str]
"""(stage, task)."""


Asked = Callable[[Guard], tuple[Verdict, str]]
"""What a guard says, and why."""


class Sides(msgspec.Struct):
    """The two arms of one stage and task."""

    base: list[Cell]
    other: list[Cell]


def guards(names: Sequence[str], max_items: int | None = None) -> tuple[Guard, ...]:
    """Raises `SpecError` for a name that is no guard's."""
    unknown = [name for name in names if name not in GUARDS]
    if unknown:
        raise SpecError(f"there is no guard {unknown[0]!r}; guards: {', '.join(GUARDS)}")
    chosen = [GUARDS[name] for name in dict.fromkeys(names)]
    if max_items is not None:
        chosen = [msgspec.structs.replace(guard, max_items=max_items) for guard in chosen]
    return tuple(chosen)


class View(NamedTuple):
    """What a guard looks at. `base`: what the base is called. `bounds`: is `worst` asked for? `trusted`: judges that
    may decide, as `judge@version`; others inform. `units`: does chance divide units? Else items."""

    sides: Mapping[Key, Sides]
    base: str
    stage: int = 0
    bounds: bool = True
    trusted: Collection[str] = ()
    units: bool = True


class Size(NamedTuple):
    """What has no end: a logarithm. `alone`: of a cell's items; `pairs`: less the baseline's of the same item."""

    name: str
    alone: Callable[[Cell], Moments]
    pairs: Callable[[Cell], Moments]


COST = Size(LOG_COST, Cell.log_cost, Cell.cost_pairs)
LATENCY = Size(LOG_MS, Cell.log_ms, Cell.ms_pairs)


def judged(
    rollout: Rollout, cells: Iterable[Cell], trusted: Collection[str] = (), *, bounds: bool = True
) -> tuple[Told, ...]:
    """What each guard says now; of quality, by each scorer. `trusted`: judges that may decide. `bounds=False`: without
    `worst`, and sooner."""
    sides = _sides(rollout, cells)
    if rollout.round:  # by itself: what went before would hide a version that gets worse now
        sides = {key: each for key, each in sides.items() if key[0] == rollout.stage}
    elif rollout.stage != SHADOW:  # other items were compared there, and in pairs
        sides = {key: each for key, each in sides.items() if key[0] != SHADOW}
    view = View(sides, rollout.baseline, rollout.stage, bounds, trusted, rollout.unit == "unit")
    return compared([_at_stage(guard, rollout) for guard in rollout.guards], view)


def _at_stage(guard: Guard, rollout: Rollout) -> Guard:
    """What is tested in pairs, and then by arms: where both are to come, each has half of the alarm rate. A watch has
    one of its own, shared among its rounds, and each of these lasts for its number of items."""
    if rollout.round:
        return msgspec.structs.replace(guard, alarm_rate=guard.alarm_rate / ROUNDS, pass_within=None)
    if guard.name in UNPAIRED or rollout.shadow is None:
        return guard
    rate = guard.alarm_rate / 2 if rollout.stages else guard.alarm_rate
    most = rollout.shadow.pairs if rollout.stage == SHADOW and guard.name == "quality" else guard.max_items
    return msgspec.structs.replace(guard, alarm_rate=rate, max_items=most)


def compared(guards: Iterable[Guard], view: View) -> tuple[Told, ...]:
    """What each guard says of the other arm beside the base."""
    told: list[Told] = []
    for guard in guards:
        match guard.name:
            case "quality":
                told += _quality(guard, view)
            case "error_rate":
                told.append(_rate(guard, view, _answered, BAD))
            case "refusals":
                told.append(_rate(guard, view, _not_refused, REFUSED))
            case "cost":
                told.append(_free(guard, view) or _size(guard, view, COST))
            case _:
                told.append(_size(guard, view, LATENCY))
    return tuple(told)


def counts(rollout: Rollout, cells: Iterable[Cell]) -> dict[int, tuple[int, int]]:
    """Stage → items that ended in the (baseline's, candidate's) arm."""
    found: dict[int, tuple[int, int]] = {}
    for (stage, _), sides in _sides(rollout, cells).items():
        base, other = found.get(stage, (0, 0))
        found[stage] = base + _items(sides.base), other + _items(sides.other)
    return found


def unpaid(rollout: Rollout, cells: Iterable[Cell]) -> int:
    """Items that the candidate was to answer beside the baseline, and for which its shadow's money was spent."""
    return sum(cell.unpaid for cell in cells if cell.experiment == rollout.id)


def silent(rollout: Rollout, cells: Iterable[Cell]) -> Silent:
    """Items of the shadow stage that the candidate left without an answer, beyond those that it answered."""
    faults, left, answered = 0, 0, 0
    for (stage, _), sides in _sides(rollout, cells).items():
        if stage == SHADOW:
            faults += sum(cell.items - cell.unheard - cell.results for cell in sides.other)
            left += sum(cell.left for cell in sides.base)
            answered += sum(cell.results for cell in sides.other)
    return Silent(faults - answered, faults + left - answered)


def shadow_cost(rollout: Rollout, cells: Iterable[Cell]) -> int:
    """Nano-dollars that its shadow stage cost so far, judges of its answers included."""
    return sum(cell.cost_nano for cell in cells if cell.experiment == rollout.id and cell.role in ("shadow", "judge"))


def _sides(rollout: Rollout, cells: Iterable[Cell]) -> dict[Key, Sides]:
    found: dict[Key, Sides] = {}
    for cell in summed(cell for cell in cells if cell.experiment == rollout.id and cell.role in ("", "shadow")):
        arm = arm_of(cell.arm)
        if arm is None or cell.model != rollout.model or arm[1] > rollout.stage:
            continue
        sides = found.setdefault((arm[1], cell.task), Sides([], []))
        (sides.base if arm[0] == BASELINE else sides.other).append(cell)
    return found


# ---- shares and scores


def _rate(guard: Guard, view: View, of: Callable[[Cell], Sample], name: str) -> Told:
    """`name`: of the groups of units in which bad items are counted."""

    def good(cells: Sequence[Cell]) -> Tally:
        n, bad = _tally(cells, name, 1)
        return Tally(n, n - bad)

    strata = {
        key: Stratum(merge(*map(of, e.base)), merge(*map(of, e.other)), *_by_units(view, e, good))
        for key, e in view.sides.items()
    }
    verdict = _arms(guard, view, strata)
    if view.stage == SHADOW and verdict.decision != "fail":
        verdict = msgspec.structs.replace(verdict, decision="go on")
    informs = words.UNPAIRED if view.stage == SHADOW else ""
    return _told(guard.name, verdict, words.of_shares(guard, verdict, words.means(strata.values()), view.base), informs)


def _by_units(view: View, sides: Sides, of: Callable[[Sequence[Cell]], Tally]) -> tuple[Tally, Tally]:
    """(base's, other's)."""
    return (of(sides.base), of(sides.other)) if view.units else (NOTHING, NOTHING)


def _tally(cells: Sequence[Cell], name: str, steps: float) -> Tally:
    return grouped.tally((cell.groups.get(name) for cell in cells), steps)


def _arms(guard: Guard, view: View, strata: Mapping[Key, Stratum]) -> Verdict:
    here = [stratum for (stage, _), stratum in strata.items() if stage == view.stage]
    return judge_arms(guard, list(strata.values()), here, bounds=view.bounds)


def _answered(cell: Cell) -> Sample:
    return _coins(cell.results + cell.doubted, cell.items - cell.unheard)


def _not_refused(cell: Cell) -> Sample:
    items = cell.items - cell.unheard
    return _coins(items - min(items, cell.refused), items)


def _coins(good: int, items: int) -> Sample:
    return Sample(tuple(pair for pair in ((0, items - good), (STEPS, good)) if pair[1] > 0))


def _quality(guard: Guard, view: View) -> list[Told]:
    """Scores count by the scorer's name and version. With none that may decide, the guard goes on.

    A loss is looked for by each scorer, and all that ever scored share the alarm rate. A stage waits for those that
    score it: one that was edited or whose job is over would else hold it for ever. Which these are is told by how often
    they scored, never by what they said: so none is chosen for having passed.
    """
    found = _in_pairs(view) if view.stage == SHADOW else _in_arms(view)
    deciding = [scorer for scorer in found if not is_judge(scorer) or scorer in view.trusted]
    shared = msgspec.structs.replace(guard, alarm_rate=guard.alarm_rate / max(1, len(deciding)))
    told = [] if deciding else [Told(guard.name, "go on", 0, None, None, words.undecidable(guard, judges=bool(found)))]
    said = {scorer: found[scorer](shared) for scorer in sorted(found)}
    most = max((said[scorer][0].items for scorer in deciding), default=0)
    for scorer, (verdict, why) in said.items():
        few = verdict.items * FEW < most and verdict.decision != "fail"
        informs = words.INFORMS if scorer not in deciding else words.FEW if few else ""
        told.append(_told(f"{guard.name} {scorer}", verdict, why, informs))
    return told


def _in_arms(view: View) -> dict[str, Asked]:
    """By scorer: both arms of all stages."""

    def asked(scorer: str, strata: Mapping[Key, Stratum], guard: Guard) -> tuple[Verdict, str]:
        verdict = _arms(guard, view, strata)
        return verdict, words.of_scores(guard, verdict, words.means(strata.values()), scorer, view.base)

    return {scorer: partial(asked, scorer, strata) for scorer, strata in scored(view).items()}


def _in_pairs(view: View) -> dict[str, Asked]:
    """By scorer: the candidate's score less the baseline's on the same item, tasks together."""

    def asked(scorer: str, guard: Guard) -> tuple[Verdict, str]:
        pairs = merge(*(cell.pairs[scorer].sample() for cell in cells if scorer in cell.pairs))
        units = _tally(cells, PAIR + scorer, STEPS)
        values = grouped.means(units) if grouped.crowded(units.n) else pairs
        found = judge(guard, values, items=grouped.counted(pairs.n, units.n), bounds=view.bounds)
        verdict = msgspec.structs.replace(found, per_unit=grouped.per_unit(units.n))
        return verdict, words.of_pairs(guard, verdict, _scores(cells, scorer).mean, scorer, view.base, pairs.n)

    cells = _beside(view)
    return {scorer: partial(asked, scorer) for scorer in {name for cell in cells for name in cell.pairs}}


def _beside(view: View) -> list[Cell]:
    """The candidate's, in its shadow stage."""
    return [cell for sides in view.sides.values() for cell in sides.other]


def scored(view: View) -> dict[str, dict[Key, Stratum]]:
    """By scorer."""
    found: dict[str, dict[Key, Stratum]] = {}
    for key, each in view.sides.items():
        for scorer in {name for cell in (*each.base, *each.other) for name in cell.scores}:
            base, other = (_scores(cells, scorer) for cells in (each.base, each.other))
            units = _by_units(view, each, partial(_tally, name=scorer, steps=STEPS))
            found.setdefault(scorer, {})[key] = Stratum(base, other, *units)
    return found


def _scores(cells: Sequence[Cell], scorer: str) -> Sample:
    return merge(*(cell.scores[scorer].sample() for cell in cells if scorer in cell.scores))


# ---- sizes


def _size(guard: Guard, view: View, size: Size) -> Told:
    """Harm is looked for in all stages together, and passing in the present one alone."""
    if view.stage == SHADOW:
        pairs, units = _moments(_beside(view), size.pairs), _tally(_beside(view), PAIR + size.name, LN)
        values = grouped.moments(units) if grouped.crowded(units.n) else pairs
        found = judge_moments(guard, values, grouped.counted(pairs.n, units.n))
        verdict = msgspec.structs.replace(found, per_unit=grouped.per_unit(units.n))
        return _told(guard.name, verdict, words.of_sizes(guard, verdict, pairs.n, view.base))
    present = [each for (stage, _), each in view.sides.items() if stage == view.stage]
    every, here = apart(view.sides.values(), size, units=view.units), apart(present, size, units=view.units)
    harm, safe = (judge_moments(guard, each.moments, each.items) for each in (every, here))
    if harm.decision == "fail":
        verdict, n = msgspec.structs.replace(harm, items=here.items), every.n
    elif safe.decision == "fail":  # the stage alone is more extreme than the whole, which is what counts
        verdict, n = msgspec.structs.replace(safe, decision="go on"), here.n
    else:
        verdict, n = msgspec.structs.replace(safe, worst=harm.worst), here.n
    verdict = msgspec.structs.replace(verdict, per_unit=every.per_unit)
    return _told(guard.name, verdict, words.of_sizes(guard, verdict, n, view.base))


def _free(guard: Guard, view: View) -> Told | None:
    """Of a version that costs nothing there is no ratio, and the guard would go on for ever. None: there is one, or
    there are too few items to tell."""
    here = [each for (stage, _), each in view.sides.items() if stage == view.stage]
    n = sum(min(_items(each.base), _items(each.other)) for each in here)
    paid = sum(cell.cost_n for each in here for cell in each.other)
    dearer = not any(cell.cost_n for each in here for cell in each.base) and 2 * paid >= n
    if n < guard.max_items or (paid and not dearer):
        return None
    verdict = Verdict("fail" if paid else "pass", n, None, math.inf, "", bool(paid))
    return _told(guard.name, verdict, words.of_free(guard, verdict, view.base))


def _items(cells: Sequence[Cell]) -> int:
    return sum(cell.items for cell in cells)


class Apart(NamedTuple):
    """Other's mean less base's, as a mean of values. `n`: items of the smaller arm; `items`: what they count for."""

    moments: Moments
    n: int
    items: int
    per_unit: float = 1.0


def apart(sides: Collection[Sides], size: Size, *, units: bool = True) -> Apart:
    """`units`: does chance divide units? Else items."""
    parts: list[Moments] = []
    for each in sides:
        base, other = (_moments(cells, size.alone) for cells in (each.base, each.other))
        n = min(base.n, other.n)
        if n:
            variance = n * (other.variance / other.n + base.variance / base.n)
            parts.append(Moments(n, other.mean - base.mean, n * variance))
    n = sum(part.n for part in parts)
    arms = [(_tally(e.base, size.name, LN), _tally(e.other, size.name, LN)) for e in sides] if units else []
    in_groups = grouped.joined(arm for both in arms for arm in both).n
    if grouped.crowded(in_groups):
        return Apart(moments_between(arms), n, grouped.counted(n, in_groups), grouped.per_unit(in_groups))
    if not n:
        return Apart(Moments(), 0, 0)
    # means of tasks differ for good reasons: only what varies within each counts
    return Apart(Moments(n, sum(p.n * p.mean for p in parts) / n, sum(p.squares for p in parts)), n, n)


def _moments(cells: Sequence[Cell], of: Callable[[Cell], Moments]) -> Moments:
    total = Moments()
    for cell in cells:
        total = merge_moments(total, of(cell))
    return total


def _told(name: str, verdict: Verdict, why: str, informs: str = "") -> Told:
    """`informs`: why it decides nothing; empty: it decides."""
    worst = verdict.worst if math.isfinite(verdict.worst) else None
    return Told(name, verdict.decision, verdict.items, verdict.mean, worst, why + informs, bool(informs))
