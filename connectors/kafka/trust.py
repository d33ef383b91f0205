"""Whom we believe over TLS beside the brokers: the schema registry, and who gives tokens."""

from __future__ import annotations

import ssl

import aiohttp

from penstock.engine.errors import Refused, SpecError


def context(authority: str | None) -> ssl.SSLContext:
    """Whom the system trusts, and the authority that signed the brokers' certificates: as a rule it is a company's own.
    Raises `SpecError`."""
    made = ssl.create_default_context()
    if authority is not None:
        try:
            made.load_verify_locations(authority)
        except OSError as error:
            raise SpecError(f"ssl_ca_location {authority} can't be read: {error}") from error
    return made


def refused(where: str, error: aiohttp.ClientConnectorCertificateError) -> Refused:
    """Waiting does not help."""
    return Refused(
        f"{where}: its certificate is not trusted ({error.certificate_error}). Name the authority that signed it as "
        "ssl_ca_location."
    )
