"""Which cluster and topic a person means: an address, a job file's connection, or the Kafka of `penstock dev`."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

import msgspec

from penstock.connectors.kafka import topic_ids
from penstock.connectors.kafka.client import describe, new_admin, new_consumer, opened, within
from penstock.connectors.kafka.topics import TopicFacts, look_up
from penstock.connectors.settings import Connection
from penstock.engine.errors import SpecError
from penstock.jobs import spec
from penstock.jobs.spec.places import connections, kafka
from penstock.jobs.spec.tree import Doc

LOCAL = "127.0.0.1:9092"
DEV_RECORD = Path(".penstock/dev/servers.json")
"""Where `penstock dev` writes down what it started, seen from the folder in which it was called."""
LOOK_S = 10.0

_typed = Doc("command line", {})


class _Started(msgspec.Struct, frozen=True):
    port: int


def cluster(bootstrap: str | None, connection: str | None, job: str | None) -> Connection:
    """Raises `SpecError` where the options don't name one cluster."""
    if connection is None and job is not None:
        raise SpecError("--job names the file of --connection NAME; give both, or --bootstrap host:port")
    if connection is None:
        return Connection(connections.check_bootstrap(_typed, ("--bootstrap",), bootstrap or _dev() or LOCAL))
    if bootstrap is not None:
        raise SpecError("--bootstrap and --connection name two clusters: give one")
    if job is None:
        raise SpecError("--connection NAME needs --job FILE, the job file or catalogue with `connections:`")
    return spec.load_connection(job, connection)


def _dev() -> str | None:
    """Where the Kafka of `penstock dev` listens; None: none was started from here."""
    try:
        started = msgspec.json.decode(DEV_RECORD.read_bytes(), type=dict[str, _Started])
    except (OSError, msgspec.DecodeError):
        return None
    return f"127.0.0.1:{started['kafka'].port}" if "kafka" in started else None


def read_url(url: str) -> tuple[Connection, str]:
    """`kafka://host:port/topic`. Raises `SpecError`."""
    bootstrap, topic = kafka.read_url(_typed, ("topic",), url)
    return Connection(bootstrap), topic


def check_topic(topic: str) -> str:
    return kafka.check_topic(_typed, ("topic",), topic)


async def find(connection: Connection, topic: str, hint: str = "") -> TopicFacts:
    """The topic's facts. Raises `SpecError` with the nearest name where it is missing; `hint` says what else helps."""
    async with opened(new_admin(connection), connection) as admin:
        found = (await look_up(admin, connection, [topic])).get(topic)
    if found is not None:
        return found
    consumer = new_consumer(connection)
    async with opened(consumer, connection), within(LOOK_S, connection, "looking up topics"):
        there = await topic_ids.topics(topic_ids.client_of(consumer))
    near = get_close_matches(topic, there, n=1)
    told = f"; did you mean {near[0]!r}?" if near else ""
    raise SpecError(f"{describe(connection)} has no topic {topic!r} that we may see{told}{hint}")
