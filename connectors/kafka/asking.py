"""Questions that any broker can answer."""

from __future__ import annotations

import random
from typing import Any

from aiokafka import errors as kafka
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.protocol.api import Request, Response

from penstock.engine.errors import Away


async def ask_any(
    client: AIOKafkaClient, request: Request[Any], group: ConnectionGroup = ConnectionGroup.DEFAULT
) -> Response:
    """One after another, in no order, until one answers: the others still name a broker that has just died, for some
    seconds. Raises aiokafka's errors, and `Away` where no broker is known."""
    nodes = [broker.nodeId for broker in client.cluster.brokers()]
    gone: kafka.KafkaError | None = None
    for node in random.sample(nodes, len(nodes)):
        try:
            return await client.send(node, request, group=group)
        except (kafka.NodeNotReadyError, kafka.KafkaConnectionError) as error:
            gone = error
    raise gone or Away("no Kafka broker is known: is the cluster up?", retry_after_s=1.0)
