"""Tasks of the job file (or its shorthand) → `engine.policy.Task`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from penstock.engine.catalog import Catalog
from penstock.engine.policy import Output, Prompt, Scorer, Task
from penstock.jobs.spec.catalogue import refer
from penstock.jobs.spec.digest import digest
from penstock.jobs.spec.fields import JobFile, OutputFile, PromptFile, ScorerFile, ScorerType, TaskFile
from penstock.jobs.spec.templates import check_json_schema, check_regex, check_template
from penstock.jobs.spec.tree import Doc, Path, nearest
from penstock.jobs.spec.variables import check_used

ONLY = "default"
"""Name of the task that the shorthand makes."""
MAX_CHOICES = 1_000
MAX_TASKS = 1_000
_SHORT = ("prompt", "output", "params", "sample", "scorers", "tier", "min_quality", "reuse")
_RESERVED = {
    "model": "models: or rules:",
    "messages": "prompt:",
    "stream": "nothing: answers are collected whole",
    "metadata": "row.attributes",
    "response_format": "output:",
    "user": "row.attributes (subject)",
}
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*\Z")


class Context(msgspec.Struct, frozen=True):
    doc: Doc
    catalog: Catalog
    vars: Mapping[str, str]


def compile_tasks(doc: Doc, job: JobFile, catalog: Catalog, values: Mapping[str, str]) -> dict[str, Task]:
    """Raises `SpecError`."""
    at = Context(doc, catalog, values)
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
    params = _params(at.doc, (*path, "params"), file.params)
    models = None if file.models is None else refer(at.doc, (*path, "models"), file.models, at.catalog.models)
    return Task(
        name=name,
        tier=file.tier,
        min_quality=share(at.doc, (*path, "min_quality"), file.min_quality),
        models=models,
        prompt=_prompt(at, (*path, "prompt"), file.prompt),
        output=_output(at.doc, (*path, "output"), file.output),
        params_json=json.dumps(params, ensure_ascii=False, separators=(",", ":")).encode(),
        max_tokens=_ceiling(params),
        temperature=params.get("temperature"),
        sample=share(at.doc, (*path, "sample"), file.sample) or 0.0,
        scorers=tuple(_scorer(at, (*path, "scorers", i), s) for i, s in enumerate(file.scorers)),
        timeout_s=None if file.timeout_s is None else float(file.timeout_s),
        reuse=file.reuse,
    )


def check_tier(doc: Doc, path: Path, tier: int, catalog: Catalog) -> int:
    if tier not in catalog.tiers:
        known = ", ".join(str(t) for t in sorted(catalog.tiers))
        raise doc.error(path, f"no tier {tier}; there are {known}")
    return tier


def share(doc: Doc, path: Path, value: int | float | None) -> float | None:
    if value is not None and not 0 <= value <= 1:
        raise doc.error(path, "expected a share between 0 and 1")
    return None if value is None else float(value)


def _prompt(at: Context, path: Path, file: str | PromptFile | None) -> Prompt | None:
    if file is None:
        return None
    if isinstance(file, str):
        user = _template(at, path, file)
        return Prompt(user=user, version=digest(user))
    if file.messages is not None and (file.user is not None or file.system is not None):
        raise at.doc.error((*path, "messages"), "stands beside `user` or `system`; keep one form")
    if file.messages is None and file.user is None:
        raise at.doc.error(path, "says neither `user:` nor `messages:`")
    user, system, messages = (
        None if text is None else _template(at, (*path, name), text)
        for name, text in (("user", file.user), ("system", file.system), ("messages", file.messages))
    )
    images = tuple(_template(at, (*path, "images", i), text) for i, text in enumerate(file.images))
    return Prompt(
        user=user,
        system=system,
        messages=messages,
        images=images,
        version=digest([user, system, messages, images]),
    )


def _template(at: Context, path: Path, text: str) -> str:
    if not text.strip():
        raise at.doc.error(path, "an empty prompt")
    check_used(at.doc, path, text, at.vars)
    return check_template(at.doc, path, text)


def _output(doc: Doc, path: Path, file: OutputFile | None) -> Output | None:
    if file is None:
        return None
    if (file.choices is None) == (file.json_schema is None):
        raise doc.error(path, "wants exactly one of `choices` and `json_schema`")
    if file.json_schema is not None:
        text = check_json_schema(doc, (*path, "json_schema"), file.json_schema)
        return Output(json_schema=text, on_invalid=file.on_invalid)
    return Output(choices=_choices(doc, (*path, "choices"), file.choices or []), on_invalid=file.on_invalid)


def _choices(doc: Doc, path: Path, given: list[str | int | bool]) -> tuple[str, ...]:
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


def _params(doc: Doc, path: Path, params: dict[str, Any]) -> dict[str, Any]:
    for name, place in _RESERVED.items():
        if name in params:
            raise doc.error((*path, name), f"can't be a parameter; its place is {place}")
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


def _ceiling(params: dict[str, Any]) -> int | None:
    return params.get("max_tokens") or params.get("max_completion_tokens")


def _scorer(at: Context, path: Path, file: ScorerType | ScorerFile) -> Scorer:
    doc = at.doc
    if isinstance(file, str):
        file = ScorerFile(type=file)
    kind = file.type or ("function" if file.function else None)
    if kind is None:
        raise doc.error(path, "say its `type:` (exact, regex, json_schema, numeric or function)")
    for name, owner in (("pattern", "regex"), ("json_schema", "json_schema"), ("function", "function")):
        if (getattr(file, name) is not None) != (kind == owner):
            raise doc.error(path, f"`{name}` belongs to a scorer of type {owner}, and there it is needed")
    if file.function is not None and not _FUNCTION.match(file.function):
        raise doc.error((*path, "function"), "expected `module:name`")
    if file.tolerance < 0:
        raise doc.error((*path, "tolerance"), "must be 0 or more")
    schema = file.json_schema
    return Scorer(
        type=kind,
        expected=None if file.expected is None else _template(at, (*path, "expected"), file.expected),
        pattern=None if file.pattern is None else check_regex(doc, (*path, "pattern"), file.pattern),
        json_schema=None if schema is None else check_json_schema(doc, (*path, "json_schema"), schema),
        tolerance=float(file.tolerance),
        function=file.function,
    )
