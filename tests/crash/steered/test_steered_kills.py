"""`kill -9` of anything while models are evaluated, tried, changed and changed back, and while people label: no item
twice, no arm switched for a unit, no stage lost or repeated, no label lost."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import pytest

from penstock.engine.steering.document import Steering
from tests.crash.bench import Kind
from tests.crash.shared_ray import SharedRay
from tests.crash.steered.faults import Fault, decision_faults, experiment_faults, rollout_faults, table_faults
from tests.crash.steered.people import Labelling
from tests.crash.steered.world import EXPERIMENT, LANES, WINDOW, Steered, harmed, shape_of, steered_bench
from tests.crash.streams.storms import Line, note

pytestmark = pytest.mark.ray

Phase = Literal["evaluation", "experiment", "rollout", "rollback"]
PROCESSES: tuple[Kind, ...] = ("command", "driver", "lane", "dispatcher")
ROWS = {"evaluation": 150, "experiment": 1_500, "rollout": 3_000, "rollback": 1_500}
ANY = "two of command, driver, lane, dispatcher"
CANDIDATES = 3
BEGIN = ("rollout", "start", "--job", "job.yaml", "small")
FORWARD = (*BEGIN, "v2", "--stages", "20,50", "--guard", "quality,error_rate", "--items", "120")
BACK = (*BEGIN, "v3", "--stages", "30,60", "--guard", "quality", "--items", "5000")
Json = dict[str, Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, ray: SharedRay) -> Json:
    """The table of the evaluation that nobody killed."""
    with steered_bench(tmp_path_factory.mktemp("whole"), shape_of(ROWS["evaluation"]), ray) as b:
        command = b.evaluate()
        assert b.end(command) == 0, b.log(command)
        return b.table()


@pytest.mark.parametrize(
    ("phase", "kinds"),
    [
        pytest.param("experiment", ("driver", "command"), marks=pytest.mark.long),
        ("rollback", ("lane", "driver")),
    ],
)
def test_a_trial_survives_kills(
    phase: Phase, kinds: Sequence[Kind], tmp_path: Path, ray: SharedRay, request: pytest.FixtureRequest
) -> None:
    """Two parts of it, one after the other. (Of an evaluation and of a rollout a command is killed in
    `tests/jobs/test_eval_runs.py` and `test_rollouts.py`, by `make long`; here they are in `make soak`.)"""
    killed(phase, kinds, 1, tmp_path, ray, request)


def test_labels_survive_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the person's command, and of the one that takes another tool's labels."""
    monkeypatch.chdir(tmp_path)
    labelled(tmp_path, 1)


@pytest.mark.soak
@pytest.mark.parametrize("phase", get_args(Phase))
@pytest.mark.parametrize("seed", range(20))
def test_soak(phase: Phase, seed: int, tmp_path: Path, ray: SharedRay, request: pytest.FixtureRequest) -> None:
    """Each process first in every fourth job, another one after it."""
    chance = random.Random(f"{phase}-{seed}-kinds")
    killed(phase, (PROCESSES[seed % 4], chance.choice(PROCESSES)), seed, tmp_path, ray, request)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
def test_soak_labels(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    labelled(tmp_path, seed)


def killed(
    phase: Phase, kinds: Sequence[Kind], seed: int, folder: Path, ray: SharedRay, request: pytest.FixtureRequest
) -> None:
    began, chance = time.monotonic(), random.Random(f"{phase}-{seed}")
    shape = shape_of(ROWS[phase], more=EXPERIMENT if phase == "experiment" else "")
    with steered_bench(folder, shape, ray) as b:
        if phase == "evaluation":
            harmed(b, b.evaluate, kinds, chance, CANDIDATES * ROWS[phase])
            bound = b.allowed(len(kinds)) + len(kinds) * CANDIDATES * WINDOW  # a row under way is asked anew
            report = b.check_evaluation(bound)
            found = list(table_faults(b.table(), request.getfixturevalue("whole")))
        else:
            _steered(b, phase, kinds, chance, seed)
            bound = b.allowed(len(kinds))
            report = b.check(bound)
            found = list(_experiment(b) if phase == "experiment" else _rollout(b, kinds))
        found += b.audit_faults()
        assert not found, told(found)
        line = Line(
            phase, ANY, seed, len(kinds), report.offered, report.lost, report.twice, report.repeated, bound,
            report.marked, round(time.monotonic() - began, 1),
        )  # fmt: skip
        note(line)


def _steered(b: Steered, phase: Phase, kinds: Sequence[Kind], chance: random.Random, seed: int) -> None:
    """Of every other job, the command that says a person's word is killed, too."""
    then = None
    match phase:
        case "rollout":
            b.say(*FORWARD, heard=_begun, chance=chance if seed % 2 else None)
        case "rollback":
            b.say(*BACK, heard=_begun)
            then = _taken_back(b, chance) if seed % 2 else None
    harmed(b, b.start, kinds, chance, ROWS[phase], then)


def _begun(steering: Steering) -> bool:
    return "small" in steering.rollouts


def _taken_back(b: Steered, chance: random.Random) -> Any:
    """A person's word in the midst of it; the first command that says it is killed."""

    def say() -> None:
        b.say(
            "rollback", "small", "--why", "it swears", chance=chance,
            heard=lambda now: now.rollouts["small"].state == "rolled_back",
        )  # fmt: skip

    return say


def _experiment(b: Steered) -> Iterator[Fault]:
    records, experiment = b.records(), b.experiment
    assert {record.arm for record in records} >= {"plain", "rude"}, "both arms were seen"
    yield from experiment_faults(records, experiment, stopped=experiment.id in b.steering.experiments)


def _rollout(b: Steered, kinds: Sequence[Kind]) -> Iterator[Fault]:
    at, owed = b.steering.rollouts["small"], [each.id for each in b.steering.owed]
    records = b.records()
    assert {record.model_version for record in records} == {at.baseline, at.candidate}, "both versions were seen"
    lost = {"lane": 1, "driver": LANES, "command": LANES}  # lanes end with their driver
    heirs = sum(b.shape.window * lost.get(kind, 0) for kind in kinds)
    yield from rollout_faults(records, at, heirs)
    yield from decision_faults(at, b.logged(), owed)


def labelled(folder: Path, seed: int) -> None:
    """Killed again and again, until the person has labelled all and the other tool's file was taken."""
    began, chance = time.monotonic(), random.Random(f"labels-{seed}")
    at = Labelling(folder, rows=40)
    while not at.done:
        at.sit(chance, chance.randrange(4, 14))
        if chance.random() < 0.5:
            at.take(chance)
    at.take(None)
    found = list(at.faults())
    assert not found, told(found)
    assert at.kills >= 3
    note(
        Line(
            "labelling", "its commands", seed, at.kills, 2 * at.rows, 0, 0, 0, 0, 0, round(time.monotonic() - began, 1)
        )
    )


def told(found: Iterable[Fault]) -> str:
    lines = [f"{fault.kind}: {fault.what}" for fault in found]
    return "\n".join([f"{len(lines)} faults", *lines[:20]])
