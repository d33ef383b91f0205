"""YAML text → plain data that remembers its lines, within bounds. Also plain data from Python, within the same bounds.

Scalars follow YAML 1.2 (`yes`, `no` and dates are text, so `choices: [yes, no]` means what it says). Tags are refused,
anchors and merge keys work, and their expansion counts against the same bound on values. Keys become text.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import yaml

from penstock.engine.errors import SpecError

MAX_BYTES = 1_000_000
"""A job file is written by people; a thousand lines are 50 kB."""
MAX_DEPTH = 50
MAX_VALUES = 100_000
MAX_INT = 2**63 - 1
"""What fits into msgpack and JSON readers."""

Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]
Path = tuple[str | int, ...]

_Loader: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

PREFIX = 3
"""Letters that must be right for the rest of a name to be guessed: `ssl_ca` means `ssl_ca_location`."""
_SECRET = re.compile(
    r"\b(?:(?:sk|pk|rk|gsk|xai|csk|fw|hf|ghp|tgp|key)[-_][A-Za-z0-9_\-]{16,}|(?:AIza|AKIA)[A-Za-z0-9_\-]{12,}"
    r"|(?=[A-Za-z]*\d)[A-Za-z0-9]{32,})"
)
_INT = re.compile(r"[-+]?[0-9]+\Z")
_HEX = re.compile(r"0x[0-9a-fA-F]+\Z|0o[0-7]+\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)\Z|\.(nan|NaN|NAN)\Z")


def redact(text: str) -> str:
    """Hide what looks like a key: an error must never show one, not even where it stands in the wrong place."""
    return _SECRET.sub("…", text)


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean X?` or the list of what is known; empty where nothing is."""
    names = sorted(known)
    longer = [each for each in names if each.startswith(name)] if len(name) >= PREFIX else []
    close = difflib.get_close_matches(name[:200], names, n=1, cutoff=0.6 if not longer else 0.8) or longer
    if close:
        return f"; did you mean `{close[0]}`?"
    return f"; known: {', '.join(names[:30])}" if names else ""


class Doc(msgspec.Struct, frozen=True):
    """One file (or Python mapping): its data, and the line of each key and value."""

    name: str
    data: dict[str, Plain]
    lines: dict[Path, int] = {}

    def line(self, path: Path) -> int | None:
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)

    def error(self, path: Path, message: str) -> SpecError:
        where = show(path)
        text = f"{where}: {message}" if where else message
        return SpecError(redact(text), path=self.name, line=self.line(path))


