"""Asking every node of a cluster, before a run is begun there, whether it sees the run's folders."""

from __future__ import annotations

import time

from penstock.connectors.base import Mark
from penstock.connectors.filestore.common import refuse_apart
from penstock.engine.errors import PenstockError, Temporary
from penstock.workers.cluster import words

ANSWER_S = 60.0
"""A node starts a process to answer: seconds, and many on a busy one."""


def ask_nodes(marks: tuple[Mark, ...]) -> None:
    """Raises as `refuse_apart` does on any node, `Temporary` where one does not answer. A node that joins later is
    asked by the driver or lane that starts there."""
    nodes = _addresses()
    if not marks or len(nodes) == 1:
        return
    asked = [(address, _ask(node, marks)) for node, address in nodes.items()]
    until = time.monotonic() + ANSWER_S
    for address, answer in asked:
        _heard(address, answer, max(0.0, until - time.monotonic()))


def _addresses() -> dict[str, str]:
    """Node id → address, of all that are alive."""
    import ray

    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


def _ask(node: str, marks: tuple[Mark, ...]) -> object:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(refuse_apart).options(num_cpus=0, scheduling_strategy=there).remote(marks)


def _heard(address: str, answer: object, timeout_s: float) -> None:
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    try:
        ray.get(answer, timeout=timeout_s)  # pyright: ignore[reportCallIssue, reportArgumentType]
    except GetTimeoutError as error:
        raise Temporary(f"node {address} did not answer in {ANSWER_S:g} s: is it well?") from error
    except RayError as error:
        if isinstance(cause := getattr(error, "cause", None), PenstockError):
            raise cause from error
        raise Temporary(f"node {address} can't be asked whether it sees the run's folders: {words(error)}") from error
