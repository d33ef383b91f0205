"""Apicurio Registry, a real schema registry that speaks Confluent's REST API; it keeps all in memory."""

from __future__ import annotations

import os
import tarfile
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from penstock.jobs.dev.fetch import fetched, need_tool, run_tool
from penstock.jobs.dev.ports import LOOPBACK, free_port
from penstock.jobs.dev.server import Server

VERSION = "2.6.13.Final"
"""The last that runs on Java 17."""
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
_API = "apis/ccompat/v7"


def _program() -> Path:
    def fill(folder: Path) -> None:
        maven = need_tool("mvn", "Maven fetches Apicurio Registry once (142 MB)")
        name = f"apicurio-registry-app-{VERSION}-all.tar.gz"
        artifact = f"-Dartifact=io.apicurio:apicurio-registry-app:{VERSION}:tar.gz:all"
        run_tool("fetching Apicurio Registry", [maven, "-q", "-B", _COPY, artifact, f"-DoutputDirectory={folder}"])
        with tarfile.open(folder / name) as archive:
            archive.extractall(folder, filter="data")
        (folder / name).unlink()

    return fetched(f"apicurio-{VERSION}", fill) / f"apicurio-registry-app-{VERSION}-runner.jar"


class Apicurio(Server):
    title: ClassVar[str] = "Apicurio Registry"
    start_s: ClassVar[float] = 180.0
    """27 s on two busy cores."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        super().__init__(folder, (self.port,))

    @property
    def address(self) -> str:
        """What goes to `schema_registry`."""
        return f"http://{LOOPBACK}:{self.port}/{_API}"

    def command(self) -> Sequence[str]:
        java = need_tool("java", "Apicurio Registry needs Java 17 or newer")
        return [java, "-Xmx256m", "-XX:TieredStopAtLevel=1", "-jar", str(_program())]

    def environment(self) -> Mapping[str, str]:
        return {**os.environ, "QUARKUS_HTTP_HOST": LOOPBACK, "QUARKUS_HTTP_PORT": str(self.port)}

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/subjects", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False
