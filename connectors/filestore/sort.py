"""Committed records of many spools in input order, in flat memory: an external merge sort of their index.

Only index rows (32 bytes a record) are sorted: in chunks, each spilled to a run file, then merged block by block. The
values stay where they are and are fetched for each block of the answer; records that were neighbours in a spool come
with one read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.connectors.filestore.spool import Spool, iter_index

if TYPE_CHECKING:
    import numpy as np

    from penstock.connectors.filestore.spool import Index

CHUNK_ROWS = 65_536
"""Rows sorted at once: 2 MB, and as much again three times while they are sorted."""
MERGE_BYTES = 8 << 20
"""Held by all runs together while they are merged."""
BLOCK_BYTES = 2 << 20
BLOCK_ROWS = 4096
GAP_BYTES = 4096
"""Two values this close in a spool are fetched with one read: a page is read anyway."""

_ENTRY = [
    ("ordinal", "<u4"),
    ("position", "<i8"),
    ("sub", "<u4"),
    ("length", "<u4"),
    ("file", "<u4"),
    ("offset", "<u8"),
]
_ENTRY_BYTES = 32


def sorted_values(spools: Sequence[Spool], temp: Path) -> Iterator[list[bytes]]:
    """Blocks of values (each with its newline) in the order of (ordinal, position, sub).

    `temp`: an existing folder for run files; they are removed at the end.
    """
    fds = [os.open(s.path, os.O_RDONLY | os.O_CLOEXEC) for s in spools]
    try:
        for entries in _sorted_entries(spools, temp):
            for block in _blocks(entries):
                yield _fetch(block, fds)
    finally:
        for fd in fds:
            os.close(fd)


def _sorted_entries(spools: Sequence[Spool], temp: Path) -> Iterator[Index]:
    chunks = _chunks(spools)
    first, second = next(chunks, None), next(chunks, None)
    if first is None:
        return
    if second is None:
        yield _sort(first)
        return
    runs = [_spill(_sort(chunk), temp / f"index-{n}.run") for n, chunk in enumerate(_again(first, second, chunks))]
    try:
        yield from _merge(runs)
    finally:
        for run in runs:
            run.close()


def _again(first: Index, second: Index, rest: Iterator[Index]) -> Iterator[Index]:
    yield first
    yield second
    yield from rest


def _chunks(spools: Sequence[Spool]) -> Iterator[Index]:
    """All index rows with the file and offset of their values, in chunks of about `CHUNK_ROWS`."""
    import numpy as np

    held: list[Index] = []
    count = 0
    for number, spool in enumerate(spools):
        for rows, offset in iter_index(spool):
            held.append(_locate(rows, number, offset))
            count += len(rows)
            if count >= CHUNK_ROWS:
                yield np.concatenate(held)
                held, count = [], 0
    if held:
        yield np.concatenate(held)


def _locate(rows: Index, file: int, offset: int) -> Index:
    import numpy as np

    entries = np.empty(len(rows), np.dtype(_ENTRY))
    for name in ("ordinal", "position", "sub", "length"):
        entries[name] = rows[name]
    entries["file"] = file
    ends = np.cumsum(rows["length"], dtype=np.uint64)
    entries["offset"] = ends - rows["length"] + np.uint64(offset)
    return entries


def _sort(entries: Index) -> Index:
    import numpy as np

    return entries[np.lexsort((entries["sub"], entries["position"], entries["ordinal"]))]


class _Run:
    """One sorted run on disk, and the part of it that is in memory."""

    def __init__(self, path: Path, rows: int) -> None:
        self.path = path
        self.left = rows
        self._file = path.open("rb")
        self.held = self._read(0)

    def _read(self, rows: int) -> Index:
        import numpy as np

        rows = min(rows, self.left)
        self.left -= rows
        return np.frombuffer(self._file.read(rows * _ENTRY_BYTES), np.dtype(_ENTRY))

    def fill(self, rows: int) -> None:
        if not len(self.held) and self.left:
            self.held = self._read(rows)

    def close(self) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)


def _spill(entries: Index, path: Path) -> _Run:
    with path.open("wb") as file:
        file.write(entries.tobytes())
    return _Run(path, len(entries))


def _merge(runs: list[_Run]) -> Iterator[Index]:
    """Each round gives out every held row up to the smallest last row of a run that has more on disk."""
    import numpy as np

    rows = max(256, MERGE_BYTES // _ENTRY_BYTES // len(runs))
    while True:
        for run in runs:
            run.fill(rows)
        if not any(len(run.held) for run in runs):
            return
        lasts = [_key(run.held[-1]) for run in runs if run.left]
        parts: list[Index] = []
        for run in runs:
            count = _count_up_to(run.held, min(lasts)) if lasts else len(run.held)
            parts.append(run.held[:count])
            run.held = run.held[count:]
        yield _sort(np.concatenate(parts))


def _key(entry: np.void) -> tuple[int, int, int]:
    return int(entry["ordinal"]), int(entry["position"]), int(entry["sub"])


def _count_up_to(rows: Index, key: tuple[int, int, int]) -> int:
    ordinal, position, sub = key
    here = rows["position"] == position
    below = (rows["position"] < position) | (here & (rows["sub"] <= sub))
    return int(((rows["ordinal"] < ordinal) | ((rows["ordinal"] == ordinal) & below)).sum())


def _blocks(entries: Index) -> Iterator[Index]:
    """Cut so that the values of a block stay small; a single value may be larger."""
    for start in range(0, len(entries), BLOCK_ROWS):
        rows = entries[start : start + BLOCK_ROWS]
        at = size = 0
        for n, length in enumerate(rows["length"].tolist()):
            if size and size + length > BLOCK_BYTES:
                yield rows[at:n]
                at, size = n, 0
            size += length
        yield rows[at:]


def _fetch(block: Index, fds: list[int]) -> list[bytes]:
    import numpy as np

    order = np.lexsort((block["offset"], block["file"])).tolist()
    files, offsets, lengths = (block[name].tolist() for name in ("file", "offset", "length"))
    values = [b""] * len(block)
    at = 0
    while at < len(order):
        file, start = files[order[at]], offsets[order[at]]
        stop, end = at, start
        while stop < len(order) and files[order[stop]] == file and offsets[order[stop]] - end <= GAP_BYTES:
            end = offsets[order[stop]] + lengths[order[stop]]
            stop += 1
        data = os.pread(fds[file], end - start, start)
        for i in order[at:stop]:
            values[i] = data[offsets[i] - start : offsets[i] - start + lengths[i]]
        at = stop
    return values
