"""Ray: started for one command on this machine, or the cluster a person points at; and how a run is launched on it.

A local Ray listens as safely as Ray can: dashboard on loopback, token authentication, token file readable by its owner
only. What Ray can't do (GCS and raylet listen on all interfaces) stands in `docs/security.md`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from penstock.engine.errors import Temporary
from penstock.workers.dashboard import LateDashboard
from penstock.workers.signals import children_deaf_to_hangups

if TYPE_CHECKING:
    from penstock.workers.launch import RunHandle
    from penstock.workers.runspec import RunOptions, RunSpec

NAMESPACE = "penstock"
"""Ray namespace of all our actors: jobs find shared engines and governors there."""
OBJECT_STORE_BYTES = 128 * 1024 * 1024
"""Chunks are small and short-lived; Ray's default (30 % of memory) is for data frames."""
WATCH_S = 60.0
"""How long one watch of an actor lasts. Ray ends no call of an actor whose caller waits no more, and a worker that
serves many jobs takes a thousand at a time."""
AWAY_S = 0.5
"""Before an actor is asked again to which there was no way."""
WITHOUT_DASHBOARD = ("0", "off", "no")
"""Values of PENSTOCK_DASHBOARD with which a local Ray runs without its dashboard: with half of the work."""


class Cluster:
    def __init__(self, *, local: bool, dashboard: LateDashboard | None = None) -> None:
        self.local = local
        """Of one node, and never of more."""
        self.dashboard = dashboard
        """None: a cluster's own, or none is wanted."""
        self._held = contextlib.ExitStack()

    def launch(self, spec: RunSpec, options: RunOptions, asked: Callable[[], int]) -> RunHandle:
        """Raises as `launch.launch` does, and `Refused` where a node does not see the run's folders as this one."""
        from penstock.connectors.filestore.common import lasting, marked
        from penstock.workers.launch import launch
        from penstock.workers.nodes import ask_nodes

        if not self.local:
            marks = self._held.enter_context(marked(spec.state, spec.source, spec.sinks))
            ask_nodes(marks, asked)
            options = msgspec.structs.replace(options, marks=lasting(marks))
        return launch(spec, options, asked, self.dashboard.due if self.dashboard is not None else _nothing)

    def close(self) -> None:
        """Behind the last run: nobody needs to see its folders any more."""
        self._held.close()


@contextlib.contextmanager
def open_cluster(address: str | None = None) -> Generator[Cluster]:
    """Start a Ray here, or join the one at `address` (or RAY_ADDRESS). Takes down what it started.

    Raises `Temporary` where Ray can't be started or reached.
    """
    _environment(local=(address or os.environ.get("RAY_ADDRESS")) is None)
    import ray

    address = address or os.environ.get("RAY_ADDRESS")
    if ray.is_initialized():
        with contextlib.closing(Cluster(local=False)) as joined:
            yield joined
        return
    local = address is None
    late = LateDashboard() if local and _wants_dashboard() else None
    # Ray puts the driver's folder first on its workers' path: a user's own jobs/ or engine.py would hide ours. The
    # empty folder stays while Ray lives: its workers stand in it, and vLLM's libraries can't load from nowhere.
    with tempfile.TemporaryDirectory(prefix="penstock-", ignore_cleanup_errors=True) as empty:
        try:
            _init(address, empty, late)
        except Exception as error:
            where = "a local Ray" if local else f"the Ray cluster at {address}"
            raise Temporary(f"could not reach or start {where}: {error}") from error
        try:
            with contextlib.closing(Cluster(local=local, dashboard=late)) as cluster, _quiet():
                yield cluster
        finally:
            with late.closing() if late is not None else contextlib.nullcontext():
                ray.shutdown()


def _wants_dashboard() -> bool:
    return os.environ.get("PENSTOCK_DASHBOARD", "").lower() not in WITHOUT_DASHBOARD


