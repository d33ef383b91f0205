"""Files of a state that is elsewhere lie in a folder of the machine, found again by whoever names the same state."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.engine.errors import SpecError
from penstock.workers import here
from penstock.workers import log as logs
from penstock.workers.here import folder_here, logs_here
from penstock.workers.log import Log

S3 = "s3://bucket/team/penstock"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(here.VARIABLE, str(tmp_path))
    return tmp_path


def test_a_state_that_is_a_folder_holds_its_own_files(root: Path) -> None:
    assert folder_here(str(root / "state")) == folder_here(f"file://{root}/state") == root / "state"


@pytest.mark.parametrize("same", ["/", "?region=eu-west-1", "/?sse=AES256"])
def test_the_same_state_written_in_another_way_has_the_same_files(same: str) -> None:
    assert folder_here(S3 + same) == folder_here(S3)


@pytest.mark.parametrize("other", ["-2", "/x", "?endpoint=http://127.0.0.1:7070"])
def test_another_state_has_other_files(other: str) -> None:
    assert folder_here(S3 + other) != folder_here(S3)


def test_its_folder_is_one_that_a_person_can_find_and_no_cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an evaluation paid for lies there."""
    assert folder_here(S3).parent == root
    assert folder_here(S3).name.startswith("s3-bucket-team-penstock-")
    assert "/" not in folder_here("s3://b/" + "../" * 200).relative_to(root).as_posix()
    monkeypatch.delenv(here.VARIABLE)
    monkeypatch.setenv("XDG_STATE_HOME", "/var/lib/me")
    assert folder_here(S3).parent == Path("/var/lib/me/penstock")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert folder_here(S3).parent == Path("/home/me/.local/state/penstock")


def test_a_relative_folder_would_be_another_one_for_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that only the desktop's standard names is passed over, as that standard asks."""
    monkeypatch.setenv(here.VARIABLE, "local")
    with pytest.raises(SpecError, match="is relative"):
        folder_here(S3)
    monkeypatch.delenv(here.VARIABLE)
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    monkeypatch.setenv("HOME", "/home/me")
    assert folder_here(S3).parent == Path("/home/me/.local/state/penstock")


def test_with_a_state_on_s3_a_process_logs_on_its_machine_and_fills_no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a state folder: the latest lines, in a file that its user alone may read."""
    monkeypatch.setattr(logs, "MOST_BYTES", 1_000)
    log = Log(S3, "run", "lane-0")
    for n in range(200):
        log("warning", "dead letter", number=n)
    files = sorted(logs_here(S3, "run").iterdir())
    assert [path.name for path in files] == ["lane-0.jsonl", "lane-0.old.jsonl"]
    assert all(path.stat().st_size < 1_200 and path.stat().st_mode & 0o077 == 0 for path in files)
    assert "199" in files[0].read_text().splitlines()[-1]


def test_a_user_without_a_home_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for the files is told how to name a folder; who only logs goes on."""

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for variable in (here.VARIABLE, "XDG_STATE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    Log(S3, "run", "driver")("info", "run over")
    with pytest.raises(SpecError, match="PENSTOCK_LOCAL"):
        folder_here(S3)
