"""A cluster that is there already: runs join it, share its workers, and leave it as it was."""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import own_children
from tests.crash.bench import Bench, Shape, bench, moves_of, title

pytestmark = pytest.mark.ray

KEEP_S = 3.0
KEPT_S = 25.0
"""Long enough for another command to start on a busy machine."""


TELL_S = 180.0
"""For what takes half a minute on a quiet machine."""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def cluster(tmp_path: Path, mark: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """`ray start --head` with token authentication, in a folder of its own; yields its address."""
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    _before.clear()
    _before.update(own_children())
    folder, port = Path(f"/tmp/pr-{secrets.token_hex(3)}"), free_port()  # socket paths must be short
    ray = Path(sys.executable).parent / "ray"
    subprocess.run(
        [ray, "start", "--head", f"--port={port}", f"--temp-dir={folder}", "--num-cpus=2", "--include-dashboard=false",
         "--object-store-memory=100000000", "--disable-usage-stats"],
        check=True, timeout=90, capture_output=True, cwd=tmp_path,
    )  # fmt: skip
    yield f"127.0.0.1:{port}"
    subprocess.run(["rm", "-rf", str(folder)], check=False)


_before: set[int] = set()
"""What ran below us when the cluster was started: other tests' leftovers."""


def workers() -> list[psutil.Process]:
    """Processes of this test's cluster that are workers of ours."""
    below = (p for p in psutil.Process().children(recursive=True) if p.pid not in _before)
    return [p for p in below if title(p).startswith("ray::WorkerActor")]


def join(address: str, folder: Path) -> None:
    """One more node, of two cores."""
    ray = Path(sys.executable).parent / "ray"
    subprocess.run(
        [ray, "start", f"--address={address}", "--num-cpus=2", "--object-store-memory=100000000",
         "--disable-usage-stats"],
        check=True, timeout=TELL_S, capture_output=True, cwd=folder,
    )  # fmt: skip


def start(b: Bench, address: str) -> subprocess.Popen[bytes]:
    return b.start("--address", address)


def wait_until_none(timeout_s: float) -> bool:
    until = time.monotonic() + timeout_s
    while workers() and time.monotonic() < until:
        time.sleep(0.2)
    return not workers()


@pytest.mark.long
def test_two_jobs_share_a_worker_which_leaves_by_itself(cluster: str, tmp_path: Path) -> None:
    """The second job finds the first one's dispatcher (the same process); unused, it ends after `keep_s`; the cluster
    stays."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    shape = Shape(items=100, latency_ms=5, jitter_ms=0, lanes=2, lane_actors=1, keep_s=KEPT_S)
    with bench(one, shape) as b:
        assert b.end(start(b, cluster)) == 0, b.log(b.commands[0])
        first = [p.pid for p in workers()]
        b.check(bound=0)
        second = Bench(two, b.url, shape)
        try:
            assert second.end(start(second, cluster)) == 0, second.log(second.commands[0])
            assert [p.pid for p in workers()] == first
            assert len(first) == 1
        finally:
            second.close()
        assert wait_until_none(KEPT_S + 30)
        assert b.end(start(b, cluster)) == 0, "the cluster is gone"


@pytest.mark.long
def test_a_killed_command_leaves_no_worker_behind(cluster: str, tmp_path: Path) -> None:
    """Its driver and lanes die with it; its dispatcher sees that the board is gone, and leaves. The resume is right."""
    with bench(tmp_path, Shape(items=600, lanes=2, lane_actors=1, keep_s=1.0)) as b:
        command = start(b, cluster)
        b.wait_served(150, command)
        command.kill()
        command.wait()
        b.kills.append("command on a cluster")
        assert wait_until_none(60)
        assert b.end(start(b, cluster)) == 0, b.log(b.commands[-1])
        b.check(bound=b.shape.concurrency + round(b.fastest_rate() * 0.6))


@pytest.mark.long
def test_a_node_that_joins_while_a_run_goes_gets_half_of_its_lanes(cluster: str, tmp_path: Path) -> None:
    """They are handed over one after another: nothing of them is lost or paid twice."""
    shape = Shape(items=5_000, latency_ms=1_000, jitter_ms=300, padding=1_000, lane_actors=None)
    with bench(tmp_path, shape) as b:
        command = start(b, cluster)
        b.wait_served(100, command)
        join(cluster, tmp_path)
        assert b.end(command) == 0, b.log(command)
        assert "lane actor 1 starts" in b.log(command), b.log(command)
        moves = moves_of(b)
        assert [(move.source, move.target) for move in moves] == [(0, 1)] * 2, b.log(command)
        b.check(bound=shape.concurrency)
