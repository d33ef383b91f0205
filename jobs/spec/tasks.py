"""Tasks of the job file (or its shorthand) → `engine.policy.Task`."""

from __future__ import annotations

from collections.abc import Mapping

from penstock.engine.catalog import Catalog
from penstock.engine.policy import Output, Prompt, Task
from penstock.jobs.spec.asked import Context, as_json, ceiling, checked_params, choices, share, template
from penstock.jobs.spec.cascades import cascade
from penstock.jobs.spec.catalogue import refer
from penstock.jobs.spec.digest import digest
from penstock.jobs.spec.fields import JobFile, OutputFile, PromptFile, TaskFile
from penstock.jobs.spec.scoring import explore, scorer, shadow
from penstock.jobs.spec.templates import check_json_schema
from penstock.jobs.spec.tree import Doc, Path

ONLY = "default"
"""Name of the task that the shorthand makes."""
MAX_TASKS = 1_000
_SHORT = (
    "prompt",
    "output",
    "params",
    "sample",
    "scorers",
    "tier",
    "min_quality",
    "reuse",
    "shadow",
    "explore",
    "cascade",
)


def compile_tasks(
    doc: Doc, job: JobFile, catalog: Catalog, values: Mapping[str, str], state: str = ""
) -> dict[str, Task]:
    """Raises `SpecError`."""
    at = Context(doc, catalog, values, state)
    short = [name for name in _SHORT if name in doc.data]
    if job.tasks and short:
        raise doc.error((short[0],), "stands beside `tasks:`; move it into the task that it is for")
    if len(job.tasks) > MAX_TASKS:
        raise doc.error(("tasks",), f"more than {MAX_TASKS:,} tasks")
    if job.tasks:
        return {name: _task(at, ("tasks", name), name, file or TaskFile()) for name, file in job.tasks.items()}
    shorthand = TaskFile(**{name: getattr(job, name) for name in short})
    return {ONLY: _task(at, (), ONLY, shorthand)}


def _task(at: Context, path: Path, name: str, file: TaskFile) -> Task:
    if not name or len(name) > 100:
        raise at.doc.error(path, "a task's name has 1 to 100 characters")
    if file.tier is not None:
        check_tier(at.doc, (*path, "tier"), file.tier, at.catalog)
    if file.timeout_s is not None and file.timeout_s <= 0:
        raise at.doc.error((*path, "timeout_s"), "must be more than 0 seconds")
    params = checked_params(at.doc, (*path, "params"), file.params)
    models = None if file.models is None else refer(at.doc, (*path, "models"), file.models, at.catalog.models)
    scorers = tuple(scorer(at, (*path, "scorers", i), s) for i, s in enumerate(file.scorers))
    prompt = compile_prompt(at, (*path, "prompt"), file.prompt)
    asked = prompt.version if prompt is not None else ""
    return Task(
        name=name,
        tier=file.tier,
        min_quality=share(at.doc, (*path, "min_quality"), file.min_quality),
        models=models,
        prompt=prompt,
        output=_output(at.doc, (*path, "output"), file.output),
        params_json=as_json(params),
        max_tokens=ceiling(params),
        temperature=params.get("temperature"),
        sample=share(at.doc, (*path, "sample"), file.sample) or 0.0,
        scorers=scorers,
        timeout_s=None if file.timeout_s is None else float(file.timeout_s),
        reuse=file.reuse,
        shadow=shadow(at, (*path, "shadow"), file),
        explore=explore(at, (*path, "explore"), file),
        cascade=cascade(at, (*path, "cascade"), name, file, scorers, asked),
    )


def check_tier(doc: Doc, path: Path, tier: int, catalog: Catalog) -> int:
    if tier not in catalog.tiers:
        known = ", ".join(str(t) for t in sorted(catalog.tiers))
        raise doc.error(path, f"no tier {tier}; there are {known}")
    return tier


def compile_prompt(at: Context, path: Path, file: str | PromptFile | None) -> Prompt | None:
    if file is None:
        return None
    if isinstance(file, str):
        user = template(at, path, file)
        return Prompt(user=user, version=digest(user))
    if file.messages is not None and (file.user is not None or file.system is not None):
        raise at.doc.error((*path, "messages"), "stands beside `user` or `system`; keep one form")
    if file.messages is None and file.user is None:
        raise at.doc.error(path, "says neither `user:` nor `messages:`")
    user, system, messages = (
        None if text is None else template(at, (*path, name), text)
        for name, text in (("user", file.user), ("system", file.system), ("messages", file.messages))
    )
    images = tuple(template(at, (*path, "images", i), text) for i, text in enumerate(file.images))
    return Prompt(
        user=user,
        system=system,
        messages=messages,
        images=images,
        version=digest([user, system, messages, images]),
    )


def _output(doc: Doc, path: Path, file: OutputFile | None) -> Output | None:
    if file is None:
        return None
    if (file.choices is None) == (file.json_schema is None):
        raise doc.error(path, "wants exactly one of `choices` and `json_schema`")
    if file.json_schema is not None:
        text = check_json_schema(doc, (*path, "json_schema"), file.json_schema)
        return Output(json_schema=text, on_invalid=file.on_invalid)
    return Output(choices=choices(doc, (*path, "choices"), file.choices or []), on_invalid=file.on_invalid)
