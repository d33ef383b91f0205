"""The Ray that a command starts for itself: who may talk to it, from where, and who can read its token."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import os
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import psutil
import pytest

from penstock.workers import cluster

TOLD_BY_TESTS = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "PENSTOCK_DASHBOARD")
"""Which `conftest.py`, or whoever runs the tests, may have set: a person has none of them."""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """As a person's first command finds it."""
    with mock.patch.dict(os.environ, {"HOME": str(tmp_path)}):
        for name in TOLD_BY_TESTS:
            os.environ.pop(name, None)
        yield tmp_path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_local_ray_asks_for_a_token_that_only_its_owner_can_read(home: Path) -> None:
    cluster._environment(local=True)
    token = home / ".ray/auth_token"
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert (mode(token), mode(token.parent)) == (0o600, 0o700)
    assert len(token.read_text()) == 64
    before = token.read_text()
    cluster._environment(local=True)
    assert token.read_text() == before, "a second command shares it"


def test_a_token_that_ray_wrote_for_all_to_read_is_closed(home: Path) -> None:
    token = home / ".ray/auth_token"
    token.parent.mkdir()
    token.write_text("secret")
    token.chmod(0o644)
    cluster._environment(local=True)
    cluster._protect_token()
    assert (token.read_text(), mode(token)) == ("secret", 0o600)


@pytest.mark.parametrize("given", [{"RAY_AUTH_TOKEN": "mine"}, {"RAY_AUTH_TOKEN_PATH": "/elsewhere"}])
def test_a_token_of_ones_own_is_left_where_it_is(home: Path, given: dict[str, str]) -> None:
    os.environ.update(given)
    cluster._environment(local=True)
    assert not (home / ".ray").exists()


def test_a_cluster_that_is_there_keeps_its_own_ways(home: Path) -> None:
    """It may ask for no token, or for another."""
    cluster._environment(local=False)
    assert "RAY_AUTH_MODE" not in os.environ
    assert not (home / ".ray").exists()


PROGRAM = """
import sys
from penstock.workers.cluster import open_cluster
with open_cluster() as one:
    print(one.dashboard.url(), flush=True)
    sys.stdin.read()
"""


def asked(url: str, token: str | None) -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.ray
@pytest.mark.long
def test_the_dashboard_that_a_person_gets_listens_here_alone_and_runs_nothing_without_the_token(
    home: Path, mark: str
) -> None:
    """Whoever may submit a job to it runs code on this machine."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=home, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    at = process.stdout.readline().strip()
    token = home / ".ray/auth_token"
    assert mode(token) == 0o600
    port = int(at.rpartition(":")[2])
    listening = [one for one in psutil.net_connections("tcp") if one.laddr and one.laddr.port == port]
    assert {one.laddr.ip for one in listening if one.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
    jobs = f"http://{at}/api/jobs/"
    assert asked(jobs, None) in (401, 403)
    assert asked(jobs, "wrong" * 10) in (401, 403)
    assert asked(jobs, token.read_text()) == 200
    process.communicate("", timeout=60)


RAY_BEFORE = """
import os, ray
from penstock.workers.cluster import open_cluster
os.environ["PENSTOCK_DASHBOARD"] = "off"
with open_cluster():
    print(sorted(ray.cluster_resources()))
"""


@pytest.mark.ray
@pytest.mark.long
def test_a_program_that_imported_ray_first_gets_a_ray_that_asks_for_the_token(home: Path, mark: str) -> None:
    """Ray read its environment when it was imported."""
    done = subprocess.run([sys.executable, "-c", RAY_BEFORE], cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CPU" in done.stdout
    assert mode(home / ".ray/auth_token") == 0o600
