"""`vars` and `--set`: `{{ vars.date }}` in paths and addresses is replaced here, in prompts where they are rendered."""

from __future__ import annotations

import re
from collections.abc import Mapping

from penstock.engine.errors import SpecError
from penstock.jobs.spec.tree import Doc, Path, Plain, is_text, nearest, redact

REQUIRED = "required"
MAX_VALUE = 1_000
_VAR = re.compile(r"\{\{\s*vars\.([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}\Z")


def settle(doc: Doc, sets: Mapping[str, str]) -> dict[str, str]:
    """Every variable's value. Raises `SpecError` for a missing, unknown or unusable one."""
    declared = doc.data.get("vars")
    if declared is None:
        declared = {}
    if not isinstance(declared, dict):
        raise doc.error(("vars",), "expected a mapping of name → default (or `required`)")
    for name in sets:
        if name not in declared:
            raise SpecError(
                f"--set {redact(name[:60])}: the job has no such variable{nearest(name, declared)}", path=doc.name
            )
    return {name: _value(doc, name, default, sets) for name, default in declared.items()}


def _value(doc: Doc, name: str, default: Plain, sets: Mapping[str, str]) -> str:
    path = ("vars", name)
    if not _NAME.match(name):
        raise doc.error(path, "a variable's name is letters, digits and _")
    if name in sets:
        value: Plain = str(sets[name])
    elif default is None or default == REQUIRED:
        raise doc.error(path, f"has no value; add --set {name}=…")
    else:
        value = default
    if not isinstance(value, (str, int, float)):
        raise doc.error(path, "expected text or a number")
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if len(text) > MAX_VALUE or "\0" in text or not is_text(text):
        raise doc.error(path, f"at most {MAX_VALUE:,} characters of UTF-8 text, none of them NUL")
    return text


def fill(doc: Doc, path: Path, text: str, values: Mapping[str, str]) -> str:
    """`text` with each `{{ vars.x }}` replaced. Raises `SpecError` where x is not declared, or where
    another template stands."""

    def one(match: re.Match[str]) -> str:
        return _lookup(doc, path, match.group(1), values)

    filled = _VAR.sub(one, text)
    if "{{" in _VAR.sub("", text):
        raise doc.error(path, "only {{ vars.NAME }} can stand here: there is no row yet")
    return filled


def fill_tree(doc: Doc, path: Path, value: Plain, values: Mapping[str, str]) -> Plain:
    match value:
        case str():
            return fill(doc, path, value, values)
        case dict():
            return {k: fill_tree(doc, (*path, k), v, values) for k, v in value.items()}
        case list():
            return [fill_tree(doc, (*path, i), v, values) for i, v in enumerate(value)]
        case _:
            return value


def check_used(doc: Doc, path: Path, template: str, values: Mapping[str, str]) -> None:
    """A prompt keeps its `{{ vars.x }}`: it is rendered with the row, so the prompt's version does not change with the
    date. Raises `SpecError` where x is not declared."""
    for block in _BLOCK.findall(template):
        for name in _USED.findall(block):
            _lookup(doc, path, name, values)


_BLOCK = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.DOTALL)
_USED = re.compile(r"(?<![\w.])vars\.([A-Za-z_]\w*)")


def _lookup(doc: Doc, path: Path, name: str, values: Mapping[str, str]) -> str:
    if name not in values:
        raise doc.error(path, f"`vars.{name}` is not declared under `vars:`{nearest(name, values)}")
    return values[name]
