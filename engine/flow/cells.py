"""Measured cells: what was seen of each (task, model version, prompt, price, arm), as sums of whole numbers.

A lane counts an item here once, when it ends, so its cells are part of its committed progress and exact: an item that
is lost with its lane is counted by the next owner. Sums of lanes, runs and jobs add up in any order, and a run's sums
can be taken out again (`connectors.measured`). A copied answer is no new evidence and is not counted.

Who is measured is told by the cell's `role`: "" answered for the record, "shadow" was only compared (or not believed by
a cascade), "judge" scored others (its price stands in theirs too, as `judge_nano`), "idle" are hours of own engines
that no call was charged for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, TypeVar

import msgspec

from penstock.engine.errors import Corrupt
from penstock.engine.flow.tally import TaskTally, add_counts
from penstock.engine.measure.distinct import Distinct, joined
from penstock.engine.measure.grouped import Groups
from penstock.engine.measure.moments import Moments
from penstock.engine.measure.sample import STEPS, Sample
from penstock.engine.results import Score

K = TypeVar("K", str, int)

CellRole = Literal["", "shadow", "judge", "idle"]
Key = tuple[str, str, str, str, str, CellRole, str, str]
"""(task, model, version, prompt version, price version, role, experiment, arm)."""

CELLS = "cells"
"""Name of the chunk that holds a lane's cells."""
MAX_VALUES = 128
"""Different scores that one scorer may give in a cell, in thousandths; beyond it they are counted in hundredths."""
HUNDREDTH = 10
LN = 1_000.0
"""Logarithms are kept in thousandths: a tenth of a per cent of a cost."""
BAD, REFUSED, LOG_COST, LOG_MS, PAIR = "bad", "refused", "ln cost", "ln ms", "pair "
"""Names of groups: 1 for an item that ended without an answer from here, or that the provider's policy refused; 1,000
times the logarithm of its nano-dollars and milliseconds. `PAIR` before a name: less the baseline's on the same item."""
REST = "*"
"""Stands for prompt, price and arm in a cell that took what found no other."""


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
            step = hundredths(step)
        self.counts[step] = self.counts.get(step, 0) + 1
        if len(self.counts) > MAX_VALUES:
            self.coarsen()

    def coarsen(self) -> None:
        fine, self.counts, self.coarse = self.counts, {}, True
        for step, n in fine.items():
            self.counts[hundredths(step)] = self.counts.get(hundredths(step), 0) + n


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
    left: int = 0
    """Items answered from here that were to have such a shadow, and a limit or an outage left them without."""
    doubted: int = 0
    """Of `items`, those that gave an answer that their cascade did not believe: it went on for a better one."""
    unheard: int = 0
    """Of `items` of a candidate in its shadow stage, those that a limit or an outage left without an answer."""
    accepted: dict[int, Scored] = msgspec.field(default_factory=dict[int, Scored])
    """Version of a cascade's calibration → scores of those that it accepted, by the scorer that it names."""
    ended: int = 0
    """Items of an experiment that ended here: with an answer from here, or without one and here at last. `whole_…` and
    what follows count all of their calls, those at other models too: an arm pays for its fallbacks."""
    dead: int = 0
    """Of them, those without an answer."""
    balked: int = 0
    """Of them, those that some provider's policy refused."""
    united: int = 0
    """Of them, those with a `unit`: they come in groups that share an arm."""
    units: Distinct | None = None
    """Which units these are."""
    whole_cost_n: int = 0
    whole_cost_ln: int = 0
    whole_cost_ln2: int = 0
    whole_ms_ln: int = 0
    whole_ms_ln2: int = 0
    groups: dict[str, Groups] = msgspec.field(default_factory=dict[str, Groups])
    """Of arms: what an item's value is (`BAD`, …, or a `scorer@version`) → its sums by groups of units, for guards that
    must not take a unit's items for independent. From the first item with a `unit` on; one without is a unit itself."""
    engine_n: int = 0
    """Calls here of which it is known how much of their engine's time they took."""
    engine_us: int = 0
    """Microseconds of it."""

    @property
    def is_arm(self) -> bool:
        """Of an experiment or rollout, told apart."""
        return self.experiment not in ("", REST)

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

    def engine_s(self) -> float | None:
        """Seconds of its engine's time that an item takes, all its calls here together. None: not known."""
        return self.engine_us / self.engine_n / 1e6 * self.calls / self.items if self.engine_n else None

    def cost(self) -> Moments:
        """Of an item, in nano-dollars."""
        mean = self.cost_nano / self.items if self.items else 0.0
        return Moments(self.items, mean, max(0.0, self.cost_square - mean * self.cost_nano))


COUNTED = frozenset({"failures", "scores", "pairs", "accepted", "groups"})
"""Fields that are counts by name."""
_SUMS = tuple(name for name in Cell.__struct_fields__[8:] if name not in COUNTED | {"units"})


def cells_in(chunks: Mapping[str, bytes]) -> list[Cell]:
    """A lane's committed cells; none where it never committed. Raises `Corrupt`."""
    return decoded(chunks[CELLS]) if CELLS in chunks else []


def decoded(data: bytes) -> list[Cell]:
    """Raises `Corrupt`."""
    try:
        return _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"the lane's cells can't be read ({error}); restore its progress from a backup") from error


_decoder = msgspec.msgpack.Decoder(list[Cell])


# ---- sums


def add(into: dict[Key, Cell], cells: Iterable[Cell], sign: Literal[1, -1] = 1) -> None:
    """Add cells to `into`, or (-1) take them out again. Leaves `cells` as they are.

    Units are not taken out: a unit that was seen keeps its arm, so it counts once, whoever sees it again."""
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
        for name, groups in cell.groups.items() if mine.is_arm else ():
            mine.groups.setdefault(name, Groups()).join(groups, sign)
        if cell.units is not None and mine.is_arm:
            mine.units = joined([mine.units or Distinct(), cell.units])


def _add_by_name(into: dict[K, Scored], more: Mapping[K, Scored], sign: Literal[1, -1]) -> None:
    for name, scored in more.items():
        add_scores(into.setdefault(name, Scored()), scored, sign)


def add_scores(into: Scored, scored: Scored, sign: Literal[1, -1] = 1) -> None:
    """The same in any order: sums are in hundredths where a part is, or where all values together are too many."""
    if scored.coarse and not into.coarse:
        into.coarsen()
    for step, n in scored.counts.items():
        at = hundredths(step) if into.coarse else step
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


def hundredths(step: int) -> int:
    """The nearest; halves go to the even one, so that no mean drifts."""
    return round(step / HUNDREDTH) * HUNDREDTH
