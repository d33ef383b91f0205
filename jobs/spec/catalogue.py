"""Accounts, models, tiers and walls of catalogue and job file → `engine.catalog.Catalog`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec

from penstock.engine.catalog import Account, Catalog, Limits, Model, Price, Version, Wall
from penstock.engine.errors import SpecError
from penstock.jobs import hosts, prices
from penstock.jobs.spec.schema import AccountFile, CatalogFile, ModelFile, PriceFile, Replicas, WallFile
from penstock.jobs.spec.tree import Doc, Path, nearest

EVERY_TIER = (1, 2, 3)
MAX_MODELS = 1_000


class Part(msgspec.Struct, frozen=True):
    """A catalogue file, or the job file as one."""

    doc: Doc
    file: CatalogFile
    base: str
    """Folder that its paths start from."""


class _Found:
    """What has been defined so far. A name is defined once: a job cannot bend the company's wall or account."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.models: dict[str, Model] = {}
        self.walls: dict[str, Wall] = {}
        self.chosen: list[str] = []
        """Models that the job itself names by plain strings, in order."""


def compile_catalog(parts: list[Part]) -> Catalog:
    """`parts`: the catalogue (if any), then the job. Raises `SpecError`."""
    found = _Found()
    for part in parts:
        _accounts(found, part)
    for part in parts:
        _models(found, part, is_job=part is parts[-1])
    for part in parts:
        _walls(found, part)
    job = parts[-1]
    if not found.models:
        raise job.doc.error(("models",), "no model is named; add `models: [provider/model]`")
    return Catalog(
        accounts=found.accounts,
        models=found.models,
        tiers=_tiers(found, parts),
        walls=found.walls,
        unknown_wall=_unknown_wall(found, parts),
    )


# accounts


def _accounts(found: _Found, part: Part) -> None:
    for name, file in part.file.accounts.items():
        path: Path = ("accounts", name)
        _name(part.doc, path, name)
        if name in found.accounts:
            raise part.doc.error(path, "this account is defined twice; a name belongs to one account")
        found.accounts[name] = _account(part.doc, path, name, file)


def _account(doc: Doc, path: Path, name: str, file: AccountFile) -> Account:
    known = hosts.host(file.provider or name) or (hosts.by_url(file.base_url) if file.base_url else None)
    url = file.base_url or (known.base_url if known else None)
    if url is None:
        raise doc.error(path, f"`base_url` is missing, and `{name}` is no known host{nearest(name, hosts.names())}")
    check_url(doc, (*path, "base_url"), url)
    own_host = known is not None and hosts.by_url(url) == known
    key = file.api_key or (f"env:{known.key}" if known and known.key and own_host else None)
    account = Account(
        name=name,
        protocol=file.protocol or (known.protocol if known else "openai"),
        base_url=url.rstrip("/"),
        api_key=check_key(doc, (*path, "api_key"), key),
        regions=tuple(file.regions),
        no_train=file.no_train,
        limits=_limits(doc, (*path, "limits"), file.limits or Limits()),
        provider=file.provider or (known.name if known else name),
    )
    if file.timeout_s is None:
        return account
    if file.timeout_s <= 0:
        raise doc.error((*path, "timeout_s"), "must be more than 0 seconds")
    return msgspec.structs.replace(account, timeout_s=float(file.timeout_s))


def _host_account(found: _Found, known: hosts.Host) -> str:
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


def _limits(doc: Doc, path: Path, limits: Limits) -> Limits:
    for name in Limits.__struct_fields__:
        value = getattr(limits, name)
        if value is not None and value < 1:
            raise doc.error((*path, name), "must be 1 or more; leave it out for no limit")
    return limits


# models


def _models(found: _Found, part: Part, *, is_job: bool) -> None:
    if len(part.file.models) > MAX_MODELS:
        raise part.doc.error(("models",), f"more than {MAX_MODELS:,} models")
    for i, entry in enumerate(part.file.models):
        path: Path = ("models", i)
        if isinstance(entry, str):
            _named_model(found, part.doc, path, entry)
            if is_job:
                found.chosen.append(entry)
            continue
        _name(part.doc, (*path, "name"), entry.name)
        if entry.name in found.models:
            raise part.doc.error((*path, "name"), f"the model `{entry.name}` is defined twice")
        found.models[entry.name] = _model(found, part, path, entry)


