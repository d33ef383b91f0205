"""Strict JSON from strangers: bounded depth, no duplicate keys where we read meaning, no NaN, no number too large."""

from __future__ import annotations

import json

import msgspec

from penstock.engine.errors import BadRecord

MAX_DEPTH = 200
"""Deepest nesting. Tool schemas reach about 20; providers' parsers give up between 100 and 1,000."""

LONG = 8_192
"""Bytes beyond which a text is not looked through for brackets and colons, a nanosecond each: to walk through its few
values and to split it into members again takes less."""
SPACE = ord(" ")

Members = dict[str, msgspec.Raw]

_members = msgspec.json.Decoder(Members)
_any = msgspec.json.Decoder()


def decode(text: bytes) -> object:
    """The value of one JSON text. Raises `BadRecord("malformed")`."""
    try:
        value: object = _any.decode(text)
    except RecursionError as error:
        raise BadRecord("malformed", f"JSON nested deeper than {MAX_DEPTH} levels") from error
    except (msgspec.DecodeError, ValueError) as error:
        raise BadRecord("malformed", f"not JSON that can be read: {error}") from error
    if (len(text) > LONG or text.count(b"{") + text.count(b"[") > MAX_DEPTH) and _deeper(value):
        raise BadRecord("malformed", f"JSON nested deeper than {MAX_DEPTH} levels")
    return value


def told_once(text: bytes, keys: int) -> bool:
    """A quick look at a whole text: it writes as many keys as were read (`keys`, all objects together), so none twice.
    False says nothing: text may hold quotes and colons, or objects that were not counted, or be long. Then `members`
    looks closely.
    """
    return len(text) <= LONG and text.count(b'":') == keys


def raw_members(text: bytes | msgspec.Raw) -> Members:
    """As `members`, for a text in which no key comes twice."""
    return _members.decode(text)


def members(text: bytes | msgspec.Raw) -> Members:
    """The members of a JSON object that `decode` has read, as they are written. Raises `BadRecord` for a key that comes
    twice: some readers take the first, others the last, and nobody would know which was paid for."""
    found = _members.decode(text)
    if found and _length(text) != _expected(text, found):
        _refuse_twice(bytes(text))
    return found


def _length(text: bytes | msgspec.Raw) -> int:
    return memoryview(text).nbytes


def _expected(text: bytes | msgspec.Raw, found: Members) -> int:
    """How long the object is if no key was dropped, for the two spacings that programs write (`{"a":1,"b":2}` and
    `{"a": 1, "b": 2}`); any other object is looked at the slow way."""
    count = len(found)
    inner = sum(map(len, found)) + sum([memoryview(value).nbytes for value in found.values()])
    first = len(next(iter(found))) + 4
    spaced = memoryview(text)[first] == SPACE
    return inner + (6 * count if spaced else 4 * count + 1)


def _refuse_twice(text: bytes) -> None:
    try:
        json.loads(text, object_pairs_hook=_pairs)
    except ValueError as error:
        raise BadRecord("malformed", str(error)) from error


def _pairs(pairs: list[tuple[str, object]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise ValueError(f"the key {key[:100]!r} comes twice in one object")
        seen.add(key)


def _deeper(value: object) -> bool:
    """Whether a value nests deeper than allowed; level by level, no recursion."""
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[object] = []
        for one in level:
            if isinstance(one, dict):
                below.extend(one.values())
            elif isinstance(one, list):
                below.extend(one)
        if not below:
            return False
        level = [one for one in below if isinstance(one, (dict, list))]
    return bool(level)
