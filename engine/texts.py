"""What models write, made comparable: one form of a text, and what stands in a code fence."""

from __future__ import annotations

import re
import unicodedata

import msgspec

SHORT = 1_000
"""Characters that may be normalised whatever they are."""
MAX_MARKS = 30


def normal(text: str) -> str:
    """As `exact` compares: one form of each character, no case, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", _stream_safe(text)).casefold().split())


def _stream_safe(text: str) -> str:
    """A joiner after every `MAX_MARKS` combining marks in a row: sorting them, as normalising does, takes time in
    proportion to the square of their number, and a model's answer may be nothing else. No language comes near it.

    Source: Unicode Standard Annex 15, section 13 (Stream-Safe Text Process).
    """
    if len(text) <= SHORT or text.isascii():
        return text
    out, marks = list[str](), 0
    for character in text:
        marks = marks + 1 if unicodedata.combining(character) else 0
        out.append(character)
        if marks == MAX_MARKS:
            out.append("\u034f")
            marks = 0
    return "".join(out)


def text_of(expected: object) -> str:
    """Expected answers come from JSON: a string as it is, anything else as JSON writes it."""
    return expected if isinstance(expected, str) else msgspec.json.encode(expected).decode()


_FENCE = "```"
_OPENING = re.compile(r"```[a-zA-Z0-9_-]*+(\s++)")
"""A fence, perhaps its language, and white space. It never goes back over what it took: answers come from models, and a
pattern that does holds up the worker, and all it carries, for minutes."""


def fenced(text: str) -> str | None:
    """What stands in the first code fence that is closed, without the white space around it; None: there is none. A
    line ends behind an opening fence. Takes time in proportion to the text's length."""
    for opening in _OPENING.finditer(text):
        if "\n" in opening[1]:
            close = text.find(_FENCE, opening.end())
            return None if close < 0 else text[opening.end() : close].strip()
    return None
