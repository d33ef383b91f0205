"""A real Apache Kafka: one node that is broker and controller, on the loopback interface.

Its jars, with the command-line tools, come from Maven once (about 55 MB).
"""

from __future__ import annotations

import hashlib
import socket
import struct
import subprocess
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from penstock.engine.errors import Temporary
from penstock.jobs.dev.fetch import Say, fetched, need_tool, quiet, run_tool
from penstock.jobs.dev.ports import LOOPBACK, free_port
from penstock.jobs.dev.server import Server

VERSION = "4.1.0"
_ARTIFACTS = (
    ("org.apache.kafka", "kafka_2.13", VERSION),
    ("org.apache.kafka", "kafka-tools", VERSION),
    ("org.apache.logging.log4j", "log4j-slf4j-impl", "2.24.3"),  # without it Kafka logs nothing
)
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
_JAVA_HELP = "Kafka needs Java 17 or newer (Debian: apt install default-jre-headless; macOS: brew install openjdk)"
_MAVEN_HELP = "Maven fetches Kafka once (Debian: apt install maven; macOS: brew install maven)"
_ANSWER_S = 2.0
_TOOL = ("-Xmx128m", "-XX:TieredStopAtLevel=1")
"""It ends before Java's second compiler has paid off: 2 seconds of a CPU instead of 3."""

CONSOLE_CONSUMER = "org.apache.kafka.tools.consumer.ConsoleConsumer"
CONSOLE_PRODUCER = "org.apache.kafka.tools.ConsoleProducer"
TOPICS = "org.apache.kafka.tools.TopicCommand"
CONSUMER_GROUPS = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand"


def pom() -> str:
    """The Maven project that names what is fetched."""
    named = "\n".join(
        f"    <dependency>\n      <groupId>{group}</groupId>\n      <artifactId>{name}</artifactId>\n"
        f"      <version>{version}</version>\n    </dependency>"
        for group, name, version in _ARTIFACTS
    )
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>penstock</groupId>
  <artifactId>dev-kafka</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
{named}
  </dependencies>
</project>
"""


def jars(say: Say = quiet) -> Path:
    """The folder with Kafka's jars, fetched the first time. Raises `MissingTool` and `Temporary`."""

    def fill(folder: Path) -> None:
        maven = need_tool("mvn", _MAVEN_HELP)
        say(f"fetching Kafka {VERSION} with Maven (about 55 MB, only this once)")
        project = folder / "pom.xml"
        project.write_text(pom())
        copy = [maven, "-q", "-B", "-f", str(project), _COPY, "-DincludeScope=runtime", f"-DoutputDirectory={folder}"]
        run_tool("fetching Kafka", copy)

    need_tool("java", _JAVA_HELP)
    digest = hashlib.sha256(pom().encode()).hexdigest()[:8]  # other jars, another folder
    return fetched(f"kafka-{VERSION}-{digest}", fill)


