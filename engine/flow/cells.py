"""Measured cells: what was seen of each (task, model version, prompt, price, arm), as sums of whole numbers.

A lane counts an item here once, when it ends, so its cells are part of its committed progress and exact: an item that
is lost with its lane is counted by the next owner. Sums of lanes, runs and jobs add up in any order, and a run's sums
can be taken out again (`connectors.measured`). A copied answer is no new evidence and is not counted.

Who is measured is told by the cell's `role`: "" answered for the record, "shadow" was only compared (or not believed by
a cascade), "judge" scored others (its price stands in theirs too, as `judge_nano`), "idle" are hours of own engines
that no call was charged for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import log
from typing import Literal, TypeVar

import msgspec

from penstock.engine.errors import Corrupt
from penstock.engine.flow.settle import Priced
from penstock.engine.flow.tally import TaskTally, add_counts
from penstock.engine.items import Attempt, CostLine, DeadLetter, Result, Score, ShadowAnswer
from penstock.engine.measure.moments import Moments
from penstock.engine.measure.sample import STEPS, Sample
from penstock.engine.policy import Promise

K = TypeVar("K", str, int)

CellRole = Literal["", "shadow", "judge", "idle"]
Key = tuple[str, str, str, str, str, CellRole, str, str]
"""(task, model, version, prompt version, price version, role, experiment, arm)."""

CELLS = "cells"
"""Name of the chunk that holds a lane's cells."""
MAX_CELLS = 128
"""Of one lane; some 300 bytes each go with every commit. Beyond it a new one counts without prompt, price and arm."""
MAX_ARMS = 384
"""Cells of arms beside them: guards see nothing else, and a watch over many tasks fills two a task and round."""
IN_USE = 4
"""Experiments and rollouts whose arms are told apart for sure: one item's calls are in fewer. Beyond `MAX_ARMS` the
arms of the one that nobody added to for longest are merged."""
MAX_VALUES = 128
"""Different scores that one scorer may give in a cell, in thousandths; beyond it they are counted in hundredths."""
HUNDREDTH = 10
REST = "*"
"""Stands for prompt, price and arm in a cell that took what found no other."""
LN = 1_000.0
"""Logarithms are kept in thousandths: a tenth of a per cent of a cost."""


class Scored(msgspec.Struct, omit_defaults=True):
    """How often each score came, in thousandths."""

    passed: int = 0
    counts: dict[int, int] = msgspec.field(default_factory=dict[int, int])
    coarse: bool = False
    """In hundredths: there were too many different ones."""

    @property
    def n(self) -> int:
        return sum(self.counts.values())

    def sample(self) -> Sample:
        return Sample(tuple(sorted((step, n) for step, n in self.counts.items() if n > 0)))

    def add(self, score: Score) -> None:
        self.passed += score.passed
        self.count(score.score)

    def count(self, value: float) -> None:
        step = round(value * STEPS)
        if self.coarse:
            step = _hundredths(step)
        self.counts[step] = self.counts.get(step, 0) + 1
        if len(self.counts) > MAX_VALUES:
            self.coarsen()

    def coarsen(self) -> None:
        fine, self.counts, self.coarse = self.counts, {}, True
        for step, n in fine.items():
            self.counts[_hundredths(step)] = self.counts.get(_hundredths(step), 0) + n


