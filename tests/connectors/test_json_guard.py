"""What is refused in JSON from strangers, in short texts and in long ones: they are looked at in two ways."""

from __future__ import annotations

import json

import pytest

from penstock.connectors.reading.json_guard import LONG, MAX_DEPTH, decode, members, told_once
from penstock.engine.errors import BadRecord

PADDING = pytest.mark.parametrize("padding", [0, 2 * LONG])


@PADDING
def test_nesting_is_bounded_in_short_and_long_texts(padding: int) -> None:
    def nested(levels: int) -> bytes:
        return b"[" * levels + b'"' + b"x" * padding + b'"' + b"]" * levels

    assert decode(nested(MAX_DEPTH))
    with pytest.raises(BadRecord, match="nested deeper"):
        decode(nested(MAX_DEPTH + 1))
    objects = b'{"a":' * (MAX_DEPTH + 1) + b'"' + b"x" * padding + b'"' + b"}" * (MAX_DEPTH + 1)
    with pytest.raises(BadRecord, match="nested deeper"):
        decode(objects)


@PADDING
def test_many_brackets_side_by_side_are_not_deep(padding: int) -> None:
    assert decode(json.dumps([[{}] * 500, "[{" * 500 + "x" * padding]).encode())


@PADDING
def test_a_key_that_comes_twice_is_refused(padding: int) -> None:
    once = b'{"a":"' + b"x" * padding + b'","b":1}'
    twice = b'{"a":"' + b"x" * padding + b'","a":1}'
    assert told_once(once, 2)
    assert not told_once(twice, 1)
    assert members(once).keys() == {"a", "b"}
    with pytest.raises(BadRecord, match="comes twice"):
        members(twice)


@PADDING
@pytest.mark.parametrize("space", [b" ", b"\t", b"\n", b"\r", b"  "])
def test_a_second_key_is_not_overlooked_where_white_space_stands_before_its_colon(padding: int, space: bytes) -> None:
    text = b'{"a":"' + b"x" * padding + b'","a"' + space + b":1}"
    assert not told_once(text, 1)
    with pytest.raises(BadRecord, match="comes twice"):
        members(text)


@PADDING
def test_what_a_string_holds_is_no_key(padding: int) -> None:
    said = ['"a":', "\\", '\\"a":', ' "a" : ', "\\" * 5 + '"', "é" + '"' * 5 + ":"]
    text = json.dumps({"a": "x" * padding + '"a":', "b": said, "c": {"a": 1}}, ensure_ascii=False).encode()
    assert told_once(text, 4) == bool(padding)  # a short text that holds such a string is unsure
    assert not told_once(text, 3)


def test_a_long_text_that_is_all_quotes_is_left_to_a_closer_look() -> None:
    assert not told_once(json.dumps({"a": ["x"] * LONG}).encode(), 1)
    assert not told_once(b'{"a":"' + b"x" * 2 * LONG + b"\\\\" * 20 + b'"}', 1)
