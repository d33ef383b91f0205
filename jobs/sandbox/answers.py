"""Answers that make sense, the same for the same request: a choice, an instance of a schema, or the text retold."""

from __future__ import annotations

import re
import zlib
from typing import Any

import msgspec

MAX_DEPTH = 32
"""Of a schema; deeper ones get null."""

_PIECE = re.compile(r"\s*(?:\w{1,4}|[^\w\s])")


def tokens(text: str) -> int:
    """Tokens of a text: word pieces of at most four characters, each mark by itself. Close to what real ones count."""
    return len(pieces(text))


def pieces(text: str) -> list[str]:
    """The text's tokens."""
    return _PIECE.findall(text)


def cut(text: str, most: int) -> tuple[str, int, bool]:
    """(the text's first `most` tokens, how many they are, whether something was cut off)."""
    if len(text) <= most:  # a token is at least one character
        return text, tokens(text), False
    end = n = 0
    for n, piece in enumerate(_PIECE.finditer(text), 1):
        if n > most:
            return text[:end], most, True
        end = piece.end()
    return text, n, False


class Part(msgspec.Struct):
    type: str = "text"
    text: str = ""


Content = str | list[Part] | None


class Message(msgspec.Struct):
    role: str
    content: Content = None


class Ask(msgspec.Struct):
    """A request in either protocol, as far as it matters here."""

    messages: list[Message]
    model: str = ""
    system: Content = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    response_format: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    temperature: float | None = None
    seed: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    @property
    def ceiling(self) -> int:
        asked = self.max_completion_tokens or self.max_tokens
        return asked if asked is not None else 4096

    @property
    def schema(self) -> dict[str, Any] | None:
        if self.response_format is not None:
            inner = self.response_format.get("json_schema")
            found = inner.get("schema") if isinstance(inner, dict) else None
        else:
            form = (self.output_config or {}).get("format")
            found = form.get("schema") if isinstance(form, dict) else None
        return found if isinstance(found, dict) else schema_in_words(last_prompt(self))


def plain(content: Content) -> str:
    if isinstance(content, list):
        return "\n".join(part.text for part in content if part.type == "text")
    return content or ""


def input_tokens(ask: Ask) -> int:
    """Four tokens a message for its frame, as chat templates add."""
    return sum(4 + tokens(plain(m.content)) for m in ask.messages) + tokens(plain(ask.system)) + 3


def answer(ask: Ask) -> str:
    """The text of the answer; not yet cut to the request's ceiling."""
    text, choices = split_choices(last_prompt(ask))
    if choices:
        return choose(text, choices)
    if (schema := ask.schema) is not None:
        return msgspec.json.encode(instance(schema, text, schema)).decode()
    return retell(text)


def last_prompt(ask: Ask) -> str:
    return next((plain(m.content) for m in reversed(ask.messages) if m.role == "user"), "")


_ASKED = re.compile(r"Answer with exactly one of:\s*(.*)\Z", re.DOTALL)


def split_choices(prompt: str) -> tuple[str, list[str]]:
    """(the prompt without it, the choices) of an instruction at the prompt's end (see `workers.checking.answers`)."""
    found = _ASKED.search(prompt)
    if found is None:
        return prompt, []
    listed = found.group(1)
    if listed.startswith("- "):
        choices = [line.removeprefix("- ").strip() for line in listed.split("\n")]
    else:
        choices = [choice.strip() for choice in listed.split(",")]
    return prompt[: found.start()], [choice for choice in choices if choice]


_SCHEMA = re.compile(r"valid against this JSON schema: (\{.*\})\Z", re.DOTALL)


def schema_in_words(prompt: str) -> dict[str, Any] | None:
    """The schema that an instruction at the prompt's end holds (see `workers.checking.answers`)."""
    found = _SCHEMA.search(prompt)
    return _object(found[1]) if found is not None else None


def _object(text: str) -> dict[str, Any] | None:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (ValueError, RecursionError):
        return None


_WORD = re.compile(r"\w{4,}")


def choose(text: str, choices: list[str]) -> str:
    """The choice whose name stands in the text; else the one with most of its words there; else by the text's sum."""
    low = text.casefold()
    named = [choice for choice in choices if choice.casefold() in low]
    if named:
        return max(named, key=len)
    shared = [sum(word in low for word in _WORD.findall(choice.casefold())) for choice in choices]
    if max(shared) > 0:
        return choices[shared.index(max(shared))]
    return choices[zlib.crc32(low.encode()) % len(choices)]


def retell(text: str) -> str:
    words = text.split()
    return "In short: " + " ".join(words[:48]) if words else "There is nothing to say."


def instance(schema: Any, text: str, root: dict[str, Any], depth: int = 0) -> Any:
    """A small value that the schema takes."""
    if not isinstance(schema, dict) or depth > MAX_DEPTH:
        return None
    node: dict[str, Any] = _told(schema) | schema
    if "$ref" in node:
        return instance(_resolve(str(node["$ref"]), root), text, root, depth + 1)
    if "const" in node:
        return node["const"]
    if node.get("enum"):
        return _enum(node["enum"], text)
    for several in ("anyOf", "oneOf", "allOf"):
        if node.get(several):
            return instance({**node[several][0], **_without(node, several)}, text, root, depth + 1)
    return _typed(node, text, root, depth)


def _told(node: dict[str, Any]) -> dict[str, Any]:
    """Bounds that the description holds (see `workers.wire.schemas`)."""
    return _object(str(node.get("description", "")).rpartition("\n\n")[2]) or {}


def _without(node: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in node.items() if k != key}


def _enum(values: list[Any], text: str) -> Any:
    names = [value for value in values if isinstance(value, str)]
    return choose(text, names) if names else values[0]


def _resolve(ref: str, root: dict[str, Any]) -> Any:
    node: Any = root
    for step in ref.removeprefix("#").strip("/").split("/") if ref.startswith("#") else ():
        node = node.get(step) if isinstance(node, dict) else None
    return node


def _typed(node: dict[str, Any], text: str, root: dict[str, Any], depth: int) -> Any:
    kind = node.get("type", "object" if "properties" in node else "string")
    match kind[0] if isinstance(kind, list) else kind:
        case "object":
            properties: dict[str, Any] = node.get("properties") or {}
            wanted = node.get("required") or list(properties)
            return {name: instance(properties.get(name, {}), text, root, depth + 1) for name in wanted}
        case "array":
            return [instance(node.get("items", {}), text, root, depth + 1) for _ in range(node.get("minItems", 1))]
        case "integer":
            return int(_number(node, text))
        case "number":
            return float(_number(node, text))
        case "boolean":
            return bool(zlib.crc32(text.encode()) & 1)
        case "null":
            return None
        case _:
            return _string(node, text)


def _number(node: dict[str, Any], text: str) -> float:
    low = node.get("minimum", node.get("exclusiveMinimum", -1) + 1)
    high = node.get("maximum", node.get("exclusiveMaximum", low + 100) - (0 if "exclusiveMaximum" not in node else 1))
    span = int(high - low)
    return low + (zlib.crc32(text.encode()) % (span + 1) if span > 0 else 0)


def _string(node: dict[str, Any], text: str) -> str:
    form = {"date": "2026-01-01", "date-time": "2026-01-01T00:00:00Z", "email": "a@example.com"}.get(
        node.get("format", "")
    )
    value = form or " ".join(text.split()[:8]) or "text"
    value = value.ljust(int(node.get("minLength", 0)), ".")
    return value[: int(node["maxLength"])] if "maxLength" in node else value
