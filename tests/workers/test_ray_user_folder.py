"""A person's folder may hold anything: their own `jobs/`, `workers/`, `engine.py` are not taken for ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.bench import Shape, bench

pytestmark = pytest.mark.ray

TRAP = 'raise RuntimeError("a module of the user\'s folder was imported")\n'


def test_a_run_works_in_a_folder_with_names_like_ours(tmp_path: Path, mark: str) -> None:
    """Ray puts the folder of the command first on its workers' path; every actor would die if that were it."""
    for package in ("jobs", "workers", "connectors", "penstock_user"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(TRAP)
    for module in ("engine", "items", "driver", "base"):
        (tmp_path / f"{module}.py").write_text(TRAP)
    with bench(tmp_path, Shape(items=50, latency_ms=5, jitter_ms=0, lanes=2, lane_actors=1)) as b:
        assert b.end(b.start()) == 0, b.log(b.commands[0])
        b.check(bound=0)
