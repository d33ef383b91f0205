"""The registry of quality: whatever is killed, lost or raced for, each run's sums are in it exactly once."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from penstock.connectors import measured
from penstock.connectors.documents import Absent, State, Tag
from penstock.connectors.measured import DOCUMENT, SUMS, Registry
from penstock.connectors.state import FolderState, open_state
from penstock.engine.errors import Corrupt, Fenced, PenstockError, Temporary
from penstock.engine.flow.cells import Cell, Scored, summed
from penstock.engine.registry import document
from penstock.engine.registry.document import Measured, Run, Sums


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "PAUSE_S", 0.0)


def cell(n: int, good: int = 0, prompt: str = "", arm: str = "", price: str = "p") -> Cell:
    scores = {"exact@1": Scored(good, {1000: good, 0: n - good})} if n else {}
    scores = {name: Scored(s.passed, {k: v for k, v in s.counts.items() if v}) for name, s in scores.items()}
    return Cell("sort", "m", "v1", prompt, price, "", arm and "tone", arm, n, n, n, cost_nano=7 * n, scores=scores)


def total(shared: Measured) -> list[Cell]:
    return [exact(each) for each in summed(shared.cells)]


def exact(each: Cell) -> Cell:
    """Without the one sum that is rounded."""
    return msgspec.structs.replace(each, cost_square=0.0)


# ---- one run


def test_what_is_told_again_counts_once_and_what_grew_counts_as_it_is_now(tmp_path: Path) -> None:
    registry = Registry(FolderState(tmp_path), "r", 1)
    registry.tell([cell(10, 8)])
    registry.tell([cell(10, 8)])
    shared = registry.tell([cell(25, 20)])
    assert total(shared) == [exact(cell(25, 20))]
    (one,) = shared.recent
    assert sum(window.scores.n for window in one.windows) == 25


def test_jobs_add_up_and_a_later_job_reads_what_an_earlier_one_measured(tmp_path: Path) -> None:
    state = FolderState(tmp_path)
    Registry(state, "a", 1).end([cell(10, 8), cell(4, 4, "p2")])
    Registry(state, "b", 1).end([cell(20, 10)])
    assert total(Registry(state).read()) == summed([exact(cell(30, 18))], [exact(cell(4, 4, "p2"))])


def test_the_same_rows_evaluated_again_are_no_new_evidence_of_quality(tmp_path: Path) -> None:
    """Of what they cost now they are. Other rows, another model version or prompt, and the first run itself when it
    goes on, count."""
    state = FolderState(tmp_path)
    first = Registry(state, "eval-a", 1, data="rows")
    first.tell([cell(10, 8)])
    for n in range(8):
        Registry(state, f"eval-again-{n}", 1, data="rows").end([cell(100, 92)])
    first.end([cell(100, 92)])
    Registry(state, "eval-b", 1, data="others").end([cell(50, 40), cell(5, 5, "p2")])
    Registry(state, "eval-c", 1, data="rows").end([cell(7, 7, "p2")])
    by_prompt = {each.prompt: each for each in summed(Registry(state).read().cells)}
    assert (by_prompt[""].items, by_prompt[""].scores["exact@1"].n) == (950, 150)
    assert by_prompt["p2"].scores["exact@1"].n == 12
    assert sum(w.scores.n for one in Registry(state).read().recent for w in one.windows) == 162


def test_of_the_same_rows_the_scores_of_most_count_by_each_scorer(tmp_path: Path) -> None:
    """One that stopped early is no bar to one that went on, nor to one with another scorer; and what takes the place of
    other scores takes them out, also where prices changed between."""
    state = FolderState(tmp_path)
    Registry(state, "early", 1, data="rows").end([cell(60, 30, price="old")])
    longer = Registry(state, "longer", 1, data="rows")
    longer.tell([cell(40, 40)])
    assert scores(state) == {"exact@1": (60, 30)}
    longer.end([cell(500, 400)])
    assert scores(state) == {"exact@1": (500, 400)}
    assert sum(each.items for each in Registry(state).read().cells) == 560
    judged = msgspec.structs.replace(cell(9, 9), scores={**cell(9, 9).scores, "judge@a": Scored(9, {1000: 9})})
    Registry(state, "judged", 1, data="rows").end([judged])
    assert scores(state) == {"exact@1": (500, 400), "judge@a": (9, 9)}
    fresh = Registry(state, "longer", 1, 100.0, data="rows")
    fresh.tell([])
    assert scores(state) == {"judge@a": (9, 9)}
    fresh.end([cell(3, 3)])
    assert scores(state) == {"exact@1": (3, 3), "judge@a": (9, 9)}


def scores(state: State) -> dict[str, tuple[int, int]]:
    """Scorer → scores, and passes; the windows hold as many."""
    shared = Registry(state).read()
    (whole,) = summed([msgspec.structs.replace(each, price="") for each in shared.cells])
    assert sum(w.scores.n for one in shared.recent for w in one.windows) == sum(s.n for s in whole.scores.values())
    return {name: (each.n, each.passed) for name, each in whole.scores.items() if each.n}


def test_a_run_that_goes_on_another_day_adds_only_what_is_new(tmp_path: Path) -> None:
    """Its lanes tell all that they ever measured; the command that ended it had told most of that."""
    state = FolderState(tmp_path)
    Registry(state, "r", 1).end([cell(10, 8)])
    shared = Registry(state, "r", 2).tell([cell(30, 20)])
    assert total(shared) == [exact(cell(30, 20))]
    assert not shared.runs["r"].closed


def test_an_owner_that_was_replaced_can_say_nothing_any_more(tmp_path: Path) -> None:
    """Neither one that told before nor one that wakes up so late that it never told."""
    state = FolderState(tmp_path)
    old, older = Registry(state, "r", 1), Registry(state, "r", 1)
    old.tell([cell(5, 5)])
    new = Registry(state, "r", 2)
    new.tell([cell(30, 20)])
    for stale in (old, older):
        with pytest.raises(Fenced, match="taken over"):
            stale.tell([cell(6, 6)])
        with pytest.raises(Fenced, match="taken over"):
            stale.end([cell(6, 6)])
    assert total(new.read()) == [exact(cell(30, 20))]


def test_a_fresh_start_replaces_what_the_thrown_away_outputs_had_measured(tmp_path: Path) -> None:
    """The same rows are asked again: counted twice, they would look like twice the evidence. The epochs of the new life
    may begin at 1 again; an owner of the old life is shut out whatever its epoch."""
    state = FolderState(tmp_path)
    Registry(state, "other", 1).tell([cell(7, 7)])
    old = Registry(state, "r", 9, 100.0)
    old.tell([cell(100, 20)])
    fresh = Registry(state, "r", 1, 200.0)
    fresh.tell([])
    shared = fresh.tell([cell(3, 3)])
    assert total(shared) == [exact(cell(10, 10))]
    assert sum(window.scores.n for window in shared.recent[0].windows) == 10
    with pytest.raises(Fenced):
        old.tell([cell(101, 20)])
    assert total(fresh.tell([cell(4, 4)])) == [exact(cell(11, 11))]


def test_a_run_whose_own_document_was_lost_goes_on_from_there_and_counts_nothing_twice(tmp_path: Path) -> None:
    state = FolderState(tmp_path)
    Registry(state, "r", 1).tell([cell(10, 8)])
    (tmp_path / SUMS / "r.json").unlink()
    again = Registry(state, "r", 2)
    assert total(again.tell([cell(12, 9)])) == [exact(cell(10, 8))]
    assert total(again.tell([cell(20, 9)])) == [exact(cell(18, 8))]


def test_a_shared_document_that_was_deleted_is_filled_again_by_the_runs_that_go_on(tmp_path: Path) -> None:
    state = FolderState(tmp_path)
    registry = Registry(state, "r", 1)
    registry.tell([cell(10, 8)])
    (tmp_path / DOCUMENT).unlink()
    assert total(registry.tell([cell(11, 8)])) == [exact(cell(11, 8))]


def test_a_document_that_cannot_be_read_says_so_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / DOCUMENT).write_text("{")
    with pytest.raises(Corrupt, match=r"measured\.json at the state URL can't be read .* delete it"):
        Registry(FolderState(tmp_path)).read()


# ---- bounds


def test_runs_that_ended_are_forgotten_and_may_still_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "MAX_RUNS", 3)
    state = FolderState(tmp_path)
    for number in range(8):
        Registry(state, f"r{number}", 1, now=lambda number=number: float(number)).end([cell(10, 5)])
    shared = Registry(state).read()
    assert sorted(shared.runs) == ["r5", "r6", "r7"]
    assert total(Registry(state, "r0", 2).tell([cell(11, 6)])) == [exact(cell(81, 41))]


def test_a_run_that_died_long_ago_is_closed_by_others_and_opened_by_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner was only asleep: it goes on under its own name, and nothing is lost or counted twice."""
    for module in (document, measured):
        monkeypatch.setattr(module, "MAX_RUNS", 2)
    state, later = FolderState(tmp_path), 10 * 86_400.0
    asleep = Registry(state, "asleep", 1, now=lambda: 0.0)
    asleep.tell([cell(10, 5)])
    for number in range(4):
        Registry(state, f"r{number}", 1, now=lambda: later).end([cell(1, 1)])
    assert "asleep" not in Registry(state).read().runs
    assert total(asleep.tell([cell(20, 6)])) == [exact(cell(24, 10))]
    asleep.end([cell(21, 6)])
    assert total(Registry(state).read()) == [exact(cell(25, 10))]