def _init(address: str | None, empty: str, late: LateDashboard | None) -> None:
    import ray

    with contextlib.chdir(empty), children_deaf_to_hangups():
        if address is not None:
            ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
            return
        put_off = late.put_off() if late is not None else contextlib.nullcontext()
        with _without_idlers(dashboard=late is not None), put_off:
            ray.init(
                address="local",
                namespace=NAMESPACE,
                include_dashboard=late is not None,
                dashboard_host="127.0.0.1",
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    _protect_token()


@contextlib.contextmanager
def _without_idlers(*, dashboard: bool) -> Generator[None]:
    """Ray starts a process that prints workers' logs, which is turned off here, and one that scales clusters, of which
    this one's dashboard shows the report: 0.7 s of CPU each, before anything can be sent. Without a dashboard it starts
    that one's server all the same, for itself alone. Private names of Ray's: where they are gone, all run."""
    from ray._private.node import Node

    idle = ("start_log_monitor",) if dashboard else ("start_log_monitor", "start_monitor", "start_api_server")
    before = {name: getattr(Node, name) for name in idle if hasattr(Node, name)}
    for name in before:
        setattr(Node, name, _nothing)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(Node, name, method)


def cores() -> int:
    """Of the cluster that this process has joined, as it is now."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def words(error: Exception) -> str:
    """The last line of what went wrong, without another process's traceback."""
    cause = getattr(error, "cause", None) or error
    return (str(cause).strip() or repr(cause)).splitlines()[-1][:500]


def kill(handle: object) -> None:
    """End an actor's process, if it is still there."""
    import ray

    with contextlib.suppress(Exception):
        ray.kill(handle, no_restart=True)  # pyright: ignore[reportArgumentType]


async def watched() -> None:
    """What an actor's `lost` does: its caller learns at once where this process is gone, and else asks again."""
    await asyncio.sleep(WATCH_S)


async def until_gone(handle: object) -> None:
    """Returns when the actor's process is gone. One to which there is no way for a moment is asked again."""
    from ray.exceptions import ActorUnavailableError

    while True:
        try:
            await handle.lost.remote()  # pyright: ignore[reportAttributeAccessIssue]
        except ActorUnavailableError:
            await asyncio.sleep(AWAY_S)
        except Exception:  # noqa: BLE001 - Ray's words for a process that is gone differ
            return


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Ray prints each process it loses onto the command's output, whatever `log_to_driver` says. The run tells it in
    its notes, and the logs hold the details. A private name of Ray's: where it is gone, Ray prints again."""
    import ray._private.worker as worker

    before = getattr(worker, "print_to_stdstream", None)
    if before is None:
        yield
        return
    worker.print_to_stdstream = _nothing
    try:
        yield
    finally:
        worker.print_to_stdstream = before


def _nothing(*_: object, **__: object) -> None: ...


def _environment(*, local: bool) -> None:
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if local:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        _tell_ray(os.environ["RAY_AUTH_MODE"])
        # glibc keeps a heap for each thread, and Ray's processes have dozens: a long run grows by 20 MB less with two
        os.environ.setdefault("MALLOC_ARENA_MAX", "2")
        # Ray's default is 15: on a busy machine lanes and workers then get so little of it that their driver takes them
        # for lost
        os.environ.setdefault("RAY_worker_niceness", "0")
        _token_before_ray()


def _tell_ray(mode: str) -> None:
    """A program that imported Ray before it called us: Ray read its environment then. (What it starts reads it anew.)
    Private names of Ray's: where they are gone, such a program must set RAY_AUTH_MODE itself."""
    if "ray" not in sys.modules:
        return
    with contextlib.suppress(Exception):
        from ray._raylet import Config  # pyright: ignore[reportAttributeAccessIssue]

        Config.initialize(json.dumps({"AUTH_MODE": mode}))


def _token_before_ray() -> None:
    """Ray writes its token readable by all (0644): make the file first, with 0600."""
    path = Path.home() / ".ray" / "auth_token"
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH") or path.exists():
        return
    import secrets

    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(handle, secrets.token_hex(32).encode())
        os.close(handle)


def _protect_token() -> None:
    path = Path.home() / ".ray" / "auth_token"
    with contextlib.suppress(OSError):
        if stat.S_IMODE(path.stat().st_mode) != 0o600:
            path.chmod(0o600)
