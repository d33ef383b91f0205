"""JSON Schema as providers take it: each holds a model to a part of it only, and answers 400 to the rest.

Facts: OpenAI's and Anthropic's pages on structured outputs, and what the latter's own clients make of a schema, as of
2026-11. Whatever was sent, an answer is checked against the whole schema here (`answers`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from typing import Any

import msgspec

Node = dict[str, Any]

_DEFINITIONS = ("$defs", "definitions")
_NAMED = ("properties", *_DEFINITIONS)
"""Keywords that hold schemas by name."""
_EITHER = ("anyOf", "oneOf")
_WORDS = frozenset({"title", "description", "default"})
"""What only tells."""
_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"})
_SEARCHES = re.compile(r"\(\?|\\[bB1-9]")
"""In a pattern: looking around, word boundaries, what a group found. No grammar holds an answer to these."""

_STRICT = frozenset(
    {
        "$schema", "$ref", *_NAMED, "title", "description", "type", "enum", "const", "required",
        "additionalProperties", "items", "minItems", "maxItems", "anyOf", "pattern", "format", "minimum", "maximum",
        "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    }
)  # fmt: skip
_SHAPE = frozenset({"$ref", "type", "enum", "const", "required", *_WORDS})
"""What Anthropic takes as it is."""
_BOUNDS = frozenset(
    {
        "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "pattern",
        "format", "minItems", "maxItems", "uniqueItems", "minProperties", "maxProperties", "examples",
    }
)  # fmt: skip
"""What it takes in part, or not at all; without them the shape of an answer is still said."""
_CLOSABLE = _SHAPE | _BOUNDS | {*_NAMED, *_EITHER, "items", "additionalProperties", "$schema", "$comment"}
MOST_OPTIONAL = 24
"""Properties that a request's schemas may leave open to be there or not."""
MOST_UNIONS = 16
"""Places in them with a choice between types."""


def is_strict(schema: object) -> bool:
    """Whether OpenAI's strict mode takes it: a closed object, all of whose properties are required, and so on inside;
    and nothing in it but what is known to be taken."""
    at_top = isinstance(schema, dict) and schema.get("type") == "object" and "anyOf" not in schema
    return at_top and all(_is_strict(node) for node in _nodes(schema))


def _is_strict(node: object) -> bool:
    if not isinstance(node, dict) or not node.keys() <= _STRICT:
        return False
    if "$ref" in node:
        return len(node) == 1
    types = _types(node)
    if "object" in types and (
        node.get("additionalProperties") is not False
        or set(node.get("required", ())) != node.get("properties", {}).keys()
    ):
        return False
    if ("array" in types and "items" not in node) or not (types or "anyOf" in node):
        return False
    return node.get("format", "date") in _FORMATS and not _SEARCHES.search(node.get("pattern", ""))


@lru_cache(64)
def closed(schema: bytes) -> bytes | None:
    """The schema as Anthropic takes it: every object closed, and bounds that nothing there holds an answer to told in
    descriptions. None: it has to be told in words as a whole, for it means an object to be open, or says or refers to
    more than a grammar there may."""
    root: object = msgspec.json.decode(schema)
    if not isinstance(root, dict) or root.get("type") != "object":
        return None
    nodes = list(_nodes(root))
    if not all(_is_closable(node) for node in nodes) or not _refers_downwards(root):
        return None
    if sum(map(_optional, nodes)) > MOST_OPTIONAL or sum(map(_is_union, nodes)) > MOST_UNIONS:
        return None
    return msgspec.json.encode(_close(root))


def _is_closable(node: object) -> bool:
    if not isinstance(node, dict) or not node.keys() <= _CLOSABLE:
        return False
    if "$ref" in node:
        return node.keys() <= {"$ref", *_WORDS, *_DEFINITIONS}
    types, properties = _types(node), node.get("properties", {})
    # An object of which nothing is said may hold anything: closed, it would be empty.
    if "object" in types and node.get("additionalProperties", not properties) is not False:
        return False
    # Closed, neither it nor one of its choices would have room for the other's properties.
    if properties and not node.keys().isdisjoint(_EITHER):
        return False
    if not set(node.get("required", ())) <= properties.keys() or ("array" in types and "items" not in node):
        return False
    values = [*node.get("enum", ()), node.get("const")]
    return not any(isinstance(value, (dict, list)) for value in values) and bool(
        types or not node.keys().isdisjoint({"enum", "const", *_EITHER})
    )


def _refers_downwards(root: Node) -> bool:
    """All references are to definitions, and none leads back to itself."""
    found = {f"#/{at}/{name}": _references(node) for at in _DEFINITIONS for name, node in root.get(at, {}).items()}
    try:
        TopologicalSorter(found).prepare()
    except CycleError:
        return False
    return _references(root) <= found.keys()


def _references(root: object) -> set[str]:
    return {node["$ref"] for node in _nodes(root) if isinstance(node, dict) and "$ref" in node}


def _optional(node: Any) -> int:
    return len(node.get("properties", ())) - len(set(node.get("required", ())))


def _is_union(node: Any) -> bool:
    return isinstance(node.get("type"), list) or not node.keys().isdisjoint(_EITHER)


def _close(node: Node) -> Node:
    out: Node = {}
    bounds: Node = {}
    for key, value in node.items():
        if key in _NAMED:
            out[key] = {name: _close(one) for name, one in value.items()}
        elif key in _EITHER:
            out["anyOf"] = [*out.get("anyOf", ()), *(_close(one) for one in value)]
        elif key == "items":
            out[key] = _close(value)
        elif key in _SHAPE or _is_held(key, value):
            out[key] = value
        elif key in _BOUNDS:
            bounds[key] = value
    if "object" in _types(node):
        out["additionalProperties"] = False
    if bounds:
        told = msgspec.json.encode(bounds).decode()
        out["description"] = f"{node['description']}\n\n{told}" if "description" in node else told
    return out


def _is_held(key: str, value: Any) -> bool:
    match key:
        case "format":
            return value in _FORMATS or value == "uri"
        case "pattern":
            return not _SEARCHES.search(value)
        case "minItems":
            return value in (0, 1)
        case _:
            return False


def _types(node: Node) -> list[str]:
    said: str | list[str] = node.get("type", [])
    return [said] if isinstance(said, str) else said


def _nodes(root: object) -> Iterator[object]:
    """The schema and all schemas in it, as far as the keywords tell that are known here."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, dict):
            waiting += [one for key in _NAMED for one in node.get(key, {}).values()]
            waiting += [one for key in _EITHER for one in node.get(key, ())]
            waiting += [node["items"]] if "items" in node else []
