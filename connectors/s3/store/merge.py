"""A lane's small parts become large objects that readers see, while the run goes and at its end.

1. *Begin*: one swap of the progress moves the parts that wait into `merging`, with the name of this attempt.
2. Write the finals, below each sink's own prefix, with that name in theirs.
3. *End*: one swap names the finals and retires the parts.
4. *Forget*, in a job without an end: once readers are told of the finals (`told`), the lane need not name them.

Whoever dies between 1 and 3 leaves finals that nothing names; the lane's next owner removes those of the attempt that
it finds in the progress and makes one of its own. Merged parts live on for a while for those who read them just now.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import tempfile
import threading
from collections.abc import Generator, Iterator
from pathlib import Path

import msgspec

from penstock.connectors.filestore import assembly
from penstock.connectors.s3.store.chunks import Objects
from penstock.connectors.s3.store.home import Home
from penstock.connectors.s3.store.lane import Lane
from penstock.connectors.s3.store.leftovers import is_named, remove_attempt
from penstock.connectors.s3.store.partitions import Sinks, divider
from penstock.connectors.s3.store.parts import Spools, fetched
from penstock.connectors.s3.store.progress import (
    SEAL,
    Chain,
    Final,
    Merging,
    Progress,
    Retired,
    all_parts,
    folder,
    retired_names,
)
from penstock.connectors.s3.store.upload import upload
from penstock.connectors.settings import FilesSink
from penstock.engine.errors import Fenced, PenstockError, Temporary

MERGE_BYTES = 64 << 20
"""Of records that wait in a lane: then they are merged. Readers like objects of some ten to some hundred MB."""
SEAL_AFTER_S = 600.0
"""In a job without an end, records wait no longer than this for their readers."""
GRACE_S = 900.0
"""How long merged parts live on: longer than anybody reads one."""
MERGE_STEPS = ("merge.begun", "merge.written", "merge.ended")


class Stopped(Exception):
    """The merge was told to stop; the lane's next owner makes it anew."""


def is_due(state: Progress, now: float, *, endless: bool) -> bool:
    waiting = not state.parts.empty
    return (
        state.merging is not None
        or state.parts.size >= MERGE_BYTES
        or (endless and waiting and now - state.parts.since >= SEAL_AFTER_S)
    )


async def merge(lane: Lane, home: Home, sinks: Sinks, now: float, stop: threading.Event) -> bool:
    """Merge what waits; False: nothing did. Raises as `Lane.change`, and `Stopped`."""
    left = lane.state.merging
    if left is not None:
        await lane.change(_same)  # from here on an end of it that got no answer can't come true any more
        await asyncio.to_thread(remove_attempt, home, sinks, left.attempt)
    merging = await _begin(lane)
    if merging is None:
        return False
    lane.step("merge.begun")
    try:
        finals = await asyncio.to_thread(_write, home, lane.number, sinks, merging, stop)
        lane.step("merge.written")
        await _end(lane, merging, finals, now)
    except (Fenced, Stopped):  # not where the end is uncertain: it may come true, and name them; the next merge sees
        with contextlib.suppress(PenstockError):
            if not await asyncio.to_thread(is_named, home, lane.number, sinks, merging.attempt):
                await asyncio.to_thread(remove_attempt, home, sinks, merging.attempt)
        raise
    lane.step("merge.ended")
    return True


def _same(state: Progress, _: Objects) -> Progress:
    return state


async def _begin(lane: Lane) -> Merging | None:
    if lane.state.merging is None and lane.state.parts.empty:
        return None
    attempt = f"{lane.number:04d}-{lane.state.seq:010d}-{secrets.token_hex(4)}"

    def to(state: Progress, objects: Objects) -> Progress:
        if state.merging is not None:
            return msgspec.structs.replace(state, merging=Merging(attempt, state.merging.head))
        parts = lane.sealed(state.parts, state.seq, objects) if state.parts.recent else state.parts
        return msgspec.structs.replace(state, parts=Chain(), merging=Merging(attempt, parts.sealed))

    await lane.change(to)
    return lane.state.merging


