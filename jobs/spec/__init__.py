"""The job file and the catalogue: read, checked with line numbers, and compiled into a `RunSpec`.

`load` for a file, `inline` for a command without one, `from_mapping` for Python. All raise `SpecError`,
and nothing else, for whatever a person may have written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import msgspec

from penstock.connectors.settings import Connection
from penstock.engine.catalog import Catalog
from penstock.engine.errors import SpecError
from penstock.engine.policy import Policy
from penstock.jobs.spec import compiler
from penstock.jobs.spec.describe import describe, missing_secrets, warnings
from penstock.jobs.spec.digest import changed
from penstock.jobs.spec.fields import schema
from penstock.jobs.spec.places import resolve
from penstock.jobs.spec.tree import from_python, nearest
from penstock.workers.runspec import DEFAULT_STATE, RunSpec

__all__ = [
    "changed",
    "describe",
    "from_mapping",
    "inline",
    "load",
    "load_catalog",
    "load_connection",
    "load_either",
    "missing_secrets",
    "schema",
    "warnings",
]


def load(
    path: str | os.PathLike[str],
    *,
    sets: Mapping[str, str] | None = None,
    limit: int | None = None,
    state: str | None = None,
) -> RunSpec:
    """Read a job file. `sets`: what `--set` gave; `limit`: so many items only; `state`: instead of the file's.

    Raises `SpecError` with file and line.
    """
    name = os.fspath(path)
    doc = compiler.read(name)
    base = os.path.dirname(os.path.abspath(name))
    return _finish(compiler.compile_job(doc, base, sets or {}, compiler.stem(name)), limit, state)


def load_catalog(path: str | os.PathLike[str], *, sets: Mapping[str, str] | None = None) -> Catalog:
    """The catalogue of a job file, or a catalogue file by itself (it has no `source`). Raises `SpecError`."""
    return load_either(path, sets=sets)[0]


def load_either(
    path: str | os.PathLike[str], *, sets: Mapping[str, str] | None = None
) -> tuple[Catalog, Policy | None]:
    """The same, with the policy where it is a job file. Raises `SpecError`."""
    name = os.fspath(path)
    doc = compiler.read(name)
    if "source" in doc.data or "catalog" in doc.data:
        spec = load(path, sets=sets)
        return spec.catalog, spec.policy
    return compiler.compile_shared(doc, os.path.dirname(os.path.abspath(name))), None


def load_connection(path: str | os.PathLike[str], name: str) -> Connection:
    """A connection that a job file (or its catalogue) defines under `connections:`. Raises `SpecError`."""
    doc = compiler.read(os.fspath(path))
    known = compiler.connections_of(doc, os.path.dirname(os.path.abspath(path)))
    if name not in known:
        raise SpecError(f"no connection `{name[:100]}`{nearest(name, known)}", path=doc.name)
    return known[name]


def load_state(path: str | os.PathLike[str]) -> str | None:
    """The state of a job file, whole; None: it is a catalogue, which has none. Raises `SpecError`, also where the
    state's name depends on the job's vars."""
    doc = compiler.read(os.fspath(path))
    said = doc.data.get("state", DEFAULT_STATE if "source" in doc.data else None)
    if not isinstance(said, str):
        return None
    if "{{" in said:
        raise doc.error(("state",), "depends on vars: say which one by --state")
    return resolve.state(doc, said, os.path.dirname(os.path.abspath(path)))


def from_mapping(
    data: Mapping[str, object],
    base_dir: str | os.PathLike[str] = ".",
    *,
    sets: Mapping[str, str] | None = None,
    limit: int | None = None,
    state: str | None = None,
) -> RunSpec:
    """The same job as a mapping. Paths start from `base_dir`. Without `name`, the content names the run."""
    doc = from_python(data, "job")
    name = compiler.content_name("job", doc.data)
    return _finish(compiler.compile_job(doc, os.path.abspath(base_dir), sets or {}, name), limit, state)


def inline(
    source: str,
    prompt: str | None,
    models: Sequence[str],
    output: str,
    *,
    choices: Sequence[str] | None = None,
    extra: Mapping[str, object] | None = None,
    limit: int | None = None,
) -> RunSpec:
    """`penstock run messages.csv --prompt … --model … -o labels.parquet`: a job without a file.

    `output`: where the results go. `choices`: the answers allowed. `extra`: further fields of the job file (`params`,
    `budgets`, `state`, …). The same command is the same run; another prompt or model is another.
    """
    given: dict[str, object] = {"source": source, "models": list(models), "sinks": output, **(extra or {})}
    if prompt is not None:
        given["prompt"] = prompt
    if choices:
        given["output"] = {"choices": list(choices)}
    doc = from_python(given, "command")
    name = compiler.content_name(compiler.stem(source), doc.data)
    return _finish(compiler.compile_job(doc, os.getcwd(), {}, name), limit, None)


def _finish(spec: RunSpec, limit: int | None, state: str | None) -> RunSpec:
    if limit is not None:
        if limit < 1:
            raise SpecError("--limit must be 1 or more")
        spec = msgspec.structs.replace(spec, limit=limit)
    if state is not None:
        spec = msgspec.structs.replace(spec, state=os.path.abspath(state) if "://" not in state else state)
    return spec
