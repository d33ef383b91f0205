"""The demo itself, but for its part with a real model."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.jobs.demo import files, play, versions
from penstock.jobs.demo.stage import Stage

pytestmark = [pytest.mark.ray, pytest.mark.long]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_quick_demo_ends_as_it_promises(here: Path) -> None:
    """A kill in the middle, and the same rows once; whoever sees it end with 0 has seen that."""
    assert play.main(quick=True) == 0
    assert (here / play.FOLDER / "sandbox" / "job.yaml").exists()


def test_the_part_about_quality_names_the_planted_winner_and_takes_the_worse_version_back(here: Path) -> None:
    """In front of the viewer, and then the page about it."""
    folder = files.claim(here / play.FOLDER)
    assert versions.play(Stage(), folder) == 0
    assert (folder / "quality" / versions.PAGE).stat().st_size > 10_000
