"""A lane's cells (`flow.cells`): what each item that ended adds to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import log
from typing import NamedTuple

import msgspec

from penstock.engine.flow.cells import (
    BAD,
    LN,
    LOG_COST,
    LOG_MS,
    PAIR,
    REFUSED,
    REST,
    Cell,
    CellRole,
    Key,
    Scored,
    add,
)
from penstock.engine.flow.settle import Priced
from penstock.engine.items import STEP_ROLES, Item
from penstock.engine.measure.distinct import Distinct
from penstock.engine.measure.grouped import Groups, group_of
from penstock.engine.measure.sample import STEPS
from penstock.engine.policy import Promise
from penstock.engine.results import Attempt, CostLine, DeadLetter, Result, Score, ShadowAnswer, last_asked

MAX_CELLS = 128
"""Of one lane; some 300 bytes each go with every commit. Beyond it a new one counts without prompt, price and arm."""
MAX_ARMS = 384
"""Cells of arms beside them: guards see nothing else, and a watch over many tasks fills two a task and round."""
IN_USE = 4
"""Experiments and rollouts whose arms are told apart for sure: one item's calls are in fewer. Beyond `MAX_ARMS` the
arms of the one that nobody added to for longest are merged."""


class Cells:
    """A lane's cells. `rows` is what its progress holds; `promises`: task → what its cascade's calibration promised."""

    def __init__(
        self,
        rows: Iterable[Cell] = (),
        priced: Mapping[tuple[str, str], Priced] | None = None,
        promises: Mapping[str, Promise] | None = None,
    ) -> None:
        self.rows = list(rows)
        self._priced = priced or {}
        self._promises = promises or {}
        self._by_key = {cell.key: cell for cell in self.rows}
        self._arms = sum(cell.is_arm for cell in self.rows)
        self._recent = dict.fromkeys(cell.experiment for cell in self.rows if cell.experiment and cell.arm != REST)
        """Experiments and rollouts, the one that was added to last at the end."""

    def result(self, result: Result) -> None:
        attempts = result.attempts
        if not attempts:
            return
        task, prompt, price = result.route.task, result.prompt_version, result.price_version
        key: Key = (task, result.model, result.model_version, prompt, price, "", result.experiment, result.arm)
        own = self.at(key)
        own.results += 1
        own.unpaid += result.unpaid
        own.left += result.unheard and not result.unpaid
        if len(attempts) == 1:
            one = attempts[0]
            _call(own, one)
            _item(own, one.cost_nano, one.ms)
            if not _on_trial(result.item):
                _by_unit(own, result.item, _Ended(False, False, one.cost_nano, one.ms))
        else:
            own.judge_nano += self._several(task, prompt, attempts, own, result.item)
            if result.unheard:
                self._unheard(task, prompt, attempts)
        if _on_trial(result.item):
            _whole(own, result.item, attempts, dead=False)
        for score in result.scores:
            _score(own, score)
            _see(own, result.item, _name(score), round(score.score * STEPS))
        promise = self._promises.get(task) if result.signal is not None else None
        if promise is not None:
            for score in result.scores:
                if _name(score) == promise.scorer:
                    own.accepted.setdefault(promise.calibration, Scored()).add(score)
        for doubted in result.doubted:  # else its model would look as good as the answers that it was sure of
            at = self.at(self._key(task, doubted.model, doubted.model_version, prompt, "shadow"))
            for score in doubted.scores:
                _score(at, score)
        for shadow in result.shadows:
            arm = shadow.experiment, shadow.arm
            at = self.at(self._key(task, shadow.model, shadow.model_version, prompt, "shadow", *arm))
            at.results += 1
            for score in shadow.scores:
                _score(at, score)
            if shadow.experiment:
                _pair(at, result, shadow.scores)
                _pair_sizes(at, result, shadow)

    def dead(self, dead: DeadLetter) -> None:
        """An item without a result counts as one at each model that was asked."""
        if dead.attempts and dead.route is not None:
            task = dead.route.task
            self._several(task, dead.prompt_version, dead.attempts, item=dead.item)
            last = last_asked(dead.attempts)
            if dead.item is not None and last is not None and _on_trial(dead.item):
                arm = last.experiment, last.arm
                at = self.at(self._key(task, last.model, last.model_version, dead.prompt_version, "", *arm))
                _whole(at, dead.item, dead.attempts, dead=True)

    def adjust(self, line: CostLine) -> None:
        """A closing line of own engines: hours that belong to no item."""
        at = self.at(("", line.model, line.model_version, "", line.price_version, "idle", "", ""))
        at.cost_nano += line.cost_nano

    def at(self, key: Key) -> Cell:
        experiment = key[6]
        if experiment:
            self._recent.pop(experiment, None)
            self._recent[experiment] = None
        cell = self._by_key.get(key)
        return cell if cell is not None else self._new(key)

    def _new(self, key: Key) -> Cell:
        while key[6] and self._arms >= MAX_ARMS and len(self._recent) > IN_USE:
            self._merge(next(iter(self._recent)))
        return self._placed(self._room(key))

    def _room(self, key: Key) -> Key:
        """Where it is counted: at itself, or, where there are too many, at what takes the rest of its model."""
        full = self._arms >= MAX_ARMS if key[6] else len(self.rows) - self._arms >= MAX_CELLS
        if not full or key in self._by_key:
            return key
        task, model, version, _, _, role, _, _ = key
        return task, model, version, REST, REST, role, REST, REST

    def _placed(self, key: Key) -> Cell:
        cell = self._by_key.get(key)
        if cell is None:
            cell = self._by_key[key] = Cell(*key)
            self.rows.append(cell)
            self._arms += cell.is_arm
        return cell

    def _merge(self, experiment: str) -> None:
        """Tell the arms of an experiment or rollout apart no more: it is over for long, and another one, whose guards
        see its cells alone, needs the room."""
        del self._recent[experiment]
        gone = [cell for cell in self.rows if cell.experiment == experiment]
        self.rows = [cell for cell in self.rows if cell.experiment != experiment]
        self._by_key = {cell.key: cell for cell in self.rows}
        self._arms -= len(gone)
        for cell in gone:
            key = self._room((*cell.key[:6], "", ""))
            _, _, _, prompt, price, _, name, arm = key
            moved = msgspec.structs.replace(cell, prompt=prompt, price=price, experiment=name, arm=arm)
            add({key: self._placed(key)}, [moved])

    def _key(self, task: str, model: str, version: str, prompt: str, role: CellRole, *arm: str) -> Key:
        at = self._priced.get((model, version))
        experiment, name = arm or ("", "")
        return task, model, version, prompt, at.price.version if at is not None else "", role, experiment, name

    def _unheard(self, task: str, prompt: str, attempts: Sequence[Attempt]) -> None:
        """A candidate that was given up before it was called has no item here."""
        asked = next((each for each in attempts if each.role == "shadow" and each.experiment), None)
        if asked is not None:
            arm = asked.experiment, asked.arm
            self.at(self._key(task, asked.model, asked.model_version, prompt, "shadow", *arm)).unheard += 1

    def _several(
        self, task: str, prompt: str, attempts: Sequence[Attempt], own: Cell | None = None, item: Item | None = None
    ) -> int:
        """The item counts once at each model that it was sent to. `own`: whose answer it has; what others said before
        was doubted. Returns what judges cost; those of a rollout's shadow stage are on its bill alone."""
        spent: dict[Key, tuple[int, float]] = {}
        heard, refused = dict[Key, None](), set[Key]()
        judged = 0
        for attempt in attempts:
            role: CellRole = attempt.role if attempt.role in ("judge", "shadow") else ""
            judged += attempt.cost_nano if role == "judge" and not attempt.experiment else 0
            arm = attempt.experiment, attempt.arm
            key = self._key(task, attempt.model, attempt.model_version, prompt, role, *arm)
            _call(self.at(key), attempt)
            cost, ms = spent.get(key, (0, 0.0))
            spent[key] = cost + attempt.cost_nano, ms + attempt.ms
            if not role and attempt.outcome == "ok":
                heard[key] = None
            elif attempt.outcome == "refused":
                refused.add(key)
        for key, (cost, ms) in spent.items():
            cell = self.at(key)
            _item(cell, cost, ms)
            if item is not None and not cell.role and not _on_trial(item):
                bad = cell is not own and key not in heard
                _by_unit(cell, item, _Ended(bad, key in refused, cost, ms))
        for cell in map(self.at, heard):
            cell.doubted += cell is not own
        return judged


