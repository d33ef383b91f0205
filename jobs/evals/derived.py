"""The run of an evaluation: the job with its candidates pinned. Each row's first answer comes from the first candidate;
the others are its shadows, so that pairs come by construction and one commit holds a row whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from penstock.connectors.settings import FilesSink, FilesSource
from penstock.engine.budget import Budget
from penstock.engine.catalog import Catalog
from penstock.engine.errors import SpecError
from penstock.engine.fingerprints import policy_version
from penstock.engine.judging import PROMPT_VERSION
from penstock.engine.policy import Policy, Prompt, Scorer, Shadow, Task
from penstock.engine.quality import scorer_name, scorer_version
from penstock.jobs.evals.asked import EXACT, Asked, Variant
from penstock.jobs.evals.dataset import CARRIED, EXPECTED, ROW, TASK, column_of, task_name
from penstock.jobs.evals.home import mark_of
from penstock.jobs.spec.asked import ceiling, over
from penstock.jobs.spec.digest import digest, fingerprint, run_id
from penstock.workers.runspec import RunSpec

WINDOW = 128
"""Rows under way: one that is under way when a person stops the run ends without the answers it still lacked, and does
not count. Rows count in order, so one lane reads them."""


def spec_of(base: RunSpec, asked: Asked, place: Path, name: str, *, requests: bool) -> RunSpec:
    """Raises `SpecError` where a variant makes no sense."""
    if requests and len(asked.variants) > 1:
        raise SpecError("variants need rows: these are requests, which say their prompt and parameters themselves")
    catalog = pinned(base.catalog, asked.models)
    tasks = {
        task_name(asked.task, variant): _task(base, variant, what, asked) for variant, what in asked.variants.items()
    }
    policy = Policy(tasks=tasks, default_task=None, max_attempts=base.policy.max_attempts)
    policy = msgspec.structs.replace(policy, version=policy_version(catalog, policy))
    row = msgspec.structs.replace(base.row, id=f"{{{{ {ROW} }}}}", keep=(), attributes=_attributes())
    sinks = {sink: FilesSink(str(place / f"{sink}.jsonl")) for sink in base.sinks if sink != "review"}
    return msgspec.structs.replace(
        base,
        run_id=run_id_of(name, place),
        name=_named(name),
        source=FilesSource(str(place / "rows.jsonl"), "openai-batch" if requests else "jsonl"),
        shape=None,
        row=row,
        catalog=catalog,
        policy=policy,
        sinks=sinks,
        budgets=tuple(b for b in base.budgets if b.per is not None or b.tenant is not None),
        on_duplicate="allow",
        max_dead_letters=None,
        limit=None,
        execution=msgspec.structs.replace(base.execution, lanes=1, window=min(base.execution.window or WINDOW, WINDOW)),
        fingerprint=fingerprint(policy, msgspec.structs.replace(catalog, tiers={}), row, None),
        feedback=None,
        review=None,
        pinned=True,
    )


def parts_of(spec: RunSpec) -> dict[str, str]:
    """Part of the job that answers and scores come from, in words that a person can be told → hash. (Not its rows.)"""
    scorers = {
        f"task {name}: scorers": digest([_scorer(scorer, spec.catalog) for scorer in task.scorers])
        for name, task in spec.policy.tasks.items()
    }
    return spec.fingerprint | scorers


def _scorer(scorer: Scorer, catalog: Catalog) -> list[object]:
    judge = catalog.models.get(scorer.model or "")
    live = None if judge is None else judge.live_version
    return [scorer_version(scorer), *([] if live is None else [live.id, live.model, live.revision, PROMPT_VERSION])]


def alone(spec: RunSpec, model: str) -> RunSpec:
    """The same with one candidate, as `plan` prices it."""
    name, version = spec.catalog.parted(model)
    models = {**spec.catalog.models, name: msgspec.structs.replace(spec.catalog.models[name], live=version)}
    tasks = {
        key: msgspec.structs.replace(task, models=(name,), shadow=None, cascade=None)
        for key, task in spec.policy.tasks.items()
    }
    policy = msgspec.structs.replace(spec.policy, tasks=tasks)
    catalog = msgspec.structs.replace(spec.catalog, models=models)
    return msgspec.structs.replace(spec, catalog=catalog, policy=policy, budgets=())


def pinned(catalog: Catalog, models: tuple[str, ...]) -> Catalog:
    """The first version that is asked of a model is live; a further one has an entry of its own (`small@v2`), so that
    it can stand in where the first candidate fails."""
    made = dict(catalog.models)
    seen: set[str] = set()
    for text in models:
        name, version = catalog.parted(text)
        model = catalog.models[name]
        entry = msgspec.structs.replace(model, name=name if name not in seen else text, live=version)
        made[entry.name] = entry
        seen.add(name)
    return msgspec.structs.replace(catalog, models=made)


def _stand_ins(catalog: Catalog, models: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the entries that `pinned` made, in order."""
    seen: set[str] = set()
    names: list[str] = []
    for text in models:
        name = catalog.parted(text)[0]
        names.append(text if name in seen else name)
        seen.add(name)
    return tuple(names)