def test_a_late_close_does_not_close_the_run_for_its_next_owner() -> None:
    """The next command has opened it meanwhile: a run that goes on is never forgotten."""
    shared = Measured(runs={"r": Run(4, 0.0, opening=2)})
    assert not document.closed(shared, "r", 1)
    assert document.closed(shared, "r", 2)


def test_arms_of_old_experiments_are_merged_when_the_document_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that still tells them apart adds to the merged cell."""
    monkeypatch.setattr(document, "MAX_ARMS", 3)
    monkeypatch.setattr(document, "IN_USE", 1)
    registry = Registry(FolderState(tmp_path), "r", 1, now=iter(range(1, 100)).__next__)
    arms, later = [cell(10, 5, arm="a"), cell(20, 5, arm="b")], [arm_of("next", "a"), arm_of("next", "b")]
    registry.tell(arms)
    registry.tell([*arms, *later])
    shared = registry.tell([*arms[:1], cell(21, 6, arm="b"), *later])
    assert shared.merged == ["tone"]
    assert total(shared) == summed([exact(cell(31, 11))], map(exact, later))


def arm_of(experiment: str, arm: str) -> Cell:
    return msgspec.structs.replace(cell(1, 1, "p"), experiment=experiment, arm=arm)


def test_arms_in_use_stay_apart_however_many_other_cells_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A running rollout whose guards saw nothing any more would never be taken back."""
    monkeypatch.setattr(document, "MAX_ROWS", 2)
    monkeypatch.setattr(document, "MAX_ARMS", 1)
    registry = Registry(FolderState(tmp_path), "r", 1)
    arms = [cell(10, 5, arm="a"), cell(20, 5, arm="b")]
    registry.tell(arms)
    shared = registry.tell([*arms, *(cell(1, 1, f"p{n}") for n in range(5))])
    assert [each.arm for each in shared.cells] == ["a", "b", "", ""]


