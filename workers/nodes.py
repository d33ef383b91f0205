"""Asking every node of a cluster, before a run is begun there, whether it sees the run's folders."""

from __future__ import annotations

import time
from collections.abc import Callable

from penstock.connectors.base import Mark
from penstock.connectors.filestore.common import refuse_apart
from penstock.engine.errors import PenstockError, Temporary
from penstock.workers.cluster import words
from penstock.workers.launch import LISTEN_S, NOT_BEGUN

ANSWER_S = 60.0
"""A node starts a process to answer: seconds, and many on a busy one."""


def ask_nodes(marks: tuple[Mark, ...], asked: Callable[[], int]) -> None:
    """Raises as `refuse_apart` does on any node, `Temporary` where one does not answer, `KeyboardInterrupt` where
    meanwhile somebody asked to stop (`asked`: how often). A node that joins later is asked by the driver or lane that
    starts there."""
    import ray

    nodes = _addresses()
    if not marks or len(nodes) == 1:
        return
    addresses = {_ask(node, marks): address for node, address in nodes.items()}
    silent, until = list(addresses), time.monotonic() + ANSWER_S
    while silent:
        if asked():
            raise KeyboardInterrupt(NOT_BEGUN)
        if time.monotonic() >= until:
            raise Temporary(f"node {addresses[silent[0]]} did not answer in {ANSWER_S:g} s: is it well?")
        answers, silent = ray.wait(silent, timeout=LISTEN_S)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        for answer in answers:
            _heard(addresses[answer], answer)


def _addresses() -> dict[str, str]:
    """Node id → address, of all that are alive."""
    import ray

    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


def _ask(node: str, marks: tuple[Mark, ...]) -> object:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(refuse_apart).options(num_cpus=0, scheduling_strategy=there).remote(marks)


def _heard(address: str, answer: object) -> None:
    import ray
    from ray.exceptions import RayError

    try:
        ray.get(answer)  # pyright: ignore[reportCallIssue, reportArgumentType]
    except RayError as error:
        if isinstance(cause := getattr(error, "cause", None), PenstockError):
            raise cause from error
        raise Temporary(f"node {address} can't be asked whether it sees the run's folders: {words(error)}") from error
