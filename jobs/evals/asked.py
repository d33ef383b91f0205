"""What an evaluation is asked to do: kept beside its rows, so that the same name goes on with the same thing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import msgspec

from penstock.connectors.reading.members import refusal
from penstock.engine.catalog import Catalog
from penstock.engine.errors import Corrupt, SpecError
from penstock.engine.policy import Scorer, Task
from penstock.engine.quality import scorer_name
from penstock.jobs.spec.asked import unknown
from penstock.jobs.spec.digest import changed
from penstock.workers.here import folder_here

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_LATER = {"confidence", "within", "same_within"}
"""What may be asked anew of rows that were answered already."""


EXACT = Scorer("exact")
"""Where the task names no scorer."""


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Another prompt or other parameters than the task's. `prompt`: a template, or `system` and `user` of one."""

    prompt: str | dict[str, str] | None = None
    params: dict[str, Any] | None = None


class Asked(msgspec.Struct, frozen=True):
    """`models`: `model@version`, each version said. `variants`: name → what is different; the task as it stands has
    the empty name."""

    job: str
    task: str
    models: tuple[str, ...]
    variants: dict[str, Variant]
    scorer: str
    slices: tuple[str, ...] = ()
    samples: bool = False
    """Quality samples of the job's run are its rows."""
    beside: bool = False
    """So are the source's."""
    rows: int | None = None
    confidence: float = 0.95
    within: float | None = None
    same_within: float | None = None
    """The leader is better than no other by more than this: that may be shown, too."""

    @property
    def candidates(self) -> tuple[tuple[str, str], ...]:
        """(model, variant), in the order of the table."""
        return tuple((model, variant) for model in self.models for variant in self.variants)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{model} {variant}".strip() for model, variant in self.candidates)


def deciding(task: Task, scorer: str) -> Scorer:
    """The task's first scorer of that name: what decides."""
    return next(each for each in task.scorers or (EXACT,) if scorer_name(each) == scorer)


def folder(state: str, name: str) -> Path:
    """Where the rows and answers of an evaluation are kept on this machine. Raises `SpecError` for a name that is none,
    and as `folder_here`."""
    if not _NAME.fullmatch(name):
        raise SpecError(f"an evaluation's name has letters, digits and _ . -, not {name[:60]!r}")
    return folder_here(state) / "evals" / name


def models_of(catalog: Catalog, given: tuple[str, ...]) -> tuple[str, ...]:
    """`small`, `small@v2` → with the version said. Raises `SpecError` where one isn't there, or comes twice."""
    found: list[str] = []
    for text in given:
        name, version = catalog.parted(text)
        if name not in catalog.models:
            raise SpecError(unknown(text, catalog))
        found.append(f"{name}@{version or catalog.models[name].live}")
    if len(set(found)) != len(found):
        raise SpecError(f"a candidate comes twice: {', '.join(found)}")
    return tuple(found)


def read_variant(path: str) -> Variant:
    """From YAML or JSON: `prompt:` and `params:`, as a task has them. Raises `SpecError`."""
    try:
        variant = msgspec.yaml.decode(Path(path).read_bytes(), type=Variant)
    except (OSError, msgspec.DecodeError, ValueError) as error:
        raise SpecError(f"a variant has `prompt` and `params`: {error}", path=path) from error
    if isinstance(variant.prompt, dict) and not variant.prompt.keys() <= {"system", "user"}:
        raise SpecError("a variant's prompt is a text, or has `system` and `user`", path=path)
    for name, value in (variant.params or {}).items():
        if (why := refusal(name, value)) is not None:
            raise SpecError(f"the parameter {name} can't be sent: {why}", path=path)
    return variant


def recalled(place: Path) -> Asked | None:
    """What was asked under this name; None: nothing yet. Raises `Corrupt`."""
    try:
        return msgspec.json.decode((place / "eval.json").read_bytes(), type=Asked)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise Corrupt(f"{place / 'eval.json'} can't be read: {error}") from error


def check_same(name: str, before: Asked, now: Asked) -> None:
    """Raises `SpecError` that names what differs."""
    old, new = (cast("Mapping[str, object]", msgspec.to_builtins(each)) for each in (before, now))
    other = [field for field in new if field not in _LATER and old.get(field) != new[field]]
    if other:
        raise SpecError(
            f"the evaluation {name} was asked for another {', '.join(other)}: give this one another name "
            f"(--name), start over with --fresh, or see what it found with `penstock eval show {name}`"
        )


def check_unchanged(name: str, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """`before`, `now`: parts of the job, and their hashes. Raises `SpecError` that names what differs."""
    told = changed(before, now)
    if told:
        raise SpecError(
            f"the job has changed since the evaluation {name} was begun: {', '.join(told)}. Rows that have ended would "
            "keep their old answers and scores: start over with --fresh, or give this one another name (--name); "
            f"`penstock eval show {name}` tells what it found"
        )
