"""A cluster of several nodes: a run whose folders are not the same folders on each of them is refused, wherever it is
that one looks. Another path stands for a node's own disk."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import msgspec
import pytest

from penstock.connectors import memory
from penstock.connectors.base import Mark
from penstock.connectors.filestore.common import marked
from penstock.connectors.memory import MemoryStore
from penstock.connectors.settings import MemorySink, MemorySource, Row
from penstock.engine.catalog import Catalog
from penstock.engine.errors import Refused
from penstock.engine.plan import Plan
from penstock.engine.policy import Policy
from penstock.workers.cluster import Cluster
from penstock.workers.driver import Driver
from penstock.workers.lanes.actor import LaneActor
from penstock.workers.nodes import ANSWER_S, ask_nodes
from penstock.workers.ports import encode
from penstock.workers.runspec import RunOptions, RunSpec

PLAN = Plan("r", "n", {}, 1, (), {}, 0.0, started=True)
ELSEWHERE = (Mark("the state", "/nowhere/.penstock-mark-x", "x"),)
OWN_TO_EACH = Path("/proc/self/cwd/state")
"""Another folder for each process that stands in another one."""


def spec(folder: Path) -> RunSpec:
    memory.forget("nodes")
    source, sinks = MemorySource("nodes"), {"results": MemorySink("nodes")}
    return RunSpec("r", "n", {}, source, None, Row(), Catalog({}, {}, {}), Policy({}), sinks, state=str(folder))


async def test_a_driver_that_starts_on_a_node_with_another_disk_takes_nothing(tmp_path: Path) -> None:
    """One that replaces a lost driver may start on a node that joined meanwhile, and was never asked."""
    options = msgspec.msgpack.encode(RunOptions(fresh=True, marks=ELSEWHERE))
    with pytest.raises(Refused, match="the state: on node"):
        await Driver(encode(spec(tmp_path)), options, 1).accept()
    assert await MemoryStore("nodes").run_epoch() == 0


async def test_a_lane_opens_on_no_node_with_another_disk(tmp_path: Path) -> None:
    """Neither at the start nor where it goes on after its actor was lost: it would lease money from another ledger."""
    actor = LaneActor(encode(spec(tmp_path)), encode(PLAN), None, "lane n[0]", ELSEWHERE)
    with pytest.raises(Refused, match="the state: on node"):
        await actor.open(0, 1, (1, 1), False, True)
    assert await MemoryStore("nodes").owner(0) == (0, 0)


@pytest.fixture
def two_nodes(mark: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Two raylets on this machine, and this process joined. The pid of the one where it is not."""
    import ray
    from ray.cluster_utils import Cluster as Raylets

    monkeypatch.setenv("RAY_TMPDIR", f"/tmp/pn-{secrets.token_hex(3)}")
    raylets = Raylets(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        other = raylets.add_node(num_cpus=1)
        ray.init(address=raylets.address, log_to_driver=False)
        yield other.all_processes["raylet"][0].process.pid
    finally:
        ray.shutdown()
        raylets.shutdown()


@pytest.mark.ray
@pytest.mark.long
def test_every_node_is_asked_before_a_run_begins(two_nodes: int, tmp_path: Path) -> None:
    """A folder that both see passes; where it is each one's own, the run is refused and nothing of it begins."""
    with marked(str(tmp_path), MemorySource("nodes"), {}) as marks:
        ask_nodes(marks, lambda: 0)
    refused = pytest.raises(Refused, match=r"the state: on node .* is another folder, or none")
    with chdir(tmp_path), contextlib.closing(Cluster(local=False, dashboard=None)) as cluster, refused:
        cluster.launch(spec(OWN_TO_EACH), RunOptions(), lambda: 0)
    assert not list(tmp_path.rglob(".penstock-mark-*"))


@pytest.mark.ray
@pytest.mark.long
def test_who_wants_to_stop_waits_for_no_node_that_does_not_answer(two_nodes: int, tmp_path: Path) -> None:
    """It is stopped. Who waits on is told so after a minute."""
    began = time.monotonic()
    interrupted = pytest.raises(KeyboardInterrupt, match="the same command begins it")
    with contextlib.closing(Cluster(local=False, dashboard=None)) as cluster, stopped(two_nodes), interrupted:
        cluster.launch(spec(tmp_path), RunOptions(), lambda: int(time.monotonic() > began + 1.0))
    assert time.monotonic() - began < ANSWER_S / 4
    assert not list(tmp_path.rglob(".penstock-mark-*"))


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
