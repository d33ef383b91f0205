"""`experiments:` of the job file → `engine.policy.Experiment`."""

from __future__ import annotations

import json
from collections.abc import Mapping

from penstock.engine.catalog import Catalog
from penstock.engine.policy import Arm, Experiment, Task
from penstock.jobs.spec.asked import Context, as_json, ceiling, checked_params, over, unknown
from penstock.jobs.spec.digest import digest
from penstock.jobs.spec.fields import ArmFile, ExperimentFile, JobFile
from penstock.jobs.spec.tasks import compile_prompt
from penstock.jobs.spec.tree import Doc, Path, nearest

MAX_ARMS = 10
"""Of one experiment: each needs its own hundreds of scored items."""


def compile_experiments(
    doc: Doc, job: JobFile, name: str, catalog: Catalog, tasks: Mapping[str, Task], values: Mapping[str, str]
) -> tuple[Experiment, ...]:
    """`name`: of the job. Raises `SpecError`."""
    at = Context(doc, catalog, values)
    made = tuple(_experiment(at, ("experiments", i), each, name, tasks) for i, each in enumerate(job.experiments))
    for i, each in enumerate(made):
        if each.id in {other.id for other in made[:i]}:
            raise doc.error(("experiments", i, "name"), "two experiments have the same name")
        if each.task in {other.task for other in made[:i]}:
            raise doc.error(("experiments", i, "task"), f"the task `{each.task}` is in another experiment already")
    return made


def _experiment(at: Context, path: Path, file: ExperimentFile, job: str, tasks: Mapping[str, Task]) -> Experiment:
    doc = at.doc
    if not file.name.strip() or len(file.name) > 100 or "/" in file.name:
        raise doc.error((*path, "name"), "an experiment's name has 1 to 100 characters, and no `/`")
    task = file.task if file.task is not None else (next(iter(tasks)) if len(tasks) == 1 else None)
    if task is None:
        raise doc.error(path, f"say of which task: `task:` one of {', '.join(list(tasks)[:10])}")
    if task not in tasks:
        raise doc.error((*path, "task"), f"no task `{task[:100]}`{nearest(task, tasks)}")
    if not 2 <= len(file.arms) <= MAX_ARMS:
        raise doc.error((*path, "arms"), f"wants 2 to {MAX_ARMS} arms, found {len(file.arms)}")
    names = [arm.name for arm in file.arms]
    if len(set(names)) < len(names):
        raise doc.error((*path, "arms"), "two arms have the same name")
    arms = tuple(_arm(at, (*path, "arms", i), arm, tasks[task]) for i, arm in enumerate(file.arms))
    version, guardrails = _version_of(at, tasks[task], arms, file.unit), tuple(dict.fromkeys(file.guardrails))
    return Experiment(f"{job}/{file.name}", task, arms, file.unit, guardrails, version)


def _version_of(at: Context, task: Task, arms: tuple[Arm, ...], unit: str) -> str:
    """Of what is compared. (Not of the models that a task's items go to: they change for all arms alike.)"""
    whole = sum(arm.weight for arm in arms)
    shown = [task.prompt.version if task.prompt else None, task.output, task.params_json]
    return digest([task.name, shown, unit, [_what(at, arm, arm.weight / whole) for arm in arms]])[:6]


def _what(at: Context, arm: Arm, share: float) -> list[object]:
    pinned = None if arm.version is None else at.catalog.models[arm.version[0]].version(arm.version[1])
    version = None if pinned is None else [pinned.id, pinned.model, pinned.revision]
    prompt = None if arm.prompt is None else arm.prompt.version
    return [arm.name, round(share, 9), arm.model, arm.version, version, prompt, arm.params_json]


def _arm(at: Context, path: Path, file: ArmFile, task: Task) -> Arm:
    doc = at.doc
    if not file.name.strip() or len(file.name) > 100:
        raise doc.error((*path, "name"), "an arm's name has 1 to 100 characters")
    if not 0 < file.weight <= 1_000_000:
        raise doc.error((*path, "weight"), "a weight is above 0")
    if file.model is not None and file.model not in at.catalog.models:
        raise doc.error((*path, "model"), f"no model `{file.model[:100]}`{nearest(file.model, at.catalog.models)}")
    made = Arm(
        file.name,
        float(file.weight),
        file.model,
        None if file.version is None else _version(at, (*path, "version"), file.version),
        compile_prompt(at, (*path, "prompt"), file.prompt),
    )
    if not file.params:
        return made
    params = over(json.loads(task.params_json), checked_params(doc, (*path, "params"), file.params))
    return Arm(
        made.name,
        made.weight,
        made.model,
        made.version,
        made.prompt,
        as_json(params),
        ceiling(params),
        params.get("temperature"),
    )


def _version(at: Context, path: Path, text: str) -> tuple[str, str]:
    name, version = at.catalog.parted(text)
    if version:
        return name, version
    if name in at.catalog.models or "@" not in name:
        raise at.doc.error(path, f"expected `model@version`, such as `small@v2`, not `{text[:100]}`")
    raise at.doc.error(path, unknown(text, at.catalog))
