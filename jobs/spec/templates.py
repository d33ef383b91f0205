"""Are templates, schemas and patterns of the job file well formed?"""

from __future__ import annotations

import json
from typing import Any

from penstock.engine.errors import SpecError
from penstock.engine.policy import Scorer
from penstock.engine.quality import pattern_of
from penstock.jobs.spec.tree import Doc, Path


def check_template(doc: Doc, path: Path, source: str) -> str:
    """Raises `SpecError` at the template's line, with the template's own account of what is wrong."""
    from penstock.connectors.templates.template import compile_template

    try:
        compile_template(source)
    except SpecError as error:
        raise doc.error(path, str(error)) from None
    return source


def check_json_schema(doc: Doc, path: Path, schema: dict[str, Any]) -> bytes:
    """The schema as JSON text. Raises `SpecError` where it is no schema, or points out of itself."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        inner = tuple(p for p in error.absolute_path if isinstance(p, (str, int)))
        raise doc.error((*path, *inner), f"not a valid JSON schema: {error.message[:200]}") from None
    except Exception as error:  # noqa: BLE001 - a schema is user input; the validator may fail in any way on it
        raise _odd_schema(doc, path, error) from None
    _local_refs(doc, path, schema)
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":")).encode()


def _odd_schema(doc: Doc, path: Path, error: Exception) -> SpecError:
    return doc.error(path, f"not a usable JSON schema ({type(error).__name__})")


def _local_refs(doc: Doc, path: Path, value: object) -> None:
    """Nothing is fetched to check an answer."""
    match value:
        case dict():
            for key, child in value.items():
                if key in ("$ref", "$dynamicRef") and isinstance(child, str) and not child.startswith("#"):
                    raise doc.error((*path, key), "a schema may refer to itself only (`#/…`); nothing is fetched")
                _local_refs(doc, (*path, key), child)
        case list():
            for i, child in enumerate(value):
                _local_refs(doc, (*path, i), child)
        case _:
            return


def check_regex(doc: Doc, path: Path, pattern: str) -> str:
    """Of a scorer: refused here where the lanes would refuse it, over each sample."""
    try:
        pattern_of(Scorer("regex", pattern=pattern))
    except SpecError as error:
        raise doc.error(path, str(error)) from None
    return pattern
