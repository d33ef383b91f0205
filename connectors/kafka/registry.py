"""A schema registry that speaks Confluent's REST API: schemas by id or subject, and new ones registered.

https://docs.confluent.io/platform/current/schema-registry/develop/api.html
"""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import quote

import aiohttp
import msgspec

from penstock.connectors.kafka import trust
from penstock.connectors.secrets import resolve
from penstock.connectors.settings import Connection
from penstock.engine.errors import Away, Refused, SpecError

REQUEST_S = 5.0
RETRY_S = 1.0
MOST_BYTES = 4_000_000
_NOT_FOUND = (40401, 40402, 40403)
"""Subject, version, schema."""
_TYPE = "application/vnd.schemaregistry.v1+json"


class Reference(msgspec.Struct, frozen=True):
    name: str
    subject: str
    version: int


class Schema(msgspec.Struct, frozen=True):
    """As the registry tells it. `schema`: its text; for Protobuf a `FileDescriptorProto` in base64."""

    schema: str
    schemaType: str = "AVRO"
    references: tuple[Reference, ...] = ()


class _New(msgspec.Struct, frozen=True):
    schema: str
    schemaType: str


class _Registered(msgspec.Struct, frozen=True):
    id: int


class _Error(msgspec.Struct, frozen=True):
    error_code: int
    message: str = ""


class Registry:
    """Connects with its first call. Raises `SpecError` where the connection names none."""

    def __init__(self, connection: Connection) -> None:
        if connection.schema_registry is None:
            raise SpecError("these records need a schema registry: name it as connections: … schema_registry")
        self._url = connection.schema_registry.rstrip("/")
        self._headers = _headers(connection)
        self._authority = connection.ssl_ca_location
        self._where = f"the schema registry at {self._url}"
        self._http: aiohttp.ClientSession | None = None

    async def ask(self, path: str) -> Schema | None:
        """None: there is none. Raises `Away`, `Refused`."""
        status, text = await self._call("GET", path)
        if status == 404 and _error(text).error_code in _NOT_FOUND:
            return None
        if status != 200:
            raise self._strange(status, path)
        return self._read(text, Schema)

    async def register(self, subject: str, schema: str, kind: str = "AVRO") -> int:
        """The schema's id; the same schema again has the same. Raises `Refused` where the subject's earlier schemas
        don't go with it, `Away`."""
        path = f"/subjects/{quote(subject, safe='')}/versions"
        status, text = await self._call("POST", path, msgspec.json.encode(_New(schema, kind)))
        if status in (409, 422):
            raise Refused(
                f"{self._where} does not take our schema under the subject {subject} ({_error(text).message[:300]}). "
                "Give the sink another topic, or relax the subject's compatibility."
            )
        if status != 200:
            raise self._strange(status, path)
        return self._read(text, _Registered).id

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()

    async def _call(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Status and text. Where the status is none of a registry that knows us, this raises."""
        if self._http is None:
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=trust.context(self._authority)),
                timeout=aiohttp.ClientTimeout(total=REQUEST_S),
                headers=self._headers,
            )
        headers = {"Content-Type": _TYPE} if body is not None else {}
        try:
            async with self._http.request(method, self._url + path, data=body, headers=headers) as answer:
                text = await _whole(answer.content)
                status = answer.status
        except aiohttp.ClientConnectorCertificateError as error:
            raise trust.refused(self._where, error) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Away(
                f"{self._where} can't be reached ({type(error).__name__}): is it up?", retry_after_s=RETRY_S
            ) from error
        if status in {401, 403}:
            raise Refused(f"{self._where} refuses us ({status}): check schema_registry_auth (user:password)")
        return status, text

    def _strange(self, status: int, path: str) -> Away:
        said = f"{self._where} answers {status} to {path}: is it the registry's address?"
        return Away(said, retry_after_s=RETRY_S)

    def _read(self, text: bytes, kind: type[Any]) -> Any:
        try:
            return msgspec.json.decode(text, type=kind)
        except msgspec.DecodeError as error:
            raise Away(f"{self._where} says what can't be read: {error}", retry_after_s=RETRY_S) from error


async def _whole(content: aiohttp.StreamReader) -> bytes:
    """All of an answer, up to `MOST_BYTES`: one `read` brings what has come by then, a large schema's beginning."""
    text = bytearray()
    while len(text) < MOST_BYTES and (part := await content.read(MOST_BYTES - len(text))):
        text += part
    return bytes(text)


def _error(text: bytes) -> _Error:
    """What a registry says; of some other server nothing: else all records would die of a wrong address."""
    try:
        return msgspec.json.decode(text, type=_Error)
    except msgspec.DecodeError:
        return _Error(0)


def _headers(connection: Connection) -> dict[str, str]:
    secret = resolve(connection.schema_registry_auth)
    if secret is None:
        return {}
    return {"Authorization": "Basic " + base64.b64encode(secret.reveal().encode()).decode()}  # RFC 7617