def _named_model(found: _Found, doc: Doc, path: Path, text: str) -> None:
    """`provider/model`, or the name of a model that the catalogue has."""
    if text in found.models:
        return
    provider, slash, upstream = text.partition("/")
    known = hosts.host(provider)
    if not slash or not upstream:
        raise doc.error(
            path, f"`{text}` is no model of the catalogue; write provider/model{nearest(text, found.models)}"
        )
    account = found.accounts.get(provider)
    if known is None and account is None:
        near = nearest(provider, {*hosts.names(), *found.accounts})
        raise doc.error(path, f"`{provider}` is neither a known host nor an account{near}")
    name = _host_account(found, known) if account is None and known else provider
    file = ModelFile(name=text, model=upstream, account=name)
    found.models[text] = _api_model(found, doc, path, file, found.accounts[name])


def _model(found: _Found, part: Part, path: Path, file: ModelFile) -> Model:
    doc = part.doc
    own = {n for n in ("protocol", "base_url", "api_key", "limits", "timeout_s", "provider") if getattr(file, n)}
    if file.worker is not None:
        if file.account or own:
            field = "account" if file.account else min(own)
            raise doc.error((*path, field), "a model on own workers (`worker:`) has no account")
        return _worker_model(part, path, file)
    for name in ("replicas", "engine", "hour_usd"):
        if getattr(file, name):
            raise doc.error((*path, name), "belongs to a model on own workers; add `worker: vllm` or leave it out")
    if file.account is not None:
        if own:
            raise doc.error((*path, min(own)), f"stands in the account `{file.account}` already; change it there")
        return _api_model(found, doc, path, file, _named_account(found, doc, path, file.account))
    return _carrying_model(found, doc, path, file, own)


def _named_account(found: _Found, doc: Doc, path: Path, name: str) -> Account:
    if name in found.accounts:
        return found.accounts[name]
    if known := hosts.host(name):
        return found.accounts[_host_account(found, known)]
    raise doc.error((*path, "account"), f"no account `{name}`{nearest(name, {*found.accounts, *hosts.names()})}")


def _carrying_model(found: _Found, doc: Doc, path: Path, file: ModelFile, own: set[str]) -> Model:
    """The model carries its account's fields: an account of its own, of the model's name."""
    provider, _, upstream = (file.model or "").partition("/")
    known = hosts.host(provider)
    if not file.base_url and not file.provider and known and upstream:
        file = msgspec.structs.replace(file, model=upstream, provider=provider)
        if not own:
            account = found.accounts[_host_account(found, known)]
            return _api_model(found, doc, path, file, account)
    elif not file.base_url and not file.provider:
        raise doc.error(path, "where is it? Say `account:`, `base_url:`, `worker: vllm`, or `model: provider/model`")
    if file.name in found.accounts:
        raise doc.error((*path, "name"), f"an account `{file.name}` exists; name it by `account:`, or rename the model")
    carried = AccountFile(
        protocol=file.protocol,
        base_url=file.base_url,
        api_key=file.api_key,
        regions=file.regions,
        no_train=file.no_train,
        limits=file.limits,
        timeout_s=file.timeout_s,
        provider=file.provider,
    )
    account = _account(doc, path, file.name, carried)
    found.accounts[file.name] = account
    return _api_model(found, doc, path, file, account)


def _api_model(found: _Found, doc: Doc, path: Path, file: ModelFile, account: Account) -> Model:
    versions, live = _versions(doc, path, file, "")
    known = hosts.host(account.provider)
    upstream = next(v.model for v in versions if v.id == live)
    fields = _common(doc, path, file)
    return Model(
        **fields,
        versions=versions,
        live=live,
        account=account.name,
        price=_price(doc, path, file, account, upstream),
        regions=tuple(file.regions) or account.regions,
        no_train=file.no_train or account.no_train,
        origin=file.origin or (known.origin if known else None),
        context=file.context,
    )


