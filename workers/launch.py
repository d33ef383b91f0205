"""Launching a run's driver, and the handle by which a command follows it. Synchronous: called from the main thread."""

from __future__ import annotations

import contextlib
import time

import msgspec

from penstock.engine.errors import PenstockError, Temporary
from penstock.workers.runspec import RunOptions, RunSpec
from penstock.workers.status import RunStatus

ACCEPT_S = 60.0
"""Listing the input and taking the lock: minutes of listing belong to S3."""
STATUS_S = 5.0
MAX_DRIVERS = 5
"""Drivers of one command: one that dies is replaced, and goes on where it was."""


class RunHandle:
    def __init__(self, spec: RunSpec, options: RunOptions, cores: int) -> None:
        self._spec = spec
        self._options = options
        self._cores = cores
        self._drivers = 0
        self._driver: object | None = None
        self._last = RunStatus(run_id=spec.run_id, name=spec.name, state="starting", started_at=time.time())
        self._drained = False
        self._silent_since: float | None = None

    def start(self) -> None:
        """Raises `Held`, `SpecError`, `Corrupt`, `Temporary`."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        from penstock.workers.driver import Driver

        self._drivers += 1
        driver = ray.remote(Driver)
        options = driver.options(
            max_concurrency=1000, max_restarts=0, max_task_retries=0, enable_task_events=False, num_cpus=0
        )
        encoded = msgspec.msgpack.encode(self._spec), msgspec.msgpack.encode(self._options)
        self._driver = options.remote(*encoded, self._cores)  # pyright: ignore[reportCallIssue]
        try:
            ray.get(self._driver.accept.remote(), timeout=ACCEPT_S)  # pyright: ignore
        except RayTaskError as error:
            raise _our_own(error) from error
        except RayError as error:
            raise Temporary(f"the driver of {self._spec.name} did not start: {error}") from error

    def status(self) -> RunStatus:
        """Never fails: where the driver is lost another goes on, or it says `failed` with a message."""
        import ray
        from ray.exceptions import GetTimeoutError, RayError

        try:
            data: bytes = ray.get(self._driver.status.remote(), timeout=STATUS_S)  # pyright: ignore
            self._last = msgspec.msgpack.decode(data, type=RunStatus)
            self._silent_since = None
        except GetTimeoutError:
            self._silent_since = self._silent_since or time.time()
            self._last.message = "the driver does not answer"
        except RayError as error:
            self._replace(error)
        return self._last

    def _replace(self, error: Exception) -> None:
        if self._drivers >= MAX_DRIVERS:
            self._last.state, self._last.message = "failed", f"the driver was lost {self._drivers} times: {error}"
            return
        note = "the driver was lost; another goes on where it was"
        self._options = msgspec.structs.replace(self._options, fresh=False)
        try:
            self.start()
        except PenstockError as problem:
            self._last.state, self._last.message = "failed", f"{note}, but: {problem}"
            return
        self._last.notes = [*self._last.notes, note]
        if self._drained:
            self.drain()

    def drain(self) -> None:
        self._drained = True
        self._tell("drain")

    def cancel(self) -> None:
        self._drained = True
        self._tell("cancel")

    def close(self) -> None:
        """End the driver's process. Its lanes end with it."""
        import ray

        if self._driver is not None:
            with contextlib.suppress(Exception):
                ray.kill(self._driver, no_restart=True)  # pyright: ignore[reportArgumentType]
            self._driver = None

    def _tell(self, method: str) -> None:
        with contextlib.suppress(Exception):
            getattr(self._driver, method).remote()


def launch(spec: RunSpec, options: RunOptions) -> RunHandle:
    import ray

    handle = RunHandle(spec, options, max(1, int(ray.cluster_resources().get("CPU", 1))))
    handle.start()
    return handle


def _our_own(error: Exception) -> PenstockError:
    cause = getattr(error, "cause", None)
    if isinstance(cause, PenstockError):
        return cause
    return Temporary(f"the driver failed: {cause or error}")
