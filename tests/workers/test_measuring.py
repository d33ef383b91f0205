"""What lanes measured reaches the registry, what the registry says reaches the lanes, and neither holds up a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from penstock.connectors.audit import open_audit
from penstock.connectors.drifts import Drift, Drifts
from penstock.connectors.measured import DOCUMENT, Registry
from penstock.connectors.settings import MemorySink, MemorySource, Row
from penstock.connectors.state import FolderState
from penstock.engine.catalog import Account, Catalog, Model, Version
from penstock.engine.errors import Corrupt
from penstock.engine.flow.cells import Cell, Scored
from penstock.engine.flow.tally import Tally
from penstock.engine.policy import Cascade, Policy, Promise, Scorer, Task
from penstock.engine.registry.standing import Known, Standing
from penstock.engine.registry.standings import scorer_of
from penstock.workers.books.measuring import Measuring
from penstock.workers.lanes.report import LaneReport
from penstock.workers.runspec import RunSpec
from penstock.workers.status import RunStatus

TASK = Task("t", scorers=(Scorer("exact"),))
CATALOG = Catalog(
    {"a": Account("a", "openai", "http://localhost")}, {"m": Model("m", (Version("v1", "m"),), "v1", account="a")}, {}
)


class Desk:
    """A driver's side of it: its notes, and what it told its lanes."""

    def __init__(self, folder: Path, run: str = "r", epoch: int = 1, lanes: int = 2, task: Task = TASK) -> None:
        spec = RunSpec(
            run, "n", {}, MemorySource("m"), None, Row(), CATALOG, Policy({"t": task}), {"results": MemorySink("m")},
            state=str(folder),
        )  # fmt: skip
        self.notes: list[str] = []
        self.told: list[tuple[Standing, ...]] = []
        self.drifted: list[tuple[str, ...]] = []
        self.status = RunStatus(run, "n", "running", lanes=lanes)
        self.measuring = Measuring(spec, self.notes.append)
        self.measuring.hold(epoch, 0.0)

    async def tell(self, known: bytes) -> None:
        decoded = msgspec.msgpack.decode(known, type=Known)
        self.told.append(decoded.standings)
        self.drifted.append(decoded.drifted)

    def hear(self, lane: int, n: int, of: Callable[[int], Cell] | None = None) -> None:
        self.measuring.heard(LaneReport(lane, Tally(), cells=msgspec.msgpack.encode([(of or cell)(n)])))
        self.measuring.see(self.status)

    async def look(self, now: float) -> None:
        self.measuring.look(self.tell, now)
        if self.measuring._looking is not None:  # pyright: ignore[reportPrivateUsage]
            await self.measuring._looking  # pyright: ignore[reportPrivateUsage]

    def samples(self) -> int:
        return self.told[-1][0].sample.n if self.told[-1] else 0


def cell(n: int) -> Cell:
    return Cell("t", "m", "v1", items=n, results=n, calls=n, scores={scorer_of(TASK) or "": Scored(n, {1000: n})})


async def test_a_run_starts_on_what_others_measured_and_adds_its_own(tmp_path: Path) -> None:
    Registry(FolderState(tmp_path), "earlier", 1).end([cell(40)])
    desk = Desk(tmp_path)
    await desk.measuring.first(desk.tell)
    assert desk.samples() == 40
    desk.hear(0, 5)
    desk.hear(1, 7)
    await desk.look(100.0)
    assert desk.samples() == 52
    desk.hear(1, 9)
    await desk.measuring.end(over=True)
    assert sum(each.items for each in Registry(FolderState(tmp_path)).read().cells) == 54
    assert desk.status.cells[0].items == 14
    assert desk.notes == []


async def test_nothing_is_told_before_every_lane_has_spoken(tmp_path: Path) -> None:
    """After a resume a part of the lanes would look as if items had been taken back."""
    desk = Desk(tmp_path)
    desk.hear(0, 5)
    desk.hear(1, 5)
    await desk.measuring.end(over=False)
    again = Desk(tmp_path, epoch=2)
    again.hear(0, 5)
    await again.look(100.0)
    assert again.samples() == 10
    assert again.status.cells == []
    again.hear(1, 6)
    await again.look(200.0)
    assert again.samples() == 11


def promised(*, stops: bool = True, calibration: int = 3) -> Task:
    """A cascade whose calibration promised 0.9."""
    promise = Promise(calibration, scorer_of(TASK) or "", 0.9, stops)
    return msgspec.structs.replace(TASK, cascade=Cascade(("m", "n"), "logprob", promise=promise))


