"""Models of catalogue and job file → `engine.catalog.Model`, with versions and prices."""

from __future__ import annotations

import os
from typing import Any

import msgspec

from penstock.engine.catalog import Account, Model, Price, Version
from penstock.engine.flow.tally import MAX_NAME
from penstock.jobs import hosts, prices
from penstock.jobs.spec.accounts import Found, Part, add_account, check_name, host_account
from penstock.jobs.spec.fields import AccountFile, ModelFile, PriceFile, Replicas, VersionFile
from penstock.jobs.spec.tree import Doc, Path, nearest

MAX_MODELS = 1_000


def compile_models(found: Found, part: Part, *, is_job: bool) -> None:
    if len(part.file.models) > MAX_MODELS:
        raise part.doc.error(("models",), f"more than {MAX_MODELS:,} models")
    for i, entry in enumerate(part.file.models):
        path: Path = ("models", i)
        if isinstance(entry, str):
            _named_model(found, part.doc, path, entry)
            if is_job:
                found.chosen.append(entry)
            continue
        check_name(part.doc, (*path, "name"), entry.name)
        if entry.name in found.models:
            raise part.doc.error((*path, "name"), f"the model `{entry.name}` is defined twice")
        found.models[entry.name] = _model(found, part, path, entry)


def _named_model(found: Found, doc: Doc, path: Path, text: str) -> None:
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
    name = host_account(found, known) if account is None and known else provider
    file = ModelFile(name=text, model=upstream, account=name)
    found.models[text] = _api_model(found, doc, path, file, found.accounts[name])


def _model(found: Found, part: Part, path: Path, file: ModelFile) -> Model:
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


def _named_account(found: Found, doc: Doc, path: Path, name: str) -> Account:
    if name in found.accounts:
        return found.accounts[name]
    if known := hosts.host(name):
        return found.accounts[host_account(found, known)]
    raise doc.error((*path, "account"), f"no account `{name}`{nearest(name, {*found.accounts, *hosts.names()})}")


def _carrying_model(found: Found, doc: Doc, path: Path, file: ModelFile, own: set[str]) -> Model:
    """The model carries its account's fields: an account of its own, of the model's name."""
    provider, _, upstream = (file.model or "").partition("/")
    known = hosts.host(provider)
    if not file.base_url and not file.provider and known and upstream:
        file = msgspec.structs.replace(file, model=upstream, provider=provider)
        if not own:
            account = found.accounts[host_account(found, known)]
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
    return _api_model(found, doc, path, file, add_account(found, doc, path, file.name, carried))


def _api_model(found: Found, doc: Doc, path: Path, file: ModelFile, account: Account) -> Model:
    versions, live = _versions(doc, path, file, "")
    if account.protocol == "anthropic":
        _tells_no_fingerprint(doc, path, file, "answers of the protocol `anthropic` have none: pin a dated `model`")
    price = None if file.price is None else _declared(doc, path, file.price)
    if price is None:
        places: list[Path] = [(*path, "versions", i) for i in range(len(file.versions))] or [path]
        versions = tuple(_from_table(found, doc, at, v, account) for at, v in zip(places, versions, strict=True))
    return Model(
        **_common(doc, path, file),
        versions=versions,
        live=live,
        account=account.name,
        price=price,
        regions=tuple(file.regions) or account.regions,
        no_train=file.no_train or account.no_train,
        origin=file.origin or _origin_at(account),
        context=file.context,
    )


def _origin_at(account: Account) -> str | None:
    """Behind another address than the known host's own, its name says nothing of who made a model."""
    known = hosts.by_url(account.base_url)
    return known.origin if known is not None and known.name == account.provider else None