def _worker_model(part: Part, path: Path, file: ModelFile) -> Model:
    doc = part.doc
    versions, live = _versions(doc, path, file, part.base)
    low, high = _replicas(doc, path, file.replicas)
    longest = file.engine.get("max_model_len")
    return Model(
        **_common(doc, path, file),
        versions=versions,
        live=live,
        worker=file.worker,
        price=_own_price(doc, path, file),
        hour_usd=None if file.hour_usd is None else float(file.hour_usd),
        min_replicas=low,
        max_replicas=high,
        engine=file.engine,
        regions=tuple(file.regions),
        no_train=True,
        origin=file.origin,
        context=file.context or (longest if isinstance(longest, int) else None),
    )


def _common(doc: Doc, path: Path, file: ModelFile) -> dict[str, object]:
    for task, share in file.quality.items():
        if not 0 <= share <= 1:
            raise doc.error((*path, "quality", task), "a quality is between 0 and 1")
    for name in ("context", "default_max_tokens"):
        value = getattr(file, name)
        if value is not None and value < 1:
            raise doc.error((*path, name), "must be 1 token or more")
    return {
        "name": file.name,
        "licence": file.licence,
        "latency": file.latency,
        "quality": {task: float(share) for task, share in file.quality.items()},
        "lacks": tuple(file.lacks),
        "default_max_tokens": file.default_max_tokens,
    }


def _replicas(doc: Doc, path: Path, given: Replicas | int | None) -> tuple[int, int]:
    where = (*path, "replicas")
    low, high = (given, given) if isinstance(given, int) else (1, 1)
    if isinstance(given, Replicas):
        low, high = given.min, max(given.min, 1) if given.max is None else given.max
    if low < 0 or high < max(low, 1):
        raise doc.error(where, f"needs 0 <= min <= max and max >= 1, found {low} and {high}")
    return low, high


def _versions(doc: Doc, path: Path, file: ModelFile, base: str) -> tuple[tuple[Version, ...], str]:
    if file.versions and file.model:
        raise doc.error((*path, "model"), "stands beside `versions:`; keep one of them")
    if not file.versions:
        if not file.model:
            raise doc.error(path, "`model:` is missing: what its provider or engine calls it")
        name = file.model.rstrip("/").rsplit("/", 1)[-1] if file.worker else file.model
        single = f"{name}@{file.revision}" if file.revision else name
        if file.live not in (None, single):
            raise doc.error((*path, "live"), f"no such version; the one there is, is `{single}`")
        return (Version(single, _weights(file.model, base), file.revision),), single
    versions = tuple(Version(v.id, _weights(v.model, base), v.revision) for v in file.versions)
    ids = [v.id for v in versions]
    if len(set(ids)) < len(ids):
        raise doc.error((*path, "versions"), "two versions have the same id")
    if file.live is None and len(ids) > 1:
        raise doc.error(path, f"say which version is live: `live:` one of {', '.join(ids[:10])}")
    live = file.live or ids[0]
    if live not in ids:
        raise doc.error((*path, "live"), f"no version `{live}`{nearest(live, ids)}")
    return versions, live


def _weights(model: str, base: str) -> str:
    """A folder (`./model`) is taken from the file's folder; a hub name stays."""
    if base and model.startswith(("./", "../", "~")):
        return os.path.normpath(os.path.join(base, os.path.expanduser(model)))
    return model


# prices


def _price(doc: Doc, path: Path, file: ModelFile, account: Account, upstream: str) -> Price:
    if file.price is not None:
        return _declared(doc, path, file.price)
    if account.provider == "sandbox":
        return prices.sandbox_price(upstream)
    known = hosts.host(account.provider)
    price = prices.table_price(known.prices if known else None, account.base_url, upstream)
    if price is None:
        raise doc.error(
            path,
            f"the price table does not know `{upstream}` at {account.provider}; add "
            "`price: {input_per_million: …, output_per_million: …}` (US dollars) or `price: free`",
        )
    return price


def _own_price(doc: Doc, path: Path, file: ModelFile) -> Price | None:
    """Own workers cost by the hour; a declared token price beside it is what the budget reckons with."""
    if file.hour_usd is not None:
        try:
            prices.nano(file.hour_usd)
        except ValueError as error:
            raise doc.error((*path, "hour_usd"), str(error)) from None
    if file.price is not None:
        return _declared(doc, path, file.price)
    if file.hour_usd is None:
        raise doc.error(path, "own workers are not free: add `hour_usd: 0.10` (one replica's hour) or `price: free`")
    return None