def poor(n: int) -> Cell:
    """So many accepted answers, one in two of them right."""
    scored = Scored(n // 2, {1000: n // 2, 0: n - n // 2})
    return msgspec.structs.replace(cell(n), scores={}, accepted={3: scored})


async def test_a_cascade_that_breaks_its_promise_is_stopped_for_good(tmp_path: Path) -> None:
    """Told to the lanes, to people, in the status and in the audit log, once; and to every later command, from its
    first item on, whatever is measured then. Only a new calibration is believed."""
    desk = Desk(tmp_path, lanes=1, task=promised())
    await desk.measuring.first(desk.tell)
    assert desk.drifted == [()]
    desk.hear(0, 100, poor)
    for now in (100.0, 200.0):
        await desk.look(now)
    desk.measuring.see(desk.status)
    assert desk.drifted == [(), ("t",)]
    assert "100 accepted answers of m@v1 are right (by exact) in 0.500" in desk.status.drifted["t"]
    assert len(desk.notes) == 1
    assert "until penstock cascade calibrate makes a new version" in desk.notes[0]
    again = Desk(tmp_path, run="s", lanes=1, task=promised())
    (tmp_path / DOCUMENT).unlink()
    await again.measuring.first(again.tell)
    assert again.drifted[0] == ("t",)
    assert len(again.notes) == 1
    newer = Desk(tmp_path, run="u", lanes=1, task=promised(calibration=4))
    await newer.measuring.first(newer.tell)
    assert newer.drifted == [()]
    assert [entry.kind for entry in open_audit(str(tmp_path)).entries()] == ["drift"]


async def test_a_job_that_only_wants_to_be_told_goes_on(tmp_path: Path) -> None:
    desk = Desk(tmp_path, lanes=1, task=promised(stops=False))
    await desk.measuring.first(desk.tell)
    desk.hear(0, 100, poor)
    await desk.look(100.0)
    desk.measuring.see(desk.status)
    assert set(desk.drifted) == {()}
    assert list(desk.status.drifted) == ["t"]
    assert "on_drift: tell" in desk.notes[0]


async def test_a_run_does_not_start_where_nobody_knows_whether_its_calibration_holds(tmp_path: Path) -> None:
    (tmp_path / "drifts").mkdir()
    (tmp_path / "drifts" / "t.json").write_text("{")
    desk = Desk(tmp_path, task=promised())
    with pytest.raises(Corrupt):
        await desk.measuring.first(desk.tell)


async def test_what_its_finder_could_not_write_down_is_written_by_who_looks_next(tmp_path: Path) -> None:
    Drifts(str(tmp_path)).add(Drift("t", 3, "m@v1", "exact@1", 0.9, 100, 0.5, 1_000.0, "n", "dead"))
    desk = Desk(tmp_path, lanes=1, task=promised())
    await desk.measuring.first(desk.tell)
    await desk.look(100.0)
    (entry,) = open_audit(str(tmp_path)).entries()
    assert (entry.kind, entry.run) == ("drift", "dead")


async def test_lanes_hear_only_what_is_new(tmp_path: Path) -> None:
    desk = Desk(tmp_path, lanes=1)
    await desk.measuring.first(desk.tell)
    for now in (100.0, 200.0):
        await desk.look(now)
    desk.hear(0, 5)
    await desk.look(201.0)
    assert len(desk.told) == 1
    await desk.look(300.0)
    assert [len(told) for told in desk.told] == [0, 1]


async def test_a_registry_that_cannot_be_read_is_told_once_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / DOCUMENT).write_text("{")
    desk = Desk(tmp_path, lanes=1)
    await desk.measuring.first(desk.tell)
    desk.hear(0, 5)
    await desk.look(100.0)
    assert len(desk.notes) == 1
    assert "routes go by what was known last" in desk.notes[0]
    (tmp_path / DOCUMENT).unlink()
    await desk.look(200.0)
    assert desk.samples() == 5


async def test_a_slip_of_the_statistics_keeps_no_run_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slips(_registry: Registry, _cells: list[Cell]) -> None:
        raise ZeroDivisionError("of all things")

    desk = Desk(tmp_path, lanes=1)
    desk.hear(0, 5)
    for name in ("tell", "end"):
        monkeypatch.setattr(Registry, name, slips)
    await desk.look(100.0)
    await desk.measuring.end(over=True)
    assert len(desk.notes) == 2
    assert all("of all things" in note for note in desk.notes)


async def test_a_command_that_was_replaced_leaves_the_last_word_to_the_other(tmp_path: Path) -> None:
    old = Desk(tmp_path, lanes=1)
    old.hear(0, 5)
    await old.look(100.0)
    new = Desk(tmp_path, epoch=2, lanes=1)
    new.hear(0, 9)
    await new.look(100.0)
    old.hear(0, 6)
    await old.measuring.end(over=False)
    assert old.notes == []
    assert sum(each.items for each in Registry(FolderState(tmp_path)).read().cells) == 9


async def test_a_run_with_nothing_left_to_do_still_tells_what_it_measured(tmp_path: Path) -> None:
    """Its last command was killed after its last commit, before its last word."""
    desk = Desk(tmp_path)
    desk.measuring.ended(desk.status, [cell(12)])
    await desk.measuring.end(over=True)
    assert Registry(FolderState(tmp_path)).read().cells[0].items == 12


@pytest.mark.parametrize("shards", [1, 3])
async def test_sums_of_lanes_are_the_runs(shards: int, tmp_path: Path) -> None:
    desk = Desk(tmp_path, lanes=shards)
    for lane in range(shards):
        desk.hear(lane, 10)
    assert desk.status.cells[0].items == 10 * shards
