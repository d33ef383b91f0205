"""What a request may ask, wherever in the job file it is said: templates, parameters, choices."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from penstock.connectors.reading.members import refusal
from penstock.engine.catalog import Catalog, splits
from penstock.jobs.spec.templates import check_template
from penstock.jobs.spec.tree import Doc, Path, nearest
from penstock.jobs.spec.variables import check_used

MAX_CHOICES = 1_000
_RESERVED = {
    "model": "models: or rules:",
    "messages": "prompt:",
    "stream": "nothing: answers are collected whole",
    "metadata": "row.attributes",
    "response_format": "output:",
    "user": "row.attributes (subject)",
}


class Context(msgspec.Struct, frozen=True):
    doc: Doc
    catalog: Catalog
    vars: Mapping[str, str]
    state: str = ""
    """The state's URL."""


def unknown(target: str, catalog: Catalog) -> str:
    """Why `target` is no model of the catalogue, nor a version of one, in words."""
    for name, version in splits(target):
        if name in catalog.models:
            versions = [each.id for each in catalog.models[name].versions]
            return f"model {name} has no version `{version[:100]}`{nearest(version, versions)}"
    name = target.partition("@")[0]
    return f"no model `{name[:100]}`{nearest(name, catalog.models)}"


def template(at: Context, path: Path, text: str) -> str:
    if not text.strip():
        raise at.doc.error(path, "an empty prompt")
    check_used(at.doc, path, text, at.vars)
    return check_template(at.doc, path, text)


def share(doc: Doc, path: Path, value: int | float | None) -> float | None:
    if value is not None and not 0 <= value <= 1:
        raise doc.error(path, "expected a share between 0 and 1")
    return None if value is None else float(value)


def choices(doc: Doc, path: Path, given: list[str | int | bool]) -> tuple[str, ...]:
    words = tuple(str(c).lower() if isinstance(c, bool) else str(c) for c in given)
    if not 2 <= len(words) <= MAX_CHOICES:
        raise doc.error(path, f"wants 2 to {MAX_CHOICES:,} choices, found {len(words)}")
    for i, word in enumerate(words):
        if not word.strip() or len(word) > 1_000:
            raise doc.error((*path, i), "a choice has 1 to 1,000 characters")
    seen: set[str] = set()
    for i, word in enumerate(words):
        if word.strip() in seen:
            raise doc.error((*path, i), f"`{word[:60]}` stands here twice")
        seen.add(word.strip())
    return words


def checked_params(doc: Doc, path: Path, params: dict[str, Any]) -> dict[str, Any]:
    for name, place in _RESERVED.items():
        if name in params:
            raise doc.error((*path, name), f"can't be a parameter; its place is {place}")
    for name, value in params.items():
        if (why := refusal(name, value)) is not None:
            raise doc.error((*path, name), f"can't be sent: {why}")
    for name in ("max_tokens", "max_completion_tokens", "n"):
        value = params.get(name)
        if value is not None and not (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
            raise doc.error((*path, name), "expected a whole number, 1 or more")
    if "max_tokens" in params and "max_completion_tokens" in params:
        raise doc.error((*path, "max_completion_tokens"), "says the same as max_tokens; keep one")
    heat = params.get("temperature")
    if heat is not None and (isinstance(heat, bool) or not isinstance(heat, (int, float)) or not 0 <= heat <= 2):
        raise doc.error((*path, "temperature"), "expected a number from 0 to 2")
    known = {"max_tokens", "temperature", "top_p", "stop", "seed"}
    for name in params:
        close = nearest(name, known)
        if name not in known and "did you mean" in close and name.lower().replace("-", "_") in known:
            raise doc.error((*path, name), f"unknown parameter{close}")
    return params


_CEILINGS = frozenset({"max_tokens", "max_completion_tokens"})


def over(params: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A task's parameters under those of an arm or a variant. A ceiling of theirs takes the place of the task's, under
    whichever name: of two the lower one would be sent, whoever said it."""
    gone = _CEILINGS - own.keys() if not _CEILINGS.isdisjoint(own) else ()
    return {**{name: value for name, value in params.items() if name not in gone}, **own}


def ceiling(params: dict[str, Any]) -> int | None:
    return params.get("max_tokens") or params.get("max_completion_tokens")


def as_json(params: dict[str, Any]) -> bytes:
    return json.dumps(params, ensure_ascii=False, separators=(",", ":")).encode()
