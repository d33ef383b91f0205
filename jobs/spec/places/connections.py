"""`connections:` and `bootstrap:` → the `Connection` that a Kafka source or sink carries. Secrets stay names."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from penstock.connectors.settings import Connection, KafkaSink, KafkaSource
from penstock.jobs.spec.accounts import Part, check_key, check_name, check_url
from penstock.jobs.spec.tree import Doc, Path, nearest

SECRETS = (
    "sasl_password",
    "sasl_oauth_token",
    "sasl_oauth_client_secret",
    "ssl_key_password",
    "schema_registry_auth",
)
"""Fields of a `Connection` that name a secret."""
FILES = ("ssl_ca_location", "ssl_certificate_location", "ssl_key_location")
MAX_BROKERS = 100

K = TypeVar("K", KafkaSource, KafkaSink)
Connections = Mapping[str, Connection]

_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]{1,253}):([0-9]{1,5})")


def compile_connections(parts: list[Part]) -> dict[str, Connection]:
    """Those of the catalogue, then those of the job. A name is defined once. Raises `SpecError`."""
    found: dict[str, Connection] = {}
    for part in parts:
        for name, given in part.file.connections.items():
            path: Path = ("connections", name)
            check_name(part.doc, path, name)
            if name in found:
                raise part.doc.error(path, "this connection is defined twice; a name belongs to one cluster")
            found[name] = _checked(part.doc, path, given, part.base)
    return found


def connect(doc: Doc, path: Path, settings: K, known: Connections, base: str) -> K:
    """`settings` with its connection in place, and the addresses beside it for those who name the cluster."""
    made = _connection(doc, path, settings, known, base)
    return msgspec.structs.replace(settings, connection=made, bootstrap=made.bootstrap)


def _connection(doc: Doc, path: Path, settings: KafkaSource | KafkaSink, known: Connections, base: str) -> Connection:
    match settings.bootstrap, settings.connection:
        case str(bootstrap), None:
            return Connection(bootstrap=check_bootstrap(doc, (*path, "bootstrap"), bootstrap))
        case None, str(name):
            if name not in known:
                raise doc.error((*path, "connection"), f"no connection `{name[:100]}`{nearest(name, known)}")
            return known[name]
        case None, Connection() as given:
            return _checked(doc, (*path, "connection"), given, base)
        case None, None:
            raise doc.error(path, 'which cluster? Say `bootstrap: "host:port"`, or `connection:` with a name')
        case _:
            raise doc.error((*path, "bootstrap"), "stands beside `connection:`, which names its brokers; keep one")


def check_bootstrap(doc: Doc, path: Path, text: str) -> str:
    """`host:port[,host:port]` without blanks. Raises `SpecError`; what looks like a password is not shown."""
    brokers = [broker.strip() for broker in text.split(",")]
    for broker in brokers:
        found = _ADDRESS.fullmatch(broker)
        if found is None or not 1 <= int(found.group(1)) <= 65535:
            raise doc.error(path, "expected host:port, or several with commas between them")
    if len(brokers) > MAX_BROKERS:
        raise doc.error(path, f"at most {MAX_BROKERS} brokers; a few are enough to find the others")
    return ",".join(brokers)


def _checked(doc: Doc, path: Path, given: Connection, base: str) -> Connection:
    made: dict[str, str | None] = {"bootstrap": check_bootstrap(doc, (*path, "bootstrap"), given.bootstrap)}
    for name in SECRETS:
        made[name] = check_key(doc, (*path, name), getattr(given, name))
    for name in FILES:
        made[name] = _file(doc, (*path, name), getattr(given, name), base)
    for name in ("sasl_oauth_endpoint", "schema_registry"):
        if (url := getattr(given, name)) is not None:
            check_url(doc, (*path, name), url)
    _check_sasl(doc, path, given)
    _check_tls(doc, path, given)
    if given.schema_registry_auth and not given.schema_registry:
        raise doc.error((*path, "schema_registry_auth"), "stands without `schema_registry:`, the address")
    return msgspec.structs.replace(given, **made)


def _file(doc: Doc, path: Path, text: str | None, base: str) -> str | None:
    if text is None:
        return None
    if not text.strip() or "\0" in text:
        raise doc.error(path, "expected a file, found empty text")
    return os.path.normpath(os.path.join(base, os.path.expanduser(text)))


def _check_sasl(doc: Doc, path: Path, given: Connection) -> None:
    """What logs in wants a protocol that logs in, and all that its mechanism needs."""
    said = next((n for n in Connection.__struct_fields__ if n.startswith("sasl_") and getattr(given, n)), None)
    if not given.security_protocol.startswith("SASL_"):
        if said:
            asked = "says nothing to a broker without `security_protocol: SASL_SSL` (or SASL_PLAINTEXT)"
            raise doc.error((*path, said), asked)
        return
    match given.sasl_mechanism:
        case None:
            known = "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER"
            raise doc.error(path, f"`{given.security_protocol}` wants a `sasl_mechanism:` ({known})")
        case "OAUTHBEARER":
            _check_oauth(doc, path, given)
        case mechanism:
            for name in ("sasl_username", "sasl_password"):
                if not getattr(given, name):
                    raise doc.error(path, f"`sasl_mechanism: {mechanism}` wants a `{name}:`")


def _check_oauth(doc: Doc, path: Path, given: Connection) -> None:
    flow = ("sasl_oauth_endpoint", "sasl_oauth_client_id", "sasl_oauth_client_secret")
    missing = [name for name in flow if not getattr(given, name)]
    if given.sasl_oauth_token:
        if len(missing) < len(flow):
            raise doc.error((*path, "sasl_oauth_token"), "stands beside an `sasl_oauth_endpoint:`; keep one")
        return
    if missing:
        wanted = "a `sasl_oauth_token:`, or an endpoint with client id and secret"
        raise doc.error(path, f"`sasl_mechanism: OAUTHBEARER` wants {wanted}; `{missing[0]}` is missing")


def _check_tls(doc: Doc, path: Path, given: Connection) -> None:
    by_registry = ("ssl_ca_location",) if (given.schema_registry or "").startswith("https:") else ()
    said = next((n for n in (*FILES, "ssl_key_password") if getattr(given, n) and n not in by_registry), None)
    if said and "SSL" not in given.security_protocol:
        raise doc.error((*path, said), "says nothing without `security_protocol: SSL` or SASL_SSL")
    if given.ssl_key_location and not given.ssl_certificate_location:
        raise doc.error((*path, "ssl_key_location"), "a key without its `ssl_certificate_location:`")


def is_one_cluster(one: Connection | str | None, other: Connection | str | None) -> bool:
    """Whether two connections share a broker's address."""
    return not _brokers(one).isdisjoint(_brokers(other))


def _brokers(connection: Connection | str | None) -> set[str]:
    if not isinstance(connection, Connection):
        return set()
    return {broker.lower().replace("localhost:", "127.0.0.1:") for broker in connection.bootstrap.split(",")}
