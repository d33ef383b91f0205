"""How a task's answers are measured: scorers, judges, shadows."""

from __future__ import annotations

import re

from penstock.engine.policy import Explore, Scorer, Shadow
from penstock.jobs.spec.asked import Context, as_json, checked_params, choices, share, template, unknown
from penstock.jobs.spec.fields import ScorerFile, ScorerType, TaskFile
from penstock.jobs.spec.templates import check_json_schema, check_regex
from penstock.jobs.spec.tree import Doc, Path, nearest

MAX_GRADES = 100
MAX_RUBRIC = 20_000
MAX_SAMPLES = 9
"""A judge's calls for one answer."""
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*\Z")
_OF_JUDGES = ("model", "rubric", "scale", "choices", "pairwise", "samples", "params")
_OWNERS = {"pattern": "regex", "json_schema": "json_schema", "function": "function"}


def scorer(at: Context, path: Path, file: ScorerType | ScorerFile) -> Scorer:
    doc = at.doc
    if isinstance(file, str):
        file = ScorerFile(type=file)
    kind = file.type or ("function" if file.function else None)
    if kind is None:
        raise doc.error(path, "say its `type:` (exact, regex, json_schema, fields, numeric, function or judge)")
    for name, owner in _OWNERS.items():
        if (getattr(file, name) is not None) != (kind == owner):
            raise doc.error(path, f"`{name}` belongs to a scorer of type {owner}, and there it is needed")
    if kind == "judge":
        return judge(at, path, file)
    for name in _OF_JUDGES:
        if getattr(file, name) != getattr(ScorerFile(), name):
            raise doc.error((*path, name), "belongs to a scorer of type judge")
    if file.function is not None and not _FUNCTION.match(file.function):
        raise doc.error((*path, "function"), "expected `module:name`")
    if file.tolerance < 0:
        raise doc.error((*path, "tolerance"), "must be 0 or more")
    schema = file.json_schema
    return Scorer(
        type=kind,
        expected=None if file.expected is None else template(at, (*path, "expected"), file.expected),
        pattern=None if file.pattern is None else check_regex(doc, (*path, "pattern"), file.pattern),
        json_schema=None if schema is None else check_json_schema(doc, (*path, "json_schema"), schema),
        tolerance=float(file.tolerance),
        function=file.function,
    )


# ---- judges


def judge(at: Context, path: Path, file: ScorerFile) -> Scorer:
    doc = at.doc
    if file.model is None or file.rubric is None:
        missing = "model" if file.model is None else "rubric"
        raise doc.error(path, f"a judge needs `{missing}:`; `model` names who scores, `rubric` says what is good")
    if file.model not in at.catalog.models:
        raise doc.error((*path, "model"), f"no model `{file.model[:100]}`{nearest(file.model, at.catalog.models)}")
    if not file.rubric.strip() or len(file.rubric) > MAX_RUBRIC:
        raise doc.error((*path, "rubric"), f"a rubric has 1 to {MAX_RUBRIC:,} characters")
    if not 1 <= file.samples <= MAX_SAMPLES:
        raise doc.error((*path, "samples"), f"expected 1 to {MAX_SAMPLES}")
    params = checked_params(doc, (*path, "params"), file.params)
    return Scorer(
        type="judge",
        expected=None if file.expected is None else template(at, (*path, "expected"), file.expected),
        model=file.model,
        rubric=file.rubric,
        choices=_grades(doc, path, file),
        pairwise=file.pairwise,
        samples=file.samples,
        params_json=as_json(params),
    )


def _grades(doc: Doc, path: Path, file: ScorerFile) -> tuple[str, ...]:
    """From the worst to the best."""
    if file.pairwise and (file.scale or file.choices):
        raise doc.error((*path, "pairwise"), "says A, B or tie; `scale` and `choices` are for single answers")
    if file.scale and file.choices:
        raise doc.error((*path, "choices"), "stands beside `scale`; keep one")
    if file.pairwise:
        return ()
    if file.choices is not None:
        return choices(doc, (*path, "choices"), [*file.choices])
    scale = file.scale or [1, 5]
    if len(scale) != 2 or not 1 <= scale[1] - scale[0] < MAX_GRADES:
        raise doc.error((*path, "scale"), f"expected the worst and best grade, as in [1, 5]; {MAX_GRADES} at most")
    return tuple(str(grade) for grade in range(scale[0], scale[1] + 1))


# ---- shadows


def shadow(at: Context, path: Path, task: TaskFile) -> Shadow | None:
    file = task.shadow
    if file is None:
        return None
    if not file.models:
        raise at.doc.error((*path, "models"), "an empty list; name at least one model")
    for i, name in enumerate(file.models):
        _known(at, (*path, "models", i), name)
        if name in file.models[:i]:
            raise at.doc.error((*path, "models", i), f"`{name}` stands here twice")
    if not task.scorers:
        raise at.doc.error(path, "nothing compares the answers; name `scorers:`, for example a pairwise judge")
    portion = share(at.doc, (*path, "share"), file.share)
    if not portion:
        raise at.doc.error((*path, "share"), "a share of 0 shadows nothing; leave `shadow:` out")
    return Shadow(tuple(file.models), portion)


def explore(at: Context, path: Path, task: TaskFile) -> Explore | None:
    file = task.explore
    if file is None:
        return None
    if all(isinstance(each, ScorerFile) and each.type == "judge" for each in task.scorers):
        raise at.doc.error(path, "nothing measures what is explored; name `scorers:` that need no judge")
    portion = share(at.doc, (*path, "share"), file.share)
    if not portion:
        raise at.doc.error((*path, "share"), "a share of 0 explores nothing; leave `explore:` out")
    if not 0 < file.usd < 10**9:
        raise at.doc.error((*path, "usd"), "must be more than 0: what exploring may cost in one run")
    return Explore(portion, float(file.usd))


def _known(at: Context, path: Path, target: str) -> None:
    """A model, or one version of it."""
    if at.catalog.parted(target)[0] not in at.catalog.models:
        raise at.doc.error(path, unknown(target, at.catalog))
