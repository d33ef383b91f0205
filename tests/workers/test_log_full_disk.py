"""A run's log is for people: where it can't be written the run goes on, and it does not fill the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.workers import log as logs
from penstock.workers.log import Log


def test_a_full_disk_keeps_no_process_from_going_on(tmp_path: Path) -> None:
    """The driver logs before it ends a run: a log that raised there would leave the run without an end."""
    folder = tmp_path / "logs" / "run"
    folder.mkdir(parents=True)
    (folder / "driver.jsonl").symlink_to("/dev/full")
    Log(str(tmp_path), "run", "driver")("error", "run failed", reason="no space left on device")


def test_a_log_of_weeks_keeps_its_latest_lines_and_a_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lane may log a hundred dead letters a minute."""
    monkeypatch.setattr(logs, "MOST_BYTES", 1_000)
    log = Log(str(tmp_path), "run", "lane-0")
    for n in range(200):
        log("warning", "dead letter", number=n)
    files = sorted((tmp_path / "logs" / "run").iterdir())
    assert [path.name for path in files] == ["lane-0.jsonl", "lane-0.old.jsonl"]
    assert all(path.stat().st_size < 1_200 for path in files)
    assert "199" in files[0].read_text().splitlines()[-1]