class Cell(msgspec.Struct, omit_defaults=True):
    """Sums over items that ended. All whole numbers but `cost_square`."""

    task: str = ""
    model: str = ""
    version: str = ""
    prompt: str = ""
    price: str = ""
    role: CellRole = ""
    experiment: str = ""
    arm: str = ""
    items: int = 0
    """That had a call here, however they ended: exposure."""
    results: int = 0
    """Of them, those that carry an answer from here."""
    calls: int = 0
    failures: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    """`FailureKind` → calls."""
    input: int = 0
    cached: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    output: int = 0
    reasoning: int = 0
    cost_nano: int = 0
    """All calls here."""
    judge_nano: int = 0
    """What judging the answers from here cost, wherever the judge ran."""
    cost_square: float = 0.0
    """Σ of each item's cost here squared: for the width of an interval only, so rounding does no harm."""
    cost_n: int = 0
    """Items that cost something here: those have a logarithm."""
    cost_ln: int = 0
    cost_ln2: int = 0
    """Σx and Σx² of x = 1,000 · ln(nano-dollars)."""
    ms_ln: int = 0
    ms_ln2: int = 0
    """Of x = 1,000 · ln(milliseconds of an item's calls here), one an item."""
    scores: dict[str, Scored] = msgspec.field(default_factory=dict[str, Scored])
    """`scorer@version` → scores of answers from here."""
    pairs: dict[str, Scored] = msgspec.field(default_factory=dict[str, Scored])
    """Of a rollout's candidate in its shadow stage: `scorer@version` → score less that of the baseline's answer to the
    same item, from -1,000 to 1,000."""
    pair_cost_n: int = 0
    pair_cost_ln: int = 0
    pair_cost_ln2: int = 0
    """Of the same items: count, Σx and Σx² of x = 1,000 · ln(what its answer cost / what the baseline's did)."""
    pair_ms_n: int = 0
    pair_ms_ln: int = 0
    pair_ms_ln2: int = 0
    """The same of milliseconds."""
    unpaid: int = 0
    """Items answered from here that were to have such a shadow, and its money was spent."""
    doubted: int = 0
    """Of `items`, those that gave an answer that their cascade did not believe: it went on for a better one."""
    unheard: int = 0
    """Of `items` of a candidate in its shadow stage, those that a limit or an outage left without an answer."""
    accepted: dict[int, Scored] = msgspec.field(default_factory=dict[int, Scored])
    """Version of a cascade's calibration → scores of those that it accepted, by the scorer that it names."""

    @property
    def key(self) -> Key:
        return self.task, self.model, self.version, self.prompt, self.price, self.role, self.experiment, self.arm

    @property
    def refused(self) -> int:
        """Calls that the provider's policy refused."""
        return self.failures.get("refused", 0)

    def log_cost(self) -> Moments:
        return _moments(self.cost_n, self.cost_ln, self.cost_ln2)

    def log_ms(self) -> Moments:
        return _moments(self.items, self.ms_ln, self.ms_ln2)

    def cost_pairs(self) -> Moments:
        return _moments(self.pair_cost_n, self.pair_cost_ln, self.pair_cost_ln2)

    def ms_pairs(self) -> Moments:
        return _moments(self.pair_ms_n, self.pair_ms_ln, self.pair_ms_ln2)

    def cost(self) -> Moments:
        """Of an item, in nano-dollars."""
        mean = self.cost_nano / self.items if self.items else 0.0
        return Moments(self.items, mean, max(0.0, self.cost_square - mean * self.cost_nano))


COUNTED = frozenset({"failures", "scores", "pairs", "accepted"})
"""Fields that are counts by name."""
_SUMS = tuple(name for name in Cell.__struct_fields__[8:] if name not in COUNTED)


def cells_in(chunks: Mapping[str, bytes]) -> list[Cell]:
    """A lane's committed cells; none where it never committed. Raises `Corrupt`."""
    return decoded(chunks[CELLS]) if CELLS in chunks else []


def decoded(data: bytes) -> list[Cell]:
    """Raises `Corrupt`."""
    try:
        return _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"the lane's cells can't be read ({error}); restore its progress from a backup") from error


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
        self._arms = sum(map(_is_arm, self.rows))
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
        if len(attempts) == 1:
            one = attempts[0]
            _call(own, one)
            _item(own, one.cost_nano, one.ms)
        else:
            own.judge_nano += self._several(task, prompt, attempts, own)
            if result.unheard:
                self._unheard(task, prompt, attempts)
        for score in result.scores:
            _score(own, score)
        promise = self._promises.get(task) if result.signal is not None else None
        if promise is not None:
            for score in result.scores:
                if f"{score.scorer}@{score.scorer_version}" == promise.scorer:
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
                _pair(at, result.scores, shadow.scores)
                _pair_sizes(at, result, shadow)

    def dead(self, dead: DeadLetter) -> None:
        """An item without a result counts as one at each model that was asked."""
        if dead.attempts and dead.route is not None:
            task = dead.route.task
            self._several(task, dead.prompt_version, dead.attempts)

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
            self._arms += _is_arm(cell)
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

    def _several(self, task: str, prompt: str, attempts: Sequence[Attempt], own: Cell | None = None) -> int:
        """The item counts once at each model that it was sent to. `own`: whose answer it has; what others said before
        was doubted. Returns what judges cost; those of a rollout's shadow stage are on its bill alone."""
        spent: dict[Key, tuple[int, float]] = {}
        heard = dict[Key, None]()
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
        for key, (cost, ms) in spent.items():
            _item(self.at(key), cost, ms)
        for cell in map(self.at, heard):
            cell.doubted += cell is not own
        return judged


def _is_arm(cell: Cell) -> bool:
    return cell.experiment not in ("", REST)


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
    if attempt.outcome != "ok":
        cell.failures[attempt.outcome] = cell.failures.get(attempt.outcome, 0) + 1


