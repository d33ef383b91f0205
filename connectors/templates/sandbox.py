"""The environment that templates run in: only what `bounds` allows, and its bounds around everything."""

from __future__ import annotations

from typing import Any

from jinja2 import StrictUndefined, nodes
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from penstock.connectors.templates.bounds import (
    BINARY,
    FILTERS_ALLOWED,
    FUNCTIONS,
    HIDDEN_FILTERS,
    local,
    made_container,
    printed,
    size_of,
    words,
)
from penstock.engine.errors import SpecError

_TEXT_METHODS = words(
    "capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit islower isnumeric isspace "
    "istitle isupper lower lstrip partition removeprefix removesuffix rfind rindex rpartition rsplit rstrip split "
    "splitlines startswith strip swapcase title upper"
)
_METHODS: dict[type, frozenset[str]] = {
    str: _TEXT_METHODS,
    dict: frozenset({"get", "items", "keys", "values"}),
    list: frozenset({"count", "index"}),
    tuple: frozenset({"count", "index"}),
}
_LOOP = words("index index0 revindex revindex0 first last length depth depth0 previtem nextitem cycle changed")


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment. Its own names are Jinja's."""

    intercepted_binops = frozenset(BINARY)

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, finalize=printed, optimized=False, cache_size=0)
        self.filters = FILTERS_ALLOWED | HIDDEN_FILTERS
        self.globals = dict(FUNCTIONS)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if attr.startswith("_"):
            return False
        if isinstance(obj, LoopContext):
            return attr in _LOOP
        return isinstance(obj, Namespace) or attr in _METHODS.get(type(obj), ())

    def is_safe_callable(self, obj: Any) -> bool:
        if isinstance(obj, Macro) or obj in FUNCTIONS.values():
            return True
        owner: object = getattr(obj, "__self__", None)
        name: object = getattr(obj, "__name__", "")
        if isinstance(owner, LoopContext):
            return name in {"cycle", "changed"}
        return name in _METHODS.get(type(owner), ())

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Data comes before methods: a column may be named `items` or `copy`."""
        if type(obj) is dict and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if type(obj) is dict:
            return obj[argument] if argument in obj else self.undefined(obj=obj, name=argument)
        return super().getitem(obj, argument)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        meter = local.meter
        meter.step(1, meter.text if isinstance(__obj, Macro) else 0)
        meter.go_through(sum(map(size_of, args)) + size_of(getattr(__obj, "__self__", None)))
        made = super().call(__context, __obj, *args, **kwargs)
        return made_container(made) if __obj is dict else made

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        return BINARY[operator](left, right)

    def prepare(self, source: str) -> nodes.Template:
        """Parse, refuse what has no place in a prompt, and put the bounds in. Raises `SpecError`, `TemplateError`."""
        tree = self.parse(source)
        return _Bounds(self).visit(tree)


class _Bounds(NodeTransformer):
    """Puts the bounds into a parsed template."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.recursive:
            raise SpecError(f"line {node.lineno} of the template: it may have no recursive loop")
        text = text_of(node)
        self.generic_visit(node)
        node.iter = _wrap(node.iter, "_bounded", [nodes.Const(text)])
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        first, *others = node.nodes
        return _wrap(first, "_concat", others)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _wrap(node, "_made", [])

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _wrap(node, "_made", [])

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _wrap(node, "_made", []) if node.ctx == "load" else node

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:
        known = [name for name in self._sandbox.filters if not name.startswith("_")]
        if node.name not in known:
            there = ", ".join(sorted(known))
            raise SpecError(f"line {node.lineno} of the template: no filter is named {node.name!r}; there are {there}")
        self.generic_visit(node)
        return node

    def _refuse(self, node: nodes.Node) -> nodes.Node:
        raise SpecError(f"line {node.lineno} of the template: it may have no {type(node).__name__.lower()}")

    visit_Include = visit_Import = visit_FromImport = visit_Extends = visit_Block = _refuse


def _wrap(node: nodes.Node, name: str, args: list[nodes.Expr]) -> nodes.Filter:
    return nodes.Filter(node, name, args, [], None, None, lineno=node.lineno)


def text_of(node: nodes.Node) -> int:
    """Constant characters inside `node`."""
    return sum(len(data.data) for data in node.find_all(nodes.TemplateData))
