"""Does an answer meet its task's output constraint? And how to ask for it, and to ask again."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec

from penstock.engine.items import OutputSpec
from penstock.engine.texts import fenced

MAX_CHECKED = 1_000_000
"""Characters of an answer that are looked into; a longer one is no label and no record."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.decode


def check(text: str, output: OutputSpec) -> tuple[bool, str, str]:
    """(ok, canonical text, what is wrong with it). Never raises.

    Choices are compared without case, quotes and closing punctuation, and yield the choice as the task writes it.
    A JSON answer may stand in a code fence, and yields the JSON text.
    """
    if len(text) > MAX_CHECKED:
        return False, text, f"the answer is longer than {MAX_CHECKED} characters"
    if output.choices is not None:
        return _check_choice(text, output.choices)
    if output.json_schema is not None:
        return _check_schema(text, output.json_schema)
    return True, text, ""


def _check_choice(text: str, choices: tuple[str, ...]) -> tuple[bool, str, str]:
    bare = text.strip()
    found = next((choice for choice in choices if choice in (text, bare)), None) or _by_norm(choices).get(_norm(text))
    if found is not None:
        return True, found, ""
    return False, text, f"the answer is none of: {', '.join(choices)}"


@lru_cache(256)
def _by_norm(choices: tuple[str, ...]) -> dict[str, str]:
    """Of two that look alike, the first. One of marks alone (`?`) is met by itself only: undressed, nothing is left of
    it, and any answer without words would be it."""
    return {bare: choice for choice in reversed(choices) if (bare := _norm(choice))}


_EDGES = " \t\r\n\"'`*_.,;:!?()[]{}<>“”‘’«»"
_SPACES = re.compile(r"\s+")


def _norm(text: str) -> str:
    text = text[:4096].strip(_EDGES)
    return _SPACES.sub(" ", text).casefold()


def _check_schema(text: str, schema: bytes) -> tuple[bool, str, str]:
    bare = text.strip()
    try:
        value = _decode(bare)
    except (ValueError, RecursionError) as error:
        inside = fenced(bare)
        if inside is None:
            return False, text, f"the answer is not JSON: {str(error)[:200]}"
        return _check_schema(inside, schema)
    problem = _validator(schema)(value)
    return (False, text, problem) if problem else (True, bare, "")


_SEARCHING = frozenset({"pattern", "patternProperties", "uniqueItems"})


@lru_cache(256)
def may_take_long(schema: bytes) -> bool:
    """Does it search an answer by patterns, or compare all of its parts? An answer can be made, by chance too, on which
    that goes on for ever: it is checked where it can be ended (`workers.checking.apart`)."""
    nodes: list[Any] = [_decode(schema)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            if not _SEARCHING.isdisjoint(node):
                return True
            nodes += node.values()
        elif isinstance(node, list):
            nodes += node
    return False


def prepare(schema: bytes) -> None:
    """What the first check against a schema takes besides: libraries are loaded, and it is compiled."""
    _validator(schema)


@lru_cache(256)
def _validator(schema: bytes) -> Callable[[object], str]:
    """A function that names what is wrong; "" where nothing is. References to other documents are not fetched."""
    from jsonschema.validators import validator_for
    from referencing import Registry

    document: Any = _decode(schema)
    kind: Any = validator_for(document)
    validator: Any = kind(document, registry=Registry())

    def problem(value: object) -> str:
        try:
            error: Any = next(iter(validator.iter_errors(value)), None)
        except RecursionError:
            return "the answer is nested too deeply"
        except Exception as error:  # noqa: BLE001 - a schema with a broken reference or pattern: said, not raised
            return f"the schema can't be applied: {type(error).__name__}"
        return "" if error is None else f"{error.json_path}: {str(error.message)[:200]}"

    return problem


@lru_cache(256)
def choices_instruction(choices: tuple[str, ...]) -> str:
    """What the prompt gains where the provider can't be held to choices otherwise (docs: job file, `output`)."""
    if any("," in choice or "\n" in choice for choice in choices):
        return "Answer with exactly one of:\n" + "\n".join(f"- {choice}" for choice in choices)
    return "Answer with exactly one of: " + ", ".join(choices)


@lru_cache(64)
def schema_instruction(schema: bytes) -> str:
    return "Answer with JSON alone that is valid against this JSON schema: " + schema.decode()


_messages = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])


def with_instruction(messages: msgspec.Raw, instruction: str) -> msgspec.Raw:
    """The messages with `instruction` at the end of the last user message (chat templates differ in what they take
    of system messages; all take this). Raises `ValueError` where they are not a list of objects."""
    rows = _messages.decode(messages)
    for row in reversed(rows):
        if row.get("role") is not None and bytes(row["role"]) == b'"user"':
            row["content"] = _append(bytes(row.get("content", msgspec.Raw(b'""'))), instruction)
            break
    else:
        rows.append({"role": msgspec.Raw(b'"user"'), "content": msgspec.Raw(_encode(instruction))})
    return msgspec.Raw(_encode(rows))


def _append(content: bytes, instruction: str) -> msgspec.Raw:
    content = content.strip()
    if content.startswith(b'"'):
        glue = b"" if content == b'""' else b"\\n\\n"
        return msgspec.Raw(content[:-1] + glue + _encode(instruction)[1:])
    if content.startswith(b"["):
        parts = msgspec.json.decode(content, type=list[msgspec.Raw])
        return msgspec.Raw(_encode([*parts, {"type": "text", "text": instruction}]))
    return msgspec.Raw(_encode(instruction))


def ask_again_body(body_json: bytes, previous: str, message: str) -> bytes:
    """The request once more, with the answer that did not do and what was wrong with it.

    Raises `ValueError` where the body is no chat request.
    """
    body = _decode(body_json, type=dict[str, msgspec.Raw])
    rows = _decode(body["messages"], type=list[msgspec.Raw])
    shown = previous[:MAX_CHECKED]
    said = {"role": "assistant", "content": shown if shown.strip() else "(empty)"}  # Anthropic refuses blanks alone
    asked = {"role": "user", "content": f"That does not do: {message}. Answer again, and with nothing else."}
    body["messages"] = msgspec.Raw(_encode([*rows, said, asked]))
    return _encode(body)
