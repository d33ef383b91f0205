"""The real parts that the stream tests share: Kafka, an S3 server, Ray, the sandbox; a proxy before each server.

Jobs reach the servers by way of the proxies, so that the network between them can be harmed; tests read past them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Mapping
from pathlib import Path

from penstock.jobs.dev.kafka import KafkaServer
from penstock.jobs.dev.ports import LOOPBACK, free_port
from penstock.jobs.dev.s3 import S3Server
from penstock.jobs.sandbox import Behaviour, Faults, Settings, running_sandbox
from tests.crash.shared_ray import SharedRay
from tests.crash.streams.s3_proxy import S3Proxy
from tests.crash.streams.tcp_proxy import TcpProxy

BEHAVIOURS = {
    "pretend": Behaviour(latency_ms=120, jitter_ms=60, faults=Faults(server_error=0.02, invalid_json=0.005)),
    "sure": Behaviour(latency_ms=60, jitter_ms=30),
    "slow": Behaviour(latency_ms=3_000, jitter_ms=1_000),
}
"""Models of the sandbox."""
MAX_RECORD_BYTES = 12_000_000
"""What the test broker takes: a record over our own limit (8 MB) can be put there."""


class Stage:
    """`environment`: of every command; it joins the shared Ray unless told otherwise."""

    def __init__(
        self,
        kafka: KafkaServer,
        network: TcpProxy,
        s3: S3Server,
        front: S3Proxy,
        s3_network: TcpProxy,
        sandbox: str,
        journal: Path,
    ) -> None:
        self.kafka = kafka
        self.network = network
        self.s3 = s3
        self.front = front
        self.s3_network = s3_network
        self.sandbox = sandbox
        self.journal = journal
        self.ray = SharedRay(s3.keys.environment)

    @property
    def bootstrap(self) -> str:
        """Of the broker, by way of the proxy."""
        return f"{LOOPBACK}:{self.network.port}"

    @property
    def endpoint(self) -> str:
        """Of S3, by way of the network and of the proxy that fails as S3 does."""
        return f"http://{LOOPBACK}:{self.s3_network.port}"

    def environment(self, *, shared_ray: bool = True) -> Mapping[str, str]:
        ray = {"RAY_ADDRESS": self.ray.address} if shared_ray else {}
        return {**os.environ, **self.s3.keys.environment, "RAY_AUTH_MODE": "token", **ray}

    def heal(self) -> None:
        """Everything up, and no fault in the way: what a test finds."""
        for proxy in (self.network, self.front, self.s3_network):
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
    """All of it, started; Ray only once a job wants it. Raises `MissingTool` where a server can't be had."""
    journal = folder / "journal.jsonl"
    settings = Settings(models=BEHAVIOURS, journal=str(journal))
    kafka, network = kafka_behind(folder / "kafka")
    with contextlib.ExitStack() as ends:
        ends.callback(kafka.kill)
        kafka.start()
        s3 = S3Server(folder / "s3")
        ends.callback(s3.kill)
        s3.start()
        front = S3Proxy(s3.port)
        s3_network = TcpProxy(front.port, plain=True)
        for proxy in (network, front, s3_network):
            proxy.start()
            ends.callback(proxy.stop)
        sandbox = ends.enter_context(running_sandbox(settings, process=True))
        made = Stage(kafka, network, s3, front, s3_network, sandbox, journal)
        ends.callback(made.ray.close)
        yield made