def _task(spec: RunSpec, variant: str, what: Variant, asked: Asked) -> Task:
    """What is asked is the task's; what would choose among candidates is not. Answers are kept as they came: what is
    measured is what a model says, not what it says when asked again."""
    base = spec.policy.tasks[asked.task]
    task = Task(
        name=task_name(asked.task, variant),
        models=_stand_ins(spec.catalog, asked.models),
        prompt=base.prompt,
        output=base.output and msgspec.structs.replace(base.output, on_invalid="keep"),
        params_json=base.params_json,
        max_tokens=base.max_tokens,
        temperature=base.temperature,
        timeout_s=base.timeout_s,
        reuse=base.reuse,
        sample=1.0,
        scorers=tuple(msgspec.structs.replace(scorer, expected=None) for scorer in base.scorers or (EXACT,)),
        shadow=Shadow(asked.models, 1.0, whole=True) if len(asked.models) > 1 else None,
        cascade=None,
    )
    return _varied(task, what)


def _varied(task: Task, what: Variant) -> Task:
    if what.prompt is not None:
        task = msgspec.structs.replace(task, prompt=_prompt(what.prompt))
    if what.params is not None:
        params = over(msgspec.json.decode(task.params_json, type=dict[str, Any]), what.params)
        task = msgspec.structs.replace(
            task,
            params_json=msgspec.json.encode(params),
            max_tokens=ceiling(params),
            temperature=params.get("temperature"),
        )
    return task


def _prompt(said: str | dict[str, str]) -> Prompt:
    user, system = (said, None) if isinstance(said, str) else (said.get("user"), said.get("system"))
    return Prompt(user=user, system=system, version=digest([user, system]))


def _attributes() -> dict[str, str]:
    """What each row was read with (sensitivity above all), but for that which would choose among candidates."""
    carried = {name: f"{{{{ {column_of(name)} }}}}" for name in CARRIED}
    return {**carried, "task": f"{{{{ {TASK} }}}}", "expected": f"{{{{ {EXPECTED} }}}}"}


def within(spec: RunSpec, nano: int | None) -> RunSpec:
    """Inside a budget of its own; limits of a day, a month or a tenant hold beside it. None: everything is free."""
    return spec if nano is None else msgspec.structs.replace(spec, budgets=(*spec.budgets, Budget(nano)))


def run_id_of(name: str, place: Path) -> str:
    """By its folder, or the mark in it: paths of two machines that share a state may be the same."""
    return run_id(_named(name), {"place": mark_of(place) or str(place)})


def _named(name: str) -> str:
    return f"eval {name}"


def scorer_of(task: Task, wanted: str | None) -> str:
    """The name of the scorer that decides: the first, unless told. Raises `SpecError`."""
    names = [scorer_name(scorer) for scorer in task.scorers or (EXACT,)]
    if wanted is not None and wanted not in names:
        raise SpecError(f"the task {task.name} has no scorer {wanted!r}; it has {', '.join(names)}")
    return wanted or names[0]