def test_the_cells_that_are_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "MAX_ROWS", 2)
    state = FolderState(tmp_path)
    for number in range(5):
        Registry(state, f"r{number}", 1, now=lambda number=number: float(number)).end([cell(1, 1, f"p{number}")])
    shared = Registry(state).read()
    assert [each.prompt for each in total(shared)] == ["p3", "p4"]
    assert [each.prompt for each in shared.recent] == ["p3", "p4"]  # their scores with them: the document stays small


# ---- faults


class Killed(BaseException):
    """The process is gone."""


class Faulty:
    """A state where any write may be the last of its process, answers get lost, and others write in between."""

    def __init__(self, state: State, dice: random.Random, meanwhile: Callable[[], None]) -> None:
        self._state = state
        self._dice = dice
        self._meanwhile = meanwhile

    def get(self, key: str) -> tuple[bytes, Tag] | None:
        self._meanwhile()
        return self._state.get(key)

    def put(self, key: str, value: bytes, expect: Tag | Literal[Absent.ABSENT] | None) -> Tag:
        self._meanwhile()
        what = self._dice.random()
        if what < 0.06:
            raise Killed
        if what < 0.10:
            raise Temporary("the state is away")
        tag = self._state.put(key, value, expect)
        if what < 0.16:
            raise Killed
        if what < 0.22:
            raise Temporary("the answer was lost")
        return tag

    def list(self, prefix: str) -> list[str]:
        return self._state.list(prefix)


