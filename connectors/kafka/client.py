"""One Kafka cluster: a `Connection` becomes clients of aiokafka, and what they raise becomes our errors.

Every call has a deadline of ours: with a frozen broker aiokafka waited 70 s in a commit and 20 s in `stop()` (seen).
A client that may be stuck is abandoned, never awaited.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import re
import socket
import ssl
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, Literal, Protocol, TypeVar

import aiokafka.admin.client
import aiokafka.client
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import errors as kafka
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.conn import AIOKafkaConnection, OAuthAuthenticator
from aiokafka.helpers import create_ssl_context
from aiokafka.protocol.api import Request, Response
from aiokafka.protocol.metadata import MetadataRequest

from penstock.connectors.kafka import unpacking
from penstock.connectors.kafka.asking import ask_any
from penstock.connectors.kafka.oauth import NoToken, token_provider
from penstock.connectors.secrets import resolve
from penstock.connectors.settings import Connection
from penstock.engine.errors import Away, PenstockError, Refused, SpecError, Temporary

REQUEST_TIMEOUT_MS = 10_000
"""A broker that is well answers in milliseconds; a leader election takes a few seconds."""
TRANSACTION_TIMEOUT_MS = 10_000
"""The coordinator aborts what is open longer: until then it hides what is behind it (seen: 11 s with 8 s)."""
RETRY_BACKOFF_MS = 20
"""aiokafka waits so long for its own first look at a topic, too: 100 ms, its default, would be most of a start."""
START_S = 15.0
"""To connect, log in, and find coordinators: one request's timeout and half."""
STOP_S = 5.0
"""A client that has not closed by then is left to end by itself."""
_MOMENT_S = 0.05

logging.getLogger("aiokafka").addHandler(logging.NullHandler())
"""What aiokafka logs goes to those who set up logging; else Python would print it over what a person looks at."""

unpacking.bound()


class _Asking(MetadataRequest):
    """What aiokafka asks in the background, for as long as a client lives. Its own would have a broker with
    `auto.create.topics.enable` (Kafka's default) make each topic anew that somebody has deleted: the source's would
    come back empty, and records would go on into another results' topic without a word."""

    def __init__(self, topics: list[str] | None = None) -> None:
        super().__init__(topics, allow_auto_topic_creation=False)


for _module in (aiokafka.client, aiokafka.admin.client):
    _module.MetadataRequest = _Asking  # pyright: ignore[reportAttributeAccessIssue] - it has no setting for it

_closing: set[asyncio.Task[None]] = set()
"""Clients that end by themselves; the loop itself keeps no strong reference to a task."""


class Client(Protocol):
    """What producers, consumers and (through `Admin`) administration share."""

    async def start(self) -> None: ...
    async def stop(self) -> None: ...


C = TypeVar("C", bound=Client)


class Admin(AIOKafkaAdminClient):
    """The administration client, with `stop` as the others have it."""

    async def stop(self) -> None:
        await self.close()

    async def _send_request(self, request: Request[Any], node_id: int | None = None) -> Response:
        if node_id is None:
            return await ask_any(self._client, request)
        return await super()._send_request(request, node_id)


def describe(connection: Connection) -> str:
    """The cluster in words, for messages."""
    return f"Kafka at {connection.bootstrap}"


def servers(connection: Connection) -> list[str]:
    """The bootstrap servers, in order of name: the same cluster is the same list however it was written."""
    return sorted({s.strip() for s in connection.bootstrap.split(",") if s.strip()})


def cluster_key(connection: Connection) -> str:
    """Names the cluster and who we are there: sinks of one key commit in one transaction."""
    who = (connection.security_protocol, connection.sasl_mechanism, connection.sasl_username)
    return f"kafka:{','.join(servers(connection))}:{'/'.join(str(part or '') for part in who)}"


def new_consumer(
    connection: Connection, *, committed: bool = True, group: str | None = None, fetch_bytes: int = 1 << 20
) -> AIOKafkaConsumer:
    """A consumer that is given its partitions (`assign`) and commits nothing by itself. Start it with `start`.

    committed: records of open and aborted transactions are not shown. fetch_bytes: at most so much of a partition in
    one fetch (a larger record still comes).
    """
    return AIOKafkaConsumer(
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="none",  # a position that is gone is said, never skipped
        isolation_level="read_committed" if committed else "read_uncommitted",
        max_partition_fetch_bytes=fetch_bytes,
        **_settings(connection),
    )


