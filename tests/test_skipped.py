"""A test whose real part can't run on this machine says so, and in CI it fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOY = """
import pytest
from tests import conftest
from penstock.jobs.dev.fetch import MissingTool

class Server:
    def start(self):
        raise MissingTool("java is not installed")

@pytest.mark.parametrize("n", [1, 2])
def test_of_a_real_kafka(n):
    conftest._started(Server())
"""


@pytest.mark.parametrize(("ci", "code"), [("", 0), ("1", 1)])
def test_who_needs_a_tool_that_is_missing_is_named_at_the_end(tmp_path: Path, ci: str, code: int) -> None:
    """Once a reason, with the tests' files: on a machine without Java that is hundreds of tests."""
    root = Path(__file__).parents[1]
    (tmp_path / "test_toy.py").write_text(TOY)
    command = [sys.executable, "-m", "pytest", "-c", root / "pyproject.toml", "-p", "tests.conftest", tmp_path]
    done = subprocess.run(
        command, cwd=root, env={**os.environ, "PENSTOCK_CI": ci}, capture_output=True, text=True, check=False
    )
    told = [line for line in done.stdout.splitlines() if line.startswith("skipped: ")]
    assert len(told) == 1, done.stdout + done.stderr
    assert told[0].startswith("skipped: java is not installed: ")
    assert told[0].endswith("test_toy.py")
    assert done.returncode == code
    assert ("in CI each must run" in done.stdout) == bool(ci)
