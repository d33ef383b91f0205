"""Plain data → the file's structs, with every refusal at its line.

Unknown fields are found by a walk over the types (so that the nearest name can be told); wrong types by msgspec.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeVar

import msgspec
from msgspec import inspect

from penstock.jobs.spec.tree import Doc, Path, Plain, nearest

T = TypeVar("T")
NAMELESS = "; each sink stands under its name, like `sinks: {results: {type: …}}`"
"""To who writes a sink as a source is written."""


def decode(doc: Doc, into: type[T]) -> T:
    """Raises `SpecError` with file, line, field, what was expected and what was found."""
    _walk(doc, doc.data, inspect.type_info(into), ())
    try:
        return msgspec.convert(doc.data, into, strict=True)
    except msgspec.ValidationError as error:
        path = _locate(doc.data, into, str(error))
        raise doc.error(path, _say(error)) from None


def _walk(doc: Doc, data: Plain, kind: inspect.Type, path: Path) -> None:
    match data:
        case dict():
            _walk_mapping(doc, data, kind, path)
        case list():
            item = _pick(kind, inspect.ListType)
            for i, value in enumerate(data):
                if item is not None:
                    _walk(doc, value, item.item_type, (*path, i))
        case str():
            _check_word(doc, data, kind, path)
        case _:
            return


def _check_word(doc: Doc, data: str, kind: inspect.Type, path: Path) -> None:
    """A word from a closed list: a wrong one is told with its nearest."""
    words: list[str] = []
    for member in _members(kind):
        match member:
            case inspect.LiteralType():
                words.extend(str(v) for v in member.values)
            case inspect.StrType():
                return
            case _:
                continue
    if words and data not in words:
        raise doc.error(path, f"`{data[:60]}` is not known here{nearest(data, words)}")


def _walk_mapping(doc: Doc, data: dict[str, Plain], kind: inspect.Type, path: Path) -> None:
    struct = _struct(doc, data, kind, path)
    if struct is None:
        mapping = _pick(kind, inspect.DictType)
        for key, value in data.items():
            if mapping is not None:
                _walk(doc, value, mapping.value_type, (*path, key))
        return
    fields = {f.encode_name: f for f in struct.fields}
    tag = {struct.tag_field} if struct.tag_field else set[str]()
    for key, value in data.items():
        if key in fields:
            _walk(doc, value, fields[key].type, (*path, key))
        elif key not in tag:
            nameless = path == ("sinks",) and "type" in data
            raise doc.error((*path, key), f"unknown field{NAMELESS if nameless else nearest(key, [*fields, *tag])}")
    missing = [f.encode_name for f in struct.fields if f.required and f.encode_name not in data]
    if missing:
        raise doc.error(path, f"the field `{missing[0]}` is missing")


def _members(kind: inspect.Type) -> Iterable[inspect.Type]:
    return kind.types if isinstance(kind, inspect.UnionType) else (kind,)


K = TypeVar("K", bound=inspect.Type)


def _pick(kind: inspect.Type, wanted: type[K]) -> K | None:
    return next((t for t in _members(kind) if isinstance(t, wanted)), None)


def _struct(doc: Doc, data: dict[str, Plain], kind: inspect.Type, path: Path) -> inspect.StructType | None:
    """The struct that this mapping should be; by its `type` where several may stand here."""
    structs = [t for t in _members(kind) if isinstance(t, inspect.StructType)]
    if not structs or structs[0].tag_field is None:
        return structs[0] if structs else None
    tags = {str(t.tag): t for t in structs}
    name = data.get(structs[0].tag_field)
    if isinstance(name, str) and name in tags:
        return tags[name]
    if isinstance(name, str):
        raise doc.error((*path, "type"), f"unknown type `{name[:60]}`{nearest(name, public(tags))}")
    raise doc.error(path, f"say its `type:` ({', '.join(public(tags))})")


def public(tags: Iterable[str]) -> list[str]:
    return [tag for tag in tags if tag != "memory"]


_AT = re.compile(r" - at `(key in )?(\$[^`]*)`\Z")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]")


def _locate(data: dict[str, Plain], into: type[object], message: str) -> Path:
    """msgspec names list items but not keys of a mapping (`[...]`): those are found by trying each alone."""
    found = _AT.search(message)
    path: Path = ()
    for field, index in _STEP.findall(found.group(2) if found else ""):
        if field:
            path = (*path, field)
        elif index != "...":
            path = (*path, int(index))
        else:
            key = _guilty(data, into, message, path)
            if key is None:
                return path
            path = (*path, key)
    return path


def _at(data: Plain, path: Path) -> Plain:
    for part in path:
        match data:
            case dict() if isinstance(part, str):
                data = data.get(part)
            case list() if isinstance(part, int) and part < len(data):
                data = data[part]
            case _:
                return None
    return data


def _only(data: Plain, path: Path, key: str) -> Plain:
    """A copy in which the mapping at `path` holds `key` alone."""
    if not path:
        return {key: data[key]} if isinstance(data, dict) else data
    head, rest = path[0], path[1:]
    match data:
        case dict() if isinstance(head, str) and head in data:
            return {**data, head: _only(data[head], rest, key)}
        case list() if isinstance(head, int):
            return [_only(v, rest, key) if i == head else v for i, v in enumerate(data)]
        case _:
            return data


def _guilty(data: dict[str, Plain], into: type[object], message: str, path: Path) -> str | None:
    mapping = _at(data, path)
    if not isinstance(mapping, dict):
        return None
    for key in mapping:
        try:
            msgspec.convert(_only(data, path, key), into, strict=True)
        except msgspec.ValidationError as error:
            if str(error) == message:
                return key
    return None


_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "nothing",
}


def _words(types: str) -> str:
    names = [_NAMES.get(t.strip(), t.strip()) for t in types.split("|")]
    if len(names) > 1 and "nothing" in names:
        names.remove("nothing")
    if "a number" in names and "a whole number" in names:
        names.remove("a whole number")
    return " or ".join(dict.fromkeys(names))


_EXPECTED = re.compile(r"Expected `([^`]+)`, got `([^`]+)`")


def _say(error: msgspec.ValidationError) -> str:
    """Our words for msgspec's; it tells types, never values."""
    text = _AT.sub("", str(error))
    if found := _EXPECTED.match(text):
        return f"expected {_words(found.group(1))}, found {_words(found.group(2))}"
    return text[:200]