def _item(cell: Cell, cost_nano: int, ms: float) -> None:
    cell.items += 1
    cell.cost_nano += cost_nano
    if cost_nano > 0:
        x = int(LN * log(cost_nano))
        cell.cost_n += 1
        cell.cost_ln += x
        cell.cost_ln2 += x * x
        cell.cost_square += float(cost_nano) * cost_nano
    x = int(LN * log(ms if ms > 1.0 else 1.0))
    cell.ms_ln += x
    cell.ms_ln2 += x * x


def _score(cell: Cell, score: Score) -> None:
    name = f"{score.scorer}@{score.scorer_version}"
    scored = cell.scores.get(name)
    if scored is None:
        scored = cell.scores[name] = Scored()
    scored.add(score)


def _pair(cell: Cell, base: Sequence[Score], other: Sequence[Score]) -> None:
    """By each scorer that scored both."""
    scores = {(score.scorer, score.scorer_version): score.score for score in base}
    for score in other:
        mine = scores.get((score.scorer, score.scorer_version))
        if mine is not None:
            name = f"{score.scorer}@{score.scorer_version}"
            cell.pairs.setdefault(name, Scored()).count(score.score - mine)


def _pair_sizes(cell: Cell, result: Result, shadow: ShadowAnswer) -> None:
    """What the two answers cost, and how long they took, with the calls that failed before them."""
    own = [call for call in result.attempts if (call.experiment, call.arm) == (result.experiment, result.arm)]
    cost = sum(call.cost_nano for call in own)
    if cost > 0 and shadow.cost_nano > 0:
        x = round(LN * log(shadow.cost_nano / cost))
        cell.pair_cost_n += 1
        cell.pair_cost_ln += x
        cell.pair_cost_ln2 += x * x
    if own:
        x = round(LN * log(max(1.0, shadow.ms) / max(1.0, sum(call.ms for call in own))))
        cell.pair_ms_n += 1
        cell.pair_ms_ln += x
        cell.pair_ms_ln2 += x * x


_decoder = msgspec.msgpack.Decoder(list[Cell])


# ---- sums


def add(into: dict[Key, Cell], cells: Iterable[Cell], sign: Literal[1, -1] = 1) -> None:
    """Add cells to `into`, or (-1) take them out again. Leaves `cells` as they are."""
    for cell in cells:
        mine = into.get(cell.key)
        if mine is None:
            mine = into[cell.key] = Cell(*cell.key)
        for name in _SUMS:
            setattr(mine, name, getattr(mine, name) + sign * getattr(cell, name))
        add_counts(mine.failures, cell.failures, sign)
        _add_by_name(mine.scores, cell.scores, sign)
        _add_by_name(mine.pairs, cell.pairs, sign)
        _add_by_name(mine.accepted, cell.accepted, sign)


def _add_by_name(into: dict[K, Scored], more: Mapping[K, Scored], sign: Literal[1, -1]) -> None:
    for name, scored in more.items():
        add_scores(into.setdefault(name, Scored()), scored, sign)


def add_scores(into: Scored, scored: Scored, sign: Literal[1, -1] = 1) -> None:
    """The same in any order: sums are in hundredths where a part is, or where all values together are too many."""
    if scored.coarse and not into.coarse:
        into.coarsen()
    for step, n in scored.counts.items():
        at = _hundredths(step) if into.coarse else step
        into.counts[at] = into.counts.get(at, 0) + sign * n
    into.passed += sign * scored.passed
    if len(into.counts) > MAX_VALUES:
        into.coarsen()


def summed(*parts: Iterable[Cell]) -> list[Cell]:
    """By key."""
    total: dict[Key, Cell] = {}
    for cells in parts:
        add(total, cells)
    return [total[key] for key in sorted(total)]


def quality_rows(cells: Iterable[Cell]) -> list[TaskTally]:
    """Scores by (task, model@version, scorer), in this order; prompts, prices and arms together, shadows apart."""
    rows: dict[tuple[str, str, str], TaskTally] = {}
    for cell in cells:
        model = f"{cell.model}@{cell.version}" + (f" ({cell.role})" if cell.role else "")
        for scorer, scored in cell.scores.items():
            row = rows.setdefault((cell.task, model, scorer), TaskTally(cell.task, model))
            row.n += scored.n
            row.passed += scored.passed
            row.score += sum(step * n for step, n in scored.counts.items()) / STEPS
            row.score2 += sum(step * step * n for step, n in scored.counts.items()) / STEPS**2
    return [rows[key] for key in sorted(rows)]


def _moments(n: int, total: int, squares: int) -> Moments:
    """Exact until the last division: no cancelling, however many items."""
    if n <= 0:
        return Moments()
    return Moments(n, total / n / LN, max(0, n * squares - total * total) / n / LN**2)


def _hundredths(step: int) -> int:
    """The nearest; halves go to the even one, so that no mean drifts."""
    return round(step / HUNDREDTH) * HUNDREDTH
