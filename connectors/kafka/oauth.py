"""Bearer tokens for SASL/OAUTHBEARER: read from a secret each time, or got by client credentials (RFC 6749, 4.4)."""

from __future__ import annotations

import base64
import time
from functools import lru_cache
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec
from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaConnectionError

from penstock.connectors.kafka import trust
from penstock.connectors.secrets import Secret, resolve
from penstock.connectors.settings import Connection
from penstock.engine.errors import PenstockError, SpecError, Temporary

TIMEOUT_S = 10.0
EARLY_S = 30.0
"""A token is asked for anew this long before it ends: clocks differ, and a login takes time."""


class NoToken(KafkaConnectionError):
    """A login without a token. To aiokafka it is a broker that can't be reached, which its tasks in the background
    survive; `why` is for those who wait."""

    def __init__(self, why: PenstockError) -> None:
        super().__init__(str(why))
        self.why = why


class _Granted(msgspec.Struct, frozen=True):
    access_token: str
    expires_in: float = 60.0
    """Recommended, not required (RFC 6749, 5.1): a minute where it is missing."""


def token_provider(connection: Connection) -> NamedToken | ClientCredentials:
    """Raises `SpecError` where the connection names no way to get a token."""
    if connection.sasl_oauth_token is not None:
        return NamedToken(connection.sasl_oauth_token)
    endpoint, client = connection.sasl_oauth_endpoint, connection.sasl_oauth_client_id
    secret = connection.sasl_oauth_client_secret
    if endpoint is None or client is None or secret is None:
        raise SpecError(
            "OAUTHBEARER needs sasl_oauth_token (env:NAME or file:/path), or sasl_oauth_endpoint, sasl_oauth_client_id "
            "and sasl_oauth_client_secret."
        )
    parts = urlsplit(endpoint)
    if parts.scheme != "https" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise SpecError(f"sasl_oauth_endpoint {endpoint} must be https: the client's secret is sent there.")
    resolve(secret)
    return _shared(endpoint, client, secret, connection.sasl_oauth_scope, connection.ssl_ca_location)


class NamedToken(AbstractTokenProvider):
    """Somebody else keeps the token fresh: it is read anew for each login."""

    def __init__(self, reference: str) -> None:
        self._reference = reference

    def forget(self) -> None:
        """Nothing is kept."""

    async def token(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride] - theirs has no type
        try:
            token = resolve(self._reference)
        except SpecError as error:
            raise NoToken(error) from error
        assert token is not None
        return token.reveal()


class ClientCredentials(AbstractTokenProvider):
    """Tokens from an authorization server, kept until shortly before they end. `secret`: its name."""

    def __init__(
        self, endpoint: str, client: str, secret: str, scope: str | None, authority: str | None = None
    ) -> None:
        self._endpoint = endpoint
        self._client = client
        self._secret = secret
        self._scope = scope
        self._authority = authority
        self._token = ""
        self._until = 0.0

    def forget(self) -> None:
        """A broker refused the token: the next login gets another."""
        self._until = 0.0

    async def token(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride] - theirs has no type
        if time.monotonic() >= self._until:
            try:
                granted = await self._ask()
            except PenstockError as error:
                raise NoToken(error) from error
            self._token = granted.access_token
            self._until = time.monotonic() + granted.expires_in - EARLY_S
        return self._token

    async def _ask(self) -> _Granted:
        # Both are form-encoded before they are joined (RFC 6749, 2.3.1).
        secret = resolve(self._secret)
        assert secret is not None
        login = f"{quote(self._client, safe='')}:{quote(secret.reveal(), safe='')}"
        headers = {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()}
        form = {"grant_type": "client_credentials", **({"scope": self._scope} if self._scope else {})}
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        tls = aiohttp.TCPConnector(ssl=trust.context(self._authority))
        try:
            async with (
                aiohttp.ClientSession(connector=tls, timeout=timeout) as session,
                session.post(self._endpoint, data=form, headers=headers, allow_redirects=False) as answer,
            ):
                body = await answer.read()
        except aiohttp.ClientConnectorCertificateError as error:
            raise trust.refused(self._endpoint, error) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Temporary(f"{self._endpoint} gave no token ({error}). Is the authorization server up?") from error
        return self._read(answer.status, body, secret)

    def _read(self, status: int, body: bytes, secret: Secret) -> _Granted:
        if status == 429 or status >= 500:
            raise Temporary(f"{self._endpoint} gave no token (HTTP {status}). Is the authorization server well?")
        if status != 200:
            said = secret.hidden(body.decode("utf-8", "replace"))[:200]
            raise SpecError(f"{self._endpoint} refused a token for {self._client} (HTTP {status}): {said}")
        try:
            return msgspec.json.decode(body, type=_Granted, strict=False)  # some write their numbers as text
        except msgspec.MsgspecError as error:
            raise SpecError(f"{self._endpoint} answered without a token ({error}). Is it a token endpoint?") from error


_shared = lru_cache(maxsize=64)(ClientCredentials)
"""All clients of a process share a token: authorization servers limit how many are asked for."""
