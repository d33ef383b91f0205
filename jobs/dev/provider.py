"""The sandbox provider as a process in the background."""

from __future__ import annotations

import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from penstock.jobs.dev.ports import LOOPBACK, free_port
from penstock.jobs.dev.server import Server

_ANSWER_S = 2.0


class SandboxServer(Server):
    """`penstock sandbox`, which plays a provider. `port` 0: a free one. It keeps no data."""

    title: ClassVar[str] = "the sandbox provider"

    def __init__(self, folder: Path, port: int = 0, *, bound: bool = True) -> None:
        self.port = port or free_port()
        super().__init__(folder, (self.port,), bound=bound)

    @property
    def address(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", "penstock.jobs.cli", "sandbox", "--host", LOOPBACK, "--port", str(self.port)]

    def answers(self) -> bool:
        """Whether it tells what it has served."""
        try:
            with urllib.request.urlopen(f"{self.address}/stats", timeout=_ANSWER_S) as response:
                return response.status == 200
        except OSError:
            return False
