"""Prompt templates: Jinja2, strict, in the sandbox of `sandbox.py`.

A template sees the row's columns by name, the row itself as `row` (for names that aren't words) and the job's `vars`.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template as JinjaTemplate
from jinja2 import TemplateError, TemplateSyntaxError, UndefinedError, nodes
from jinja2.meta import find_undeclared_variables

from penstock.connectors.templates.bounds import MAX_OUTPUT, NullPrinted, begin
from penstock.connectors.templates.sandbox import Sandbox, text_of
from penstock.engine.errors import BadRecord, SpecError

MAX_SOURCE = 64_000
"""Characters of a template's source: far over any prompt that was written by hand."""

Row = Mapping[str, object]
_SANDBOX = Sandbox()
_OWN_NAMES = frozenset({"vars", "row", *_SANDBOX.globals})
_FAILURES = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)
"""What a template that went wrong raises: Jinja's own errors and those of the operations in it."""


class Template:
    """One compiled template. `columns`: the names that it takes from the row (some perhaps only if there)."""

    def __init__(self, source: str) -> None:
        """Raises `SpecError` where it can't be compiled, with the line."""
        if len(source) > MAX_SOURCE:
            raise SpecError(f"the template has {len(source):,} characters; the longest allowed has {MAX_SOURCE:,}")
        self.source = source
        try:
            begin(0)
            source.encode()  # half a surrogate pair could not be sent
            tree = _SANDBOX.prepare(source)
            for constant in tree.find_all(nodes.Const):
                _check_constant(constant)
            self._text = text_of(tree)
            self._parts = _simple(tree)
            self._lone = _lone(tree, source)
            self._jinja = _compile(tree)
            self._expression = _compile(_assignment(self._lone)) if self._lone else None
            # last: Jinja computes constants into the tree here, and writes an infinite one as a name that nothing has
            self.columns = frozenset(find_undeclared_variables(tree) - _OWN_NAMES)
        except TemplateSyntaxError as error:
            raise SpecError(f"line {error.lineno} of the template: {error.message}") from error
        except (TemplateError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise SpecError(f"the template cannot be compiled: {error}") from error

    def render(self, row: Row, job_vars: Row | None = None) -> str:
        """Text. Raises `BadRecord` with what is wrong and the nearest column."""
        if self._parts is not None and (text := _fill(self._parts, row)) is not None:
            return text
        try:
            begin(self._text)
            size = 0
            pieces: list[str] = []
            for piece in self._jinja.root_render_func(self._jinja.new_context(_names(row, job_vars), shared=True)):
                size += len(piece)
                if size > MAX_OUTPUT:
                    raise BadRecord("template", f"the template makes more than {MAX_OUTPUT:,} characters")
                pieces.append(piece)
        except _FAILURES as error:
            _fail(error, row)
        return "".join(pieces)

    def value(self, row: Row, job_vars: Row | None = None) -> object:
        """What a lone `{{ x }}` is, with its type; of any other template the text. Raises `BadRecord`."""
        if isinstance(self._lone, nodes.Name) and self._lone.name in row:
            return row[self._lone.name]
        if self._expression is None:
            return self.render(row, job_vars)
        try:
            begin(0)
            context = self._expression.new_context(_names(row, job_vars), shared=True)
            for _ in self._expression.root_render_func(context):
                pass
            made = context.vars["result"]
            if _is_missing(made):
                str(made)  # raises, naming what is missing
        except _FAILURES as error:
            _fail(error, row)
        if made is None or isinstance(made, (str, int, float, list, dict)):
            return made
        if isinstance(made, tuple):
            return list(made)
        hint = ": write `| list` behind it" if isinstance(made, Iterable) else ""
        raise BadRecord("template", f"the template makes a {type(made).__name__}, which is no JSON{hint}")


@lru_cache(maxsize=1024)
def compile_template(source: str) -> Template:
    """Compiled once per source. Raises `SpecError`."""
    return Template(source)


def render(template: str, row: Row, job_vars: Row | None = None) -> str:
    """Text of `template` for one row. Raises `BadRecord`; `SpecError` where the template itself is wrong."""
    return compile_template(template).render(row, job_vars)


def value(template: str, row: Row, job_vars: Row | None = None) -> object:
    """As `render`, but a lone `{{ x }}` keeps its type."""
    return compile_template(template).value(row, job_vars)


def nearest(name: str, known: Iterable[str]) -> str:
    """`; the nearest is 'x'`, or what there is, for the end of an error message."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"; the nearest is {close[0]!r}"
    return f"; there are {', '.join(sorted(names)[:20])}" if names else "; there are none"


def _names(row: Row, job_vars: Row | None) -> dict[str, Any]:
    return {**_SANDBOX.globals, "vars": job_vars or {}, "row": row, **row}


def _compile(tree: nodes.Template) -> JinjaTemplate:
    tree.set_environment(_SANDBOX)
    return JinjaTemplate.from_code(_SANDBOX, _SANDBOX.compile(tree), {}, None)


def _check_constant(constant: nodes.Const) -> None:
    """Raises `SpecError`, `ValueError` for a number or text that no prompt can hold."""
    if isinstance(constant.value, float) and not math.isfinite(constant.value):
        raise SpecError(f"line {constant.lineno} of the template: a number in it is too large")
    str(constant.value).encode()


def _outputs(tree: nodes.Template) -> list[nodes.Expr] | None:
    """The pieces of a template that only prints; None: it does more."""
    pieces: list[nodes.Expr] = []
    for part in tree.body:
        if not isinstance(part, nodes.Output):
            return None
        pieces.extend(part.nodes)
    return pieces


def _simple(tree: nodes.Template) -> list[tuple[bool, str]] | None:
    """(is a column, text or name) of a template of constants and bare columns: the fast way; None: it is more."""
    parts: list[tuple[bool, str]] = []
    for piece in _outputs(tree) or ():
        match piece:
            case nodes.TemplateData(data=data):
                parts.append((False, data))
            case nodes.Name(name=name):
                parts.append((True, name))
            case _:
                return None
    return parts or None


def _fill(parts: list[tuple[bool, str]], row: Row) -> str | None:
    """None: a value that the fast way doesn't know; the other way tells what is wrong with it."""
    pieces: list[str] = []
    size = 0
    for is_column, text in parts:
        if is_column:
            found = row.get(text)
            if type(found) is str:
                text = found
            elif type(found) is int or type(found) is float or type(found) is bool:
                text = str(found)
            else:
                return None
        size += len(text)
        pieces.append(text)
    return "".join(pieces) if size <= MAX_OUTPUT else None


def _lone(tree: nodes.Template, source: str) -> nodes.Expr | None:
    pieces = [
        piece
        for piece in _outputs(tree) or ()
        if not (isinstance(piece, nodes.TemplateData) and not piece.data.strip())
    ]
    return pieces[0] if len(pieces) == 1 and not isinstance(pieces[0], nodes.TemplateData) else None


def _assignment(expression: nodes.Expr) -> nodes.Template:
    return nodes.Template([nodes.Assign(nodes.Name("result", "store"), expression, lineno=1)], lineno=1)


def _is_missing(made: object) -> bool:
    return isinstance(made, _SANDBOX.undefined)


def _fail(error: BaseException, row: Row) -> NoReturn:
    match error:
        case UndefinedError():
            name = re.match(r"'(.+)' is undefined$", str(error.message))
            if name is not None:
                message = f"the template names the column {name[1]!r}, which the row lacks{nearest(name[1], row)}"
                raise BadRecord("missing_field", message) from error
            raise BadRecord("missing_field", f"the template fails on this row: {error.message}") from error
        case NullPrinted():
            raise BadRecord("bad_field", f"the template fails on this row: {error}") from error
        case RecursionError():
            raise BadRecord("template", "the template calls itself too deeply") from error
        case _:
            raise BadRecord("template", f"the template fails on this row: {error or type(error).__name__}") from error
