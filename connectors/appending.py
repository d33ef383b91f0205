"""Lines that are only ever added, on a state URL: `PREFIX/000001.jsonl` and so on.

An append rewrites the last segment where nobody else did meanwhile (compare-and-swap), or begins the next. So no line
is lost to a race or a kill: it is durable when `append` returns. What is not promised: an append that ends with
`Temporary` may have been written; done again, its lines stand there twice. So readers know lines by a key of their own.
All calls block: call them in a thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from penstock.connectors.documents import ABSENT, State, until_won

SEGMENT_BYTES = 256_000
"""An append writes its whole segment: a quarter of a megabyte is a few milliseconds to a disk, some 50 to S3."""
TRIES = 200
PAUSE_S = 0.002


class Appending:
    """`prefix` ends with a slash."""

    def __init__(self, state: State, prefix: str) -> None:
        self._state = state
        self._prefix = prefix
        self._last = 0
        """The segment that was written last, as far as is known; 0: look."""

    def append(self, lines: Sequence[bytes]) -> None:
        """Add lines (without line breaks), in this order. Raises `Temporary`."""
        for part in _parts(lines):
            until_won(lambda part=part: self._append(part), self._prefix, TRIES, PAUSE_S)

    def lines(self) -> Iterator[bytes]:
        """All of them, oldest first."""
        for key in self._state.list(self._prefix):
            found = self._state.get(key)
            yield from (line for line in (found[0] if found else b"").split(b"\n") if line)

    def _append(self, data: bytes) -> None:
        number, self._last = self._last or self._newest(), 0
        found = self._state.get(self._key(number))
        before, tag = found if found is not None else (b"", ABSENT)
        if before and len(before) + len(data) > SEGMENT_BYTES:
            before, tag, number = b"", ABSENT, number + 1
        self._state.put(self._key(number), before + data, tag)
        self._last = number

    def _newest(self) -> int:
        keys = self._state.list(self._prefix)
        return int(keys[-1].rpartition("/")[2].removesuffix(".jsonl")) if keys else 1

    def _key(self, number: int) -> str:
        return f"{self._prefix}{number:06d}.jsonl"


def _parts(lines: Sequence[bytes]) -> Iterator[bytes]:
    """Joined lines, a segment's worth at a time."""
    part: list[bytes] = []
    size = 0
    for line in lines:
        if part and size + len(line) >= SEGMENT_BYTES:
            yield b"\n".join(part) + b"\n"
            part, size = [], 0
        part.append(line)
        size += len(line) + 1
    if part:
        yield b"\n".join(part) + b"\n"
