"""A Ray in a process of its own, which commands join: they start sooner, and one that is killed leaves it as it was."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping

import psutil

_MAIN = """
import ray, sys
from penstock.workers.cluster import open_cluster
with open_cluster():
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""


class SharedRay:
    """Started when its address is first asked for, and again where it has died. `environment`: of its workers."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = {**os.environ, **(environment or {}), "RAY_AUTH_MODE": "token"}
        self._environment.pop("RAY_ADDRESS", None)
        self._process: subprocess.Popen[str] | None = None
        self._address = ""

    @property
    def address(self) -> str:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _MAIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env=self._environment, start_new_session=True,
            )  # fmt: skip
            assert self._process.stdout is not None
            self._address = self._process.stdout.readline().strip()
            assert self._address, "Ray did not start"
        return self._address

    @property
    def pid(self) -> int | None:
        """None: it was never asked for."""
        return self._process.pid if self._process is not None else None

    def close(self) -> None:
        if self._process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self._process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self._process.kill()
        self._process.wait()