def _declared(doc: Doc, path: Path, price: PriceFile | str) -> Price:
    if isinstance(price, str):
        return Price(version="free")
    values: dict[str, int] = {}
    for kind in ("input", "output", "cached", "cache_write", "cache_write_1h"):
        field = f"{kind}_per_million"
        usd = getattr(price, field)
        if usd is not None:
            values[kind] = _nano(doc, (*path, "price", field), usd)
    return Price(**values, version=price.version)


def _nano(doc: Doc, path: Path, usd: int | float) -> int:
    try:
        value = prices.nano(usd)
    except ValueError as error:
        raise doc.error(path, f"not a price in US dollars: {error}") from None
    if usd > prices.MAX_USD_PER_MILLION:
        raise doc.error(path, "over a dollar a token; the unit is US dollars per million tokens")
    return value


# tiers and walls


def _tiers(found: _Found, parts: list[Part]) -> dict[int, tuple[str, ...]]:
    """Declared ones; else the models in their order, for every tier. A job that only *names* models (plain strings)
    means these, whatever tiers the catalogue has."""
    tiers: dict[int, tuple[str, ...]] = {}
    job = parts[-1]
    only_names = bool(job.file.models) and all(isinstance(m, str) for m in job.file.models)
    for part in parts:
        if part is not job and only_names and not job.file.tiers:
            continue
        for key, models in part.file.tiers.items():
            tiers[_tier(part.doc, ("tiers", key), key)] = refer(part.doc, ("tiers", key), models, found.models)
    if tiers:
        return dict(sorted(tiers.items()))
    order = tuple(dict.fromkeys(found.chosen)) if only_names else tuple(found.models)
    return dict.fromkeys(EVERY_TIER, order)


def _tier(doc: Doc, path: Path, key: str) -> int:
    if not (key.isascii() and key.isdigit() and 1 <= int(key[:4]) <= 99 and len(key) < 3):
        raise doc.error(path, "a tier is a whole number from 1 (critical) up; usual are 1, 2, 3")
    return int(key)


def refer(doc: Doc, path: Path, names: list[str], known: Mapping[str, object]) -> tuple[str, ...]:
    """Names of models that exist, each once."""
    if not names:
        raise doc.error(path, "an empty list; name at least one model")
    for i, name in enumerate(names):
        if name not in known:
            raise doc.error((*path, i), f"no model `{name[:100]}`{nearest(name, known)}")
        if name in names[:i]:
            raise doc.error((*path, i), f"`{name}` stands here twice")
    return tuple(names)


def _walls(found: _Found, part: Part) -> None:
    for name, file in part.file.walls.items():
        path: Path = ("walls", name)
        if not name or len(name) > 100:
            raise part.doc.error(path, "a wall's name has 1 to 100 characters")
        if name in found.walls:
            raise part.doc.error(path, "this wall is defined in the catalogue; a job cannot bend it")
        wall = file or WallFile()
        found.walls[name] = Wall(
            name=name,
            regions=_asked(part.doc, (*path, "regions"), wall.regions),
            origin=_asked(part.doc, (*path, "origin"), wall.origin),
            self_hosted=wall.self_hosted,
            no_train=wall.no_train,
            sample=wall.sample,
            licence=_asked(part.doc, (*path, "licence"), wall.licence),
        )


def _asked(doc: Doc, path: Path, values: list[str]) -> tuple[str, ...]:
    """An empty entry would be a wall with a hole in it."""
    for i, value in enumerate(values):
        if not value.strip():
            raise doc.error((*path, i), "empty text in a wall")
    return tuple(values)


def _unknown_wall(found: _Found, parts: list[Part]) -> str:
    said = [(p, p.file.unknown_wall) for p in parts if p.file.unknown_wall is not None]
    if len({value for _, value in said}) > 1:
        raise said[-1][0].doc.error(("unknown_wall",), "the catalogue says otherwise, and a job cannot bend it")
    choice = said[0][1] if said else "refuse"
    if choice == "public" and "public" not in found.walls:
        raise said[0][0].doc.error(("unknown_wall",), "`public` wants a wall of that name: add `public: {}` to walls")
    return choice or "refuse"


def _name(doc: Doc, path: Path, name: str) -> SpecError | None:
    if not name or len(name) > 100 or any(c.isspace() or not c.isprintable() for c in name):
        raise doc.error(path, "a name has 1 to 100 characters, no spaces among them")
    return None
