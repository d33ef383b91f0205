"""The state's promises: small documents with compare-and-swap, for what must be decided once among many processes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from enum import Enum
from typing import Literal, Protocol, TypeVar

from penstock.engine.errors import PenstockError, SpecError, Temporary

T = TypeVar("T")
Tag = str
"""Names one content of one key. Compared, never read."""


class Absent(Enum):
    ABSENT = "absent"


ABSENT: Literal[Absent.ABSENT] = Absent.ABSENT
"""`put` with it creates: it fails where the key is there already."""


class Conflict(PenstockError):
    """Somebody else wrote the key meanwhile: read it anew and decide again."""


class State(Protocol):
    """Keys are paths of safe characters (`check_key`)."""

    def get(self, key: str) -> tuple[bytes, Tag] | None:
        """The value and its tag; None: no such key. Raises `Temporary`."""
        ...

    def put(self, key: str, value: bytes, expect: Tag | Literal[Absent.ABSENT] | None) -> Tag:
        """Write `value` where the key's tag is `expect` (ABSENT: where it isn't there; None: whatever is there).
        Raises `Conflict`, `Temporary`. After `Temporary` it is uncertain whether it was written: read."""
        ...

    def list(self, prefix: str) -> list[str]:
        """All keys that start with `prefix`, sorted."""
        ...


def until_won(attempt: Callable[[], T], what: str, tries: int = 100, pause_s: float = 0.01) -> T:
    """`attempt` reads, decides and puts; where `put` raises `Conflict`, it is made again after a pause that grows with
    each lost race. Raises `Temporary` after so many."""
    for lost in range(tries):
        try:
            return attempt()
        except Conflict:
            time.sleep(pause_s * min(lost + 1, 20))
    raise Temporary(f"{what} is too busy: lost {tries} races in a row. Try again.")


_PART = re.compile(r"[A-Za-z0-9_%=~@+-][A-Za-z0-9_.%=~@+-]{0,199}")


def check_key(key: str) -> str:
    """The key itself. Raises `SpecError`: a key can't leave the state, hide in it, or meet its locks."""
    if all(_PART.fullmatch(part) for part in key.split("/")):
        return key
    raise SpecError(
        f"{key!r} cannot be a key of the state: its parts may hold letters, digits and _ % = ~ @ + - and, not in "
        "front, dots; at most 200 characters each."
    )
