"""How many lanes, or the run, are being taken of a store just now: what all of them share must not end under them."""

from __future__ import annotations

import contextlib
from collections.abc import Generator


class Arrivals:
    def __init__(self) -> None:
        self._count = 0

    def __bool__(self) -> bool:
        return self._count > 0

    @contextlib.contextmanager
    def one(self) -> Generator[None]:
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1
