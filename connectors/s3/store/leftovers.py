"""What killed owners of a lane left where readers look: objects that nothing names, and uploads that never ended.

An object of ours there says in its name whose it is: `part-<life>-<attempt>-<number>`, and an attempt begins with its
lane. Whoever removes one must be sure that nobody can name it any more; an upload may be given up as soon as its owner
is fenced.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterable, Iterator

from penstock.connectors.s3 import fence
from penstock.connectors.s3.client import S3
from penstock.connectors.s3.errors import Missing
from penstock.connectors.s3.store import told
from penstock.connectors.s3.store.home import Home
from penstock.connectors.s3.store.lane import Lane
from penstock.connectors.s3.store.partitions import Sinks
from penstock.connectors.s3.store.progress import Progress, all_finals, decode, progress_name
from penstock.connectors.s3.store.run import Life
from penstock.connectors.settings import S3Sink
from penstock.engine.errors import Refused

_FINAL = re.compile(r"part-[0-9a-f]{8}-(\d{4})-\d{10}-[0-9a-f]{8}-[^/]*")


def remove_attempt(home: Home, sinks: Sinks, attempt: str) -> None:
    """Delete the finals of an attempt that never ended. Blocking, as all but `remove`."""
    start = f"part-{sinks.life}-{attempt}-"
    for output in sinks.outputs.values():
        _drop(home, output, start)
        for page in home.s3.pages(home.bucket, _where(output, start)):
            home.s3.delete(home.bucket, [one.key for one in page if _name(one.key).startswith(start)])


def drop_finals(home: Home, sinks: Sinks, sink: str, lane: int) -> None:
    """Give up uploads of finals of a lane that has a new owner."""
    _drop(home, sinks.outputs[sink], f"part-{sinks.life}-{lane:04d}-")


def _drop(home: Home, output: S3Sink, start: str) -> None:
    drop_uploads(home.s3, home.bucket, _where(output, start), lambda key: _name(key).startswith(start))


def drop_uploads(s3: S3, bucket: str, prefix: str, ours: Callable[[str], bool]) -> None:
    """Give up uploads in parts below `prefix`. Where they may not be listed, the bucket's own rule must do it."""
    with contextlib.suppress(Refused):
        for key, upload in list(s3.uploads(bucket, prefix)):
            if ours(key):
                with contextlib.suppress(Missing):
                    s3.drop_parts(bucket, key, upload)


def _where(output: S3Sink, start: str) -> str:
    """Where partitions make folders, a name may stand in any of them."""
    return output.prefix if output.partition_by else output.prefix + start


def _name(key: str) -> str:
    return key.rpartition("/")[2]


def is_named(home: Home, lane: int, sinks: Sinks, attempt: str) -> bool:
    """Whether finals of an attempt count, whoever asks."""
    return any(f"-{attempt}-" in key for key in _named(home, lane, sinks))


def _named(home: Home, lane: int, sinks: Sinks) -> Iterator[str]:
    """The lane's progress comes first: what it forgets is told by then."""
    found = fence.read(home.s3, home.bucket, home.key(progress_name(lane)))
    state = decode(found.data, f"{home}{progress_name(lane)}") if found is not None else Progress()
    yield from (final.key for final in all_finals(home, lane, state.finals))
    for sink in sinks.outputs:
        yield from told.keys(home, told.read(home, sink)[0])


def sweep(life: Life, sinks: Sinks, sink: str, *, finals: bool) -> list[str]:
    """Where nobody holds a lane any more: give up uploads, and delete lists that nothing names. Returns the sink's
    finals that readers are not told of (see `remove`); not `finals`: they are not looked for."""
    home, output, ours = life.home, sinks.outputs[sink], f"part-{life.name}-"
    _drop(home, output, ours)
    what, etag = told.read(home, sink)
    shown = set(told.keys(home, what)) if finals else set[str]()
    below = told.lists_of(life, output.prefix)
    lists, unnamed = list[str](), list[str]()
    for page in home.s3.pages(home.bucket, output.prefix if finals else below):
        lists += [one.key for one in page if one.key.startswith(below)]
        unnamed += [one.key for one in page if one.key not in shown and _name(one.key).startswith(ours)]
    told.forget_lists(home, sink, what, etag, lists)
    return unnamed


def by_lane(finals: Iterable[str]) -> dict[int, list[str]]:
    """What is named otherwise than finals are is left out."""
    found: dict[int, list[str]] = {}
    for key in finals:
        if ours := _FINAL.fullmatch(_name(key)):
            found.setdefault(int(ours[1]), []).append(key)
    return found


async def remove(lane: Lane, home: Home, sinks: Sinks, keys: Iterable[str]) -> None:
    """Delete those that nothing names. An owner that sleeps amid a merge can't name them once the progress is
    another."""
    await lane.change(lambda state, _: state)
    merging = lane.state.merging
    named = set(await asyncio.to_thread(lambda: list(_named(home, lane.number, sinks))))
    gone = [k for k in keys if k not in named and not (merging is not None and f"-{merging.attempt}-" in k)]
    await asyncio.to_thread(home.s3.delete, home.bucket, gone)
