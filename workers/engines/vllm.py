"""Which of the two shapes serves a model: `engine: {processes: true}` says so, else the machine does."""

from __future__ import annotations

import time
from collections.abc import Callable

from penstock.engine.catalog import Model, Version
from penstock.workers.engines.vllm_inproc import VllmInprocEngine
from penstock.workers.engines.vllm_procs import VllmProcsEngine
from penstock.workers.engines.vllm_settings import has_gpu, settings


def vllm_engine(
    model: Model,
    version: Version,
    *,
    resolve: Callable[[str], str] = str,
    clock: Callable[[], float] = time.time,
    worker: str = "",
) -> VllmInprocEngine | VllmProcsEngine:
    """Not loaded yet: `await engine.start()`. Raises `SpecError` for engine settings that can't be read."""
    processes = settings(model, version, gpu=has_gpu()).processes
    shape = VllmProcsEngine if processes else VllmInprocEngine
    return shape(model, version, resolve=resolve, clock=clock, worker=worker)
