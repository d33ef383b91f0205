"""What a pool's workers are: their settings, their names, and the actors that they run in."""

from __future__ import annotations

import uuid
from hashlib import blake2b
from importlib.metadata import version

import msgspec

from penstock.engine.catalog import Catalog, Model
from penstock.workers.cluster import NAMESPACE
from penstock.workers.worker_actor import WorkerActor, WorkerSettings


def settings_of(catalog: Catalog, pool: str, number: int) -> tuple[WorkerSettings, str]:
    """Of the pool's worker with this number, and the name by which all jobs of a cluster find it."""
    model = model_of(catalog, pool)
    if model is not None:
        label = f"engine {model.name}@{model.live} #{number}"
        settings = WorkerSettings("", label, pool, "vllm", model=model, version=model.live_version)
    else:
        account = catalog.accounts[pool.removeprefix("api:")]
        label = f"api {account.name}" + (f" #{number}" if number else "")
        settings = WorkerSettings("", label, pool, "api", account=account)
    code = version("penstock").encode()  # one that an upgrade left on a shared cluster may not know our words
    fingerprint = blake2b(msgspec.msgpack.encode(settings) + code, digest_size=4).hexdigest()
    named = msgspec.structs.replace(settings, name=f"{label} {uuid.uuid4().hex[:8]}")
    return named, f"{label} {fingerprint}"


def pools_of(catalog: Catalog) -> list[str]:
    """All that some model may be asked at."""
    models = catalog.models.values()
    own = [model.pool_of(each.id) for model in models if model.worker is not None for each in model.versions]
    return [*(f"api:{name}" for name in catalog.accounts), *own]


def model_of(catalog: Catalog, pool: str) -> Model | None:
    """The own model that the pool serves, at the pool's version; None: an account's."""
    for model in catalog.models.values():
        for each in model.versions if model.worker is not None else ():
            if model.pool_of(each.id) == pool:
                return msgspec.structs.replace(model, live=each.id)
    return None


def has_place(model: Model, replicas: int) -> bool:
    """A free GPU; without GPUs, a node that has none of its engines yet (two on one CPU only share it)."""
    import ray

    if ray.cluster_resources().get("GPU", 0) > 0:
        return ray.available_resources().get("GPU", 0) >= float(model.engine.get("tensor_parallel_size", 1))
    return sum(1 for node in ray.nodes() if node.get("Alive")) > replicas


def found(name: str) -> object | None:
    """The actor of this name, where another job, or an earlier driver, has started it."""
    import ray

    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except Exception:  # noqa: BLE001 - there is none, or the cluster can't say: no run ends for that
        return None


def hire(settings: WorkerSettings, name: str, model: Model | None) -> object:
    """The actor of this name: started now, or by another job before. `model`: the own one that it serves."""
    import ray

    gpus = 0.0
    if model is not None and ray.cluster_resources().get("GPU", 0) > 0:
        gpus = float(model.engine.get("tensor_parallel_size", 1))
    options = ray.remote(WorkerActor).options(
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_concurrency=1000,
        max_restarts=0,
        max_task_retries=0,
        enable_task_events=False,  # an event a call would grow the cluster's memory with the input
        num_cpus=0,
        num_gpus=gpus,
        scheduling_strategy="SPREAD",
    )
    return options.remote(msgspec.msgpack.encode(settings))  # pyright: ignore[reportCallIssue]
