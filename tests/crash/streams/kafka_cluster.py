"""Three real Kafka nodes, each broker and controller, and who among them leads what.

Every record is on all three, and is taken once two have it: any one may be killed, and nothing may be missing.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, TypeVar

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import CoordinationType
from aiokafka.errors import KafkaError

from penstock.jobs.dev.kafka import KafkaServer, new_cluster_id
from penstock.jobs.dev.ports import LOOPBACK
from tests.crash.streams import kafka_lines

T = TypeVar("T")

NODES = 3
WHOLE_S = 400.0
"""Until a node that came back has caught up. A guess: on a busy machine."""
POLL_S = 0.1
NOBODY = -1
"""Leads a partition while none is elected."""
_COPIES = {
    "default.replication.factor": str(NODES),
    "min.insync.replicas": "2",
    "offsets.topic.replication.factor": str(NODES),
    "transaction.state.log.replication.factor": str(NODES),
    "transaction.state.log.min.isr": "2",
    "share.coordinator.state.topic.replication.factor": str(NODES),
    "share.coordinator.state.topic.min.isr": "2",
}


class Node(KafkaServer):
    """`peers`: all nodes of the cluster, this one too; filled before the first one starts."""

    heap: ClassVar[str] = "256m"
    start_s: ClassVar[float] = 400.0
    """Three start at once, or one beside two that work: longer than a broker alone."""

    def __init__(self, folder: Path, number: int, cluster_id: str, peers: list[Node]) -> None:
        super().__init__(folder, properties=_COPIES)
        self.number = number
        self.cluster_id = cluster_id
        self._peers = peers

    def settings(self) -> dict[str, str]:
        voters = ",".join(f"{node.number}@{LOOPBACK}:{node.controller_port}" for node in self._peers)
        return {**super().settings(), "node.id": str(self.number), "controller.quorum.voters": voters}


class KafkaCluster:
    """What a `KafkaServer` can do, for all three at once; and which of them leads what just now."""

    def __init__(self, folder: Path) -> None:
        self.nodes: list[Node] = []
        cluster_id = new_cluster_id()
        for number in range(1, NODES + 1):
            self.nodes.append(Node(folder / f"node-{number}", number, cluster_id, self.nodes))

    @property
    def bootstrap(self) -> str:
        return ",".join(node.bootstrap for node in self.nodes)

    def start(self) -> None:
        """All that are down, at once: none answers alone. Returns once each has all records again."""
        with ThreadPoolExecutor(NODES) as pool:
            list(pool.map(Node.start, self.nodes))
        asyncio.run(self._whole())

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()

    def freeze(self) -> None:
        for node in self.nodes:
            node.freeze()

    def thaw(self) -> None:
        for node in self.nodes:
            node.thaw()

    def tool(self, name: str, *arguments: str) -> str:
        return self.nodes[0].tool(name, *arguments)

    def leader(self, topic: str, chance: random.Random) -> Node:
        """Of one of the topic's partitions."""

        async def ask(admin: AIOKafkaAdminClient) -> int:
            (found,) = await admin.describe_topics([topic])
            leaders = [partition["leader"] for partition in found["partitions"]]
            return chance.choice(leaders or [NOBODY])

        return self._node(ask)

    def transaction_coordinator(self, name: str, chance: random.Random) -> Node:
        """Of one of the transactional ids with `name` in them."""
        ids = asyncio.run(self._transactional_ids(name))
        return self._coordinator(CoordinationType.TRANSACTION, chance.choice(ids))

    def group_coordinator(self, group: str) -> Node:
        return self._coordinator(CoordinationType.GROUP, group)

    def _coordinator(self, kind: int, key: str) -> Node:
        return self._node(lambda admin: admin._client.coordinator_lookup(kind, key))  # pyright: ignore - it has no call

    def _node(self, ask: Callable[[AIOKafkaAdminClient], Awaitable[int]]) -> Node:
        number = asyncio.run(self._until(ask, lambda found: found != NOBODY))
        return next(node for node in self.nodes if node.number == number)

    async def _until(self, ask: Callable[[AIOKafkaAdminClient], Awaitable[T]], fine: Callable[[T], bool]) -> T:
        """Asked again while brokers are coming, going, or have not heard of it yet."""
        until = time.monotonic() + WHOLE_S
        while True:
            found: object = None
            try:
                if fine(found := await self._asked(ask)):
                    return found
            except KafkaError as error:
                found = error
            assert time.monotonic() < until, f"the cluster says {found}"
            await asyncio.sleep(POLL_S)

    async def _asked(self, ask: Callable[[AIOKafkaAdminClient], Awaitable[T]]) -> T:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        await admin.start()
        try:
            return await ask(admin)
        finally:
            await admin.close()

    async def _transactional_ids(self, name: str) -> list[str]:
        """From the coordinators' own log: a key is a version and the id, each number two bytes."""
        found = await kafka_lines.read(self.bootstrap, "__transaction_state")
        ids = {record.key[4:].decode() for record in found if record.key}
        return sorted(one for one in ids if name in one)

    async def _whole(self) -> None:
        """Until no partition lacks a copy."""

        async def missing(admin: AIOKafkaAdminClient) -> list[tuple[str, int]]:
            topics = await admin.describe_topics()
            parts = [(topic["topic"], one) for topic in topics for one in topic["partitions"]]
            return [(topic, one["partition"]) for topic, one in parts if len(one["isr"]) < NODES]

        await self._until(missing, lambda found: not found)