def new_producer(
    connection: Connection, transactional_id: str | None, *, batch_bytes: int = 1 << 14, compression: str = "none",
    once: bool = False,
) -> AIOKafkaProducer:  # fmt: skip
    """A producer that waits for all in-sync replicas; with an id, one whose every record is part of a transaction.

    batch_bytes: records of one partition are sent so many at a time; no topic may take less in one batch. once: the
    brokers drop what a lost answer makes the client send again (a producer with an id does that in any case).
    """
    try:
        return AIOKafkaProducer(
            transactional_id=transactional_id,
            transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
            acks="all",
            enable_idempotence=once or transactional_id is not None,
            max_batch_size=batch_bytes,
            compression_type=None if compression == "none" else compression,
            **_settings(connection),
        )
    except RuntimeError as error:
        raise SpecError(
            f"compression: {compression} needs a package that is not installed here: install penstock with cramjam "
            "(pip install cramjam), or use gzip or none."
        ) from error


def new_admin(connection: Connection) -> Admin:
    return Admin(**_settings(connection))


async def start(client: Client, connection: Connection, *, seconds: float = START_S) -> None:
    """Connect and log in. Raises `Refused` (credentials, certificate, rights), `Temporary`, `SpecError`."""
    try:
        if connection.sasl_mechanism == "OAUTHBEARER":
            await _say_why(connection)  # aiokafka starts well with a token that is refused, and then learns nothing
        async with within(seconds, connection, "connecting"):
            await client.start()
    except BaseException as error:
        abandon(client)
        silent = isinstance(error, Temporary) and isinstance(error.__cause__, kafka.KafkaConnectionError)
        if silent and (why := await _say_why(connection)):  # aiokafka tells only its log why it could not connect
            raise why from error
        raise


@contextlib.asynccontextmanager
async def opened(client: C, connection: Connection) -> AsyncGenerator[C]:
    """The client, started; stopped at the end."""
    await start(client, connection)
    try:
        yield client
    finally:
        await asyncio.wait([abandon(client)], timeout=1.0)  # milliseconds, unless its broker is stuck


def abandon(client: Client) -> asyncio.Task[None]:
    """Let a client end in the background: nothing has to wait for it, whatever its broker does."""
    return _in_background(_end(client))


async def ended() -> None:
    """Wait until the clients of this loop that were let go have ended: seconds, at most."""
    loop = asyncio.get_running_loop()
    if mine := [task for task in _closing if task.get_loop() is loop]:
        await asyncio.wait(mine)


def drop(producer: AIOKafkaProducer) -> None:
    """End a producer at once, in the background: nothing it still holds is sent. The coordinator aborts what it left
    open, at the latest when the next one starts under its id."""
    _in_background(_drop(producer))


