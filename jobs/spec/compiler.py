"""Job file, catalogue and variables → `workers.runspec.RunSpec`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Literal

import msgspec

from penstock.connectors.settings import Connection, FilesSource, KafkaSource, Row, SourceSettings, with_replies
from penstock.engine.budget import Budget
from penstock.engine.catalog import Catalog
from penstock.engine.errors import SpecError
from penstock.engine.fingerprints import policy_version
from penstock.engine.items import Attributes
from penstock.engine.policy import Experiment, Policy, Task
from penstock.engine.pricing import usd_to_nano
from penstock.engine.review import Review
from penstock.jobs.prices import nano
from penstock.jobs.spec.accounts import Part
from penstock.jobs.spec.asked import share
from penstock.jobs.spec.catalogue import compile_catalog
from penstock.jobs.spec.decode import decode
from penstock.jobs.spec.digest import digest, fingerprint, run_id
from penstock.jobs.spec.experiments import compile_experiments
from penstock.jobs.spec.fields import BudgetFile, CatalogFile, JobFile, RowFile
from penstock.jobs.spec.places import resolve
from penstock.jobs.spec.places.connections import compile_connections
from penstock.jobs.spec.places.files import absolute, scheme
from penstock.jobs.spec.rules import compile_rules
from penstock.jobs.spec.tasks import compile_tasks
from penstock.jobs.spec.templates import check_template
from penstock.jobs.spec.tree import MAX_BYTES, Doc, nearest, parse
from penstock.jobs.spec.variables import check_used, fill_tree, settle
from penstock.workers.runspec import Execution, RunSpec

OnDuplicate = Literal["allow", "dead_letter"]
_FILLED = ("source", "sinks", "state", "catalog", "feedback")
"""Where `{{ vars.x }}` is replaced before anything else is read."""
ATTRIBUTES = tuple(n.removesuffix("_json") for n in Attributes.__struct_fields__)


def read(path: str) -> Doc:
    """Raises `SpecError` where the file can't be read."""
    try:
        with open(path, "rb") as file:
            return parse(file.read(MAX_BYTES + 1), path)
    except OSError as error:
        raise SpecError(f"can't be read: {error.strerror or error}", path=path) from error
    except ValueError as error:  # a NUL in the path
        raise SpecError("not a usable path", path=path[:100]) from error


def compile_job(doc: Doc, base: str, sets: Mapping[str, str], default_name: str) -> RunSpec:
    """`base`: the folder that paths start from, absolute. Raises `SpecError`."""
    values = settle(doc, sets)
    filled = {k: fill_tree(doc, (k,), v, values) if k in _FILLED else v for k, v in doc.data.items()}
    doc = msgspec.structs.replace(doc, data=filled)
    job = decode(doc, JobFile)
    parts = [*_shared(doc, job, base), Part(doc, job, base)]
    catalog = compile_catalog(parts)
    state = resolve.state(doc, job.state, base)
    tasks = compile_tasks(doc, job, catalog, values, state)
    name = _name(doc, job.name, default_name)
    policy = _policy(doc, job, catalog, tasks, compile_experiments(doc, job, name, catalog, tasks, values))
    site = resolve.Site(doc, base, compile_connections(parts))
    source = resolve.source(site, job.source)
    row = _row(doc, job.row, values)
    _prompts_needed(doc, source, tasks)
    sinks = resolve.sinks(site, job.sinks, row.keep)
    if "review" in sinks and job.review is None:
        raise doc.error(("sinks", "review"), "nothing is chosen for it; say which results with `review:`")
    resolve.check_not_input(doc, source, sinks, state)
    resolve.check_one_shape(doc, source, sinks["results"], job.shape)
    sinks = with_replies(source, sinks)
    return RunSpec(
        run_id=run_id(name, values),
        name=name,
        vars=values,
        source=source,
        shape=job.shape,
        row=row,
        catalog=catalog,
        policy=policy,
        sinks=sinks,
        budgets=(*_budgets(doc, job.budgets), *_exploring(policy)),
        state=state,
        on_duplicate=_on_duplicate(doc, job.on_duplicate, source),
        max_dead_letters=_fuse(doc, job.max_dead_letters),
        execution=_execution(doc, job.execution),
        fingerprint=fingerprint(policy, catalog, row, job.shape),
        feedback=None if job.feedback is None else resolve.feedback(site, job.feedback),
        review=_review(doc, job.review),
        scorer_path=base if any(s.function for t in tasks.values() for s in t.scorers) else None,
    )


def compile_shared(doc: Doc, base: str) -> Catalog:
    """A catalogue file by itself. Raises `SpecError`."""
    part = Part(doc, decode(doc, CatalogFile), base)
    compile_connections([part])
    return compile_catalog([part])


def connections_of(doc: Doc, base: str) -> dict[str, Connection]:
    """Of a job file with its catalogue, or of a catalogue file. Raises `SpecError`."""
    if "source" not in doc.data and "catalog" not in doc.data:
        return compile_connections([Part(doc, decode(doc, CatalogFile), base)])
    job = decode(doc, JobFile)
    return compile_connections([*_shared(doc, job, base), Part(doc, job, base)])


def _shared(doc: Doc, job: JobFile, base: str) -> list[Part]:
    if job.catalog is None:
        return []
    if kind := scheme(job.catalog):
        raise doc.error(("catalog",), f"expected a path, not a {kind}:// address")
    path = absolute(base, job.catalog)
    if not os.path.isfile(path):
        raise doc.error(("catalog",), f"no such file: {path}")
    shared = read(path)
    return [Part(shared, decode(shared, CatalogFile), os.path.dirname(path))]