class Job:
    """One run: its lanes' sums only grow, but for a fresh start; its owner dies, is replaced, ends, goes on."""

    def __init__(self, name: str, state: State) -> None:
        self.name = name
        self.state = state
        self.epoch, self.life = 1, 0.0
        self.cells: list[Cell] = []
        self.hand = Registry(state, name, 1)
        self.stale: list[Registry] = []
        self.busy = False

    def step(self, dice: random.Random) -> None:
        what = dice.random()
        if self.busy or what < 0.1:  # its owner is in the middle of a write: only another command does anything now
            self.replace(fresh=False)
        elif what < 0.13:
            self.cells = []
            self.replace(fresh=True)
        more = [cell(n := dice.randrange(1, 9), dice.randrange(n + 1), dice.choice("pq"), dice.choice(("", "a", "b")))]
        self.cells = summed(self.cells, more)
        hand, self.busy = self.hand, True
        try:
            (hand.end if dice.random() < 0.15 else hand.tell)(self.cells)
        except Killed:
            self.replace(fresh=False)
        except Temporary:
            pass
        except Fenced:
            assert hand is not self.hand, "the run's owner was shut out"
        finally:
            self.busy = False
        for old in list(self.stale) if self.hand.owns else ():
            try:
                old.tell([cell(1000, 1000)])
            except (PenstockError, Killed):
                continue
            raise AssertionError("an owner that was replaced was heard")

    def replace(self, *, fresh: bool) -> None:
        """The next command holds the run; the last one may wake up as soon as the next has told something."""
        self.stale.append(self.hand)
        self.epoch, self.life = (1, self.life + 1.0) if fresh else (self.epoch + 1, self.life)
        self.hand = Registry(self.state, self.name, self.epoch, self.life)


@pytest.mark.parametrize("seed", range(12))
def test_the_sum_is_exact_whatever_is_killed_between_any_two_writes(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four runs, each step of one begun within a step of another; at last each tells once more, undisturbed."""
    monkeypatch.setattr(document, "MAX_RUNS", 2)
    dice, depth = random.Random(seed), [0]
    state = FolderState(tmp_path)

    def meanwhile() -> None:
        if depth[0] == 0 and dice.random() < 0.15:
            depth[0] += 1
            try:
                dice.choice(jobs).step(dice)
            finally:
                depth[0] -= 1

    faulty = Faulty(state, dice, meanwhile)
    jobs = [Job(f"r{number}", faulty) for number in range(4)]
    for _ in range(60):
        dice.choice(jobs).step(dice)
    for job in jobs:
        Registry(state, job.name, 1000, 1000.0).tell(job.cells)
    shared = Registry(state).read()
    assert total(shared) == [exact(each) for each in summed(*(job.cells for job in jobs)) if each.items]
    for name in sorted(shared.runs):
        kept = msgspec.json.decode((tmp_path / SUMS / f"{name}.json").read_bytes(), type=Sums)
        assert shared.runs[name].number in [each.number for each in kept.states]


RACER = """
import json, sys
from penstock.connectors.measured import Registry
from penstock.connectors.state import open_state
from penstock.engine.flow.cells import Cell, Scored
url, name, turns = sys.argv[1], sys.argv[2], int(sys.argv[3])
registry = Registry(open_state(url), name, 1)
sys.stdin.readline()
for n in range(1, turns + 1):
    cells = [Cell("sort", "m", "v1", items=n, cost_nano=n, scores={"exact@1": Scored(n, {1000: n})})]
    (registry.tell if n < turns else registry.end)(cells)
"""


def race(url: str, processes: int, turns: int) -> Measured:
    """Real processes that all tell at once."""
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, url, f"r{n}", str(turns)], stdin=subprocess.PIPE, text=True)
        for n in range(processes)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    assert [racer.wait(120) for racer in racers] == [0] * processes
    return Registry(open_state(url)).read()


def check_race(shared: Measured, processes: int, turns: int) -> None:
    (found,) = shared.cells
    assert (found.items, found.scores["exact@1"].passed) == (processes * turns, processes * turns)
    assert len(shared.runs) == processes


@pytest.mark.parametrize("kind", ["folder", pytest.param("s3", marks=pytest.mark.s3)])
def test_ten_jobs_that_race_lose_nothing(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    url, turns = str(tmp_path), 8
    if kind == "s3":
        request.getfixturevalue("s3_keys")
        bucket, server = request.getfixturevalue("new_bucket")("measured"), request.getfixturevalue("s3_server")
        url, turns = f"s3://{bucket}/state?endpoint={server.endpoint}", 3
    check_race(race(url, 10, turns), 10, turns)


def test_what_is_written_is_plain_json(tmp_path: Path) -> None:
    """People and other tools read it."""
    Registry(FolderState(tmp_path), "r", 1).tell([cell(2, 1)])
    shared = json.loads((tmp_path / DOCUMENT).read_text())
    assert shared["rows"][0]["cell"]["scores"]["exact@1"]["counts"] == {"0": 1, "1000": 1}
