"""Whether somebody's consumers are running in a group: then its offsets are theirs, not a mirror's to overwrite."""

from __future__ import annotations

import asyncio
import contextlib

from aiokafka import errors as kafka
from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.protocol.admin import DescribeGroupsRequest
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields

from penstock.connectors.kafka.client import describe, new_admin, opened, within
from penstock.connectors.settings import Connection
from penstock.engine.errors import Refused

ASK_S = 10.0
AGAIN_S = 0.1
MOVING = (
    kafka.GroupCoordinatorNotAvailableError,  # also the first group of a new cluster (seen)
    kafka.NotCoordinatorForGroupError,
    kafka.GroupLoadInProgressError,
    kafka.NodeNotReadyError,
    kafka.KafkaConnectionError,
)
"""The group's coordinator is on its way, or the broker that was asked has just died: the same again in a moment, of
whichever broker the client chooses then."""
_QUIET = {"", "Empty", "Dead"}
"""States of a group without members: https://kafka.apache.org/documentation/#basic_ops_consumer_group"""


class _Response(Response):
    """ConsumerGroupDescribe (KIP-848), version 0, up to the state of the first group: more is not asked for.
    https://kafka.apache.org/protocol#The_Messages_ConsumerGroupDescribe"""

    API_KEY = 69  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType] as aiokafka's own do
    API_VERSION = 0  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "groups",
            CompactArray(
                ("error_code", Int16),
                ("error_message", CompactString()),
                ("group_id", CompactString()),
                ("group_state", CompactString()),
            ),
        ),
    )


class _Request(RequestStruct):
    API_KEY = 69
    API_VERSION = 0
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _Response
    SCHEMA = Schema(
        ("group_ids", CompactArray(CompactString())),
        ("include_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _NewKind(Request[_Request]):
    API_KEY = 69

    def __init__(self, group: str) -> None:
        self._group = group

    def build(self, request_struct_class: type[_Request]) -> _Request:
        return request_struct_class([self._group], False, {})


async def has_members(connection: Connection, group: str) -> bool:
    """Whether consumers are in the group now. False where we may not ask: then we may not write its offsets either.
    Raises `Temporary`, `Refused`."""
    async with (
        opened(new_admin(connection), connection) as admin,
        within(ASK_S, connection, f"asking who is in the group {group}"),
    ):
        while True:
            try:
                states = await _states(admin._client, group)  # pyright: ignore[reportPrivateUsage] - it has no call
                return not {*states} <= _QUIET
            except MOVING:
                await asyncio.sleep(AGAIN_S)


async def _states(client: AIOKafkaClient, group: str) -> list[str]:
    """The group's states, as one of either kind. A kind that it is not of has none."""
    node = await client.coordinator_lookup(CoordinationType.GROUP, group)
    answer = await client.send(node, DescribeGroupsRequest([group]))
    told: list[tuple[int, str]] = [(found[0], found[2]) for found in answer.groups]
    with contextlib.suppress(kafka.IncompatibleBrokerVersion):  # before Kafka 4.0 there is no other kind
        answer = await client.send(node, _NewKind(group))
        told += [(found[0], found[3]) for found in answer.groups]
    for code, _ in told:
        if issubclass(kafka.for_code(code), MOVING):
            raise kafka.for_code(code)(group)
    return [state for code, state in told if not code]


async def refuse_members(connection: Connection, group: str) -> None:
    """Raises `Refused` where consumers are in the group."""
    if await has_members(connection, group):
        raise Refused(
            f"{describe(connection)}: consumers are running in the group {group}, and this run would overwrite their "
            "offsets with its own. Stop them, or name another source.group: (left out, the run has one of its own)."
        )
