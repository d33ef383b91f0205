"""`policy_version`: a hash of all that can change a route, so that a record says by which policy it was sent."""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from penstock.engine.catalog import Account, Catalog, Model, Price, Version, Wall
from penstock.engine.policy import Policy


class _ModelPart(msgspec.Struct, frozen=True):
    """What of a model a router looks at. Engine settings, replicas, upstream limits and keys are not in it."""

    name: str
    versions: tuple[Version, ...]
    live: str
    account: str | None
    worker: str | None
    price: Price | None
    hour_usd: float | None
    regions: tuple[str, ...]
    origin: str | None
    licence: str | None
    latency: str
    no_train: bool
    quality: dict[str, float]
    context: int | None
    lacks: tuple[str, ...]
    default_max_tokens: int | None


class _AccountPart(msgspec.Struct, frozen=True):
    regions: tuple[str, ...]
    no_train: bool


class _Whole(msgspec.Struct, frozen=True):
    policy: Policy
    accounts: dict[str, _AccountPart]
    models: dict[str, _ModelPart]
    tiers: dict[str, tuple[str, ...]]
    walls: dict[str, Wall]
    unknown_wall: str


def policy_version(catalog: Catalog, policy: Policy) -> str:
    """12 hex digits; the same for the same decisions, whatever the order in which names were written."""
    whole = _Whole(
        policy=msgspec.structs.replace(policy, version=""),
        accounts={name: _account(account) for name, account in catalog.accounts.items()},
        models={name: _model(model) for name, model in catalog.models.items()},
        tiers={str(tier): names for tier, names in catalog.tiers.items()},
        walls=catalog.walls,
        unknown_wall=catalog.unknown_wall,
    )
    return short_hash(msgspec.json.encode(whole, order="deterministic"))


def short_hash(data: bytes) -> str:
    return blake2b(data, digest_size=6).hexdigest()


def _account(account: Account) -> _AccountPart:
    return _AccountPart(account.regions, account.no_train)


def _model(model: Model) -> _ModelPart:
    return _ModelPart(*(getattr(model, field) for field in _ModelPart.__struct_fields__))