def _policy(
    doc: Doc, job: JobFile, catalog: Catalog, tasks: dict[str, Task], experiments: tuple[Experiment, ...]
) -> Policy:
    policy = Policy(
        tasks=tasks,
        default_task=next(iter(tasks)) if len(tasks) == 1 else None,
        rules=compile_rules(doc, job.rules, catalog, tasks),
        experiments=experiments,
    )
    if job.max_attempts is not None:
        if not 1 <= job.max_attempts <= 100:
            raise doc.error(("max_attempts",), "expected 1 to 100")
        policy = msgspec.structs.replace(policy, max_attempts=job.max_attempts)
    return msgspec.structs.replace(policy, version=policy_version(catalog, policy))


def _row(doc: Doc, file: RowFile | None, values: Mapping[str, str]) -> Row:
    if file is None:
        return Row()
    attributes: dict[str, str] = {}
    for name, template in file.attributes.items():
        path = ("row", "attributes", name)
        if name not in ATTRIBUTES:
            raise doc.error(path, f"no attribute of an item{nearest(name, ATTRIBUTES)}")
        text = str(template).lower() if isinstance(template, bool) else str(template)
        check_used(doc, path, text, values)
        attributes[name] = check_template(doc, path, text)
    row_id = None if file.id is None else check_template(doc, ("row", "id"), file.id)
    return Row(id=row_id, keep=None if file.keep is None else tuple(file.keep), attributes=attributes)


def _prompts_needed(doc: Doc, source: SourceSettings, tasks: dict[str, Task]) -> None:
    """A table's rows are no requests: without a prompt nothing could be asked."""
    if not resolve.is_table(source):
        return
    for name, task in tasks.items():
        if task.prompt is None:
            path = ("tasks", name) if "tasks" in doc.data else ()
            raise doc.error(path, 'rows of a table need a `prompt:`, for example "{{ text }}"')


def _name(doc: Doc, name: str | None, default: str) -> str:
    name = default if name is None else name
    if not name.strip() or len(name) > 200 or not name.isprintable():
        raise doc.error(("name",), "a name has 1 to 200 printable characters")
    return name


def _budgets(doc: Doc, given: list[BudgetFile] | BudgetFile | None) -> tuple[Budget, ...]:
    files = [] if given is None else ([given] if isinstance(given, BudgetFile) else given)
    return tuple(_budget(doc, i if isinstance(given, list) else None, file) for i, file in enumerate(files))


def _budget(doc: Doc, index: int | None, file: BudgetFile) -> Budget:
    path = ("budgets",) if index is None else ("budgets", index)
    try:
        limit = nano(file.usd)
    except ValueError as error:
        raise doc.error((*path, "usd"), f"not an amount in US dollars: {error}") from None
    if limit > 10**18:
        raise doc.error((*path, "usd"), "more than a billion dollars")
    if file.tenant == "":
        raise doc.error((*path, "tenant"), 'empty; name a tenant, or "*" for one such budget each')
    return Budget(limit_nano=limit, per=None if file.per == "run" else file.per, tenant=file.tenant, role=file.role)


def _exploring(policy: Policy) -> tuple[Budget, ...]:
    """What exploring may cost is a budget like any other: leased before each call."""
    usd = sum(task.explore.usd for task in policy.tasks.values() if task.explore is not None)
    return (Budget(usd_to_nano(usd), role="explore"),) if usd else ()


def _on_duplicate(doc: Doc, given: OnDuplicate | None, source: SourceSettings) -> OnDuplicate:
    """Files are finite and can be looked through first; streams and callers' tables are not refused by label."""
    if given == "dead_letter" and isinstance(source, KafkaSource) and source.until == "forever":
        raise doc.error(
            ("on_duplicate",), "labels of a stream without an end can't be looked through; set `until: end`"
        )
    return given or ("dead_letter" if isinstance(source, FilesSource) else "allow")


def _fuse(doc: Doc, value: int | float | None) -> int | float | None:
    if value is not None and (value < 0 or (isinstance(value, float) and value > 1)):
        raise doc.error(("max_dead_letters",), "expected a count (0, 10) or a share of the items (0.01)")
    return value


def _execution(doc: Doc, given: Execution | None) -> Execution:
    execution = given or Execution()
    for name in Execution.__struct_fields__:
        value = getattr(execution, name)
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise doc.error(("execution", name), "must be 1 or more")
        if isinstance(value, float) and value < 0:
            raise doc.error(("execution", name), "must be a number of seconds, 0 or more")
    if execution.discover_s < 1:
        raise doc.error(("execution", "discover_s"), "must be 1 or more")
    if (execution.lanes or 1) > 64:
        raise doc.error(("execution", "lanes"), "at most 64 lanes")
    return execution


def _review(doc: Doc, given: Review | None) -> Review | None:
    if given is not None:
        share(doc, ("review", "share"), given.share)
        share(doc, ("review", "low_confidence"), given.low_confidence)
    return given


def stem(path: str) -> str:
    return FilePath(path).stem or "job"


def content_name(prefix: str, data: Mapping[str, object]) -> str:
    """A name for a job without one: the same content is the same run, another content another."""
    return f"{prefix}-{digest(data)[:6]}"
