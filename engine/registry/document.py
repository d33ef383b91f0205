"""`measured.json`: what all runs measured, and how a run's sums get into it exactly once. Pure; `connectors.measured`
reads and writes.

A run tells absolute sums, numbered upwards, in a document of its own (`Sums`), which keeps the last two. The shared one
(`Measured`) remembers which number it has of each run. To fold is to add "the latest, less the one it has":

    1  the shared document gets the run's latest                      it has b, the run keeps (a, b)
    2  the run writes (b, c)                                          only where nobody else wrote meanwhile
    3  the shared document gets c

So whatever is killed in between, the number that is had is always one of the two that are kept; the next fold goes on.
An owner that was replaced (an older epoch, or the life before `--fresh`) can't write the run's sums any more, and what
it still folds is what the run's document said.

A run that ended is closed and forgotten in time. `opening` counts how often it was opened, so that whoever closes it
late can't close it for its next owner. A fresh start gives the run's sums a new life: what the thrown-away outputs had
measured is taken out as the new life's sums replace it, since the same rows would else count twice.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from penstock.engine.flow.cells import Cell, Key, Scored, add, add_scores
from penstock.engine.registry.windows import Window, grow

MAX_RUNS = 500
"""Runs that are remembered; of those that ended, the latest."""
MAX_ROWS = 1_000
"""Cells without an arm: some 400 kB. Beyond it the oldest go."""
MAX_ARMS = 500
"""Cells of arms beside them: guards see nothing else. Beyond it the arms of the experiment or rollout that nobody added
to for longest are merged."""
IN_USE = 16
"""Experiments and rollouts, of all jobs, whose arms are told apart for sure, however many they are: a guess at how many
go on at once."""
MAX_MERGED = 200
MAX_COUNTED = 500
"""Evaluations times candidates and scorers: some 100 kB. Beyond it the oldest would count again."""


class Numbered(msgspec.Struct, frozen=True):
    number: int
    cells: list[Cell] = []


class Sums(msgspec.Struct, frozen=True):
    """One run's own. `states`: the last two, oldest first; the shared document has one of them."""

    life: float = 0.0
    """When the run was begun, or begun anew by `--fresh`: Unix seconds, as its plan says."""
    epoch: int = 0
    opening: int = 1
    closed: bool = False
    states: tuple[Numbered, ...] = (Numbered(0),)
    data: str = ""
    """Of an evaluation: which rows it asks. Empty: rows that come once."""

    @property
    def latest(self) -> Numbered:
        return self.states[-1]

    def then(self, cells: list[Cell]) -> Sums:
        """With one state more. Only where the shared document has the latest."""
        return msgspec.structs.replace(self, states=(self.latest, Numbered(self.latest.number + 1, cells)))


class Run(msgspec.Struct):
    number: int
    at: float
    """When it was last heard of."""
    opening: int = 1
    closed: bool = False


class Row(msgspec.Struct):
    at: float
    cell: Cell


Watched = tuple[str, str, str, str, str, int]
"""Of whom scores are kept in the order they came: the fields of `Recent` but its windows."""


class Recent(msgspec.Struct):
    """Scores of a model in the order they came, by results and shadows, of all prices and arms."""

    task: str
    model: str
    version: str
    prompt: str
    scorer: str
    windows: list[Window] = msgspec.field(default_factory=list[Window])
    accepted: int = 0
    """Version of a cascade's calibration: only those that it accepted, by the scorer that it names. 0: all."""

    @property
    def key(self) -> Watched:
        return self.task, self.model, self.version, self.prompt, self.scorer, self.accepted


class Counted(msgspec.Struct):
    """Whose scores of an evaluation's rows count, and which these are: to be taken out when others take their place."""

    run: str
    cells: list[Cell] = msgspec.field(default_factory=list[Cell])


class Measured(msgspec.Struct):
    """The shared document."""

    runs: dict[str, Run] = msgspec.field(default_factory=dict[str, Run])
    rows: list[Row] = msgspec.field(default_factory=list[Row])
    recent: list[Recent] = msgspec.field(default_factory=list[Recent])
    merged: list[str] = msgspec.field(default_factory=list[str])
    """Experiments whose arms are told apart no more."""
    counted: dict[str, Counted] = msgspec.field(default_factory=dict[str, Counted])
    """Rows of an evaluation with what is expected of them, task, model, version, prompt and scorer → whose scores."""

    @property
    def cells(self) -> list[Cell]:
        return [row.cell for row in self.rows]


def fold(into: Measured, name: str, sums: Sums, now: float) -> bool:
    """Bring the document up to the run's latest sums. False: it has them, or newer ones; nothing changed."""
    run, latest = into.runs.get(name), sums.latest
    if run is not None and run.number >= latest.number:
        return False
    if run is None:  # it never had any of it: the first time, or the shared document is a new one
        run, base = into.runs.setdefault(name, Run(0, now, sums.opening)), list[Cell]()
    else:
        base = next((state.cells for state in sums.states if state.number == run.number), None)
    run.number, run.at = latest.number, now
    if base is not None:  # else a document from a backup: what lies between can't be known, and is left out
        cells = _difference(latest.cells, base)
        if sums.data:
            scores = _new_scores(into, name, _by_scorer(sums.data, latest.cells), _by_scorer(sums.data, base))
            cells = [*(msgspec.structs.replace(cell, scores={}) for cell in cells), *scores]
        _apply(into, cells, now)
    return True


