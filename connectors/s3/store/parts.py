"""Reading what lanes have committed: parts, and the spools on disk that assembly works on. Everything here blocks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from penstock.connectors.base import OutRecord
from penstock.connectors.filestore.spool import Spool, pack_batch, unpack_batch
from penstock.connectors.s3 import fence
from penstock.connectors.s3.client import threads
from penstock.connectors.s3.errors import Missing
from penstock.connectors.s3.store.home import Home
from penstock.connectors.s3.store.progress import (
    Chain,
    Final,
    Part,
    Progress,
    all_finals,
    all_parts,
    decode,
    folder,
    progress_name,
)
from penstock.engine.errors import Corrupt
from penstock.engine.plan import Plan

AHEAD = 16
"""Parts fetched at once: one takes 20–60 ms, so 16 bring a few hundred a second."""
AHEAD_BYTES = 32 << 20

Located = tuple[int, Part]
"""A lane and one of its parts."""
Divide = Callable[[str, OutRecord], str]
"""Sink and record → the folder that it belongs in; "": the sink's own."""


class Made(msgspec.Struct, frozen=True):
    """A lane's finals that it has not forgotten. first: the number of the first; it numbers all that it ever makes."""

    first: int
    finals: list[Final]

    @property
    def end(self) -> int:
        return self.first + len(self.finals)

    def since(self, number: int) -> list[Final]:
        return self.finals[max(0, number - self.first) :]


def lanes(home: Home, numbers: Sequence[int]) -> dict[int, Progress]:
    """Those of these lanes that started, with what is committed there."""

    def get(lane: int) -> Progress | None:
        got = fence.read(home.s3, home.bucket, home.key(progress_name(lane)))
        return decode(got.data, f"{home}{progress_name(lane)}") if got is not None else None

    return {lane: state for lane, state in zip(numbers, threads().map(get, numbers), strict=True) if state is not None}


def planned_lanes(home: Home, plan: Plan) -> dict[int, Progress]:
    """All lanes of a run that is finished, asked for by name: a store's listing may lag. Raises `Corrupt` where one is
    gone."""
    found = lanes(home, range(plan.lanes))
    refuse_lost(home, plan, found)
    return found


def refuse_lost(home: Home, plan: Plan, found: Collection[int]) -> None:
    """Raises `Corrupt` where a lane that started is not among those that were found."""
    if plan.started and len(found) < plan.lanes:
        lost = next(lane for lane in range(plan.lanes) if lane not in found)
        raise Corrupt(
            f"{home}{progress_name(lost)} is gone, but its lane had started. Restore it, or start with --fresh."
        )


def lane_numbers(home: Home) -> list[int]:
    """Of the lanes that a listing shows."""
    return [int(name.removeprefix("progress/")) for name in home.list("progress/")]


def committed(home: Home, states: Mapping[int, Progress], sink: str) -> Iterator[bytes]:
    """Records of one sink that stand in parts, lane by lane, as they were decided."""
    for lane, state in states.items():
        located = ((lane, part) for part in itertools.chain(unmerged(home, lane, state), whole(home, lane, state)))
        yield from values(home, located, sink)


def made(home: Home, lane: int, state: Progress) -> Made:
    """The lane's finals, as they were made."""
    return Made(state.told, list(all_finals(home, lane, state.finals)))


def whole(home: Home, lane: int, state: Progress) -> Iterator[Part]:
    """Parts of sinks that are one object, oldest first."""
    return all_parts(home, lane, state.whole)


def unmerged(home: Home, lane: int, state: Progress) -> Iterator[Part]:
    """Parts of prefix sinks that no final holds yet, oldest first."""
    if state.merging is not None:
        yield from all_parts(home, lane, Chain(sealed=state.merging.head))
    yield from all_parts(home, lane, state.parts)


def values(home: Home, located: Iterable[Located], sink: str) -> Iterator[bytes]:
    """The records of one sink, as they were decided."""
    mine = ((lane, part) for lane, part in located if any(name == sink for name, _, _ in part.slices))
    for lane, part, data in fetched(home, mine):
        for name, offset, length in part.slices:
            if name == sink:
                batch = data[offset : offset + length]
                yield from (record.value for record in unpack_batch(batch, _name(home, lane, part)))


def fetched(home: Home, located: Iterable[Located]) -> Iterator[tuple[int, Part, bytes]]:
    """Each part with its bytes, some fetched ahead. Raises `Corrupt` where one is gone."""

    def get(one: Located) -> bytes:
        try:
            return home.s3.get(home.bucket, home.key(folder(one[0]) + one[1].name)).data
        except Missing as error:
            raise Corrupt(f"{_name(home, *one)} is gone. Restore it, or start with --fresh.") from error

    for group in _groups(located):
        for (lane, part), data in zip(group, threads().map(get, group), strict=True):
            yield lane, part, data


def _groups(located: Iterable[Located]) -> Iterator[list[Located]]:
    """As many parts as may be held at once; a single one may be larger."""
    group: list[Located] = []
    size = 0
    for lane, part in located:
        if group and (len(group) == AHEAD or size + part.size > AHEAD_BYTES):
            yield group
            group, size = [], 0
        group.append((lane, part))
        size += part.size
    if group:
        yield group


def _name(home: Home, lane: int, part: Part) -> str:
    return f"{home}{folder(lane)}{part.name}"


class Spools:
    """Parts copied to disk, a file for each sink and folder: what `filestore.assembly` sorts and writes."""

    def __init__(self, temp: Path, sinks: Iterable[str], divide: Divide) -> None:
        self._temp = temp
        self._sinks = frozenset(sinks)
        self._divide = divide
        self._lengths: dict[tuple[str, str], int] = {}
        self._paths: dict[tuple[str, str], Path] = {}

    def add(self, home: Home, lane: int, part: Part, data: bytes) -> None:
        for sink, offset, length in part.slices:
            if sink in self._sinks:
                self._add(sink, data[offset : offset + length], _name(home, lane, part))

    def _add(self, sink: str, batch: bytes, name: str) -> None:
        folders: dict[str, list[OutRecord]] = {}
        for record in unpack_batch(batch, name):
            folders.setdefault(self._divide(sink, record), []).append(record)
        for place, records in folders.items():
            self._append((sink, place), batch if len(folders) == 1 else pack_batch(records))

    def _append(self, key: tuple[str, str], batch: bytes) -> None:
        path = self._paths.setdefault(key, self._temp / f"{len(self._paths)}.spool")
        with path.open("ab") as file:
            file.write(batch)
        self._lengths[key] = self._lengths.get(key, 0) + len(batch)

    def all(self) -> Iterator[tuple[str, str, Spool]]:
        """(sink, folder, spool), in order."""
        for key in sorted(self._paths):
            yield *key, Spool(self._paths[key], self._lengths[key])
