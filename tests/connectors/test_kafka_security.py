"""Kafka behind TLS and logins, against a broker that really asks for them: the right credentials work from source to
store, the wrong ones are refused within seconds, with what to do and without the secret."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import secrets
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from aiohttp import web
from aiokafka import AIOKafkaProducer

from penstock.connectors.base import Holder, OutRecord
from penstock.connectors.kafka import client
from penstock.connectors.kafka.client import REQUEST_TIMEOUT_MS, ended, new_consumer, start
from penstock.connectors.kafka.place import KafkaPlace
from penstock.connectors.kafka.source import KafkaTopics
from penstock.connectors.settings import Connection, KafkaSink, KafkaSource
from penstock.engine.errors import PenstockError, Refused, SpecError, Temporary
from penstock.jobs.dev.fetch import MissingTool, need_tool
from penstock.jobs.dev.kafka import KafkaServer
from penstock.jobs.dev.ports import free_port

pytestmark = pytest.mark.kafka

WHO = Holder(host="here", pid=7, user="ada", since=0.0, command="penstock run job.yaml")
PASSWORD = "right-horse-battery"
KEY_PASSWORD = "unlocks-the-key"
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")
SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
JAAS = {
    "plain": f'org.apache.kafka.common.security.plain.PlainLoginModule required user_ada="{PASSWORD}";',
    "scram-sha-256": SCRAM,
    "scram-sha-512": SCRAM,
    "oauthbearer": "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required "
    'unsecuredLoginStringClaim_sub="broker";',
}
UNSECURED = (
    "org.apache.kafka.common.security.oauthbearer.internals.unsecured.OAuthBearerUnsecuredValidatorCallbackHandler"
)


class Secured:
    """One broker with a port for each protocol, and the files that its clients need."""

    def __init__(self, folder: Path) -> None:
        self.ports = {name: free_port() for name in ("SASL_PLAINTEXT", "SSL", "SASL_SSL")}
        self.folder = folder
        make_certificates(folder)
        self.server = KafkaServer(folder / "kafka", properties=self._properties(), users={"ada": PASSWORD})

    def _properties(self) -> dict[str, str]:
        logins = {
            f"listener.name.{listener}.{mechanism}.sasl.jaas.config": jaas
            for listener, mechanisms in (("sasl_plaintext", JAAS), ("sasl_ssl", ("scram-sha-512",)))
            for mechanism in mechanisms
            for jaas in (JAAS[mechanism],)
        }
        return {
            "listeners": ",".join(f"{name}://127.0.0.1:{port}" for name, port in self.ports.items()),
            "listener.name.sasl_plaintext.sasl.enabled.mechanisms": ",".join(MECHANISMS),
            "listener.name.sasl_ssl.sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "listener.name.sasl_plaintext.oauthbearer.sasl.server.callback.handler.class": UNSECURED,
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self.folder / "server.all.pem"),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.folder / "ca.pem"),
            "listener.name.ssl.ssl.client.auth": "required",
            **logins,
        }

    def at(self, protocol: str, host: str = "127.0.0.1", **more: object) -> Connection:
        """As the job file would say it, with secrets by name."""
        tls = {"ssl_ca_location": str(self.folder / "ca.pem")} if protocol.endswith("SSL") else {}
        port = self.ports.get(protocol, self.server.port)
        told = {"bootstrap": f"{host}:{port}", "security_protocol": protocol, **tls, **more}
        return msgspec.convert({name: value for name, value in told.items() if value is not None}, Connection)

    def login(self, mechanism: str, protocol: str = "SASL_PLAINTEXT", **more: object) -> Connection:
        who = {"sasl_mechanism": mechanism, "sasl_username": "ada", "sasl_password": "env:KAFKA_PASSWORD"}
        return self.at(protocol, **{**who, **more})

    def certified(self, **more: object) -> Connection:
        mine = {
            "ssl_certificate_location": str(self.folder / "client.pem"),
            "ssl_key_location": str(self.folder / "client.key"),
            "ssl_key_password": "env:KEY_PASSWORD",
        }
        return self.at("SSL", **{**mine, **more})

    def bearer(self, **more: object) -> Connection:
        return self.at("SASL_PLAINTEXT", sasl_mechanism="OAUTHBEARER", **more)


def make_certificates(folder: Path) -> None:
    """An authority, a server's certificate for 127.0.0.1, a client's with a locked key, and strangers' authority."""
    for name in ("ca", "stranger"):
        openssl(folder, "req", "-x509", *_NEW, "-nodes", "-days", "2", "-subj", f"/CN={name}",
                "-keyout", f"{name}.key", "-out", f"{name}.pem")  # fmt: skip
    _signed(folder, "server", "subjectAltName=IP:127.0.0.1", "-nodes")
    _signed(folder, "client", "extendedKeyUsage=clientAuth", "-passout", f"pass:{KEY_PASSWORD}")
    both = (folder / "server.key").read_bytes() + (folder / "server.pem").read_bytes()
    (folder / "server.all.pem").write_bytes(both)