def _call(cell: Cell, attempt: Attempt) -> None:
    cell.calls += 1
    usage = attempt.usage
    if usage is not None:
        cell.input += usage.input
        cell.output += usage.output
        if usage.cached or usage.cache_write or usage.cache_write_1h or usage.reasoning:
            cell.cached += usage.cached
            cell.cache_write += usage.cache_write
            cell.cache_write_1h += usage.cache_write_1h
            cell.reasoning += usage.reasoning
    if attempt.engine_ms > 0:
        cell.engine_n += 1
        cell.engine_us += round(attempt.engine_ms * 1_000)
    if attempt.outcome != "ok":
        cell.failures[attempt.outcome] = cell.failures.get(attempt.outcome, 0) + 1


def _item(cell: Cell, cost_nano: int, ms: float) -> None:
    cell.items += 1
    cell.cost_nano += cost_nano
    if cost_nano > 0:
        x = _ln(cost_nano)
        cell.cost_n += 1
        cell.cost_ln += x
        cell.cost_ln2 += x * x
        cell.cost_square += float(cost_nano) * cost_nano
    x = _ln(ms)
    cell.ms_ln += x
    cell.ms_ln2 += x * x


def _on_trial(item: Item) -> bool:
    return item.exposure is not None and bool(item.exposure.experiment)