async def _end(lane: Lane, merging: Merging, finals: list[Final], now: float) -> None:
    def to(state: Progress, objects: Objects) -> Progress:
        made = msgspec.structs.replace(state.finals, recent=(*state.finals.recent, *finals))
        return msgspec.structs.replace(
            state,
            merging=None,
            finals=lane.sealed(made, state.seq, objects) if len(made.recent) >= SEAL else made,
            retired=(*state.retired, Retired(now, merging.head)),
        )

    await lane.change(to)


async def collect(lane: Lane, home: Home, before: float) -> None:
    """Delete what was retired before that time (unix seconds)."""
    old = [one for one in lane.state.retired if one.at <= before]
    for one in old:
        await asyncio.to_thread(_delete_retired, home, lane.number, one)
    if old:
        await lane.change(lambda s, _: msgspec.structs.replace(s, retired=tuple(r for r in s.retired if r not in old)))


async def forget(lane: Lane, end: int, now: float) -> None:
    """Let the lane forget its finals: readers are told of all up to number `end`, which is past the last."""

    def to(state: Progress, _: Objects) -> Progress:
        old = state.finals.sealed
        retired = (*state.retired, Retired(now, old, finals=True)) if old else state.retired
        return msgspec.structs.replace(state, finals=Chain(), told=end, retired=retired)

    if not lane.state.finals.empty:
        await lane.change(to)
        lane.step("merge.forgotten")


def _delete_retired(home: Home, lane: int, one: Retired) -> None:
    for names in retired_names(home, lane, one):
        home.s3.delete(home.bucket, [home.key(folder(lane) + name) for name in names])


# writing; in a thread of its own


def _write(home: Home, lane: int, sinks: Sinks, merging: Merging, stop: threading.Event) -> list[Final]:
    with temp_folder() as temp:
        spools = Spools(temp, sinks.outputs, divider(sinks.outputs))
        located = ((lane, part) for part in all_parts(home, lane, Chain(sealed=merging.head)))
        for _, part, data in fetched(home, located):
            _check(stop)
            spools.add(home, lane, part, data)
        finals: list[Final] = []
        for sink, place, spool in spools.all():
            _check(stop)
            work = temp / "work"
            output = FilesSink(f"{temp / 'out'}/", sinks.outputs[sink].format)
            assembly.assemble(assembly.Job(sink, output, sinks.life, work, [spool], lambda: None))
            finals += _put(home, sinks, sink, place, merging.attempt, Path(output.path), stop)
            shutil.rmtree(output.path)
        return finals


def _put(
    home: Home, sinks: Sinks, sink: str, place: str, attempt: str, made: Path, stop: threading.Event
) -> Iterator[Final]:
    manifest = msgspec.json.decode((made / "_manifest.json").read_bytes(), type=assembly.Manifest)
    for file in manifest.files:
        _check(stop)
        number = file.name.removeprefix("part-")
        key = f"{sinks.outputs[sink].prefix}{place}part-{sinks.life}-{attempt}-{number}"
        upload(home.s3, home.bucket, key, made / file.name, sinks.stored(sink), None)
        yield Final(sink, key, file.rows, file.bytes)


@contextlib.contextmanager
def temp_folder() -> Generator[Path]:
    """Room on this machine's disk (TMPDIR). Raises `Temporary` where it fails."""
    try:
        with tempfile.TemporaryDirectory(prefix="penstock-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    except OSError as error:
        raise Temporary(
            f"no room for assembling outputs in {tempfile.gettempdir()} ({error}). Free space there or set TMPDIR; "
            "nothing committed is lost."
        ) from error


def _check(stop: threading.Event) -> None:
    if stop.is_set():
        raise Stopped