def show(path: Path) -> str:
    """`models[2].price`, as a person would write it."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text[:300]


def parse(text: bytes, name: str) -> Doc:
    """Read one YAML file. Raises `SpecError` with file and line."""
    if len(text) > MAX_BYTES:
        raise SpecError(f"the file has {len(text):,} bytes; at most {MAX_BYTES:,} are read", path=name)
    try:
        decoded = text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise SpecError("not UTF-8 text; save the file as UTF-8", path=name, line=line) from error
    try:
        _check_events(decoded, name)
        node = yaml.compose(decoded, Loader=_Loader)  # type: ignore[arg-type]
    except yaml.YAMLError as error:
        raise _syntax_error(error, name) from None  # its own text would show the line, and a key in it
    except (ValueError, RecursionError) as error:
        raise SpecError("not readable as YAML", path=name) from error
    return _build(node, name)


def from_python(data: Mapping[str, object], name: str) -> Doc:
    """The same bounds for a mapping that a program hands in. Raises `SpecError`."""
    doc = Doc(name, {})
    plain = _Plain(doc).of(data, (), 0)
    assert isinstance(plain, dict)
    return Doc(name, plain)


def _check_events(text: str, name: str) -> None:
    """Depth, documents and tags, before anything recursive touches the text."""
    depth = documents = 0
    for event in yaml.parse(text, Loader=_Loader):  # type: ignore[arg-type]
        line = event.start_mark.line + 1 if event.start_mark else None
        documents += isinstance(event, yaml.DocumentStartEvent)
        if documents > 1:
            raise SpecError("a second document begins here; one file holds one job", path=name, line=line)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise SpecError(f"nested deeper than {MAX_DEPTH} levels", path=name, line=line)
        if isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)) and event.tag is not None:
            raise SpecError("YAML tags (`!…`) are not read; write the value without it", path=name, line=line)


def _syntax_error(error: yaml.YAMLError, name: str) -> SpecError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not readable as YAML"
    line = mark.line + 1 if mark is not None else None
    hint = next((hint for word, hint in _HINTS if word in str(problem)), "")
    return SpecError(redact(f"not valid YAML: {str(problem)[:200]}{hint}"), path=name, line=line)


_HINTS = (
    ("alphabetic or numeric", '; a value that begins with * or & wants quotes, like "*.csv"'),
    ("undefined alias", '; a value that begins with * wants quotes, like "*.csv"'),
    ("cannot start any token", "; a value that begins with %, @ or ` wants quotes, and indents are spaces, not tabs"),
    ("mapping values are not allowed", "; text with `: ` in it wants quotes"),
)


def _build(node: object, name: str) -> Doc:
    if not isinstance(node, yaml.MappingNode):
        found = "nothing" if node is None else _kind(node)
        raise SpecError(f"expected fields like `source: …`, found {found}", path=name, line=1)
    builder = _Builder(name)
    data = builder.mapping(node, (), 0)
    return Doc(name, data, builder.lines)


def _kind(node: object) -> str:
    return "a list" if isinstance(node, yaml.SequenceNode) else "a single value"


def _plain(node: yaml.Node) -> bool:
    """Written without quotes: `3` is a number, `"3"` is text."""
    return not getattr(node, "style", None)


class _Builder:
    """Nodes → plain data; aliases are expanded and counted."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0
        self.lines: dict[Path, int] = {}

    def fail(self, node: yaml.Node, message: str) -> SpecError:
        return SpecError(redact(message), path=self.name, line=node.start_mark.line + 1)

    def value(self, node: yaml.Node, path: Path, depth: int) -> Plain:
        self.count += 1
        if self.count > MAX_VALUES or depth > MAX_DEPTH:
            raise self.fail(node, f"more than {MAX_VALUES:,} values or {MAX_DEPTH} levels (aliases count in full)")
        self.lines.setdefault(path, node.start_mark.line + 1)
        match node:
            case yaml.MappingNode():
                return self.mapping(node, path, depth)
            case yaml.SequenceNode():
                return [self.value(child, (*path, i), depth + 1) for i, child in enumerate(node.value)]
            case _:
                return self.scalar(node)

    def mapping(self, node: yaml.MappingNode, path: Path, depth: int) -> dict[str, Plain]:
        result: dict[str, Plain] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            key = self.key(key_node)
            if key == "<<" and _plain(key_node):
                merged.append(value_node)
                continue
            if key in result:
                raise self.fail(key_node, f"`{key[:100]}` stands here twice; keep one")
            self.lines[(*path, key)] = key_node.start_mark.line + 1
            result[key] = self.value(value_node, (*path, key), depth + 1)
        for value_node in merged:
            self.merge(value_node, result, path, depth)
        return result

    def merge(self, node: yaml.Node, into: dict[str, Plain], path: Path, depth: int) -> None:
        sources: Sequence[yaml.Node] = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for source in sources:
            other = self.value(source, (*path, "<<"), depth + 1)
            if not isinstance(other, dict):
                raise self.fail(source, "`<<` wants a mapping")
            for key, value in other.items():
                into.setdefault(key, value)

    def key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self.fail(node, "a field name is text, not a list or mapping (a `{{ … }}` wants quotes around it)")
        if _plain(node) and node.value in _WORDS and _WORDS[node.value] is None:
            raise self.fail(node, "a field name is missing")
        return str(node.value)

    def scalar(self, node: yaml.Node) -> Plain:
        text = str(node.value)
        if not _plain(node):
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _NOT_FINITE.match(text):
            raise self.fail(node, "a number that is not finite; write a plain number")
        if _INT.match(text) or _HEX.match(text):
            return self.integer(node, text)
        if _FLOAT.match(text):
            number = float(text)
            if not math.isfinite(number):
                raise self.fail(node, "a number too large to hold")
            return number
        return text

    def integer(self, node: yaml.Node, text: str) -> int:
        if len(text) > 20:
            raise self.fail(node, "a number too large to hold")
        number = int(text, 0) if _HEX.match(text) else int(text)
        if abs(number) > MAX_INT:
            raise self.fail(node, "a number too large to hold")
        return number


class _Plain:
    """Python values → plain data. Lists stand for tuples too; keys become text."""

    def __init__(self, doc: Doc) -> None:
        self.doc = doc
        self.count = 0

    def of(self, value: object, path: Path, depth: int) -> Plain:
        self.count += 1
        if self.count > MAX_VALUES or depth > MAX_DEPTH:
            raise self.doc.error(path[:8], f"more than {MAX_VALUES:,} values or {MAX_DEPTH} levels")
        match value:
            case None | bool():
                return value
            case str():
                return self.text(value, path)
            case int() if abs(value) <= MAX_INT:
                return value
            case float() if math.isfinite(value):
                return value
            case int() | float():
                raise self.doc.error(path, "a number that is not finite or too large to hold")
            case Mapping():
                return self.mapping(value, path, depth)
            case list() | tuple():
                return [self.of(v, (*path, i), depth + 1) for i, v in enumerate(value)]
            case _:
                as_text = getattr(value, "__fspath__", None)
                if as_text is not None:
                    return str(as_text())
                raise self.doc.error(path, f"expected text, number, list or mapping, found {type(value).__name__}")

    def mapping(self, value: Mapping[object, object], path: Path, depth: int) -> dict[str, Plain]:
        made: dict[str, Plain] = {}
        for key, child in value.items():
            name = self.text(str(key), path)
            if name in made:
                raise self.doc.error((*path, name), "stands here twice (as text and as a number)")
            made[name] = self.of(child, (*path, name), depth + 1)
        return made

    def text(self, value: str, path: Path) -> str:
        if not is_text(value):
            raise self.doc.error(path, "text that can't be written as UTF-8")
        return value


def is_text(value: str) -> bool:
    """False where half a character stands in it (a lone surrogate): such text can't be stored or sent."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
