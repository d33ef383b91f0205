"""Topics with Kafka's own id of each (KIP-516): a topic deleted and made again has another one.

aiokafka asks for metadata up to version 5, which has no ids; version 10 has. The layouts are those of
https://kafka.apache.org/protocol#The_Messages_Metadata.
"""

from __future__ import annotations

import base64
from collections.abc import Collection
from io import BytesIO
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, errors
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.metadata import MetadataRequest_v5
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

from penstock.connectors.kafka.asking import ask_any
from penstock.engine.errors import Away

_NO_ID = bytes(16)


class Topic(msgspec.Struct, frozen=True):
    """`id`: 22 characters, as Kafka's tools print it; empty where the broker is too old to tell (before Kafka 2.8)."""

    name: str
    id: str
    partitions: tuple[int, ...]


class _Uuid(AbstractType[bytes]):
    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        value = data.read(16)
        if len(value) != 16:
            raise ValueError("the answer ends within a topic id")
        return value


class _Response(Response):
    API_KEY = 3  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType] as aiokafka's own do
    API_VERSION = 10  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString()),
                ("port", Int32),
                ("rack", CompactString()),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString()),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", CompactString()),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class _Request(RequestStruct):
    API_KEY = 3
    API_VERSION = 10
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _Response
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("name", CompactString()), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _Topics(Request[MetadataRequest_v5 | _Request]):
    """`names` None: all topics. Never makes a topic by asking for it."""

    API_KEY = 3

    def __init__(self, names: Collection[str] | None) -> None:
        self._names = None if names is None else sorted(names)

    def build(self, request_struct_class: type[MetadataRequest_v5 | _Request]) -> MetadataRequest_v5 | _Request:
        if issubclass(request_struct_class, MetadataRequest_v5):
            return MetadataRequest_v5(self._names, False)
        names = None if self._names is None else [(_NO_ID, name, {}) for name in self._names]
        return _Request(names, False, False, False, {})


def client_of(consumer: AIOKafkaConsumer) -> AIOKafkaClient:
    """The connections under a consumer: aiokafka offers no public way to send a request of one's own."""
    return consumer._client  # pyright: ignore[reportPrivateUsage]


async def topics(client: AIOKafkaClient, names: Collection[str] | None = None) -> dict[str, Topic]:
    """The topics of these names that are there (None: all but Kafka's own), by name.

    Raises aiokafka's errors (`TopicAuthorizationFailedError` among them), and `Away` where no broker is known or
    a topic's partitions can't be told yet.
    """
    # Not the connection of fetches: the broker answers one connection in order, and a fetch may wait half a second.
    answer: Any = await ask_any(client, _Topics(names), ConnectionGroup.COORDINATION)
    found = answer.topics or []
    read = _with_ids if answer.API_VERSION >= 10 else _without_ids
    return {topic.name: topic for entry in found if (topic := read(entry, names is None)) is not None}


def _with_ids(entry: tuple[int, str, bytes, bool, list[tuple[int, int]], int, object], listed: bool) -> Topic | None:
    code, name, topic_id, internal, partitions, _, _ = entry
    return _topic(code, name, topic_id, internal, partitions, listed)


def _without_ids(entry: tuple[int, str, bool, list[tuple[int, int]]], listed: bool) -> Topic | None:
    code, name, internal, partitions = entry
    return _topic(code, name, _NO_ID, internal, partitions, listed)


def _topic(
    code: int, name: str, topic_id: bytes, internal: bool, partitions: list[tuple[int, int]], listed: bool
) -> Topic | None:
    error = errors.for_code(code)
    if error is errors.UnknownTopicOrPartitionError or (listed and (internal or code)):
        return None
    if error is errors.LeaderNotAvailableError:
        raise Away(f"the topic {name} is being made or has no leader now", retry_after_s=1.0)
    if error is not errors.NoError:
        raise error(name)
    text = "" if topic_id == _NO_ID else base64.urlsafe_b64encode(topic_id).decode().rstrip("=")
    return Topic(name, text, tuple(sorted(partition[1] for partition in partitions)))
