"""The real parts that the stream tests share: Kafka (one broker, or three), an S3 server, Ray, the sandbox; a proxy
before each server but the three.

Jobs reach the servers by way of the proxies, so that the network between them can be harmed; tests read past them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Protocol

from penstock.jobs.dev.kafka import KafkaServer
from penstock.jobs.dev.ports import LOOPBACK, free_port
from penstock.jobs.dev.s3 import S3Server
from penstock.jobs.sandbox import Behaviour, Faults, Settings, running_sandbox
from tests.crash.shared_ray import SharedRay
from tests.crash.streams.kafka_cluster import KafkaCluster
from tests.crash.streams.s3_proxy import S3Proxy
from tests.crash.streams.tcp_proxy import TcpProxy

_FAULTS = Faults(server_error=0.02, invalid_json=0.005)
BEHAVIOURS = {
    "pretend": Behaviour(latency_ms=120, jitter_ms=60, faults=_FAULTS),
    "steady": Behaviour(latency_ms=1_200, jitter_ms=600, faults=_FAULTS),
    "sure": Behaviour(latency_ms=60, jitter_ms=30),
    "slow": Behaviour(latency_ms=3_000, jitter_ms=1_000),
    "faulty": Behaviour(latency_ms=60, faults=Faults(rate_limit=0.1, server_error=0.3)),
}
"""Models of the sandbox."""
MAX_RECORD_BYTES = 12_000_000
"""What the test broker takes: a record over our own limit (8 MB) can be put there."""


class Brokers(Protocol):
    """One broker, or a cluster of them."""

    @property
    def bootstrap(self) -> str: ...
    def start(self) -> None: ...
    def kill(self) -> None: ...
    def freeze(self) -> None: ...
    def thaw(self) -> None: ...
    def tool(self, name: str, *arguments: str) -> str: ...


class Stage:
    """`environment`: of every command; it joins the shared Ray unless told otherwise. `network`: before the broker; a
    cluster has none."""

    def __init__(
        self,
        kafka: Brokers,
        network: TcpProxy | None,
        s3: S3Server,
        front: S3Proxy,
        s3_network: TcpProxy,
        sandbox: str,
        journal: Path,
    ) -> None:
        self.kafka = kafka
        self._network = network
        self.s3 = s3
        self.front = front
        self.s3_network = s3_network
        self.sandbox = sandbox
        self.journal = journal
        self.ray = SharedRay(s3.keys.environment)

    @property
    def network(self) -> TcpProxy:
        assert self._network is not None, "these brokers stand behind no proxy"
        return self._network

    @property
    def cluster(self) -> KafkaCluster:
        assert isinstance(self.kafka, KafkaCluster), "this broker stands alone"
        return self.kafka

    @property
    def bootstrap(self) -> str:
        """Of the broker, by way of the proxy; or of all brokers."""
        return self.kafka.bootstrap if self._network is None else f"{LOOPBACK}:{self._network.port}"

    @property
    def endpoint(self) -> str:
        """Of S3, by way of the network and of the proxy that fails as S3 does."""
        return f"http://{LOOPBACK}:{self.s3_network.port}"

    def environment(self, *, shared_ray: bool = True) -> Mapping[str, str]:
        ray = {"RAY_ADDRESS": self.ray.address} if shared_ray else {}
        return {**os.environ, **self.s3.keys.environment, "RAY_AUTH_MODE": "token", **ray}

    def heal(self) -> None:
        """Everything up, and no fault in the way: what a test finds."""
        if self._network is not None:
            self._network.heal()
        for proxy in (self.front, self.s3_network):
            proxy.heal()
        for server in (self.kafka, self.s3):
            server.thaw()
            server.start()


def kafka_behind(folder: Path) -> tuple[KafkaServer, TcpProxy]:
    """A broker with a second listener, which it advertises under the proxy's port."""
    port, behind = free_port(), free_port()
    network = TcpProxy(behind)
    server = KafkaServer(folder, port, {
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT",
        "listeners": f"PROXIED://{LOOPBACK}:{behind}",
        "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{port},PROXIED://{LOOPBACK}:{network.port}",
        "message.max.bytes": str(MAX_RECORD_BYTES),
    })  # fmt: skip
    return server, network


@contextlib.contextmanager
def stage(folder: Path) -> Generator[Stage]:
    """All of it, started, with one broker; Ray only once a job wants it. Raises `MissingTool` where a server can't be
    had."""
    kafka, network = kafka_behind(folder / "kafka")
    with contextlib.ExitStack() as ends:
        network.start()
        ends.callback(network.stop)
        yield ends.enter_context(_stage(folder, kafka, network))


@contextlib.contextmanager
def cluster_stage(folder: Path) -> Generator[Stage]:
    """The same with three brokers."""
    with _stage(folder, KafkaCluster(folder / "kafka"), None) as made:
        yield made


@contextlib.contextmanager
def _stage(folder: Path, kafka: Brokers, network: TcpProxy | None) -> Generator[Stage]:
    journal = folder / "journal.jsonl"
    settings = Settings(models=BEHAVIOURS, journal=str(journal))
    with contextlib.ExitStack() as ends:
        ends.callback(kafka.kill)
        kafka.start()
        s3 = S3Server(folder / "s3")
        ends.callback(s3.kill)
        s3.start()
        front = S3Proxy(s3.port)
        s3_network = TcpProxy(front.port, plain=True)
        for proxy in (front, s3_network):
            proxy.start()
            ends.callback(proxy.stop)
        sandbox = ends.enter_context(running_sandbox(settings, process=True))
        made = Stage(kafka, network, s3, front, s3_network, sandbox, journal)
        ends.callback(made.ray.close)
        yield made