_NEW = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")


def _signed(folder: Path, name: str, extension: str, *key: str) -> None:
    (folder / f"{name}.ext").write_text(f"{extension}\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n")
    openssl(folder, "req", *_NEW, *key, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
    openssl(folder, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.pem")  # fmt: skip


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    try:
        need_tool("openssl", "the test makes its certificates with it")
        secured = Secured(tmp_path_factory.mktemp("secured"))
        secured.server.start()
    except MissingTool as error:
        pytest.skip(str(error))
    yield secured
    secured.server.kill()


@pytest.fixture(autouse=True)
async def _secrets(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    monkeypatch.setenv("KAFKA_PASSWORD", PASSWORD)
    monkeypatch.setenv("KEY_PASSWORD", KEY_PASSWORD)
    monkeypatch.setenv("WRONG", "wrong-secret")
    yield
    await ended()


def token(lives_s: float = 600.0) -> str:
    """An unsecured JWS (RFC 7515, appendix A.5), as Kafka's development validator takes it."""
    now = time.time()
    claims = {"sub": "ada", "iat": now - 5, "exp": now + lives_s}
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
                    for part in ({"alg": "none"}, claims)) + "."  # fmt: skip


class Tokens:
    """A token endpoint: client credentials, form-encoded, HTTP basic (RFC 6749, 4.4)."""

    def __init__(self) -> None:
        self.url = ""
        self.granted = 0
        self.status = 200

    async def _grant(self, request: web.Request) -> web.Response:
        form = await request.post()
        login = "Basic " + base64.b64encode(f"penstock:{PASSWORD}".encode()).decode()
        right = request.headers.get("Authorization") == login and form["grant_type"] == "client_credentials"
        if self.status != 200:
            return web.Response(status=self.status)
        if not right or form.get("scope") != "kafka":
            # Some repeat what they were sent.
            return web.json_response({"error": "invalid_client", "sent": "wrong-secret"}, status=401)
        self.granted += 1
        return web.json_response({"access_token": token(), "token_type": "Bearer", "expires_in": 600})


@pytest.fixture
async def tokens() -> AsyncIterator[Tokens]:
    tokens = Tokens()
    app = web.Application()
    app.router.add_post("/token", tokens._grant)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    tokens.url = f"http://127.0.0.1:{port}/token"
    yield tokens
    await runner.cleanup()


def by_credentials(secured: Secured, tokens: Tokens, **more: object) -> Connection:
    told = {
        "sasl_oauth_endpoint": tokens.url,
        "sasl_oauth_client_id": "penstock",
        "sasl_oauth_client_secret": "env:KAFKA_PASSWORD",
        "sasl_oauth_scope": "kafka",
    }
    return secured.bearer(**{**told, **more})


async def round_trip(server: KafkaServer, topic: str, connection: Connection) -> None:
    """A source reads over the connection, a store commits over it, and what it committed is read back."""
    async with AIOKafkaProducer(bootstrap_servers=server.bootstrap) as producer:
        await producer.send_and_wait(topic, b'{"n":1}')
    source = KafkaTopics(KafkaSource((topic,), connection=connection, until="end"))
    reader = await source.open([(split, split.start) for split in await source.splits(1)])
    read: list[bytes] = []
    async with asyncio.timeout(60):
        while not (batch := await reader.read(100, 1 << 20)).done:
            read += [raw.data for raw in batch.records]
            await asyncio.sleep(batch.again_after_s or 0)
    read += [raw.data for raw in batch.records]
    await reader.close()
    run = f"run-{secrets.token_hex(4)}"
    sink = KafkaSink(f"{run}-results", connection=connection, create=True, progress_topic="secured-progress")
    place = KafkaPlace({"results": sink}, run)
    store = place.open()
    epoch = (await store.hold(WHO), 1)
    await store.take(0, epoch)
    await store.commit(0, epoch, 1, {"results": [OutRecord(0, n, value) for n, value in enumerate(read)]}, {"a": b"1"})
    await store.release(0)
    await store.let_go()
    assert await asyncio.to_thread(lambda: list(place.committed("results"))) == [b'{"n":1}']


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_a_login_by_password_reads_and_commits(
    secured: Secured, new_topic: Callable[..., Awaitable[str]], mechanism: str
) -> None:
    await round_trip(secured.server, await new_topic("in", on=secured.server), secured.login(mechanism))


async def test_a_login_by_password_over_tls_reads_and_commits(
    secured: Secured, new_topic: Callable[..., Awaitable[str]]
) -> None:
    topic = await new_topic("in", on=secured.server)
    await round_trip(secured.server, topic, secured.login("SCRAM-SHA-512", "SASL_SSL"))


async def test_a_client_certificate_with_a_locked_key_reads_and_commits(
    secured: Secured, new_topic: Callable[..., Awaitable[str]]
) -> None:
    await round_trip(secured.server, await new_topic("in", on=secured.server), secured.certified())


async def test_a_bearer_token_that_somebody_else_keeps_fresh_reads_and_commits(
    secured: Secured, new_topic: Callable[..., Awaitable[str]], tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(token())
    topic = await new_topic("in", on=secured.server)
    await round_trip(secured.server, topic, secured.bearer(sasl_oauth_token=f"file:{tmp_path / 'token'}"))


async def test_client_credentials_become_tokens_that_read_and_commit(
    secured: Secured, tokens: Tokens, new_topic: Callable[..., Awaitable[str]]
) -> None:
    """Each client asks once, not once a connection."""
    topic = await new_topic("in", on=secured.server)
    await round_trip(secured.server, topic, by_credentials(secured, tokens))
    assert 0 < tokens.granted < 30


WRONG = {
    "a wrong password": (lambda s: s.login("PLAIN", sasl_password="env:WRONG"), Refused, "credentials of the user ada"),
    "a wrong password for SCRAM": (
        lambda s: s.login("SCRAM-SHA-256", sasl_password="env:WRONG"), Refused, "credentials of the user ada",
    ),
    "a user that is not there": (
        lambda s: s.login("SCRAM-SHA-512", "SASL_SSL", sasl_username="eve"), Refused, "credentials of the user eve",
    ),
    "a mechanism that is not offered": (lambda s: s.login("PLAIN", "SASL_SSL"), Refused, "does not offer PLAIN"),
    "a login where none is asked for": (
        lambda s: s.login("PLAIN", bootstrap=s.server.bootstrap), Refused, "no login at this port",
    ),
    "no login where one is asked for": (
        lambda s: s.at("PLAINTEXT", bootstrap=s.login("PLAIN").bootstrap), Temporary, "expects another security_p",
    ),
    "no TLS where it is asked for": (
        lambda s: s.at("PLAINTEXT", bootstrap=s.certified().bootstrap), Temporary, "expects another security_p",
    ),
    "TLS where there is none": (lambda s: s.certified(bootstrap=s.server.bootstrap), PenstockError, "security_prot"),
    "an authority of strangers": (
        lambda s: s.certified(ssl_ca_location=str(s.folder / "stranger.pem")), Refused, "not trusted.*ssl_ca_location",
    ),
    "another name than the certificate's": (
        lambda s: s.certified(bootstrap=f"localhost:{s.ports['SSL']}"), Refused, "not trusted.*the name that",
    ),
    "no certificate of ours": (
        lambda s: s.certified(ssl_certificate_location=None, ssl_key_location=None), PenstockError, "our certificate",
    ),
    "a certificate that its authority did not sign": (
        lambda s: s.certified(
            ssl_certificate_location=str(s.folder / "stranger.pem"), ssl_key_location=str(s.folder / "stranger.key")
        ),
        PenstockError,
        "our certificate",
    ),
    "a wrong password of the key": (lambda s: s.certified(ssl_key_password="env:WRONG"), SpecError, "can't be read"),
    "an authority's file that is not there": (
        lambda s: s.certified(ssl_ca_location="/nowhere/ca.pem"), SpecError, "/nowhere/ca.pem",
    ),
    "a secret that is not set": (lambda s: s.login("PLAIN", sasl_password="env:NOT_SET"), SpecError, "NOT_SET"),
    "what is no token": (lambda s: s.bearer(sasl_oauth_token="env:WRONG"), Refused, "sasl_oauth_token"),
    "a token that has ended": (lambda s: s.bearer(sasl_oauth_token="env:ENDED"), Refused, "sasl_oauth_token"),
}  # fmt: skip


async def refusal(connect: Callable[[], Connection]) -> PenstockError:
    """What a start over the connection raises. A hang fails the test."""

    async def started() -> None:
        connection = connect()
        await start(new_consumer(connection), connection)

    async with asyncio.timeout(60):
        with pytest.raises(PenstockError) as caught:
            await started()
    said = str(caught.value)
    for secret in (PASSWORD, KEY_PASSWORD, "wrong-secret"):
        assert secret not in said
    return caught.value


@pytest.mark.parametrize("name", WRONG)
async def test_wrong_credentials_are_refused_with_what_to_do(
    secured: Secured, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("ENDED", token(lives_s=-100))
    connect, kind, words = WRONG[name]
    error = await refusal(lambda: connect(secured))
    assert isinstance(error, kind), repr(error)
    assert re.search(words, str(error)), str(error)


async def test_a_broker_that_never_answers_does_not_hold_up_a_login_by_token(
    secured: Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every client asks for the reason before it starts: the first broker that says yes is enough."""
    monkeypatch.setenv("GOOD", token())
    silence = asyncio.Event()
    silent = await asyncio.start_server(lambda reader, writer: silence.wait(), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    connection = secured.bearer(sasl_oauth_token="env:GOOD")
    connection = msgspec.structs.replace(connection, bootstrap=f"127.0.0.1:{port},{connection.bootstrap}")
    began = time.monotonic()
    await client._say_why(connection)  # pyright: ignore[reportPrivateUsage] - aiokafka has its own way around the silent
    assert time.monotonic() - began < REQUEST_TIMEOUT_MS / 2000
    silence.set()
    silent.close()


async def test_a_token_endpoint_that_refuses_or_is_away_is_named(secured: Secured, tokens: Tokens) -> None:
    """Refused: the job must be mended. Away: the same again may work."""
    refused = await refusal(lambda: by_credentials(secured, tokens, sasl_oauth_client_secret="env:WRONG"))
    assert isinstance(refused, SpecError)
    assert f"{tokens.url} refused a token for penstock (HTTP 401)" in str(refused)
    tokens.status = 503
    busy = await refusal(lambda: by_credentials(secured, tokens))
    assert isinstance(busy, Temporary)
    assert tokens.url in str(busy)
    away = await refusal(lambda: by_credentials(secured, tokens, sasl_oauth_endpoint="http://127.0.0.1:9/token"))
    assert isinstance(away, Temporary)
    assert "Is the authorization server up?" in str(away)
