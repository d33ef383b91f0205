"""Sums by group, for a bounded number of groups: labels come from records, and records may hold anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")

MOST = 100
"""Groups of one kind that are told apart: more lines in a table than anybody reads, and it bounds the page."""
OTHERS = "(others)"
"""What came after the first hundred, added up: sums stay whole."""

Key = tuple[str, ...]


class Groups(Generic[T]):
    """Key → value, made when first asked for."""

    def __init__(self, make: Callable[[], T], most: int = MOST) -> None:
        self._make = make
        self._most = most
        self._found: dict[Key, T] = {}

    def at(self, *key: str) -> T:
        kept = self.kept(*key)
        found = self._found.get(kept)
        if found is None:
            found = self._found[kept] = self._make()
        return found

    def kept(self, *key: str) -> Key:
        """The key that this one is counted under."""
        room = key in self._found or len(self._found) < self._most
        return key if room else (OTHERS,) * len(key)

    def ranked(self, size: Callable[[T], float]) -> list[tuple[Key, T]]:
        """The largest first; equals by name."""
        return sorted(self._found.items(), key=lambda kv: (-size(kv[1]), kv[0]))

    def __len__(self) -> int:
        return len(self._found)


class Sum(msgspec.Struct):
    """A number of things, and what they cost: Σ and Σ² of nano-dollars, exact."""

    n: int = 0
    nano: int = 0
    nano2: int = 0
    most: int = 0

    def add(self, nano: int = 0) -> None:
        self.n += 1
        self.nano += nano
        self.nano2 += nano * nano
        self.most = max(self.most, nano)


def sums() -> Groups[Sum]:
    return Groups(Sum)


def named(value: object) -> str:
    """What a record doesn't say is grouped under `–`, as in the bills."""
    return "–" if value is None or value == "" else str(value)


def versioned(model: str | None, version: str | None) -> str:
    """`small@v1`, as the summary names it."""
    return f"{named(model)}@{version}" if version else named(model)
