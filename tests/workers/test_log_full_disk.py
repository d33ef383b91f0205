"""A run's log is for people: where it can't be written the run goes on."""

from __future__ import annotations

from pathlib import Path

from penstock.workers.log import Log


def test_a_full_disk_keeps_no_process_from_going_on(tmp_path: Path) -> None:
    """The driver logs before it ends a run: a log that raised there would leave the run without an end."""
    folder = tmp_path / "logs" / "run"
    folder.mkdir(parents=True)
    (folder / "driver.jsonl").symlink_to("/dev/full")
    Log(str(tmp_path), "run", "driver")("error", "run failed", reason="no space left on device")