def _new_scores(into: Measured, name: str, latest: dict[str, list[Cell]], base: dict[str, list[Cell]]) -> list[Cell]:
    """The same rows asked again tell what they cost now, and nothing new of an answer's quality: by each scorer, those
    scores count that are of the most rows. So a run that stopped early is no bar to one that went on."""
    changes: list[Cell] = []
    gone = [key for key, counted in into.counted.items() if counted.run == name and key not in latest]
    for key in (*latest, *gone):
        cells = latest.get(key, [])
        counted = into.counted.get(key) or Counted(name, base.get(key, []))
        if counted.run == name or _scored(cells) > _scored(counted.cells):
            changes += _difference(cells, counted.cells)
            into.counted[key] = Counted(name, cells)
    into.counted = dict(list(into.counted.items())[-MAX_COUNTED:])
    return changes


def _by_scorer(data: str, cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    """Scores alone."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        for scorer, scored in cell.scores.items():
            key = "\n".join((data, cell.task, cell.model, cell.version, cell.prompt, scorer))
            found.setdefault(key, []).append(Cell(*cell.key, scores={scorer: scored}))
    return found


def _scored(cells: Iterable[Cell]) -> int:
    return sum(scored.n for cell in cells for scored in cell.scores.values())


def opened(into: Measured, name: str, sums: Sums, now: float) -> None:
    """The run goes on: the document has its latest sums (it was closed only then), and must remember it again."""
    into.runs[name] = Run(sums.latest.number, now, sums.opening + 1)


def closed(into: Measured, name: str, opening: int) -> bool:
    """The run ended, with this opening. False: it goes on meanwhile, or is forgotten."""
    run = into.runs.get(name)
    if run is None or run.closed or run.opening != opening:
        return False
    run.closed = True
    over = sorted((run.at, name) for name, run in into.runs.items() if run.closed)
    for _, old in over[: max(0, len(into.runs) - MAX_RUNS)]:
        del into.runs[old]
    return True


def _difference(latest: Iterable[Cell], base: Iterable[Cell]) -> list[Cell]:
    total: dict[Key, Cell] = {}
    add(total, latest)
    add(total, base, -1)
    return list(total.values())


def _apply(into: Measured, cells: list[Cell], now: float) -> None:
    rows = {row.cell.key: row for row in into.rows}
    for cell in cells:
        if cell.experiment in into.merged:
            cell = msgspec.structs.replace(cell, experiment="", arm="")
        row = rows.get(cell.key)
        if row is None:
            row = rows[cell.key] = Row(now, Cell(*cell.key))
            into.rows.append(row)
        if _anything(cell):
            row.at = now
        add({row.cell.key: row.cell}, [cell])
        _prune(row.cell)
    _watch(into, cells, now)
    into.rows = [row for row in into.rows if _anything(row.cell)]
    while (name := _idle(into.rows)) is not None:
        _merge(into, name)
    plain = sorted((row for row in into.rows if not row.cell.is_arm), key=lambda row: row.at)
    old = {row.cell.key for row in plain[: max(0, len(plain) - MAX_ROWS)]}
    into.rows = [row for row in into.rows if row.cell.key not in old]
    known = {(at.task, at.model, at.version, at.prompt) for at in (row.cell for row in into.rows)}
    into.recent = [e for e in into.recent if (e.task, e.model, e.version, e.prompt) in known]  # old prompts go too


def _anything(cell: Cell) -> bool:
    return cell.items != 0 or cell.results != 0 or cell.cost_nano != 0 or bool(cell.scores)


def _prune(cell: Cell) -> None:
    """What was taken back whole leaves no trace."""
    for scored in (*cell.scores.values(), *cell.pairs.values(), *cell.accepted.values()):
        scored.counts = {step: n for step, n in scored.counts.items() if n}
    cell.accepted = {version: scored for version, scored in cell.accepted.items() if scored.counts}
    cell.scores = {name: scored for name, scored in cell.scores.items() if scored.counts}
    cell.pairs = {name: scored for name, scored in cell.pairs.items() if scored.counts}
    cell.failures = {kind: n for kind, n in cell.failures.items() if n}


def _watch(into: Measured, cells: list[Cell], now: float) -> None:
    more: dict[Watched, Scored] = {}
    for cell in cells:
        at = cell.task, cell.model, cell.version, cell.prompt
        for scorer, scored in cell.scores.items():
            add_scores(more.setdefault((*at, scorer, 0), Scored()), scored)
        for calibration, scored in cell.accepted.items():
            add_scores(more.setdefault((*at, "", calibration), Scored()), scored)
    known = {one.key: one for one in into.recent}
    for key, scored in more.items():
        if key not in known:
            known[key] = Recent(*key[:-1], accepted=key[-1])
            into.recent.append(known[key])
        grow(known[key].windows, scored, now)
    into.recent = [one for one in into.recent if one.windows]


def _idle(rows: list[Row]) -> str | None:
    """The experiment or rollout that nobody added to for longest, where there are too many arms."""
    last: dict[str, float] = {}
    arms = [row for row in rows if row.cell.is_arm]
    for row in arms:
        last[row.cell.experiment] = max(last.get(row.cell.experiment, 0.0), row.at)
    return min(last, key=lambda name: last[name]) if len(arms) > MAX_ARMS and len(last) > IN_USE else None


def _merge(into: Measured, name: str) -> None:
    """Tell its arms apart no more."""
    into.merged = [*into.merged, name][-MAX_MERGED:]
    gone = [row for row in into.rows if row.cell.experiment == name]
    into.rows = [row for row in into.rows if row.cell.experiment != name]
    whole = {row.cell.key: row for row in into.rows}
    for row in gone:
        cell = msgspec.structs.replace(row.cell, experiment="", arm="")
        into_row = whole.get(cell.key)
        if into_row is None:
            into_row = whole[cell.key] = Row(row.at, Cell(*cell.key))
            into.rows.append(into_row)
        add({cell.key: into_row.cell}, [cell])
        into_row.at = max(into_row.at, row.at)
