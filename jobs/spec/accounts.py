"""Accounts of catalogue and job file → `engine.catalog.Account`; what has been defined so far."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

import msgspec

from penstock.engine.catalog import Account, Limits, Model, Wall
from penstock.jobs import hosts
from penstock.jobs.spec.fields import AccountFile, CatalogFile
from penstock.jobs.spec.tree import Doc, Path, nearest


class Part(msgspec.Struct, frozen=True):
    """A catalogue file, or the job file as one."""

    doc: Doc
    file: CatalogFile
    base: str
    """Folder that its paths start from."""


class Found:
    """What has been defined so far. A name is defined once: a job cannot bend the company's wall or account."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.models: dict[str, Model] = {}
        self.namesakes: set[str] = set()
        """Accounts that are called like a known host and are elsewhere, without a `provider` that was said."""
        self.walls: dict[str, Wall] = {}
        self.chosen: list[str] = []
        """Models that the job itself names by plain strings, in order."""


def compile_accounts(found: Found, part: Part) -> None:
    for name, file in part.file.accounts.items():
        path: Path = ("accounts", name)
        check_name(part.doc, path, name)
        if name in found.accounts:
            raise part.doc.error(path, "this account is defined twice; a name belongs to one account")
        add_account(found, part.doc, path, name, file)


def add_account(found: Found, doc: Doc, path: Path, name: str, file: AccountFile) -> Account:
    made = found.accounts[name] = _account(doc, path, name, file)
    known = None if file.provider else hosts.host(name)
    if known is not None and hosts.by_url(made.base_url) != known and not hosts.is_here(made.base_url):
        found.namesakes.add(name)
    return made


def _account(doc: Doc, path: Path, name: str, file: AccountFile) -> Account:
    known = hosts.host(file.provider or name) or (hosts.by_url(file.base_url) if file.base_url else None)
    url = file.base_url or (known.base_url if known else None)
    if url is None:
        raise doc.error(path, f"`base_url` is missing, and `{name}` is no known host{nearest(name, hosts.names())}")
    check_url(doc, (*path, "base_url"), url)
    own_host = known is not None and hosts.by_url(url) == known
    if known is not None and known.key is not None and own_host and urlsplit(url).scheme != "https":
        raise doc.error(
            (*path, "base_url"), f"`{known.name}` is reached by https://; so the key and all data would go in the clear"
        )
    key = file.api_key or (f"env:{known.key}" if known and known.key and own_host else None)
    account = Account(
        name=name,
        protocol=file.protocol or (known.protocol if known else "openai"),
        base_url=url.rstrip("/"),
        api_key=check_key(doc, (*path, "api_key"), key),
        regions=tuple(file.regions),
        no_train=file.no_train,
        limits=check_limits(doc, (*path, "limits"), file.limits or Limits()),
        provider=file.provider or (known.name if known else name),
    )
    if file.timeout_s is None:
        return account
    if file.timeout_s <= 0:
        raise doc.error((*path, "timeout_s"), "must be more than 0 seconds")
    return msgspec.structs.replace(account, timeout_s=float(file.timeout_s))


def host_account(found: Found, known: hosts.Host) -> str:
    """The catalogue's account of that name, or a plain one at the known host."""
    if known.name not in found.accounts:
        key = f"env:{known.key}" if known.key else None
        found.accounts[known.name] = Account(
            name=known.name, protocol=known.protocol, base_url=known.base_url, api_key=key, provider=known.name
        )
    return known.name


def check_key(doc: Doc, path: Path, key: str | None) -> str | None:
    """A reference passes; anything else is refused without being shown."""
    if key is None:
        return None
    kind, _, rest = key.partition(":")
    if kind == "env" and rest.isidentifier():
        return key
    if kind == "file" and rest.startswith(("/", "~")) and "\0" not in rest:
        return f"file:{os.path.expanduser(rest)}"
    raise doc.error(path, "name the key, never write it: `env:NAME` or `file:/path` (what stands here is not shown)")


def check_url(doc: Doc, path: Path, url: str) -> None:
    try:
        parts = urlsplit(url)
        host, secret = parts.hostname, parts.username or parts.password
        _ = parts.port
    except ValueError:
        raise doc.error(path, "not an address; write https://host/path") from None
    if parts.scheme not in ("https", "http") or not host:
        raise doc.error(path, "not an address; write https://host/path")
    if secret:
        raise doc.error(path, "holds a user name or password; put it into `api_key: env:NAME`")


def check_limits(doc: Doc, path: Path, limits: Limits) -> Limits:
    for name in Limits.__struct_fields__:
        value = getattr(limits, name)
        if value is not None and value < 1:
            raise doc.error((*path, name), "must be 1 or more; leave it out for no limit")
    return limits


def check_name(doc: Doc, path: Path, name: str) -> None:
    if not name or len(name) > 100 or any(c.isspace() or not c.isprintable() for c in name):
        raise doc.error(path, "a name has 1 to 100 characters, no spaces among them")
    return None