class KafkaServer(Server):
    """One Kafka node. `port` 0: a free one. `properties` come on top of ours; listeners come beside ours.
    `users`: name → password of those who may log in by SCRAM."""

    title: ClassVar[str] = "Kafka"
    heap: ClassVar[str] = "512m"

    def __init__(
        self, folder: Path, port: int = 0, properties: Mapping[str, str] | None = None, *, bound: bool = True,
        users: Mapping[str, str] | None = None, say: Say = quiet,
    ) -> None:  # fmt: skip
        self.port = port or free_port()
        self.controller_port = free_port()
        self.cluster_id = new_cluster_id()
        """Of a node that is made for the first time."""
        super().__init__(folder, (self.port, self.controller_port), bound=bound)
        self._properties = dict(properties or {})
        self._users = dict(users or {})
        self._say = say

    @property
    def bootstrap(self) -> str:
        """`host:port`, for clients."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def address(self) -> str:
        return self.bootstrap

    def command(self) -> Sequence[str]:
        kafka = jars(self._say)
        settings = self.folder / "server.properties"
        settings.write_text("".join(f"{name}={value}\n" for name, value in self.settings().items()))
        (self.folder / "log4j2.properties").write_text(_LOG_SETTINGS)
        if not (self.folder / "data" / "meta.properties").exists():
            self._format(kafka, settings)
        return [*self._java(kafka, f"-Xmx{self.heap}"), "kafka.Kafka", str(settings)]

    def answers(self) -> bool:
        """Whether it names a broker that takes requests: itself, at our port."""
        try:
            with socket.create_connection((LOOPBACK, self.port), timeout=_ANSWER_S) as connection:
                connection.sendall(_METADATA_REQUEST)
                return self.port in _broker_ports(connection.makefile("rb").read1(65536))
        except (OSError, struct.error):
            return False

    def tool(self, name: str, *arguments: str, timeout_s: float = 60.0, stdin: str | None = None) -> str:
        """Run one of Kafka's own tools against this server (`CONSOLE_CONSUMER`, …); returns what it printed.

        Raises `Temporary` with the end of what it said where it fails or does not end in time.
        """
        program = [*self._java(jars(), *_TOOL), name, "--bootstrap-server", self.bootstrap, *arguments]
        try:
            done = subprocess.run(program, input=stdin or "", capture_output=True, text=True, timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise Temporary(f"{name} has not ended after {timeout_s:.0f} s") from error
        if done.returncode != 0:
            raise Temporary(f"{name} failed (exit code {done.returncode}): {(done.stderr or done.stdout)[-2000:]}")
        return done.stdout

    def settings(self) -> dict[str, str]:
        """`server.properties`."""
        ours = f"PLAINTEXT://{self.bootstrap},CONTROLLER://{LOOPBACK}:{self.controller_port}"
        more = self._properties.get("listeners")
        return {
            **_SETTINGS,
            "log.dirs": str(self.folder / "data"),
            "controller.quorum.voters": f"1@{LOOPBACK}:{self.controller_port}",
            **self._properties,
            "listeners": f"{ours},{more}" if more else ours,
        }

    def _format(self, kafka: Path, settings: Path) -> None:
        tool = [*self._java(kafka, *_TOOL), "kafka.tools.StorageTool", "format"]
        scram = [
            part
            for name, password in self._users.items()
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
            for part in ("--add-scram", f"{mechanism}=[name={name},password={password}]")
        ]
        run_tool("making Kafka's data folder", [*tool, "-t", self.cluster_id, "-c", str(settings), *scram])

    def _java(self, kafka: Path, *options: str) -> list[str]:
        logging = f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}"
        return [
            need_tool("java", _JAVA_HELP),
            *options,
            "-XX:+UseSerialGC",
            "-XX:-UsePerfData",
            logging,
            "-cp",
            f"{kafka}/*",
        ]


def new_cluster_id() -> str:
    """A new id, as Kafka writes them: 16 bytes in base64. One with a dash in front reads as an option (seen)."""
    return "A" + urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()[1:]


_SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SSL:SSL,"
    "SASL_PLAINTEXT:SASL_PLAINTEXT,SASL_SSL:SASL_SSL",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    "auto.create.topics.enable": "false",
    # A node that was killed may come back once its old session is over: 9 s by default, and it waits for that.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    # One node on a small machine: fewer files of its own topics (50 partitions each), threads and buffers (128 MB).
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.num.partitions": "4",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "log.cleaner.dedupe.buffer.size": "16777216",
}

_LOG_SETTINGS = """\
rootLogger.level=WARN
rootLogger.appenderRef.console.ref=console
appender.console.type=Console
appender.console.name=console
appender.console.target=SYSTEM_ERR
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d{ISO8601} %-5p %c{1}: %m%n
"""

# https://kafka.apache.org/protocol#The_Messages_Metadata, version 1, no topics: size, key 3, version, correlation id,
# client id, an empty array.
_METADATA_BODY = struct.pack(">hhih8si", 3, 1, 1, 8, b"penstock", 0)
_METADATA_REQUEST = struct.pack(">i", len(_METADATA_BODY)) + _METADATA_BODY


def _broker_ports(response: bytes) -> list[int]:
    """The ports of the brokers in an answer: size, correlation id, then number, host, port and rack of each."""
    (count,) = struct.unpack_from(">i", response, 8)
    ports: list[int] = []
    at = 12
    for _ in range(count):
        (host,) = struct.unpack_from(">h", response, at + 4)
        (port,) = struct.unpack_from(">i", response, at + 6 + host)
        (rack,) = struct.unpack_from(">h", response, at + 10 + host)
        ports.append(port)
        at += 12 + host + max(rack, 0)
    return ports