def _in_background(what: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    task = asyncio.get_running_loop().create_task(what)
    _closing.add(task)
    task.add_done_callback(_closing.discard)
    return task


async def _end(client: Client) -> None:
    try:
        async with asyncio.timeout(STOP_S):
            await client.stop()
    except Exception:  # noqa: BLE001 - it is thrown away: what went wrong with it was said where it was used
        if isinstance(client, AIOKafkaProducer):
            await _drop(client)


async def _drop(producer: AIOKafkaProducer) -> None:
    """aiokafka has no such call: its `stop` flushes first, and its sender, once cancelled, awaits what is in flight."""
    producer._closed = True  # pyright: ignore[reportPrivateUsage]
    for batch in itertools.chain(*producer._message_accumulator._batches.values()):  # pyright: ignore[reportPrivateUsage]
        batch._drain_waiter.add_done_callback(retrieve)  # pyright: ignore[reportPrivateUsage] - it may bear a failure
    sender = producer._sender.sender_task  # pyright: ignore[reportPrivateUsage]
    for _ in range(2):  # the second time it is the request in flight that is cancelled
        if sender is not None and not sender.done():
            sender.cancel()
            await asyncio.sleep(_MOMENT_S)
    with contextlib.suppress(Exception):
        async with asyncio.timeout(STOP_S):
            await producer.client.close()


def retrieve(future: asyncio.Future[Any]) -> None:
    """A callback for futures that nobody awaits any more: their exception was seen."""
    if not future.cancelled():
        future.exception()


@contextlib.asynccontextmanager
async def within(seconds: float, connection: Connection, doing: str) -> AsyncGenerator[asyncio.Timeout]:
    """A deadline around calls of a client; foreign errors become ours. `doing` ends "while …" in messages."""
    try:
        async with asyncio.timeout(seconds) as limit:
            yield limit
    except (kafka.KafkaError, kafka.IllegalOperation, kafka.ConsumerStoppedError, OSError) as error:
        raise translated(error, connection, doing, seconds) from error


def translated(error: BaseException, connection: Connection, doing: str, seconds: float = 0.0) -> PenstockError:
    """One of our errors that says what happened, while doing what, and what to do next."""
    where = describe(connection)
    match error:
        case ssl.SSLCertVerificationError():
            return Refused(
                f"{where}: its certificate is not trusted ({error.verify_message}). Name the authority that signed it "
                "as ssl_ca_location, or connect by the name that the certificate bears."
            )
        case ssl.SSLError():
            return Refused(
                f"{where}: no TLS with it ({error.reason}). Check security_protocol, the port, and our certificate."
            )
        case NoToken():
            return error.why
        case TimeoutError():
            return Away(
                f"{where} did not answer within {seconds:g} s while {doing}. Check that its brokers are up and can be "
                "reached by the names that they advertise."
            )
        case kafka.KafkaConnectionError() if isinstance(error.__cause__, ssl.SSLError):
            return translated(error.__cause__, connection, doing)  # TLS 1.3: a broker refuses us after the handshake
        case ConnectionRefusedError() | socket.gaierror():
            return Away(
                f"{where} can't be reached while {doing}: {_in_words(error)}. Check the address and that its brokers "
                "are up."
            )
        case kafka.KafkaConnectionError() | OSError():
            why = f"({error})" if isinstance(error, kafka.KafkaError) else f"({_in_words(error)})"
            return Away(
                f"{where} can't be reached while {doing} {why}. Check the address and that its brokers are up; a "
                f"broker that expects another security_protocol than {connection.security_protocol} closes the "
                "connection too."
            )
        case kafka.KafkaError() if message := _refusal(error, connection, where, doing):
            return Refused(message)
        case kafka.UnknownTopicOrPartitionError():
            return SpecError(f"{where}: a topic that is needed while {doing} is not there ({error}). Make it again.")
        case kafka.InvalidTimestampError():
            return Away(
                f"{where} takes no records of our time while {doing}: this machine's clock and the broker's differ by "
                "more than message.timestamp.after.max.ms, or message.timestamp.before.max.ms, allows. Set the clock."
            )
        case _:
            return Away(f"{where}: {type(error).__name__} while {doing} ({error}). The same again may work.")


def _in_words(error: OSError) -> str:
    """`Connection refused`: asyncio puts the address into the place of the words, and of a name with several addresses
    it numbers the failures alone."""
    number = error.errno or next(iter(re.findall(r"\[Errno (\d+)\]", str(error))), None)
    if number is not None and int(number) > 0:
        return os.strerror(int(number))
    return str(error.strerror or error) or "the connection was closed"  # asyncio, in the middle of a TLS handshake


def _refusal(error: kafka.KafkaError, connection: Connection, where: str, doing: str) -> str | None:
    """What an administrator must mend; None where it is something else."""
    who = f"the user {connection.sasl_username}" if connection.sasl_username else "this client"
    match error:
        case kafka.SaslAuthenticationFailed() if connection.sasl_mechanism == "OAUTHBEARER":
            return f"{where} refuses the token ({error}). Check what sasl_oauth_token or sasl_oauth_endpoint gives."
        case kafka.SaslAuthenticationFailed() | kafka.AuthenticationFailedError():
            return f"{where} refuses the credentials of {who}. Check sasl_mechanism, the user name and the secret."
        case kafka.IllegalSaslStateError():
            return f"{where} expects no login at this port. Set another security_protocol or port."
        case kafka.UnsupportedSaslMechanismError():
            return f"{where} does not offer {connection.sasl_mechanism}. Set sasl_mechanism to one that it offers."
        case kafka.TransactionalIdAuthorizationFailed():
            return f"{where}: {who} may not use transactional ids that begin with penstock-. Allow Write on them."
        case kafka.GroupAuthorizationFailedError():
            return f"{where}: {who} may not use the group {error}. Allow Read on it."
        case kafka.TopicAuthorizationFailedError() | kafka.ClusterAuthorizationFailedError():
            return (
                f"{where}: {who} lacks a right while {doing} ({error}). Allow Read, Write, Describe and "
                "DescribeConfigs on the topic."
            )
        case kafka.UnsupportedVersionError() | kafka.IncompatibleBrokerVersion():
            return f"{where} is too old for this ({error}). Kafka 2.4 or newer is needed."
        case kafka.PolicyViolationError() | kafka.InvalidReplicationFactorError() | kafka.InvalidConfigurationError():
            return f"{where} refuses it while {doing}: {error}. Mend the topic's settings under create:."
        case _:
            return None


async def _say_why(connection: Connection) -> Temporary | None:
    """Connect once by hand; raises the reason where it is more than "unreachable", else returns it; None: one can be
    reached. All brokers are asked at once, and the first that answers answers for all: one that is a black hole would
    cost every start of a client its timeout."""
    settings = _settings(connection)  # one for all: they share a token
    names = settings.pop("bootstrap_servers")
    del settings["retry_backoff_ms"]
    asked = [asyncio.ensure_future(_ask(connection, server, settings)) for server in names]
    why: Temporary | None = None
    try:
        for answer in asyncio.as_completed(asked):
            try:
                return await answer
            except Temporary as error:
                if isinstance(error.__cause__, NoToken):
                    raise
                why = error
        return why
    finally:
        for one in asked:
            one.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


async def _ask(connection: Connection, server: str, settings: dict[str, Any]) -> None:
    host, _, port = server.rpartition(":")
    async with within(REQUEST_TIMEOUT_MS / 1000, connection, "connecting"):
        one = _Telling(host.strip("[]"), int(port), **settings)
        try:
            await one.connect()
        finally:
            one.close()


class _Telling(AIOKafkaConnection):
    """aiokafka takes any answer to a token for a yes; the broker then closes the connection."""

    def authenticator_oauth(self) -> _Bearer:
        return _Bearer(sasl_oauth_token_provider=self._sasl_oauth_token_provider)


class _Bearer(OAuthAuthenticator):
    async def step(self, payload: bytes | None) -> tuple[bytes, Literal[True]] | None:
        if payload:  # an error in JSON (RFC 7628, 3.2.2); a yes is empty
            self._sasl_oauth_token_provider.forget()
            raise kafka.SaslAuthenticationFailed(payload.decode("utf-8", "replace")[:200])
        return await super().step(payload)


def _settings(connection: Connection) -> dict[str, Any]:
    """What all of aiokafka's clients take alike. Secrets are resolved here, in the process that connects."""
    return {
        "bootstrap_servers": servers(connection),
        "client_id": "penstock",
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
        "retry_backoff_ms": RETRY_BACKOFF_MS,
        "security_protocol": connection.security_protocol,
        **({"ssl_context": _tls(connection)} if connection.security_protocol.endswith("SSL") else {}),
        **(_sasl(connection) if connection.security_protocol.startswith("SASL") else {}),
    }


def _sasl(connection: Connection) -> dict[str, Any]:
    mechanism = connection.sasl_mechanism
    if mechanism is None:
        raise SpecError(f"{describe(connection)}: {connection.security_protocol} needs a sasl_mechanism.")
    if mechanism == "OAUTHBEARER":
        return {"sasl_mechanism": mechanism, "sasl_oauth_token_provider": token_provider(connection)}
    password = resolve(connection.sasl_password)
    if not connection.sasl_username or password is None:
        raise SpecError(f"{describe(connection)}: {mechanism} needs sasl_username and sasl_password (env:NAME).")
    return {
        "sasl_mechanism": mechanism,
        "sasl_plain_username": connection.sasl_username,
        "sasl_plain_password": password.reveal(),
    }


def _tls(connection: Connection) -> ssl.SSLContext:
    password = resolve(connection.ssl_key_password)
    try:
        context = create_ssl_context(
            cafile=connection.ssl_ca_location,
            certfile=connection.ssl_certificate_location,
            keyfile=connection.ssl_key_location,
            password=password.reveal() if password else None,
        )
    except OSError as error:
        names = (connection.ssl_ca_location, connection.ssl_certificate_location, connection.ssl_key_location)
        files = ", ".join(name for name in names if name)
        raise SpecError(f"{describe(connection)}: a certificate or key can't be read ({files}): {error}") from error
    context.check_hostname = connection.ssl_check_hostname
    return context