def _worker_model(part: Part, path: Path, file: ModelFile) -> Model:
    doc = part.doc
    versions, live = _versions(doc, path, file, part.base)
    _tells_no_fingerprint(
        doc, path, file, "weights on own workers are pinned by `revision:`, a commit of 40 hex digits"
    )
    low, high = _replicas(doc, path, file.replicas)
    longest = file.engine.get("max_model_len")
    return Model(
        **_common(doc, path, file),
        versions=versions,
        live=live,
        worker=file.worker,
        price=_own_price(doc, path, file, versions),
        hour_usd=None if file.hour_usd is None else float(file.hour_usd),
        min_replicas=low,
        max_replicas=high,
        engine=file.engine,
        regions=tuple(file.regions),
        no_train=True,
        origin=file.origin,
        context=file.context or (longest if isinstance(longest, int) else None),
    )


def _common(doc: Doc, path: Path, file: ModelFile) -> dict[str, Any]:
    for task, share in file.quality.items():
        if not 0 <= share <= 1:
            raise doc.error((*path, "quality", task), "a quality is between 0 and 1")
    for name in ("context", "default_max_tokens", "tokens_per_s"):
        value = getattr(file, name)
        if value is not None and value < 1:
            raise doc.error((*path, name), "must be 1 or more")
    return {
        "name": file.name,
        "licence": file.licence,
        "latency": file.latency,
        "quality": {task: float(share) for task, share in file.quality.items()},
        "lacks": tuple(file.lacks),
        "default_max_tokens": file.default_max_tokens,
        "tokens_per_s": None if file.tokens_per_s is None else float(file.tokens_per_s),
    }


def _replicas(doc: Doc, path: Path, given: Replicas | int | None) -> tuple[int, int]:
    where = (*path, "replicas")
    low, high = (given, given) if isinstance(given, int) else (1, 1)
    if isinstance(given, Replicas):
        low, high = given.min, max(given.min, 1) if given.max is None else given.max
    if low < 0 or high < max(low, 1):
        raise doc.error(where, f"needs 0 <= min <= max and max >= 1, found {low} and {high}")
    return low, high


def _tells_no_fingerprint(doc: Doc, path: Path, file: ModelFile, why: str) -> None:
    """Of a model whose answers can't be held to one."""
    if file.fingerprint is not None:
        raise doc.error((*path, "fingerprint"), why)
    for i, version in enumerate(file.versions):
        if version.fingerprint is not None:
            raise doc.error((*path, "versions", i, "fingerprint"), why)


def _fingerprint(doc: Doc, path: Path, said: str | None) -> str | None:
    if said is not None and not 0 < len(said) <= MAX_NAME:
        raise doc.error((*path, "fingerprint"), f"1 to {MAX_NAME} characters, as `system_fingerprint` of an answer")
    return said


def _versions(doc: Doc, path: Path, file: ModelFile, base: str) -> tuple[tuple[Version, ...], str]:
    if file.versions and file.model:
        raise doc.error((*path, "model"), "stands beside `versions:`; keep one of them")
    if file.versions and file.fingerprint is not None:
        raise doc.error((*path, "fingerprint"), "stands beside `versions:`; each of them says its own")
    if not file.versions:
        if not file.model:
            raise doc.error(path, "`model:` is missing: what its provider or engine calls it")
        name = file.model.rstrip("/").rsplit("/", 1)[-1] if file.worker else file.model
        single = f"{name}@{file.revision}" if file.revision else name
        if file.live not in (None, single):
            raise doc.error((*path, "live"), f"no such version; the one there is, is `{single}`")
        version = Version(
            single,
            _weights(file.model, base),
            file.revision,
            on_other_model=file.on_other_model,
            fingerprint=_fingerprint(doc, path, file.fingerprint),
        )
        return (version,), single
    versions = tuple(_version(doc, (*path, "versions", i), v, file, base) for i, v in enumerate(file.versions))
    ids = [v.id for v in versions]
    if len(set(ids)) < len(ids):
        raise doc.error((*path, "versions"), "two versions have the same id")
    if file.live is None and len(ids) > 1:
        raise doc.error(path, f"say which version is live: `live:` one of {', '.join(ids[:10])}")
    live = file.live or ids[0]
    if live not in ids:
        raise doc.error((*path, "live"), f"no version `{live}`{nearest(live, ids)}")
    return versions, live