class _Ended(NamedTuple):
    """How an item ended in a cell. `bad`: without an answer from there."""

    bad: bool
    refused: bool
    cost_nano: int
    ms: float


def _whole(cell: Cell, item: Item, attempts: Sequence[Attempt], *, dead: bool) -> None:
    """The item, with all calls for its answer."""
    own = [each for each in attempts if each.role not in STEP_ROLES]
    cost, ms = sum(each.cost_nano for each in own), sum(each.ms for each in own)
    balked = any(each.outcome == "refused" for each in own)
    cell.ended += 1
    cell.dead += dead
    cell.balked += balked
    if item.attributes.unit:  # by an empty one nothing is divided (`steering.arms`)
        cell.united += 1
        cell.units = cell.units or Distinct()
        cell.units.see(item.attributes.unit)
    if cost > 0:
        x = _ln(cost)
        cell.whole_cost_n += 1
        cell.whole_cost_ln += x
        cell.whole_cost_ln2 += x * x
    x = _ln(ms)
    cell.whole_ms_ln += x
    cell.whole_ms_ln2 += x * x
    _by_unit(cell, item, _Ended(dead, balked, cost, ms))


def _by_unit(cell: Cell, item: Item, ended: _Ended) -> None:
    _see(cell, item, BAD, ended.bad)
    _see(cell, item, REFUSED, ended.refused)
    if ended.cost_nano > 0:
        _see(cell, item, LOG_COST, _ln(ended.cost_nano))
    _see(cell, item, LOG_MS, _ln(ended.ms))


def _see(cell: Cell, item: Item, name: str, value: int) -> None:
    unit = item.attributes.unit
    if cell.is_arm and (unit or cell.groups):
        cell.groups.setdefault(name, Groups()).see(group_of(unit or item.item_id), value)


def _ln(value: float) -> int:
    return int(LN * log(max(1.0, value)))


def _score(cell: Cell, score: Score) -> None:
    name = _name(score)
    scored = cell.scores.get(name)
    if scored is None:
        scored = cell.scores[name] = Scored()
    scored.add(score)


def _name(score: Score) -> str:
    return f"{score.scorer}@{score.scorer_version}"


def _pair(cell: Cell, base: Result, other: Sequence[Score]) -> None:
    """By each scorer that scored both."""
    scores = {_name(score): score.score for score in base.scores}
    for score in other:
        name = _name(score)
        if name in scores:
            less = score.score - scores[name]
            cell.pairs.setdefault(name, Scored()).count(less)
            _see(cell, base.item, PAIR + name, round(less * STEPS))


def _pair_sizes(cell: Cell, result: Result, shadow: ShadowAnswer) -> None:
    """What the two answers cost, and how long they took, with the calls that failed before them."""
    own = [call for call in result.attempts if (call.experiment, call.arm) == (result.experiment, result.arm)]
    cost = sum(call.cost_nano for call in own)
    if cost > 0 and shadow.cost_nano > 0:
        x = round(LN * log(shadow.cost_nano / cost))
        cell.pair_cost_n += 1
        cell.pair_cost_ln += x
        cell.pair_cost_ln2 += x * x
        _see(cell, result.item, PAIR + LOG_COST, x)
    if own:
        x = round(LN * log(max(1.0, shadow.ms) / max(1.0, sum(call.ms for call in own))))
        cell.pair_ms_n += 1
        cell.pair_ms_ln += x
        cell.pair_ms_ln2 += x * x
        _see(cell, result.item, PAIR + LOG_MS, x)
