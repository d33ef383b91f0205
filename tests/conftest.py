"""What tests that start processes share: nothing that a test started outlives it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
from collections.abc import Iterator
from multiprocessing import resource_tracker

import psutil
import pytest
from hypothesis import HealthCheck, settings

# No timing in tests: a busy machine must not fail an example that a quiet one passes.
settings.register_profile("penstock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("penstock")

MARK = "PENSTOCK_TEST_MARK"
_PR_SET_CHILD_SUBREAPER = 36
"""<sys/prctl.h>: orphans below us become our children, so a killed command's Ray is still found and ended."""


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A mark in the environment of all that the test starts; whatever bears it, or descends from us, is ended."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = own_children()
    name = secrets.token_hex(8)
    monkeypatch.setenv(MARK, name)
    yield name
    reap(name, keep=before)


def own_children() -> set[int]:
    """Processes that a reaper must leave alone: what runs already, and multiprocessing's own tracker, which lives as
    long as we do (seen: reaped with a module's sandbox, it failed the next module's first test)."""
    resource_tracker.ensure_running()
    return {process.pid for process in psutil.Process().children(recursive=True)}


def reap(name: str, keep: set[int] = frozenset()) -> None:  # pyright: ignore[reportArgumentType]
    """Kill what bears the mark and what descends from us, until nothing is left."""
    for _ in range(50):
        found = [p for p in _marked(name) if p.pid not in keep and p.pid != os.getpid()]
        if not found:
            break
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(found, timeout=2)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _marked(name: str) -> Iterator[psutil.Process]:
    """By parentage (a process that sets its title overwrites its environment), and by the mark."""
    seen: set[int] = set()
    for process in psutil.Process().children(recursive=True):
        seen.add(process.pid)
        if _alive(process):
            yield process
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid not in seen and process.environ().get(MARK) == name:
                yield process


def _alive(process: psutil.Process) -> bool:
    """A zombie child of ours is collected on the way."""
    with contextlib.suppress(psutil.Error):
        if process.status() != psutil.STATUS_ZOMBIE:
            return True
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)
    return False


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Where CI asks for the real parts (PENSTOCK_CI), a skipped test of one is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter is not None else []
    if os.environ.get("PENSTOCK_CI") and skipped:
        print(f"{len(skipped)} tests were skipped; in CI each must run: {skipped[0].nodeid}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
