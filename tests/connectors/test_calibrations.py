"""A calibration that can't be read, or was deleted, is made again, and is not taken for the one before."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from penstock.connectors.calibrations import (
    Calibration,
    read_calibration,
    read_judges,
    write_calibration,
    write_judges,
)
from penstock.connectors.drifts import Drift, Drifts
from penstock.connectors.measured import Registry
from penstock.connectors.state import open_state
from penstock.engine.errors import Corrupt
from penstock.engine.flow.cells import Cell, Scored
from penstock.engine.measure.agreement import agreement
from penstock.engine.steering import judges

MADE = Calibration("spam/ham", "logprob", "exact", 0.9, 0.95, "run-1", "2026-11-26T12:00:00+00:00", ())


def file(folder: Path) -> Path:
    (path,) = (folder / "cascades").glob("*.json")
    return path


def drifted(folder: Path, calibration: int) -> None:
    Drifts(str(folder)).add(
        Drift("spam/ham", calibration, "small@v1", "exact@1", 0.9, 240, 0.71, 1_795_525_200.0, "job", "job-1")
    )


def test_one_that_cant_be_read_says_to_calibrate_again_and_that_is_possible(tmp_path: Path) -> None:
    """The old one had drifted; the new one has not."""
    state = open_state(str(tmp_path))
    assert [write_calibration(state, MADE).version for _ in range(3)] == [1, 2, 3]
    drifted(tmp_path, 3)
    file(tmp_path).write_bytes(b"{broken")
    with pytest.raises(Corrupt, match="calibrate it again"):
        read_calibration(state, "spam/ham")
    made = write_calibration(state, MADE)
    assert made.version == 4
    assert read_calibration(state, "spam/ham") == made
    assert Drifts(str(tmp_path)).read("spam/ham", made.version) is None


def test_one_that_was_deleted_leaves_its_number_to_its_scores(tmp_path: Path) -> None:
    """Scores of answers that it accepted don't count for the next one; another task's numbers are its own."""
    state = open_state(str(tmp_path))
    scored = Scored()
    scored.counts[1000] = 5
    cell = Cell("spam/ham", "small", "v1", results=5, accepted={7: scored})
    other = Cell("ham", "small", "v1", results=5, accepted={9: scored})
    Registry(state, "job-1", 1).tell([cell, other])
    drifted(tmp_path, 2)
    assert write_calibration(state, MADE).version == 8
    file(tmp_path).unlink()
    assert write_calibration(state, MADE).version == 8, "it accepted nothing that was scored"


def test_a_drift_that_cant_be_read_keeps_its_numbers(tmp_path: Path) -> None:
    """Any number might be one that drifted."""
    state = open_state(str(tmp_path))
    drifted(tmp_path, 1)
    (path,) = (tmp_path / "drifts").glob("*.json")
    path.write_text("[{")
    with pytest.raises(Corrupt, match="restore it from a backup"):
        write_calibration(state, MADE)


def test_a_calibration_of_a_judge_on_a_few_labels_is_not_kept_where_there_is_a_better_one(tmp_path: Path) -> None:
    state = open_state(str(tmp_path))
    well, few = (
        judges.Calibration("judge@1", "opus", right, wrong, agreed, run, "now", "ann")
        for right, wrong, run in ((60, 40, "all"), (3, 0, "few"))
        if (agreed := agreement([[right, 0], [0, wrong]])) is not None
    )
    assert write_judges(state, [well]) == {"judge@1": well}
    assert write_judges(state, [few]) == read_judges(state) == {"judge@1": well}
    other = msgspec.structs.replace(few, scorer="judge@2")
    assert write_judges(state, [other]) == {"judge@1": well, "judge@2": other}
