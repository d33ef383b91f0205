"""What tests that start processes share: nothing that a test started outlives it. Kafka and S3 for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import secrets
import signal
from collections.abc import Awaitable, Callable, Iterator, Mapping
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import psutil
import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from penstock.jobs.dev.kafka import KafkaServer
    from penstock.jobs.dev.s3 import Keys, S3Server
    from penstock.jobs.dev.server import Server

# No timing in tests: a busy machine must not fail an example that a quiet one passes.
settings.register_profile("penstock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("penstock")

# Ray reads it once, when it is imported: whichever test does that first, the later ones start clusters behind a token.
os.environ.setdefault("RAY_AUTH_MODE", "token")

os.environ.setdefault("PENSTOCK_DASHBOARD", "off")  # half of the work of each of the many starts of Ray

MARK = "PENSTOCK_TEST_MARK"
_PR_SET_CHILD_SUBREAPER = 36
"""<sys/prctl.h>: orphans below us become our children, so a killed command's Ray is still found and ended."""


@pytest.fixture(scope="session", autouse=True)
def local_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What processes keep on this machine of states that are elsewhere stays out of the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PENSTOCK_LOCAL", str(tmp_path_factory.mktemp("local")))
        yield


@pytest.fixture
def terminal() -> Iterator[None]:
    """As from a terminal: under `nohup`, or in the background of a script, the tests and what they start would inherit
    that SIGHUP or SIGINT is ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL), signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGHUP, before[0])
    signal.signal(signal.SIGINT, before[1])


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A mark in the environment of all that the test starts; whatever bears it, or descends from us, is ended."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = own_children()
    name = secrets.token_hex(8)
    monkeypatch.setenv(MARK, name)
    yield name
    reap(name, keep=before)


@contextlib.contextmanager
def ray_of_a_file(environment: Mapping[str, str] | None = None) -> Iterator[None]:
    """One Ray: commands join the Ray that their process has. `environment`: for its workers, too. Nothing that was
    started meanwhile outlives it."""
    from penstock.workers.cluster import open_cluster

    before, name = own_children(), secrets.token_hex(8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, name)
        patch.delenv("RAY_ADDRESS", raising=False)
        for variable, value in (environment or {}).items():
            patch.setenv(variable, value)
        with open_cluster():
            yield
    reap(name, keep=before)


@pytest.fixture(scope="module")
def one_ray() -> Iterator[None]:
    """One Ray for the whole file."""
    with ray_of_a_file():
        yield


def own_children() -> set[int]:
    """Processes that a reaper must leave alone: what runs already, and multiprocessing's own tracker, which lives as
    long as we do (seen: reaped with a module's sandbox, it failed the next module's first test)."""
    resource_tracker.ensure_running()
    return {process.pid for process in psutil.Process().children(recursive=True)}


def reap(name: str, keep: set[int] = frozenset()) -> None:  # pyright: ignore[reportArgumentType]
    """Kill what bears the mark and what descends from us, until nothing is left."""
    for _ in range(50):
        spared = {*keep, os.getpid(), *(pid for server in _shared for pid in server.pids)}
        found = [p for p in _marked(name) if p.pid not in spared]
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
        print(f"{len(skipped)} tests were skipped; in CI each must run")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What was not tested here, and what it would take: each reason (a tool that is missing) with the tests' files."""
    files: dict[str, set[str]] = {}
    for report in terminalreporter.stats.get("skipped", []):
        files.setdefault(report.longrepr[2].removeprefix("Skipped: "), set()).add(report.nodeid.partition("::")[0])
    for reason, where in sorted(files.items()):
        terminalreporter.write_line(f"skipped: {reason}: {', '.join(sorted(where))}")


LONG = (
    "tests/crash/streams/",
    "tests/crash/test_faults.py",
    "tests/crash/test_kills.py",
    "tests/jobs/test_pairings.py",
    "tests/jobs/test_eval_runs.py",
    "tests/jobs/test_rollouts.py",
    "tests/jobs/test_end_to_end.py",
    "tests/jobs/test_own_worker.py",
    "tests/crash/test_own_engine.py",
    "tests/jobs/test_kafka_quickstart.py",
    "tests/workers/test_vllm_inproc.py",
    "tests/workers/test_ray_cluster.py",
    "tests/jobs/test_s3_job.py",
    "tests/jobs/test_measured_routes.py",
)
"""What takes a minute or more, longest first: it begins first, so that no worker is left alone with it at the end. A
folder stays together, since its tests share one set of servers."""


