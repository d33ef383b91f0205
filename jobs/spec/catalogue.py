"""Accounts, models, tiers and walls of catalogue and job file → `engine.catalog.Catalog`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from penstock.engine.catalog import Catalog, Model, Wall
from penstock.jobs import hosts
from penstock.jobs.spec.accounts import Found, Part, compile_accounts
from penstock.jobs.spec.fields import WallFile
from penstock.jobs.spec.models import compile_models
from penstock.jobs.spec.tree import Doc, Path, nearest

EVERY_TIER = (1, 2, 3)


def compile_catalog(parts: list[Part]) -> Catalog:
    """`parts`: the catalogue (if any), then the job. Raises `SpecError`."""
    found = Found()
    for part in parts:
        compile_accounts(found, part)
    for part in parts:
        compile_models(found, part, is_job=part is parts[-1])
        if part is not parts[-1]:
            _refuse_led_elsewhere(found, parts[-1])
    for part in parts:
        _walls(found, part)
    job = parts[-1]
    if not found.models:
        raise job.doc.error(("models",), "no model is named; add `models: [provider/model]`")
    _refuse_doubtful(job.doc, found.models)
    return Catalog(
        accounts=found.accounts,
        models=found.models,
        tiers=_tiers(found, parts),
        walls=found.walls,
        unknown_wall=_unknown_wall(found, parts),
    )


def _refuse_led_elsewhere(found: Found, job: Part) -> None:
    """`found`: what the catalogue has. A model of it that names a known host means that host: its regions, its price
    and what it promises are the host's. The job may bring the key and the limits, or a proxy on this machine."""
    meant = {model.account for model in found.models.values()}
    for name in job.file.accounts:
        known, url = hosts.host(name), found.accounts[name].base_url
        if known is not None and name in meant and not (known.owns(url) or hosts.is_here(url)):
            raise job.doc.error(
                ("accounts", name),
                f"models of the catalogue are at the known host `{name}`, and a job cannot lead them elsewhere; give "
                "this account another name",
            )


def _refuse_doubtful(doc: Doc, models: Mapping[str, Model]) -> None:
    """Shadows, arms and candidates are named as `model` or `model@version`, and both names may hold an `@`."""
    meant = {name: f"model {name}" for name in models}
    for model in models.values():
        for version in model.versions:
            name, told = f"{model.name}@{version.id}", f"version {version.id} of model {model.name}"
            if (other := meant.setdefault(name, told)) != told:
                raise doc.error(("models",), f"`{name}` may be {other} or {told}: give one of them another name or id")


def _tiers(found: Found, parts: list[Part]) -> dict[int, tuple[str, ...]]:
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


def _walls(found: Found, part: Part) -> None:
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


def _unknown_wall(found: Found, parts: list[Part]) -> Literal["refuse", "public"]:
    choice: Literal["refuse", "public"] | None = None
    for part in parts:
        said = part.file.unknown_wall
        if said is not None and choice is not None and said != choice:
            raise part.doc.error(("unknown_wall",), "the catalogue says otherwise, and a job cannot bend it")
        if said == "public" and "public" not in found.walls:
            raise part.doc.error(("unknown_wall",), "`public` wants a wall of that name: add `public: {}` to walls")
        choice = said or choice
    return choice or "refuse"