def _version(doc: Doc, path: Path, file: VersionFile, model: ModelFile, base: str) -> Version:
    price = None if file.price is None else _declared(doc, path, file.price)
    refuses = file.on_other_model or model.on_other_model
    pinned = _fingerprint(doc, path, file.fingerprint)
    return Version(file.id, _weights(file.model, base), file.revision, price, refuses, pinned)


def _weights(model: str, base: str) -> str:
    """A folder (`./model`) is taken from the file's folder; a hub name stays."""
    if base and model.startswith(("./", "../", "~")):
        return os.path.normpath(os.path.join(base, os.path.expanduser(model)))
    return model


def _from_table(found: Found, doc: Doc, path: Path, version: Version, account: Account) -> Version:
    """With the table's price of what it is called at the provider, unless the file says one."""
    if version.price is not None:
        return version
    known = None if account.name in found.namesakes else hosts.host(account.provider)
    if hosts.is_sandbox(account.base_url) or (known is not None and known.name == "sandbox"):
        return msgspec.structs.replace(version, price=prices.sandbox_price(version.model))
    try:
        price = prices.table_price(known.prices if known else None, account.base_url, version.model)
    except prices.Uncounted as error:
        raise doc.error(
            path,
            f"{account.provider} charges calls of `{version.model}` by more than their tokens, and the price table "
            f"can't tell how much ({error}); add `price: {{input_per_million: …, output_per_million: …, "
            "per_request: …}` (US dollars)",
        ) from None
    if price is None and account.name in found.namesakes:
        raise doc.error(
            path,
            f"whether {account.base_url} charges what {account.name} does for `{version.model}` is not known; say "
            f"`provider: {account.name}` in the account, or add "
            "`price: {input_per_million: …, output_per_million: …}` (US dollars) or `price: free`",
        )
    if price is None:
        raise doc.error(
            path,
            f"the price table does not know `{version.model}` at {account.provider}; add "
            "`price: {input_per_million: …, output_per_million: …}` (US dollars) or `price: free`",
        )
    return msgspec.structs.replace(version, price=price)


def _own_price(doc: Doc, path: Path, file: ModelFile, versions: tuple[Version, ...]) -> Price | None:
    """Own workers cost by the hour; a declared token price beside it is what the budget reckons with."""
    if file.hour_usd is not None:
        try:
            prices.nano(file.hour_usd)
        except ValueError as error:
            raise doc.error((*path, "hour_usd"), str(error)) from None
    if file.price is not None:
        return _declared(doc, path, file.price)
    if file.hour_usd is None and any(version.price is None for version in versions):
        raise doc.error(path, "own workers are not free: add `hour_usd: 0.10` (one replica's hour) or `price: free`")
    return None


def _declared(doc: Doc, path: Path, price: PriceFile | str) -> Price:
    if isinstance(price, str):
        return Price(version="free")
    values: dict[str, Any] = {}
    for kind in ("input", "output", "cached", "cache_write", "cache_write_1h"):
        field = f"{kind}_per_million"
        usd = getattr(price, field)
        if usd is not None:
            values[kind] = _nano(doc, (*path, "price", field), usd)
    if price.per_request > prices.MAX_USD_PER_REQUEST:
        raise doc.error(
            (*path, "price", "per_request"), "over a dollar a request; the unit is US dollars of one request"
        )
    values["per_request"] = _nano(doc, (*path, "price", "per_request"), price.per_request)
    return Price(**values, version=price.version)


def _nano(doc: Doc, path: Path, usd: int | float) -> int:
    try:
        value = prices.nano(usd)
    except ValueError as error:
        raise doc.error(path, f"not a price in US dollars: {error}") from None
    if usd > prices.MAX_USD_PER_MILLION:
        raise doc.error(path, "over a dollar a token; the unit is US dollars per million tokens")
    return value