def _unit(nodeid: str) -> str:
    """What one worker runs from its beginning to its end."""
    return next((long for long in LONG if nodeid.startswith(long)), nodeid.partition("::")[0])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {long: n for n, long in enumerate(LONG)}
    items.sort(key=lambda item: place.get(_unit(item.nodeid), len(LONG)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadfile`, but with our units, and in our order."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByUnit(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _unit(nodeid)

    config.option.loadscopereorder = False
    return ByUnit(config, log)


S = TypeVar("S", bound="Server")

# Kafka and S3. `kafka_server` and `s3_server` are one each for the whole session: never stop or freeze those.
# `start_kafka` and `start_s3` give a test its own, to be killed, frozen, or set up in another way.

_shared: list[Server] = []
"""The session's servers: no test's reaper may end them."""


class KafkaAt(NamedTuple):
    """A Kafka that is there already (PENSTOCK_TEST_KAFKA=host:port)."""

    bootstrap: str


class S3At(NamedTuple):
    """An S3 server that is there already (PENSTOCK_TEST_S3=http://…, with the AWS variables)."""

    endpoint: str
    keys: Keys

    def client(self) -> Any:
        from penstock.jobs.dev.s3 import client

        return client(self.endpoint, self.keys)


@pytest.fixture(scope="session")
def kafka_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer | KafkaAt]:
    """`.bootstrap`: a real Kafka that all tests share; topics are not made by use, see `new_topic`."""
    from penstock.jobs.dev.kafka import KafkaServer

    if there := os.environ.get("PENSTOCK_TEST_KAFKA"):
        yield KafkaAt(there)
        return
    with _session_server(KafkaServer(tmp_path_factory.mktemp("kafka"))) as server:
        yield server


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server | S3At]:
    """`.endpoint`, `.keys.environment`, `.client()`: a real S3 server that all tests share; see `new_bucket`."""
    from penstock.jobs.dev.s3 import Keys, S3Server

    if there := os.environ.get("PENSTOCK_TEST_S3"):
        yield S3At(there, Keys(os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]))
        return
    with _session_server(S3Server(tmp_path_factory.mktemp("s3"))) as server:
        yield server


@contextlib.contextmanager
def _session_server(server: S) -> Iterator[S]:
    _started(server)
    _shared.append(server)
    try:
        yield server
    finally:
        _shared.remove(server)
        server.kill()


def _started(server: Server) -> None:
    """At home a missing Java, Maven or Go skips the test, which is told at the end (see `pytest_terminal_summary`); in
    CI a skip is a failure (see `pytest_sessionfinish`)."""
    from penstock.jobs.dev.fetch import MissingTool

    try:
        server.start()
    except MissingTool as error:
        pytest.skip(str(error))


@pytest.fixture
def start_kafka(tmp_path: Path) -> Iterator[Callable[..., KafkaServer]]:
    """`start_kafka({"message.max.bytes": "2000"})`: a started Kafka of the test's own; it ends with the test."""
    from penstock.jobs.dev.kafka import KafkaServer

    with contextlib.ExitStack() as ends:

        def start(properties: Mapping[str, str] | None = None) -> KafkaServer:
            server = KafkaServer(tmp_path / f"kafka-{secrets.token_hex(3)}", properties=properties)
            ends.callback(server.kill)
            _started(server)
            return server

        yield start


@pytest.fixture
def start_s3(tmp_path: Path) -> Iterator[Callable[[], S3Server]]:
    """`start_s3()`: a started S3 server of the test's own; it ends with the test."""
    from penstock.jobs.dev.s3 import S3Server

    with contextlib.ExitStack() as ends:

        def start() -> S3Server:
            server = S3Server(tmp_path / f"s3-{secrets.token_hex(3)}")
            ends.callback(server.kill)
            _started(server)
            return server

        yield start


@pytest.fixture
def new_topic(request: pytest.FixtureRequest) -> Callable[..., Awaitable[str]]:
    """`await new_topic("requests", partitions=3, config={"cleanup.policy": "compact"})` → a name of the test's own.

    `on`: another server than the shared one.
    """

    async def make(
        name: str, partitions: int = 1, config: Mapping[str, str] | None = None, on: KafkaServer | None = None
    ) -> str:
        from aiokafka.admin import AIOKafkaAdminClient, NewTopic

        topic = f"{name}-{secrets.token_hex(4)}"
        server = on or request.getfixturevalue("kafka_server")
        admin = AIOKafkaAdminClient(bootstrap_servers=server.bootstrap)
        await admin.start()
        try:
            made = await admin.create_topics([NewTopic(topic, partitions, 1, topic_configs=dict(config or {}))])
            assert [error[1] for error in made.topic_errors] == [0], made
            while not _is_up(await admin.describe_topics([topic]), partitions):  # noqa: ASYNC110 - a busy broker lags
                await asyncio.sleep(0.05)
        finally:
            await admin.close()
        return topic

    return make


def _is_up(told: list[dict[str, Any]], partitions: int) -> bool:
    if len(told) != 1 or told[0]["error_code"] != 0:
        return False
    return [one["leader"] >= 0 and one["error_code"] == 0 for one in told[0]["partitions"]] == [True] * partitions


@pytest.fixture
def new_bucket(request: pytest.FixtureRequest) -> Callable[..., str]:
    """`new_bucket("inbox")` → the name of an empty bucket of the test's own; `on`: another server than the shared."""

    def make(name: str, on: S3Server | None = None) -> str:
        bucket = f"{name}-{secrets.token_hex(4)}"
        (on or request.getfixturevalue("s3_server")).client().create_bucket(Bucket=bucket)
        return bucket

    return make


@pytest.fixture
def s3_keys(s3_server: S3Server | S3At, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shared S3 server's credentials in this test's environment, where the AWS chain finds them."""
    for name, value in s3_server.keys.environment.items():
        monkeypatch.setenv(name, value)
