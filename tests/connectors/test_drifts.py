"""A calibration that does not hold is found once for all jobs, stays found, and stands in the audit log."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from penstock.connectors.audit import open_audit
from penstock.connectors.drifts import Drift, Drifts
from penstock.engine.errors import Corrupt

DRIFT = Drift("spam/ham", 3, "small@v1", "exact@1", 0.9, 240, 0.71, 1_795_525_200.0, "job", "job-1")


def test_who_comes_first_has_found_it_and_a_new_version_is_believed_again(tmp_path: Path) -> None:
    file = Drifts(str(tmp_path))
    assert file.add(DRIFT) == DRIFT
    later = msgspec.structs.replace(DRIFT, run="job-2", at=DRIFT.at + 5)
    assert Drifts(str(tmp_path)).add(later) == DRIFT
    assert file.read("spam/ham", 3) == DRIFT
    assert file.read("spam/ham", 4) is None
    assert file.read("ham", 3) is None
    newer = msgspec.structs.replace(DRIFT, calibration=4)
    assert file.add(newer) == newer
    assert file.read("spam/ham", 3) == DRIFT


def test_it_stands_in_the_audit_log_with_its_numbers(tmp_path: Path) -> None:
    """And in words; then it is owed no more."""
    file = Drifts(str(tmp_path))
    file.pay(file.add(DRIFT))
    (entry,) = open_audit(str(tmp_path)).entries()
    facts = msgspec.json.decode(entry.facts)
    assert (entry.kind, entry.job, entry.run) == ("drift", "job", "job-1")
    assert (facts["id"], facts["items"], facts["mean"], facts["promised"]) == ("spam/ham:3", 240, 0.71, 0.9)
    assert facts["why"] == (
        "cascade of task spam/ham: 240 accepted answers of small@v1 are right (by exact) in 0.710, and its calibration "
        "3 promised 0.9: it does not hold any more"
    )
    found = file.read("spam/ham", 3)
    assert found is not None
    assert not found.owed


def test_a_document_that_cant_be_read_is_no_good_news(tmp_path: Path) -> None:
    Drifts(str(tmp_path)).add(DRIFT)
    (path,) = (tmp_path / "drifts").glob("*.json")
    path.write_text("[{")
    with pytest.raises(Corrupt, match="restore it from a backup"):
        Drifts(str(tmp_path)).read("spam/ham", 3)
