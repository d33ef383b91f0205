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
QUOTE_BYTES = 256
"""A long text is looked through from quote to quote while it has fewer than one in so many bytes: about as long as a
quote takes, so many bytes take to split into members, three times over."""
SPACE = ord(" ")
BACKSLASH = ord("\\")

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
    """A quick look at a whole text that `decode` has read: it writes as many keys as were read (`keys`, all objects
    together), so none twice. False says nothing: there may be objects that were not counted, white space before a
    colon, or too many quotes. Then `members` looks closely.
    """
    if len(text) > LONG:
        return _keys_written(text) == keys
    if text.count(b'":') != keys:
        return False
    return text.count(b":") == keys or not any(colon in text for colon in _APART)


_APART = (b" :", b"\t:", b"\n:", b"\r:")
"""Colons that need not stand right behind their key."""


def _keys_written(text: bytes) -> int:
    """Keys of all objects in it, told by going from quote to quote; -1: not sure."""
    keys, at, inside = 0, -1, False
    for _ in range(len(text) // QUOTE_BYTES):
        at = text.find(b'"', at + 1)
        if at < 0:
            return keys
        if not inside:
            inside = True
            continue
        if text[at - 1] == BACKSLASH:
            before = text[max(0, at - 16) : at]
            slashes = len(before) - len(before.rstrip(b"\\"))
            if slashes == len(before):
                return -1
            if slashes % 2:
                continue  # a quote that the string holds
        inside = False
        behind = text[at + 1 : at + 2]
        if behind == b":":
            keys += 1
        elif behind.isspace():
            return -1
    return -1


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
