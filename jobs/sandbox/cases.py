"""What is right: the sandbox knows the true answer of made rows, and of rows with labels that it was given.

**The rule of made rows.** A text that holds a case (`case-<task>-<8 hex digits>`; the last one counts) has one true
answer, whatever else the prompt says: of choices, the one that the case's hash points to in their sorted order; of a
JSON schema, the instance that is made from the case; of anything else, a number from 0 to 999. `penstock sandbox rows`
writes rows with cases and their labels; the model is never told more than the row's text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from penstock.engine.errors import SpecError

_CASE = re.compile(r"\bcase-([a-z0-9_]{1,40})-([0-9a-f]{8})\b")
_HEAD = 40
"""Characters of a labelled text that it is looked up by."""
_SHORTEST = 8
"""A shorter labelled text could stand in any prompt by chance."""


class Known(msgspec.Struct, frozen=True):
    """A row whose answer is known. `key` is its identity in every prompt that shows it."""

    key: str
    task: str = ""
    label: Any = msgspec.UNSET
    """Unset: by the rule of made rows."""


class Truth(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Rows with labels (JSON lines) whose texts are known when they stand in a prompt."""

    path: str
    text: str = "text"
    """The column that the prompt shows."""
    label: str = "label"
    task: str | None = None


class Book:
    """Finds the labelled row that a prompt shows. A thousand characters take about half a millisecond."""

    def __init__(self, truth: Truth | None = None) -> None:
        self._rows: dict[str, list[tuple[str, Known]]] = {}
        for text, known in _labelled(truth) if truth is not None else ():
            self._rows.setdefault(text[:_HEAD], []).append((text, known))
        self._lengths = sorted({len(head) for head in self._rows}, reverse=True)

    def find(self, prompt: str) -> Known | None:
        """The row in a prompt: the longest labelled text there, else the last case; None: neither."""
        text = _plain(prompt) if self._rows else ""
        for length in self._lengths:
            found = [hit for i in range(len(text) - length + 1) for hit in self._at(text, i, length)]
            if found:
                return max(found, key=lambda hit: len(hit[0]))[1]
        case = next(reversed(list(_CASE.finditer(prompt))), None)
        return None if case is None else Known(case[0], case[1])

    def _at(self, text: str, i: int, length: int) -> Iterator[tuple[str, Known]]:
        for row in self._rows.get(text[i : i + length], ()):
            if text.startswith(row[0], i):
                yield row


def _plain(text: str) -> str:
    return " ".join(text.split())


def _labelled(truth: Truth) -> Iterator[tuple[str, Known]]:
    try:
        lines = Path(truth.path).read_bytes().splitlines()
        rows = [msgspec.json.decode(line, type=dict[str, Any]) for line in lines if line.strip()]
    except (OSError, msgspec.DecodeError) as error:
        raise SpecError(f"the sandbox's labelled rows: {error}", path=truth.path) from error
    for row in rows:
        text, label = _plain(str(row.get(truth.text, ""))), row.get(truth.label)
        if label is not None and len(text) >= _SHORTEST:
            yield text, Known(number(text).to_bytes(8).hex(), str(row.get(truth.task or "", "")), label)


def number(*parts: str) -> int:
    """A stable number of 64 bits."""
    return int.from_bytes(blake2b("\0".join(parts).encode(), digest_size=8, person=b"pst-planted").digest())


def true_choice(known: Known, choices: list[str]) -> str:
    """The label where it is one of the choices, else by the rule."""
    if isinstance(known.label, str) and known.label in choices:
        return known.label
    return sorted(set(choices))[number(known.key, "truth") % len(set(choices))]


def true_number(known: Known) -> int:
    return number(known.key, "number") % 1_000


# ---- made rows

CHOICES = ("billing", "delivery", "other", "product")
CHANNELS = ("mail", "chat", "phone")
_THINGS = ("lamp", "kettle", "jacket", "phone case", "book", "chair", "backpack", "watch")
_STORIES = (
    "I wrote to you last week about my {thing} and heard nothing.",
    "Since Monday something is not as it should be with the {thing}.",
    "My neighbour says that I should ask you about the {thing}.",
    "Could somebody look at what happened with the {thing}?",
    "This is the second time that I write about a {thing}.",
)


def rows(count: int, task: str = "messages", choices: tuple[str, ...] = CHOICES, seed: int = 0) -> Iterator[Any]:
    """Made rows with their true answers: `label` of the choices, `number` for a prompt without choices. `channel` is
    an attribute to slice by; it stands in the text too."""
    if not re.fullmatch(r"[a-z0-9_]{1,40}", task):
        raise SpecError(f"a made row's task has lower-case letters, digits and underscores, not {task!r}")
    for n in range(count):
        draw = number(str(seed), task, str(n))
        known = Known(f"case-{task}-{draw & 0xFFFFFFFF:08x}", task)
        channel = CHANNELS[(draw >> 32) % len(CHANNELS)]
        story = _STORIES[(draw >> 40) % len(_STORIES)].format(thing=_THINGS[(draw >> 48) % len(_THINGS)])
        yield {
            "id": f"{task}-{n}",
            "task": task,
            "channel": channel,
            "text": f"By {channel}: {story} ({known.key})",
            "label": true_choice(known, list(choices)),
            "number": true_number(known),
        }
