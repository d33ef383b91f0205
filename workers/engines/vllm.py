"""Which of the two vLLM shapes serves a model: stepped in this process, or in processes of its own."""

from __future__ import annotations

import importlib.util
import os

from penstock.engine.catalog import Model, Version
from penstock.engine.errors import SpecError
from penstock.workers.engines.base import Engine


def build_engine(model: Model, version: Version, worker: str) -> Engine:
    """Raises `SpecError` where vLLM is not installed or the model's engine settings can't be read."""
    # Ray sets one thread in actors; an engine that steps alone in this process wants the machine's.
    os.environ["OMP_NUM_THREADS"] = str(os.cpu_count() or 1)
    if importlib.util.find_spec("vllm") is None:
        raise SpecError(f"model {model.name} needs vLLM, which isn't installed: uv sync --extra cpu (or --extra gpu)")
    from penstock.workers.engines.vllm_settings import has_gpu

    if bool(model.engine.get("processes", has_gpu())):
        from penstock.workers.engines.vllm_procs import VllmProcsEngine

        return VllmProcsEngine(model, version, worker=worker)
    from penstock.workers.engines.vllm_inproc import VllmInprocEngine

    return VllmInprocEngine(model, version, worker=worker)
